//! What the controller remembers of one node.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ProbeId;
use crate::plugin::{NodeReport, PrimaryEvidence, ProbeFailure};
use crate::{Lsn, Tick, TimelineId};

/// A point in the order of probes: those that are asked for after it are later, whatever the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Moment(pub(super) u64);

/// One that recovers again and again is mute between for no longer than its processes take to end and to begin. After more
/// than that it was down, and what it says then is about another start.
const MUTE_MAX: Duration = Duration::from_secs(30);

/// The last answer of a node, or its absence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) id: ProbeId,
    /// When the probe was asked for; the node was asked then or later.
    pub(super) sent: Tick,
    pub(super) failure: Option<ProbeFailure>,
}

/// What is known of a node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct NodeState {
    /// The probe that has not been answered.
    pub(super) outstanding: Option<(ProbeId, Tick)>,
    /// When the last probe was asked for.
    pub(super) asked: Option<Tick>,
    /// It is to be asked without waiting for the calm interval.
    pub(super) urgent: bool,
    /// The last answer.
    pub(super) answer: Option<Answer>,
    /// The last good answer.
    pub(super) report: Option<NodeReport>,
    /// The probe that it answered.
    reported: Option<ProbeId>,
    /// Failures in a row.
    pub(super) failures: u32,
    /// What the failures say, and since when they say the same.
    pub(super) failing: Option<(PrimaryEvidence, Tick)>,
    /// Since when they all are failures that prove no life, whatever else they say.
    pub(super) unwell: Option<Tick>,
    /// Since when it has said that it starts or recovers, and nothing from which it would follow that it was up between; and
    /// when it last said anything.
    starting: Option<(Tick, Tick)>,
    /// Good answers in a row.
    pub(super) successes: u32,
    /// When it was last seen streaming.
    pub(super) streamed: Option<Tick>,
    /// When the primary last named it among those that stream from it.
    pub(super) listed: Option<Tick>,
    /// The furthest position that it ever reported as the primary, and on which timeline.
    pub(super) flushed: Option<(TimelineId, Lsn)>,
}

impl NodeState {
    /// Takes an answer to the outstanding probe.
    pub(super) fn learn(&mut self, id: ProbeId, sent: Tick, result: Result<NodeReport, ProbeFailure>) {
        self.outstanding = None;
        match result {
            Ok(report) => {
                self.failures = 0;
                self.failing = None;
                self.unwell = None;
                self.starting = None;
                self.successes += 1;
                // What a standby streamed before it was a primary, or before it was restarted, says nothing of it now.
                if self.report.as_ref().is_none_or(|former| {
                    report.is_primary() || former.is_primary() || former.started_at != report.started_at
                }) {
                    self.streamed = None;
                }
                if report.streaming_receiver().is_some() {
                    self.streamed = Some(sent);
                }
                self.report = Some(report);
                self.reported = Some(id);
                self.answer = Some(Answer { id, sent, failure: None });
            }
            Err(failure) => {
                let kind = classify(&failure);
                self.failures = self.failures.saturating_add(1);
                self.successes = 0;
                if matches!(kind, PrimaryEvidence::Full | PrimaryEvidence::NoLogin) {
                    self.unwell = None;
                } else {
                    self.unwell.get_or_insert(sent);
                }
                match kind {
                    PrimaryEvidence::Starting => {
                        self.starting = Some((self.starting.map_or(sent, |(since, _)| since), sent));
                    }
                    // Only one that is up says so.
                    PrimaryEvidence::Full
                    | PrimaryEvidence::NoLogin
                    | PrimaryEvidence::WriteStalled
                    | PrimaryEvidence::InRecovery
                    | PrimaryEvidence::Healthy => self.starting = None,
                    PrimaryEvidence::Refused | PrimaryEvidence::Silent => {
                        self.starting = self.starting.filter(|(_, last)| sent.since(*last) <= MUTE_MAX);
                    }
                    PrimaryEvidence::ShuttingDown | PrimaryEvidence::Unclear => {
                        self.starting = self.starting.map(|(since, _)| (since, sent));
                    }
                }
                if self.failing.is_none_or(|(known, _)| known != kind) {
                    self.failing = Some((kind, sent));
                }
                self.answer = Some(Answer { id, sent, failure: Some(failure) });
            }
        }
    }

    /// The report, if the last answer is one.
    pub(super) fn current(&self) -> Option<&NodeReport> {
        self.answer.as_ref().filter(|answer| answer.failure.is_none()).and(self.report.as_ref())
    }

    /// The report, if the last answer is one and was asked for after that moment.
    pub(super) fn current_after(&self, moment: Moment) -> Option<&NodeReport> {
        self.current().filter(|_| self.answered_after(moment))
    }

    /// The last report, if it was asked for after that moment and nothing conclusive came after it: a probe or two that
    /// timed out on a slow machine do not take back what a node has said.
    pub(super) fn heard_after(&self, moment: Moment, failure_threshold: u32) -> Option<&NodeReport> {
        let stands = match self.failing {
            None => true,
            Some((PrimaryEvidence::Silent | PrimaryEvidence::Unclear, _)) => {
                self.failures < failure_threshold
            }
            Some(_) => false,
        };
        self.report.as_ref().filter(|_| stands && self.reported_after(moment))
    }

    /// Whether the last good answer is to a probe that was asked for after that moment.
    pub(super) fn reported_after(&self, moment: Moment) -> bool {
        self.reported.is_some_and(|reported| reported.0 > moment.0)
    }

    /// Whether the last answer, good or bad, is to a probe that was asked for after that moment.
    pub(super) fn answered_after(&self, moment: Moment) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.id.0 > moment.0)
    }

    /// What the failures say, and since when, for who judges them: one that recovers again and again has done so since the
    /// first time, whatever it said between.
    pub(super) fn charge(&self) -> Option<(PrimaryEvidence, Tick)> {
        let (kind, since) = self.failing?;
        match kind {
            PrimaryEvidence::Starting => Some((kind, self.starting.map_or(since, |(since, _)| since))),
            _ => Some((kind, since)),
        }
    }

    /// The failure that the last answer is, if it is one.
    pub(super) fn failure(&self) -> Option<&ProbeFailure> {
        self.answer.as_ref().and_then(|answer| answer.failure.as_ref())
    }
}

/// What a failed probe says of a primary.
pub(super) fn classify(failure: &ProbeFailure) -> PrimaryEvidence {
    match failure {
        ProbeFailure::Refused(_) => PrimaryEvidence::Refused,
        ProbeFailure::TimedOut(_) | ProbeFailure::Unreachable(_) => PrimaryEvidence::Silent,
        ProbeFailure::WriteStalled(_) => PrimaryEvidence::WriteStalled,
        ProbeFailure::StartingUp(_) => PrimaryEvidence::Starting,
        ProbeFailure::ShuttingDown(_) => PrimaryEvidence::ShuttingDown,
        ProbeFailure::TooManyConnections(_) => PrimaryEvidence::Full,
        ProbeFailure::Authentication(_) => PrimaryEvidence::NoLogin,
        ProbeFailure::ReadOnly(_) => PrimaryEvidence::InRecovery,
        ProbeFailure::Lost(_) | ProbeFailure::Unexpected(_) | ProbeFailure::Unsupported(_) => {
            PrimaryEvidence::Unclear
        }
    }
}
