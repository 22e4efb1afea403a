//! A server connection while one client has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use metako_core::NodeName;

use super::{Cell, Core, ServerConn};
use crate::env::Env;
use crate::shared::NodeTraffic;

/// A server connection in use by one client. Dropping it closes the connection; [`Lease::give_back`] does not.
pub(in crate::data) struct Lease<E: Env> {
    /// Until it is given back.
    held: Option<Held<E>>,
    core: Arc<Core<E>>,
}

struct Held<E: Env> {
    conn: Box<ServerConn<E>>,
    cell: Arc<Cell<E>>,
}

impl<E: Env> Lease<E> {
    pub(super) fn new(core: &Arc<Core<E>>, cell: Arc<Cell<E>>, conn: Box<ServerConn<E>>) -> Self {
        cell.traffic.in_use.fetch_add(1, Ordering::Relaxed);
        Self { held: Some(Held { conn, cell }), core: Arc::clone(core) }
    }

    fn held(&self) -> &Held<E> {
        self.held.as_ref().expect("a lease has its connection until it is given back")
    }

    fn held_mut(&mut self) -> &mut Held<E> {
        self.held.as_mut().expect("a lease has its connection until it is given back")
    }

    pub(in crate::data) fn node(&self) -> &NodeName {
        &self.held().cell.node
    }

    pub(in crate::data) fn traffic(&self) -> &NodeTraffic {
        &self.held().cell.traffic
    }

    pub(in crate::data) fn conn(&mut self) -> &mut ServerConn<E> {
        &mut self.held_mut().conn
    }

    /// The connection, its node and the node's counters, side by side.
    pub(in crate::data) fn parts(&mut self) -> (&mut ServerConn<E>, &NodeName, &NodeTraffic) {
        let Held { conn, cell } = self.held_mut();
        (conn, &cell.node, &cell.traffic)
    }

    /// The client is done with it. Gives the pool that it is in.
    pub(in crate::data) fn give_back(mut self) -> Option<Arc<Cell<E>>> {
        let Held { conn, cell } = self.held.take()?;
        cell.traffic.in_use.fetch_sub(1, Ordering::Relaxed);
        let clean = conn.is_clean();
        cell.give_back(&self.core, conn, clean);
        Some(cell)
    }
}

impl<E: Env> Drop for Lease<E> {
    fn drop(&mut self) {
        if let Some(Held { conn, cell }) = self.held.take() {
            cell.traffic.in_use.fetch_sub(1, Ordering::Relaxed);
            let id = conn.id;
            drop(conn);
            cell.lost(&self.core, id);
        }
    }
}
