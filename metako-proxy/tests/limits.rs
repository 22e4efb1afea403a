//! How long a primary that starts is waited for, and how far behind who is promoted may be, on real clusters.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod running;

use metako_proxy::playground::{Builder, Link, StopMode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use running::day::{Day, for_long};
use running::{eventually, text};

/// A server process of the node dies, and the recovery from that waits for its archive.
fn recovers(day: &Day, node: &str) {
    std::fs::write(day.node(node).data_dir().join("recovery.signal"), "").unwrap();
    let pid = day.direct(node, "select pid from pg_stat_activity where backend_type = 'walwriter'");
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
}

#[test]
fn a_primary_that_recovers_for_ever_is_replaced() {
    let extra = "failover: { synchronous: any 1, start_timeout: 4s }";
    let cluster = running::cluster(2, None);
    // An archive that does not answer; PostgreSQL 13 reads that at its start only.
    let node = cluster.node("node-1");
    node.sql("alter system set restore_command = 'sleep 600'").unwrap();
    node.stop(StopMode::Fast).unwrap();
    node.start().unwrap();
    let day = Day::with(cluster, Some(1), extra);
    recovers(&day, "node-1");
    day.status("it is waited for, and that is said", |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        status["phase"] == "suspect" && reason.contains("4000 ms (failover.start_timeout)")
    });
    let primary = day.another_primary("node-1");
    day.clients.all_go_on();
    let refusal = day.node("node-1").sql("select 1").unwrap_err().to_string();
    assert!(day.node("node-1").is_running(), "it has not given up: {refusal}");
    assert_eq!(day.failovers_begun(), 1);
    // Somebody stops that, and starts it as what it was.
    day.node("node-1").kill_9_all().unwrap();
    std::fs::remove_file(day.node("node-1").data_dir().join("recovery.signal")).unwrap();
    day.node("node-1").start().unwrap();
    day.role("node-1", "stale_primary");
    day.clients.all_go_on();
    assert_eq!(day.metako.status().unwrap()["primary"], primary.as_str());
    day.end(&primary);
}

/// The standbys are cut off, the primary writes what they do not get, and dies when metako has seen that.
fn dies_far_ahead(day: &Day) {
    day.node("node-1").replication_link().set(Link::Cut).unwrap();
    eventually("the standbys notice", || {
        let receivers = ["node-2", "node-3"].map(|name| {
            day.direct(name, "select count(*) from pg_stat_wal_receiver where status = 'streaming'")
        });
        if receivers == ["0", "0"] { Ok(()) } else { Err(receivers.join(" ")) }
    });
    day.direct("node-1", "select pg_logical_emit_message(true, 'far ahead', repeat('x', 4000000))");
    day.status("it is said beforehand that nobody could follow", |status| {
        status["survival"].to_string().contains("failover.max_lag_on_failover")
    });
    day.node("node-1").kill_9_all().unwrap();
    let status = day.status("writes are held", |status| {
        status["phase"] == "freezing" && status.to_string().contains("bytes of WAL are missing")
    });
    assert!(status.to_string().contains("failover.max_lag_on_failover (1MiB)"), "{status}");
}

#[test]
fn standbys_that_are_far_behind_are_promoted_by_a_persons_word_alone() {
    let cluster = Builder::new().replicas(2).links().start_blocking().unwrap();
    let day = Day::with(cluster, None, "failover: { max_lag_on_failover: 1MiB }");
    dies_far_ahead(&day);
    for_long(|| {
        let status = day.metako.status().unwrap();
        assert!(status["primary"].is_null(), "{status}");
    });
    // Whoever starts it again has lost nothing.
    day.node("node-1").start().unwrap();
    day.clients.all_write_on();
    assert_eq!(day.metako.status().unwrap()["primary"], "node-1");

    dies_far_ahead(&day);
    let refused = day.metako.command(&["failover", "--yes"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("`metako failover --allow-data-loss`"), "{refused:?}");
    let foreseen = day.metako.command(&["failover", "--allow-data-loss", "--dry-run"]);
    assert!(text(&foreseen.stdout).contains("bytes of WAL are missing"), "{foreseen:?}");
    let accepted = day.metako.command(&["failover", "--allow-data-loss", "--yes"]);
    assert!(accepted.status.success(), "{accepted:?}");
    let primary = day.another_primary("node-1");
    let from = day.clients.next_row();
    day.clients.all_write_on();
    let port = day.node(&primary).port();
    let lost = day.clients.finish_asynchronous(from, &day.cluster, port);
    assert!(lost > 0, "the far end of the primary's history");
}
