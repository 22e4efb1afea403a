//! What is owed after the last fault.

use super::*;
use crate::check::recovery::{out_of_place, writes_go_on};

const BOUND: Duration = Duration::from_secs(10);

/// A fault at 0s, acknowledgements at these seconds, and the end at 40s.
fn run(acknowledged_at: &[usize], last: LogEvent) -> Log {
    let mut events = vec![LogEvent::Fault("start a".to_owned())];
    events.extend((1..40).map(|second| {
        if acknowledged_at.contains(&second) { acknowledged(1, "b", 2) } else { view(2, "b") }
    }));
    events.push(last);
    slowly(events)
}

#[test]
fn writes_that_do_not_go_on_are_found() {
    let wrong = |log: &Log| writes_go_on(log, BOUND, &rules()).is_some();
    let over = || end(Some("b"), &[("a", &[], None)]);
    assert!(wrong(&run(&[], over())));
    assert!(wrong(&run(&[11, 39], over())), "too late");
    assert!(wrong(&run(&[10, 34], over())), "they stop again");
    assert!(!wrong(&run(&[10, 35], over())));
    assert!(!wrong(&slowly(vec![LogEvent::Fault("start a".to_owned()), over()])), "too early to say");
}

#[test]
fn what_is_left_to_a_person_is_excused() {
    let reason = "scripted".to_owned();
    let person = Phase::ManualNeeded { primary: None, reason: reason.clone() };
    let needed =
        LogEvent::View { version: 9, epoch: Epoch(2), phase: person, writes: Writes::Held { reason } };
    let mut log = run(&[], needed);
    let Some(Entry { at, .. }) = log.entries().last().cloned() else { panic!("it has entries") };
    log.push(at, end(None, &[("a", &[], None), ("b", &[], None)]));
    assert_eq!(writes_go_on(&log, BOUND, &rules()), None);
    assert!(out_of_place(&log, &rules()).is_empty());
}

#[test]
fn nodes_that_are_not_in_their_place_are_found() {
    let rejoins = Rules { rejoins: true, ..rules() };
    let log = |a: Option<&str>, c: Option<&str>| {
        slowly(vec![view(2, "b"), end(Some("b"), &[("a", &[], a), ("b", &[], None), ("c", &[], c)])])
    };
    assert!(out_of_place(&log(Some("b"), Some("b")), &rejoins).is_empty());
    assert_eq!(out_of_place(&log(Some("b"), Some("a")), &rejoins), ["c does not stream from b"]);
    assert!(out_of_place(&log(Some("b"), Some("a")), &rules()).is_empty(), "it follows somebody");
    assert_eq!(out_of_place(&log(Some("b"), None), &rules()), ["c streams from nobody"]);
}

#[test]
fn a_node_that_is_left_to_a_person_is_excused() {
    let rejoins = Rules { rejoins: true, ..rules() };
    let left = LogEvent::Decision(Decision {
        kind: DecisionKind::Retried,
        node: Some(name("c")),
        epoch: Epoch(2),
        reason: "the hook failed, and c is left to a person".to_owned(),
    });
    let over = || end(Some("b"), &[("b", &[], None), ("c", &[], None)]);
    assert!(out_of_place(&slowly(vec![view(2, "b"), left, over()]), &rejoins).is_empty());
    assert_eq!(out_of_place(&slowly(vec![view(2, "b"), over()]), &rejoins), ["c does not stream from b"]);
}
