//! A server connection in the hands of one client, and the ways to it: opening one, waiting for one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metako_core::pool::{ServerId, WaiterId};
use metako_core::session::Server;
use metako_core::{Epoch, NodeName};
use tokio::sync::oneshot;

use super::{Cell, CheckoutError, Granted, ServerConn, Who};
use crate::backend::{self, ConnectError, ConnectErrorKind, Target};
use crate::data::Core;
use crate::data::conn::{CancelTarget, Conn};
use crate::env::Env;
use crate::shared::NodeTraffic;

/// How long opening a connection may take.
const OPEN_MAX: Duration = Duration::from_secs(5);

/// A server connection in use by one client. Dropping it closes the connection; [`Lease::give_back`] does not.
pub(in crate::data) struct Lease<E: Env> {
    conn: Option<Box<ServerConn<E>>>,
    cell: Arc<Cell<E>>,
    core: Arc<Core<E>>,
}

impl<E: Env> Lease<E> {
    pub(super) fn new(core: &Arc<Core<E>>, cell: &Arc<Cell<E>>, conn: Box<ServerConn<E>>) -> Self {
        cell.traffic.in_use.fetch_add(1, Ordering::Relaxed);
        Self { conn: Some(conn), cell: Arc::clone(cell), core: Arc::clone(core) }
    }

    pub(in crate::data) fn node(&self) -> &NodeName {
        &self.cell.node
    }

    pub(in crate::data) fn traffic(&self) -> &NodeTraffic {
        &self.cell.traffic
    }

    pub(in crate::data) fn conn(&mut self) -> &mut ServerConn<E> {
        self.conn.as_mut().expect("a lease has its connection until it is given back")
    }

    /// The connection and the node's counters, side by side.
    pub(in crate::data) fn parts(&mut self) -> (&mut ServerConn<E>, &NodeTraffic) {
        let conn = self.conn.as_mut().expect("a lease has its connection until it is given back");
        (conn, &self.cell.traffic)
    }

    /// The client is done with it.
    pub(in crate::data) fn give_back(mut self) {
        if let Some(conn) = self.conn.take() {
            self.cell.traffic.in_use.fetch_sub(1, Ordering::Relaxed);
            let clean = conn.is_clean();
            self.cell.give_back(&self.core, conn, clean);
        }
    }
}

impl<E: Env> Drop for Lease<E> {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            self.cell.traffic.in_use.fetch_sub(1, Ordering::Relaxed);
            let id = conn.id;
            drop(conn);
            self.cell.lost(&self.core, id);
        }
    }
}

/// Leave to open a connection; dropped without success, the place goes to the next in line.
struct Opening<'a, E: Env> {
    core: &'a Arc<Core<E>>,
    cell: &'a Arc<Cell<E>>,
    server: Option<ServerId>,
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
            Err(_) => {}
        }
    }
}

/// A checkout that has its place and has to wait: for its turn, or for the server to let it in.
pub(in crate::data) struct Later<E: Env> {
    pub(super) cell: Arc<Cell<E>>,
    pub(super) step: Step<E>,
}

pub(super) enum Step<E: Env> {
    Open(ServerId),
    Wait(WaiterId, oneshot::Receiver<Granted<E>>),
}

impl<E: Env> Later<E> {
    /// Waits for the connection. Cancelling gives place or connection to the next in line.
    pub(in crate::data) async fn finish(
        self,
        core: &Arc<Core<E>>,
        who: &Who,
        epoch: Epoch,
    ) -> Result<Lease<E>, CheckoutError> {
        let Self { cell, step } = self;
        let server = match step {
            Step::Open(server) => server,
            Step::Wait(waiter, receiver) => {
                let patience = core.settings.load().config.pool.wait_timeout;
                let mut waiting = Waiting { core, cell: &cell, waiter, receiver };
                match tokio::time::timeout(patience, &mut waiting.receiver).await {
                    Ok(Ok(Granted::Conn(conn))) => return Ok(Lease::new(core, &cell, conn)),
                    Ok(Ok(Granted::Open(server))) => server,
                    Ok(Err(_)) if cell.state.lock().retired => return Err(CheckoutError::NoNode),
                    Ok(Err(_)) | Err(_) => return Err(CheckoutError::Patience(patience)),
                }
            }
        };
        let opening = Opening { core, cell: &cell, server: Some(server) };
        open(opening, who, epoch).await
    }
}

async fn open<E: Env>(
    mut opening: Opening<'_, E>,
    who: &Who,
    epoch: Epoch,
) -> Result<Lease<E>, CheckoutError> {
    let (core, cell) = (opening.core, opening.cell);
    let target = target(core, &cell.node, who).ok_or(CheckoutError::NoNode)?;
    let opened = tokio::time::timeout(OPEN_MAX, backend::connect(&core.env, &target)).await;
    let backend =
        opened.unwrap_or_else(|_| Err(ConnectError::timed_out(&cell.node, OPEN_MAX))).map_err(|error| {
            if let Some(loss) = error.server_loss() {
                core.evidence.report(&cell.node, loss);
            }
            CheckoutError::Open(error)
        })?;
    let reported = Arc::new(backend.parameters);
    core.pools.report(who, &reported);
    let Some(server) = opening.server.take() else { return Err(CheckoutError::NoNode) };
    {
        let mut state = cell.state.lock();
        state.pool.opened(core.env.now(), server);
        state.pool.set_epoch(server, epoch);
    }
    let conn = Conn {
        server: Server::new(&reported, &who.application_name),
        stream: backend.stream,
        id: server,
        epoch,
        cancel: Arc::new(CancelTarget {
            target,
            process_id: backend.process_id,
            secret_key: backend.secret_key,
        }),
        reported,
        partial: Vec::new(),
        registration: core.register.enter(&cell.node, epoch),
    };
    let severed = conn.registration.control.is_severed_now();
    let lease = Lease::new(core, cell, Box::new(conn));
    if severed {
        // The fence fell while it was being opened: whoever asked waits for another primary.
        let kind = ConnectErrorKind::Closed("the primary is being replaced".to_owned());
        return Err(CheckoutError::Open(ConnectError { node: cell.node.clone(), kind }));
    }
    Ok(lease)
}

fn target<E: Env>(core: &Core<E>, node: &NodeName, who: &Who) -> Option<Target> {
    let settings = core.settings.load();
    let mut target = Target::of_node(settings.node(node.as_str())?);
    target.password = settings.password(&who.user);
    target.user.clone_from(&who.user);
    target.database.clone_from(&who.database);
    target.parameters.clone_from(&who.parameters);
    if !who.application_name.is_empty() {
        target.parameters.push(("application_name".to_owned(), who.application_name.clone()));
    }
    Some(target)
}
