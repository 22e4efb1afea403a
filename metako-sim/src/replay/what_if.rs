//! What would have been decided with another configuration: the record's events, handed to a controller that has it.
//!
//! Up to the first action that is not the recorded one the answer is exact. After that the world would have gone another
//! way than the recorded one: the same answers are handed over still, to the questions that they fit best, and what comes
//! of it is an indication.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use metako_core::cluster::{Action, ActionId, Controller, Event, ProbeId};
use metako_core::config::Config;
use metako_core::plugin::{NodeReport, Policy, ProbeFailure};
use metako_core::record::{Shown, What};
use metako_core::{NodeName, Tick};
use serde_json::Value;

use super::difference::{FieldDifference, of_answers};
use super::read::{Beginning, Part, Place, Recorded, ReplayError, Source, Told, read};
use super::{Decided, decisions, handle};

/// Timers of its own that may run out between two recorded events.
const TIMERS_MAX: usize = 10_000;

/// What another configuration would have decided.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WhatIf {
    /// What was decided.
    pub recorded: Vec<Decided>,
    /// What would have been. The wall clock is that of the last recorded event.
    pub other: Vec<Decided>,
    /// Where the actions part; none if they never do.
    pub parted: Option<Parted>,
    /// Actions after that to which the record has no answer.
    pub unanswered: Vec<String>,
    /// What else a person should know.
    pub notes: Vec<String>,
}

/// The first actions that are not the recorded ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Parted {
    /// The number of the event's line.
    pub seq: u64,
    /// When it was recorded.
    pub at: String,
    /// By the controller's clock.
    pub now: Tick,
    /// The event.
    pub event: Value,
    /// What was asked for.
    pub recorded: Vec<What>,
    /// What would have been.
    pub other: Vec<What>,
    /// Where the first pair that is not the same differs.
    pub fields: Vec<FieldDifference>,
}

/// Asks what would have been decided with the settings and the policy of another configuration. Blocks.
///
/// # Errors
/// A file that is no record, with the line; or a configuration of other nodes.
pub fn what_if(sources: &[Source], config: &Config) -> Result<WhatIf, ReplayError> {
    let Recorded { parts, notes, .. } = read(sources)?;
    let policy = Policy::build(Arc::clone(&config.strategies.policy))
        .map_err(|problem| ReplayError::Config(format!("failover.policy: {problem}")))?;
    let mut other = Other {
        config,
        policy,
        controller: None,
        shown: Shown::default(),
        last: (0, String::new()),
        theirs: BTreeMap::new(),
        mine: BTreeMap::new(),
        probes: BTreeMap::new(),
        heard: BTreeMap::new(),
        found: WhatIf { notes, ..WhatIf::default() },
    };
    for part in parts {
        let goes_on = match part {
            Part::Begin(begin) => other.begin(*begin)?,
            Part::Step(step) => other.step(*step)?,
        };
        if !goes_on {
            break;
        }
    }
    if other.found.parted.is_some() {
        other.found.unanswered = other.mine.into_keys().collect();
    }
    Ok(other.found)
}

struct Other<'a> {
    config: &'a Config,
    policy: Policy,
    controller: Option<Controller>,
    shown: Shown,
    last: (u64, String),
    /// What was asked for in the record, by the number that its answer will carry.
    theirs: BTreeMap<ActionId, String>,
    /// What this controller asked for and has no answer to, with the number that it expects.
    mine: BTreeMap<String, ActionId>,
    /// Its probes that have no answer, with the time at which they were asked for.
    probes: BTreeMap<NodeName, (ProbeId, Tick)>,
    /// What each node answered last in the record.
    heard: BTreeMap<NodeName, Result<NodeReport, ProbeFailure>>,
    found: WhatIf,
}

impl Other<'_> {
    /// Tells whether it makes sense to go on.
    fn begin(&mut self, begin: Beginning) -> Result<bool, ReplayError> {
        let continues = self.controller.is_some() && begin.continues(self.last.0);
        self.last = (begin.seq, begin.at.clone());
        if continues {
            return Ok(true);
        }
        if self.found.parted.is_some() {
            let note = "the record goes on with another state from here on: what would have been is not followed beyond it";
            self.found.notes.push(format!("line {} of {}: {note}", begin.place.line, begin.place.file));
            return Ok(false);
        }
        let mut controller = begin.controller;
        controller
            .replace(Arc::clone(&self.config.cluster), self.policy.clone())
            .map_err(ReplayError::Config)?;
        self.shown = Shown::of(&controller.view());
        self.controller = Some(controller);
        self.theirs.clear();
        self.mine.clear();
        self.probes.clear();
        self.heard.clear();
        Ok(true)
    }

    fn step(&mut self, step: Told) -> Result<bool, ReplayError> {
        let Told { place, seq, at, now, event, written, answers, last_seq, may_lack: _ } = step;
        let told = |decision| Decided { at: at.clone(), now, decision };
        self.found.recorded.extend(decisions(&answers).map(told));
        let parted = self.found.parted.is_some();
        if parted {
            self.catch_up(&place, &at, now)?;
        }
        let others = match self.fitting(&place, event, parted) {
            Some(event) => self.tell(&place, &at, now, event)?,
            None => Vec::new(),
        };
        self.theirs.extend(answers.iter().filter_map(asked).map(|(question, id)| (id, question)));
        let actions = |answers: &[What]| -> Vec<What> {
            answers.iter().filter(|answer| matches!(answer, What::Out(_))).cloned().collect()
        };
        let (recorded, other) = (actions(&answers), actions(&others));
        if self.found.parted.is_none() && recorded != other {
            let fields = of_answers(&recorded, &other);
            self.found.parted =
                Some(Parted { seq, at: at.clone(), now, event: written, recorded, other, fields });
        }
        self.last = (last_seq, at);
        Ok(true)
    }

    /// Once the ways have parted its own timers run out between what was recorded. A probe that would go without an answer
    /// because it was asked for at another time than the recorded one gets the last that the node gave.
    fn catch_up(&mut self, place: &Place, at: &str, until: Tick) -> Result<(), ReplayError> {
        for _ in 0..TIMERS_MAX {
            let timeout = self.config.cluster.timeout;
            let late = self.probes.iter().filter(|(node, _)| self.heard.contains_key(*node));
            let late = late.map(|(node, (_, sent))| (*sent + timeout, node.clone())).min();
            let due = self.controller.as_ref().and_then(Controller::poll_timeout);
            let late = late.filter(|(answered, _)| due.is_none_or(|due| *answered <= due));
            let Some(next) =
                late.as_ref().map(|(answered, _)| *answered).or(due).filter(|next| *next < until)
            else {
                return Ok(());
            };
            let heard = late.and_then(|(_, node)| {
                let ((id, sent), result) = (self.probes.remove(&node)?, self.heard.get(&node)?.clone());
                Some(Event::Probed { id, node, sent, result })
            });
            self.tell(place, at, next, heard.unwrap_or(Event::Timer))?;
        }
        Ok(())
    }

    fn tell(&mut self, place: &Place, at: &str, now: Tick, event: Event) -> Result<Vec<What>, ReplayError> {
        let Some(controller) = &mut self.controller else {
            return Err(place.error("follows no `begin` line"));
        };
        let actions = handle(controller, place, now, event)?;
        let answers = self.shown.answers(&actions);
        self.mine.extend(answers.iter().filter_map(asked));
        for action in actions {
            match action {
                Action::Probe { id, node, timeout: _ } => {
                    self.probes.insert(node, (id, now));
                }
                Action::Record { decision } => {
                    self.found.other.push(Decided { at: at.to_owned(), now, decision });
                }
                _ => {}
            }
        }
        Ok(answers)
    }

    /// The event as this controller would be told it; once the ways have parted, as an answer to what it asked, if it is one.
    fn fitting(&mut self, place: &Place, event: Event, parted: bool) -> Option<Event> {
        match event {
            Event::Reconfigured { .. } => {
                self.found.notes.push(format!(
                    "line {} of {}: a reload was recorded, and is not followed",
                    place.line, place.file
                ));
                Some(Event::Timer)
            }
            // It has its own.
            Event::Timer => (!parted).then_some(Event::Timer),
            Event::Probed { id, node, sent, result } => {
                self.heard.insert(node.clone(), result.clone());
                let asked = match self.probes.entry(node.clone()) {
                    Entry::Occupied(asked) if parted || asked.get().0 == id => Some(asked.remove().0),
                    _ => None,
                };
                let id = if parted { asked? } else { id };
                Some(Event::Probed { id, node, sent, result })
            }
            Event::Done { id, outcome } => {
                let mine = self.theirs.remove(&id).and_then(|question| self.mine.remove(&question));
                let id = if parted { mine? } else { id };
                Some(Event::Done { id, outcome })
            }
            event => Some(event),
        }
    }
}

/// What an action other than a probe asks for, in words that are the same for the same question, and the number that its
/// answer carries.
fn asked(answer: &What) -> Option<(String, ActionId)> {
    let What::Out(Value::Object(action)) = answer else { return None };
    let (kind, fields) = action.iter().next().filter(|(kind, _)| *kind != "probe")?;
    let number = fields.get("id")?.as_u64()?;
    let node = [fields.get("node"), fields.pointer("/promotion/node"), fields.pointer("/call/node")];
    let node = node.into_iter().flatten().find_map(Value::as_str).unwrap_or_default();
    Some((format!("{kind} {node}").trim_end().to_owned(), ActionId(number)))
}
