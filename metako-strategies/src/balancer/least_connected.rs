//! `least_connected`

use metako_core::plugin::{BuildError, Candidate, LoadBalancer, LoadBalancerSpec, PickCx};
use metako_core::register_strategy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::index_below;

/// The fit node with the fewest server connections in use. Among equals any, all equally likely, so that an idle cluster
/// does not send everything to the node that is named first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LeastConnectedSpec {}

#[typetag::serde(name = "least_connected")]
impl LoadBalancerSpec for LeastConnectedSpec {
    fn build(&self) -> Result<Box<dyn LoadBalancer>, BuildError> {
        Ok(Box::new(LeastConnected))
    }
}

register_strategy!(LoadBalancer, "least_connected", LeastConnectedSpec);

/// The running `least_connected`.
#[derive(Debug)]
pub struct LeastConnected;

impl LoadBalancer for LeastConnected {
    fn pick(&self, candidates: &[Candidate<'_>], cx: &PickCx<'_>) -> Option<usize> {
        let fewest = candidates.iter().map(|candidate| candidate.in_flight).min()?;
        let mut equals = candidates.iter().enumerate().filter(|(_, candidate)| candidate.in_flight == fewest);
        let nth = index_below(equals.clone().count(), cx.random)?;
        equals.nth(nth).map(|(index, _)| index)
    }
}
