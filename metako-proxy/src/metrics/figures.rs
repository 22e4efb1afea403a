//! What has happened since the start, counted where the controller is driven.

use std::collections::BTreeMap;
use std::time::Duration;

use metako_core::cluster::{
    Action, ActionFailure, ActionId, ActionOutcome, ClusterView, DecisionKind, Event, Phase, Writes,
};
use metako_core::{NodeName, Tick};
use parking_lot::Mutex;

/// Counts what the controller is told and what it asks for. Locks for a moment; nothing of it is on the way of clients.
#[derive(Debug)]
pub struct Figures {
    counts: Mutex<Counts>,
}

/// The figures at one moment.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    /// By the node that was asked, and what came of it.
    pub(super) probes: BTreeMap<(NodeName, &'static str), u64>,
    /// By what was done, and what came of it.
    pub(super) actions: BTreeMap<(&'static str, &'static str), u64>,
    pub(super) decisions: BTreeMap<DecisionKind, u64>,
    pub(super) failovers: u64,
    pub(super) switchovers: u64,
    pub(super) holds: Holds,
    phase: &'static str,
    /// The change of primary that is under way is a switchover.
    planned: bool,
    running: BTreeMap<ActionId, &'static str>,
}

/// When writes were held.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holds {
    /// Since when they are, if they are.
    pub(super) since: Option<Tick>,
    /// How often they were, the present time included.
    pub(super) count: u64,
    /// How long those that are over took.
    pub(super) over: Duration,
    /// How long the last that is over took.
    pub(super) last: Duration,
}

impl Holds {
    /// How long they have been held this time.
    pub(super) fn present(&self, now: Tick) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.since(since))
    }
}

impl Figures {
    /// Begins to count at the time `now`. Writes are held from the start on, until a view opens them.
    pub fn new(now: Tick) -> Self {
        let counts = Counts {
            probes: BTreeMap::new(),
            actions: BTreeMap::new(),
            decisions: BTreeMap::new(),
            failovers: 0,
            switchovers: 0,
            holds: Holds { since: Some(now), count: 1, over: Duration::ZERO, last: Duration::ZERO },
            phase: "discovering",
            planned: false,
            running: BTreeMap::new(),
        };
        Self { counts: Mutex::new(counts) }
    }

    /// The controller is told this.
    pub fn told(&self, event: &Event) {
        match event {
            Event::Probed { node, result, .. } => {
                let result = result.as_ref().map_or_else(metako_core::plugin::ProbeFailure::name, |_| "ok");
                *self.counts.lock().probes.entry((node.clone(), result)).or_default() += 1;
            }
            Event::Done { id, outcome } => {
                let mut counts = self.counts.lock();
                let result = match outcome {
                    Ok(ActionOutcome::Done) => "done",
                    Ok(ActionOutcome::Declined) => "declined",
                    Err(ActionFailure::Failed(_)) => "failed",
                    Err(ActionFailure::Unknown(_)) => "unknown",
                };
                if let Some(action) = counts.running.remove(id) {
                    *counts.actions.entry((action, result)).or_default() += 1;
                }
            }
            Event::Timer
            | Event::ServerLost { .. }
            | Event::Reconfigured { .. }
            | Event::Operator(_)
            | Event::Stopping => {}
        }
    }

    /// The controller asks for this, at the time `now`.
    pub fn asked(&self, now: Tick, action: &Action) {
        let mut counts = self.counts.lock();
        if let Some(id) = action.id() {
            counts.running.insert(id, action.name());
        }
        match action {
            Action::Record { decision } => *counts.decisions.entry(decision.kind).or_default() += 1,
            Action::Publish { view } => counts.published(now, view),
            _ => {}
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts.lock().clone()
    }
}

impl Counts {
    fn published(&mut self, now: Tick, view: &ClusterView) {
        match (&view.writes, self.holds.since) {
            (Writes::Held { .. }, None) => {
                self.holds.since = Some(now);
                self.holds.count += 1;
            }
            (Writes::Open { .. }, Some(since)) => {
                self.holds.last = now.since(since);
                self.holds.over += self.holds.last;
                self.holds.since = None;
            }
            (Writes::Held { .. }, Some(_)) | (Writes::Open { .. }, None) => {}
        }
        match &view.phase {
            Phase::Stopping { .. } => self.planned = true,
            Phase::Fencing { .. } => self.planned = false,
            Phase::Steady { .. } | Phase::Paused { .. } if self.phase == "verifying" => {
                let changes = if self.planned { &mut self.switchovers } else { &mut self.failovers };
                *changes += 1;
                self.planned = false;
            }
            _ => {}
        }
        self.phase = view.phase.name();
        self.probes.retain(|(node, _), _| view.node(node.as_str()).is_some());
    }
}

#[cfg(test)]
mod tests;
