//! Every decision is explained, and every change of phase is decided.

use metako_core::Tick;
use metako_core::cluster::{DecisionKind, Phase};

use super::{Checker, Findings, Past, Rules};
use crate::log::{Entry, LogEvent};

#[derive(Default)]
pub(super) struct Decisions {
    /// Something was decided since the last view.
    decided: bool,
    /// A change of phase that nobody has decided yet; what is decided comes in the same moment.
    undecided: Option<(Tick, String)>,
    /// The phase that was decided on, and is entered after a checkpoint or when the journal is on disk.
    awaited: Option<&'static str>,
}

impl Checker for Decisions {
    fn observe(&mut self, entry: &Entry, past: &Past, _: &Rules, found: &mut Findings) {
        if let Some((at, text)) = self.undecided.take_if(|(at, _)| *at < entry.at) {
            found.add("phases_are_decided", at, text);
        }
        match &entry.event {
            LogEvent::Decision(decision) => {
                self.decided = true;
                self.undecided = None;
                match decision.kind {
                    DecisionKind::SwitchoverBegun => self.awaited = Some("draining"),
                    DecisionKind::Aborted => self.awaited = Some("steady"),
                    _ => {}
                }
                if decision.reason.trim().is_empty() {
                    let text = format!("{} was decided without a reason", decision.kind.name());
                    found.add("decisions_are_explained", entry.at, text);
                }
            }
            LogEvent::View { phase, .. } => {
                let decided = std::mem::take(&mut self.decided);
                let before = past.phase.as_ref().map(Phase::name).filter(|before| *before != phase.name());
                // Whatever else comes first, it was decided in another state of things.
                let awaited = before.is_some() && self.awaited.take() == Some(phase.name());
                let decided = decided || awaited;
                if let Some(before) = before.filter(|before| !decided && !is_a_step(before, phase.name())) {
                    let text = format!("the phase went from {before} to {} by no decision", phase.name());
                    self.undecided = Some((entry.at, text));
                }
            }
            LogEvent::ProxyKilled => *self = Self::default(),
            _ => {}
        }
    }
}

/// Whether a phase follows from the decision that led to the one before it.
fn is_a_step(before: &str, after: &str) -> bool {
    matches!((before, after), ("draining", "stopping") | ("stopping" | "fencing", "freezing"))
}
