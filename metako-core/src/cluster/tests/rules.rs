//! The rules that hold in every test of the controller, whatever it is about.

use std::sync::Arc;

use super::fake::Fake;
use super::lab::Lab;
use super::names::lane_of;
use crate::NodeName;
use crate::cluster::{
    Action, ClusterView, HookKind, Journal, JournalPhase, ProbeId, SyncRule, Vouched, Writes,
};
use crate::config::FailoverMode;
use crate::plugin::{NodeReport, PrimaryEvidence};

impl Lab {
    /// The rules that hold always.
    pub(super) fn watch(&mut self, action: &Action) {
        if let Some((id, lane)) = lane_of(action) {
            let taken = self.running.values().any(|running| *running == lane);
            assert!(!taken, "{} while another action is in flight there", action.name());
            self.running.insert(id, lane);
        }
        match action {
            Action::Persist { journal, .. } => {
                self.watch_choice(journal);
                let former = self.disk.as_ref().map(|former| former.epoch);
                if journal.phase == JournalPhase::Steady && former != Some(journal.epoch) {
                    // Another one, or one that a person says is right as it is now.
                    self.said = None;
                }
            }
            Action::Promote { promotion, .. } => {
                let journal = self.disk.as_ref().unwrap();
                assert!(
                    matches!(&journal.phase, JournalPhase::Promoting { candidate, timeline, .. }
                        if *candidate == promotion.node && *timeline == promotion.timeline),
                    "a promotion that is not in the journal: {promotion:?}"
                );
                assert_eq!(journal.epoch, promotion.epoch);
                assert_eq!(promotion.token, format!("metako_epoch_{}", promotion.epoch));
                let first = self.promoted.entry(promotion.epoch).or_insert_with(|| promotion.node.clone());
                assert_eq!(*first, promotion.node, "two promotions in one epoch");
            }
            Action::Hook { call, .. } => {
                let journal = self.disk.as_ref().unwrap();
                assert_eq!(call.epoch, journal.epoch, "a hook of an epoch that is not on disk");
                match call.kind {
                    HookKind::Stop => {
                        assert_eq!(
                            (&journal.phase, &journal.primary),
                            (&JournalPhase::Fencing, &call.node),
                            "a stop that is not in the journal"
                        );
                        assert!(self.held().is_some(), "a stop while writes are open");
                    }
                    HookKind::Rejoin => {
                        let primary = match &journal.phase {
                            JournalPhase::Steady => &journal.primary,
                            JournalPhase::Promoting { candidate, .. } => candidate,
                            JournalPhase::Fencing => panic!("a rejoin while nobody is primary"),
                        };
                        assert_ne!(call.node, *primary, "the primary is no standby");
                        assert_eq!(call.upstream.as_ref(), Some(primary));
                        assert!(self.nodes[primary].primary, "{primary} is promoted");
                        assert!(journal.displaced.contains(&call.node), "{} was not displaced", call.node);
                        assert!(!journal.tainted.contains(&call.node), "{} needs to be cloned", call.node);
                    }
                }
            }
            Action::Publish { view } => {
                assert!(view.version > self.view.version || self.view.version == 0);
                if let Writes::Open { primary } = &view.writes {
                    self.may_lose = false;
                    let journal = self.disk.as_ref().unwrap();
                    // The epoch of a switchover is on disk for a moment before it is known to be.
                    assert!(
                        journal.primary == *primary && view.epoch <= journal.epoch,
                        "open without a journal: {view:?}, {journal:?}"
                    );
                    assert_eq!(journal.phase, JournalPhase::Steady);
                    self.watch_later_primaries(primary, journal);
                    self.watch_recovered(view, primary);
                    (self.restarted, self.reloaded) = (false, false);
                    self.adopted = None;
                    if self.view.primary() != Some(primary) {
                        let position = self.nodes[primary].position();
                        assert!(
                            position >= self.acknowledged,
                            "{primary} at {position} lacks {}",
                            self.acknowledged
                        );
                    }
                }
                let (from, to) = (self.view.phase.name(), view.phase.name());
                if from != to {
                    self.transitions.insert((from, to));
                }
                self.view = Arc::clone(view);
            }
            Action::Record { decision } => {
                assert!(decision.reason.len() > 8, "a decision says why: {decision:?}");
                self.decisions.push(decision.clone());
            }
            _ => {}
        }
        self.actions.push(action.clone());
    }

    /// Takes note of how far the primary says that it is, where the controller takes that for an answer of the primary's.
    pub(super) fn note_said(&mut self, id: ProbeId, node: &NodeName, report: &NodeReport) {
        let Some(journal) = self.controller.journal() else { return };
        let outstanding = self.controller.nodes.get(node).and_then(|state| state.outstanding);
        let awaited = outstanding.is_some_and(|(outstanding, _)| outstanding == id);
        let counts = awaited && journal.primary == *node && report.is_primary();
        if counts && (report.timeline, report.system_id) == (journal.timeline, journal.system_id) {
            self.said = self.said.max(report.position());
        }
    }

    /// Where others promote, nobody who was away serves again while another node is known to be a primary, too.
    fn watch_later_primaries(&self, primary: &NodeName, journal: &Journal) {
        // One that only waits for its standbys was back before.
        let gated =
            matches!(&self.view.writes, Writes::Held { reason } if reason.contains("was started anew"));
        let opens = self.view.primary() != Some(primary) && !self.reloaded && !gated;
        // After a start of metako the same server is as good as if metako had looked on.
        let same = self.restarted && journal.observed.started_at == Some(self.nodes[primary].started_at);
        let observes = self.settings.failover.mode == FailoverMode::Observe;
        if !opens || same || !observes || self.adopted.as_ref() == Some(primary) {
            return;
        }
        let later = self.controller.nodes.iter().find(|(name, state)| {
            let refuses = matches!(state.failing, Some((PrimaryEvidence::Refused, _)));
            let report = state.report.as_ref().filter(|_| !refuses);
            *name != primary
                && report.is_some_and(|report| {
                    report.is_primary()
                        && report.system_id == journal.system_id
                        && report.timeline >= self.nodes[primary].timeline
                })
        });
        assert_eq!(later.map(|(name, _)| name), None, "{primary} serves on {}", journal.timeline);
    }

    /// Clients are connected to no run of the primary whose recovery brought back what too few voters have.
    fn watch_recovered(&self, view: &ClusterView, primary: &NodeName) {
        // The disk is a moment ahead of what is known to be there.
        let known = self.controller.journal.as_ref().map(|journal| &journal.sync);
        let Some(SyncRule::Quorum { acks, voters }) = known else { return };
        let (fake, node) = (&self.nodes[primary], view.node(primary.as_str()).unwrap());
        assert_ne!(node.vouched, Vouched::Any);
        if node.vouched != Vouched::Run(fake.run()) {
            return;
        }
        let have = |voter: &&NodeName| {
            self.nodes.get(*voter).is_some_and(|voter| voter.position() >= fake.recovered)
        };
        let have = voters.iter().filter(have).count();
        assert!(have >= *acks, "{have} of {acks} have what {primary} recovered: {view:?}");
    }

    /// When a choice goes to disk: nobody streams from the old primary, enough voters stand still, none of those that stand
    /// still is ahead of the chosen one, and that lacks no more than it may.
    fn watch_choice(&self, journal: &Journal) {
        let JournalPhase::Promoting { candidate, fork, .. } = &journal.phase else { return };
        let Some(former) = self.disk.as_ref().filter(|former| former.phase == JournalPhase::Fencing) else {
            return;
        };
        let old = self.settings.node(journal.primary.as_str()).map(|node| node.port);
        let streams = |state: &&crate::cluster::node::NodeState| {
            let receiver = state.current().and_then(NodeReport::streaming_receiver);
            receiver.map(|receiver| receiver.sender_port) == old
        };
        let fresh = self.controller.nodes.values().find(streams).map(|state| state.report.clone());
        assert_eq!(fresh, None, "a promotion although a standby streams from the primary");
        let token = format!("metako_epoch_{}", journal.epoch);
        let frozen: Vec<(&NodeName, &Fake)> = self
            .nodes
            .iter()
            .filter(|(_, fake)| {
                fake.setting("primary_slot_name") == token && fake.setting("primary_conninfo").is_empty()
            })
            .collect();
        let chosen = frozen.iter().find(|(name, fake)| *name == candidate && fake.position() == *fork);
        let Some((_, chosen)) = chosen else {
            panic!("{candidate} does not stand still at {fork}: {frozen:?}")
        };
        let limited = former.floor.is_none() && former.sync == SyncRule::Async && !self.may_lose;
        let limit = self.controller.settings().failover.max_lag_on_failover.filter(|_| limited);
        if let (Some(limit), Some(said)) = (limit, self.said) {
            assert!(
                said.0.saturating_sub(chosen.position().0) <= limit,
                "{candidate} at {} lacks what is up to {said}",
                chosen.position()
            );
        }
        if let SyncRule::Quorum { acks, voters } = &former.sync {
            let standing = frozen.iter().filter(|(name, _)| voters.contains(name)).count();
            assert!(standing > voters.len() - acks, "{standing} of {voters:?} stand still");
        }
    }
}
