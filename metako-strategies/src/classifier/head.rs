//! The first words of a statement.

use metako_core::plugin::{Class, Classification, Effects, Span, TransactionVerb};

use metako_core::sql::{Kind, Lexer, Name};

/// What the first words say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    /// [`Class::Read`] here means: a read, unless the rest shows more.
    pub(super) verdict: Classification,
    pub(super) form: Form,
    /// Whether the functions in its text are called: what they leave behind adds to the verdict's effects.
    pub(super) calls: bool,
}

/// Statements whose class depends on a word further on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    Copy,
    Declare,
}

/// Looks at the first words of the statement that `lexer` stands before. Moves it past EXPLAIN and its options, and
/// nothing else.
pub(super) fn head(lexer: &mut Lexer<'_>) -> Head {
    let words = Words::ahead(lexer);
    if words.names[0].as_str() != "explain" {
        return judge(&words);
    }
    skip_explain(lexer);
    let inner = Words::ahead(lexer);
    let empty = inner.class_of_nothing == Class::Empty && inner.count == 0;
    if empty || inner.names[0].as_str() == "explain" {
        return plain(Class::Unknown, "EXPLAIN of something that the classifier does not know", words.span);
    }
    judge(&inner)
}

/// Words that are looked at: `create or replace local temporary` is the longest form.
const LOOKED_AT: usize = 5;

/// The first words, up to the first token that is none. Opening parentheses before them are skipped, as in
/// `(SELECT 1) UNION ...`.
struct Words {
    names: [Name; LOOKED_AT],
    count: usize,
    span: Span,
    parenthesised: bool,
    /// The class of a statement without any first word.
    class_of_nothing: Class,
}

impl Words {
    fn ahead(lexer: &Lexer<'_>) -> Self {
        let mut lexer = lexer.clone();
        let mut words = Self {
            names: [Name::folded(b""); LOOKED_AT],
            count: 0,
            span: Span::default(),
            parenthesised: false,
            class_of_nothing: Class::Empty,
        };
        while let Some(token) = lexer.next() {
            match token.kind {
                Kind::Symbol(b'(') if words.count == 0 => {
                    words.parenthesised = true;
                    words.class_of_nothing = Class::Unknown;
                }
                Kind::Symbol(b';') => break,
                Kind::Word => {
                    let Some(name) = words.names.get_mut(words.count) else { break };
                    *name = Name::folded(lexer.text(token));
                    words.count += 1;
                    if words.count == 1 {
                        words.span = token.span;
                        if matches!(words.names[0].as_str(), "select" | "values" | "table" | "with") {
                            // The others say nothing more.
                            break;
                        }
                    }
                }
                _ => {
                    if words.count == 0 {
                        words.class_of_nothing = Class::Unknown;
                        words.span = token.span;
                    }
                    break;
                }
            }
        }
        words
    }

    fn get(&self) -> [&str; LOOKED_AT] {
        self.names.each_ref().map(Name::as_str)
    }
}

fn judge(words: &Words) -> Head {
    let (effects, calls) = left_behind(words);
    let head = by_class(words);
    Head { verdict: head.verdict.with_effects(effects), calls, ..head }
}

/// What a statement that begins with these words leaves behind by itself, and whether the functions in it are called.
fn left_behind(words: &Words) -> (Effects, bool) {
    match words.get() {
        [
            "select" | "values" | "table" | "with" | "insert" | "update" | "delete" | "merge" | "copy"
            | "declare" | "prepare" | "execute",
            ..,
        ] => (Effects::NONE, true),
        _ if words.count == 0 && words.class_of_nothing == Class::Empty => (Effects::NONE, false),
        ["create", ..] if creates_temporary(words.get()) => (Effects::HOLDS, true),
        [
            "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" | "set"
            | "reset" | "deallocate" | "fetch" | "move" | "comment" | "security" | "grant" | "revoke"
            | "truncate" | "vacuum" | "analyze" | "analyse" | "reindex" | "refresh" | "cluster"
            | "checkpoint" | "lock" | "notify" | "show",
            ..,
        ] => (Effects::NONE, false),
        ["create" | "alter" | "drop", "database", ..] => (Effects::DATABASES, false),
        ["drop" | "discard" | "close" | "unlisten", ..] => (Effects::RELEASES, false),
        ["listen", ..] => (Effects::HOLDS, false),
        ["load", ..] => (Effects::STAYS, false),
        // DO, CALL, and what runs user's code by the way: CREATE TABLE AS, CREATE EXTENSION, ALTER TABLE ... USING.
        _ => (Effects::OPAQUE, false),
    }
}

fn by_class(words: &Words) -> Head {
    let span = words.span;
    let session = |reason| plain(Class::SessionChanging, reason, span);
    let write = |reason| plain(Class::Write, reason, span);
    let unknown = |reason| plain(Class::Unknown, reason, span);
    let steers = |verb, reason| Head {
        verdict: Classification {
            transaction: Some(verb),
            ..Classification::new(Class::TransactionControl, reason, span)
        },
        form: Form::Plain,
        calls: false,
    };
    match words.get() {
        ["select" | "values" | "table" | "with", ..] => plain(Class::Read, "only reads", span),
        _ if words.count == 0 && words.class_of_nothing == Class::Empty => {
            plain(Class::Empty, "nothing but white space and comments", span)
        }
        _ if words.parenthesised || words.count == 0 => unknown("not a statement that the classifier knows"),

        ["begin", ..] | ["start", "transaction", ..] => {
            steers(TransactionVerb::Begin, "begins a transaction")
        }
        ["commit" | "rollback", "prepared", ..] => write("ends a prepared transaction"),
        ["commit" | "end", ..] => steers(TransactionVerb::Commit, "commits the transaction"),
        ["rollback", "to", ..] | ["rollback", "work" | "transaction", "to", ..] => {
            steers(TransactionVerb::Inside, "rolls back to a savepoint")
        }
        ["rollback" | "abort", ..] => steers(TransactionVerb::Rollback, "rolls the transaction back"),
        ["savepoint" | "release", ..] => steers(TransactionVerb::Inside, "sets or releases a savepoint"),
        ["prepare", "transaction", ..] => {
            steers(TransactionVerb::Commit, "ends the transaction by preparing it for two-phase commit")
        }
        ["set", "transaction" | "local" | "constraints", ..] => {
            steers(TransactionVerb::Inside, "sets something for this transaction only")
        }

        ["set" | "reset" | "discard", ..] => session("changes settings of the session"),
        ["listen" | "unlisten", ..] => session("changes what the session listens to"),
        ["prepare" | "execute" | "deallocate", ..] => session("uses prepared statements of the session"),
        ["load", ..] => session("loads a library into the session"),
        ["create", ..] if creates_temporary(words.get()) => session("creates a temporary object"),
        ["declare", ..] => {
            Head { form: Form::Declare, ..unknown("a cursor lives on the server that declared it") }
        }
        ["fetch" | "move" | "close", ..] => unknown("a cursor lives on the server that declared it"),

        ["copy", ..] => Head { form: Form::Copy, ..write("COPY may write") },
        ["insert" | "update" | "delete" | "merge", ..] => write("modifies data"),
        ["create" | "alter" | "drop" | "comment" | "security" | "import", ..] => write("changes the schema"),
        ["grant" | "revoke" | "reassign", ..] => write("changes rights"),
        [
            "truncate" | "vacuum" | "analyze" | "analyse" | "reindex" | "refresh" | "cluster" | "checkpoint",
            ..,
        ] => write("changes what is stored"),
        ["lock", ..] => write("locks tables"),
        ["notify", ..] => write("notifies listeners when it commits"),

        ["show", ..] => unknown("a setting may differ from node to node"),
        ["do", ..] => session("runs a block of code, which may change the session"),
        ["call", ..] => unknown("runs code that the classifier does not see"),
        _ => unknown("not a statement that the classifier knows"),
    }
}

fn plain(class: Class, reason: &'static str, span: Span) -> Head {
    Head { verdict: Classification::new(class, reason, span), form: Form::Plain, calls: false }
}

fn creates_temporary(words: [&str; LOOKED_AT]) -> bool {
    let kind = match words {
        [_, "or", "replace", kind @ ..] => kind,
        [_, first, second, ..] => [first, second],
    };
    matches!(kind, ["temp" | "temporary", _] | ["local" | "global", "temp" | "temporary"])
}

/// Moves past `EXPLAIN [ANALYZE] [VERBOSE]` or `EXPLAIN (options)`; what follows runs, or is planned, as itself.
fn skip_explain(lexer: &mut Lexer<'_>) {
    lexer.next();
    let mut ahead = lexer.clone();
    if ahead.next().is_some_and(|token| token.kind == Kind::Symbol(b'(')) {
        let Some(first) = ahead.next() else { return };
        let name = Name::folded(ahead.text(first));
        let statement = first.kind == Kind::Symbol(b'(')
            || first.kind == Kind::Word && matches!(name.as_str(), "select" | "with" | "table");
        if !statement {
            *lexer = ahead;
            lexer
                .by_ref()
                .take_while(|token| !matches!(token.kind, Kind::Symbol(b')' | b';')))
                .for_each(drop);
        }
        return;
    }
    loop {
        let mut ahead = lexer.clone();
        let Some(token) = ahead.next() else { return };
        let name = Name::folded(ahead.text(token));
        if token.kind != Kind::Word || !matches!(name.as_str(), "analyze" | "analyse" | "verbose") {
            return;
        }
        *lexer = ahead;
    }
}
