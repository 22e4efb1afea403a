//! Where the controller is in the life of an epoch.

use serde::{Deserialize, Serialize};

use crate::{NodeName, Tick, TimelineId};

/// The states of the controller, as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// First start, or the journal was lost: writes stay closed until all nodes answer and agree who is primary.
    Discovering {
        /// What is missing, for people.
        reason: String,
    },
    /// The primary is known and well.
    Steady {
        /// It.
        primary: NodeName,
    },
    /// Something speaks against the primary; writes still go to it.
    Suspect {
        /// It.
        primary: NodeName,
        /// Since when.
        since: Tick,
        /// What is known and what is awaited, for people.
        reason: String,
    },
    /// A switchover: writes are held, and open transactions come to their end.
    Draining {
        /// The present primary.
        old: NodeName,
        /// Who shall follow it.
        to: NodeName,
        /// Since when.
        since: Tick,
    },
    /// A switchover: nothing is open any more, and the old primary is being stopped.
    Stopping {
        /// The old primary.
        old: NodeName,
        /// Since when.
        since: Tick,
    },
    /// Decided: no client may get an acknowledgement from the old primary any more.
    Fencing {
        /// The old primary.
        old: NodeName,
        /// Since when.
        since: Tick,
    },
    /// Standbys are being stopped from receiving, so that their positions stand still.
    Freezing {
        /// The old primary.
        old: NodeName,
        /// Since when.
        since: Tick,
    },
    /// One standby was chosen and is being promoted.
    Promoting {
        /// The old primary.
        old: NodeName,
        /// The chosen standby.
        candidate: NodeName,
        /// The timeline that it shall begin.
        timeline: TimelineId,
        /// Since when.
        since: Tick,
    },
    /// It is promoted; its first commit is awaited before clients may write.
    Verifying {
        /// The old primary.
        old: NodeName,
        /// The new primary.
        candidate: NodeName,
        /// Its timeline.
        timeline: TimelineId,
        /// Since when.
        since: Tick,
    },
    /// An operator paused automatic decisions. Writes go to the primary.
    Paused {
        /// It.
        primary: NodeName,
    },
    /// Going on would risk data: a person has to decide.
    ManualNeeded {
        /// The primary that still takes writes, if one does.
        primary: Option<NodeName>,
        /// What happened and what can be done.
        reason: String,
    },
}

impl Phase {
    /// The name of each phase, in the order of a failover.
    pub const NAMES: [&'static str; 11] = [
        "discovering",
        "steady",
        "suspect",
        "draining",
        "stopping",
        "fencing",
        "freezing",
        "promoting",
        "verifying",
        "paused",
        "manual_needed",
    ];

    /// This phase's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Discovering { .. } => "discovering",
            Self::Steady { .. } => "steady",
            Self::Suspect { .. } => "suspect",
            Self::Draining { .. } => "draining",
            Self::Stopping { .. } => "stopping",
            Self::Fencing { .. } => "fencing",
            Self::Freezing { .. } => "freezing",
            Self::Promoting { .. } => "promoting",
            Self::Verifying { .. } => "verifying",
            Self::Paused { .. } => "paused",
            Self::ManualNeeded { .. } => "manual_needed",
        }
    }
}
