//! [`NodeAccess`] over a real control connection.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use metako_core::config::Node;
use metako_core::plugin::{NodeAccess, NodeReport, ProbeFailure, ReportedRole};
use metako_core::{Tick, TimelineId};
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::timeout;

use super::connection::{Connection, Row};
use super::node_report;
use super::session::{Kind, Session};
use crate::backend::ServerTlsTable;
use crate::env::Env;
use crate::shared::EvidenceSender;

/// Writes WAL and flushes it, and waits for no standby. The message belongs to nobody: logical decoding passes it to
/// those who ask for messages with the prefix `metako`. Where writing is impossible, nothing is tried.
const COMMIT_PROBE: &str = "BEGIN; SET LOCAL synchronous_commit = local; \
     SELECT CASE WHEN pg_is_in_recovery() THEN 'in recovery' \
     ELSE pg_logical_emit_message(true, 'metako', 'probe')::text END; COMMIT";

/// How long a commit that nobody waits for any more keeps another one from being tried, on another connection: short
/// enough that more than one has hung before anybody acts on it by default. Doubled with each that hung, so that
/// the server processes that hang in writes do not fill all connection slots.
const COMMIT_GIVEN_UP: Duration = Duration::from_secs(4);
const DOUBLINGS_MAX: u32 = 6;

/// The control connections of one node for its health probes, opened at first use and again after trouble.
///
/// Cancellation-safe: a question takes its connection out and puts it back when its answer is complete, so a question that
/// was dropped half-way, like one that failed, closes its connection. A commit that was dropped goes on, and the next call
/// waits for the same one: a server process that hangs in a write cannot be called back, and on a stalled disk one for each
/// probe would soon fill all connection slots.
pub struct PgNode<E: Env> {
    env: E,
    node: Arc<Node>,
    tls: ServerTlsTable,
    sql: Session<E>,
    /// For a standby without a receiver, whose timeline only a replication command tells. Kept ready while it has one: when
    /// the primary dies, all standbys are asked at once, and none should have to wait for a log-in then.
    replication: Session<E>,
    /// For probes' own statements, which may leave the session in any state.
    custom: Session<E>,
    committing: Option<Connection>,
    commit: Option<CommitAttempt>,
    step: Step,
    hung: Option<Hung>,
}

/// How far the present probe has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Asking,
    /// The node has said what it is.
    Reported,
    /// And a commit is awaited since.
    Committing,
}

/// Commits that were given up, and none has ended after them.
#[derive(Debug, Clone, Copy)]
struct Hung {
    /// When the first was sent.
    since: Tick,
    count: u32,
}

/// A commit that is under way in a task of its own.
struct CommitAttempt {
    begun: Tick,
    limit: Duration,
    /// When it was sent: before that there is a log-in.
    sent: Arc<OnceLock<Tick>>,
    answer: oneshot::Receiver<(Result<Duration, ProbeFailure>, Option<Connection>)>,
}

impl<E: Env> PgNode<E> {
    /// Access to `node`; nothing is opened yet. `evidence` is told when the standing connection breaks between probes.
    pub fn new(env: E, node: Arc<Node>, tls: ServerTlsTable, evidence: Option<EvidenceSender>) -> Self {
        let session = |kind| Session::new(env.clone(), Arc::clone(&node), tls.clone(), kind);
        let (sql, replication, custom) = (session(Kind::Sql), session(Kind::Replication), session(Kind::Sql));
        let sql = sql.telling(evidence);
        Self {
            env,
            node,
            tls,
            sql,
            replication,
            custom,
            committing: None,
            commit: None,
            step: Step::Asking,
            hung: None,
        }
    }

    fn begin_commit(&mut self) -> CommitAttempt {
        let (sender, answer) = oneshot::channel();
        let sent = Arc::new(OnceLock::new());
        let doublings = self.hung.map_or(0, |hung| hung.count.min(DOUBLINGS_MAX));
        let limit = COMMIT_GIVEN_UP * 2_u32.pow(doublings);
        let is_sent = Arc::clone(&sent);
        let (env, node, standing) = (self.env.clone(), Arc::clone(&self.node), self.committing.take());
        let tls = self.tls.clone();
        self.env.spawn(async move {
            let mut standing = standing;
            let attempt = async {
                let connection = match standing.take() {
                    Some(connection) => connection,
                    None => Connection::open(&env, &node, &tls).await?,
                };
                let sent = *is_sent.get_or_init(|| env.now());
                let rows = connection.rows(COMMIT_PROBE).await?;
                Ok((rows, env.now().since(sent), connection))
            };
            let answer = match timeout(limit, attempt).await {
                Ok(Ok((rows, took, connection))) => (committed(&rows, took), Some(connection)),
                Ok(Err(failure)) => (Err(failure), None),
                Err(_) if is_sent.get().is_some() => (Err(ProbeFailure::WriteStalled(limit)), None),
                Err(_) => (Err(ProbeFailure::TimedOut(limit)), None),
            };
            // Nobody may be waiting any more.
            let _ = sender.send(answer);
        });
        CommitAttempt { begun: self.env.now(), limit, sent, answer }
    }

    /// A commit ended, was given up by its task, or is given up here (`None`).
    fn commit_ended(&mut self, sent: Option<Tick>, result: Option<&Result<Duration, ProbeFailure>>) {
        let gave_up = match result {
            None | Some(Err(ProbeFailure::WriteStalled(_))) => sent,
            // It never came to a commit.
            Some(Err(ProbeFailure::TimedOut(_))) => return,
            Some(_) => None,
        };
        self.hung = gave_up.map(|sent| Hung {
            since: self.hung.map_or(sent, |hung| hung.since),
            count: self.hung.map_or(1, |hung| hung.count.saturating_add(1)),
        });
    }

    async fn replayed_timeline(&mut self) -> Result<TimelineId, ProbeFailure> {
        let connection = self.replication.take().await.map_err(without_replication)?;
        let rows = connection.rows("IDENTIFY_SYSTEM").await?;
        let timeline = node_report::parse_identify_system(&rows)?;
        self.replication.give_back(connection);
        Ok(timeline)
    }
}

/// The node has just answered by SQL: that it refuses a replication session says something of its settings, not of its
/// health.
fn without_replication(failure: ProbeFailure) -> ProbeFailure {
    match failure {
        ProbeFailure::Authentication(text)
        | ProbeFailure::TooManyConnections(text)
        | ProbeFailure::Unexpected(text) => ProbeFailure::Unexpected(format!(
            "the timeline of a standby without a receiver is read by a replication session, and that failed: {text}; \
             metako's user needs REPLICATION, and max_wal_senders must leave room"
        )),
        other => other,
    }
}

fn committed(rows: &[Row], took: Duration) -> Result<Duration, ProbeFailure> {
    match rows.first().and_then(|row| row.first()?.as_deref()) {
        Some("in recovery") => Err(ProbeFailure::ReadOnly("the node is in recovery".to_owned())),
        Some(_) => Ok(took),
        None => Err(ProbeFailure::Unexpected("the commit probe brought no row".to_owned())),
    }
}

#[async_trait]
impl<E: Env> NodeAccess for PgNode<E> {
    async fn report(&mut self) -> Result<NodeReport, ProbeFailure> {
        self.step = Step::Asking;
        let connection = self.sql.take().await?;
        let sent = self.env.now();
        let rows = connection.rows(node_report::QUESTION).await?;
        let latency = self.env.now().since(sent);
        let answer = node_report::parse(&rows)?;
        self.sql.give_back(connection);
        let timeline = match answer.timeline {
            Some(timeline) => {
                match answer.role {
                    ReportedRole::Standby { .. } => self.replication.prepare(),
                    ReportedRole::Primary { .. } => self.replication.close(),
                }
                timeline
            }
            None => self.replayed_timeline().await?,
        };
        self.step = Step::Reported;
        Ok(answer.into_report(timeline, latency))
    }

    async fn commit(&mut self) -> Result<Duration, ProbeFailure> {
        if self.step == Step::Reported {
            self.step = Step::Committing;
        }
        let attempt = match self.commit.take() {
            Some(mut attempt) => match attempt.answer.try_recv() {
                // It ended when nobody looked, and says nothing of now.
                Ok((result, connection)) => {
                    self.commit_ended(attempt.sent.get().copied(), Some(&result));
                    self.committing = connection;
                    self.begin_commit()
                }
                Err(TryRecvError::Empty) if self.env.now().since(attempt.begun) < attempt.limit => attempt,
                Err(_) => {
                    self.commit_ended(attempt.sent.get().copied(), None);
                    self.begin_commit()
                }
            },
            None => self.begin_commit(),
        };
        let attempt = self.commit.insert(attempt);
        let sent = Arc::clone(&attempt.sent);
        let (result, connection) = (&mut attempt.answer)
            .await
            .map_err(|_| ProbeFailure::Unexpected("the task of the commit probe ended".to_owned()))?;
        self.commit = None;
        self.commit_ended(sent.get().copied(), Some(&result));
        self.committing = connection;
        result
    }

    fn overdue(&self, limit: Duration) -> ProbeFailure {
        let sent = self.commit.as_ref().and_then(|attempt| attempt.sent.get().copied());
        let since = self.hung.map(|hung| hung.since).or(sent);
        let hangs = since.is_some_and(|since| self.env.now().since(since) >= limit);
        if self.step == Step::Committing && hangs {
            ProbeFailure::WriteStalled(limit)
        } else {
            ProbeFailure::TimedOut(limit)
        }
    }

    async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, ProbeFailure> {
        let connection = self.custom.take().await?;
        let rows = connection.rows(sql).await?;
        self.custom.give_back(connection);
        Ok(rows)
    }
}
