//! `failover.mode: observe`: whoever manages the cluster promotes, and metako follows.
//!
//! A node is followed when it answers as a primary on a later timeline than the journal's, and the journal's primary is gone by
//! the same evidence that lets metako itself fail over in another mode, or says itself that it is no primary any more. Until
//! then two nodes that both take writes are a mistake that clients must not be moved into. Nothing is changed on any node but
//! what metako itself has left there in another mode.

use super::controller::Then;
use super::node::Moment;
use super::witness::Witness;
use super::work::Task;
use super::{Action, Controller, DecisionKind, Phase, SettingsChange, SyncRule, settings};
use crate::config::FailoverMode;
use crate::plugin::{Evidence, NodeReport, PrimaryEvidence};
use crate::{Lsn, NodeName, TimelineId};

/// A node that somebody promoted.
struct Successor {
    node: NodeName,
    timeline: TimelineId,
    position: Option<Lsn>,
}

impl Controller {
    /// Whether others promote.
    pub(super) fn observes(&self) -> bool {
        self.settings.failover.mode == FailoverMode::Observe
    }

    /// Whether others will promote, once a configuration that waits is in force.
    pub(super) fn will_observe(&self) -> bool {
        let coming = self.waiting.as_ref().map_or(&self.settings, |(settings, _)| settings);
        coming.failover.mode == FailoverMode::Observe
    }

    /// The primary fails, and all that can answer have.
    pub(super) fn step_awaiting(&mut self, primary: &NodeName, since: Moment, evidence: &Evidence) {
        let failure = self.nodes.get(primary).and_then(|state| state.failure());
        let failure = failure.map_or_else(String::new, ToString::to_string);
        let streams = self
            .all_but(primary)
            .into_iter()
            .find(|node| self.witness(node, primary, since) == Witness::Fresh);
        let waiting = match (streams, evidence.kind) {
            (Some(standby), _) => {
                format!(
                    "{standby} still streams from {primary}: it is this proxy that is cut off from {primary}"
                )
            }
            (None, PrimaryEvidence::Refused) => {
                return self.follow_or_wait(primary, since, &format!("{primary}: {failure}"));
            }
            (None, PrimaryEvidence::Silent) if evidence.standing >= evidence.silent_after => {
                let long = evidence.standing.as_millis();
                return self.follow_or_wait(primary, since, &format!("{primary} is silent for {long}ms"));
            }
            (None, PrimaryEvidence::Silent) => {
                self.wake_at(self.now + evidence.silent_after.saturating_sub(evidence.standing));
                format!("{primary} is silent: {failure}")
            }
            // One that starts or stops will say what it is, and one that is full or does not let metako in is alive.
            (None, _) => format!("{primary} is not gone: {failure}"),
        };
        self.stuck = None;
        self.say_suspect(waiting);
    }

    /// The primary is gone, for the reason given: follows whoever was promoted, or holds writes until somebody is. Only what
    /// nodes answered after `since` counts, and all that can answer have.
    pub(super) fn follow_or_wait(&mut self, primary: &NodeName, since: Moment, gone: &str) {
        let why = match self.successor(primary, since) {
            Ok(Some(Successor { node, timeline, position })) => {
                let at = position.map_or_else(String::new, |position| format!(" at {position}"));
                let reason = format!(
                    "{gone}; somebody made {node} primary, on timeline {timeline}{at}{}",
                    self.last_seen(primary)
                );
                self.adopt(&node, &reason);
                // From here on nothing goes to the former one.
                self.phase = Phase::Discovering { reason };
                return;
            }
            Ok(None) => format!(
                "{gone}; failover.mode is observe: whoever manages the cluster promotes a node, which is followed as soon as it \
                 shows"
            ),
            Err(why) => format!("{gone}; {why}"),
        };
        self.record_once(
            DecisionKind::Vetoed,
            Some(primary),
            &format!("no failover: {why}. Writes are held"),
        );
        self.stuck = Some(why.clone());
        self.say_suspect(why);
    }

    fn last_seen(&self, primary: &NodeName) -> String {
        match self.nodes.get(primary).and_then(|state| state.flushed) {
            Some((_, position)) => format!(" ({primary} was last seen at {position})"),
            None => String::new(),
        }
    }

    /// The node that is to be followed, if there is one; an error says why none is although there are candidates.
    fn successor(&self, primary: &NodeName, since: Moment) -> Result<Option<Successor>, String> {
        let Some(journal) = &self.journal else { return Ok(None) };
        let is_later = |report: &&NodeReport| {
            report.is_primary() && report.system_id == journal.system_id && report.timeline > journal.timeline
        };
        let answers = |name: &NodeName| self.nodes.get(name)?.current_after(since);
        let names = || self.settings.nodes.iter().map(|node| &node.name);
        let promoted = names().filter_map(|name| Some((name, answers(name).filter(is_later)?)));
        let Some((node, report)) = promoted.max_by_key(|(_, report)| report.timeline) else {
            return Ok(None);
        };
        // One that is only silent may still be what it was.
        let rival = names().filter(|name| *name != node).find(|name| {
            let Some(state) = self.nodes.get(*name) else { return false };
            let refuses = matches!(state.failing, Some((PrimaryEvidence::Refused, _)));
            let last = state.report.as_ref().filter(|_| !refuses).filter(is_later);
            last.is_some_and(|last| last.timeline >= report.timeline)
        });
        if let Some(rival) = rival {
            return Err(format!(
                "{node} and {rival} were both promoted: stop the one that is not to be followed, or `metako adopt --primary \
                 NAME`"
            ));
        }
        let ahead = names().filter(|name| *name != node && *name != primary).find(|name| {
            answers(name).is_some_and(|other| {
                other.system_id == journal.system_id
                    && other.timeline <= journal.timeline
                    && other.position() > report.position()
            })
        });
        if let Some(ahead) = ahead {
            return Err(format!(
                "{node} was promoted, but {ahead} has WAL of the former timeline that {node} does not reach: `metako adopt \
                 --primary NAME` says who is primary"
            ));
        }
        let (node, timeline, position) = (node.clone(), report.timeline, report.position());
        Ok(Some(Successor { node, timeline, position }))
    }

    /// Whether the node is about to be the primary, as soon as the journal says so.
    pub(super) fn is_coming(&self, name: &NodeName) -> bool {
        let present = self.journal.as_ref().map(|journal| &journal.primary);
        self.writing.as_ref().is_some_and(|writing| writing.journal.primary == *name) && present != Some(name)
    }

    /// Synchronous replication is for others to see to. What metako has set in another mode it takes back, if it is still there.
    pub(super) fn withdraw_sync(&mut self, primary: &NodeName) {
        let Some(journal) = self.journal.as_ref().filter(|journal| journal.sync != SyncRule::Async) else {
            return;
        };
        self.sync_step = None;
        let Some(names) = self.sync_names_of(primary) else { return };
        let withdrawn = self.sync_withdrawn.is_some_and(|withdrawn| self.answered_after(primary, withdrawn));
        if withdrawn || names != settings::sync_names(&self.settings, &journal.sync) {
            let mut journal = journal.clone();
            journal.sync = SyncRule::Async;
            let reason =
                "failover.mode is observe: whoever manages the cluster says what commits wait for".to_owned();
            self.record(DecisionKind::SyncChanged, Some(primary), reason);
            self.sync_withdrawn = None;
            return self.persist(journal, Then::GoOn);
        }
        let reason =
            format!("synchronous_standby_names on {primary} is given back: failover.mode is observe");
        self.record_once(DecisionKind::SyncChanged, Some(primary), &reason);
        let set = vec![(settings::SYNC_NAMES.to_owned(), None)];
        let (node, change) = (primary.clone(), SettingsChange { set, resume_replay: false });
        self.start(primary, Task::SetSync, |id| Action::SetSyncStandbys { id, node, change });
    }
}
