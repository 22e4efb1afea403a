//! Failover with synchronous replication.

use super::fake::{Line, eager, settings, synchronous};
use super::lab::{Lab, Treat};
use crate::cluster::{Action, Event, SyncRule};
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
        lab.event(Event::Reconfigured { settings, policy: eager() });
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
    let first = |kind| lab.actions.iter().position(|action| action.name() == kind);
    assert!(first("set_sync").is_some() && first("set_sync") < first("verify"));
    assert_eq!(lab.fake("c").setting("synchronous_standby_names"), r#"ANY 1 ("b")"#);
}

fn order_of(lab: &Lab) -> Vec<&'static str> {
    let steps = lab.actions.iter().map(Action::name);
    steps.filter(|name| matches!(*name, "persist" | "set_sync")).collect()
}

#[test]
fn a_standby_that_comes_becomes_a_voter_first_in_the_journal_then_in_the_setting() {
    let mut lab = Lab::steady(super::fake::hooked(synchronous(1, NoVoter::Block)));
    lab.kill("a");
    lab.pass(20_000);
    assert_eq!(lab.primary(), Some("c"));
    let rule = SyncRule::Quorum { acks: 1, voters: vec!["b".into(), "a".into()] };
    assert_eq!(lab.disk.as_ref().unwrap().sync, rule);
    assert_eq!(lab.fake("c").setting("synchronous_standby_names"), r#"ANY 1 ("b","a")"#);
    lab.pass(2000);
    // With either of them gone, commits go on, and nothing is lost with the next primary.
    lab.fake("b").line = Line::Refused;
    lab.fake("b").reachable_by_others = false;
    lab.commit(100);
    assert!(lab.acknowledged > crate::Lsn(0));
}

#[test]
fn a_new_voter_is_never_relied_on_by_commits_before_the_journal_counts_it() {
    let mut lab = Lab::steady(super::fake::hooked(synchronous(1, NoVoter::Block)));
    lab.treat.insert("rejoin", Treat::Keep);
    lab.kill("a");
    lab.pass(5000);
    lab.treat.clear();
    lab.release();
    lab.forget();
    lab.treat.insert("set_sync", Treat::Keep);
    lab.pass(5000);
    let rule = SyncRule::Quorum { acks: 1, voters: vec!["b".into(), "a".into()] };
    assert_eq!(lab.disk.as_ref().unwrap().sync, rule);
    assert_eq!(lab.fake("c").setting("synchronous_standby_names"), r#"ANY 1 ("b")"#);
    let order = order_of(&lab);
    assert!(
        order.iter().position(|step| *step == "persist") < order.iter().position(|step| *step == "set_sync"),
        "{order:?}"
    );
}

#[test]
fn a_voter_that_is_gone_leaves_first_the_setting_then_the_journal() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.fake("b").line = Line::Refused;
    lab.fake("b").reachable_by_others = false;
    lab.pass(5000);
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), r#"ANY 1 ("b","c")"#, "not at once");
    lab.forget();
    lab.treat.insert("set_sync", Treat::Keep);
    lab.pass(20_000);
    let rule = SyncRule::Quorum { acks: 1, voters: vec!["b".into(), "c".into()] };
    assert_eq!(lab.disk.as_ref().unwrap().sync, rule, "the setting comes first");
    lab.release();
    lab.pass(5000);
    let rule = SyncRule::Quorum { acks: 1, voters: vec!["c".into()] };
    assert_eq!(lab.disk.as_ref().unwrap().sync, rule);
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), r#"ANY 1 ("c")"#);
    // The one that is left is enough for a failover now.
    lab.kill("a");
    lab.pass(20_000);
    assert_eq!(lab.did("promote").len(), 1, "{:?}", lab.controller);
}

#[test]
fn the_last_voters_stay_where_commits_may_not_go_on_without() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    for name in ["b", "c"] {
        lab.fake(name).line = Line::Refused;
        lab.fake(name).reachable_by_others = false;
    }
    lab.pass(60_000);
    assert!(!lab.fake("a").setting("synchronous_standby_names").is_empty());
    let SyncRule::Quorum { acks: 1, .. } = lab.disk.as_ref().unwrap().sync else { panic!("{:?}", lab.disk) };
}

#[test]
fn a_degraded_cluster_says_so_in_the_journal_before_commits_wait_for_nobody() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Degrade));
    for name in ["b", "c"] {
        lab.fake(name).line = Line::Refused;
        lab.fake(name).reachable_by_others = false;
    }
    lab.forget();
    lab.treat.insert("persist", Treat::Keep);
    lab.pass(30_000);
    assert_eq!(
        lab.fake("a").setting("synchronous_standby_names"),
        r#"ANY 1 ("b","c")"#,
        "the journal comes first"
    );
    lab.release();
    lab.pass(5000);
    assert_eq!(lab.disk.as_ref().unwrap().sync, SyncRule::Async);
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), "");
    lab.revive("b");
    lab.pass(10_000);
    assert!(matches!(lab.disk.as_ref().unwrap().sync, SyncRule::Quorum { acks: 1, .. }), "{:?}", lab.disk);
}

#[test]
fn a_rule_that_is_given_up_is_out_of_the_journal_before_it_is_out_of_force() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.forget();
    lab.settings = std::sync::Arc::new(settings());
    lab.event(Event::Reconfigured { settings: lab.settings.clone(), policy: eager() });
    lab.pass(10_000);
    assert_eq!(order_of(&lab)[..2], ["persist", "set_sync"]);
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), "");
}

#[test]
fn a_rule_that_was_taken_away_before_it_was_confirmed_begins_anew() {
    let mut lab = Lab::steady(settings());
    for name in ["b", "c"] {
        lab.fake(name).reachable_by_others = false;
    }
    lab.settings = std::sync::Arc::new(synchronous(1, NoVoter::Block));
    lab.event(Event::Reconfigured { settings: lab.settings.clone(), policy: eager() });
    lab.pass(3000);
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), r#"ANY 1 ("b","c")"#);
    let mark = lab.fake("a").position();
    // Somebody takes it away because commits hang, and they go on without anybody.
    lab.fake("a").settings.clear();
    lab.write("a", 5000);
    lab.treat.insert("set_sync", Treat::Keep);
    lab.pass(3000);
    let fake = lab.fake("b");
    (fake.reachable_by_others, fake.received, fake.replayed) = (true, Some(mark), mark);
    lab.treat.clear();
    // The report that shows the setting anew shows b where it was.
    lab.lagging = Some("b".into());
    lab.release();
    lab.pass(3000);
    assert_eq!(lab.disk.as_ref().unwrap().sync, SyncRule::Async, "b has not what was committed meanwhile");
    lab.lagging = None;
    lab.pass(3000);
    assert!(matches!(lab.disk.as_ref().unwrap().sync, SyncRule::Quorum { .. }));
}

#[test]
fn a_degraded_cluster_lets_commits_go_on_whatever_happens_in_between() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Degrade));
    for name in ["b", "c"] {
        lab.fake(name).line = Line::Refused;
        lab.fake(name).reachable_by_others = false;
    }
    lab.treat.insert("set_sync", Treat::Fail);
    lab.pass(30_000);
    assert_eq!(lab.disk.as_ref().unwrap().sync, SyncRule::Async);
    lab.restart();
    lab.treat.clear();
    lab.pass(10_000);
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), "");
}

#[test]
fn a_first_commit_waits_for_whoever_streams_when_its_voter_is_gone() {
    let mut lab = Lab::steady(super::fake::hooked(synchronous(1, NoVoter::Block)));
    lab.treat.insert("verify", Treat::Keep);
    lab.kill("a");
    lab.pass(1500);
    assert_eq!(lab.phase(), "verifying", "{:?}", lab.controller);
    lab.fake("b").line = Line::Refused;
    lab.fake("b").reachable_by_others = false;
    lab.treat.clear();
    lab.release();
    lab.pass(60_000);
    assert_eq!((lab.phase(), lab.primary()), ("steady", Some("c")), "{:?}", lab.controller);
}

#[test]
fn a_voter_that_only_metako_cannot_reach_stays() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.fake("b").line = Line::Silent;
    lab.pass(60_000);
    assert_eq!(lab.fake("a").setting("synchronous_standby_names"), r#"ANY 1 ("b","c")"#);
}
