//! The control plane's shell: asks the nodes, carries out what the pure controller orders, keeps its journal, and
//! writes down what it decided.

mod access;
mod actions;
mod config;
mod connection;
mod contained;
mod driver;
mod established;
mod hooks;
mod incidents;
mod journal;
mod node_report;
mod persist;
mod probes;
mod record;
mod replication;
mod report;
mod secrets;
mod session;
mod sql;
mod status;
mod writer;

pub use access::PgNode;
pub use actions::{Order, PgServers, Servers};
pub use config::ControlConfig;
pub use contained::ContainedPolicy;
pub use driver::{Accepted, Driver, DriverHandle, OperatorError, Parts, StartError, Stopped};
pub use incidents::{Recorder, Segments};
pub use journal::{FileJournal, Found, JOURNAL_VERSION, JournalError, JournalStore};
pub use record::{Entry, History, HistoryFile, read_history};
pub use report::log as log_report;
pub(crate) use secrets::sources;
pub use status::{NodeStatus, OverallHealth, Queries, Status, render};
pub(crate) use status::{health_name, role_name};
pub use writer::{Sink, Writer};
