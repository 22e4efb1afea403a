//! A primary that is started anew while commits wait for standbys.

use super::fake::{Line, settings, synchronous};
use super::lab::{Lab, Treat};
use crate::cluster::{DecisionKind, Event, OperatorCommand, ServerLoss, SyncRule, Vouched};
use crate::config::NoVoter;
use crate::{NodeName, SystemId};

/// A strict cluster whose primary has rows that no standby has.
fn with_unacknowledged_rows(on_no_voter: NoVoter) -> Lab {
    let mut lab = Lab::steady(synchronous(1, on_no_voter));
    cut(&mut lab, true);
    lab.write("a", 100);
    lab
}

/// The standbys are cut off from the others, or are not.
fn cut(lab: &mut Lab, cut: bool) {
    for standby in ["b", "c"] {
        lab.fake(standby).reachable_by_others = !cut;
    }
}

fn vouched(lab: &Lab, node: &str) -> Vouched {
    lab.view.node(node).unwrap().vouched
}

fn run_of(lab: &Lab, node: &str) -> Vouched {
    Vouched::Run(lab.nodes[&NodeName::from(node)].run())
}

/// Whether the journal says that enough voters have what this run of the node has.
fn is_known(lab: &Lab, node: &str) -> bool {
    lab.disk.as_ref().unwrap().run == Some(lab.nodes[&NodeName::from(node)].run())
}

/// A client could not be connected to what it found, and a is looked at.
fn stranger(lab: &mut Lab) {
    lab.event(Event::ServerLost { node: "a".into(), loss: ServerLoss::Stranger });
    lab.pass(60);
}

fn waits(lab: &Lab) -> bool {
    lab.held().is_some_and(|reason| reason.contains("0 of the 1 standbys"))
        && vouched(lab, "a") != run_of(lab, "a")
}

#[test]
fn a_primary_that_was_started_anew_serves_when_a_voter_has_what_it_has() {
    for crash in [false, true] {
        let mut lab = with_unacknowledged_rows(NoVoter::Block);
        assert_eq!(lab.primary(), Some("a"));
        let before = run_of(&lab, "a");
        if crash {
            lab.fake("a").recover();
        } else {
            lab.fake("a").start_anew();
        }
        assert_eq!(vouched(&lab, "a"), before, "nobody knows yet, and nobody is connected to it");
        stranger(&mut lab);
        assert_eq!(lab.phase(), "steady");
        assert!(waits(&lab), "{:?}", lab.view);
        assert_eq!(lab.said(DecisionKind::Restarted).len(), 1);
        lab.pass(20_000);
        assert!(waits(&lab), "{:?}", lab.view);
        assert_eq!(lab.said(DecisionKind::Restarted).len(), 1, "said once");
        lab.fake("c").reachable_by_others = true;
        lab.pass(100);
        assert_eq!((lab.primary(), vouched(&lab, "a")), (Some("a"), run_of(&lab, "a")));
        assert!(is_known(&lab, "a"));
        assert_eq!(lab.said(DecisionKind::Opened).len(), 1);
    }
}

#[test]
fn what_is_awaited_is_what_it_had_when_it_was_started() {
    let mut lab = with_unacknowledged_rows(NoVoter::Block);
    lab.fake("a").start_anew();
    stranger(&mut lab);
    assert!(waits(&lab));
    cut(&mut lab, false);
    lab.stream();
    cut(&mut lab, true);
    // Somebody writes past metako.
    lab.write("a", 100);
    cut(&mut lab, false);
    lab.lagging = Some("b".into());
    lab.pass(100);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn a_metako_that_is_started_meanwhile_waits_as_well() {
    let mut lab = with_unacknowledged_rows(NoVoter::Block);
    lab.fake("a").start_anew();
    lab.restart();
    lab.pass(5000);
    assert!(waits(&lab), "seen at the start");
    lab.restart();
    lab.pass(5000);
    assert!(waits(&lab), "and known from the journal");
    cut(&mut lab, false);
    lab.pass(500);
    assert_eq!(lab.primary(), Some("a"));
    lab.forget();
    lab.restart();
    lab.pass(500);
    assert_eq!(lab.primary(), Some("a"));
    assert_eq!(lab.said(DecisionKind::Restarted), [""; 0], "it is the same run");
}

#[test]
fn a_journal_of_before_does_not_know_the_run_and_asks_the_voters() {
    let mut lab = with_unacknowledged_rows(NoVoter::Block);
    lab.disk.as_mut().unwrap().run = None;
    lab.restart();
    lab.pass(5000);
    assert!(lab.held().is_some_and(|reason| reason.contains("0 of the 1 standbys")), "{:?}", lab.view);
    assert_eq!(vouched(&lab, "a"), Vouched::Nobody);
    cut(&mut lab, false);
    lab.pass(500);
    assert_eq!((lab.primary(), vouched(&lab, "a")), (Some("a"), run_of(&lab, "a")));
}

#[test]
fn without_synchronous_replication_there_is_nothing_to_wait_for() {
    let mut lab = Lab::steady(settings());
    cut(&mut lab, true);
    lab.write("a", 100);
    lab.fake("a").start_anew();
    assert_eq!(vouched(&lab, "a"), Vouched::Any, "nor is any connection asked");
    lab.pass(1000);
    assert_eq!((lab.primary(), vouched(&lab, "a")), (Some("a"), Vouched::Any));
    assert_eq!(lab.said(DecisionKind::Restarted), [""; 0]);
}

#[test]
fn where_commits_go_on_without_standbys_so_do_clients() {
    let mut lab = with_unacknowledged_rows(NoVoter::Degrade);
    lab.fake("a").start_anew();
    stranger(&mut lab);
    assert!(waits(&lab));
    lab.pass(15_000);
    assert_eq!(lab.disk.as_ref().unwrap().sync, SyncRule::Async);
    assert_eq!((lab.primary(), vouched(&lab, "a")), (Some("a"), Vouched::Any));
    cut(&mut lab, false);
    lab.pass(15_000);
    assert_ne!(lab.disk.as_ref().unwrap().sync, SyncRule::Async);
    assert!(is_known(&lab, "a"), "from here on it is known");
}

#[test]
fn clients_do_not_wait_for_the_journal() {
    let mut lab = with_unacknowledged_rows(NoVoter::Block);
    lab.fake("a").start_anew();
    stranger(&mut lab);
    lab.treat.insert("persist", Treat::Fail);
    cut(&mut lab, false);
    lab.pass(500);
    assert_eq!((lab.primary(), vouched(&lab, "a")), (Some("a"), run_of(&lab, "a")));
    assert!(!is_known(&lab, "a"), "it could not be written");
    lab.treat.clear();
    lab.pass(10_000);
    assert!(is_known(&lab, "a"));
}

#[test]
fn one_that_dies_while_clients_wait_for_it_is_replaced_and_what_it_had_was_never_seen() {
    let mut lab = with_unacknowledged_rows(NoVoter::Block);
    lab.fake("a").start_anew();
    stranger(&mut lab);
    assert!(waits(&lab));
    lab.kill("a");
    cut(&mut lab, false);
    lab.pass(20_000);
    let next = lab.primary().unwrap().to_owned();
    assert_ne!(next, "a");
    assert_eq!(vouched(&lab, &next), run_of(&lab, &next));
    assert!(is_known(&lab, &next));
}

#[test]
fn it_waits_under_suspicion_and_while_metako_is_paused_too() {
    let mut lab = with_unacknowledged_rows(NoVoter::Block);
    lab.fake("a").line = Line::Full;
    stranger(&mut lab);
    assert_eq!(lab.phase(), "suspect");
    lab.fake("a").line = Line::Up;
    lab.fake("a").recover();
    lab.pass(60);
    assert_eq!(lab.phase(), "suspect");
    assert!(waits(&lab), "{:?}", lab.view);
    lab.pass(5000);
    assert_eq!(lab.phase(), "steady");
    lab.order(OperatorCommand::Pause);
    lab.pass(1000);
    assert_eq!(lab.phase(), "paused");
    assert!(waits(&lab), "{:?}", lab.view);
    cut(&mut lab, false);
    lab.pass(500);
    assert_eq!((lab.phase(), lab.primary()), ("paused", Some("a")));
    assert_eq!(vouched(&lab, "a"), run_of(&lab, "a"));
}

#[test]
fn nobody_is_connected_to_a_server_of_another_cluster() {
    let mut lab = Lab::steady(settings());
    assert_eq!(vouched(&lab, "b"), Vouched::Any);
    for node in ["a", "b"] {
        lab.fake(node).system_id = SystemId(78);
        lab.fake(node).start_anew();
    }
    lab.pass(5000);
    assert_eq!(["a", "b"].map(|node| vouched(&lab, node)), [Vouched::Nobody; 2]);
}
