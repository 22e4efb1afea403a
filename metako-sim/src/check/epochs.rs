//! Epochs only grow, and each has one primary that it was steady with (I16).

use std::collections::BTreeMap;

use metako_core::cluster::JournalPhase;
use metako_core::{Epoch, NodeName, Tick};

use super::{Checker, Findings, Past, Rules};
use crate::log::{Entry, LogEvent};

#[derive(Default)]
pub(super) struct Epochs {
    epoch: Epoch,
    /// The newest epoch that is on disk.
    durable: Epoch,
    /// The primary with which an epoch was steady.
    steady: BTreeMap<Epoch, NodeName>,
}

impl Checker for Epochs {
    fn observe(&mut self, entry: &Entry, _: &Past, _: &Rules, found: &mut Findings) {
        match &entry.event {
            LogEvent::View { epoch, .. } => self.grows(*epoch, "the view", entry.at, found),
            LogEvent::JournalSynced(journal) => {
                self.grows(journal.epoch, "the journal", entry.at, found);
                self.durable = self.durable.max(journal.epoch);
                if journal.phase == JournalPhase::Steady {
                    let primary = self.steady.entry(journal.epoch).or_insert_with(|| journal.primary.clone());
                    if *primary != journal.primary {
                        let text = format!(
                            "the journal of epoch {} was steady with {primary}, and is with {}",
                            journal.epoch, journal.primary
                        );
                        found.add("one_steady_primary_per_epoch", entry.at, text);
                    }
                }
            }
            // An epoch that was not on disk, in which nothing was opened, is begun again.
            LogEvent::ProxyKilled => self.epoch = self.durable,
            _ => {}
        }
    }
}

impl Epochs {
    fn grows(&mut self, epoch: Epoch, whose: &str, at: Tick, found: &mut Findings) {
        if epoch < self.epoch {
            found.add(
                "epochs_only_grow",
                at,
                format!("{whose} has epoch {epoch} after epoch {}", self.epoch),
            );
        }
        self.epoch = self.epoch.max(epoch);
    }
}
