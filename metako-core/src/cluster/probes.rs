//! When nodes are probed, and what is learned from the answers.

use std::time::Duration;

use super::node::{Moment, NodeState};
use super::{Action, Controller, Phase, ProbeId};
use crate::plugin::{NodeReport, ProbeFailure};
use crate::{NodeName, Tick};

/// Between probes while something is undecided.
const SUSPECT_INTERVAL: Duration = Duration::from_millis(50);
/// Between probes while a person or a missing node is awaited.
const WAITING_INTERVAL: Duration = Duration::from_millis(500);
/// What a driver may take beyond the probe's time-out before the answer is counted as missing.
const SLACK: Duration = Duration::from_millis(250);

impl Controller {
    /// Takes the answer to a probe; an answer to any but the outstanding one is ignored.
    pub(super) fn on_probed(
        &mut self,
        id: ProbeId,
        node: &NodeName,
        result: Result<NodeReport, ProbeFailure>,
    ) {
        let Some(state) = self.nodes.get_mut(node) else { return };
        match state.outstanding {
            Some((outstanding, sent)) if outstanding == id => state.learn(id, sent, result),
            _ => return,
        }
        if self.phase_primary() == Some(node) {
            self.on_primary_answer(node);
        }
    }

    /// A driver answers every probe; should one not, the probe has timed out.
    pub(super) fn expire_probes(&mut self) {
        let timeout = self.settings.timeout;
        let late = |sent: Tick| self.now >= sent + timeout + SLACK;
        let late: Vec<(ProbeId, NodeName)> = self
            .nodes
            .iter()
            .filter_map(|(name, state)| Some((state.outstanding?, name)))
            .filter(|((_, sent), _)| late(*sent))
            .map(|((id, _), name)| (id, name.clone()))
            .collect();
        for (id, node) in late {
            self.on_probed(id, &node, Err(ProbeFailure::TimedOut(timeout)));
        }
    }

    /// The data plane lost a connection: the primary is looked at, with its standbys, or the replica alone.
    pub(super) fn on_server_lost(&mut self, node: &NodeName) {
        if self.phase_primary() == Some(node) {
            self.looking.get_or_insert(Moment(self.next_probe));
        } else if let Some(state) = self.nodes.get_mut(node) {
            state.urgent = true;
        }
    }

    pub(super) fn schedule_probes(&mut self) {
        let due: Vec<NodeName> = self
            .nodes
            .iter()
            .filter(|(_, state)| state.outstanding.is_none() && self.now >= self.probe_due(state))
            .map(|(name, _)| name.clone())
            .collect();
        for node in due {
            self.next_probe += 1;
            let id = ProbeId(self.next_probe);
            if let Some(state) = self.nodes.get_mut(&node) {
                state.outstanding = Some((id, self.now));
                state.asked = Some(self.now);
                state.urgent = false;
            }
            self.emit(Action::Probe { id, node, timeout: self.settings.timeout });
        }
    }

    /// When something is to be done about probes: one is late, or one is to be asked for.
    pub(super) fn next_probe_due(&self) -> Option<Tick> {
        let due = |state: &NodeState| match state.outstanding {
            Some((_, sent)) => sent + self.settings.timeout + SLACK,
            None => self.probe_due(state),
        };
        self.nodes.values().map(due).min()
    }

    fn probe_due(&self, state: &NodeState) -> Tick {
        let interval = self.probe_interval();
        // However many connections break, a node is asked no more often than under suspicion.
        let interval = if state.urgent { interval.min(SUSPECT_INTERVAL) } else { interval };
        state.asked.map_or(self.now, |asked| asked + interval)
    }

    fn probe_interval(&self) -> Duration {
        let calm = self.settings.interval;
        match &self.phase {
            Phase::Steady { .. } | Phase::Paused { .. } if self.gate.is_some() => calm.min(SUSPECT_INTERVAL),
            Phase::Steady { .. } if self.looking.is_none() => {
                if self.sync_step.is_none() {
                    calm
                } else {
                    calm.min(WAITING_INTERVAL)
                }
            }
            Phase::Paused { .. } => calm,
            Phase::Discovering { .. } | Phase::ManualNeeded { .. } => calm.min(WAITING_INTERVAL),
            _ => calm.min(SUSPECT_INTERVAL),
        }
    }
}
