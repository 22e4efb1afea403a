//! What the log says of how things stand, up to an entry.

use std::collections::{BTreeMap, BTreeSet};

use metako_core::cluster::{Action, Journal, JournalPhase, Phase, Writes};
use metako_core::{Epoch, NodeName, Tick, TimelineId};

use crate::log::{ClientEvent, Entry, LogEvent, NodeChange};

/// How things stand.
#[derive(Default)]
pub(super) struct Past {
    /// The journal on disk.
    pub(super) journal: Option<Journal>,
    /// The phase of the last view of this life of the proxy.
    pub(super) phase: Option<Phase>,
    /// Since when the primary serves without a suspicion.
    pub(super) steady_since: Option<Tick>,
    /// Where writes are open, or were last.
    pub(super) open_to: Option<NodeName>,
    /// The node that writes were opened to, or that was promoted, last.
    pub(super) present: Option<NodeName>,
    /// Those whom metako told to, and those whom it followed; who else was promoted is a stranger.
    pub(super) own: BTreeSet<NodeName>,
    /// Who began which timeline.
    pub(super) begun: BTreeMap<TimelineId, NodeName>,
    /// Connections to a node that are older than this epoch are closed.
    pub(super) severed: BTreeMap<NodeName, Epoch>,
    /// Who streams from whom, on which timeline.
    pub(super) streams: BTreeMap<NodeName, (NodeName, TimelineId)>,
    /// Nodes that have no upstream by their settings.
    pub(super) blanked: BTreeSet<NodeName>,
    /// Servers that were started and take no connection yet.
    pub(super) starting: BTreeSet<NodeName>,
    /// Writes that were sent and have no answer yet: to whom, over a connection of which epoch.
    pub(super) under_way: BTreeMap<u64, (NodeName, Epoch)>,
    /// When a fault began or ended, or a person asked for something, last.
    pub(super) disturbed: Option<Tick>,
}

impl Past {
    pub(super) fn add(&mut self, entry: &Entry) {
        match &entry.event {
            LogEvent::JournalSynced(journal) => self.journal = Some((**journal).clone()),
            LogEvent::View { phase, writes, .. } => {
                let steady = matches!(phase, Phase::Steady { .. } | Phase::Paused { .. });
                self.steady_since = steady.then(|| self.steady_since.unwrap_or(entry.at));
                self.phase = Some(phase.clone());
                if let Writes::Open { primary } = writes {
                    self.open_to = Some(primary.clone());
                    self.present = Some(primary.clone());
                    self.own.insert(primary.clone());
                }
            }
            LogEvent::Action(Action::Promote { promotion, .. }) => {
                self.own.insert(promotion.node.clone());
            }
            LogEvent::Severed { node, epoch } => {
                let severed = self.severed.entry(node.clone()).or_default();
                *severed = (*severed).max(*epoch);
            }
            LogEvent::ProxyKilled => {
                self.phase = None;
                self.steady_since = None;
            }
            LogEvent::Fault(_) | LogEvent::Asked { .. } => self.disturbed = Some(entry.at),
            LogEvent::Node { node, change } => self.node(node, change),
            LogEvent::Client(event) => self.client(event),
            _ => {}
        }
    }

    fn client(&mut self, event: &ClientEvent) {
        match event {
            ClientEvent::Sent { id, node, epoch } => {
                self.under_way.insert(*id, (node.clone(), *epoch));
            }
            ClientEvent::Held { id }
            | ClientEvent::Unknown { id, .. }
            | ClientEvent::Failed { id, .. }
            | ClientEvent::Acknowledged { id, .. } => {
                self.under_way.remove(id);
            }
            _ => {}
        }
    }

    fn node(&mut self, node: &NodeName, change: &NodeChange) {
        match change {
            NodeChange::Promoted { timeline, .. } => {
                self.present = Some(node.clone());
                self.begun.insert(*timeline, node.clone());
                self.streams.remove(node);
            }
            NodeChange::Streaming { upstream, timeline } => {
                self.streams.insert(node.clone(), (upstream.clone(), *timeline));
            }
            NodeChange::Starting => {
                self.starting.insert(node.clone());
            }
            NodeChange::Ready { .. } => {
                self.starting.remove(node);
            }
            NodeChange::ReceiverGone { .. } => {
                self.streams.remove(node);
            }
            NodeChange::Killed | NodeChange::Stopped { .. } => {
                self.streams.remove(node);
                self.starting.remove(node);
            }
            NodeChange::Reloaded { changed } => {
                let conninfo = changed.iter().find(|(name, _)| name == "primary_conninfo");
                match conninfo {
                    Some((_, value)) if value.is_empty() => {
                        self.blanked.insert(node.clone());
                    }
                    Some(_) => {
                        self.blanked.remove(node);
                    }
                    None => {}
                }
            }
            _ => {}
        }
    }

    /// Whether a node receives nothing and will receive nothing.
    pub(super) fn stands_still(&self, node: &NodeName) -> bool {
        self.blanked.contains(node) && !self.streams.contains_key(node)
    }

    /// Who is promoted, by the journal on disk.
    pub(super) fn announced(&self) -> Option<(&NodeName, TimelineId)> {
        match &self.journal.as_ref()?.phase {
            JournalPhase::Promoting { candidate, timeline, .. } => Some((candidate, *timeline)),
            JournalPhase::Steady | JournalPhase::Fencing => None,
        }
    }

    /// The newest timeline that was begun by one of ours, and by whom.
    pub(super) fn newest(&self) -> Option<(TimelineId, &NodeName)> {
        let own = self.begun.iter().rfind(|(_, owner)| self.own.contains(*owner));
        own.map(|(timeline, owner)| (*timeline, owner))
    }
}
