//! Moving bytes between a client and the server that it has at the moment.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use metako_core::session::{Awaited, ClientFault, Effect, Session, SessionCx, UNIT_MAX};
use metako_core::wire::FrameError;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::buffers::{Outbox, Scratch, poll_read, trim, with_scratch};
use super::clients::Handle;
use super::conn::{Conn, Standing};
use crate::shared::NodeTraffic;

/// How long a server may take to end a statement that was cancelled there.
const CANCELLED_MAX: Duration = Duration::from_secs(5);

/// How long a server may go on with what a client asked for that has vanished since.
pub(super) const VANISHED_MAX: Duration = Duration::from_secs(5);

/// The most that is kept back of an answer while its unit may be repeated, in bytes.
const HOLD_BACK_MAX: usize = 8 << 10;

/// What a client's task holds of the client.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct ClientSide<S> {
    pub(super) stream: S,
    pub(super) session: Session,
    /// What the client sent and nobody has taken yet.
    pub(super) input: Vec<u8>,
    pub(super) output: Outbox,
    /// `input` holds what the session did not take because too many answers were outstanding.
    pub(super) stalled: bool,
    /// The client said that it leaves; what it asked for before is finished.
    pub(super) leaving: bool,
    /// It has vanished without a word; so is what it asked for before, but not for longer than the timer runs.
    pub(super) vanished: bool,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    pub(super) armed: bool,
}

impl<S> ClientSide<S> {
    /// The client is not there any more. If it has said Terminate before, that is in order.
    pub(super) fn vanish(&mut self) {
        if !self.leaving && !std::mem::replace(&mut self.vanished, true) {
            self.arm(VANISHED_MAX);
        }
    }

    /// Whether the time is over for a client that has vanished.
    pub(super) fn is_given_up(&mut self, cx: &mut Context<'_>) -> bool {
        self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
    }

    fn arm(&mut self, span: Duration) {
        let deadline = Instant::now() + span;
        self.armed = true;
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(deadline),
            None => self.timer = Some(Box::pin(tokio::time::sleep_until(deadline))),
        }
    }

    /// Whether nothing more of the client will go to a server.
    fn has_sent_all(&self) -> bool {
        self.leaving || (self.vanished && (!self.stalled || self.input.is_empty()))
    }
}

/// Why moving bytes came to an end.
#[derive(Debug)]
pub(super) enum End {
    /// The server has nothing to do with the client any more.
    Released,
    /// The server connection is gone.
    ServerLost(String),
    /// The fence took the server connection away.
    Severed,
    /// The fence took the server connection away before anything was sent.
    Stale,
    /// A replica refused the unit.
    Refused,
    /// The server ended the session, and the client was told why.
    Ended,
    /// A transaction block is open that must not be (`pool.mode: statement`).
    BlockOpened,
    /// The client is gone.
    ClientGone,
    /// The client sent what no client may send.
    Fault(ClientFault),
    /// The client's connection has to end now.
    Stopped,
    /// `load_balancer.read_timeout` or `write_timeout` has passed.
    TimedOut(&'static str),
}

/// What is to be done first.
#[derive(Debug, Clone, Copy)]
pub(super) enum Begins {
    /// What the client asks for is sent, to a node that is in recovery if `replica`.
    New { replica: bool },
    /// What was sent to another server is sent once more.
    Again { replica: bool },
}

/// The time-outs in force.
#[derive(Clone, Copy)]
pub(super) struct TimeOuts<'a> {
    pub(super) read: Option<Duration>,
    pub(super) write: Option<Duration>,
    /// For what metako asks for itself: until it is answered the client waits for a server. Rarely needed, and to be looked
    /// for among the users.
    pub(super) own: &'a (dyn Fn() -> Duration + Sync),
}

/// What is under way between a client and a server.
pub(super) struct Passage {
    begins: Option<Begins>,
    to_server: Outbox,
    /// Writing to the server failed.
    broken: Option<io::Error>,
    /// A time-out has passed and the statement was cancelled; nothing was heard since.
    cancelled: bool,
    /// The node refused a write because it is in recovery.
    pub(super) read_only: bool,
    /// Commits that are not known to be replicated.
    pub(super) unreplicated: u32,
    /// Settings found lower than guarded commits allow.
    pub(super) lowered: u32,
    /// Ends when the cancel that metako itself sends has reached the server. What comes of the client waits until then: it may
    /// be a COMMIT.
    pub(super) cancelling: Option<oneshot::Receiver<()>>,
}

impl Passage {
    pub(super) fn new(begins: Begins) -> Self {
        Self {
            begins: Some(begins),
            to_server: Outbox::default(),
            broken: None,
            cancelled: false,
            read_only: false,
            unreplicated: 0,
            lowered: 0,
            cancelling: None,
        }
    }
}

/// One client and one server, for as long as bytes can be moved without waiting.
pub(super) struct Relay<'a, C, S> {
    pub(super) client: &'a mut ClientSide<C>,
    pub(super) conn: &'a mut Conn<S>,
    pub(super) passage: &'a mut Passage,
    pub(super) handle: &'a Handle,
    pub(super) traffic: &'a NodeTraffic,
    pub(super) cx: SessionCx<'a>,
    pub(super) time_outs: TimeOuts<'a>,
}

impl<C, S> Relay<'_, C, S>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Moves bytes until there is a reason to stop. The client's handle has to listen for the task of `cx`.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        match self.poll_steps(cx) {
            Ok(()) => self.poll_timer(cx),
            Err(end) => Poll::Ready(end),
        }
    }

    /// Does all that can be done now, and sees to it that the task is woken when there is more.
    fn poll_steps(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let begins = self.passage.begins.take();
        let standing = self.conn.registration.control.standing();
        match (standing, begins) {
            (Standing::Open, _) | (Standing::Draining, None) => {}
            (_, Some(_)) => return Err(End::Stale),
            (Standing::Severed, None) => return Err(End::Severed),
        }
        // Also before anything is sent: who was told to end while it waited for a server is not told again.
        if self.handle.is_ended() {
            return Err(End::Stopped);
        }
        if let Some(begins) = begins {
            self.begin(begins, cx)?;
        }
        if let Some(cancelling) = &mut self.passage.cancelling
            && Pin::new(cancelling).poll(cx).is_ready()
        {
            self.passage.cancelling = None;
        }
        while self.step(cx)? {}
        // Nothing more has come of the client.
        if standing == Standing::Draining && self.is_kept_idle() {
            return Err(End::Severed);
        }
        Ok(())
    }

    /// Whether the client keeps the server though nothing is under way between them.
    fn is_kept_idle(&self) -> bool {
        self.conn.partial.is_empty()
            && self.passage.to_server.is_empty()
            && self.client.output.is_empty()
            && self.client.input.is_empty()
            && self.client.session.is_at_rest(&self.conn.server)
            && self.client.session.pinned().is_some()
    }

    /// Does once what can be done; whether that was anything.
    fn step(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let written = self.write_client(cx)? | self.write_server(cx)?;
        let read = self.read_server(cx)? | self.read_client(cx)?;
        Ok(written | read)
    }

    fn write_client(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.client.output.is_empty() || self.client.session.is_holding_back() {
            return Ok(false);
        }
        match self.client.output.poll_flush(&mut self.client.stream, cx) {
            Poll::Ready(Ok(())) => {
                // While the client was slow, the server was not read.
                self.rearm();
                self.look_around()?;
                Ok(true)
            }
            Poll::Ready(Err(_)) => {
                // It left without waiting for the answer to what it asked for; that is finished all the same.
                self.client.output.discard();
                self.client.vanish();
                self.look_around()?;
                Ok(true)
            }
            Poll::Pending => Ok(false),
        }
    }

    fn write_server(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.passage.to_server.is_empty() {
            return Ok(false);
        }
        match self.passage.to_server.poll_flush(&mut self.conn.stream, cx) {
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(error)) => Err(lost(&error)),
            Poll::Pending => Ok(false),
        }
    }

    fn read_server(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let holding = self.client.session.is_holding_back();
        if !self.client.output.is_empty() && !holding {
            // The client is slow: so is the server, then.
            return Ok(false);
        }
        with_scratch(|scratch| {
            let read = match poll_read(&mut self.conn.stream, cx, &mut scratch.input) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => return Err(End::ServerLost("it closed the connection".to_owned())),
                Poll::Ready(Ok(read)) => read,
                Poll::Ready(Err(error)) => return Err(lost(&error)),
            };
            self.answer(cx, scratch, read)?;
            Ok(true)
        })
    }

    fn answer(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch, read: usize) -> Result<(), End> {
        let Conn { server, partial, .. } = &mut *self.conn;
        let Scratch { input, first: made, second: said } = scratch;
        let answered = if partial.is_empty() {
            let answered = self.client.session.answer(server, &input[..read], made, said);
            if let Ok(answered) = &answered {
                partial.extend_from_slice(&input[answered.consumed..read]);
            }
            answered
        } else {
            partial.extend_from_slice(&input[..read]);
            let answered = self.client.session.answer(server, partial, made, said);
            if let Ok(answered) = &answered {
                partial.drain(..answered.consumed);
                trim(partial);
            }
            answered
        };
        let answered = answered.map_err(|error: FrameError| {
            End::ServerLost(format!("it sent what is not PostgreSQL's protocol: {error}"))
        })?;
        if self.client.session.is_holding_back() {
            self.client.output.bytes().extend_from_slice(made);
            if self.client.output.len() > HOLD_BACK_MAX {
                self.client.session.give_up_repeat();
            }
        } else {
            let sent = self.client.output.send(&mut self.client.stream, cx, made);
            if sent.is_err() {
                self.client.output.discard();
                self.client.vanish();
            }
        }
        if !said.is_empty() {
            self.send(cx, said);
        }
        self.passage.cancelled = false;
        self.count();
        self.rearm();
        match answered.effect {
            Effect::Continue => self.look_around(),
            Effect::Refused => Err(End::Refused),
            Effect::Lost => Err(End::ServerLost("it is shutting down".to_owned())),
            Effect::Ended => Err(End::Ended),
        }
    }

    fn look_for_release(&mut self) -> Result<(), End> {
        // A server stays until its last byte is with the client: what the fence cuts off must not arrive later.
        let free = self.conn.partial.is_empty()
            && self.passage.to_server.is_empty()
            && self.client.output.is_empty()
            && self.client.session.releasable(&self.conn.server);
        if free { Err(End::Released) } else { Ok(()) }
    }

    fn read_client(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if self.passage.cancelling.is_some() {
            return Ok(false);
        }
        let wanted = self.client.session.wants_input(&self.conn.server);
        if wanted && self.client.stalled && self.passage.to_server.is_empty() {
            with_scratch(|Scratch { first, second, .. }| self.forward_kept(cx, first, second))?;
            return Ok(true);
        }
        if !self.passage.to_server.is_empty()
            || self.client.leaving
            || self.client.vanished
            || (!wanted && self.client.input.len() >= UNIT_MAX)
        {
            return Ok(false);
        }
        with_scratch(|scratch| {
            let read = match poll_read(&mut self.client.stream, cx, &mut scratch.input) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.client.vanish();
                    return self.look_around().map(|()| true);
                }
                Poll::Ready(Ok(read)) => read,
            };
            let Scratch { input, first, second } = scratch;
            if wanted && self.client.input.is_empty() {
                let consumed = self.forward(cx, &input[..read], first, second)?;
                self.client.input.extend_from_slice(&input[consumed..read]);
                self.look_around()?;
            } else {
                self.client.input.extend_from_slice(&input[..read]);
                self.client.stalled |= !wanted;
                if wanted {
                    self.forward_kept(cx, first, second)?;
                }
            }
            Ok(true)
        })
    }

    /// Takes the server for what the client wants, and sends that.
    fn begin(&mut self, begins: Begins, cx: &mut Context<'_>) -> Result<(), End> {
        with_scratch(|scratch| {
            let Scratch { first: to_server, second: to_client, .. } = scratch;
            let replica = match begins {
                Begins::New { replica } => {
                    self.client.session.attach(&mut self.conn.server, replica, to_server);
                    return self.forward_kept(cx, to_server, to_client);
                }
                Begins::Again { replica } => replica,
            };
            let rest = self
                .client
                .session
                .repeat(&mut self.conn.server, replica, &self.cx, to_server, to_client)
                .map_err(End::Fault)?;
            self.client.stalled = !rest.is_empty();
            self.client.input.splice(..0, rest);
            self.send(cx, to_server);
            self.client.output.bytes().extend_from_slice(to_client);
            self.count();
            self.rearm();
            self.look_around()
        })
    }

    fn forward_kept(
        &mut self,
        cx: &mut Context<'_>,
        to_server: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) -> Result<(), End> {
        let mut input = std::mem::take(&mut self.client.input);
        let consumed = self.forward(cx, &input, to_server, to_client);
        if let Ok(consumed) = consumed {
            input.drain(..consumed);
            trim(&mut input);
        }
        self.client.input = input;
        consumed?;
        self.look_around()
    }

    /// Takes what may go to the server. A failure to send shows in [`Self::look_around`]: what was taken is taken.
    fn forward(
        &mut self,
        cx: &mut Context<'_>,
        input: &[u8],
        to_server: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) -> Result<usize, End> {
        let forwarded = self
            .client
            .session
            .forward(&mut self.conn.server, input, &self.cx, to_server, to_client)
            .map_err(End::Fault)?;
        self.client.leaving |= forwarded.terminate;
        self.client.stalled = !self.client.session.wants_input(&self.conn.server);
        self.send(cx, to_server);
        self.client.output.bytes().extend_from_slice(to_client);
        self.count();
        self.rearm();
        Ok(forwarded.consumed)
    }

    fn send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        if let Err(error) = self.passage.to_server.send(&mut self.conn.stream, cx, bytes) {
            self.passage.broken = Some(error);
        }
    }

    /// After something was sent: is the server gone, free, or left alone?
    fn look_around(&mut self) -> Result<(), End> {
        if let Some(error) = self.passage.broken.take() {
            return Err(lost(&error));
        }
        if self.client.session.opened_block(&self.conn.server) {
            return Err(End::BlockOpened);
        }
        self.look_for_release()?;
        if self.client.has_sent_all() && !self.client.session.will_finish(&self.conn.server) {
            // Its rows, or its Sync, will not come.
            return Err(End::ClientGone);
        }
        Ok(())
    }

    fn count(&mut self) {
        let counts = self.client.session.take_counts();
        for (counter, count) in [
            (&self.traffic.reads, counts.reads),
            (&self.traffic.writes, counts.writes),
            (&self.traffic.failed, counts.failed),
            (&self.traffic.databases, counts.databases),
        ] {
            if count > 0 {
                counter.fetch_add(u64::from(count), Ordering::Relaxed);
            }
        }
        self.passage.read_only |= counts.read_only > 0;
        self.passage.unreplicated += counts.unreplicated;
        self.passage.lowered += counts.lowered;
    }

    /// The clock runs from sending to the first byte of the answer, and anew from each run of rows.
    fn rearm(&mut self) {
        if self.client.vanished {
            return;
        }
        let span = match self.client.session.awaited(&self.conn.server) {
            Awaited::Unbounded => None,
            _ if self.passage.cancelled => Some(CANCELLED_MAX),
            Awaited::Read => self.time_outs.read,
            Awaited::Write => self.time_outs.write,
            Awaited::Own => Some((self.time_outs.own)()),
        };
        match span {
            Some(span) => self.client.arm(span),
            None => self.client.armed = false,
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let client_is_slow = !self.client.output.is_empty() && !self.client.session.is_holding_back();
        if self.client.armed
            && (!client_is_slow || self.client.vanished)
            && let Some(timer) = &mut self.client.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            self.client.armed = false;
            if self.client.vanished {
                return Poll::Ready(End::ClientGone);
            }
            let awaited = self.client.session.awaited(&self.conn.server);
            if awaited == Awaited::Own {
                let cause = "it did not answer what metako asked it within pool.wait_timeout";
                return Poll::Ready(End::ServerLost(cause.to_owned()));
            }
            if self.passage.cancelled {
                return Poll::Ready(End::ServerLost(
                    "it did not end a statement that was cancelled".to_owned(),
                ));
            }
            self.passage.cancelled = true;
            self.rearm();
            let key = if awaited == Awaited::Read {
                "load_balancer.read_timeout"
            } else {
                "load_balancer.write_timeout"
            };
            return Poll::Ready(End::TimedOut(key));
        }
        Poll::Pending
    }
}

fn lost(error: &io::Error) -> End {
    End::ServerLost(error.to_string())
}

#[cfg(test)]
mod tests;
