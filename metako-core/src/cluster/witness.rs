//! What standbys say of a primary, and by which addresses nodes know each other.

use super::conninfo::{Conninfo, same_host};
use super::node::Moment;
use super::{Controller, settings};
use crate::NodeName;
use crate::plugin::NodeReport;

/// What a standby says of a primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Witness {
    /// It streams from the primary, or from somebody who cannot be told from it.
    Fresh,
    /// It answers and has lost the stream.
    Lost,
    /// It does not answer, or says nothing that counts.
    Unseen,
}

impl Controller {
    /// How many standbys have answered no probe after `since` yet, neither well nor badly. Those that have been silent for
    /// long are not awaited: nothing is to be expected of them.
    pub(super) fn mute_standbys(&self, primary: &NodeName, since: Moment) -> usize {
        let absent = |standby: &NodeName| {
            self.nodes.get(standby).is_some_and(|state| state.failures >= self.settings.failure_threshold)
        };
        self.all_but(primary)
            .iter()
            .filter(|standby| !self.answered_after(standby, since) && !absent(standby))
            .count()
    }

    /// What a node said after `since`, if that still stands.
    pub(super) fn heard_after(&self, name: &NodeName, since: Moment) -> Option<&NodeReport> {
        self.nodes.get(name)?.heard_after(since, self.settings.failure_threshold)
    }

    /// What a standby's answer to a probe after `since` says of the primary.
    pub(super) fn witness(&self, standby: &NodeName, primary: &NodeName, since: Moment) -> Witness {
        self.witness_at(standby, primary, since, self.nodes.len())
    }

    /// A standby that streams from another one knows of the primary what that one knows; `left` bounds the chain.
    fn witness_at(&self, standby: &NodeName, primary: &NodeName, since: Moment, left: usize) -> Witness {
        let Some(report) = self.heard_after(standby, since) else { return Witness::Unseen };
        match self.testimony(standby, report, primary, since, left) {
            // Once lost is lost until it says otherwise; but who streams has to say so with each answer.
            Witness::Fresh if self.report(standby).is_none() => Witness::Unseen,
            testimony => testimony,
        }
    }

    fn testimony(
        &self,
        standby: &NodeName,
        report: &NodeReport,
        primary: &NodeName,
        since: Moment,
        left: usize,
    ) -> Witness {
        // One that metako itself froze lost the stream for no fault of the primary.
        if report.is_primary() || self.is_foreign(report) || settings::has_token(report) {
            return Witness::Unseen;
        }
        let beyond = |timeline| self.journal.as_ref().is_some_and(|journal| timeline > journal.timeline);
        match report.streaming_receiver() {
            None => Witness::Lost,
            // Whoever sends it that is not what the journal's primary is.
            Some(receiver) if beyond(receiver.timeline) => Witness::Lost,
            // From an address that nobody has: it may be the primary under another name.
            Some(receiver) => match self.node_at(&receiver.sender_host, receiver.sender_port) {
                Some(upstream) if upstream == *primary || upstream == *standby => Witness::Fresh,
                None => Witness::Fresh,
                Some(upstream) if self.claims_to_be_primary(&upstream) => Witness::Lost,
                Some(_) if left == 0 => Witness::Unseen,
                Some(upstream) => self.witness_at(&upstream, primary, since, left - 1),
            },
        }
    }

    /// Whether a node last said that it is a primary.
    fn claims_to_be_primary(&self, name: &NodeName) -> bool {
        let report = self.nodes.get(name).and_then(|state| state.report.as_ref());
        report.is_some_and(NodeReport::is_primary)
    }

    /// The node at an address, by how other nodes reach it or by how metako does.
    pub(super) fn node_at(&self, host: &str, port: u16) -> Option<NodeName> {
        let nodes = &self.settings.nodes;
        let by_replication = nodes
            .iter()
            .find(|node| node.replication.port == port && same_host(&node.replication.host, host));
        by_replication
            .or_else(|| nodes.iter().find(|node| node.port == port && same_host(&node.host, host)))
            .map(|node| node.name.clone())
    }

    /// The node that a standby's `primary_conninfo` leads to, if it leads to one of ours.
    pub(super) fn configured_upstream(&self, report: &NodeReport) -> Option<NodeName> {
        let conninfo = Conninfo::parse(settings::setting(report, settings::CONNINFO)?)?;
        let (host, port) = conninfo.address()?;
        self.node_at(host, port)
    }
}
