//! The startup process of a standby: replay, and the settings that it reads.

use metako_core::Lsn;

use super::node::Process;
use super::{Cluster, NodeEvent};
use crate::chance::Purpose;
use crate::log::NodeChange;
use crate::stage::Stage;

impl Cluster {
    /// Schedules the next step of replay, if there is something to replay and none is scheduled.
    pub(super) fn schedule_replay(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        let Some(next) = node.wal.next_to_replay().copied() else { return };
        if node.replaying || node.primary || node.process != Process::Running {
            return;
        }
        node.replaying = true;
        node.replay_generation += 1;
        let apply_delay = node.apply_delay();
        let work = stage.chance.duration(Purpose::Replay, index as u64, node.rates.replay_delay);
        let wait = (next.written + apply_delay).since(stage.now);
        // With a delay each record waits for its own time; without, all that is there is replayed at once.
        let end = if apply_delay.is_zero() { node.wal.flushed() } else { next.end };
        let event = NodeEvent::Replayed { generation: node.replay_generation, end };
        self.after(stage, index, work.max(wait), event);
    }

    pub(super) fn replayed(&mut self, stage: &mut Stage, index: usize, generation: u64, end: Lsn) {
        let node = &mut self.nodes[index];
        if node.replay_generation != generation || node.primary {
            return;
        }
        node.replaying = false;
        node.wal.replay_to(end);
        if node.wal.has_backlog() {
            self.schedule_replay(stage, index);
        } else {
            self.see_to_receiver(stage, index);
        }
    }

    /// Settings that were written are read by the server's processes.
    pub(super) fn reloaded(&mut self, stage: &mut Stage, index: usize, changed: Vec<(String, String)>) {
        let node = &mut self.nodes[index];
        let names: Vec<&str> = changed.iter().map(|(name, _)| name.as_str()).collect();
        let receiver_changed =
            names.iter().any(|name| matches!(*name, "primary_conninfo" | "primary_slot_name"));
        let delay_changed = names.contains(&"recovery_min_apply_delay");
        node.load_settings();
        stage.log_node(&node.name, NodeChange::Reloaded { changed });
        if delay_changed {
            node.replaying = false;
            node.replay_generation += 1;
            self.schedule_replay(stage, index);
        }
        if self.nodes[index].primary {
            self.release_waiters(stage, index);
        } else if receiver_changed {
            self.nodes[index].restart_receiver = true;
            self.see_to_receiver(stage, index);
        }
    }
}
