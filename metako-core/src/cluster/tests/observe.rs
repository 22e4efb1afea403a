//! Clusters that somebody else manages.

use super::fake::{Line, settings};
use super::lab::Lab;
use crate::cluster::{DecisionKind, Event};
use crate::config::{ClusterSettings, FailoverMode};
use crate::{Epoch, TimelineId};

fn observed() -> ClusterSettings {
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
    let vetoed = lab.said(DecisionKind::Vetoed);
    assert!(vetoed.len() == 1 && vetoed[0].contains("a still answers as a healthy primary"), "{vetoed:?}");
    lab.kill("a");
    lab.pass(200);
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
    assert!(lab.said(DecisionKind::Vetoed).iter().any(|why| why.contains("only one of them may be")));
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
}

#[test]
fn a_promotion_while_metako_was_away_is_followed_when_the_former_primary_has_answered() {
    let mut lab = Lab::steady(observed());
    lab.fake("a").line = Line::Silent;
    promote(&mut lab, "c", &["b"]);
    lab.restart();
    assert_eq!(lab.primary(), None);
    lab.pass(600);
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
