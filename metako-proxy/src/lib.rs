//! The proxy: thin shells around [`metako_core`] that own sockets, buffers, tasks and files.
//!
//! Decisions are made in the core and in strategies; here they are carried out.

pub mod backend;
pub mod control;
pub mod env;
pub mod login;
pub mod playground;
pub mod shared;
pub mod stream;
pub mod tls_files;
