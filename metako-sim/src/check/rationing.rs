//! Failovers are rationed, and have a cause (I6).

use std::time::Duration;

use metako_core::cluster::{DecisionKind, OperatorCommand, Phase};
use metako_core::{NodeName, Tick};

use super::{Checker, Findings, Past, Rules};
use crate::log::{Entry, LogEvent};

/// So long after a fault began or ended its consequences are over: the longest is a stall that the policy looks at first.
const CONSEQUENCES: Duration = Duration::from_secs(20);

#[derive(Default)]
pub(super) struct Rationing {
    /// When successors were chosen that nobody had asked for, in this life of the proxy: it forgets them with its process.
    chosen: Vec<Tick>,
    /// A person asked for a failover.
    asked: bool,
    /// What runs is a switchover.
    planned: bool,
}

impl Checker for Rationing {
    fn observe(&mut self, entry: &Entry, past: &Past, rules: &Rules, found: &mut Findings) {
        let at = entry.at;
        match &entry.event {
            LogEvent::Asked { command: OperatorCommand::Failover { .. }, refusal: None } => self.asked = true,
            LogEvent::ProxyKilled => *self = Self::default(),
            LogEvent::Decision(decision) => match decision.kind {
                DecisionKind::FailoverBegun => {
                    // A switchover goes on with the stop of the primary; what begins otherwise takes its place.
                    self.planned &= matches!(past.phase, Some(Phase::Stopping { .. }));
                    if !std::mem::take(&mut self.asked) && !self.planned {
                        self.begins(decision.node.as_ref(), past, rules, at, found);
                    }
                }
                DecisionKind::SwitchoverBegun => self.planned = true,
                DecisionKind::Cleared | DecisionKind::Aborted => self.asked = false,
                DecisionKind::Chosen if !self.planned => self.chosen.push(at),
                _ => {}
            },
            _ => {}
        }
    }
}

impl Rationing {
    fn begins(&self, primary: Option<&NodeName>, past: &Past, rules: &Rules, at: Tick, found: &mut Findings) {
        let (most, span) = rules.budget;
        let spent = self.chosen.iter().filter(|chosen| at.since(**chosen) < span).count();
        if spent >= usize::try_from(most).unwrap_or(usize::MAX) {
            let text = format!(
                "a failover begins after {spent} in {}s; failover.budget allows {most}",
                span.as_secs()
            );
            found.add("failovers_are_rationed", at, text);
        }
        // One that recovers is waited for much longer than that.
        let starts = primary.is_some_and(|primary| past.starting.contains(primary));
        if !starts && past.disturbed.is_none_or(|disturbed| at.since(disturbed) > CONSEQUENCES) {
            let text =
                format!("a failover begins, and nothing went wrong in the last {}s", CONSEQUENCES.as_secs());
            found.add("failovers_have_a_cause", at, text);
        }
    }
}
