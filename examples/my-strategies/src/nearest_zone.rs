//! A load balancer: `nearest_zone`

use metako_core::plugin::{BuildError, Candidate, LoadBalancer, LoadBalancerSpec, PickCx};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A node in the proxy's own zone, the least busy one; if none is fit there, the least busy of all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NearestZoneSpec {
    /// So many more server connections may be in use in the own zone before another zone is used.
    pub detour: u32,
}

impl Default for NearestZoneSpec {
    fn default() -> Self {
        Self { detour: 20 }
    }
}

#[typetag::serde(name = "nearest_zone")]
impl LoadBalancerSpec for NearestZoneSpec {
    fn build(&self) -> Result<Box<dyn LoadBalancer>, BuildError> {
        Ok(Box::new(NearestZone { detour: self.detour }))
    }
}

metako_core::register_strategy!(LoadBalancer, "nearest_zone", NearestZoneSpec);

/// The running balancer.
pub struct NearestZone {
    detour: u32,
}

impl LoadBalancer for NearestZone {
    fn pick(&self, candidates: &[Candidate<'_>], cx: &PickCx<'_>) -> Option<usize> {
        // Hot path: nothing is allocated. To be far away counts as so many connections more.
        let cost = |node: &Candidate<'_>| {
            let far = cx.zone.is_some() && node.zone != cx.zone;
            u64::from(node.in_flight) + if far { u64::from(self.detour) + 1 } else { 0 }
        };
        candidates.iter().enumerate().min_by_key(|(_, node)| cost(node)).map(|(index, _)| index)
    }
}
