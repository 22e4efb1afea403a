use std::time::Duration;

use metako_core::Epoch;
use metako_core::cluster::{ClusterView, Phase, Writes};
use metako_core::config::SecretSource;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::data::DataPlane;
use crate::data::conn::{Drain, Register};
use crate::env::TokioEnv;
use crate::login::Protocol;
use crate::shared::{EvidenceSender, Traffic, ViewCell};

struct NoSecrets;

impl SecretSource for NoSecrets {
    fn env(&self, _name: &str) -> Option<String> {
        None
    }

    fn file(&self, _path: &std::path::Path) -> std::io::Result<String> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

fn core(failover: &str) -> Arc<Core<TokioEnv>> {
    use metako_strategies as _;
    let text = "nodes:\n\
        - { name: a, host: 127.0.0.1, port: 1, role: primary, username: app, password: secret, database: shop }\n\
        - { name: b, host: 127.0.0.1, port: 2, role: replica, username: app, password: secret, database: shop }\n";
    let config =
        metako_core::config::load("metako.yaml", &format!("{text}{failover}"), &NoSecrets).unwrap().config;
    let view = ViewCell::new(ClusterView {
        version: 1,
        epoch: Epoch(1),
        phase: Phase::Steady { primary: "a".into() },
        writes: Writes::Open { primary: "a".into() },
        ..ClusterView::empty("")
    });
    let (evidence, _) = EvidenceSender::channel();
    let traffic = Arc::new(Traffic::default());
    let data = DataPlane::new(TokioEnv::new(), Arc::new(config), Arc::new(view), evidence, traffic).unwrap();
    Arc::clone(&data.core)
}

/// A relay between two streams in memory, whose far ends the scene has. Gives how it ended, what it knew, and when that
/// was.
async fn with_relay(scene: impl AsyncFnOnce(DuplexStream, DuplexStream)) -> (End, Tally, Duration) {
    with_relay_of(None, async |client, server, _| scene(client, server).await).await
}

/// The same, of a client that replicates or does not, with what drains its server.
async fn with_relay_of(
    replication: Option<Replication>,
    scene: impl AsyncFnOnce(DuplexStream, DuplexStream, &dyn Fn() -> Drain),
) -> (End, Tally, Duration) {
    with_relay_by(core(""), replication, scene).await
}

/// The same by other settings.
async fn with_relay_by(
    core: Arc<Core<TokioEnv>>,
    replication: Option<Replication>,
    scene: impl AsyncFnOnce(DuplexStream, DuplexStream, &dyn Fn() -> Drain),
) -> (End, Tally, Duration) {
    let begun = tokio::time::Instant::now();
    let handle = core.clients.enter(&core.env, Protocol::V3_0);
    let register = Arc::<Register>::default();
    let registration = register.enter(&"a".into(), Epoch(1));
    let drain = || {
        let drain = register.drain(&"a".into(), Epoch(2));
        core.clients.nudge_all();
        drain
    };
    let (node, traffic) = (NodeName::from("a"), NodeTraffic::default());
    let (client_end, mut client) = duplex(1 << 10);
    let (server_end, mut server) = duplex(1 << 20);
    let mut tally = Tally::new(1 << 20);
    let mut relay = Relay::new(&core, &handle, &mut client, &mut server, Outbox::default(), replication);
    let relaying = async {
        let end = relay.run(&mut tally, &registration.control, (&node, &traffic), &[]).await;
        (end, begun.elapsed())
    };
    let ((end, took), ()) = tokio::join!(relaying, scene(client_end, server_end, &drain));
    assert!(relay.into_rest().is_empty());
    (end, tally, took)
}

fn row(length: usize) -> Vec<u8> {
    let header = u32::try_from(length + 4).unwrap().to_be_bytes();
    [&b"D"[..], &header, &vec![b'x'; length]].concat()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_slowly_gets_all_that_its_server_said_before_it_ended() {
    let (end, ..) = with_relay(async |mut client, mut server| {
        let sent = row(10 << 10);
        server.write_all(&sent).await.unwrap();
        drop(server);
        let mut got = Vec::new();
        while got.len() < sent.len() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            client.read_buf(&mut got).await.unwrap();
        }
        assert_eq!(got, sent);
    })
    .await;
    assert!(matches!(end, End::ServerEnded(_)), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_left_with_a_word_is_seen_through_and_one_that_vanished_is_not() {
    let query = |more: &[u8]| [&b"Q\0\0\0\x0dselect 1\0"[..], more].concat();
    for (sent, seen_through) in [(query(b"X\0\0\0\x04"), true), (query(b""), false)] {
        let (end, tally, took) = with_relay(async |mut client, mut server| {
            client.write_all(&sent).await.unwrap();
            drop(client);
            let mut got = vec![0; sent.len()];
            server.read_exact(&mut got).await.unwrap();
            assert_eq!(got, sent);
            tokio::time::sleep(Duration::from_secs(3600)).await;
        })
        .await;
        assert!(matches!(end, End::ClientLeft), "{end:?}");
        assert!(tally.is_busy());
        assert_eq!(took >= Duration::from_secs(3600), seen_through);
    }
}

/// Logical replication takes SQL, the other does not.
#[tokio::test(start_paused = true)]
async fn commits_are_guarded_wherever_sql_is_taken() {
    let off = b"Q\0\0\0\x21set synchronous_commit = off\0".as_slice();
    for (replication, guarded) in
        [(None, true), (Some(Replication::Logical), true), (Some(Replication::Physical), false)]
    {
        let core = core("failover: { synchronous: strict }\n");
        with_relay_by(core, replication, async |mut client, mut server, _| {
            client.write_all(off).await.unwrap();
            let mut header = [0; 5];
            server.read_exact(&mut header).await.unwrap();
            let mut body = vec![0; usize::from(header[4]) - 4];
            server.read_exact(&mut body).await.unwrap();
            assert_eq!(header[0], b'Q');
            assert_eq!(body != off[5..], guarded, "{replication:?}");
        })
        .await;
    }
}

const QUERY: &[u8] = b"Q\0\0\0\x0dselect 1\0";

async fn pass(from: &mut DuplexStream, to: &mut DuplexStream, bytes: &[u8]) {
    from.write_all(bytes).await.unwrap();
    let mut got = vec![0; bytes.len()];
    let passed = tokio::time::timeout(Duration::from_mins(1), to.read_exact(&mut got)).await;
    passed.expect("it is passed on").unwrap();
    assert_eq!(got, bytes);
}

fn ready(status: u8) -> Vec<u8> {
    [&b"Z\0\0\0\x05"[..], &[status]].concat()
}

/// Whether the relay goes on, though nothing is said for a while.
async fn goes_on(server: &mut DuplexStream) -> bool {
    tokio::time::timeout(Duration::from_mins(1), server.read_u8()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_drained_server_goes_when_nothing_is_open_there_and_no_message_is_cut() {
    let (end, tally, _) = with_relay_of(None, async |mut client, mut server, drain| {
        pass(&mut client, &mut server, QUERY).await;
        let drain = drain();
        assert!(goes_on(&mut server).await, "an answer is outstanding");
        pass(&mut server, &mut client, &ready(b'T')).await;
        assert!(goes_on(&mut server).await, "a block is open");
        pass(&mut client, &mut server, QUERY).await;
        pass(&mut server, &mut client, &ready(b'E')).await;
        assert!(goes_on(&mut server).await, "a failed block is open");
        pass(&mut client, &mut server, &[QUERY, &QUERY[..7]].concat()).await;
        pass(&mut server, &mut client, &ready(b'I')).await;
        assert!(goes_on(&mut server).await, "a message is cut");
        pass(&mut client, &mut server, &QUERY[7..]).await;
        pass(&mut server, &mut client, &row(10)).await;
        let ready = ready(b'I');
        pass(&mut server, &mut client, &ready[..3]).await;
        assert!(goes_on(&mut server).await, "an answer is cut");
        server.write_all(&ready[3..]).await.unwrap();
        let mut rest = vec![0; 3];
        client.read_exact(&mut rest).await.unwrap();
        drop(drain);
    })
    .await;
    assert!(matches!(end, End::Severed), "{end:?}");
    assert!(tally.is_idle());
}

#[tokio::test(start_paused = true)]
async fn replication_is_drained_at_once() {
    for replication in [Some(Replication::Physical), None] {
        let (end, tally, _) = with_relay_of(replication, async |mut client, mut server, drain| {
            pass(&mut client, &mut server, QUERY).await;
            pass(&mut server, &mut client, b"W\0\0\0\x07\0\0\0").await;
            let _drain = drain();
            assert!(goes_on(&mut server).await);
        })
        .await;
        assert_eq!(matches!(end, End::Severed), replication.is_some(), "{end:?}");
        assert!(tally.is_streaming());
    }
}
