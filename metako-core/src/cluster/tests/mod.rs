//! The controller, driven by hand through each path.

mod away;
mod discovery;
mod failover;
mod fake;
mod hosts;
mod lab;
mod laws;
mod names;
mod observe;
mod operator;
mod rejoin;
mod rules;
mod stalled;
mod standbys;
mod survival;
mod suspicion;
mod switchover;
mod synchronous;

pub(crate) use fake::{eager, hooked, node, settings};
