//! Connections that are opened before somebody waits for them: `pool.min`.

use std::sync::Arc;

use metako_core::cluster::{ClusterView, ObservedRole, ReadFitness, Writes};
use metako_core::pool::ServerId;
use metako_core::{Epoch, NodeName};

use super::checkout::{CheckoutError, Opening, open};
use super::trouble::{Blame, blame};
use super::{Cell, Core, State, Who};
use crate::env::Env;

/// Has a connection opened in a task of its own, if there are fewer than `pool.min`; after that the next one.
pub(super) fn begin<E: Env>(core: &Arc<Core<E>>, cell: &Arc<Cell<E>>, state: &mut State<E>) {
    let Some(first) = next(core, cell, state) else { return };
    let (core, cell) = (Arc::clone(core), Arc::clone(cell));
    let env = core.env.clone();
    env.spawn(async move {
        let mut wanted = Some(first);
        while let Some((server, who, epoch)) = wanted.take() {
            let opening = Opening::new(&core, &cell, server);
            match open(opening, &who, epoch).await {
                Ok(lease) => drop(lease.give_back()),
                Err(error) => {
                    // Nobody waits for it. Whoever comes is told, and the next round of housekeeping tries again,
                    // unless the server does not let this user in any more.
                    tracing::debug!(node = %cell.node, ?error, "a connection could not be opened ahead");
                    if matches!(&error, CheckoutError::Open(error) if blame(error) == Blame::Client) {
                        cell.state.lock().warm.take_if(|warm| *warm == who);
                    }
                    return;
                }
            }
            wanted = next(&core, &cell, &mut cell.state.lock());
        }
    });
}

/// A place for a connection, for whom it is, and the epoch in which the node serves clients.
fn next<E: Env>(core: &Core<E>, cell: &Cell<E>, state: &mut State<E>) -> Option<(ServerId, Who, Epoch)> {
    let view = core.view.load();
    if state.retired || !serves(&view, &cell.node) {
        return None;
    }
    if state
        .warm
        .as_ref()
        .is_some_and(|who| !core.settings.load().login.still_knows(&who.user, &who.credential))
    {
        // What a client proved once is no word for ever.
        state.warm = None;
    }
    let who = state.warm.clone()?;
    let now = core.env.now();
    if state.trouble.as_ref().is_some_and(|trouble| trouble.is_on(now)) {
        return None;
    }
    Some((state.pool.ahead(now, who.variant, view.epoch)?, who, view.epoch))
}

/// Whether clients are sent to a node.
fn serves(view: &ClusterView, node: &NodeName) -> bool {
    let writes = matches!(&view.writes, Writes::Open { primary } if primary == node);
    writes
        || view
            .node(node.as_str())
            .is_some_and(|node| node.role == ObservedRole::Replica && node.reads == ReadFitness::Fit)
}
