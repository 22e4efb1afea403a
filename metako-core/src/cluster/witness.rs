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

/// Where a standby's stream comes from in the end, by what it and those between say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// It answers and has no stream, or one of somebody who claims to be another primary.
    Nowhere,
    /// The primary.
    Primary,
    /// An address that nobody has: it may be the primary under another name.
    Unknown,
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
        match self.source(standby, primary, since) {
            Source::Nowhere => Witness::Lost,
            Source::Primary | Source::Unknown => Witness::Fresh,
            Source::Unseen => Witness::Unseen,
        }
    }

    /// Where a standby's stream comes from, by answers to probes after `since`.
    pub(super) fn source(&self, standby: &NodeName, primary: &NodeName, since: Moment) -> Source {
        self.source_at(standby, primary, since, self.nodes.len())
    }

    /// A standby that streams from another one knows of the primary what that one knows; `left` bounds the chain.
    fn source_at(&self, standby: &NodeName, primary: &NodeName, since: Moment, left: usize) -> Source {
        let Some(report) = self.heard_after(standby, since) else { return Source::Unseen };
        match self.testimony(standby, report, primary, since, left) {
            // Once lost is lost until it says otherwise; but who streams has to say so with each answer.
            Source::Primary | Source::Unknown if self.report(standby).is_none() => Source::Unseen,
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
    ) -> Source {
        // One that metako itself froze lost the stream for no fault of the primary.
        if report.is_primary() || self.is_foreign(report) || settings::has_token(report) {
            return Source::Unseen;
        }
        let beyond = |timeline| self.journal.as_ref().is_some_and(|journal| timeline > journal.timeline);
        match report.streaming_receiver() {
            None => Source::Nowhere,
            // Whoever sends it that is not what the journal's primary is.
            Some(receiver) if beyond(receiver.timeline) => Source::Nowhere,
            Some(receiver) => match self.node_at(&receiver.sender_host, receiver.sender_port) {
                Some(upstream) if upstream == *primary => Source::Primary,
                Some(upstream) if upstream == *standby => Source::Unknown,
                None => Source::Unknown,
                Some(upstream) if self.claims_to_be_primary(&upstream) => Source::Nowhere,
                Some(_) if left == 0 => Source::Unseen,
                Some(upstream) => self.source_at(&upstream, primary, since, left - 1),
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
