//! `round_robin`

use std::sync::atomic::{AtomicUsize, Ordering};

use metako_core::plugin::{BuildError, Candidate, LoadBalancer, LoadBalancerSpec, PickCx};
use metako_core::register_strategy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Each fit node in turn. One turn is shared by all clients, so that many short sessions spread as evenly as one long
/// one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RoundRobinSpec {}

#[typetag::serde(name = "round_robin")]
impl LoadBalancerSpec for RoundRobinSpec {
    fn build(&self) -> Result<Box<dyn LoadBalancer>, BuildError> {
        Ok(Box::new(RoundRobin::default()))
    }
}

register_strategy!(LoadBalancer, "round_robin", RoundRobinSpec);

/// The running `round_robin`.
#[derive(Debug, Default)]
pub struct RoundRobin {
    turn: AtomicUsize,
}

impl LoadBalancer for RoundRobin {
    fn pick(&self, candidates: &[Candidate<'_>], _cx: &PickCx<'_>) -> Option<usize> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        turn.checked_rem(candidates.len())
    }
}
