//! What commits wait for, and what a failover relies on, meet at every instant (I10).

use std::collections::BTreeMap;

use metako_core::cluster::SyncRule;
use metako_core::{NodeName, Tick};

use super::{Checker, Findings, Past, Rules};
use crate::log::{Entry, LogEvent, NodeChange};
use crate::model::SyncNames;

#[derive(Default)]
pub(super) struct Quorums {
    /// `synchronous_standby_names` in force, where it is not what the run began with.
    in_force: BTreeMap<NodeName, String>,
    /// The journal changed, or a node was promoted, since it was looked at.
    changed: bool,
}

impl Checker for Quorums {
    fn observe(&mut self, entry: &Entry, past: &Past, rules: &Rules, found: &mut Findings) {
        if std::mem::take(&mut self.changed) {
            self.meet(past, rules, entry.at, found);
        }
        match &entry.event {
            LogEvent::Node { node, change: NodeChange::Reloaded { changed } } => {
                let value = changed.iter().find(|(name, _)| name == "synchronous_standby_names");
                if let Some((_, value)) = value {
                    self.in_force.insert(node.clone(), value.clone());
                    self.meet(past, rules, entry.at, found);
                }
            }
            LogEvent::JournalSynced(_) | LogEvent::Node { change: NodeChange::Promoted { .. }, .. } => {
                self.changed = true;
            }
            _ => {}
        }
    }
}

impl Quorums {
    fn meet(&self, past: &Past, rules: &Rules, at: Tick, found: &mut Findings) {
        let Some(journal) = &past.journal else { return };
        let SyncRule::Quorum { acks, voters } = &journal.sync else { return };
        let primary = match past.announced() {
            // Until it is promoted the rule is nobody's.
            Some((candidate, timeline)) if past.begun.get(&timeline) == Some(candidate) => candidate,
            Some(_) => return,
            None => &journal.primary,
        };
        let begun_with = if *primary == rules.first { rules.sync_names.as_str() } else { "" };
        let names = self.in_force.get(primary).map_or(begun_with, String::as_str);
        let (needed, among) = match SyncNames::parse(names) {
            Ok(SyncNames::Any(needed, among) | SyncNames::First(needed, among)) => (needed, among),
            Ok(SyncNames::Nobody) | Err(_) => (0, Vec::new()),
        };
        // Whoever acknowledges may be those first that a failover does not ask.
        let others =
            among.iter().filter(|name| rules.standbys.get(*name).is_none_or(|node| !voters.contains(node)));
        if needed.saturating_sub(others.count()) < *acks {
            let text = format!(
                "commits on {primary} wait for `{names}`, and a failover relies on {acks} of {}",
                voters.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ")
            );
            found.add("quorums_meet", at, text);
        }
    }
}
