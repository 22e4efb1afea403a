//! Many reloads under clients at work: nobody notices, and nothing is kept of the configurations that were. `make test` does
//! a few, `make soak` a thousand.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test where they stand")]

mod running;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use running::{Metako, eventually, text};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

const WORKERS: u64 = 8;
const IDLE: usize = 100;

/// What a process may grow by for reasons of its own, in bytes.
const GROWTH_MAX: u64 = 8 << 20;

async fn open(dsn: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Writes and reads as long as it may, on a new connection now and then.
async fn work(dsn: String, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Result<(), tokio_postgres::Error> {
    while !stop.load(Ordering::Relaxed) {
        let mut client = open(&dsn).await?;
        let insert = client.prepare("insert into ledger values (default) returning id").await?;
        for _ in 0..50 {
            let id: i64 = client.query_one(&insert, &[]).await?.get(0);
            let block = client.transaction().await?;
            let seen = block.query_one("select count(*) from ledger where id = $1", &[&id]).await?;
            block.commit().await?;
            assert_eq!(seen.get::<_, i64>(0), 1, "row {id}");
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Bytes of memory that are the process's own.
fn memory(metako: &Metako) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", metako.pid())).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Private_Dirty:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn files(metako: &Metako) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", metako.pid())).unwrap().count()
}

#[test]
fn reloads_disturb_nobody_and_leave_nothing_behind() {
    let reloads: u64 = std::env::var("METAKO_SOAK_RELOADS").map_or(10, |count| count.parse().unwrap());
    let cluster = running::cluster(1, None);
    let whole = running::configuration(&cluster, "");
    // Another size, another balancer, and a node less.
    let other: String =
        running::configuration(&cluster, "pool: { size: 3 }\nload_balancer: { algorithm: random }\n")
            .lines()
            .filter(|line| !line.contains("name: node-2"))
            .flat_map(|line| [line, "\n"])
            .collect();
    assert!(!other.contains("node-2") && whole.contains("node-2"), "{other}");
    let metako = Metako::start(&whole);
    metako.wait_until_open(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dsn = running::dsn(&cluster, metako.port);

    let before = files(&metako);
    let idle: Vec<Client> = runtime.block_on(async {
        let mut idle = Vec::new();
        for _ in 0..IDLE {
            idle.push(open(&dsn).await.unwrap());
        }
        idle[0].batch_execute("create table ledger (id bigserial primary key)").await.unwrap();
        idle
    });
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        workers.spawn_on(work(dsn.clone(), Arc::clone(&stop), Arc::clone(&done)), runtime.handle());
    }
    let mut early = 0;
    for reload in 1..=reloads {
        metako.rewrite(if reload % 2 == 0 { &whole } else { &other });
        let output = metako.command(&["reload"]);
        assert!(output.status.success(), "reload {reload}: {}", text(&output.stderr));
        // Each configuration is worked with.
        let begun = done.load(Ordering::Relaxed);
        eventually("clients go on", || {
            if let Some(ended) = workers.try_join_next() {
                panic!("reload {reload}: a client ended: {ended:?}");
            }
            let finished = done.load(Ordering::Relaxed) - begun;
            if finished >= WORKERS { Ok(()) } else { Err(format!("reload {reload}: {finished} rounds")) }
        });
        if reload == reloads.div_ceil(2) {
            early = memory(&metako);
        }
    }
    let late = memory(&metako);
    stop.store(true, Ordering::Relaxed);
    for ended in runtime.block_on(workers.join_all()) {
        ended.unwrap();
    }
    // In a block, and so on the primary: a replica may not have all yet.
    let rows = runtime.block_on(async {
        idle[1].batch_execute("begin").await.unwrap();
        let rows = idle[1].query_one("select count(*) from ledger", &[]).await.unwrap();
        idle[1].batch_execute("commit").await.unwrap();
        rows.get::<_, i64>(0).unsigned_abs()
    });
    assert_eq!(rows, done.load(Ordering::Relaxed));
    for client in &idle {
        assert_eq!(runtime.block_on(client.query_one("select 1", &[])).unwrap().get::<_, i32>(0), 1);
    }
    eprintln!(
        "{reloads} reloads, {} rounds of {WORKERS} clients: {} kB after half of them, {} kB at the end",
        done.load(Ordering::Relaxed),
        early >> 10,
        late >> 10
    );
    assert!(late < early + GROWTH_MAX, "{early} bytes after half of the reloads, {late} at the end");
    drop(idle);
    drop(runtime);
    // What stays are at most the pools of two nodes.
    eventually("closed clients' files are closed", || {
        let now = files(&metako);
        if now <= before + 2 * 20 { Ok(()) } else { Err(format!("{before} files before, {now} now")) }
    });
}
