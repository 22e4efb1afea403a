use std::sync::Arc;
use std::time::Duration;

use super::fake::{Line, eager, hooked, node, settings, synchronous};
use super::lab::{Lab, Treat};
use crate::cluster::{Action, DecisionKind, Event, ReadFitness};
use crate::config::{ClusterSettings, NoVoter};
use crate::{Lsn, TimelineId};

fn unfit(lab: &Lab, name: &str) -> String {
    match &lab.view.node(name).unwrap().reads {
        ReadFitness::Unfit { reason } => reason.clone(),
        ReadFitness::Fit => "fit".to_owned(),
    }
}

/// a died, c is primary on timeline 2; b missed the failover.
fn after_failover_without_b() -> Lab {
    let mut lab = Lab::steady(settings());
    lab.fake("b").line = Line::Silent;
    lab.kill("a");
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("c"));
    lab.forget();
    lab
}

#[test]
fn a_standby_that_missed_the_failover_is_repointed_when_it_is_not_past_the_fork() {
    let mut lab = after_failover_without_b();
    lab.fake("b").line = Line::Up;
    lab.pass(5000);
    assert!(lab.fake("b").setting("primary_conninfo").contains("port='5003'"));
    assert_eq!(lab.readers(), ["b"]);
    let repoints = lab.did("repoint");
    assert_eq!(repoints.len(), 1, "once is enough");
    assert!(!lab.said(DecisionKind::Repointed).is_empty());
}

#[test]
fn a_standby_past_the_fork_is_left_alone_and_serves_no_reads() {
    let mut lab = after_failover_without_b();
    lab.fake("b").reach(Lsn(50_000));
    lab.fake("b").line = Line::Up;
    lab.pass(10_000);
    assert!(lab.did("repoint").is_empty());
    assert!(lab.readers().is_empty());
    assert!(unfit(&lab, "b").contains("it has diverged and needs pg_rewind"), "{}", unfit(&lab, "b"));
    assert_eq!(lab.said(DecisionKind::Refused).len(), 1, "said once: {:?}", lab.said(DecisionKind::Refused));
}

/// A record of the primary is cut off: what b and c have of it reaches `received`. a died, c is primary on timeline 2.
fn after_a_cut_record(received: Lsn, settings: ClusterSettings) -> Lab {
    let mut lab = Lab::steady(settings);
    lab.treat.insert("rejoin", Treat::Keep);
    for name in ["b", "c"] {
        lab.fake(name).received = Some(received);
    }
    lab.kill("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"));
    assert_eq!(lab.disk.as_ref().unwrap().last_record, Some(Lsn(1000)));
    lab
}

#[test]
fn a_part_of_a_record_is_no_history() {
    let mut lab = after_a_cut_record(Lsn(9000), settings());
    assert_eq!(lab.fake("b").timeline, TimelineId(2));
    assert!(lab.said(DecisionKind::Refused).is_empty(), "{:?}", lab.said(DecisionKind::Refused));
    lab.kill("c");
    lab.pass(3000);
    assert_eq!(
        lab.primary(),
        Some("b"),
        "although the new timeline was shorter than what was received before"
    );
}

/// Before c is promoted it would feed b the part of the record that it has, and b would be where it must not be.
#[test]
fn nobody_is_pointed_at_a_candidate_with_a_part_of_a_record_in_the_next_segment_before_its_promotion() {
    let mut lab = Lab::steady(settings());
    lab.fake("b").received = Some(Lsn(9000));
    lab.fake("c").received = Some(Lsn(16 << 20));
    lab.kill("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"));
    let order: Vec<&str> = lab.actions.iter().map(Action::name).collect();
    let at = |name: &str| order.iter().position(|step| *step == name);
    assert!(at("promote").is_some() && at("promote") < at("repoint"), "{order:?}");
    assert_eq!(lab.fake("b").timeline, TimelineId(2));
}

#[test]
fn a_standby_with_a_part_of_a_record_in_the_next_segment_is_not_sent_into_its_end() {
    let mut lab = after_a_cut_record(Lsn(16 << 20), settings());
    lab.pass(60_000);
    assert!(lab.did("repoint").is_empty());
    assert!(unfit(&lab, "b").contains("hooks.rejoin helps"), "{}", unfit(&lab, "b"));
    assert_eq!(lab.said(DecisionKind::Refused).len(), 1, "said once: {:?}", lab.said(DecisionKind::Refused));
}

#[test]
fn a_standby_with_a_part_of_a_record_in_the_next_segment_is_rejoined() {
    let lab = after_a_cut_record(Lsn(16 << 20), hooked(settings()));
    let nodes: Vec<String> = lab
        .did("rejoin")
        .iter()
        .filter_map(|action| match action {
            Action::Hook { call, .. } => Some(call.node.to_string()),
            _ => None,
        })
        .collect();
    assert_eq!(nodes, ["a", "b"]);
}

#[test]
fn a_standby_that_follows_the_former_primary_serves_no_reads_before_it_is_repointed() {
    let mut lab = after_failover_without_b();
    lab.treat.insert("repoint", Treat::Keep);
    lab.revive("a");
    lab.fake("b").line = Line::Up;
    lab.pass(2000);
    assert_eq!(unfit(&lab, "b"), "it follows a, which does not follow the primary");
    lab.release();
    lab.pass(2000);
    assert_eq!(lab.readers(), ["b"]);
    assert!(lab.fake("b").setting("primary_conninfo").contains("port='5003'"));
}

#[test]
fn the_fork_is_remembered_over_a_restart() {
    let mut lab = after_failover_without_b();
    lab.fake("b").reach(Lsn(50_000));
    lab.fake("b").line = Line::Up;
    lab.restart();
    lab.pass(5000);
    assert!(lab.did("repoint").is_empty());
    assert!(unfit(&lab, "b").contains("diverged"));
}

#[test]
fn a_cascade_in_good_order_is_left_as_it_is() {
    let mut lab = Lab::new(settings());
    lab.fake("c").settings.insert("primary_conninfo".to_owned(), "host=localhost port=5002".to_owned());
    lab.start();
    lab.pass(5000);
    assert!(lab.did("repoint").is_empty());
    assert_eq!(lab.readers(), ["b", "c"]);
    assert_eq!(lab.view.node("c").unwrap().upstream, Some("b".into()));
}

#[test]
fn a_standby_without_upstream_is_given_one_with_its_slot() {
    let mut lab = Lab::steady(settings());
    lab.fake("b").settings.clear();
    lab.pass(3000);
    let order: Vec<&Action> = lab
        .actions
        .iter()
        .filter(|action| matches!(action, Action::Prepare { .. } | Action::Repoint { .. }))
        .collect();
    assert!(
        matches!(&order[..], [Action::Prepare { node, slots, .. }, Action::Repoint { .. }]
            if node.as_str() == "a" && slots.contains(&"metako_b".to_owned())),
        "{order:?}"
    );
    assert_eq!(lab.fake("b").setting("primary_slot_name"), "metako_b");
}

#[test]
fn a_standby_that_lags_or_lost_its_stream_leaves_the_read_pool() {
    let mut lab = Lab::steady(settings());
    lab.fake("b").connecting = true;
    lab.pass(9000);
    assert_eq!(lab.readers(), ["b", "c"]);
    lab.pass(3000);
    assert_eq!(lab.readers(), ["c"]);
    assert!(unfit(&lab, "b").contains("it receives nothing since"), "{}", unfit(&lab, "b"));
    lab.fake("b").connecting = false;
    lab.pass(1100);
    assert_eq!(lab.readers(), ["b", "c"]);
}

#[test]
fn a_returned_standby_that_is_no_voter_is_named() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.kill("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"));
    let upstream = lab.fake("c").clone();
    let returned = lab.fake("a");
    returned.primary = false;
    returned.timeline = TimelineId(2);
    returned.received = Some(upstream.position());
    returned.settings.insert("primary_conninfo".to_owned(), "host=localhost port=5003".to_owned());
    lab.revive("a");
    lab.pass(3000);
    assert!(
        lab.said(DecisionKind::SyncChanged)
            .iter()
            .any(|said| said.contains("a streams but is no synchronous voter"))
    );
    assert_eq!(lab.readers(), ["a", "b"]);
}

#[test]
fn nodes_come_and_go_with_the_configuration_but_not_the_primary() {
    let mut lab = Lab::steady(settings());
    let mut changed = settings();
    changed.nodes.remove(1);
    changed.nodes.push(node("d", 5004));
    changed.interval = Duration::from_millis(400);
    lab.event(Event::Reconfigured { settings: Arc::new(changed), policy: eager() });
    let names: Vec<&str> = lab.view.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["a", "c", "d"]);
    assert_eq!(lab.primary(), Some("a"));
    assert!(lab.said(DecisionKind::Reconfigured)[0].contains("b is removed, d is added"));

    let mut without = settings();
    without.nodes.remove(0);
    lab.event(Event::Reconfigured { settings: Arc::new(without), policy: eager() });
    assert_eq!(lab.view.nodes.len(), 3, "nothing of a refused configuration is taken");
    assert!(lab.said(DecisionKind::Reconfigured)[1].contains("a is the primary and cannot be removed"));
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn synchronous_replication_can_be_turned_on_and_off_and_strengthened() {
    let mut lab = Lab::steady(settings());
    let turn = |lab: &mut Lab, to| {
        lab.event(Event::Reconfigured { settings: Arc::new(to), policy: eager() });
        lab.pass(6000);
    };
    turn(&mut lab, synchronous(1, NoVoter::Block));
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), r#"ANY 1 ("b","c")"#);
    turn(&mut lab, synchronous(2, NoVoter::Block));
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), r#"ANY 2 ("b","c")"#);
    turn(&mut lab, synchronous(1, NoVoter::Block));
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), r#"ANY 1 ("b","c")"#);
    turn(&mut lab, settings());
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), "");
    assert_eq!(lab.disk.as_ref().unwrap().sync, crate::cluster::SyncRule::Async);
}

/// It streamed once, as a standby of an earlier primary; since then it was the primary itself.
#[test]
fn an_old_primary_that_comes_back_as_a_standby_serves_no_reads_before_it_streams() {
    let mut lab = Lab::steady(settings());
    lab.kill("a");
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("c"));
    lab.pass(8000);
    lab.kill("c");
    lab.pass(1500);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.held());
    let back = lab.fake("c");
    back.primary = false;
    back.started_at = 2;
    lab.revive("c");
    lab.fake("c").connecting = true;
    lab.pass(2000);
    assert!(lab.readers().is_empty(), "{:?}", lab.readers());
    assert!(unfit(&lab, "c").contains("has not been seen streaming"), "{}", unfit(&lab, "c"));
    lab.fake("c").connecting = false;
    lab.pass(3000);
    assert_eq!(lab.readers(), ["c"]);
}

#[test]
fn a_node_whose_slot_would_look_like_a_token_is_not_taken_for_a_frozen_one() {
    let mut odd = settings();
    odd.nodes[1] = node("epoch-2", 5002);
    let mut lab = Lab::new(odd);
    lab.fake("epoch-2").settings.clear();
    lab.start();
    lab.pass(5000);
    assert_eq!(lab.readers(), ["epoch-2", "c"]);
    assert_eq!(lab.fake("epoch-2").setting("primary_slot_name"), "metako_node_epoch_2");
    assert_eq!(lab.did("repoint").len(), 1);
}
