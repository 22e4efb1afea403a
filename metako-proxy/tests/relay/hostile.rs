//! Clients that do what clients should not, and servers that go at the wrong moment.

use std::sync::Arc;
use std::time::Duration;

use metako_core::Epoch;
use metako_core::cluster::{ObservedRole, ReadFitness};
use metako_proxy::playground::Cluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

use crate::bench::{Bench, LIMIT, code, node, open, text};
use crate::raw::{EXECUTE, FLUSH, Raw, SYNC, TERMINATE, bind, parse, query};

/// A connection to a node, past metako.
async fn direct(bench: &Bench, name: &str) -> Client {
    let config = bench.cluster.node(name).client_config().dbname(Cluster::DATABASE).clone();
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Asks until the answer is the wanted one.
async fn eventually(client: &Client, sql: &str, wanted: &str) {
    let asked = timeout(LIMIT, async { while text(client, sql).await != wanted {} });
    asked.await.unwrap_or_else(|_| panic!("{sql} never gave {wanted}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_of_any_length_and_cut_anywhere_are_answered_in_order() {
    /// A little more than may be outstanding, so that the last are read ahead; sent while the server sleeps.
    const MANY: usize = 67_000;
    let bench = Bench::start(0, "pool: { size: 2 }").await;
    let watcher = direct(&bench, "node-1").await;
    let mut raw = Raw::connect(&bench).await;
    raw.send(&query("create table t (id int)")).await;
    assert_eq!(raw.ready().await, "CZ");

    let (mut reader, many) = (raw, [query("select pg_sleep(0.5)"), query("").repeat(MANY)].concat());
    let (from, mut to) = reader.into_stream().into_split();
    let writer = tokio::spawn(async move {
        to.write_all(&many).await.unwrap();
        to
    });
    let mut from = tokio::io::BufReader::new(from);
    let mut count = 0;
    timeout(LIMIT, async {
        while count <= MANY {
            let (tag, length) = (from.read_u8().await.unwrap(), from.read_u32().await.unwrap());
            assert_ne!(tag, b'E');
            let mut body = vec![0; length as usize - 4];
            from.read_exact(&mut body).await.unwrap();
            count += usize::from(tag == b'Z');
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{count} of {MANY} were answered"));
    drop(writer.await.unwrap());
    bench.settled().await;

    // An error skips to its Sync; simple after extended without a Sync; Flush without a Sync.
    reader = Raw::connect(&bench).await;
    let boom =
        [parse("", "select 1/0"), bind(""), EXECUTE.to_vec(), query("insert into t values (9)")].concat();
    let fine = [parse("", "insert into t values (1)"), bind(""), EXECUTE.to_vec(), SYNC.to_vec()].concat();
    reader.send(&[&boom[..], SYNC, &fine].concat()).await;
    assert_eq!(format!("{} {}", reader.ready().await, reader.ready().await), "1E22012Z 12CZ");
    reader.send(&[parse("", "select 1"), bind(""), EXECUTE.to_vec(), query("select 2")].concat()).await;
    assert_eq!(reader.ready().await, "12DCTDCZ");
    reader.send(SYNC).await;
    assert_eq!(reader.ready().await, "Z");
    reader.send(&[&parse("s", "select 3")[..], FLUSH].concat()).await;
    assert_eq!(reader.until(b'1').await, "1");
    reader.send(&[&bind("s")[..], EXECUTE, FLUSH].concat()).await;
    assert_eq!(reader.until(b'C').await, "2DC");
    reader.send(SYNC).await;
    assert_eq!(reader.ready().await, "Z");

    // Byte by byte.
    let close = b"C\0\0\0\x07Ss\0";
    for byte in [&fine[..], &query("select 7"), &bind("s"), EXECUTE, close, FLUSH, SYNC].concat() {
        reader.send(&[byte]).await;
    }
    let got = format!("{} {} {}", reader.ready().await, reader.ready().await, reader.ready().await);
    assert_eq!(got, "12CZ TDCZ 2DC3Z");

    // What was asked for before a Terminate is done.
    reader.send(&[&query("insert into t select 2 from pg_sleep(0.2)")[..], TERMINATE].concat()).await;
    drop(reader);
    eventually(&watcher, "select string_agg(id::text, ',' order by id) from t", "1,1,2").await;
    bench.settled().await;
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_vanishes_leaves_nothing_running_and_nothing_open() {
    let bench = Bench::start(0, "pool: { size: 2 }").await;
    let watcher = direct(&bench, "node-1").await;
    watcher.batch_execute("create table t (id int)").await.unwrap();
    let active = "select count(*) from pg_stat_activity where pid <> pg_backend_pid() \
                  and (state <> 'idle' or wait_event = 'PgSleep') and backend_type = 'client backend'";
    let insert = [parse("", "insert into t values (1)"), bind(""), EXECUTE.to_vec()].concat();
    let slow = query("insert into t select 1 from pg_sleep(3600)");
    let copy = query("copy t from stdin");
    let part_of_a_copy = [&copy[..], b"d\0\0\0\x06\x31\x0a"].concat();
    let row = b"d\0\0\0\x06\x31\x0a";
    for (what, sent, wait, more) in [
        ("in a statement", &slow[..], None, &b""[..]),
        ("in a block", &query("begin; insert into t values (1)"), Some(b'Z'), b""),
        ("in a COPY", &copy, Some(b'G'), row),
        ("in a COPY, politely", &copy, Some(b'G'), TERMINATE),
        ("in a COPY, in one go", &[&part_of_a_copy[..], TERMINATE].concat(), None, b""),
        ("in a batch", &[&insert[..], FLUSH].concat(), Some(b'C'), b""),
        ("in a batch, politely", &[&insert[..], TERMINATE].concat(), None, b""),
        ("in a batch, half a frame", &[&insert[..], FLUSH, b"B\0\0"].concat(), Some(b'C'), b""),
    ] {
        let mut raw = Raw::connect(&bench).await;
        raw.send(sent).await;
        if let Some(tag) = wait {
            raw.until(tag).await;
        } else if sent == slow {
            eventually(&watcher, active, "1").await;
        }
        raw.send(more).await;
        drop(raw);
        bench.settled().await;
        eventually(&watcher, active, "0").await;
        assert_eq!(text(&watcher, "select count(*) from t").await, "0", "{what}");
    }

    // One that waits for a server, and one that waits behind it.
    let (one, two, three) = (bench.client().await, bench.client().await, bench.client().await);
    one.batch_execute("begin").await.unwrap();
    two.batch_execute("begin").await.unwrap();
    let mut gone = Raw::connect(&bench).await;
    gone.send(&query("insert into t values (2)")).await;
    let waits = tokio::spawn(async move { text(&three, "insert into t values (3) returning id").await });
    drop(gone);
    one.batch_execute("rollback").await.unwrap();
    assert_eq!(timeout(LIMIT, waits).await.unwrap().unwrap(), "3");
    two.batch_execute("rollback").await.unwrap();
    bench.settled().await;
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_meant_for_the_old_primary_reaches_it_after_the_fence() {
    let bench = Bench::start(1, "pool: { size: 1 }").await;
    let old = direct(&bench, "node-1").await;
    old.batch_execute("create table t (id int)").await.unwrap();
    bench.cluster.wait_streaming(bench.cluster.node("node-1"), &["node-2"], LIMIT).unwrap();
    let (holds, waits) = (bench.client().await, bench.client().await);
    holds.batch_execute("begin; insert into t values (1)").await.unwrap();
    let waiting = tokio::spawn(async move {
        waits.batch_execute("insert into t values (2)").await.unwrap();
        text(&waits, "select string_agg(id::text, ',') from t").await
    });
    // It is in line for the only connection to the old primary.
    let sleeping = "select count(*) from pg_stat_activity where state = 'idle in transaction'";
    eventually(&old, sleeping, "1").await;
    let promoted = bench.cluster.node("node-2").clone();
    tokio::task::spawn_blocking(move || promoted.sql("select pg_promote()::text").unwrap()).await.unwrap();
    let mut view = open(&bench.cluster, "node-2", 2);
    view.nodes[0] = node("node-1", ObservedRole::Unknown);
    view.nodes[0].reads = ReadFitness::Unfit { reason: "fenced".to_owned() };
    let view = Arc::new(view);
    bench.view.publish(Arc::clone(&view));
    timeout(LIMIT, bench.data.fence().sever(&"node-1".into(), Epoch(2))).await.unwrap();
    assert_eq!(timeout(LIMIT, waiting).await.unwrap().unwrap(), "2");
    // The old primary is alive and would have taken it.
    assert_eq!(text(&old, "select count(*) from t").await, "0");
    assert_eq!(code(&holds.batch_execute("commit").await.unwrap_err()), "40001");
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_cancel_is_given_up() {
    let bench = Bench::start(0, "load_balancer: { write_timeout: 300ms }").await;
    let watcher = direct(&bench, "node-1").await;
    watcher.batch_execute("create table t (id int)").await.unwrap();
    let client = bench.client().await;
    let pid: i32 = text(&client, "select pg_backend_pid()").await.parse().unwrap();
    client.batch_execute("insert into t values (1)").await.unwrap();
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let error = timeout(LIMIT, client.batch_execute("insert into t values (2)")).await.unwrap().unwrap_err();
    assert_eq!(code(&error), "08007");
    assert_eq!(text(&client, "select 5").await, "5");
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_follow_changes_of_tables_and_refusals_of_replicas() {
    let bench = Bench::start(1, "pool: { size: 1 }").await;
    let client = bench.client().await;
    client
        .batch_execute(
            "create table t (id int); insert into t values (1); create sequence s; \
             create view next as select nextval('s') as n",
        )
        .await
        .unwrap();
    let replica = direct(&bench, "node-2").await;
    eventually(&replica, "select count(*) from pg_class where relname = 'next'", "1").await;

    // All in one send, as JDBC does: the replica refuses it after ParseComplete.
    let mut raw = Raw::connect(&bench).await;
    raw.send(&[&parse("n", "select n from next")[..], &bind("n"), EXECUTE, SYNC].concat()).await;
    assert_eq!(raw.ready().await, "12DCZ");
    raw.send(&[&bind("n")[..], EXECUTE, SYNC].concat()).await;
    assert_eq!(raw.ready().await, "2DCZ");

    // `for update`: on the primary, where the table changes.
    let sql = "select * from t for update";
    let stale = client.prepare(sql).await.unwrap();
    assert_eq!(client.query_one(&stale, &[]).await.unwrap().len(), 1);
    client.batch_execute("alter table t add column more int").await.unwrap();
    assert_eq!(code(&client.query_one(&stale, &[]).await.unwrap_err()), "0A000");
    drop(stale);
    let again = client.prepare(sql).await.unwrap();
    assert_eq!(client.query_one(&again, &[]).await.unwrap().len(), 2);
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_client_does_to_its_session_never_meets_another() {
    let bench = Bench::start(0, "pool: { size: 4 }").await;
    let other = bench.client().await;
    let state = "select concat_ws('|', current_setting('search_path'), current_setting('work_mem'), \
                 current_setting('timezone'), current_setting('application_name'), current_user, \
                 pg_my_temp_schema()::text, \
                 (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()), \
                 (select count(*) from pg_listening_channels()), (select count(*) from pg_cursors), \
                 (select count(*) from pg_prepared_statements where name not like 'metako%'))";
    let clean = text(&other, state).await;
    for sql in [
        "set work_mem = '7MB'",
        "select 1; set work_mem = '7MB'; select 2",
        "/* a comment */ set search_path = elsewhere",
        "select set_config('search_path', 'elsewhere', false)",
        "select set_config('search_path'::text, 'elsewhere', 1 = 2)",
        "begin; set session work_mem = '7MB'; commit",
        "do $$ begin perform set_config('search_path', 'elsewhere', false); end $$",
        "do $$ begin perform pg_advisory_lock(7); end $$",
        "do $$ begin execute 'create temp table hidden (id int)'; end $$",
        "do $$ begin execute 'set application_name to stealth'; end $$",
        "do $$ begin execute 'deallocate all'; end $$",
        "set local work_mem = '7MB'",
        "select pg_advisory_lock(1), pg_try_advisory_lock_shared(2)",
        "create temp table mine (id int)",
        "create table pg_temp.mine (id int)",
        "select 1 as one into temp mine",
        "listen channel",
        "prepare p as select 1",
        "begin; declare c cursor with hold for select 1; commit",
        "create role somebody; set role somebody",
        "set session authorization somebody",
        "set time zone 'Asia/Tokyo'",
        "reset all",
        "discard all",
    ] {
        let one = bench.client().await;
        one.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        for _ in 0..3 {
            assert_eq!(text(&other, state).await, clean, "after {sql}");
        }
        drop(one);
        bench.settled().await;
        for _ in 0..3 {
            assert_eq!(text(&other, state).await, clean, "after the end of the client of {sql}");
        }
        // The same in the extended protocol, where it is one statement.
        let mut raw = Raw::connect(&bench).await;
        raw.send(&[&parse("s", sql)[..], SYNC, &bind("s"), EXECUTE, SYNC].concat()).await;
        raw.ready().await;
        raw.ready().await;
        for _ in 0..3 {
            assert_eq!(text(&other, state).await, clean, "after {sql}, prepared");
        }
        drop(raw);
        bench.settled().await;
        assert_eq!(text(&other, state).await, clean, "after the end of the client of {sql}, prepared");
    }
    bench.data.shutdown(Duration::from_secs(5)).await;
}
