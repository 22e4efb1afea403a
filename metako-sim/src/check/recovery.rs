//! What a cluster owes after the last fault: writes go on, and every node is back in its place (I5).

use std::time::Duration;

use metako_core::cluster::Phase;
use metako_core::{NodeName, Tick};

use super::Rules;
use crate::log::{ClientEvent, EndNode, EndState, Entry, Log, LogEvent};

/// Writes that go on are acknowledged at least this often.
const GOES_ON: Duration = Duration::from_secs(5);

/// Whether it is left to a person: that is said, and is no fault.
fn left_to_a_person(log: &Log) -> bool {
    let phase = log.entries().iter().rev().find_map(|entry| match &entry.event {
        LogEvent::View { phase, .. } => Some(phase),
        _ => None,
    });
    matches!(phase, Some(Phase::Paused { .. } | Phase::ManualNeeded { .. }))
}

/// What is wrong if writes do not go on within `bound` of the last fault's end. Excused is what a person asked for or has to
/// see to, and a primary that nobody can follow without a rejoin: its commits wait for standbys that there are not.
pub(super) fn writes_go_on(log: &Log, bound: Duration, rules: &Rules) -> Option<String> {
    let end = log.end()?;
    let alone = rules.synchronous() && !rules.rejoins && end.nodes.iter().all(|node| node.primary);
    if left_to_a_person(log) || alone {
        return None;
    }
    let disturbs = |entry: &&Entry| matches!(entry.event, LogEvent::Fault(_) | LogEvent::Asked { .. });
    let healed = log.entries().iter().rev().find(disturbs).map_or(Tick::ZERO, |entry| entry.at);
    let acknowledged: Vec<Tick> = log
        .entries()
        .iter()
        .filter(|entry| matches!(entry.event, LogEvent::Client(ClientEvent::Acknowledged { .. })))
        .map(|entry| entry.at)
        .collect();
    let over = log.entries().last().map_or(Tick::ZERO, |entry| entry.at);
    if over.since(healed) <= bound {
        return None;
    }
    let first = acknowledged.iter().find(|at| **at >= healed);
    if first.is_none_or(|first| first.since(healed) > bound) {
        return Some(format!(
            "no write was acknowledged within {}s of the last fault's end at {healed}",
            bound.as_secs()
        ));
    }
    let last = acknowledged.last().copied().unwrap_or_default();
    (over.since(last) > GOES_ON).then(|| format!("no write was acknowledged after {last}"))
}

/// Who is out of place at the end. With a rejoin hook every node streams from the primary; without, every standby on the
/// primary's history streams from somebody. Excused are a cluster and a node that are left to a person.
pub(super) fn out_of_place(log: &Log, rules: &Rules) -> Vec<String> {
    let Some(EndState { primary, nodes }) = log.end() else { return Vec::new() };
    if left_to_a_person(log) {
        return Vec::new();
    }
    if !rules.rejoins {
        let idle = |node: &&EndNode| !node.primary && node.on_history && node.streams_from.is_none();
        return nodes.iter().filter(idle).map(|node| format!("{} streams from nobody", node.node)).collect();
    }
    let Some(primary) = primary else { return vec!["writes are closed".to_owned()] };
    let left = |node: &NodeName| {
        log.entries().iter().any(|entry| {
            matches!(&entry.event, LogEvent::Decision(decision)
                if decision.node.as_ref() == Some(node) && decision.reason.contains("is left to a person"))
        })
    };
    let astray = |node: &&EndNode| {
        node.node != *primary
            && (!node.on_history || node.streams_from.as_ref() != Some(primary))
            && !left(&node.node)
    };
    let astray = nodes.iter().filter(astray);
    astray.map(|node| format!("{} does not stream from {primary}", node.node)).collect()
}
