//! What a statement does, judged by its text.

use std::fmt::Debug;

use super::BuildError;

/// Options of a [`QueryClassifier`], as the YAML gives them.
#[typetag::serde(tag = "type")]
pub trait QueryClassifierSpec: Debug + Send + Sync {
    /// Makes the running classifier.
    fn build(&self) -> Result<Box<dyn QueryClassifier>, BuildError>;
}

/// Tells what a statement, or a string of several, does.
///
/// Hot path: one call per statement text. Must not block. The text is what the client sent, in the client's encoding: it need not be
/// UTF-8. It may hold several statements; the answer is the strongest class among them. In doubt the answer is
/// [`Class::Unknown`], which goes to the primary.
pub trait QueryClassifier: Send + Sync {
    /// Classifies one query string.
    fn classify(&self, sql: &[u8]) -> Classification;
}

/// What a statement does, from weakest to strongest: the class of several statements is the greatest of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Nothing: empty text, comments.
    Empty,
    /// Only reads, and gives the same answer on a replica that is up to date.
    Read,
    /// Opens, ends or steers a transaction: BEGIN, COMMIT, SAVEPOINT, ...
    TransactionControl,
    /// Writes, locks, or must see the primary for another reason.
    Write,
    /// Cannot be told: treated as a write.
    Unknown,
    /// Changes state of the session that outlives the transaction: SET, LISTEN, PREPARE, CREATE TEMP, advisory locks.
    SessionChanging,
}

impl Class {
    /// Whether a replica may serve it.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Empty | Self::Read)
    }
}

/// A part of the query text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

/// A class with its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Classification {
    /// The class.
    pub class: Class,
    /// Why, for people.
    pub reason: &'static str,
    /// The text that decided it.
    pub span: Span,
    /// What it does to a transaction block, if its class is [`Class::TransactionControl`] and it is one statement.
    pub transaction: Option<TransactionVerb>,
}

/// What a single statement does to a transaction block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionVerb {
    /// BEGIN, START TRANSACTION
    Begin,
    /// COMMIT, END, also PREPARE TRANSACTION
    Commit,
    /// ROLLBACK, ABORT of the whole transaction
    Rollback,
    /// SAVEPOINT, RELEASE, ROLLBACK TO, SET TRANSACTION
    Inside,
}

impl Classification {
    /// A class with its reason and place, of a statement that steers no transaction.
    pub const fn new(class: Class, reason: &'static str, span: Span) -> Self {
        Self { class, reason, span, transaction: None }
    }
}
