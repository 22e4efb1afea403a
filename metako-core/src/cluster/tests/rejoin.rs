use super::fake::{Line, hooked, settings};
use super::lab::{Lab, Treat};
use crate::cluster::{Action, DecisionKind, Event, HookKind, OperatorCommand};
use crate::{Lsn, TimelineId};

/// a died, c is primary on timeline 2.
fn after_failover() -> Lab {
    let mut lab = Lab::steady(hooked(settings()));
    lab.treat.insert("rejoin", Treat::Keep);
    lab.kill("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"));
    lab
}

/// The same, after the last attempt to rejoin a.
fn given_up() -> Lab {
    let mut lab = after_failover();
    lab.treat.insert("rejoin", Treat::Unknown);
    lab.forget();
    lab.restart();
    lab.pass(600_000);
    assert_eq!(rejoins(&lab), 5);
    lab
}

fn rejoins(lab: &Lab) -> usize {
    lab.did("rejoin").len()
}

#[test]
fn a_dead_primary_is_rejoined_once_after_a_checkpoint_of_the_new_one() {
    let mut lab = after_failover();
    assert_eq!(rejoins(&lab), 1);
    let order: Vec<&str> = lab.actions.iter().map(Action::name).collect();
    let at = |name: &str| order.iter().rposition(|step| *step == name);
    assert!(at("checkpoint") < at("rejoin") && at("verify") < at("checkpoint"), "{order:?}");
    let Some(Action::Hook { call, .. }) = lab.did("rejoin").first().copied().cloned() else { panic!() };
    assert_eq!((call.kind, call.timeline), (HookKind::Rejoin, TimelineId(2)));
    assert!(call.conninfo.unwrap().reveal().contains("port='5003'"));
    assert!(call.slot.unwrap().contains("metako_a"));
    lab.release();
    lab.pass(5000);
    assert_eq!(lab.view.node("a").unwrap().upstream, Some("c".into()));
    assert!(lab.disk.as_ref().unwrap().displaced.is_empty());
    lab.pass(60_000);
    assert_eq!(rejoins(&lab), 1);
}

#[test]
fn one_that_came_back_as_a_primary_is_rejoined() {
    let mut lab = after_failover();
    lab.treat.clear();
    lab.kept.clear();
    lab.restart();
    lab.revive("a");
    lab.pass(5000);
    assert!(!lab.fake("a").primary, "{:?}", lab.controller);
    assert_eq!(lab.said(DecisionKind::Rejoined).len(), 1);
}

#[test]
fn a_standby_past_the_fork_is_rejoined() {
    let mut lab = Lab::steady(hooked(settings()));
    lab.fake("b").line = Line::Silent;
    lab.fake("b").reachable_by_others = false;
    lab.kill("a");
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("c"));
    lab.fake("b").reach(Lsn(50_000));
    lab.revive("b");
    lab.pass(10_000);
    assert_eq!(lab.view.node("b").unwrap().upstream, Some("c".into()), "{:?}", lab.controller);
    assert_eq!(lab.fake("b").timeline, TimelineId(2));
}

#[test]
fn a_rejoin_that_fails_is_tried_a_few_times_and_left_to_a_person() {
    let lab = given_up();
    assert!(lab.said(DecisionKind::Refused).join("").contains("left to a person"));
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn one_that_comes_back_after_the_last_attempt_is_rejoined_all_the_same() {
    let mut lab = given_up();
    lab.forget();
    lab.pass(600_000);
    assert_eq!(rejoins(&lab), 0);
    lab.treat.clear();
    lab.revive("a");
    lab.pass(90_000);
    assert_eq!(rejoins(&lab), 1);
    assert_eq!(lab.view.node("a").unwrap().upstream, Some("c".into()), "{:?}", lab.controller);
}

#[test]
fn where_somebody_else_promoted_a_node_nobody_is_rejoined() {
    let mut lab = after_failover();
    lab.treat.clear();
    lab.kept.clear();
    lab.fake("b").reachable_by_others = false;
    lab.fake("b").timeline = TimelineId(3);
    lab.forget();
    lab.restart();
    lab.pass(60_000);
    assert_eq!(rejoins(&lab), 0, "{:?}", lab.controller);
}

#[test]
fn without_the_hook_nothing_is_done_to_a_former_primary() {
    let mut lab = Lab::steady(settings());
    lab.kill("a");
    lab.pass(3000);
    lab.revive("a");
    lab.pass(20_000);
    assert_eq!(rejoins(&lab), 0);
    assert!(lab.fake("a").primary);
    assert!(lab.disk.as_ref().unwrap().displaced.contains(&"a".into()));
}

#[test]
fn a_rejoin_that_hangs_does_not_stand_in_the_way_of_a_failover() {
    let mut lab = after_failover();
    assert_eq!(lab.kept.len(), 1, "the hook still runs");
    lab.kill("c");
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
    lab.release();
    lab.pass(10_000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn a_standby_that_may_be_tainted_is_left_alone() {
    let mut lab = after_failover();
    lab.restart();
    let mut journal = lab.disk.clone().unwrap();
    journal.tainted.push("a".into());
    lab.disk = Some(journal);
    lab.restart();
    lab.forget();
    lab.pass(60_000);
    assert_eq!(rejoins(&lab), 0);
}

#[test]
fn a_standby_that_was_away_while_the_primary_changed_is_not_left_with_the_former_one() {
    let mut lab = Lab::steady(hooked(settings()));
    lab.fake("b").line = Line::Refused;
    lab.fake("b").reachable_by_others = false;
    lab.pass(3000);
    lab.event(Event::Operator(OperatorCommand::Switchover { to: Some("c".into()) }));
    lab.pass(10_000);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.controller);
    assert_eq!(lab.view.node("a").unwrap().upstream, Some("c".into()));
    // It asks the former primary for its stream, and its slot is not there.
    lab.fake("b").connecting = true;
    lab.revive("b");
    lab.pass(3000);
    assert!(lab.did("repoint").is_empty(), "a cascade is given a moment");
    lab.pass(10_000);
    assert!(lab.fake("b").setting("primary_conninfo").contains("5003"), "{:?}", lab.fake("b").settings);
}

#[test]
fn one_that_recovers_after_its_rejoin_is_left_to_it() {
    let mut lab = after_failover();
    lab.treat.clear();
    lab.release();
    lab.fake("a").line = Line::Starting;
    lab.fake("a").reachable_by_others = false;
    lab.forget();
    lab.pass(600_000);
    assert_eq!(rejoins(&lab), 0, "{:?}", lab.controller);
    lab.revive("a");
    lab.pass(5000);
    assert!(lab.disk.as_ref().unwrap().displaced.is_empty());
}

#[test]
fn one_that_asks_to_be_tried_later_is_tried_for_as_long_as_it_takes() {
    let mut lab = after_failover();
    lab.treat.insert("rejoin", Treat::Fail);
    lab.forget();
    lab.restart();
    lab.pass(600_000);
    assert!(rejoins(&lab) > 8, "{}", rejoins(&lab));
    assert!(lab.said(DecisionKind::Refused).is_empty());
}

#[test]
fn slots_of_others_do_not_stay_on_a_node_that_is_a_standby_again() {
    let mut lab = after_failover();
    lab.treat.clear();
    lab.release();
    lab.pass(5000);
    let dropped = lab.did("drop_slots");
    let [Action::DropSlots { node, slots, .. }] = dropped.as_slice() else { panic!("{dropped:?}") };
    assert_eq!(node.as_str(), "a");
    assert!(slots.contains(&"slot_5002".to_owned()) && slots.len() == 2, "{slots:?}");
}

#[test]
fn a_rejoin_that_failed_too_often_is_tried_again_with_another_primary() {
    let mut lab = given_up();
    lab.treat.clear();
    lab.kill("c");
    lab.pass(10_000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
    lab.pass(60_000);
    assert_eq!(lab.view.node("a").unwrap().upstream, Some("b".into()));
}
