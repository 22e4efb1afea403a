//! The proxy: thin shells around [`metako_core`] that own sockets, buffers, tasks and files.
//!
//! Decisions are made in the core and in strategies; here they are carried out.

pub mod admin;
pub mod app;
pub mod backend;
mod certificate;
pub mod check;
mod cli;
pub mod control;
pub mod credential;
pub mod data;
pub mod demo;
mod descriptors;
pub mod env;
pub mod logging;
pub mod login;
pub mod metrics;
pub mod playground;
mod scram;
pub mod shared;
pub mod state_dir;
pub mod stream;
pub mod tls_files;
mod turns;

pub use cli::main;

// Links the stock strategies into every binary that uses this crate.
use metako_strategies as _;
