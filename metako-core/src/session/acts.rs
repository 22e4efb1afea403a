//! Statements about the session itself, taken apart: settings, and prepared statements made in SQL.
//!
//! What cannot be taken apart with certainty is [`Act::Unclear`]: the server is asked what came of it.

use super::application_name::NAME_MAX;
use crate::plugin::Span;
use crate::sql::{Kind, Lexer, Token};
use crate::wire::read;

/// What one statement does to its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// A setting is set; `text` does it again, if the text is fit for that.
    Set { name: Box<[u8]>, text: Option<Box<[u8]>> },
    /// A setting is set until the end of the transaction.
    SetLocal { name: Box<[u8]>, text: Option<Box<[u8]>> },
    /// A setting goes back to what it was after log-in.
    Reset { name: Box<[u8]> },
    /// All settings go back.
    ResetAll,
    /// A role is taken or given up.
    Role,
    /// Something that lasts as long as the session, and is not shown by the server.
    Stays,
    /// PREPARE: where the name stands.
    Prepare { name: Box<[u8]>, at: Span, statement: Span },
    /// EXECUTE, by itself or inside EXPLAIN or CREATE TABLE AS.
    Execute { name: Box<[u8]>, at: Span },
    /// DEALLOCATE of one.
    Deallocate { name: Box<[u8]>, at: Span },
    /// DISCARD SEQUENCES.
    DiscardSequences,
    /// DISCARD ALL.
    DiscardAll,
    /// set_config() of that setting.
    SetConfig { name: Box<[u8]> },
    /// set_config() of a setting that the text does not name.
    SetConfigOfUnknown,
    /// Not certain.
    Unclear,
}

impl Act {
    /// Whether the application name may become that of the client that the server was opened for.
    pub(super) fn undoes_log_in(&self) -> bool {
        match self {
            Self::ResetAll | Self::DiscardAll => true,
            Self::Reset { name } => name.as_ref() == super::settings::APPLICATION_NAME,
            _ => false,
        }
    }
}

/// Whether a text has to be taken apart: whether one of its statements may be about the session.
pub(super) fn concerns(sql: &[u8]) -> bool {
    let word = first_word(sql);
    let is = |keyword: &str| word.eq_ignore_ascii_case(keyword.as_bytes());
    if HEADS.iter().any(|head| is(head)) {
        return true;
    }
    // Behind a comment, or in a later statement, it may stand anywhere.
    let hidden = word.is_empty() || read::may_be_several(sql);
    hidden && HEADS.iter().any(|head| contains_word(sql, head.as_bytes()))
        || (is("explain") || is("create")) && contains_word(sql, b"execute")
}

/// Whether `set_config` occurs.
pub(super) fn calls_set_config(sql: &[u8]) -> bool {
    contains_word(sql, b"set_config")
}

const HEADS: [&str; 6] = ["set", "reset", "discard", "prepare", "execute", "deallocate"];

/// The first word, if the text begins with one; empty too where a comment or a parenthesis comes first.
pub(super) fn first_word(sql: &[u8]) -> &[u8] {
    let start = sql.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(sql.len());
    let rest = &sql[start..];
    let end = rest.iter().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(rest.len());
    &rest[..end]
}

/// Whether the letters of `word` occur anywhere, in upper or lower case.
pub(super) fn contains_word(sql: &[u8], word: &[u8]) -> bool {
    let Some((first, rest)) = word.split_first() else { return true };
    memchr::memchr2_iter(first.to_ascii_lowercase(), first.to_ascii_uppercase(), sql)
        .any(|at| has_prefix(&sql[at + 1..], rest))
}

/// Whether it begins with those letters, in upper or lower case.
pub(super) fn has_prefix(sql: &[u8], letters: &[u8]) -> bool {
    sql.get(..letters.len()).is_some_and(|start| start.eq_ignore_ascii_case(letters))
}

/// The acts in a text, each with the number of its statement in it, and how many statements there are.
pub(super) fn take_apart(sql: &[u8]) -> (Vec<(usize, Act)>, usize) {
    let mut lexer = Lexer::new(sql);
    let (mut acts, mut statement) = (Vec::new(), 0);
    let mut tokens = Vec::new();
    loop {
        let token = lexer.next();
        if let Some(token) = token
            && token.kind != Kind::Symbol(b';')
        {
            tokens.push(token);
            continue;
        }
        if !tokens.is_empty() {
            let found = Statement { sql, tokens: &tokens }.acts();
            acts.extend(found.into_iter().map(|act| (statement, act)));
            statement += 1;
            tokens.clear();
        }
        if token.is_none() {
            return (acts, statement);
        }
    }
}

/// One statement's tokens.
struct Statement<'a> {
    sql: &'a [u8],
    tokens: &'a [Token],
}

impl Statement<'_> {
    fn kind(&self, at: usize) -> Option<Kind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    fn text(&self, at: usize) -> &[u8] {
        self.tokens.get(at).map_or(&[], |token| &self.sql[token.span.start..token.span.end])
    }

    fn is(&self, at: usize, keyword: &str) -> bool {
        self.kind(at) == Some(Kind::Word) && self.text(at).eq_ignore_ascii_case(keyword.as_bytes())
    }

    /// The name that stands there, as PostgreSQL reads it.
    fn name(&self, at: usize) -> Option<Box<[u8]>> {
        let text = self.text(at);
        let mut name = match self.kind(at)? {
            Kind::Word => text.to_ascii_lowercase(),
            Kind::QuotedName => {
                let mut inner = Vec::with_capacity(text.len());
                let mut quoted = text[1..text.len() - 1].iter();
                while let Some(&byte) = quoted.next() {
                    inner.push(byte);
                    if byte == b'"' {
                        quoted.next();
                    }
                }
                inner
            }
            _ => return None,
        };
        name.truncate(NAME_MAX);
        Some(name.into())
    }

    fn span(&self) -> Span {
        let (first, last) = (self.tokens.first(), self.tokens.last());
        Span { start: first.map_or(0, |token| token.span.start), end: last.map_or(0, |token| token.span.end) }
    }

    fn acts(&self) -> Vec<Act> {
        if self.tokens.iter().any(|token| matches!(token.kind, Kind::Broken(_))) {
            return vec![Act::Unclear];
        }
        let act = if self.is(0, "set") {
            self.set()
        } else if self.is(0, "reset") {
            Some(self.reset())
        } else if self.is(0, "discard") {
            match () {
                () if self.is(1, "sequences") => Some(Act::DiscardSequences),
                () if self.is(1, "all") => Some(Act::DiscardAll),
                () => None,
            }
        } else if self.is(0, "prepare") && !self.is(1, "transaction") {
            Some(self.named(1, |name, at| Act::Prepare { name, at, statement: self.span() }))
        } else if self.is(0, "deallocate") {
            let at = 1 + usize::from(self.is(1, "prepare"));
            let all = self.is(at, "all") || self.tokens.len() == at;
            (!all).then(|| self.named(at, |name, at| Act::Deallocate { name, at }))
        } else {
            self.execute()
        };
        act.into_iter().chain(self.set_configs()).collect()
    }

    fn named(&self, at: usize, act: impl FnOnce(Box<[u8]>, Span) -> Act) -> Act {
        match (self.name(at), self.tokens.get(at)) {
            (Some(name), Some(token)) => act(name, token.span),
            _ => Act::Unclear,
        }
    }

    /// EXECUTE stands first, or behind EXPLAIN and its options, or behind CREATE TABLE ... AS.
    fn execute(&self) -> Option<Act> {
        let at = if self.is(0, "execute") {
            0
        } else if self.is(0, "explain") || self.is(0, "create") {
            (1..self.tokens.len()).find(|&at| {
                let before = self.text(at - 1);
                self.is(at, "execute")
                    && (self.is(0, "explain") || before.eq_ignore_ascii_case(b"as"))
                    && !self.is(at + 1, "function")
                    && !self.is(at + 1, "procedure")
            })?
        } else {
            return None;
        };
        Some(self.named(at + 1, |name, at| Act::Execute { name, at }))
    }

    fn set(&self) -> Option<Act> {
        let at = match () {
            () if self.is(1, "local") => {
                let span = self.span();
                let text = Some(self.sql[span.start..span.end].into());
                return self.setting(2).map(|(name, _)| Act::SetLocal { name, text });
            }
            () if self.is(1, "transaction") || self.is(1, "constraints") => return None,
            () if self.is(1, "session") && self.is(2, "characteristics") => return Some(Act::Unclear),
            () if self.is(1, "session") && !self.is(2, "authorization") => 2,
            () => 1,
        };
        let special = |name: &str| Some(Act::Set { name: name.as_bytes().into(), text: None });
        let assigned = |at: usize| self.kind(at) == Some(Kind::Symbol(b'=')) || self.is(at, "to");
        match () {
            () if self.is(at, "role") || self.is(at, "session") || self.is(at, "session_authorization") => {
                return Some(Act::Role);
            }
            () if self.is(at, "seed") => return Some(Act::Stays),
            () if self.is(at, "time") && self.is(at + 1, "zone") => return special("timezone"),
            () if self.is(at, "names") && !assigned(at + 1) => return special("client_encoding"),
            () if self.is(at, "transaction_isolation")
                || self.is(at, "transaction_read_only")
                || self.is(at, "transaction_deferrable") =>
            {
                return None;
            }
            () => {}
        }
        let Some((name, value)) = self.setting(at) else { return Some(Act::Unclear) };
        if !assigned(value) || value + 1 >= self.tokens.len() {
            return Some(Act::Unclear);
        }
        if self.is(value + 1, "default") {
            return Some(Act::Reset { name });
        }
        let span = self.span();
        let text = &self.sql[span.start..span.end];
        let plain = self.tokens[value + 1..].iter().all(|token| {
            matches!(
                token.kind,
                Kind::Word
                    | Kind::QuotedName
                    | Kind::Text
                    | Kind::Number
                    | Kind::Symbol(b',' | b'-' | b'+' | b'.')
            )
        });
        let fit =
            plain && text.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'\\' | b'$'));
        // A comment to the end of the line would take along what is put behind.
        let fit = fit && !contains_word(text, b"--");
        Some(Act::Set { name, text: fit.then(|| text.into()) })
    }

    fn reset(&self) -> Act {
        match () {
            () if self.is(1, "all") => Act::ResetAll,
            () if self.is(1, "role") || self.is(1, "session") || self.is(1, "session_authorization") => {
                Act::Role
            }
            () if self.is(1, "time") => Act::Reset { name: b"timezone"[..].into() },
            () if self.is(1, "transaction") => Act::Unclear,
            () => self.setting(1).map_or(Act::Unclear, |(name, _)| Act::Reset { name }),
        }
    }

    /// The name of a setting, in lower case, and where it ends.
    fn setting(&self, at: usize) -> Option<(Box<[u8]>, usize)> {
        let mut name = self.name(at)?.to_ascii_lowercase();
        let mut next = at + 1;
        while self.kind(next) == Some(Kind::Symbol(b'.')) {
            name.push(b'.');
            name.extend_from_slice(&self.name(next + 1)?.to_ascii_lowercase());
            next += 2;
        }
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
        if !name.iter().all(plain) {
            return None;
        }
        let name = match name.as_slice() {
            b"sort_mem" => b"work_mem".to_vec(),
            b"vacuum_mem" => b"maintenance_work_mem".to_vec(),
            _ => name,
        };
        Some((name.into(), next))
    }

    /// Whether the call whose parenthesis opens there ends in `, true)`: undone with the transaction.
    fn is_local(&self, open: usize) -> bool {
        let mut depth = 0_usize;
        for at in open..self.tokens.len() {
            match self.kind(at) {
                Some(Kind::Symbol(b'(')) => depth += 1,
                Some(Kind::Symbol(b')')) if depth == 1 => {
                    return self.is(at - 1, "true") && self.kind(at - 2) == Some(Kind::Symbol(b','));
                }
                Some(Kind::Symbol(b')')) => depth -= 1,
                _ => {}
            }
        }
        false
    }

    fn set_configs(&self) -> Vec<Act> {
        let calls = (0..self.tokens.len())
            .filter(|&at| self.is(at, "set_config") && self.kind(at + 1) == Some(Kind::Symbol(b'(')));
        calls
            .filter(|&at| !self.is_local(at + 1))
            .map(|at| {
                let text = self.text(at + 2);
                let inner = text.strip_prefix(b"'").and_then(|text| text.strip_suffix(b"'"));
                let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
                match inner {
                    Some(name)
                        if !name.is_empty()
                            && name.iter().all(plain)
                            && matches!(self.kind(at + 3), Some(Kind::Symbol(b',') | Kind::Cast)) =>
                    {
                        Act::SetConfig { name: name.to_ascii_lowercase().into() }
                    }
                    _ => Act::SetConfigOfUnknown,
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(sql: &str) -> Option<Act> {
        assert!(concerns(sql.as_bytes()) || calls_set_config(sql.as_bytes()), "{sql}");
        let (acts, _) = take_apart(sql.as_bytes());
        assert!(acts.len() <= 1, "{acts:?}");
        acts.into_iter().next().map(|(_, act)| act)
    }

    fn set(name: &str, text: &str) -> Act {
        Act::Set { name: name.as_bytes().into(), text: Some(text.as_bytes().into()) }
    }

    #[test]
    fn settings_are_named_and_their_texts_kept_where_they_can_be_run_again() {
        assert_eq!(one("SET Work_Mem = '1MB';"), Some(set("work_mem", "SET Work_Mem = '1MB'")));
        assert_eq!(one(" set session a.B to -1"), Some(set("a.b", "set session a.B to -1")));
        assert_eq!(
            one("SET search_path TO a, \"B\""),
            Some(set("search_path", "SET search_path TO a, \"B\""))
        );
        for text in ["SET a.b = 'é'", "SET a.b = E'\\n'", "SET a.b = $$x$$", "SET a.b = 1 -- x\n + 1"] {
            assert_eq!(one(text), Some(Act::Set { name: b"a.b"[..].into(), text: None }), "{text}");
        }
        let special = |name: &str| Some(Act::Set { name: name.as_bytes().into(), text: None });
        assert_eq!(one("SET TIME ZONE 'UTC'"), special("timezone"));
        assert_eq!(one("SET NAMES 'latin1'"), special("client_encoding"));
        let reset = |name: &str| Some(Act::Reset { name: name.as_bytes().into() });
        assert_eq!(one("SET work_mem TO DEFAULT"), reset("work_mem"));
        assert_eq!(one("RESET \"TimeZone\""), reset("timezone"));
        assert_eq!(one("RESET sort_mem"), reset("work_mem"));
        assert_eq!(one("RESET ALL"), Some(Act::ResetAll));
        for role in ["SET ROLE x", "SET SESSION AUTHORIZATION x", "RESET ROLE", "SET SESSION role = x"] {
            assert_eq!(one(role), Some(Act::Role), "{role}");
        }
        for nothing in ["SET TRANSACTION READ ONLY", "SET CONSTRAINTS ALL DEFERRED"] {
            assert_eq!(one(nothing), None, "{nothing}");
        }
        let local = b"SET LOCAL a.b = 1";
        assert_eq!(
            one("SET LOCAL a.b = 1"),
            Some(Act::SetLocal { name: b"a.b"[..].into(), text: Some(local[..].into()) })
        );
        for unclear in [
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            "SET a FROM CURRENT",
            "SET x = 'y",
            "SET",
        ] {
            assert_eq!(one(unclear), Some(Act::Unclear), "{unclear}");
        }
        assert_eq!(one("SET seed = 0.5"), Some(Act::Stays));
    }

    #[test]
    fn names_of_prepared_statements_are_found_where_they_stand() {
        for (sql, name, place) in [
            ("PREPARE Foo (int) AS SELECT $1", "foo", "Foo"),
            ("EXECUTE \"a\"\"B\" (1)", "a\"B", "\"a\"\"B\""),
            ("EXPLAIN (ANALYZE, COSTS OFF) EXECUTE s(1)", "s", "s"),
            ("CREATE TEMP TABLE t AS EXECUTE s", "s", "s"),
            ("DEALLOCATE PREPARE s", "s", "s"),
            ("DEALLOCATE s", "s", "s"),
        ] {
            let (found, at) = match one(sql) {
                Some(
                    Act::Prepare { name, at, .. } | Act::Execute { name, at } | Act::Deallocate { name, at },
                ) => (name, at),
                other => panic!("{sql}: {other:?}"),
            };
            assert_eq!(found.as_ref(), name.as_bytes(), "{sql}");
            assert_eq!(&sql[at.start..at.end], if sql.ends_with(" s") { "s" } else { place }, "{sql}");
        }
        assert_eq!(one("DEALLOCATE ALL"), None);
        assert_eq!(one("PREPARE TRANSACTION 'x'"), None);
        assert_eq!(one("CREATE TRIGGER t AFTER INSERT ON x EXECUTE FUNCTION f()"), None);
    }

    #[test]
    fn several_statements_are_counted_and_other_texts_are_left_alone() {
        let (acts, statements) = take_apart(b"SELECT 1;; SET a.b = 1; SELECT set_config('C.d', 'x', false)");
        assert_eq!(statements, 3);
        assert_eq!(acts[0].0, 1);
        assert_eq!(acts[1], (2, Act::SetConfig { name: b"c.d"[..].into() }));
        assert_eq!(one("SELECT set_config($1, 'x', false)"), Some(Act::SetConfigOfUnknown));
        assert_eq!(one("SELECT set_config($1, (select 'x'), true)"), None);
        for text in ["SELECT 1", "UPDATE t SET a = 1", "BEGIN", "INSERT INTO t VALUES (1); SELECT 2", ""] {
            assert!(!concerns(text.as_bytes()), "{text}");
        }
        for text in
            ["/* x */ EXECUTE s", "-- x\nset a.b = 1", "\x0bRESET ALL", "SELECT 1; RESET ALL", ";set a.b = 1"]
        {
            assert!(concerns(text.as_bytes()) && !take_apart(text.as_bytes()).0.is_empty(), "{text}");
        }
    }
}
