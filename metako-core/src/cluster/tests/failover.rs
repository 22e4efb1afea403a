use super::fake::{Line, eager, settings};
use super::lab::{Lab, Treat};
use crate::cluster::{Action, DecisionKind, Event, JournalPhase, ObservedRole};
use crate::config::Priority;
use crate::{Epoch, Lsn, TimelineId};

#[test]
fn the_most_advanced_standby_is_promoted_and_the_other_follows_it() {
    let mut lab = Lab::steady(settings());
    lab.kill("a");
    lab.fake("b").reach(Lsn(2000));
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
    assert_eq!(lab.view.epoch, Epoch(2));
    let journal = lab.disk.clone().unwrap();
    assert_eq!((journal.timeline, journal.fork), (TimelineId(2), Some(Lsn(2000))));
    assert!(journal.attempts.is_empty() && journal.saved.is_empty(), "{journal:?}");
    assert_eq!(lab.view.node("c").unwrap().upstream, Some("b".into()));
    assert_eq!(lab.readers(), ["c"]);
    let follower = lab.fake("c");
    assert!(follower.setting("primary_conninfo").contains("user='repl'"));
    assert!(follower.setting("primary_conninfo").contains("port='5002'"));
    assert_eq!(follower.setting("primary_slot_name"), "slot_5003");
    assert_eq!(follower.setting("max_standby_streaming_delay"), "30000", "given back");
    let promoted = lab.fake("b");
    assert_eq!(promoted.setting("primary_slot_name"), "", "the token is not left behind");
    assert_eq!(promoted.setting("max_standby_streaming_delay"), "30000");
}

#[test]
fn the_steps_come_in_their_order() {
    let mut lab = Lab::steady(settings());
    lab.kill("a");
    lab.pass(2000);
    let steps: Vec<&str> = lab
        .actions
        .iter()
        .map(Action::name)
        .filter(|name| !matches!(*name, "probe" | "publish" | "record"))
        .collect();
    let expected = [
        "persist", "sever", "freeze", "freeze", "persist", "prepare", "repoint", "promote", "verify",
        "persist", "unfreeze", "persist",
    ];
    // The last entries of the journal forget what was given back, in the order in which that is seen.
    assert_eq!(steps[..expected.len()], expected);
    assert!(steps[expected.len()..].iter().all(|step| *step == "persist"), "{steps:?}");
    let held = lab
        .actions
        .iter()
        .position(|action| matches!(action, Action::Publish { view } if view.primary().is_none()));
    let first = lab.actions.iter().position(|action| action.name() == "persist");
    assert!(held < first, "writes are held before anything else");
    for kind in [
        DecisionKind::FailoverBegun,
        DecisionKind::Frozen,
        DecisionKind::Chosen,
        DecisionKind::Promoting,
        DecisionKind::Promoted,
        DecisionKind::Opened,
    ] {
        assert!(!lab.said(kind).is_empty(), "{kind:?}");
    }
}

#[test]
fn a_receive_position_that_went_back_after_a_restart_does_not_hide_what_was_replayed() {
    let mut lab = Lab::steady(settings());
    lab.kill("a");
    lab.fake("b").received = Some(Lsn(500));
    lab.fake("b").replayed = Lsn(3000);
    lab.fake("c").received = Some(Lsn(2000));
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn the_policy_may_prefer_a_node_that_is_behind_but_it_is_not_taken() {
    let mut lab = Lab::steady(settings());
    lab.kill("a");
    lab.fake("b").reach(Lsn(2000));
    lab.pass(2000);
    let vetoes = lab.said(DecisionKind::Vetoed);
    assert!(
        vetoes.iter().any(|veto| veto.contains("the policy prefers c, but b has WAL that c has not")),
        "{vetoes:?}"
    );
}

#[test]
fn a_most_advanced_standby_that_may_not_be_promoted_holds_writes() {
    let mut never = settings();
    never.nodes[1].priority = Priority::Never;
    let mut lab = Lab::steady(never);
    lab.kill("a");
    lab.fake("b").reach(Lsn(2000));
    lab.pass(10_000);
    assert!(lab.did("promote").is_empty());
    assert!(
        lab.held().unwrap().contains("the most advanced standby cannot be promoted: b is never"),
        "{:?}",
        lab.held()
    );
    lab.revive("a");
    lab.fake("a").replayed = Lsn(3000);
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn a_receiver_that_is_still_connecting_means_not_frozen() {
    let mut lab = Lab::steady(settings());
    lab.kill("a");
    lab.fake("c").connecting = true;
    lab.fake("c").reach(Lsn(9000));
    lab.pass(2000);
    assert_eq!(lab.phase(), "freezing");
    assert!(lab.held().unwrap().contains("c should be frozen as well"), "{:?}", lab.held());
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"), "the wait has an end, and who is not frozen is not counted");
}

#[test]
fn a_startup_process_that_still_replays_means_not_frozen() {
    let mut lab = Lab::steady(settings());
    lab.kill("a");
    for name in ["b", "c"] {
        lab.fake(name).startup_wait = Some("RecoveryConflictSnapshot".to_owned());
    }
    lab.pass(20_000);
    assert_eq!(lab.phase(), "freezing");
    assert!(lab.held().unwrap().contains("has not replayed all WAL"), "{:?}", lab.held());
    lab.fake("b").startup_wait = Some("RecoveryRetrieveRetryInterval".to_owned());
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn a_position_that_moves_after_the_choice_starts_it_again() {
    let mut lab = Lab::steady(settings());
    lab.latency = std::time::Duration::from_millis(10);
    lab.kill("a");
    // The first reports of the frozen standbys are on their way; the second ones will differ.
    for _ in 0..1000 {
        if lab.controller.failover.as_ref().is_some_and(|failover| failover.frozen.len() == 2) {
            break;
        }
        lab.pass(1);
    }
    lab.fake("b").reach(Lsn(1500));
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("b"), "not the one that was chosen first");
    assert_eq!(lab.disk.as_ref().unwrap().fork, Some(Lsn(1500)));
}

#[test]
fn an_old_primary_that_returns_before_the_choice_calls_it_off() {
    let mut lab = Lab::steady(settings());
    lab.fake("b").connecting = true;
    lab.fake("c").connecting = true;
    lab.kill("a");
    lab.pass(300);
    assert_eq!(lab.phase(), "freezing");
    lab.revive("a");
    lab.fake("b").connecting = false;
    lab.fake("c").connecting = false;
    lab.pass(500);
    assert_eq!(lab.primary(), Some("a"));
    assert_eq!(lab.view.epoch, Epoch(3), "epochs never go back");
    assert!(lab.said(DecisionKind::Aborted)[0].contains("a answers as a healthy primary again"));
    lab.pass(3000);
    for name in ["b", "c"] {
        let fake = lab.fake(name);
        assert_eq!(fake.setting("primary_conninfo"), "host=localhost port=5001 user=repl", "{name}");
        assert_eq!(fake.setting("max_standby_streaming_delay"), "30000");
    }
    assert!(lab.disk.as_ref().unwrap().saved.is_empty());
    assert!(lab.did("promote").is_empty());
}

#[test]
fn an_old_primary_that_returns_after_the_promotion_is_never_routed_to() {
    let mut lab = Lab::steady(settings());
    lab.kill("a");
    lab.pass(2000);
    lab.revive("a");
    lab.fake("a").replayed = Lsn(5000);
    lab.pass(20_000);
    assert_eq!(lab.primary(), Some("c"));
    assert_eq!(lab.view.node("a").unwrap().role, ObservedRole::StalePrimary);
    assert_eq!(lab.readers(), ["b"]);
    assert!(
        lab.said(DecisionKind::Refused)
            .iter()
            .any(|said| said.contains("a is a primary that the cluster does not follow"))
    );
    let touched = lab
        .actions
        .iter()
        .filter(|action| matches!(action, Action::Repoint { node, .. } if node.as_str() == "a"));
    assert_eq!(touched.count(), 0);
}

#[test]
fn an_old_primary_that_returns_during_the_promotion_does_not_stop_it() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("prepare", Treat::Keep);
    lab.kill("a");
    lab.pass(500);
    assert_eq!(lab.phase(), "promoting");
    lab.revive("a");
    lab.pass(500);
    lab.release();
    lab.pass(1000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn a_promotion_of_unknown_outcome_never_starts_a_second_candidate() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("promote", Treat::Unknown);
    lab.kill("a");
    lab.pass(30_000);
    assert_eq!(lab.phase(), "promoting");
    assert!(lab.did("promote").len() > 2, "asked for again");
    lab.pass(40_000);
    assert_eq!(lab.phase(), "manual_needed");
    assert!(lab.held().unwrap().contains("may still happen: no other standby is promoted"));
    let chosen = lab.did("promote");
    assert!(
        chosen.iter().all(
            |action| matches!(action, Action::Promote { promotion, .. } if promotion.node.as_str() == "c")
        )
    );
    let fake = lab.fake("c");
    fake.primary = true;
    fake.timeline = TimelineId(2);
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("c"), "when it turns up promoted it is taken");
}

#[test]
fn a_promotion_that_answers_unknown_but_happened_is_taken() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("promote", Treat::DoneUnknown);
    lab.kill("a");
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("c"));
    assert!(lab.kinds().contains(&DecisionKind::Retried));
}

#[test]
fn a_candidate_that_dies_during_its_promotion_is_awaited_and_nobody_else_promoted() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("promote", Treat::Unknown);
    lab.kill("a");
    lab.pass(200);
    assert_eq!(lab.phase(), "promoting");
    lab.kill("c");
    lab.pass(20_000);
    assert_eq!(lab.phase(), "promoting");
    assert!(lab.held().unwrap().contains("the outcome is unknown"));
    lab.treat.clear();
    lab.revive("c");
    lab.pass(10_000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn a_token_that_somebody_changed_stops_the_promotion() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("promote", Treat::Unknown);
    lab.kill("a");
    lab.pass(200);
    lab.fake("c").settings.insert("primary_slot_name".to_owned(), "metako_epoch_9".to_owned());
    lab.pass(1000);
    assert_eq!(lab.phase(), "manual_needed");
    assert!(lab.held().unwrap().contains("does not carry the token metako_epoch_2"));
}

#[test]
fn writes_open_only_when_the_first_commit_is_acknowledged() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("verify", Treat::Unknown);
    lab.kill("a");
    lab.pass(5000);
    assert_eq!(lab.phase(), "verifying");
    assert!(lab.held().is_some());
    lab.treat.clear();
    lab.pass(6000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn failing_freezes_and_severs_are_tried_again_with_pauses() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("sever", Treat::Fail);
    lab.kill("a");
    lab.pass(3000);
    assert_eq!(lab.phase(), "fencing");
    assert!(lab.did("freeze").is_empty(), "nothing before the fence");
    assert!((4..12).contains(&lab.did("sever").len()));
    lab.treat.clear();
    lab.treat.insert("freeze", Treat::Fail);
    lab.pass(6000);
    assert_eq!(lab.phase(), "freezing");
    lab.treat.clear();
    lab.pass(6000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn a_restart_goes_on_from_fencing_and_from_promoting() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("sever", Treat::Keep);
    lab.kill("a");
    lab.pass(200);
    lab.treat.clear();
    assert_eq!(lab.disk.as_ref().unwrap().phase, JournalPhase::Fencing);
    lab.restart();
    lab.pass(4000);
    assert_eq!(lab.primary(), Some("c"));
    assert_eq!(lab.view.epoch, Epoch(2));

    for (task, treat) in [
        ("prepare", Treat::Keep),
        ("repoint", Treat::Keep),
        ("promote", Treat::Unknown),
        ("promote", Treat::DoneUnknown),
        ("verify", Treat::Keep),
        ("unfreeze", Treat::Keep),
    ] {
        let mut lab = Lab::steady(settings());
        lab.treat.insert(task, treat);
        lab.kill("a");
        lab.pass(600);
        lab.treat.clear();
        lab.restart();
        lab.pass(5000);
        assert_eq!(lab.primary(), Some("c"), "{task} {treat:?}: {:?}", lab.controller);
        assert_eq!(lab.view.epoch, Epoch(2), "{task}");
        assert!(lab.disk.as_ref().unwrap().saved.is_empty(), "{task}: {:?}", lab.disk);
        assert_eq!(lab.fake("c").setting("primary_slot_name"), "");
        assert_eq!(lab.view.node("b").unwrap().upstream, Some("c".into()), "{task}");
    }
}

#[test]
fn a_restart_in_fencing_finds_the_old_primary_well_and_calls_it_off() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("sever", Treat::Keep);
    lab.kill("a");
    lab.pass(200);
    lab.treat.clear();
    lab.revive("a");
    lab.restart();
    lab.pass(200);
    assert_eq!(lab.primary(), Some("a"));
    assert_eq!(lab.view.epoch, Epoch(3));
}

#[test]
fn a_standby_that_streams_after_all_calls_the_failover_off_without_trusting_the_primary() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("sever", Treat::Keep);
    lab.kill("a");
    lab.pass(200);
    lab.treat.clear();
    // The primary lives, but this proxy cannot reach it.
    lab.fake("a").reachable_by_others = true;
    lab.restart();
    lab.pass(3000);
    assert!(lab.said(DecisionKind::Aborted)[0].contains("streams from a after all"));
    assert_eq!(lab.phase(), "suspect");
    assert!(lab.held().is_some(), "this process has not seen a healthy primary");
    assert!(lab.did("promote").is_empty());
}

#[test]
fn a_standby_that_metako_froze_is_no_witness_against_the_primary() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("unfreeze", Treat::Fail);
    lab.fake("c").line = Line::Silent;
    lab.fake("b").connecting = true;
    lab.kill("a");
    lab.pass(1000);
    assert_eq!(lab.phase(), "freezing");
    lab.fake("b").connecting = false;
    lab.revive("a");
    lab.pass(200);
    assert_eq!(lab.primary(), Some("a"), "called off, and b could not be unfrozen yet");
    lab.fake("a").line = Line::Silent;
    lab.pass(20_000);
    assert_eq!(lab.phase(), "suspect");
    assert_eq!(lab.said(DecisionKind::FailoverBegun).len(), 1, "{:?}", lab.said(DecisionKind::FailoverBegun));
    lab.treat.clear();
    lab.pass(10_000);
    assert!(!lab.fake("b").setting("primary_conninfo").is_empty(), "unfrozen although the primary is silent");
    assert_eq!(lab.phase(), "suspect", "b streams again: it is this proxy that is cut off");
}

#[test]
fn a_configuration_that_comes_during_a_failover_waits_for_its_end() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("promote", Treat::Unknown);
    lab.kill("a");
    lab.pass(300);
    assert_eq!(lab.phase(), "promoting");
    let mut fewer = settings();
    fewer.nodes.remove(0);
    lab.event(Event::Reconfigured { settings: std::sync::Arc::new(fewer), policy: eager() });
    assert_eq!(lab.view.nodes.len(), 3);
    lab.treat.clear();
    lab.pass(6000);
    assert_eq!(lab.primary(), Some("c"));
    assert_eq!(lab.view.nodes.len(), 2, "the old primary is gone with the new configuration");
}

#[test]
fn reads_go_on_while_there_is_no_primary() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("promote", Treat::Unknown);
    lab.kill("a");
    lab.pass(30_000);
    assert_eq!(lab.phase(), "promoting");
    assert_eq!(lab.readers(), ["b", "c"]);
}

/// Somebody promoted b by hand: its timeline 2 is not to be begun a second time on c.
#[test]
fn a_timeline_that_another_node_has_is_not_begun_again() {
    let mut lab = Lab::steady(settings());
    lab.fake("b").primary = true;
    lab.fake("b").timeline = TimelineId(2);
    lab.pass(1100);
    assert_eq!(lab.view.node("b").unwrap().role, ObservedRole::StalePrimary);
    lab.fake("b").line = Line::Silent;
    lab.kill("a");
    lab.pass(5000);
    assert!(lab.did("promote").is_empty());
    assert_eq!(lab.phase(), "manual_needed");
    assert!(lab.held().unwrap().contains("b is on timeline 2 already"), "{:?}", lab.held());
    lab.revive("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn a_timeline_that_another_node_begins_during_the_freeze_is_not_begun_again() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("sever", Treat::Keep);
    lab.kill("a");
    lab.pass(200);
    lab.fake("b").primary = true;
    lab.fake("b").timeline = TimelineId(2);
    lab.pass(200);
    lab.release();
    lab.pass(5000);
    assert!(lab.did("promote").is_empty());
    assert_eq!(lab.phase(), "manual_needed");
    lab.adopt("b");
    lab.pass(100);
    assert_eq!(lab.primary(), Some("b"));
}

/// Each failover goes on from a position below what an earlier primary once had.
#[test]
fn a_node_that_becomes_primary_again_is_measured_by_its_new_timeline() {
    let mut lab = Lab::steady(settings());
    lab.fake("a").replayed = Lsn(9000);
    lab.pass(1100);
    lab.fake("b").reach(Lsn(1000));
    lab.fake("c").reach(Lsn(1000));
    lab.kill("a");
    lab.fake("b").settings.insert("primary_conninfo".to_owned(), String::new());
    lab.pass(3000);
    let first = lab.primary().unwrap().to_owned();
    let fork = lab.disk.as_ref().unwrap().fork.unwrap();
    let upstream = lab.fake(&first).clone();
    // a is rewound and follows.
    let back = lab.fake("a");
    back.primary = false;
    back.timeline = TimelineId(2);
    back.replayed = fork;
    back.received = Some(upstream.position());
    back.settings.insert("primary_conninfo".to_owned(), format!("host=localhost port={}", upstream.port));
    lab.revive("a");
    lab.pass(3000);
    let other = if first == "b" { "c" } else { "b" };
    lab.fake(other).line = Line::Refused;
    lab.kill(&first);
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("a"), "{:?}", lab.held());
    assert!(lab.fake("a").position() < Lsn(9000));
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("a"), "{:?}", lab.held());
}
