//! `weighted`

use metako_core::plugin::{BuildError, Candidate, LoadBalancer, LoadBalancerSpec, PickCx};
use metako_core::register_strategy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::below;

/// Any fit node, drawn at random in proportion to its `weight`: a node of weight 3 gets three times the reads of a node
/// of weight 1. Over few reads the shares vary, as drawing does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WeightedSpec {}

#[typetag::serde(name = "weighted")]
impl LoadBalancerSpec for WeightedSpec {
    fn build(&self) -> Result<Box<dyn LoadBalancer>, BuildError> {
        Ok(Box::new(Weighted))
    }
}

register_strategy!(LoadBalancer, "weighted", WeightedSpec);

/// The running `weighted`. Drawn, not in smooth rotation: a rotation needs state per node behind a lock, and the set of
/// candidates changes from pick to pick.
#[derive(Debug)]
pub struct Weighted;

impl LoadBalancer for Weighted {
    fn pick(&self, candidates: &[Candidate<'_>], cx: &PickCx<'_>) -> Option<usize> {
        let total = candidates.iter().map(|candidate| u64::from(candidate.weight)).sum();
        let mut ticket = below(total, cx.random);
        for (index, candidate) in candidates.iter().enumerate() {
            let weight = u64::from(candidate.weight);
            if ticket < weight {
                return Some(index);
            }
            ticket -= weight;
        }
        // Only reached when there is no candidate, or against the contract none with a weight.
        if candidates.is_empty() { None } else { Some(0) }
    }
}
