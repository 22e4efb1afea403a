//! Carries out on a node, by SQL, what the controller orders.
//!
//! Every order may come twice and is carried out twice without harm. A failure that came before anything could have
//! changed is [`ActionFailure::Failed`]; one that came after is [`ActionFailure::Unknown`].

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use metako_core::cluster::{ActionFailure, ActionOutcome, Promotion, SettingsChange};
use metako_core::config::Node;
use metako_core::plugin::{NodeAccess, ProbeFailure};
use metako_core::{Epoch, NodeName};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use super::access::PgNode;
use super::connection::{Connection, Row};
use super::sql::{self, PromotionAnswer};
use crate::backend::ServerTlsTable;
use crate::env::Env;
use crate::shared::EvidenceSender;

/// How long a change of settings may take until it is in force.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the call that begins a promotion may take; the promotion itself is not waited for.
const PROMOTE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the first commit of an epoch may wait for its standbys. The controller asks again.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a checkpoint may take: it writes all that is dirty.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_mins(5);
/// How long an idle connection may take to show that it is alive, before another is opened in its place.
const PING_TIMEOUT: Duration = Duration::from_millis(500);
/// Idle connections kept for a node.
const IDLE_MAX: usize = 2;
/// First and longest pause between two looks at a state that PostgreSQL does not announce.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// Something to be done on one node by SQL.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Change settings, after creating physical replication slots that are missing.
    Change {
        /// The slots.
        slots: Vec<String>,
        /// The settings.
        change: SettingsChange,
    },
    /// Promote.
    Promote(Promotion),
    /// Commit under the node's synchronous policy.
    Verify(Epoch),
    /// Write a checkpoint.
    Checkpoint,
    /// Drop physical replication slots that are not in use.
    DropSlots(Vec<String>),
}

impl Order {
    fn limit(&self) -> Duration {
        match self {
            Self::Change { .. } | Self::DropSlots(_) => CHANGE_TIMEOUT,
            Self::Promote(_) => PROMOTE_TIMEOUT,
            Self::Verify(_) => VERIFY_TIMEOUT,
            Self::Checkpoint => CHECKPOINT_TIMEOUT,
        }
    }
}

/// The servers of the cluster, as the driver reaches them.
#[async_trait]
pub trait Servers: Send + Sync {
    /// Access for health probes of `node`; nothing is opened yet.
    fn access(&self, node: &Arc<Node>) -> Box<dyn NodeAccess>;

    /// Carries out `order` on `node`. Bounded by a time-out of its own.
    ///
    /// A dropped future stops waiting; whether the order took effect is then unknown.
    async fn carry_out(&self, node: &Arc<Node>, order: Order) -> Result<ActionOutcome, ActionFailure>;

    /// The nodes are these from now on: what is kept for others is let go.
    fn retain(&self, nodes: &[Arc<Node>]);
}

/// Real servers, over connections of its own, so that a hanging probe never stands in their way.
pub struct PgServers<E: Env> {
    env: E,
    tls: ServerTlsTable,
    evidence: Option<EvidenceSender>,
    idle: Mutex<BTreeMap<NodeName, Vec<Idle>>>,
}

/// A connection that waits for the next order, with the settings that it was opened by.
struct Idle {
    node: Arc<Node>,
    connection: Connection,
}

impl<E: Env> PgServers<E> {
    /// Without a connection yet.
    pub fn new(env: E) -> Self {
        Self { env, tls: ServerTlsTable::default(), evidence: None, idle: Mutex::default() }
    }

    /// Takes TLS towards the nodes from `tls`: without that, nodes whose section names files cannot be reached.
    #[must_use]
    pub fn with_tls(self, tls: ServerTlsTable) -> Self {
        Self { tls, ..self }
    }

    /// Has `evidence` told when the standing connection of a node's probes breaks: the death of an idle cluster's primary
    /// is noticed at once as well.
    #[must_use]
    pub fn telling(self, evidence: EvidenceSender) -> Self {
        Self { evidence: Some(evidence), ..self }
    }

    /// An idle connection that still answers, or a new one.
    async fn connection(&self, node: &Arc<Node>) -> Result<Connection, ProbeFailure> {
        while let Some(Idle { node: opened_by, connection }) = self.take_idle(&node.name) {
            if opened_by == *node && timeout(PING_TIMEOUT, connection.answers()).await == Ok(true) {
                return Ok(connection);
            }
        }
        Connection::open(&self.env, node, &self.tls).await
    }

    /// A commit whose acknowledgement means that the synchronous policy held, and holds for those that follow.
    async fn verify(
        &self,
        connection: &Connection,
        node: &Arc<Node>,
        epoch: Epoch,
    ) -> Result<ActionOutcome, ActionFailure> {
        connection.rows(sql::END_FORMER_VERIFICATIONS).await.map_err(|failure| failed(node, &failure))?;
        let statement = sql::verify(epoch);
        if !flag(connection.rows(sql::COMMITS_SHOULD_WAIT).await, node)? {
            let rows = connection.rows(&statement).await;
            verified(connection, node, rows.map_err(|failure| refused_or_unknown(node, &failure)))?;
            return Ok(ActionOutcome::Done);
        }
        let committing = self.connection(node).await.map_err(|failure| failed(node, &failure))?;
        loop {
            let commit = watched_commit(connection, &committing, node, &statement, Watch::Answer);
            let (rows, waited) = commit.await?;
            verified(&committing, node, Ok(rows))?;
            if waited {
                self.give_back(node, committing);
                return Ok(ActionOutcome::Done);
            }
        }
    }

    fn take_idle(&self, name: &NodeName) -> Option<Idle> {
        self.idle.lock().get_mut(name)?.pop()
    }

    fn give_back(&self, node: &Arc<Node>, connection: Connection) {
        let mut idle = self.idle.lock();
        let idle = idle.entry(node.name.clone()).or_default();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { node: Arc::clone(node), connection });
        }
    }
}

#[async_trait]
impl<E: Env> Servers for PgServers<E> {
    fn access(&self, node: &Arc<Node>) -> Box<dyn NodeAccess> {
        Box::new(PgNode::new(self.env.clone(), Arc::clone(node), self.tls.clone(), self.evidence.clone()))
    }

    async fn carry_out(&self, node: &Arc<Node>, order: Order) -> Result<ActionOutcome, ActionFailure> {
        let limit = order.limit();
        let mut touched = false;
        let steps = async {
            let connection = self.connection(node).await.map_err(|failure| failed(node, &failure))?;
            touched = true;
            let outcome = match &order {
                Order::Change { slots, change } => {
                    let outcome = change_settings(&connection, node, slots, change).await?;
                    if sql::is_about_waiting(change)
                        && flag(connection.rows(sql::COMMITS_SHOULD_WAIT).await, node)?
                    {
                        let other = self.connection(node).await.map_err(|failure| unknown(node, &failure))?;
                        commits_wait(&connection, &other, node).await?;
                    }
                    Ok(outcome)
                }
                Order::Promote(promotion) => promote(&connection, node, promotion).await,
                Order::Verify(epoch) => self.verify(&connection, node, *epoch).await,
                Order::DropSlots(slots) => {
                    let rows = connection.rows(&sql::drop_slots(slots)).await;
                    rows.map(|_| ActionOutcome::Done).map_err(|failure| refused_or_unknown(node, &failure))
                }
                Order::Checkpoint => {
                    let rows = connection.rows("CHECKPOINT").await;
                    rows.map(|_| ActionOutcome::Done).map_err(|failure| refused_or_unknown(node, &failure))
                }
            }?;
            self.give_back(node, connection);
            Ok(outcome)
        };
        match timeout(limit, steps).await {
            Ok(result) => result,
            Err(_) if touched => {
                Err(ActionFailure::Unknown(format!("{}: no answer within {limit:?}", node.name)))
            }
            Err(_) => Err(ActionFailure::Failed(format!("{}: no connection within {limit:?}", node.name))),
        }
    }

    fn retain(&self, nodes: &[Arc<Node>]) {
        self.idle.lock().retain(|name, _| nodes.iter().any(|node| node.name == *name));
    }
}

fn failed(node: &Node, problem: &dyn std::fmt::Display) -> ActionFailure {
    ActionFailure::Failed(format!("{}: {problem}", node.name))
}

fn unknown(node: &Node, problem: &dyn std::fmt::Display) -> ActionFailure {
    ActionFailure::Unknown(format!("{}: {problem}", node.name))
}

/// Whether the server said in so many words that it did not do it.
fn refused_by_server(failure: &ProbeFailure) -> bool {
    matches!(failure, ProbeFailure::Unexpected(_) | ProbeFailure::ReadOnly(_))
}

fn refused_or_unknown(node: &Node, failure: &ProbeFailure) -> ActionFailure {
    if refused_by_server(failure) { failed(node, failure) } else { unknown(node, failure) }
}

/// Slots, then each setting in a statement of its own (ALTER SYSTEM allows no transaction), then one reload, all under
/// an advisory lock that a promotion needs as well. Ends when the settings are in force in this session.
async fn change_settings(
    connection: &Connection,
    node: &Node,
    slots: &[String],
    change: &SettingsChange,
) -> Result<ActionOutcome, ActionFailure> {
    let statements = sql::alter_system(change).map_err(|problem| failed(node, &problem))?;
    lock(connection, node).await?;
    for slot in slots {
        create_slot(connection, node, slot).await?;
    }
    if !statements.is_empty() {
        for statement in &statements {
            connection.rows(statement).await.map_err(|failure| unknown(node, &failure))?;
        }
        reload(connection, node).await?;
        let differing = sql::differing(change, &settings_in_force(connection, node, change).await?);
        if !differing.is_empty() {
            return Err(unknown(
                node,
                &format!(
                    "{} did not change by ALTER SYSTEM and a reload: the command line or the environment of the \
                     server fixes it, or it needs a restart",
                    differing.join(", ")
                ),
            ));
        }
    }
    if change.resume_replay {
        connection.rows(sql::RESUME_REPLAY).await.map_err(|failure| unknown(node, &failure))?;
    }
    connection.rows(sql::UNLOCK).await.map_err(|failure| unknown(node, &failure))?;
    Ok(ActionOutcome::Done)
}

/// Takes the lock under which settings are changed. Tried again and again until the time is up, because a wait in the
/// server would outlive this session's interest in it.
async fn lock(connection: &Connection, node: &Node) -> Result<(), ActionFailure> {
    let mut pause = LOOK_AGAIN.0;
    while !flag(connection.rows(sql::TRY_LOCK).await, node)? {
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_AGAIN.1);
    }
    Ok(())
}

/// Reloads the configuration and waits until this session has read it. PostgreSQL announces that to nobody, so the load
/// time is looked at again and again until the time is up.
async fn reload(connection: &Connection, node: &Node) -> Result<(), ActionFailure> {
    let before = single(connection.rows(sql::LOAD_TIME).await, node)?;
    if !flag(connection.rows(sql::RELOAD).await, node)? {
        return Err(unknown(node, &"the server could not be told to reload its configuration"));
    }
    let mut pause = LOOK_AGAIN.0;
    while single(connection.rows(sql::LOAD_TIME).await, node)? == before {
        sleep(pause).await;
        pause = (pause * 2).min(LOOK_AGAIN.1);
    }
    Ok(())
}

async fn settings_in_force(
    connection: &Connection,
    node: &Node,
    change: &SettingsChange,
) -> Result<BTreeMap<String, sql::InForce>, ActionFailure> {
    let question = sql::settings_in_force(change);
    let rows = connection.rows(&question).await.map_err(|failure| unknown(node, &failure))?;
    Ok(sql::parse_in_force(&rows))
}

async fn create_slot(connection: &Connection, node: &Node, slot: &str) -> Result<(), ActionFailure> {
    let question = sql::create_slot(slot);
    match single(connection.rows(&question).await, node)?.as_str() {
        "logical" => Err(failed(node, &format!("slot `{slot}` exists, but is a logical one"))),
        _ => Ok(()),
    }
}

/// The call that promotes, if its conditions hold in the same statement. It does not wait: `pg_promote` that waits and
/// gives up may still promote later, and says `false` like one that never will.
async fn promote(
    connection: &Connection,
    node: &Node,
    promotion: &Promotion,
) -> Result<ActionOutcome, ActionFailure> {
    let statement = sql::promote(&promotion.token);
    let rows = connection.rows(&statement).await.map_err(|failure| refused_or_unknown(node, &failure))?;
    match sql::parse_promotion(&rows) {
        PromotionAnswer::Sent | PromotionAnswer::AlreadyPrimary => Ok(ActionOutcome::Done),
        PromotionAnswer::OtherToken | PromotionAnswer::Locked => Ok(ActionOutcome::Declined),
        PromotionAnswer::NotSent => {
            Err(failed(node, &"pg_promote() could not signal the server's main process"))
        }
        PromotionAnswer::Strange => Err(unknown(node, &"pg_promote() answered something unexpected")),
    }
}

/// Checks what the first commit of an epoch brought.
fn verified(
    connection: &Connection,
    node: &Node,
    rows: Result<Vec<Row>, ActionFailure>,
) -> Result<(), ActionFailure> {
    if rows?.first().is_some_and(|row| row.first().is_some_and(|text| text.as_deref() == Some("in recovery")))
    {
        return Err(failed(node, &"still in recovery"));
    }
    if connection.sync_wait_was_cut() {
        return Err(unknown(node, &"the wait of the first commit for its standbys was cancelled"));
    }
    Ok(())
}

/// Ends when a commit was seen waiting for standbys, whether or not they answer.
async fn commits_wait(
    watching: &Connection,
    committing: &Connection,
    node: &Node,
) -> Result<(), ActionFailure> {
    watching.rows(sql::END_FORMER_VERIFICATIONS).await.map_err(|failure| unknown(node, &failure))?;
    let statement = sql::commit_that_waits("synchronous standbys");
    while !watched_commit(watching, committing, node, &statement, Watch::Wait).await?.1 {}
    Ok(())
}

/// What of a watched commit is awaited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Its answer.
    Answer,
    /// That it waits for standbys. The connection that commits is not to be used again.
    Wait,
}

/// Commits on one connection while another one looks whether that commit waits for standbys. Gives what it brought and
/// whether it was seen waiting; a wait may be too short to be seen.
///
/// What a session shows of `synchronous_standby_names` proves nothing: commits wait only once the checkpointer has read the
/// setting as well, and that one may be busy with a checkpoint for seconds. If one commit waits, all later ones do.
async fn watched_commit(
    watching: &Connection,
    committing: &Connection,
    node: &Node,
    statement: &str,
    watch: Watch,
) -> Result<(Vec<Row>, bool), ActionFailure> {
    let look = sql::waits_for_standbys(&single(committing.rows(sql::OWN_PROCESS).await, node)?);
    let failure = |failure| refused_or_unknown(node, &failure);
    let mut commit = pin!(committing.rows(statement));
    let mut rows = None;
    loop {
        let mut look = pin!(watching.rows(&look));
        let seen = loop {
            tokio::select! {
                biased;
                answer = &mut commit, if rows.is_none() => rows = Some(answer.map_err(failure)?),
                seen = &mut look => break flag(seen, node)?,
            }
        };
        match rows.take() {
            Some(rows) => return Ok((rows, seen)),
            None if seen && watch == Watch::Wait => return Ok((Vec::new(), true)),
            None if seen => return Ok((commit.await.map_err(failure)?, true)),
            None => {}
        }
    }
}

fn single(rows: Result<Vec<Row>, ProbeFailure>, node: &Node) -> Result<String, ActionFailure> {
    let rows = rows.map_err(|failure| unknown(node, &failure))?;
    rows.into_iter()
        .next()
        .and_then(|row| row.into_iter().next().flatten())
        .ok_or_else(|| unknown(node, &"an answer is missing"))
}

fn flag(rows: Result<Vec<Row>, ProbeFailure>, node: &Node) -> Result<bool, ActionFailure> {
    Ok(single(rows, node)? == "t")
}
