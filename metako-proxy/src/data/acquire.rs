//! Finding a server for a unit: the choice of a node, the wait for a connection, the hold while there is no primary.

use std::sync::Arc;
use std::time::Duration;

use metako_core::NodeName;
use metako_core::cluster::ServerLoss;
use metako_core::plugin::PickCx;
use metako_core::route::{self, Choice};
use metako_core::wire::sqlstate;
use metako_core::wire::write::Report;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

use super::Core;
use super::pools::{Attempt, CheckoutError, Lease, Who};
use crate::backend::{ConnectError, ConnectErrorKind};
use crate::env::Env;

/// How long after a refusal the primary is tried again, if no new view comes before.
const RETRY: Duration = Duration::from_millis(100);

/// What a client looks for.
pub(super) struct Wanted<'a> {
    pub(super) who: &'a Who,
    /// A replica will do.
    pub(super) read: bool,
    /// Replicas that lost or refused this unit before.
    pub(super) avoid: Vec<NodeName>,
    /// A number that stays the same for the session.
    pub(super) session: u64,
    /// How much the client sent that would have to be held.
    pub(super) bytes: usize,
}

/// A server for a unit.
pub(super) struct Found<E: Env> {
    pub(super) lease: Lease<E>,
    /// The node is in recovery.
    pub(super) replica: bool,
}

/// The first step towards a server.
pub(super) enum First<E: Env> {
    Found(Found<E>),
    /// It takes a wait: [`acquire`], with what was picked.
    Later(Picked),
}

/// What the router picked.
pub(super) enum Picked {
    /// This node, and whether it is a replica.
    Node(NodeName, bool),
    /// None, for this reason.
    Held(String),
}

fn pick<E: Env>(core: &Core<E>, wanted: &Wanted<'_>) -> Picked {
    let view = core.view.load();
    let settings = core.settings.load();
    let cx = PickCx { now: core.env.now(), random: core.next_random(), session: wanted.session, zone: None };
    let in_flight = |node: &NodeName| {
        u32::try_from(core.traffic.node(node).in_use.load(Ordering::Relaxed)).unwrap_or(u32::MAX)
    };
    match route::choose(&view, wanted.read, &wanted.avoid, &settings.balancer, &cx, in_flight) {
        Choice::Replica(node) => Picked::Node(node.clone(), true),
        Choice::Primary(node) => Picked::Node(node.clone(), false),
        Choice::Held { reason } => Picked::Held(reason.to_owned()),
    }
}

/// Finds a server for a unit, on the node that `picked` names if it gives one, waiting as long as the settings allow.
/// Cancelling leaves every line.
///
/// # Errors
///
/// What the client is to be told; its session can go on.
pub(super) async fn acquire<E: Env>(
    core: &Arc<Core<E>>,
    wanted: &mut Wanted<'_>,
    picked: Picked,
) -> Result<Found<E>, Report> {
    let mut picked = picked;
    loop {
        match picked {
            Picked::Held(reason) => return hold(core, wanted, reason).await,
            Picked::Node(node, replica) => match checkout(core, wanted.who, &node).await {
                Ok(lease) => return Ok(Found { lease, replica }),
                Err(error) if replica && is_of_the_node(&error) => wanted.avoid.push(node),
                Err(error) if !replica && is_transient(&error) => {
                    return hold(core, wanted, describe(&error)).await;
                }
                Err(error) => return Err(told(&error, &node)),
            },
        }
        picked = pick(core, wanted);
    }
}

/// Picks a node, and takes a server there that is idle at once, if there is one.
pub(super) fn try_acquire<E: Env>(core: &Arc<Core<E>>, wanted: &Wanted<'_>) -> First<E> {
    let picked = pick(core, wanted);
    if let Picked::Node(node, replica) = &picked
        // Those who are held come first.
        && (*replica || core.traffic.held.load(Ordering::Relaxed) == 0)
        && let Some(lease) = core.pools.try_idle(core, wanted.who, node)
    {
        return First::Found(Found { lease, replica: *replica });
    }
    First::Later(picked)
}

async fn checkout<E: Env>(
    core: &Arc<Core<E>>,
    who: &Who,
    node: &NodeName,
) -> Result<Lease<E>, CheckoutError> {
    match core.pools.attempt(core, who, node) {
        Attempt::Leased(lease) => Ok(lease),
        Attempt::Later(later) => later.finish(core, who).await,
        Attempt::Failed(error) => Err(error),
    }
}

/// Waits in line until the primary takes connections, or for as long as `failover.hold_timeout` allows.
async fn hold<E: Env>(core: &Arc<Core<E>>, wanted: &Wanted<'_>, reason: String) -> Result<Found<E>, Report> {
    let failover = core.settings.load().config.cluster.failover.clone();
    let begun = Instant::now();
    let mut reason = reason;
    let ticket = core.hold.enter(&core.traffic, &failover, wanted.bytes).map_err(|bound| {
        Report::error(sqlstate::CANNOT_CONNECT_NOW, format!("no primary to write to: {reason}"))
            .with_detail(format!("The statement was not sent and not held, because {bound}."))
            .with_hint("Try again later.")
    })?;
    tracing::debug!(%reason, "a client is held");
    let found = async {
        ticket.turn().await;
        let mut views = core.view.subscribe();
        loop {
            views.borrow_and_update();
            match pick(core, &Wanted { who: wanted.who, avoid: wanted.avoid.clone(), ..*wanted }) {
                Picked::Held(why) => reason = why,
                Picked::Node(node, replica) => match checkout(core, wanted.who, &node).await {
                    Ok(lease) => return Ok(Found { lease, replica }),
                    Err(error) if is_transient(&error) => reason = describe(&error),
                    Err(error) => return Err(told(&error, &node)),
                },
            }
            // Either a new view, or the time to try the same primary again. The cell outlives the wait.
            let _ = tokio::time::timeout(RETRY, views.changed()).await;
        }
    };
    let result = tokio::time::timeout(failover.hold_timeout, found).await;
    drop(ticket);
    result.unwrap_or_else(|_| {
        let waited = begun.elapsed();
        Err(Report::error(sqlstate::CANNOT_CONNECT_NOW, format!("no primary to write to: {reason}"))
            .with_detail(format!(
                "The statement was held for {}ms (failover.hold_timeout) and never sent.",
                waited.as_millis()
            ))
            .with_hint("Nothing was changed: it can be run again."))
    })
}

/// Whether another replica may do better.
fn is_of_the_node(error: &CheckoutError) -> bool {
    is_transient(error) || matches!(error, CheckoutError::NoNode)
}

/// Whether the same request may succeed later, or on another primary.
fn is_transient(error: &CheckoutError) -> bool {
    match error {
        CheckoutError::Open(error) => match &error.kind {
            ConnectErrorKind::Server(server) => {
                server.sqlstate.starts_with("57P") || server.sqlstate.starts_with("08")
            }
            ConnectErrorKind::Authentication(_)
            | ConnectErrorKind::Protocol(_)
            | ConnectErrorKind::Tls(_) => false,
            _ => error.server_loss().is_some_and(|loss| loss != ServerLoss::ReadOnly),
        },
        CheckoutError::NoNode => true,
        CheckoutError::Patience(_) | CheckoutError::Full => false,
    }
}

fn describe(error: &CheckoutError) -> String {
    match error {
        CheckoutError::Open(error) => error.to_string(),
        CheckoutError::NoNode => "the node is no longer configured".to_owned(),
        CheckoutError::Patience(_) | CheckoutError::Full => "all server connections are in use".to_owned(),
    }
}

/// What the client is told when waiting longer is of no use.
fn told(error: &CheckoutError, node: &NodeName) -> Report {
    match error {
        CheckoutError::Open(ConnectError { kind: ConnectErrorKind::Server(server), .. }) => {
            let code = sqlstate_of(&server.sqlstate);
            let report = Report::error(code, server.message.clone());
            match &server.detail {
                Some(detail) => report.with_detail(detail.clone()),
                None => report,
            }
        }
        // 53300 is what PostgreSQL says when it has no connection to give, and what clients take for "later".
        CheckoutError::Patience(waited) => Report::error(
            sqlstate::TOO_MANY_CONNECTIONS,
            format!("no server connection to node {node} became free"),
        )
        .with_detail(format!(
            "Waited for {}ms (pool.wait_timeout); the statement was not sent.",
            waited.as_millis()
        ))
        .with_hint("Run it again, or raise pool.size."),
        CheckoutError::Full => Report::error(
            sqlstate::TOO_MANY_CONNECTIONS,
            format!("too many clients wait for a server connection to node {node}"),
        ),
        CheckoutError::Open(_) | CheckoutError::NoNode => Report::error(
            sqlstate::CONNECTION_FAILURE,
            format!("cannot connect to node {node}: {}", describe(error)),
        ),
    }
}

/// The SQLSTATE of a server's refusal, of those that a log-in can end with.
fn sqlstate_of(code: &str) -> &'static str {
    const KNOWN: [&str; 10] =
        ["28000", "28P01", "3D000", "3F000", "42501", "42704", "53300", "22023", "42602", "55000"];
    KNOWN.into_iter().find(|known| *known == code).unwrap_or(sqlstate::CONNECTION_FAILURE)
}
