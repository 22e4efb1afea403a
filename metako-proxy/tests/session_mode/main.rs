//! `pool.mode: session`, and replication in every mode: to its client metako is PostgreSQL itself.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../relay/bench.rs"]
mod bench;
mod hard_ends;
mod parity;
#[path = "../running/mod.rs"]
mod running;
#[path = "../wire/mod.rs"]
mod wire;

use std::time::Duration;

use metako_core::Epoch;
use metako_proxy::check::load_text;
use metako_proxy::playground::Cluster;
use tokio::time::timeout;

use bench::{Bench, LIMIT, code, held, open, text};
use wire::{Message, Wire, cancel, field, query};

const SESSION: &str = "pool: { mode: session }";

impl Bench {
    fn direct(&self) -> u16 {
        self.cluster.node("node-1").port()
    }

    async fn wire(&self) -> Wire {
        self.wire_with(&[]).await
    }

    async fn wire_with(&self, more: &[(&str, &str)]) -> Wire {
        let parameters = [&[("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)], more].concat();
        Wire::start(self.port, &parameters, self.cluster.superuser_password()).await.expect("a log-in")
    }

    /// From now on the superuser, and one more, may use any database, and replicate.
    fn open_to_all(&self, extra: &str) {
        let users = format!(
            "  - {{ name: guest, password: guest }}\n  - {{ name: {}, password: \"{}\" }}\n",
            Cluster::SUPERUSER,
            self.cluster.superuser_password()
        );
        self.reconfigure(&users, extra);
    }

    /// From now on these users count as well, and what `extra` says.
    fn reconfigure(&self, users: &str, extra: &str) {
        let yaml =
            self.cluster.metako_yaml("127.0.0.1:6432").replace("users:\n", &format!("users:\n{users}"));
        let config =
            load_text("session.yaml", &format!("{yaml}\n{extra}\n"), &bench::NoSecrets).unwrap().config;
        self.data.reconfigure(config.into()).unwrap();
    }

    /// A connection past metako.
    async fn past(&self) -> Wire {
        let parameters = [("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)];
        Wire::start(self.direct(), &parameters, self.cluster.superuser_password()).await.expect("a log-in")
    }

    /// Asks past metako until the answer is this.
    async fn until_past(&self, sql: &str, wanted: &str) {
        let mut past = self.past().await;
        let begun = std::time::Instant::now();
        loop {
            let answer = past.value(sql).await;
            if answer == wanted {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "{sql}: {answer}, never {wanted}");
        }
    }
}

fn fatal(message: Option<Message>) -> String {
    let Some((b'E', body)) = message else { panic!("no error: {message:?}") };
    assert_eq!(field(&body, b'V'), "FATAL");
    format!("{} {}", field(&body, b'C'), field(&body, b'M'))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_has_a_server_of_its_own_with_its_process_id() {
    let bench = Bench::start(1, SESSION).await;
    let mut one = bench.wire_with(&[("application_name", "one of two")]).await;
    let two = bench.client().await;
    let (process_id, secret) = one.key();
    assert_eq!(one.value("select pg_backend_pid()").await, process_id.to_string());
    assert_eq!(secret.len(), 4);
    assert_ne!(text(&two, "select pg_backend_pid()").await, process_id.to_string());
    assert_eq!(one.value("show application_name").await, "one of two");

    // Whatever belongs to a session stays, and is nobody else's. Reads are not split off.
    for sql in [
        "create temporary table kept (n int)",
        "insert into kept values (1)",
        "set work_mem to '7MB'",
        "prepare plan as select count(*) from kept",
        "select pg_advisory_lock(7)",
    ] {
        one.send(&query(sql)).await;
        assert!(!one.until(b'Z').await.iter().any(|(tag, _)| *tag == b'E'), "{sql}");
    }
    assert_eq!(one.value("execute plan").await, "1");
    assert_eq!(one.value("show work_mem").await, "7MB");
    assert_eq!(text(&two, "show work_mem").await, "4MB");
    assert_eq!(text(&two, "select pg_try_advisory_lock(7)").await, "f");
    assert_eq!(code(&two.simple_query("execute plan").await.unwrap_err()), "26000");
    assert_eq!(one.value("select pg_is_in_recovery()").await, "f");
    assert_eq!(bench.reads("node-2"), 0);

    // The server goes with its client.
    drop(one);
    let gone = format!("select count(*) from pg_stat_activity where pid = {process_id}");
    bench.until_past(&gone, "0").await;
    assert_eq!(text(&two, "select pg_try_advisory_lock(7)").await, "t");
    drop(two);
    bench.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_says_unasked_comes_at_once() {
    let bench = Bench::start(0, SESSION).await;
    let (mut one, other) = (bench.wire().await, bench.client().await);
    one.send(&query("listen news")).await;
    one.until(b'Z').await;
    text(&other, "notify news, 'first'").await;
    let (tag, body) = one.next().await.unwrap();
    assert_eq!((tag, &body[4..]), (b'A', &b"news\0first\0"[..]));

    // The process id that the client knows is the one to end.
    let ended = format!("select pg_terminate_backend({})", one.key().0);
    assert_eq!(text(&other, &ended).await, "t");
    let said = fatal(one.next().await);
    assert_eq!(said, "57P01 terminating connection due to administrator command");
    assert_eq!(one.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_needs_the_secret_and_hits_the_statement() {
    let bench = Bench::start(0, SESSION).await;
    let mut one = bench.wire().await;
    let (process_id, secret) = one.key();
    let sleeping =
        format!("select count(*) from pg_stat_activity where pid = {process_id} and wait_event = 'PgSleep'");
    one.send(&query("select pg_sleep(600)")).await;
    bench.until_past(&sleeping, "1").await;
    let wrong: Vec<u8> = secret.iter().map(|byte| byte ^ 1).collect();
    cancel(bench.port, process_id, &wrong).await;
    cancel(bench.port, process_id ^ 1, &secret).await;
    assert_eq!(bench.past().await.value(&sleeping).await, "1");
    cancel(bench.port, process_id, &secret).await;
    let messages = one.until(b'Z').await;
    let error = messages.iter().find(|(tag, _)| *tag == b'E').expect("an error");
    assert_eq!(field(&error.1, b'C'), "57014");
    // While nothing runs, it does nothing.
    cancel(bench.port, process_id, &secret).await;
    assert_eq!(one.value("select 5").await, "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_place_in_the_pool_is_for_one_client_and_the_next_is_told_that_it_waits() {
    let bench = Bench::start(0, "pool: { mode: session, size: 1, wait_timeout: 5m }").await;
    let one = bench.wire().await;
    let parameters = [("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)];
    let mut two = Wire::begin(bench.port, &parameters, bench.cluster.superuser_password()).await.unwrap();
    let (tag, notice) = two.next().await.unwrap();
    assert_eq!((tag, field(&notice, b'V').as_str()), (b'N', "NOTICE"));
    assert!(field(&notice, b'D').contains("node node-1"), "{}", field(&notice, b'D'));
    drop(one);
    let greeting = two.until(b'Z').await;
    assert_eq!(greeting.first().map(|(tag, _)| *tag), Some(b'S'));
    assert_eq!(two.value("select 1").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_leaves_nothing_behind() {
    let bench = Bench::start(0, SESSION).await;
    let mut past = bench.past().await;
    past.send(&query("create table done (n int)")).await;
    past.until(b'Z').await;
    // What takes its time is finished, as PostgreSQL would.
    let mut one = bench.wire().await;
    one.send(&query("insert into done select 1 from pg_sleep(0.5)")).await;
    drop(one);
    // So is what came before a Terminate.
    let mut two = bench.wire().await;
    two.send(&[query("insert into done select 2 from pg_sleep(0.5)"), b"X\0\0\0\x04".to_vec()].concat())
        .await;
    drop(two);
    // Who stops talking may still listen.
    let mut three = bench.wire().await;
    three.send(&query("insert into done values (3) returning n")).await;
    three.shut().await;
    let tags: Vec<u8> = three.until(b'Z').await.iter().map(|(tag, _)| *tag).collect();
    assert_eq!(tags, b"TDCZ");
    assert_eq!(three.next().await, None);
    // What would take for ever is cancelled.
    let mut four = bench.wire().await;
    four.send(&query("select pg_sleep(100000)")).await;
    let sleeps = "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and query ~ '100000'";
    bench.until_past(sleeps, "1").await;
    drop(four);
    bench.settled().await;
    let clients = "select count(*) - 2 from pg_stat_activity where backend_type = 'client backend'";
    bench.until_past(clients, "0").await;
    assert_eq!(past.value("select string_agg(n::text, ',' order by n) from done").await, "1,2,3");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fence_ends_sessions_and_a_new_primary_takes_new_ones() {
    let bench = Bench::start(0, SESSION).await;
    let mut one = bench.wire().await;
    bench.view.publish(held(&bench.cluster, 2).into());
    timeout(LIMIT, bench.data.fence().sever(&"node-1".into(), Epoch(2))).await.expect("severed");
    let said = fatal(one.next().await);
    assert!(said.starts_with("57P01 ") && said.contains("node-1") && said.contains("fenced off"), "{said}");
    assert_eq!(one.next().await, None);

    // Whoever comes now is held, and served when there is a primary.
    let parameters = [("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)];
    let mut two = Wire::begin(bench.port, &parameters, bench.cluster.superuser_password()).await.unwrap();
    let greeting = tokio::spawn(async move {
        let greeting = two.until(b'Z').await;
        (two, greeting)
    });
    timeout(LIMIT, async {
        while bench.traffic.held.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the client is held");
    bench.view.publish(open(&bench.cluster, "node-1", 3).into());
    let (mut two, _) = timeout(LIMIT, greeting).await.expect("served").unwrap();
    assert_eq!(two.value("select 2").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_without_a_word_is_reported_by_metako() {
    let mut bench = Bench::start(0, SESSION).await;
    let mut one = bench.wire().await;
    let server = nix::unistd::Pid::from_raw(one.key().0);
    nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGKILL).unwrap();
    let said = fatal(one.next().await);
    assert!(said.starts_with("57P01 ") && said.contains("node-1 was lost"), "{said}");
    assert_eq!(one.next().await, None);
    let (node, _) = timeout(LIMIT, bench.evidence.recv()).await.expect("evidence").unwrap();
    assert_eq!(node.as_str(), "node-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_sends_idle_clients_away_and_waits_for_those_in_a_transaction() {
    let bench = Bench::start(0, SESSION).await;
    let (mut idle, mut busy) = (bench.wire().await, bench.wire().await);
    busy.send(&query("begin; create table kept (n int)")).await;
    busy.until(b'Z').await;
    let data = std::sync::Arc::clone(&bench.data);
    let stopping = tokio::spawn(async move { data.shutdown(Duration::from_secs(600)).await });
    assert!(fatal(idle.next().await).starts_with("57P01 "));
    assert_eq!(idle.next().await, None);
    assert!(!stopping.is_finished());
    assert_eq!(busy.value("select 6").await, "6");
    busy.send(&query("commit")).await;
    let committed = busy.until(b'Z').await;
    assert_eq!(committed.first(), Some(&(b'C', b"COMMIT\0".to_vec())));
    assert!(fatal(busy.next().await).starts_with("57P01 "));
    timeout(LIMIT, stopping).await.expect("it ends").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_passes_in_every_mode() {
    for extra in ["pool: { mode: transaction }", SESSION] {
        let bench = Bench::start(0, extra).await;
        bench.open_to_all(extra);
        let mut logical = bench.wire_with(&[("replication", "database")]).await;
        assert_eq!(logical.value("select pg_backend_pid()").await, logical.key().0.to_string());
        logical.send(&query("IDENTIFY_SYSTEM")).await;
        let tags: Vec<u8> = logical.until(b'Z').await.iter().map(|(tag, _)| *tag).collect();
        assert_eq!(tags, b"TDCZ");
        drop(logical);
        tokio::task::spawn_blocking(move || {
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("copy").display().to_string();
            let port = bench.port;
            running::client(
                &bench.cluster,
                "pg_basebackup",
                port,
                &["-D", &target, "-X", "stream", "-c", "fast", "--no-sync"],
            );
            assert!(folder.path().join("copy").join("PG_VERSION").exists());
            let wal = folder.path().join("wal");
            std::fs::create_dir(&wal).unwrap();
            let end = bench.cluster.node("node-1").sql("select pg_current_wal_lsn()").unwrap().unwrap();
            bench.cluster.node("node-1").sql("select pg_switch_wal()").unwrap();
            let to = wal.display().to_string();
            running::client(
                &bench.cluster,
                "pg_receivewal",
                port,
                &["-D", &to, "-n", "--no-sync", "--endpos", &end],
            );
            assert!(std::fs::read_dir(&wal).unwrap().count() > 0);
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_of_a_big_result_costs_no_memory_and_a_cancel_still_gets_through() {
    let (cluster, metako) = tokio::task::spawn_blocking(|| {
        let cluster = running::cluster(0, None);
        let metako = running::Metako::start(&running::configuration(&cluster, SESSION));
        metako.wait_until_open(0);
        (cluster, metako)
    })
    .await
    .unwrap();
    let parameters = [("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)];
    let password = cluster.superuser_password();
    let mut reader = Wire::start(metako.port, &parameters, password).await.unwrap();
    let mut past = Wire::start(cluster.node("node-1").port(), &parameters, password).await.unwrap();
    let before = resident(metako.pid());
    // 256 MiB in rows of one.
    reader.send(&query("select repeat('x', 1 << 20) from generate_series(1, 256)")).await;
    let blocked = format!(
        "select count(*) from pg_stat_activity where pid = {} and wait_event = 'ClientWrite'",
        reader.key().0
    );
    let begun = std::time::Instant::now();
    while past.value(&blocked).await != "1" {
        assert!(begun.elapsed() < LIMIT, "the server never waits for the client");
    }
    let grown = resident(metako.pid()).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} kB more");
    let mut rows = 0;
    loop {
        match reader.next().await.expect("the result goes on") {
            (b'D', body) => rows += usize::from(body.len() == 6 + (1 << 20)),
            (b'Z', _) => break,
            _ => {}
        }
    }
    assert_eq!(rows, 256);
    let grown = resident(metako.pid()).saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} kB more");

    // While rows pile up at the client.
    reader.send(&query("select repeat('x', 1 << 20) from generate_series(1, 100000)")).await;
    while past.value(&blocked).await != "1" {
        assert!(begun.elapsed() < LIMIT, "the server never waits for the client");
    }
    let (process_id, secret) = reader.key();
    cancel(metako.port, process_id, &secret).await;
    let last = loop {
        match reader.next().await.expect("an end") {
            (b'D' | b'T', _) => {}
            other => break other,
        }
    };
    assert_eq!((last.0, field(&last.1, b'C').as_str()), (b'E', "57014"));
}

/// Resident memory of a process, in kB.
fn resident(pid: nix::unistd::Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_mode_refuses_blocks_and_shares_one_server_between_the_statements_of_all() {
    let bench = Bench::start(0, "pool: { mode: statement, size: 1 }").await;
    let (mut one, mut two) = (bench.wire().await, bench.client().await);
    text(&two, "create table item (n int)").await;

    one.send(&query("begin")).await;
    let refused = one.until(b'Z').await;
    assert_eq!(field(&refused[0].1, b'C'), "0A000");
    assert_eq!(field(&refused[0].1, b'M'), "transaction blocks not allowed in statement pooling mode");
    assert_eq!(refused[1], (b'Z', b"I".to_vec()));
    let error = two.transaction().await.err().expect("refused");
    assert_eq!(code(&error), "0A000");

    // A pipeline: each of it for itself.
    let pipeline =
        ["insert into item values (1)", "begin", "insert into item values (2)"].map(query).concat();
    one.send(&pipeline).await;
    let mut tags = Vec::new();
    for _ in 0..3 {
        tags.extend(one.until(b'Z').await.iter().map(|(tag, _)| char::from(*tag)));
    }
    assert_eq!(tags.iter().collect::<String>(), "CZEZCZ");
    let insert = two.prepare("insert into item values ($1)").await.unwrap();
    two.execute(&insert, &[&3]).await.unwrap();
    assert_eq!(one.value("select count(*) from item").await, "3");

    // One that was not foreseen ends the connection, and what it did is undone.
    one.send(&query("insert into item values (4); begin; insert into item values (5)")).await;
    let messages = one.until(0).await;
    let (tag, last) = messages.last().unwrap();
    assert_eq!((*tag, field(last, b'V').as_str(), field(last, b'C').as_str()), (b'E', "FATAL", "0A000"));
    assert_eq!(text(&two, "select count(*) from item").await, "3");
    bench.settled().await;
}
