//! What a statement means for the session that sends it.

use super::SessionCx;
use super::acts::{calls_set_config, concerns, contains_word, first_word};
use crate::plugin::{Class, Effects, QueryClassifier, TransactionVerb};
use crate::wire::read;

/// What is known of a query string from its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Verdict {
    /// Its class.
    pub class: Class,
    /// Why it has that class, for people.
    pub reason: &'static str,
    /// Whether running it may commit a transaction block that is open.
    pub may_commit: bool,
    /// What it does to a block, if it is one statement that does.
    pub verb: Option<TransactionVerb>,
    /// Whether it commits a block somewhere in it, or may.
    pub commits: bool,
    /// Whether it ends a block without opening the next one (`AND CHAIN`).
    pub ends_block: bool,
    /// What it may leave behind in the session.
    pub effects: Effects,
    /// Whether it is about the session itself, so that its text is to be taken apart.
    pub about_session: bool,
}

impl Verdict {
    /// Of text that was not looked at.
    pub const UNREAD: Self = Self {
        class: Class::Unknown,
        reason: "the text is not known",
        may_commit: true,
        verb: None,
        commits: true,
        ends_block: false,
        effects: Effects::OPAQUE,
        about_session: false,
    };

    /// What a text means to a session.
    pub(super) fn of(cx: &SessionCx<'_>, sql: &[u8]) -> Self {
        if !cx.split
            && let Some(verdict) = Self::at_a_glance(sql)
        {
            return verdict;
        }
        Self::classified(cx.classifier, sql)
    }

    /// What needs no classifier where all goes to the primary: one statement that calls no function, and begins with one
    /// of the commonest words.
    fn at_a_glance(sql: &[u8]) -> Option<Self> {
        let word = first_word(sql);
        let (class, verb) = match word.len() {
            6 if word.eq_ignore_ascii_case(b"select") => (Class::Read, None),
            6 if word.eq_ignore_ascii_case(b"update") || word.eq_ignore_ascii_case(b"delete") => {
                (Class::Write, None)
            }
            5 if word.eq_ignore_ascii_case(b"begin") => {
                (Class::TransactionControl, Some(TransactionVerb::Begin))
            }
            3 if word.eq_ignore_ascii_case(b"end") => {
                (Class::TransactionControl, Some(TransactionVerb::Commit))
            }
            6 if word.eq_ignore_ascii_case(b"commit") => {
                (Class::TransactionControl, Some(TransactionVerb::Commit))
            }
            _ => return None,
        };
        let trimmed = sql.trim_ascii_end();
        let body = trimmed.strip_suffix(b";").unwrap_or(trimmed);
        let alone = verb.is_none() || body.trim_ascii().len() == word.len();
        let may_be_more = memchr::memchr2(b';', b'(', body).is_some();
        if may_be_more || (class == Class::Read && contains_word(body, b"into")) {
            return None;
        }
        if !alone {
            return None;
        }
        Some(Self {
            class,
            reason: "by its first word",
            may_commit: verb == Some(TransactionVerb::Commit),
            verb,
            commits: verb == Some(TransactionVerb::Commit),
            ends_block: verb == Some(TransactionVerb::Commit),
            effects: Effects::NONE,
            about_session: false,
        })
    }

    /// Asks the classifier about a text.
    fn classified(classifier: &dyn QueryClassifier, sql: &[u8]) -> Self {
        let found = classifier.classify(sql);
        let may_commit = match (found.class, found.transaction) {
            (Class::Empty | Class::Read, _) => false,
            (Class::TransactionControl, Some(verb)) => verb == TransactionVerb::Commit,
            (Class::Write | Class::SessionChanging, _) => read::may_be_several(sql),
            (Class::TransactionControl | Class::Unknown, _) => true,
        };
        let commit_inside = || read::may_be_several(sql) && contains_word(sql, b"commit");
        let ends = matches!(found.transaction, Some(TransactionVerb::Commit | TransactionVerb::Rollback));
        Self {
            class: found.class,
            reason: found.reason,
            may_commit,
            verb: found.transaction,
            commits: found.transaction == Some(TransactionVerb::Commit) || commit_inside(),
            ends_block: ends && !contains_word(sql, b"chain"),
            effects: found.effects,
            about_session: concerns(sql) || (found.effects.has(Effects::OPAQUE) && calls_set_config(sql)),
        }
    }
}
