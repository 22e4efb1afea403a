//! Plays an incident record again: hands the controller what it was told then, at the times at which it was told, and compares
//! what it answers with what it answered.
//!
//! [`replay`] asks whether this program decides as the recorded one did. [`what_if`] asks what would have been decided with
//! another configuration.

mod difference;
mod read;
mod text;
mod what_if;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use metako_core::Tick;
use metako_core::cluster::{Action, Controller, Decision, Event};
use metako_core::plugin::panic_text;
use metako_core::record::{Cause, Shown, What, state};
use serde_json::Value;

pub use difference::{Difference, FieldDifference};
pub use read::{ReplayError, Source};
pub use what_if::{Parted, WhatIf, what_if};

pub(crate) use text::{human, json, what_if_human, what_if_json};

use read::{Beginning, Part, Place, Recorded, Told};

/// Events that are shown before a difference.
const BEFORE_MAX: usize = 5;

/// What a replay brought.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Replay {
    /// `cluster` of the configuration.
    pub cluster: String,
    /// The programs that wrote it.
    pub programs: Vec<String>,
    /// From when to when, by the wall clock.
    pub span: Option<(String, String)>,
    /// Controllers that started in it.
    pub starts: u64,
    /// Events that were handed over.
    pub events: u64,
    /// Actions that were the same.
    pub actions: u64,
    /// Decisions that were the same.
    pub decisions: Vec<Decided>,
    /// Where nothing is known.
    pub blind: Vec<Blind>,
    /// What else a person should know.
    pub notes: Vec<String>,
    /// A state was read of which this program does not know all: what followed may follow from the rest.
    pub state_lost: bool,
    /// A file could not be read.
    pub left_out: bool,
    /// The first difference: after it nothing was compared.
    pub difference: Option<Difference>,
}

impl Replay {
    /// Whether this program answers as the recorded one did, wherever that is known.
    pub fn is_equal(&self) -> bool {
        self.difference.is_none() && !self.state_lost && self.events > 0
    }

    /// Whether everything between the first and the last line is known.
    pub fn is_complete(&self) -> bool {
        self.blind.is_empty() && !self.left_out
    }
}

/// A decision, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// By the wall clock.
    pub at: String,
    /// By the controller's clock.
    pub now: Tick,
    /// The decision.
    pub decision: Decision,
}

/// A part that is missing in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blind {
    /// The number and time of the last line before it.
    pub from: (u64, String),
    /// Those of the first line after it.
    pub to: (u64, String),
    /// So many events are known to have been left out.
    pub lost: u64,
}

/// Plays a record again. The files may come in any order. Blocks; costs no more than the controller did.
///
/// # Errors
/// A file that is no record, with the line; where there are several, only if none is.
pub fn replay(sources: &[Source]) -> Result<Replay, ReplayError> {
    let Recorded { parts, notes, left_out } = read::read(sources)?;
    let mut player = Player { found: Replay { notes, left_out, ..Replay::default() }, ..Player::default() };
    for part in parts {
        match part {
            Part::Begin(begin) => player.begin(*begin),
            Part::Step(step) => player.step(*step)?,
        }
        if player.found.difference.is_some() {
            break;
        }
    }
    Ok(player.found)
}

#[derive(Default)]
struct Player {
    controller: Option<Controller>,
    shown: Shown,
    last: (u64, String),
    before: VecDeque<(u64, String, Value)>,
    found: Replay,
}

impl Player {
    fn begin(&mut self, begin: Beginning) {
        let Beginning { place, seq, at, begin: written, controller, lacks } = &begin;
        self.found.state_lost |= lacks;
        if let Some(known) = &self.controller {
            if begin.continues(self.last.0) {
                let reached = state(known);
                if reached != written.controller {
                    self.found.difference = Some(Difference {
                        file: place.file.clone(),
                        line: place.line,
                        seq: *seq,
                        at: at.clone(),
                        event: None,
                        recorded: Vec::new(),
                        replayed: Vec::new(),
                        fields: difference::of_values(&written.controller, &reached),
                        before: self.before.iter().cloned().collect(),
                    });
                    return;
                }
            } else if written.cause != Cause::Start || *seq != self.last.0 + 1 {
                self.found.blind.push(Blind {
                    from: self.last.clone(),
                    to: (*seq, at.clone()),
                    lost: written.lost,
                });
            }
        } else if written.lost > 0 {
            self.found
                .notes
                .push(format!("{} events before the first line are not in the record", written.lost));
        }
        self.found.starts += u64::from(written.cause == Cause::Start);
        self.found.cluster.clone_from(&controller.settings().name);
        if !self.found.programs.contains(&written.program) {
            self.found.programs.push(written.program.clone());
        }
        self.shown = Shown::of(&controller.view());
        self.controller = Some(begin.controller);
        self.passed(begin.seq, begin.at);
    }

    fn step(&mut self, step: Told) -> Result<(), ReplayError> {
        let Told { place, seq, at, now, event, written, mut answers, last_seq, may_lack } = step;
        let Some(controller) = &mut self.controller else {
            return Err(place.error("follows no `begin` line"));
        };
        let actions = handle(controller, &place, now, event)?;
        let replayed = self.shown.answers(&actions);
        if may_lack && answers.len() < replayed.len() && replayed.starts_with(&answers) {
            self.found.notes.push(format!(
                "{}, line {}: the file ends before the last answers to this event: {} of {} are there",
                place.file,
                place.line,
                answers.len(),
                replayed.len()
            ));
            answers.clone_from(&replayed);
        }
        if answers != replayed {
            self.found.difference = Some(Difference {
                file: place.file,
                line: place.line,
                seq,
                at,
                event: Some(written),
                fields: difference::of_answers(&answers, &replayed),
                recorded: answers,
                replayed,
                before: self.before.iter().cloned().collect(),
            });
            return Ok(());
        }
        self.found.events += 1;
        for action in actions {
            match action {
                Action::Record { decision } => {
                    self.found.decisions.push(Decided { at: at.clone(), now, decision });
                }
                Action::Publish { .. } => {}
                _ => self.found.actions += 1,
            }
        }
        if self.before.len() == BEFORE_MAX {
            self.before.pop_front();
        }
        self.before.push_back((seq, at.clone(), written));
        self.passed(last_seq, at);
        Ok(())
    }

    fn passed(&mut self, seq: u64, at: String) {
        match &mut self.found.span {
            Some((_, until)) => until.clone_from(&at),
            None => self.found.span = Some((at.clone(), at.clone())),
        }
        self.last = (seq, at);
    }
}

/// Hands an event over. A controller that panics on what a file holds ends the replay, not the program.
fn handle(
    controller: &mut Controller,
    place: &Place,
    now: Tick,
    event: Event,
) -> Result<Vec<Action>, ReplayError> {
    let mut actions = Vec::new();
    catch_unwind(AssertUnwindSafe(|| controller.handle(now, event, &mut actions))).map_err(|panic| {
        let said = panic_text(&*panic);
        place.error(&format!("the controller, or its policy, panics on this event: {said}"))
    })?;
    Ok(actions)
}

/// The decisions among recorded answers.
fn decisions(answers: &[What]) -> impl Iterator<Item = Decision> + '_ {
    answers.iter().filter_map(|answer| match answer {
        What::Why(decision) => serde_json::from_value(decision.clone()).ok(),
        What::Begin(_) | What::In(_) | What::Out(_) => None,
    })
}
