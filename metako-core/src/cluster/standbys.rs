//! Standbys while a primary serves: those that were frozen or follow somebody else are brought back to it, those whose
//! history differs are left alone and named.

use std::time::Duration;

use super::controller::Then;
use super::work::Task;
use super::{Action, Controller, DecisionKind, Journal, JournalPhase, Phase, SettingsChange, settings};
use crate::plugin::NodeReport;
use crate::{Lsn, NodeName, TimelineId};

/// A standby of a standby that does not stream for so long is brought to the primary.
const LEFT_BEHIND: Duration = Duration::from_secs(10);
/// And says so in so many answers in a row: one that has just come back is given the time to connect.
const LEFT_BEHIND_ANSWERS: u32 = 5;

/// What is to be done with a standby.
#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    Nothing,
    /// Give it back what it had before a failover that was called off.
    Unfreeze,
    /// Let it follow the primary.
    Repoint,
    /// Its history may not be the primary's: not touched.
    LeaveAlone(String),
}

/// The history that standbys are to have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course {
    pub(super) timeline: TimelineId,
    /// No later than where the timeline began, if metako knows.
    pub(super) fork: Option<Lsn>,
    /// See [`super::Journal::last_record`].
    pub(super) last_record: Option<Lsn>,
}

impl Course {
    fn of(journal: &Journal) -> Self {
        Self { timeline: journal.timeline, fork: journal.fork, last_record: journal.last_record }
    }
}

impl Controller {
    pub(super) fn course(&self) -> Option<(NodeName, Course)> {
        let journal = self.journal.as_ref()?;
        match (&self.phase, &journal.phase) {
            (Phase::Verifying { candidate, timeline, .. }, JournalPhase::Promoting { fork, .. }) => Some((
                candidate.clone(),
                Course { timeline: *timeline, fork: Some(*fork), last_record: journal.last_record },
            )),
            (
                Phase::Steady { primary } | Phase::Suspect { primary, .. } | Phase::Paused { primary },
                JournalPhase::Steady,
            ) => Some((primary.clone(), Course::of(journal))),
            _ => None,
        }
    }

    pub(super) fn reconcile_standbys(&mut self) {
        let Some((primary, course)) = self.course() else { return };
        for standby in self.all_but(&primary) {
            if !self.answered_since_touched(&standby) {
                continue;
            }
            match self.remedy(&standby, &primary, course) {
                Remedy::Nothing => {}
                Remedy::Unfreeze => self.unfreeze(&standby),
                Remedy::Repoint => self.repoint_with_slot(&standby, &primary),
                Remedy::LeaveAlone(why) => {
                    self.record_once(
                        DecisionKind::Refused,
                        Some(&standby),
                        &format!("{standby} is left alone: {why}"),
                    );
                }
            }
        }
        if matches!(self.phase, Phase::Steady { .. }) {
            self.reset_primary(&primary);
            self.drop_saved(&primary);
        }
    }

    /// While the primary is under suspicion only what a failover that was called off left behind is undone: as long as a
    /// standby is frozen it is no witness.
    pub(super) fn unfreeze_standbys(&mut self) {
        let Some((primary, course)) = self.course() else { return };
        for standby in self.all_but(&primary) {
            if self.answered_since_touched(&standby)
                && self.remedy(&standby, &primary, course) == Remedy::Unfreeze
            {
                self.unfreeze(&standby);
            }
        }
    }

    /// Standbys that metako froze are given back to the primary, and nothing else is done.
    pub(super) fn release_frozen(&mut self, primary: &NodeName) {
        let Some((_, course)) = self.course() else { return };
        for standby in self.all_but(primary) {
            let frozen = self.report(&standby).is_some_and(settings::has_token);
            if !frozen || !self.answered_since_touched(&standby) {
                continue;
            }
            match self.remedy(&standby, primary, course) {
                Remedy::Unfreeze => self.unfreeze(&standby),
                Remedy::Repoint => self.repoint_with_slot(&standby, primary),
                Remedy::Nothing | Remedy::LeaveAlone(_) => {}
            }
        }
    }

    /// Whether what the node last said is newer than what was last done to it.
    pub(super) fn answered_since_touched(&self, node: &NodeName) -> bool {
        self.touched.get(node).is_none_or(|touched| self.answered_after(node, *touched))
    }

    fn unfreeze(&mut self, standby: &NodeName) {
        let mut change = settings::unfreeze(&self.saved(standby));
        let upstream = self.report(standby).and_then(|report| settings::setting(report, settings::CONNINFO));
        if self.observes() && upstream.is_some_and(|upstream| !upstream.is_empty()) {
            // Whoever manages the cluster has given it another one meanwhile.
            change.set.retain(|(name, _)| name != settings::CONNINFO);
        }
        let node = standby.clone();
        self.start(standby, Task::Unfreeze, |id| Action::Unfreeze { id, node, change });
    }

    fn repoint_with_slot(&mut self, standby: &NodeName, primary: &NodeName) {
        let slot = self.slot(standby);
        if !self.slots.contains(&slot) {
            return self.start_prepare(primary, SettingsChange::default());
        }
        let reason = format!("{standby} is pointed at {primary}, with slot {slot}");
        self.record_once(DecisionKind::Repointed, Some(standby), &reason);
        self.repoint(standby, primary);
    }

    fn remedy(&self, standby: &NodeName, primary: &NodeName, course: Course) -> Remedy {
        let Some(report) =
            self.report(standby).filter(|report| !report.is_primary() && !self.is_foreign(report))
        else {
            return Remedy::Nothing;
        };
        let frozen = settings::has_token(report);
        if self.observes() {
            // Others see to standbys, but for what metako itself froze.
            let known = self.journal.as_ref().is_some_and(|journal| journal.saved.contains_key(standby));
            return match (frozen, known) {
                (false, _) => Remedy::Nothing,
                (true, true) => Remedy::Unfreeze,
                (true, false) => Remedy::LeaveAlone(
                    "it carries metako's freeze token, and what it had before is not known: reset primary_conninfo and \
                     primary_slot_name there"
                        .to_owned(),
                ),
            };
        }
        if let Some(why) = self.lineage_doubt(standby, report, course) {
            return Remedy::LeaveAlone(why);
        }
        if report.timeline == course.timeline && frozen {
            return if self.journal.as_ref().is_some_and(|journal| journal.saved.contains_key(standby)) {
                Remedy::Unfreeze
            } else {
                Remedy::Repoint
            };
        }
        if frozen {
            return Remedy::Repoint;
        }
        match self.configured_upstream(report) {
            Some(upstream) if upstream == *primary => Remedy::Nothing,
            // A cascade is as its owner made it, while its upstream is a standby in good order. One that does not stream is
            // none: its upstream may be a former primary, on which its slot is no more.
            Some(upstream)
                if upstream != *standby
                    && self.in_good_order(&upstream, primary, course)
                    && !self.is_left_behind(standby, report) =>
            {
                Remedy::Nothing
            }
            Some(_) => Remedy::Repoint,
            // An address that metako does not know may well be the primary's, under another name.
            None if report.streaming_receiver().is_some() => Remedy::Nothing,
            None if settings::fed_by_archive(report) => Remedy::Nothing,
            None if settings::setting(report, settings::CONNINFO) == Some("") => Remedy::Repoint,
            None if report.timeline < course.timeline => Remedy::Repoint,
            None => Remedy::Nothing,
        }
    }

    /// Whether a standby has not streamed for long, and gets nothing from elsewhere.
    fn is_left_behind(&self, standby: &NodeName, report: &NodeReport) -> bool {
        let Some(state) = self.nodes.get(standby) else { return false };
        let since = state.streamed.unwrap_or(self.well_since).max(self.well_since);
        report.streaming_receiver().is_none()
            && state.successes >= LEFT_BEHIND_ANSWERS
            && settings::setting(report, settings::RESTORE).is_none_or(str::is_empty)
            && self.now.since(since) >= LEFT_BEHIND
    }

    pub(super) fn in_good_order(&self, upstream: &NodeName, primary: &NodeName, course: Course) -> bool {
        self.report(upstream).is_some_and(|report| {
            !report.is_primary()
                && !self.is_foreign(report)
                && report.timeline == course.timeline
                && self.configured_upstream(report).as_ref() == Some(primary)
        })
    }

    /// Why a standby's history may not be a part of the primary's.
    fn lineage_doubt(&self, standby: &NodeName, report: &NodeReport, course: Course) -> Option<String> {
        let position = report.position();
        if self.is_tainted(standby) {
            return Some(
                "it holds history that the cluster did not follow: it needs pg_rewind or a base backup"
                    .to_owned(),
            );
        }
        if report.timeline > course.timeline {
            return Some(format!(
                "it is on timeline {}, the primary on {}: it needs pg_rewind or a base backup",
                report.timeline, course.timeline
            ));
        }
        if report.timeline == course.timeline {
            return None;
        }
        match course.fork {
            None => Some(format!(
                "it is on timeline {} and metako does not know where timeline {} began",
                report.timeline, course.timeline
            )),
            Some(_) if report.timeline.next() != course.timeline => Some(format!(
                "it is on timeline {}, more than one behind {}, and metako does not know where those between began",
                report.timeline, course.timeline
            )),
            Some(fork) if position.is_none_or(|position| position > fork) => Some(format!(
                "it reached {} on timeline {}, past {fork} where timeline {} began: it has diverged and needs pg_rewind or a \
                 base backup",
                position.map_or_else(|| "an unknown position".to_owned(), |position| position.to_string()),
                report.timeline,
                course.timeline
            )),
            Some(_) => course.last_record.filter(|begins| is_stranded(report, *begins)).map(|begins| {
                format!(
                    "of the record that begins at {begins}, where timeline {} began, it has a part that reaches into a later file \
                     of WAL, and PostgreSQL would end there (docs/hooks.md): hooks.rejoin helps, or a base backup",
                    course.timeline
                )
            }),
        }
    }

    /// Why a standby may not serve reads for reasons of history.
    pub(super) fn doubtful(&self, standby: &NodeName, report: &NodeReport) -> Option<String> {
        let journal = self.journal.as_ref()?;
        let course = self.course().map_or_else(|| Course::of(journal), |(_, course)| course);
        let promoting = matches!(journal.phase, JournalPhase::Promoting { .. });
        if promoting && report.timeline == course.timeline.next() {
            return None;
        }
        self.lineage_doubt(standby, report, course)
    }

    /// A promoted node gets rid of the freeze token and what else was set on it as a standby.
    fn reset_primary(&mut self, primary: &NodeName) {
        let saved = self.journal.as_ref().and_then(|journal| journal.saved.get(primary)).cloned();
        let Some(saved) = saved.filter(|_| self.report(primary).is_some() && !self.reset_done(primary))
        else {
            return;
        };
        let node = primary.clone();
        let change = if self.observes() { settings::unfreeze(&saved) } else { settings::leftovers(&saved) };
        self.start(primary, Task::Unfreeze, |id| Action::Unfreeze { id, node, change });
    }

    fn reset_done(&self, primary: &NodeName) -> bool {
        self.primary_reset.as_ref() == Some(&(self.epoch, primary.clone()))
    }

    /// Forgets the former settings of nodes that have them back.
    fn drop_saved(&mut self, primary: &NodeName) {
        let Some(journal) = &self.journal else { return };
        let settled = |name: &NodeName| {
            if name == primary {
                return self.reset_done(primary);
            }
            self.node(name).is_none()
                || self.report(name).filter(|_| self.answered_since_touched(name)).is_some_and(|report| {
                    !report.is_primary()
                        && !settings::has_token(report)
                        && settings::setting(report, settings::CONNINFO)
                            .is_some_and(|conninfo| !conninfo.is_empty())
                        && !self.work.busy(&super::work::Lane::Node(name.clone()))
                })
        };
        let gone: Vec<NodeName> = journal.saved.keys().filter(|name| settled(name)).cloned().collect();
        if gone.is_empty() {
            return;
        }
        let mut journal = journal.clone();
        journal.saved.retain(|name, _| !gone.contains(name));
        self.persist(journal, Then::GoOn);
    }
}

/// Whether a standby waits for the rest of a record whose beginning it has and which the timeline that began at `begins` has
/// not, in a later file of WAL than that. Pointed at the primary it asks for that later file, never for the one in which the
/// timeline began; when it gets it, it ends: `PANIC: could not open file "pg_wal/..."` (seen on PostgreSQL 15).
pub(super) fn is_stranded(report: &NodeReport, begins: Lsn) -> bool {
    settings::is_at_end_of_wal(report)
        && report.replayed().is_some_and(|replayed| replayed <= begins)
        && report
            .position()
            .is_some_and(|position| position > begins && !report.in_one_segment(position, begins))
}
