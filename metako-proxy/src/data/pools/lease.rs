//! A server connection while one client has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use metako_core::NodeName;

use super::{Cell, Core, ServerConn};
use crate::env::Env;
use crate::shared::NodeTraffic;

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

    /// The connection, its node and the node's counters, side by side.
    pub(in crate::data) fn parts(&mut self) -> (&mut ServerConn<E>, &NodeName, &NodeTraffic) {
        let conn = self.conn.as_mut().expect("a lease has its connection until it is given back");
        (conn, &self.cell.node, &self.cell.traffic)
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
