//! Settings that a session may not lower while commits are guarded: without them the server would answer success though no
//! standby was waited for, or would not say that the wait was cancelled.

use super::acts::{contains_word, has_prefix};
use super::settings::Made;
use crate::plugin::Span;
use crate::sql::{Kind, Lexer, Token};
use crate::wire::write::{self, Report};
use crate::wire::{read, sqlstate};

/// What server connections begin with, whatever their user's or database's settings say: what a client asks for goes behind.
pub const FLOOR_OPTIONS: &str = "-c synchronous_commit=on -c client_min_messages=notice";

/// Stands in a statement that the server itself refuses, in its order and with what that means for an open transaction.
const PLANTED: &str = "is less than failover.synchronous.commit_guard of metako allows";

/// A setting that has a floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Floored {
    SynchronousCommit,
    ClientMinMessages,
}

impl Floored {
    const ALL: [Self; 2] = [Self::SynchronousCommit, Self::ClientMinMessages];

    fn of(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|floored| name.eq_ignore_ascii_case(floored.name().as_bytes()))
    }

    /// The first whose name stands anywhere in a text, not as a part of a longer word.
    fn named_in(text: &[u8]) -> Option<Self> {
        let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        memchr::memchr_iter(b'_', text).find_map(|underscore| {
            Self::ALL.into_iter().find(|floored| {
                let name = floored.name().as_bytes();
                let before = memchr::memchr(b'_', name).unwrap_or_default();
                underscore.checked_sub(before).is_some_and(|start| {
                    has_prefix(&text[start..], name)
                        && !text[..start].last().is_some_and(goes_on)
                        && !text.get(start + name.len()).is_some_and(goes_on)
                })
            })
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::SynchronousCommit => "synchronous_commit",
            Self::ClientMinMessages => "client_min_messages",
        }
    }

    /// Whether that value, which PostgreSQL compares without case, is not below the floor.
    fn allows(self, value: &[u8]) -> bool {
        let values: &[&str] = match self {
            Self::SynchronousCommit => &["on", "true", "yes", "1", "remote_apply"],
            Self::ClientMinMessages => &[
                "debug5", "debug4", "debug3", "debug2", "debug1", "debug", "log", "info", "notice", "warning",
            ],
        };
        values.iter().any(|allowed| value.eq_ignore_ascii_case(allowed.as_bytes()))
    }

    /// A statement that stands for one that lowers it. The server refuses it when it is parsed, so that nothing depends on
    /// how many parameters the other had.
    pub(super) fn planted(self) -> Vec<u8> {
        format!("SELECT '{} {PLANTED}'::pg_catalog.bool", self.name()).into_bytes()
    }

    /// The same as what follows the name in a Parse.
    pub(super) fn planted_tail(self) -> Vec<u8> {
        [&self.planted(), &b"\0\0\0"[..]].concat()
    }

    fn report(self) -> Report {
        let message = format!("\"{}\" is not to be set to that while commits are guarded", self.name());
        Report::error(sqlstate::INVALID_PARAMETER_VALUE, message).with_detail(DETAIL).with_hint(HINT)
    }
}

/// The server's SQLSTATE for a planted statement.
const INVALID_TEXT: &[u8] = b"22P02";

/// Bytes of a header.
const HEADER: usize = 5;

const DETAIL: &str = "failover.synchronous has its commit_guard on (`strict` does): metako answers for commits only where \
                      synchronous_commit is on or remote_apply, and client_min_messages at most warning.";

const HINT: &str = "Leave the setting as it is. If commits may be acknowledged unreplicated, the operator sets commit_guard to \
                    false in failover.synchronous.";

/// What the client gets in place of the server's error to a planted statement, whatever language that is in. `body` is that
/// of an ErrorResponse, and so is what is given.
pub fn refusal(body: &[u8]) -> Option<Vec<u8>> {
    let fields = read::error(body);
    if fields.code != INVALID_TEXT || memchr::memmem::find(fields.message, PLANTED.as_bytes()).is_none() {
        return None;
    }
    let mut told = Vec::new();
    write::error_response(&mut told, &Floored::named_in(fields.message)?.report());
    Some(told.split_off(HEADER))
}

/// The setting that a text lowers, or may, as far as its words show.
pub(super) fn lowered(sql: &[u8]) -> Option<Floored> {
    // All that follows is rare.
    let named = Floored::named_in(sql)?;
    let tokens: Vec<Token> = Lexer::new(sql).collect();
    let broken = tokens.last().is_some_and(|token| matches!(token.kind, Kind::Broken(_)));
    let ends = |token: &Token| token.kind == Kind::Symbol(b';');
    if broken {
        Some(named)
    } else {
        tokens.split(ends).find_map(|tokens| Statement { sql, tokens }.lowered())
    }
}

/// One statement's tokens.
struct Statement<'a> {
    sql: &'a [u8],
    tokens: &'a [Token],
}

impl Statement<'_> {
    fn text(&self, at: usize) -> &[u8] {
        let Some(Token { span: Span { start, end }, .. }) = self.tokens.get(at) else { return &[] };
        &self.sql[*start..*end]
    }

    fn is(&self, at: usize, word: &str) -> bool {
        self.text(at).eq_ignore_ascii_case(word.as_bytes())
    }

    /// The text of a token without its quotes.
    fn bare(&self, at: usize) -> &[u8] {
        let text = self.text(at);
        let inner = |quote: u8| {
            text.strip_prefix(&[quote])
                .and_then(|text| text.strip_suffix(&[quote]))
                .filter(|text| !text.is_empty())
        };
        inner(b'\'').or_else(|| inner(b'"')).unwrap_or(text)
    }

    fn lowered(&self) -> Option<Floored> {
        let set = self.is(0, "set").then(|| self.set()).flatten();
        set.or_else(|| self.set_by_call())
    }

    fn set(&self) -> Option<Floored> {
        let name = 1 + usize::from(self.is(1, "local") || self.is(1, "session"));
        let floored = Floored::of(self.bare(name))?;
        let value = name + 2;
        let known =
            self.tokens.len() == value + 1 && (self.is(value, "default") || floored.allows(self.bare(value)));
        (!known).then_some(floored)
    }

    /// By `set_config()`, or by the view that calls it: whoever names a setting there has to write plainly what it becomes.
    fn set_by_call(&self) -> Option<Floored> {
        let is_name = |token: &Token| matches!(token.kind, Kind::Word | Kind::QuotedName);
        let has = |name: &[u8]| {
            (0..self.tokens.len())
                .any(|at| is_name(&self.tokens[at]) && self.bare(at).eq_ignore_ascii_case(name))
        };
        let calls = has(b"set_config") || has(b"update") && has(b"pg_settings");
        if !calls {
            return None;
        }
        (0..self.tokens.len()).find_map(|at| {
            let floored = Floored::named_in(self.text(at)).filter(|_| self.tokens[at].kind == Kind::Text)?;
            (!self.allows_call(at, floored)).then_some(floored)
        })
    }

    /// Whether `set_config('name', 'value', ...)` stands around that name, perhaps with casts, and allows that value.
    fn allows_call(&self, name: usize, floored: Floored) -> bool {
        let after = |at: usize| at + 1 + 2 * usize::from(self.is(at + 1, "::"));
        let comma = after(name);
        let value = comma + 1;
        name >= 2
            && self.is(name - 2, "set_config")
            && self.is(name - 1, "(")
            && Floored::of(self.bare(name)) == Some(floored)
            && self.is(comma, ",")
            && floored.allows(self.bare(value))
            && self.is(after(value), ",")
    }
}

/// Whether a setting that a session has made is below its floor.
pub(super) fn is_below(name: &[u8], made: &Made) -> bool {
    match made {
        Made::Text(text) => lowered(text).is_some(),
        Made::Value(value) => Floored::of(name).is_some_and(|floored| !floored.allows(value)),
    }
}

/// Looks at the start-up parameters of a client, names and values, for what may not be while commits are guarded.
///
/// # Errors
///
/// What ends its log-in.
pub fn check_startup(parameters: &[(String, String)]) -> Result<(), Report> {
    let lowers = |name: &str, value: &str| {
        // In options, dashes stand for underscores.
        let floored = Floored::of(name.replace('-', "_").as_bytes());
        floored.filter(|floored| !floored.allows(value.as_bytes()))
    };
    let found = parameters.iter().find_map(|(name, value)| {
        if !name.eq_ignore_ascii_case("options") {
            return lowers(name, value);
        }
        // Where one is named, nothing may stand that is not plain.
        let words = words(value);
        let text = words.join(" ").replace('-', "_");
        let named =
            Floored::ALL.into_iter().find(|known| contains_word(text.as_bytes(), known.name().as_bytes()));
        named.filter(|_| !is_plain(words, lowers))
    });
    found.map_or(Ok(()), |floored| Err(floored.report().as_fatal()))
}

/// Whether start-up options are nothing but assignments, none of which lowers anything.
fn is_plain(words: Vec<String>, lowers: impl Fn(&str, &str) -> Option<Floored>) -> bool {
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let assignment = match word.strip_prefix("-c") {
            Some("") => words.next(),
            Some(rest) => Some(rest.to_owned()),
            None => word.strip_prefix("--").map(str::to_owned),
        };
        let Some((name, value)) = assignment.as_deref().and_then(|assignment| assignment.split_once('='))
        else {
            return false;
        };
        if lowers(name, value).is_some() {
            return false;
        }
    }
    true
}

/// The words of start-up options, as PostgreSQL splits them.
fn words(options: &str) -> Vec<String> {
    let (mut words, mut word, mut escaped) = (Vec::new(), None::<String>, false);
    for letter in options.chars() {
        // C's isspace() counts the vertical tab, too.
        if !escaped && (letter.is_ascii_whitespace() || letter == '\x0b') {
            words.extend(word.take());
        } else if !escaped && letter == '\\' {
            escaped = true;
            word.get_or_insert_default();
        } else {
            escaped = false;
            word.get_or_insert_default().push(letter);
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::write;

    #[test]
    fn what_lowers_a_setting_is_seen_however_it_is_written() {
        for sql in [
            "SET synchronous_commit = off",
            "set session Synchronous_Commit to 'LOCAL';",
            "/* why */ SET LOCAL synchronous_commit TO remote_write",
            "SET \"synchronous_commit\" = false",
            "SET synchronous_commit = 0",
            "SET synchronous_commit FROM CURRENT",
            "SET synchronous_commit = E'o\\156'",
            "begin; set local synchronous_commit to off; insert into t values (1)",
            "SELECT set_config('synchronous_commit', 'off', true)",
            "select pg_catalog.set_config('Synchronous_Commit'::text, $1, false)",
            "PREPARE p AS SELECT set_config('synchronous_commit', 'o' || 'ff', false)",
            "select * from t where a like 'x' escape '\\'; set synchronous_commit = off",
            "SELECT \"set_config\"('synchronous_commit', 'off', true)",
            "SELECT set_config(('synchronous_commit'), 'off', true)",
            "SELECT set_config($$synchronous_commit$$, 'on', true)",
            "SELECT set_config(E'synchronous_commit', 'off', true)",
            "SELECT set_config(CAST('synchronous_commit' AS text), 'off', true)",
            "SELECT set_config(setting_name => 'synchronous_commit', new_value => 'off', is_local => true)",
            "SELECT set_config(n, 'off', false) FROM (VALUES ('synchronous_commit')) AS t (n)",
            "UPDATE pg_settings SET setting = 'off' WHERE name = 'synchronous_commit'",
        ] {
            assert_eq!(lowered(sql.as_bytes()), Some(Floored::SynchronousCommit), "{sql}");
        }
        let not_utf8 = b"select '\xe9'||\x81\x5c; set synchronous_commit = off";
        assert_eq!(lowered(not_utf8), Some(Floored::SynchronousCommit));
        for sql in
            ["SET client_min_messages = error", "SELECT set_config('client_min_messages', 'panic', false)"]
        {
            assert_eq!(lowered(sql.as_bytes()), Some(Floored::ClientMinMessages), "{sql}");
        }
    }

    #[test]
    fn what_lowers_nothing_passes() {
        for sql in [
            "SET synchronous_commit = on",
            "SET LOCAL synchronous_commit TO 'remote_apply';",
            "SET synchronous_commit TO DEFAULT",
            "RESET synchronous_commit",
            "SET client_min_messages TO warning",
            "SET client_min_messages = debug1",
            "SET work_mem = 'synchronous_commit'",
            "SET application_name = 'off'; SELECT 'synchronous_commit = off'",
            "SELECT set_config('synchronous_commit', 'on', false), set_config('work_mem', '1MB', false)",
            "SELECT set_config('synchronous_commit'::text, 'on'::text, true)",
            "SELECT synchronous_commit FROM set",
            "SELECT set_config('app.synchronous_commits', 'off', false)",
            "SELECT current_setting('synchronous_commit')",
            "SELECT setting FROM pg_settings WHERE name = 'synchronous_commit'",
            "SELECT 'a' LIKE 'b' ESCAPE '\\'; SET xsynchronous_commit.a = off",
        ] {
            assert_eq!(lowered(sql.as_bytes()), None, "{sql}");
        }
    }

    #[test]
    fn start_up_options_are_read_as_the_server_reads_them() {
        let check = |name: &str, value: &str| {
            check_startup(&[(name.to_owned(), value.to_owned())]).map_err(|report| report.code)
        };
        for options in [
            "-c synchronous_commit=off",
            "-csynchronous-commit=local",
            "-c work_mem=1MB  --Synchronous-Commit=remote_write",
            "-c client_min_messages=error",
            "-c synchronous_commit=o\\ff",
            "-ec synchronous_commit=off",
            "-c\x0bsynchronous_commit=off",
            "-c synchronous\\_commit=local",
            "-e -c synchronous_commit=on",
        ] {
            assert_eq!(check("options", options), Err("22023"), "{options}");
        }
        for options in ["", "-c", "-c work_mem=1MB", "-c a.b=x\\ synchronous_commit=off", FLOOR_OPTIONS] {
            assert_eq!(check("options", options), Ok(()), "{options}");
        }
        assert_eq!(check("Client_Min_Messages", "ERROR"), Err("22023"));
        assert_eq!(check("client_min_messages", "WARNING"), Ok(()));
    }

    #[test]
    fn the_servers_refusal_is_told_in_metakos_words() {
        for floored in Floored::ALL {
            let sql = String::from_utf8(floored.planted()).unwrap();
            let (_, planted) = sql.strip_suffix("'::pg_catalog.bool").unwrap().split_once('\'').unwrap();
            let body = |code, message: String| {
                let mut error = Vec::new();
                write::error_response(&mut error, &Report::error(code, message).with_hint("Available: off."));
                error.split_off(HEADER)
            };
            let told = refusal(&body("22P02", format!("ungültig »{planted}« für bool"))).unwrap();
            let fields = read::error(&told);
            assert_eq!(fields.code, b"22023");
            assert_eq!(fields.message, floored.report().message.as_bytes());
            let told = String::from_utf8(told).unwrap();
            assert!(told.contains(HINT) && !told.contains("Available"), "{told}");
            assert_eq!(refusal(&body("22P02", "invalid input syntax: \"x\"".to_owned())), None);
            assert_eq!(refusal(&body("22023", planted.to_owned())), None);
        }
    }
}
