//! What PostgreSQL's analysis of a text depends on beside the text: statements are shared by those alone to whom a text
//! means the same.

use super::acts::{contains_word, has_prefix};
use super::pins::Pins;
use super::settings::Made;
use super::{Server, Session, SessionCx};
use crate::plugin::Effects;

/// Settings that decide what a text means, or its constants, once and for all at its Parse; servers report them.
const REPORTED: [&[u8]; 6] = [
    b"client_encoding",
    b"DateStyle",
    b"IntervalStyle",
    b"TimeZone",
    b"search_path",
    b"standard_conforming_strings",
];

/// The same; not reported.
const UNREPORTED: [&[u8]; 6] = [
    b"array_nulls",
    b"backslash_quote",
    b"lc_monetary",
    b"timezone_abbreviations",
    b"transform_null_equals",
    b"xmloption",
];

/// PostgreSQL analyses a statement anew when this has changed, so sharing it would be slow, not wrong. Reported from
/// PostgreSQL 18 on.
const SEARCH_PATH: &[u8] = b"search_path";

/// Words that mean the moment of the Parse.
const MOMENTS: [&[u8]; 4] = [b"now", b"today", b"tomorrow", b"yesterday"];

/// What was set in the transaction at hand, and may not last.
#[derive(Debug, Default)]
pub(super) struct InTransaction {
    /// How the search_path was set.
    path: Option<Box<[u8]>>,
    /// Something else that analysis depends on was, and is not reported.
    other: bool,
}

impl InTransaction {
    /// A setting is made, by this text if it is one.
    pub(super) fn set(&mut self, name: &[u8], text: Option<&[u8]>) {
        if name == SEARCH_PATH {
            self.path = Some(text.unwrap_or(b"another way").into());
        }
        self.other |= UNREPORTED.contains(&name);
    }

    /// Nothing that analysis depends on was set.
    pub(super) fn is_nothing(&self) -> bool {
        self.path.is_none() && !self.other
    }

    /// Any setting may have been made.
    pub(super) fn set_any(&mut self) {
        self.other = true;
    }
}

impl Session {
    /// What a text is analysed with; `None` if that is nobody else's.
    pub(super) fn analysed_with(&self, server: &Server, sql: &[u8], cx: &SessionCx<'_>) -> Option<Vec<u8>> {
        let own = Pins::TEMPORARY.and(Pins::UNNAMED).and(Pins::UNASKED);
        if self.pins.has(own)
            || self.becoming.suspect.has(Effects::HOLDS)
            || self.becoming.set.other
            || self.may_be_setting(server)
            || names_a_moment(sql)
        {
            return None;
        }
        let mut context = cx.scope.to_be_bytes().to_vec();
        let mut add = |name: &[u8], value: &[u8]| {
            for part in [name, b"\0", value, b"\0"] {
                context.extend_from_slice(part);
            }
        };
        // What the server reports is what it had before it becomes what the session needs.
        let becomes = server.replies.becomes_the_sessions();
        for name in REPORTED {
            let made = || self.settings.get(&name.to_ascii_lowercase()).map(Made::bytes);
            if let Some(value) = if becomes { made() } else { server.reported.changed(name) } {
                add(name, value);
            }
        }
        for name in UNREPORTED.into_iter().chain([SEARCH_PATH]) {
            if let Some(made) = self.settings.get(name) {
                add(name, made.bytes());
            }
        }
        if let Some(path) = &self.becoming.set.path {
            add(b"", path);
        }
        Some(context)
    }

    /// Whether something that was sent and is not answered may make a setting.
    fn may_be_setting(&self, server: &Server) -> bool {
        let opaque = self.becoming.suspect.has(Effects::OPAQUE);
        server.replies.carry() || (opaque && server.replies.front().is_some() && !server.answers_metako())
    }
}

/// Whether a constant may mean the moment of the Parse: `'now'` and its like, however it is quoted. Errs towards yes.
fn names_a_moment(sql: &[u8]) -> bool {
    let is_quoted = memchr::memchr2(b'\'', b'$', sql).is_some();
    let is_escaped =
        || memchr::memchr(b'\\', sql).is_some() && (contains_word(sql, b"e'") || contains_word(sql, b"u&'"));
    is_quoted && (is_escaped() || MOMENTS.iter().any(|word| has_constant(sql, word)))
}

/// Whether a word stands there that is not the name of a function.
fn has_constant(sql: &[u8], word: &[u8]) -> bool {
    (0..sql.len()).any(|at| {
        let begins = at == 0 || !sql[at - 1].is_ascii_alphanumeric();
        begins && has_prefix(&sql[at..], word) && !sql[at + word.len()..].trim_ascii_start().starts_with(b"(")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_found_in_constants_alone() {
        for sql in [
            "select 'now'::timestamptz",
            "select date ' TODAY'",
            "select 'a', 'Yesterday 10:00'",
            "select '10:00 today'::timestamptz",
            "select $$now$$::date",
            r"select E'\x6eow'::date",
        ] {
            assert!(names_a_moment(sql.as_bytes()), "{sql}");
        }
        for sql in ["select now()", "select 'know'", "select tomorrow from t", "'", ""] {
            assert!(!names_a_moment(sql.as_bytes()), "{sql}");
        }
    }
}
