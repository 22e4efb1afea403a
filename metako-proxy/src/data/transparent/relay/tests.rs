use std::time::Duration;

use metako_core::Epoch;
use metako_core::cluster::{ClusterView, Phase, Writes};
use metako_core::config::SecretSource;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::data::DataPlane;
use crate::data::conn::Register;
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

fn core() -> Arc<Core<TokioEnv>> {
    use metako_strategies as _;
    let text = "nodes:\n\
        - { name: a, host: 127.0.0.1, port: 1, role: primary, username: app, password: secret, database: shop }\n";
    let config = metako_core::config::load("metako.yaml", text, &NoSecrets).unwrap().config;
    let view = ViewCell::new(ClusterView {
        version: 1,
        epoch: Epoch(1),
        phase: Phase::Steady { primary: "a".into() },
        writes: Writes::Open { primary: "a".into() },
        nodes: Vec::new(),
    });
    let (evidence, _) = EvidenceSender::channel();
    let traffic = Arc::new(Traffic::default());
    let data = DataPlane::new(TokioEnv::new(), Arc::new(config), Arc::new(view), evidence, traffic).unwrap();
    Arc::clone(&data.core)
}

/// A relay between two streams in memory, whose far ends the scene has. Gives how it ended, what it knew, and when that
/// was.
async fn with_relay(scene: impl AsyncFnOnce(DuplexStream, DuplexStream)) -> (End, Tally, Duration) {
    let begun = tokio::time::Instant::now();
    let core = core();
    let handle = core.clients.enter(&core.env, Protocol::V3_0);
    let registration = Arc::<Register>::default().enter(&"a".into(), Epoch(1));
    let traffic = NodeTraffic::default();
    let (client_end, mut client) = duplex(1 << 10);
    let (server_end, mut server) = duplex(1 << 20);
    let mut tally = Tally::new(1 << 20);
    let mut relay = Relay::new(&core, &handle, &mut client, &mut server, Outbox::default());
    let relaying = async {
        let end = relay.run(&mut tally, &registration.control, &traffic, &[]).await;
        (end, begun.elapsed())
    };
    let ((end, took), ()) = tokio::join!(relaying, scene(client_end, server_end));
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
