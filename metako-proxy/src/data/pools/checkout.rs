//! From a node to a server connection there: one that is idle, one that is opened, or a place in line.

use std::sync::Arc;
use std::time::Duration;

use metako_core::cluster::ServerLoss;
use metako_core::pool::{Checkout, ServerId, WaiterId};
use metako_core::session::Server;
use metako_core::{Epoch, NodeName};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::trouble::{Blame, Trouble, blame};
use super::{Cell, Core, Granted, InLine, Lease, Pools, Who};
use crate::backend::{self, ConnectError, ConnectErrorKind, Notices, Target};
use crate::data::conn::{CancelTarget, Conn};
use crate::env::Env;

/// How long opening a connection may take.
const OPEN_MAX: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug)]
pub(in crate::data) enum CheckoutError {
    /// It could not be opened.
    Open(ConnectError),
    /// All were in use for as long as one may wait.
    Patience(Duration),
    /// Too many wait already.
    Full,
    /// The configuration has no such node any more.
    NoNode,
    /// The epoch is over in which the node was picked.
    Stale,
}

/// The first step of a checkout, which does not wait.
pub(in crate::data) enum Attempt<E: Env> {
    Leased(Lease<E>),
    Later(Later<E>),
    Failed(CheckoutError),
}

impl<E: Env> Attempt<E> {
    /// How many came before, if it waits for a connection that others use.
    pub(in crate::data) fn before(&self) -> Option<usize> {
        match self {
            Self::Later(Later { step: Step::Wait(..), before, .. }) => Some(*before),
            _ => None,
        }
    }
}

/// A checkout that has its place and has to wait: for its turn, or for the server to let it in.
pub(in crate::data) struct Later<E: Env> {
    cell: Arc<Cell<E>>,
    step: Step<E>,
    /// Clients that were in line before.
    before: usize,
    /// How long it may wait for its turn.
    patience: Duration,
}

enum Step<E: Env> {
    Open(ServerId),
    Wait(WaiterId, oneshot::Receiver<Granted<E>>),
}

/// Leave to open a connection; dropped without success, the place goes to the next in line.
pub(super) struct Opening<'a, E: Env> {
    core: &'a Arc<Core<E>>,
    cell: &'a Arc<Cell<E>>,
    server: Option<ServerId>,
}

impl<'a, E: Env> Opening<'a, E> {
    pub(super) fn new(core: &'a Arc<Core<E>>, cell: &'a Arc<Cell<E>>, server: ServerId) -> Self {
        Self { core, cell, server: Some(server) }
    }
}

impl<E: Env> Drop for Opening<'_, E> {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.cell.lost(self.core, server);
        }
    }
}

/// A place in line; dropped, what was granted meanwhile goes to the next.
struct Waiting<'a, E: Env> {
    core: &'a Arc<Core<E>>,
    cell: &'a Arc<Cell<E>>,
    waiter: WaiterId,
    receiver: oneshot::Receiver<Granted<E>>,
}

impl<E: Env> Drop for Waiting<'_, E> {
    fn drop(&mut self) {
        let mut state = self.cell.state.lock();
        state.pool.cancel(self.waiter);
        state.waiting.remove(&self.waiter);
        self.receiver.close();
        let granted = self.receiver.try_recv();
        drop(state);
        match granted {
            Ok(Granted::Conn(conn)) => self.cell.give_back(self.core, conn, true),
            Ok(Granted::Open(server)) => self.cell.lost(self.core, server),
            Ok(Granted::Refused(_)) | Err(_) => {}
        }
    }
}

impl<E: Env> Pools<E> {
    /// Takes an idle connection, if there is one and nobody waits. `known` is the client's pool, as far as it knows
    /// it: all pools together are looked at only when it changes. The lease has it until it is given back.
    pub(in crate::data) fn try_idle(
        &self,
        core: &Arc<Core<E>>,
        who: &Who,
        node: &NodeName,
        epoch: Epoch,
        known: &mut Option<Arc<Cell<E>>>,
    ) -> Option<Lease<E>> {
        if known.as_ref().is_none_or(|cell| cell.node != *node) {
            *known = self.cell(core, who, node);
        }
        loop {
            let cell = known.as_ref()?;
            let mut state = cell.state.lock();
            if state.retired {
                drop(state);
                *known = None;
                return None;
            }
            let server = state.pool.take_idle(who.variant, epoch, core.env.worker())?;
            let mut conn = state.idle.remove(server)?;
            drop(state);
            // Asked before it moves: at first, another worker knows of nothing that has come.
            if conn.is_alive(&core.env) {
                core.env.settle(conn.stream.get_mut());
                return known.take().map(|cell| Lease::new(core, cell, conn));
            }
            core.evidence.report(node, ServerLoss::Broken);
            drop(conn);
            cell.lost(core, server);
        }
    }

    /// Begins a checkout: takes an idle connection, or a place to open one, or a place in line. Does not wait.
    pub(in crate::data) fn attempt(
        &self,
        core: &Arc<Core<E>>,
        who: &Who,
        node: &NodeName,
        epoch: Epoch,
    ) -> Attempt<E> {
        let patience = core.settings.load().config.pool_of(&who.user).wait_timeout;
        self.attempt_within(core, who, node, epoch, patience)
    }

    fn attempt_within(
        &self,
        core: &Arc<Core<E>>,
        who: &Who,
        node: &NodeName,
        epoch: Epoch,
        patience: Duration,
    ) -> Attempt<E> {
        let Some(cell) = self.cell(core, who, node) else { return Attempt::Failed(CheckoutError::NoNode) };
        loop {
            let mut state = cell.state.lock();
            let now = core.env.now();
            let refusal = state.trouble.as_ref().filter(|trouble| trouble.is_on(now)).map(Trouble::error);
            match state.pool.checkout(core.env.now(), who.variant, epoch, patience) {
                Checkout::Reuse(server) => {
                    let Some(mut conn) = state.idle.remove(server) else {
                        state.pool.lost(core.env.now(), server);
                        continue;
                    };
                    drop(state);
                    if conn.is_alive(&core.env) {
                        core.env.settle(conn.stream.get_mut());
                        return Attempt::Leased(Lease::new(core, cell, conn));
                    }
                    core.evidence.report(node, ServerLoss::Broken);
                    drop(conn);
                    cell.lost(core, server);
                }
                Checkout::Open { server, close } => {
                    let closed = close.and_then(|server| state.idle.remove(server));
                    drop(state);
                    drop(closed);
                    return Attempt::Later(Later { cell, step: Step::Open(server), before: 0, patience });
                }
                Checkout::Wait(waiter) if let Some(error) = refusal => {
                    state.pool.cancel(waiter);
                    return Attempt::Failed(CheckoutError::Open(error));
                }
                Checkout::Wait(waiter) => {
                    let (sender, receiver) = oneshot::channel();
                    let (variant, credential) = (who.variant, who.credential.clone());
                    state.waiting.insert(waiter, InLine { sender, variant, credential });
                    let before = state.pool.waiting().saturating_sub(1);
                    drop(state);
                    return Attempt::Later(Later {
                        cell,
                        step: Step::Wait(waiter, receiver),
                        before,
                        patience,
                    });
                }
                Checkout::Full => return Attempt::Failed(CheckoutError::Full),
            }
        }
    }
}

impl<E: Env> Later<E> {
    /// Waits for the connection. Cancelling gives place or connection to the next in line.
    pub(in crate::data) async fn finish(
        self,
        core: &Arc<Core<E>>,
        who: &Who,
        epoch: Epoch,
    ) -> Result<Lease<E>, CheckoutError> {
        let begun = Instant::now();
        let patience = self.patience;
        let mut later = self;
        loop {
            let cell = Arc::clone(&later.cell);
            match later.finish_once(core, who, epoch).await {
                // The server gives no more than it gave already: one of those comes back.
                Err(CheckoutError::Open(error)) if blame(&error) == Blame::Full && cell.has_others() => {
                    let left = patience.saturating_sub(begun.elapsed());
                    if left.is_zero() {
                        return Err(CheckoutError::Open(error));
                    }
                    match core.pools.attempt_within(core, who, &cell.node, epoch, left) {
                        Attempt::Leased(lease) => return Ok(lease),
                        Attempt::Later(next) => later = next,
                        Attempt::Failed(error) => return Err(error),
                    }
                }
                Err(CheckoutError::Patience(_)) => return Err(CheckoutError::Patience(patience)),
                done => return done,
            }
        }
    }

    async fn finish_once(
        self,
        core: &Arc<Core<E>>,
        who: &Who,
        epoch: Epoch,
    ) -> Result<Lease<E>, CheckoutError> {
        let Self { cell, step, patience, .. } = self;
        let server = match step {
            Step::Open(server) => server,
            Step::Wait(waiter, receiver) => {
                let mut waiting = Waiting { core, cell: &cell, waiter, receiver };
                match tokio::time::timeout(patience, &mut waiting.receiver).await {
                    Ok(Ok(Granted::Conn(mut conn))) => {
                        core.env.settle(conn.stream.get_mut());
                        return Ok(Lease::new(core, Arc::clone(&cell), conn));
                    }
                    Ok(Ok(Granted::Open(server))) => server,
                    Ok(Ok(Granted::Refused(error))) => return Err(CheckoutError::Open(error)),
                    Ok(Err(_)) if cell.state.lock().retired => return Err(CheckoutError::NoNode),
                    Ok(Err(_)) | Err(_) => return Err(CheckoutError::Patience(patience)),
                }
            }
        };
        open(Opening::new(core, &cell, server), who, epoch).await
    }
}

/// Opens a connection. Cancelling, and a configuration that has no such node any more, give the place to the next in line.
pub(super) async fn open<E: Env>(
    mut opening: Opening<'_, E>,
    who: &Who,
    epoch: Epoch,
) -> Result<Lease<E>, CheckoutError> {
    let (core, cell) = (opening.core, opening.cell);
    let target = target(core, &cell.node, who).ok_or(CheckoutError::NoNode)?;
    let opened = tokio::time::timeout(OPEN_MAX, backend::connect(&core.env, &target)).await;
    let opened = opened.unwrap_or_else(|_| Err(ConnectError::timed_out(&cell.node, OPEN_MAX)));
    let backend = match opened {
        Ok(backend) => backend,
        Err(error) => {
            if let Some(loss) = error.server_loss() {
                core.evidence.report(&cell.node, loss);
            }
            if let Some(server) = opening.server.take() {
                cell.open_failed(core, server, who, &error);
            }
            return Err(CheckoutError::Open(error));
        }
    };
    let reported = core.pools.report(who, backend.parameters);
    let Some(server) = opening.server.take() else { return Err(CheckoutError::NoNode) };
    {
        let mut state = cell.state.lock();
        state.pool.set_epoch(server, epoch);
        state.trouble = None;
        if !who.alone {
            state.warm = Some(who.clone());
        }
        let grant = state.pool.opened(core.env.now(), server, core.next_random());
        Cell::deliver(core, &mut state, None, grant);
    }
    let conn = Conn {
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
        notices: if who.alone { backend.notices } else { Notices::default() },
        partial: Vec::new(),
        registration: core.register.enter(&cell.node, epoch),
    };
    let severed = conn.registration.control.is_severed();
    let lease = Lease::new(core, Arc::clone(cell), Box::new(conn));
    if severed {
        // The fence fell while it was being opened: whoever asked waits for another primary.
        let kind = ConnectErrorKind::Closed("the primary is being replaced".to_owned());
        return Err(CheckoutError::Open(ConnectError { node: cell.node.clone(), kind }));
    }
    Ok(lease)
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
