//! PostgreSQL replication as it looks from outside: what a client, a proxy and another node can see and cause.
//!
//! Nodes have a write-ahead log with positions and timelines, settings, slots, walsenders and a walreceiver. They commit,
//! wait for synchronous standbys, stream, replay, crash, recover, freeze and are promoted. What is not in the model is
//! answered as unsupported, never guessed.

mod access;
mod conninfo;
mod lifecycle;
mod node;
mod replay;
mod replication;
mod server;
mod shutdown;
mod sync_names;
mod wal;

#[cfg(test)]
mod tests;

use metako_core::{Lsn, NodeName};

use crate::message::{Body, CallId, LinkId, Place};
use crate::stage::{Event, Stage};

pub(crate) use access::{Access, probe_failed};
pub(crate) use node::{Node, NodeSpec, Process, Rates};
pub(crate) use sync_names::SyncNames;

/// Something that happens within a node, at a time of its own.
#[derive(Debug)]
pub(crate) enum NodeEvent {
    /// Start or crash recovery is over.
    Ready,
    /// WAL up to here is on disk.
    Flushed(Lsn),
    /// A walsender runs.
    Ship { link: LinkId },
    /// WAL up to here is replayed.
    Replayed { generation: u64, end: Lsn },
    /// Changed settings are read.
    Reloaded { changed: Vec<(String, String)> },
    /// Time to connect to the upstream again.
    RetryReceiver,
    /// The upstream did not answer.
    ConnectTimedOut { link: LinkId },
    /// The startup process stops the receiver, because its settings changed.
    StopReceiver { link: LinkId },
    /// Time to look whether the upstream is silent.
    CheckReceiver { link: LinkId },
    /// A receiver goes on after its upstream switched timelines.
    ResumeStreaming { link: LinkId },
    /// A promotion ends.
    PromotionEnds,
    /// A checkpoint is written, which a call asked for.
    CheckpointEnds { call: CallId },
    /// The request to stop, which came while the node was frozen, is seen.
    StopSeen,
    /// All sessions have ended: the shutdown checkpoint is written.
    SessionsEnded,
    /// Walsenders that nobody confirms anything to give up.
    SendersGiveUp,
    /// An answer that took time is ready.
    Send { to: Place, body: Body },
}

impl NodeEvent {
    /// Whether it is the end of something that was written to disk.
    fn needs_disk(&self) -> bool {
        matches!(
            self,
            Self::Ready
                | Self::Flushed(_)
                | Self::PromotionEnds
                | Self::CheckpointEnds { .. }
                | Self::SessionsEnded
        )
    }
}

/// All nodes.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    links: LinkId,
    /// Counts records that no client wrote, so that no two are equal.
    others: u64,
}

impl Cluster {
    /// A cluster that runs and streams: `primary` is the primary, the others are its standbys.
    pub(crate) fn new(specs: Vec<NodeSpec>, primary: usize, synchronous_standby_names: &str) -> Self {
        let upstream = specs[primary].clone();
        let mut nodes: Vec<Node> = specs.into_iter().map(Node::new).collect();
        for (index, node) in nodes.iter_mut().enumerate() {
            if index == primary {
                node.set("synchronous_standby_names", synchronous_standby_names);
            } else {
                node.make_standby_of(&upstream);
            }
        }
        for index in (0..nodes.len()).filter(|index| *index != primary) {
            let slot = nodes[index].slot_name();
            nodes[primary].slots.insert(slot);
        }
        Self { nodes, links: 0, others: 0 }
    }

    /// Lets all standbys connect: to be called once, at the start.
    pub(crate) fn begin(&mut self, stage: &mut Stage) {
        for index in 0..self.nodes.len() {
            self.poke_receiver(stage, index);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name.as_str() == name)
    }

    /// The other nodes that have on disk all of a node's writes up to a position.
    pub(crate) fn holders(&self, index: usize, position: Lsn) -> Vec<NodeName> {
        let wal = &self.nodes[index].wal;
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != index);
        others
            .filter(|(_, other)| other.wal.has_write_of(wal, position))
            .map(|(_, other)| other.name.clone())
            .collect()
    }

    /// Handles an event of a node that is not frozen and is still in the run that the event belongs to.
    pub(crate) fn handle(&mut self, stage: &mut Stage, index: usize, event: NodeEvent) {
        if self.nodes[index].stalled && event.needs_disk() {
            return self.nodes[index].awaiting_disk.push(event);
        }
        match event {
            NodeEvent::Ready => self.ready(stage, index),
            NodeEvent::Flushed(end) => self.flushed(stage, index, end),
            NodeEvent::Ship { link } => self.ship(stage, index, link),
            NodeEvent::Replayed { generation, end } => self.replayed(stage, index, generation, end),
            NodeEvent::Reloaded { changed } => self.reloaded(stage, index, changed),
            NodeEvent::RetryReceiver => {
                self.nodes[index].retry_pending = false;
                self.poke_receiver(stage, index);
            }
            NodeEvent::ConnectTimedOut { link } => self.connect_timed_out(stage, index, link),
            NodeEvent::StopReceiver { link } => self.stop_receiver(stage, index, link),
            NodeEvent::CheckReceiver { link } => self.check_receiver(stage, index, link),
            NodeEvent::ResumeStreaming { link } => self.resume_streaming(stage, index, link),
            NodeEvent::PromotionEnds => self.promotion_ends(stage, index),
            NodeEvent::CheckpointEnds { call } => self.checkpoint_ends(stage, index, call),
            NodeEvent::StopSeen => self.stop(stage, index),
            NodeEvent::SessionsEnded => self.sessions_ended(stage, index),
            NodeEvent::SendersGiveUp => self.senders_give_up(stage, index),
            NodeEvent::Send { to, body } => stage.send(Place::Node(index), to, body),
        }
    }

    /// Handles a message to a running node that is not frozen; probes are not among them.
    pub(crate) fn receive(&mut self, stage: &mut Stage, index: usize, from: Place, body: Body) {
        match (from, body) {
            (_, Body::Call { call, request, .. }) => self.called(stage, index, call, request),
            (_, Body::Query { ticket, write, .. }) => self.queried(stage, index, ticket, write),
            (Place::Node(peer), Body::Connect { link, application_name, slot }) => {
                self.connect_requested(stage, index, peer, link, application_name, slot);
            }
            (_, Body::Connected { link, result }) => self.connected(stage, index, link, result),
            (Place::Node(peer), Body::Wal { link, end }) => self.wal_received(stage, index, peer, link, end),
            (_, Body::TimelineSwitched { link }) => self.timeline_switched(stage, index, link),
            (Place::Node(peer), Body::StandbyStatus { link, flushed, replayed, ping }) => {
                self.status_received(stage, index, peer, link, (flushed, replayed), ping);
            }
            (_, Body::Closed { link }) => self.closed(stage, index, link),
            (_, body @ (Body::Answer { .. } | Body::QueryAnswer { .. } | Body::Reset { .. })) => {
                unreachable!("{body:?} goes to the proxy")
            }
            (Place::Proxy, body) => unreachable!("{body:?} does not come from the proxy"),
        }
    }

    /// Keeps what a frozen node does not see yet.
    pub(crate) fn keep(&mut self, index: usize, event: Event) {
        self.nodes[index].stash.push(event);
    }

    /// Schedules something within a node; it does not happen if the node is killed before.
    fn after(&self, stage: &mut Stage, index: usize, delay: std::time::Duration, event: NodeEvent) {
        stage.after(delay, Event::Node { node: index, run: self.nodes[index].run, event });
    }

    fn name(&self, index: usize) -> NodeName {
        self.nodes[index].name.clone()
    }
}
