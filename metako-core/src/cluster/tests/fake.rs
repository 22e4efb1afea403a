//! A scripted cluster's parts: its configuration, an eager policy and nodes that answer what they are told to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{
    Acks, ClusterSettings, FailoverMode, FailoverSettings, Hook, Hooks, NoVoter, Node, NodeTls, Priority,
    ReplicationAddress, Secret, SslMode, Synchronous, UnknownOutcome,
};
use crate::plugin::{
    Assessment, BuildError, Electable, Evidence, FailoverPolicy, FailoverPolicySpec, Policy, PrimaryEvidence,
    ServerRun,
};
use crate::{Lsn, SystemId, TimelineId};

/// A node on localhost.
pub(crate) fn node(name: &str, port: u16) -> Node {
    Node {
        name: name.into(),
        host: "localhost".to_owned(),
        port,
        role: None,
        username: "postgres".to_owned(),
        password: Secret::new("password"),
        database: "postgres".to_owned(),
        weight: 1,
        zone: None,
        priority: Priority::Rank(100),
        tls: NodeTls::new(SslMode::Prefer),
        application_name: name.to_owned(),
        pgdata: None,
        replication: ReplicationAddress {
            host: "localhost".to_owned(),
            port,
            user: None,
            password: None,
            passfile: None,
        },
    }
}

/// Nodes a, b and c on ports 5001 to 5003, asynchronous.
pub(crate) fn settings() -> ClusterSettings {
    ClusterSettings {
        name: "main".to_owned(),
        nodes: vec![node("a", 5001), node("b", 5002), node("c", 5003)],
        interval: Duration::from_secs(1),
        timeout: Duration::from_millis(500),
        failure_threshold: 3,
        max_lag: Some(Duration::from_secs(10)),
        failover: FailoverSettings {
            mode: FailoverMode::Automatic,
            synchronous: None,
            silent_after: Duration::from_millis(2500),
            stalled_after: Duration::from_secs(10),
            start_timeout: Some(Duration::from_mins(5)),
            async_restart_grace: Duration::ZERO,
            hold_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            hold_clients: 1000,
            hold_bytes: 1 << 20,
            budget: (2, Duration::from_mins(10)),
            max_lag_on_failover: None,
            unknown_outcome: UnknownOutcome::TransactionResolutionUnknown,
        },
        hooks: Hooks::default(),
    }
}

/// With both hooks.
pub(crate) fn hooked(mut settings: ClusterSettings) -> ClusterSettings {
    let hook = |name: &str| Some(Hook { command: vec![name.to_owned()], timeout: Duration::from_mins(1) });
    settings.hooks = Hooks { stop: hook("stop-it"), rejoin: hook("rejoin-it"), withheld: Vec::new() };
    settings
}

pub(super) fn synchronous(acks: u32, on_no_voter: NoVoter) -> ClusterSettings {
    let mut settings = settings();
    settings.failover.synchronous = Some(Synchronous { acks: Acks(acks), on_no_voter, commit_guard: false });
    settings
}

/// Fails over on everything that is not healthy, and prefers names late in the alphabet: the core has to do the rest.
struct Eager;

#[derive(Debug, Serialize, Deserialize)]
struct EagerSpec {}

#[typetag::serde(name = "eager")]
impl FailoverPolicySpec for EagerSpec {
    fn build(&self) -> Result<Box<dyn FailoverPolicy>, BuildError> {
        Ok(Box::new(Eager))
    }
}

/// The policy of these tests.
pub(crate) fn eager() -> Policy {
    Policy::build(Arc::new(EagerSpec {})).unwrap()
}

impl FailoverPolicy for Eager {
    fn assess(&self, evidence: &Evidence) -> Assessment {
        let patience = match evidence.kind {
            PrimaryEvidence::Silent => evidence.silent_after,
            PrimaryEvidence::WriteStalled => evidence.stalled_after,
            _ => Duration::ZERO,
        };
        if evidence.standing < patience {
            return Assessment::Wait {
                reason: format!("{} is {:?}", evidence.primary, evidence.kind),
                ask_again_in: Some(patience.saturating_sub(evidence.standing)),
            };
        }
        Assessment::FailOver { reason: format!("{} is {:?}", evidence.primary, evidence.kind) }
    }

    fn rank(&self, electable: &mut [Electable]) {
        electable.sort_by(|a, b| b.node.cmp(&a.node));
    }
}

/// How a node answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Up,
    Refused,
    Silent,
    Starting,
    Full,
    NoLogin,
    /// Its disk stands still: it answers and streams, and nothing that has to reach the disk ends.
    Stalled,
}

/// A scripted PostgreSQL.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about a server, not one state")]
pub(super) struct Fake {
    pub(super) line: Line,
    /// Whether other nodes reach it.
    pub(super) reachable_by_others: bool,
    pub(super) primary: bool,
    pub(super) system_id: SystemId,
    pub(super) timeline: TimelineId,
    pub(super) received: Option<Lsn>,
    pub(super) replayed: Lsn,
    pub(super) connecting: bool,
    pub(super) startup_wait: Option<String>,
    /// Its settings cannot be changed by SQL.
    pub(super) fixed: bool,
    /// Its receiver streams on from where it does, whatever the settings say.
    pub(super) deaf: bool,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) port: u16,
    pub(super) started_at: i64,
    pub(super) checkpointer: i32,
    /// Where its recovery ended when it was last started.
    pub(super) recovered: Lsn,
}

impl Fake {
    pub(super) fn new(port: u16, primary: bool) -> Self {
        let mut settings = BTreeMap::new();
        if !primary {
            settings.insert("primary_conninfo".to_owned(), "host=localhost port=5001 user=repl".to_owned());
            settings.insert("primary_slot_name".to_owned(), format!("slot_{port}"));
            settings.insert("max_standby_streaming_delay".to_owned(), "30000".to_owned());
        }
        Self {
            line: Line::Up,
            reachable_by_others: true,
            primary,
            system_id: SystemId(77),
            timeline: TimelineId(1),
            received: (!primary).then_some(Lsn(1000)),
            replayed: Lsn(1000),
            connecting: false,
            startup_wait: Some("RecoveryWalStream".to_owned()),
            fixed: false,
            deaf: false,
            settings,
            port,
            started_at: 1,
            checkpointer: 1,
            recovered: Lsn(0),
        }
    }

    /// It has, and has replayed, all up to there.
    pub(super) fn reach(&mut self, position: Lsn) {
        self.received = Some(position);
        self.replayed = position;
    }

    pub(super) fn position(&self) -> Lsn {
        self.received.unwrap_or_default().max(self.replayed)
    }

    /// Its server is started anew, and recovers all that it has.
    pub(super) fn start_anew(&mut self) {
        self.started_at += 1;
        self.recover();
    }

    /// One of its processes crashes, and the server recovers all that it has.
    pub(super) fn recover(&mut self) {
        self.checkpointer += 1;
        self.recovered = self.position();
    }

    /// The run of its server.
    pub(super) fn run(&self) -> ServerRun {
        ServerRun { started_at: self.started_at, checkpointer: Some(self.checkpointer) }
    }

    pub(super) fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    pub(super) fn upstream_port(&self) -> Option<u16> {
        let conninfo = self.setting("primary_conninfo");
        (5001..5010).find(|port| conninfo.contains(&port.to_string()))
    }
}
