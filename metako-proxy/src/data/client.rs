//! A client's task: log-in, then one unit of work after the other.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use metako_core::NodeName;
use metako_core::cluster::ServerLoss;
use metako_core::config::{PoolMode, Split};
use metako_core::plugin::{LoadBalancer as _, Outcome};
use metako_core::session::{Loss, LossCx, Plan, Session, SessionCx};
use metako_core::wire::sqlstate;
use metako_core::wire::write::{self, Report};
use tokio::io::{AsyncRead, AsyncWrite};

use super::acquire::{First, Found, Wanted, acquire, try_acquire};
use super::buffers::{Outbox, poll_read, trim, with_scratch};
use super::clients::{Handle, deliver};
use super::pools::{Lease, Who};
use super::relay::{ClientSide, End, Relay, TimeOuts};
use super::settings::Settings;
use super::{Core, Stop};
use crate::env::Env;
use crate::login::{self, Client, MaybeTls};

/// So much is read ahead of a client that waits for a server, in bytes, to see whether it is still there. What it had
/// sent before is counted by `failover.hold_bytes`; this is not.
const READ_AHEAD_MAX: usize = 4 << 10;

/// How often one unit is tried on another server after it was lost or refused.
const REPEATS_MAX: usize = 4;

/// The client's connection ends: nothing more can or needs to be said.
#[derive(Debug)]
struct Gone;

/// A client that is logged in.
pub(super) struct ClientTask<E: Env> {
    core: Arc<Core<E>>,
    handle: Arc<Handle>,
    who: Who,
    side: ClientSide<MaybeTls<E::Stream>>,
}

/// What remains to be done for a unit once it has left a server.
enum Next<E: Env> {
    /// It is done.
    Done,
    /// It is to be repeated on another server.
    Repeat(Found<E>),
}

/// Serves a client from log-in to its end.
pub(super) async fn serve<E: Env>(core: Arc<Core<E>>, client: Client<MaybeTls<E::Stream>>) {
    let handle = core.clients.enter(&core.env);
    // Whatever happens, the key is given up.
    let _entered = Entered { core: &core, handle: &handle };
    let mut stream = client.stream;
    let who = match who(&core, &client.user, &client.database, &client.parameters) {
        Ok(who) => who,
        Err(report) => return say_last(&mut stream, &report).await,
    };
    let mut session = Session::new(&who.application_name, core.settings.load().config.limits.message_size);
    if core.settings.load().config.pool.mode == PoolMode::Session {
        session.pin("pool.mode is session");
    }
    let side = ClientSide {
        stream,
        session,
        input: client.leftover,
        output: Outbox::default(),
        stalled: false,
        leaving: false,
        timer: None,
        armed: false,
    };
    let mut task = ClientTask { core: Arc::clone(&core), handle: Arc::clone(&handle), who, side };
    if task.welcome().await.is_ok() {
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

/// Reads the start-up parameters. What PostgreSQL would do with them, the server does: they begin its connections.
fn who<E: Env>(
    core: &Core<E>,
    user: &str,
    database: &str,
    given: &[(String, String)],
) -> Result<Who, Report> {
    let mut application_name = String::new();
    let mut parameters = Vec::with_capacity(given.len());
    for (name, value) in given {
        match name.to_ascii_lowercase().as_str() {
            "application_name" => application_name.clone_from(value),
            "replication" if !matches!(value.as_str(), "false" | "off" | "no" | "0") => {
                return Err(Report::fatal(
                    sqlstate::FEATURE_NOT_SUPPORTED,
                    "metako does not relay replication connections",
                )
                .with_hint("Connect to the node itself."));
            }
            "user" | "database" | "replication" => {}
            lower => parameters.push((lower.to_owned(), value.clone())),
        }
    }
    let parameters = Arc::new(parameters);
    let (parameters, variant) = core.pools.variant(&parameters).ok_or_else(|| {
        Report::fatal(
            sqlstate::PROGRAM_LIMIT_EXCEEDED,
            "too many different sets of start-up parameters are in use",
        )
        .with_hint("Let clients of one kind connect with the same options.")
    })?;
    Ok(Who { database: database.to_owned(), user: user.to_owned(), application_name, parameters, variant })
}

/// Tells a client why its connection ends, as far as it listens.
pub(super) async fn say_last<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, report: &Report) {
    let mut bytes = Vec::new();
    write::error_response(&mut bytes, report);
    let mut output = Outbox::default();
    output.bytes().extend_from_slice(&bytes);
    // A client that does not take its last message within a second is not waited for.
    let said = poll_fn(|cx| output.poll_flush(stream, cx));
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), said).await;
}

impl<E: Env> ClientTask<E> {
    /// Says what ends a log-in. Parameters come from a server connection of the client's own kind; if none was opened
    /// yet, one is opened now, so that what PostgreSQL refuses is refused here.
    async fn welcome(&mut self) -> Result<(), Gone> {
        let reported = match self.core.pools.reported(&self.who) {
            Some(reported) => reported,
            None => match self.find(true, Vec::new()).await? {
                Ok(Found { mut lease, .. }) => {
                    let reported = Arc::clone(&lease.conn().reported);
                    lease.give_back();
                    reported
                }
                Err(report) => return self.close_with(&report.as_fatal()).await,
            },
        };
        let mut parameters: Vec<(String, String)> = reported.to_vec();
        for (name, value) in &mut parameters {
            match name.as_str() {
                "application_name" => value.clone_from(&self.who.application_name),
                // Writes are possible here, whichever node the connection was to.
                "in_hot_standby" => "off".clone_into(value),
                _ => {}
            }
        }
        let welcome = login::welcome(&parameters, self.handle.process_id, self.handle.secret_key());
        self.side.output.bytes().extend_from_slice(&welcome);
        self.flush().await
    }

    async fn close_with<T>(&mut self, report: &Report) -> Result<T, Gone> {
        let output = &mut self.side.output;
        write::error_response(output.bytes(), report);
        // As far as the client listens; it is not waited for longer than a moment.
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), self.flush()).await;
        Err(Gone)
    }

    /// Writes all that waits for the client.
    async fn flush(&mut self) -> Result<(), Gone> {
        if self.side.output.is_empty() {
            return Ok(());
        }
        let (side, handle) = (&mut self.side, &self.handle);
        poll_fn(|cx| {
            if handle.is_ended(cx) {
                return Poll::Ready(Err(Gone));
            }
            side.output.poll_flush(&mut side.stream, cx).map_err(|_| Gone)
        })
        .await
    }

    async fn run(&mut self) -> Result<(), Gone> {
        loop {
            self.flush().await?;
            let settings = self.core.settings.load_full();
            let cx = session_cx(&self.core, &settings);
            let side = &mut self.side;
            match side.session.plan(&side.input, &cx, side.output.bytes()) {
                Err(fault) => return self.close_with(&fault.report()).await,
                Ok(Plan::Close) => return Ok(()),
                Ok(Plan::Consumed(taken)) => {
                    side.input.drain(..taken);
                }
                Ok(Plan::More) => self.read_more().await?,
                Ok(Plan::Route(route)) => {
                    tracing::trace!(read = route.read, reason = route.reason, "routed");
                    match self.find(route.read, Vec::new()).await? {
                        Ok(found) => self.work(found, route.read).await?,
                        Err(report) => self.refuse(&report).await?,
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
                return self.close_with(&stopping()).await;
            }
        }
        let (side, handle, stop) = (&mut self.side, &self.handle, &self.core.stop);
        let idle = side.input.is_empty();
        let read = poll_fn(|cx| {
            if handle.is_ended(cx) || (idle && stop.is_asked()) {
                return Poll::Ready(None);
            }
            poll_input(side, cx).map(Some)
        })
        .await;
        match read {
            Some(read) => read,
            None => self.close_with(&stopping()).await,
        }
    }

    /// Finds a server. While it waits, the client may cancel, leave, or send more.
    async fn find(&mut self, read: bool, avoid: Vec<NodeName>) -> Result<Result<Found<E>, Report>, Gone> {
        let bytes = self.side.input.len();
        let session = u64::from(self.handle.process_id.unsigned_abs());
        let mut wanted = Wanted { who: &self.who, read, avoid, session, bytes };
        let picked = match try_acquire(&self.core, &wanted) {
            First::Found(found) => return Ok(Ok(found)),
            First::Later(picked) => picked,
        };
        self.handle.wait();
        let (side, handle) = (&mut self.side, &self.handle);
        let watch = poll_fn(|cx| {
            while side.input.len() < bytes.max(READ_AHEAD_MAX) {
                match poll_input(side, cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(gone)) => return Poll::Ready(gone),
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        });
        let found = tokio::select! {
            biased;
            found = Box::pin(acquire(&self.core, &mut wanted, picked)) => Ok(found),
            () = handle.interrupted() => Ok(Err(cancelled())),
            gone = watch => Err(gone),
        };
        self.handle.stop_waiting();
        found
    }

    /// Does a unit of work, or all until nothing is open, on a server; on others if that is lost and it may be.
    async fn work(&mut self, found: Found<E>, read: bool) -> Result<(), Gone> {
        let mut found = found;
        let mut avoid = Vec::new();
        let mut repeat = false;
        loop {
            match self.work_on(found, repeat, read, &mut avoid).await? {
                Next::Done => return Ok(()),
                Next::Repeat(another) => found = another,
            }
            repeat = true;
        }
    }

    async fn work_on(
        &mut self,
        found: Found<E>,
        repeat: bool,
        read: bool,
        avoid: &mut Vec<NodeName>,
    ) -> Result<Next<E>, Gone> {
        let Found { mut lease, replica } = found;
        self.handle.serve(&lease.conn().cancel);
        let begun = self.core.env.now();
        let end = self.relay(&mut lease, replica, repeat).await;
        if replica {
            let took = self.core.env.now().since(begun);
            let ok = !matches!(end, End::ServerLost(_) | End::Severed);
            let outcome = Outcome { node: lease.node().as_str(), took, ok };
            self.core.settings.load().balancer.observe(&outcome);
        }
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
    async fn relay(&mut self, lease: &mut Lease<E>, replica: bool, repeat: bool) -> End {
        let settings = self.core.settings.load_full();
        let mut to_server = Outbox::default();
        let node = lease.node().clone();
        let (conn, traffic) = lease.parts();
        let mut relay = Relay {
            client: &mut self.side,
            conn,
            to_server: &mut to_server,
            handle: &self.handle,
            traffic,
            cx: session_cx(&self.core, &settings),
            time_outs: TimeOuts::of(&settings.config),
            broken: None,
            cancelled: false,
            read_only: false,
        };
        let mut end = relay.start(replica, repeat).await.err();
        loop {
            let reason = match end.take() {
                Some(reason) => reason,
                None => relay.run().await,
            };
            if std::mem::take(&mut relay.read_only) && !replica {
                self.core.evidence.report(&node, ServerLoss::ReadOnly);
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
            tokio::select! {
                usable = self.handle.leave() => usable,
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
            match self.find(read, avoid.to_vec()).await? {
                Ok(found) => return Ok(Next::Repeat(found)),
                Err(report) => report,
            }
        };
        self.side.session.refuse_repeat(&report, self.side.output.bytes());
        Ok(Next::Done)
    }
}

fn session_cx<'a, E: Env>(core: &'a Core<E>, settings: &'a Settings) -> SessionCx<'a> {
    SessionCx {
        classifier: &settings.classifier,
        statements: &core.statements,
        split: settings.config.routing.split == Split::Auto,
    }
}

/// Reads what the client sent behind what is there already.
fn poll_input<S: AsyncRead + AsyncWrite + Unpin>(
    side: &mut ClientSide<S>,
    cx: &mut std::task::Context<'_>,
) -> Poll<Result<(), Gone>> {
    with_scratch(|scratch| match poll_read(&mut side.stream, cx, &mut scratch.input) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Err(Gone)),
        Poll::Ready(Ok(read)) => {
            side.input.extend_from_slice(&scratch.input[..read]);
            Poll::Ready(Ok(()))
        }
    })
}

fn cancelled() -> Report {
    Report::error(sqlstate::QUERY_CANCELED, "canceling statement due to user request")
        .with_detail("It was waiting for a server and was never sent.")
}

fn stopping() -> Report {
    Report::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection: metako is shutting down")
}

impl Stop {
    /// Whether clients are to be sent away when they have nothing open.
    fn is_asked(&self) -> bool {
        self.asked.load(std::sync::atomic::Ordering::Acquire)
    }
}
