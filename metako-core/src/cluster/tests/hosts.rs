//! What hooks do on the hosts of scripted nodes, and who may be read from.

use super::fake::{Fake, Line};
use super::lab::Lab;
use crate::NodeName;
use crate::cluster::HookCall;

impl Lab {
    /// A clean stop: those who stream get everything first.
    pub(super) fn stop(&mut self, node: &NodeName) {
        self.stream();
        if let Some(fake) = self.nodes.get_mut(node) {
            fake.line = Line::Refused;
            fake.reachable_by_others = false;
        }
    }

    pub(super) fn rejoin(&mut self, call: &HookCall) {
        let Some(upstream) = call.upstream.as_ref().and_then(|name| self.nodes.get(name)).cloned() else {
            return;
        };
        let Some(fake) = self.nodes.get_mut(&call.node) else { return };
        let conninfo = call.conninfo.as_ref().unwrap().reveal().to_owned();
        let slot = call.slot.clone().unwrap();
        *fake = Fake {
            timeline: upstream.timeline,
            received: Some(upstream.position()),
            replayed: upstream.position(),
            started_at: fake.started_at + 1,
            ..Fake::new(fake.port, false)
        };
        fake.settings.insert("primary_conninfo".to_owned(), conninfo);
        fake.settings.insert("primary_slot_name".to_owned(), slot);
    }

    /// The names of those that the view lets serve reads.
    pub(super) fn readers(&self) -> Vec<&str> {
        let fit = |node: &&crate::cluster::NodeView| node.reads == crate::cluster::ReadFitness::Fit;
        self.view.nodes.iter().filter(fit).map(|node| node.name.as_str()).collect()
    }
}
