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
    /// What it may leave behind in the session, but for what metako sees itself: SET, RESET, DISCARD, PREPARE, EXECUTE
    /// and DEALLOCATE. Of several statements, all of theirs.
    pub effects: Effects,
}

/// What a statement may leave behind in the session that runs it: a set of the constants here.
///
/// In transaction mode the server of a statement that is [`Effects::OPAQUE`] is asked afterwards what is left, and a session
/// that left something keeps its server. So what is too much costs a question, and what is missing gives one client's state
/// to another: in doubt say [`Effects::OPAQUE`], as [`Classification::new`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effects(u8);

impl Effects {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Anything: it runs code that the text does not show.
    pub const OPAQUE: Self = Self(1);
    /// Something that the server can name: temporary objects, advisory locks of the session, held cursors, LISTEN, a role.
    pub const HOLDS: Self = Self(2);
    /// It may end something of that.
    pub const RELEASES: Self = Self(4);
    /// It reads what nextval() left in the session: currval(), lastval().
    pub const SEQUENCES: Self = Self(8);
    /// Something that lasts as long as the session, and that the server does not show: a library, a random seed.
    pub const STAYS: Self = Self(16);
    /// Nothing; but it may need a database to which nobody is connected: CREATE, ALTER and DROP DATABASE.
    pub const DATABASES: Self = Self(32);

    /// All of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether something of `other` is in it.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
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
    /// A class with its reason and place, of a statement that steers no transaction and may leave anything behind.
    pub const fn new(class: Class, reason: &'static str, span: Span) -> Self {
        Self { class, reason, span, transaction: None, effects: Effects::OPAQUE }
    }

    /// The same, of a statement that leaves no more behind than `effects`.
    #[must_use]
    pub const fn with_effects(self, effects: Effects) -> Self {
        Self { effects, ..self }
    }
}
