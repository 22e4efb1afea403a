//! Clusters that somebody else manages.

use super::fake::{Line, settings};
use super::lab::Lab;
use crate::cluster::{DecisionKind, Event, OperatorCommand};
use crate::config::{ClusterSettings, FailoverMode};
use crate::{Epoch, TimelineId};

pub(super) fn observed() -> ClusterSettings {
    let mut settings = settings();
    settings.failover.mode = FailoverMode::Observe;
    settings
}

/// What metako may do to nodes in another mode only.
const CHANGES: [&str; 12] = [
    "freeze",
    "unfreeze",
    "prepare",
    "promote",
    "verify",
    "repoint",
    "set_sync",
    "checkpoint",
    "drain",
    "stop",
    "rejoin",
    "drop_slots",
];

fn assert_nothing_changed(lab: &Lab) {
    for change in CHANGES {
        assert!(lab.did(change).is_empty(), "{change}");
    }
}

/// Another configuration comes while it runs.
pub(super) fn reload(lab: &mut Lab, settings: ClusterSettings) {
    lab.settings = std::sync::Arc::new(settings);
    let policy = super::fake::eager();
    lab.event(Event::Reconfigured { settings: std::sync::Arc::clone(&lab.settings), policy });
}

/// Somebody promotes a standby; the others follow it.
pub(super) fn promote(lab: &mut Lab, name: &str, followers: &[&str]) {
    let timeline = lab.nodes.values().map(|fake| fake.timeline).max().unwrap().next();
    let fake = lab.fake(name);
    (fake.primary, fake.timeline) = (true, timeline);
    let upstream = format!("host=localhost port={} user=repl", fake.port);
    for follower in followers {
        let fake = lab.fake(follower);
        fake.primary = false;
        fake.settings.insert("primary_conninfo".to_owned(), upstream.clone());
    }
}

#[test]
fn a_promotion_by_others_is_followed_and_nothing_else_is_done() {
    let mut lab = Lab::steady(observed());
    lab.kill("a");
    lab.pass(3000);
    assert_eq!(lab.phase(), "suspect");
    assert!(lab.held().unwrap().contains("failover.mode is observe"), "{:?}", lab.held());
    promote(&mut lab, "b", &["c"]);
    lab.pass(200);
    assert_eq!((lab.phase(), lab.primary(), lab.view.epoch), ("steady", Some("b"), Epoch(2)));
    assert_eq!(lab.did("sever").len(), 1);
    assert_nothing_changed(&lab);
    assert!(lab.said(DecisionKind::Adopted)[0].contains("somebody made b primary, on timeline 2"));
    lab.pass(5000);
    assert_eq!(lab.readers(), ["c"]);
    // The old one comes back as what it was.
    lab.revive("a");
    lab.pass(5000);
    assert_eq!((lab.primary(), lab.readers()), (Some("b"), vec!["c"]));
    assert_nothing_changed(&lab);
}

#[test]
fn a_switchover_by_others_is_followed() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &["a", "c"]);
    lab.pass(1500);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("b"), Epoch(2)));
    assert!(lab.said(DecisionKind::ManualNeeded).is_empty());
    lab.pass(2000);
    assert_eq!(lab.readers(), ["a", "c"]);
    assert_nothing_changed(&lab);
}

#[test]
fn a_primary_that_was_made_a_standby_before_another_one_is_promoted_is_waited_for() {
    let mut lab = Lab::steady(observed());
    lab.fake("a").primary = false;
    lab.pass(10_000);
    assert_eq!((lab.phase(), lab.primary()), ("suspect", None));
    assert!(lab.held().unwrap().contains("in recovery"), "{:?}", lab.held());
    promote(&mut lab, "c", &["a", "b"]);
    lab.pass(200);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn who_was_promoted_beside_the_primary_is_followed_on_a_persons_word_only() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &[]);
    lab.pass(10_000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("a"), Epoch(1)));
    let refused = lab.said(DecisionKind::Refused);
    assert!(refused.iter().any(|reason| reason.contains("b was promoted while a is well")), "{refused:?}");
    // It may be a copy of its own, also when the primary fails, and after a restart of metako.
    lab.kill("a");
    lab.pass(5000);
    assert_eq!(lab.primary(), None);
    lab.restart();
    lab.pass(5000);
    assert_eq!(lab.primary(), None);
    assert!(lab.held().unwrap().contains("promoted while the primary was well"), "{:?}", lab.held());
    lab.adopt("b");
    lab.pass(1000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("b"), Epoch(2)));
    assert_eq!(lab.disk.as_ref().unwrap().observed.rivals, []);
}

#[test]
fn a_person_may_move_clients_to_who_was_promoted_while_the_primary_is_well() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &[]);
    lab.pass(2000);
    assert_eq!(lab.refusal(&OperatorCommand::Adopt("a".into())), "a is the primary already");
    lab.treat.insert("persist", super::lab::Treat::Keep);
    lab.adopt("b");
    assert_eq!(lab.primary(), None, "nothing goes to the former one while the journal is written");
    lab.release();
    lab.pass(1000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("b"), Epoch(2)));
    assert_eq!(lab.did("sever").len(), 1);
}

#[test]
fn a_primary_that_lives_or_is_only_not_seen_is_not_left_for_another_one() {
    for line in [Line::Full, Line::NoLogin, Line::Starting, Line::Silent] {
        let mut lab = Lab::steady(observed());
        promote(&mut lab, "b", &[]);
        lab.pass(2000);
        // c streams from it all the time.
        lab.fake("a").line = line;
        lab.pass(10_000);
        assert_ne!(lab.primary(), Some("b"), "{line:?}");
        lab.fake("a").line = Line::Up;
        lab.pass(3000);
        assert_eq!((lab.primary(), lab.view.epoch), (Some("a"), Epoch(1)), "{line:?}");
    }
    for line in [Line::Full, Line::NoLogin] {
        let mut lab = Lab::steady(observed());
        lab.fake("a").line = line;
        promote(&mut lab, "b", &["c"]);
        lab.pass(10_000);
        assert_ne!(lab.primary(), Some("b"), "{line:?}: it is alive");
    }
    for line in [Line::Silent, Line::Starting] {
        let mut lab = Lab::steady(observed());
        lab.fake("a").line = line;
        promote(&mut lab, "b", &["c"]);
        lab.pass(2000);
        assert_eq!(lab.view.epoch, Epoch(1), "{line:?}: not for so short a time");
        lab.pass(3000);
        assert_eq!(lab.primary(), Some("b"), "{line:?}");
    }
}

#[test]
fn a_refusal_alone_may_be_a_firewalls() {
    let mut lab = Lab::steady(observed());
    lab.fake("a").line = Line::Refused;
    lab.fake("c").line = Line::Silent;
    promote(&mut lab, "b", &[]);
    lab.pass(1000);
    assert_eq!(lab.view.epoch, Epoch(1), "nobody has lost it");
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn a_primary_that_comes_back_serves_when_nobody_can_have_been_promoted() {
    // The only standby with it is a majority, the other one does not matter.
    let mut lab = Lab::steady(observed());
    lab.fake("c").line = Line::Refused;
    lab.pass(5000);
    lab.kill("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), None);
    lab.revive("a");
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("a"), Epoch(1)));
    // Alone it is none: somebody may have promoted one that does not answer.
    lab.fake("b").line = Line::Silent;
    lab.pass(5000);
    lab.kill("a");
    lab.pass(5000);
    lab.revive("a");
    lab.fake("b").reachable_by_others = false;
    lab.pass(20_000);
    assert_eq!(lab.primary(), None);
    assert!(lab.held().unwrap().contains("somebody may have promoted b, c"), "{:?}", lab.held());
    lab.restart();
    lab.pass(20_000);
    assert_eq!(lab.primary(), None, "a restart makes nothing surer");
    lab.fake("b").line = Line::Up;
    lab.fake("b").reachable_by_others = true;
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn a_person_may_say_that_a_primary_that_comes_back_is_the_one() {
    let mut lab = Lab::steady(observed());
    for standby in ["b", "c"] {
        lab.fake(standby).line = Line::Silent;
    }
    lab.pass(5000);
    lab.kill("a");
    lab.pass(5000);
    lab.revive("a");
    lab.pass(10_000);
    assert_eq!(lab.primary(), None);
    lab.adopt("a");
    lab.pass(1000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("a"), Epoch(2)));
    // That holds for this server, also when metako is started again.
    lab.restart();
    lab.pass(1000);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn a_primary_that_was_started_again_between_two_looks_is_not_trusted_before_others_were_asked() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &["c"]);
    lab.fake("a").started_at += 1;
    lab.pass(3000);
    assert_eq!(
        (lab.primary(), lab.view.epoch),
        (Some("b"), Epoch(2)),
        "the later timeline is the later word"
    );
    let mut lab = Lab::steady(observed());
    lab.fake("a").started_at += 1;
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("a"), Epoch(1)));
    assert_eq!(lab.disk.as_ref().unwrap().observed.started_at, Some(2));
}

#[test]
fn a_stale_primary_that_metako_finds_at_its_start_is_not_served() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "c", &["b"]);
    lab.fake("a").started_at += 1;
    // Whoever was promoted is slow to answer.
    lab.fake("c").line = Line::Silent;
    lab.restart();
    lab.pass(10_000);
    assert_eq!(lab.primary(), None, "b does not stream from it, c may be the one");
    lab.fake("c").line = Line::Up;
    lab.pass(1000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("c"), Epoch(2)));
}

#[test]
fn a_standby_that_streams_a_later_timeline_from_an_unknown_address_has_left_the_primary() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &["c"]);
    // They know each other by addresses that metako does not have.
    let moved = |node: &mut crate::config::Node| node.replication.host = format!("{}.internal", node.name);
    let mut settings = observed();
    settings.nodes.iter_mut().for_each(moved);
    for node in &mut settings.nodes {
        node.host = format!("{}.example", node.name);
    }
    lab.settings = std::sync::Arc::new(settings);
    lab.restart();
    lab.fake("a").line = Line::Refused;
    lab.pass(1000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn what_changes_the_cluster_is_not_metakos_to_do() {
    let lab = Lab::steady(super::fake::hooked(observed()));
    for command in [
        OperatorCommand::Switchover { to: None },
        OperatorCommand::Failover { to: None, allow_data_loss: false },
        OperatorCommand::Pause,
    ] {
        assert!(lab.refusal(&command).contains("failover.mode is observe"));
    }
}

#[test]
fn what_a_node_was_before_it_was_asked_again_does_not_count() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &[]);
    lab.pass(2000);
    // Somebody saw the mistake and made it a standby again.
    lab.fake("b").primary = false;
    lab.fake("b").timeline = TimelineId(1);
    lab.kill("a");
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.view.epoch), (None, Epoch(1)));
    lab.revive("a");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("a"));
}

#[test]
fn a_rival_that_is_silent_counts_until_it_is_down() {
    let mut lab = Lab::steady(observed());
    lab.kill("a");
    promote(&mut lab, "c", &[]);
    promote(&mut lab, "b", &[]);
    assert_eq!(lab.fake("b").timeline, TimelineId(3));
    lab.pass(50);
    lab.fake("c").line = Line::Silent;
    lab.pass(10_000);
    assert_eq!(lab.primary(), None);
    lab.fake("c").line = Line::Refused;
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn a_node_that_was_promoted_behind_another_one_is_followed_and_that_is_said() {
    let mut lab = Lab::steady(observed());
    lab.fake("b").settings.insert("primary_conninfo".to_owned(), String::new());
    lab.write("a", 5000);
    lab.kill("a");
    promote(&mut lab, "b", &[]);
    lab.pass(5000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("b"), Epoch(2)));
    let reason = lab.said(DecisionKind::Adopted)[0];
    assert!(reason.contains("c has WAL of the former timeline that b has not"), "{reason}");
}

#[test]
fn a_person_may_say_who_is_primary_when_no_timeline_tells() {
    let mut lab = Lab::steady(observed());
    lab.kill("a");
    lab.pass(2000);
    // Without a promotion: the file that makes it a standby was removed.
    lab.fake("c").primary = true;
    lab.pass(2000);
    assert_eq!((lab.primary(), lab.phase()), (None, "suspect"));
    lab.adopt("c");
    lab.pass(1000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("c"), Epoch(2)));
}

#[test]
fn synchronous_standbys_that_metako_has_set_are_given_back_and_those_of_others_stay() {
    for theirs in [None, Some("ANY 1 (\"b\", \"x\")")] {
        let mut lab = Lab::steady(super::fake::synchronous(1, crate::config::NoVoter::Block));
        if let Some(theirs) = theirs {
            lab.fake("a").settings.insert("synchronous_standby_names".to_owned(), theirs.to_owned());
        }
        lab.settings = std::sync::Arc::new(observed());
        lab.restart();
        lab.pass(5000);
        assert_eq!(lab.primary(), Some("a"));
        // An empty value would stand before what others write into postgresql.conf.
        let names = lab.fake("a").settings.get("synchronous_standby_names").cloned();
        assert_eq!(names.as_deref(), theirs);
        assert_eq!(lab.disk.as_ref().unwrap().sync, crate::cluster::SyncRule::Async);
        assert_eq!(lab.did("set_sync").len(), usize::from(theirs.is_none()));
    }
}

#[test]
fn a_promotion_that_metako_had_begun_is_for_a_person_in_this_mode() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("promote", super::lab::Treat::Keep);
    lab.kill("a");
    lab.pass(500);
    assert_eq!(lab.phase(), "promoting");
    lab.treat.clear();
    lab.settings = std::sync::Arc::new(observed());
    lab.forget();
    lab.restart();
    lab.pass(5000);
    assert_eq!((lab.phase(), lab.primary()), ("manual_needed", None));
    assert_nothing_changed(&lab);
    promote(&mut lab, "b", &["c"]);
    lab.pass(2000);
    lab.adopt("b");
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn the_mode_that_comes_while_standbys_are_frozen_waits_for_the_end_of_the_failover() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("freeze", super::lab::Treat::DoneUnknown);
    lab.kill("a");
    lab.pass(100);
    assert_eq!(lab.phase(), "freezing");
    reload(&mut lab, observed());
    lab.treat.clear();
    lab.pass(5000);
    assert_eq!((lab.phase(), lab.primary()), ("steady", Some("c")));
    lab.forget();
    lab.kill("c");
    lab.pass(5000);
    assert_eq!(lab.primary(), None);
    assert!(lab.did("promote").is_empty());
}

#[test]
fn of_two_that_were_promoted_to_one_timeline_none_is_followed() {
    let mut lab = Lab::steady(observed());
    lab.kill("a");
    promote(&mut lab, "b", &[]);
    lab.fake("c").primary = true;
    lab.fake("c").timeline = TimelineId(2);
    lab.pass(5000);
    assert_eq!(lab.primary(), None);
    assert!(lab.held().unwrap().contains("were both promoted"), "{:?}", lab.held());
    // One that died may have taken writes on the same timeline.
    lab.fake("b").line = Line::Refused;
    lab.pass(5000);
    assert_eq!(lab.primary(), None);
    // Somebody decides.
    lab.fake("b").primary = false;
    lab.fake("b").line = Line::Up;
    lab.pass(1500);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn a_primary_that_was_promoted_again_is_followed_to_its_new_timeline() {
    let mut lab = Lab::steady(observed());
    lab.kill("a");
    lab.pass(1000);
    lab.revive("a");
    promote(&mut lab, "a", &["b", "c"]);
    lab.pass(3000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("a"), Epoch(2)));
    assert_eq!(lab.disk.as_ref().unwrap().timeline, TimelineId(2));
    // Under the same name it may be another machine.
    assert_eq!(lab.did("sever").len(), 1);
}

#[test]
fn a_promotion_while_metako_was_away_is_followed_when_the_former_primary_has_answered() {
    let mut lab = Lab::steady(observed());
    lab.fake("a").line = Line::Silent;
    promote(&mut lab, "c", &["b"]);
    lab.restart();
    assert_eq!(lab.primary(), None);
    lab.pass(5000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("c"), Epoch(2)));
}

#[test]
fn synchronous_standbys_that_were_set_and_not_yet_relied_on_are_given_back_too() {
    let mut lab = Lab::new(super::fake::synchronous(1, crate::config::NoVoter::Block));
    for standby in ["b", "c"] {
        lab.fake(standby).settings.insert("primary_conninfo".to_owned(), String::new());
    }
    lab.treat.insert("repoint", super::lab::Treat::Fail);
    lab.start();
    lab.pass(3000);
    assert_ne!(lab.fake("a").setting("synchronous_standby_names"), "");
    assert_eq!(lab.disk.as_ref().unwrap().sync, crate::cluster::SyncRule::Async);
    lab.settings = std::sync::Arc::new(observed());
    lab.restart();
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("a"));
    assert_eq!(lab.fake("a").settings.get("synchronous_standby_names"), None);
    assert!(lab.disk.as_ref().unwrap().sync_names.is_empty());
}

#[test]
fn a_node_of_another_cluster_is_not_followed() {
    let mut lab = Lab::steady(observed());
    lab.kill("a");
    lab.fake("b").system_id = crate::SystemId(78);
    promote(&mut lab, "b", &[]);
    lab.pass(5000);
    assert_eq!(lab.primary(), None);
}

#[test]
fn a_failover_that_was_begun_in_another_mode_is_called_off_and_leaves_nothing() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("promote", super::lab::Treat::Fail);
    lab.treat.insert("freeze", super::lab::Treat::DoneUnknown);
    lab.kill("a");
    lab.pass(100);
    assert_eq!(lab.phase(), "freezing");
    lab.treat.clear();
    lab.settings = std::sync::Arc::new(observed());
    lab.restart();
    lab.pass(5000);
    assert_eq!((lab.phase(), lab.primary()), ("suspect", None));
    assert!(lab.did("promote").is_empty());
    for standby in ["b", "c"] {
        let port = lab.fake(standby).port;
        assert_eq!(
            lab.fake(standby).setting("primary_slot_name"),
            format!("slot_{port}"),
            "it is given back"
        );
    }
    promote(&mut lab, "b", &["c"]);
    lab.pass(200);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn the_mode_can_be_changed_while_the_primary_is_gone() {
    let mut lab = Lab::steady(observed());
    lab.kill("a");
    lab.pass(3000);
    reload(&mut lab, settings());
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("c"));
}

#[test]
fn a_standby_that_metako_froze_is_given_back_also_when_another_one_was_promoted_meanwhile() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("freeze", super::lab::Treat::DoneUnknown);
    lab.kill("a");
    lab.pass(100);
    assert_eq!(lab.phase(), "freezing");
    lab.treat.clear();
    promote(&mut lab, "b", &[]);
    lab.settings = std::sync::Arc::new(observed());
    lab.restart();
    lab.pass(5000);
    assert_eq!(lab.primary(), Some("b"));
    let port = lab.fake("c").port;
    assert_eq!(lab.fake("c").setting("primary_slot_name"), format!("slot_{port}"));
    assert!(lab.did("repoint").is_empty() && lab.did("prepare").is_empty());
}
