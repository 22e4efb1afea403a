//! Failover with synchronous replication.

use super::fake::{Eager, Line, settings, synchronous};
use super::lab::{Lab, Treat, name_of};
use crate::cluster::{Event, SyncRule};
use crate::config::{ClusterSettings, FailoverMode, NoVoter};
use crate::{NodeName, TimelineId};

#[test]
fn a_synchronous_cluster_sets_its_standbys_before_it_relies_on_them() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), r#"ANY 1 ("b","c")"#);
    let voters: Vec<NodeName> = vec!["b".into(), "c".into()];
    assert_eq!(lab.disk.as_ref().unwrap().sync, SyncRule::Quorum { acks: 1, voters });
    lab.fake("a").settings.clear();
    lab.pass(5000);
    assert_eq!(
        lab.fake("a").setting("synchronous_standby_names"),
        r#"ANY 1 ("b","c")"#,
        "and puts them back"
    );
}

#[test]
fn a_configuration_that_comes_while_a_rule_is_written_down_is_taken_after_it() {
    let mut lab = Lab::steady(settings());
    let reload = |lab: &mut Lab, settings: ClusterSettings| {
        let settings = std::sync::Arc::new(settings);
        lab.event(Event::Reconfigured { settings, policy: std::sync::Arc::new(Eager) });
    };
    lab.treat.insert("persist", Treat::Keep);
    reload(&mut lab, synchronous(1, NoVoter::Block));
    lab.pass(10_000);
    assert_eq!(lab.kept.len(), 1, "the rule is on its way to disk");
    let mut manual = synchronous(1, NoVoter::Block);
    manual.failover.mode = FailoverMode::Manual;
    reload(&mut lab, manual);
    assert_eq!(lab.controller.settings().failover.mode, FailoverMode::Automatic);
    lab.release();
    lab.pass(2000);
    assert_eq!(lab.controller.settings().failover.mode, FailoverMode::Manual);
    lab.kill("a");
    lab.pass(10_000);
    assert_eq!(lab.phase(), "manual_needed");
}

#[test]
fn a_synchronous_failover_needs_enough_voters() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.fake("b").line = Line::Silent;
    lab.kill("a");
    lab.pass(20_000);
    assert_eq!(lab.phase(), "suspect");
    assert!(lab.held().unwrap().contains("1 of the 2 synchronous standbys"), "{:?}", lab.held());
    lab.fake("b").line = Line::Up;
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("c"));
    assert_eq!(lab.fake("c").setting("synchronous_standby_names"), r#"ANY 1 ("b")"#);
    let rule = SyncRule::Quorum { acks: 1, voters: vec!["b".into()] };
    assert_eq!(lab.disk.as_ref().unwrap().sync, rule);
}

#[test]
fn a_voter_that_goes_away_after_the_fence_stops_the_choice() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.treat.insert("sever", Treat::Keep);
    lab.kill("a");
    lab.pass(200);
    assert_eq!(lab.phase(), "fencing");
    lab.fake("b").line = Line::Silent;
    lab.release();
    lab.pass(20_000);
    assert_eq!(lab.phase(), "freezing");
    assert!(
        lab.held().unwrap().contains("1 of the 2 synchronous standbys that must be frozen"),
        "{:?}",
        lab.held()
    );
    assert!(lab.did("promote").is_empty());
}

#[test]
fn a_synchronous_primary_that_dies_before_the_rule_was_in_force_needs_a_person() {
    let mut lab = Lab::new(synchronous(1, NoVoter::Block));
    lab.treat.insert("set_sync", Treat::Fail);
    lab.start();
    lab.pass(500);
    lab.kill("a");
    lab.pass(2000);
    assert_eq!(lab.phase(), "manual_needed");
    assert!(lab.held().unwrap().contains("synchronous replication was not in force"));
}

#[test]
fn two_nodes_block_or_degrade_as_configured() {
    for (choice, names) in [(NoVoter::Block, r#"ANY 1 ("a")"#), (NoVoter::Degrade, "")] {
        let mut two = synchronous(1, choice);
        two.nodes.truncate(2);
        let mut lab = Lab::steady(two);
        lab.kill("a");
        lab.pass(5000);
        assert_eq!(lab.fake("b").setting("synchronous_standby_names"), names);
        assert_eq!(lab.primary(), (choice == NoVoter::Degrade).then_some("b"), "{choice:?}");
    }
}

#[test]
fn a_rule_that_somebody_took_from_the_primary_is_not_relied_on() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.fake("a").settings.clear();
    lab.treat.insert("set_sync", Treat::Fail);
    lab.pass(1500);
    assert_eq!(lab.disk.as_ref().unwrap().sync, SyncRule::Async);
    lab.kill("a");
    lab.pass(2000);
    assert_eq!(lab.phase(), "manual_needed");
    assert!(lab.held().unwrap().contains("synchronous replication was not in force"), "{:?}", lab.held());
    assert!(lab.did("promote").is_empty());
}

#[test]
fn a_candidate_that_somebody_else_promoted_gets_its_synchronous_standbys_before_its_first_commit() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.treat.insert("prepare", Treat::Keep);
    lab.kill("a");
    lab.pass(600);
    assert_eq!(lab.phase(), "promoting");
    lab.fake("c").primary = true;
    lab.fake("c").timeline = TimelineId(2);
    lab.fake("c").settings.insert("synchronous_standby_names".to_owned(), String::new());
    lab.treat.clear();
    lab.restart();
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("c"), "{:?}", lab.held());
    let first = |kind| lab.actions.iter().position(|action| name_of(action) == kind);
    assert!(first("set_sync").is_some() && first("set_sync") < first("verify"));
    assert_eq!(lab.fake("c").setting("synchronous_standby_names"), r#"ANY 1 ("b")"#);
}
