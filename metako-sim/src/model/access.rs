//! How the probe strategies see a node of the model.

use std::time::Duration;

use async_trait::async_trait;
use metako_core::TimelineId;
use metako_core::plugin::{
    NodeAccess, NodeReport, ProbeFailure, Receiver, ReportedRole, Sender, SettingValue,
};

use super::node::{Node, Received};
use super::wal::SEGMENT_BYTES;
use super::{Cluster, SyncNames};
use crate::chance::Purpose;
use crate::message::{ANSWER_MICROS, Answer};
use crate::scenario::{Span, micros};
use crate::stage::Stage;

/// `server_version_num` of the model.
const VERSION: u32 = 170_005;
/// The start of the simulated time, in microseconds since 1970.
const TIME_BASE: i64 = 1_800_000_000_000_000;

/// A node that is up, as a probe sees it at one moment. Answers are ready at once; what they would have taken adds up in
/// [`Self::took`].
pub(crate) struct Access<'a> {
    cluster: &'a mut Cluster,
    stage: &'a mut Stage,
    index: usize,
    took: Duration,
}

impl<'a> Access<'a> {
    pub(crate) fn new(cluster: &'a mut Cluster, stage: &'a mut Stage, index: usize) -> Self {
        Self { cluster, stage, index, took: Duration::ZERO }
    }

    /// How long the server worked on the answers so far.
    pub(crate) fn took(&self) -> Duration {
        self.took
    }

    fn spend(&mut self) {
        let (low, high) = ANSWER_MICROS;
        self.took += self.stage.chance.duration(Purpose::Answer, self.index as u64, Span::micros(low, high));
    }
}

#[async_trait]
impl NodeAccess for Access<'_> {
    async fn report(&mut self) -> Result<NodeReport, ProbeFailure> {
        self.spend();
        let latency = self.took;
        Ok(report(self.cluster, self.stage, self.index, latency))
    }

    async fn commit(&mut self) -> Result<Duration, ProbeFailure> {
        self.spend();
        let node = self.cluster.node(self.index);
        if !node.primary {
            return Err(ProbeFailure::ReadOnly("cannot execute COMMIT during recovery".to_owned()));
        }
        let fsync = node.rates.fsync;
        let stalled = node.stalled;
        self.cluster.append_other(self.stage, self.index);
        if stalled {
            // The proxy, which has the report, waits for it until the probe's time is over.
            return Err(ProbeFailure::WriteStalled(Duration::ZERO));
        }
        let flush = self.stage.chance.duration(Purpose::Flush, self.index as u64, fsync);
        self.took += flush;
        Ok(flush)
    }

    async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, ProbeFailure> {
        self.spend();
        let value = match sql.trim().trim_end_matches(';').to_ascii_lowercase().as_str() {
            "select 1" => "1",
            "select pg_is_in_recovery()" if self.cluster.node(self.index).primary => "f",
            "select pg_is_in_recovery()" => "t",
            _ => return Err(ProbeFailure::Unsupported(format!("the model does not know `{sql}`"))),
        };
        Ok(vec![vec![Some(value.to_owned())]])
    }
}

/// What a probe finds where there is no server to ask.
pub(crate) fn probe_failed(answer: Answer) -> Result<NodeReport, ProbeFailure> {
    match answer {
        Answer::Probe(result) => *result,
        Answer::Refused => Err(ProbeFailure::Refused("nothing listens".to_owned())),
        Answer::Reset => Err(ProbeFailure::Lost("connection reset".to_owned())),
        Answer::Starting => Err(ProbeFailure::StartingUp("the database system is starting up".to_owned())),
        Answer::ShuttingDown => {
            Err(ProbeFailure::ShuttingDown("the database system is shutting down".to_owned()))
        }
        Answer::Action(outcome) => Err(ProbeFailure::Unexpected(format!("{outcome:?}"))),
    }
}

fn report(cluster: &Cluster, stage: &Stage, index: usize, latency: Duration) -> NodeReport {
    let node = cluster.node(index);
    let started_at = TIME_BASE.saturating_add_unsigned(node.started.0);
    let (timeline, role) =
        if node.primary { (node.wal.timeline(), primary_role(node)) } else { standby_role(node, stage) };
    let checkpointer = node.checkpointer();
    NodeReport {
        system_id: node.system_id,
        version: VERSION,
        started_at,
        wal_segment_size: SEGMENT_BYTES,
        checkpointer,
        timeline,
        role,
        latency,
    }
}

fn primary_role(node: &Node) -> ReportedRole {
    let synchronous_standby_names = node.setting("synchronous_standby_names").to_owned();
    let names = SyncNames::parse(&synchronous_standby_names).unwrap_or(SyncNames::Nobody);
    let senders = node.senders.iter().map(|sender| Sender {
        application_name: sender.application_name.clone(),
        streaming: sender.streaming,
        flushed: sender.flushed,
        replayed: sender.replayed,
        synchronous: sender.streaming && names.names(&sender.application_name),
    });
    ReportedRole::Primary {
        flushed: node.wal.flushed(),
        senders: senders.collect(),
        synchronous_standby_names,
        read_only: false,
    }
}

fn standby_role(node: &Node, stage: &Stage) -> (TimelineId, ReportedRole) {
    let receiver = node.receiver.as_ref().and_then(|receiver| {
        Some(Receiver {
            streaming: true,
            sender_host: receiver.host.clone(),
            sender_port: receiver.port,
            timeline: receiver.timeline?,
            last_message_age: Some(stage.now.since(receiver.last_message)),
            slot: receiver.slot.clone(),
        })
    });
    let timeline =
        receiver.as_ref().map_or_else(|| node.wal.flushed_timeline(), |receiver| receiver.timeline);
    let startup_wait = if !node.wal.has_backlog() {
        Some(if node.receiver.is_some() { "RecoveryWalStream" } else { "RecoveryRetrieveRetryInterval" })
    } else if node.apply_delay().is_zero() {
        None
    } else {
        Some("RecoveryApplyDelay")
    };
    let replay_lag = if node.wal.has_backlog() {
        node.wal.last_replayed().map(|record| stage.now.since(record.written))
    } else {
        Some(Duration::ZERO)
    };
    let settings = NodeReport::SETTINGS
        .iter()
        .map(|name| {
            let value = match *name {
                "recovery_min_apply_delay" => node.apply_delay().as_millis().to_string(),
                "max_standby_streaming_delay" if node.setting(name).is_empty() => "30000".to_owned(),
                name => node.setting(name).to_owned(),
            };
            ((*name).to_owned(), SettingValue { value, changeable: true })
        })
        .collect();
    let role = ReportedRole::Standby {
        received: match node.received {
            Received::Nothing => None,
            Received::From(start) => Some(start),
            Received::All => Some(node.wal.flushed()),
        },
        replayed: Some(node.wal.replayed()),
        replay_lag: replay_lag.map(|lag| Duration::from_micros(micros(lag))),
        receiver,
        receiver_process: node.receiver.is_some(),
        startup_wait: startup_wait.map(str::to_owned),
        settings,
    };
    (timeline, role)
}
