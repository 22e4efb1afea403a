//! Opening connections, each in a task of its own: for the first in line who misses one, or ahead of clients (`pool.min`).

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use metako_core::cluster::{ClusterView, ObservedRole, ReadFitness, Vouched, Writes};
use metako_core::pool::ServerId;
use metako_core::session::Server;
use metako_core::{Epoch, NodeName};
use tokio::sync::oneshot;

use super::{Cell, Core, InLine, ServerConn, State, Who};
use crate::backend::{self, Backend, ConnectError, ConnectErrorKind, MaybeTls, Notices, Target};
use crate::data::conn::{CancelTarget, Conn};
use crate::env::Env;

/// How long opening a connection may take.
pub(super) const OPEN_MAX: Duration = Duration::from_secs(5);

/// A connection that is to be opened.
pub(super) struct Order {
    server: ServerId,
    who: Arc<Who>,
    /// In which the node was picked.
    epoch: Epoch,
    /// Ends when the client is gone for which alone it is opened. Others are of use to whoever comes.
    presence: Option<oneshot::Receiver<Infallible>>,
}

impl Order {
    /// For a client in line.
    pub(super) fn of<E: Env>(server: ServerId, line: &mut InLine<E>) -> Self {
        let presence = line.who.alone.then(|| {
            let (held, presence) = oneshot::channel();
            line.presence = Some(held);
            presence
        });
        Self { server, who: Arc::clone(&line.who), epoch: line.epoch, presence }
    }
}

/// Its place in the pool. Dropped with a task that did not end, as when the process does, the place is free, and nothing is
/// begun.
struct Place<E: Env> {
    core: Arc<Core<E>>,
    cell: Arc<Cell<E>>,
    server: Option<ServerId>,
}

impl<E: Env> Drop for Place<E> {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.cell.state.lock().pool.lost(server);
        }
    }
}

/// Has a connection opened. It goes to the first in line then, or is idle.
pub(super) fn begin<E: Env>(core: &Arc<Core<E>>, cell: &Arc<Cell<E>>, order: Order) {
    let place = Place { core: Arc::clone(core), cell: Arc::clone(cell), server: Some(order.server) };
    core.env.spawn(run(place, order));
}

async fn run<E: Env>(mut place: Place<E>, mut order: Order) {
    let target = target(&place.core, &place.cell.node, &order.who);
    let opened = match &target {
        Some(target) => {
            let opened = tokio::time::timeout(OPEN_MAX, open(&place.core, target));
            tokio::select! {
                biased;
                opened = opened => Some(opened),
                () = unwanted(&place.core, &mut order) => None,
            }
        }
        None => None,
    };
    let Some(server) = place.server.take() else { return };
    let (core, cell) = (&place.core, &place.cell);
    match (opened, target) {
        (Some(Ok(Ok(backend))), Some(target)) => succeeded(core, cell, order, target, backend),
        (Some(Ok(Err(error))), _) => failed(core, cell, &order, &error),
        (Some(Err(_)), _) => failed(core, cell, &order, &ConnectError::timed_out(&cell.node, OPEN_MAX)),
        (None, Some(_)) => cell.lost(core, server),
        // The configuration has no such node any more: the pool is about to be emptied, and nothing is opened meanwhile.
        (_, None) => cell.state.lock().pool.failed(core.env.now(), server, core.next_random()),
    }
    let next = ahead(core, cell, &mut cell.state.lock());
    if let Some(order) = next {
        begin(core, cell, order);
    }
}

/// Connects to the run of the server that clients may be connected to, or to none.
async fn open<E: Env>(core: &Core<E>, target: &Target) -> Result<Backend<MaybeTls<E::Stream>>, ConnectError> {
    let error = |kind| ConnectError { node: target.node.clone(), kind };
    let vouched = || core.view.load().node(target.node.as_str()).map_or(Vouched::Nobody, |node| node.vouched);
    let mut backend = backend::connect(&core.env, target).await?;
    let may_serve = match vouched() {
        Vouched::Any => true,
        // Without SQL nothing can be asked, and nothing is read that a statement could see.
        Vouched::Run(_) if !takes_sql(target) => true,
        Vouched::Nobody => false,
        Vouched::Run(run) => {
            let found = backend::run_of(&mut backend, run.checkpointer).await.map_err(error)?;
            // It may have been looked at meanwhile.
            vouched() == Vouched::Run(found)
        }
    };
    if may_serve { Ok(backend) } else { Err(error(ConnectErrorKind::Stranger)) }
}

/// Whether the connection is none of physical replication.
fn takes_sql(target: &Target) -> bool {
    !target.parameters.iter().any(|(name, value)| name == "replication" && value == "true")
}

/// Waits until nobody can use the connection any more: its only client is gone, or its epoch is over.
async fn unwanted<E: Env>(core: &Core<E>, order: &mut Order) {
    let mut views = core.view.subscribe();
    let epoch = order.epoch;
    let gone = async {
        match &mut order.presence {
            // Nothing is ever sent: this is its end.
            Some(presence) => drop(presence.await),
            None => pending().await,
        }
    };
    let is_over = async {
        while core.view.epoch() <= epoch {
            if views.changed().await.is_err() {
                pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = gone => {}
        () = is_over => {}
    }
}

fn failed<E: Env>(core: &Arc<Core<E>>, cell: &Arc<Cell<E>>, order: &Order, error: &ConnectError) {
    tracing::debug!(node = %cell.node, ?error, "a connection could not be opened");
    if let Some(loss) = error.server_loss() {
        core.evidence.report(&cell.node, loss);
    }
    cell.open_failed(core, order.server, &order.who, error);
}

fn succeeded<E: Env>(
    core: &Arc<Core<E>>,
    cell: &Arc<Cell<E>>,
    order: Order,
    target: Target,
    backend: Backend<MaybeTls<E::Stream>>,
) {
    let Order { server, who, epoch, .. } = order;
    let reported = core.pools.report(&who, backend.parameters);
    let conn: Box<ServerConn<E>> = Box::new(Conn {
        server: Server::new(&reported),
        stream: backend.stream,
        id: server,
        epoch,
        cancel: Arc::new(CancelTarget {
            target,
            process_id: backend.process_id,
            secret_key: backend.secret_key,
        }),
        reported,
        alone: who.alone.then_some(who.variant),
        notices: if who.alone { backend.notices } else { Notices::default() },
        partial: Vec::new(),
        registration: core.register.enter(&cell.node, epoch),
    });
    let is_open = conn.registration.control.is_open();
    let mut state = cell.state.lock();
    state.pool.opened(core.env.now(), server, core.next_random());
    state.trouble = None;
    if !who.alone {
        state.warm = Some(who);
    }
    if !is_open {
        // The fence fell while it was being opened: whoever asked waits for another primary.
        let kind = ConnectErrorKind::Closed("the primary is being replaced".to_owned());
        state.refuse(&ConnectError { node: cell.node.clone(), kind }, |line| line.epoch <= epoch);
    }
    cell.take_back(core, state, conn, is_open);
}

fn target<E: Env>(core: &Core<E>, node: &NodeName, who: &Who) -> Option<Target> {
    let settings = core.settings.load();
    let (configured, tls) = settings.node_with_tls(node.as_str())?;
    let mut target = Target::of_node(configured, tls.clone());
    target.credential.clone_from(&who.credential);
    target.user.clone_from(&who.user);
    target.database.clone_from(&who.database);
    target.parameters.clone_from(&who.parameters);
    Some(target)
}

/// A connection that nobody waits for, if there are fewer than `pool.min` and the node serves clients. One that could not
/// be opened is tried again by the next round of housekeeping, unless the server lets this user in no more.
pub(super) fn ahead<E: Env>(core: &Core<E>, cell: &Cell<E>, state: &mut State<E>) -> Option<Order> {
    let view = core.view.load();
    if state.retired || !serves(&view, &cell.node) {
        return None;
    }
    // What a client proved once is no word for ever.
    state.warm.take_if(|who| !core.settings.load().login.still_knows(&who.user, &who.credential));
    let who = Arc::clone(state.warm.as_ref()?);
    let now = core.env.now();
    if state.trouble.as_ref().is_some_and(|trouble| trouble.is_on(now)) {
        return None;
    }
    let server = state.pool.ahead(now, who.variant, view.epoch)?;
    Some(Order { server, who, epoch: view.epoch, presence: None })
}

/// Whether clients are sent to a node.
fn serves(view: &ClusterView, node: &NodeName) -> bool {
    let writes = matches!(&view.writes, Writes::Open { primary } if primary == node);
    writes
        || view
            .node(node.as_str())
            .is_some_and(|node| node.role == ObservedRole::Replica && node.reads == ReadFitness::Fit)
}
