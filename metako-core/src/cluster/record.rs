//! What outlives the process: the journal, and the record of decisions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plugin::ServerRun;
use crate::{Epoch, Lsn, NodeName, SystemId, TimelineId};

/// The controller's memory. Written and synced before the action that it announces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// Version of this format: 1.
    pub version: u32,
    /// `cluster` of the configuration.
    pub cluster: String,
    /// Of all nodes of the cluster.
    pub system_id: SystemId,
    /// The current epoch.
    pub epoch: Epoch,
    /// The primary of the epoch, or the old one while it is being replaced.
    pub primary: NodeName,
    /// The primary's timeline.
    pub timeline: TimelineId,
    /// Up to where the primary had its WAL when metako promoted it: that timeline began no later.
    #[serde(default)]
    pub fork: Option<Lsn>,
    /// Where the last whole record ended that the primary had replayed when it was chosen. What it had beyond, up to `fork`,
    /// was a part of a record at most: then the timeline begins here.
    #[serde(default)]
    pub last_record: Option<Lsn>,
    /// Where a failover stands.
    pub phase: JournalPhase,
    /// Which commits wait for whom.
    pub sync: SyncRule,
    /// Promotions that were tried since the last steady state: a timeline number is never tried twice.
    pub attempts: Vec<Attempt>,
    /// Nodes whose promotion had an unknown outcome, or that hold history the cluster did not follow.
    pub tainted: Vec<NodeName>,
    /// Former values of settings that metako changed, to be given back.
    pub saved: BTreeMap<NodeName, SavedSettings>,
    /// Former primaries, and standbys whose history the cluster did not follow, until they stream again.
    #[serde(default)]
    pub displaced: Vec<NodeName>,
    /// Where the primary was when it had answered its last transaction before a switchover stops it: nobody who has less is
    /// promoted.
    #[serde(default)]
    pub floor: Option<Lsn>,
    /// How far the primary was known to be, and on which timeline, when its replacement began. `None` where that is not known
    /// or does not matter, or where a person said that it may be lost.
    #[serde(default)]
    pub reached: Option<(TimelineId, Lsn)>,
    /// An operator paused automatic decisions.
    #[serde(default)]
    pub paused: bool,
    /// Values of `synchronous_standby_names` of which metako has set one on a node, or is about to.
    #[serde(default)]
    pub sync_names: BTreeMap<NodeName, Vec<String>>,
    /// What is remembered where others promote.
    #[serde(default)]
    pub observed: Observed,
    /// The run of the primary's server whose rows enough voters are known to have, as far as `sync` asks for that: clients are
    /// sent to no other.
    #[serde(default)]
    pub run: Option<ServerRun>,
}

impl Journal {
    /// That of a primary on whom all agree: nothing is under way, and commits wait for nobody.
    pub fn begun(
        cluster: String,
        system_id: SystemId,
        epoch: Epoch,
        primary: NodeName,
        timeline: TimelineId,
    ) -> Self {
        Self {
            version: 1,
            cluster,
            system_id,
            epoch,
            primary,
            timeline,
            fork: None,
            last_record: None,
            phase: JournalPhase::Steady,
            sync: SyncRule::Async,
            attempts: Vec::new(),
            tainted: Vec::new(),
            saved: BTreeMap::new(),
            displaced: Vec::new(),
            floor: None,
            reached: None,
            paused: false,
            sync_names: BTreeMap::new(),
            observed: Observed::default(),
            run: None,
        }
    }
}

/// What is remembered of the primary where others promote (`failover.mode: observe`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// When the primary's server was started, by its own account, when it was last known to be the one to follow: one that
    /// was started again since then may have been replaced meanwhile.
    pub started_at: Option<i64>,
    /// Nodes that somebody promoted while the primary was well.
    pub rivals: Vec<NodeName>,
    /// The primary was away, and nobody has been confirmed since.
    pub away: bool,
}

/// Where a failover stands, in the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalPhase {
    /// The primary serves.
    Steady,
    /// The old primary is being fenced, standbys frozen.
    Fencing,
    /// A standby is promoted, or will be.
    Promoting {
        /// Which.
        candidate: NodeName,
        /// To which timeline.
        timeline: TimelineId,
        /// Where the new timeline begins: the position that was read after the freeze.
        fork: Lsn,
    },
}

/// One promotion that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The standby.
    pub node: NodeName,
    /// The timeline that it was to begin.
    pub timeline: TimelineId,
}

/// Former values of a node's settings; `None` where none was set.
pub type SavedSettings = BTreeMap<String, Option<String>>;

/// Which commits wait for whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncRule {
    /// Commits wait for no standby.
    Async,
    /// A commit is acknowledged when any `acks` of `voters` have it on disk.
    Quorum {
        /// How many.
        acks: usize,
        /// Of whom.
        voters: Vec<NodeName>,
    },
}

/// A decision with its reason, for log, history and record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What was decided.
    pub kind: DecisionKind,
    /// About which node, if one.
    pub node: Option<NodeName>,
    /// The epoch in force after it.
    pub epoch: Epoch,
    /// Why, for people: what happened, to whom, what follows.
    pub reason: String,
}

/// Kinds of decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// A node's health changed.
    NodeHealth,
    /// A node's role changed.
    NodeRole,
    /// A node entered or left the read pool.
    ReadPool,
    /// A primary was found or adopted.
    Adopted,
    /// The primary is under suspicion.
    Suspected,
    /// The suspicion was lifted.
    Cleared,
    /// The primary's server was started anew, and clients wait until enough standbys have what it has.
    Restarted,
    /// A failover begins.
    FailoverBegun,
    /// A policy's proposal was refused.
    Vetoed,
    /// A standby is frozen.
    Frozen,
    /// A candidate was chosen.
    Chosen,
    /// A promotion was sent.
    Promoting,
    /// A node is promoted.
    Promoted,
    /// Writes are open again.
    Opened,
    /// A standby follows a new node.
    Repointed,
    /// A node has diverged or does not belong here.
    Refused,
    /// An action failed and will be tried again.
    Retried,
    /// A failover was called off.
    Aborted,
    /// A person has to decide.
    ManualNeeded,
    /// The configuration changed.
    Reconfigured,
    /// Synchronous standbys changed.
    SyncChanged,
    /// An operator asked for another primary.
    SwitchoverBegun,
    /// A former primary, or a standby that had diverged, streams again.
    Rejoined,
    /// Automatic decisions are paused.
    Paused,
    /// They are not any more, or a person ended what a failover waited for.
    Resumed,
}

impl DecisionKind {
    /// Its name, as history, record and metrics write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NodeHealth => "node_health",
            Self::NodeRole => "node_role",
            Self::ReadPool => "read_pool",
            Self::Adopted => "adopted",
            Self::Suspected => "suspected",
            Self::Cleared => "cleared",
            Self::Restarted => "restarted",
            Self::FailoverBegun => "failover_begun",
            Self::Vetoed => "vetoed",
            Self::Frozen => "frozen",
            Self::Chosen => "chosen",
            Self::Promoting => "promoting",
            Self::Promoted => "promoted",
            Self::Opened => "opened",
            Self::Repointed => "repointed",
            Self::Refused => "refused",
            Self::Retried => "retried",
            Self::Aborted => "aborted",
            Self::ManualNeeded => "manual_needed",
            Self::Reconfigured => "reconfigured",
            Self::SyncChanged => "sync_changed",
            Self::SwitchoverBegun => "switchover_begun",
            Self::Rejoined => "rejoined",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decisions_kind_is_written_by_its_name() {
        let kinds = [
            DecisionKind::NodeHealth,
            DecisionKind::NodeRole,
            DecisionKind::ReadPool,
            DecisionKind::Adopted,
            DecisionKind::Suspected,
            DecisionKind::Cleared,
            DecisionKind::Restarted,
            DecisionKind::FailoverBegun,
            DecisionKind::Vetoed,
            DecisionKind::Frozen,
            DecisionKind::Chosen,
            DecisionKind::Promoting,
            DecisionKind::Promoted,
            DecisionKind::Opened,
            DecisionKind::Repointed,
            DecisionKind::Refused,
            DecisionKind::Retried,
            DecisionKind::Aborted,
            DecisionKind::ManualNeeded,
            DecisionKind::Reconfigured,
            DecisionKind::SyncChanged,
            DecisionKind::SwitchoverBegun,
            DecisionKind::Rejoined,
            DecisionKind::Paused,
            DecisionKind::Resumed,
        ];
        for kind in kinds {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
