//! Health, role and fitness of each node, as the view shows them.

use std::time::Duration;

use super::{Controller, Health, ObservedRole, Phase, ReadFitness};
use crate::config::Node;
use crate::plugin::{NodeReport, PrimaryEvidence, ProbeFailure, ReportedRole};
use crate::{NodeName, Tick};

/// How long a standby without stream counts as current where `max_lag` sets no limit.
const STALE_AFTER: Duration = Duration::from_secs(10);

impl Controller {
    pub(super) fn health(&self, name: &NodeName) -> Health {
        let Some(state) = self.nodes.get(name) else { return Health::Unknown };
        match (&state.answer, state.failure()) {
            (None, _) => Health::Unknown,
            (Some(_), None) => Health::Up,
            (Some(_), Some(failure @ ProbeFailure::Refused(_))) if !self.streams_to_others(name) => {
                Health::Down { reason: failure.to_string() }
            }
            (Some(_), Some(failure)) => Health::Unseen { reason: failure.to_string() },
        }
    }

    /// Whether another node says that it streams from this one right now.
    fn streams_to_others(&self, name: &NodeName) -> bool {
        self.nodes.keys().filter(|other| *other != name).any(|other| {
            let receiver = self.report(other).and_then(NodeReport::streaming_receiver);
            receiver.is_some_and(|receiver| {
                self.node_at(&receiver.sender_host, receiver.sender_port)
                    .is_none_or(|upstream| upstream == *name)
            })
        })
    }

    pub(super) fn observed_role(&self, name: &NodeName) -> ObservedRole {
        let report = self.nodes.get(name).and_then(|state| state.report.as_ref());
        let Some(report) = report else { return ObservedRole::Unknown };
        if self.is_foreign(report) {
            return ObservedRole::Foreign;
        }
        if !report.is_primary() {
            return ObservedRole::Replica;
        }
        match (&self.journal, self.phase_primary()) {
            (_, Some(primary)) if primary == name => ObservedRole::Primary,
            // Before anything is agreed on nobody's claim is wrong.
            (None, _) => ObservedRole::Unknown,
            (Some(journal), None)
                if journal.primary == *name
                    && report.timeline == journal.timeline
                    && self.report(name).is_none() =>
            {
                ObservedRole::Primary
            }
            (Some(_), _) if self.is_coming(name) => ObservedRole::Unknown,
            // What a dead node was is no matter; should it come back, it says what it is.
            (Some(_), _) if self.report(name).is_none() => ObservedRole::Unknown,
            (Some(_), _) => ObservedRole::StalePrimary,
        }
    }

    pub(super) fn read_fitness(&self, node: &Node, lag: Option<Duration>) -> ReadFitness {
        match self.unfit(node, lag) {
            None => ReadFitness::Fit,
            Some(reason) => ReadFitness::Unfit { reason },
        }
    }

    fn unfit(&self, node: &Node, lag: Option<Duration>) -> Option<String> {
        let state = self.nodes.get(&node.name)?;
        let Some(report) = &state.report else { return Some("it has not answered yet".to_owned()) };
        if self.journal.is_none() {
            return Some("no primary is known whose data it should have".to_owned());
        }
        match self.observed_role(&node.name) {
            ObservedRole::Replica => {}
            ObservedRole::Primary => return Some("it is the primary".to_owned()),
            ObservedRole::StalePrimary => {
                return Some(
                    "it is a primary that the cluster does not follow: stop it, then pg_rewind or a base backup".to_owned(),
                );
            }
            ObservedRole::Foreign => return Some("it is of another cluster (system identifier)".to_owned()),
            ObservedRole::Unknown => return Some("its role is not known".to_owned()),
        }
        if let Some((kind, since)) = state.failing {
            let at_once = matches!(
                kind,
                PrimaryEvidence::Refused | PrimaryEvidence::Starting | PrimaryEvidence::ShuttingDown
            );
            let threshold = self.settings.failure_threshold;
            // Under suspicion it is asked more often than the threshold is meant for.
            let long = self.settings.interval * threshold.saturating_sub(1);
            let by_threshold = state.failures >= threshold && self.now >= since + long;
            // Who was out stays out until it answers well: another failure than before says nothing better of it.
            if at_once || by_threshold || !self.was_fit(&node.name) {
                let failure = state.failure().map(ToString::to_string).unwrap_or_default();
                return Some(format!("it does not answer: {failure}"));
            }
        }
        if let Some(doubt) = self.doubtful(&node.name, report) {
            return Some(doubt);
        }
        if let Some(upstream) = self.misled(report) {
            return Some(format!("it follows {upstream}, which does not follow the primary"));
        }
        self.stale(&node.name, lag)
    }

    /// Whom a standby on an earlier timeline takes its WAL from, or is about to, if that does not follow the primary: before
    /// the next look it may have got past where the present timeline began.
    fn misled(&self, report: &NodeReport) -> Option<NodeName> {
        let (primary, course) = self.course()?;
        if report.timeline >= course.timeline {
            return None;
        }
        let streams = report
            .streaming_receiver()
            .and_then(|receiver| self.node_at(&receiver.sender_host, receiver.sender_port));
        let mut upstreams = [streams, self.configured_upstream(report)].into_iter().flatten();
        upstreams.find(|upstream| *upstream != primary && !self.in_good_order(upstream, &primary, course))
    }

    /// Why a standby of the right history is too old to read from.
    fn stale(&self, name: &NodeName, lag: Option<Duration>) -> Option<String> {
        // Without a primary nothing is written that a standby could lack more than it did.
        let serving = matches!(self.phase, Phase::Steady { .. } | Phase::Paused { .. });
        if !serving && self.was_fit(name) {
            return None;
        }
        let state = self.nodes.get(name)?;
        let asked: Tick = state.answer.as_ref().map_or(self.now, |answer| answer.sent);
        let Some(streamed) = state.streamed else {
            return Some("it has not been seen streaming".to_owned());
        };
        let alone = asked.since(streamed.max(self.well_since));
        let limit = self.settings.max_lag;
        if !alone.is_zero() && alone > limit.unwrap_or(STALE_AFTER) {
            return Some(format!("it receives nothing since {}s", alone.as_secs()));
        }
        match (lag, limit) {
            (Some(lag), Some(limit)) if lag > limit => Some(format!(
                "its replay is {}s behind, more than max_lag ({}s)",
                lag.as_secs(),
                limit.as_secs()
            )),
            _ => None,
        }
    }

    fn was_fit(&self, name: &NodeName) -> bool {
        self.view().node(name.as_str()).is_some_and(|node| node.reads == ReadFitness::Fit)
    }

    /// How far a standby's replay is behind in time.
    pub(super) fn replay_lag(&self, name: &NodeName) -> Option<Duration> {
        match &self.nodes.get(name)?.report.as_ref()?.role {
            ReportedRole::Standby { replay_lag, .. } => *replay_lag,
            ReportedRole::Primary { .. } => None,
        }
    }
}
