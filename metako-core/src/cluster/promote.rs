//! Promoting the chosen standby, and its first commit. From here on there is no way back and no second candidate.

use std::time::Duration;

use super::controller::Then;
use super::node::Moment;
use super::work::Task;
use super::{
    Action, Controller, DecisionKind, JournalPhase, Observed, Phase, Promotion, SavedSettings,
    SettingsChange, SyncRule, settings,
};
use crate::plugin::NodeReport;
use crate::{Lsn, NodeName, Tick, TimelineId};

/// How long a promotion is awaited and asked for before a person is called.
const PROMOTE_MAX: Duration = Duration::from_mins(1);
/// How long other standbys are awaited when they are pointed at the candidate.
const REPOINT_WAIT: Duration = Duration::from_secs(1);

impl Controller {
    /// The attempt is on disk: the candidate is prepared and promoted.
    pub(super) fn promote(&mut self) {
        let Some(journal) = &self.journal else { return };
        let JournalPhase::Promoting { candidate, timeline, .. } = &journal.phase else { return };
        let (old, candidate, timeline) = (journal.primary.clone(), candidate.clone(), *timeline);
        self.record(
            DecisionKind::Promoting,
            Some(&candidate),
            format!("{candidate} is made ready, the other frozen standbys are pointed at it, then it is promoted to timeline {timeline}"),
        );
        self.slots.clear();
        self.phase = Phase::Promoting { old, candidate, timeline, since: self.now };
    }

    pub(super) fn step_promoting(&mut self) {
        let Phase::Promoting { candidate, timeline, since, .. } = &self.phase else { return };
        let (candidate, timeline, since) = (candidate.clone(), *timeline, *since);
        let fork = match self.journal.as_ref().map(|journal| &journal.phase) {
            Some(JournalPhase::Promoting { fork, .. }) => *fork,
            _ => return,
        };
        match self.promoted(&candidate, timeline) {
            Ok(true) => return self.verify(),
            Ok(false) => {}
            Err(reason) => return self.need_person(None, reason),
        }
        if self.now >= since + PROMOTE_MAX {
            return self.need_person(None, Self::unknown_outcome(&candidate));
        }
        self.wake_at(since + PROMOTE_MAX);
        let Some(report) = self.report(&candidate) else {
            self.stuck =
                Some(format!("{candidate} does not answer while it is promoted: the outcome is unknown"));
            return;
        };
        let token = settings::token(self.epoch);
        if self.is_foreign(report) || settings::setting(report, settings::SLOT) != Some(token.as_str()) {
            let reason = format!(
                "{candidate} does not carry the token {token} in primary_slot_name: somebody changed it. It is not promoted; \
                 look at all nodes, then `metako adopt --primary NAME`"
            );
            return self.need_person(None, reason);
        }
        self.stuck = None;
        let Some((prepared, at)) = self.failover.as_ref().and_then(|failover| failover.prepared) else {
            return self.prepare(&candidate);
        };
        if !self.repoint_followers(&candidate, fork, at) {
            return;
        }
        self.send_promotion(&candidate, timeline, fork, prepared);
    }

    fn unknown_outcome(candidate: &NodeName) -> String {
        format!(
            "the promotion of {candidate} did not end within {}s and may still happen: no other standby is promoted. If \
             {candidate} comes up as a primary it is taken; else see to it that it stays down, promote another by hand and \
             `metako adopt --primary NAME`",
            PROMOTE_MAX.as_secs()
        )
    }

    /// Whether the candidate is promoted to the expected timeline; an error says that it is something else.
    fn promoted(&self, candidate: &NodeName, timeline: TimelineId) -> Result<bool, String> {
        let Some(report) = self.report(candidate).filter(|report| report.is_primary()) else {
            return Ok(false);
        };
        if self.is_foreign(report) {
            return Err(format!(
                "{candidate} answers with another system identifier now: it is not followed"
            ));
        }
        if report.timeline > timeline {
            return Err(format!(
                "{candidate} is primary on timeline {}, expected was {timeline}",
                report.timeline
            ));
        }
        Ok(report.timeline == timeline)
    }

    fn prepare(&mut self, candidate: &NodeName) {
        let Some(journal) = &self.journal else { return };
        let change = if self.settings.failover.synchronous.is_some() {
            settings::sync_change(&self.settings, &journal.sync)
        } else {
            SettingsChange::default()
        };
        self.start_prepare(candidate, change);
    }

    /// The slots that all nodes but one use.
    pub(super) fn slots_for(&self, upstream: &NodeName) -> Vec<String> {
        self.all_but(upstream).iter().map(|standby| self.slot(standby)).collect()
    }

    pub(super) fn slot(&self, standby: &NodeName) -> String {
        settings::slot_of(&self.settings, &self.saved(standby), standby)
    }

    /// What a standby had before metako changed it: what the journal says, else what it has now.
    pub(super) fn saved(&self, standby: &NodeName) -> SavedSettings {
        let saved = self.journal.as_ref().and_then(|journal| journal.saved.get(standby));
        saved.cloned().unwrap_or_else(|| {
            let report = self.nodes.get(standby).and_then(|state| state.report.as_ref());
            let mut saved = report.map(settings::save).unwrap_or_default();
            saved.retain(|name, _| matches!(name.as_str(), settings::CONNINFO | settings::SLOT));
            saved
        })
    }

    /// Points the other frozen standbys at the candidate, so that they follow its switch of timeline by themselves. True
    /// when each has answered, or was awaited long enough.
    fn repoint_followers(&mut self, candidate: &NodeName, fork: Lsn, prepared: Tick) -> bool {
        let token = settings::token(self.epoch);
        // It would feed them a part of a record that its own timeline will not have, and strand them.
        let last_record = self.journal.as_ref().and_then(|journal| journal.last_record);
        let mut waiting = false;
        for standby in self.all_but(candidate) {
            let repointed =
                self.failover.as_ref().is_some_and(|failover| failover.repointed.contains(&standby));
            let held = self.slots.contains(&self.slot(&standby))
                && self.freezable(&standby)
                && self.report(&standby).is_some_and(|report| {
                    settings::proof(report, &token).is_ok_and(|position| position <= fork)
                        && last_record.is_none_or(|last_record| report.in_one_segment(last_record, fork))
                });
            if !repointed && held {
                waiting = true;
                self.repoint(&standby, candidate);
            }
        }
        let patience = prepared + REPOINT_WAIT;
        if waiting {
            self.wake_at(patience);
        }
        !waiting || self.now >= patience
    }

    /// Makes a standby follow another node, with its former settings otherwise.
    pub(super) fn repoint(&mut self, standby: &NodeName, upstream: &NodeName) {
        let (Some(from), Some(to)) = (self.node(standby), self.node(upstream)) else { return };
        let change = settings::follow(&self.settings, &self.saved(standby), from, to);
        let (node, to) = (standby.clone(), upstream.clone());
        self.start(standby, Task::Repoint, |id| Action::Repoint { id, node, upstream: to, change });
    }

    fn send_promotion(&mut self, candidate: &NodeName, timeline: TimelineId, fork: Lsn, prepared: Moment) {
        let token = settings::token(self.epoch);
        let Some(report) = self.nodes.get(candidate).and_then(|state| state.current_after(prepared)) else {
            return;
        };
        match settings::proof(report, &token) {
            Ok(position) if position == fork => {}
            Ok(position) => {
                let reason = format!(
                    "{candidate} stood at {fork} when it was chosen and at {position} now: it is not promoted; look at all \
                     nodes, then `metako adopt --primary NAME`"
                );
                return self.need_person(None, reason);
            }
            Err(why) => {
                self.stuck = Some(format!("{candidate} is not promoted yet: {why}"));
                return;
            }
        }
        let promotion = Promotion { node: candidate.clone(), epoch: self.epoch, timeline, token };
        self.start(candidate, Task::Promote, |id| Action::Promote { id, promotion });
    }

    fn verify(&mut self) {
        let Phase::Promoting { old, candidate, timeline, .. } = &self.phase else { return };
        let (old, candidate, timeline) = (old.clone(), candidate.clone(), *timeline);
        self.record(
            DecisionKind::Promoted,
            Some(&candidate),
            format!("{candidate} is primary on timeline {timeline}; writes open when its first commit is acknowledged"),
        );
        self.stuck = None;
        self.phase = Phase::Verifying { old, candidate, timeline, since: self.now };
    }

    pub(super) fn step_verifying(&mut self) {
        let Phase::Verifying { candidate, timeline, since, .. } = &self.phase else { return };
        let (candidate, timeline, since) = (candidate.clone(), *timeline, *since);
        if self.failover.as_ref().is_some_and(|failover| failover.verified) {
            return self.finish_failover(&candidate, timeline);
        }
        let failing = self.nodes.get(&candidate).and_then(|state| state.failing);
        if let Some((_, failing)) = failing.filter(|_| self.now >= since + PROMOTE_MAX)
            && self.now >= failing + PROMOTE_MAX
        {
            let reason = format!(
                "{candidate} was promoted and is gone since {}s, before it served anybody: no other standby is promoted. If it \
                 comes back it is taken; else promote another by hand and `metako adopt --primary NAME`",
                self.now.since(failing).as_secs()
            );
            return self.need_person(None, reason);
        }
        self.reconcile_standbys();
        let Some(report) = self.report(&candidate) else {
            self.stuck = Some(format!("{candidate} was promoted and does not answer now"));
            return;
        };
        if self.is_foreign(report) || !report.is_primary() || report.timeline != timeline {
            let reason = format!(
                "{candidate} was primary on timeline {timeline} and is not any more: somebody changed it"
            );
            return self.need_person(None, reason);
        }
        self.stuck = self.awaited_voters(&candidate);
        if self.stuck.is_some() {
            if self.admit_voters(&candidate) {
                return;
            }
            // Whom the first commit waits for may be one of them.
            self.reconcile_displaced();
        }
        if self.writing.is_some() {
            return;
        }
        if self.restore_sync_of_candidate(&candidate) {
            return;
        }
        let (node, epoch) = (candidate.clone(), self.epoch);
        self.start(&candidate, Task::Verify, |id| Action::Verify { id, node, epoch });
    }

    /// Whether the candidate has other synchronous standbys than its epoch asks for: it was promoted by somebody else before
    /// it was prepared.
    fn restore_sync_of_candidate(&mut self, candidate: &NodeName) -> bool {
        let Some(rule) = self.journal.as_ref().map(|journal| journal.sync.clone()) else { return false };
        let differs = rule != SyncRule::Async
            && self.sync_names_of(candidate) != Some(settings::sync_names(&self.settings, &rule));
        if differs {
            self.set_sync(candidate, &rule, "the journal asks for it before the first commit");
        }
        differs
    }

    /// While the first commit waits for standbys that do not stream, those that do become voters: in the journal first.
    fn admit_voters(&mut self, candidate: &NodeName) -> bool {
        let Some(mut journal) = self.journal.clone() else { return false };
        let SyncRule::Quorum { voters, .. } = &mut journal.sync else { return false };
        let newcomers = self.newcomers(candidate, voters);
        if newcomers.is_empty() {
            return false;
        }
        voters.extend(newcomers);
        self.persist(journal, Then::GoOn);
        true
    }

    /// Whom the first commit waits for, if too few of them stream.
    fn awaited_voters(&self, candidate: &NodeName) -> Option<String> {
        let Some(SyncRule::Quorum { acks, voters }) = self.journal.as_ref().map(|journal| &journal.sync)
        else {
            return None;
        };
        if self.streaming_to(candidate).iter().filter(|standby| voters.contains(standby)).count() >= *acks {
            return None;
        }
        let names = voters.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
        Some(format!(
            "{candidate} is promoted; its first commit waits for {acks} of {names} to stream from it (failover.synchronous)"
        ))
    }

    fn finish_failover(&mut self, candidate: &NodeName, timeline: TimelineId) {
        let Some(journal) = &self.journal else { return };
        let mut journal = journal.clone();
        let JournalPhase::Promoting { fork, .. } = journal.phase else { return };
        journal.phase = JournalPhase::Steady;
        journal.timeline = timeline;
        journal.fork = Some(fork);
        journal.attempts.clear();
        journal.floor = None;
        journal.reached = None;
        journal.primary = candidate.clone();
        journal.observed = Observed::default();
        // Enough voters have the first commit, and with it all that was before.
        journal.run = self.report(candidate).map(NodeReport::run);
        // What failed with the former primary may go well with this one.
        self.rejoins.clear();
        self.persist(journal, Then::Serve);
    }

    /// A person was called during a promotion: should the candidate turn up promoted after all, it is taken.
    pub(super) fn resume_promotion(&mut self) {
        let Some(journal) = self.journal.as_ref().filter(|journal| journal.cluster == self.settings.name)
        else {
            return;
        };
        let JournalPhase::Promoting { candidate, timeline, .. } = &journal.phase else { return };
        let (old, candidate, timeline) = (journal.primary.clone(), candidate.clone(), *timeline);
        if self.node(&candidate).is_some()
            && self.failover.is_some()
            && self.promoted(&candidate, timeline) == Ok(true)
        {
            self.phase = Phase::Promoting { old, candidate, timeline, since: self.now };
            self.verify();
        }
    }
}
