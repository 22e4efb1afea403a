//! What is asked of a node, and what it answers.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::BuildError;
use crate::{Lsn, SystemId, TimelineId};

/// Options of a [`HealthProbe`], as the YAML gives them.
#[typetag::serde(tag = "type")]
pub trait HealthProbeSpec: Debug + Send + Sync {
    /// Makes the running probe.
    fn build(&self) -> Result<Box<dyn HealthProbe>, BuildError>;
}

/// Asks a node how it is.
///
/// One call per node and probe; calls for different nodes run at once. The caller enforces `health_check.timeout` by
/// dropping the future, so a probe must be cancellation-safe: it must not leave the connection it was lent in the
/// middle of an answer that it then counts on. It never opens sockets and never sleeps by itself.
#[async_trait]
pub trait HealthProbe: Send + Sync {
    /// Probes the node behind `node`.
    async fn probe(&self, node: &mut dyn NodeAccess) -> Result<NodeReport, ProbeFailure>;
}

/// A standing control connection to one node, opened when needed. The proxy implements it over a real connection, the
/// simulator over its model, tests by a mock.
#[async_trait]
pub trait NodeAccess: Send {
    /// All that the controller wants to know, in one round trip where the protocol allows it.
    async fn report(&mut self) -> Result<NodeReport, ProbeFailure>;

    /// Commits an empty transaction that writes WAL and waits for the local disk (not for standbys). On a node in
    /// recovery it fails with [`ProbeFailure::ReadOnly`].
    async fn commit(&mut self) -> Result<Duration, ProbeFailure>;

    /// Runs one statement by the simple protocol and returns its rows as text; for probes with questions of their own.
    /// The simulator answers [`ProbeFailure::Unsupported`] to what its model does not know.
    async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, ProbeFailure>;

    /// Why the probe that was just dropped after `limit` did not end in time, as far as the access knows. Returns at once.
    fn overdue(&self, limit: Duration) -> ProbeFailure {
        ProbeFailure::TimedOut(limit)
    }
}

/// What a node said of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// `system_identifier` of `pg_control_system()`.
    pub system_id: SystemId,
    /// `server_version_num`, such as 150020.
    pub version: u32,
    /// `pg_postmaster_start_time()` in microseconds since 1970: an identity of the running server, never compared with a
    /// clock of ours.
    pub started_at: i64,
    /// `wal_segment_size` in bytes.
    #[serde(default = "usual_segment_size")]
    pub wal_segment_size: u64,
    /// The process id of its checkpointer, where the probe tells it: another one after a recovery from a crash of one of its
    /// processes, which `started_at` survives.
    #[serde(default)]
    pub checkpointer: Option<i32>,
    /// The timeline it writes (primary) or receives and replays (standby).
    pub timeline: TimelineId,
    /// Primary or standby, with what belongs to each.
    pub role: ReportedRole,
    /// From sending the question to the whole answer.
    pub latency: Duration,
}

/// What all but a few clusters have; records of earlier versions do not say.
const fn usual_segment_size() -> u64 {
    16 << 20
}

/// One run of a server: from its start, or its recovery from a crash, to the next. No connection outlives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRun {
    /// See [`NodeReport::started_at`].
    pub started_at: i64,
    /// See [`NodeReport::checkpointer`].
    pub checkpointer: Option<i32>,
}

/// The role that a node has, by `pg_is_in_recovery()`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportedRole {
    /// Not in recovery.
    Primary {
        /// `pg_current_wal_flush_lsn()`.
        flushed: Lsn,
        /// Rows of `pg_stat_replication`.
        senders: Vec<Sender>,
        /// The setting `synchronous_standby_names`.
        synchronous_standby_names: String,
        /// The setting `default_transaction_read_only`.
        read_only: bool,
    },
    /// In recovery.
    Standby {
        /// `pg_last_wal_receive_lsn()`; none after a restart that never streamed.
        received: Option<Lsn>,
        /// `pg_last_wal_replay_lsn()`.
        replayed: Option<Lsn>,
        /// How long ago the last replayed transaction committed; zero when all that was received is replayed.
        replay_lag: Option<Duration>,
        /// The row of `pg_stat_wal_receiver`, if there is one.
        receiver: Option<Receiver>,
        /// Whether `pg_stat_activity` shows a walreceiver process, connecting ones included.
        receiver_process: bool,
        /// Wait event of the startup process, such as `RecoveryWalStream`.
        startup_wait: Option<String>,
        /// The settings that metako changes when it freezes and repoints ([`NodeReport::SETTINGS`]), as they are in force.
        settings: BTreeMap<String, SettingValue>,
    },
}

/// A setting as a node has it now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingValue {
    /// `pg_settings.setting`.
    pub value: String,
    /// Whether `postgresql.auto.conf` or a configuration file gives it, so that ALTER SYSTEM can change it (a command
    /// line option cannot be overruled).
    pub changeable: bool,
}

impl NodeReport {
    /// The settings that a standby reports.
    pub const SETTINGS: [&'static str; 5] = [
        "primary_conninfo",
        "primary_slot_name",
        "restore_command",
        "recovery_min_apply_delay",
        "max_standby_streaming_delay",
    ];

    /// Which run of the server answered.
    pub fn run(&self) -> ServerRun {
        ServerRun { started_at: self.started_at, checkpointer: self.checkpointer }
    }

    /// Whether it is not in recovery.
    pub fn is_primary(&self) -> bool {
        matches!(self.role, ReportedRole::Primary { .. })
    }

    /// How far its WAL reaches: flushed on a primary, the greater of received and replayed on a standby (a restarted
    /// receiver reports less than what is there: PostgreSQL's `pg_last_wal_receive_lsn()` goes back to the start of
    /// the segment).
    pub fn position(&self) -> Option<Lsn> {
        match &self.role {
            ReportedRole::Primary { flushed, .. } => Some(*flushed),
            ReportedRole::Standby { received, replayed, .. } => (*received).max(*replayed),
        }
    }

    /// Whether two positions lie in one WAL segment; a position at its end is in the next one.
    pub fn in_one_segment(&self, one: Lsn, other: Lsn) -> bool {
        let segment = |at: Lsn| at.0.checked_div(self.wal_segment_size);
        segment(one) == segment(other)
    }

    /// How far a standby has replayed, if it says so.
    pub fn replayed(&self) -> Option<Lsn> {
        match &self.role {
            ReportedRole::Primary { .. } => None,
            ReportedRole::Standby { replayed, .. } => *replayed,
        }
    }

    /// The receiver that streams right now, if any.
    pub fn streaming_receiver(&self) -> Option<&Receiver> {
        match &self.role {
            ReportedRole::Standby { receiver: Some(receiver), .. } if receiver.streaming => Some(receiver),
            _ => None,
        }
    }
}

/// A standby that streams from a primary: a row of `pg_stat_replication`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// `application_name`: the node's name, where nodes are configured so.
    pub application_name: String,
    /// `state` is `streaming`.
    pub streaming: bool,
    /// `flush_lsn`.
    pub flushed: Option<Lsn>,
    /// `replay_lsn`.
    pub replayed: Option<Lsn>,
    /// `sync_state` is `sync` or `quorum`.
    pub synchronous: bool,
}

/// From whom a standby streams: the row of `pg_stat_wal_receiver`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    /// `status` is `streaming`.
    pub streaming: bool,
    /// `sender_host` as the standby's conninfo gives it.
    pub sender_host: String,
    /// `sender_port`.
    pub sender_port: u16,
    /// `received_tli`.
    pub timeline: TimelineId,
    /// How long ago the last message came from the sender, by the standby's own clock.
    pub last_message_age: Option<Duration>,
    /// `slot_name`.
    pub slot: Option<String>,
}

/// Why there is no report. Typed, because each is different evidence: only some of them speak against a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ProbeFailure {
    /// Nothing listens there, or it closed the connection at once.
    #[error("connection refused: {0}")]
    Refused(String),
    /// No answer in time; says nothing about who is at fault.
    #[error("no answer within {}ms", .0.as_millis())]
    TimedOut(Duration),
    /// It answered as a primary in time, and has not ended a small commit that waits for its own disk alone, although the
    /// commit was sent longer ago than a probe may take.
    #[error("it answers, but a commit does not end within {}ms", .0.as_millis())]
    WriteStalled(Duration),
    /// A standing connection broke.
    #[error("connection lost: {0}")]
    Lost(String),
    /// The node does not accept metako's user or password (28xxx).
    #[error("log-in refused: {0}")]
    Authentication(String),
    /// All connection slots are taken (53300): alive.
    #[error("too many connections: {0}")]
    TooManyConnections(String),
    /// Starting up or in crash recovery (57P03): alive.
    #[error("starting up: {0}")]
    StartingUp(String),
    /// Shutting down (57P03, 57P01).
    #[error("shutting down: {0}")]
    ShuttingDown(String),
    /// A write was refused because the node is in recovery or read-only (25006).
    #[error("read-only: {0}")]
    ReadOnly(String),
    /// The host name could not be resolved, or the network is unreachable from here.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The node answered something unexpected.
    #[error("unexpected answer: {0}")]
    Unexpected(String),
    /// The access does not know the question (simulator).
    #[error("not supported here: {0}")]
    Unsupported(String),
}

impl ProbeFailure {
    /// What kind of failure it is, in the manner of an identifier.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::TimedOut(_) => "timed_out",
            Self::WriteStalled(_) => "write_stalled",
            Self::Lost(_) => "lost",
            Self::Authentication(_) => "authentication",
            Self::TooManyConnections(_) => "too_many_connections",
            Self::StartingUp(_) => "starting_up",
            Self::ShuttingDown(_) => "shutting_down",
            Self::ReadOnly(_) => "read_only",
            Self::Unreachable(_) => "unreachable",
            Self::Unexpected(_) => "unexpected",
            Self::Unsupported(_) => "unsupported",
        }
    }
}
