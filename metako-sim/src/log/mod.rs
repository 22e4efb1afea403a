//! What happened in a run: one entry per event, action and decision. Checkers read it, people read it, and two runs are
//! the same when their logs are.

mod text;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use metako_core::cluster::{
    Action, ActionFailure, ActionId, ActionOutcome, Decision, HookKind, Journal, OperatorCommand, Phase,
    ProbeId, ServerLoss, Writes,
};
use metako_core::plugin::{NodeReport, ProbeFailure};
use metako_core::{Epoch, Lsn, NodeName, Tick, TimelineId};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// When.
    pub at: Tick,
    /// What.
    pub event: LogEvent,
}

/// What can happen.
#[derive(Debug, Clone, PartialEq)]
pub enum LogEvent {
    /// A fault of the scenario began or ended.
    Fault(String),
    /// A person asked for something.
    Asked {
        /// What.
        command: OperatorCommand,
        /// Why it is not done, if it is not.
        refusal: Option<String>,
    },
    /// A hook began or ended on a node's host.
    Hook {
        /// The host's node.
        node: NodeName,
        /// Which hook.
        kind: HookKind,
        /// What became of it.
        change: HookChange,
    },
    /// Something changed in a node.
    Node {
        /// The node.
        node: NodeName,
        /// What changed.
        change: NodeChange,
    },
    /// The controller asked for something (views, decisions and journals have entries of their own).
    Action(Action),
    /// An action was answered.
    Answered {
        /// The action.
        id: ActionId,
        /// How it ended.
        outcome: Result<ActionOutcome, ActionFailure>,
    },
    /// A probe was answered.
    Probed {
        /// The probe.
        id: ProbeId,
        /// Whom it asked.
        node: NodeName,
        /// What it found.
        result: Result<NodeReport, ProbeFailure>,
    },
    /// The controller was told that a server connection was lost.
    ServerLost {
        /// The node.
        node: NodeName,
        /// How.
        loss: ServerLoss,
    },
    /// The journal is on disk.
    JournalSynced(Box<Journal>),
    /// The controller decided something.
    Decision(Decision),
    /// The data plane got a new view.
    View {
        /// Its version.
        version: u64,
        /// Its epoch.
        epoch: Epoch,
        /// Its phase.
        phase: Phase,
        /// Whether writes are open.
        writes: Writes,
    },
    /// Writes are open to another node, or in another epoch, than before.
    Opened {
        /// To whom.
        primary: NodeName,
        /// In which epoch.
        epoch: Epoch,
        /// The writes on its disk.
        holds: BTreeSet<u64>,
    },
    /// The data plane closed its connections to a node.
    Severed {
        /// The node.
        node: NodeName,
        /// Connections of epochs before this one are closed.
        epoch: Epoch,
    },
    /// The proxy was killed.
    ProxyKilled,
    /// The proxy started, with or without a journal.
    ProxyStarted {
        /// The epoch of the journal, if there is one.
        epoch: Option<Epoch>,
    },
    /// A client's request.
    Client(ClientEvent),
    /// A strategy did something that the simulator cannot run, or a bug of the driver showed.
    Broken(String),
    /// How things stand at the end.
    End(Box<EndState>),
}

/// What can become of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookChange {
    /// It began on the host.
    Began,
    /// It ended, well or badly.
    Ended(Result<(), String>),
}

/// What can change in a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeChange {
    /// Its processes died.
    Killed,
    /// It was told to stop in order: its sessions are gone, its walsenders go on to the end.
    Stopping,
    /// It stopped in order.
    Stopped {
        /// How far its WAL reaches.
        position: Lsn,
    },
    /// A checkpoint was written.
    Checkpointed,
    /// Its data directory is now a copy of another node's, and it a standby of that node.
    Copied {
        /// Of whom.
        upstream: NodeName,
        /// How far the copy reaches.
        position: Lsn,
    },
    /// It was started and recovers.
    Starting,
    /// It takes connections.
    Ready {
        /// As primary or standby.
        primary: bool,
        /// On which timeline.
        timeline: TimelineId,
        /// How far its WAL reaches.
        position: Lsn,
    },
    /// Its processes are stopped.
    Frozen,
    /// Its processes go on.
    Thawed,
    /// A promotion was accepted.
    Promoting,
    /// It is a primary now.
    Promoted {
        /// The timeline that it began.
        timeline: TimelineId,
        /// Where.
        fork: Lsn,
        /// Whether a standby or the old primary has a record beyond the fork on its disk. (Not known to anybody in the
        /// simulated world.)
        ahead: Vec<NodeName>,
    },
    /// Its receiver streams.
    Streaming {
        /// From whom.
        upstream: NodeName,
        /// Which timeline.
        timeline: TimelineId,
    },
    /// Its receiver ended.
    ReceiverGone {
        /// Why.
        reason: String,
    },
    /// Settings were reloaded.
    Reloaded {
        /// Those that changed.
        changed: Vec<(String, String)>,
    },
    /// It streams from a node whose history is another under the same timeline number; PostgreSQL does not notice.
    DivergedUnnoticed {
        /// From whom it streams.
        upstream: NodeName,
    },
}

/// What happens to a client's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// A write waits for a primary.
    Held {
        /// The write.
        id: u64,
    },
    /// A write was sent.
    Sent {
        /// The write.
        id: u64,
        /// To whom.
        node: NodeName,
        /// In which epoch its connection was checked out.
        epoch: Epoch,
    },
    /// The client was told that its write is committed.
    Acknowledged {
        /// The write.
        id: u64,
        /// By whom.
        node: NodeName,
        /// On which timeline.
        timeline: TimelineId,
        /// In which epoch its connection was checked out.
        epoch: Epoch,
    },
    /// The client was told that the outcome is unknown.
    Unknown {
        /// The write.
        id: u64,
        /// Why.
        reason: &'static str,
    },
    /// The client was told that the write failed; it certainly did not happen.
    Failed {
        /// The write.
        id: u64,
        /// Why.
        reason: &'static str,
    },
    /// An answer came for a request that the proxy had given up; no client saw it.
    Discarded {
        /// The write.
        id: u64,
        /// Who answered.
        node: NodeName,
    },
    /// A read was answered.
    Read {
        /// The client.
        client: u32,
        /// By whom.
        node: NodeName,
        /// Whether it is a primary.
        primary: bool,
        /// On which timeline.
        timeline: TimelineId,
        /// Of a primary: which others have all writes on disk that could be seen.
        held_by: Vec<NodeName>,
        /// Whether what it saw is of the history of a node that writes were opened to last, at some time between its beginning
        /// and its end.
        on_history: bool,
        /// Since when that node had something on disk that the read did not see.
        behind: Duration,
    },
    /// A read waits for a node that may serve it.
    ReadHeld {
        /// The client.
        client: u32,
    },
    /// A read that was held goes on.
    ReadSent {
        /// The client.
        client: u32,
        /// To whom.
        node: NodeName,
    },
    /// A read failed.
    ReadFailed {
        /// The client.
        client: u32,
        /// Why.
        reason: &'static str,
    },
}

/// How things stand at the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndState {
    /// The node that clients write to, if writes are open.
    pub primary: Option<NodeName>,
    /// All nodes.
    pub nodes: Vec<EndNode>,
}

/// How a node stands at the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndNode {
    /// Its name.
    pub node: NodeName,
    /// Whether it runs, is not frozen, and no link to it is cut.
    pub well: bool,
    /// Whether it is a primary.
    pub primary: bool,
    /// Its timeline.
    pub timeline: TimelineId,
    /// How far its WAL reaches.
    pub position: Lsn,
    /// From whom it streams.
    pub streams_from: Option<NodeName>,
    /// Whether its log lies on the history of the primary that clients write to.
    pub on_history: bool,
    /// The writes on its disk.
    pub holds: BTreeSet<u64>,
}

/// The log of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Log {
    entries: Vec<Entry>,
}

impl Log {
    /// Adds an entry.
    pub(crate) fn push(&mut self, at: Tick, event: LogEvent) {
        self.entries.push(Entry { at, event });
    }

    /// All entries, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How things stand at the end; none while the run goes on.
    pub fn end(&self) -> Option<&EndState> {
        match &self.entries.last()?.event {
            LogEvent::End(end) => Some(end),
            _ => None,
        }
    }

    /// FNV-1a over the text of all entries: equal for equal runs, in every process and on every machine.
    pub fn hash(&self) -> u64 {
        let mut hash = Fnv(0xCBF2_9CE4_8422_2325);
        for entry in &self.entries {
            // Writing into the hash cannot fail.
            let _ = fmt::write(&mut hash, format_args!("{entry}\n"));
        }
        hash.0
    }

    /// The whole text, one line per entry.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            // Writing into a string cannot fail.
            let _ = fmt::write(&mut text, format_args!("{entry}\n"));
        }
        text
    }
}

struct Fnv(u64);

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
        Ok(())
    }
}
