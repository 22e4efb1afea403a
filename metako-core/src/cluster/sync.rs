//! Synchronous replication as metako keeps it: which commits wait for whom, in PostgreSQL and in the journal.
//!
//! An acknowledged commit must be on a standby that a failover asks. So a rule that demands more of commits is in force
//! on the primary, confirmed by later positions, before a failover may rely on it; one that demands less is in the
//! journal before it is in force. Of the same number of acknowledgements more voters demand less: whoever comes is in the
//! journal first, whoever is gone leaves it last (research of the failover: "Sync set changes").

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::controller::Then;
use super::node::Moment;
use super::work::{Lane, Task};
use super::{Action, Controller, DecisionKind, Journal, SyncRule, settings};
use crate::config::NoVoter;
use crate::plugin::{NodeReport, ReportedRole, Sender, ServerRun};
use crate::{Lsn, NodeName};

/// A voter that does not stream for so long is gone: commits do not wait for it any more, if there are enough others.
const LEFT_AFTER: Duration = Duration::from_secs(10);

/// A rule that is being brought into force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SyncStep {
    rule: SyncRule,
    /// When it was set.
    set: Option<Moment>,
    /// The primary's position when the setting was first seen: voters must pass it.
    mark: Option<Lsn>,
    /// Of which run of the primary's server that was: another one may hold more that nobody has confirmed.
    #[serde(default)]
    run: Option<ServerRun>,
}

/// What a primary reports of synchronous replication.
struct SyncReport {
    run: ServerRun,
    names: String,
    flushed: Lsn,
    senders: Vec<Sender>,
}

impl Controller {
    pub(super) fn reconcile_sync(&mut self) {
        let (Some(journal), Some(primary)) = (&self.journal, self.phase_primary().cloned()) else { return };
        let present = journal.sync.clone();
        let own_names = journal.sync_names.get(&primary).cloned().unwrap_or_default();
        let wanted = self.wanted_rule(&present, &primary);
        self.name_non_voters(&present, &primary);
        let Some(report) = self.sync_report(&primary) else { return };
        match (&present, &wanted) {
            (SyncRule::Async, SyncRule::Async) => {
                self.sync_step = None;
                // With `failover.synchronous` the setting is metako's; without, only what it has set itself.
                let own = own_names.contains(&report.names);
                // What is the same without metako's line is somebody else's.
                let reset = self.sync_reset.is_some_and(|reset| self.answered_after(&primary, reset));
                if !report.names.is_empty() && (own && !reset || self.settings.failover.synchronous.is_some())
                {
                    return self.set_sync(&primary, &SyncRule::Async, "the journal asks for none");
                }
                if !own_names.is_empty()
                    && self.answered_since_touched(&primary)
                    && !self.work.busy(&Lane::Node(primary.clone()))
                    && let Some(mut journal) = self.journal.clone()
                {
                    self.sync_reset = None;
                    journal.sync_names.remove(&primary);
                    self.persist(journal, Then::GoOn);
                }
            }
            _ if present == wanted => {
                self.sync_step = None;
                let names = settings::sync_names(&self.settings, &present);
                if report.names != names {
                    self.restore_sync(&primary, &present, &report.names);
                } else if own_names != [names.as_str()]
                    && !self.work.busy(&Lane::Node(primary.clone()))
                    && let Some(mut journal) = self.journal.clone()
                {
                    journal.sync_names.insert(primary, vec![names]);
                    self.persist(journal, Then::GoOn);
                }
            }
            (SyncRule::Quorum { .. }, SyncRule::Async) => {
                self.write_rule(wanted, &primary);
            }
            (SyncRule::Quorum { acks: now, voters: had }, SyncRule::Quorum { acks: then, voters: have })
                if then <= now && had.iter().all(|voter| have.contains(voter)) =>
            {
                self.write_rule(wanted, &primary);
            }
            _ => self.bring_into_force(wanted, &primary, &report),
        }
    }

    /// The rule that the configuration asks for, with the voters that there are. One thing changes at a time.
    fn wanted_rule(&self, present: &SyncRule, primary: &NodeName) -> SyncRule {
        let Some(synchronous) = &self.settings.failover.synchronous else { return SyncRule::Async };
        let degrades = synchronous.on_no_voter == NoVoter::Degrade;
        let acks = usize::try_from(synchronous.acks.0).unwrap_or(usize::MAX);
        let SyncRule::Quorum { acks: present, voters } = present else {
            let voters = self.all_but(primary);
            // Degraded: commits go on alone until enough standbys are back.
            let alone = degrades && self.streaming_to(primary).len() < acks;
            return if voters.is_empty() || alone {
                SyncRule::Async
            } else {
                SyncRule::Quorum { acks, voters }
            };
        };
        let streaming = self.streaming_to(primary);
        let mut all = voters.clone();
        all.extend(self.newcomers(primary, voters));
        if all.len() > voters.len() {
            return SyncRule::Quorum { acks: *present, voters: all };
        }
        let left: Vec<NodeName> =
            voters.iter().filter(|voter| !self.has_left(voter, &streaming)).cloned().collect();
        if left.len() < voters.len() && left.len() >= *present {
            return SyncRule::Quorum { acks: *present, voters: left };
        }
        if degrades && left.len() < *present {
            return if left.is_empty() {
                SyncRule::Async
            } else {
                SyncRule::Quorum { acks: left.len(), voters: voters.clone() }
            };
        }
        // More than there are voters would stop all commits; it waits until voters can be added.
        let too_many = acks > voters.len() || (degrades && acks > *present && acks > streaming.len());
        SyncRule::Quorum { acks: if too_many { *present } else { acks }, voters: voters.clone() }
    }

    /// Whether commits may wait for a standby that streams: its history is the primary's.
    fn may_vote(&self, standby: &NodeName) -> bool {
        let report = self.report(standby);
        report.is_some_and(|report| self.doubtful(standby, report).is_none() && !self.is_foreign(report))
            && !self.work.busy(&Lane::Host(standby.clone()))
    }

    /// Standbys that stream from a node without being waited for, and may be.
    pub(super) fn newcomers(&self, primary: &NodeName, voters: &[NodeName]) -> Vec<NodeName> {
        let mut streaming = self.streaming_to(primary);
        streaming.retain(|standby| !voters.contains(standby) && self.may_vote(standby));
        streaming
    }

    /// Whether a voter is gone for good, as far as can be told: nobody waits for it without end.
    fn has_left(&self, voter: &NodeName, streaming: &[NodeName]) -> bool {
        let Some(state) = self.nodes.get(voter).filter(|_| self.node(voter).is_some()) else { return true };
        let since = state.listed.unwrap_or(self.well_since).max(self.well_since);
        !streaming.contains(voter) && self.now.since(since) >= LEFT_AFTER
    }

    /// The standbys that stream from the primary under the names by which commits wait for them.
    pub(super) fn streaming_to(&self, primary: &NodeName) -> Vec<NodeName> {
        let Some(report) = self.sync_report(primary) else { return Vec::new() };
        let streams = |standby: &NodeName| {
            let name = self.node(standby).map(|node| &node.application_name);
            report.senders.iter().any(|sender| sender.streaming && Some(&sender.application_name) == name)
        };
        let mut standbys = self.all_but(primary);
        standbys.retain(streams);
        standbys
    }

    /// The setting is not what the journal says. If commits may have been acknowledged by fewer than that, no failover may
    /// rely on the rule before it is in force again.
    fn restore_sync(&mut self, primary: &NodeName, rule: &SyncRule, names: &str) {
        let SyncRule::Quorum { acks, voters } = rule else { return };
        let demands_more = settings::read_sync_names(&self.settings, names).is_some_and(|(needed, among)| {
            needed >= *acks && needed <= among.len() && among.iter().all(|name| voters.contains(name))
        });
        if demands_more {
            return self.set_sync(primary, rule, "the journal asks for less");
        }
        let Some(mut journal) = self.journal.clone() else { return };
        let reason = format!(
            "synchronous_standby_names on {primary} is `{names}`, which metako did not set: no failover may rely on what \
             commits waited for, until the rule is in force again"
        );
        self.record(DecisionKind::SyncChanged, Some(primary), reason);
        journal.sync = SyncRule::Async;
        self.persist(journal, Then::GoOn);
    }

    fn bring_into_force(&mut self, rule: SyncRule, primary: &NodeName, report: &SyncReport) {
        let names = settings::sync_names(&self.settings, &rule);
        let step = self.sync_step.take().filter(|step| step.rule == rule);
        let mut step = step.unwrap_or(SyncStep { rule: rule.clone(), set: None, mark: None, run: None });
        let seen = step.set.is_some_and(|set| self.answered_after(primary, set)) && report.names == names;
        if !seen {
            // What was in force before, and is not any more, says nothing of commits since.
            step.mark = None;
            if report.names != names {
                step.set = None;
            }
            self.sync_step = Some(step);
            return self.set_sync(primary, &rule, "the configuration asks for it");
        }
        if step.run.replace(report.run) != Some(report.run) {
            step.mark = None;
        }
        let mark = *step.mark.get_or_insert(report.flushed);
        let confirmed = match &rule {
            SyncRule::Async => true,
            SyncRule::Quorum { acks, voters } => {
                let fits = |sender: &Sender| sender.synchronous && sender.flushed >= Some(mark);
                self.confirming(voters, &report.senders, fits) >= *acks
            }
        };
        if confirmed {
            return self.write_rule(rule, primary);
        }
        let reason = format!(
            "{primary} has synchronous_standby_names = {names}; too few of them have confirmed a position yet, so no failover \
             may rely on it, and commits wait for them"
        );
        self.record_once(DecisionKind::SyncChanged, Some(primary), &reason);
        self.sync_step = Some(step);
    }

    /// How many of `voters` stream, by what the primary says of those that do, and fit.
    pub(super) fn confirming(
        &self,
        voters: &[NodeName],
        senders: &[Sender],
        fits: impl Fn(&Sender) -> bool,
    ) -> usize {
        let confirms = |voter: &&NodeName| {
            let name = self.node(voter).map_or(voter.as_str(), |node| &node.application_name);
            senders.iter().any(|sender| sender.application_name == name && sender.streaming && fits(sender))
        };
        voters.iter().filter(confirms).count()
    }

    pub(super) fn sync_names_of(&self, primary: &NodeName) -> Option<String> {
        Some(self.sync_report(primary)?.names)
    }

    pub(super) fn set_sync(&mut self, primary: &NodeName, rule: &SyncRule, why: &str) {
        let change = settings::sync_change(&self.settings, rule);
        let names = settings::sync_names(&self.settings, rule);
        let noted =
            |journal: &&Journal| journal.sync_names.get(primary).is_some_and(|noted| noted.contains(&names));
        if let Some(journal) =
            self.journal.as_ref().filter(|journal| *rule != SyncRule::Async && !noted(journal))
        {
            // So that it can be taken back whatever happens to metako.
            let mut journal = journal.clone();
            journal.sync_names.entry(primary.clone()).or_default().push(names);
            return self.persist(journal, Then::GoOn);
        }
        self.record_once(
            DecisionKind::SyncChanged,
            Some(primary),
            &format!("synchronous_standby_names on {primary} becomes `{names}`: {why}"),
        );
        if let Some(id) = self.work.start(self.now, Lane::Node(primary.clone()), Task::SetSync, self.epoch) {
            self.setting_sync = Some(rule.clone());
            self.emit(Action::SetSyncStandbys { id, node: primary.clone(), change });
        }
    }

    pub(super) fn on_sync_set(&mut self) {
        let (moment, set) = (self.moment(), self.setting_sync.take());
        self.sync_reset = (set == Some(SyncRule::Async)).then_some(moment);
        if let Some(step) = self.sync_step.as_mut().filter(|step| Some(&step.rule) == set.as_ref()) {
            step.set = Some(moment);
        }
    }

    fn write_rule(&mut self, rule: SyncRule, primary: &NodeName) {
        let Some(journal) = &self.journal else { return };
        let mut journal = journal.clone();
        let reason = match &rule {
            SyncRule::Async => "commits wait for no standby from now on".to_owned(),
            SyncRule::Quorum { acks, voters } => format!(
                "a commit is acknowledged when {acks} of {} have it; a failover needs {} of them",
                voters.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", "),
                super::evidence::needed(*acks, voters.len())
            ),
        };
        if journal.sync != SyncRule::Async {
            let names = settings::sync_names(&self.settings, &journal.sync);
            let noted = journal.sync_names.entry(primary.clone()).or_default();
            if !noted.contains(&names) {
                noted.push(names);
            }
        }
        if journal.sync == SyncRule::Async {
            journal.run = self.report(primary).map(NodeReport::run);
        }
        journal.sync = rule;
        self.sync_step = None;
        self.record(DecisionKind::SyncChanged, Some(primary), reason);
        self.persist(journal, Then::GoOn);
    }

    /// A standby that streams without being a voter is not lost silently.
    fn name_non_voters(&mut self, rule: &SyncRule, primary: &NodeName) {
        let SyncRule::Quorum { voters, .. } = rule else { return };
        let others: Vec<NodeName> =
            self.all_but(primary).into_iter().filter(|name| !voters.contains(name)).collect();
        for standby in others {
            if self.report(&standby).is_some_and(|report| report.streaming_receiver().is_some()) {
                let reason = format!(
                    "{standby} streams but is no synchronous voter of this epoch: commits do not wait for it, and a failover \
                     does not count it"
                );
                self.record_once(DecisionKind::SyncChanged, Some(&standby), &reason);
            }
        }
    }

    fn sync_report(&self, primary: &NodeName) -> Option<SyncReport> {
        let report = self.report(primary)?;
        match &report.role {
            ReportedRole::Primary { flushed, senders, synchronous_standby_names, .. } => Some(SyncReport {
                run: report.run(),
                names: synchronous_standby_names.clone(),
                flushed: *flushed,
                senders: senders.clone(),
            }),
            ReportedRole::Standby { .. } => None,
        }
    }
}
