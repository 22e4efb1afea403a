//! Clients that do not read, servers that do not, and a metako whose memory stays bounded between them.

use std::time::Duration;

use metako_proxy::playground::Cluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

use crate::bench::{LIMIT, text};
use crate::raw::{Raw, query};
use crate::running::{self, Metako};
use crate::watch;

/// Clients that do not read.
const SLOW: usize = 8;
/// Bytes of each one's answer.
const ANSWER: usize = 200_000_000;
/// What metako may grow by, in bytes, while it has them all.
const GROWTH_MAX: usize = 48 << 20;

struct Stage {
    cluster: Cluster,
    metako: Metako,
    direct: Client,
}

impl Stage {
    async fn start(extra: &'static str) -> Self {
        let (cluster, metako) = spawn_blocking(move || {
            let cluster = running::cluster(0, None);
            let metako = Metako::start(&running::configuration(&cluster, extra));
            metako.wait_until_open(0);
            (cluster, metako)
        })
        .await
        .unwrap();
        let config = cluster.node("node-1").client_config().dbname(Cluster::DATABASE).clone();
        let (direct, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        Self { cluster, metako, direct }
    }

    async fn raw(&self) -> Raw {
        Raw::log_in(self.metako.port, self.cluster.superuser_password()).await
    }

    async fn client(&self) -> Client {
        let dsn = running::dsn(&self.cluster, self.metako.port);
        let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Memory of the process that is in use, in bytes.
    fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.metako.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    async fn stop(self) {
        spawn_blocking(move || drop((self.metako, self.cluster))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_wait_in_the_server() {
    let stage = Stage::start("pool: { size: 20 }").await;
    let other = stage.client().await;
    // Buffers that everybody needs once are there.
    assert_eq!(text(&other, "select length(repeat('x', 1000000))").await, "1000000");
    let before = stage.memory();
    let count = ANSWER / 100_000;
    let mut readers = Vec::new();
    for turn in 0..SLOW {
        let rows = format!("select repeat('x', 100000) from generate_series(1, {count})");
        let mut raw = stage.raw().await;
        raw.send(&query(&if turn % 2 == 0 { rows } else { format!("copy ({rows}) to stdout") })).await;
        readers.push(raw);
    }
    let blocked = "select count(*) from pg_stat_activity where wait_event = 'ClientWrite'";
    watch::eventually(&stage.direct, "all servers wait", blocked, &SLOW.to_string()).await;
    for _ in 0..100 {
        assert_eq!(text(&other, "select 5").await, "5");
    }
    let grown = stage.memory().saturating_sub(before);
    assert!(grown < GROWTH_MAX, "metako grew by {grown} bytes for {SLOW} clients that do not read");
    for mut raw in readers {
        let mut bytes = 0;
        loop {
            let (tag, body) = raw.next().await.unwrap();
            bytes += if matches!(tag, b'D' | b'd') { body.len() } else { 0 };
            assert_ne!(tag, b'E', "{}", String::from_utf8_lossy(&body));
            if tag == b'Z' {
                break;
            }
        }
        assert!(bytes >= ANSWER, "{bytes} bytes of {ANSWER} came");
    }
    stage.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_does_not_read_waits_in_the_client() {
    let stage = Stage::start("pool: { size: 20 }").await;
    stage.direct.batch_execute("create table t (body text)").await.unwrap();
    let other = stage.client().await;
    let before = stage.memory();
    let mut writers = Vec::new();
    let mut pids = Vec::new();
    for _ in 0..SLOW {
        let mut raw = stage.raw().await;
        raw.send(&query("begin; select pg_backend_pid()")).await;
        let pid = loop {
            if let (b'D', body) = raw.next().await.unwrap() {
                break String::from_utf8_lossy(&body[6..]).parse::<i32>().unwrap();
            }
        };
        raw.ready().await;
        raw.send(&query("copy t from stdin")).await;
        raw.until(b'G').await;
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        pids.push(pid);
        writers.push(raw);
    }
    let row = [&b"d"[..], &100_005_u32.to_be_bytes(), &vec![b'x'; 100_000], b"\n"].concat();
    let mut taken = Vec::new();
    for raw in &writers {
        let mut bytes = 0;
        // Nothing is taken for a second: neither the server's nor metako's buffers have room.
        while let Ok(writable) = timeout(Duration::from_secs(1), raw.stream.writable()).await {
            writable.unwrap();
            match raw.stream.try_write(&row[bytes % row.len()..]) {
                Ok(written) => bytes += written,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            assert!(bytes < ANSWER, "metako takes what no server reads");
        }
        taken.push(bytes);
    }
    for _ in 0..100 {
        assert_eq!(text(&other, "select 5").await, "5");
    }
    let grown = stage.memory().saturating_sub(before);
    assert!(grown < GROWTH_MAX, "metako grew by {grown} bytes for {SLOW} servers that do not read");
    for pid in pids {
        kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    }
    for (raw, bytes) in writers.iter_mut().zip(taken) {
        let end = [&row[bytes % row.len()..], b"c\0\0\0\x04", &query("select count(*) from t")].concat();
        timeout(LIMIT, raw.send(&end)).await.unwrap();
        let count = bytes / row.len() + 1;
        let rows = loop {
            match raw.next().await.unwrap() {
                (b'D', body) => break String::from_utf8_lossy(&body[6..]).parse::<usize>().unwrap(),
                (b'E', body) => panic!("{}", String::from_utf8_lossy(&body)),
                _ => {}
            }
        };
        assert_eq!(rows, count);
    }
    stage.stop().await;
}
