//! Streaming: walreceivers that connect, receive and are stopped, and walsenders that ship.

use std::time::Duration;

use metako_core::{Lsn, TimelineId};

use super::node::{Process, Received, Receiver, Sender};
use super::{Cluster, NodeEvent};
use crate::chance::Purpose;
use crate::log::NodeChange;
use crate::message::{Body, LinkId, Place};
use crate::scenario::Span;
use crate::stage::{Event, Stage};

/// From a flush until the walsenders run.
const WAKE_SENDERS: Span = Span::micros(100, 3_000);
/// From a changed conninfo until the startup process has stopped the receiver.
const STOP_RECEIVER: Span = Span::millis(2, 30);
/// From the end of a timeline until a cascading receiver goes on in the next.
const SWITCH_TIMELINE: Span = Span::millis(3, 30);

impl Cluster {
    /// Begins a flush if there is something to flush and none is under way.
    pub(super) fn begin_flush(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        if node.flushing || !node.wal.has_unflushed() {
            return;
        }
        node.flushing = true;
        let end = node.wal.written();
        let delay = stage.chance.duration(Purpose::Flush, index as u64, node.rates.fsync);
        self.after(stage, index, delay, NodeEvent::Flushed(end));
    }

    pub(super) fn flushed(&mut self, stage: &mut Stage, index: usize, end: Lsn) {
        let node = &mut self.nodes[index];
        node.flushing = false;
        node.wal.flush_to(end);
        self.wake_senders(stage, index);
        self.end_stop_if_sent(stage, index);
        if self.nodes[index].process == Process::Stopped {
            return;
        }
        if self.nodes[index].primary {
            self.release_waiters(stage, index);
        } else {
            self.nodes[index].received = match self.nodes[index].received {
                Received::From(_) => Received::All,
                other => other,
            };
            self.send_status(stage, index, false);
            self.schedule_replay(stage, index);
        }
        self.begin_flush(stage, index);
    }

    /// Wakes the walsenders, each of which runs when it gets its turn. Until then, what is on disk here is nowhere else,
    /// although it may be acknowledged.
    fn wake_senders(&mut self, stage: &mut Stage, index: usize) {
        let run = self.nodes[index].run;
        for sender in self.nodes[index].senders.iter_mut().filter(|sender| sender.streaming && !sender.waking)
        {
            sender.waking = true;
            let entity = (index as u64) << 32 | sender.standby as u64;
            let delay = stage.chance.duration(Purpose::Ship, entity, WAKE_SENDERS);
            let event = NodeEvent::Ship { link: sender.link };
            stage.after(delay, Event::Node { node: index, run, event });
        }
    }

    /// A walsender sends what is on disk.
    pub(super) fn ship(&mut self, stage: &mut Stage, index: usize, link: LinkId) {
        let node = &mut self.nodes[index];
        let end = node.wal.flushed();
        let Some(sender) = node.senders.iter_mut().find(|sender| sender.link == link) else { return };
        sender.waking = false;
        if sender.streaming && sender.sent < end {
            sender.sent = end;
            stage.send(Place::Node(index), Place::Node(sender.standby), Body::Wal { link, end });
        }
    }

    pub(super) fn wal_received(
        &mut self,
        stage: &mut Stage,
        index: usize,
        upstream: usize,
        link: LinkId,
        end: Lsn,
    ) {
        let Ok([node, source]) = self.nodes.get_disjoint_mut([index, upstream]) else { return };
        let Some(receiver) = node.receiver.as_mut().filter(|receiver| receiver.link == link) else {
            stage.send(Place::Node(index), Place::Node(upstream), Body::Closed { link });
            return;
        };
        receiver.last_message = stage.now;
        receiver.pinged = false;
        if node.wal.receive(&source.wal, end) {
            self.begin_flush(stage, index);
        }
    }

    fn send_status(&mut self, stage: &mut Stage, index: usize, ping: bool) {
        let node = &self.nodes[index];
        if let Some(receiver) = node.receiver.as_ref().filter(|receiver| receiver.timeline.is_some()) {
            let (link, to) = (receiver.link, Place::Node(receiver.upstream));
            let (flushed, replayed) = (node.wal.flushed(), node.wal.replayed());
            stage.send(Place::Node(index), to, Body::StandbyStatus { link, flushed, replayed, ping });
        }
    }

    pub(super) fn status_received(
        &mut self,
        stage: &mut Stage,
        index: usize,
        standby: usize,
        link: LinkId,
        (flushed, replayed): (Lsn, Lsn),
        ping: bool,
    ) {
        let here = Place::Node(index);
        let node = &mut self.nodes[index];
        let Some(sender) = node.senders.iter_mut().find(|sender| sender.link == link) else {
            stage.send(here, Place::Node(standby), Body::Closed { link });
            return;
        };
        sender.flushed = sender.flushed.max(Some(flushed));
        sender.replayed = sender.replayed.max(Some(replayed));
        if ping {
            stage.send(here, Place::Node(standby), Body::Wal { link, end: sender.sent });
        }
        if node.primary {
            self.release_waiters(stage, index);
        }
        self.end_stop_if_sent(stage, index);
    }

    /// What the startup process does when it has replayed everything: stops a receiver whose settings changed, starts one
    /// if there is none.
    pub(super) fn see_to_receiver(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        if node.wal.has_backlog() || node.primary {
            return;
        }
        if !std::mem::take(&mut node.restart_receiver) {
            self.poke_receiver(stage, index);
            return;
        }
        if let Some(receiver) = node.receiver.as_mut().filter(|receiver| !receiver.stopping) {
            receiver.stopping = true;
            let link = receiver.link;
            let delay = stage.chance.duration(Purpose::StopReceiver, index as u64, STOP_RECEIVER);
            self.after(stage, index, delay, NodeEvent::StopReceiver { link });
        } else {
            self.poke_receiver(stage, index);
        }
    }

    pub(super) fn stop_receiver(&mut self, stage: &mut Stage, index: usize, link: LinkId) {
        if self.drop_receiver(stage, index, link, "its settings changed") {
            self.poke_receiver(stage, index);
        }
    }

    /// Ends the receiver of that connection and tells the other side. A receiver that ends in order flushes what it has
    /// received first, so that nothing is written after it is gone. Tells whether there was one.
    pub(super) fn drop_receiver(
        &mut self,
        stage: &mut Stage,
        index: usize,
        link: LinkId,
        reason: &str,
    ) -> bool {
        let node = &mut self.nodes[index];
        let Some(receiver) = node.receiver.take_if(|receiver| receiver.link == link) else { return false };
        stage.send(Place::Node(index), Place::Node(receiver.upstream), Body::Closed { link });
        stage.log_node(&node.name, NodeChange::ReceiverGone { reason: reason.to_owned() });
        if node.wal.has_unflushed() {
            let end = node.wal.written();
            self.flushed(stage, index, end);
        }
        true
    }

    /// Ends the receiver, and has another try after the retry interval.
    fn receiver_failed(&mut self, stage: &mut Stage, index: usize, link: LinkId, reason: &str) {
        if self.drop_receiver(stage, index, link, reason) {
            self.nodes[index].restart_receiver = false;
            self.retry_later(stage, index);
        }
    }

    fn retry_later(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        if !node.retry_pending {
            node.retry_pending = true;
            let delay = node.rates.retry_interval;
            self.after(stage, index, delay, NodeEvent::RetryReceiver);
        }
    }

    /// Starts a receiver, if this is a standby that wants one and has none.
    pub(super) fn poke_receiver(&mut self, stage: &mut Stage, index: usize) {
        let node = &self.nodes[index];
        let at_end = !node.wal.has_backlog() && !node.wal.has_unflushed();
        let idle = node.receiver.is_none() && !node.retry_pending && !node.promoting;
        if node.primary || node.process != Process::Running || !idle || !at_end {
            return;
        }
        let Some((host, port, application_name)) = node.upstream_address() else { return };
        let slot = Some(node.setting("primary_slot_name").to_owned()).filter(|slot| !slot.is_empty());
        let Some(upstream) = self.nodes.iter().position(|other| other.host == host && other.port == port)
        else {
            self.retry_later(stage, index);
            return;
        };
        self.links += 1;
        let link = self.links;
        let (timeline, last_message) = (None, stage.now);
        let node = &mut self.nodes[index];
        let (pinged, stopping) = (false, false);
        let receiver =
            Receiver { link, upstream, host, port, slot, timeline, last_message, pinged, stopping };
        let (slot, timeout) = (receiver.slot.clone(), node.rates.receiver_timeout);
        node.receiver = Some(receiver);
        stage.send(Place::Node(index), Place::Node(upstream), Body::Connect { link, application_name, slot });
        self.after(stage, index, timeout, NodeEvent::ConnectTimedOut { link });
    }

    pub(super) fn connect_timed_out(&mut self, stage: &mut Stage, index: usize, link: LinkId) {
        let connecting =
            self.nodes[index].receiver.as_ref().is_some_and(|receiver| receiver.timeline.is_none());
        if connecting {
            self.receiver_failed(stage, index, link, "no answer to the connection");
        }
    }

    /// A standby asks this node for WAL.
    pub(super) fn connect_requested(
        &mut self,
        stage: &mut Stage,
        index: usize,
        standby: usize,
        link: LinkId,
        application_name: String,
        slot: Option<String>,
    ) {
        let (node, other) = (&self.nodes[index], &self.nodes[standby]);
        let missing = slot.filter(|slot| !node.slots.contains(slot));
        let result = match (missing, other.wal.can_follow(&node.wal)) {
            (Some(slot), _) => Err(format!("replication slot \"{slot}\" does not exist")),
            (None, Err(problem)) => Err(problem.to_string()),
            (None, Ok(())) => Ok(node.wal.timeline()),
        };
        if result.is_ok() {
            if !other.wal.is_prefix_of(&node.wal) {
                let upstream = node.name.clone();
                stage.log_node(&other.name, NodeChange::DivergedUnnoticed { upstream });
            }
            let sent = other.wal.written();
            let (flushed, replayed, streaming, waking) = (None, None, true, false);
            let node = &mut self.nodes[index];
            node.senders.retain(|sender| sender.standby != standby);
            node.senders.push(Sender {
                link,
                standby,
                application_name,
                streaming,
                waking,
                sent,
                flushed,
                replayed,
            });
        }
        stage.send(Place::Node(index), Place::Node(standby), Body::Connected { link, result });
        self.wake_senders(stage, index);
    }

    pub(super) fn connected(
        &mut self,
        stage: &mut Stage,
        index: usize,
        link: LinkId,
        result: Result<TimelineId, String>,
    ) {
        let timeline = match result {
            Ok(timeline) => timeline,
            Err(reason) => return self.receiver_failed(stage, index, link, &reason),
        };
        let Some(upstream) =
            self.nodes[index].receiver.as_ref().filter(|r| r.link == link).map(|r| r.upstream)
        else {
            stage.send(Place::Node(index), Place::Node(self.upstream_of(link)), Body::Closed { link });
            return;
        };
        let upstream_name = self.name(upstream);
        let Ok([node, source]) = self.nodes.get_disjoint_mut([index, upstream]) else { return };
        if node.received == Received::Nothing || node.wal.timeline() != timeline {
            node.received = Received::From(node.wal.segment_start());
        }
        node.wal.follow(&source.wal);
        if let Some(receiver) = &mut node.receiver {
            receiver.timeline = Some(timeline);
            receiver.last_message = stage.now;
        }
        let check = node.rates.receiver_timeout / 2;
        stage.log_node(&self.name(index), NodeChange::Streaming { upstream: upstream_name, timeline });
        self.send_status(stage, index, false);
        self.after(stage, index, check, NodeEvent::CheckReceiver { link });
    }

    /// Who has a walsender for that connection.
    fn upstream_of(&self, link: LinkId) -> usize {
        let holds = |node: &super::Node| node.senders.iter().any(|sender| sender.link == link);
        self.nodes.iter().position(holds).unwrap_or(0)
    }

    /// Half of the time-out without a message: ask for one. The whole: give up.
    pub(super) fn check_receiver(&mut self, stage: &mut Stage, index: usize, link: LinkId) {
        let node = &mut self.nodes[index];
        let timeout = node.rates.receiver_timeout;
        let Some(receiver) = node.receiver.as_mut().filter(|receiver| receiver.link == link) else { return };
        let silent = stage.now.since(receiver.last_message);
        if silent >= timeout {
            return self.receiver_failed(stage, index, link, "the upstream is silent");
        }
        let mut next = timeout.saturating_sub(silent);
        let ask = silent >= timeout / 2 && !receiver.pinged;
        if ask {
            receiver.pinged = true;
        } else if silent < timeout / 2 {
            next = (timeout / 2).saturating_sub(silent);
        }
        if ask {
            self.send_status(stage, index, true);
        }
        self.after(stage, index, next.max(Duration::from_micros(1)), NodeEvent::CheckReceiver { link });
    }

    /// The other side closed a replication connection.
    pub(super) fn closed(&mut self, stage: &mut Stage, index: usize, link: LinkId) {
        self.nodes[index].senders.retain(|sender| sender.link != link);
        self.end_stop_if_sent(stage, index);
        if self.nodes[index].receiver.as_ref().is_some_and(|receiver| receiver.link == link) {
            self.receiver_failed(stage, index, link, "the upstream closed the connection");
        }
    }

    pub(super) fn timeline_switched(&mut self, stage: &mut Stage, index: usize, link: LinkId) {
        let Some(receiver) = self.nodes[index].receiver.as_mut().filter(|receiver| receiver.link == link)
        else {
            return;
        };
        receiver.timeline = None;
        receiver.last_message = stage.now;
        let delay = stage.chance.duration(Purpose::StopReceiver, index as u64, SWITCH_TIMELINE);
        self.after(stage, index, delay, NodeEvent::ResumeStreaming { link });
    }

    pub(super) fn resume_streaming(&mut self, stage: &mut Stage, index: usize, link: LinkId) {
        let node = &self.nodes[index];
        let (Some(receiver), Some((_, _, application_name))) = (&node.receiver, node.upstream_address())
        else {
            return;
        };
        if receiver.link == link && !receiver.stopping {
            let (slot, to) = (receiver.slot.clone(), Place::Node(receiver.upstream));
            let timeout = node.rates.receiver_timeout;
            stage.send(Place::Node(index), to, Body::Connect { link, application_name, slot });
            self.after(stage, index, timeout, NodeEvent::ConnectTimedOut { link });
        }
    }
}
