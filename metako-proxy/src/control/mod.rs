//! The control plane's shell: asks the nodes, carries out what the pure controller orders, keeps its journal, and
//! writes down what it decided.

mod access;
mod actions;
mod connection;
mod journal;
mod node_report;
mod record;
mod replication;
mod sql;

pub use access::PgNode;
pub use actions::{Executor, Order};
pub use journal::{FileJournal, Found, JOURNAL_VERSION, JournalError, JournalStore};
pub use record::{Entry, History, HistoryWriter, timestamp};
