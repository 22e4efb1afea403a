//! Former primaries, and standbys whose history the cluster did not follow: `hooks.rejoin` makes standbys of them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::controller::Then;
use super::standbys::{Course, is_stranded};
use super::work::{Lane, Task};
use super::{
    Action, ActionFailure, Controller, DecisionKind, HookCall, HookKind, Phase, SettingsChange, settings,
};
use crate::NodeName;
use crate::plugin::{NodeReport, PrimaryEvidence};

/// How long a node has after a rejoin to stream, before it is rejoined again.
pub(super) const SETTLE: Duration = Duration::from_secs(30);
/// So often a rejoin is tried until a person has to look.
const ATTEMPTS_MAX: u32 = 5;

/// How often rejoins of a node failed, and whether it answered meanwhile: where that changes, they are counted anew.
pub(super) type Rejoins = BTreeMap<NodeName, (bool, u32)>;

impl Controller {
    /// Has displaced nodes rejoined, and forgets those that stream again.
    pub(super) fn reconcile_displaced(&mut self) {
        let (Some((primary, course)), Some(journal)) = (self.course(), &self.journal) else { return };
        if self.writing.is_some() || self.observes() {
            return;
        }
        let hooked = self.settings.hooks.rejoin.is_some();
        let back: Vec<NodeName> = journal
            .displaced
            .iter()
            .filter(|node| **node == primary || self.node(node).is_none() || self.follows(node, course))
            .cloned()
            .collect();
        let strayed: Vec<NodeName> = self
            .all_but(&primary)
            .into_iter()
            .filter(|node| hooked && !journal.displaced.contains(node) && self.has_strayed(node, course))
            .collect();
        if !back.is_empty() || !strayed.is_empty() {
            let mut journal = journal.clone();
            journal.displaced.retain(|node| !back.contains(node));
            journal.displaced.extend(strayed);
            for node in back {
                self.rejoins.remove(&node);
                if self.follows(&node, course) {
                    self.littered.insert(node.clone());
                    let reason = format!("{node} streams as a standby again");
                    self.record(DecisionKind::Rejoined, Some(&node), reason);
                }
            }
            return self.persist(journal, Then::GoOn);
        }
        // Where somebody else has promoted a node, who is to follow whom is for a person to say.
        let elsewhere = self.node_beyond(course.timeline).is_some();
        if !hooked || elsewhere {
            return;
        }
        let due: Vec<NodeName> =
            journal.displaced.iter().filter(|node| self.is_to_rejoin(node, &primary)).cloned().collect();
        for node in due {
            self.rejoin(&node, &primary, course);
        }
    }

    /// Whether a node is a standby with the cluster's history that receives.
    fn follows(&self, node: &NodeName, course: Course) -> bool {
        self.report(node).is_some_and(|report| {
            !report.is_primary()
                && report.timeline == course.timeline
                && report.streaming_receiver().is_some()
                && self.doubtful(node, report).is_none()
                && !self.is_foreign(report)
        })
    }

    /// Whether a standby holds what the cluster did not follow, and a rewind helps.
    fn has_strayed(&self, node: &NodeName, course: Course) -> bool {
        let past = self.report(node).is_some_and(|report| {
            !report.is_primary()
                && !self.is_foreign(report)
                && report.timeline.next() == course.timeline
                // What it only received may be of a timeline that it does not tell yet.
                && (course.fork.is_some_and(|fork| report.replayed().is_some_and(|at| at > fork))
                    || course.last_record.is_some_and(|begins| is_stranded(report, begins)))
        });
        past && !self.is_tainted(node)
    }

    pub(super) fn is_tainted(&self, node: &NodeName) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.tainted.contains(node))
    }

    /// Whether only a hook can bring a displaced node back: one that is a standby already with the cluster's history gets
    /// its upstream by SQL, and one that recovers, or does not let metako in, lives.
    fn is_to_rejoin(&self, node: &NodeName, primary: &NodeName) -> bool {
        let Some(state) = self.nodes.get(node).filter(|state| state.answer.is_some()) else { return false };
        let streams = self.streaming_to(primary).contains(node);
        let lives = match (state.current(), state.failing) {
            (Some(report), _) => {
                self.is_foreign(report) || (!report.is_primary() && self.doubtful(node, report).is_none())
            }
            (None, Some((kind, _))) => matches!(
                kind,
                PrimaryEvidence::Starting
                    | PrimaryEvidence::ShuttingDown
                    | PrimaryEvidence::Full
                    | PrimaryEvidence::NoLogin
            ),
            (None, None) => true,
        };
        let given_up = self.rejoins.get(node).is_some_and(|(answered, failures)| {
            *failures >= ATTEMPTS_MAX && *answered == self.report(node).is_some()
        });
        // Where commits wait for it, nobody gives up.
        let needed = matches!(self.phase, Phase::Verifying { .. });
        !streams
            && !lives
            && (!given_up || needed)
            && !self.is_tainted(node)
            && !self.work.busy(&Lane::Host(node.clone()))
    }

    fn rejoin(&mut self, node: &NodeName, primary: &NodeName, course: Course) {
        // pg_rewind takes the timeline from the source's control file, where only a checkpoint writes it.
        if self.checkpointed != Some(self.epoch) {
            return self.checkpoint(primary);
        }
        let slot = self.slot(node);
        if !self.slots.contains(&slot) {
            return self.start_prepare(primary, SettingsChange::default());
        }
        let (Some(from), Some(to)) = (self.node(node), self.node(primary)) else { return };
        let conninfo = settings::conninfo_to(&self.saved(node), from, to);
        let call = HookCall {
            kind: HookKind::Rejoin,
            node: node.clone(),
            upstream: Some(primary.clone()),
            epoch: self.epoch,
            timeline: course.timeline,
            slot: Some(slot),
            conninfo: Some(conninfo),
        };
        self.start_in(Lane::Host(node.clone()), Task::Rejoin, |id| Action::Hook { id, call });
    }

    /// One more rejoin of a node has ended; whether it helped will show.
    pub(super) fn count_rejoin(&mut self, node: &NodeName) -> u32 {
        let answers = self.report(node).is_some();
        let (answered, count) = self.rejoins.entry(node.clone()).or_insert((answers, 0));
        *count = if *answered == answers { *count + 1 } else { 1 };
        *answered = answers;
        *count
    }

    pub(super) fn on_rejoin_failed(&mut self, lane: &Lane, failure: &ActionFailure) {
        let Lane::Host(node) = lane else { return };
        // One that certainly did nothing, or asks for another time, is not counted.
        let count = if matches!(failure, ActionFailure::Unknown(_)) { self.count_rejoin(node) } else { 0 };
        if count < ATTEMPTS_MAX {
            let reason =
                format!("hooks.rejoin of {node}: {failure}; it will be tried again while it is needed");
            return self.record_once(DecisionKind::Retried, Some(node), &reason);
        }
        let reason = format!(
            "{node} could not be rejoined in {ATTEMPTS_MAX} attempts and is left to a person; the last said: {failure}. \
             `metako reload` tries again"
        );
        self.record_once(DecisionKind::Refused, Some(node), &reason);
    }

    /// Takes slots of others from nodes that are standbys again: nobody uses them there, and they would keep WAL for ever.
    pub(super) fn clean_up(&mut self, primary: &NodeName) {
        if self.observes() {
            return;
        }
        for node in self.littered.clone() {
            if node == *primary || self.report(&node).is_none_or(NodeReport::is_primary) {
                continue;
            }
            let others = self.all_but(&node);
            let unused = others.into_iter().filter(|other| {
                let upstream = self.report(other).and_then(|report| self.configured_upstream(report));
                upstream.as_ref() != Some(&node)
            });
            let slots: Vec<String> = unused.map(|other| self.slot(&other)).collect();
            let target = node.clone();
            self.start(&node, Task::DropSlots, |id| Action::DropSlots { id, node: target, slots });
        }
    }
}
