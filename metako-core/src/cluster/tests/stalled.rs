//! A primary that answers and whose commits do not end, while its standbys stream on.

use super::fake::{Line, settings, synchronous};
use super::lab::{Lab, Treat};
use super::observe::{observed, promote};
use crate::Epoch;
use crate::cluster::{DecisionKind, Health, ObservedRole, OperatorCommand, Phase};
use crate::config::{ClusterSettings, FailoverMode, NoVoter};

/// Just before patience ends, from a steady state: the calm interval, and `failover.stalled_after`.
const NOT_YET: u64 = 9_900;
/// Then this is enough.
const SOON: u64 = 4_000;

fn stalled(settings: ClusterSettings) -> Lab {
    let mut lab = Lab::steady(settings);
    lab.fake("a").line = Line::Stalled;
    lab
}

#[test]
fn it_is_replaced_after_stalled_after_and_not_before_although_all_standbys_stream() {
    for settings in [settings(), synchronous(1, NoVoter::Block)] {
        let mut lab = stalled(settings);
        lab.pass(NOT_YET);
        assert_eq!((lab.phase(), lab.primary()), ("suspect", Some("a")), "writes stay open meanwhile");
        let Phase::Suspect { reason, .. } = lab.controller.phase() else { unreachable!() };
        assert!(reason.contains("WriteStalled"), "what the policy says: {reason}");
        assert!(lab.said(DecisionKind::Suspected)[0].contains("a commit does not end"));
        assert!(lab.did("sever").is_empty() && lab.did("freeze").is_empty());
        lab.pass(SOON);
        assert_eq!((lab.primary(), lab.view.epoch), (Some("c"), Epoch(2)), "{:?}", lab.controller);
        assert_eq!(lab.did("sever").len(), 1);
    }
}

#[test]
fn its_clients_are_severed_before_anybody_is_frozen_and_all_are_frozen_before_the_choice() {
    let mut lab = stalled(synchronous(1, NoVoter::Block));
    lab.pass(NOT_YET + SOON);
    let order: Vec<&str> = lab
        .actions
        .iter()
        .map(crate::cluster::Action::name)
        .filter(|name| ["sever", "freeze", "promote"].contains(name))
        .collect();
    assert_eq!(order, ["sever", "freeze", "freeze", "promote"]);
}

#[test]
fn one_that_commits_again_in_time_stays_and_its_patience_begins_anew() {
    let mut lab = stalled(settings());
    for _ in 0..4 {
        lab.pass(8000);
        lab.fake("a").line = Line::Up;
        lab.pass(500);
        lab.fake("a").line = Line::Stalled;
    }
    assert_eq!((lab.primary(), lab.view.epoch), (Some("a"), Epoch(1)));
    lab.fake("a").line = Line::Up;
    lab.pass(1000);
    assert_eq!(lab.phase(), "steady");
    assert!(lab.did("sever").is_empty());
}

#[test]
fn one_that_commits_again_before_the_choice_calls_it_off() {
    let mut lab = stalled(synchronous(1, NoVoter::Block));
    lab.treat.insert("freeze", Treat::Keep);
    lab.pass(NOT_YET + SOON);
    assert_eq!((lab.phase(), lab.primary()), ("freezing", None), "streams do not call it off");
    lab.fake("a").line = Line::Up;
    lab.pass(1000);
    lab.release();
    lab.pass(3000);
    assert_eq!((lab.phase(), lab.primary()), ("steady", Some("a")), "{:?}", lab.controller);
    assert!(lab.said(DecisionKind::Aborted)[0].contains("a answers as a healthy primary again"));
    assert!(lab.did("promote").is_empty());
    for standby in ["b", "c"] {
        assert!(
            lab.fake(standby).setting("primary_conninfo").contains("port=5001"),
            "{standby} streams again"
        );
    }
}

#[test]
fn one_that_goes_silent_in_the_middle_is_judged_as_a_silent_one() {
    let mut lab = stalled(settings());
    lab.treat.insert("freeze", Treat::Fail);
    lab.pass(NOT_YET + SOON);
    assert_eq!(lab.phase(), "freezing");
    lab.fake("a").line = Line::Silent;
    lab.pass(5000);
    assert_eq!((lab.phase(), lab.primary()), ("suspect", Some("a")), "{:?}", lab.controller);
    assert!(lab.said(DecisionKind::Aborted)[0].contains("streams from a after all"));
}

#[test]
fn without_enough_voters_it_is_not_even_begun() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.fake("a").line = Line::Stalled;
    lab.fake("b").line = Line::Silent;
    lab.pass(60_000);
    assert_eq!((lab.phase(), lab.view.epoch), ("suspect", Epoch(1)));
    assert!(lab.held().unwrap().contains("1 of the 2 synchronous standbys that must answer do"));
    assert!(lab.did("sever").is_empty() && lab.did("freeze").is_empty());
    lab.fake("b").line = Line::Up;
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn a_standby_that_streams_and_cannot_be_frozen_stops_it_before_it_begins() {
    let mut lab = stalled(settings());
    lab.fake("b").fixed = true;
    lab.pass(60_000);
    assert_eq!((lab.phase(), lab.primary()), ("suspect", Some("a")));
    let vetoes = lab.said(DecisionKind::Vetoed);
    assert_eq!(vetoes.len(), 1, "said once: {vetoes:?}");
    assert!(
        vetoes[0].contains("b streams from a and could not be stopped: it cannot be frozen"),
        "{vetoes:?}"
    );
    assert!(lab.did("freeze").is_empty());
}

#[test]
fn nobody_is_chosen_while_a_standby_streams_on_although_it_was_told_to_stop() {
    let mut lab = stalled(settings());
    lab.fake("b").deaf = true;
    lab.pass(60_000);
    assert_eq!((lab.phase(), lab.primary()), ("freezing", None));
    assert!(lab.held().unwrap().contains("b could not be frozen and streams from a"), "{:?}", lab.held());
    lab.fake("b").deaf = false;
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn the_budget_and_the_mode_hold_for_it_and_a_person_may_at_once() {
    let mut rationed = settings();
    rationed.failover.budget.0 = 0;
    let mut manual = settings();
    manual.failover.mode = FailoverMode::Manual;
    for (settings, why) in [(rationed, "failover.budget"), (manual, "failover.mode is manual")] {
        let mut lab = stalled(settings);
        lab.pass(NOT_YET + SOON);
        assert_eq!(lab.phase(), "manual_needed");
        assert!(lab.held().unwrap().contains(why), "{:?}", lab.held());
        lab.order(OperatorCommand::Failover { to: Some("b".into()), allow_data_loss: false });
        lab.pass(3000);
        assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
    }
    let mut lab = stalled(settings());
    lab.pass(3000);
    lab.order(OperatorCommand::Failover { to: Some("b".into()), allow_data_loss: false });
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"), "long before patience ends: {:?}", lab.controller);
}

#[test]
fn after_the_failover_it_comes_back_as_a_stale_primary() {
    let mut lab = stalled(synchronous(1, NoVoter::Block));
    lab.pass(NOT_YET + SOON);
    let reason = match &lab.view.node("a").unwrap().health {
        Health::Unseen { reason } => reason.clone(),
        other => panic!("{other:?}"),
    };
    assert!(reason.contains("a commit does not end"), "{reason}");
    lab.fake("a").line = Line::Up;
    lab.write("a", 500);
    lab.pass(5000);
    assert_eq!((lab.phase(), lab.primary(), lab.view.epoch), ("steady", Some("c"), Epoch(2)));
    assert_eq!(lab.view.node("a").unwrap().role, ObservedRole::StalePrimary);
}

#[test]
fn where_others_promote_it_is_held_and_left_after_the_same_patience() {
    let mut lab = stalled(observed());
    lab.pass(NOT_YET);
    assert_eq!(lab.primary(), Some("a"));
    lab.pass(SOON);
    assert!(lab.held().unwrap().contains("whoever manages the cluster promotes a node"), "{:?}", lab.held());
    promote(&mut lab, "b", &["c"]);
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"));

    let mut lab = stalled(observed());
    promote(&mut lab, "b", &["c"]);
    lab.pass(NOT_YET);
    assert_ne!(lab.primary(), Some("b"), "not before");
    lab.pass(SOON);
    assert_eq!(lab.primary(), Some("b"));

    let mut lab = stalled(observed());
    lab.pass(NOT_YET + SOON);
    lab.fake("a").line = Line::Up;
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("a"), Epoch(1)), "nobody was promoted meanwhile");
}
