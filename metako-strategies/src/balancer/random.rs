//! `random`

use metako_core::plugin::{BuildError, Candidate, LoadBalancer, LoadBalancerSpec, PickCx};
use metako_core::register_strategy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::index_below;

/// Any fit node, all equally likely.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RandomSpec {}

#[typetag::serde(name = "random")]
impl LoadBalancerSpec for RandomSpec {
    fn build(&self) -> Result<Box<dyn LoadBalancer>, BuildError> {
        Ok(Box::new(Random))
    }
}

register_strategy!(LoadBalancer, "random", RandomSpec);

/// The running `random`.
#[derive(Debug)]
pub struct Random;

impl LoadBalancer for Random {
    fn pick(&self, candidates: &[Candidate<'_>], cx: &PickCx<'_>) -> Option<usize> {
        index_below(candidates.len(), cx.random)
    }
}
