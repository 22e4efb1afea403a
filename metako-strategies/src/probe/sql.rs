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

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use metako_core::plugin::ReportedRole;
    use metako_core::{Lsn, SystemId, TimelineId};
    use mockall::mock;

    use super::*;

    mock! {
        Node {}

        #[async_trait]
        impl NodeAccess for Node {
            async fn report(&mut self) -> Result<NodeReport, ProbeFailure>;
            async fn commit(&mut self) -> Result<Duration, ProbeFailure>;
            async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, ProbeFailure>;
        }
    }

    fn report(role: ReportedRole) -> NodeReport {
        NodeReport {
            system_id: SystemId(7),
            version: 150_000,
            started_at: 1,
            wal_segment_size: 16 << 20,
            checkpointer: None,
            timeline: TimelineId(3),
            role,
            latency: Duration::from_millis(2),
        }
    }

    fn primary() -> NodeReport {
        report(ReportedRole::Primary {
            flushed: Lsn(100),
            senders: Vec::new(),
            synchronous_standby_names: String::new(),
            read_only: false,
        })
    }

    fn standby() -> NodeReport {
        report(ReportedRole::Standby {
            received: Some(Lsn(100)),
            replayed: Some(Lsn(100)),
            replay_lag: None,
            receiver: None,
            receiver_process: false,
            startup_wait: None,
            settings: std::collections::BTreeMap::new(),
        })
    }

    /// Runs the probe on a node that answers at once.
    fn probed(spec: &SqlProbeSpec, mut node: MockNode) -> Result<NodeReport, ProbeFailure> {
        let probe = spec.build().expect("its options cannot be wrong");
        let mut future = pin!(probe.probe(&mut node));
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("the mock answers at once"),
        }
    }

    #[test]
    fn a_primary_is_asked_to_commit_after_it_reported() {
        let mut order = mockall::Sequence::new();
        let mut node = MockNode::new();
        node.expect_report().times(1).in_sequence(&mut order).returning(|| Ok(primary()));
        node.expect_commit().times(1).in_sequence(&mut order).returning(|| Ok(Duration::from_millis(9)));
        assert_eq!(probed(&SqlProbeSpec::default(), node), Ok(primary()));
    }

    #[test]
    fn a_standby_is_not_asked_to_commit() {
        let mut node = MockNode::new();
        node.expect_report().times(1).returning(|| Ok(standby()));
        node.expect_commit().never();
        assert_eq!(probed(&SqlProbeSpec::default(), node), Ok(standby()));
    }

    #[test]
    fn without_write_a_primary_is_only_read() {
        let mut node = MockNode::new();
        node.expect_report().times(1).returning(|| Ok(primary()));
        node.expect_commit().never();
        assert_eq!(probed(&SqlProbeSpec { write: false }, node), Ok(primary()));
    }

    #[test]
    fn a_primary_that_cannot_commit_is_not_healthy() {
        for failure in [
            ProbeFailure::ReadOnly("it was demoted since it reported".to_owned()),
            ProbeFailure::TimedOut(Duration::from_millis(500)),
            ProbeFailure::Lost("connection reset".to_owned()),
        ] {
            let mut node = MockNode::new();
            node.expect_report().times(1).returning(|| Ok(primary()));
            let answer = failure.clone();
            node.expect_commit().times(1).returning(move || Err(answer.clone()));
            assert_eq!(probed(&SqlProbeSpec::default(), node), Err(failure));
        }
    }

    #[test]
    fn a_failure_to_report_is_passed_on_and_nothing_more_is_asked() {
        let mut node = MockNode::new();
        node.expect_report().times(1).returning(|| Err(ProbeFailure::StartingUp("57P03".to_owned())));
        node.expect_commit().never();
        assert_eq!(probed(&SqlProbeSpec::default(), node), Err(ProbeFailure::StartingUp("57P03".to_owned())));
    }
}
