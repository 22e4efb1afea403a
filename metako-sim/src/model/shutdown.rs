//! A shutdown in order (`pg_ctl stop -m fast`), and what a hook makes of a data directory afterwards.

use std::time::Duration;

use super::node::Process;
use super::{Cluster, NodeEvent};
use crate::chance::Purpose;
use crate::log::NodeChange;
use crate::message::{Body, Place};
use crate::scenario::Span;
use crate::stage::Stage;

/// From the request until all sessions have ended and the shutdown checkpoint is written.
const SESSIONS_END: Span = Span::millis(60, 200);
/// `wal_sender_timeout`: a standby that confirms nothing does not hold the shutdown up for ever.
const SENDERS_GIVE_UP: Duration = Duration::from_mins(1);

impl Cluster {
    /// The postmaster is told to stop: fast, in order.
    pub(crate) fn stop(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        match node.process {
            Process::Stopped | Process::Stopping => return,
            Process::Starting | Process::Running if node.frozen => {
                node.stop_pending = true;
                return;
            }
            Process::Starting => {
                self.processes_end(stage, index);
                return self.log_stopped(stage, index);
            }
            Process::Running => {}
        }
        node.process = Process::Stopping;
        node.promoting = false;
        // Their sessions are ended; what they wrote stays, whether a standby has confirmed it or not.
        node.waiters.clear();
        node.restart_receiver = false;
        let (run, link) = (node.run, node.receiver.as_ref().map(|receiver| receiver.link));
        stage.log_node(&node.name, NodeChange::Stopping);
        stage.send(Place::Node(index), Place::Proxy, Body::Reset { server_run: run });
        if let Some(link) = link {
            self.drop_receiver(stage, index, link, "shutdown");
        }
        let delay = stage.chance.duration(Purpose::Stop, index as u64, SESSIONS_END);
        self.after(stage, index, delay, NodeEvent::SessionsEnded);
        self.after(stage, index, SENDERS_GIVE_UP, NodeEvent::SendersGiveUp);
    }

    pub(super) fn sessions_ended(&mut self, stage: &mut Stage, index: usize) {
        self.nodes[index].closed_log = true;
        if self.nodes[index].primary {
            self.append_other(stage, index);
        }
        self.end_stop_if_sent(stage, index);
    }

    /// Walsenders end when their standby has confirmed everything; the server ends when they have.
    pub(super) fn end_stop_if_sent(&mut self, stage: &mut Stage, index: usize) {
        let node = &self.nodes[index];
        let end = node.wal.flushed();
        let sent =
            node.senders.iter().filter(|sender| sender.streaming).all(|sender| sender.flushed >= Some(end));
        if node.process == Process::Stopping && node.closed_log && !node.wal.has_unflushed() && sent {
            self.stopped(stage, index);
        }
    }

    pub(super) fn senders_give_up(&mut self, stage: &mut Stage, index: usize) {
        let senders = std::mem::take(&mut self.nodes[index].senders);
        for sender in senders {
            stage.send(Place::Node(index), Place::Node(sender.standby), Body::Closed { link: sender.link });
        }
        self.end_stop_if_sent(stage, index);
    }

    fn stopped(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        if node.primary {
            node.control_timeline = node.wal.timeline();
        }
        self.processes_end(stage, index);
        self.log_stopped(stage, index);
    }

    fn log_stopped(&self, stage: &mut Stage, index: usize) {
        let position = self.nodes[index].wal.flushed();
        stage.log_node(&self.name(index), NodeChange::Stopped { position });
    }

    /// A stopped node gets the data of another and becomes its standby, by `pg_rewind` or a copy of everything: the files
    /// of the configuration come from there as well.
    pub(crate) fn copy(
        &mut self,
        stage: &mut Stage,
        index: usize,
        upstream: usize,
        conninfo: &str,
        slot: &str,
    ) {
        let Ok([node, source]) = self.nodes.get_disjoint_mut([index, upstream]) else { return };
        node.primary = false;
        node.system_id = source.system_id;
        node.wal = source.wal.copied(super::lifecycle::REDO_RECORDS);
        node.control_timeline = source.control_timeline;
        node.slots.clear();
        node.written_settings.clone_from(&source.written_settings);
        node.set("primary_conninfo", conninfo);
        node.set("primary_slot_name", slot);
        let (upstream, position) = (source.name.clone(), node.wal.flushed());
        stage.log_node(&node.name, NodeChange::Copied { upstream, position });
    }

    /// While a hook works on its data directory a node cannot be started.
    pub(crate) fn lock(&mut self, index: usize, locked: bool) {
        self.nodes[index].locked = locked;
    }

    /// Whether `pg_rewind` would find the timeline of this node in its control file.
    pub(crate) fn control_file_is_current(&self, index: usize) -> bool {
        self.nodes[index].control_timeline == self.nodes[index].wal.timeline()
    }
}
