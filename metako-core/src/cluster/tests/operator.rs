use super::fake::{Line, hooked, settings};
use super::lab::{Lab, Treat};
use crate::TimelineId;
use crate::cluster::{Action, DecisionKind, OperatorCommand};
use crate::config::FailoverMode;

fn lab() -> Lab {
    Lab::steady(hooked(settings()))
}

#[test]
fn a_person_begins_a_failover_where_metako_may_not() {
    let mut manual = settings();
    manual.failover.mode = FailoverMode::Manual;
    let mut lab = Lab::steady(manual);
    let asked = OperatorCommand::Failover { to: Some("b".into()), allow_data_loss: false };
    assert!(lab.refusal(&asked).contains("see `metako switchover`"));
    lab.kill("a");
    lab.pass(5000);
    assert_eq!(lab.phase(), "manual_needed");
    assert_eq!(lab.controller.examine(&asked).unwrap().candidate, Some("b".into()));
    lab.order(asked);
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
}

#[test]
fn not_even_a_person_replaces_a_primary_from_which_standbys_stream() {
    let mut lab = lab();
    lab.fake("a").line = Line::Silent;
    lab.pass(8000);
    assert_eq!(lab.primary(), Some("a"));
    let refusal = lab.refusal(&OperatorCommand::Failover { to: None, allow_data_loss: false });
    assert!(refusal.contains("still streams from a"), "{refusal}");
}

#[test]
fn a_paused_cluster_serves_and_decides_nothing() {
    let mut lab = lab();
    lab.order(OperatorCommand::Pause);
    lab.pass(1000);
    assert_eq!((lab.phase(), lab.primary()), ("paused", Some("a")));
    assert!(lab.refusal(&OperatorCommand::Switchover { to: None }).contains("paused"));
    lab.kill("a");
    lab.pass(20_000);
    assert!(lab.did("freeze").is_empty() && lab.did("promote").is_empty());
    lab.restart();
    lab.pass(20_000);
    assert!(lab.did("promote").is_empty(), "it is paused after a restart as well");
    lab.order(OperatorCommand::Resume);
    lab.pass(10_000);
    assert!(matches!(lab.primary(), Some("b" | "c")), "{:?}", lab.controller);
}

#[test]
fn a_paused_cluster_can_be_resumed_and_failed_over_by_a_person() {
    let mut lab = lab();
    lab.order(OperatorCommand::Pause);
    lab.pass(1000);
    lab.order(OperatorCommand::Resume);
    lab.pass(3000);
    assert_eq!((lab.phase(), lab.primary()), ("steady", Some("a")));
    lab.order(OperatorCommand::Pause);
    lab.pass(1000);
    lab.kill("a");
    lab.pass(3000);
    lab.order(OperatorCommand::Failover { to: Some("b".into()), allow_data_loss: false });
    lab.pass(5000);
    assert_eq!((lab.phase(), lab.primary()), ("paused", Some("b")), "{:?}", lab.controller);
}

#[test]
fn a_paused_primary_that_is_not_what_it_was_gets_no_writes() {
    let mut lab = lab();
    lab.order(OperatorCommand::Pause);
    lab.pass(1000);
    lab.fake("a").timeline = TimelineId(5);
    lab.pass(2000);
    assert!(lab.held().is_some_and(|reason| reason.contains("timeline 5")), "{:?}", lab.held());
}

#[test]
fn writes_stay_held_when_what_was_seen_to_be_wrong_is_looked_at_again() {
    let mut lab = lab();
    lab.order(OperatorCommand::Pause);
    lab.pass(1000);
    lab.fake("a").timeline = TimelineId(5);
    lab.pass(2000);
    assert!(lab.held().is_some());
    lab.forget();
    lab.order(OperatorCommand::Resume);
    lab.pass(5000);
    let opened = |action: &&Action| matches!(action, Action::Publish { view } if view.primary().is_some());
    assert_eq!(lab.actions.iter().find(opened), None, "not for a moment");
}

#[test]
fn a_failover_of_a_person_that_finds_the_primary_well_leaves_nobody_frozen() {
    let mut lab = lab();
    lab.order(OperatorCommand::Pause);
    lab.pass(1000);
    lab.kill("a");
    lab.pass(1500);
    lab.treat.insert("freeze", Treat::Keep);
    lab.order(OperatorCommand::Failover { to: None, allow_data_loss: false });
    lab.pass(300);
    assert_eq!(lab.phase(), "freezing", "{:?}", lab.controller);
    lab.revive("a");
    lab.pass(200);
    lab.release();
    lab.pass(10_000);
    assert_eq!((lab.phase(), lab.primary()), ("paused", Some("a")));
    for name in ["b", "c"] {
        assert!(lab.fake(name).setting("primary_conninfo").contains("5001"), "{name} streams again");
    }
}

#[test]
fn a_failover_of_a_person_rests_on_what_is_seen_after_the_command() {
    let mut lab = lab();
    lab.order(OperatorCommand::Pause);
    lab.pass(1000);
    lab.kill("a");
    lab.pass(1500);
    lab.revive("a");
    let asked = OperatorCommand::Failover { to: None, allow_data_loss: false };
    assert!(lab.controller.examine(&asked).is_ok(), "it was dead when it was last asked");
    lab.order(asked);
    lab.pass(5000);
    assert_eq!((lab.phase(), lab.primary()), ("paused", Some("a")));
    assert!(lab.did("sever").is_empty());
    assert!(lab.said(DecisionKind::Aborted).join("").contains("a answers well"));
}
