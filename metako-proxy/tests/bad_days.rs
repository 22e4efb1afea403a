//! Days on which a primary, a standby or metako itself does not simply die, on real clusters. Everything that was
//! acknowledged to a client is kept in a ledger and looked for afterwards.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod running;

use std::process::{Child, Command, Stdio};

use metako_proxy::playground::Cluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use running::day::{Day, for_long};
use running::{Metako, eventually};

fn postmaster(cluster: &Cluster, node: &str) -> Pid {
    let file = cluster.node(node).data_dir().join("postmaster.pid");
    let text = std::fs::read_to_string(file).unwrap();
    Pid::from_raw(text.lines().next().unwrap().parse().unwrap())
}

#[test]
fn a_frozen_primary_is_replaced_and_gets_nothing_when_it_thaws() {
    let day = Day::begin(Some(1));
    day.cluster.node("node-1").freeze().unwrap();
    let primary = day.another_primary("node-1");
    day.clients.wait_for_more(100);
    day.cluster.node("node-1").thaw().unwrap();
    day.role("node-1", "stale_primary");
    let rows = day.direct("node-1", "select count(*) from ledger");
    day.clients.wait_for_more(100);
    assert_eq!(day.direct("node-1", "select count(*) from ledger"), rows, "the thawed node takes no write");
    assert_eq!(day.metako.status().unwrap()["primary"], primary.as_str());
    day.end(&primary);
}

#[test]
fn a_primary_whose_postmaster_alone_is_stopped_is_not_replaced() {
    let day = Day::begin(None);
    let pid = postmaster(&day.cluster, "node-1");
    kill(pid, Signal::SIGSTOP).unwrap();
    for_long(|| day.clients.wait_for_more(100));
    day.assert_no_failover();
    kill(pid, Signal::SIGCONT).unwrap();
    day.end("node-1");
}

#[test]
fn a_primary_that_is_back_at_once_costs_no_row_whoever_is_primary_then() {
    let day = Day::begin(Some(1));
    let node = day.cluster.node("node-1");
    node.kill_9_all().unwrap();
    node.start().unwrap();
    let status = day.status("writes are open", |status| status["phase"] == "steady");
    day.clients.wait_for_more(100);
    let primary = status["primary"].as_str().unwrap().to_owned();
    if primary != "node-1" {
        day.role("node-1", "stale_primary");
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
    day.clients.wait_for_more(100);
    day.cluster.node("node-1").kill_9_all().unwrap();
    assert_eq!(day.another_primary("node-1"), "node-2");
    let from = day.clients.next_row();
    day.clients.wait_for_more(100);
    day.direct("node-2", "alter role replicator login");
    day.status("node-3 follows", |status| {
        status["nodes"].as_array().into_iter().flatten().any(|node| node["upstream"] == "node-2")
    });
    let port = day.node("node-2").port();
    day.clients.finish_asynchronous(from, &day.cluster, port);
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
    day.end_held(last);
}

/// The lock under which settings of a node are changed; whoever holds it stops a failover there.
const LOCK: &str = "SELECT pg_advisory_lock(120282511666031)";

#[test]
fn a_metako_that_is_killed_in_mid_failover_goes_on_when_it_is_back() {
    let day = Day::begin(Some(1));
    let holders: Vec<_> = ["node-2", "node-3"]
        .map(|name| {
            let node = day.cluster.node(name).clone();
            day.clients.runtime().block_on(async {
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
    day.clients.wait_for_more(100);
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
