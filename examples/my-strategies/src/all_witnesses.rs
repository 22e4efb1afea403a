//! A failover policy: `all_witnesses`

use std::cmp::Reverse;

use metako_core::plugin::{
    Assessment, BuildError, Electable, Evidence, FailoverPolicy, FailoverPolicySpec, PrimaryEvidence,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Fails over only when every replica of the configuration answers and has lost the primary, and then without haste. For
/// clusters where a needless failover costs more than a late one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AllWitnessesSpec {
    /// So many times `failover.silent_after` the evidence must have stood.
    pub patience: u32,
}

impl Default for AllWitnessesSpec {
    fn default() -> Self {
        Self { patience: 2 }
    }
}

#[typetag::serde(name = "all_witnesses")]
impl FailoverPolicySpec for AllWitnessesSpec {
    fn build(&self) -> Result<Box<dyn FailoverPolicy>, BuildError> {
        if self.patience == 0 {
            return Err(BuildError { option: "patience", problem: "is 0; expected at least 1".to_owned() });
        }
        Ok(Box::new(AllWitnesses { patience: self.patience }))
    }
}

metako_core::register_strategy!(FailoverPolicy, "all_witnesses", AllWitnessesSpec);

/// The running policy.
pub struct AllWitnesses {
    patience: u32,
}

impl FailoverPolicy for AllWitnesses {
    fn assess(&self, evidence: &Evidence) -> Assessment {
        let (primary, witnesses) = (&evidence.primary, evidence.witnesses);
        let dead = matches!(evidence.kind, PrimaryEvidence::Refused | PrimaryEvidence::Silent);
        let wait = |reason, ask_again_in| Assessment::Wait { reason, ask_again_in };
        if !dead || witnesses.lost == 0 || witnesses.lost < witnesses.configured {
            let (lost, all) = (witnesses.lost, witnesses.configured);
            return wait(format!("{primary} is {:?}, lost by {lost} of {all} replicas", evidence.kind), None);
        }
        let patience = evidence.silent_after * self.patience;
        match patience.checked_sub(evidence.standing) {
            Some(left) if !left.is_zero() => {
                wait(format!("{primary} seems dead and is given {} ms", patience.as_millis()), Some(left))
            }
            _ => Assessment::FailOver { reason: format!("{primary} is lost to all replicas") },
        }
    }

    fn rank(&self, electable: &mut [Electable]) {
        electable.sort_by_key(|node| (Reverse((node.timeline, node.position)), node.priority));
    }
}
