//! What travels between the proxy and the nodes.

use std::time::Duration;

use metako_core::cluster::{ActionFailure, ActionOutcome, Promotion, SettingsChange};
use metako_core::plugin::{NodeReport, ProbeFailure};
use metako_core::{Epoch, Lsn, TimelineId};

/// Where a message comes from or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    /// metako.
    Proxy,
    /// A node, by its index.
    Node(usize),
}

impl Place {
    pub(crate) fn key(self) -> u64 {
        match self {
            Self::Proxy => 0,
            Self::Node(index) => index as u64 + 1,
        }
    }
}

/// Ties an answer to a call of the control plane.
pub(crate) type CallId = u64;

/// A replication connection.
pub(crate) type LinkId = u64;

/// A client's request, as the server sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// The client.
    pub(crate) client: u32,
    /// Counts its requests, retries included.
    pub(crate) attempt: u64,
    /// The write, or 0 for a read.
    pub(crate) id: u64,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) from: Place,
    pub(crate) to: Place,
    pub(crate) body: Body,
}

#[derive(Debug)]
pub(crate) enum Body {
    /// The control plane asks; `server_run` is the run of the server that the connection leads to. A call that `lingers`
    /// lies in the buffer of a standing connection, and is carried out even if it arrives after it was given up.
    Call { call: CallId, server_run: u32, lingers: bool, request: Request },
    /// A node answers the control plane.
    Answer { call: CallId, answer: Answer },
    /// A client's write or read; `vouched` tells whether the connection is to a run of the server that clients may be sent to.
    Query { ticket: Ticket, server_run: u32, write: bool, vouched: bool },
    /// A node answers a client.
    QueryAnswer { ticket: Ticket, answer: QueryAnswer },
    /// The node's kernel closed all connections of that run.
    Reset { server_run: u32 },
    /// A standby connects for replication.
    Connect { link: LinkId, application_name: String, slot: Option<String> },
    /// The upstream's answer.
    Connected { link: LinkId, result: Result<TimelineId, String> },
    /// WAL up to a position, or a keepalive if there is nothing new.
    Wal { link: LinkId, end: Lsn },
    /// The upstream's timeline changed under a cascading connection.
    TimelineSwitched { link: LinkId },
    /// How far the standby has come; `ping` asks for an answer.
    StandbyStatus { link: LinkId, flushed: Lsn, replayed: Lsn, ping: bool },
    /// One side closed a replication connection.
    Closed { link: LinkId },
}

/// What the control plane can ask of a node.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// Run the probe strategy.
    Probe,
    /// Create slots, change settings, reload.
    Apply { slots: Vec<String>, change: SettingsChange },
    /// Promote, on a condition.
    Promote(Promotion),
    /// Commit the marker of an epoch.
    Verify(Epoch),
    /// Write a checkpoint.
    Checkpoint,
    /// Drop slots that nobody uses.
    DropSlots(Vec<String>),
}

#[derive(Debug)]
pub(crate) enum Answer {
    Probe(Box<Result<NodeReport, ProbeFailure>>),
    Action(Result<ActionOutcome, ActionFailure>),
    /// Nothing listens.
    Refused,
    /// The connection was closed before there was an answer.
    Reset,
    /// 57P03
    Starting,
    /// 57P03 as well, on the way down.
    ShuttingDown,
}

/// How a server answers a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryAnswer {
    /// Committed, or read; commits up to `visible` could be seen.
    Done { primary: bool, timeline: TimelineId, visible: Lsn },
    /// The connection was opened, and is to a run of the server that clients may not be sent to: nothing was sent.
    Stranger,
    /// 25006: nothing happened.
    ReadOnly,
    /// Nothing listens: nothing happened.
    Refused,
    /// 57P03, on the way up or down: nothing happened.
    Starting,
    /// The connection was closed, and what was sent is lost with it; whether it happened is not known.
    Reset,
}

/// How long a server works on an answer that needs no disk, in microseconds.
pub(crate) const ANSWER_MICROS: (u64, u64) = (100, 600);

impl Request {
    /// After this the driver of the control plane gives an action up, as the proxy's does.
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_secs(match self {
            Self::Checkpoint => 300,
            Self::Verify(_) => 10,
            Self::Probe | Self::DropSlots(_) | Self::Apply { .. } | Self::Promote(_) => 5,
        })
    }
}
