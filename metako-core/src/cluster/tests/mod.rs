//! The controller, driven by hand through each path.

mod away;
mod discovery;
mod failover;
mod fake;
mod hosts;
mod lab;
mod lag;
mod laws;
mod names;
mod observe;
mod operator;
mod rejoin;
mod restart;
mod rules;
mod stalled;
mod standbys;
mod starting;
mod survival;
mod suspicion;
mod switchover;
mod synchronous;

pub(crate) use fake::{eager, hooked, node, settings};
