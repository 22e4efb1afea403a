//! Each check sees what it is there for: a log with the mistake is found, one without is not.

use std::collections::{BTreeMap, BTreeSet};

use metako_core::cluster::{
    Action, ActionFailure, ActionId, Decision, DecisionKind, HookCall, HookKind, Journal, JournalPhase,
    Observed, Phase, Promotion, SyncRule, Writes,
};
use metako_core::config::HumanDuration;
use metako_core::{Epoch, Lsn, NodeName, SystemId, Tick, TimelineId};

use super::*;
use crate::log::{ClientEvent, EndNode, EndState, LogEvent, NodeChange};
use crate::scenario::{Bounds, Finally};

fn name(name: &str) -> NodeName {
    NodeName::from(name)
}

fn log_of(events: Vec<LogEvent>) -> Log {
    let mut log = Log::default();
    for (at, event) in (0..).zip(events) {
        log.push(Tick::from_millis(at * 100), event);
    }
    log
}

fn found(events: Vec<LogEvent>) -> Vec<&'static str> {
    safety::check(&log_of(events)).iter().map(|finding| finding.check).collect()
}

fn acknowledged(id: u64, node: &str, epoch: u64) -> LogEvent {
    let (node, timeline, epoch) = (name(node), TimelineId(1), Epoch(epoch));
    LogEvent::Client(ClientEvent::Acknowledged { id, node, timeline, epoch })
}

fn sent(id: u64, node: &str, epoch: u64) -> LogEvent {
    LogEvent::Client(ClientEvent::Sent { id, node: name(node), epoch: Epoch(epoch) })
}

fn view(epoch: u64, primary: &str) -> LogEvent {
    LogEvent::View {
        version: epoch,
        epoch: Epoch(epoch),
        phase: Phase::Steady { primary: name(primary) },
        writes: Writes::Open { primary: name(primary) },
    }
}

fn severed(node: &str, epoch: u64) -> LogEvent {
    LogEvent::Severed { node: name(node), epoch: Epoch(epoch) }
}

fn promoted(node: &str, timeline: u32) -> LogEvent {
    let change = NodeChange::Promoted { timeline: TimelineId(timeline), fork: Lsn(1), ahead: Vec::new() };
    LogEvent::Node { node: name(node), change }
}

fn promote(node: &str) -> LogEvent {
    let promotion =
        Promotion { node: name(node), epoch: Epoch(2), timeline: TimelineId(2), token: "token".to_owned() };
    LogEvent::Action(Action::Promote { id: ActionId(1), promotion })
}

fn journal(epoch: u64, phase: JournalPhase) -> LogEvent {
    LogEvent::JournalSynced(Box::new(Journal {
        version: 1,
        cluster: "main".to_owned(),
        system_id: SystemId(1),
        epoch: Epoch(epoch),
        primary: name("a"),
        timeline: TimelineId(1),
        fork: None,
        last_record: None,
        phase,
        sync: SyncRule::Async,
        attempts: Vec::new(),
        tainted: Vec::new(),
        saved: BTreeMap::new(),
        displaced: Vec::new(),
        paused: false,
        sync_names: BTreeMap::new(),
        observed: Observed::default(),
        floor: None,
        reached: None,
        run: None,
    }))
}

fn promoting(node: &str) -> JournalPhase {
    JournalPhase::Promoting { candidate: name(node), timeline: TimelineId(2), fork: Lsn(1) }
}

fn end(primary: Option<&str>, nodes: &[(&str, &[u64], Option<&str>)]) -> LogEvent {
    let nodes = nodes.iter().map(|(node, holds, upstream)| EndNode {
        node: name(node),
        well: true,
        primary: primary == Some(node),
        timeline: TimelineId(1),
        position: Lsn(1),
        streams_from: upstream.map(name),
        on_history: true,
        holds: holds.iter().copied().collect(),
    });
    LogEvent::End(Box::new(EndState { primary: primary.map(name), nodes: nodes.collect() }))
}

#[test]
fn a_failover_without_mistakes_has_no_findings() {
    let events = vec![
        journal(1, JournalPhase::Steady),
        view(1, "a"),
        sent(1, "a", 1),
        acknowledged(1, "a", 1),
        journal(2, JournalPhase::Fencing),
        severed("a", 2),
        journal(2, promoting("b")),
        promote("b"),
        promoted("b", 2),
        view(2, "b"),
        sent(2, "b", 2),
    ];
    assert_eq!(found(events), Vec::<&str>::new());
}

#[test]
fn two_primaries_of_one_epoch_are_found() {
    assert_eq!(found(vec![acknowledged(1, "a", 1), acknowledged(2, "b", 1)]), ["one_primary_per_epoch"]);
    assert!(found(vec![acknowledged(1, "a", 1), acknowledged(2, "b", 2)]).is_empty());
}

#[test]
fn traffic_over_severed_connections_is_found() {
    assert_eq!(found(vec![severed("a", 2), acknowledged(1, "a", 1)]), ["severed_stays_severed"]);
    assert_eq!(found(vec![severed("a", 2), sent(1, "a", 1)]), ["severed_stays_severed"]);
    assert!(found(vec![severed("a", 2), sent(1, "a", 2)]).is_empty());
}

#[test]
fn opening_without_a_fence_is_found() {
    assert_eq!(found(vec![view(1, "a"), view(2, "b")]), ["fence_before_opening"]);
    assert!(found(vec![view(1, "a"), severed("a", 2), view(2, "b")]).is_empty());
}

#[test]
fn a_promotion_that_the_journal_does_not_announce_is_found() {
    assert_eq!(found(vec![promote("b")]), ["journal_before_promotion"]);
    assert_eq!(found(vec![journal(2, promoting("c")), promote("b")]), ["journal_before_promotion"]);
    assert!(found(vec![journal(2, promoting("b")), promote("b")]).is_empty());
}

#[test]
fn a_timeline_that_is_begun_twice_is_found() {
    assert_eq!(found(vec![promoted("a", 2), promoted("b", 2)]), ["timeline_begun_once"]);
    assert!(found(vec![promoted("a", 2), promoted("b", 3)]).is_empty());
}

#[test]
fn epochs_that_go_back_are_found() {
    assert_eq!(found(vec![view(2, "a"), view(1, "a")]), ["epochs_only_grow"]);
    let steady = JournalPhase::Steady;
    assert_eq!(found(vec![journal(2, steady.clone()), journal(1, steady)]), ["epochs_only_grow"]);
}

#[test]
fn reads_from_a_stale_primary_and_divergence_are_found() {
    let read = |primary| {
        let (node, timeline, held_by) = (name("a"), TimelineId(1), Vec::new());
        LogEvent::Client(ClientEvent::Read { client: 0, node, primary, timeline, held_by })
    };
    let asked = || [journal(2, promoting("b")), promote("b"), promoted("b", 2)].to_vec();
    assert_eq!(found([asked(), vec![read(true)]].concat()), ["no_read_from_a_stale_primary"]);
    assert!(found([asked(), vec![read(false)]].concat()).is_empty());
    assert!(found([vec![read(true)], asked()].concat()).is_empty());
    // Whom somebody else promotes is a stranger until writes are opened to it.
    assert!(found(vec![promoted("b", 2), read(true)]).is_empty());
    let followed = found(vec![promoted("b", 2), severed("a", 2), view(2, "b"), read(true)]);
    assert_eq!(followed, ["no_read_from_a_stale_primary"]);
    let change = NodeChange::DivergedUnnoticed { upstream: name("b") };
    assert_eq!(found(vec![LogEvent::Node { node: name("a"), change }]), ["no_unnoticed_divergence"]);
}

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
    let findings = |expect: &Expect, synchronous| -> Vec<&str> {
        check(&run(Some("b")), &facts, expect, synchronous).iter().map(|finding| finding.check).collect()
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
    let millis = |ms| HumanDuration(std::time::Duration::from_millis(ms));
    let expect = |failovers, gap, primary: &str, streaming| Expect {
        failovers: Some(Bounds::Exactly(failovers)),
        acknowledged_lost: None,
        unknown: None,
        failed: None,
        failed_reads: None,
        max_write_gap: Some(millis(gap)),
        finally: Finally { primary: Some(vec![primary.to_owned()]), replicas_streaming: Some(streaming) },
    };
    assert!(check(&log, &facts, &expect(1, 300, "b", 0), true).is_empty());
    let findings = check(&log, &facts, &expect(0, 299, "a", 1), true);
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
        check(&log, &Facts::of(&log), &expect, false).iter().map(|finding| finding.check).collect()
    };
    assert_eq!(findings(0), ["unknown", "failed", "failed_reads"]);
    assert!(findings(1).is_empty());
}

#[test]
fn a_read_of_what_too_few_voters_have_is_found() {
    let strict = || {
        let LogEvent::JournalSynced(mut strict) = journal(1, JournalPhase::Steady) else { unreachable!() };
        strict.sync = SyncRule::Quorum { acks: 2, voters: vec![name("b"), name("c")] };
        LogEvent::JournalSynced(strict)
    };
    let read = |held_by: &[&str]| {
        let held_by = held_by.iter().copied().map(name).collect();
        let (node, timeline) = (name("a"), TimelineId(1));
        LogEvent::Client(ClientEvent::Read { client: 0, node, primary: true, timeline, held_by })
    };
    let check = "no_read_of_what_may_be_lost";
    assert_eq!(found(vec![strict(), view(1, "a"), read(&["b", "d"])]), [check]);
    assert!(found(vec![strict(), view(1, "a"), read(&["b", "c"])]).is_empty());
    assert!(found(vec![journal(1, JournalPhase::Steady), view(1, "a"), read(&[])]).is_empty());
}

#[test]
fn a_promotion_of_one_that_is_behind_is_found() {
    let frozen = |node| {
        let (kind, node) = (DecisionKind::Frozen, Some(name(node)));
        LogEvent::Decision(Decision { kind, node, epoch: Epoch(2), reason: String::new() })
    };
    let promoted = |ahead: &str| {
        let (timeline, fork, ahead) = (TimelineId(2), Lsn(1), vec![name(ahead)]);
        LogEvent::Node { node: name("b"), change: NodeChange::Promoted { timeline, fork, ahead } }
    };
    assert_eq!(found(vec![frozen("b"), frozen("c"), promoted("c")]), ["most_advanced_is_promoted"]);
    assert!(found(vec![frozen("b"), frozen("c"), promoted("a")]).is_empty(), "the old primary may be ahead");
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

#[test]
fn an_acknowledgement_of_another_than_the_primary_is_found() {
    let events = vec![view(1, "a"), severed("a", 2), view(2, "b"), acknowledged(1, "c", 3)];
    assert_eq!(found(events), ["only_the_primary_acknowledges"]);
}

fn hook(kind: HookKind, node: &str, upstream: Option<&str>) -> LogEvent {
    let call = HookCall {
        kind,
        node: name(node),
        upstream: upstream.map(name),
        epoch: Epoch(2),
        timeline: TimelineId(1),
        slot: None,
        conninfo: None,
    };
    LogEvent::Action(Action::Hook { id: ActionId(1), call })
}

#[test]
fn a_stop_while_a_write_is_open_is_found() {
    let stop = || hook(HookKind::Stop, "a", None);
    let stops = || LogEvent::Node { node: name("a"), change: NodeChange::Stopping };
    let check = "stopped_without_open_writes";
    assert_eq!(found(vec![view(1, "a"), sent(1, "a", 1), stop()]), [check]);
    assert_eq!(found(vec![view(1, "a"), stop(), sent(1, "a", 1), stops()]), [check]);
    assert!(found(vec![view(1, "a"), sent(1, "a", 1), acknowledged(1, "a", 1), stop(), stops()]).is_empty());
    let given_up =
        || LogEvent::Answered { id: ActionId(1), outcome: Err(ActionFailure::Unknown(String::new())) };
    assert!(found(vec![view(1, "a"), stop(), given_up(), sent(1, "a", 1), stops()]).is_empty());
}

#[test]
fn a_rejoin_of_the_primary_or_to_another_is_found() {
    let rejoin = |node, upstream| hook(HookKind::Rejoin, node, Some(upstream));
    let check = "the_primary_is_not_rejoined";
    assert_eq!(found(vec![view(1, "a"), rejoin("a", "b")]), [check]);
    assert_eq!(found(vec![view(1, "a"), rejoin("c", "b")]), [check]);
    assert_eq!(found(vec![view(1, "a"), promoted("b", 2), rejoin("c", "a")]), [check]);
    assert!(found(vec![view(1, "a"), promoted("b", 2), rejoin("a", "b")]).is_empty());
}
