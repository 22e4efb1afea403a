//! The proxy: thin shells around [`metako_core`] that own sockets, buffers, tasks and files.
//!
//! Decisions are made in the core and in strategies; here they are carried out.

pub mod env;
pub mod playground;
pub mod shared;
