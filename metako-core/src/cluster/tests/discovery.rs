use std::sync::Arc;

use super::fake::{Line, eager, settings, synchronous};
use super::lab::{Lab, Treat};
use crate::cluster::{Action, Controller, DecisionKind, Journal, ObservedRole, SyncRule};
use crate::config::{NoVoter, RoleHint};
use crate::{Epoch, SystemId, TimelineId};

#[test]
fn writes_open_when_all_nodes_agree_and_the_journal_is_written() {
    let mut lab = Lab::new(settings());
    lab.treat.insert("persist", Treat::Keep);
    lab.start();
    assert!(lab.held().is_some(), "not before the journal is on disk");
    assert_eq!(lab.phase(), "discovering");
    lab.release();
    assert_eq!(lab.primary(), Some("a"));
    assert_eq!(lab.view.epoch, Epoch(1));
    assert_eq!(lab.readers(), ["b", "c"]);
    assert_eq!(lab.disk.as_ref().unwrap().timeline, TimelineId(1));
    assert!(lab.said(DecisionKind::Adopted)[0].contains("a alone is not in recovery"));
}

#[test]
fn a_journal_that_cannot_be_written_is_tried_again_and_nothing_opens() {
    let mut lab = Lab::new(settings());
    lab.treat.insert("persist", Treat::Fail);
    lab.start();
    lab.pass(2000);
    assert!(lab.held().is_some());
    assert!(lab.did("persist").len() > 3);
    assert!(lab.did("persist").len() < 12, "with growing pauses");
    lab.treat.clear();
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn a_missing_node_holds_writes_until_it_answers() {
    let mut lab = Lab::new(settings());
    lab.fake("c").line = Line::Refused;
    lab.start();
    assert!(lab.held().unwrap().contains("c does not answer"), "{:?}", lab.held());
    lab.pass(60_000);
    assert!(lab.held().is_some());
    lab.revive("c");
    lab.pass(1000);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn an_operator_may_adopt_a_primary_although_a_node_is_missing() {
    let mut lab = Lab::new(settings());
    lab.fake("c").line = Line::Refused;
    lab.start();
    lab.adopt("b");
    assert!(lab.said(DecisionKind::Vetoed)[0].contains("b is in recovery"));
    lab.adopt("nobody");
    lab.adopt("c");
    assert_eq!(lab.said(DecisionKind::Vetoed).len(), 3);
    lab.adopt("a");
    assert_eq!(lab.primary(), Some("a"));
    lab.adopt("a");
    assert!(lab.said(DecisionKind::Vetoed)[3].contains("nothing is to be adopted"));
}

#[test]
fn two_primaries_are_held_and_named() {
    let mut lab = Lab::new(settings());
    lab.fake("b").primary = true;
    lab.start();
    assert!(lab.held().unwrap().contains("a and b are not in recovery"));
    assert!(lab.readers().is_empty());
    lab.adopt("b");
    assert_eq!(lab.primary(), Some("b"));
    assert_eq!(lab.view.node("a").unwrap().role, ObservedRole::StalePrimary);
}

#[test]
fn no_primary_at_all_is_held_and_the_hint_is_mentioned() {
    let mut with_hint = settings();
    with_hint.nodes[0].role = Some(RoleHint::Primary);
    let mut lab = Lab::new(with_hint.clone());
    lab.fake("a").primary = false;
    lab.start();
    assert!(lab.held().unwrap().contains("`role` names a"), "{:?}", lab.held());

    with_hint.nodes[0].role = None;
    with_hint.nodes[1].role = Some(RoleHint::Primary);
    let mut lab = Lab::new(with_hint);
    lab.start();
    assert_eq!(lab.primary(), Some("a"), "PostgreSQL is the truth about roles");
    assert!(lab.said(DecisionKind::Adopted)[0].contains("`role` says b, which is out of date"));
}

#[test]
fn an_old_primary_that_is_alone_not_in_recovery_is_not_taken() {
    let mut lab = Lab::new(settings());
    lab.fake("b").timeline = TimelineId(2);
    lab.start();
    assert!(lab.held().unwrap().contains("b is on timeline 2, a on 1"), "{:?}", lab.held());
}

#[test]
fn a_node_of_another_cluster_is_refused() {
    let mut lab = Lab::new(settings());
    lab.fake("c").system_id = SystemId(78);
    lab.start();
    assert!(lab.held().unwrap().contains("different system identifiers"));
    lab.adopt("a");
    assert_eq!(lab.primary(), Some("a"));
    assert_eq!(lab.view.node("c").unwrap().role, ObservedRole::Foreign);
    assert_eq!(lab.readers(), ["b"]);
}

#[test]
fn with_a_journal_the_primary_alone_is_enough_and_the_epoch_stays() {
    let mut lab = Lab::steady(settings());
    lab.fake("c").line = Line::Refused;
    lab.restart();
    assert_eq!(lab.primary(), Some("a"));
    assert_eq!(lab.view.epoch, Epoch(1));
}

#[test]
fn a_primary_that_is_dead_at_the_start_is_failed_over_from_the_journal() {
    let mut lab = Lab::steady(settings());
    lab.fake("a").line = Line::Refused;
    lab.fake("a").reachable_by_others = false;
    lab.restart();
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"));
    assert_eq!(lab.view.epoch, Epoch(2));
}

fn with_journal(change: impl FnOnce(&mut Journal)) -> Lab {
    let mut lab = Lab::steady(settings());
    change(lab.disk.as_mut().unwrap());
    lab.restart();
    lab.pass(2000);
    lab
}

#[test]
fn a_journal_of_another_cluster_needs_a_person() {
    let lab = with_journal(|journal| journal.cluster = "other".to_owned());
    assert_eq!(lab.phase(), "manual_needed");
    assert!(lab.held().unwrap().contains("belongs to the cluster `other`"));
    let mut lab = with_journal(|journal| journal.system_id = SystemId(5));
    assert_eq!(lab.phase(), "manual_needed");
    assert!(lab.held().unwrap().contains("system identifier 77"), "{:?}", lab.held());
    lab.adopt("a");
    assert_eq!(lab.primary(), Some("a"));
    assert_eq!(lab.view.epoch, Epoch(2), "the epoch never goes back");
    let lab = with_journal(|journal| journal.primary = "gone".into());
    assert!(lab.held().unwrap().contains("gone, which is not in the configuration"));
}

#[test]
fn a_primary_on_another_timeline_than_the_journals_needs_a_person() {
    let lab = with_journal(|journal| journal.timeline = TimelineId(3));
    assert_eq!(lab.phase(), "manual_needed");
    assert!(lab.held().unwrap().contains("a is on timeline 1, the journal has 3"));
}

#[test]
fn the_state_can_be_printed() {
    let controller = Controller::new(Arc::new(settings()), eager(), None, crate::Tick::ZERO);
    assert!(format!("{controller:?}").contains("Discovering"));
}

/// A client may wait for the answer of the primary that nobody could reach; the adopted one serves when none can come.
#[test]
fn an_adopted_primary_serves_when_the_former_ones_connections_are_cut() {
    let mut lab = Lab::steady(settings());
    lab.fake("b").primary = true;
    lab.fake("b").timeline = TimelineId(2);
    lab.fake("a").line = Line::Refused;
    lab.fake("a").reachable_by_others = false;
    lab.pass(3000);
    assert_eq!(lab.phase(), "manual_needed", "{:?}", lab.held());
    lab.treat.insert("sever", Treat::Keep);
    lab.adopt("b");
    lab.pass(1000);
    assert!(lab.held().unwrap().contains("connections to a are being cut"), "{:?}", lab.held());
    assert!(matches!(lab.did("sever")[..], [Action::Sever { node, epoch, .. }]
        if node.as_str() == "a" && *epoch == lab.disk.as_ref().unwrap().epoch));
    lab.release();
    lab.pass(100);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn slots_of_the_former_primary_are_not_taken_for_those_of_an_adopted_one() {
    let mut lab = Lab::steady(settings());
    let lost =
        |lab: &mut Lab| drop(lab.fake("c").settings.insert("primary_conninfo".to_owned(), String::new()));
    lost(&mut lab);
    lab.pass(5000);
    assert!(matches!(lab.did("prepare")[..], [Action::Prepare { node, .. }] if node.as_str() == "a"));
    lab.fake("b").primary = true;
    lab.kill("a");
    for name in ["b", "c"] {
        lab.fake(name).timeline = TimelineId(2);
    }
    lost(&mut lab);
    lab.pass(3000);
    lab.forget();
    lab.adopt("b");
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.held());
    assert!(matches!(lab.did("prepare")[..], [Action::Prepare { node, .. }] if node.as_str() == "b"));
    assert_eq!(lab.did("repoint").len(), 1);
}

#[test]
fn a_primary_adopted_in_mid_promotion_does_not_inherit_the_rule_of_the_candidate() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.treat.insert("promote", Treat::Unknown);
    lab.kill("a");
    lab.pass(70_000);
    assert_eq!(lab.phase(), "manual_needed");
    lab.revive("a");
    lab.treat.insert("set_sync", Treat::Fail);
    lab.pass(1000);
    lab.adopt("a");
    assert_eq!(lab.primary(), Some("a"));
    assert_eq!(lab.disk.as_ref().unwrap().sync, SyncRule::Async);
    assert_eq!(lab.disk.as_ref().unwrap().tainted, ["c".into()]);
}
