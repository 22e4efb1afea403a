use std::time::Duration;

use super::fake::{Line, eager, settings, synchronous};
use super::lab::Lab;
use crate::cluster::{DecisionKind, Event, Health, ProbeId, ServerLoss};
use crate::config::{FailoverMode, NoVoter, Priority};
use crate::plugin::ProbeFailure;
use crate::{Epoch, Lsn, TimelineId};

#[test]
fn a_broken_connection_to_a_healthy_primary_changes_nothing() {
    let mut lab = Lab::steady(settings());
    lab.event(Event::ServerLost { node: "a".into(), loss: ServerLoss::Broken });
    lab.pass(200);
    assert_eq!(lab.phase(), "steady");
    assert!(lab.did("probe").len() >= 3, "it is looked at before the interval ends");
    assert!(lab.decisions.is_empty(), "{:?}", lab.decisions);
}

#[test]
fn one_failed_probe_is_suspicion_and_three_good_answers_lift_it() {
    let mut lab = Lab::steady(settings());
    lab.fake("a").line = Line::Refused;
    lab.event(Event::ServerLost { node: "a".into(), loss: ServerLoss::Refused });
    lab.pass(60);
    assert_eq!(lab.phase(), "suspect");
    assert_eq!(lab.primary(), Some("a"), "writes still go there");
    lab.fake("a").line = Line::Up;
    lab.pass(120);
    assert_eq!(lab.phase(), "suspect", "one good answer is not enough");
    lab.pass(200);
    assert_eq!(lab.phase(), "steady");
    assert!(lab.kinds().contains(&DecisionKind::Cleared));
    assert_eq!(lab.view.epoch, Epoch(1));
}

#[test]
fn while_a_standby_streams_a_primary_that_refuses_is_not_replaced() {
    let mut lab = Lab::steady(settings());
    lab.fake("a").line = Line::Refused;
    lab.fake("c").line = Line::Refused;
    lab.pass(120_000);
    assert_eq!(lab.phase(), "suspect");
    assert!(lab.did("sever").is_empty());
    let vetoes = lab.said(DecisionKind::Vetoed);
    assert_eq!(vetoes.len(), 1, "said once: {vetoes:?}");
    assert!(vetoes[0].contains("b still streams from a: it is this proxy that is cut off"), "{vetoes:?}");
    assert!(matches!(lab.view.node("a").unwrap().health, Health::Unseen { .. }), "unknown is not down");
}

#[test]
fn an_isolated_proxy_promotes_nobody() {
    let mut lab = Lab::steady(settings());
    for name in ["a", "b", "c"] {
        lab.fake(name).line = Line::Silent;
    }
    lab.pass(120_000);
    assert!(lab.did("sever").is_empty() && lab.did("promote").is_empty());
    assert!(lab.held().unwrap().contains("no standby answers this proxy"));
    for name in ["a", "b", "c"] {
        lab.fake(name).line = Line::Up;
    }
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("a"));
    assert_eq!(lab.view.epoch, Epoch(1));
}

#[test]
fn a_silent_primary_is_replaced_after_silent_after_when_its_standbys_lost_it() {
    let mut lab = Lab::steady(settings());
    lab.fake("a").line = Line::Silent;
    lab.fake("a").reachable_by_others = false;
    lab.pass(2400);
    assert_eq!(lab.view.epoch, Epoch(1), "not before");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn an_interval_shorter_than_the_timeout_still_sees_a_hang() {
    let mut hasty = settings();
    hasty.interval = Duration::from_millis(200);
    let mut lab = Lab::steady(hasty);
    lab.fake("a").line = Line::Silent;
    lab.fake("a").reachable_by_others = false;
    lab.pass(6000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn a_driver_that_never_answers_a_probe_counts_as_a_timeout() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("probe", super::lab::Treat::Keep);
    lab.pass(2000);
    assert_eq!(lab.phase(), "suspect");
    lab.release();
    lab.pass(2000);
    assert_eq!(lab.phase(), "steady", "late answers are ignored, later ones count");
}

#[test]
fn answers_to_older_probes_are_ignored() {
    let mut lab = Lab::steady(settings());
    let before = lab.view.clone();
    for id in 0..3 {
        let result = Err(ProbeFailure::Refused("old".to_owned()));
        lab.event(Event::Probed { id: ProbeId(id), node: "a".into(), sent: lab.now, result });
    }
    lab.event(Event::Probed {
        id: ProbeId(9999),
        node: "nobody".into(),
        sent: lab.now,
        result: Err(ProbeFailure::Refused("what".to_owned())),
    });
    assert_eq!(lab.view, before);
    assert_eq!(lab.phase(), "steady");
}

#[test]
fn a_primary_that_is_up_is_never_replaced_whatever_the_policy_wants() {
    for line in [Line::Full, Line::NoLogin] {
        let mut lab = Lab::steady(settings());
        lab.fake("a").line = line;
        lab.fake("a").reachable_by_others = false;
        lab.pass(30_000);
        assert_eq!(lab.phase(), "suspect", "{line:?}");
        assert_eq!(lab.primary(), Some("a"));
        assert_eq!(lab.view.epoch, Epoch(1));
    }
}

#[test]
fn in_manual_mode_a_person_decides_and_recovery_lifts_it() {
    let mut manual = settings();
    manual.failover.mode = FailoverMode::Manual;
    let mut lab = Lab::steady(manual);
    lab.kill("a");
    lab.pass(10_000);
    assert_eq!(lab.phase(), "manual_needed");
    assert!(lab.held().unwrap().contains("failover.mode is manual"));
    assert!(lab.did("sever").is_empty());
    lab.revive("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn in_manual_mode_the_automatic_mode_of_a_new_configuration_goes_on() {
    let mut manual = settings();
    manual.failover.mode = FailoverMode::Manual;
    let mut lab = Lab::steady(manual);
    lab.kill("a");
    lab.pass(1000);
    lab.event(Event::Reconfigured { settings: std::sync::Arc::new(settings()), policy: eager() });
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn without_an_electable_standby_writes_are_held() {
    let mut never = settings();
    never.nodes[1].priority = Priority::Never;
    never.nodes[2].priority = Priority::Never;
    let mut lab = Lab::steady(never);
    lab.kill("a");
    lab.pass(2000);
    assert_eq!(lab.phase(), "suspect");
    assert!(lab.held().unwrap().contains("no standby can be promoted: b is never to be promoted"));
    assert_eq!(lab.readers(), ["b", "c"], "reads go on");
    lab.revive("a");
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn a_primary_that_became_a_standby_or_went_back_needs_a_person() {
    let mut lab = Lab::steady(settings());
    lab.fake("a").primary = false;
    lab.fake("b").primary = true;
    lab.fake("b").timeline = TimelineId(2);
    lab.pass(1100);
    assert_eq!(lab.phase(), "manual_needed");
    let reason = lab.held().unwrap();
    assert!(reason.contains("a is in recovery now") && reason.contains("b answers as a primary"), "{reason}");
    lab.adopt("b");
    lab.pass(100);
    assert_eq!(lab.primary(), Some("b"));

    let mut lab = Lab::steady(settings());
    lab.fake("a").replayed = Lsn(10);
    lab.pass(1100);
    assert_eq!(lab.phase(), "manual_needed");
    assert!(lab.held().unwrap().contains("restored from a backup"), "{:?}", lab.held());
}

#[test]
fn the_budget_of_failovers_ends_in_a_persons_hands() {
    let mut lab = Lab::steady(settings());
    let mut rare = settings();
    rare.failover.budget = (1, Duration::from_mins(10));
    lab.event(Event::Reconfigured { settings: std::sync::Arc::new(rare), policy: eager() });
    lab.kill("a");
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("c"));
    lab.kill("c");
    lab.pass(5000);
    assert_eq!(lab.phase(), "manual_needed");
    assert!(lab.held().unwrap().contains("the budget of 1 failovers in 600s is used up"));
}

#[test]
fn a_replica_leaves_the_read_pool_at_once_when_it_refuses_and_by_threshold_when_silent() {
    let mut lab = Lab::steady(settings());
    lab.fake("b").line = Line::Refused;
    lab.event(Event::ServerLost { node: "b".into(), loss: ServerLoss::Refused });
    lab.pass(60);
    assert_eq!(lab.readers(), ["c"]);
    assert!(matches!(lab.view.node("b").unwrap().health, Health::Down { .. }));
    lab.fake("c").line = Line::Silent;
    lab.pass(1600);
    assert_eq!(lab.readers(), ["c"], "one time-out is no reason");
    lab.pass(5000);
    assert!(lab.readers().is_empty());
    assert_eq!(lab.phase(), "steady");
    lab.revive("b");
    lab.pass(1100);
    assert_eq!(lab.readers(), ["b"]);
}

#[test]
fn a_replica_that_refused_serves_no_reads_before_it_has_answered_well() {
    let mut lab = Lab::steady(settings());
    lab.fake("b").line = Line::Refused;
    lab.event(Event::ServerLost { node: "b".into(), loss: ServerLoss::Refused });
    lab.pass(60);
    assert_eq!(lab.readers(), ["c"]);
    // Something listens there again, and nobody knows yet what it is.
    lab.fake("b").line = Line::Silent;
    lab.pass(1600);
    assert_eq!(lab.readers(), ["c"]);
    lab.revive("b");
    lab.pass(1100);
    assert_eq!(lab.readers(), ["b", "c"]);
}

#[test]
fn standbys_that_answer_only_now_and_then_are_witnesses_all_the_same() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.fake("c").line = Line::Silent;
    lab.kill("a");
    lab.pass(60);
    // b has said that it lost the primary; its next probes time out, and only then c answers.
    lab.fake("b").line = Line::Silent;
    lab.pass(570);
    assert_eq!(lab.phase(), "suspect");
    lab.fake("c").line = Line::Up;
    lab.pass(550);
    assert!(lab.view.epoch > Epoch(1), "{:?}", lab.held());
    lab.fake("b").line = Line::Up;
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn a_standby_that_streamed_and_is_silent_since_is_no_witness() {
    let mut lab = Lab::steady(settings());
    lab.fake("a").line = Line::Silent;
    lab.pass(1700);
    assert_eq!(lab.phase(), "suspect");
    lab.fake("c").line = Line::Silent;
    lab.fake("a").reachable_by_others = false;
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.held());
}

#[test]
fn a_standby_that_was_gone_before_is_not_awaited() {
    let mut lab = Lab::steady(settings());
    lab.fake("c").line = Line::Silent;
    lab.pass(6000);
    lab.kill("a");
    lab.pass(150);
    assert!(lab.view.epoch > Epoch(1), "{}", lab.phase());
    lab.pass(1000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn a_standby_that_said_it_lost_the_primary_is_awaited_although_its_last_probe_timed_out() {
    let mut lab = Lab::steady(settings());
    lab.fake("b").reach(Lsn(2000));
    lab.fake("c").line = Line::Silent;
    // c's probe is on its way when a dies, so that its next one is the last to be answered.
    lab.pass(1010);
    lab.kill("a");
    lab.pass(60);
    lab.fake("b").line = Line::Silent;
    lab.pass(500);
    assert_eq!(lab.phase(), "suspect");
    lab.fake("c").line = Line::Up;
    lab.pass(480);
    assert!(lab.view.epoch > Epoch(1), "{:?}", lab.held());
    lab.fake("b").line = Line::Up;
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("b"), "it has more than c");
}

#[test]
fn many_probes_under_suspicion_do_not_empty_the_read_pool_sooner() {
    let mut lab = Lab::steady(settings());
    lab.fake("a").line = Line::Silent;
    lab.fake("b").line = Line::Silent;
    lab.pass(2600);
    assert_eq!(lab.phase(), "suspect");
    assert_eq!(lab.readers(), ["b", "c"], "three failures in a row, but not for three intervals");
    lab.pass(1000);
    assert_eq!(lab.readers(), ["c"]);
}

/// c streams from b and b from a; this proxy reaches c alone.
#[test]
fn a_standby_that_streams_from_another_one_is_no_witness_of_its_own() {
    let mut lab = Lab::new(settings());
    lab.fake("c").settings.insert("primary_conninfo".to_owned(), "host=localhost port=5002".to_owned());
    lab.start();
    lab.pass(3000);
    assert_eq!(lab.phase(), "steady");
    lab.fake("a").line = Line::Refused;
    lab.fake("b").line = Line::Silent;
    lab.pass(60_000);
    assert!(lab.did("sever").is_empty(), "a may live and write, and c still receives all of it");
    assert_eq!(lab.phase(), "suspect");
    lab.fake("b").line = Line::Up;
    lab.pass(2000);
    assert!(lab.did("sever").is_empty(), "b streams from a");
    lab.fake("a").reachable_by_others = false;
    lab.pass(3000);
    assert!(lab.primary().is_some_and(|primary| primary != "a"), "{:?}", lab.held());
}
