//! Each check sees what it is there for: a log with the mistake is found, one without is not.

use std::collections::BTreeMap;
use std::time::Duration;

use metako_core::cluster::{
    Action, ActionId, Decision, DecisionKind, Journal, JournalPhase, Phase, Promotion, SyncRule, Writes,
};
use metako_core::{Epoch, Lsn, NodeName, SystemId, Tick, TimelineId};

use super::*;
use crate::log::{ClientEvent, EndNode, EndState, LogEvent, NodeChange};

mod decisions;
mod figures;
mod hosts;
mod primaries;
mod promotions;
mod reads;
mod recovery;
mod requests;
mod synchronous;

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

/// What most tests' configuration promises.
fn rules() -> Rules {
    let standbys = ["a", "b", "c"].map(|node| (node.to_owned(), name(node)));
    Rules {
        observes: false,
        first: name("a"),
        sync_names: String::new(),
        standbys: BTreeMap::from(standbys),
        budget: (2, Duration::from_secs(600)),
        hold_timeout: Duration::from_secs(30),
        max_lag: Some(Duration::from_secs(10)),
        rejoins: false,
    }
}

/// Events a second apart.
fn slowly(events: Vec<LogEvent>) -> Log {
    let mut log = Log::default();
    for (at, event) in (0..).zip(events) {
        log.push(Tick::from_millis(at * 1_000), event);
    }
    log
}

fn names_of(findings: &[Finding]) -> Vec<&'static str> {
    findings.iter().map(|finding| finding.check).collect()
}

fn found_by(rules: &Rules, events: Vec<LogEvent>) -> Vec<&'static str> {
    names_of(&must_hold(&log_of(events), rules))
}

fn found(events: Vec<LogEvent>) -> Vec<&'static str> {
    found_by(&rules(), events)
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
    journal_with(epoch, phase, SyncRule::Async)
}

fn quorum(acks: usize, voters: &[&str]) -> SyncRule {
    SyncRule::Quorum { acks, voters: voters.iter().map(|voter| name(voter)).collect() }
}

fn journal_with(epoch: u64, phase: JournalPhase, sync: SyncRule) -> LogEvent {
    LogEvent::JournalSynced(Box::new(journal_of(epoch, phase, sync)))
}

fn journal_of(epoch: u64, phase: JournalPhase, sync: SyncRule) -> Journal {
    let begun = Journal::begun("main".to_owned(), SystemId(1), Epoch(epoch), name("a"), TimelineId(1));
    Journal { phase, sync, ..begun }
}

fn decision(kind: DecisionKind, node: Option<&str>) -> LogEvent {
    LogEvent::Decision(Decision {
        kind,
        node: node.map(name),
        epoch: Epoch(2),
        reason: "it has to be".to_owned(),
    })
}

fn node(node: &str, change: NodeChange) -> LogEvent {
    LogEvent::Node { node: name(node), change }
}

fn streaming(standby: &str, upstream: &str, timeline: u32) -> LogEvent {
    node(standby, NodeChange::Streaming { upstream: name(upstream), timeline: TimelineId(timeline) })
}

fn reloaded(which: &str, setting: &str, value: &str) -> LogEvent {
    node(which, NodeChange::Reloaded { changed: vec![(setting.to_owned(), value.to_owned())] })
}

fn read(node: &str, primary: bool, on_history: bool, behind: u64) -> LogEvent {
    LogEvent::Client(ClientEvent::Read {
        client: 0,
        node: name(node),
        primary,
        timeline: TimelineId(1),
        on_history,
        behind: Duration::from_secs(behind),
        held_by: Vec::new(),
    })
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
