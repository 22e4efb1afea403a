//! What becomes of each request: a fenced write is never a success and is never sent again, and nobody is held without end
//! (I12, I15).

use std::collections::{BTreeMap, BTreeSet};

use metako_core::{Epoch, NodeName, Tick};

use super::{Checker, Findings, Past, Rules};
use crate::log::{ClientEvent, Entry, LogEvent};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Request {
    Write(u64),
    ReadOf(u32),
}

#[derive(Default)]
pub(super) struct Statements {
    /// Writes whose clients were told that the outcome is unknown.
    unknown: BTreeSet<u64>,
    /// Who is held, and since when.
    held: BTreeMap<Request, Tick>,
}

impl Checker for Statements {
    fn observe(&mut self, entry: &Entry, past: &Past, rules: &Rules, found: &mut Findings) {
        match &entry.event {
            LogEvent::Client(event) => self.client(entry.at, event, past, rules, found),
            LogEvent::Severed { node, epoch } => {
                let open = |(_, (to, of)): &(&u64, &(NodeName, Epoch))| to == node && of < epoch;
                if let Some((id, _)) = past.under_way.iter().find(open) {
                    let text = format!(
                        "{node} was fenced for epoch {epoch}, and the client of write {id:x}, which was under way, was not told"
                    );
                    found.add("fenced_is_unknown", entry.at, text);
                }
            }
            LogEvent::End(_) => {
                let held: Vec<Request> = self.held.keys().copied().collect();
                for request in held {
                    self.goes_on(entry.at, request, rules, found);
                }
            }
            _ => {}
        }
    }
}

impl Statements {
    fn client(&mut self, at: Tick, event: &ClientEvent, past: &Past, rules: &Rules, found: &mut Findings) {
        let (id, what) = match event {
            ClientEvent::Held { id } => (*id, "held"),
            ClientEvent::Sent { id, .. } => (*id, "sent"),
            ClientEvent::Acknowledged { id, .. } => (*id, "acknowledged"),
            ClientEvent::Unknown { id, .. } => (*id, "called unknown"),
            ClientEvent::Failed { id, .. } => (*id, "called failed"),
            ClientEvent::ReadHeld { client } => {
                self.held.entry(Request::ReadOf(*client)).or_insert(at);
                return;
            }
            ClientEvent::ReadSent { client, .. } | ClientEvent::ReadFailed { client, .. } => {
                return self.goes_on(at, Request::ReadOf(*client), rules, found);
            }
            ClientEvent::Discarded { .. } | ClientEvent::Read { .. } => return,
        };
        if self.unknown.contains(&id) {
            let text =
                format!("write {id:x} was {what} after its client was told that the outcome is unknown");
            found.add("unknown_is_final", at, text);
        }
        match event {
            ClientEvent::Held { .. } => {
                self.held.entry(Request::Write(id)).or_insert(at);
                return;
            }
            ClientEvent::Sent { node, .. } => {
                if let Some((before, _)) = past.under_way.get(&id) {
                    let text = format!("write {id:x} was sent to {node}, and {before} had not answered it");
                    found.add("sent_once", at, text);
                }
            }
            ClientEvent::Unknown { .. } => {
                self.unknown.insert(id);
            }
            _ => {}
        }
        self.goes_on(at, Request::Write(id), rules, found);
    }

    /// Somebody is not held any more, or the run is over.
    fn goes_on(&mut self, at: Tick, request: Request, rules: &Rules, found: &mut Findings) {
        let Some(since) = self.held.remove(&request) else { return };
        let held = at.since(since);
        if held > rules.hold_timeout {
            let text = format!(
                "{request:?} was held for {}ms; failover.hold_timeout is {}ms",
                held.as_millis(),
                rules.hold_timeout.as_millis()
            );
            found.add("held_is_answered", at, text);
        }
    }
}
