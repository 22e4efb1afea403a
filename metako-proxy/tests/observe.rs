//! `failover.mode: observe` on a real cluster: somebody else promotes, metako follows.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod running;

use metako_proxy::playground::{Cluster, StopMode};
use running::{Metako, eventually};
use tokio_postgres::NoTls;

const OBSERVE: &str = "failover: { mode: observe }";

fn wait_for_primary(metako: &Metako, name: &str) -> serde_json::Value {
    eventually(&format!("{name} is followed"), || {
        let status = metako.status()?;
        if status["primary"] == name { Ok(status) } else { Err(status.to_string()) }
    })
}

/// Whether a node has a table, by its own account.
async fn has_table(cluster: &Cluster, node: &str, table: &str) -> bool {
    let dsn = running::dsn(cluster, cluster.node(node).port());
    let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    client.query_one("select to_regclass($1::text) is not null", &[&table]).await.unwrap().get(0)
}

fn conninfo(cluster: &Cluster, node: &str) -> String {
    cluster.node(node).sql("SHOW primary_conninfo").unwrap().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_moved_to_whom_others_promote_and_nothing_else_changes() {
    let cluster = running::cluster(2, None);
    let metako = Metako::start(&running::configuration(&cluster, OBSERVE));
    metako.wait_until_open(2);
    let (client, connection) =
        tokio_postgres::connect(&running::dsn(&cluster, metako.port), NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("create table kept (id int); insert into kept values (1)").await.unwrap();
    let before = ["node-2", "node-3"].map(|node| conninfo(&cluster, node));

    cluster.node("node-1").kill_9_all().unwrap();
    // The write waits for a primary, which metako does not make.
    let held =
        tokio::spawn(
            async move { client.batch_execute("insert into kept values (2)").await.map(|()| client) },
        );
    eventually("writes are held", || {
        let status = metako.status()?;
        let held = status["reason"].to_string();
        if held.contains("failover.mode is observe") { Ok(()) } else { Err(status.to_string()) }
    });
    for node in ["node-2", "node-3"] {
        let in_recovery = cluster.node(node).sql("SELECT pg_is_in_recovery()").unwrap();
        assert_eq!(in_recovery.as_deref(), Some("t"), "{node} is not promoted");
    }
    assert_eq!(cluster.node("node-2").sql("SELECT pg_promote()").unwrap().as_deref(), Some("t"));
    let client = held.await.unwrap().expect("the session lives on, and its write is done");
    client.batch_execute("begin").await.unwrap();
    let rows = client.query_one("select count(*)::int from kept", &[]).await.unwrap();
    client.batch_execute("commit").await.unwrap();
    assert_eq!(rows.get::<_, i32>(0), 2);
    let status = wait_for_primary(&metako, "node-2");
    assert_eq!(status["epoch"], 2, "{status}");
    assert_eq!(before, ["node-2", "node-3"].map(|node| conninfo(&cluster, node)));
    let names = cluster.node("node-2").sql("SHOW synchronous_standby_names").unwrap();
    assert_eq!(names.unwrap_or_default(), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_promoted_beside_the_primary_gets_nothing_until_a_person_says_so() {
    let cluster = running::cluster(1, None);
    let metako = Metako::start(&running::configuration(&cluster, OBSERVE));
    metako.wait_until_open(1);
    let (client, connection) =
        tokio_postgres::connect(&running::dsn(&cluster, metako.port), NoTls).await.unwrap();
    tokio::spawn(connection);
    cluster.node("node-2").sql("SELECT pg_promote()").unwrap();
    eventually("the second primary is named", || {
        let log = metako.log();
        if log.contains("node-2 was promoted while node-1 is well") { Ok(()) } else { Err(log) }
    });
    client.batch_execute("create table first_only (id int)").await.unwrap();
    assert!(has_table(&cluster, "node-1", "first_only").await);
    assert!(!has_table(&cluster, "node-2", "first_only").await);
    // It may be a copy that somebody split off: the death of the other one does not make it more.
    cluster.node("node-1").stop(StopMode::Fast).unwrap();
    eventually("writes are held", || {
        let status = metako.status()?;
        let held = status["reason"].to_string();
        if held.contains("promoted while the primary was well") { Ok(()) } else { Err(status.to_string()) }
    });
    let adopted = metako.command(&["adopt", "--primary", "node-2", "--yes"]);
    assert!(adopted.status.success(), "{adopted:?}");
    wait_for_primary(&metako, "node-2");
    client.batch_execute("create table second_only (id int)").await.unwrap();
    assert!(has_table(&cluster, "node-2", "second_only").await);
}

#[test]
fn a_primary_that_was_replaced_while_metako_was_away_gets_nothing() {
    let cluster = running::cluster(2, None);
    let mut metako = Metako::start(&running::configuration(&cluster, OBSERVE));
    metako.wait_until_open(2);
    metako.signal(nix::sys::signal::Signal::SIGKILL);
    cluster.node("node-1").kill_9_all().unwrap();
    cluster.node("node-3").sql("SELECT pg_promote()").unwrap();
    // Nobody has told it.
    cluster.node("node-1").start().unwrap();
    metako.start_again();
    let status = wait_for_primary(&metako, "node-3");
    assert_eq!(status["epoch"], 2, "{status}");
    let log = metako.log();
    assert!(
        !log.contains("writes go to node-1, epoch 1") || log.matches("writes go to node-1").count() == 1,
        "{log}"
    );
    running::client(&cluster, "psql", metako.port, &["-XAtc", "create table late (id int)"]);
    assert_eq!(
        cluster.node("node-1").sql("SELECT to_regclass('late') IS NULL").unwrap().as_deref(),
        Some("t")
    );
}

#[test]
fn a_primary_that_comes_back_serves_again_when_nobody_was_promoted() {
    let cluster = running::cluster(2, None);
    let metako = Metako::start(&running::configuration(&cluster, OBSERVE));
    metako.wait_until_open(2);
    let node = cluster.node("node-1");
    node.kill_9_all().unwrap();
    eventually("writes are held", || {
        let status = metako.status()?;
        if status["primary"].is_null() { Ok(()) } else { Err(status.to_string()) }
    });
    node.start().unwrap();
    let status = wait_for_primary(&metako, "node-1");
    assert_eq!(status["epoch"], 1, "{status}");
    metako.wait_until_open(2);
}
