//! `failover.mode: observe`: whoever manages the cluster promotes, and metako follows.
//!
//! Two nodes may both say that they are primary, and only their manager knows which of them it means. While the primary is
//! well, and was never away, it is the one: a node that is promoted beside it is a mistake, or a copy that somebody split off.
//! Once it was away (it failed until writes were held, or its server was started again, or metako was) the later
//! timeline is the later decision. A primary that comes back without one serves when nobody can have been promoted
//! meanwhile: all other nodes have answered, or most of the configured nodes stand with it.
//!
//! Nothing is changed on any node but what metako itself has left there in another mode.

use super::controller::Then;
use super::evidence::CLEAN_ROUNDS;
use super::node::Moment;
use super::witness::Witness;
use super::{Controller, DecisionKind, Journal, Observed};
use crate::NodeName;
use crate::config::FailoverMode;
use crate::plugin::{NodeReport, PrimaryEvidence};

impl Controller {
    /// Whether others promote.
    pub(super) fn observes(&self) -> bool {
        self.settings.failover.mode == FailoverMode::Observe
    }

    /// Whether the node is in the cluster and not the primary that it was: a standby now, or promoted once more.
    pub(super) fn gave_up(&self, report: &NodeReport) -> bool {
        self.journal.as_ref().is_some_and(|journal| {
            report.system_id == journal.system_id
                && (!report.is_primary() || report.timeline > journal.timeline)
        })
    }

    /// Whether a node says that it was promoted to a timeline after the journal's.
    fn claims(&self, report: &NodeReport) -> bool {
        report.is_primary() && self.gave_up(report)
    }

    /// Whether somebody may have been promoted while the primary, which answers well now, was away.
    pub(super) fn may_be_replaced(&self, report: &NodeReport) -> bool {
        if self.away {
            return true;
        }
        let Some(journal) = self.journal.as_ref().filter(|_| self.observes()) else { return false };
        let known = journal.observed.started_at;
        // After a start of metako the same server is enough: it is then as if metako had looked on.
        known != Some(report.started_at) && (known.is_some() || !self.confirmed)
    }

    /// While the primary is well: notes when its server was started, and who was promoted beside it. Whether the journal is
    /// to be written, or the primary is to be looked at, before anything else.
    pub(super) fn watch_others(&mut self, primary: &NodeName) -> bool {
        let Some(report) = self.report(primary) else { return false };
        if self.may_be_replaced(report) {
            self.away = true;
            self.suspect(primary, self.moment());
            return true;
        }
        let started_at = report.started_at;
        let claims: Vec<NodeName> = self
            .all_but(primary)
            .into_iter()
            .filter(|node| self.report(node).is_some_and(|report| self.claims(report)))
            .collect();
        self.claims.retain(|node, _| claims.contains(node));
        let moment = self.moment();
        for node in &claims {
            if !self.claims.contains_key(node) {
                self.claims.insert(node.clone(), moment);
                // What the primary says after that counts: it may have been stopped just now.
                self.looking.get_or_insert(moment);
            }
        }
        let Some(mut journal) = self.journal.clone() else { return false };
        let silent = |node: &NodeName| self.report(node).is_none() && self.node(node).is_some();
        journal.observed.rivals.retain(|node| claims.contains(node) || silent(node));
        for node in claims {
            let beside = self.claims.get(&node).is_some_and(|seen| self.answered_after(primary, *seen));
            if beside && !journal.observed.rivals.contains(&node) {
                let reason = format!(
                    "{node} was promoted while {primary} is well: it is not followed. Stop one of the two; `metako adopt \
                     --primary {node}` if {node} is the one"
                );
                self.record(DecisionKind::Refused, Some(&node), reason);
                journal.observed.rivals.push(node);
            }
        }
        journal.observed.started_at = Some(started_at);
        // A pause of another mode ends with it.
        journal.paused = false;
        self.persist_if_new(journal)
    }

    /// In another mode what was observed says nothing. Whether the journal is to be written before anything else.
    pub(super) fn forget_observed(&mut self) -> bool {
        let known = self.journal.as_ref().filter(|journal| journal.observed != Observed::default());
        let Some(mut journal) = known.cloned() else { return false };
        journal.observed = Observed::default();
        self.persist_if_new(journal)
    }

    fn persist_if_new(&mut self, journal: Journal) -> bool {
        let new = self.journal.as_ref() != Some(&journal);
        if new {
            self.persist(journal, Then::GoOn);
        }
        new
    }

    /// The primary answers well after it was away. What others said before it did does not count.
    pub(super) fn step_returned(&mut self, primary: &NodeName) {
        let Some(since) = self.returned else {
            self.returned = Some(self.moment());
            for state in self.nodes.values_mut() {
                state.asked = None;
            }
            return self.hold(format!(
                "{primary} was away and is back: all are asked whether somebody was promoted"
            ));
        };
        let watched = self.nodes.get(primary).is_some_and(|state| state.successes >= CLEAN_ROUNDS);
        if self.mute_standbys(primary, since) > 0 || !watched || !self.answered_after(primary, since) {
            return;
        }
        let why = match self.successor(primary, since) {
            Ok(Some(node)) if self.observes() => {
                return self.follow(&node, &format!("{primary} was away"));
            }
            Ok(Some(node)) => {
                format!("{node} was promoted meanwhile: `metako adopt --primary NAME` says who is primary")
            }
            Err(why) => why,
            Ok(None) if self.restored => {
                "it has less WAL than it had; `metako adopt --primary NAME` says who is primary".to_owned()
            }
            Ok(None) => match self.unattested(primary, since) {
                None => return self.serve_again(primary),
                Some(why) => why,
            },
        };
        let why = format!("{primary} was away and is back: {why}");
        self.record_once(DecisionKind::Vetoed, Some(primary), &format!("{why}. Writes are held"));
        self.hold(why);
    }

    /// Nobody was promoted while the primary was away.
    fn serve_again(&mut self, primary: &NodeName) {
        let Some(mut journal) = self.journal.clone() else { return };
        journal.observed.started_at = self.report(primary).map(|report| report.started_at);
        journal.observed.away = false;
        if !self.persist_if_new(journal) {
            self.clear(primary);
        }
    }

    /// Why it is not sure that nobody was promoted behind the primary's back, as far as it is not.
    fn unattested(&self, primary: &NodeName, since: Moment) -> Option<String> {
        let others = self.all_but(primary);
        let answered = |node: &&NodeName| {
            self.nodes.get(*node).is_some_and(|state| state.current_after(since).is_some())
        };
        let (heard, unheard): (Vec<_>, Vec<_>) = others.iter().partition(answered);
        // Of configured nodes, not of reachable ones.
        let with_it = 1 + heard.iter().filter(|node| self.stands_with(node, primary, since)).count();
        if unheard.is_empty() || with_it * 2 > self.settings.nodes.len() {
            return None;
        }
        let names = unheard.iter().map(|node| node.as_str()).collect::<Vec<_>>().join(", ");
        Some(format!(
            "somebody may have promoted {names} meanwhile, which does not answer, and most nodes do not stream from {primary}; \
             `metako adopt --primary {primary}` if it is the one"
        ))
    }

    /// Whether a standby streams the primary's timeline from it, or from another that does.
    fn stands_with(&self, standby: &NodeName, primary: &NodeName, since: Moment) -> bool {
        let timeline = self.journal.as_ref().map(|journal| journal.timeline);
        let known =
            self.report(standby).filter(|report| Some(report.timeline) == timeline).is_some_and(|report| {
                report.streaming_receiver().is_some_and(|receiver| {
                    self.node_at(&receiver.sender_host, receiver.sender_port).is_some()
                })
            });
        known && self.witness(standby, primary, since) == Witness::Fresh
    }

    /// The primary fails, and all that can answer have.
    pub(super) fn step_awaiting(&mut self, primary: &NodeName, since: Moment, kind: PrimaryEvidence) {
        let Some(state) = self.nodes.get(primary) else { return };
        let failure = state.failure().map_or_else(String::new, ToString::to_string);
        let failover = &self.settings.failover;
        let stalled =
            state.failing.filter(|(kind, _)| *kind == PrimaryEvidence::WriteStalled).map(|(_, since)| since);
        let (failed, patience) = match stalled {
            Some(stalled) => (stalled, failover.stalled_after),
            // Whatever it is that fails, and however that changes.
            None => (state.unwell.unwrap_or(self.now), failover.silent_after),
        };
        let standing = self.now.since(failed);
        let others = self.all_but(primary);
        let seen = |witness| others.iter().find(|node| self.witness(node, primary, since) == witness);
        let lives =
            matches!(kind, PrimaryEvidence::Healthy | PrimaryEvidence::Full | PrimaryEvidence::NoLogin);
        let lost = seen(Witness::Lost).is_some();
        let waiting = match seen(Witness::Fresh).filter(|_| stalled.is_none()) {
            Some(standby) => {
                format!(
                    "{standby} still streams from {primary}: it is this proxy that is cut off from {primary}"
                )
            }
            None if lives => format!("{primary} is not gone: {failure}"),
            // A refusal alone may be a firewall's.
            None if kind == PrimaryEvidence::Refused && lost || standing >= patience => {
                return self.follow_or_wait(primary, since, &format!("{primary} is gone"));
            }
            None => {
                self.wake_at(self.now + patience.saturating_sub(standing));
                format!("{primary} may be gone ({failure}); it is asked a little longer")
            }
        };
        if self.away {
            self.stuck = Some(waiting.clone());
        }
        self.say_suspect(waiting);
    }

    /// The primary is none any more, for the reason given: writes are held, and whoever was promoted is followed when all
    /// that can answer have.
    pub(super) fn follow_when_all_answered(
        &mut self,
        primary: &NodeName,
        since: Moment,
        gone: &str,
        mute: usize,
    ) {
        if mute > 0 {
            return self.hold(gone.to_owned());
        }
        self.follow_or_wait(primary, since, gone);
    }

    /// The primary is gone, or none any more, for the reason given: follows whoever was promoted, or holds writes until
    /// somebody is. Only what nodes answered after `since` counts, and all that can answer have.
    pub(super) fn follow_or_wait(&mut self, primary: &NodeName, since: Moment, gone: &str) {
        self.returned = None;
        let why = match self.successor(primary, since) {
            Ok(Some(node)) => return self.follow(&node, gone),
            Ok(None) => format!(
                "{gone}; failover.mode is observe: whoever manages the cluster promotes a node, which is followed as soon as it \
                 shows"
            ),
            Err(why) => format!("{gone}; {why}"),
        };
        let reason = format!("no failover: {why}. Writes are held");
        self.record_once(DecisionKind::Vetoed, Some(primary), &reason);
        self.hold(why);
    }

    /// Writes are held from here on, until a primary is confirmed.
    fn hold(&mut self, why: String) {
        self.away = true;
        self.stuck = Some(why.clone());
        self.say_suspect(why);
        // Should metako end meanwhile, the same server is no proof any more.
        if let Some(mut journal) = self.journal.clone() {
            journal.observed.away = true;
            self.persist_if_new(journal);
        }
    }

    fn follow(&mut self, node: &NodeName, why: &str) {
        let Some(report) = self.report(node) else { return };
        let (timeline, position) = (report.timeline, report.position().unwrap_or_default());
        let behind = self.all_but(node).into_iter().find(|other| {
            self.report(other).is_some_and(|other| {
                !self.is_foreign(other) && other.timeline < timeline && other.position() > Some(position)
            })
        });
        let lacks = behind.map_or_else(String::new, |other| {
            format!(
                ". {other} has WAL of the former timeline that {node} has not: what only that holds is lost"
            )
        });
        self.adopt(
            node,
            &format!("{why}; somebody made {node} primary, on timeline {timeline} at {position}{lacks}"),
        );
    }

    /// The node that was promoted and is to be followed, if there is one; an error says why none is although there are some.
    fn successor(&self, primary: &NodeName, since: Moment) -> Result<Option<NodeName>, String> {
        let hint = "stop what is not to be followed, or `metako adopt --primary NAME` says who is";
        let names = || self.settings.nodes.iter().map(|node| &node.name);
        let answer = |name: &NodeName| self.nodes.get(name)?.current_after(since);
        // One that only does not answer may still be what it was.
        let refuses = |name: &NodeName| {
            let failing = self.nodes.get(name).and_then(|state| state.failing);
            matches!(failing, Some((PrimaryEvidence::Refused, _)))
        };
        let last = |name: &NodeName| self.nodes.get(name)?.report.as_ref();
        let Some(timeline) = self.journal.as_ref().map(|journal| journal.timeline) else { return Ok(None) };
        let twin = names().filter(|name| *name != primary && !refuses(name)).find(|name| {
            last(name)
                .is_some_and(|last| last.is_primary() && last.timeline == timeline && !self.is_foreign(last))
        });
        if let Some(twin) = twin {
            return Err(format!(
                "{twin} says that it is a primary too, and no timeline tells which of the two: {hint}"
            ));
        }
        let promoted = names().filter_map(|name| {
            answer(name).filter(|report| self.claims(report)).map(|report| (name, report.timeline))
        });
        let Some((node, timeline)) = promoted.max_by_key(|(_, timeline)| *timeline) else {
            let silent = names().find(|name| {
                !refuses(name) && last(name).is_some_and(|last| self.claims(last)) && *name != primary
            });
            return match silent {
                Some(silent) => Err(format!("{silent} was promoted, and does not answer now: {hint}")),
                None => Ok(None),
            };
        };
        // One that died may have taken writes.
        let rival = names().filter(|name| *name != node).find(|name| {
            last(name)
                .filter(|last| self.claims(last))
                .is_some_and(|last| !refuses(name) || last.timeline >= timeline)
        });
        if let Some(rival) = rival {
            return Err(format!("{node} and {rival} were both promoted: {hint}"));
        }
        // Whom the primary itself follows is none of a rival.
        let follows =
            answer(primary).is_some_and(|report| !report.is_primary() && report.timeline >= timeline);
        let known = self.journal.as_ref().map(|journal| &journal.observed.rivals);
        if !follows && known.is_some_and(|rivals| rivals.contains(node)) {
            return Err(format!(
                "{node} was promoted while the primary was well, and may be a copy of its own: {hint}"
            ));
        }
        Ok(Some(node.clone()))
    }

    /// Whether the node is about to be the primary, as soon as the journal says so.
    pub(super) fn is_coming(&self, name: &NodeName) -> bool {
        let present = self.journal.as_ref().map(|journal| &journal.primary);
        self.writing.as_ref().is_some_and(|writing| writing.journal.primary == *name) && present != Some(name)
    }
}
