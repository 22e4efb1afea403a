//! Nodes that are not what they were: of another cluster, promoted by somebody else, or back with WAL that nobody else has.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod running;

use std::path::PathBuf;
use std::process::Command;

use metako_proxy::playground::{Builder, Node, StopMode};
use running::day::{Day, wait_streaming};
use running::eventually;

/// Another cluster's data in the place of a node's, which is down: as if its address led there now.
struct Swapped {
    node: Node,
    own: PathBuf,
}

impl Swapped {
    fn start(node: &Node, password: &str) -> Self {
        let other = Builder::new().replicas(0).start_blocking().unwrap();
        let stranger = other.node("node-1");
        stranger.sql(&format!("ALTER ROLE postgres PASSWORD '{password}'")).unwrap();
        stranger.stop(StopMode::Fast).unwrap();
        let own = node.data_dir().with_extension("own");
        std::fs::rename(node.data_dir(), &own).unwrap();
        copy(stranger.data_dir(), node.data_dir());
        // Port and name are the node's.
        copy(&own.join("postgresql.conf"), &node.data_dir().join("postgresql.conf"));
        node.start().unwrap();
        Self { node: node.clone(), own }
    }

    /// No statement of a client of ours has come here.
    fn assert_untouched(&self) {
        let sql = "SELECT string_agg(query, '; ') FROM pg_stat_activity \
                   WHERE query LIKE '%ledger%' AND pid <> pg_backend_pid()";
        assert_eq!(self.node.sql(sql).unwrap(), None);
    }

    /// The node's own data again.
    fn put_back(self) {
        self.node.stop(StopMode::Fast).unwrap();
        std::fs::remove_dir_all(self.node.data_dir()).unwrap();
        std::fs::rename(&self.own, self.node.data_dir()).unwrap();
        self.node.start().unwrap();
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "cp {} {}: {status}", from.display(), to.display());
}

#[test]
fn a_node_of_another_cluster_gets_nothing_and_is_never_promoted() {
    let day = Day::begin(None);
    let node = day.node("node-3");
    node.stop(StopMode::Fast).unwrap();
    let stranger = Swapped::start(node, day.cluster.superuser_password());
    let status = day.status("it is seen for what it is", |status| {
        status["nodes"].as_array().into_iter().flatten().any(|node| node["role"] == "foreign")
    });
    let seen = status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == "node-3").unwrap();
    assert_eq!(seen["serves_reads"], false, "{status}");
    assert!(seen["reason"].as_str().unwrap().contains("another cluster"), "{status}");
    day.clients.all_go_on();
    day.clients.wait_for_more(100);
    day.node("node-1").stop(StopMode::Fast).unwrap();
    assert_eq!(day.another_primary("node-1"), "node-2");
    day.clients.all_go_on();
    stranger.assert_untouched();
    assert!(day.clients.errors().iter().all(|error| !error.contains("42P01")), "its table is not there");
    day.end("node-2");
}

#[test]
fn another_cluster_in_the_place_of_a_former_primary_gets_nothing() {
    let day = Day::begin(Some(1));
    let node = day.node("node-1");
    node.kill_9_all().unwrap();
    let primary = day.another_primary("node-1");
    let stranger = Swapped::start(node, day.cluster.superuser_password());
    day.role("node-1", "foreign");
    day.clients.all_go_on();
    day.clients.wait_for_more(100);
    assert_eq!(day.metako.status().unwrap()["primary"], primary.as_str());
    stranger.assert_untouched();
    stranger.put_back();
    day.role("node-1", "stale_primary");
    day.clients.all_go_on();
    assert!(day.clients.errors().iter().all(|error| !error.contains("42P01")), "its table is not there");
    assert_eq!(day.failovers_begun(), 1);
    day.end(&primary);
}

#[test]
fn a_standby_that_a_person_promotes_gets_nothing() {
    let day = Day::begin(Some(1));
    day.direct("node-3", "select pg_promote()");
    day.role("node-3", "stale_primary");
    day.clients.all_go_on();
    let rows = day.direct("node-3", "select count(*) from ledger");
    day.clients.wait_for_more(100);
    assert_eq!(day.direct("node-3", "select count(*) from ledger"), rows);
    day.assert_no_failover();
    day.end("node-1");
}

/// Cuts the standbys off from `node-1`, which takes rows then that nobody else gets.
fn write_alone(day: &Day) {
    day.direct("node-1", "alter role replicator nologin");
    eventually("no standby streams", || {
        day.direct("node-1", "select pg_terminate_backend(pid) from pg_stat_replication");
        match day.direct("node-1", "select count(*) from pg_stat_replication").as_str() {
            "0" => Ok(()),
            some => Err(some.to_owned()),
        }
    });
    let extra = "set synchronous_commit = local; insert into ledger select -generate_series(1, 5000)";
    day.direct("node-1", extra);
}

#[test]
fn an_old_primary_with_rows_of_its_own_is_rewound_and_nobody_sees_them() {
    if !running::can_rejoin() {
        return;
    }
    let day = Day::begin(Some(1));
    write_alone(&day);
    day.node("node-1").kill_9_all().unwrap();
    eventually("a standby is promoted, and may be streamed from", || {
        for name in ["node-2", "node-3"] {
            if day.direct(name, "select pg_is_in_recovery()") == "f" {
                return Ok(day.direct(name, "set synchronous_commit = local; alter role replicator login"));
            }
        }
        Err(day.metako.log())
    });
    let primary = day.another_primary("node-1");
    day.clients.all_go_on();
    day.node("node-1").start().unwrap();
    day.role("node-1", "stale_primary");
    let own = "select count(*) from ledger where id < 0";
    let rows = day.direct("node-1", "select count(*) from ledger");
    assert_eq!(day.direct("node-1", own), "5000");
    day.clients.all_go_on();
    assert_eq!(day.direct("node-1", "select count(*) from ledger"), rows, "it takes no write");
    let survivor = if primary == "node-2" { "node-3" } else { "node-2" };
    wait_streaming(&day.cluster, &primary, &[survivor]);

    day.metako.rewrite(&running::configuration(&day.cluster, &running::hooks(&day.cluster)));
    assert!(day.metako.command(&["reload"]).status.success());
    let standbys = if primary == "node-2" { ["node-1", "node-3"] } else { ["node-1", "node-2"] };
    wait_streaming(&day.cluster, &primary, &standbys);
    day.metako.wait_until_open(2);
    for node in day.cluster.nodes() {
        assert_eq!(day.direct(node.name(), own), "0", "{}", node.name());
    }
    day.clients.all_go_on();
    day.end(&primary);
}

#[test]
fn another_cluster_in_the_place_of_the_primary_gets_nothing_although_nobody_decides() {
    let day = Day::begin(Some(1));
    let output = day.metako.command(&["pause"]);
    assert!(output.status.success(), "{output:?}");
    let node = day.node("node-1");
    node.stop(StopMode::Fast).unwrap();
    let stranger = Swapped::start(node, day.cluster.superuser_password());
    day.status("it is seen for what it is", |status| {
        status["reason"].to_string().contains("system identifier")
    });
    stranger.assert_untouched();
    assert!(day.clients.errors().iter().all(|error| !error.contains("42P01")), "its table is not there");
    stranger.put_back();
    let output = day.metako.command(&["resume"]);
    assert!(output.status.success(), "{output:?}");
    day.status("node-1 serves again", |status| status["primary"] == "node-1");
    day.clients.all_go_on();
    assert!(day.clients.errors().iter().all(|error| !error.contains("42P01")), "its table is not there");
    day.end("node-1");
}
