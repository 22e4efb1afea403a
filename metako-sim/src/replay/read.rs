//! From files to what is to be replayed.

use metako_core::Tick;
use metako_core::cluster::{Controller, Event};
use metako_core::record::{Begin, Cause, Line, LineError, What, state};
use serde_json::Value;

use super::difference;

/// A file of a record.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name, for messages.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// Why a record cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// A line cannot be read, or stands where it cannot.
    #[error("{file}, line {line}: {problem}")]
    Line {
        /// The file.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// There is nothing to replay.
    #[error("{0}: there is nothing to replay: no whole line")]
    Empty(String),
    /// The other configuration does not fit the record.
    #[error(
        "the configuration does not fit the record: {0}; what would have happened can be asked only of the same nodes"
    )]
    Config(String),
}

/// Where a line stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: String,
    pub(super) line: usize,
}

impl Place {
    pub(super) fn error(&self, problem: &(impl ToString + ?Sized)) -> ReplayError {
        ReplayError::Line { file: self.file.clone(), line: self.line, problem: problem.to_string() }
    }
}

/// A part of the record.
pub(super) enum Part {
    Begin(Box<Beginning>),
    Step(Box<Told>),
}

/// A state from which a replay can start.
pub(super) struct Beginning {
    pub(super) place: Place,
    pub(super) seq: u64,
    pub(super) at: String,
    pub(super) begin: Begin,
    pub(super) controller: Controller,
    /// It is not all of what was written down.
    pub(super) lacks: bool,
}

/// What the controller was told, and what it answered then.
pub(super) struct Told {
    pub(super) place: Place,
    pub(super) seq: u64,
    pub(super) at: String,
    pub(super) now: Tick,
    pub(super) event: Event,
    pub(super) written: Value,
    pub(super) answers: Vec<What>,
    /// The number of the last line of it.
    pub(super) last_seq: u64,
    /// The file may end before its last answer.
    pub(super) may_lack: bool,
}

/// What was read, and what a person should know of it.
pub(super) struct Recorded {
    pub(super) parts: Vec<Part>,
    pub(super) notes: Vec<String>,
    /// A file is left out.
    pub(super) left_out: bool,
}

/// Reads files, in the order of their numbers. One of several that cannot be read is left out.
pub(super) fn read(sources: &[Source]) -> Result<Recorded, ReplayError> {
    let mut notes = Vec::new();
    let mut files = Vec::new();
    let mut unread = None;
    for source in sources {
        let parts = match read_file(source, &mut notes) {
            Ok(parts) => parts,
            Err(problem) => {
                notes.push(format!("{} is left out: {problem}", source.name));
                unread.get_or_insert(problem);
                continue;
            }
        };
        match parts.first() {
            Some(Part::Begin(begin)) => files.push((begin.seq, parts)),
            _ => notes.push(format!("{} has no whole line and is left out", source.name)),
        }
    }
    files.sort_by_key(|(seq, _)| *seq);
    let mut parts: Vec<Part> = files.into_iter().flat_map(|(_, parts)| parts).collect();
    for index in 1..parts.len() {
        let (before, after) = parts.split_at_mut(index);
        // What goes on without a gap was not cut off.
        if let (Some(Part::Step(step)), Some(Part::Begin(begin))) = (before.last_mut(), after.first())
            && begin.continues(step.last_seq)
        {
            step.may_lack = false;
        }
    }
    if let (true, Some(problem)) = (parts.is_empty(), &unread) {
        return Err(problem.clone());
    }
    if parts.is_empty() {
        let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
        return Err(ReplayError::Empty(names.join(", ")));
    }
    for part in &parts {
        if let Part::Begin(begin) = part
            && begin.lacks
        {
            notes.push(begin.note());
        }
    }
    Ok(Recorded { parts, notes, left_out: unread.is_some() })
}

fn read_file(source: &Source, notes: &mut Vec<String>) -> Result<Vec<Part>, ReplayError> {
    let mut parts: Vec<Part> = Vec::new();
    let mut lines: Vec<&[u8]> = source.bytes.split(|byte| *byte == b'\n').collect();
    // What ends with a newline has nothing after it; what does not may have been cut off.
    let rest = lines.pop().unwrap_or_default();
    let whole = lines.len();
    if !rest.is_empty() {
        lines.push(rest);
    }
    for (index, text) in lines.iter().enumerate() {
        let place = Place { file: source.name.clone(), line: index + 1 };
        let line = match Line::parse(text) {
            Ok(line) => line,
            Err(LineError::NoObject(_)) if index >= whole => {
                notes.push(format!(
                    "{}, line {}: is cut off, as by a crash, and is left out",
                    place.file, place.line
                ));
                break;
            }
            Err(problem) => return Err(place.error(&format!("is no line of a record: {problem}"))),
        };
        add(&mut parts, place, line)?;
    }
    if let Some(Part::Step(step)) = parts.last_mut() {
        step.may_lack = true;
    }
    Ok(parts)
}

fn add(parts: &mut Vec<Part>, place: Place, line: Line) -> Result<(), ReplayError> {
    let wrong = |error: LineError| place.error(&error);
    if let Some(last) = parts.last()
        && line.seq <= last.last_seq()
    {
        return Err(place.error(&format!(
            "has number {} after {}: lines are missing, twice there, or in another order",
            line.seq,
            last.last_seq()
        )));
    }
    let event = line.what.event().map_err(wrong)?;
    let Line { seq, at, now, what } = line;
    match (what, event) {
        (What::Begin(begin), _) => {
            let controller = begin
                .controller()
                .map_err(|error| place.error(&format!("{error} (it was written by {})", begin.program)))?;
            let lacks = state(&controller) != begin.controller;
            parts.push(Part::Begin(Box::new(Beginning { place, seq, at, begin, controller, lacks })));
        }
        (What::In(written), Some(event)) if !parts.is_empty() => {
            let (answers, last_seq, may_lack) = (Vec::new(), seq, false);
            parts.push(Part::Step(Box::new(Told {
                place,
                seq,
                at,
                now,
                event,
                written,
                answers,
                last_seq,
                may_lack,
            })));
        }
        (answer @ (What::Out(_) | What::Why(_)), _) if !parts.is_empty() => match parts.last_mut() {
            Some(Part::Step(step)) if seq == step.last_seq + 1 => {
                step.answers.push(answer);
                step.last_seq = seq;
            }
            Some(Part::Step(_)) => {
                return Err(place.error(&format!("has number {seq}, and lines before it are missing")));
            }
            _ => return Err(place.error("follows from nothing: there is no `in` line before it")),
        },
        _ => {
            return Err(place.error(
                "is not a `begin` line, and only from there a replay can start: take the whole file",
            ));
        }
    }
    Ok(())
}

impl Part {
    fn last_seq(&self) -> u64 {
        match self {
            Self::Begin(begin) => begin.seq,
            Self::Step(step) => step.last_seq,
        }
    }
}

impl Beginning {
    /// What was lost when the state was read.
    fn note(&self) -> String {
        let fields = difference::of_values(&self.begin.controller, &state(&self.controller));
        let paths: Vec<&str> = fields.iter().map(|field| field.path.as_str()).collect();
        format!(
            "{}, line {}: this program does not know all of the state that {} wrote down; it was lost in reading: {}",
            self.place.file,
            self.place.line,
            self.begin.program,
            paths.join(", ")
        )
    }

    /// Whether it is the state after the step before it.
    pub(super) fn continues(&self, last_seq: u64) -> bool {
        self.begin.cause == Cause::GoesOn && self.begin.lost == 0 && self.seq == last_seq + 1
    }
}
