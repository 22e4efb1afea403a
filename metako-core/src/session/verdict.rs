//! What a statement means for the session that sends it.

use crate::plugin::{Class, QueryClassifier, TransactionVerb};
use crate::wire::read;

/// What is known of a query string from its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    };

    /// Asks the classifier about a text.
    pub fn of(classifier: &dyn QueryClassifier, sql: &[u8]) -> Self {
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
        }
    }
}

/// Whether the letters of `word` occur anywhere, in upper or lower case.
fn contains_word(sql: &[u8], word: &[u8]) -> bool {
    sql.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}
