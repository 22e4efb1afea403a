//! What reads see (I8).

use std::time::Duration;

use metako_core::cluster::{SyncRule, Writes};
use metako_core::{NodeName, Tick};

use super::{Checker, Findings, Past, Rules};
use crate::log::{ClientEvent, Entry, LogEvent};

/// How much more than `max_lag` a read may be behind: a stream that is dead counts as alive until the receiver's time-out, a
/// standby that does not answer as fit until the threshold of its health checks, and each of those looks once a second.
const NOTICED_AFTER: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Reads {
    /// Where writes are open now.
    open_to: Option<NodeName>,
}

impl Checker for Reads {
    fn observe(&mut self, entry: &Entry, past: &Past, rules: &Rules, found: &mut Findings) {
        let LogEvent::Client(event) = &entry.event else {
            if let LogEvent::View { writes, .. } = &entry.event {
                self.open_to = match writes {
                    Writes::Open { primary } => Some(primary.clone()),
                    Writes::Held { .. } => None,
                };
            }
            return;
        };
        let ClientEvent::Read { node, primary, timeline, on_history, behind, held_by, .. } = event else {
            return;
        };
        let at = entry.at;
        if *primary && self.open_to.as_ref() == Some(node) {
            may_not_be_lost(node, held_by, past, at, found);
        }
        if let Some((newest, owner)) = past.newest().filter(|(newest, _)| *primary && newest > timeline) {
            let text = format!(
                "{node} served a read as a primary of timeline {timeline} after {owner} began timeline {newest}"
            );
            found.add("no_read_from_a_stale_primary", at, text);
        }
        // Where others promote, metako learns of it afterwards.
        if !on_history && !rules.observes {
            let text = format!("{node} served a read of a history that is not the primary's");
            found.add("reads_are_of_the_primarys_history", at, text);
        }
        // While nobody serves, nothing is written that a replica could lack more than it did.
        let Some(max_lag) = rules.max_lag else { return };
        let limit = max_lag + NOTICED_AFTER;
        let long = past.steady_since.is_some_and(|since| at.since(since) > limit);
        if long && *behind > limit {
            let text = format!(
                "{node} served a read that was {}ms behind; max_lag is {}ms",
                behind.as_millis(),
                max_lag.as_millis()
            );
            found.add("reads_are_fresh", at, text);
        }
    }
}

/// What clients see of the primary is what a failover keeps.
fn may_not_be_lost(node: &NodeName, held_by: &[NodeName], past: &Past, at: Tick, found: &mut Findings) {
    let Some(SyncRule::Quorum { acks, voters }) = past.journal.as_ref().map(|journal| &journal.sync) else {
        return;
    };
    let have = voters.iter().filter(|voter| held_by.contains(voter)).count();
    if have < *acks {
        let text =
            format!("a read of {node} saw a commit that {have} of the {acks} voters have that must have it");
        found.add("no_read_of_what_may_be_lost", at, text);
    }
}
