//! What the end of a unit of work asks for, where that is more than giving the server back.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use metako_core::NodeName;
use metako_core::cluster::ServerLoss;
use metako_core::session::{Loss, LossCx, block_opened};
use metako_core::wire::sqlstate;
use metako_core::wire::write::Report;

use super::greeting::{broken_off, stopping};
use super::steady::Serving;
use super::{ClientTask, Gone};
use crate::data::clients::deliver;
use crate::data::conn::CancelTarget;
use crate::data::pools::Lease;
use crate::data::relay::End;
use crate::env::Env;

/// How often one unit is tried on another server after it was lost or refused.
const REPEATS_MAX: usize = 4;

/// Cancels what runs on a server, if anything does.
async fn cancel<E: Env>(env: &E, target: Option<Arc<CancelTarget>>) {
    if let Some(target) = target {
        // If it does not arrive, the statement ends when it next speaks to the connection.
        let _ = deliver(env, &target).await;
    }
}

impl<E: Env> ClientTask<E> {
    /// Does what the end of a unit asks for. Gives another server if it is to be repeated there.
    pub(super) async fn after(&mut self, end: End, served: Serving<E>) -> Result<Option<Serving<E>>, Gone> {
        let Serving { mut lease, read, repeats, mut avoid, .. } = served;
        match end {
            End::Released => {
                self.side.session.release();
                self.give_back(lease).await;
                Ok(None)
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
                if !repeats {
                    return Ok(None);
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
                let server = &lease.conn().server;
                let undecided = self.side.session.is_undecided(server);
                let can_be_told = self.side.session.can_be_told(server);
                let unknown = self.core.settings.load().config.cluster.failover.unknown_outcome;
                let report = broken_off(stopping(), undecided.then_some(unknown));
                let core = Arc::clone(&self.core);
                let target = self.part(lease);
                let told = async {
                    match report.filter(|_| can_be_told) {
                        Some(report) => self.close_with(&report).await,
                        None => Err(Gone),
                    }
                };
                let ((), told) = Box::pin(async { tokio::join!(cancel(&core.env, target), told) }).await;
                self.handle.leave().await;
                told
            }
            End::ClientGone | End::TimedOut(_) => {
                self.abandon(lease).await;
                Err(Gone)
            }
        }
    }

    /// Gives a server back once no cancel can hit whoever has it next.
    async fn give_back(&mut self, mut lease: Lease<E>) {
        let usable = if let Some(usable) = self.handle.try_leave() {
            usable
        } else {
            let fenced = poll_fn(|cx| {
                self.handle.listen(cx);
                let open = lease.conn().registration.control.is_open();
                if open { Poll::Pending } else { Poll::Ready(()) }
            });
            let leave = Box::pin(self.handle.leave());
            tokio::select! {
                usable = leave => usable,
                () = fenced => false,
            }
        };
        if usable {
            self.pool = lease.give_back();
        }
    }

    /// The client is gone: the server, whose state nobody knows, is closed, and what runs there is cancelled, unless that is a
    /// COMMIT. In this order: a fence is not to wait for a server that takes no cancel.
    async fn abandon(&mut self, lease: Lease<E>) {
        let target = self.part(lease);
        cancel(&self.core.env, target).await;
        self.handle.leave().await;
    }

    /// Closes the server's connection. Gives what to cancel there.
    fn part(&mut self, mut lease: Lease<E>) -> Option<Arc<CancelTarget>> {
        let session = &self.side.session;
        let busy = session.is_busy(&lease.conn().server) && !session.is_committing();
        let target = Arc::clone(&lease.conn().cancel);
        drop(lease);
        busy.then_some(target)
    }

    async fn lost(
        &mut self,
        mut lease: Lease<E>,
        cause: &str,
        read: bool,
        mut avoid: Vec<NodeName>,
    ) -> Result<Option<Serving<E>>, Gone> {
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
            Loss::Kept => Ok(None),
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

    async fn repeat_elsewhere(
        &mut self,
        read: bool,
        avoid: Vec<NodeName>,
    ) -> Result<Option<Serving<E>>, Gone> {
        let report = if avoid.len() > REPEATS_MAX {
            Report::error(sqlstate::CONNECTION_FAILURE, "each server that was tried was lost")
                .with_hint("The statement only reads: it can be run again.")
        } else {
            self.refresh();
            match self.unfit.take() {
                Some(unfit) => return self.close_with(&unfit).await,
                None => match self.find(read, avoid.clone()).await? {
                    Ok(found) => return Ok(Some(self.serve_again(found, read, avoid))),
                    Err(report) => report,
                },
            }
        };
        self.side.session.refuse_repeat(&report, self.side.output.bytes());
        Ok(None)
    }
}
