//! Figures of a run, counted from its log.

use std::collections::BTreeSet;
use std::time::Duration;

use metako_core::cluster::Writes;
use metako_core::{NodeName, Tick};

use crate::log::{ClientEvent, Log, LogEvent, NodeChange};

/// Figures of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Nodes that writes moved to, in order; the first primary is not among them.
    pub promoted: Vec<NodeName>,
    /// Writes that clients were told are committed.
    pub acknowledged: u64,
    /// Those of them that the final primary does not have. While writes are closed: that the node does not have that was
    /// promoted last; if none was, that no node has.
    pub lost: BTreeSet<u64>,
    /// Writes whose outcome clients were told is unknown.
    pub unknown: u64,
    /// Writes that failed.
    pub failed: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Reads that failed.
    pub reads_failed: u64,
    /// The longest time without an acknowledgement, from the first one to the end; none if there was none at all.
    pub write_gap: Option<Duration>,
    /// Where writes go at the end.
    pub primary: Option<NodeName>,
    /// Nodes that stream from that primary at the end.
    pub replicas_streaming: u64,
}

impl Facts {
    /// Counts.
    pub(crate) fn of(log: &Log) -> Self {
        let mut facts = Self::default();
        let mut acknowledged = BTreeSet::new();
        let mut open_to: Option<NodeName> = None;
        let mut last: Option<Tick> = None;
        let mut last_promoted: Option<NodeName> = None;
        for entry in log.entries() {
            match &entry.event {
                LogEvent::View { writes: Writes::Open { primary }, .. } => {
                    let before = open_to.replace(primary.clone());
                    if before.is_some_and(|before| before != *primary) {
                        facts.promoted.push(primary.clone());
                    }
                }
                LogEvent::Node { node, change: NodeChange::Promoted { .. } } => {
                    last_promoted = Some(node.clone());
                }
                LogEvent::Client(event) => facts.count(event, &mut acknowledged),
                _ => {}
            }
            let acknowledges = matches!(entry.event, LogEvent::Client(ClientEvent::Acknowledged { .. }));
            if acknowledges || matches!(entry.event, LogEvent::End(_)) {
                if let Some(last) = last {
                    facts.write_gap = facts.write_gap.max(Some(entry.at.since(last)));
                }
                last = if acknowledges { Some(entry.at) } else { last };
            }
        }
        facts.at_the_end(log, acknowledged, last_promoted.as_ref());
        facts
    }

    fn count(&mut self, event: &ClientEvent, acknowledged: &mut BTreeSet<u64>) {
        match event {
            ClientEvent::Acknowledged { id, .. } => {
                self.acknowledged += 1;
                acknowledged.insert(*id);
            }
            ClientEvent::Unknown { .. } => self.unknown += 1,
            ClientEvent::Failed { .. } => self.failed += 1,
            ClientEvent::Read { .. } => self.reads += 1,
            ClientEvent::ReadFailed { .. } => self.reads_failed += 1,
            ClientEvent::Held { .. }
            | ClientEvent::Sent { .. }
            | ClientEvent::Discarded { .. }
            | ClientEvent::ReadHeld { .. }
            | ClientEvent::ReadSent { .. } => {}
        }
    }

    fn at_the_end(&mut self, log: &Log, acknowledged: BTreeSet<u64>, last_promoted: Option<&NodeName>) {
        let Some(end) = log.end() else { return };
        self.primary.clone_from(&end.primary);
        let streams = |node: &&crate::log::EndNode| node.on_history && node.streams_from == end.primary;
        self.replicas_streaming =
            end.primary.as_ref().map_or(0, |_| end.nodes.iter().filter(streams).count() as u64);
        let has = |id: &u64| {
            let line = end.primary.as_ref().or(last_promoted);
            let mut keepers = end.nodes.iter().filter(|node| line.is_none_or(|name| *name == node.node));
            keepers.any(|node| node.holds.contains(id))
        };
        self.lost = acknowledged.into_iter().filter(|id| !has(id)).collect();
    }
}
