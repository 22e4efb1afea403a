//! A new configuration while the cluster runs.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::node::NodeState;
use super::{Controller, DecisionKind, JournalPhase, Phase};
use crate::NodeName;
use crate::config::{ClusterSettings, FailoverMode};
use crate::plugin::Policy;

impl Controller {
    pub(super) fn on_reconfigured(&mut self, settings: Arc<ClusterSettings>, policy: Policy) {
        self.waiting = Some((settings, policy));
        self.rejoins.clear();
        self.apply_settings_if_settled();
        if self.waiting.is_some() {
            let reason = "the new configuration waits until the present step is done".to_owned();
            self.record(DecisionKind::Reconfigured, None, reason);
        }
    }

    /// Takes the configuration that waits, if one does, unless something is under way.
    pub(super) fn apply_settings_if_settled(&mut self) {
        let settled = matches!(
            self.phase,
            Phase::Discovering { .. }
                | Phase::Steady { .. }
                | Phase::Paused { .. }
                | Phase::Suspect { .. }
                | Phase::ManualNeeded { .. }
        );
        if settled && self.writing.is_none() && self.failover.is_none() {
            self.apply_waiting_settings();
        }
    }

    /// Takes the configuration that waited for a quiet moment, if one did.
    pub(super) fn apply_waiting_settings(&mut self) {
        let Some((settings, policy)) = self.waiting.take() else { return };
        let primary = self.phase_primary().cloned();
        if let Some(refusal) = self.refuse_settings(&settings, primary.as_ref()) {
            let reason = format!("the new configuration is refused, the present one stays: {refusal}");
            return self.record(DecisionKind::Reconfigured, primary.as_ref(), reason);
        }
        let mut changes = Vec::new();
        let gone: Vec<NodeName> =
            self.nodes.keys().filter(|name| settings.node(name.as_str()).is_none()).cloned().collect();
        for name in gone {
            self.nodes.remove(&name);
            changes.push(format!("{name} is removed"));
        }
        for node in &settings.nodes {
            let former = self.settings.node(node.name.as_str());
            let moved = former.is_some_and(|former| (&former.host, former.port) != (&node.host, node.port));
            if former.is_none() || moved {
                let what =
                    if moved { "has a new address and is asked anew" } else { "is added and is asked" };
                changes.push(format!("{} {what}", node.name));
                self.nodes.insert(node.name.clone(), NodeState::default());
            }
        }
        let automatic = settings.failover.mode != FailoverMode::Manual;
        let follows = settings.failover.mode == FailoverMode::Observe && !self.observes();
        if follows {
            self.forced = None;
            // Somebody may have been promoted in place of a primary that is not well now, unless a person just said who it is.
            let steady = matches!(self.phase, Phase::Steady { .. });
            self.away |= self.journal.is_some() && !steady && self.replaced.is_empty();
        }
        self.settings = settings;
        self.policy = policy;
        self.surveyed = None;
        self.slots.clear();
        let changes =
            if changes.is_empty() { "the nodes are the same".to_owned() } else { changes.join(", ") };
        self.record(
            DecisionKind::Reconfigured,
            None,
            format!("the new configuration is in force: {changes}"),
        );
        let known = self.journal.as_ref().is_some_and(|journal| {
            journal.cluster == self.settings.name
                && journal.phase == JournalPhase::Steady
                && self.node(&journal.primary).is_some()
        });
        let unsure = match &self.phase {
            Phase::Paused { .. } => follows,
            Phase::ManualNeeded { primary: None, .. } => follows && known,
            Phase::ManualNeeded { primary: Some(_), .. } => automatic,
            _ => false,
        };
        if unsure {
            self.doubt();
        }
    }

    /// Puts other settings and another policy in the place of the present ones, as if it had always worked with them: for
    /// replays that ask what would have happened.
    ///
    /// # Errors
    /// If the cluster, or the names of its nodes, are others.
    pub fn replace(&mut self, settings: Arc<ClusterSettings>, policy: Policy) -> Result<(), String> {
        let names = |settings: &ClusterSettings| -> BTreeSet<NodeName> {
            settings.nodes.iter().map(|node| node.name.clone()).collect()
        };
        if settings.name != self.settings.name {
            return Err(format!("`cluster` is {} and not {}", settings.name, self.settings.name));
        }
        let (have, want) = (names(&settings), names(&self.settings));
        if have != want {
            let list =
                |names: BTreeSet<NodeName>| names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
            return Err(format!("`nodes` are {} and not {}", list(have), list(want)));
        }
        self.settings = settings;
        self.policy = policy;
        self.waiting = None;
        Ok(())
    }

    fn refuse_settings(&self, settings: &ClusterSettings, primary: Option<&NodeName>) -> Option<String> {
        if settings.name != self.settings.name && self.journal.is_some() {
            return Some(format!(
                "`cluster` would change from {} to {}; restart with another state directory for that",
                self.settings.name, settings.name
            ));
        }
        let missing = |name: &NodeName| settings.node(name.as_str()).is_none();
        let holder = self.journal.as_ref().map(|journal| &journal.primary);
        let primary = primary.or(holder).filter(|name| missing(name))?;
        Some(format!("{primary} is the primary and cannot be removed; make another node primary first"))
    }
}
