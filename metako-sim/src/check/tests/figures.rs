//! Figures, and what the scenario expects of them.

use std::collections::BTreeSet;

use metako_core::config::HumanDuration;

use super::*;
use crate::scenario::{Bounds, Finally};

#[test]
fn lost_acknowledged_writes_are_counted_against_the_final_primary() {
    let run = |primary| {
        log_of(vec![
            acknowledged(1, "a", 1),
            acknowledged(2, "a", 1),
            end(primary, &[("a", &[1, 2], None), ("b", &[1], Some("a")), ("c", &[1], Some("b"))]),
        ])
    };
    assert_eq!(Facts::of(&run(Some("b"))).lost, BTreeSet::from([2]));
    assert!(Facts::of(&run(Some("a"))).lost.is_empty());
    assert!(Facts::of(&run(None)).lost.is_empty(), "a node has it");
    let facts = Facts::of(&run(Some("b")));
    assert_eq!(facts.replicas_streaming, 1);
    let findings = |expect: &Expect, synchronous: bool| -> Vec<&str> {
        let sync_names = if synchronous { "ANY 1 (b, c)" } else { "" };
        let rules = Rules { sync_names: sync_names.to_owned(), ..rules() };
        check(&run(Some("b")), &facts, expect, &rules).iter().map(|finding| finding.check).collect()
    };
    assert_eq!(findings(&Expect::default(), true), ["acknowledged_writes_kept"]);
    assert!(findings(&Expect::default(), false).is_empty());
    let one = Expect { acknowledged_lost: Some(Bounds::Exactly(1)), ..Expect::default() };
    assert!(findings(&one, true).is_empty());
}

#[test]
fn each_expectation_is_compared() {
    let log = log_of(vec![
        view(1, "a"),
        acknowledged(1, "a", 1),
        severed("a", 2),
        view(2, "b"),
        acknowledged(2, "b", 2),
        end(Some("b"), &[("a", &[1], None), ("b", &[1, 2], None)]),
    ]);
    let facts = Facts::of(&log);
    let millis = |ms| HumanDuration(Duration::from_millis(ms));
    let expect = |failovers, gap, primary: &str, streaming| Expect {
        failovers: Some(Bounds::Exactly(failovers)),
        acknowledged_lost: None,
        unknown: None,
        failed: None,
        failed_reads: None,
        max_write_gap: Some(millis(gap)),
        writes_go_on_within: None,
        finally: Finally {
            primary: Some(vec![primary.to_owned()]),
            replicas_streaming: Some(streaming),
            in_place: false,
        },
    };
    assert!(check(&log, &facts, &expect(1, 300, "b", 0), &rules()).is_empty());
    let findings = check(&log, &facts, &expect(0, 299, "a", 1), &rules());
    let checks: Vec<&str> = findings.iter().map(|finding| finding.check).collect();
    assert_eq!(checks, ["failovers", "max_write_gap", "finally.primary", "finally.replicas_streaming"]);
}

#[test]
fn writes_and_reads_that_went_wrong_are_compared() {
    let event = |event| LogEvent::Client(event);
    let log = log_of(vec![
        event(ClientEvent::Unknown { id: 1, reason: "scripted" }),
        event(ClientEvent::Failed { id: 2, reason: "scripted" }),
        event(ClientEvent::ReadFailed { client: 0, reason: "scripted" }),
    ]);
    let findings = |number| -> Vec<&str> {
        let bounds = Some(Bounds::Exactly(number));
        let expect = Expect { unknown: bounds, failed: bounds, failed_reads: bounds, ..Expect::default() };
        check(&log, &Facts::of(&log), &expect, &rules()).iter().map(|finding| finding.check).collect()
    };
    assert_eq!(findings(0), ["unknown", "failed", "failed_reads"]);
    assert!(findings(1).is_empty());
}

#[test]
fn while_writes_are_closed_the_node_promoted_last_must_have_what_was_acknowledged() {
    let nodes: [(&str, &[u64], Option<&str>); 2] = [("b", &[1], None), ("c", &[1, 2], None)];
    let facts = |promotions: Vec<LogEvent>| {
        let mut events = vec![acknowledged(1, "a", 1), acknowledged(2, "a", 1)];
        events.extend(promotions);
        events.push(end(None, &nodes));
        Facts::of(&log_of(events)).lost
    };
    assert_eq!(facts(vec![promoted("b", 2)]), BTreeSet::from([2]));
    assert!(facts(vec![promoted("c", 2)]).is_empty());
    assert!(facts(Vec::new()).is_empty());
}
