//! A unit of work on a server, and on others if that one is lost.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use metako_core::NodeName;
use metako_core::cluster::ServerLoss;
use metako_core::plugin::{LoadBalancer as _, Outcome};
use metako_core::session::{Loss, LossCx, block_opened};
use metako_core::wire::sqlstate;
use metako_core::wire::write::Report;

use super::greeting::stopping;
use super::{ClientTask, Found, Gone, session_cx};
use crate::data::buffers::Outbox;
use crate::data::clients::deliver;
use crate::data::pools::Lease;
use crate::data::relay::{Begins, End, Relay, TimeOuts};
use crate::data::settings::Settings;
use crate::env::Env;

/// How often one unit is tried on another server after it was lost or refused.
const REPEATS_MAX: usize = 4;

/// What remains to be done for a unit once it has left a server.
enum Next<E: Env> {
    /// It is done.
    Done,
    /// It is to be repeated on another server.
    Repeat(Found<E>),
}

impl<E: Env> ClientTask<E> {
    /// Does a unit of work, or all until nothing is open, on a server; on others if that is lost and it may be.
    pub(super) async fn work(
        &mut self,
        settings: &Settings,
        found: Found<E>,
        read: bool,
    ) -> Result<(), Gone> {
        let Found { mut lease, replica } = found;
        let end = self.work_on(settings, &mut lease, Begins::New { replica }).await;
        if let End::Released = end {
            self.side.session.release();
            self.give_back(lease).await;
            return Ok(());
        }
        // Boxed: an idle client's task keeps no room for what is rare.
        Box::pin(self.work_elsewhere(settings, end, lease, read)).await
    }

    async fn work_elsewhere(
        &mut self,
        settings: &Settings,
        end: End,
        lease: Lease<E>,
        read: bool,
    ) -> Result<(), Gone> {
        let (mut end, mut lease, mut avoid, mut repeat) = (end, lease, Vec::new(), false);
        loop {
            let found = match self.after(end, lease, repeat, read, &mut avoid).await? {
                Next::Done => return Ok(()),
                Next::Repeat(found) => found,
            };
            repeat = true;
            lease = found.lease;
            end = self.work_on(settings, &mut lease, Begins::Again { replica: found.replica }).await;
        }
    }

    async fn work_on(&mut self, settings: &Settings, lease: &mut Lease<E>, begins: Begins) -> End {
        self.handle.serve(&lease.conn().cancel);
        let (Begins::New { replica } | Begins::Again { replica }) = begins;
        // Only a balancer wants to know how long it took, and only reads come to one.
        let begun = replica.then(|| self.core.env.now());
        let end = self.relay(settings, lease, replica, begins).await;
        if let Some(begun) = begun {
            let took = self.core.env.now().since(begun);
            let ok = !matches!(end, End::ServerLost(_) | End::Severed);
            let outcome = Outcome { node: lease.node().as_str(), took, ok };
            settings.balancer.observe(&outcome);
        }
        end
    }

    /// Does what the end of a unit asks for.
    async fn after(
        &mut self,
        end: End,
        lease: Lease<E>,
        repeat: bool,
        read: bool,
        avoid: &mut Vec<NodeName>,
    ) -> Result<Next<E>, Gone> {
        match end {
            End::Released => {
                self.side.session.release();
                self.give_back(lease).await;
                Ok(Next::Done)
            }
            End::Refused => {
                avoid.push(lease.node().clone());
                self.side.output.clear();
                self.give_back(lease).await;
                // What one replica refuses, the others would refuse too.
                self.repeat_elsewhere(false, avoid).await
            }
            End::ServerLost(cause) => {
                self.core.evidence.report(lease.node(), ServerLoss::Broken);
                self.lost(lease, &cause, read, avoid).await
            }
            End::Severed => {
                if !self.side.output.is_empty() && !self.side.session.is_holding_back() {
                    // What the fenced server said last must not reach the client any more.
                    return Err(Gone);
                }
                self.lost(lease, "fenced off, because the primary changes", read, avoid).await
            }
            End::Stale => {
                let node = lease.node().clone();
                drop(lease);
                self.handle.leave().await;
                if !repeat {
                    return Ok(Next::Done);
                }
                avoid.push(node);
                self.repeat_elsewhere(read, avoid).await
            }
            End::Ended => {
                drop(lease);
                self.flush().await?;
                Err(Gone)
            }
            End::Fault(fault) => {
                drop(lease);
                self.close_with(&fault.report()).await
            }
            End::BlockOpened => {
                drop(lease);
                self.close_with(&block_opened()).await
            }
            End::Stopped => {
                drop(lease);
                self.close_with(&stopping()).await
            }
            End::ClientGone | End::TimedOut(_) => {
                self.abandon(lease).await;
                Err(Gone)
            }
        }
    }

    /// Moves bytes until there is a reason to stop that concerns more than this client and this server.
    async fn relay(
        &mut self,
        settings: &Settings,
        lease: &mut Lease<E>,
        replica: bool,
        begins: Begins,
    ) -> End {
        let mut to_server = Outbox::default();
        let (conn, node, traffic) = lease.parts();
        let (config, user) = (&settings.config, self.who.user.as_str());
        let own = || config.pool_of(user).wait_timeout;
        let mut relay = Relay {
            client: &mut self.side,
            conn,
            to_server: &mut to_server,
            handle: &self.handle,
            traffic,
            cx: session_cx(&self.core, settings, self.scope),
            time_outs: TimeOuts {
                read: config.routing.read_timeout,
                write: config.routing.write_timeout,
                own: &own,
            },
            begins: Some(begins),
            broken: None,
            cancelled: false,
            read_only: false,
        };
        loop {
            let reason = relay.run().await;
            if std::mem::take(&mut relay.read_only) && !replica {
                self.core.evidence.report(node, ServerLoss::ReadOnly);
            }
            let End::TimedOut(key) = reason else { return reason };
            tracing::info!(%node, key, "a statement took too long and is cancelled on the server");
            relay.client.session.timed_out(key);
            let (handle, env) = (Arc::clone(&self.handle), self.core.env.clone());
            self.core.env.spawn(async move { handle.cancel(&env).await });
        }
    }

    /// Gives a server back once no cancel can hit whoever has it next.
    async fn give_back(&mut self, mut lease: Lease<E>) {
        let usable = if let Some(usable) = self.handle.try_leave() {
            usable
        } else {
            let fenced = poll_fn(|cx| {
                let severed = lease.conn().registration.control.is_severed(cx);
                if severed { Poll::Ready(()) } else { Poll::Pending }
            });
            let leave = Box::pin(self.handle.leave());
            tokio::select! {
                usable = leave => usable,
                () = fenced => false,
            }
        };
        if usable {
            lease.give_back();
        }
    }

    /// The client is gone: the server, whose state nobody knows, is closed, and what runs there is cancelled. In this
    /// order: a fence is not to wait for a server that takes no cancel.
    async fn abandon(&mut self, mut lease: Lease<E>) {
        let busy = self.side.session.is_busy(&lease.conn().server);
        let target = Arc::clone(&lease.conn().cancel);
        drop(lease);
        if busy {
            // If it does not arrive, the statement ends when it next speaks to the connection.
            let _ = deliver(&self.core.env, &target).await;
        }
        self.handle.leave().await;
    }

    async fn lost(
        &mut self,
        mut lease: Lease<E>,
        cause: &str,
        read: bool,
        avoid: &mut Vec<NodeName>,
    ) -> Result<Next<E>, Gone> {
        let node = lease.node().clone();
        if self.side.session.is_holding_back() {
            self.side.output.clear();
        }
        let cx = LossCx {
            node: node.as_str(),
            cause,
            unknown: self.core.settings.load().config.cluster.failover.unknown_outcome,
        };
        let output = self.side.output.bytes();
        let loss = self.side.session.lose(&mut lease.conn().server, &cx, output);
        tracing::debug!(%node, cause, ?loss, "a server connection in use was lost");
        let counts = self.side.session.take_counts();
        lease.traffic().failed.fetch_add(u64::from(counts.failed), std::sync::atomic::Ordering::Relaxed);
        // The socket is closed before anything else is said: nothing of that server can follow.
        drop(lease);
        self.handle.leave().await;
        match loss {
            Loss::Kept => Ok(Next::Done),
            Loss::Close => {
                // Told as far as the client listens.
                let _ = tokio::time::timeout(std::time::Duration::from_secs(1), self.flush()).await;
                Err(Gone)
            }
            Loss::Repeat => {
                avoid.push(node);
                self.repeat_elsewhere(read, avoid).await
            }
        }
    }

    async fn repeat_elsewhere(&mut self, read: bool, avoid: &[NodeName]) -> Result<Next<E>, Gone> {
        let report = if avoid.len() > REPEATS_MAX {
            Report::error(sqlstate::CONNECTION_FAILURE, "each server that was tried was lost")
                .with_hint("The statement only reads: it can be run again.")
        } else {
            let settings = self.core.settings.load_full();
            match self.find(&settings, read, avoid.to_vec()).await? {
                Ok(found) => return Ok(Next::Repeat(found)),
                Err(report) => report,
            }
        };
        self.side.session.refuse_repeat(&report, self.side.output.bytes());
        Ok(Next::Done)
    }
}
