//! A client that vanishes, politely or not, at every step.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use metako_proxy::playground::Cluster;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::bench::{Bench, LIMIT, held, open, text};
use crate::certificate;
use crate::raw::{EXECUTE, FLUSH, Raw, SYNC, bind, parse, query};
use crate::watch::{AT_WORK, STATE, clients, eventually, servers, watcher};

/// How a connection ends.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// The process dies: what is buffered is sent, then the end.
    Fin,
    /// The machine answers for a process that is gone.
    Reset,
}

const WAYS: [Way; 2] = [Way::Fin, Way::Reset];

fn leave(stream: TcpStream, way: Way) {
    if let Way::Reset = way {
        stream.set_zero_linger().unwrap();
    }
    drop(stream);
}

/// Everything is as if the client had never been: of `stays` clients, one in session mode keeps its server.
async fn nothing_is_left(
    bench: &Bench,
    direct: &Client,
    clean: &str,
    (stays, keeps): (u64, u64),
    what: &str,
) {
    clients(bench, what, stays).await;
    servers(bench, what, keeps).await;
    eventually(direct, what, AT_WORK, "0").await;
    let next = bench.client().await;
    assert_eq!(text(&next, "begin; select count(*) from t; rollback").await, "0", "{what}");
    // As often as there may be servers in the pool.
    for _ in 0..3 {
        assert_eq!(text(&next, STATE).await, clean, "{what}");
    }
    drop(next);
    clients(bench, what, stays).await;
}

/// What a client sends before it goes, and what it has read by then.
struct Step {
    what: &'static str,
    sent: Vec<u8>,
    /// The last message that it reads.
    read: Option<u8>,
    /// How many statements or transactions the server is at by then, if that is to be waited for.
    at_work: Option<&'static str>,
    /// Sent last.
    more: Vec<u8>,
}

fn steps() -> Vec<Step> {
    let step = |what, sent: Vec<u8>, read| Step { what, sent, read, at_work: None, more: Vec::new() };
    let insert = parse("s", "insert into t values (1)");
    let bound = [&insert[..], &bind("s")].concat();
    let rows = "select repeat('x', 1000) from generate_series(1, 100000)";
    let in_block = query("begin; insert into t values (1); set local work_mem = '7MB'");
    let with_state =
        query("set work_mem = '7MB'; create temp table mine (id int); listen c; select pg_advisory_lock(1)");
    let row = b"d\0\0\0\x06\x31\x0a".to_vec();
    vec![
        step("at once after the log-in", Vec::new(), None),
        step("after Parse", [&insert[..], FLUSH].concat(), Some(b'1')),
        step("after Parse, not flushed", insert.clone(), None),
        step("after Bind", [&bound[..], FLUSH].concat(), Some(b'2')),
        step("after Execute without Sync", [&bound[..], EXECUTE, FLUSH].concat(), Some(b'C')),
        step(
            "after an error without Sync",
            [&parse("", "select 1/0")[..], &bind(""), EXECUTE, FLUSH].concat(),
            Some(b'E'),
        ),
        step("in a block", in_block.clone(), Some(b'Z')),
        step("in a failed block", query("begin; insert into t values (1); select 1/0"), Some(b'Z')),
        step("with state of its own", with_state, Some(b'Z')),
        Step {
            more: query("rollback")[..7].to_vec(),
            ..step("with a cut frame in a block", in_block.clone(), Some(b'Z'))
        },
        step("with a cut frame", query("insert into t values (1)")[..9].to_vec(), None),
        step("with a header alone", b"Q\0\0".to_vec(), None),
        Step { more: row.clone(), ..step("in COPY in", query("copy t from stdin"), Some(b'G')) },
        Step {
            more: row[..4].to_vec(),
            ..step("in COPY in with a cut frame", query("copy t from stdin"), Some(b'G'))
        },
        Step {
            at_work: Some("1"),
            ..step("in COPY out", query(&format!("copy ({rows}) to stdout")), Some(b'd'))
        },
        Step { at_work: Some("1"), ..step("in a large result", query(rows), Some(b'D')) },
        Step {
            at_work: Some("1"),
            ..step(
                "in a large result in a block",
                query(&format!("begin; insert into t values (1); {rows}")),
                Some(b'D'),
            )
        },
        Step {
            at_work: Some("1"),
            ..step("while a statement runs", query("insert into t select 1 from pg_sleep(3600)"), None)
        },
        Step {
            at_work: Some("1"),
            ..step(
                "with a pipeline ahead",
                [
                    query("insert into t select 1 from pg_sleep(3600)"),
                    [&parse("", "select 1")[..], &bind(""), EXECUTE, SYNC].concat().repeat(50),
                ]
                .concat(),
                None,
            )
        },
    ]
}

async fn vanishes_everywhere(mode: &str) {
    let bench =
        Bench::start(0, &format!("pool: {{ size: 3, mode: {mode} }}\nload_balancer: {{ split: off }}")).await;
    let direct = watcher(&bench).await;
    direct.batch_execute("create table t (id int)").await.unwrap();
    let stays = bench.client().await;
    let clean = text(&stays, STATE).await;
    let keeps = u64::from(mode == "session");
    for step in steps() {
        for way in WAYS {
            let what = format!("{mode}, {}, {way:?}", step.what);
            let mut raw = Raw::connect(&bench).await;
            raw.send(&step.sent).await;
            if let Some(tag) = step.read {
                raw.until(tag).await;
            }
            if let Some(count) = step.at_work {
                eventually(&direct, &what, AT_WORK, count).await;
            }
            raw.send(&step.more).await;
            leave(raw.into_stream(), way);
            nothing_is_left(&bench, &direct, &clean, (1, keeps), &what).await;
        }
    }
    assert_eq!(text(&stays, STATE).await, clean);
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_any_step_of_its_work_in_transaction_mode() {
    vanishes_everywhere("transaction").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_any_step_of_its_work_in_session_mode() {
    vanishes_everywhere("session").await;
}

/// How far a client gets with its log-in.
#[derive(Debug, Clone, Copy, PartialEq)]
enum LogIn {
    Connected,
    PartOfStartup,
    AskedForTls,
    PartOfHello,
    Startup,
    FirstOfScram,
    LastOfScram,
}

async fn log_in_up_to(bench: &Bench, step: LogIn) -> TcpStream {
    const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
    let mut stream = TcpStream::connect(("127.0.0.1", bench.port)).await.unwrap();
    if matches!(step, LogIn::AskedForTls | LogIn::PartOfHello) {
        stream.write_all(SSL_REQUEST).await.unwrap();
        assert_eq!(timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap(), b'S');
        if step == LogIn::PartOfHello {
            // A handshake record that promises 512 bytes.
            stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await.unwrap();
        }
        return stream;
    }
    let mut out = BytesMut::new();
    let parameters = [("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)];
    frontend::startup_message(parameters, &mut out).unwrap();
    match step {
        LogIn::Connected => return stream,
        LogIn::PartOfStartup => {
            stream.write_all(&out[..out.len() / 2]).await.unwrap();
            return stream;
        }
        _ => stream.write_all(&out).await.unwrap(),
    }
    message(&mut stream).await;
    if step == LogIn::Startup {
        return stream;
    }
    let password = bench.cluster.superuser_password();
    let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    let mut out = BytesMut::new();
    frontend::sasl_initial_response("SCRAM-SHA-256", scram.message(), &mut out).unwrap();
    stream.write_all(&out).await.unwrap();
    let body = message(&mut stream).await;
    if step == LogIn::LastOfScram {
        scram.update(&body[4..]).unwrap();
        let mut out = BytesMut::new();
        frontend::sasl_response(scram.message(), &mut out).unwrap();
        stream.write_all(&out).await.unwrap();
    }
    stream
}

/// The body of the next message, which must be of the authentication.
async fn message(stream: &mut TcpStream) -> Vec<u8> {
    let read = async {
        assert_eq!(stream.read_u8().await.unwrap(), b'R');
        let length = stream.read_u32().await.unwrap();
        let mut body = vec![0; length as usize - 4];
        stream.read_exact(&mut body).await.unwrap();
        body
    };
    timeout(LIMIT, read).await.expect("the log-in goes on")
}

const LOG_INS: [LogIn; 7] = [
    LogIn::Connected,
    LogIn::PartOfStartup,
    LogIn::AskedForTls,
    LogIn::PartOfHello,
    LogIn::Startup,
    LogIn::FirstOfScram,
    LogIn::LastOfScram,
];

#[tokio::test(flavor = "multi_thread")]
async fn at_any_step_of_its_log_in() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::start(0, &certificate::tls(folder.path())).await;
    let direct = watcher(&bench).await;
    direct.batch_execute("create table t (id int)").await.unwrap();
    let next = bench.client().await;
    let clean = text(&next, STATE).await;
    for step in LOG_INS {
        for way in WAYS {
            leave(log_in_up_to(&bench, step).await, way);
            nothing_is_left(&bench, &direct, &clean, (1, 0), &format!("{step:?}, {way:?}")).await;
        }
    }
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_log_ins_end_by_the_time_out_and_free_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let more = format!("{}\nlimits: {{ login_timeout: 3s }}", certificate::tls(folder.path()));
    let bench = Bench::start(0, &more).await;
    let mut waiting = Vec::new();
    for step in LOG_INS.into_iter().filter(|step| *step != LogIn::LastOfScram) {
        waiting.push((step, log_in_up_to(&bench, step).await));
    }
    for (step, mut stream) in waiting {
        let mut rest = Vec::new();
        let ended = timeout(LIMIT, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{step:?} is never ended");
    }
    clients(&bench, "all have ended", 0).await;
    assert_eq!(text(&bench.client().await, "select 4").await, "4");
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_waits_for_a_server_or_is_held() {
    let bench = Bench::start(0, "pool: { size: 1 }\nload_balancer: { split: off }").await;
    let direct = watcher(&bench).await;
    direct.batch_execute("create table t (id int)").await.unwrap();
    let next = bench.client().await;
    let clean = text(&next, STATE).await;
    for way in WAYS {
        let mut waits = Raw::connect(&bench).await;
        next.batch_execute("begin").await.unwrap();
        waits.send(&query("insert into t values (1)")).await;
        // It reads on while it waits.
        waits.send(&query("insert into t values (2)")[..3]).await;
        leave(waits.into_stream(), way);
        clients(&bench, "the one that waited is gone", 1).await;
        next.batch_execute("rollback").await.unwrap();
        nothing_is_left(&bench, &direct, &clean, (1, 0), &format!("in the line, {way:?}")).await;

        let mut waits = Raw::connect(&bench).await;
        bench.view.publish(Arc::new(held(&bench.cluster, 1)));
        waits.send(&query("insert into t values (1)")).await;
        timeout(LIMIT, async {
            while bench.traffic.held.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        leave(waits.into_stream(), way);
        timeout(LIMIT, async {
            while bench.traffic.held.load(Ordering::Relaxed) > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("it is not held any longer");
        bench.view.publish(Arc::new(open(&bench.cluster, "node-1", 1)));
        nothing_is_left(&bench, &direct, &clean, (1, 0), &format!("held, {way:?}")).await;
    }
    bench.data.shutdown(Duration::from_secs(5)).await;
}
