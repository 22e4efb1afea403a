//! What was acknowledged stays, what failed did not happen, and nobody follows another history unnoticed (I2).

use std::collections::BTreeSet;

use metako_core::cluster::SyncRule;

use super::{Checker, Findings, Past, Rules};
use crate::log::{ClientEvent, Entry, LogEvent, NodeChange};

#[derive(Default)]
pub(super) struct History {
    /// Writes that were acknowledged while a failover relied on what commits waited for.
    promised: BTreeSet<u64>,
    failed: BTreeSet<u64>,
}

impl Checker for History {
    fn observe(&mut self, entry: &Entry, past: &Past, _: &Rules, found: &mut Findings) {
        match &entry.event {
            LogEvent::Client(ClientEvent::Acknowledged { id, .. }) => {
                let rule = past.journal.as_ref().map(|journal| &journal.sync);
                if matches!(rule, Some(SyncRule::Quorum { .. })) {
                    self.promised.insert(*id);
                }
            }
            LogEvent::Client(ClientEvent::Failed { id, .. }) => {
                self.failed.insert(*id);
            }
            LogEvent::Opened { primary, epoch, holds } => {
                if let Some(lost) = self.promised.difference(holds).next() {
                    let text = format!(
                        "writes are open to {primary} in epoch {epoch}, which lacks the acknowledged write {lost:x}"
                    );
                    found.add("acknowledged_writes_stay", entry.at, text);
                }
            }
            LogEvent::End(end) => {
                for node in &end.nodes {
                    if let Some(id) = self.failed.intersection(&node.holds).next() {
                        let text = format!(
                            "write {id:x} is on {}, and its client was told that it failed",
                            node.node
                        );
                        found.add("failed_writes_did_not_happen", entry.at, text);
                    }
                }
            }
            LogEvent::Node { node, change: NodeChange::DivergedUnnoticed { upstream } } => {
                let text = format!("{node} streams from {upstream}, whose history is another");
                found.add("no_unnoticed_divergence", entry.at, text);
            }
            LogEvent::Broken(text) => found.add("simulation", entry.at, text.clone()),
            _ => {}
        }
    }
}
