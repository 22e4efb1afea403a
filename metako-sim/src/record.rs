//! The incident record of a run, as the proxy would have written it. The wall clock of the simulated world begins in 1970.

use std::collections::BTreeSet;
use std::time::Duration;

use metako_core::Tick;
use metako_core::cluster::{Action, Controller, Event};
use metako_core::record::{Cause, Scribe, Snapshot, Step};

/// Keeps the record.
pub(crate) struct Keeper {
    scribe: Scribe,
    text: String,
    snapshots: BTreeSet<u64>,
    steps: u64,
}

impl Keeper {
    pub(crate) fn new(snapshots: BTreeSet<u64>) -> Self {
        let scribe = Scribe::new(concat!("metako-sim ", env!("CARGO_PKG_VERSION")), 1);
        Self { scribe, text: String::new(), snapshots, steps: 0 }
    }

    pub(crate) fn text(self) -> String {
        self.text
    }

    /// The proxy has started.
    pub(crate) fn starts(&mut self, now: Tick, controller: &Controller) {
        self.begin(now, Cause::Start, controller);
    }

    /// As [`Controller::handle`].
    pub(crate) fn handle(
        &mut self,
        controller: &mut Controller,
        now: Tick,
        event: Event,
        actions: &mut Vec<Action>,
    ) {
        if self.snapshots.contains(&self.steps) {
            self.begin(now, Cause::GoesOn, controller);
        }
        self.steps += 1;
        let step = Step::take(controller, wall_clock(now), now, event, actions);
        self.scribe.step(&step, &mut self.text);
    }

    fn begin(&mut self, now: Tick, cause: Cause, controller: &Controller) {
        let controller = Box::new(controller.clone());
        self.scribe.begin(&Snapshot { at: wall_clock(now), now, cause, lost: 0, controller }, &mut self.text);
    }
}

fn wall_clock(now: Tick) -> Duration {
    now.since(Tick::ZERO)
}
