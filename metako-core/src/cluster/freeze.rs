//! Freezing standbys, proving that they stand still, and choosing the one to be promoted.

use serde::{Deserialize, Serialize};

use super::controller::Then;
use super::evidence::needed;
use super::failover::{FREEZE_WAIT, Failover};
use super::node::Moment;
use super::standbys::is_stranded;
use super::witness::Witness;
use super::work::{Lane, Task};
use super::{Action, Attempt, Controller, DecisionKind, JournalPhase, Phase, SyncRule, settings};
use crate::config::{NoVoter, Priority};
use crate::plugin::{Electable, NodeReport, PrimaryEvidence};
use crate::{Lsn, NodeName, Tick, TimelineId};

/// A choice that has still to be confirmed by a look at all frozen standbys, taken after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Choice {
    at: Moment,
    candidate: NodeName,
    positions: Vec<(NodeName, Lsn)>,
}

impl Controller {
    pub(super) fn step_freezing(&mut self) {
        if self.called_off() {
            return;
        }
        let Phase::Freezing { old, since } = &self.phase else { return };
        let (old, since) = (old.clone(), *since);
        let failover = self.failover.as_ref().filter(|failover| !failover.planned);
        let report = failover.and_then(|failover| self.nodes.get(&old)?.current_after(failover.began));
        if report.is_some_and(|report| !report.is_primary() && !self.is_foreign(report)) {
            let reason =
                format!("{old} says that it is in recovery: somebody made it a standby. Writes are held");
            return self.need_person(None, reason);
        }
        self.freeze_standbys(&old);
        if self.writing.is_some() {
            return;
        }
        let frozen = self.frozen_positions();
        for (standby, position) in &frozen {
            let reason =
                format!("{standby} is frozen at {position}: no commit can be acknowledged by it any more");
            self.record_once(DecisionKind::Frozen, Some(standby), &reason);
        }
        match self.enough(&old, since, &frozen).and_then(|()| self.near_enough(&old, &frozen)) {
            Ok(()) => self.choose(&old, frozen),
            Err(reason) => {
                if let Some(failover) = &mut self.failover {
                    failover.choice = None;
                }
                self.stuck = Some(reason);
            }
        }
    }

    fn freeze_standbys(&mut self, old: &NodeName) {
        let Some(mut journal) = self.journal.clone() else { return };
        let token = settings::token(self.epoch);
        for standby in self.all_but(old) {
            if !self.freezable(&standby) {
                continue;
            }
            if let Some(failover) = self.failover.as_mut().filter(|failover| failover.planned) {
                // There is time for one that has come just now.
                failover.expected.insert(standby.clone());
            }
            let done = self.failover.as_ref().and_then(|failover| failover.frozen.get(&standby)).copied();
            let Some(report) = self.report(&standby) else { continue };
            let visible = settings::setting(report, settings::SLOT) == Some(token.as_str());
            if done.is_some() && (visible || !done.is_some_and(|done| self.answered_after(&standby, done))) {
                continue;
            }
            match settings::freeze(report, &token) {
                Err(why) => {
                    let reason = format!("{standby} cannot be frozen, so it does not count: {why}");
                    self.record_once(DecisionKind::Vetoed, Some(&standby), &reason);
                }
                // What it had goes to disk before it is changed.
                Ok(_) if done.is_none() && self.save_settings(&mut journal, &standby) => {
                    return self.persist(journal, Then::GoOn);
                }
                Ok(change) => {
                    let node = standby.clone();
                    self.start(&standby, Task::Freeze, |id| Action::Freeze { id, node, change });
                }
            }
        }
    }

    /// The standbys that are proven to stand still by a report taken after their freeze was done, and where.
    pub(super) fn frozen_positions(&self) -> Vec<(NodeName, Lsn)> {
        let Some(failover) = &self.failover else { return Vec::new() };
        let token = settings::token(self.epoch);
        let proven = |(standby, done): (&NodeName, &Moment)| {
            let report = self.heard_after(standby, *done)?;
            if self.is_foreign(report) || self.work.busy(&Lane::Host(standby.clone())) {
                return None;
            }
            Some((standby.clone(), settings::proof(report, &token).ok()?))
        };
        failover.frozen.iter().filter_map(proven).collect()
    }

    /// Whether those frozen are enough to choose among; an error says what is awaited.
    pub(super) fn enough(
        &self,
        old: &NodeName,
        since: Tick,
        frozen: &[(NodeName, Lsn)],
    ) -> Result<(), String> {
        let (Some(failover), Some(journal)) = (&self.failover, &self.journal) else {
            return Err("no failover is running".to_owned());
        };
        let names: Vec<&NodeName> = frozen.iter().map(|(standby, _)| standby).collect();
        if let SyncRule::Quorum { acks, voters } = &journal.sync {
            let need = needed(*acks, voters.len());
            let have = voters.iter().filter(|voter| names.contains(voter)).count();
            if have < need {
                return Err(format!(
                    "{have} of the {need} synchronous standbys that must be frozen are{}: an acknowledged commit could be \
                     missed",
                    self.unfrozen(failover.frozen.keys())
                ));
            }
        }
        if names.is_empty() {
            return Err(format!("no standby is frozen yet{}", self.unfrozen(failover.frozen.keys())));
        }
        let late: Vec<&str> = failover
            .expected
            .iter()
            .filter(|standby| !names.contains(standby))
            .map(NodeName::as_str)
            .collect();
        if !late.is_empty() && self.now < since + FREEZE_WAIT {
            return Err(format!("{} should be frozen as well and is awaited for a moment", late.join(", ")));
        }
        if let Some(floor) = journal.floor
            && frozen.iter().all(|(_, position)| *position < floor)
        {
            return Err(format!(
                "{old} had answered transactions up to {floor} when it was stopped, and no standby that is frozen has all of them \
                 yet{}: start {old} again, and it stays primary",
                self.unfrozen(failover.frozen.keys())
            ));
        }
        self.is_replaceable(old, failover)?;
        let streams = self.all_but(old).into_iter().find(|standby| {
            self.witness(standby, old, failover.began) == Witness::Fresh || self.receives_from(standby, old)
        });
        match streams {
            Some(standby) => Err(format!("{standby} could not be frozen and streams from {old}")),
            None => Ok(()),
        }
    }

    /// Whether a standby's last answer shows a stream from that node, also after metako told it to stop.
    fn receives_from(&self, standby: &NodeName, upstream: &NodeName) -> bool {
        let receiver = self.report(standby).and_then(NodeReport::streaming_receiver);
        receiver.and_then(|receiver| self.node_at(&receiver.sender_host, receiver.sender_port)).as_ref()
            == Some(upstream)
    }

    /// Whether the old primary is gone; an error says what is awaited. One that metako itself stops is known to be stopped
    /// when nothing listens there any more.
    fn is_replaceable(&self, old: &NodeName, failover: &Failover) -> Result<(), String> {
        let state = self.nodes.get(old).filter(|state| state.answered_after(failover.began));
        let Some(state) = state else { return Err(format!("{old} must fail once more in this round")) };
        if let Some(report) = state.current() {
            // One that metako stopped and that was started as a standby is out of the way.
            if failover.planned && !report.is_primary() && !self.is_foreign(report) {
                return Ok(());
            }
            let why = self.judge(old, report).err();
            return Err(why.unwrap_or_else(|| format!("{old} must fail once more in this round")));
        }
        let silent = self.settings.failover.silent_after;
        match state.failing {
            _ if !failover.planned => Ok(()),
            Some((PrimaryEvidence::Refused, _)) => Ok(()),
            Some((PrimaryEvidence::Silent, since)) if self.now >= since + silent => Ok(()),
            _ => Err(format!(
                "{old} is to be stopped, and something still answers there; start it again, and it stays primary"
            )),
        }
    }

    fn unfrozen<'a>(&self, asked: impl Iterator<Item = &'a NodeName>) -> String {
        let token = settings::token(self.epoch);
        let why = |standby: &'a NodeName| {
            let lacks = self.report(standby).map(|report| settings::proof(report, &token));
            match lacks {
                Some(Ok(_)) => None,
                Some(Err(why)) => Some(format!("{standby}: {why}")),
                None => Some(format!("{standby} does not answer")),
            }
        };
        let reasons: Vec<String> = asked.filter_map(why).collect();
        if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
    }

    /// Chooses, or confirms the choice by reports that were taken after it.
    fn choose(&mut self, old: &NodeName, frozen: Vec<(NodeName, Lsn)>) {
        let standing = self.failover.as_mut().and_then(|failover| failover.choice.take());
        if let Some(choice) = standing.filter(|choice| choice.positions == frozen) {
            let looked = |(standby, _): &(NodeName, Lsn)| {
                self.nodes.get(standby).is_some_and(|state| state.reported_after(choice.at))
            };
            if frozen.iter().all(looked) {
                return self.commit_choice(&choice, old);
            }
            if let Some(failover) = &mut self.failover {
                failover.choice = Some(choice);
            }
            return;
        }
        match self.best(&frozen) {
            Ok(candidate) => {
                self.stuck = None;
                let choice = Choice { at: self.moment(), candidate, positions: frozen };
                for (standby, _) in &choice.positions {
                    self.probe_soon(standby);
                }
                if let Some(failover) = &mut self.failover {
                    failover.choice = Some(choice);
                }
            }
            Err(reason) => {
                self.record_once(DecisionKind::Vetoed, None, &reason);
                self.stuck = Some(reason);
            }
        }
    }

    /// The first of the policy's ranking that is as far as the most advanced frozen node.
    fn best(&mut self, frozen: &[(NodeName, Lsn)]) -> Result<NodeName, String> {
        let timeline = self.journal.as_ref().map(|journal| journal.timeline).unwrap_or_default();
        let on_it = |standby: &NodeName| self.last_timeline(standby) == Some(timeline);
        if let Some((ahead, _)) =
            frozen.iter().find(|(standby, _)| self.last_timeline(standby).is_some_and(|last| last > timeline))
        {
            return Err(format!(
                "{ahead} is on a timeline after {timeline}: somebody promoted a node; a person has to look"
            ));
        }
        let most = frozen.iter().filter(|(standby, _)| on_it(standby)).map(|(_, position)| *position).max();
        let Some(most) = most else { return Err(format!("no frozen standby is on timeline {timeline}")) };
        if let Some(floor) =
            self.journal.as_ref().and_then(|journal| journal.floor).filter(|floor| most < *floor)
        {
            return Err(format!(
                "the last transaction before the switchover ended at {floor}, and nobody on timeline {timeline} has it"
            ));
        }
        let mut electable: Vec<Electable> = frozen
            .iter()
            .filter(|(standby, _)| self.unelectable(standby, self.report(standby)).is_none())
            .filter_map(|(standby, position)| self.electable(standby, *position))
            .collect();
        let at_most = |name: &NodeName| frozen.iter().any(|(standby, at)| standby == name && *at == most);
        let eligible: Vec<NodeName> = electable.iter().map(|one| one.node.clone()).collect();
        if !eligible.iter().any(at_most) {
            let holders: Vec<String> = frozen
                .iter()
                .filter(|(standby, at)| *at == most && on_it(standby))
                .map(|(standby, _)| {
                    let why = self.unelectable(standby, self.report(standby)).unwrap_or_default();
                    format!("{standby} {why}")
                })
                .collect();
            return Err(format!("the most advanced standby cannot be promoted: {}", holders.join(", ")));
        }
        let wished = self.failover.as_ref().and_then(|failover| failover.wished.clone());
        if let Some(wished) = wished {
            if eligible.contains(&wished) && at_most(&wished) {
                return Ok(wished);
            }
            let reason = format!("{wished} was asked for, but is not the most advanced that can be promoted");
            self.record_once(DecisionKind::Vetoed, Some(&wished), &reason);
        }
        self.policy.rank(&mut electable);
        let ranked: Vec<NodeName> =
            electable.into_iter().map(|one| one.node).filter(|node| eligible.contains(node)).collect();
        let chosen =
            ranked.iter().find(|node| at_most(node)).or_else(|| eligible.iter().find(|node| at_most(node)));
        let Some(chosen) = chosen.cloned() else { return Err("no standby is left to choose".to_owned()) };
        if let Some(first) = ranked.first().filter(|first| **first != chosen) {
            let reason = format!(
                "the policy prefers {first}, but {chosen} has WAL that {first} has not: {chosen} is taken"
            );
            self.record_once(DecisionKind::Vetoed, Some(first), &reason);
        }
        Ok(chosen)
    }

    pub(super) fn electable(&self, standby: &NodeName, position: Lsn) -> Option<Electable> {
        let node = self.node(standby)?;
        let report = self.report(standby)?;
        let Priority::Rank(priority) = node.priority else { return None };
        if report.is_primary() {
            return None;
        }
        Some(Electable {
            node: standby.clone(),
            timeline: report.timeline,
            position,
            backlog: position.0.saturating_sub(report.replayed().unwrap_or_default().0),
            priority,
            zone: node.zone.clone(),
        })
    }

    /// The point of no return: the attempt goes to disk, then the candidate is promoted and nobody else.
    fn commit_choice(&mut self, choice: &Choice, old: &NodeName) {
        let Some(journal) = &self.journal else { return };
        let mut journal = journal.clone();
        let candidate = choice.candidate.clone();
        let (present, timeline) = (journal.timeline, journal.timeline.next());
        if let Some(other) = journal.attempts.iter().find(|attempt| attempt.node != candidate) {
            let reason = format!(
                "timeline {} was already attempted on {}: promoting {candidate} could make it twice",
                other.timeline, other.node
            );
            return self.need_person(None, reason);
        }
        if let Some(why) = self.timeline_in_use() {
            return self.need_person(None, why);
        }
        let Some((_, fork)) = choice.positions.iter().find(|(standby, _)| *standby == candidate).cloned()
        else {
            return;
        };
        let last_report =
            |standby: &NodeName| self.nodes.get(standby).and_then(|state| state.report.as_ref());
        let last_record = last_report(&candidate).and_then(NodeReport::replayed);
        let stranded = |standby: &NodeName| {
            last_report(standby)
                .zip(last_record)
                .is_some_and(|(report, last_record)| is_stranded(report, last_record))
        };
        let followers: Vec<NodeName> = choice
            .positions
            .iter()
            .map(|(standby, _)| standby.clone())
            .filter(|standby| *standby != candidate && self.last_timeline(standby) == Some(present))
            .filter(|standby| !stranded(standby))
            .collect();
        journal.phase = JournalPhase::Promoting { candidate: candidate.clone(), timeline, fork };
        journal.last_record = last_record;
        journal.attempts.push(Attempt { node: candidate.clone(), timeline });
        journal.attempts.dedup();
        journal.displaced.retain(|node| *node != candidate && node != old);
        journal.displaced.push(old.clone());
        let rule = self.rule_after(&journal.sync, &candidate, &followers);
        if rule == SyncRule::Async && journal.sync != SyncRule::Async {
            let reason = format!(
                "no standby is left to wait for: commits on {candidate} wait for none (on_no_voter: degrade), and should it \
                 die, a person has to decide"
            );
            self.record(DecisionKind::SyncChanged, Some(&candidate), reason);
        }
        if let (SyncRule::Quorum { acks: before, .. }, SyncRule::Quorum { acks: after, .. }) =
            (&journal.sync, &rule)
            && after < before
        {
            let reason = format!(
                "commits on {candidate} wait for {after} standbys, not for {before}, until others follow it"
            );
            self.record(DecisionKind::SyncChanged, Some(&candidate), reason);
        }
        match &rule {
            SyncRule::Quorum { .. } => {
                let names = settings::sync_names(&self.settings, &rule);
                journal.sync_names.insert(candidate.clone(), vec![names]);
            }
            // It is emptied on the candidate when that is prepared.
            SyncRule::Async if self.settings.failover.synchronous.is_some() => {
                journal.sync_names.remove(&candidate);
            }
            SyncRule::Async => {}
        }
        journal.sync = rule;
        let all = choice
            .positions
            .iter()
            .map(|(standby, at)| format!("{standby} at {at}"))
            .collect::<Vec<_>>()
            .join(", ");
        self.record(
            DecisionKind::Chosen,
            Some(&candidate),
            format!("{candidate} follows {old} as primary on timeline {timeline}: frozen are {all}"),
        );
        if self.failover.as_ref().is_some_and(|failover| !failover.planned) {
            self.promotions.push_back(self.now);
        }
        while self.promotions.len() > 64 {
            self.promotions.pop_front();
        }
        self.stuck = None;
        self.persist(journal, Then::Promote);
    }

    /// The timeline of which a standby, frozen or not, last spoke.
    pub(super) fn last_timeline(&self, standby: &NodeName) -> Option<TimelineId> {
        Some(self.nodes.get(standby)?.report.as_ref()?.timeline)
    }

    /// Whom commits of the new primary wait for: those that follow it now. Others join later.
    fn rule_after(&self, former: &SyncRule, candidate: &NodeName, followers: &[NodeName]) -> SyncRule {
        let SyncRule::Quorum { acks, .. } = former else { return SyncRule::Async };
        if followers.len() >= *acks {
            return SyncRule::Quorum { acks: *acks, voters: followers.to_vec() };
        }
        match self.settings.failover.synchronous.as_ref().map(|synchronous| synchronous.on_no_voter) {
            Some(NoVoter::Degrade) | None if followers.is_empty() => SyncRule::Async,
            Some(NoVoter::Degrade) | None => {
                SyncRule::Quorum { acks: followers.len(), voters: followers.to_vec() }
            }
            Some(NoVoter::Block) => SyncRule::Quorum { acks: *acks, voters: self.all_but(candidate) },
        }
    }
}
