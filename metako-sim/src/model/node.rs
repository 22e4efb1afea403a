//! One node: what it is configured to be, and what it is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metako_core::{Lsn, NodeName, SystemId, Tick, TimelineId};

use super::wal::Wal;
use super::{NodeEvent, conninfo};
use crate::message::{CallId, LinkId, Ticket};
use crate::scenario::Span;
use crate::stage::Event;

/// What a node is made of.
#[derive(Debug, Clone)]
pub(crate) struct NodeSpec {
    pub(crate) name: NodeName,
    /// How other nodes reach it.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) application_name: String,
    pub(crate) rates: Rates,
}

/// How fast a node is, all filled in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) fsync: Span,
    pub(crate) replay_delay: Span,
    pub(crate) promote: Span,
    pub(crate) start: Span,
    pub(crate) retry_interval: Duration,
    pub(crate) receiver_timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Stopped,
    Starting,
    Running,
    /// A shutdown in order is under way: no session is left, walsenders go on.
    Stopping,
}

/// What `pg_last_wal_receive_lsn()` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// NULL: nothing was streamed since the start.
    Nothing,
    /// The receiver began there and brought nothing yet.
    From(Lsn),
    /// All that is on disk.
    All,
}

/// A walreceiver.
#[derive(Debug, Clone)]
pub(crate) struct Receiver {
    pub(crate) link: LinkId,
    pub(crate) upstream: usize,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) slot: Option<String>,
    /// The timeline that it streams; none while it connects.
    pub(crate) timeline: Option<TimelineId>,
    pub(crate) last_message: Tick,
    pub(crate) pinged: bool,
    pub(crate) stopping: bool,
}

/// A walsender.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    pub(crate) link: LinkId,
    pub(crate) standby: usize,
    pub(crate) application_name: String,
    pub(crate) streaming: bool,
    /// It will run soon.
    pub(crate) waking: bool,
    pub(crate) sent: Lsn,
    pub(crate) flushed: Option<Lsn>,
    pub(crate) replayed: Option<Lsn>,
}

/// A commit that waits for the disk, and for standbys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waiter {
    pub(crate) end: Lsn,
    pub(crate) who: Who,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Who {
    Client(Ticket),
    Call(CallId),
}

#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about processes and disk, not one state"
)]
pub(crate) struct Node {
    pub(crate) name: NodeName,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) application_name: String,
    pub(crate) rates: Rates,
    pub(crate) system_id: SystemId,
    pub(crate) process: Process,
    pub(crate) frozen: bool,
    /// Nothing that has to reach its disk ends.
    pub(crate) stalled: bool,
    /// Its recovery comes to no end.
    pub(super) recovering: bool,
    /// It would be ready, but for that.
    pub(super) nearly_ready: bool,
    /// What ends when its disk goes on.
    pub(crate) awaiting_disk: Vec<NodeEvent>,
    /// The postmaster was told to stop while it was frozen: it sees that when it goes on.
    pub(crate) stop_pending: bool,
    /// The shutdown's last record is written.
    pub(crate) closed_log: bool,
    /// A hook works on its data directory: it cannot be started.
    pub(crate) locked: bool,
    /// The timeline in its control file: where the last checkpoint was written.
    pub(crate) control_timeline: TimelineId,
    /// Counts the lives of its processes.
    pub(crate) run: u32,
    pub(crate) started: Tick,
    pub(crate) primary: bool,
    pub(crate) promoting: bool,
    pub(crate) wal: Wal,
    pub(crate) flushing: bool,
    pub(crate) replaying: bool,
    pub(crate) replay_generation: u64,
    pub(crate) received: Received,
    /// Settings in force.
    settings: BTreeMap<String, String>,
    /// Settings on disk: in force after a reload or a restart.
    pub(crate) written_settings: BTreeMap<String, String>,
    pub(crate) slots: BTreeSet<String>,
    pub(crate) receiver: Option<Receiver>,
    /// The receiver's settings changed, and the startup process has not seen to it yet.
    pub(crate) restart_receiver: bool,
    pub(crate) retry_pending: bool,
    pub(crate) senders: Vec<Sender>,
    pub(crate) waiters: Vec<Waiter>,
    /// As a primary: commits up to here are visible to others.
    pub(crate) visible: Lsn,
    /// What arrived while it was frozen.
    pub(crate) stash: Vec<Event>,
}

impl Node {
    pub(crate) fn new(spec: NodeSpec) -> Self {
        let NodeSpec { name, host, port, application_name, rates } = spec;
        Self {
            name,
            host,
            port,
            application_name,
            rates,
            system_id: SystemId(7_234_567_890_123_456_789),
            process: Process::Running,
            frozen: false,
            stalled: false,
            recovering: false,
            nearly_ready: false,
            awaiting_disk: Vec::new(),
            stop_pending: false,
            closed_log: false,
            locked: false,
            control_timeline: TimelineId(1),
            run: 1,
            started: Tick::ZERO,
            primary: true,
            promoting: false,
            wal: Wal::new(Lsn(0x0300_0060)),
            flushing: false,
            replaying: false,
            replay_generation: 0,
            received: Received::Nothing,
            settings: BTreeMap::new(),
            written_settings: BTreeMap::new(),
            slots: BTreeSet::new(),
            receiver: None,
            restart_receiver: false,
            retry_pending: false,
            senders: Vec::new(),
            waiters: Vec::new(),
            visible: Lsn(0),
            stash: Vec::new(),
        }
    }

    pub(crate) fn make_standby_of(&mut self, upstream: &NodeSpec) {
        self.primary = false;
        let conninfo = format!(
            "host={} port={} user=replicator application_name='{}'",
            upstream.host, upstream.port, self.application_name
        );
        self.set("primary_conninfo", &conninfo);
        let slot = self.slot_name();
        self.set("primary_slot_name", &slot);
    }

    /// The slot that this node has on its upstream at the start: its application name, in the letters that slots have.
    pub(crate) fn slot_name(&self) -> String {
        let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        self.application_name.chars().map(letter).collect()
    }

    /// Sets a setting on disk and in force.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.written_settings.insert(name.to_owned(), value.to_owned());
        self.settings.insert(name.to_owned(), value.to_owned());
    }

    /// A setting in force; empty if it was never set.
    pub(crate) fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    /// What is on disk and not in force.
    pub(crate) fn settings_to_load(&self) -> Vec<(String, String)> {
        let fresh = |(name, value): &(&String, &String)| self.setting(name) != value.as_str();
        let written = self.written_settings.iter().filter(fresh);
        written.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// What is on disk comes into force.
    pub(crate) fn load_settings(&mut self) {
        self.settings.clone_from(&self.written_settings);
    }

    pub(crate) fn is_up(&self) -> bool {
        self.process == Process::Running && !self.frozen
    }

    /// `recovery_min_apply_delay`: a number of milliseconds, or with a unit.
    pub(crate) fn apply_delay(&self) -> Duration {
        let text = self.setting("recovery_min_apply_delay").trim();
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match text[digits.len()..].trim() {
            "s" => 1_000,
            "min" => 60_000,
            "h" => 3_600_000,
            _ => 1,
        };
        Duration::from_millis(digits.parse::<u64>().unwrap_or(0).saturating_mul(unit))
    }

    /// Where `primary_conninfo` leads: host, port and the name that the standby gives itself.
    pub(crate) fn upstream_address(&self) -> Option<(String, u16, String)> {
        let pairs = conninfo::parse(self.setting("primary_conninfo"))?;
        let host = pairs.get("host").filter(|host| !host.is_empty())?.clone();
        let port = pairs.get("port").map_or(Some(5432), |port| port.parse().ok())?;
        let name = pairs.get("application_name").map_or("walreceiver", String::as_str);
        Some((host, port, name.to_owned()))
    }

    /// The process id of its checkpointer: each life of its processes has another one.
    pub(crate) fn checkpointer(&self) -> Option<i32> {
        i32::try_from(self.run).ok()
    }

    /// The node that its receiver streams from, if it streams.
    pub(crate) fn streams_from(&self) -> Option<usize> {
        self.receiver
            .as_ref()
            .filter(|receiver| receiver.timeline.is_some())
            .map(|receiver| receiver.upstream)
    }
}
