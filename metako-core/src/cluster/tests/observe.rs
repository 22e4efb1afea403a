//! Clusters that somebody else manages.

use super::fake::{Line, settings};
use super::lab::Lab;
use crate::cluster::{DecisionKind, Event};
use crate::config::{ClusterSettings, FailoverMode};
use crate::{Epoch, TimelineId};

pub(super) fn observed() -> ClusterSettings {
    let mut settings = settings();
    settings.failover.mode = FailoverMode::Observe;
    settings
}

/// What metako may do to nodes in another mode only.
const CHANGES: [&str; 7] = ["freeze", "unfreeze", "prepare", "promote", "verify", "repoint", "set_sync"];

fn assert_nothing_changed(lab: &Lab) {
    for change in CHANGES {
        assert!(lab.did(change).is_empty(), "{change}");
    }
}

/// Somebody promotes a standby; the others follow it.
fn promote(lab: &mut Lab, name: &str, followers: &[&str]) {
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
fn nobody_is_followed_while_the_primary_is_well() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &[]);
    lab.pass(10_000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("a"), Epoch(1)));
    assert!(lab.said(DecisionKind::Refused)[0].contains("b is a primary that is not followed"));
    lab.kill("a");
    lab.pass(200);
    assert_eq!(lab.primary(), Some("b"));
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
    for line in [Line::Full, Line::NoLogin, Line::Starting] {
        let mut lab = Lab::steady(observed());
        promote(&mut lab, "b", &["c"]);
        lab.fake("a").line = line;
        lab.pass(10_000);
        assert_ne!(lab.primary(), Some("b"), "{line:?}: it may say what it is");
    }
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &["c"]);
    lab.pass(2000);
    lab.fake("a").line = Line::Silent;
    lab.pass(2000);
    assert_eq!(lab.view.epoch, Epoch(1), "not for so short a silence");
    lab.pass(3000);
    assert_eq!(lab.primary(), Some("b"));
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
    promote(&mut lab, "b", &[]);
    promote(&mut lab, "c", &[]);
    lab.fake("b").timeline = TimelineId(3);
    lab.pass(2000);
    lab.fake("c").line = Line::Silent;
    lab.kill("a");
    lab.pass(10_000);
    assert_eq!(lab.primary(), None);
    lab.fake("c").line = Line::Refused;
    lab.pass(2000);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn a_node_that_was_promoted_behind_another_one_is_not_followed_without_a_word() {
    let mut lab = Lab::steady(observed());
    lab.fake("b").settings.insert("primary_conninfo".to_owned(), String::new());
    lab.write("a", 5000);
    lab.kill("a");
    promote(&mut lab, "b", &[]);
    lab.pass(5000);
    assert_eq!((lab.primary(), lab.phase()), (None, "suspect"));
    assert!(lab.held().unwrap().contains("c has WAL of the former timeline"), "{:?}", lab.held());
    lab.adopt("b");
    lab.pass(1000);
    assert_eq!((lab.primary(), lab.view.epoch), (Some("b"), Epoch(2)));
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
        assert_eq!(lab.fake("a").setting("synchronous_standby_names"), theirs.unwrap_or_default());
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
fn the_mode_that_comes_while_standbys_are_frozen_ends_the_failover() {
    let mut lab = Lab::steady(settings());
    lab.treat.insert("freeze", super::lab::Treat::DoneUnknown);
    lab.kill("a");
    lab.pass(100);
    assert_eq!(lab.phase(), "freezing");
    let policy = std::sync::Arc::new(super::fake::Eager);
    lab.event(Event::Reconfigured { settings: std::sync::Arc::new(observed()), policy });
    lab.treat.clear();
    lab.pass(5000);
    assert_eq!((lab.phase(), lab.primary()), ("suspect", None));
    assert!(lab.did("promote").is_empty());
    promote(&mut lab, "b", &["c"]);
    lab.pass(500);
    assert_eq!(lab.primary(), Some("b"));
}

#[test]
fn of_two_that_were_promoted_to_one_timeline_none_is_followed() {
    let mut lab = Lab::steady(observed());
    promote(&mut lab, "b", &[]);
    lab.fake("c").primary = true;
    lab.fake("c").timeline = TimelineId(2);
    lab.pass(2000);
    lab.kill("a");
    lab.pass(5000);
    assert_eq!(lab.primary(), None);
    assert!(lab.held().unwrap().contains("were both promoted"), "{:?}", lab.held());
    // Somebody decides.
    lab.fake("b").primary = false;
    lab.fake("b").line = Line::Refused;
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
    let policy = std::sync::Arc::new(super::fake::Eager);
    lab.event(Event::Reconfigured { settings: std::sync::Arc::new(settings()), policy });
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
