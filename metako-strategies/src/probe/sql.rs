//! `sql`

use async_trait::async_trait;
use metako_core::plugin::{BuildError, HealthProbe, HealthProbeSpec, NodeAccess, NodeReport, ProbeFailure};
use metako_core::register_strategy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Asks a node for its role, timeline and WAL positions over a standing connection. A primary must also commit: one
/// that answers questions while its disk stands still is not healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SqlProbeSpec {
    /// Whether a primary is asked to commit a small transaction with each probe.
    pub write: bool,
}

impl Default for SqlProbeSpec {
    fn default() -> Self {
        Self { write: true }
    }
}

#[typetag::serde(name = "sql")]
impl HealthProbeSpec for SqlProbeSpec {
    fn build(&self) -> Result<Box<dyn HealthProbe>, BuildError> {
        Ok(Box::new(SqlProbe { write: self.write }))
    }
}

register_strategy!(HealthProbe, "sql", SqlProbeSpec);

/// The running `sql`. Holds no state, so a dropped probe leaves nothing behind.
#[derive(Debug)]
pub struct SqlProbe {
    write: bool,
}

#[async_trait]
impl HealthProbe for SqlProbe {
    async fn probe(&self, node: &mut dyn NodeAccess) -> Result<NodeReport, ProbeFailure> {
        let report = node.report().await?;
        if self.write && report.is_primary() {
            node.commit().await?;
        }
        Ok(report)
    }
}
