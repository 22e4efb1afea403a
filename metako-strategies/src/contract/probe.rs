use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use metako_core::plugin::{HealthProbe, HealthProbeSpec, NodeAccess, NodeReport, ProbeFailure, ReportedRole};
use metako_core::{Lsn, SystemId, TimelineId};

use super::{broken, built};

/// Checks a health probe:
///
/// - a failure of [`NodeAccess::report`] or [`NodeAccess::commit`] comes out as that very failure: the controller takes
///   each as different evidence;
/// - a good answer is passed on unchanged, as it is what the controller works by;
/// - it waits for nothing but the node: one that answers at once is probed at once.
///
/// To [`NodeAccess::query`] the node here answers [`ProbeFailure::Unsupported`], as the simulator does to a question that
/// its model does not know; a probe may then fail or go on without.
pub fn health_probe(spec: &dyn HealthProbeSpec) -> Result<(), String> {
    let probe = built(spec.build())?;
    for primary in [true, false] {
        for failing in [None, Some(Step::Report), Some(Step::Commit)] {
            for failure in failures() {
                let mut node = Scripted { primary, failing, failure: failure.clone(), failed: false };
                let result = probed(&*probe, &mut node)?;
                let expected = match (node.failed, &result) {
                    (true, _) => Err(failure),
                    (false, Err(ProbeFailure::Unsupported(_))) => continue,
                    (false, _) => Ok(report(primary)),
                };
                if result != expected {
                    return broken(format!("the probe said {result:?} instead of {expected:?}"));
                }
            }
        }
    }
    Ok(())
}

fn probed(probe: &dyn HealthProbe, node: &mut Scripted) -> Result<Result<NodeReport, ProbeFailure>, String> {
    let mut future = pin!(probe.probe(node));
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Ok(result),
        Poll::Pending => broken("it waits for something else than the node"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Report,
    Commit,
}

/// A node whose answers are fixed.
struct Scripted {
    primary: bool,
    failing: Option<Step>,
    failure: ProbeFailure,
    failed: bool,
}

impl Scripted {
    fn step<T>(&mut self, step: Step, good: T) -> Result<T, ProbeFailure> {
        if self.failing == Some(step) {
            self.failed = true;
            return Err(self.failure.clone());
        }
        Ok(good)
    }
}

#[async_trait]
impl NodeAccess for Scripted {
    async fn report(&mut self) -> Result<NodeReport, ProbeFailure> {
        let good = report(self.primary);
        self.step(Step::Report, good)
    }

    async fn commit(&mut self) -> Result<Duration, ProbeFailure> {
        self.step(Step::Commit, Duration::from_millis(1))
    }

    async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, ProbeFailure> {
        Err(ProbeFailure::Unsupported(sql.to_owned()))
    }
}

fn report(primary: bool) -> NodeReport {
    let role = if primary {
        ReportedRole::Primary {
            flushed: Lsn(100),
            senders: Vec::new(),
            synchronous_standby_names: String::new(),
            read_only: false,
        }
    } else {
        ReportedRole::Standby {
            received: Some(Lsn(100)),
            replayed: Some(Lsn(90)),
            replay_lag: Some(Duration::from_millis(5)),
            receiver: None,
            receiver_process: false,
            startup_wait: None,
            settings: std::collections::BTreeMap::new(),
        }
    };
    NodeReport {
        system_id: SystemId(7),
        version: 150_000,
        started_at: 1,
        wal_segment_size: 16 << 20,
        checkpointer: None,
        timeline: TimelineId(1),
        role,
        latency: Duration::from_millis(1),
    }
}

fn failures() -> Vec<ProbeFailure> {
    let text = || "as the contract has it".to_owned();
    vec![
        ProbeFailure::Refused(text()),
        ProbeFailure::TimedOut(Duration::from_millis(1)),
        ProbeFailure::WriteStalled(Duration::from_millis(1)),
        ProbeFailure::Lost(text()),
        ProbeFailure::Authentication(text()),
        ProbeFailure::TooManyConnections(text()),
        ProbeFailure::StartingUp(text()),
        ProbeFailure::ShuttingDown(text()),
        ProbeFailure::ReadOnly(text()),
        ProbeFailure::Unreachable(text()),
        ProbeFailure::Unexpected(text()),
        ProbeFailure::Unsupported(text()),
    ]
}
