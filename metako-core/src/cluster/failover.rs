//! A failover from its beginning to the freeze: fencing, and calling it off.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::controller::{Forced, Then};
use super::freeze::Choice;
use super::node::Moment;
use super::witness::Witness;
use super::work::{Lane, Task};
use super::{Action, Controller, DecisionKind, JournalPhase, Phase, settings};
use crate::plugin::{NodeReport, PrimaryEvidence};
use crate::{Lsn, NodeName, Tick, TimelineId};

/// What is known of the running failover besides the journal. All of it can be found out again after a restart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Failover {
    pub(super) old: NodeName,
    /// Only probes after it count.
    pub(super) began: Moment,
    /// The standbys that should be frozen: those that answered when it began.
    pub(super) expected: BTreeSet<NodeName>,
    pub(super) severed: bool,
    /// When the freeze of a standby was done.
    pub(super) frozen: BTreeMap<NodeName, Moment>,
    pub(super) choice: Option<Choice>,
    pub(super) prepared: Option<(Moment, Tick)>,
    /// Whose repointing was answered, well or badly.
    pub(super) repointed: BTreeSet<NodeName>,
    pub(super) verified: bool,
    /// Who was asked for.
    pub(super) wished: Option<NodeName>,
    /// The old primary is stopped by metako itself, because somebody asked for another.
    pub(super) planned: bool,
}

impl Failover {
    pub(super) fn begun(old: &NodeName, began: Moment, expected: impl IntoIterator<Item = NodeName>) -> Self {
        Self {
            old: old.clone(),
            began,
            expected: expected.into_iter().collect(),
            severed: false,
            frozen: BTreeMap::new(),
            choice: None,
            prepared: None,
            repointed: BTreeSet::new(),
            verified: false,
            wished: None,
            planned: false,
        }
    }

    /// An action of this failover was done.
    pub(super) fn on_effect(&mut self, task: Task, node: Option<&NodeName>, now: Tick, moment: Moment) {
        match (task, node) {
            (Task::Sever, _) => self.severed = true,
            (Task::Freeze, Some(node)) => {
                self.frozen.insert(node.clone(), moment);
            }
            (Task::Prepare, _) => self.prepared = Some((moment, now)),
            (Task::Repoint, Some(node)) => {
                self.repointed.insert(node.clone());
            }
            (Task::Verify, _) => self.verified = true,
            _ => {}
        }
    }
}

impl Controller {
    /// The evidence is enough: a new epoch begins, writes are held from this call on. Who was asked for is promoted if nothing
    /// is lost by that.
    pub(super) fn begin_failover(&mut self, old: &NodeName, reason: &str, asked: Forced) {
        let reached = self.reached().filter(|_| !asked.allow_data_loss);
        let Some(standbys) = self.begin_fencing(old, None, reached) else { return };
        self.record(
            DecisionKind::FailoverBegun,
            Some(old),
            format!("{reason}. Writes are held; {old} is fenced, then {standbys} are frozen and the most advanced is promoted"),
        );
        if let Some(failover) = &mut self.failover {
            failover.wished = asked.to;
        }
        self.phase = Phase::Fencing { old: old.clone(), since: self.now };
    }

    /// Begins the epoch in which `old` is replaced, by nobody who has less than `floor`, or too much less than what `old`
    /// `reached`, and names the standbys that are to be frozen.
    pub(super) fn begin_fencing(
        &mut self,
        old: &NodeName,
        floor: Option<Lsn>,
        reached: Option<(TimelineId, Lsn)>,
    ) -> Option<String> {
        let mut journal = self.journal.clone()?;
        journal.epoch = self.next_epoch();
        journal.phase = JournalPhase::Fencing;
        (journal.floor, journal.reached) = (floor, reached);
        let expected: Vec<NodeName> = self
            .all_but(old)
            .into_iter()
            .filter(|standby| self.can_freeze(standby, self.heard_after(standby, self.suspected)))
            .collect();
        for standby in &expected {
            self.save_settings(&mut journal, standby);
        }
        self.epoch = journal.epoch;
        let standbys = expected.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
        self.work.forget_pauses();
        self.stuck = None;
        self.looking = None;
        self.planned = None;
        self.doubted = None;
        self.gate = None;
        self.failover = Some(Failover::begun(old, self.suspected, expected));
        self.persist(journal, Then::GoOn);
        Some(standbys)
    }

    pub(super) fn step_fencing(&mut self) {
        if self.called_off() {
            return;
        }
        let Some(failover) = &self.failover else { return };
        let old = failover.old.clone();
        if failover.severed {
            self.phase = Phase::Freezing { old, since: self.now };
        } else {
            self.sever(&old);
        }
    }

    pub(super) fn sever(&mut self, node: &NodeName) {
        let (node, epoch) = (node.clone(), self.epoch);
        self.start_in(Lane::Sever, Task::Sever, |id| Action::Sever { id, node, epoch });
    }

    /// Until a standby is chosen a failover can be called off: when the old primary is well again, or when a standby that
    /// was not frozen shows that it streams from it.
    pub(super) fn called_off(&mut self) -> bool {
        let Some(failover) = &self.failover else { return true };
        let (old, began) = (failover.old.clone(), failover.began);
        let well = self
            .nodes
            .get(&old)
            .and_then(|state| state.current_after(began))
            .is_some_and(|report| self.judge(&old, report).is_ok());
        // The hook said that it is stopped: who has still to learn of that is frozen, and awaited for a moment.
        let stopped = failover.planned
            && matches!(&self.phase, Phase::Freezing { since, .. } if self.now < *since + FREEZE_WAIT);
        // What streams from one whose disk stands still is frozen next.
        let stalled = self
            .nodes
            .get(&old)
            .and_then(|state| state.failing)
            .is_some_and(|(kind, _)| kind == PrimaryEvidence::WriteStalled);
        let streams = self.all_but(&old).into_iter().filter(|_| !stopped && !stalled).find(|standby| {
            let untouched =
                !failover.frozen.contains_key(standby) && !self.work.busy(&Lane::Node(standby.clone()));
            untouched && self.witness(standby, &old, began) == Witness::Fresh
        });
        let (why, then) = match (well, streams) {
            _ if self.observes() => ("failover.mode is observe".to_owned(), Then::Doubt),
            (true, _) => (format!("{old} answers as a healthy primary again"), Then::Serve),
            (false, Some(standby)) => (format!("{standby} streams from {old} after all"), Then::Doubt),
            (false, None) => return false,
        };
        let Some(journal) = &self.journal else { return false };
        let mut journal = journal.clone();
        journal.epoch = self.next_epoch();
        journal.phase = JournalPhase::Steady;
        journal.floor = None;
        journal.reached = journal.reached.filter(|_| !well);
        journal.observed.started_at = None;
        self.away |= self.observes();
        // Who was away is not served before all were asked.
        let then = if self.away { Then::Doubt } else { then };
        self.record(
            DecisionKind::Aborted,
            Some(&old),
            format!("{why} before a standby was chosen: the failover is called off, {old} stays primary, standbys are unfrozen"),
        );
        self.persist(journal, then);
        true
    }

    /// Whether a node is a standby that can be asked to freeze.
    pub(super) fn freezable(&self, standby: &NodeName) -> bool {
        self.can_freeze(standby, self.report(standby))
    }

    pub(super) fn can_freeze(&self, standby: &NodeName, report: Option<&NodeReport>) -> bool {
        let tainted = self.is_tainted(standby);
        report.is_some_and(|report| !report.is_primary() && !self.is_foreign(report) && !tainted)
    }

    /// Notes in the journal what a freeze of the standby replaces; `false` if that was there already.
    pub(super) fn save_settings(&self, journal: &mut super::Journal, standby: &NodeName) -> bool {
        let Some(report) = self.report(standby) else { return false };
        // A node that is frozen already shows what metako set, not what it had.
        let own = settings::has_token(report) || settings::setting(report, settings::CONNINFO) == Some("");
        if own && journal.saved.contains_key(standby) {
            return false;
        }
        let mut saved = settings::save(report);
        if own {
            saved.insert(settings::CONNINFO.to_owned(), None);
            saved.insert(settings::SLOT.to_owned(), None);
        }
        journal.saved.insert(standby.clone(), saved.clone()) != Some(saved)
    }
}

/// How long standbys that answered at the beginning are awaited, when those that are frozen would be enough.
pub(super) const FREEZE_WAIT: Duration = Duration::from_secs(3);
