//! Life and death of a node: kill, start, freeze, and the request of what is not there.

use std::time::Duration;

use super::node::{Process, Received};
use super::{Cluster, NodeEvent};
use crate::chance::Purpose;
use crate::log::NodeChange;
use crate::message::{Answer, Body, Message, Place, QueryAnswer};
use crate::stage::Stage;

/// How many of the last records a restarted node replays again.
pub(super) const REDO_RECORDS: usize = 20;
/// From going on until the postmaster has seen a signal: backends read their sockets meanwhile.
const STOP_SEEN: Duration = Duration::from_millis(2);

impl Cluster {
    /// SIGKILL to all processes: what is not on disk is gone, and the kernel closes all connections.
    pub(crate) fn kill(&mut self, stage: &mut Stage, index: usize) {
        if self.nodes[index].process == Process::Stopped {
            return;
        }
        stage.log_node(&self.name(index), NodeChange::Killed);
        self.nodes[index].wal.crash(REDO_RECORDS);
        self.processes_end(stage, index);
    }

    /// Nothing of the node runs any more, and the kernel closes all connections.
    pub(super) fn processes_end(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        let dead_run = node.run;
        node.process = Process::Stopped;
        node.run += 1;
        node.frozen = false;
        node.stop_pending = false;
        node.closed_log = false;
        node.promoting = false;
        node.flushing = false;
        node.replaying = false;
        node.restart_receiver = false;
        node.retry_pending = false;
        node.nearly_ready = false;
        node.waiters.clear();
        node.stash.clear();
        node.awaiting_disk.clear();
        let receiver = node.receiver.take();
        let senders = std::mem::take(&mut node.senders);
        let here = Place::Node(index);
        stage.send(here, Place::Proxy, Body::Reset { server_run: dead_run });
        for sender in senders {
            stage.send(here, Place::Node(sender.standby), Body::Closed { link: sender.link });
        }
        if let Some(receiver) = receiver {
            stage.send(here, Place::Node(receiver.upstream), Body::Closed { link: receiver.link });
        }
    }

    /// Starts a stopped node: it recovers, and is then what it was before.
    pub(crate) fn start(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        if node.process != Process::Stopped || node.locked {
            return;
        }
        node.process = Process::Starting;
        node.started = stage.now;
        node.received = Received::Nothing;
        let changed = node.settings_to_load();
        node.load_settings();
        let delay = stage.chance.duration(Purpose::Start, index as u64, node.rates.start);
        stage.log_node(&self.name(index), NodeChange::Starting);
        if !changed.is_empty() {
            stage.log_node(&self.name(index), NodeChange::Reloaded { changed });
        }
        self.after(stage, index, delay, NodeEvent::Ready);
    }

    pub(super) fn ready(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        if node.recovering {
            node.nearly_ready = true;
            return;
        }
        node.process = Process::Running;
        if node.primary {
            node.wal.finish_recovery();
            node.control_timeline = node.wal.timeline();
            // Commits that were not acknowledged among it.
            node.visible = node.wal.flushed();
        }
        let change = NodeChange::Ready {
            primary: node.primary,
            timeline: if node.primary { node.wal.timeline() } else { node.wal.flushed_timeline() },
            position: node.wal.flushed(),
        };
        stage.log_node(&self.name(index), change);
        self.schedule_replay(stage, index);
        self.poke_receiver(stage, index);
    }

    /// SIGSTOP to all processes: the kernel still takes connections and data, nobody reads them.
    pub(crate) fn freeze(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        if node.process != Process::Stopped && !node.frozen {
            node.frozen = true;
            stage.log_node(&self.name(index), NodeChange::Frozen);
        }
    }

    /// SIGCONT: what arrived meanwhile, and what was due, happens now, in its order.
    pub(crate) fn thaw(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        if !node.frozen {
            return;
        }
        node.frozen = false;
        let missed = std::mem::take(&mut node.stash);
        stage.log_node(&self.name(index), NodeChange::Thawed);
        for event in missed {
            stage.after(Duration::ZERO, event);
        }
        if std::mem::take(&mut self.nodes[index].stop_pending) {
            self.after(stage, index, STOP_SEEN, NodeEvent::StopSeen);
        }
    }

    /// Its disk stands still: questions are answered and what is on disk is streamed, but nothing is flushed.
    pub(crate) fn stall(&mut self, index: usize) {
        self.nodes[index].stalled = true;
    }

    /// Its disk goes on, with all that waits for it, in its order.
    pub(crate) fn unstall(&mut self, stage: &mut Stage, index: usize) {
        self.nodes[index].stalled = false;
        for event in std::mem::take(&mut self.nodes[index].awaiting_disk) {
            self.after(stage, index, Duration::ZERO, event);
        }
    }

    /// A server process dies, and the postmaster has all others end and recovers: without an end, until it is let.
    pub(crate) fn recover(&mut self, stage: &mut Stage, index: usize) {
        self.nodes[index].recovering = true;
        self.kill(stage, index);
        self.start(stage, index);
    }

    /// The recovery comes to its end.
    pub(crate) fn recovered(&mut self, stage: &mut Stage, index: usize) {
        self.nodes[index].recovering = false;
        if std::mem::take(&mut self.nodes[index].nearly_ready) {
            self.after(stage, index, Duration::ZERO, NodeEvent::Ready);
        }
    }

    /// A message that reaches a node which does not run, or a connection of an earlier run of it. Gives it back if the
    /// node can take it.
    pub(crate) fn turn_away(&mut self, stage: &mut Stage, index: usize, message: Message) -> Option<Message> {
        let node = &self.nodes[index];
        let Message { from, to, body } = message;
        let stopped = node.process == Process::Stopped;
        let starting = node.process == Process::Starting;
        let stopping = node.process == Process::Stopping;
        let answer = match &body {
            Body::Call { call, server_run, .. } => {
                let answer = |answer| Some(Body::Answer { call: *call, answer });
                match *server_run == node.run {
                    false => answer(Answer::Reset),
                    true if stopped => answer(Answer::Refused),
                    true if starting => answer(Answer::Starting),
                    true if stopping => answer(Answer::ShuttingDown),
                    true => None,
                }
            }
            Body::Query { ticket, server_run, vouched, .. } => {
                let answer = |answer| Some(Body::QueryAnswer { ticket: *ticket, answer });
                match *server_run == node.run {
                    false => answer(QueryAnswer::Reset),
                    true if stopped => answer(QueryAnswer::Refused),
                    true if starting || stopping => answer(QueryAnswer::Starting),
                    true if !vouched => answer(QueryAnswer::Stranger),
                    true => None,
                }
            }
            Body::Connect { link, .. } if node.process != Process::Running => {
                let why = match node.process {
                    Process::Stopped => "connection refused",
                    Process::Stopping => "the database system is shutting down",
                    Process::Starting | Process::Running => "the database system is starting up",
                };
                Some(Body::Connected { link: *link, result: Err(why.to_owned()) })
            }
            Body::Wal { link, .. } | Body::StandbyStatus { link, .. } if stopped || starting => {
                Some(Body::Closed { link: *link })
            }
            Body::Connected { .. } | Body::TimelineSwitched { .. } | Body::Closed { .. }
                if stopped || starting =>
            {
                return None;
            }
            _ => None,
        };
        match answer {
            Some(answer) => {
                stage.send(Place::Node(index), from, answer);
                None
            }
            None => Some(Message { from, to, body }),
        }
    }
}
