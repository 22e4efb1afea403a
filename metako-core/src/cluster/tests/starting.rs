//! A primary that says that it is starting or recovering, and whose standbys have lost it.

use std::time::Duration;

use super::fake::{Line, settings, synchronous};
use super::lab::{Lab, Treat};
use crate::cluster::{DecisionKind, OperatorCommand};
use crate::config::{ClusterSettings, NoVoter};
use crate::{Epoch, NodeName};

/// Just before `failover.start_timeout` ends.
const NOT_YET: u64 = 298_000;
/// Then this is enough.
const SOON: u64 = 6_000;

/// All processes of the primary's are gone but its postmaster, which recovers.
fn starting(settings: ClusterSettings) -> Lab {
    let mut lab = Lab::steady(settings);
    begin(&mut lab, Line::Starting);
    lab
}

fn begin(lab: &mut Lab, line: Line) {
    lab.fake("a").line = line;
    lab.fake("a").reachable_by_others = false;
}

#[test]
fn it_has_its_time_whatever_the_policy_wants_and_is_replaced_then() {
    for settings in [settings(), synchronous(1, NoVoter::Block)] {
        let mut lab = starting(settings);
        lab.pass(NOT_YET);
        assert_eq!((lab.phase(), lab.view.epoch), ("suspect", Epoch(1)));
        let vetoes = lab.said(DecisionKind::Vetoed);
        assert_eq!(vetoes.len(), 1, "said once: {vetoes:?}");
        assert!(
            vetoes[0].contains("a is starting or recovering, and has 300s for that (failover.start_timeout)"),
            "{vetoes:?}"
        );
        assert!(lab.did("sever").is_empty() && lab.did("freeze").is_empty());
        lab.pass(SOON);
        assert_eq!((lab.primary(), lab.view.epoch), (Some("c"), Epoch(2)), "{:?}", lab.controller);
    }
}

#[test]
fn without_a_limit_it_is_waited_for_without_end() {
    let mut patient = settings();
    patient.failover.start_timeout = None;
    let mut lab = starting(patient);
    for _ in 0..20 {
        lab.pass(60_000);
    }
    assert_eq!((lab.phase(), lab.view.epoch), ("suspect", Epoch(1)));
    assert!(lab.said(DecisionKind::Vetoed)[0].contains("failover.start_timeout: none"));
}

#[test]
fn one_that_recovers_again_and_again_has_no_more_time_than_one_that_recovers_once() {
    let mut lab = starting(settings());
    for _ in 0..149 {
        begin(&mut lab, Line::Silent);
        lab.pass(1000);
        begin(&mut lab, Line::Starting);
        lab.pass(1000);
    }
    assert_eq!((lab.phase(), lab.view.epoch), ("suspect", Epoch(1)));
    begin(&mut lab, Line::Silent);
    lab.pass(1000);
    begin(&mut lab, Line::Starting);
    lab.pass(SOON);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.controller);
}

#[test]
fn one_that_was_down_between_has_all_its_time_again() {
    for (mute, primary) in [(25_000, "c"), (35_000, "a")] {
        let mut patient = settings();
        patient.failover.silent_after = Duration::from_mins(5);
        let mut lab = starting(patient);
        lab.pass(NOT_YET - mute);
        begin(&mut lab, Line::Silent);
        lab.pass(mute);
        begin(&mut lab, Line::Starting);
        lab.pass(SOON);
        assert_eq!(lab.primary(), Some(primary), "{:?}", lab.controller);
    }
}

#[test]
fn one_that_was_up_between_has_all_its_time_again() {
    for up in [Line::Full, Line::NoLogin, Line::Up] {
        let mut lab = starting(settings());
        lab.pass(NOT_YET);
        lab.fake("a").line = up;
        lab.pass(60);
        begin(&mut lab, Line::Starting);
        lab.pass(NOT_YET);
        assert_eq!(lab.view.epoch, Epoch(1), "{up:?}");
        lab.pass(SOON);
        assert_eq!(lab.primary(), Some("c"), "{up:?}: {:?}", lab.controller);
    }
}

#[test]
fn what_it_said_while_a_standby_streamed_from_it_does_not_replace_it() {
    let mut lab = starting(settings());
    lab.fake("a").reachable_by_others = true;
    lab.pass(NOT_YET + SOON);
    assert_eq!((lab.phase(), lab.view.epoch), ("suspect", Epoch(1)));
    assert!(lab.said(DecisionKind::Vetoed)[0].contains("still streams from a"));
}

#[test]
fn a_person_need_not_wait() {
    let mut lab = starting(settings());
    lab.pass(3000);
    let to = Some(NodeName::from("b"));
    lab.order(OperatorCommand::Failover { to, allow_data_loss: false });
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"), "{:?}", lab.controller);
}

#[test]
fn one_that_is_up_before_the_choice_calls_it_off() {
    let mut lab = starting(settings());
    lab.treat.insert("freeze", Treat::Keep);
    lab.pass(NOT_YET + SOON);
    assert_eq!((lab.phase(), lab.primary()), ("freezing", None));
    lab.revive("a");
    lab.pass(1000);
    lab.release();
    lab.pass(3000);
    assert_eq!((lab.phase(), lab.primary()), ("steady", Some("a")), "{:?}", lab.controller);
    assert!(lab.did("promote").is_empty());
}

#[test]
fn after_a_start_of_metako_it_has_its_time_from_then_on() {
    let mut hasty = settings();
    hasty.failover.start_timeout = Some(Duration::from_secs(20));
    let mut lab = starting(hasty);
    lab.pass(15_000);
    lab.restart();
    lab.pass(15_000);
    assert_eq!(lab.view.epoch, Epoch(1));
    lab.pass(SOON + 5_000);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.controller);
}
