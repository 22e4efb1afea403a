//! What a server does when it is asked: commit, read, change settings, promote.

use std::collections::BTreeMap;
use std::time::Duration;

use metako_core::cluster::{ActionFailure, ActionOutcome, Promotion, SettingsChange};
use metako_core::{Epoch, Lsn};

use super::node::{Process, Waiter, Who};
use super::wal::Payload;
use super::{Cluster, NodeEvent, SyncNames};
use crate::chance::Purpose;
use crate::log::NodeChange;
use crate::message::{ANSWER_MICROS, Answer, Body, CallId, Place, QueryAnswer, Request, Ticket};
use crate::scenario::Span;
use crate::stage::Stage;

/// From a reload until all processes have read the settings.
const RELOAD: Span = Span::millis(1, 10);
/// Writing a checkpoint.
const CHECKPOINT: Span = Span::millis(5, 400);

impl Cluster {
    /// A client's request.
    pub(super) fn queried(&mut self, stage: &mut Stage, index: usize, ticket: Ticket, write: bool) {
        let node = &self.nodes[index];
        let (primary, visible) = (node.primary, node.visible);
        let timeline = if primary { node.wal.timeline() } else { node.wal.flushed_timeline() };
        if write && primary {
            let end = self.append(stage, index, Payload::Write(ticket.id));
            self.nodes[index].waiters.push(Waiter { end, who: Who::Client(ticket) });
            return;
        }
        let answer =
            if write { QueryAnswer::ReadOnly } else { QueryAnswer::Done { primary, timeline, visible } };
        self.answer_later(stage, index, Body::QueryAnswer { ticket, answer });
    }

    /// A call of the control plane, other than a probe.
    pub(super) fn called(&mut self, stage: &mut Stage, index: usize, call: CallId, request: Request) {
        match request {
            Request::Probe => unreachable!("the world runs probe strategies"),
            Request::Apply { slots, change } => self.apply(stage, index, call, slots, change),
            Request::Promote(promotion) => {
                let outcome = self.promote(stage, index, &promotion);
                self.answer_later(stage, index, Body::Answer { call, answer: Answer::Action(Ok(outcome)) });
            }
            Request::Verify(epoch) => self.verify(stage, index, call, epoch),
            Request::DropSlots(slots) => {
                let receivers = self.nodes.iter().filter_map(|node| node.receiver.as_ref());
                let used: Vec<String> = receivers
                    .filter(|receiver| receiver.upstream == index)
                    .filter_map(|receiver| receiver.slot.clone())
                    .collect();
                self.nodes[index].slots.retain(|slot| !slots.contains(slot) || used.contains(slot));
                let answer = Answer::Action(Ok(ActionOutcome::Done));
                self.answer_later(stage, index, Body::Answer { call, answer });
            }
            Request::Checkpoint => self.checkpoint(stage, index, call),
        }
    }

    fn answer_later(&mut self, stage: &mut Stage, index: usize, body: Body) {
        let (low, high) = ANSWER_MICROS;
        let delay = stage.chance.duration(Purpose::Answer, index as u64, Span::micros(low, high));
        self.after(stage, index, delay, NodeEvent::Send { to: Place::Proxy, body });
    }

    /// Writes a record and has it flushed.
    pub(super) fn append(&mut self, stage: &mut Stage, index: usize, payload: Payload) -> Lsn {
        let bytes = stage.chance.between(Purpose::Record, index as u64, 7, 30) * 8;
        let end = self.nodes[index].wal.append(payload, bytes, stage.now);
        self.begin_flush(stage, index);
        end
    }

    /// Writes a record that no client asked for.
    pub(super) fn append_other(&mut self, stage: &mut Stage, index: usize) -> Lsn {
        self.others += 1;
        self.append(stage, index, Payload::Other(self.others))
    }

    /// CHECKPOINT, or a restartpoint on a standby; other requests do not wait for it.
    fn checkpoint(&mut self, stage: &mut Stage, index: usize, call: CallId) {
        if self.nodes[index].promoting {
            let problem = "the node is being promoted".to_owned();
            let answer = Answer::Action(Err(ActionFailure::Unknown(problem)));
            return self.answer_later(stage, index, Body::Answer { call, answer });
        }
        let delay = stage.chance.duration(Purpose::Checkpoint, index as u64, CHECKPOINT);
        self.after(stage, index, delay, NodeEvent::CheckpointEnds { call });
    }

    pub(super) fn checkpoint_ends(&mut self, stage: &mut Stage, index: usize, call: CallId) {
        let node = &mut self.nodes[index];
        node.control_timeline = if node.primary { node.wal.timeline() } else { node.wal.flushed_timeline() };
        stage.log_node(&node.name, NodeChange::Checkpointed);
        if self.nodes[index].primary {
            self.append_other(stage, index);
        }
        let answer = Answer::Action(Ok(ActionOutcome::Done));
        stage.send(Place::Node(index), Place::Proxy, Body::Answer { call, answer });
    }

    /// Answers the commits that need to wait no longer.
    pub(super) fn release_waiters(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        if node.waiters.is_empty() {
            return;
        }
        // What ALTER SYSTEM would refuse was never written.
        let names = SyncNames::parse(node.setting("synchronous_standby_names")).unwrap_or(SyncNames::Nobody);
        let flushed = node.wal.flushed();
        let confirmed = if names == SyncNames::Nobody {
            flushed
        } else {
            let mut standbys: BTreeMap<&str, Lsn> = BTreeMap::new();
            for sender in node.senders.iter().filter(|sender| sender.streaming) {
                if let Some(flushed) = sender.flushed {
                    let position = standbys.entry(&sender.application_name).or_default();
                    *position = flushed.max(*position);
                }
            }
            match names.confirmed(&standbys) {
                Some(confirmed) => confirmed.min(flushed),
                None => return,
            }
        };
        node.visible = node.visible.max(confirmed);
        let ready = node.waiters.partition_point(|waiter| waiter.end <= confirmed);
        let timeline = node.wal.timeline();
        for waiter in node.waiters.drain(..ready) {
            let body = match waiter.who {
                Who::Client(ticket) => {
                    let answer = QueryAnswer::Done { primary: true, timeline, visible: node.visible };
                    Body::QueryAnswer { ticket, answer }
                }
                Who::Call(call) => Body::Answer { call, answer: Answer::Action(Ok(ActionOutcome::Done)) },
            };
            stage.send(Place::Node(index), Place::Proxy, body);
        }
    }

    /// ALTER SYSTEM for each setting, then one reload; answered when the settings are in force.
    fn apply(
        &mut self,
        stage: &mut Stage,
        index: usize,
        call: CallId,
        slots: Vec<String>,
        change: SettingsChange,
    ) {
        let node = &mut self.nodes[index];
        for (name, value) in &change.set {
            let names_ok = name != "synchronous_standby_names"
                || value.as_ref().is_none_or(|value| SyncNames::parse(value).is_ok());
            if !names_ok {
                let problem = format!("invalid value for parameter \"{name}\": {value:?}");
                let answer = Answer::Action(Err(ActionFailure::Unknown(problem)));
                return self.answer_later(stage, index, Body::Answer { call, answer });
            }
        }
        node.slots.extend(slots);
        let reload = self.write_settings(stage, index, change);
        let answer = Answer::Action(Ok(ActionOutcome::Done));
        self.after(
            stage,
            index,
            reload,
            NodeEvent::Send { to: Place::Proxy, body: Body::Answer { call, answer } },
        );
    }

    /// Writes settings to disk, and has them in force after the time that is returned.
    fn write_settings(&mut self, stage: &mut Stage, index: usize, change: SettingsChange) -> Duration {
        let node = &mut self.nodes[index];
        let mut changed = Vec::new();
        for (name, value) in change.set {
            let value = value.unwrap_or_default();
            if node.written_settings.insert(name.clone(), value.clone()).as_ref() != Some(&value) {
                changed.push((name, value));
            }
        }
        let reload = stage.chance.duration(Purpose::Reload, index as u64, RELOAD);
        self.after(stage, index, reload, NodeEvent::Reloaded { changed });
        reload
    }

    /// `pg_promote(false)`, if the token is there.
    fn promote(&mut self, stage: &mut Stage, index: usize, promotion: &Promotion) -> ActionOutcome {
        let node = &self.nodes[index];
        if node.primary || node.promoting {
            return ActionOutcome::Done;
        }
        if node.setting("primary_slot_name") != promotion.token {
            return ActionOutcome::Declined;
        }
        self.begin_promotion(stage, index);
        ActionOutcome::Done
    }

    /// Somebody else promotes a standby, and has the other standbys that run follow it.
    pub(crate) fn hand_over(&mut self, stage: &mut Stage, index: usize) {
        let node = &self.nodes[index];
        if node.process != Process::Running || node.primary || node.promoting {
            return;
        }
        let upstream = format!("host={} port={}", node.host, node.port);
        self.begin_promotion(stage, index);
        for other in 0..self.nodes.len() {
            let standby = &self.nodes[other];
            if other != index && standby.process == Process::Running && !standby.primary {
                let conninfo = format!("{upstream} application_name={}", standby.application_name);
                let set = vec![
                    ("primary_conninfo".to_owned(), Some(conninfo)),
                    ("primary_slot_name".to_owned(), None),
                ];
                self.write_settings(stage, other, SettingsChange { set, resume_replay: false });
            }
        }
    }

    fn begin_promotion(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        node.promoting = true;
        let link = node.receiver.as_ref().map(|receiver| receiver.link);
        let delay = stage.chance.duration(Purpose::Promote, index as u64, node.rates.promote);
        stage.log_node(&self.name(index), NodeChange::Promoting);
        if let Some(link) = link {
            self.drop_receiver(stage, index, link, "promotion");
        }
        self.after(stage, index, delay, NodeEvent::PromotionEnds);
    }

    pub(super) fn promotion_ends(&mut self, stage: &mut Stage, index: usize) {
        let node = &mut self.nodes[index];
        if !node.promoting {
            return;
        }
        let (timeline, fork) = node.wal.begin_timeline();
        node.promoting = false;
        node.primary = true;
        node.visible = fork;
        node.flushing = false;
        node.replaying = false;
        for sender in &mut node.senders {
            sender.streaming = false;
            let body = Body::TimelineSwitched { link: sender.link };
            stage.send(Place::Node(index), Place::Node(sender.standby), body);
        }
        let ahead = self
            .nodes
            .iter()
            .filter(|node| node.wal.flushed() > fork)
            .map(|node| node.name.clone())
            .collect();
        stage.log_node(&self.name(index), NodeChange::Promoted { timeline, fork, ahead });
        self.append_other(stage, index);
    }

    fn verify(&mut self, stage: &mut Stage, index: usize, call: CallId, epoch: Epoch) {
        if !self.nodes[index].primary {
            let answer = Answer::Action(Err(ActionFailure::Failed("still in recovery".to_owned())));
            return self.answer_later(stage, index, Body::Answer { call, answer });
        }
        self.others += 1;
        let end = self.append(stage, index, Payload::Marker(epoch, self.others));
        self.nodes[index].waiters.push(Waiter { end, who: Who::Call(call) });
    }
}
