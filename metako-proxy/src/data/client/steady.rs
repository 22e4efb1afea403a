//! A client's steady state: one function reads what it wants, takes a server that is idle, moves the bytes both ways, and
//! gives the server back. It is left for what is rare.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use metako_core::cluster::ServerLoss;
use metako_core::plugin::{LoadBalancer as _, Outcome};
use metako_core::session::{ClientFault, Plan};
use metako_core::wire::write::Report;
use metako_core::{NodeName, Tick};
use tokio::sync::oneshot;

use super::{ClientTask, Found, session_cx};
use crate::data::acquire::{First, Picked, Wanted, try_acquire};
use crate::data::buffers::trim;
use crate::data::pools::Lease;
use crate::data::relay::{Begins, End, Passage, Relay, TimeOuts};
use crate::data::waiting::{Gone, poll_input};
use crate::env::Env;

/// A server at work for the client, on a unit or until nothing is open.
pub(super) struct Serving<E: Env> {
    pub(super) lease: Lease<E>,
    passage: Passage,
    /// Its node is in recovery.
    replica: bool,
    /// A replica would do.
    pub(super) read: bool,
    /// The unit was sent to another server before.
    pub(super) repeats: bool,
    /// Nodes that lost or refused the unit.
    pub(super) avoid: Vec<NodeName>,
    /// When it began, if a balancer wants to know how long it takes.
    begun: Option<Tick>,
}

/// What cannot be done at once.
pub(super) enum Halt<E: Env> {
    /// The client is not there any more.
    Gone,
    /// It has said that it leaves.
    Left,
    /// Its connection has to end.
    Stopped,
    /// It cannot go on by the settings since the last reload.
    Unfit(Box<Report>),
    /// It sent what no client may send.
    Fault(ClientFault),
    /// No server is idle for what it wants.
    Later { read: bool, picked: Picked },
    /// The server cannot simply be given back.
    Ended(End, Box<Serving<E>>),
}

/// Where a client is that has nothing open.
#[derive(Default)]
pub(super) struct Rest {
    /// What it sent is not enough yet.
    unfinished: bool,
    /// Whether it is to move to another worker was asked.
    asked: bool,
    /// It does.
    moving: bool,
}

impl<E: Env> ClientTask<E> {
    /// Goes on with what the client asks for, with the server in `serving` if there is one. Cancelling loses nothing: all
    /// state is in the task and in `serving`.
    pub(super) fn poll_steady(
        &mut self,
        serving: &mut Option<Serving<E>>,
        cx: &mut Context<'_>,
    ) -> Poll<Halt<E>> {
        self.handle.listen(cx);
        loop {
            match serving {
                None => match ready!(self.poll_next(cx)) {
                    Ok(next) => *serving = Some(next),
                    Err(halt) => return Poll::Ready(halt),
                },
                Some(served) => {
                    let end = ready!(self.poll_serving(served, cx));
                    if let Some(served) = serving.take()
                        && let Some(halt) = self.finish(end, served)
                    {
                        return Poll::Ready(halt);
                    }
                }
            }
        }
    }

    /// Has a server work for the client from now on.
    pub(super) fn serve(&self, found: Found<E>, read: bool) -> Serving<E> {
        let passage = Passage::new(Begins::New { replica: found.replica });
        self.serve_by(found, read, passage, Vec::new())
    }

    /// The same once more, after the nodes that are to be avoided.
    pub(super) fn serve_again(&self, found: Found<E>, read: bool, avoid: Vec<NodeName>) -> Serving<E> {
        let passage = Passage::new(Begins::Again { replica: found.replica });
        Serving { repeats: true, ..self.serve_by(found, read, passage, avoid) }
    }

    fn serve_by(&self, found: Found<E>, read: bool, passage: Passage, avoid: Vec<NodeName>) -> Serving<E> {
        let Found { mut lease, replica } = found;
        self.handle.serve(&lease.conn().cancel);
        // Only a balancer wants to know how long it took, and only reads come to one.
        let begun = replica.then(|| self.core.env.now());
        Serving { lease, passage, replica, read, repeats: false, avoid, begun }
    }

    /// Reads until there is something for a server, and takes one.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Serving<E>, Halt<E>>> {
        loop {
            // Whoever waits keeps no old settings, with all that belongs to them.
            self.refresh();
            if !self.side.output.is_empty()
                && let Err(Gone) = ready!(self.poll_flush(cx))
            {
                return Poll::Ready(Err(Halt::Gone));
            }
            if (self.side.input.is_empty() || self.rest.unfinished)
                && let Err(halt) = ready!(self.poll_more(cx))
            {
                return Poll::Ready(Err(halt));
            }
            self.refresh();
            if let Some(report) = self.unfit.take() {
                return Poll::Ready(Err(Halt::Unfit(report)));
            }
            let session_cx = session_cx(&self.core, &self.settings, self.scope);
            let side = &mut self.side;
            match side.session.plan(&side.input, &session_cx, side.output.bytes()) {
                Err(fault) => return Poll::Ready(Err(Halt::Fault(fault))),
                Ok(Plan::Close) => return Poll::Ready(Err(Halt::Left)),
                Ok(Plan::Consumed(taken)) => {
                    side.input.drain(..taken);
                }
                Ok(Plan::More) => self.rest.unfinished = true,
                Ok(Plan::Route(route)) => {
                    tracing::trace!(read = route.read, reason = route.reason, "routed");
                    let wanted = Wanted {
                        who: &self.who,
                        read: route.read,
                        avoid: Vec::new(),
                        session: self.handle.number,
                        bytes: self.side.input.len(),
                        progress: None,
                    };
                    return Poll::Ready(
                        match try_acquire(&self.core, &wanted, &self.settings, &mut self.pool) {
                            First::Found(found) => Ok(self.serve(found, route.read)),
                            First::Later(picked) => Err(Halt::Later { read: route.read, picked }),
                        },
                    );
                }
            }
        }
    }

    /// Waits for the client to say something.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Halt<E>>> {
        let (side, rest, env) = (&mut self.side, &mut self.rest, &self.core.env);
        let idle = side.input.is_empty();
        if idle {
            trim(&mut side.input);
            if std::mem::take(&mut rest.moving) {
                env.settle(side.stream.get_mut());
                side.timer = None;
            } else if !std::mem::replace(&mut rest.asked, true) && env.moves_on() {
                rest.moving = true;
                return Poll::Pending;
            }
        }
        if self.handle.is_ended() || (idle && self.core.stop.is_asked()) {
            return Poll::Ready(Err(Halt::Stopped));
        }
        let read = ready!(poll_input(&mut side.stream, &mut side.input, cx));
        *rest = Rest::default();
        Poll::Ready(read.map_err(|Gone| Halt::Gone))
    }

    /// Moves bytes until there is a reason to stop that concerns more than this client and this server.
    fn poll_serving(&mut self, served: &mut Serving<E>, cx: &mut Context<'_>) -> Poll<End> {
        let Serving { lease, passage, replica, begun, .. } = served;
        let (conn, node, traffic) = lease.parts();
        let (settings, user) = (&self.settings, self.who.user.as_str());
        let config = &settings.config;
        let own = || config.pool_of(user).wait_timeout;
        let mut relay = Relay {
            client: &mut self.side,
            conn,
            passage,
            handle: &self.handle,
            traffic,
            cx: session_cx(&self.core, settings, self.scope),
            time_outs: TimeOuts {
                read: config.routing.read_timeout,
                write: config.routing.write_timeout,
                own: &own,
            },
        };
        loop {
            let end = ready!(relay.poll(cx));
            if std::mem::take(&mut relay.passage.read_only) && !*replica {
                self.core.evidence.report(node, ServerLoss::ReadOnly);
            }
            warn_of_unreplicated(node, std::mem::take(&mut relay.passage.unreplicated));
            if std::mem::take(&mut relay.passage.lowered) > 0 {
                tracing::warn!(%node, user, "a function or DO block has set synchronous_commit or client_min_messages lower \
                     than commit_guard allows: that is reset, but what committed meanwhile may not be replicated");
            }
            if let End::TimedOut(key) = end {
                tracing::info!(%node, key, "a statement took too long and is cancelled on the server");
                relay.client.session.timed_out(key);
                let (handle, env) = (Arc::clone(&self.handle), self.core.env.clone());
                let (delivered, cancelling) = oneshot::channel::<()>();
                relay.passage.cancelling = Some(cancelling);
                self.core.env.spawn(async move {
                    handle.cancel(&env).await;
                    drop(delivered);
                });
                continue;
            }
            if let Some(begun) = begun {
                let took = self.core.env.now().since(*begun);
                let ok = !matches!(end, End::ServerLost(_) | End::Severed);
                settings.balancer.observe(&Outcome { node: node.as_str(), took, ok });
            }
            return Poll::Ready(end);
        }
    }

    /// Gives the server back that is done, unless there is more to it.
    fn finish(&mut self, end: End, served: Serving<E>) -> Option<Halt<E>> {
        if let End::Released = end
            && let Some(usable) = self.handle.try_leave()
        {
            self.side.session.release();
            if usable {
                self.pool = served.lease.give_back();
            }
            return self.side.leaving.then_some(Halt::Left);
        }
        Some(Halt::Ended(end, Box::new(served)))
    }
}

/// For the operator: a failover may lose what these commits have written.
pub(in crate::data) fn warn_of_unreplicated(node: &NodeName, commits: u32) {
    if commits > 0 {
        tracing::warn!(%node, commits, "the wait of a commit for synchronous standbys was cancelled: its client is told \
             that it is not known to be replicated");
    }
}
