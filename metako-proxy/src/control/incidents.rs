//! The incident record in the state directory: what the controller was told and what it answered, in segments that each can be
//! replayed by themselves. The format is [`metako_core::record`].

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metako_core::Tick;
use metako_core::cluster::{Action, Controller, DecisionKind, Event};
use metako_core::record::{Cause, Scribe, Snapshot, Step};
use tokio::sync::mpsc;

use super::writer::{Sink, Writer, last_seq, open_for_append, queue};

/// The folder of the state directory that holds the segments.
const DIRECTORY: &str = "record";
/// Size from which the record goes on in a new segment.
const SEGMENT_BYTES_MAX: u64 = 8 << 20;
/// Segments in which something happened that are kept.
const INCIDENTS_MAX: usize = 8;
/// Other segments that are kept, the present one among them.
const QUIET_MAX: usize = 2;
/// Steps that may wait for the disk.
const WAITING_MAX: usize = 1024;
/// How long it waits with the next attempt after a part was lost.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

const ENDING: &str = ".jsonl";
const INCIDENT_ENDING: &str = "-incident.jsonl";

/// Writes down what a controller is told and what it answers. Never waits for the disk: where that is behind, steps are left
/// out, and the record says how many.
#[derive(Debug)]
pub struct Recorder(Option<Queue>);

#[derive(Debug)]
struct Queue {
    items: mpsc::Sender<Item>,
    /// The writer asks for a snapshot.
    wanted: Arc<AtomicBool>,
    begun: bool,
    /// Steps that were left out since the last snapshot that was taken.
    lost: u64,
    not_before: Tick,
}

/// What waits for the disk.
#[expect(clippy::large_enum_variant, reason = "most are steps")]
pub enum Item {
    /// A state to begin with.
    Begin(Snapshot),
    /// A call of the controller.
    Step(Step),
}

impl Recorder {
    /// A recorder that goes on after the segments in `directory`. Its writer is to be run as a task. Blocks for a moment.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(directory: &Path) -> io::Result<(Self, Writer<Segments>)> {
        let wanted = Arc::new(AtomicBool::new(false));
        let segments = Segments::open(&directory.join(DIRECTORY), SEGMENT_BYTES_MAX, Arc::clone(&wanted))?;
        let (items, writer) = queue(segments, WAITING_MAX);
        Ok((Self::over(items, wanted), writer))
    }

    fn over(items: mpsc::Sender<Item>, wanted: Arc<AtomicBool>) -> Self {
        Self(Some(Queue { items, wanted, begun: false, lost: 0, not_before: Tick::ZERO }))
    }

    /// One that writes nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Hands an event to the controller, as [`Controller::handle`], and writes both down. `wall_clock` is the time since 1970.
    /// Costs a copy of event and actions, and at the beginning of a segment one of the controller.
    pub fn handle(
        &mut self,
        controller: &mut Controller,
        wall_clock: Duration,
        now: Tick,
        event: Event,
        actions: &mut Vec<Action>,
    ) {
        let Some(queue) = &mut self.0 else { return controller.handle(now, event, actions) };
        if !queue.begin(controller, wall_clock, now) {
            queue.lose();
            return controller.handle(now, event, actions);
        }
        let step = Step::take(controller, wall_clock, now, event, actions);
        if queue.items.try_send(Item::Step(step)).is_err() {
            queue.lose();
        }
    }
}

impl Queue {
    /// Sends a snapshot if one is due; tells whether a step can follow.
    fn begin(&mut self, controller: &Controller, at: Duration, now: Tick) -> bool {
        let cause = match (self.begun, self.lost) {
            (false, _) => Cause::Start,
            (true, 0) if self.wanted.load(Ordering::Relaxed) => Cause::GoesOn,
            (true, 0) => return true,
            (true, _) => Cause::Gap,
        };
        if now < self.not_before {
            // The present segment is longer than it should be, or the gap is.
            return self.lost == 0 && self.begun;
        }
        self.not_before = now + AGAIN_AFTER;
        let Ok(place) = self.items.try_reserve() else { return false };
        self.wanted.store(false, Ordering::Relaxed);
        if self.lost > 0 {
            tracing::info!(lost = self.lost, "the incident record goes on, without the events before");
        }
        place.send(Item::Begin(Snapshot {
            at,
            now,
            cause,
            lost: self.lost,
            controller: Box::new(controller.clone()),
        }));
        (self.begun, self.lost) = (true, 0);
        true
    }

    fn lose(&mut self) {
        if self.lost == 0 {
            tracing::warn!(
                "the incident record is behind: events are left out of it until the disk has caught up"
            );
        }
        self.lost += 1;
    }
}

/// Whether a decision makes its segment worth keeping.
fn is_incident(kind: DecisionKind) -> bool {
    use DecisionKind as Kind;
    matches!(
        kind,
        Kind::Suspected
            | Kind::FailoverBegun
            | Kind::SwitchoverBegun
            | Kind::Vetoed
            | Kind::Frozen
            | Kind::Chosen
            | Kind::Promoting
            | Kind::Promoted
            | Kind::Aborted
            | Kind::ManualNeeded
    )
}

/// The files of the record.
pub struct Segments {
    directory: PathBuf,
    bytes_max: u64,
    scribe: Scribe,
    open: Option<Segment>,
    /// Steps that could not be written.
    lost: u64,
    wanted: Arc<AtomicBool>,
}

struct Segment {
    first: u64,
    path: PathBuf,
    file: File,
    bytes: u64,
    incident: bool,
}

impl Segments {
    fn open(directory: &Path, bytes_max: u64, wanted: Arc<AtomicBool>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let next = match list(directory)?.pop() {
            // Its first line may be cut, and then its name is all that is known.
            Some((first, _, path)) => last_seq(&File::open(path)?)?.max(first) + 1,
            None => 1,
        };
        let scribe = Scribe::new(concat!("metako ", env!("CARGO_PKG_VERSION")), next);
        Ok(Self { directory: directory.to_owned(), bytes_max, scribe, open: None, lost: 0, wanted })
    }

    fn write(&mut self, item: Item) -> io::Result<()> {
        let mut text = String::new();
        let mut incident = false;
        match item {
            Item::Begin(mut snapshot) => {
                snapshot.lost += self.lost;
                if self.lost > 0 && snapshot.cause == Cause::GoesOn {
                    snapshot.cause = Cause::Gap;
                }
                let full = self.open.as_ref().is_none_or(|open| open.bytes >= self.bytes_max);
                if full || snapshot.cause != Cause::Gap {
                    self.open = None;
                    self.open = Some(self.begin_segment()?);
                }
                self.scribe.begin(&snapshot, &mut text);
                if self.lost > 0 {
                    tracing::info!(lost = self.lost, "the incident record can be written again");
                    self.lost = 0;
                }
            }
            // What follows a part that is missing cannot be replayed.
            Item::Step(_) if self.open.is_none() => {
                self.lost += 1;
                return Ok(());
            }
            Item::Step(step) => {
                incident = step.actions.iter().any(
                    |action| matches!(action, Action::Record { decision } if is_incident(decision.kind)),
                );
                self.scribe.step(&step, &mut text);
            }
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        open.file.write_all(text.as_bytes())?;
        open.bytes += text.len() as u64;
        if incident && !open.incident {
            let path = self.directory.join(format!("{:012}{INCIDENT_ENDING}", open.first));
            fs::rename(&open.path, &path)?;
            (open.path, open.incident) = (path, true);
        }
        if open.bytes >= self.bytes_max {
            self.wanted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Begins a segment and removes those that are too many.
    fn begin_segment(&self) -> io::Result<Segment> {
        let first = self.scribe.next();
        let path = self.directory.join(format!("{first:012}{ENDING}"));
        let file = open_for_append(&path)?;
        let mut left = (QUIET_MAX, INCIDENTS_MAX);
        for (_, incident, path) in list(&self.directory)?.into_iter().rev() {
            let left = if incident { &mut left.1 } else { &mut left.0 };
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => fs::remove_file(path)?,
            }
        }
        Ok(Segment { first, path, file, bytes: 0, incident: false })
    }
}

impl Sink for Segments {
    type Item = Item;

    fn take(&mut self, items: Vec<Item>) {
        for item in items {
            let is_step = matches!(item, Item::Step(_));
            if let Err(error) = self.write(item) {
                if self.lost == 0 {
                    tracing::warn!(
                        directory = %self.directory.display(),
                        %error,
                        "the incident record cannot be written: events are left out of it until it can"
                    );
                }
                // A line that was begun may stand there cut off: what comes next goes into a new file.
                self.open = None;
                self.lost += u64::from(is_step);
                self.wanted.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// The segments in a folder by the number of their first line, oldest first, and whether something happened in them.
fn list(directory: &Path) -> io::Result<Vec<(u64, bool, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let incident = name.ends_with(INCIDENT_ENDING);
        let first = name.strip_suffix(if incident { INCIDENT_ENDING } else { ENDING });
        if let Some(first) = first.and_then(|first| first.parse().ok()) {
            segments.push((first, incident, path));
        }
    }
    segments.sort();
    Ok(segments)
}

#[cfg(test)]
mod tests;
