//! What hooks may do to the hosts of nodes.

use std::collections::BTreeMap;

use metako_core::cluster::{Action, ActionId, HookCall, HookKind};
use metako_core::{NodeName, Tick};

use super::{Checker, Findings, Past, Rules};
use crate::log::{Entry, LogEvent, NodeChange};

#[derive(Default)]
pub(super) struct Servers {
    /// Stops that were called and have no answer yet. One that was given up may take effect whenever it likes.
    stops: BTreeMap<ActionId, NodeName>,
}

impl Checker for Servers {
    fn observe(&mut self, entry: &Entry, past: &Past, _: &Rules, found: &mut Findings) {
        match &entry.event {
            LogEvent::Action(Action::Hook { id, call }) => self.hook(*id, call, past, entry.at, found),
            LogEvent::Answered { id, .. } => {
                self.stops.remove(id);
            }
            LogEvent::ProxyKilled => self.stops.clear(),
            LogEvent::Node { node, change: NodeChange::Stopping }
                if self.stops.values().any(|stopped| stopped == node) =>
            {
                nothing_under_way(node, "stops", past, entry.at, found);
            }
            _ => {}
        }
    }
}

impl Servers {
    fn hook(&mut self, id: ActionId, call: &HookCall, past: &Past, at: Tick, found: &mut Findings) {
        let node = &call.node;
        match call.kind {
            HookKind::Stop => {
                self.stops.insert(id, node.clone());
                nothing_under_way(node, "is to be stopped", past, at, found);
            }
            HookKind::Rejoin if past.present.as_ref() == Some(node) => {
                let text = format!("{node} is to be rejoined, and is the primary");
                found.add("the_primary_is_not_rejoined", at, text);
            }
            HookKind::Rejoin if call.upstream != past.present => {
                let text = format!(
                    "{node} is to be rejoined to {:?}, but {:?} is primary",
                    call.upstream, past.present
                );
                found.add("the_primary_is_not_rejoined", at, text);
            }
            HookKind::Rejoin => {}
        }
    }
}

fn nothing_under_way(node: &NodeName, what: &str, past: &Past, at: Tick, found: &mut Findings) {
    let open = past.under_way.values().filter(|(to, _)| to == node).count();
    if open > 0 {
        let text = format!("{node} {what} while {open} writes are open on it");
        found.add("stopped_without_open_writes", at, text);
    }
}
