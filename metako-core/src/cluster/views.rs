//! The view that the data plane reads, and the decisions that a change of it is.

use super::{
    ClusterView, Controller, DecisionKind, Health, NodeView, ObservedRole, Phase, ReadFitness, SyncRule,
    Writes,
};
use crate::config::Node;
use crate::plugin::NodeReport;
use crate::{Lsn, NodeName};

impl Controller {
    pub(super) fn build_view(&self) -> ClusterView {
        let writes = self.writes();
        ClusterView {
            version: 0,
            epoch: self.epoch,
            phase: self.phase.clone(),
            writes,
            nodes: self.settings.nodes.iter().map(|node| self.node_view(node)).collect(),
            synchronous: self.journal.as_ref().map_or(SyncRule::Async, |journal| journal.sync.clone()),
            survival: self.survival(),
        }
    }

    /// Whether clients that write wait.
    pub(super) fn holds_writes(&self) -> bool {
        matches!(self.writes(), Writes::Held { .. })
    }

    fn writes(&self) -> Writes {
        let held = |reason: String| Writes::Held { reason };
        let open_unless = |why: Option<&str>, primary: &NodeName| match why {
            None => Writes::Open { primary: primary.clone() },
            Some(why) => held(why.to_owned()),
        };
        let stuck = |usual: String| held(self.stuck.clone().unwrap_or(usual));
        match &self.phase {
            Phase::Steady { primary } => open_unless(self.gated(), primary),
            Phase::Paused { primary } => open_unless(self.stuck.as_deref().or_else(|| self.gated()), primary),
            Phase::Suspect { primary, reason, .. } => {
                let unsure = (!self.confirmed || self.away).then_some(reason.as_str());
                open_unless(self.stuck.as_deref().or(unsure).or_else(|| self.gated()), primary)
            }
            Phase::Discovering { reason } | Phase::ManualNeeded { reason, .. } => held(reason.clone()),
            Phase::Draining { old, to, .. } => {
                stuck(format!("{to} is to follow {old}: open transactions come to their end"))
            }
            Phase::Stopping { old, .. } => stuck(format!("{old} is being stopped for a switchover")),
            Phase::Fencing { old, .. } => stuck(format!("{old} failed and is being fenced")),
            Phase::Freezing { old, .. }
                if self.failover.as_ref().is_some_and(|failover| failover.planned) =>
            {
                stuck(format!("{old} is stopped for a switchover; standbys are being frozen"))
            }
            Phase::Freezing { old, .. } => stuck(format!("{old} failed; standbys are being frozen")),
            Phase::Promoting { candidate, .. } => stuck(format!("{candidate} is being promoted")),
            Phase::Verifying { candidate, .. } => {
                stuck(format!("{candidate} is promoted; its first commit is awaited"))
            }
        }
    }

    fn node_view(&self, node: &Node) -> NodeView {
        let state = self.nodes.get(&node.name);
        let report = state.and_then(|state| state.report.as_ref());
        let lag = self.replay_lag(&node.name);
        let replayed = report.and_then(NodeReport::replayed);
        let receiver = self.report(&node.name).and_then(|report| report.streaming_receiver());
        NodeView {
            name: node.name.clone(),
            health: self.health(&node.name),
            role: self.observed_role(&node.name),
            reads: self.read_fitness(node, lag),
            vouched: self.vouched(&node.name),
            timeline: report.map(|report| report.timeline),
            position: report.and_then(NodeReport::position),
            lag,
            lag_bytes: replayed
                .and_then(|replayed| Some(self.primary_position()?.0.saturating_sub(replayed.0))),
            latency: report.map(|report| report.latency),
            version: report.map(|report| report.version),
            upstream: receiver.and_then(|receiver| self.node_at(&receiver.sender_host, receiver.sender_port)),
            weight: node.weight,
            zone: node.zone.clone(),
        }
    }

    fn primary_position(&self) -> Option<Lsn> {
        let report = self.nodes.get(self.phase_primary()?)?.report.as_ref()?;
        if report.is_primary() { report.position() } else { None }
    }

    /// Writes down what changed from one view to the next.
    pub(super) fn record_changes(&mut self, before: &ClusterView, after: &ClusterView) {
        for node in &after.nodes {
            let name = &node.name;
            let former = before.node(name.as_str());
            let changed = |what: fn(&NodeView) -> String| {
                let now = what(node);
                former.is_none_or(|former| what(former) != now).then_some(now)
            };
            if let Some(health) =
                changed(|node| health_words(&node.health)).filter(|_| node.health != Health::Unknown)
            {
                self.record(DecisionKind::NodeHealth, Some(name), format!("{name} is {health}"));
            }
            if let Some(role) = changed(|node| role_words(node.role).to_owned())
                .filter(|_| node.role != ObservedRole::Unknown)
            {
                let kind = match node.role {
                    ObservedRole::StalePrimary | ObservedRole::Foreign => DecisionKind::Refused,
                    _ => DecisionKind::NodeRole,
                };
                let role = if self.observes() && node.role == ObservedRole::StalePrimary {
                    "a primary that is not followed: it gets no traffic".to_owned()
                } else {
                    role
                };
                self.record(kind, Some(name), format!("{name} is {role}"));
            }
            let fit = |node: &NodeView| node.reads == ReadFitness::Fit;
            let was = former.is_some_and(fit);
            match &node.reads {
                ReadFitness::Fit if !was => {
                    self.record(DecisionKind::ReadPool, Some(name), format!("{name} serves reads"));
                }
                ReadFitness::Unfit { reason } if was => {
                    self.record(
                        DecisionKind::ReadPool,
                        Some(name),
                        format!("{name} serves no reads: {reason}"),
                    );
                }
                _ => {}
            }
        }
        self.record_gone(before, after);
    }

    fn record_gone(&mut self, before: &ClusterView, after: &ClusterView) {
        let gone: Vec<NodeName> = before
            .nodes
            .iter()
            .filter(|node| after.node(node.name.as_str()).is_none())
            .map(|node| node.name.clone())
            .collect();
        for name in gone {
            self.record(
                DecisionKind::ReadPool,
                Some(&name),
                format!("{name} left the configuration and serves nothing"),
            );
        }
    }
}

fn health_words(health: &Health) -> String {
    match health {
        Health::Unknown => "unknown".to_owned(),
        Health::Up => "up: it answers".to_owned(),
        Health::Unseen { reason } => format!("unseen: {reason}"),
        Health::Down { reason } => format!("down: {reason}"),
    }
}

fn role_words(role: ObservedRole) -> &'static str {
    match role {
        ObservedRole::Unknown => "of unknown role",
        ObservedRole::Primary => "the primary",
        ObservedRole::Replica => "a replica",
        ObservedRole::StalePrimary => {
            "a primary that the cluster does not follow: it gets no traffic; stop it, then pg_rewind or a base backup"
        }
        ObservedRole::Foreign => "of another cluster (its system identifier differs): it gets no traffic",
    }
}
