//! Moving bytes untouched between a client and its server.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use metako_core::NodeName;
use metako_core::config::UnknownOutcome;
use metako_core::session::{SettingsGuard, refusal, unreplicated};
use metako_core::wire::FrameError;
use metako_core::wire::commit_guard::{CommitGuard, Guarded};
use metako_core::wire::tally::Tally;
use metako_core::wire::write::Report;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use crate::data::Core;
use crate::data::buffers::{Outbox, Scratch, poll_read, with_scratch};
use crate::data::client::steady::warn_of_unreplicated;
use crate::data::clients::Handle;
use crate::data::conn::{Control, Standing};
use crate::env::Env;
use crate::login::Replication;
use crate::shared::NodeTraffic;

/// How long a server may go on for a client that vanished, and as long again once its statement was cancelled.
const LEFT_MAX: Duration = Duration::from_secs(5);

/// Why moving bytes came to an end.
#[derive(Debug)]
pub(super) enum End {
    /// The server's end of the connection is gone; the client has all that came before.
    ServerEnded(String),
    /// The client is gone, and its server has ended or took too long.
    ClientLeft,
    /// The fence took the server connection away.
    Severed,
    /// The client's connection has to end now, or has nothing under way and metako stops.
    Stopped,
    /// A commit is not known to be replicated, and the client cannot be told in any other way.
    Unreplicated,
    /// The client sent a message longer than `limits.message_size`.
    TooLong(FrameError),
}

/// What became of one of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Open,
    /// Its peer will say nothing more.
    Ended,
    /// It takes nothing either.
    Dead,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum ServerHalf {
    Open,
    /// Writing failed: its end is to be read yet.
    Deaf,
    /// How its stream ended.
    Ended(String),
}

/// A client, its server, and what is on its way between them.
pub(super) struct Relay<'a, E: Env, C, S> {
    core: &'a Arc<Core<E>>,
    handle: &'a Arc<Handle>,
    client: &'a mut C,
    server: &'a mut S,
    to_client: Outbox,
    to_server: Outbox,
    /// What replicates never comes to rest: nothing waits for that.
    replication: Option<Replication>,
    client_half: Half,
    /// The end of the client's stream was passed on.
    passed_on: bool,
    server_half: ServerHalf,
    /// Runs when the client has vanished.
    patience: Option<Pin<Box<Sleep>>>,
    cancelled: bool,
    read_only: bool,
    /// Where commits are guarded.
    guard: Option<Guard>,
    /// The generation of settings that this goes by.
    generation: Option<u64>,
}

/// The commit guard, and what it says.
struct Guard {
    settings: SettingsGuard,
    commits: CommitGuard,
    report: Option<Report>,
}

impl Guard {
    fn new(unknown: UnknownOutcome) -> Self {
        let (settings, commits) = (SettingsGuard::default(), CommitGuard::new(refusal));
        Self { settings, commits, report: unreplicated(unknown, None) }
    }
}

/// What the bytes are counted by.
struct Counting<'a> {
    tally: &'a mut Tally,
    control: &'a Control,
    traffic: &'a NodeTraffic,
    node: &'a NodeName,
}

impl<'a, E: Env, C, S> Relay<'a, E, C, S>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn new(
        core: &'a Arc<Core<E>>,
        handle: &'a Arc<Handle>,
        client: &'a mut C,
        server: &'a mut S,
        to_client: Outbox,
        replication: Option<Replication>,
    ) -> Self {
        Self {
            core,
            handle,
            client,
            server,
            to_client,
            to_server: Outbox::default(),
            replication,
            client_half: Half::Open,
            passed_on: false,
            server_half: ServerHalf::Open,
            patience: None,
            cancelled: false,
            read_only: false,
            guard: None,
            generation: None,
        }
    }

    /// Whether commits are guarded.
    pub(super) fn guards_commits(&self) -> bool {
        self.guard.is_some()
    }

    /// What the client has not taken.
    pub(super) fn into_rest(self) -> Outbox {
        self.to_client
    }

    /// Whether the server refused to write because its transactions are read-only.
    pub(super) fn was_read_only(&self) -> bool {
        self.read_only
    }

    /// Sends the server what the client had sent ahead, and moves bytes until there is a reason to stop.
    ///
    /// Not to be called again once it was cancelled: what was on its way is gone then.
    pub(super) async fn run(
        &mut self,
        tally: &mut Tally,
        control: &Control,
        (node, traffic): (&NodeName, &NodeTraffic),
        ahead: &[u8],
    ) -> End {
        self.follow_settings(tally);
        if let Err(error) = tally.sent(ahead) {
            return End::TooLong(error);
        }
        let out = self.to_server.bytes();
        if !self.guard.as_mut().is_some_and(|guard| guard.settings.filter(ahead, out)) {
            out.extend_from_slice(ahead);
        }
        let mut counting = Counting { tally, control, traffic, node };
        poll_fn(|cx| self.poll(&mut counting, cx)).await
    }

    fn poll(&mut self, counting: &mut Counting<'_>, cx: &mut Context<'_>) -> Poll<End> {
        self.handle.listen(cx);
        if self.handle.is_ended() {
            return Poll::Ready(End::Stopped);
        }
        let standing = counting.control.standing();
        let drains = standing == Standing::Draining;
        if standing == Standing::Severed || (drains && self.replication.is_some()) {
            return Poll::Ready(End::Severed);
        }
        loop {
            let mut moved = self.write_client(cx);
            moved |= self.write_server(cx);
            let read =
                self.read_server(counting, cx).and_then(|read| Ok(read | self.read_client(counting, cx)?));
            match read {
                Ok(read) => moved |= read,
                Err(end) => return Poll::Ready(end),
            }
            if !moved {
                break;
            }
        }
        if self.to_client.is_empty() {
            if let ServerHalf::Ended(cause) = &self.server_half {
                let left = self.client_half != Half::Open || counting.tally.client_left();
                return Poll::Ready(if left { End::ClientLeft } else { End::ServerEnded(cause.clone()) });
            }
            let is_idle = self.to_server.is_empty() && counting.tally.is_idle();
            let streams = self.to_server.is_empty() && counting.tally.is_streaming();
            if (is_idle || streams) && self.core.stop.is_asked() {
                return Poll::Ready(End::Stopped);
            }
            if is_idle && drains {
                return Poll::Ready(End::Severed);
            }
        }
        self.poll_patience(counting.tally, cx)
    }

    fn write_client(&mut self, cx: &mut Context<'_>) -> bool {
        if self.to_client.is_empty() {
            return false;
        }
        match self.to_client.poll_flush(self.client, cx) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => {
                self.client_died();
                true
            }
            Poll::Pending => false,
        }
    }

    /// Nobody reads any more: what the server still says is dropped.
    fn client_died(&mut self) {
        self.client_half = Half::Dead;
        self.to_client = Outbox::default();
    }

    fn server_is_deaf(&mut self) {
        self.server_half = ServerHalf::Deaf;
        self.to_server = Outbox::default();
    }

    fn write_server(&mut self, cx: &mut Context<'_>) -> bool {
        if self.server_half != ServerHalf::Open {
            return false;
        }
        let ended = self.client_half != Half::Open;
        let written = if !self.to_server.is_empty() {
            self.to_server.poll_flush(self.server, cx)
        } else if ended && !self.passed_on {
            let shut = Pin::new(&mut *self.server).poll_shutdown(cx);
            self.passed_on = shut.is_ready();
            shut
        } else {
            return false;
        };
        match written {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => {
                // It may have said why: that is read first.
                self.server_is_deaf();
                true
            }
            Poll::Pending => false,
        }
    }

    fn read_server(&mut self, counting: &mut Counting<'_>, cx: &mut Context<'_>) -> Result<bool, End> {
        if !self.to_client.is_empty() || matches!(self.server_half, ServerHalf::Ended(_)) {
            // While the client is slow, so is the server.
            return Ok(false);
        }
        with_scratch(|Scratch { input, first: changed, .. }| {
            match poll_read(self.server, cx, input) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => {
                    self.server_half = ServerHalf::Ended("it closed the connection".to_owned());
                }
                Poll::Ready(Err(error)) => self.server_half = ServerHalf::Ended(error.to_string()),
                Poll::Ready(Ok(read)) => {
                    let bytes = &input[..read];
                    let guarded =
                        self.guard.as_mut().map_or(Guarded::AsIs, |Guard { commits, report, .. }| {
                            commits.filter(bytes, counting.tally.awaited(), report.as_ref(), changed)
                        });
                    let found = self.guard.as_mut().map_or(0, |guard| guard.commits.take_found());
                    warn_of_unreplicated(counting.node, found);
                    let shown = if guarded == Guarded::AsIs { bytes } else { &changed[..] };
                    counting.tally.received(bytes);
                    self.count(counting);
                    let listens = self.client_half != Half::Dead && !shown.is_empty();
                    if listens && self.to_client.send(self.client, cx, shown).is_err() {
                        self.client_died();
                    }
                    if guarded == Guarded::End {
                        return Err(End::Unreplicated);
                    }
                }
            }
            Ok(true)
        })
    }

    /// Goes by the present settings, where nothing is under way.
    fn follow_settings(&mut self, tally: &Tally) {
        let generation = Some(self.core.generation.load(Ordering::Acquire));
        let takes_sql = self.replication.is_none_or(Replication::takes_sql);
        if self.generation == generation || !takes_sql || !tally.is_idle() {
            return;
        }
        self.generation = generation;
        let unknown = self.core.settings.load().config.cluster.failover.commit_guard();
        self.guard = unknown.map(Guard::new);
    }

    fn read_client(&mut self, counting: &mut Counting<'_>, cx: &mut Context<'_>) -> Result<bool, End> {
        let server_takes = self.to_server.is_empty() && self.server_half == ServerHalf::Open;
        if self.client_half != Half::Open || !server_takes {
            return Ok(false);
        }
        with_scratch(|Scratch { input, first: changed, .. }| {
            match poll_read(self.client, cx, input) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => self.client_half = Half::Ended,
                Poll::Ready(Err(_)) => self.client_died(),
                Poll::Ready(Ok(read)) => {
                    let bytes = &input[..read];
                    self.follow_settings(counting.tally);
                    counting.tally.sent(bytes).map_err(End::TooLong)?;
                    self.count(counting);
                    let guarded =
                        self.guard.as_mut().is_some_and(|guard| guard.settings.filter(bytes, changed));
                    let sent = if guarded { &changed[..] } else { bytes };
                    if !sent.is_empty() && self.to_server.send(self.server, cx, sent).is_err() {
                        self.server_is_deaf();
                    }
                }
            }
            Ok(true)
        })
    }

    fn count(&mut self, counting: &mut Counting<'_>) {
        let passed = counting.tally.take_passed();
        for (counter, count) in
            [(&counting.traffic.writes, passed.statements), (&counting.traffic.failed, passed.failed)]
        {
            if count > 0 {
                counter.fetch_add(u64::from(count), Ordering::Relaxed);
            }
        }
        self.read_only |= passed.read_only > 0;
    }

    /// A client that vanished: its server gets some time to end, is cancelled, and is left alone at last.
    fn poll_patience(&mut self, tally: &Tally, cx: &mut Context<'_>) -> Poll<End> {
        if self.client_half == Half::Open || (tally.client_left() && tally.is_busy()) {
            return Poll::Pending;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(LEFT_MAX)));
        while patience.as_mut().poll(cx).is_ready() {
            if self.cancelled || !tally.is_busy() {
                return Poll::Ready(End::ClientLeft);
            }
            self.cancelled = true;
            patience.as_mut().reset(tokio::time::Instant::now() + LEFT_MAX);
            let (handle, env) = (Arc::clone(self.handle), self.core.env.clone());
            self.core.env.spawn(async move { handle.cancel(&env).await });
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
