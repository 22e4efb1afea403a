//! Finding a server for a unit: the choice of a node, the wait for a connection, the hold while there is no primary.

use std::sync::Arc;
use std::time::Duration;

use metako_core::cluster::{ClusterView, ServerLoss};
use metako_core::config::FailoverSettings;
use metako_core::plugin::PickCx;
use metako_core::route::{self, Choice};
use metako_core::wire::sqlstate;
use metako_core::wire::write::Report;
use metako_core::{Epoch, NodeName, Tick};
use std::sync::atomic::Ordering;
use tokio::time::Instant;

use super::Core;
use super::hold::Ticket;
use super::pools::{Attempt, Cell, CheckoutError, Lease, Who};
use super::settings::Settings;
use super::waiting::Progress;
use crate::backend::{ConnectError, ConnectErrorKind};
use crate::env::Env;

/// How long after a refusal the primary is tried again, if no new view comes before.
const RETRY: Duration = Duration::from_millis(100);

/// What a client looks for.
pub(super) struct Wanted<'a> {
    pub(super) who: &'a Arc<Who>,
    /// A replica will do.
    pub(super) read: bool,
    /// Replicas that lost or refused this unit before.
    pub(super) avoid: Vec<NodeName>,
    /// A number that stays the same for the session.
    pub(super) session: u64,
    /// How much the client sent that would have to be held.
    pub(super) bytes: usize,
    /// Where it is noted what the client waits for.
    pub(super) progress: Option<Arc<Progress>>,
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
    /// This node, whether it is a replica, and the epoch in which that was so.
    Node(NodeName, bool, Epoch),
    /// None, for this reason.
    Held(String),
}

impl Picked {
    fn of(choice: &Choice<'_>, epoch: Epoch) -> Self {
        match choice {
            Choice::Replica(node) => Self::Node((*node).clone(), true, epoch),
            Choice::Primary(node) => Self::Node((*node).clone(), false, epoch),
            Choice::Held { reason } => Self::Held((*reason).to_owned()),
        }
    }
}

/// Picks a node as things stand now.
pub(super) fn pick<E: Env>(core: &Core<E>, wanted: &Wanted<'_>, settings: &Settings) -> Picked {
    let view = core.view.load();
    Picked::of(&choose(core, wanted, settings, &view), view.epoch)
}

fn choose<'v, E: Env>(
    core: &Core<E>,
    wanted: &Wanted<'_>,
    settings: &Settings,
    view: &'v ClusterView,
) -> Choice<'v> {
    // Only a balancer looks at the clock and the number, and only reads come to one.
    let (now, random) = if wanted.read { (core.env.now(), core.next_random()) } else { (Tick::ZERO, 0) };
    let cx = PickCx { now, random, session: wanted.session, zone: None };
    let in_flight = |node: &NodeName| settings.in_flight(node);
    route::choose(view, wanted.read, &wanted.avoid, &settings.balancer, &cx, in_flight)
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
    // What a replica said that may be right.
    let mut refused = None;
    let held = loop {
        match picked {
            Picked::Held(reason) => break reason,
            Picked::Node(_, false, _) if !nobody_is_held(core) => {
                break "clients that were held before come first".to_owned();
            }
            Picked::Node(node, replica, epoch) => match checkout(core, wanted, &node, epoch).await {
                Ok(lease) => return Ok(Found { lease, replica }),
                // The next view is about to be there.
                Err(CheckoutError::Stale) => tokio::task::yield_now().await,
                Err(error) if replica && is_of_the_node(&error) => wanted.avoid.push(node),
                // What was created or granted a moment ago may not be there yet: the primary decides, if there is one.
                Err(error) if replica && is_of_the_catalog(&error) => {
                    refused = Some(told(&error, &node));
                    wanted.read = false;
                }
                Err(error) if !replica && is_transient(&error) => break describe(&error),
                Err(error) => return Err(told(&error, &node)),
            },
        }
        picked = pick(core, wanted, &core.settings.load());
    };
    match refused {
        Some(report) => Err(report),
        None => hold(core, wanted, held).await,
    }
}

/// Picks a node, and takes a server there that is idle at once, if there is one.
pub(super) fn try_acquire<E: Env>(
    core: &Arc<Core<E>>,
    wanted: &Wanted<'_>,
    settings: &Settings,
    known: &mut Option<Arc<Cell<E>>>,
) -> First<E> {
    let view = core.view.load();
    let (choice, epoch) = (choose(core, wanted, settings, &view), view.epoch);
    let replica = matches!(choice, Choice::Replica(_));
    if let Choice::Replica(node) | Choice::Primary(node) = choice
        && (replica || nobody_is_held(core))
        && let Some(lease) = core.pools.try_idle(core, wanted.who, node, epoch, known)
        && let Some(lease) = if_current(core, lease, epoch)
    {
        return First::Found(Found { lease, replica });
    }
    First::Later(Picked::of(&choice, epoch))
}

/// Takes a connection to a node that was picked in `epoch`. Between the pick and the end of the wait the primary may
/// have changed: what was meant for the old one must not reach it by a connection that the new epoch vouches for.
async fn checkout<E: Env>(
    core: &Arc<Core<E>>,
    wanted: &Wanted<'_>,
    node: &NodeName,
    epoch: Epoch,
) -> Result<Lease<E>, CheckoutError> {
    let attempt = core.pools.attempt(core, wanted.who, node, epoch);
    if let (Some(before), Some(progress)) = (attempt.before(), &wanted.progress) {
        progress.in_line(node, before);
    }
    finish(core, attempt, epoch).await
}

async fn finish<E: Env>(
    core: &Arc<Core<E>>,
    attempt: Attempt<E>,
    epoch: Epoch,
) -> Result<Lease<E>, CheckoutError> {
    let lease = match attempt {
        Attempt::Leased(lease) => lease,
        Attempt::Later(later) => later.finish().await?,
        Attempt::Failed(error) => return Err(error),
    };
    if_current(core, lease, epoch).ok_or(CheckoutError::Stale)
}

/// The lease, unless it is not of `epoch` or that is over. A fence that falls later finds it in the register.
fn if_current<E: Env>(core: &Core<E>, mut lease: Lease<E>, epoch: Epoch) -> Option<Lease<E>> {
    if lease.conn().epoch == epoch && core.view.epoch() == epoch {
        return Some(lease);
    }
    drop(lease.give_back());
    None
}

/// Whether a new arrival may go straight to the primary.
fn nobody_is_held<E: Env>(core: &Core<E>) -> bool {
    core.traffic.held.load(Ordering::Relaxed) == 0
}

/// Waits in line until the primary takes connections, or for as long as `failover.hold_timeout` allows.
async fn hold<E: Env>(core: &Arc<Core<E>>, wanted: &Wanted<'_>, reason: String) -> Result<Found<E>, Report> {
    let failover = core.settings.load().config.cluster.failover.clone();
    let begun = Instant::now();
    let mut reason = reason;
    tracing::debug!(%reason, "a client is held");
    let held = hold_until_found(core, wanted, &failover, &mut reason);
    let found = tokio::time::timeout(failover.hold_timeout, held).await;
    found.unwrap_or_else(|_| {
        let waited = begun.elapsed();
        Err(Report::error(sqlstate::CANNOT_CONNECT_NOW, format!("no primary to write to: {reason}"))
            .with_detail(format!(
                "Held for {}ms (failover.hold_timeout); nothing was sent to a server.",
                waited.as_millis()
            ))
            .with_hint("Nothing was changed: try again."))
    })
}

async fn hold_until_found<E: Env>(
    core: &Arc<Core<E>>,
    wanted: &Wanted<'_>,
    failover: &FailoverSettings,
    reason: &mut String,
) -> Result<Found<E>, Report> {
    let mut views = core.view.subscribe();
    let mut ticket = None;
    loop {
        let place = match ticket.take() {
            Some(place) => place,
            None => enter_line(core, wanted, failover, reason)?,
        };
        let place: &Ticket<'_> = ticket.insert(place);
        if let Some(progress) = &wanted.progress {
            progress.held(reason);
        }
        place.turn().await;
        views.borrow_and_update();
        match pick(core, wanted, &core.settings.load()) {
            Picked::Held(why) => *reason = why,
            Picked::Node(node, replica, epoch) => {
                let attempt = core.pools.attempt(core, wanted.who, &node, epoch);
                if let Some(before) = attempt.before() {
                    // The primary is there: the others line up in its pool behind this one.
                    ticket = None;
                    if let Some(progress) = &wanted.progress {
                        progress.in_line(&node, before);
                    }
                }
                match finish(core, attempt, epoch).await {
                    Ok(lease) => return Ok(Found { lease, replica }),
                    Err(CheckoutError::Stale) => {
                        tokio::task::yield_now().await;
                        continue;
                    }
                    Err(error) if is_transient(&error) => *reason = describe(&error),
                    Err(error) => return Err(told(&error, &node)),
                }
            }
        }
        // Either a new view, or the time to try the same primary again. The cell outlives the wait.
        let _ = tokio::time::timeout(RETRY, views.changed()).await;
    }
}

fn enter_line<'a, E: Env>(
    core: &'a Core<E>,
    wanted: &Wanted<'_>,
    failover: &FailoverSettings,
    reason: &str,
) -> Result<Ticket<'a>, Report> {
    core.hold.enter(&core.traffic, failover, wanted.bytes).map_err(|bound| {
        Report::error(sqlstate::CANNOT_CONNECT_NOW, format!("no primary to write to: {reason}"))
            .with_detail(format!("Nothing was sent to a server, and nothing was held, because {bound}."))
            .with_hint("Try again later.")
    })
}

/// Whether another replica may do better.
fn is_of_the_node(error: &CheckoutError) -> bool {
    is_transient(error) || matches!(error, CheckoutError::NoNode)
}

/// Whether a server refused it for what stands in its catalogs: users, passwords, databases, rights.
fn is_of_the_catalog(error: &CheckoutError) -> bool {
    match error {
        CheckoutError::Open(ConnectError { kind: ConnectErrorKind::Server(server), .. }) => {
            server.sqlstate != sqlstate::TOO_MANY_CONNECTIONS && !is_transient(error)
        }
        CheckoutError::Open(ConnectError { kind: ConnectErrorKind::Authentication(_), .. }) => true,
        _ => false,
    }
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
        CheckoutError::NoNode | CheckoutError::Stale => true,
        CheckoutError::Patience(_) | CheckoutError::Full => false,
    }
}

fn describe(error: &CheckoutError) -> String {
    match error {
        CheckoutError::Open(error) => error.to_string(),
        CheckoutError::Stale => "the primary changed meanwhile".to_owned(),
        CheckoutError::NoNode => "the node is no longer configured".to_owned(),
        CheckoutError::Patience(_) | CheckoutError::Full => "all server connections are in use".to_owned(),
    }
}

/// What the client is told when waiting longer is of no use.
fn told(error: &CheckoutError, node: &NodeName) -> Report {
    match error {
        CheckoutError::Open(ConnectError { kind: ConnectErrorKind::Server(server), .. }) => {
            let code = sqlstate_of(&server.sqlstate);
            let report = Report::error(code, server.message.clone()).with_fields(server.fields.clone());
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
            "Waited for {}ms (pool.wait_timeout); nothing was sent to a server.",
            waited.as_millis()
        ))
        .with_hint("Try again, or raise pool.size."),
        CheckoutError::Full => Report::error(
            sqlstate::TOO_MANY_CONNECTIONS,
            format!("too many clients wait for a server connection to node {node}"),
        ),
        CheckoutError::Open(_) | CheckoutError::NoNode | CheckoutError::Stale => Report::error(
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
