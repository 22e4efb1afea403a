//! Who takes writes and acknowledges them (I1, I4).

use std::collections::{BTreeMap, BTreeSet};

use metako_core::cluster::Writes as Gate;
use metako_core::{Epoch, NodeName, Tick, TimelineId};

use super::{Checker, Findings, Past, Rules};
use crate::log::{ClientEvent, Entry, LogEvent, NodeChange};

#[derive(Default)]
pub(super) struct Writes {
    /// Who acknowledged in which epoch.
    acknowledged_by: BTreeMap<Epoch, (NodeName, TimelineId)>,
    /// Primaries of earlier epochs that have not streamed what came after them.
    former: BTreeSet<NodeName>,
}

impl Checker for Writes {
    fn observe(&mut self, entry: &Entry, past: &Past, _: &Rules, found: &mut Findings) {
        let at = entry.at;
        match &entry.event {
            LogEvent::Client(ClientEvent::Sent { node, epoch, .. }) => {
                not_severed(past, node, *epoch, "a write was sent", at, found);
                self.not_former(node, "got a write", at, found);
            }
            LogEvent::Client(ClientEvent::Acknowledged { node, timeline, epoch, .. }) => {
                if past.open_to.as_ref().is_some_and(|open| open != node) {
                    let text =
                        format!("{node} acknowledged a write, but writes were opened to {:?}", past.open_to);
                    found.add("only_the_primary_acknowledges", at, text);
                }
                not_severed(past, node, *epoch, "a write was acknowledged", at, found);
                self.one_per_epoch(*epoch, node, *timeline, at, found);
            }
            LogEvent::Client(ClientEvent::Read { node, .. }) => {
                self.not_former(node, "served a read", at, found);
            }
            LogEvent::View { epoch, writes: Gate::Open { primary }, .. } => {
                let before = past.open_to.as_ref().filter(|before| *before != primary);
                if let Some(before) = before {
                    if past.severed.get(before) != Some(epoch) {
                        let text = format!(
                            "writes moved from {before} to {primary} in epoch {epoch} without a fence"
                        );
                        found.add("fence_before_opening", at, text);
                    }
                    let newest = past.newest().map(|(timeline, _)| timeline);
                    let follows =
                        past.streams.get(before).is_some_and(|(_, timeline)| Some(*timeline) >= newest);
                    if !follows {
                        self.former.insert(before.clone());
                    }
                }
                self.former.remove(primary);
            }
            LogEvent::Node { node, change: NodeChange::Streaming { timeline, .. } }
                if past.newest().is_none_or(|(newest, _)| *timeline >= newest) =>
            {
                self.former.remove(node);
            }
            _ => {}
        }
    }
}

impl Writes {
    fn not_former(&self, node: &NodeName, what: &str, at: Tick, found: &mut Findings) {
        if self.former.contains(node) {
            let text = format!(
                "{node} {what}, and was the primary of an earlier epoch: it has not streamed what came after it"
            );
            found.add("no_traffic_to_a_former_primary", at, text);
        }
    }

    fn one_per_epoch(
        &mut self,
        epoch: Epoch,
        node: &NodeName,
        timeline: TimelineId,
        at: Tick,
        found: &mut Findings,
    ) {
        let (owner, owned) = self.acknowledged_by.entry(epoch).or_insert_with(|| (node.clone(), timeline));
        if (&*owner, *owned) != (node, timeline) {
            let text = format!(
                "in epoch {epoch} both {owner} on timeline {owned} and {node} on timeline {timeline} acknowledged writes"
            );
            found.add("one_primary_per_epoch", at, text);
        }
    }
}

fn not_severed(past: &Past, node: &NodeName, epoch: Epoch, what: &str, at: Tick, found: &mut Findings) {
    if past.severed.get(node).is_some_and(|severed| epoch < *severed) {
        let text = format!("{what} by {node} over a connection of epoch {epoch}, after that was severed");
        found.add("severed_stays_severed", at, text);
    }
}
