//! Days on which a primary, a standby or metako itself does not simply die, on real clusters. Everything that was
//! acknowledged to a client is kept in a ledger and looked for afterwards.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod running;

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use metako_proxy::playground::Cluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use running::{Metako, eventually};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

/// Longer than it takes until a dead primary is replaced at default settings.
const LONG: Duration = Duration::from_secs(4);

/// A day: a cluster with metako before it and writers at work.
struct Day {
    cluster: Cluster,
    metako: Metako,
    runtime: Runtime,
    next: Arc<AtomicI64>,
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<BTreeSet<i64>>>,
}

async fn write(dsn: String, next: Arc<AtomicI64>, stop: Arc<AtomicBool>) -> BTreeSet<i64> {
    let mut acknowledged = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        let Ok((client, connection)) = tokio_postgres::connect(&dsn, NoTls).await else { continue };
        tokio::spawn(connection);
        while !stop.load(Ordering::Relaxed) {
            let id = next.fetch_add(1, Ordering::Relaxed);
            match client.execute("insert into ledger values ($1)", &[&id]).await {
                Ok(_) => drop(acknowledged.insert(id)),
                // Its outcome is unknown or it was refused: no number is tried twice.
                Err(_) if client.is_closed() => break,
                Err(_) => {}
            }
        }
    }
    acknowledged
}

impl Day {
    fn begin(synchronous: Option<u32>) -> Self {
        let cluster = running::cluster(2, synchronous);
        let metako = Metako::start(&running::configuration(&cluster, ""));
        metako.wait_until_open(2);
        if synchronous.is_some() {
            eventually("no commit is acknowledged without a standby", || {
                let status = metako.status()?;
                let reasons = status["decisions"].as_array().into_iter().flatten();
                let mut reasons = reasons.filter_map(|decision| decision["reason"].as_str());
                let in_force = reasons.any(|reason| reason.starts_with("a commit is acknowledged when"));
                if in_force { Ok(()) } else { Err(status.to_string()) }
            });
        }
        running::client(
            &cluster,
            "psql",
            metako.port,
            &["-XAtc", "create table ledger (id bigint primary key)"],
        );
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (next, stop) = (Arc::new(AtomicI64::new(1)), Arc::new(AtomicBool::new(false)));
        let dsn = running::dsn(&cluster, metako.port);
        let writers =
            (0..4).map(|_| runtime.spawn(write(dsn.clone(), Arc::clone(&next), Arc::clone(&stop)))).collect();
        let day = Self { cluster, metako, runtime, next, stop, writers };
        day.writes_go_on();
        day
    }

    fn writes_go_on(&self) {
        let before = self.next.load(Ordering::Relaxed);
        eventually("writes go on", || {
            let now = self.next.load(Ordering::Relaxed);
            if now > before + 100 {
                Ok(())
            } else {
                Err(format!("{}\n{:?}", now - before, self.metako.status()))
            }
        });
    }

    fn status(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(what, || {
            let status = self.metako.status()?;
            if fits(&status) { Ok(status) } else { Err(status.to_string()) }
        })
    }

    fn another_primary(&self, than: &str) -> String {
        let is_other = |status: &Value| status["primary"].as_str().is_some_and(|name| name != than);
        self.status("another node is primary", is_other)["primary"].as_str().unwrap().to_owned()
    }

    /// Asks a node itself, not through metako.
    fn direct(&self, node: &str, sql: &str) -> String {
        let answer = running::client(&self.cluster, "psql", self.cluster.node(node).port(), &["-XAtc", sql]);
        answer.trim_end().to_owned()
    }

    /// Stops the writers. No acknowledged row may be missing on `primary`.
    fn end(self, primary: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = BTreeSet::new();
        let Self { writers, runtime, .. } = self;
        for writer in writers {
            let ended = async { tokio::time::timeout(Duration::from_secs(60), writer).await };
            acknowledged.extend(runtime.block_on(ended).expect("a writer hangs").unwrap());
        }
        let port = self.cluster.node(primary).port();
        let rows = running::client(&self.cluster, "psql", port, &["-XAtc", "select id from ledger"]);
        let stored: BTreeSet<i64> = rows.lines().map(|line| line.parse().unwrap()).collect();
        let lost: Vec<_> = acknowledged.difference(&stored).collect();
        assert!(
            lost.is_empty(),
            "of {} acknowledged rows {} are lost: {lost:?}",
            acknowledged.len(),
            lost.len()
        );
    }
}

fn postmaster(cluster: &Cluster, node: &str) -> Pid {
    let file = cluster.node(node).data_dir().join("postmaster.pid");
    let text = std::fs::read_to_string(file).unwrap();
    Pid::from_raw(text.lines().next().unwrap().parse().unwrap())
}

fn role(status: &Value, node: &str) -> String {
    let nodes = status["nodes"].as_array().into_iter().flatten();
    let found = nodes.into_iter().find(|one| one["name"] == node);
    found.and_then(|one| one["role"].as_str()).unwrap_or_default().to_owned()
}

#[test]
fn a_frozen_primary_is_replaced_and_gets_nothing_when_it_thaws() {
    let day = Day::begin(Some(1));
    day.cluster.node("node-1").freeze().unwrap();
    let primary = day.another_primary("node-1");
    day.writes_go_on();
    day.cluster.node("node-1").thaw().unwrap();
    day.status("the thawed node is seen for what it is", |status| role(status, "node-1") == "stale_primary");
    let rows = day.direct("node-1", "select count(*) from ledger");
    day.writes_go_on();
    assert_eq!(day.direct("node-1", "select count(*) from ledger"), rows, "the thawed node takes no write");
    assert_eq!(day.metako.status().unwrap()["primary"], primary.as_str());
    day.end(&primary);
}

#[test]
fn a_primary_whose_postmaster_alone_is_stopped_is_not_replaced() {
    let day = Day::begin(None);
    let pid = postmaster(&day.cluster, "node-1");
    kill(pid, Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        day.writes_go_on();
    }
    let status = day.metako.status().unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!((&status["primary"], &status["epoch"]), (&Value::from("node-1"), &Value::from(1)), "{status}");
    day.end("node-1");
}

#[test]
fn a_primary_that_is_back_at_once_costs_no_row_whoever_is_primary_then() {
    let day = Day::begin(Some(1));
    let node = day.cluster.node("node-1");
    node.kill_9_all().unwrap();
    node.start().unwrap();
    let status = day.status("writes are open", |status| status["phase"] == "steady");
    day.writes_go_on();
    let primary = status["primary"].as_str().unwrap().to_owned();
    if primary != "node-1" {
        day.status("it is stale", |status| role(status, "node-1") == "stale_primary");
        assert_eq!(day.direct("node-1", "select pg_is_in_recovery()"), "f");
    }
    day.end(&primary);
}

#[test]
fn the_standby_with_more_is_promoted_although_it_has_replayed_less() {
    let day = Day::begin(None);
    day.direct("node-2", "select pg_wal_replay_pause()");
    // node-3 loses its stream and cannot come back.
    day.direct("node-1", "alter role replicator nologin");
    let cut = "select pg_terminate_backend(pid) from pg_stat_replication where application_name = 'node-3'";
    day.direct("node-1", cut);
    eventually("node-3 receives nothing", || {
        match day
            .direct("node-1", "select string_agg(application_name, ' ') from pg_stat_replication")
            .as_str()
        {
            "node-2" => Ok(()),
            others => Err(others.to_owned()),
        }
    });
    day.writes_go_on();
    day.cluster.node("node-1").kill_9_all().unwrap();
    assert_eq!(day.another_primary("node-1"), "node-2");
    day.writes_go_on();
    day.direct("node-2", "alter role replicator login");
    day.status("node-3 follows", |status| {
        status["nodes"].as_array().into_iter().flatten().any(|node| node["upstream"] == "node-2")
    });
    // Without synchronous replication nothing is promised of the last moments.
    day.stop.store(true, Ordering::Relaxed);
}

#[test]
fn the_death_of_the_promoted_node_is_survived_too() {
    let day = Day::begin(Some(1));
    day.cluster.node("node-1").kill_9_all().unwrap();
    let second = day.another_primary("node-1");
    day.cluster.node(&second).kill_9_all().unwrap();
    // The last standby has all that was acknowledged. Nobody is left to wait for, so writes stay held, and status says so.
    let last = if second == "node-2" { "node-3" } else { "node-2" };
    day.status("it is promoted and waits for a standby", |status| {
        status["primary"].is_null()
            && status["reason"].as_str().is_some_and(|why| why.contains("its first commit waits for 1 of"))
    });
    assert_eq!(day.direct(last, "select pg_is_in_recovery()"), "f");
    day.end(last);
}

/// The lock under which settings of a node are changed; whoever holds it stops a failover there.
const LOCK: &str = "SELECT pg_advisory_lock(120282511666031)";

#[test]
fn a_metako_that_is_killed_in_mid_failover_goes_on_when_it_is_back() {
    let day = Day::begin(Some(1));
    let holders: Vec<_> = ["node-2", "node-3"]
        .map(|name| {
            let node = day.cluster.node(name).clone();
            day.runtime.block_on(async {
                let client = node.connect_to(Cluster::DATABASE).await.unwrap();
                client.batch_execute(LOCK).await.unwrap();
                client
            })
        })
        .into();
    day.cluster.node("node-1").kill_9_all().unwrap();
    day.status("standbys are being frozen", |status| status["phase"] == "freezing");
    day.metako.signal(Signal::SIGKILL);
    eventually("it is dead, and lets go of its state directory", || {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", day.metako.pid())).unwrap_or_default();
        // The first thread may be dead while others still end, and hold what the process had open.
        let threads =
            std::fs::read_dir(format!("/proc/{}/task", day.metako.pid())).map_or(0, Iterator::count);
        if state.contains(") Z ") && threads <= 1 {
            Ok(())
        } else {
            Err(format!("{threads} threads: {state}"))
        }
    });
    let mut again = Again::start(&day.metako);
    day.status("it goes on with the freeze", |status| status["phase"] == "freezing");
    drop(holders);
    let primary = day.another_primary("node-1");
    day.writes_go_on();
    let status = day.metako.status().unwrap();
    assert_eq!(status["epoch"], 2, "{status}");
    assert!(again.0.try_wait().unwrap().is_none());
    day.end(&primary);
}

/// A second process with the first one's configuration and state.
struct Again(Child);

impl Again {
    fn start(metako: &Metako) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metako"));
        command.arg("--config").arg(metako.config()).stdin(Stdio::null());
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
