//! Throw-away PostgreSQL clusters: a primary and streaming replicas as real processes in a temporary folder.
//!
//! The demo, the integration tests and the simulator's real-cluster mode use them. Whatever a [`Cluster`] starts dies
//! with it: by `Drop`, which also runs on panic, and by a watchdog process where the owner itself is killed.
//!
//! ```no_run
//! use metako_proxy::playground::{Builder, Cluster};
//!
//! # async fn example() -> Result<(), metako_proxy::playground::PlaygroundError> {
//! let cluster = Cluster::start(Builder::new().replicas(2).synchronous(1)).await?;
//! cluster.node("node-1").kill_9()?;
//! # Ok(())
//! # }
//! ```
//!
//! Methods that are not `async` block: until a process is gone, a server answers, or their time is out. In a test on
//! tokio that is fine for signals ([`Node::kill_9`], [`Node::freeze`]); what takes longer ([`Node::start`],
//! [`Node::stop`]) belongs in `tokio::task::spawn_blocking`, for which a [`Node`] can be cloned.
//!
//! [`Builder::links`] puts a [`Relay`] before each node for metako and another one for its standbys, which a test can cut.
//!
//! Set `METAKO_PG_BIN` to the folder of the server programs to use another PostgreSQL, `METAKO_PLAYGROUND_DIR` to put
//! the clusters elsewhere than in the temporary folder (a RAM disk makes tests faster), and `METAKO_KEEP=1` to keep the
//! folders with their logs.

mod account;
mod builder;
mod cluster;
mod error;
mod folder;
mod node;
mod ports;
mod process;
mod programs;
mod relay;
mod sql;
mod wait;

pub use builder::Builder;
pub use cluster::Cluster;
pub use error::PlaygroundError;
pub use node::{Node, StopMode};
pub use programs::Programs;
pub use relay::{Link, Relay};
pub use wait::until;
