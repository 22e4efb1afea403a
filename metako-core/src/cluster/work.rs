//! Actions in flight: one at a time for each node, for the journal and for the fence; failures are tried again after a
//! growing pause.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ActionId;
use crate::{Epoch, NodeName, Tick};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The same of a rejoin, which copies much of a database.
const REJOIN_PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(1));

/// What may not run twice at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Lane {
    Journal,
    Sever,
    /// The fence does not wait for it.
    Drain,
    Node(NodeName),
    /// A checkpoint there may take minutes, beside everything else.
    Checkpoint(NodeName),
    /// The host of a node: a hook may take long, and SQL goes on beside it.
    Host(NodeName),
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Task {
    Persist,
    Sever,
    Freeze,
    Unfreeze,
    Prepare,
    Promote,
    Verify,
    Repoint,
    SetSync,
    Checkpoint,
    Drain,
    Stop,
    Rejoin,
    DropSlots,
}

impl Task {
    /// The task, for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Persist => "writing the journal",
            Self::Sever => "severing the old primary's connections",
            Self::Freeze => "freezing",
            Self::Unfreeze => "unfreezing",
            Self::Prepare => "preparing slots and synchronous standbys",
            Self::Promote => "promoting",
            Self::Verify => "committing the first transaction of the epoch",
            Self::Repoint => "repointing",
            Self::SetSync => "setting the synchronous standbys",
            Self::Checkpoint => "CHECKPOINT",
            Self::Drain => "waiting for the end of open transactions",
            Self::Stop => "hooks.stop",
            Self::Rejoin => "hooks.rejoin",
            Self::DropSlots => "dropping replication slots that nobody uses",
        }
    }
}

/// An action in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) id: ActionId,
    pub(super) lane: Lane,
    pub(super) task: Task,
    /// The epoch that it was started in: an answer to an action of another epoch frees the lane and means nothing else.
    pub(super) epoch: Epoch,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Pause {
    failures: u32,
    until: Tick,
}

/// All actions in flight.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Work {
    next: u64,
    #[serde(with = "crate::written::pairs")]
    in_flight: BTreeMap<Lane, Job>,
    #[serde(with = "crate::written::pairs")]
    pauses: BTreeMap<(Lane, Task), Pause>,
}

impl Work {
    /// Starts a task, unless its lane is taken or it is to pause.
    pub(super) fn start(&mut self, now: Tick, lane: Lane, task: Task, epoch: Epoch) -> Option<ActionId> {
        let key = (lane, task);
        if self.pauses.get(&key).is_some_and(|pause| now < pause.until) || self.in_flight.contains_key(&key.0)
        {
            return None;
        }
        self.next += 1;
        let id = ActionId(self.next);
        self.in_flight.insert(key.0.clone(), Job { id, lane: key.0, task, epoch });
        Some(id)
    }

    /// Takes the job that this answers; `None` if there is none such.
    pub(super) fn finish(&mut self, id: ActionId) -> Option<Job> {
        let lane = self.in_flight.values().find(|job| job.id == id)?.lane.clone();
        self.in_flight.remove(&lane)
    }

    /// The job failed: the task pauses, longer each time.
    pub(super) fn failed(&mut self, now: Tick, job: &Job) {
        let pause = self.pauses.entry((job.lane.clone(), job.task)).or_default();
        let (first, longest) =
            if job.task == Task::Rejoin { REJOIN_PAUSES } else { (FIRST_PAUSE, LONGEST_PAUSE) };
        let span = first * 2_u32.pow(pause.failures.min(7));
        pause.failures += 1;
        pause.until = now + span.min(longest);
    }

    /// The job was done: it is not started again before `pause` has passed.
    pub(super) fn done(&mut self, now: Tick, job: &Job, pause: Duration) {
        let key = (job.lane.clone(), job.task);
        if pause.is_zero() {
            self.pauses.remove(&key);
        } else {
            self.pauses.insert(key, Pause { failures: 0, until: now + pause });
        }
    }

    /// Whether the task failed there when it was last tried.
    pub(super) fn fails(&self, lane: &Lane, task: Task) -> bool {
        self.pauses.get(&(lane.clone(), task)).is_some_and(|pause| pause.failures > 0)
    }

    /// Whether the lane is taken.
    pub(super) fn busy(&self, lane: &Lane) -> bool {
        self.in_flight.contains_key(lane)
    }

    /// When the next pause ends.
    pub(super) fn next_wake(&self, now: Tick) -> Option<Tick> {
        self.pauses.values().map(|pause| pause.until).filter(|until| *until > now).min()
    }

    /// A new epoch or phase begins: no task waits for what failed before.
    pub(super) fn forget_pauses(&mut self) {
        self.pauses.clear();
    }
}
