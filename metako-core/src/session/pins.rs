//! Why a session keeps its server, and the question to the server whether it has to.

use super::settings::{Named, quote};

/// The longest row of the answer to [`question`] that is read, in bytes.
pub(super) const ROW_MAX: usize = 32 << 10;

/// What a session has on its server that no other server can be given: a set of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pins(u16);

macro_rules! pins {
    ($($name:ident = $bit:literal: $reason:literal;)*) => {
        impl Pins {
            $(pub(super) const $name: Self = Self(1 << $bit);)*

            const REASONS: &'static [(Self, &'static str)] = &[$((Self::$name, $reason)),*];
        }
    };
}

pins! {
    TEMPORARY = 0: "it has temporary objects";
    LOCKS = 1: "it holds advisory locks";
    CURSORS = 2: "it has a cursor WITH HOLD";
    LISTENS = 3: "it listens to notifications";
    ROLE = 4: "it has taken a role";
    PREPARED = 5: "a function prepared a statement in it";
    SETTINGS = 6: "it has settings that cannot be made again elsewhere";
    SEQUENCES = 7: "it uses currval() or lastval()";
    STAYS = 8: "it loaded a library, or set a random seed";
    LONG = 9: "a text too long to be looked at was prepared";
    UNASKED = 10: "its server could not be asked what it has there";
    UNNAMED = 11: "it called set_config() with a name that the text does not show";
}

impl Pins {
    pub(super) const NONE: Self = Self(0);
    /// What the server can be asked about.
    pub(super) const ASKED: Self = Self(0b0111_1111 | 1 << 10);

    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(super) fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }

    pub(super) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The first of its reasons.
    #[inline]
    pub(super) fn reason(self) -> Option<&'static str> {
        if self == Self::NONE {
            return None;
        }
        Self::REASONS.iter().find(|(pin, _)| self.has(*pin)).map(|(_, reason)| *reason)
    }
}

/// The order of the columns of the answer.
const COLUMNS: [Pins; 6] =
    [Pins::TEMPORARY, Pins::LOCKS, Pins::CURSORS, Pins::LISTENS, Pins::ROLE, Pins::PREPARED];

/// All names are qualified: the session's search_path is the client's affair.
const HOLDINGS: &[u8] = b"SELECT \
    EXISTS (SELECT FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=) 2615 \
        AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()), \
    EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory' \
        AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()), \
    EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable), \
    EXISTS (SELECT FROM pg_catalog.pg_listening_channels()), \
    pg_catalog.current_setting('role') OPERATOR(pg_catalog.<>) 'none', \
    EXISTS (SELECT FROM pg_catalog.pg_prepared_statements \
        WHERE pg_catalog.left(name, 7) OPERATOR(pg_catalog.<>) 'metako_')";

const SETTINGS: &[u8] =
    b"; SELECT name, setting FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session'";

/// What is asked of a server after a statement whose text does not show what it left behind: what the session has there;
/// and if `settings`, which settings it has made, those of `named` too, which no list shows.
pub(super) fn question<'a>(settings: bool, named: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut sql = HOLDINGS.to_vec();
    if settings {
        sql.extend_from_slice(SETTINGS);
        for name in named {
            sql.extend_from_slice(b" UNION ALL SELECT ");
            quote(name, &mut sql);
            sql.extend_from_slice(b", pg_catalog.current_setting(");
            quote(name, &mut sql);
            sql.extend_from_slice(b", true)");
        }
    }
    sql
}

/// What the server answered so far.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) pins: Option<Pins>,
    pub(super) settings: Vec<Named<Box<[u8]>>>,
    /// A row could not be read.
    pub(super) broken: bool,
}

impl Answer {
    /// Takes the body of a DataRow.
    pub(super) fn row(&mut self, body: &[u8]) {
        let Some(columns) = columns(body) else {
            self.broken = true;
            return;
        };
        if self.pins.is_none() {
            let mut pins = Pins::NONE;
            self.broken |= columns.len() != COLUMNS.len();
            for (pin, column) in COLUMNS.iter().zip(columns) {
                if column != Some(b"f") {
                    pins.add(*pin);
                }
            }
            self.pins = Some(pins);
        } else if let [Some(name), value] = columns.as_slice() {
            if let Some(value) = value {
                self.settings.push((name.to_ascii_lowercase().into(), (*value).into()));
            }
        } else {
            self.broken = true;
        }
    }
}

fn columns(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        let length = i32::from_be_bytes(*length);
        let Ok(length) = usize::try_from(length) else {
            columns.push(None);
            continue;
        };
        columns.push(Some(rest.get(..length)?));
        rest = &rest[length..];
    }
    rest.is_empty().then_some(columns)
}

#[cfg(test)]
pub(super) fn row(columns: &[Option<&str>]) -> Vec<u8> {
    let mut out = Vec::new();
    crate::wire::write::frame(&mut out, b'D', |out| {
        out.extend_from_slice(&u16::try_from(columns.len()).unwrap().to_be_bytes());
        for column in columns {
            let length = column.map_or(-1, |text| i32::try_from(text.len()).unwrap());
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(column.unwrap_or_default().as_bytes());
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_read_row_by_row_and_a_strange_one_is_known_as_such() {
        let mut answer = Answer::default();
        answer.row(&row(&[Some("f"), Some("t"), Some("f"), Some("f"), Some("f"), Some("t")])[5..]);
        answer.row(&row(&[Some("TimeZone"), Some("UTC")])[5..]);
        answer.row(&row(&[Some("a.b"), None])[5..]);
        assert!(!answer.broken);
        let pins = answer.pins.unwrap();
        assert!(pins.has(Pins::LOCKS) && pins.has(Pins::PREPARED) && !pins.has(Pins::TEMPORARY));
        assert_eq!(pins.reason(), Some("it holds advisory locks"));
        assert_eq!(answer.settings, [(b"timezone"[..].into(), b"UTC"[..].into())]);
        answer.row(b"\0\x05");
        assert!(answer.broken);
    }

    #[test]
    fn names_are_asked_for_by_name_only_where_no_list_shows_them() {
        let names = [&b"a.b"[..]];
        let sql = question(true, names.into_iter());
        let sql = String::from_utf8(sql).unwrap();
        assert!(sql.ends_with(" UNION ALL SELECT 'a.b', pg_catalog.current_setting('a.b', true)"), "{sql}");
        assert!(!String::from_utf8(question(false, names.into_iter())).unwrap().contains("a.b"));
    }
}
