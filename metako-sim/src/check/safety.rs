//! What must hold in every run, whatever goes wrong. The names follow the invariants of the design.

use std::collections::{BTreeMap, BTreeSet};

use metako_core::cluster::{
    Action, ActionId, DecisionKind, HookCall, HookKind, JournalPhase, SyncRule, Writes,
};
use metako_core::{Epoch, NodeName, Tick, TimelineId};

use super::Finding;
use crate::log::{ClientEvent, Entry, Log, LogEvent, NodeChange};

/// What the checks remember from one entry to the next.
#[derive(Default)]
struct Watch {
    findings: Vec<Finding>,
    /// Who acknowledged in which epoch.
    acknowledged_by: BTreeMap<Epoch, (NodeName, TimelineId)>,
    /// Connections to a node that are older than this epoch are closed.
    severed: BTreeMap<NodeName, Epoch>,
    /// Who began which timeline.
    begun: BTreeMap<TimelineId, NodeName>,
    /// Those whom metako told to, and those whom it followed; who else was promoted is a stranger.
    own: BTreeSet<NodeName>,
    /// Standbys that were called frozen in the failover that runs.
    frozen: BTreeSet<NodeName>,
    /// The phase of the journal on disk.
    journal: Option<JournalPhase>,
    /// Which commits wait for whom, by the journal on disk.
    sync: Option<SyncRule>,
    /// Where writes are open now.
    open_now: Option<NodeName>,
    epoch: Epoch,
    /// The newest epoch that is on disk.
    durable: Epoch,
    /// Where writes are open now, or were last.
    open_to: Option<NodeName>,
    /// The node that writes were opened to, or that was promoted, last.
    present: Option<NodeName>,
    /// Stops that were called and have no answer yet. One that was given up may take effect whenever it likes.
    stops: BTreeMap<ActionId, NodeName>,
    /// Writes that were sent and have no answer yet, and to whom.
    under_way: BTreeMap<u64, NodeName>,
}

/// Checks the whole log.
pub(super) fn check(log: &Log) -> Vec<Finding> {
    let mut watch = Watch::default();
    for Entry { at, event } in log.entries() {
        watch.observe(*at, event);
    }
    watch.findings
}

impl Watch {
    fn find(&mut self, check: &'static str, at: Tick, text: String) {
        // One finding of a kind tells enough; a thousand hide the others.
        if !self.findings.iter().any(|finding| finding.check == check) {
            self.findings.push(Finding { check, at, text });
        }
    }

    fn observe(&mut self, at: Tick, event: &LogEvent) {
        match event {
            LogEvent::Client(event) => self.client(at, event),
            LogEvent::Severed { node, epoch } => {
                let severed = self.severed.entry(node.clone()).or_default();
                *severed = (*severed).max(*epoch);
            }
            LogEvent::View { epoch, writes, .. } => self.view(at, *epoch, writes),
            LogEvent::JournalSynced(journal) => {
                if journal.epoch < self.epoch {
                    let text = format!("the journal has epoch {} after epoch {}", journal.epoch, self.epoch);
                    self.find("epochs_only_grow", at, text);
                }
                self.epoch = self.epoch.max(journal.epoch);
                self.durable = self.durable.max(journal.epoch);
                self.journal = Some(journal.phase.clone());
                self.sync = Some(journal.sync.clone());
            }
            LogEvent::Action(Action::Promote { promotion, .. }) => {
                self.own.insert(promotion.node.clone());
                let announced = matches!(&self.journal, Some(JournalPhase::Promoting { candidate, timeline, .. })
                    if *candidate == promotion.node && *timeline == promotion.timeline);
                if !announced {
                    let text = format!(
                        "{} was told to promote to timeline {}, but the journal on disk does not announce it",
                        promotion.node, promotion.timeline
                    );
                    self.find("journal_before_promotion", at, text);
                }
            }
            LogEvent::Action(Action::Hook { id, call }) => self.hook(at, *id, call),
            LogEvent::Answered { id, .. } => {
                self.stops.remove(id);
            }
            LogEvent::ProxyKilled => {
                self.stops.clear();
                // An epoch that was not on disk, in which nothing was opened, is begun again.
                self.epoch = self.durable;
            }
            LogEvent::Decision(decision) => match (decision.kind, &decision.node) {
                (DecisionKind::FailoverBegun, _) => self.frozen.clear(),
                (DecisionKind::Frozen, Some(node)) => {
                    self.frozen.insert(node.clone());
                }
                _ => {}
            },
            LogEvent::Node { node, change } => self.node(at, node, change),
            LogEvent::Broken(text) => self.find("simulation", at, text.clone()),
            _ => {}
        }
    }

    fn client(&mut self, at: Tick, event: &ClientEvent) {
        match event {
            ClientEvent::Sent { id, node, epoch } => {
                self.not_severed(at, node, *epoch, "a write was sent");
                self.under_way.insert(*id, node.clone());
            }
            ClientEvent::Held { id } | ClientEvent::Unknown { id, .. } | ClientEvent::Failed { id, .. } => {
                self.under_way.remove(id);
            }
            ClientEvent::Acknowledged { id, node, timeline, epoch } => {
                self.under_way.remove(id);
                if self.open_to.as_ref().is_some_and(|open| open != node) {
                    let text =
                        format!("{node} acknowledged a write, but writes were opened to {:?}", self.open_to);
                    self.find("only_the_primary_acknowledges", at, text);
                }
                self.not_severed(at, node, *epoch, "a write was acknowledged");
                let owner =
                    self.acknowledged_by.entry(*epoch).or_insert_with(|| (node.clone(), *timeline)).clone();
                if owner != (node.clone(), *timeline) {
                    let text = format!(
                        "in epoch {epoch} both {} on timeline {} and {node} on timeline {timeline} acknowledged writes",
                        owner.0, owner.1
                    );
                    self.find("one_primary_per_epoch", at, text);
                }
            }
            ClientEvent::Read { node, primary: true, timeline, held_by, .. } => {
                self.read_of_the_primary(at, node, held_by);
                let newest = self.begun.iter().rfind(|(_, owner)| self.own.contains(*owner));
                if let Some((newest, owner)) = newest.filter(|(newest, _)| *newest > timeline) {
                    let text = format!(
                        "{node} served a read as a primary of timeline {timeline} after {owner} began timeline {newest}"
                    );
                    self.find("no_read_from_a_stale_primary", at, text);
                }
            }
            _ => {}
        }
    }

    /// What clients see of the primary is what a failover keeps.
    fn read_of_the_primary(&mut self, at: Tick, node: &NodeName, held_by: &[NodeName]) {
        let Some(SyncRule::Quorum { acks, voters }) = &self.sync else { return };
        let have = voters.iter().filter(|voter| held_by.contains(voter)).count();
        if have < *acks && self.open_now.as_ref() == Some(node) {
            let text = format!(
                "a read of {node} saw a commit that {have} of the {acks} voters have that must have it"
            );
            self.find("no_read_of_what_may_be_lost", at, text);
        }
    }

    fn not_severed(&mut self, at: Tick, node: &NodeName, epoch: Epoch, what: &str) {
        if self.severed.get(node).is_some_and(|severed| epoch < *severed) {
            let text = format!("{what} by {node} over a connection of epoch {epoch}, after that was severed");
            self.find("severed_stays_severed", at, text);
        }
    }

    /// A hook is called.
    fn hook(&mut self, at: Tick, id: ActionId, call: &HookCall) {
        let node = &call.node;
        match call.kind {
            HookKind::Stop => {
                self.stops.insert(id, node.clone());
                self.nothing_under_way(at, node, "is to be stopped");
            }
            HookKind::Rejoin if self.present.as_ref() == Some(node) => {
                let text = format!("{node} is to be rejoined, and is the primary");
                self.find("the_primary_is_not_rejoined", at, text);
            }
            HookKind::Rejoin if call.upstream != self.present => {
                let text = format!(
                    "{node} is to be rejoined to {:?}, but {:?} is primary",
                    call.upstream, self.present
                );
                self.find("the_primary_is_not_rejoined", at, text);
            }
            HookKind::Rejoin => {}
        }
    }

    fn nothing_under_way(&mut self, at: Tick, node: &NodeName, what: &str) {
        let open = self.under_way.values().filter(|to| *to == node).count();
        if open > 0 {
            self.find(
                "stopped_without_open_writes",
                at,
                format!("{node} {what} while {open} writes are open on it"),
            );
        }
    }

    fn view(&mut self, at: Tick, epoch: Epoch, writes: &Writes) {
        if epoch < self.epoch {
            let text = format!("the view has epoch {epoch} after epoch {}", self.epoch);
            self.find("epochs_only_grow", at, text);
        }
        self.epoch = self.epoch.max(epoch);
        self.open_now = None;
        if let Writes::Open { primary } = writes {
            self.open_now = Some(primary.clone());
            self.present = Some(primary.clone());
            self.own.insert(primary.clone());
            let moved = self.open_to.replace(primary.clone()).filter(|before| before != primary);
            if let Some(before) = moved.filter(|before| self.severed.get(before) != Some(&epoch)) {
                let text =
                    format!("writes moved from {before} to {primary} in epoch {epoch} without a fence");
                self.find("fence_before_opening", at, text);
            }
        }
    }

    fn node(&mut self, at: Tick, node: &NodeName, change: &NodeChange) {
        match change {
            NodeChange::Promoted { timeline, ahead, .. } => {
                self.present = Some(node.clone());
                if let Some(further) = ahead.iter().find(|name| self.frozen.contains(*name)) {
                    let text = format!(
                        "{node} was promoted although {further}, which was frozen as well, has more WAL"
                    );
                    self.find("most_advanced_is_promoted", at, text);
                }
                if let Some(before) = self.begun.insert(*timeline, node.clone()) {
                    let text = format!("{before} and {node} both began timeline {timeline}");
                    self.find("timeline_begun_once", at, text);
                }
            }
            NodeChange::Stopping if self.stops.values().any(|stopped| stopped == node) => {
                self.nothing_under_way(at, node, "stops");
            }
            NodeChange::DivergedUnnoticed { upstream } => {
                let text = format!("{node} streams from {upstream}, whose history is another");
                self.find("no_unnoticed_divergence", at, text);
            }
            _ => {}
        }
    }
}
