//! Whether to fail over, and to whom.

use std::fmt;
use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use super::BuildError;
use crate::{Lsn, NodeName, TimelineId};

/// Options of a [`FailoverPolicy`], as the YAML gives them.
///
/// All options are written down in the incident record, so that it can be played again. One that is a secret must be of type
/// [`Secret`](crate::config::Secret), which writes itself as a mask.
#[typetag::serde(tag = "type")]
pub trait FailoverPolicySpec: Debug + Send + Sync {
    /// Makes the running policy.
    fn build(&self) -> Result<Box<dyn FailoverPolicy>, BuildError>;
}

/// Judges the evidence against a primary, and ranks those who might follow it.
///
/// Pure: the same arguments give the same answer. The controller checks both answers against the safety rules and may
/// refuse them, with the reason in the record.
pub trait FailoverPolicy: Send + Sync {
    /// Whether the evidence is enough to fail over. Asked again whenever the evidence changes and when a wait ends.
    fn assess(&self, evidence: &Evidence) -> Assessment;

    /// Orders the electable nodes, best first. All of them have been frozen and their positions read. Nodes that are
    /// behind the most advanced one may be ranked, but the controller refuses to promote them.
    fn rank(&self, electable: &mut [Electable]);
}

/// A running policy, with the spec that it was built from. Is written down as its spec, and built anew when it is read.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Policy {
    spec: Arc<dyn FailoverPolicySpec>,
    #[serde(skip)]
    running: Arc<dyn FailoverPolicy>,
}

impl Policy {
    /// Builds the policy of a spec.
    pub fn build(spec: Arc<dyn FailoverPolicySpec>) -> Result<Self, BuildError> {
        let running = Arc::from(spec.build()?);
        Ok(Self { spec, running })
    }

    /// Puts the running policy behind another that asks it, such as one that contains panics.
    #[must_use]
    pub fn map(self, wrap: impl FnOnce(Arc<dyn FailoverPolicy>) -> Arc<dyn FailoverPolicy>) -> Self {
        Self { running: wrap(self.running), spec: self.spec }
    }
}

impl Deref for Policy {
    type Target = dyn FailoverPolicy;

    fn deref(&self) -> &Self::Target {
        &*self.running
    }
}

impl Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spec = Box::<dyn FailoverPolicySpec>::deserialize(deserializer)?;
        Self::build(Arc::from(spec)).map_err(serde::de::Error::custom)
    }
}

/// A policy's judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assessment {
    /// Not now.
    Wait {
        /// What it waits for, for people.
        reason: String,
        /// When to ask again if nothing changes meanwhile, counted from now.
        ask_again_in: Option<Duration>,
    },
    /// Fence the primary and promote a standby.
    FailOver {
        /// Why, for people.
        reason: String,
    },
}

/// What speaks against the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The primary.
    pub primary: NodeName,
    /// What its own probes and connections say.
    pub kind: PrimaryEvidence,
    /// For how long that kind of evidence has held without a good answer between. One that starts may refuse connections or
    /// be silent between, as one that recovers again and again is: that counts as well.
    pub standing: Duration,
    /// Probes that failed in a row.
    pub failures: u32,
    /// What its standbys say of it.
    pub witnesses: WitnessCount,
    /// `failover.silent_after`.
    pub silent_after: Duration,
    /// `failover.stalled_after`.
    pub stalled_after: Duration,
    /// `failover.start_timeout`; `None` waits without end. The controller refuses to replace one that starts before that.
    pub start_timeout: Option<Duration>,
    /// `failover.async_restart_grace`; zero when replication is synchronous.
    pub restart_grace: Duration,
    /// `health_check.failure_threshold`.
    pub failure_threshold: u32,
}

/// What the primary's own probes and connections say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrimaryEvidence {
    /// It answers and is a primary.
    Healthy,
    /// It refuses connections.
    Refused,
    /// It does not answer.
    Silent,
    /// It answers as a primary, but a small commit that waits for its own disk alone does not end. Standbys that stream
    /// from it say nothing against that.
    WriteStalled,
    /// It is starting or recovering from a crash: alive, and nothing that it could serve is lost by waiting, unless it
    /// never comes to an end.
    Starting,
    /// It is shutting down.
    ShuttingDown,
    /// It has no connection slot left: alive.
    Full,
    /// It answers, but is a standby now.
    InRecovery,
    /// It does not let metako log in: says nothing about its health.
    NoLogin,
    /// It answers something unexpected: says nothing about its health.
    Unclear,
}

/// How many standbys say what of the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WitnessCount {
    /// Standbys in the configuration (nodes other than the primary).
    pub configured: usize,
    /// They answer this proxy and still stream from the primary.
    pub fresh: usize,
    /// They answer this proxy and have lost the primary's stream.
    pub lost: usize,
    /// They do not answer this proxy.
    pub unseen: usize,
}

/// A node that may be promoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Electable {
    /// Its name.
    pub node: NodeName,
    /// Its timeline.
    pub timeline: TimelineId,
    /// How far its WAL reaches, read after the freeze.
    pub position: Lsn,
    /// How much of that it has still to replay, in bytes.
    pub backlog: u64,
    /// `priority` of the configuration: smaller is preferred.
    pub priority: u32,
    /// `zone` of the configuration.
    pub zone: Option<String>,
}
