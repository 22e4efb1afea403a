//! Clusters that somebody else manages: a primary that was away, and changes of the mode.

use super::fake::{Line, settings};
use super::lab::Lab;
use super::observe::{observed, promote, reload};
use crate::cluster::OperatorCommand;
use crate::config::FailoverMode;
use crate::{Epoch, TimelineId};

#[test]
fn a_failover_that_is_called_off_serves_nobody_before_all_were_asked() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("freeze", super::lab::Treat::Keep);
    lab.kill("a");
    lab.pass(100);
    assert_eq!(lab.phase(), "freezing");
    lab.treat.clear();
    promote(&mut lab, "b", &[]);
    lab.revive("a");
    lab.settings = std::sync::Arc::new(observed());
    lab.forget();
    lab.restart();
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.phase()), (Some("b"), "steady"));
    let kept = lab.fake("b").setting("primary_conninfo").to_owned();
    assert!(kept.contains("port=5001"), "its own settings are as they were: {kept}");
}

#[test]
fn what_others_said_before_the_primary_came_back_does_not_count() {
    let mut lab = Lab::steady(observed());
    lab.kill("a");
    lab.pass(60_000);
    assert_eq!(lab.primary(), None);
    // b was a standby until now, and hangs when it is promoted.
    promote(&mut lab, "b", &[]);
    lab.fake("b").line = Line::Silent;
    lab.revive("a");
    for standby in ["b", "c"] {
        lab.fake(standby).settings.insert("primary_conninfo".to_owned(), String::new());
    }
    lab.pass(10_000);
    assert_eq!(lab.primary(), None);
    lab.fake("b").line = Line::Up;
    lab.pass(1000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("b"), Epoch(2)));
}

#[test]
fn where_no_timeline_tells_two_primaries_apart_a_person_does() {
    let mut lab = Lab::steady(observed());
    lab.kill("a");
    lab.pass(1000);
    lab.fake("c").primary = true;
    lab.pass(1000);
    assert!(lab.held().unwrap().contains("c says that it is a primary too"), "{:?}", lab.held());
    lab.revive("a");
    lab.pass(5000);
    assert_eq!(lab.primary(), None, "a does not serve beside c");
    lab.adopt("a");
    lab.pass(1000);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn a_pause_of_another_mode_ends_with_it() {
    let mut lab = Lab::steady(settings());
    lab.order(OperatorCommand::Pause);
    assert_eq!(lab.phase(), "paused");
    promote(&mut lab, "b", &["c"]);
    lab.fake("a").started_at += 1;
    reload(&mut lab, observed());
    assert_ne!(lab.primary(), Some("a"), "somebody may have been promoted in the pause");
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.phase()), (Some("b"), "steady"));
    lab.kill("b");
    promote(&mut lab, "c", &[]);
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn a_second_adoption_does_not_open_writes_before_the_first_ones_fence() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &["c"]);
    lab.treat.insert("sever", super::lab::Treat::Keep);
    lab.kill("a");
    lab.pass(3000);
    assert_eq!((lab.phase(), lab.primary()), ("discovering", None));
    lab.adopt("b");
    lab.pass(3000);
    assert_eq!(lab.primary(), None, "what a sent may still be on its way to a client");
    lab.release();
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn the_primary_may_follow_who_was_promoted_beside_it() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &[]);
    lab.pass(3000);
    assert_eq!(lab.disk.as_ref().unwrap().observed.rivals, ["b".into()]);
    let fake = lab.fake("a");
    (fake.primary, fake.timeline, fake.received) = (false, TimelineId(2), Some(fake.replayed));
    fake.settings.insert("primary_conninfo".to_owned(), "host=localhost port=5002 user=repl".to_owned());
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("b"), Epoch(2)));
}

#[test]
fn a_primary_that_was_restored_is_left_for_who_was_promoted() {
    let mut lab = Lab::steady(observed());
    lab.write("a", 500);
    lab.pass(2000);
    lab.fake("a").replayed = crate::Lsn(900);
    lab.fake("a").started_at += 1;
    lab.pass(2000);
    assert_eq!(lab.primary(), None);
    promote(&mut lab, "b", &["c"]);
    lab.pass(1000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn a_primary_that_fails_in_one_way_and_then_another_is_gone_in_the_end() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &["c"]);
    for line in [Line::Silent, Line::Starting, Line::Silent, Line::Starting, Line::Silent] {
        lab.fake("a").line = line;
        lab.pass(1000);
    }
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn what_was_held_stays_held_when_the_mode_ends() {
    let mut lab = Lab::steady(observed());
    for standby in ["b", "c"] {
        lab.fake(standby).line = Line::Silent;
    }
    lab.pass(5000);
    lab.kill("a");
    lab.pass(5000);
    lab.revive("a");
    lab.pass(3000);
    reload(&mut lab, settings());
    lab.pass(10_000);
    assert_eq!(lab.primary(), None);
    lab.fake("b").line = Line::Up;
    lab.fake("c").line = Line::Up;
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("a"));
    assert_eq!(lab.disk.as_ref().unwrap().observed, crate::cluster::Observed::default());
}

/// The primary was away, and others do not answer.
fn held() -> Lab {
    let mut lab = Lab::steady(observed());
    for standby in ["b", "c"] {
        lab.fake(standby).line = Line::Silent;
    }
    lab.pass(5000);
    lab.kill("a");
    lab.pass(5000);
    lab.revive("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), None);
    lab
}

#[test]
fn what_was_held_is_not_opened_by_another_mode_that_meets_a_failure_or_a_restart() {
    let manual = || {
        let mut settings = settings();
        settings.failover.mode = FailoverMode::Manual;
        settings
    };
    for (settings, restarts) in [(settings(), false), (manual(), false), (settings(), true)] {
        let mut lab = held();
        promote(&mut lab, "b", &[]);
        reload(&mut lab, settings);
        if restarts {
            lab.restart();
        }
        lab.pass(1000);
        // c answers, and does not stand with a.
        lab.fake("c").line = Line::Up;
        lab.fake("c").settings.insert("primary_conninfo".to_owned(), String::new());
        lab.fake("a").line = Line::Refused;
        lab.fake("a").reachable_by_others = false;
        lab.pass(1000);
        lab.revive("a");
        lab.pass(10_000);
        // Another standby may be promoted by the rules of that mode.
        assert_ne!(lab.primary(), Some("a"), "b may be the one");
    }
}

#[test]
fn one_silence_after_many_proofs_of_life_is_no_death() {
    for line in [Line::Full, Line::NoLogin] {
        let mut lab = Lab::steady(observed());
        lab.fake("a").reachable_by_others = false;
        lab.fake("a").line = line;
        lab.pass(20_000);
        promote(&mut lab, "b", &["c"]);
        lab.fake("a").line = Line::Silent;
        lab.pass(700);
        lab.fake("a").line = line;
        lab.pass(5000);
        assert_eq!(lab.view.epoch, Epoch(1), "{line:?}");
    }
}

#[test]
fn a_restored_primary_is_not_served_for_having_grown() {
    let mut lab = Lab::steady(observed());
    lab.write("a", 500);
    lab.pass(2000);
    lab.fake("a").replayed = crate::Lsn(900);
    lab.fake("a").started_at += 1;
    lab.pass(2000);
    lab.forget();
    for _ in 0..50 {
        lab.write("a", 20);
        lab.pass(100);
    }
    assert_eq!(lab.primary(), None);
    assert!(lab.decisions.len() < 5, "{:?}", lab.decisions);
    lab.adopt("a");
    lab.pass(1000);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn a_mode_that_comes_while_the_primary_fails_trusts_it_no_more() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("freeze", super::lab::Treat::Fail);
    // Nobody but the policy's patience stands between it and a failover.
    lab.fake("a").line = Line::Silent;
    lab.pass(1500);
    assert_eq!(lab.phase(), "suspect");
    reload(&mut lab, observed());
    promote(&mut lab, "b", &["c"]);
    lab.revive("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn a_person_who_was_called_for_a_switchover_by_others_may_change_the_mode() {
    let mut lab = Lab::steady(settings());
    promote(&mut lab, "b", &["a", "c"]);
    lab.pass(3000);
    assert_eq!((lab.phase(), lab.primary()), ("manual_needed", None));
    reload(&mut lab, observed());
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn a_pause_does_not_come_back_with_the_former_mode() {
    let mut lab = Lab::steady(settings());
    lab.order(OperatorCommand::Pause);
    reload(&mut lab, observed());
    lab.pass(3000);
    reload(&mut lab, settings());
    lab.pass(3000);
    lab.kill("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn who_was_promoted_and_hangs_then_is_not_forgotten() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "c", &[]);
    lab.pass(3000);
    lab.fake("c").line = Line::Silent;
    lab.kill("a");
    lab.pass(5000);
    lab.revive("a");
    lab.pass(5000);
    assert_eq!(lab.primary(), None);
    assert!(lab.held().unwrap().contains("c was promoted, and does not answer now"), "{:?}", lab.held());
}
