//! What the data plane knows of the cluster: an immutable snapshot, replaced whole.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Phase, Survival, SyncRule};
use crate::plugin::ServerRun;
use crate::{Epoch, Lsn, NodeName, TimelineId};

/// The cluster as the controller last saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Counts views; a greater one is newer.
    pub version: u64,
    /// The epoch: a server connection to a primary that was checked out in an older one is stale.
    pub epoch: Epoch,
    /// Where the controller is.
    pub phase: Phase,
    /// Whether writes may go on, and where.
    pub writes: Writes,
    /// All configured nodes, in the order of the configuration.
    pub nodes: Vec<NodeView>,
    /// Which commits wait for whom, as a failover may rely on it.
    pub synchronous: SyncRule,
    /// What would become of it if nodes failed now.
    pub survival: Survival,
}

/// Whether writes may go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writes {
    /// They go to this node.
    Open {
        /// The primary.
        primary: NodeName,
    },
    /// They are held.
    Held {
        /// Why, for people.
        reason: String,
    },
}

/// One node as the controller last saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Its health.
    pub health: Health,
    /// Its role, by what it says of itself.
    pub role: ObservedRole,
    /// Whether it may serve reads as a replica.
    pub reads: ReadFitness,
    /// Which run of its server clients may be connected to.
    #[serde(default)]
    pub vouched: Vouched,
    /// Its timeline, once known.
    pub timeline: Option<TimelineId>,
    /// How far its WAL reaches.
    pub position: Option<Lsn>,
    /// How far a standby's replay is behind, in time.
    pub lag: Option<Duration>,
    /// How far a standby's replay is behind the primary's last known position, in bytes.
    pub lag_bytes: Option<u64>,
    /// How long its last good probe took.
    pub latency: Option<Duration>,
    /// `server_version_num`.
    pub version: Option<u32>,
    /// The node that it streams from, by address, if it is one of ours.
    pub upstream: Option<NodeName>,
    /// `weight` of the configuration.
    pub weight: u32,
    /// `zone` of the configuration.
    pub zone: Option<String>,
}

/// Health of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Health {
    /// Never answered yet.
    Unknown,
    /// The last probe was good.
    Up,
    /// Probes fail, but fewer than the threshold, or nothing proves it down.
    Unseen {
        /// The last failure.
        reason: String,
    },
    /// Proven down.
    Down {
        /// The evidence.
        reason: String,
    },
}

/// Role of a node, by what it last said of itself and by what the controller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObservedRole {
    /// Not known yet.
    Unknown,
    /// The primary of this epoch.
    Primary,
    /// A standby.
    Replica,
    /// Not in recovery, but not the primary of this epoch: never routed to.
    StalePrimary,
    /// Of another cluster: never routed to.
    Foreign,
}

/// Whether a node may serve reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ReadFitness {
    /// Yes.
    Fit,
    /// No.
    Unfit {
        /// Why not.
        reason: String,
    },
}

/// Which run of a server clients may be connected to: whatever else answers at its address gets nothing of theirs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vouched {
    /// Any: no run of it matters, or nobody has looked.
    #[default]
    Any,
    /// None: a stranger answers, or what answers is to be looked at first.
    Nobody,
    /// This one alone.
    Run(ServerRun),
}

impl NodeView {
    /// A node of which nothing is known.
    pub fn unknown(name: NodeName) -> Self {
        Self {
            name,
            health: Health::Unknown,
            role: ObservedRole::Unknown,
            reads: ReadFitness::Unfit { reason: "it has not answered yet".to_owned() },
            vouched: Vouched::Any,
            timeline: None,
            position: None,
            lag: None,
            lag_bytes: None,
            latency: None,
            version: None,
            upstream: None,
            weight: 1,
            zone: None,
        }
    }
}

impl ClusterView {
    /// A view before anything is known: all nodes unknown, writes held.
    pub fn empty(reason: &str) -> Self {
        Self {
            version: 0,
            epoch: Epoch(0),
            phase: Phase::Discovering { reason: reason.to_owned() },
            writes: Writes::Held { reason: reason.to_owned() },
            nodes: Vec::new(),
            synchronous: SyncRule::Async,
            survival: Survival::none(reason),
        }
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.name.as_str() == name)
    }

    /// The node that takes writes, if any does.
    pub fn primary(&self) -> Option<&NodeName> {
        match &self.writes {
            Writes::Open { primary } => Some(primary),
            Writes::Held { .. } => None,
        }
    }
}
