//! A balancer that notes what it is told.

use std::sync::atomic::{AtomicU64, Ordering};

use metako_core::plugin::{BuildError, Candidate, LoadBalancer, LoadBalancerSpec, Outcome, PickCx};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Reads that it placed and that went well.
pub(crate) static GOOD: AtomicU64 = AtomicU64::new(0);

/// Picks the first node, and notes how its reads went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct NotingSpec {}

#[typetag::serde(name = "noting")]
impl LoadBalancerSpec for NotingSpec {
    fn build(&self) -> Result<Box<dyn LoadBalancer>, BuildError> {
        Ok(Box::new(Noting))
    }
}

metako_core::register_strategy!(LoadBalancer, "noting", NotingSpec);

struct Noting;

impl LoadBalancer for Noting {
    fn pick(&self, candidates: &[Candidate<'_>], _: &PickCx<'_>) -> Option<usize> {
        (!candidates.is_empty()).then_some(0)
    }

    fn observe(&self, outcome: &Outcome<'_>) {
        assert!(!outcome.took.is_zero(), "a read takes time");
        if outcome.ok && outcome.node == "node-2" {
            GOOD.fetch_add(1, Ordering::Relaxed);
        }
    }
}
