//! Links that are cut between metako, the primary and its standbys, on real clusters: between metako and a node, between
//! the nodes, and both.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod running;

use metako_proxy::playground::{Link, Node, Relay};
use running::day::{Day, for_long, wait_streaming};
use running::eventually;

/// The links of one node, or one link of each node.
fn set<'a>(links: impl IntoIterator<Item = &'a Relay>, link: Link) {
    for relay in links {
        relay.set(link).unwrap();
    }
}

/// The links of metako, and those of the standbys, to `node-1`.
fn links(day: &Day) -> (&Relay, &Relay) {
    let node = day.node("node-1");
    (node.client_link(), node.replication_link())
}

/// Cuts metako off from the primary, which its standbys still hear.
fn cut_off_from_the_primary(link: Link) {
    let day = Day::with_links(Some(1));
    let (to_primary, _) = links(&day);
    set([to_primary], link);
    day.status("it is suspect, and metako says on which side the fault is", |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        status["phase"] == "suspect" && reason.contains("the way from here to it is broken, not the primary")
    });
    for_long(|| {
        day.clients.all_read_on();
        assert_eq!(day.metako.status().unwrap()["phase"], "suspect");
    });
    day.assert_no_failover();
    set([to_primary], Link::Open);
    day.clients.all_go_on();
    day.status("all is well", |status| status["phase"] == "steady");
    day.assert_no_failover();
    day.end("node-1");
}

#[test]
fn while_standbys_hear_the_primary_a_metako_that_does_not_promotes_nobody() {
    cut_off_from_the_primary(Link::Cut);
}

#[test]
fn a_way_that_refuses_is_no_dead_primary() {
    cut_off_from_the_primary(Link::Refused);
}

#[test]
fn a_metako_that_reaches_nobody_promotes_nobody() {
    let day = Day::with_links(Some(1));
    let nodes = day.cluster.nodes();
    set(nodes.iter().map(Node::client_link), Link::Cut);
    day.status("no node answers", |status| {
        let nodes = status["nodes"].as_array().into_iter().flatten();
        status["phase"] == "suspect" && nodes.into_iter().all(|node| node["health"] != "up")
    });
    for_long(|| assert_eq!(day.metako.status().unwrap()["phase"], "suspect"));
    // The nodes noticed nothing.
    wait_streaming(&day.cluster, "node-1", &["node-2", "node-3"]);
    set(nodes.iter().map(Node::client_link), Link::Open);
    day.clients.all_go_on();
    day.status("all is well", |status| status["phase"] == "steady");
    day.assert_no_failover();
    day.end("node-1");
}

/// Cuts the standbys off from a primary that metako reaches.
fn without_standbys(synchronous: Option<u32>) {
    let day = Day::with_links(synchronous);
    let (_, replication) = links(&day);
    set([replication], Link::Cut);
    eventually("the standbys notice", || {
        let receivers = ["node-2", "node-3"].map(|name| {
            day.direct(name, "select count(*) from pg_stat_wal_receiver where status = 'streaming'")
        });
        if receivers == ["0", "0"] { Ok(()) } else { Err(receivers.join(" ")) }
    });
    if synchronous.is_some() {
        eventually("commits wait for a standby", || {
            match day.direct("node-1", "select count(*) from pg_stat_activity where wait_event = 'SyncRep'") {
                none if none == "0" => Err(none),
                _ => Ok(()),
            }
        });
        for_long(|| assert_eq!(day.metako.status().unwrap()["primary"], "node-1"));
    } else {
        for_long(|| day.clients.wait_for_more(50));
    }
    day.assert_no_failover();
    set([replication], Link::Open);
    wait_streaming(&day.cluster, "node-1", &["node-2", "node-3"]);
    day.metako.wait_until_open(2);
    day.clients.all_go_on();
    day.assert_no_failover();
    day.end("node-1");
}

#[test]
fn a_primary_without_its_standbys_serves_on() {
    without_standbys(None);
}

#[test]
fn a_primary_whose_commits_wait_for_standbys_that_are_cut_off_is_not_replaced() {
    without_standbys(Some(1));
}

#[test]
fn a_primary_that_nobody_hears_is_replaced_and_what_it_still_says_is_too_late() {
    let day = Day::with_links(Some(1));
    let (to_primary, replication) = links(&day);
    set([to_primary, replication], Link::Cut);
    let primary = day.another_primary("node-1");
    day.clients.all_go_on();
    // It lives on where it is, and takes a commit that nobody waits for.
    day.direct("node-1", "set synchronous_commit = local; insert into ledger values (-1)");
    assert_eq!(day.direct("node-1", "select pg_is_in_recovery()"), "f");
    // What was under way to and from it arrives now.
    set([to_primary, replication], Link::Open);
    day.role("node-1", "stale_primary");
    let rows = day.direct("node-1", "select count(*) from ledger");
    day.clients.all_go_on();
    day.clients.wait_for_more(100);
    assert_eq!(day.direct("node-1", "select count(*) from ledger"), rows, "it takes no write any more");
    let survivor = if primary == "node-2" { "node-3" } else { "node-2" };
    wait_streaming(&day.cluster, &primary, &[survivor]);
    let port = day.metako.port;
    let read =
        running::client(&day.cluster, "psql", port, &["-XAtc", "select count(*) from ledger where id = -1"]);
    assert_eq!(read, "0\n", "what it took alone is shown to nobody");
    assert_eq!(day.failovers_begun(), 1);
    day.end(&primary);
}

#[test]
fn a_flapping_link_costs_no_failover() {
    let day = Day::with_links(Some(1));
    let (to_primary, _) = links(&day);
    for round in 0..5 {
        set([to_primary], if round % 2 == 0 { Link::Cut } else { Link::Refused });
        day.status("the primary is suspect", |status| status["phase"] == "suspect");
        set([to_primary], Link::Open);
        day.clients.all_write_on();
    }
    day.status("all is well", |status| status["phase"] == "steady");
    day.assert_no_failover();
    day.end("node-1");
}
