//! How far a primary was known to be, and how much of that the most advanced standby may lack: without synchronous
//! replication nothing else stands between a primary's death and a standby that is hours behind.
//!
//! The position is that of the last health check, so that what was written since comes on top. So that it is known after a
//! restart of metako which finds the primary gone, it goes to the journal now and then.

use std::time::Duration;

use super::controller::Then;
use super::evidence::Veto;
use super::node::Moment;
use super::{Controller, DecisionKind, Phase, SyncRule};
use crate::config::ByteSize;
use crate::plugin::{NodeReport, ReportedRole};
use crate::{Lsn, NodeName, TimelineId};

/// The journal gets the primary's position no more often.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// And not for less than that, however small the limit is.
const NOTE_BYTES: u64 = 1 << 20;

impl Controller {
    /// How far the primary is known to have been, on the timeline of the journal.
    pub(super) fn reached(&self) -> Option<(TimelineId, Lsn)> {
        let journal = self.journal.as_ref()?;
        let said = self.nodes.get(&journal.primary).and_then(|state| state.flushed);
        [said, journal.reached]
            .into_iter()
            .flatten()
            .filter(|(timeline, _)| *timeline == journal.timeline)
            .max()
    }

    /// The limit, where it holds: what a synchronous primary acknowledged is with those who are frozen, and what a switchover
    /// has to find is known to the byte.
    fn lag_limit(&self) -> Option<u64> {
        let journal = self.journal.as_ref()?;
        let holds = journal.sync == SyncRule::Async && journal.floor.is_none();
        self.settings.failover.max_lag_on_failover.filter(|_| holds)
    }

    /// Whether the most advanced of those that could be frozen lacks too much.
    pub(super) fn veto_of_lag(&self, primary: &NodeName, since: Moment) -> Option<Veto> {
        let (_, reached) = self.reached()?;
        let (standby, most) = self.most_advanced(primary, since)?;
        self.lacks_too_much(&standby, most, reached).map(Veto::Stuck)
    }

    /// The same of frozen ones, against what the journal has kept of it since the failover began.
    pub(super) fn frozen_lack(&self, standby: &NodeName, most: Lsn) -> Option<String> {
        let journal = self.journal.as_ref()?;
        let (_, reached) = journal.reached.filter(|(timeline, _)| *timeline == journal.timeline)?;
        self.lacks_too_much(standby, most, reached)
    }

    fn lacks_too_much(&self, standby: &NodeName, most: Lsn, reached: Lsn) -> Option<String> {
        let limit = self.lag_limit()?;
        let lacks = reached.0.saturating_sub(most.0);
        let primary = &self.journal.as_ref()?.primary;
        (lacks > limit).then(|| {
            format!(
                "{standby} is the most advanced standby, at {most}, and {primary} was known to be at {reached}: {lacks} bytes of \
                 WAL are missing, more than failover.max_lag_on_failover ({}) allows. Start {primary} again, or lose them by \
                 `metako failover --allow-data-loss`",
                ByteSize(limit)
            )
        })
    }

    /// What a failover now would lose at least, as far as is known; `None` where commits are with the voters.
    pub(super) fn foreseen_loss(&self, primary: &NodeName, since: Moment) -> Option<String> {
        if self.journal.as_ref()?.sync != SyncRule::Async {
            return None;
        }
        let Some((_, reached)) = self.reached() else {
            return Some(format!("how far {primary} was is not known: what no standby has is lost"));
        };
        let (standby, most) = self.most_advanced(primary, since)?;
        Some(match reached.0.saturating_sub(most.0) {
            0 => format!(
                "{standby} is the most advanced, at {most}, and has all that {primary} was known to have; what {primary} wrote \
                 since then may be lost"
            ),
            lacks => format!(
                "{standby} is the most advanced, at {most}; {primary} was known to be at {reached}: {lacks} bytes of WAL are \
                 lost, and what {primary} wrote since then"
            ),
        })
    }

    fn most_advanced(&self, primary: &NodeName, since: Moment) -> Option<(NodeName, Lsn)> {
        let timeline = self.journal.as_ref()?.timeline;
        let position = |standby: NodeName| {
            let report = self.heard_after(&standby, since)?;
            let counts = report.timeline == timeline && self.can_freeze(&standby, Some(report));
            Some((standby, report.position().filter(|_| counts)?))
        };
        self.all_but(primary).into_iter().filter_map(position).max_by_key(|(_, position)| *position)
    }

    /// Whether a standby lacks too much of what the primary has now, by what both last said of it.
    pub(super) fn lags(&self, standby: &NodeName, primary: &NodeName, report: &NodeReport) -> bool {
        let (Some(limit), Some((_, reached))) = (self.lag_limit(), self.reached()) else { return false };
        // A standby that was asked before the primary is behind it by that alone.
        let sent = match self.report(primary).map(|report| &report.role) {
            Some(ReportedRole::Primary { senders, .. }) => {
                let name = self.node(standby).map(|node| &node.application_name);
                senders.iter().find(|sender| Some(&sender.application_name) == name)
            }
            _ => None,
        };
        let position = report.position().max(sent.and_then(|sender| sender.flushed)).unwrap_or_default();
        reached.0.saturating_sub(position.0) > limit
    }

    /// Notes in the journal how far the primary is, where that would be missed.
    pub(super) fn note_reached(&mut self) {
        let (Some(limit), Some(reached), Some(journal)) = (self.lag_limit(), self.reached(), &self.journal)
        else {
            return;
        };
        let early = self.noted.is_some_and(|noted| self.now.since(noted) < NOTE_EVERY);
        let due = match journal.reached.filter(|(timeline, _)| *timeline == reached.0) {
            None => true,
            Some((_, noted)) => !early && reached.1.0.saturating_sub(noted.0) >= limit.max(NOTE_BYTES),
        };
        if !due || self.writing.is_some() || self.observes() {
            return;
        }
        let mut journal = journal.clone();
        journal.reached = Some(reached);
        self.noted = Some(self.now);
        self.persist(journal, Then::GoOn);
    }

    /// Whether a person's word that data may be lost changes anything while the standbys are frozen.
    pub(super) fn may_accept_loss(&self) -> Result<(), String> {
        let planned = self.failover.as_ref().is_some_and(|failover| failover.planned);
        let limited = self.journal.as_ref().is_some_and(|journal| journal.reached.is_some());
        match &self.phase {
            Phase::Freezing { .. } if !planned && limited && self.lag_limit().is_some() => Ok(()),
            phase => Err(format!("the cluster is {}: no primary is to be replaced", phase.name())),
        }
    }

    /// A person says, while the standbys are being frozen, that what they lack may be lost.
    pub(super) fn accept_loss(&mut self, to: Option<NodeName>) {
        let Some(mut journal) = self.journal.clone() else { return };
        journal.reached = None;
        let reason =
            "an operator asked for it: the most advanced frozen standby is promoted, whatever it lacks";
        self.record(DecisionKind::FailoverBegun, Some(&journal.primary), reason.to_owned());
        if let Some(failover) = &mut self.failover {
            failover.wished = to.or_else(|| failover.wished.take());
        }
        self.persist(journal, Then::GoOn);
    }
}
