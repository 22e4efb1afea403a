//! From a node to a server connection there: one that is idle, or a place in line.

use std::sync::Arc;
use std::time::Duration;

use metako_core::cluster::ServerLoss;
use metako_core::pool::{Checkout, WaiterId};
use metako_core::{Epoch, NodeName};
use tokio::sync::oneshot;

use super::opening::OPEN_MAX;
use super::trouble::Trouble;
use super::{Cell, Core, Granted, InLine, Lease, Pools, Who};
use crate::backend::ConnectError;
use crate::env::Env;

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
            Self::Later(later) => later.before,
            _ => None,
        }
    }
}

/// A place in line. Dropped, what was granted meanwhile goes to the next.
pub(in crate::data) struct Later<E: Env> {
    core: Arc<Core<E>>,
    cell: Arc<Cell<E>>,
    waiter: WaiterId,
    receiver: oneshot::Receiver<Granted<E>>,
    /// Clients that were in line before, unless a connection was being opened for it.
    before: Option<usize>,
    /// How long it may wait.
    patience: Duration,
}

impl<E: Env> Drop for Later<E> {
    fn drop(&mut self) {
        let mut state = self.cell.state.lock();
        state.pool.cancel(self.waiter);
        state.waiting.remove(&self.waiter);
        drop(state);
        if let Ok(Granted::Conn(conn)) = self.receiver.try_recv() {
            self.cell.give_back(&self.core, conn, true);
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

    /// Begins a checkout: takes an idle connection, or a place in line. Does not wait.
    pub(in crate::data) fn attempt(
        &self,
        core: &Arc<Core<E>>,
        who: &Arc<Who>,
        node: &NodeName,
        epoch: Epoch,
    ) -> Attempt<E> {
        let patience = core.settings.load().config.pool_of(&who.user).wait_timeout;
        loop {
            let Some(cell) = self.cell(core, who, node) else {
                return Attempt::Failed(CheckoutError::NoNode);
            };
            let mut state = cell.state.lock();
            if state.retired {
                // Another one has taken its place, or none.
                continue;
            }
            if epoch < core.view.epoch() {
                return Attempt::Failed(CheckoutError::Stale);
            }
            let now = core.env.now();
            let refusal = state.trouble.as_ref().filter(|trouble| trouble.is_on(now)).map(Trouble::error);
            match state.pool.checkout(now, who.variant, epoch) {
                Checkout::Reuse(server) => {
                    let conn = state.idle.remove(server);
                    drop(state);
                    if let Some(mut conn) = conn {
                        if conn.is_alive(&core.env) {
                            core.env.settle(conn.stream.get_mut());
                            return Attempt::Leased(Lease::new(core, cell, conn));
                        }
                        core.evidence.report(node, ServerLoss::Broken);
                    }
                    cell.lost(core, server);
                }
                Checkout::Wait(waiter) if let Some(error) = refusal => {
                    state.pool.cancel(waiter);
                    return Attempt::Failed(CheckoutError::Open(error));
                }
                Checkout::Wait(waiter) => {
                    let (sender, receiver) = oneshot::channel();
                    state
                        .waiting
                        .insert(waiter, InLine { sender, who: Arc::clone(who), epoch, presence: None });
                    cell.settle(core, state, None);
                    let before = cell.state.lock().pool.place_in_line(waiter);
                    let core = Arc::clone(core);
                    return Attempt::Later(Later { core, cell, waiter, receiver, before, patience });
                }
                Checkout::Full => return Attempt::Failed(CheckoutError::Full),
            }
        }
    }
}

impl<E: Env> Later<E> {
    /// Waits for the connection. Cancelling gives place or connection to the next in line.
    pub(in crate::data) async fn finish(mut self) -> Result<Lease<E>, CheckoutError> {
        let granted = match tokio::time::timeout(self.patience, &mut self.receiver).await {
            Ok(granted) => granted,
            // What is being opened for it has its own time, and its end says more.
            Err(_) if self.is_opened_for() => {
                let longer = OPEN_MAX + OPEN_MAX / 5;
                match tokio::time::timeout(longer, &mut self.receiver).await {
                    Ok(granted) => granted,
                    Err(_) => return Err(CheckoutError::Patience(self.patience + longer)),
                }
            }
            Err(_) => return Err(CheckoutError::Patience(self.patience)),
        };
        match granted {
            Ok(Granted::Conn(mut conn)) => {
                self.core.env.settle(conn.stream.get_mut());
                Ok(Lease::new(&self.core, Arc::clone(&self.cell), conn))
            }
            Ok(Granted::Refused(error)) => Err(CheckoutError::Open(error)),
            Ok(Granted::Stale) => Err(CheckoutError::Stale),
            // The line was given up with the node.
            Err(_) => Err(CheckoutError::NoNode),
        }
    }

    fn is_opened_for(&self) -> bool {
        self.cell.state.lock().pool.place_in_line(self.waiter).is_none()
    }
}
