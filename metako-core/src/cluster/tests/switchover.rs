use super::fake::{Line, hooked, settings, synchronous};
use super::lab::{Lab, Treat};
use crate::cluster::{Action, DecisionKind, Event, JournalPhase, OperatorCommand, SyncRule, Writes};
use crate::config::{ClusterSettings, NoVoter, Priority};
use crate::{Epoch, Lsn, NodeName, TimelineId};

fn ask(to: Option<&str>) -> OperatorCommand {
    OperatorCommand::Switchover { to: to.map(NodeName::from) }
}

fn lab() -> Lab {
    Lab::steady(hooked(settings()))
}

#[test]
fn another_node_becomes_primary_and_the_old_one_its_standby() {
    for (settings, to) in [
        (settings(), Some("b")),
        (settings(), None),
        (synchronous(1, NoVoter::Block), Some("b")),
        (synchronous(1, NoVoter::Block), None),
    ] {
        let mut lab = Lab::steady(hooked(settings));
        lab.commit(100);
        lab.order(ask(to));
        lab.pass(3000);
        let expected = to.unwrap_or("c");
        assert_eq!(lab.primary(), Some(expected), "{:?}", lab.controller);
        assert_eq!(lab.phase(), "steady");
        let journal = lab.disk.clone().unwrap();
        assert_eq!((journal.epoch, journal.timeline), (Epoch(3), TimelineId(2)));
        lab.pass(5000);
        assert!(!lab.fake("a").primary);
        assert_eq!(lab.view.node("a").unwrap().upstream, Some(expected.into()));
        assert!(lab.disk.as_ref().unwrap().displaced.is_empty());
        assert_eq!(lab.said(DecisionKind::Rejoined).len(), 1);
        assert_eq!(lab.readers().len(), 2, "{:?}", lab.readers());
    }
}

#[test]
fn the_steps_come_in_their_order_and_writes_are_held_only_after_the_checkpoint() {
    let mut lab = lab();
    lab.order(ask(Some("b")));
    lab.pass(3000);
    let steps: Vec<&str> = lab
        .actions
        .iter()
        .map(|action| match action {
            Action::Publish { view } => match &view.writes {
                Writes::Open { .. } => "open",
                Writes::Held { .. } => "held",
            },
            other => other.name(),
        })
        .filter(|name| !matches!(*name, "probe" | "record"))
        .collect();
    let mut steps = steps.into_iter();
    for expected in [
        "checkpoint",
        "held",
        "drain",
        "persist",
        "sever",
        "stop",
        "freeze",
        "prepare",
        "promote",
        "verify",
        "open",
    ] {
        assert!(steps.any(|step| step == expected), "{expected} is missing or out of order");
    }
}

#[test]
fn a_node_that_was_asked_for_and_is_behind_gets_what_it_lacks_before_the_stop() {
    let mut lab = lab();
    lab.fake("b").reachable_by_others = false;
    lab.write("a", 500);
    lab.fake("b").reachable_by_others = true;
    lab.order(ask(Some("b")));
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"));
    assert_eq!(lab.disk.as_ref().unwrap().fork, Some(Lsn(1500)));
}

#[test]
fn a_primary_that_goes_on_writing_by_itself_does_not_run_away_from_the_candidate() {
    let mut lab = lab();
    lab.treat.insert("drain", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(500);
    lab.fake("b").reachable_by_others = false;
    lab.release();
    lab.pass(200);
    // From here on b is always behind, but it has what there was when the last transaction had ended.
    lab.fake("b").received = Some(lab.nodes[&NodeName::from("a")].position());
    lab.fake("a").replayed.0 += 100_000;
    assert_eq!(lab.phase(), "draining");
    lab.fake("b").reachable_by_others = true;
    lab.fake("b").connecting = false;
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
}

#[test]
fn a_cluster_of_two_that_commits_nothing_alone_gets_its_old_primary_back_for_the_first_commit() {
    let mut two = hooked(synchronous(1, NoVoter::Block));
    two.nodes.truncate(2);
    let mut lab = Lab::new(two);
    lab.nodes.remove(&NodeName::from("c"));
    lab.start();
    lab.pass(3000);
    assert_eq!(lab.phase(), "steady", "{:?}", lab.controller);
    lab.commit(10);
    lab.order(ask(None));
    lab.pass(20_000);
    assert_eq!((lab.primary(), lab.phase()), (Some("b"), "steady"), "{:?}", lab.controller);
    assert_eq!(lab.view.node("a").unwrap().upstream, Some("b".into()));
}

#[test]
fn transactions_that_do_not_end_call_it_off_and_the_primary_serves_on() {
    let mut lab = lab();
    lab.open_transactions = true;
    lab.order(ask(Some("b")));
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.phase()), (Some("a"), "steady"));
    assert!(lab.did("stop").is_empty() && lab.did("freeze").is_empty());
    assert_eq!(lab.view.epoch, Epoch(3), "epochs do not go back");
    let said = lab.said(DecisionKind::Aborted).join("\n");
    assert!(said.contains("transactions did not end") && said.contains("a stays primary"), "{said}");
}

#[test]
fn a_candidate_that_does_not_catch_up_calls_it_off() {
    let mut lab = lab();
    lab.treat.insert("drain", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(1000);
    assert_eq!(lab.phase(), "draining");
    lab.fake("b").reachable_by_others = false;
    lab.write("a", 500);
    lab.release();
    lab.pass(30_000);
    assert_eq!((lab.primary(), lab.phase()), (Some("a"), "steady"));
    assert!(lab.said(DecisionKind::Aborted).join("").contains("b did not get all of a's WAL"));
    assert!(lab.did("stop").is_empty());
}

#[test]
fn a_checkpoint_that_fails_leaves_everything_as_it_is() {
    let mut lab = lab();
    lab.treat.insert("checkpoint", Treat::Fail);
    lab.order(ask(Some("b")));
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.phase(), lab.view.epoch), (Some("a"), "steady", Epoch(1)));
    assert!(lab.said(DecisionKind::Aborted).join("").contains("CHECKPOINT"));
    assert!(lab.did("drain").is_empty());
}

#[test]
fn a_stop_that_fails_leaves_a_well_primary_in_its_place() {
    for treat in [Treat::Fail, Treat::Unknown] {
        let mut lab = lab();
        lab.treat.insert("stop", treat);
        lab.order(ask(Some("b")));
        lab.pass(5000);
        assert_eq!((lab.primary(), lab.phase()), (Some("a"), "steady"));
        assert!(lab.did("promote").is_empty());
        assert!(lab.said(DecisionKind::Aborted).join("").contains("hooks.stop"));
        assert_eq!(lab.disk.as_ref().unwrap().phase, JournalPhase::Steady);
    }
}

#[test]
fn a_stop_that_took_effect_without_saying_so_becomes_a_failover() {
    let mut lab = lab();
    lab.treat.insert("stop", Treat::DoneUnknown);
    lab.order(ask(Some("b")));
    lab.pass(10_000);
    assert_eq!(lab.primary(), Some("c"), "by the policy, since it is a failover now: {:?}", lab.controller);
}

#[test]
fn a_stop_that_says_done_and_did_nothing_is_noticed() {
    let mut lab = lab();
    lab.treat.insert("stop", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(1000);
    assert_eq!(lab.phase(), "stopping");
    let Some(Action::Hook { id, .. }) = lab.kept.pop() else { panic!("a hook is awaited") };
    lab.event(Event::Done { id, outcome: Ok(crate::cluster::ActionOutcome::Done) });
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.phase()), (Some("a"), "steady"));
    assert!(lab.did("promote").is_empty());
}

#[test]
fn a_standby_that_has_still_to_notice_the_stop_does_not_call_it_off() {
    let mut lab = lab();
    lab.treat.insert("stop", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(1000);
    lab.fake("a").line = Line::Refused;
    let Some(Action::Hook { id, .. }) = lab.kept.pop() else { panic!("a hook is awaited") };
    lab.event(Event::Done { id, outcome: Ok(crate::cluster::ActionOutcome::Done) });
    lab.pass(60);
    lab.fake("a").reachable_by_others = false;
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
    assert!(lab.said(DecisionKind::Aborted).is_empty());
}

#[test]
fn a_primary_that_dies_while_it_is_drained_is_replaced_by_a_failover() {
    let mut lab = lab();
    lab.treat.insert("drain", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(500);
    assert_eq!(lab.phase(), "draining");
    lab.kill("a");
    lab.pass(5000);
    assert!(matches!(lab.primary(), Some("b" | "c")), "{:?}", lab.controller);
    assert!(lab.did("stop").is_empty());
}

#[test]
fn a_primary_that_fails_before_the_hold_is_replaced_by_a_failover() {
    let mut lab = lab();
    lab.treat.insert("checkpoint", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(500);
    lab.kill("a");
    lab.pass(5000);
    assert!(matches!(lab.primary(), Some("b" | "c")), "{:?}", lab.controller);
    lab.release();
    lab.pass(5000);
    assert!(lab.did("drain").is_empty(), "what was asked for before is forgotten");
}

#[test]
fn a_candidate_that_dies_when_the_primary_is_stopped_is_passed_over() {
    let mut lab = lab();
    lab.treat.insert("stop", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(1000);
    assert_eq!(lab.phase(), "stopping");
    lab.fake("b").line = Line::Refused;
    lab.fake("b").reachable_by_others = false;
    lab.release();
    lab.pass(8000);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.controller);
}

#[test]
fn a_proxy_that_dies_at_any_step_finishes_or_abandons_it() {
    let steps = ["checkpoint", "drain", "sever", "stop", "freeze", "prepare", "promote", "verify", "persist"];
    for step in steps {
        for done in [false, true] {
            let mut lab = lab();
            lab.commit(10);
            lab.treat.insert(step, if done { Treat::DoneUnknown } else { Treat::Keep });
            if step == "persist" && done {
                continue;
            }
            lab.order(ask(Some("b")));
            lab.pass(20);
            lab.treat.clear();
            lab.restart();
            lab.pass(20_000);
            assert_eq!(lab.phase(), "steady", "{step}: {:?}", lab.controller);
            assert!(lab.primary().is_some(), "{step}");
            let down = lab.nodes.values().filter(|fake| fake.line != Line::Up).count();
            assert_eq!(down, 0, "{step}: all are back");
            assert_eq!(lab.nodes.values().filter(|fake| fake.primary).count(), 1, "{step}");
        }
    }
}

#[test]
fn what_cannot_be_is_refused_with_the_reason() {
    type Change = fn(&mut ClusterSettings);
    let cases: [(Change, Option<&str>, &str); 4] = [
        (|settings| settings.hooks.stop = None, Some("b"), "`hooks.stop` is not configured"),
        (|settings| settings.nodes[1].priority = Priority::Never, Some("b"), "b is never to be promoted"),
        (|_| {}, Some("a"), "a is the primary already"),
        (|_| {}, Some("d"), "d is not in the configuration"),
    ];
    for (change, to, expected) in cases {
        let mut settings = hooked(settings());
        change(&mut settings);
        let mut lab = Lab::steady(settings);
        let refusal = lab.refusal(&ask(to));
        assert!(refusal.contains(expected), "{refusal}");
        lab.order(ask(to));
        lab.pass(3000);
        assert_eq!((lab.primary(), lab.view.epoch), (Some("a"), Epoch(1)), "{expected}");
        assert!(lab.said(DecisionKind::Vetoed).join("").contains(expected));
    }
}

#[test]
fn a_standby_that_does_not_stream_or_is_down_cannot_follow() {
    let mut lab = lab();
    lab.fake("b").reachable_by_others = false;
    lab.pass(3000);
    assert_eq!(lab.refusal(&ask(Some("b"))), "b does not stream");
    assert_eq!(lab.controller.examine(&ask(None)).unwrap().candidate, Some("c".into()));
    lab.fake("c").line = Line::Refused;
    lab.pass(3000);
    let refusal = lab.refusal(&ask(None));
    assert!(refusal.contains("no standby can follow a: b does not stream, c does not answer"), "{refusal}");
}

#[test]
fn synchronous_standbys_that_are_needed_have_to_be_ready() {
    let mut lab = Lab::steady(hooked(synchronous(1, NoVoter::Block)));
    assert!(matches!(lab.disk.as_ref().unwrap().sync, SyncRule::Quorum { .. }));
    lab.fake("c").line = Line::Refused;
    lab.pass(3000);
    assert_eq!(lab.refusal(&ask(Some("b"))), "1 of the 2 synchronous standbys that are needed are ready");
}

#[test]
fn commits_after_a_switchover_must_have_somebody_to_wait_for() {
    let mut lab = Lab::steady(hooked(synchronous(1, NoVoter::Block)));
    lab.treat.insert("rejoin", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("b"));
    let refusal = lab.refusal(&ask(Some("c")));
    assert!(
        refusal.contains("0 of the 1 synchronous standbys that commits on c would wait for"),
        "{refusal}"
    );
    lab.treat.clear();
    lab.release();
    lab.pass(5000);
    lab.order(ask(Some("c")));
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.controller);
}

#[test]
fn of_two_synchronous_nodes_the_old_primary_is_rejoined_before_writes_open() {
    let mut settings = hooked(synchronous(1, NoVoter::Block));
    settings.nodes.pop();
    let mut lab = Lab::steady(settings.clone());
    lab.order(ask(Some("b")));
    lab.pass(30_000);
    assert_eq!((lab.primary(), lab.phase()), (Some("b"), "steady"), "{:?}", lab.controller);
    assert!(lab.disk.as_ref().unwrap().displaced.is_empty());
    settings.hooks.rejoin = None;
    let lab = Lab::steady(settings);
    assert!(lab.refusal(&ask(Some("b"))).contains("would wait"));
}

#[test]
fn a_standby_that_commits_would_wait_for_and_that_dies_in_the_drain_calls_it_off() {
    let mut lab = Lab::steady(hooked(synchronous(1, NoVoter::Block)));
    lab.treat.insert("drain", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(500);
    assert_eq!(lab.phase(), "draining");
    lab.fake("c").line = Line::Refused;
    lab.pass(100);
    lab.release();
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.phase()), (Some("a"), "steady"));
    assert!(lab.did("stop").is_empty());
}

#[test]
fn a_plan_changes_nothing_and_names_every_step() {
    let lab = lab();
    let before = format!("{:?}", lab.controller);
    let plan = lab.controller.examine(&ask(None)).unwrap();
    assert_eq!(format!("{:?}", lab.controller), before);
    assert_eq!((plan.primary, plan.candidate), (Some("a".into()), Some("c".into())));
    let steps = plan.steps.join("\n");
    for part in ["checkpoint", "writes are held", "stop-it", "c is promoted to timeline 2", "rejoin-it"] {
        assert!(steps.contains(part), "{part}: {steps}");
    }
}

#[test]
fn two_switchovers_at_once_are_one() {
    let mut lab = lab();
    lab.treat.insert("checkpoint", Treat::Keep);
    lab.order(ask(Some("b")));
    assert_eq!(lab.refusal(&ask(Some("c"))), "a switchover to b is under way");
    lab.order(ask(Some("c")));
    lab.release();
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn a_switchover_does_not_use_up_the_budget() {
    let mut lab = lab();
    for to in ["b", "c", "a", "b"] {
        lab.order(ask(Some(to)));
        lab.pass(20_000);
        assert_eq!(lab.primary(), Some(to), "{:?}", lab.controller);
    }
    lab.kill("b");
    lab.pass(5000);
    assert!(lab.primary().is_some_and(|primary| primary != "b"), "{:?}", lab.held());
}

#[test]
fn nobody_who_lacks_an_answered_transaction_is_promoted_however_long_it_takes() {
    let mut lab = lab();
    lab.treat.insert("stop", Treat::Keep);
    lab.fake("c").reachable_by_others = false;
    lab.write("a", 500);
    lab.order(ask(Some("b")));
    lab.pass(500);
    assert_eq!(lab.phase(), "stopping");
    // It has still to replay what it received, so that it cannot be proven to stand still; c can.
    lab.fake("b").startup_wait = Some("DataFileRead".to_owned());
    lab.release();
    lab.pass(5000);
    lab.restart();
    lab.pass(20_000);
    assert!(lab.did("promote").is_empty());
    assert!(lab.held().is_some_and(|reason| reason.contains("start a again")), "{:?}", lab.held());
    lab.fake("b").startup_wait = Some("RecoveryWalStream".to_owned());
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
    assert_eq!(lab.disk.as_ref().unwrap().floor, None);
}

#[test]
fn a_stopped_primary_that_is_started_again_while_nobody_can_follow_serves_on() {
    let mut lab = lab();
    lab.treat.insert("stop", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(500);
    for name in ["b", "c"] {
        lab.fake(name).startup_wait = Some("DataFileRead".to_owned());
    }
    lab.release();
    lab.pass(5000);
    lab.revive("a");
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.phase()), (Some("a"), "steady"), "{:?}", lab.controller);
    assert_eq!(lab.disk.as_ref().unwrap().floor, None);
}

#[test]
fn an_old_primary_that_comes_up_as_a_standby_is_as_good_as_stopped() {
    let mut lab = lab();
    lab.treat.insert("stop", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(500);
    lab.fake("a").primary = false;
    lab.fake("a").reachable_by_others = false;
    lab.fake("a").received = Some(lab.nodes[&NodeName::from("a")].position());
    let Some(Action::Hook { id, .. }) = lab.kept.pop() else { panic!("a hook is awaited") };
    lab.event(Event::Done { id, outcome: Ok(crate::cluster::ActionOutcome::Done) });
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
}

#[test]
fn an_old_primary_that_is_only_slow_after_its_stop_is_not_taken_for_gone() {
    for line in [Line::Full, Line::NoLogin, Line::Starting] {
        let mut lab = lab();
        lab.treat.insert("stop", Treat::Keep);
        lab.order(ask(Some("b")));
        lab.pass(500);
        lab.fake("a").line = line;
        let Some(Action::Hook { id, .. }) = lab.kept.pop() else { panic!("a hook is awaited") };
        lab.event(Event::Done { id, outcome: Ok(crate::cluster::ActionOutcome::Done) });
        lab.pass(10_000);
        assert!(lab.did("promote").is_empty(), "{line:?}");
        lab.fake("a").line = Line::Up;
        lab.pass(3000);
        assert_eq!(lab.primary(), Some("a"), "{line:?}: {:?}", lab.controller);
    }
}

#[test]
fn a_plan_is_forgotten_when_a_synchronous_standby_dies_before_the_hold() {
    let mut lab = Lab::steady(hooked(synchronous(1, NoVoter::Block)));
    lab.treat.insert("checkpoint", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.fake("c").line = Line::Refused;
    lab.fake("c").reachable_by_others = false;
    lab.pass(3000);
    lab.release();
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.phase()), (Some("a"), "steady"));
    assert!(lab.did("drain").is_empty());
    assert!(lab.said(DecisionKind::Aborted).join("").contains("1 of the 2 synchronous standbys"));
}

#[test]
fn a_metako_that_ends_calls_a_switchover_off_unless_the_primary_is_being_stopped() {
    for (step, goes_on) in [("checkpoint", false), ("drain", false), ("stop", true)] {
        let mut lab = lab();
        lab.treat.insert(step, Treat::Keep);
        lab.order(ask(Some("b")));
        lab.pass(500);
        lab.event(Event::Stopping);
        lab.pass(100);
        lab.release();
        lab.pass(5000);
        let expected = if goes_on { "b" } else { "a" };
        assert_eq!(lab.primary(), Some(expected), "{step}: {:?}", lab.controller);
        assert!(lab.refusal(&ask(Some("c"))).contains("metako is stopping"));
    }
}

#[test]
fn nothing_goes_to_a_primary_that_may_still_be_stopping() {
    let mut lab = lab();
    lab.treat.insert("stop", Treat::Keep);
    lab.order(ask(Some("b")));
    lab.pass(500);
    lab.fake("a").line = Line::Silent;
    let Some(Action::Hook { id, .. }) = lab.kept.pop() else { panic!("a hook is awaited") };
    lab.forget();
    let unknown = crate::cluster::ActionFailure::Unknown("no answer".to_owned());
    lab.event(Event::Done { id, outcome: Err(unknown) });
    lab.pass(1500);
    let opened = |action: &&Action| matches!(action, Action::Publish { view } if view.primary().is_some());
    assert_eq!(lab.actions.iter().find(opened), None);
    assert!(lab.held().is_some_and(|reason| reason.contains("not known")), "{:?}", lab.held());
    lab.fake("a").line = Line::Up;
    lab.pass(1000);
    assert_eq!((lab.primary(), lab.phase()), (Some("a"), "steady"));
}
