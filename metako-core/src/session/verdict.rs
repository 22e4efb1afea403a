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
        let selects = begins_with_select(sql);
        let word = if selects { &sql[..6] } else { first_word(sql) };
        let (class, verb) = match word.len() {
            6 if selects || word.eq_ignore_ascii_case(b"select") => (Class::Read, None),
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
        if !is_plain(body) {
            let may_be_more = memchr::memchr2(b';', b'(', body).is_some();
            if may_be_more || (class == Class::Read && contains_word(body, b"into")) {
                return None;
            }
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

/// Whether a text begins with the commonest word, seen at once if it does without anything before it.
fn begins_with_select(sql: &[u8]) -> bool {
    const SELECT: u64 = u64::from_le_bytes(*b"select\0\0");
    const LETTERS: u64 = u64::from_le_bytes(*b"\xff\xff\xff\xff\xff\xff\0\0");
    const SMALL: u64 = 0x2020_2020_2020_2020;
    let Some(start) = sql.first_chunk::<8>() else { return false };
    (u64::from_le_bytes(*start) | SMALL) & LETTERS == SELECT && !start[6].is_ascii_alphabetic()
}

/// Bytes that are looked at together.
const GROUP: usize = 16;

/// Whether a text has neither `;` nor `(`, and no `in` as in INTO. Most have none, so each byte is looked at once, and none
/// decides before the others of its group: that takes a few instructions for all of them.
fn is_plain(text: &[u8]) -> bool {
    let pair = |here: u8, next: u8| {
        let ends = u8::from(here == b';') | u8::from(here == b'(');
        ends | (u8::from(here | 0x20 == b'i') & u8::from(next | 0x20 == b'n'))
    };
    let Some(last) = text.len().checked_sub(GROUP + 1) else {
        let next = text.iter().skip(1).chain([&0]);
        return text.iter().zip(next).all(|(here, next)| pair(*here, *next) == 0);
    };
    let mut at = 0;
    loop {
        let groups = (text[at..].first_chunk::<GROUP>(), text[at + 1..].first_chunk::<GROUP>());
        let (Some(here), Some(next)) = groups else { return false };
        let found = here.iter().zip(next).fold(0, |found, (here, next)| found | pair(*here, *next));
        if found != 0 {
            return false;
        }
        if at == last {
            return pair(text[text.len() - 1], 0) == 0;
        }
        at = last.min(at + GROUP);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_select_is_known_by_its_first_word(text in "( |[Ss][eE][Ll][Ee][Cc][Tt]|select|SELECT)[a-zA-Z1 (;]{0,10}") {
            let bytes = text.as_bytes();
            let known = first_word(bytes).eq_ignore_ascii_case(b"select");
            prop_assert!(!begins_with_select(bytes) || known);
            prop_assert_eq!(begins_with_select(bytes), known && bytes.len() >= 8 && !bytes.starts_with(b" "));
        }

        #[test]
        fn a_plain_text_holds_nothing_that_is_looked_for(text in "[a ;(iInNto]{0,70}|[ab ]{0,40}[;(iI][nN]?[ab ]{0,40}") {
            let bytes = text.as_bytes();
            let lower = text.to_ascii_lowercase();
            prop_assert_eq!(is_plain(bytes), !(lower.contains([';', '(']) || lower.contains("in")));
        }
    }
}
