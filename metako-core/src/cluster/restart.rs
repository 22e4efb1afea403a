//! A primary whose server was started anew while commits wait for standbys.
//!
//! Its recovery brings back what it had on disk, commits that were still waiting for a standby among it. Nobody was told that
//! those succeeded, and a failover may lose them. So that no client sees such a row, or builds on it, clients are sent there
//! only when enough voters have on disk where the recovery ended.

use serde::{Deserialize, Serialize};

use super::{Controller, DecisionKind, SyncRule, Vouched};
use crate::plugin::{ReportedRole, ServerRun};
use crate::{Lsn, NodeName};

/// What is awaited before clients are sent to a run of the primary's server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gate {
    run: ServerRun,
    /// Where it was when it was first seen: not before the end of its recovery.
    mark: Lsn,
    /// How far that is, for people.
    reason: String,
}

impl Controller {
    /// Why clients are not sent to the primary, if it was started anew.
    pub(super) fn gated(&self) -> Option<&str> {
        self.gate.as_ref().map(|gate| gate.reason.as_str())
    }

    /// Looks, after an answer of the primary that is in order, which run of its server that came from. Whether clients wait for
    /// no more than that it is let through.
    pub(super) fn watch_run(&mut self, primary: &NodeName) -> bool {
        let Some(report) = self.report(primary) else { return false };
        let ReportedRole::Primary { flushed, senders, .. } = &report.role else { return false };
        let Some(journal) = self.journal.as_ref().filter(|journal| journal.primary == *primary) else {
            return false;
        };
        let run = report.run();
        let SyncRule::Quorum { acks, voters } = &journal.sync else {
            self.open_gate(primary, "commits wait for no standby");
            return false;
        };
        if journal.run == Some(run) || self.passed == Some(run) {
            self.open_gate(primary, "enough standbys have what it has");
            return false;
        }
        let mark = self.gate.as_ref().filter(|gate| gate.run == run).map_or(*flushed, |gate| gate.mark);
        let have = self.confirming(voters, senders, |sender| sender.flushed >= Some(mark));
        let names = voters.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
        let reason = format!(
            "{primary} was started anew and may show rows whose commit was never acknowledged: {have} of the {acks} standbys that \
             must have its WAL up to {mark} have it (of {names}; failover.synchronous)"
        );
        let enough = have >= *acks;
        if !enough {
            self.record_once(DecisionKind::Restarted, Some(primary), &reason);
        }
        self.gate = Some(Gate { run, mark, reason });
        enough
    }

    fn open_gate(&mut self, primary: &NodeName, why: &str) {
        if self.gate.take().is_some() {
            self.forget_said(DecisionKind::Restarted);
            self.record(DecisionKind::Opened, Some(primary), format!("clients are sent to {primary}: {why}"));
        }
    }

    /// Writes down that enough voters have what the present run of the primary has, as soon as that is so. Whether the journal
    /// is to be written before anything else.
    pub(super) fn pass_gate(&mut self, primary: &NodeName) -> bool {
        if !self.watch_run(primary) {
            return false;
        }
        let (Some(run), Some(mut journal)) = (self.gate.as_ref().map(|gate| gate.run), self.journal.clone())
        else {
            return false;
        };
        journal.run = Some(run);
        // The journal only spares another look after a restart of metako: clients do not wait for it.
        self.passed = Some(run);
        self.watch_run(primary);
        self.persist(journal, super::controller::Then::GoOn);
        true
    }

    /// Which run of a node's server clients may be connected to: only where a run may show what a failover loses it matters.
    pub(super) fn vouched(&self, name: &NodeName) -> Vouched {
        let report = self.nodes.get(name).and_then(|state| state.report.as_ref());
        if report.is_some_and(|report| self.is_foreign(report)) {
            return Vouched::Nobody;
        }
        let strict = |journal: &&super::Journal| journal.primary == *name && journal.sync != SyncRule::Async;
        match self.journal.as_ref().filter(strict) {
            Some(journal) => {
                let passed = self.passed.filter(|run| report.is_some_and(|report| report.run() == *run));
                passed.or(journal.run).map_or(Vouched::Nobody, Vouched::Run)
            }
            None => Vouched::Any,
        }
    }
}
