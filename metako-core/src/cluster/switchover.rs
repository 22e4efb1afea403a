//! A switchover: another primary, while the present one is well, without a failed transaction or a lost row.
//!
//! A checkpoint first, so that the stop is short. Then writes are held and open transactions come to their end; the
//! candidate gets what is left; the old primary is fenced and stopped by `hooks.stop`, which sends its last WAL to all who
//! stream from it. From there on it is a failover: freeze, choose, promote, verify. Until then everything is undone
//! where a step fails: the old primary serves on, in a new epoch, because epochs do not go back.

use serde::{Deserialize, Serialize};

use super::controller::Then;
use super::node::Moment;
use super::work::{Lane, Task};
use super::{Action, ActionFailure, Controller, DecisionKind, HookCall, HookKind, JournalPhase, Phase};
use crate::plugin::PrimaryEvidence;
use crate::{Lsn, NodeName};

/// A switchover that was asked for, until writes are held for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Planned {
    pub(super) to: NodeName,
}

/// Where the drain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Drain {
    /// Only probes after it say how the old primary is.
    began: Moment,
    /// No transaction was open any more then.
    done: Option<Moment>,
    /// What the candidate has to have: where the old primary was after that. It moves on, by metako's own probes as well.
    end: Option<Lsn>,
}

impl Controller {
    /// Somebody asked for it, and it may be.
    pub(super) fn plan_switchover(&mut self, to: NodeName) {
        let Some(primary) = self.phase_primary().cloned() else { return };
        let reason = format!(
            "an operator asked for it: {to} is to follow {primary}; {primary} writes a checkpoint first, and serves meanwhile"
        );
        self.record(DecisionKind::SwitchoverBegun, Some(&to), reason);
        self.planned = Some(Planned { to });
        self.checkpointed = None;
    }

    pub(super) fn on_stopping(&mut self) {
        self.stopping = true;
        self.forget_planned("metako is stopping");
        if matches!(self.phase, Phase::Draining { .. }) && self.writing.is_none() {
            self.abort_switchover("metako is stopping", Then::Serve);
        }
    }

    /// While the primary serves: the checkpoint, then the hold.
    pub(super) fn step_planned(&mut self, primary: &NodeName) {
        // A journal on its way would be lost.
        if self.writing.is_some() {
            return;
        }
        let Some(planned) = &self.planned else { return };
        let to = planned.to.clone();
        if let Err(why) = self.may_switch_over(primary, &to) {
            return self.forget_planned(&why);
        }
        if self.checkpointed != Some(self.epoch) {
            return self.checkpoint(primary);
        }
        let Some(mut journal) = self.journal.clone() else { return };
        journal.epoch = self.next_epoch();
        self.persist(journal, Then::Drain);
    }

    pub(super) fn checkpoint(&mut self, primary: &NodeName) {
        let node = primary.clone();
        self.start_in(Lane::Checkpoint(node.clone()), Task::Checkpoint, |id| Action::Checkpoint { id, node });
    }

    /// The epoch is on disk: writes are held from here on.
    pub(super) fn begin_drain(&mut self) {
        let (Some(primary), Some(planned)) = (self.phase_primary().cloned(), self.planned.take()) else {
            return;
        };
        self.stuck = None;
        self.drain = Some(Drain { began: self.moment(), done: None, end: None });
        self.phase = Phase::Draining { old: primary, to: planned.to, since: self.now };
        self.work.forget_pauses();
    }

    /// The switchover does not begin after all: nothing was done for it that has to be undone.
    pub(super) fn forget_planned(&mut self, why: &str) {
        if let Some(planned) = self.planned.take() {
            let reason = format!("the switchover to {} does not begin: {why}", planned.to);
            self.record(DecisionKind::Aborted, Some(&planned.to), reason);
        }
    }

    pub(super) fn step_draining(&mut self) {
        let Phase::Draining { old, to, since } = &self.phase else { return };
        let (old, to, since) = (old.clone(), to.clone(), *since);
        let Some(drain) = self.drain else { return };
        if let Some(state) = self.nodes.get(&old).filter(|state| state.answered_after(drain.began)) {
            let trouble = match (state.current().map(|report| self.judge(&old, report)), state.failure()) {
                (Some(Err(why)), _) => Some(why),
                (None, Some(failure)) => Some(format!("{old}: {failure}")),
                (Some(Ok(())) | None, _) => None,
            };
            if let Some(why) = trouble {
                return self.abort_switchover(&why, Then::Doubt);
            }
        }
        let limit = self.settings.failover.drain_timeout;
        let Some(done) = drain.done else {
            let (node, epoch) = (old, self.epoch);
            return self.start_in(Lane::Drain, Task::Drain, |id| Action::Drain { id, node, epoch, limit });
        };
        // A node that is late has as long again as the transactions had.
        if self.now >= since + limit * 2 {
            let why = format!("{to} did not get all of {old}'s WAL in time (failover.drain_timeout)");
            return self.abort_switchover(&why, Then::Serve);
        }
        self.wake_at(since + limit * 2);
        let after = |node: &NodeName| {
            let report = self.nodes.get(node)?.current_after(done)?;
            report.position().map(|position| (report, position))
        };
        let Some(end) = drain.end.or_else(|| after(&old).map(|(_, position)| position)) else { return };
        let caught_up = after(&to)
            .is_some_and(|(report, position)| position >= end && report.streaming_receiver().is_some());
        if caught_up {
            return match self.may_switch_over(&old, &to) {
                Ok(()) => self.begin_stop(&old, &to, done, end),
                Err(why) => self.abort_switchover(&why, Then::Serve),
            };
        }
        self.drain = Some(Drain { end: Some(end), ..drain });
    }

    pub(super) fn on_drained(&mut self) {
        let moment = self.moment();
        if let Some(drain) = &mut self.drain {
            drain.done = Some(moment);
            for state in self.nodes.values_mut() {
                state.asked = None;
            }
        }
    }

    /// The old primary serves on.
    fn abort_switchover(&mut self, why: &str, then: Then) {
        let Some(mut journal) = self.journal.clone() else { return };
        let primary = journal.primary.clone();
        journal.epoch = self.next_epoch();
        journal.phase = JournalPhase::Steady;
        journal.floor = None;
        self.drain = None;
        let reason = format!("{why}: the switchover is called off, and {primary} stays primary");
        self.record(DecisionKind::Aborted, Some(&primary), reason);
        self.persist(journal, then);
    }

    /// Nothing is open, and the candidate has everything: from the journal's entry on, a failover goes to its end whatever
    /// happens to metako, unless the old primary turns out to be well.
    fn begin_stop(&mut self, old: &NodeName, to: &NodeName, drained: Moment, end: Lsn) {
        self.drain = None;
        self.suspected = drained;
        let Some(_) = self.begin_fencing(old, Some(end), None) else { return };
        if let Some(failover) = &mut self.failover {
            failover.planned = true;
            failover.wished = Some(to.clone());
        }
        let reason = format!(
            "no transaction is open and {to} has all WAL: {old} is fenced and stopped by hooks.stop, then the others are frozen"
        );
        self.record(DecisionKind::FailoverBegun, Some(old), reason);
        self.phase = Phase::Stopping { old: old.clone(), since: self.now };
    }

    pub(super) fn step_stopping(&mut self) {
        let Phase::Stopping { old, .. } = &self.phase else { return };
        let old = old.clone();
        let Some(failover) = &self.failover else { return };
        if !failover.severed {
            return self.sever(&old);
        }
        if self.work.busy(&Lane::Host(old.clone())) && self.is_gone(&old, failover.began) {
            // What the hook has still to do is of no interest to the others.
            return self.freeze_after_stop(old);
        }
        let Some(timeline) = self.journal.as_ref().map(|journal| journal.timeline) else { return };
        let (node, epoch, moment) = (old.clone(), self.epoch, self.moment());
        if let Some(id) = self.work.start(self.now, Lane::Host(old), Task::Stop, self.epoch) {
            // What it said before does not count for it any more.
            if let Some(failover) = &mut self.failover {
                failover.began = moment;
            }
            let call = HookCall {
                kind: HookKind::Stop,
                node,
                upstream: None,
                epoch,
                timeline,
                slot: None,
                conninfo: None,
            };
            self.emit(Action::Hook { id, call });
        }
    }

    /// Whether nothing has listened there twice in a row since then: a postmaster that ends in order does that last.
    fn is_gone(&self, node: &NodeName, since: Moment) -> bool {
        self.nodes.get(node).is_some_and(|state| {
            state.answered_after(since)
                && state.failures >= 2
                && state.failing.is_some_and(|(kind, _)| kind == PrimaryEvidence::Refused)
        })
    }

    pub(super) fn on_stopped(&mut self) {
        let Phase::Stopping { old, .. } = &self.phase else { return };
        self.freeze_after_stop(old.clone());
    }

    fn freeze_after_stop(&mut self, old: NodeName) {
        let moment = self.moment();
        if let Some(failover) = &mut self.failover {
            failover.began = moment;
        }
        self.phase = Phase::Freezing { old, since: self.now };
        for state in self.nodes.values_mut() {
            state.asked = None;
        }
    }

    /// Whether the failure calls a switchover off, or is counted: then it is not simply tried again.
    pub(super) fn on_failed(&mut self, job: &super::work::Job, failure: &ActionFailure) -> bool {
        let present = job.epoch == self.epoch;
        match job.task {
            Task::Checkpoint if present && self.planned.is_some() => {
                self.forget_planned(&format!("CHECKPOINT: {failure}"));
            }
            Task::Rejoin => self.on_rejoin_failed(&job.lane, failure),
            Task::Drain if present && matches!(self.phase, Phase::Draining { .. }) => {
                self.abort_switchover(&format!("transactions did not end: {failure}"), Then::Serve);
            }
            // Whether it runs is for the probes to find out.
            Task::Stop if present && matches!(self.phase, Phase::Stopping { .. }) => {
                self.doubted = Some("whether the primary still runs is not known yet".to_owned());
                self.abort_switchover(&format!("hooks.stop: {failure}"), Then::Doubt);
            }
            _ => return false,
        }
        true
    }

    /// Why a standby cannot follow the primary in a switchover, if it cannot.
    pub(super) fn can_follow(&self, standby: &NodeName) -> Result<(), String> {
        let report = self.report(standby);
        if let Some(why) = self.unelectable(standby, report) {
            return Err(why);
        }
        self.can_be_frozen(standby)?;
        match (self.replay_lag(standby), self.settings.max_lag) {
            (Some(lag), Some(limit)) if lag > limit => {
                Err(format!("is {}s behind, more than max_lag ({}s)", lag.as_secs(), limit.as_secs()))
            }
            _ => Ok(()),
        }
    }

    /// Why a standby that is to stream cannot be frozen, if it cannot.
    pub(super) fn can_be_frozen(&self, standby: &NodeName) -> Result<(), String> {
        let Some(report) = self.report(standby) else { return Err("does not answer".to_owned()) };
        if report.streaming_receiver().is_none() {
            return Err("does not stream".to_owned());
        }
        if self.work.busy(&Lane::Host(standby.clone())) {
            return Err("is being worked on by a hook".to_owned());
        }
        super::settings::freeze(report, &super::settings::token(self.epoch))
            .map(drop)
            .map_err(|why| format!("cannot be frozen: {why}"))
    }
}
