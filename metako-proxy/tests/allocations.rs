//! What a transaction costs in allocations: none, once all that it uses is warm. Alone in its binary, because the
//! allocator that counts is everybody's.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[allow(dead_code, reason = "other test binaries use the rest")]
#[path = "relay/bench.rs"]
mod bench;
mod running;

use std::alloc::System;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use metako_proxy::env::TokioEnv;
use metako_proxy::playground::Cluster;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use postgres_protocol::message::frontend;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use bench::{Bench, LIMIT};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const TRANSACTIONS: u64 = 500;

/// A client that blocks, and allocates nothing after its log-in.
struct Client {
    stream: TcpStream,
    kept: Box<[u8; 16 << 10]>,
}

impl Client {
    fn connect(bench: &Bench) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", bench.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut client = Self { stream, kept: Box::new([0; 16 << 10]) };
        let mut out = BytesMut::new();
        let parameters = [("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)];
        frontend::startup_message(parameters, &mut out).unwrap();
        client.stream.write_all(&out).unwrap();
        let password = bench.cluster.superuser_password();
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        loop {
            let mut header = [0; 5];
            client.stream.read_exact(&mut header).unwrap();
            let length = u32::from_be_bytes(*header.last_chunk().unwrap()) as usize - 4;
            let mut body = vec![0; length];
            client.stream.read_exact(&mut body).unwrap();
            let mut out = BytesMut::new();
            match (header[0], body.get(..4)) {
                (b'R', Some([0, 0, 0, 10])) => {
                    frontend::sasl_initial_response("SCRAM-SHA-256", scram.message(), &mut out).unwrap();
                }
                (b'R', Some([0, 0, 0, 11])) => {
                    scram.update(&body[4..]).unwrap();
                    frontend::sasl_response(scram.message(), &mut out).unwrap();
                }
                (b'Z', _) => return client,
                (b'E', _) => panic!("{}", String::from_utf8_lossy(&body)),
                _ => {}
            }
            client.stream.write_all(&out).unwrap();
        }
    }

    /// Sends `unit` and reads until the server is idle again; answers how many bytes came.
    fn run(&mut self, unit: &[u8]) -> usize {
        const READY: &[u8] = b"Z\0\0\0\x05I";
        self.stream.write_all(unit).unwrap();
        let mut length = 0;
        while !self.kept[..length].ends_with(READY) {
            let read = self.stream.read(&mut self.kept[length..]).unwrap();
            assert!(read > 0, "metako closed the connection");
            length += read;
        }
        assert_ne!(self.kept[0], b'E', "{}", String::from_utf8_lossy(&self.kept[..length]));
        length
    }
}

/// Nothing but clients runs in this process meanwhile: the runtime of the test, where pools are looked after, is kept
/// from it by blocking calls.
#[tokio::test]
async fn a_steady_transaction_allocates_nothing() {
    let whole = Region::new(COUNTING);
    let bench = Bench::start_in(TokioEnv::with_workers(1).unwrap(), 0, "load_balancer: { split: off }").await;
    let mut clients = [Client::connect(&bench), Client::connect(&bench)];

    let mut query = BytesMut::new();
    frontend::query("select relname from pg_class where oid = 1259", &mut query).unwrap();
    let mut parse = BytesMut::new();
    frontend::parse("by_oid", "select relname from pg_class where oid = $1", [26], &mut parse).unwrap();
    frontend::sync(&mut parse);
    let mut execute = BytesMut::new();
    let bound = frontend::bind(
        "",
        "by_oid",
        [1],
        [1259_u32],
        |oid, out| {
            out.extend_from_slice(&oid.to_be_bytes());
            Ok(postgres_protocol::IsNull::No)
        },
        [0],
        &mut execute,
    );
    assert!(bound.is_ok());
    frontend::execute("", 0, &mut execute).unwrap();
    frontend::sync(&mut execute);
    for client in &mut clients {
        client.run(&parse);
    }

    let writes = |bench: &Bench| bench.traffic.node(&"node-1".into()).writes.load(Ordering::Relaxed);
    for (unit, name) in [(&query, "simple"), (&execute, "prepared")] {
        let answer = clients[0].run(unit);
        for _ in 0..20 {
            assert_eq!(clients[1].run(unit), clients[0].run(unit));
        }
        let before = bench.reads("node-1") + writes(&bench);
        let region = Region::new(COUNTING);
        for n in 0..TRANSACTIONS {
            let client = &mut clients[usize::from(n % 2 == 0)];
            assert_eq!(client.run(unit), answer);
        }
        let change = region.change();
        assert_eq!(bench.reads("node-1") + writes(&bench) - before, TRANSACTIONS, "{name}");
        assert_eq!((change.allocations, change.reallocations), (0, 0), "{name}");
    }
    assert!(whole.change().allocations > 0, "nothing was counted at all");
}
