//! A client's task: log-in, then one unit of work after the other.

pub(super) mod greeting;
pub(super) mod steady;
mod work;

use std::future::poll_fn;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use metako_core::NodeName;
use metako_core::config::{PoolMode, Split};
use metako_core::session::{Session, SessionCx};
use metako_core::wire::write::{self, Report};

use self::greeting::stopping;
use self::steady::{Halt, Rest};
use super::acquire::{First, Found, Picked, Wanted, try_acquire};
use super::buffers::Outbox;
use super::clients::Handle;
use super::pools::{Cell, Who};
use super::relay::ClientSide;
use super::settings::Settings;
use super::waiting::{Gone, Waiter, wait};
use super::{Core, transparent};
use crate::env::Env;
use crate::login::{Client, MaybeTls};

/// A client that is logged in.
pub(super) struct ClientTask<E: Env> {
    core: Arc<Core<E>>,
    /// What units go by, and which generation that is: of the present one, unless a unit is at work.
    settings: Arc<Settings>,
    generation: u64,
    handle: Arc<Handle>,
    who: Arc<Who>,
    /// Of its database and user.
    scope: u64,
    /// The pool that served it last.
    pool: Option<Arc<Cell<E>>>,
    /// It was not told yet that it may send.
    logs_in: bool,
    /// Why it cannot go on by the present settings.
    unfit: Option<Box<Report>>,
    rest: Rest,
    side: ClientSide<MaybeTls<E::Stream>>,
}

/// Serves a client from log-in to its end.
pub(super) async fn serve<E: Env>(core: Arc<Core<E>>, mut client: Box<Client<MaybeTls<E::Stream>>>) {
    let handle = core.clients.enter(&core.env, client.protocol);
    // Whatever happens, the key is given up.
    let _entered = Entered { core: &core, handle: &handle };
    // The generation first: what is loaded behind it is as new, or newer.
    let generation = core.generation.load(Ordering::Acquire);
    let settings = core.settings.load_full();
    let mode = settings.config.pool_of(&client.user).mode;
    let alone = mode == PoolMode::Session || client.replication.is_some();
    if alone {
        // Boxed, so that the task of a client that shares servers does not keep room for it.
        return Box::pin(transparent::serve(Arc::clone(&core), Arc::clone(&handle), *client)).await;
    }
    let mut output = Outbox::of(std::mem::take(&mut client.unsent));
    let (who, application_name) = match greeting::who(&core, greeting::guards(&settings), &mut client) {
        Ok(found) => found,
        Err(report) => {
            return Box::pin(greeting::say_behind(&mut client.stream, &mut output, &report)).await;
        }
    };
    let mut session = Session::new(settings.config.limits.message_size);
    session.guard_commits(settings.config.cluster.failover.commit_guard());
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
    let mut task = ClientTask {
        generation,
        settings,
        core,
        handle,
        scope: scope_of(&who),
        who: Arc::new(who),
        pool: None,
        logs_in: true,
        unfit: None,
        rest: Rest::default(),
        side,
    };
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
        // As far as the client listens; it is not waited for longer than a moment. Whether the client is to end does not
        // matter any more.
        let stream = &mut self.side.stream;
        let said = poll_fn(|cx| output.poll_flush(stream, cx));
        let _ = Box::pin(tokio::time::timeout(std::time::Duration::from_secs(1), said)).await;
        Err(Gone)
    }

    /// Goes by the present settings.
    fn refresh(&mut self) {
        let generation = self.core.generation.load(Ordering::Acquire);
        if self.generation != generation {
            self.settings = self.core.settings.load_full();
            self.generation = generation;
            self.guard();
        }
    }

    /// Guards commits as the settings say, on server connections that are fit for that.
    fn guard(&mut self) {
        let guard = self.settings.config.cluster.failover.commit_guard();
        self.unfit = None;
        if guard.is_some() != self.who.floor {
            match greeting::who_again(&self.core, &self.who, guard.is_some()) {
                Ok(who) => self.who = Arc::new(who),
                Err(report) => self.unfit = Some(Box::new(report)),
            }
        }
        self.side.session.guard_commits(guard);
    }

    /// Writes all that waits for the client.
    async fn flush(&mut self) -> Result<(), Gone> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let side = &mut self.side;
        if side.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.handle.listen(cx);
        if self.handle.is_ended() || (side.vanished && side.is_given_up(cx)) {
            return Poll::Ready(Err(Gone));
        }
        if ready!(side.output.poll_flush(&mut side.stream, cx)).is_err() {
            // What it sent before is done all the same.
            side.output.discard();
            side.vanish();
        }
        Poll::Ready(Ok(()))
    }

    async fn run(&mut self) -> Result<(), Gone> {
        let mut serving = None;
        loop {
            match poll_fn(|cx| self.poll_steady(&mut serving, cx)).await {
                // What follows is boxed, as all that is rare: an idle client's task keeps no room for it.
                Halt::Gone => return Err(Gone),
                Halt::Left => return Ok(()),
                Halt::Stopped => return Box::pin(self.close_with(&stopping())).await,
                Halt::Unfit(report) => return Box::pin(self.close_with(&report)).await,
                Halt::Fault(fault) => return Box::pin(self.close_with(&fault.report())).await,
                Halt::Later { read, picked } => {
                    match Box::pin(self.wait_for(read, Vec::new(), picked)).await? {
                        Ok(found) => {
                            let who = Arc::clone(&self.who);
                            self.refresh();
                            if Arc::ptr_eq(&who, &self.who) && self.unfit.is_none() {
                                serving = Some(self.serve(found, read));
                            } else {
                                // It was opened for other settings.
                                drop(found.lease.give_back());
                            }
                        }
                        Err(report) => Box::pin(self.refuse(&report)).await?,
                    }
                }
                Halt::Ended(end, served) => serving = Box::pin(self.after(end, *served)).await?,
            }
            if self.side.leaving && serving.is_none() {
                return Ok(());
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

    /// Finds a server. While it waits, the client may cancel, leave, or send more.
    async fn find(&mut self, read: bool, avoid: Vec<NodeName>) -> Result<Result<Found<E>, Report>, Gone> {
        let bytes = self.side.input.len();
        let wanted =
            Wanted { who: &self.who, read, avoid, session: self.handle.number, bytes, progress: None };
        match try_acquire(&self.core, &wanted, &self.settings, &mut self.pool) {
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
