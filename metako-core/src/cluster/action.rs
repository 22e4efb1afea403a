//! What the controller asks to be done.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ClusterView, Decision, Journal};
use crate::config::Secret;
use crate::{Epoch, NodeName, TimelineId};

/// Ties an [`Event::Done`](super::Event::Done) to the action it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActionId(pub u64);

/// Ties a probe's answer to its question; an answer to an older question is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProbeId(pub u64);

/// Something to be done. Those with an `id` are answered by exactly one [`Event::Done`](super::Event::Done) (a driver that gives up
/// answers with a failure); the others are not answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "actions are handed over one at a time, never stored in bulk")]
pub enum Action {
    /// Run the health probe against a node; answered by [`Event::Probed`](super::Event::Probed).
    Probe {
        /// The probe.
        id: ProbeId,
        /// Whom to ask.
        node: NodeName,
        /// How long it may take.
        timeout: Duration,
    },
    /// Write the journal and sync it to disk. Nothing that it announces may be done before it is answered.
    Persist {
        /// The action.
        id: ActionId,
        /// The whole journal.
        journal: Journal,
    },
    /// Close every server connection to the node that carries an epoch before `epoch`, and relay nothing more from
    /// them. Done when no byte of theirs can reach a client any more.
    Sever {
        /// The action.
        id: ActionId,
        /// The node, normally the old primary.
        node: NodeName,
        /// The epoch that begins.
        epoch: Epoch,
    },
    /// Have a primary write a checkpoint.
    Checkpoint {
        /// The action.
        id: ActionId,
        /// The primary.
        node: NodeName,
    },
    /// Close every server connection to the node that carries an epoch before `epoch` as soon as no transaction is open on
    /// it. Done when all are gone; if they are not in time, those that are left serve on.
    Drain {
        /// The action.
        id: ActionId,
        /// The present primary.
        node: NodeName,
        /// The epoch that began.
        epoch: Epoch,
        /// How long it may take.
        limit: Duration,
    },
    /// Stop a standby from receiving WAL. Done when the settings are written and reloaded; that it is frozen shows in
    /// its next reports.
    Freeze {
        /// The action.
        id: ActionId,
        /// The standby.
        node: NodeName,
        /// What to set.
        change: SettingsChange,
    },
    /// Undo a freeze: give a standby its former settings back.
    Unfreeze {
        /// The action.
        id: ActionId,
        /// The standby.
        node: NodeName,
        /// What to set.
        change: SettingsChange,
    },
    /// Prepare the chosen standby: create the replication slots of those who will follow it, and set the synchronous
    /// standbys of the new epoch.
    Prepare {
        /// The action.
        id: ActionId,
        /// The chosen standby.
        node: NodeName,
        /// Physical slots to create if they do not exist.
        slots: Vec<String>,
        /// What to set.
        change: SettingsChange,
    },
    /// Promote a standby. Done when the call returned; that it is promoted shows in its next reports.
    Promote {
        /// The action.
        id: ActionId,
        /// Whom, on which condition.
        promotion: Promotion,
    },
    /// Commit the first transaction of the new epoch on the new primary, under its synchronous policy. Done when that
    /// commit was acknowledged.
    Verify {
        /// The action.
        id: ActionId,
        /// The new primary.
        node: NodeName,
        /// The epoch that the transaction marks.
        epoch: Epoch,
    },
    /// Make a standby follow another node.
    Repoint {
        /// The action.
        id: ActionId,
        /// The standby.
        node: NodeName,
        /// Whom it shall follow.
        upstream: NodeName,
        /// What to set.
        change: SettingsChange,
    },
    /// Set the synchronous standbys of the primary.
    SetSyncStandbys {
        /// The action.
        id: ActionId,
        /// The primary.
        node: NodeName,
        /// What to set.
        change: SettingsChange,
    },
    /// Drop physical replication slots of a standby that exist and are not in use.
    DropSlots {
        /// The action.
        id: ActionId,
        /// The standby.
        node: NodeName,
        /// Their names.
        slots: Vec<String>,
    },
    /// Run a hook. Done when it ended well.
    Hook {
        /// The action.
        id: ActionId,
        /// Which, for whom.
        call: HookCall,
    },
    /// Make this view the one that the data plane reads.
    Publish {
        /// The view.
        view: Arc<ClusterView>,
    },
    /// Write a decision to log, history and record.
    Record {
        /// The decision.
        decision: Decision,
    },
}

impl Action {
    /// What kind of action it is: the same word for the same kind, in the manner of an identifier.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Probe { .. } => "probe",
            Self::Persist { .. } => "persist",
            Self::Sever { .. } => "sever",
            Self::Checkpoint { .. } => "checkpoint",
            Self::Drain { .. } => "drain",
            Self::Freeze { .. } => "freeze",
            Self::Unfreeze { .. } => "unfreeze",
            Self::Prepare { .. } => "prepare",
            Self::Promote { .. } => "promote",
            Self::Verify { .. } => "verify",
            Self::Repoint { .. } => "repoint",
            Self::SetSyncStandbys { .. } => "set_sync",
            Self::DropSlots { .. } => "drop_slots",
            Self::Hook { call, .. } => call.kind.name(),
            Self::Publish { .. } => "publish",
            Self::Record { .. } => "record",
        }
    }

    /// The id by which an [`Event::Done`](super::Event::Done) answers it, if one does.
    pub fn id(&self) -> Option<ActionId> {
        match self {
            Self::Persist { id, .. }
            | Self::Sever { id, .. }
            | Self::Checkpoint { id, .. }
            | Self::Drain { id, .. }
            | Self::Freeze { id, .. }
            | Self::Unfreeze { id, .. }
            | Self::Prepare { id, .. }
            | Self::Promote { id, .. }
            | Self::Verify { id, .. }
            | Self::Repoint { id, .. }
            | Self::SetSyncStandbys { id, .. }
            | Self::DropSlots { id, .. }
            | Self::Hook { id, .. } => Some(*id),
            Self::Probe { .. } | Self::Publish { .. } | Self::Record { .. } => None,
        }
    }
}

/// Settings to be changed by ALTER SYSTEM, in this order, followed by one reload of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SettingsChange {
    /// Name and new value; `None` removes the line from `postgresql.auto.conf` (ALTER SYSTEM RESET).
    pub set: Vec<(String, Option<String>)>,
    /// Whether replay is resumed as well (`pg_wal_replay_resume()`, only on a standby).
    pub resume_replay: bool,
}

/// A promotion and what must still be true when it is carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// The standby.
    pub node: NodeName,
    /// The epoch that it will be primary of.
    pub epoch: Epoch,
    /// The timeline that it is expected to begin.
    pub timeline: TimelineId,
    /// The value that `primary_slot_name` must have there (the freeze token of this epoch), or the call does nothing: so
    /// a controller that was asleep cannot promote.
    pub token: String,
}

/// Commands that do on a node's host what SQL cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookKind {
    /// Stop the node's PostgreSQL cleanly.
    Stop,
    /// Make a former primary or a diverged standby follow the present primary.
    Rejoin,
}

impl HookKind {
    /// Its name in the configuration, and the first argument of its command.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Rejoin => "rejoin",
        }
    }
}

/// A call of a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookCall {
    /// Which.
    pub kind: HookKind,
    /// The node whose host is acted on.
    pub node: NodeName,
    /// Whom it is to follow: the present primary. `None` for a stop.
    pub upstream: Option<NodeName>,
    /// The epoch that asks for it.
    pub epoch: Epoch,
    /// The timeline of that epoch.
    pub timeline: TimelineId,
    /// The node's replication slot on the upstream, for a rejoin.
    pub slot: Option<String>,
    /// The node's future `primary_conninfo`, for a rejoin. May hold a password: it is neither shown nor written down.
    #[serde(skip)]
    pub conninfo: Option<Secret>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hooks_conninfo_is_neither_shown_nor_written_down() {
        let call = HookCall {
            kind: HookKind::Rejoin,
            node: NodeName::from("a"),
            upstream: Some(NodeName::from("b")),
            epoch: Epoch(2),
            timeline: TimelineId(2),
            slot: None,
            conninfo: Some(Secret::new("password=lion")),
        };
        let action = Action::Hook { id: ActionId(1), call };
        let texts = [format!("{action:?}"), serde_json::to_string(&action).unwrap()];
        assert!(texts.iter().all(|text| !text.contains("lion")), "{texts:?}");
    }
}
