//! How much of what the primary was known to have the most advanced standby may lack.

use std::time::Duration;

use super::fake::{Line, hooked, settings, synchronous};
use super::lab::{Lab, Treat};
use crate::cluster::{DecisionKind, Journal, JournalPhase, OperatorCommand};
use crate::config::{ClusterSettings, FailoverMode, NoVoter};
use crate::{Epoch, Lsn, NodeName, TimelineId};

const LIMIT: u64 = 500;

fn limited(mut settings: ClusterSettings) -> ClusterSettings {
    settings.failover.max_lag_on_failover = Some(LIMIT);
    settings
}

fn failover(to: Option<&str>, allow_data_loss: bool) -> OperatorCommand {
    OperatorCommand::Failover { to: to.map(NodeName::from), allow_data_loss }
}

/// The standbys get nothing any more, and the primary goes on by so many bytes, which metako sees.
fn left_behind(settings: ClusterSettings, bytes: u64) -> Lab {
    let mut lab = Lab::steady(limited(settings));
    for standby in ["b", "c"] {
        lab.fake(standby).reachable_by_others = false;
    }
    lab.fake("a").replayed.0 += bytes;
    lab.pass(1100);
    lab
}

fn journal(lab: &Lab) -> Journal {
    lab.disk.clone().unwrap()
}

#[test]
fn beyond_the_limit_writes_are_held_until_the_primary_returns() {
    let mut lab = left_behind(settings(), LIMIT + 1);
    lab.kill("a");
    lab.pass(20_000);
    assert_eq!((lab.phase(), lab.view.epoch), ("freezing", Epoch(2)));
    let why = lab.held().unwrap();
    for words in [
        "at 0/3E8, and a was known to be at 0/5DD: 501 bytes of WAL are missing",
        "failover.max_lag_on_failover (500B)",
        "Start a again",
        "`metako failover --allow-data-loss`",
    ] {
        assert!(why.contains(words), "{words}: {why}");
    }
    assert_eq!(lab.said(DecisionKind::Vetoed).len(), 1, "said once");
    lab.revive("a");
    lab.pass(3000);
    assert_eq!((lab.phase(), lab.primary()), ("steady", Some("a")), "{:?}", lab.controller);
    assert_eq!(journal(&lab).reached, None);
    assert!(lab.did("promote").is_empty());
}

#[test]
fn what_a_standby_has_still_to_replay_is_not_taken_for_missing() {
    let mut lab = Lab::steady(limited(settings()));
    lab.write("a", 1 << 20);
    lab.pass(2000);
    lab.kill("a");
    for standby in ["b", "c"] {
        let fake = lab.fake(standby);
        fake.reachable_by_others = true;
        (fake.received, fake.replayed, fake.startup_wait) = (None, Lsn(1000), None);
        fake.started_at += 1000;
    }
    lab.pass(10_000);
    assert_eq!((lab.phase(), lab.primary()), ("freezing", None));
    for standby in ["b", "c"] {
        let fake = lab.fake(standby);
        fake.replayed = Lsn(1000 + (1 << 20));
        fake.startup_wait = Some("RecoveryWalStream".to_owned());
    }
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.controller);
}

#[test]
fn within_the_limit_and_without_one_the_most_advanced_is_promoted() {
    let mut lab = left_behind(settings(), LIMIT);
    lab.kill("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.controller);
    let mut lab = Lab::steady(settings());
    lab.fake("b").reachable_by_others = false;
    lab.fake("c").reachable_by_others = false;
    lab.fake("a").replayed.0 += 1 << 40;
    lab.pass(1100);
    lab.kill("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.controller);
}

#[test]
fn one_standby_that_is_near_is_enough() {
    let mut lab = left_behind(settings(), LIMIT + 1);
    lab.fake("b").received = Some(Lsn(1100));
    lab.kill("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
}

#[test]
fn a_person_is_told_what_is_lost_and_may_lose_it() {
    for late in [false, true] {
        let mut manual = settings();
        manual.failover.mode = FailoverMode::Manual;
        let mut lab = left_behind(manual, 2 * LIMIT);
        lab.kill("a");
        lab.pass(3000);
        let plan = lab.controller.examine(&failover(Some("b"), false)).unwrap();
        for words in ["1000 bytes of WAL are lost", "nobody is promoted without --allow-data-loss"] {
            assert!(plan.steps.iter().any(|step| step.contains(words)), "{plan:?}");
        }
        if late {
            lab.order(failover(Some("b"), false));
            lab.pass(3000);
            assert_eq!((lab.phase(), lab.primary()), ("freezing", None));
            lab.order(failover(None, true));
        } else {
            lab.order(failover(Some("b"), true));
        }
        lab.pass(3000);
        assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
        assert_eq!(lab.said(DecisionKind::FailoverBegun).len(), 1);
        assert_eq!(journal(&lab).reached, None);
    }
}

#[test]
fn with_synchronous_standbys_what_was_acknowledged_is_with_them_and_no_limit_holds() {
    let mut lab = left_behind(synchronous(1, NoVoter::Block), 2 * LIMIT);
    lab.kill("a");
    lab.fake("b").reachable_by_others = true;
    lab.fake("c").reachable_by_others = true;
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.controller);
}

/// b has all of it, and dies when it was told to freeze.
fn frozen_behind() -> Lab {
    let mut lab = left_behind(settings(), 2 * LIMIT);
    lab.fake("b").received = Some(Lsn(2000));
    lab.treat.insert("freeze", Treat::Keep);
    lab.kill("a");
    lab.pass(1000);
    assert_eq!(lab.phase(), "freezing");
    lab.fake("b").line = Line::Silent;
    lab.release();
    lab.pass(10_000);
    lab
}

#[test]
fn it_holds_for_those_who_are_frozen_in_the_end() {
    let mut lab = frozen_behind();
    let held = |lab: &Lab| {
        assert_eq!((lab.phase(), lab.primary()), ("freezing", None));
        assert!(lab.held().unwrap().contains("1000 bytes of WAL are missing"), "{:?}", lab.held());
    };
    held(&lab);
    lab.restart();
    lab.pass(10_000);
    held(&lab);
    assert!(lab.refusal(&failover(None, false)).contains("`metako failover --allow-data-loss`"));
    lab.fake("b").line = Line::Up;
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"), "who has it is back: {:?}", lab.controller);
}

#[test]
fn a_person_may_say_so_while_they_are_frozen_and_that_outlives_a_restart() {
    let mut lab = frozen_behind();
    assert!(lab.refusal(&failover(Some("a"), true)).contains("a is no standby of a"));
    let plan = lab.controller.examine(&failover(None, true)).unwrap();
    assert!(plan.steps.iter().any(|step| step.contains("1000 bytes of WAL are missing")), "{plan:?}");
    // What the standbys say after the choice comes too late for this process.
    lab.latency = Duration::from_millis(20);
    lab.order(failover(None, true));
    assert_eq!((journal(&lab).reached, &journal(&lab).phase), (None, &JournalPhase::Fencing));
    lab.restart();
    lab.pass(10_000);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.controller);
}

#[test]
fn a_persons_word_counts_where_the_limit_is_what_holds_it() {
    let mut lab = left_behind(settings(), 2 * LIMIT);
    lab.treat.insert("freeze", Treat::Keep);
    lab.kill("a");
    lab.pass(5000);
    assert!(lab.refusal(&failover(None, true)).contains("no standby is frozen yet"), "{:?}", lab.held());
    lab.release();
    lab.pass(1000);
    lab.fake("b").timeline = TimelineId(9);
    lab.pass(1000);
    assert!(lab.refusal(&failover(Some("b"), true)).contains("is not in its way"), "{:?}", lab.held());
    lab.fake("b").timeline = TimelineId(1);
    lab.pass(1000);
    lab.fake("b").line = Line::Silent;
    lab.pass(5000);
    assert!(lab.refusal(&failover(Some("b"), true)).contains("b does not answer"), "{:?}", lab.held());
}

/// The primary answers nobody, and goes on.
#[test]
fn what_a_standby_has_shown_the_primary_had() {
    let mut lab = Lab::steady(limited(settings()));
    lab.fake("a").line = Line::Full;
    lab.lagging = Some("c".into());
    lab.write("a", 2 * LIMIT);
    lab.pass(2000);
    lab.fake("b").line = Line::Silent;
    lab.kill("a");
    lab.pass(10_000);
    assert!(lab.held().unwrap().contains("1000 bytes of WAL are missing"), "{:?}", lab.held());
}

#[test]
fn a_metako_that_starts_when_the_primary_is_gone_knows_what_standbys_have() {
    let mut lab = left_behind(settings(), 2 * LIMIT);
    assert!(lab.did("persist").is_empty(), "nothing is written while it serves");
    lab.fake("a").line = Line::Refused;
    lab.restart();
    lab.pass(10_000);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.controller);
}

#[test]
fn a_switchover_needs_all_of_it_and_no_more() {
    let mut exact = hooked(settings());
    exact.failover.max_lag_on_failover = Some(0);
    let mut lab = Lab::steady(exact);
    lab.commit(100);
    lab.order(OperatorCommand::Switchover { to: Some("b".into()) });
    lab.pass(5000);
    assert_eq!((lab.phase(), lab.primary()), ("steady", Some("b")), "{:?}", lab.controller);
}

#[test]
fn it_is_said_beforehand() {
    let mut lab = left_behind(settings(), LIMIT + 1);
    let survival = lab.view.survival.clone();
    assert_eq!(survival.failures, 0);
    assert!(survival.reason.contains("failover.max_lag_on_failover"), "{survival:?}");
    for standby in ["b", "c"] {
        lab.fake(standby).reachable_by_others = true;
    }
    lab.pass(2000);
    assert_eq!(lab.view.survival.failures, 2, "{:?}", lab.view.survival);
}
