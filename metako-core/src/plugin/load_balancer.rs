//! Which of the fit nodes serves a read.

use std::fmt::Debug;
use std::time::Duration;

use super::BuildError;
use crate::Tick;

/// Options of a [`LoadBalancer`], as the YAML gives them.
#[typetag::serde(tag = "type")]
pub trait LoadBalancerSpec: Debug + Send + Sync {
    /// Makes the running balancer. Called at start and when a reload changed the spec.
    fn build(&self) -> Result<Box<dyn LoadBalancer>, BuildError>;
}

/// Chooses a node for one read among those that the router found fit.
///
/// Hot path: one call per checkout of a replica, from several threads. Must not block, allocate or read a clock: time
/// and chance come in [`PickCx`].
pub trait LoadBalancer: Send + Sync {
    /// The index of the chosen candidate; `None` only when there are none. An index out of range counts as a fault of
    /// the strategy, and the first candidate is taken.
    fn pick(&self, candidates: &[Candidate<'_>], cx: &PickCx<'_>) -> Option<usize>;

    /// Learns how a read that it placed went. The default learns nothing.
    fn observe(&self, outcome: &Outcome<'_>) {
        let _ = outcome;
    }
}

/// A node that may serve the read.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The node's name.
    pub name: &'a str,
    /// Server connections to it that are in use by clients right now.
    pub in_flight: u32,
    /// How long its last health probe took.
    pub latency: Option<Duration>,
    /// How far its replay is behind the primary.
    pub lag: Option<Duration>,
    /// `weight` of the configuration, at least 1.
    pub weight: u32,
    /// `zone` of the configuration.
    pub zone: Option<&'a str>,
}

/// What a pick may depend on besides the candidates.
#[derive(Debug, Clone, Copy)]
pub struct PickCx<'a> {
    /// The time.
    pub now: Tick,
    /// 64 fresh random bits.
    pub random: u64,
    /// A number that stays the same for one client session.
    pub session: u64,
    /// The zone that the proxy itself is in, if it has one.
    pub zone: Option<&'a str>,
}

/// How a read went.
#[derive(Debug, Clone, Copy)]
pub struct Outcome<'a> {
    /// The node that served it.
    pub node: &'a str,
    /// From checkout to check-in.
    pub took: Duration,
    /// Whether the server connection survived.
    pub ok: bool,
}
