//! A client's task: log-in, then one unit of work after the other.

pub(super) mod greeting;
mod work;

use std::future::poll_fn;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::task::Poll;

use metako_core::NodeName;
use metako_core::config::{PoolMode, Split};
use metako_core::session::{Plan, Session, SessionCx};
use metako_core::wire::write::{self, Report};

use self::greeting::stopping;
use super::acquire::{First, Found, Picked, Wanted, try_acquire};
use super::buffers::{Outbox, trim};
use super::clients::Handle;
use super::pools::{Cell, Who};
use super::relay::ClientSide;
use super::settings::Settings;
use super::waiting::{Gone, Waiter, poll_input, wait};
use super::{Core, transparent};
use crate::env::Env;
use crate::login::{Client, MaybeTls};

/// A client that is logged in.
pub(super) struct ClientTask<E: Env> {
    core: Arc<Core<E>>,
    handle: Arc<Handle>,
    who: Who,
    /// Of its database and user.
    scope: u64,
    /// The pool that served it last.
    pool: Option<Arc<Cell<E>>>,
    /// It was not told yet that it may send.
    logs_in: bool,
    side: ClientSide<MaybeTls<E::Stream>>,
}

/// Serves a client from log-in to its end.
pub(super) async fn serve<E: Env>(core: Arc<Core<E>>, mut client: Box<Client<MaybeTls<E::Stream>>>) {
    let handle = core.clients.enter(&core.env, client.protocol);
    // Whatever happens, the key is given up.
    let _entered = Entered { core: &core, handle: &handle };
    let mode = core.settings.load().config.pool_of(&client.user).mode;
    let alone = mode == PoolMode::Session || client.replication.is_some();
    if alone {
        // Boxed, so that the task of a client that shares servers does not keep room for it.
        return Box::pin(transparent::serve(Arc::clone(&core), Arc::clone(&handle), *client)).await;
    }
    let mut output = Outbox::of(std::mem::take(&mut client.unsent));
    let (who, application_name) = match greeting::who(&core, &mut client) {
        Ok(found) => found,
        Err(report) => {
            return Box::pin(greeting::say_behind(&mut client.stream, &mut output, &report)).await;
        }
    };
    let mut session = Session::new(core.settings.load().config.limits.message_size);
    if mode == PoolMode::Statement {
        session.go_by_statement();
    }
    let Client { stream, leftover, .. } = *client;
    let side = ClientSide {
        stream,
        session,
        input: leftover,
        output,
        stalled: false,
        leaving: false,
        vanished: false,
        timer: None,
        armed: false,
    };
    let (core, handle) = (Arc::clone(&core), Arc::clone(&handle));
    let mut task = ClientTask { core, handle, scope: scope_of(&who), who, pool: None, logs_in: true, side };
    if Box::pin(task.welcome(application_name)).await.is_ok() {
        // Both outcomes end the connection, and have told the client what there was to tell.
        let _ = task.run().await;
    }
}

struct Entered<'a, E: Env> {
    core: &'a Core<E>,
    handle: &'a Handle,
}

impl<E: Env> Drop for Entered<'_, E> {
    fn drop(&mut self) {
        self.core.clients.leave(self.handle);
    }
}

impl<E: Env> ClientTask<E> {
    async fn close_with<T>(&mut self, report: &Report) -> Result<T, Gone> {
        let output = &mut self.side.output;
        write::error_response(output.bytes(), report);
        // As far as the client listens; it is not waited for longer than a moment.
        let _ = Box::pin(tokio::time::timeout(std::time::Duration::from_secs(1), self.flush())).await;
        Err(Gone)
    }

    /// Writes all that waits for the client.
    async fn flush(&mut self) -> Result<(), Gone> {
        if self.side.output.is_empty() {
            return Ok(());
        }
        let (side, handle) = (&mut self.side, &self.handle);
        poll_fn(|cx| {
            if handle.is_ended(cx) || (side.vanished && side.is_given_up(cx)) {
                return Poll::Ready(Err(Gone));
            }
            match side.output.poll_flush(&mut side.stream, cx) {
                Poll::Ready(Err(_)) => {
                    // What it sent before is done all the same.
                    side.output.discard();
                    side.vanish();
                    Poll::Ready(Ok(()))
                }
                Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    async fn run(&mut self) -> Result<(), Gone> {
        loop {
            self.flush().await?;
            if self.side.input.is_empty() {
                self.read_more().await?;
            }
            let settings = self.core.settings.load_full();
            let cx = session_cx(&self.core, &settings, self.scope);
            let side = &mut self.side;
            match side.session.plan(&side.input, &cx, side.output.bytes()) {
                Err(fault) => return Box::pin(self.close_with(&fault.report())).await,
                Ok(Plan::Close) => return Ok(()),
                Ok(Plan::Consumed(taken)) => {
                    side.input.drain(..taken);
                }
                Ok(Plan::More) => self.read_more().await?,
                Ok(Plan::Route(route)) => {
                    tracing::trace!(read = route.read, reason = route.reason, "routed");
                    match self.find(&settings, route.read, Vec::new()).await? {
                        Ok(found) => self.work(&settings, found, route.read).await?,
                        Err(report) => Box::pin(self.refuse(&report)).await?,
                    }
                    if self.side.leaving {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn refuse(&mut self, report: &Report) -> Result<(), Gone> {
        let side = &mut self.side;
        match side.session.refuse(&side.input, report, side.output.bytes()) {
            Ok(taken) => {
                side.input.drain(..taken);
                Ok(())
            }
            Err(fault) => self.close_with(&fault.report()).await,
        }
    }

    /// Waits for the client to say something.
    async fn read_more(&mut self) -> Result<(), Gone> {
        if self.side.input.is_empty() {
            trim(&mut self.side.input);
            if self.core.stop.is_asked() {
                return Box::pin(self.close_with(&stopping())).await;
            }
        }
        let (side, handle, stop, env) = (&mut self.side, &self.handle, &self.core.stop, &self.core.env);
        let idle = side.input.is_empty();
        let (mut asked, mut moving) = (!idle, false);
        let read = poll_fn(|cx| {
            if std::mem::take(&mut moving) {
                env.settle(side.stream.get_mut());
                side.timer = None;
            } else if !std::mem::replace(&mut asked, true) && env.moves_on() {
                moving = true;
                return Poll::Pending;
            }
            let must_end = |ended: bool| ended || (idle && stop.is_asked());
            if must_end(handle.is_ended_now()) {
                return Poll::Ready(None);
            }
            match poll_input(&mut side.stream, &mut side.input, cx) {
                // Only who waits has to be woken.
                Poll::Pending if must_end(handle.is_ended(cx)) => Poll::Ready(None),
                polled => polled.map(Some),
            }
        })
        .await;
        match read {
            Some(read) => read,
            None => Box::pin(self.close_with(&stopping())).await,
        }
    }

    /// Finds a server. While it waits, the client may cancel, leave, or send more.
    async fn find(
        &mut self,
        settings: &Settings,
        read: bool,
        avoid: Vec<NodeName>,
    ) -> Result<Result<Found<E>, Report>, Gone> {
        let bytes = self.side.input.len();
        let wanted =
            Wanted { who: &self.who, read, avoid, session: self.handle.number, bytes, progress: None };
        match try_acquire(&self.core, &wanted, settings, &mut self.pool) {
            First::Found(found) => Ok(Ok(found)),
            // Boxed, as all that is rare: an idle client's task keeps no room for it.
            First::Later(picked) => Box::pin(self.wait_for(read, wanted.avoid, picked)).await,
        }
    }

    async fn wait_for(
        &mut self,
        read: bool,
        avoid: Vec<NodeName>,
        picked: Picked,
    ) -> Result<Result<Found<E>, Report>, Gone> {
        let (bytes, session) = (self.side.input.len(), self.handle.number);
        let mut wanted = Wanted { who: &self.who, read, avoid, session, bytes, progress: None };
        let ClientSide { stream, input, output, .. } = &mut self.side;
        let waiter = Waiter { stream, input, output, handle: &self.handle, logs_in: self.logs_in };
        wait(&self.core, waiter, &mut wanted, picked).await
    }
}

/// A number for those whose texts may mean the same; if two had one number, they would share fewer statements.
fn scope_of(who: &Who) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&who.database, &who.user, who.variant).hash(&mut hasher);
    hasher.finish()
}

fn session_cx<'a, E: Env>(core: &'a Core<E>, settings: &'a Settings, scope: u64) -> SessionCx<'a> {
    SessionCx {
        classifier: &settings.classifier,
        statements: &core.statements,
        split: settings.config.routing.split == Split::Auto,
        scope,
    }
}
