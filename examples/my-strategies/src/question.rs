//! A health probe: `question`

use async_trait::async_trait;
use metako_core::plugin::{BuildError, HealthProbe, HealthProbeSpec, NodeAccess, NodeReport, ProbeFailure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The usual report, and a question of your own to replicas: one that does not answer it with `t` is left alone. So a
/// table can take a replica out of service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuestionSpec {
    /// A query; its first value decides.
    pub sql: String,
}

impl Default for QuestionSpec {
    fn default() -> Self {
        Self { sql: "SELECT true".to_owned() }
    }
}

#[typetag::serde(name = "question")]
impl HealthProbeSpec for QuestionSpec {
    fn build(&self) -> Result<Box<dyn HealthProbe>, BuildError> {
        Ok(Box::new(Question { sql: self.sql.clone() }))
    }
}

metako_core::register_strategy!(HealthProbe, "question", QuestionSpec);

/// The running probe.
pub struct Question {
    sql: String,
}

#[async_trait]
impl HealthProbe for Question {
    async fn probe(&self, node: &mut dyn NodeAccess) -> Result<NodeReport, ProbeFailure> {
        let report = node.report().await?;
        if report.is_primary() {
            // Whether the primary goes is not for a table to say, but it must be able to commit.
            node.commit().await?;
            return Ok(report);
        }
        let rows = match node.query(&self.sql).await {
            // The simulator's model has no tables.
            Err(ProbeFailure::Unsupported(_)) => return Ok(report),
            rows => rows?,
        };
        match rows.first().and_then(|row| row.first()) {
            Some(Some(answer)) if answer == "t" => Ok(report),
            other => Err(ProbeFailure::Unexpected(format!("`{}` answered {other:?}, not t", self.sql))),
        }
    }
}
