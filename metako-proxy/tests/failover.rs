//! The primary dies under load, on a real cluster.

mod running;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use metako_proxy::playground::Cluster;
use running::{Metako, eventually};
use tokio_postgres::NoTls;

/// A writer's ledger: what was acknowledged.
struct Ledger {
    acknowledged: BTreeSet<i64>,
    after_the_kill: usize,
}

async fn write(dsn: String, next: Arc<AtomicI64>, killed: Arc<AtomicBool>, stop: Arc<AtomicBool>) -> Ledger {
    let mut ledger = Ledger { acknowledged: BTreeSet::new(), after_the_kill: 0 };
    while !stop.load(Ordering::Relaxed) {
        let Ok((client, connection)) = tokio_postgres::connect(&dsn, NoTls).await else { continue };
        tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) {
            let id = next.fetch_add(1, Ordering::Relaxed);
            let late = killed.load(Ordering::Relaxed);
            match client.execute("insert into ledger values ($1)", &[&id]).await {
                Ok(1) => {
                    ledger.acknowledged.insert(id);
                    ledger.after_the_kill += usize::from(late);
                }
                // The outcome is unknown or the row was refused: the next one gets a new number.
                Ok(other) => panic!("an insert of one row answered {other}"),
                Err(_) if client.is_closed() => break,
                Err(_) => {}
            }
        }
    }
    ledger
}

#[test]
fn a_killed_primary_is_replaced_and_no_acknowledged_row_is_lost() {
    let cluster = running::cluster(2, Some(1));
    let metako = Metako::start(&running::configuration(&cluster, ""));
    let before = metako.wait_until_open(2);
    assert_eq!(before["primary"], "node-1");
    metako.wait_until_synchronous();
    running::client(&cluster, "psql", metako.port, &["-XAtc", "create table ledger (id bigint primary key)"]);

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let dsn = running::dsn(&cluster, metako.port);
    let next = Arc::new(AtomicI64::new(1));
    let killed = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|_| runtime.spawn(write(dsn.clone(), Arc::clone(&next), Arc::clone(&killed), Arc::clone(&stop))))
        .collect();
    let (idle, connection) = runtime.block_on(tokio_postgres::connect(&dsn, NoTls)).unwrap();
    runtime.spawn(connection);

    eventually("the writers are at work", || {
        let written = next.load(Ordering::Relaxed);
        if written > 300 { Ok(()) } else { Err(format!("{written} rows tried")) }
    });
    cluster.node("node-1").kill_9().unwrap();
    killed.store(true, Ordering::Relaxed);
    let status = eventually("another node is primary", || {
        let status = metako.status()?;
        match status["primary"].as_str() {
            Some(name) if name != "node-1" => Ok(status),
            _ => Err(status.to_string()),
        }
    });
    let primary = status["primary"].as_str().unwrap().to_owned();
    let tried = next.load(Ordering::Relaxed);
    eventually("the writers are at work again", || {
        let written = next.load(Ordering::Relaxed);
        if written > tried + 300 { Ok(()) } else { Err(format!("{} rows tried", written - tried)) }
    });
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeSet::new();
    for writer in writers {
        let ledger = runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(60), writer).await })
            .expect("a writer hangs")
            .unwrap();
        assert!(ledger.after_the_kill > 0, "every writer writes again after the failover");
        acknowledged.extend(ledger.acknowledged);
    }
    let answer: i32 =
        runtime.block_on(idle.query_one("select 1", &[])).expect("an idle session lives on").get(0);
    assert_eq!(answer, 1);

    let rows = direct(&cluster, &primary, "select id from ledger");
    let stored: BTreeSet<i64> = rows.lines().map(|line| line.parse().unwrap()).collect();
    let lost: Vec<_> = acknowledged.difference(&stored).collect();
    assert!(lost.is_empty(), "{} acknowledged rows, lost: {lost:?}", acknowledged.len());

    let survivor = if primary == "node-2" { "node-3" } else { "node-2" };
    assert_eq!(direct(&cluster, &primary, "select pg_is_in_recovery()"), "f\n", "one writable primary");
    assert_eq!(direct(&cluster, survivor, "select pg_is_in_recovery()"), "t\n");
    assert!(!cluster.node("node-1").is_running(), "nobody restarted the old primary");
    eventually("the survivor streams from the new primary", || {
        let streaming = direct(
            &cluster,
            &primary,
            "select application_name from pg_stat_replication where state = 'streaming'",
        );
        if streaming == format!("{survivor}\n") { Ok(()) } else { Err(streaming) }
    });
    metako.wait_until_open(1);
}

/// Asks a node itself, not through metako.
fn direct(cluster: &Cluster, node: &str, sql: &str) -> String {
    running::client(cluster, "psql", cluster.node(node).port(), &["-XAtc", sql])
}
