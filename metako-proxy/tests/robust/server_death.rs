//! A server that dies at every step: a right error to the right client, and life goes on.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::bench::{Bench, LIMIT, code, text};
use crate::raw::{EXECUTE, FLUSH, Raw, SYNC, bind, parse, query};
use crate::watch::{AT_WORK, clients, eventually, servers, watcher};

/// Ends the server connection that works for somebody, or all.
async fn terminate(direct: &Client) {
    let gone = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                where pid <> pg_backend_pid() and backend_type = 'client backend'";
    text(direct, gone).await;
    let left = "select count(*) from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'";
    eventually(direct, "the servers are gone", left, "0").await;
}

/// How many statements sleep.
const RUNNING: &str = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";

/// What the client is told up to the next ReadyForQuery, or `closed`.
async fn told(raw: &mut Raw) -> String {
    let mut seen = String::new();
    while let Some((tag, body)) = raw.next().await {
        match tag {
            b'E' => {
                let code = body.split(|&byte| byte == 0).find_map(|field| field.strip_prefix(b"C"));
                seen.push('E');
                seen.push_str(&String::from_utf8_lossy(code.unwrap_or_default()));
            }
            b'Z' => return format!("{seen}Z{}", char::from(body[0])),
            b'D' | b'd' => {}
            tag => seen.push(char::from(tag)),
        }
    }
    seen + "closed"
}

/// A step at which a server dies. Its last words reach metako with what it had buffered (`T`, `1`, `2`), which is passed on.
///
struct Step {
    what: &'static str,
    sent: Vec<u8>,
    /// The last message that is read before; nothing if a statement runs by then.
    read: Option<u8>,
    /// Sent after the death.
    then: Vec<u8>,
    /// What the client may be told: tags, errors with their SQLSTATE, ReadyForQuery with its status.
    told: &'static [&'static str],
}

const INSERT: &str = "insert into t select 1 from pg_sleep(3600)";
const ROWS: &str = "select repeat('x', 1000) from generate_series(1, 100000)";

/// Rows may have been delivered in part: then the answer ends where a frame does, or the connection ends.
const IN_AN_ANSWER: &[&str] = &["E08007ZI", "E40001ZI", "closed", "E57P01closed"];

fn execute(sql: &str) -> Vec<u8> {
    [&parse("", sql)[..], &bind(""), EXECUTE].concat()
}

/// Between units, and while one is answered.
fn steps() -> Vec<Step> {
    let step = |what, sent, read, then, told| Step { what, sent, read, then, told };
    let three = [&execute("select 1")[..], SYNC, &execute(INSERT), SYNC, &execute("select 3"), SYNC].concat();
    let parsed = [&parse("", "select 1")[..], FLUSH].concat();
    let copied = b"d\0\0\0\x06\x31\x0ac\0\0\0\x04".to_vec();
    let copy_out = query(&format!("copy ({ROWS}) to stdout"));
    let temporary = query("create temp table mine (id int)");
    vec![
        // A process is gone from PostgreSQL's lists a moment before its socket is closed: until then nobody can know.
        step("between statements", query("select 1"), Some(b'Z'), query("select 2"), &["TCZI", "E40001ZI"]),
        step("a write runs", query(INSERT), None, Vec::new(), &["E08007ZI"]),
        step("a read runs", query("select pg_sleep(3600)"), None, Vec::new(), &["TE40001ZI"]),
        step("a batch runs", [&execute(INSERT)[..], SYNC].concat(), None, Vec::new(), &["12E08007ZI"]),
        step("the second batch of three runs", three, None, Vec::new(), &["12CZI12E08007ZIE08007ZI"]),
        step("in COPY in", query("copy t from stdin"), Some(b'G'), copied, &["E08007ZI"]),
        step("after Parse", parsed, Some(b'1'), [&bind("")[..], EXECUTE, SYNC].concat(), &["E40001ZI"]),
        step("a large result is on its way", query(ROWS), Some(b'D'), Vec::new(), IN_AN_ANSWER),
        step("COPY out is on its way", copy_out, Some(b'd'), Vec::new(), IN_AN_ANSWER),
        step("with a temporary table", temporary, Some(b'Z'), query("select 1"), &["E57P01closed"]),
    ]
}

/// In a block.
fn steps_in_a_block() -> Vec<Step> {
    let step = |what, then: &str, told| {
        let sent = query("begin; insert into t values (1)");
        Step { what, sent, read: Some(b'Z'), then: query(then), told }
    };
    let runs = |what, last: &str, told| {
        let sent = [query("begin"), query("insert into t values (1)"), query(last)].concat();
        Step { what, sent, read: None, then: Vec::new(), told }
    };
    vec![
        step("idle in a block, then a statement", "select 1", &["E40001ZE"]),
        step("idle in a block, then COMMIT", "commit", &["E40001ZI"]),
        step("idle in a block, then ROLLBACK", "rollback", &["CZI"]),
        runs("a statement runs in a block", INSERT, &["CZTCZTE40001ZE"]),
        runs("what may commit runs in a block", "select pg_sleep(3600); commit", &["CZTCZTTE08007ZI"]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_server_is_terminated_at_any_step_is_told_so() {
    let bench = Bench::start(0, "pool: { size: 3 }\nload_balancer: { split: off }").await;
    let direct = watcher(&bench).await;
    direct.batch_execute("create table t (id int)").await.unwrap();
    let mut wrong = Vec::new();
    for step in steps().into_iter().chain(steps_in_a_block()) {
        let mut raw = Raw::connect(&bench).await;
        raw.send(&step.sent).await;
        match step.read {
            Some(tag) => drop(raw.until(tag).await),
            None => eventually(&direct, step.what, RUNNING, "1").await,
        }
        terminate(&direct).await;
        raw.send(&step.then).await;
        // Of each unit that was sent.
        let units = step.told[0].matches('Z').count().max(1);
        let mut told = String::new();
        for _ in 0..units {
            told += &self::told(&mut raw).await;
        }
        if !step.told.contains(&told.as_str()) {
            wrong.push(format!("{}: [{told}] in the place of {:?}", step.what, step.told));
        }
        drop(raw);
        clients(&bench, step.what, 0).await;
        servers(&bench, step.what, 0).await;
        let next = bench.client().await;
        assert_eq!(text(&next, "select count(*) from t").await, "0", "{}", step.what);
        drop(next);
        clients(&bench, step.what, 0).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_session_ends_in_session_mode_is_told_what_postgresql_says() {
    let bench = Bench::start(0, "pool: { size: 3, mode: session }\nload_balancer: { split: off }").await;
    let direct = watcher(&bench).await;
    for (what, sent, running) in [
        ("idle", query("select 1"), false),
        ("running", query("select pg_sleep(3600)"), true),
        ("in a block", query("begin"), false),
    ] {
        let mut raw = Raw::connect(&bench).await;
        raw.send(&sent).await;
        if running {
            eventually(&direct, what, AT_WORK, "1").await;
        } else {
            raw.ready().await;
        }
        terminate(&direct).await;
        // Told at once, unasked.
        let wanted = if running { "TE57P01closed" } else { "E57P01closed" };
        assert_eq!(told(&mut raw).await, wanted, "{what}");
        clients(&bench, what, 0).await;
    }
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backend_takes_all_with_it_and_all_go_on_when_the_server_is_back() {
    let bench = Bench::start(0, "pool: { size: 4 }\nload_balancer: { split: off }").await;
    let direct = watcher(&bench).await;
    direct.batch_execute("create table t (id int)").await.unwrap();
    let (idle, block, busy) = (bench.client().await, bench.client().await, bench.client().await);
    assert_eq!(text(&idle, "select 1").await, "1");
    block.batch_execute("begin; insert into t values (1)").await.unwrap();
    let pid = text(&busy, "select pg_backend_pid()").await.parse::<i32>().unwrap();
    let victim = tokio::spawn(async move {
        let outcome = busy.batch_execute("insert into t select 2 from pg_sleep(3600)").await;
        (busy, outcome)
    });
    // The statement may run on another server than the one asked; any will do.
    let active = "select coalesce(min(pid), 0) from pg_stat_activity where query like 'insert into t select 2%' and state = 'active'";
    let running = timeout(LIMIT, async {
        loop {
            let found = text(&direct, active).await.parse::<i32>().unwrap();
            if found != 0 {
                break found;
            }
        }
    })
    .await
    .expect("the statement runs");
    assert!(pid > 0 && running > 0);
    kill(Pid::from_raw(running), Signal::SIGKILL).unwrap();
    let (busy, outcome) = timeout(LIMIT, victim).await.unwrap().unwrap();
    assert_eq!(code(&outcome.unwrap_err()), "08007");
    let node = bench.cluster.node("node-1").clone();
    tokio::task::spawn_blocking(move || node.wait_ready(LIMIT).unwrap()).await.unwrap();
    assert_eq!(code(&block.batch_execute("insert into t values (3)").await.unwrap_err()), "40001");
    block.batch_execute("rollback").await.unwrap();
    for client in [&idle, &block, &busy] {
        assert_eq!(text(client, "select count(*) from t").await, "0");
    }
    servers(&bench, "all are back", 0).await;
    bench.data.shutdown(Duration::from_secs(5)).await;
}
