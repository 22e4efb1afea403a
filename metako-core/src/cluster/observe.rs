//! `failover.mode: observe`: whoever manages the cluster promotes, and metako follows.
//!
//! Nothing is changed on any node but what metako itself has left there in another mode. A node is followed when it answers
//! as a primary on a later timeline than the one that the journal has, and the primary of the journal does not answer as a
//! healthy primary any more: the highest timeline is the latest decision, but two nodes that both take writes are a mistake
//! that clients must not be moved into.

use super::{Controller, DecisionKind, JournalPhase, Phase};
use crate::config::FailoverMode;
use crate::plugin::NodeReport;
use crate::{NodeName, TimelineId};

impl Controller {
    /// Whether others promote.
    pub(super) fn observes(&self) -> bool {
        self.settings.failover.mode == FailoverMode::Observe
    }

    /// Follows a promotion that somebody else made, if there is one.
    pub(super) fn follow_promotion(&mut self) {
        let at_rest = matches!(
            self.phase,
            Phase::Discovering { .. }
                | Phase::Steady { .. }
                | Phase::Suspect { .. }
                | Phase::ManualNeeded { .. }
        );
        if !self.observes() || !at_rest || self.writing.is_some() || self.replaced.is_some() {
            return;
        }
        match self.successor() {
            None => {}
            Some((node, timeline, Ok(()))) => {
                let reason = format!("somebody made {node} primary, on timeline {timeline}");
                self.adopt(&node, &reason);
                // From here on nothing goes to the former one.
                self.phase = Phase::Discovering { reason };
            }
            Some((node, timeline, Err(why))) => {
                let reason = format!("{node} is a primary on timeline {timeline} and is not followed: {why}");
                self.record_once(DecisionKind::Vetoed, Some(&node), &reason);
            }
        }
    }

    /// A node that somebody promoted past the journal's timeline, and why it cannot be followed now.
    fn successor(&self) -> Option<(NodeName, TimelineId, Result<(), String>)> {
        let journal = self.journal.as_ref().filter(|journal| {
            journal.cluster == self.settings.name && journal.phase == JournalPhase::Steady
        })?;
        let promoted = |name: &NodeName| {
            let report = self.report(name)?;
            let later = report.is_primary()
                && report.system_id == journal.system_id
                && report.timeline > journal.timeline;
            later.then(|| (name.clone(), report.timeline))
        };
        let all: Vec<_> = self.settings.nodes.iter().filter_map(|node| promoted(&node.name)).collect();
        let (node, timeline) = all.iter().max_by_key(|(_, timeline)| *timeline)?.clone();
        if let Some((other, _)) = all.iter().find(|(other, same)| *other != node && *same == timeline) {
            let why = format!("so is {other}; only one of them may be");
            return Some((node, timeline, Err(why)));
        }
        let present = &journal.primary;
        let verdict = match self.nodes.get(present) {
            Some(state) if node != *present && state.answer.is_none() => {
                Err(format!("{present} has still to answer"))
            }
            Some(state) if node != *present && self.is_well(present, state.current()) => {
                Err(format!("{present} still answers as a healthy primary; stop one of them"))
            }
            _ => Ok(()),
        };
        Some((node, timeline, verdict))
    }

    fn is_well(&self, primary: &NodeName, report: Option<&NodeReport>) -> bool {
        report.is_some_and(|report| self.judge(primary, report).is_ok())
    }
}
