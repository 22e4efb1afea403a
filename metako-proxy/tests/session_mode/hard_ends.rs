//! Ends that come while something is under way: the wait for a place, a statement, a fault of somebody else.

use std::time::Duration;

use metako_core::Epoch;
use metako_proxy::playground::Cluster;
use tokio::time::timeout;

use crate::bench::{Bench, LIMIT, held};
use crate::wire::{Wire, query};
use crate::{SESSION, fatal};

const PARAMETERS: [(&str, &str); 2] = [("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)];

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_sends_away_who_waits_to_be_let_in() {
    for mode in ["session", "transaction"] {
        let bench = Bench::start(0, &format!("pool: {{ mode: {mode}, size: 1 }}")).await;
        let mut one = bench.wire().await;
        one.send(&query("begin; select 1")).await;
        one.until(b'Z').await;
        // Other start-up parameters, so that in transaction mode too a server is needed for the log-in.
        let parameters = [&PARAMETERS[..], &[("options", "-c work_mem=5MB")]].concat();
        let mut two = Wire::begin(bench.port, &parameters, bench.cluster.superuser_password()).await.unwrap();
        let data = std::sync::Arc::clone(&bench.data);
        let stopping = tokio::spawn(async move { data.shutdown(Duration::from_secs(600)).await });
        assert_eq!(
            fatal(two.next().await),
            "57P01 terminating connection: metako is shutting down",
            "{mode}"
        );
        assert_eq!(two.next().await, None);
        drop(one);
        timeout(LIMIT, stopping).await.expect("it ends").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_without_patience_tells_why_and_cancels_what_runs() {
    let bench = Bench::start(0, "pool: { mode: session, size: 1 }").await;
    let mut one = bench.wire().await;
    one.send(&query("select pg_sleep(100000)")).await;
    let sleeps = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    bench.until_past(sleeps, "1").await;
    let data = std::sync::Arc::clone(&bench.data);
    let stopping = tokio::spawn(async move { data.shutdown(Duration::ZERO).await });
    assert_eq!(fatal(one.next().await), "57P01 terminating connection: metako is shutting down");
    bench.until_past(sleeps, "0").await;
    timeout(LIMIT, stopping).await.expect("it ends").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_too_long_ends_the_session_with_what_runs() {
    let bench = Bench::start(0, "pool: { mode: session }\nlimits: { message_size: 1MiB }").await;
    let mut one = bench.wire().await;
    one.send(&query("select pg_sleep(100000)")).await;
    let sleeps = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    bench.until_past(sleeps, "1").await;
    one.send(b"Q\0\x20\0\0select").await;
    let said = fatal(one.next().await);
    assert!(said.starts_with("08P01 "), "{said}");
    bench.until_past(sleeps, "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_whose_outcome_nobody_knows_is_reported_so() {
    for (extra, wanted) in [("", "08007 "), ("failover: { unknown_outcome: completion_unknown }", "40003 ")] {
        let bench = Bench::start(0, &format!("{SESSION}\n{extra}")).await;
        let (mut busy, mut idle) = (bench.wire().await, bench.wire().await);
        busy.send(&query("select pg_sleep(100000)")).await;
        bench.until_past("select count(*) from pg_stat_activity where wait_event = 'PgSleep'", "1").await;
        bench.view.publish(held(&bench.cluster, 2).into());
        timeout(LIMIT, bench.data.fence().sever(&"node-1".into(), Epoch(2))).await.expect("severed");
        let said = fatal(busy.next().await);
        assert!(said.starts_with(wanted) && said.contains("before it answered"), "{said}");
        assert_eq!(busy.next().await, None);
        assert!(fatal(idle.next().await).starts_with("57P01 "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_that_one_client_sends_is_not_held_against_others() {
    let bench = Bench::start(0, "pool: { mode: session, size: 1, wait_timeout: 5m }").await;
    let password = bench.cluster.superuser_password();
    let holder = bench.wire().await;
    let broken = [&PARAMETERS[..], &[("options", "-c session_preload_libraries=no_such_library")]].concat();
    let mut broken = Wire::begin(bench.port, &broken, password).await.unwrap();
    let mut good = Wire::begin(bench.port, &PARAMETERS, password).await.unwrap();
    // Both are in line.
    for wire in [&mut broken, &mut good] {
        assert_eq!(wire.next().await.map(|(tag, _)| tag), Some(b'N'));
    }
    drop(holder);
    assert!(fatal(broken.next().await).starts_with("58P01 "));
    let greeting = good.until(b'Z').await;
    assert_eq!(greeting.first().map(|(tag, _)| *tag), Some(b'S'), "{greeting:?}");
    assert_eq!(good.value("select 1").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_serves_one_client_only_is_not_opened_ahead() {
    for mode in ["session", "transaction"] {
        let bench = Bench::start(0, "").await;
        bench.cluster.node("node-1").sql("create role guest login password 'guest'").unwrap();
        let users = [
            ("guest", "guest", "transaction"),
            (Cluster::SUPERUSER, bench.cluster.superuser_password(), mode),
        ]
        .map(|(name, password, mode)| {
            format!("  - {{ name: {name}, password: \"{password}\", pool: {{ mode: {mode}, min: 3 }} }}\n")
        })
        .concat();
        bench.reconfigure(&users, "");

        let mut walsender = bench.wire_with(&[("replication", "database")]).await;
        walsender.send(&query("IDENTIFY_SYSTEM")).await;
        walsender.until(b'Z').await;
        // Pools are looked after in the order in which they came to be: when that of the guest is filled, so would be the other.
        let guest = [("user", "guest"), ("database", Cluster::DATABASE)];
        let mut guest = Wire::start(bench.port, &guest, "guest").await.expect("a log-in");
        guest.value("select 1").await;
        bench.until_past("select count(*) from pg_stat_activity where usename = 'guest'", "3").await;
        let walsenders = "select count(*) from pg_stat_activity where backend_type = 'walsender'";
        assert_eq!(bench.past().await.value(walsenders).await, "1", "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn warnings_of_the_log_in_reach_the_client_where_postgresql_has_them() {
    let bench = Bench::start(0, SESSION).await;
    let node = bench.cluster.node("node-1");
    node.sql("create access method mine type table handler heap_tableam_handler").unwrap();
    node.sql(&format!("alter role {} set default_table_access_method to mine", Cluster::SUPERUSER)).unwrap();
    node.sql("drop access method mine").unwrap();
    let mut greetings = Vec::new();
    for port in [bench.direct(), bench.port] {
        let wire =
            Wire::start(port, &PARAMETERS, bench.cluster.superuser_password()).await.expect("a log-in");
        let is_key = |message: &&(u8, Vec<u8>)| message.0 != b'K';
        greetings.push(wire.greeting.iter().filter(is_key).cloned().collect::<Vec<_>>());
    }
    assert!(greetings[0].iter().any(|(tag, _)| *tag == b'N'), "{:?}", greetings[0]);
    assert_eq!(greetings[1], greetings[0]);
}
