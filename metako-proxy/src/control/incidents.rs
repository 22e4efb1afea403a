//! The incident record in the state directory: what the controller was told and what it answered, in segments that each can be
//! replayed by themselves. The format is [`metako_core::record`].

mod folder;
mod segments;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use metako_core::Tick;
use metako_core::cluster::{Action, Controller, Event};
use metako_core::record::{Cause, Snapshot, Step};
use tokio::sync::mpsc;

use super::writer::{Writer, queue};

pub use segments::Segments;

/// The folder of the state directory that holds the segments.
const DIRECTORY: &str = "record";
/// Size from which the record goes on in a new segment.
const SEGMENT_BYTES_MAX: u64 = 8 << 20;
/// Steps that may wait for the disk.
const WAITING_MAX: usize = 1024;
/// How long it waits with the next attempt after a part was lost.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Writes down what a controller is told and what it answers. Never waits for the disk: where that is behind, steps are left
/// out, and the record says how many.
#[derive(Debug)]
pub struct Recorder(Option<Queue>);

/// What writer and recorder tell each other.
#[derive(Debug, Default)]
struct Shared {
    /// The writer asks for a snapshot.
    wanted: AtomicBool,
    /// Steps that are not in the record, since the start.
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Queue {
    items: mpsc::Sender<Item>,
    shared: Arc<Shared>,
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
        let shared = Arc::new(Shared::default());
        let segments = Segments::open(&directory.join(DIRECTORY), SEGMENT_BYTES_MAX, Arc::clone(&shared))?;
        let (items, writer) = queue(segments, WAITING_MAX);
        Ok((Self::over(items, shared), writer))
    }

    fn over(items: mpsc::Sender<Item>, shared: Arc<Shared>) -> Self {
        Self(Some(Queue { items, shared, begun: false, lost: 0, not_before: Tick::ZERO }))
    }

    /// Counts the events that are not in the record, because the disk was behind or failed. Stays 0 for one that writes nothing.
    pub fn lost(&self) -> Arc<AtomicU64> {
        self.0.as_ref().map(|queue| Arc::clone(&queue.shared.lost)).unwrap_or_default()
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
            (true, 0) if self.shared.wanted.load(Ordering::Relaxed) => Cause::GoesOn,
            (true, 0) => return true,
            (true, _) => Cause::Gap,
        };
        if now < self.not_before {
            // The present segment is longer than it should be, or the gap is.
            return self.lost == 0 && self.begun;
        }
        self.not_before = now + AGAIN_AFTER;
        let Ok(place) = self.items.try_reserve() else { return false };
        self.shared.wanted.store(false, Ordering::Relaxed);
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
        self.shared.lost.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
