//! How far a primary was known to be, and how much of that the most advanced standby may lack: without synchronous
//! replication nothing else stands between a primary's death and a standby that is hours behind.
//!
//! The position is that of the last good health check, so that what was written since comes on top. Only what stands still
//! is judged by it: before it has replayed all that it has, a standby that was restarted does not know how far it is.

use super::controller::Then;
use super::node::Moment;
use super::{Controller, DecisionKind, Phase, SyncRule};
use crate::config::ByteSize;
use crate::plugin::{NodeReport, ReportedRole};
use crate::{Lsn, NodeName, TimelineId};

impl Controller {
    /// How far the primary is known to have been, on the timeline of the journal: by its own word, and by what a standby has
    /// of it.
    pub(super) fn reached(&self) -> Option<(TimelineId, Lsn)> {
        let journal = self.journal.as_ref()?;
        let received = |standby: NodeName| {
            let report = self.nodes.get(&standby)?.report.as_ref()?;
            let counts = !report.is_primary() && !self.is_foreign(report) && !self.is_tainted(&standby);
            Some((report.timeline, report.position().filter(|_| counts)?))
        };
        self.all_but(&journal.primary)
            .into_iter()
            .filter_map(received)
            // What the journal says is older than the primary's own word: it may have been restored since.
            .chain(self.said_by_primary().or(journal.reached))
            .filter(|(timeline, _)| *timeline == journal.timeline)
            .max()
    }

    /// The furthest position that the primary itself has named since metako was started.
    fn said_by_primary(&self) -> Option<(TimelineId, Lsn)> {
        let journal = self.journal.as_ref()?;
        let said = self.nodes.get(&journal.primary)?.flushed;
        said.filter(|(timeline, _)| *timeline == journal.timeline)
    }

    /// The limit, where it holds: what a synchronous primary acknowledged is with those who are frozen, and what a switchover
    /// has to find is known to the byte.
    fn lag_limit(&self) -> Option<u64> {
        let journal = self.journal.as_ref()?;
        let holds = journal.sync == SyncRule::Async && journal.floor.is_none();
        self.settings.failover.max_lag_on_failover.filter(|_| holds)
    }

    /// Whether one of those that stand still has enough; an error says how much is missing.
    pub(super) fn near_enough(&mut self, old: &NodeName, frozen: &[(NodeName, Lsn)]) -> Result<(), String> {
        let Some(lack) = self.frozen_lack(frozen) else { return Ok(()) };
        let reason = format!(
            "no standby that is frozen has enough of what {old} was known to have (failover.max_lag_on_failover); writes are held"
        );
        self.record_once(DecisionKind::Vetoed, Some(old), &reason);
        Err(lack)
    }

    fn frozen_lack(&self, frozen: &[(NodeName, Lsn)]) -> Option<String> {
        let (limit, journal) = (self.lag_limit()?, self.journal.as_ref()?);
        let noted = journal.reached.filter(|(timeline, _)| *timeline == journal.timeline)?;
        let (_, reached) = self.reached().map_or(noted, |known| known.max(noted));
        let last = |standby| self.last_timeline(standby);
        // That somebody promoted a node is worse, and told later.
        if frozen.iter().any(|(standby, _)| last(standby) > Some(journal.timeline)) {
            return None;
        }
        let on_it = frozen.iter().filter(|(standby, _)| last(standby) == Some(journal.timeline));
        let (standby, most) = on_it.max_by_key(|(_, position)| *position)?;
        let (primary, lacks) = (&journal.primary, reached.0.saturating_sub(most.0));
        (lacks > limit).then(|| {
            format!(
                "{standby} is the most advanced standby, at {most}, and {primary} was known to be at {reached}: {lacks} bytes of \
                 WAL are missing, more than failover.max_lag_on_failover ({}) allows. Start {primary} again, or lose them by \
                 `metako failover --allow-data-loss`; a reload waits until then",
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
        let what = format!("{standby} is the most advanced, at {most} as far as it has received or replayed");
        let lacks = reached.0.saturating_sub(most.0);
        if lacks == 0 {
            return Some(format!(
                "{what}, and has all that {primary} was known to have; what {primary} wrote since then may be lost"
            ));
        }
        let limit = self.lag_limit().filter(|limit| lacks > *limit);
        let held = limit.map_or_else(String::new, |limit| {
            format!(
                ". Where that is still more than failover.max_lag_on_failover ({}) when they are frozen, nobody is promoted without \
                 --allow-data-loss",
                ByteSize(limit)
            )
        });
        Some(format!(
            "{what}; {primary} was known to be at {reached}: {lacks} bytes of WAL are lost, and what {primary} wrote since then{held}"
        ))
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
        let (Some(limit), Some((_, said))) = (self.lag_limit(), self.said_by_primary()) else {
            return false;
        };
        // A standby that was asked before the primary is behind it by that alone.
        let sent = match self.report(primary).map(|report| &report.role) {
            Some(ReportedRole::Primary { senders, .. }) => {
                let name = self.node(standby).map(|node| &node.application_name);
                senders.iter().find(|sender| Some(&sender.application_name) == name)
            }
            _ => None,
        };
        let position = report.position().max(sent.and_then(|sender| sender.flushed)).unwrap_or_default();
        said.0.saturating_sub(position.0) > limit
    }

    /// What is lost if a person says, while the standbys are frozen, that it may be; an error where nothing waits for that.
    pub(super) fn may_accept_loss(&self) -> Result<String, String> {
        let Phase::Freezing { old, since } = &self.phase else {
            return Err(format!("the cluster is {}: no primary is to be replaced", self.phase.name()));
        };
        let frozen = self.frozen_positions();
        self.enough(old, *since, &frozen)?;
        self.frozen_lack(&frozen).ok_or_else(|| {
            format!("the cluster is {}, and what the standbys lack is not in its way", self.phase.name())
        })
    }

    /// A person says, while the standbys are frozen, that what they lack may be lost.
    pub(super) fn accept_loss(&mut self, to: Option<NodeName>) {
        let Some(mut journal) = self.journal.clone() else { return };
        journal.reached = None;
        let reason =
            "an operator asked for it: the most advanced frozen standby is promoted, whatever it lacks";
        self.record(DecisionKind::Resumed, Some(&journal.primary), reason.to_owned());
        if let Some(failover) = &mut self.failover {
            failover.wished = to.or_else(|| failover.wished.take());
        }
        self.persist(journal, Then::GoOn);
    }
}
