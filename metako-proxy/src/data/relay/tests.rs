use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metako_core::Epoch;
use metako_core::plugin::{Class, Classification, Effects, QueryClassifier, Span};
use metako_core::pool::ServerId;
use metako_core::session::{Interner, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::super::clients::Clients;
use super::super::conn::{CancelTarget, Register};
use super::*;
use crate::backend::{Notices, ServerTls, Target};
use crate::credential::ServerCredential;
use crate::env::TokioEnv;
use crate::login::Protocol;

struct AllWrites;

impl QueryClassifier for AllWrites {
    fn classify(&self, _: &[u8]) -> Classification {
        Classification::new(Class::Write, "all are", Span::default()).with_effects(Effects::NONE)
    }
}

/// A relay between two streams in memory, whose far ends the scene has. Gives how it ended; after a time-out it goes
/// on.
async fn with_relay(
    time_outs: TimeOuts<'_>,
    input: Vec<u8>,
    scene: impl AsyncFnOnce(DuplexStream, DuplexStream),
) -> End {
    with_relay_over(|stream, _, _| stream, time_outs, input, scene).await
}

/// The same, with something around the client's stream, or done to the client or to node `n`, before it begins.
async fn with_relay_over<C: AsyncRead + AsyncWrite + Unpin + Send>(
    wrap: impl FnOnce(DuplexStream, &Clients, &Arc<Register>) -> C,
    time_outs: TimeOuts<'_>,
    input: Vec<u8>,
    scene: impl AsyncFnOnce(DuplexStream, DuplexStream),
) -> End {
    let (client_end, client_stream) = duplex(64 << 10);
    let clients = Clients::default();
    let handle = clients.enter(&TokioEnv::new(), Protocol::V3_0);
    let register: Arc<Register> = Arc::default();
    let client_stream = wrap(client_stream, &clients, &register);
    let (server_end, server_stream) = duplex(4 << 20);
    let statements = Mutex::new(Interner::default());
    let target = Target {
        node: "n".into(),
        host: String::new(),
        port: 0,
        tls: ServerTls::without_files(metako_core::config::SslMode::Disable),
        user: String::new(),
        credential: ServerCredential::None,
        database: String::new(),
        parameters: Vec::new(),
    };
    let mut conn = Conn {
        stream: server_stream,
        server: Server::new(&Arc::default()),
        id: ServerId(1),
        epoch: Epoch(1),
        cancel: Arc::new(CancelTarget { target, process_id: 1, secret_key: Vec::new() }),
        reported: Arc::default(),
        alone: None,
        notices: Notices::default(),
        partial: Vec::new(),
        registration: register.enter(&"n".into(), Epoch(1)),
    };
    let mut client = ClientSide {
        stream: client_stream,
        session: Session::new(1 << 20),
        input,
        output: Outbox::default(),
        stalled: false,
        leaving: false,
        vanished: false,
        timer: None,
        armed: false,
    };
    let mut passage = Passage::new(Begins::New { replica: false });
    let mut relay = Relay {
        client: &mut client,
        conn: &mut conn,
        passage: &mut passage,
        handle: &handle,
        traffic: &NodeTraffic::default(),
        cx: SessionCx { classifier: &AllWrites, statements: &statements, split: true, scope: 0 },
        time_outs,
    };
    let run = async {
        match poll_fn(|cx| relay.poll(cx)).await {
            End::TimedOut(key) => {
                // The cancel arrives a second later.
                let (delivered, cancelling) = oneshot::channel::<()>();
                relay.passage.cancelling = Some(cancelling);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    drop(delivered);
                });
                let then = poll_fn(|cx| relay.poll(cx)).await;
                End::ServerLost(format!("{key}, then {then:?}"))
            }
            end => end,
        }
    };
    let scene = tokio::time::timeout(Duration::from_mins(5), scene(client_end, server_end));
    let (end, scene) = tokio::join!(run, scene);
    scene.unwrap_or_else(|_| panic!("the scene hangs: {end:?}"));
    end
}

/// A stream that takes what is written and cannot pass it on, as TLS does when the client is gone.
struct Clogged(DuplexStream);

impl AsyncRead for Clogged {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Clogged {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_is_not_kept_for_a_client_whose_stream_takes_nothing_any_more() {
    let time_outs = TimeOuts { read: None, write: None, own: &|| Duration::from_secs(30) };
    let scene = async |_client: DuplexStream, mut server: DuplexStream| {
        let mut sent = vec![0; QUERY.len()];
        server.read_exact(&mut sent).await.unwrap();
        for byte in ANSWER {
            server.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let end = with_relay_over(|stream, _, _| Clogged(stream), time_outs, QUERY.to_vec(), scene).await;
    assert!(matches!(end, End::Released | End::ClientGone), "{end:?}");
}

const QUERY: &[u8] = b"Q\0\0\0\x05\0";
const ANSWER: &[u8] = b"I\0\0\0\x04Z\0\0\0\x05I";

#[tokio::test(start_paused = true)]
async fn what_a_full_pipeline_left_over_is_sent_when_answers_come() {
    const MANY: usize = (1 << 16) + 10;
    let time_outs = TimeOuts { read: None, write: None, own: &|| Duration::from_secs(30) };
    let scene = async |mut client: DuplexStream, mut server: DuplexStream| {
        let mut sent = vec![0; QUERY.len() << 16];
        server.read_exact(&mut sent).await.unwrap();
        let mut answers = vec![0; ANSWER.len() * MANY];
        let answering = async {
            server.write_all(&ANSWER.repeat(1 << 16)).await.unwrap();
            let mut rest = vec![0; QUERY.len() * 10];
            server.read_exact(&mut rest).await.unwrap();
            server.write_all(&ANSWER.repeat(10)).await.unwrap();
        };
        let reading = client.read_exact(&mut answers);
        let ((), read) =
            tokio::time::timeout(Duration::from_secs(1), async { tokio::join!(answering, reading) })
                .await
                .expect("all is answered");
        read.unwrap();
    };
    let end = with_relay(time_outs, QUERY.repeat(MANY), scene).await;
    assert!(matches!(end, End::Released), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_timed_out_and_given_up_when_it_takes_no_cancel() {
    let time_outs =
        TimeOuts { read: None, write: Some(Duration::from_secs(3)), own: &|| Duration::from_secs(30) };
    let scene = async |client: DuplexStream, server: DuplexStream| {
        tokio::time::sleep(Duration::from_mins(1)).await;
        drop((client, server));
    };
    let end = with_relay(time_outs, QUERY.to_vec(), scene).await;
    let End::ServerLost(how) = end else { panic!("{end:?}") };
    let wanted =
        "load_balancer.write_timeout, then ServerLost(\"it did not end a statement that was cancelled\")";
    assert_eq!(how, wanted);
}

/// What the client sends may be a COMMIT.
#[tokio::test(start_paused = true)]
async fn nothing_is_sent_while_a_cancel_of_metakos_own_is_on_its_way() {
    let write = Duration::from_secs(3);
    let time_outs = TimeOuts { read: None, write: Some(write), own: &|| Duration::from_secs(30) };
    let scene = async |mut client: DuplexStream, mut server: DuplexStream| {
        let mut sent = vec![0; QUERY.len()];
        server.read_exact(&mut sent).await.unwrap();
        tokio::time::sleep(write + Duration::from_millis(100)).await;
        client.write_all(QUERY).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(800), server.read_exact(&mut sent)).await;
        assert!(early.is_err(), "the cancel was not delivered yet");
        server.read_exact(&mut sent).await.unwrap();
        server.write_all(&ANSWER.repeat(2)).await.unwrap();
        client.read_exact(&mut vec![0; 2 * ANSWER.len()]).await.unwrap();
    };
    let end = with_relay(time_outs, QUERY.to_vec(), scene).await;
    let End::ServerLost(how) = end else { panic!("{end:?}") };
    assert_eq!(how, "load_balancer.write_timeout, then Released");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_slow_to_read_is_no_reason_to_cancel() {
    let time_outs =
        TimeOuts { read: None, write: Some(Duration::from_secs(3)), own: &|| Duration::from_secs(30) };
    let row = [&b"D\0\x01\0\x04"[..], &vec![0; 1 << 16]].concat();
    let scene = async |mut client: DuplexStream, mut server: DuplexStream| {
        server.write_all(&row.repeat(8)).await.unwrap();
        tokio::time::sleep(Duration::from_mins(1)).await;
        server.write_all(ANSWER).await.unwrap();
        let mut all = vec![0; row.len() * 8 + ANSWER.len()];
        client.read_exact(&mut all).await.unwrap();
    };
    let end = with_relay(time_outs, QUERY.to_vec(), scene).await;
    assert!(matches!(end, End::Released), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sent_before_it_vanished_is_done_if_that_takes_no_longer_than_it_may() {
    let time_outs = TimeOuts { read: None, write: None, own: &|| Duration::from_secs(30) };
    for is_answered in [true, false] {
        let scene = async |client: DuplexStream, mut server: DuplexStream| {
            drop(client);
            let mut sent = vec![0; QUERY.len() * 2];
            server.read_exact(&mut sent).await.unwrap();
            tokio::time::sleep(if is_answered { VANISHED_MAX / 2 } else { VANISHED_MAX * 2 }).await;
            server.write_all(&ANSWER.repeat(2)).await.unwrap();
        };
        let end = with_relay(time_outs, QUERY.repeat(2), scene).await;
        assert!(matches!(end, End::Released) == is_answered, "{end:?}");
        assert!(matches!(end, End::ClientGone) != is_answered, "{end:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_metako_is_given_up() {
    let time_outs = TimeOuts { read: None, write: None, own: &|| Duration::from_secs(30) };
    let scene = async |client: DuplexStream, mut server: DuplexStream| {
        let mut answer = Vec::new();
        // A setting that no statement explains.
        metako_core::wire::write::parameter_status(&mut answer, "TimeZone", "UTC");
        answer.extend_from_slice(ANSWER);
        server.write_all(&answer).await.unwrap();
        tokio::time::sleep(Duration::from_mins(1)).await;
        drop((client, server));
    };
    let end = with_relay(time_outs, QUERY.to_vec(), scene).await;
    let End::ServerLost(how) = end else { panic!("{end:?}") };
    assert_eq!(how, "it did not answer what metako asked it within pool.wait_timeout");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_for_a_client_that_was_told_to_end_before() {
    let time_outs = TimeOuts { read: None, write: None, own: &|| Duration::from_secs(30) };
    let scene = async |client: DuplexStream, mut server: DuplexStream| {
        let sent = tokio::time::timeout(Duration::from_mins(1), server.read_u8()).await;
        assert!(sent.is_err(), "{sent:?}");
        drop(client);
    };
    let ended = |stream, clients: &Clients, _: &Arc<Register>| {
        clients.end_all();
        stream
    };
    let end = with_relay_over(ended, time_outs, QUERY.to_vec(), scene).await;
    assert!(matches!(end, End::Stopped), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_on_a_server_that_is_drained() {
    let time_outs = TimeOuts { read: None, write: None, own: &|| Duration::from_secs(30) };
    let scene = async |client: DuplexStream, mut server: DuplexStream| {
        let sent = tokio::time::timeout(Duration::from_mins(1), server.read_u8()).await;
        assert!(sent.is_err(), "{sent:?}");
        drop(client);
    };
    let mut drain = None;
    let drained = |stream, _: &Clients, register: &Arc<Register>| {
        drain = Some(register.drain(&"n".into(), Epoch(2)));
        stream
    };
    let end = with_relay_over(drained, time_outs, QUERY.to_vec(), scene).await;
    assert!(matches!(end, End::Stale), "{end:?}");
}
