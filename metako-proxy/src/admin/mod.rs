//! Commands on a running proxy: HTTP/1.1 and JSON over a local socket that only its owner and root may use.

mod client;
mod server;

pub use client::{Answer, ClientError, call};
pub use server::{Admin, Order, Reply, serve};
