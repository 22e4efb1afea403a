//! metako without sockets, clocks or tasks.
//!
//! Everything that decides lives here: the four strategy traits and their registry ([`plugin`]), the configuration
//! ([`config`]), the rules of log-in ([`hba`]), the cluster controller ([`cluster`]), the choice of a node for a statement ([`route`]), and the
//! protocol machines of the data plane ([`wire`], [`session`], [`pool`]).
//!
//! Nothing in this crate reads a clock, opens a socket, draws a random number, spawns a task, or iterates a map whose
//! order is random. Time ([`Tick`]), facts and randomness are arguments. That is what lets the very same code run in
//! the proxy, in the tests on real PostgreSQL, and in the simulator.

pub mod cluster;
pub mod config;
pub mod hba;
mod ids;

pub mod plugin;
pub mod pool;
pub mod record;
pub mod route;
pub mod session;
pub mod sql;
mod time;
pub mod wire;
mod written;

pub use ids::{Epoch, Lsn, NodeName, ParseLsnError, SystemId, TimelineId};
pub use time::Tick;

#[doc(hidden)]
pub mod __private {
    //! What [`crate::register_strategy!`] expands to; not an interface.
    pub use {inventory, typetag};
}
