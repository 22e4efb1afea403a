//! Waiting for a server, with an eye on the client: it may cancel, leave, send more, and is told when it takes long.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use metako_core::NodeName;
use metako_core::wire::sqlstate;
use metako_core::wire::write::{self, Report};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::Core;
use super::acquire::{Found, Picked, Wanted, acquire, pick};
use super::buffers::{Outbox, poll_read, with_scratch};
use super::client::greeting::{say_behind, stopping};
use super::clients::Handle;
use super::conn::Control;
use crate::env::Env;

/// So much is read ahead of a client that waits for a server, in bytes, to see whether it is still there. What it had
/// sent before is counted by `failover.hold_bytes`; this is not.
const READ_AHEAD_MAX: usize = 4 << 10;

/// After so long a client is told that it waits, and what for.
const NOTICE_AFTER: Duration = Duration::from_secs(5);

/// It is told again each time that so much has passed.
const NOTICE_EVERY: Duration = Duration::from_secs(30);

/// The client's connection ends: nothing more can or needs to be said.
#[derive(Debug)]
pub(super) struct Gone;

/// What a client waits for, as far as it got.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<Option<Reason>>);

#[derive(Debug)]
enum Reason {
    Held(String),
    InLine { node: NodeName, before: usize },
}

impl Progress {
    /// There is no primary.
    pub(super) fn held(&self, reason: &str) {
        *self.0.lock() = Some(Reason::Held(reason.to_owned()));
    }

    /// All connections to the node are in use, and so many clients wait already.
    pub(super) fn in_line(&self, node: &NodeName, before: usize) {
        *self.0.lock() = Some(Reason::InLine { node: node.clone(), before });
    }

    fn notice(&self, waited: Duration) -> Report {
        let notice =
            Report::notice(format!("no server connection after {}s, still waiting", waited.as_secs()));
        let detail = match &*self.0.lock() {
            Some(Reason::Held(reason)) => format!("There is no primary to write to: {reason}."),
            Some(Reason::InLine { node, before }) => format!(
                "All connections to node {node} are in use (pool.size); {before} clients were in line before this one."
            ),
            None => "The connection is being opened.".to_owned(),
        };
        notice.with_detail(detail)
    }
}

/// A client that waits. Between messages: a notice may be sent to it.
pub(super) struct Waiter<'a, S> {
    pub(super) stream: &'a mut S,
    /// What it sent and nobody has taken yet.
    pub(super) input: &'a mut Vec<u8>,
    pub(super) output: &'a mut Outbox,
    pub(super) handle: &'a Handle,
    /// It waits to be let in, with nothing open: a stop sends it away at once.
    pub(super) logs_in: bool,
}

/// What ends a wait early.
enum Early {
    Gone,
    Cancelled,
    Stopped,
}

/// Finds a server on the node that was picked, or another. `Err` inside is what the client is to be told.
///
/// Cancelling leaves every line.
pub(super) async fn wait<E: Env, S: AsyncRead + AsyncWrite + Unpin>(
    core: &Arc<Core<E>>,
    mut waiter: Waiter<'_, S>,
    wanted: &mut Wanted<'_>,
    picked: Picked,
) -> Result<Result<Found<E>, Report>, Gone> {
    let mut picked = picked;
    loop {
        match wait_once(core, &mut waiter, wanted, picked).await? {
            Ok(mut found) if !waiter.output.is_empty() => {
                if finish_notice(&mut waiter, &found.lease.conn().registration.control).await? {
                    return Ok(Ok(found));
                }
            }
            found => return Ok(found),
        }
        // The fence fell before anything was sent.
        picked = pick(core, wanted, &core.settings.load());
    }
}

async fn wait_once<E: Env, S: AsyncRead + AsyncWrite + Unpin>(
    core: &Arc<Core<E>>,
    waiter: &mut Waiter<'_, S>,
    wanted: &mut Wanted<'_>,
    picked: Picked,
) -> Result<Result<Found<E>, Report>, Gone> {
    let Waiter { stream, input, output, handle, logs_in } = waiter;
    let bytes = wanted.bytes;
    let progress = Arc::clone(wanted.progress.get_or_insert_default());
    let mut notices = Notices::new(progress);
    handle.wait();
    let watch = poll_fn(|cx| {
        while input.len() < bytes.max(READ_AHEAD_MAX) {
            match poll_input(*stream, input, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Gone)) => return Poll::Ready(Early::Gone),
                Poll::Pending => break,
            }
        }
        handle.listen(cx);
        if handle.is_ended() || (*logs_in && core.stop.is_asked()) {
            return Poll::Ready(Early::Stopped);
        }
        if handle.is_cancelled() {
            return Poll::Ready(Early::Cancelled);
        }
        match notices.poll(*stream, output, cx) {
            Ok(()) => Poll::Pending,
            Err(Gone) => Poll::Ready(Early::Gone),
        }
    });
    let found = tokio::select! {
        biased;
        found = Box::pin(acquire(core, wanted, picked)) => Ok(found),
        early = watch => Err(early),
    };
    handle.stop_waiting();
    match found {
        Ok(found) => Ok(found),
        Err(Early::Gone) => Err(Gone),
        Err(Early::Cancelled) => Ok(Err(cancelled())),
        Err(Early::Stopped) => {
            say_behind(*stream, output, &stopping()).await;
            Err(Gone)
        }
    }
}

/// Sends what remains of a notice before anything else is put behind it. Neither a fence nor a stop waits for a client:
/// whether the server is still of use.
async fn finish_notice<S: AsyncWrite + Unpin>(
    waiter: &mut Waiter<'_, S>,
    control: &Control,
) -> Result<bool, Gone> {
    let Waiter { stream, output, handle, .. } = waiter;
    poll_fn(|cx| {
        handle.listen(cx);
        if handle.is_ended() {
            return Poll::Ready(Err(Gone));
        }
        if !control.is_open() {
            return Poll::Ready(Ok(false));
        }
        output.poll_flush(*stream, cx).map_ok(|()| true).map_err(|_| Gone)
    })
    .await
}

/// Reads what a client sent behind what is there already.
pub(super) fn poll_input<S: AsyncRead + Unpin>(
    stream: &mut S,
    input: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Gone>> {
    with_scratch(|scratch| match poll_read(stream, cx, &mut scratch.input) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Err(Gone)),
        Poll::Ready(Ok(read)) => {
            input.extend_from_slice(&scratch.input[..read]);
            Poll::Ready(Ok(()))
        }
    })
}

fn cancelled() -> Report {
    Report::error(sqlstate::QUERY_CANCELED, "canceling statement due to user request")
        .with_detail("It was waiting for a server and was never sent.")
}

/// Tells a client now and then that it waits.
struct Notices {
    progress: Arc<Progress>,
    begun: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Notices {
    fn new(progress: Arc<Progress>) -> Self {
        Self { progress, begun: Instant::now(), timer: None }
    }

    /// Gives the next notice when it is time for it, unless the client has not taken the last one.
    fn poll<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        output: &mut Outbox,
        cx: &mut Context<'_>,
    ) -> Result<(), Gone> {
        let first = self.begun + NOTICE_AFTER;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(first)));
        while timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(Instant::now() + NOTICE_EVERY);
            if output.is_empty() {
                write::notice_response(output.bytes(), &self.progress.notice(self.begun.elapsed()));
            }
        }
        match output.poll_flush(stream, cx) {
            Poll::Ready(Err(_)) => Err(Gone),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use metako_core::Epoch;
    use metako_core::wire::read;
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::super::clients::Clients;
    use super::super::conn::Register;
    use super::*;
    use crate::env::TokioEnv;
    use crate::login::Protocol;

    async fn notice(client: &mut tokio::io::DuplexStream) -> String {
        let mut head = [0; 5];
        client.read_exact(&mut head).await.expect("a notice comes");
        assert_eq!(head[0], b'N');
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
        let mut body = vec![0; length];
        client.read_exact(&mut body).await.expect("all of it");
        let fields = read::error(&body);
        assert_eq!((fields.severity, fields.code), (&b"NOTICE"[..], &b"00000"[..]));
        String::from_utf8_lossy(&body).into_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_is_told_after_five_seconds_and_then_every_thirty() {
        let (mut client, mut stream) = duplex(4096);
        let begun = Instant::now();
        let progress = Arc::new(Progress::default());
        progress.in_line(&"db-1".into(), 3);
        let (mut notices, mut output) = (Notices::new(Arc::clone(&progress)), Outbox::default());
        let waiting = poll_fn(|cx| match notices.poll(&mut stream, &mut output, cx) {
            Ok(()) => Poll::<Gone>::Pending,
            Err(gone) => Poll::Ready(gone),
        });
        let reading = async {
            let text = notice(&mut client).await;
            assert!(text.contains("node db-1") && text.contains("3 clients"), "{text}");
            assert_eq!(begun.elapsed().as_secs(), 5);
            progress.held("the primary is being replaced");
            let text = notice(&mut client).await;
            assert!(text.contains("the primary is being replaced"), "{text}");
            assert_eq!(begun.elapsed().as_secs(), 35);
        };
        tokio::select! {
            gone = waiting => panic!("{gone:?}"),
            () = reading => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn notices_do_not_pile_up_for_a_client_that_takes_none() {
        let (_client, mut stream) = duplex(16);
        let (mut notices, mut output) = (Notices::new(Arc::default()), Outbox::default());
        let waiting = poll_fn(|cx| match notices.poll(&mut stream, &mut output, cx) {
            Ok(()) => Poll::<Gone>::Pending,
            Err(gone) => Poll::Ready(gone),
        });
        let waited = tokio::time::timeout(Duration::from_secs(3600), waiting).await;
        assert!(waited.is_err());
        assert!(!output.is_empty() && output.len() < 300, "{}", output.len());
    }

    #[tokio::test(start_paused = true)]
    async fn no_fence_waits_for_a_client_that_does_not_take_its_notice() {
        let (mut client, mut stream) = duplex(16);
        let (clients, register) = (Clients::default(), Arc::<Register>::default());
        let handle = clients.enter(&TokioEnv::new(), Protocol::V3_0);
        let mut output = Outbox::of(vec![0; 100]);
        let mut waiter = Waiter {
            stream: &mut stream,
            input: &mut Vec::new(),
            output: &mut output,
            handle: &handle,
            logs_in: false,
        };
        let registration = register.enter(&"a".into(), Epoch(1));
        let mut drain = None;
        let finished = async {
            let finishing = finish_notice(&mut waiter, &registration.control);
            tokio::pin!(finishing);
            let early = tokio::time::timeout(Duration::from_secs(1), &mut finishing).await;
            assert!(early.is_err(), "{early:?}");
            drain = Some(register.drain(&"a".into(), Epoch(2)));
            clients.nudge_all();
            tokio::time::timeout(Duration::from_secs(1), finishing).await
        };
        assert!(!finished.await.expect("the drain is noticed").unwrap());
        drop(drain);
        let taking = async { client.read_exact(&mut [0; 100]).await };
        let (finished, taken) = tokio::join!(finish_notice(&mut waiter, &registration.control), taking);
        assert!(finished.unwrap());
        taken.unwrap();
    }
}
