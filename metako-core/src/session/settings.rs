//! Settings of a session, and how they are made again on another server.

use std::sync::Arc;

use super::application_name;
use super::rewrite::quoted;

/// The most bytes of settings that one session may take from server to server.
const BYTES_MAX: usize = 16 << 10;

/// Names and values of parameters, as a server reports them after log-in. Shared by those that were told the same.
pub type Reported = Arc<Vec<(String, String)>>;

/// How a setting is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Made {
    /// By this statement, the client's own.
    Text(Box<[u8]>),
    /// By this value, as the server shows it.
    Value(Box<[u8]>),
}

impl Made {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(bytes) | Self::Value(bytes) => bytes,
        }
    }
}

/// The settings that a session has made, by name in lower case. All others are what they are after log-in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings(Vec<(Box<[u8]>, Made)>);

impl Settings {
    /// Those of a session that has just begun and made none but its application name: servers are shared by clients that
    /// began with another.
    pub(super) fn named(application_name: &Made) -> Self {
        Self(vec![(APPLICATION_NAME.into(), application_name.clone())])
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<&Made> {
        self.find(name).ok().map(|at| &self.0[at].1)
    }

    fn find(&self, name: &[u8]) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_ref().cmp(name))
    }

    pub(super) fn set(&mut self, name: &[u8], made: Made) {
        match self.find(name) {
            Ok(at) => self.0[at].1 = made,
            Err(at) => self.0.insert(at, (name.into(), made)),
        }
    }

    pub(super) fn remove(&mut self, name: &[u8]) {
        if let Ok(at) = self.find(name) {
            self.0.remove(at);
        }
    }

    /// Whether it differs from `other` in nothing but the application name.
    pub(super) fn is_but_for_the_name<'a>(&'a self, other: &'a Self) -> bool {
        let others =
            |settings: &'a Self| settings.0.iter().filter(|(name, _)| name.as_ref() != APPLICATION_NAME);
        others(self).eq(others(other))
    }

    /// Whether that holds for one of them.
    pub(super) fn any(&self, is: impl Fn(&[u8], &Made) -> bool) -> bool {
        self.0.iter().any(|(name, made)| is(name, made))
    }

    /// Removes those for which that holds.
    pub(super) fn remove_if(&mut self, is: impl Fn(&[u8], &Made) -> bool) {
        self.0.retain(|(name, made)| !is(name, made));
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|(name, _)| name.as_ref())
    }

    /// Whether they are too many to be taken along, or one cannot be written by metako.
    pub(super) fn is_stuck(&self) -> bool {
        let total: usize = self.0.iter().map(|(name, made)| name.len() + made.bytes().len()).sum();
        let writable = |made: &Made| match made {
            Made::Text(_) => true,
            Made::Value(value) => value.iter().all(|byte| matches!(byte, b' '..=b'~')),
        };
        total > BYTES_MAX || !self.0.iter().all(|(_, made)| writable(made))
    }

    /// Writes the statements that make a session that has `self` one that has `wanted`. Whether there are any.
    pub(super) fn become_those(&self, wanted: &Self, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        for (name, _) in &self.0 {
            if wanted.get(name).is_none() {
                reset(name, out);
            }
        }
        for (name, made) in &wanted.0 {
            if self.get(name) != Some(made) {
                make(name, made, out);
            }
        }
        out.len() > start
    }
}

pub(super) const APPLICATION_NAME: &[u8] = b"application_name";

/// The reported parameters that no statement sets.
const FIXED: [&str; 6] = [
    "in_hot_standby",
    "integer_datetimes",
    "is_superuser",
    "server_encoding",
    "server_version",
    "session_authorization",
];

/// Settings whose value is a list of names, each quoted by itself: SET would take the whole for one name.
const LISTS: [&[u8]; 6] = [
    b"local_preload_libraries",
    b"search_path",
    b"session_preload_libraries",
    b"shared_preload_libraries",
    b"temp_tablespaces",
    b"unix_socket_directories",
];

/// Whether a statement can set that reported parameter.
pub(super) fn is_settable(name: &[u8]) -> bool {
    !FIXED.iter().any(|fixed| fixed.as_bytes() == name)
}

fn reset(name: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"RESET ");
    identifier(name, out);
    out.extend_from_slice(b"; ");
}

/// A setting's name as SQL has it. Those of applications' own have parts, which may be reserved words, such as `app.user`.
fn identifier(name: &[u8], out: &mut Vec<u8>) {
    if !name.contains(&b'.') {
        return out.extend_from_slice(name);
    }
    let parts: Vec<Vec<u8>> = name.split(|byte| *byte == b'.').map(quoted).collect();
    out.extend_from_slice(&parts.join(&b'.'));
}

fn make(name: &[u8], made: &Made, out: &mut Vec<u8>) {
    match made {
        Made::Text(text) => out.extend_from_slice(text),
        Made::Value(value) if LISTS.contains(&name) => {
            out.extend_from_slice(b"SELECT pg_catalog.set_config('");
            out.extend_from_slice(name);
            out.extend_from_slice(b"', ");
            quote(value, out);
            out.extend_from_slice(b", false)");
        }
        Made::Value(value) => {
            out.extend_from_slice(b"SET ");
            identifier(name, out);
            out.extend_from_slice(b" TO ");
            if name == APPLICATION_NAME {
                application_name::literal(value, out);
            } else {
                quote(value, out);
            }
        }
    }
    out.extend_from_slice(b"; ");
}

/// Bytes that are not printable ASCII become question marks, as PostgreSQL makes them in an application name: so no
/// encoding in which the server reads this can see a quote elsewhere.
fn printable(value: &[u8]) -> String {
    let byte = |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' };
    value.iter().map(byte).collect()
}

pub(super) fn quote(value: &[u8], out: &mut Vec<u8>) {
    if value.contains(&b'\\') {
        out.push(b'E');
    }
    out.push(b'\'');
    for byte in printable(value).bytes() {
        if matches!(byte, b'\'' | b'\\') {
            out.push(byte);
        }
        out.push(byte);
    }
    out.push(b'\'');
}

/// A name, and what it stands for.
pub(super) type Named<T> = (Box<[u8]>, T);

/// Of two that are equal, the one that more share is kept: where many meet, most have one before long.
pub(super) fn become_one<T: ?Sized>(one: &mut Arc<T>, other: &mut Arc<T>) {
    if Arc::strong_count(one) > Arc::strong_count(other) {
        *other = Arc::clone(one);
    } else {
        *one = Arc::clone(other);
    }
}

/// The parameters that a server reports, or that a client was told.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    base: Reported,
    /// What differs from that.
    changes: Arc<[Named<Box<[u8]>>]>,
}

impl View {
    pub(super) fn new(base: &Reported) -> Self {
        Self { base: Arc::clone(base), changes: Arc::default() }
    }

    /// The value after log-in.
    pub(super) fn of_base(&self, name: &[u8]) -> Option<&[u8]> {
        self.base.iter().find(|(known, _)| known.as_bytes() == name).map(|(_, value)| value.as_bytes())
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let changed = self.changes.iter().find(|(known, _)| known.as_ref() == name);
        changed.map(|(_, value)| value.as_ref()).or_else(|| self.of_base(name))
    }

    /// The value of the parameter of that name in any case, such as `timezone` for `TimeZone`.
    pub(super) fn find(&self, name: &[u8]) -> Option<&[u8]> {
        let known = self.names().find(|known| known.eq_ignore_ascii_case(name))?;
        self.get(known)
    }

    fn names(&self) -> impl Iterator<Item = &[u8]> {
        let added = self.changes.iter().map(|(name, _)| name.as_ref());
        self.base.iter().map(|(name, _)| name.as_bytes()).chain(added)
    }

    /// Gives the value before.
    pub(super) fn set(&mut self, name: &[u8], value: &[u8]) -> Option<Box<[u8]>> {
        let before = self.get(name).map(Box::from);
        let at = self.changes.iter().position(|(known, _)| known.as_ref() == name);
        match (self.of_base(name) == Some(value), at) {
            (true, Some(_)) => self.changes = self.changes_but(name).collect(),
            (true, None) => {}
            (false, Some(at)) if *self.changes[at].1 == *value => {}
            (false, _) => {
                let change = (name.into(), value.into());
                self.changes = self.changes_but(name).chain([change]).collect();
            }
        }
        before
    }

    fn changes_but(&self, name: &[u8]) -> impl Iterator<Item = Named<Box<[u8]>>> {
        self.changes.iter().filter(move |(known, _)| known.as_ref() != name).cloned()
    }

    /// Whether it is the same; seen at a glance.
    pub(super) fn is_surely(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.base, &other.base)
            && (Arc::ptr_eq(&self.changes, &other.changes)
                || self.changes.len() == other.changes.len()
                    && self.changes.iter().all(|change| other.changes.contains(change)))
    }

    /// As [`Self::is_surely`]; equal changes are shared from then on, so that the next comparison is one of pointers.
    pub(super) fn is_surely_one(&mut self, other: &mut Self) -> bool {
        let same = self.is_surely(other);
        if same && !Arc::ptr_eq(&self.changes, &other.changes) {
            become_one(&mut self.changes, &mut other.changes);
        }
        same
    }

    pub(super) fn base(&self) -> &Reported {
        &self.base
    }

    /// The value of a parameter that is not what it was after log-in.
    pub(super) fn changed(&self, name: &[u8]) -> Option<&[u8]> {
        let changed = self.changes.iter().find(|(known, _)| known.as_ref() == name);
        changed.map(|(_, value)| value.as_ref())
    }

    /// What a client that was told `self` has to be told to know `now`; it is then told.
    pub(super) fn catch_up(&mut self, now: &Self, mut tell: impl FnMut(&[u8], &[u8])) {
        if self.is_surely(now) {
            return;
        }
        let mut differ = Vec::new();
        for name in now.names() {
            // Writes are possible through metako, whichever node this is.
            if name != b"in_hot_standby"
                && let Some(value) = now.get(name)
                && self.get(name) != Some(value)
                && !differ.iter().any(|(known, _): &Named<Box<[u8]>>| known.as_ref() == name)
            {
                differ.push((Box::<[u8]>::from(name), Box::<[u8]>::from(value)));
            }
        }
        for (name, value) in differ {
            tell(&name, &value);
            self.set(&name, &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(from: &Settings, to: &Settings) -> String {
        let mut out = Vec::new();
        from.become_those(to, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn value(text: &str) -> Made {
        Made::Value(text.as_bytes().into())
    }

    #[test]
    fn only_what_differs_is_made_and_what_is_not_wanted_is_reset() {
        let (mut one, mut two) = (Settings::default(), Settings::default());
        one.set(b"timezone", value("UTC"));
        one.set(b"a.b", Made::Text(b"SET a.b = 1"[..].into()));
        two.set(b"timezone", value("UTC"));
        two.set(b"search_path", value("a, \"B\""));
        two.set(b"application_name", value("it's a \\"));
        assert_eq!(
            statements(&one, &two),
            "RESET \"a\".\"b\"; SET application_name TO E'it''s a \\\\'; \
             SELECT pg_catalog.set_config('search_path', 'a, \"B\"', false); "
        );
        assert_eq!(statements(&Settings::default(), &one), "SET a.b = 1; SET timezone TO 'UTC'; ");
        assert_eq!(statements(&one, &one), "");
        let mut own = Settings::default();
        own.set(b"app.user", value("x"));
        own.set(b"a\"b.c.d", value("y"));
        let made = statements(&Settings::default(), &own);
        assert_eq!(made, "SET \"a\"\"b\".\"c\".\"d\" TO 'y'; SET \"app\".\"user\" TO 'x'; ");
    }

    #[test]
    fn what_metako_cannot_write_is_stuck() {
        let mut settings = Settings::default();
        settings.set(b"a.b", value("plain"));
        assert!(!settings.is_stuck());
        settings.set(b"a.c", value("Zürich"));
        assert!(settings.is_stuck());
        settings.set(b"a.c", value(&"x".repeat(BYTES_MAX)));
        assert!(settings.is_stuck());
    }

    #[test]
    fn a_client_is_told_what_differs_from_what_it_was_told() {
        let base: Reported = Arc::new(vec![("TimeZone".into(), "UTC".into()), ("x".into(), "1".into())]);
        let (mut told, mut server) = (View::new(&base), View::new(&base));
        let mut heard = Vec::new();
        server.set(b"TimeZone", b"CET");
        assert_eq!(server.find(b"timezone"), Some(&b"CET"[..]));
        told.catch_up(&server, |name, value| heard.push((name.to_vec(), value.to_vec())));
        assert_eq!(heard, [(b"TimeZone".to_vec(), b"CET".to_vec())]);
        assert_eq!(server.set(b"TimeZone", b"UTC").as_deref(), Some(&b"CET"[..]));
        told.catch_up(&server, |_, value| assert_eq!(value, b"UTC"));
        assert!(told.changes.is_empty());
    }
}
