//! Who may be promoted, when, and to which timeline (I3, I7, I9, I11).

use std::collections::{BTreeMap, BTreeSet};

use metako_core::cluster::{Action, DecisionKind, Journal, JournalPhase, Promotion, SyncRule};
use metako_core::{NodeName, Tick, TimelineId};

use super::{Checker, Findings, Past, Rules};
use crate::log::{Entry, LogEvent, NodeChange};

#[derive(Default)]
pub(super) struct Promotions {
    /// Standbys that were called frozen in the failover that runs.
    frozen: BTreeSet<NodeName>,
    /// Who was told to begin which timeline.
    attempted: BTreeMap<TimelineId, NodeName>,
    /// Standbys whose last answer since the fence says that they stream.
    streaming: BTreeSet<NodeName>,
}

impl Checker for Promotions {
    fn observe(&mut self, entry: &Entry, past: &Past, _: &Rules, found: &mut Findings) {
        let at = entry.at;
        match &entry.event {
            LogEvent::Severed { .. } => self.streaming.clear(),
            LogEvent::Probed { node, result, .. } => {
                // Who does not answer is not seen.
                if result.as_ref().is_ok_and(|report| report.streaming_receiver().is_some()) {
                    self.streaming.insert(node.clone());
                } else {
                    self.streaming.remove(node);
                }
            }
            LogEvent::Decision(decision) => match (decision.kind, &decision.node) {
                (DecisionKind::FailoverBegun | DecisionKind::SwitchoverBegun, _) => self.frozen.clear(),
                (DecisionKind::Frozen, Some(node)) => {
                    self.frozen.insert(node.clone());
                }
                (DecisionKind::Chosen, _) => self.nobody_streams(past, at, found),
                _ => {}
            },
            LogEvent::JournalSynced(journal) => enough_stand_still(journal, past, at, found),
            LogEvent::Action(Action::Promote { promotion, .. }) => self.told(promotion, past, at, found),
            LogEvent::Node { node, change: NodeChange::Promoting } => {
                let told = self.attempted.values().any(|told| told == node);
                if told && past.announced().is_none_or(|(candidate, _)| candidate != node) {
                    let text = format!("{node} obeys a promotion that the journal on disk does not announce");
                    found.add("no_promotion_of_another_epoch", at, text);
                }
            }
            LogEvent::Node { node, change: NodeChange::Promoted { timeline, ahead, .. } } => {
                if let Some(further) = ahead.iter().find(|name| self.frozen.contains(*name)) {
                    let text = format!(
                        "{node} was promoted although {further}, which was frozen as well, has more WAL"
                    );
                    found.add("most_advanced_is_promoted", at, text);
                }
                if let Some(before) = past.begun.get(timeline) {
                    let text = format!("{before} and {node} both began timeline {timeline}");
                    found.add("timeline_begun_once", at, text);
                }
            }
            _ => {}
        }
    }
}

impl Promotions {
    fn told(&mut self, promotion: &Promotion, past: &Past, at: Tick, found: &mut Findings) {
        let Promotion { node, timeline, .. } = promotion;
        if past.announced() != Some((node, *timeline)) {
            let text = format!(
                "{node} was told to promote to timeline {timeline}, but the journal on disk does not announce it"
            );
            found.add("journal_before_promotion", at, text);
        }
        let first = self.attempted.entry(*timeline).or_insert_with(|| node.clone());
        if first != node {
            let text = format!("{first} and {node} were both told to begin timeline {timeline}");
            found.add("timeline_attempted_once", at, text);
        }
        if past.journal.as_ref().is_some_and(|journal| journal.tainted.contains(node)) {
            let text = format!("{node} was told to promote, and the journal calls it tainted");
            found.add("tainted_is_not_promoted", at, text);
        }
    }

    /// The choice is made: no standby that metako sees streams from the old primary any more.
    fn nobody_streams(&self, past: &Past, at: Tick, found: &mut Findings) {
        let Some(old) = past.journal.as_ref().map(|journal| &journal.primary) else { return };
        let fresh = self
            .streaming
            .iter()
            .find(|standby| past.streams.get(*standby).is_some_and(|(upstream, _)| upstream == old));
        if let Some(standby) = fresh {
            let text = format!("a successor was chosen while {standby} said that it streams, from {old}");
            found.add("no_choice_while_a_standby_streams", at, text);
        }
    }
}

/// The point of no return is on disk: enough voters stand still that every acknowledged commit is on one of them.
fn enough_stand_still(journal: &Journal, past: &Past, at: Tick, found: &mut Findings) {
    let (JournalPhase::Promoting { candidate, .. }, Some(before)) = (&journal.phase, &past.journal) else {
        return;
    };
    let SyncRule::Quorum { acks, voters } = &before.sync else { return };
    if past.announced().is_some_and(|(announced, _)| announced == candidate) {
        return;
    }
    let still = voters.iter().filter(|voter| past.stands_still(voter)).count();
    let needed = (voters.len() + 1).saturating_sub(*acks);
    if still < needed {
        let text = format!(
            "{candidate} is to be promoted, but only {still} of the {needed} voters that must stand still do"
        );
        found.add("enough_voters_stand_still", at, text);
    }
}
