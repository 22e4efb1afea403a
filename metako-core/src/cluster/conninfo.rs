//! `primary_conninfo`: reading it, and pointing it elsewhere.

use crate::config::{Node, ReplicationAddress, Secret};

/// A connection string as keyword and value, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Conninfo(pub(super) Vec<(String, String)>);

impl Conninfo {
    /// Reads either form that libpq knows; `None` if it is neither.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches(is_space);
        match uri(text) {
            Some(rest) => parse_uri(rest),
            None => parse_pairs(text),
        }
    }

    /// The value of a keyword: the last one counts, as in libpq.
    pub(super) fn value(&self, keyword: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == keyword).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, keyword: &str, value: &str) {
        self.0.retain(|(key, _)| key != keyword);
        self.0.push((keyword.to_owned(), value.to_owned()));
    }

    /// Host and port that it leads to, if it names exactly one.
    pub(super) fn address(&self) -> Option<(&str, u16)> {
        let host = self.value("host").or_else(|| self.value("hostaddr"))?;
        let port = self.value("port").filter(|port| !port.is_empty()).unwrap_or("5432");
        if host.is_empty() || host.contains(',') {
            return None;
        }
        Some((host, port.parse().ok()?))
    }
}

impl std::fmt::Display for Conninfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (key, value)) in self.0.iter().enumerate() {
            let gap = if index == 0 { "" } else { " " };
            write!(f, "{gap}{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))?;
        }
        Ok(())
    }
}

/// `standby`'s former conninfo, made to lead to `upstream`. What is not about the address is kept; where there was none
/// (or none that can be read), it logs in as `replication:` says, and metako's own user fills what that leaves open. Its
/// password is that user's alone: it is taken only where `replication:` names neither a user nor a password of any kind.
pub(super) fn rewrite(former: Option<&str>, standby: &Node, upstream: &Node) -> String {
    let known = former.and_then(Conninfo::parse).filter(|conninfo| !conninfo.0.is_empty());
    let ReplicationAddress { host, port, user, password, passfile } = &upstream.replication;
    let mut conninfo = known.unwrap_or_else(|| {
        let mut own = Conninfo(vec![("user".to_owned(), upstream.username.clone())]);
        if user.is_none() && password.is_none() && passfile.is_none() {
            own.set("password", upstream.password.reveal());
        }
        own
    });
    // An explicit upstream needs no search among hosts, and a standby is refused by some of these while it is one.
    conninfo.0.retain(|(key, _)| {
        !matches!(key.as_str(), "hostaddr" | "target_session_attrs" | "load_balance_hosts")
    });
    conninfo.set("host", host);
    conninfo.set("port", &port.to_string());
    if let Some(user) = user {
        conninfo.set("user", user);
    }
    if let Some(password) = password {
        conninfo.set("password", password.reveal());
    }
    if let Some(passfile) = passfile {
        conninfo.set("passfile", passfile);
        // libpq looks into the file only where there is no password beside it.
        if password.is_none() {
            conninfo.0.retain(|(key, _)| key != "password");
        }
    }
    if conninfo.value("application_name").is_none() {
        conninfo.set("application_name", &standby.application_name);
    }
    conninfo.to_string()
}

/// Keywords whose values are no secrets.
const NO_SECRETS: [&str; 35] = [
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "passfile",
    "port",
    "replication",
    "require_auth",
    "requirepeer",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "sslsni",
    "target_session_attrs",
    "user",
];

/// A conninfo of which only what is known to be no secret is left, and nothing of one that cannot be read, or not for
/// certain. What depends on the address, or on whether there is a password, depends on the same in this.
pub(crate) fn mask(text: &str) -> String {
    let known = Conninfo::parse(text).filter(|conninfo| {
        // What is no keyword may be a part of a secret that was not quoted.
        let is_keyword = |key: &str| {
            !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        conninfo.0.iter().all(|(key, _)| is_keyword(key)) && !uri(text).is_some_and(is_ambiguous)
    });
    let Some(mut conninfo) = known else { return Secret::MASK.to_owned() };
    let secret = |(key, value): &&mut (String, String)| {
        // A database's name may be a whole conninfo.
        !NO_SECRETS.contains(&key.as_str()) || (key == "dbname" && value.contains(['=', '@']))
    };
    let mut secrets = conninfo.0.iter_mut().filter(secret).peekable();
    if secrets.peek().is_none() {
        return text.to_owned();
    }
    secrets.for_each(|(_, value)| Secret::MASK.clone_into(value));
    conninfo.to_string()
}

/// Whether a URI has an `@` that ends no user: that may have been meant to be part of a password, or to end it.
fn is_ambiguous(uri: &str) -> bool {
    split_user(uri).1.contains('@')
}

/// Whether two host names mean the same host as far as can be told without asking anybody.
pub(super) fn same_host(a: &str, b: &str) -> bool {
    a.eq_ignore_ascii_case(b) || (is_local(a) && is_local(b))
}

fn is_local(host: &str) -> bool {
    host.starts_with('/') || matches!(host, "localhost" | "127.0.0.1" | "::1" | "[::1]")
}

/// White space to libpq.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t'..='\r')
}

/// What follows the scheme, if it is a URI.
fn uri(text: &str) -> Option<&str> {
    let text = text.trim_matches(is_space);
    text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"))
}

/// The user with the password, and what follows: the first `@` ends it, if no `/` comes before.
fn split_user(uri: &str) -> (&str, &str) {
    match uri.find(['@', '/']) {
        Some(at) if uri[at..].starts_with('@') => (&uri[..at], &uri[at + 1..]),
        _ => ("", uri),
    }
}

fn parse_pairs(text: &str) -> Option<Conninfo> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let key = key.trim_matches(is_space);
        if key.is_empty() || key.contains(is_space) {
            return None;
        }
        let (value, after) = parse_value(after.trim_start_matches(is_space))?;
        pairs.push((key.to_owned(), value));
        rest = after.trim_start_matches(is_space);
    }
    Some(Conninfo(pairs))
}

fn parse_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Some((value, &text[at + 1..])),
            _ if !quoted && is_space(character) => return Some((value, &text[at..])),
            _ => value.push(character),
        }
    }
    (!quoted).then_some((value, ""))
}

fn parse_uri(rest: &str) -> Option<Conninfo> {
    let mut pairs = Vec::new();
    let mut push = |key: &str, value: &str| {
        if !value.is_empty() {
            pairs.push((key.to_owned(), decode(value)?));
        }
        Some(())
    };
    let (user, rest) = split_user(rest);
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (place, database) = before.split_once('/').unwrap_or((before, ""));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    push("user", user)?;
    push("password", password)?;
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for one in place.split(',') {
        let (host, port) = match one.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':').unwrap_or(port)),
            None => one.split_once(':').unwrap_or((one, "")),
        };
        hosts.push(host);
        ports.push(port);
    }
    push("host", &hosts.join(","))?;
    if ports.iter().any(|port| !port.is_empty()) {
        push("port", &ports.join(","))?;
    }
    push("dbname", database)?;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=')?;
        pairs.push((decode(key)?, decode(value)?));
    }
    Some(Conninfo(pairs))
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::tests::node;

    #[test]
    fn both_forms_are_read() {
        let pairs = Conninfo::parse(r"host=db1 port = 5433 password='it''s'").map(|c| c.0.len());
        assert_eq!(pairs, None, "a quote inside is escaped by a backslash, not doubled");
        let pairs = Conninfo::parse(r"host=db1 port = 5433 password='it\'s' user=rep\ l").unwrap();
        assert_eq!(pairs.address(), Some(("db1", 5433)));
        assert_eq!(pairs.value("password"), Some("it's"));
        assert_eq!(pairs.value("user"), Some("rep l"));
        let uri = Conninfo::parse("postgres://r%40x:p%2fw@[::1]:5440/replication?sslmode=require").unwrap();
        assert_eq!(uri.address(), Some(("::1", 5440)));
        assert_eq!(uri.value("user"), Some("r@x"));
        assert_eq!(uri.value("password"), Some("p/w"));
        assert_eq!(uri.value("sslmode"), Some("require"));
        let uri = Conninfo::parse("postgres://u:a?b@h/d?pass%77ord=p").unwrap();
        assert_eq!(uri.address(), Some(("h", 5432)), "user and password end at the first @");
        assert_eq!(uri.value("password"), Some("p"), "keys are encoded too");
        let pairs = Conninfo::parse("host=a\u{a0}b\u{b}user=u").unwrap();
        assert_eq!((pairs.value("host"), pairs.value("user")), (Some("a\u{a0}b"), Some("u")));
        assert_eq!(Conninfo::parse("host=a,b port=1,2").unwrap().address(), None, "two hosts are no address");
        for broken in ["host", "=x", "a b=c", "host='x", "postgres://h/?x"] {
            assert_eq!(Conninfo::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_rewritten_conninfo_keeps_all_but_the_address() {
        let (standby, mut upstream) = (node("b", 5434), node("c", 5435));
        let former = "host=old hostaddr=10.0.0.1 port=1 user=repl password=secret sslmode=require target_session_attrs=primary";
        let text = rewrite(Some(former), &standby, &upstream);
        assert_eq!(
            text,
            "user='repl' password='secret' sslmode='require' host='localhost' port='5435' application_name='b'"
        );
        upstream.replication.user = Some("other".to_owned());
        upstream.replication.password = Some(Secret::new("n'ew"));
        upstream.replication.passfile = Some("/p".to_owned());
        let text = rewrite(Some("user=repl application_name=mine"), &standby, &upstream);
        assert_eq!(
            text,
            r"application_name='mine' host='localhost' port='5435' user='other' password='n\'ew' passfile='/p'"
        );
        let text = rewrite(None, &standby, &node("c", 5435));
        assert_eq!(
            text,
            "user='postgres' password='password' host='localhost' port='5435' application_name='b'"
        );
    }

    #[test]
    fn without_a_former_conninfo_no_password_meets_another_user() {
        let (standby, upstream) = (node("b", 5434), node("c", 5435));
        let log_in =
            |former: Option<&str>, user: Option<&str>, password: Option<&str>, passfile: Option<&str>| {
                let mut upstream = upstream.clone();
                upstream.replication.user = user.map(str::to_owned);
                upstream.replication.password = password.map(Secret::new);
                upstream.replication.passfile = passfile.map(str::to_owned);
                let written = Conninfo::parse(&rewrite(former, &standby, &upstream)).unwrap();
                ["user", "password", "passfile"].map(|key| written.value(key).map(str::to_owned))
            };
        let (user, password, passfile) = (Some("repl"), Some("secret"), Some("/p"));
        let own = Some("postgres");
        for (given, expected) in [
            ([None, None, None], [own, Some("password"), None]),
            ([user, None, None], [user, None, None]),
            ([None, password, None], [own, password, None]),
            ([None, None, passfile], [own, None, passfile]),
            ([user, password, None], [user, password, None]),
            ([user, None, passfile], [user, None, passfile]),
        ] {
            let expected = expected.map(|value| value.map(str::to_owned));
            assert_eq!(log_in(None, given[0], given[1], given[2]), expected, "{given:?}");
            assert_eq!(log_in(Some("host='"), given[0], given[1], given[2]), expected, "{given:?}");
        }
        let former = Some("user=repl password=old");
        assert_eq!(
            log_in(former, None, None, passfile),
            [user, None, passfile].map(|value| value.map(str::to_owned)),
            "a password would have the file overlooked"
        );
        assert_eq!(
            log_in(former, None, None, None),
            [user, Some("old"), None].map(|value| value.map(str::to_owned))
        );
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(pairs in prop::collection::vec(("[a-z_]{1,8}", ".{0,12}"), 0..6)) {
            let conninfo = Conninfo(pairs);
            prop_assert_eq!(Conninfo::parse(&conninfo.to_string()), Some(conninfo));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let _ = Conninfo::parse(&text);
            let _ = Conninfo::parse(&format!("postgresql://{text}"));
        }
    }
}
