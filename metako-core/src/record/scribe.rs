//! Writing the record: what happened, as text.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::line::{Begin, Cause, What};
use super::mask::mask;
use super::{VERSION, timestamp};
use crate::cluster::{Action, ClusterView, Controller, Event, Phase, Writes};
use crate::{Epoch, Tick};

/// One call of [`Controller::handle`].
#[derive(Clone)]
pub struct Step {
    /// The wall clock, as the time since 1970.
    pub at: Duration,
    /// The time that the controller was given.
    pub now: Tick,
    /// What it was told.
    pub event: Event,
    /// What it answered, in order.
    pub actions: Vec<Action>,
}

impl Step {
    /// Hands an event to the controller, as [`Controller::handle`], and keeps both. Costs a copy of event and actions.
    pub fn take(
        controller: &mut Controller,
        at: Duration,
        now: Tick,
        event: Event,
        actions: &mut Vec<Action>,
    ) -> Self {
        let (told, first) = (event.clone(), actions.len());
        controller.handle(now, event, actions);
        Self { at, now, event: told, actions: actions[first..].to_vec() }
    }
}

/// The state of a controller between two calls.
#[derive(Clone)]
pub struct Snapshot {
    /// The wall clock, as the time since 1970.
    pub at: Duration,
    /// The controller's clock.
    pub now: Tick,
    /// Why it is written down.
    pub cause: Cause,
    /// So many steps since the last one that was written down are lost.
    pub lost: u64,
    /// The controller.
    pub controller: Box<Controller>,
}

/// Makes the text of a record.
pub struct Scribe {
    program: String,
    next: u64,
    shown: Shown,
}

/// What was written down of the last view.
#[derive(Default)]
pub struct Shown(Option<(Epoch, Phase, Writes)>);

impl Scribe {
    /// One that numbers its next line `next`, for `program` (name and version).
    pub fn new(program: &str, next: u64) -> Self {
        Self { program: program.to_owned(), next, shown: Shown::default() }
    }

    /// The number of the next line.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Appends the line of a snapshot. Allocates; takes as long as the state is large (some 10 kB of text).
    pub fn begin(&mut self, snapshot: &Snapshot, text: &mut String) {
        let Snapshot { at, now, cause, lost, controller } = snapshot;
        self.shown = Shown::of(&controller.view());
        let begin = Begin {
            cause: *cause,
            lost: *lost,
            program: self.program.clone(),
            controller: state(controller),
        };
        self.line(&timestamp(*at), *now, &What::Begin(begin), text);
    }

    /// Appends the lines of a step. Allocates.
    pub fn step(&mut self, step: &Step, text: &mut String) {
        let Step { at, now, event, actions } = step;
        let at = timestamp(*at);
        self.line(&at, *now, &What::In(written(event)), text);
        for answer in self.shown.answers(actions) {
            self.line(&at, *now, &answer, text);
        }
    }

    fn line(&mut self, at: &str, now: Tick, what: &What, text: &mut String) {
        #[derive(Serialize)]
        struct Written<'a> {
            v: u64,
            seq: u64,
            at: &'a str,
            now: Tick,
            #[serde(flatten)]
            what: &'a What,
        }
        let line = Written { v: VERSION, seq: self.next, at, now, what };
        self.next += 1;
        text.push_str(&serde_json::to_string(&line).expect("a line has only text keys"));
        text.push('\n');
    }
}

impl Shown {
    /// After a view was written down, or was part of a snapshot.
    pub fn of(view: &ClusterView) -> Self {
        Self(Some((view.epoch, view.phase.clone(), view.writes.clone())))
    }

    /// The `out` and `why` lines of what a controller answered, in order. Allocates.
    pub fn answers(&mut self, actions: &[Action]) -> Vec<What> {
        actions
            .iter()
            .filter_map(|action| match action {
                Action::Record { decision } => Some(What::Why(written(decision))),
                Action::Publish { view } => self.view(view).map(What::Out),
                action => Some(What::Out(written(action))),
            })
            .collect()
    }

    fn view(&mut self, view: &ClusterView) -> Option<Value> {
        let known = self.0.as_ref().is_some_and(|(epoch, phase, writes)| {
            (epoch, phase, writes) == (&view.epoch, &view.phase, &view.writes)
        });
        if known {
            return None;
        }
        *self = Self::of(view);
        let ClusterView { version, epoch, phase, writes, nodes: _, synchronous: _, survival: _ } = view;
        Some(json!({ "publish": { "version": version, "epoch": epoch, "phase": phase, "writes": writes } }))
    }
}

/// The whole state of a controller as a record holds it, masked.
pub fn state(controller: &Controller) -> Value {
    written(controller)
}

fn written(what: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(what).expect("what a record holds has only text keys");
    mask(&mut value);
    value
}
