//! What one statement does: its first words say what kind it is ([`head`]), and the rest is searched for what makes a
//! read more than a read.

use metako_core::plugin::{Class, Classification, Effects, Span};

use super::catalog::{Catalog, changes_session, is_syntax};
use super::head::{Form, Head, head};
use metako_core::sql::{Kind, Lexer, Name, Token};

/// Reads one statement off `lexer`, up to its `;` or the end.
pub(super) fn classify(lexer: &mut Lexer<'_>, catalog: &Catalog) -> Classification {
    let head = head(lexer);
    let mut body = Body::new(catalog);
    while let Some(token) = lexer.next() {
        if token.kind == Kind::Symbol(b';') {
            break;
        }
        body.feed(token, lexer.text(token));
    }
    body.end();
    body.verdict(head)
}

/// A token as far as those after it care.
#[derive(Debug, Clone, Copy)]
enum Seen {
    /// Before the first token, and after the last.
    Start,
    Word(Name),
    QuotedName(Name),
    Value,
    Cast,
    Symbol(u8),
}

impl Seen {
    fn of(token: Token, text: &[u8]) -> Self {
        match token.kind {
            Kind::Word => Self::Word(Name::folded(text)),
            Kind::QuotedName => {
                Self::QuotedName(Name::exact(text.get(1..text.len() - 1).unwrap_or_default()))
            }
            Kind::EscapedName | Kind::Broken(_) | Kind::Text | Kind::Number => Self::Value,
            Kind::Cast => Self::Cast,
            Kind::Symbol(byte) => Self::Symbol(byte),
        }
    }

    /// The keyword or name without quotes; empty if it is none.
    fn word(&self) -> &str {
        if let Self::Word(name) = self { name.as_str() } else { "" }
    }

    /// The name, quoted or not; empty if it is none.
    fn name(&self) -> &str {
        if let Self::Word(name) | Self::QuotedName(name) = self { name.as_str() } else { "" }
    }

    /// Whether it can end an expression or name a table, so that an operator or JOIN follows and no function call.
    fn ends_operand(&self) -> bool {
        match self {
            Self::QuotedName(_) | Self::Value | Self::Symbol(b')' | b']') => true,
            Self::Word(name) => !is_syntax(name.as_str()) && !precedes_expression(name.as_str()),
            Self::Start | Self::Cast | Self::Symbol(_) => false,
        }
    }
}

/// Something in the statement that decides its class, and where.
#[derive(Debug, Clone, Copy)]
struct Finding {
    reason: &'static str,
    span: Span,
}

/// Where the name of the table stands that a statement writes to: a parenthesis after it encloses columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    No,
    /// A part of its name comes next.
    Next,
    /// A part of its name was the last token.
    Named,
}

/// The search through a statement's tokens.
struct Body<'c> {
    catalog: &'c Catalog,
    /// The last three tokens, the newest first, with the place of the newest.
    seen: [Seen; 3],
    span: Span,
    depth: usize,
    /// Between WITH and the main query: at depth 0 a name before a parenthesis is that of a common table expression.
    cte_list: bool,
    /// After DISTINCT ON (...) an expression follows a closing parenthesis; elsewhere none does.
    distinct_on: bool,
    group_by: bool,
    /// Where a call of `set_config` is open, and how deep.
    set_config: Option<(usize, Span)>,
    target: Target,
    /// What the functions that are called may leave behind.
    effects: Effects,
    /// Found in any statement, but of account only in DECLARE, COPY and reads.
    with_hold: Option<Finding>,
    to_stdout: Option<Finding>,
    into_temporary: Option<Finding>,
    session: Option<Finding>,
    broken: Option<Finding>,
    unknown: Option<Finding>,
    write: Option<Finding>,
}

impl<'c> Body<'c> {
    fn new(catalog: &'c Catalog) -> Self {
        Self {
            catalog,
            seen: [Seen::Start; 3],
            span: Span::default(),
            depth: 0,
            cte_list: false,
            distinct_on: false,
            group_by: false,
            set_config: None,
            target: Target::No,
            effects: Effects::NONE,
            with_hold: None,
            to_stdout: None,
            into_temporary: None,
            session: None,
            broken: None,
            unknown: None,
            write: None,
        }
    }

    fn feed(&mut self, token: Token, text: &[u8]) {
        let seen = Seen::of(token, text);
        match (seen, token.kind) {
            (Seen::Symbol(b'('), _) => {
                self.call();
                self.depth += 1;
            }
            (_, Kind::Broken(reason)) => note(&mut self.broken, reason, token.span),
            (_, Kind::EscapedName) => {
                self.name_without_call(seen);
                self.effects = self.effects.and(Effects::OPAQUE);
                note(&mut self.unknown, "a name is written in Unicode escapes", token.span);
            }
            _ => self.name_without_call(seen),
        }
        if let Seen::Word(name) = seen {
            self.keyword(name.as_str(), token.span);
        }
        self.target = match (self.target, seen) {
            (_, Seen::Word(name)) if matches!(name.as_str(), "into" | "copy") => Target::Next,
            (Target::Next, Seen::Word(_) | Seen::QuotedName(_)) => Target::Named,
            (Target::Named, Seen::Symbol(b'.')) => Target::Next,
            _ => Target::No,
        };
        if matches!(seen, Seen::Symbol(b')')) {
            self.depth = self.depth.saturating_sub(1);
            self.set_config_closed();
        }
        self.seen = [seen, self.seen[0], self.seen[1]];
        self.span = token.span;
    }

    fn end(&mut self) {
        self.name_without_call(Seen::Start);
        if let Some((_, span)) = self.set_config.take() {
            self.sets_config(span);
        }
    }

    fn sets_config(&mut self, span: Span) {
        self.effects = self.effects.and(Effects::OPAQUE);
        note(&mut self.session, SET_CONFIG, span);
    }

    /// A word, before it joins those seen.
    fn keyword(&mut self, word: &str, span: Span) {
        if !is_of_account(word) {
            return;
        }
        match (self.seen[0].word(), word) {
            (_, "with") if matches!(self.seen[0], Seen::Start) => self.cte_list = true,
            (_, "select" | "values" | "table") if self.depth == 0 => self.cte_list = false,
            ("for", "update" | "share" | "no" | "key") => note(&mut self.write, "locks rows", span),
            (_, "insert" | "update" | "delete" | "merge") => {
                note(&mut self.write, "a part of it modifies data", span);
            }
            (before, "into") => {
                if !matches!(before, "insert" | "merge") {
                    self.effects = self.effects.and(Effects::HOLDS);
                }
                note(&mut self.write, "SELECT INTO creates a table", span);
            }
            ("into", "temp" | "temporary" | "local" | "global") => {
                note(&mut self.into_temporary, "SELECT INTO creates a temporary table", span);
            }
            ("distinct", "on") => self.distinct_on = true,
            (before, "by") => self.group_by = before == "group",
            ("with", "hold") => {
                note(&mut self.with_hold, "a cursor WITH HOLD outlives the transaction", span);
            }
            ("to", "stdout") if self.depth == 0 => {
                note(&mut self.to_stdout, "COPY to the client is not looked into", span);
            }
            _ => {}
        }
    }

    /// The name before this token, if there is one, is not called: a column, a table, a type, an alias.
    fn name_without_call(&mut self, next: Seen) {
        let (Seen::Word(name) | Seen::QuotedName(name)) = &self.seen[0] else { return };
        if !matches!(name.first(), Some(b'p' | b'l' | b'i')) {
            // None of those that are looked for.
            return;
        }
        let name = name.as_str();
        if name == "pg_temp" && matches!(next, Seen::Symbol(b'.')) {
            note(&mut self.session, "uses the session's temporary schema", self.span);
        } else if name.starts_with("pg_") && !self.catalog.knows_relation(name) {
            note(&mut self.unknown, "what it shows may differ from node to node", self.span);
        } else if matches!(name, "last_value" | "log_cnt" | "is_called") {
            note(&mut self.unknown, "a sequence read as a table is ahead on a replica", self.span);
        }
    }

    /// An opening parenthesis: what stands before it may be a function.
    fn call(&mut self) {
        let [last, before, earlier] = self.seen;
        if self.depth == 0 && matches!(last, Seen::Symbol(b')')) {
            // `WITH x AS (...) (SELECT ...)`: the main query is in parentheses.
            self.cte_list = false;
        }
        let name = last.name();
        if !matches!(last, Seen::Word(_) | Seen::QuotedName(_)) || self.is_no_call(last, before, earlier) {
            return;
        }
        let elsewhere = matches!(before, Seen::Symbol(b'.')) && earlier.name() != "pg_catalog";
        if !self.is_part_of_a_write(last, before) {
            let set_locally = name == "set_config" && !elsewhere;
            self.effects = match self.catalog.effects(name) {
                _ if set_locally => self.effects,
                _ if elsewhere => self.effects.and(Effects::OPAQUE),
                effects => self.effects.and(effects),
            };
        }
        if name == "set_config" && self.set_config.is_none() {
            self.set_config = Some((self.depth, self.span));
        } else if changes_session(name) {
            note(&mut self.session, "calls a function that changes the session", self.span);
        }
        if elsewhere || !self.catalog.knows_function(name) {
            note(&mut self.unknown, "calls a function that is not known to only read", self.span);
        }
    }

    /// Whether `last (` is a clause, or the columns, of a statement that writes; what is not a call there could be one in
    /// a statement that only reads.
    fn is_part_of_a_write(&self, last: Seen, before: Seen) -> bool {
        self.target == Target::Named
            || matches!((before, last.word()), (Seen::Start, "copy"))
            || matches!(
                (before.word(), last.word()),
                ("on", "conflict") | (_, "set") | ("prepare" | "execute", _)
            )
    }

    /// Whether grammar alone says that `last (` calls nothing.
    fn is_no_call(&self, last: Seen, before: Seen, earlier: Seen) -> bool {
        if matches!(before, Seen::Symbol(b'.')) {
            return false;
        }
        let listed = self.cte_list && self.depth == 0;
        let named = listed && (matches!(before, Seen::Symbol(b',')) || before.word() == "not")
            || matches!(before, Seen::Cast)
            || matches!(before.word(), "as" | "with")
            || before.word() == "recursive" && earlier.word() == "with";
        named
            || is_syntax(last.word())
            || match (before.word(), last.word()) {
                ("by", "rollup" | "cube") => self.group_by,
                ("order" | "group" | "partition", "by")
                | ("grouping", "sets")
                | ("character" | "char" | "nchar" | "bit", "varying")
                | ("tablesample", "system" | "bernoulli") => true,
                (_, "over" | "filter" | "repeatable") => {
                    matches!(before, Seen::Symbol(b')')) && !self.distinct_on
                }
                (_, "join" | "ilike") => before.ends_operand() && !self.distinct_on,
                _ => false,
            }
    }

    /// After a closing parenthesis: `set_config(name, value, true)` is undone with the transaction.
    fn set_config_closed(&mut self) {
        let Some((_, span)) = self.set_config.take_if(|(depth, _)| *depth == self.depth) else { return };
        if self.seen[0].word() != "true" || !matches!(self.seen[1], Seen::Symbol(b',')) {
            self.sets_config(span);
        }
    }

    fn verdict(self, head: Head) -> Classification {
        let declared = head.form == Form::Declare && self.with_hold.is_some();
        let mut effects = head.verdict.effects;
        if head.calls {
            effects = effects.and(self.effects);
        }
        if declared {
            effects = effects.and(Effects::HOLDS);
        }
        if self.broken.is_some() {
            effects = Effects::OPAQUE;
        }
        self.class(head).with_effects(effects)
    }

    fn class(self, head: Head) -> Classification {
        let reads = head.verdict.class == Class::Read;
        let held = self.with_hold.filter(|_| head.form == Form::Declare);
        let copied = self.to_stdout.filter(|_| head.form == Form::Copy);
        let temporary = self.into_temporary.filter(|_| reads);
        let found = |finding: Finding, class| Classification::new(class, finding.reason, finding.span);
        if let Some(finding) = self.session.or(held).or(temporary) {
            found(finding, Class::SessionChanging)
        } else if head.verdict.class > Class::Unknown {
            head.verdict
        } else if let Some(finding) = self.broken.or(copied) {
            found(finding, Class::Unknown)
        } else if !reads {
            head.verdict
        } else if let Some(finding) = self.write {
            found(finding, Class::Write)
        } else if let Some(finding) = self.unknown {
            found(finding, Class::Unknown)
        } else {
            head.verdict
        }
    }
}

/// Whether [`Body::keyword`] does anything about a word: most are names.
fn is_of_account(word: &str) -> bool {
    matches!(
        word,
        "with"
            | "select"
            | "values"
            | "table"
            | "update"
            | "share"
            | "no"
            | "key"
            | "insert"
            | "delete"
            | "merge"
            | "into"
            | "temp"
            | "temporary"
            | "local"
            | "global"
            | "on"
            | "by"
            | "hold"
            | "stdout"
    )
}

/// Keywords that may also be names, and after which an expression can begin.
fn precedes_expression(word: &str) -> bool {
    matches!(
        word,
        "by" | "content"
            | "document"
            | "escape"
            | "first"
            | "groups"
            | "ilike"
            | "is"
            | "next"
            | "overlaps"
            | "passing"
            | "range"
            | "rows"
            | "similar"
            | "version"
            | "zone"
    )
}

const SET_CONFIG: &str = "set_config changes a setting of the session";

/// The first finding of its kind stays.
fn note(slot: &mut Option<Finding>, reason: &'static str, span: Span) {
    slot.get_or_insert(Finding { reason, span });
}
