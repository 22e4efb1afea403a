//! What speaks against the primary, and whether that is enough: suspicion, witnesses, the policy's judgement and the
//! core's vetoes.

use std::time::Duration;

use super::controller::Forced;
use super::node::Moment;
use super::witness::Witness;
use super::work::Lane;
use super::{Controller, DecisionKind, Phase, SyncRule};
use crate::config::{FailoverMode, Priority};
use crate::plugin::{Assessment, Evidence, NodeReport, PrimaryEvidence, WitnessCount};
use crate::{NodeName, TimelineId};

/// Good answers in a row that lift a suspicion.
pub(super) const CLEAN_ROUNDS: u32 = 3;
/// The least pause after which a policy is asked again.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(10);

/// Why a failover that the policy wants does not happen.
pub(super) enum Veto {
    /// The evidence does not allow it: look on.
    Evidence(String),
    /// The primary seems dead, but nobody can follow it: hold writes and look on.
    Stuck(String),
    /// A person has to decide.
    Person(String),
}

impl Veto {
    /// The reason, for people.
    pub(super) fn into_reason(self) -> String {
        let (Self::Evidence(why) | Self::Stuck(why) | Self::Person(why)) = self;
        why
    }
}

impl Controller {
    /// The primary that this phase watches, if there is one.
    pub(super) fn phase_primary(&self) -> Option<&NodeName> {
        match &self.phase {
            Phase::Steady { primary } | Phase::Suspect { primary, .. } | Phase::Paused { primary } => {
                Some(primary)
            }
            Phase::ManualNeeded { primary, .. } => primary.as_ref(),
            Phase::Draining { old, .. }
            | Phase::Stopping { old, .. }
            | Phase::Fencing { old, .. }
            | Phase::Freezing { old, .. } => Some(old),
            Phase::Verifying { candidate, .. } => Some(candidate),
            Phase::Discovering { .. } => self.journal.as_ref().map(|journal| &journal.primary),
            Phase::Promoting { .. } => None,
        }
    }

    /// Remembers how far the primary got, so that it is noticed when it goes back.
    pub(super) fn on_primary_answer(&mut self, primary: &NodeName) {
        let Some(report) = self.report(primary) else { return };
        if self.journal.is_none() || self.judge(primary, report).is_err() {
            return;
        }
        let (timeline, position) = (report.timeline, report.position().unwrap_or_default());
        let Some(state) = self.nodes.get_mut(primary) else { return };
        let known = state.flushed.filter(|(known, _)| *known == timeline);
        state.flushed = Some((timeline, known.map_or(position, |(_, known)| known.max(position))));
        if self.looking.is_some_and(|since| state.answered_after(since)) {
            self.looking = None;
        }
        let now = self.now;
        for standby in self.streaming_to(primary) {
            if let Some(state) = self.nodes.get_mut(&standby) {
                state.listed = Some(now);
            }
        }
        self.watch_run(primary);
    }

    pub(super) fn step_steady(&mut self) {
        let Phase::Steady { primary } = &self.phase else { return };
        let primary = primary.clone();
        let Some(state) = self.nodes.get(&primary) else { return };
        match (state.current().map(|report| self.judge(&primary, report)), state.failure()) {
            (Some(Err(reason)), _) => {
                // Nothing more goes there, whatever the next look shows.
                self.away |= self.observes();
                self.doubted = Some(reason.clone());
                self.stuck = Some(reason);
                return self.suspect(&primary, self.moment());
            }
            (None, Some(_)) => {
                // What was asked after the data plane's alarm counts; an ordinary probe is repeated first.
                let since = self
                    .looking
                    .filter(|since| state.answered_after(*since))
                    .unwrap_or_else(|| self.moment());
                return self.suspect(&primary, since);
            }
            (Some(Ok(())) | None, _) => {}
        }
        let busy = if self.observes() { self.watch_others(&primary) } else { self.forget_observed() };
        if busy || self.pass_gate(&primary) {
            return;
        }
        self.reconcile_standbys();
        self.reconcile_sync();
        self.reconcile_displaced();
        self.clean_up(&primary);
        self.step_planned(&primary);
    }

    /// Looks closely at the primary: only probes after `since` count from now on.
    pub(super) fn suspect(&mut self, primary: &NodeName, since: Moment) {
        let failure = self.nodes.get(primary).and_then(|state| state.failure());
        let why = failure.map(ToString::to_string).or_else(|| self.stuck.clone());
        let why = why.unwrap_or_else(|| "it is to be looked at again".to_owned());
        let reason = format!("{primary}: {why}; it and its standbys are asked again at once");
        self.record(DecisionKind::Suspected, Some(primary), reason.clone());
        self.forget_planned("the primary is under suspicion");
        (self.looking, self.returned) = (None, None);
        self.phase = Phase::Suspect { primary: primary.clone(), since: self.now, reason };
        self.suspected = since;
        // Nobody waits for the calm interval now.
        for state in self.nodes.values_mut() {
            if !state.answered_after(since) {
                state.asked = None;
            }
        }
    }

    /// The suspicion begins anew: after a failover that was called off, or when a person's hand was awaited.
    pub(super) fn doubt(&mut self) {
        let Some(primary) = self.journal.as_ref().map(|journal| journal.primary.clone()) else { return };
        self.failover = None;
        // Nothing goes to what was just seen not to be the primary, before it is looked at again.
        let known = self.report(&primary).and_then(|report| self.judge(&primary, report).err());
        self.doubted = known.or_else(|| self.doubted.take());
        self.stuck.clone_from(&self.doubted);
        self.work.forget_pauses();
        self.suspect(&primary, self.moment());
    }

    pub(super) fn step_suspect(&mut self) {
        let Phase::Suspect { primary, .. } = &self.phase else { return };
        let (primary, since) = (primary.clone(), self.suspected);
        let Some(state) = self.nodes.get(&primary) else { return };
        if !state.answered_after(since) {
            return;
        }
        self.unfreeze_standbys();
        let Some(state) = self.nodes.get(&primary) else { return };
        let mute = self.mute_standbys(&primary, since);
        if let Some(report) = state.current() {
            return match self.judge(&primary, report) {
                Err(reason) if self.observes() => {
                    self.restored |= !self.gave_up(report) && !self.is_foreign(report);
                    self.follow_when_all_answered(&primary, since, &reason, mute);
                }
                Err(reason) if mute > 0 => self.stuck = Some(reason),
                Err(reason) => self.need_person(None, reason),
                Ok(()) if self.may_be_replaced(report) => self.step_returned(&primary),
                Ok(()) if state.successes >= CLEAN_ROUNDS => self.clear(&primary),
                Ok(()) => self.say_suspect(format!("{primary} answers again; it is watched a little longer")),
            };
        }
        self.returned = None;
        let Some(evidence) = self.evidence(&primary, since) else { return };
        if evidence.kind == PrimaryEvidence::InRecovery && self.observes() {
            let gone = format!("{primary} is in recovery");
            return self.follow_when_all_answered(&primary, since, &gone, mute);
        }
        if evidence.kind == PrimaryEvidence::InRecovery {
            let reason =
                format!("{primary} says that it is in recovery: somebody made it a standby. Writes are held");
            return self.need_person(None, reason);
        }
        if mute > 0 {
            return self.say_suspect(format!("{primary} fails; {mute} of its standbys have still to answer"));
        }
        if self.observes() {
            return self.step_awaiting(&primary, since, evidence.kind);
        }
        if let Some(forced) = self.forced.take() {
            return match self.veto_for_person(&primary) {
                None => self.begin_failover(&primary, "an operator asked for it", forced),
                Some(why) => {
                    let reason = format!("no failover, although an operator asked for it: {why}");
                    self.record(DecisionKind::Aborted, Some(&primary), reason);
                }
            };
        }
        match self.policy.assess(&evidence) {
            Assessment::Wait { reason, ask_again_in } => {
                self.stuck.clone_from(&self.doubted);
                if let Some(pause) = ask_again_in {
                    self.wake_at(self.now + pause.max(ASK_AGAIN_MIN));
                }
                self.say_suspect(reason);
            }
            Assessment::FailOver { reason } => match self.veto(&evidence, since) {
                None => self.begin_failover(&primary, &reason, Forced::default()),
                Some(veto) => self.refuse(&primary, &reason, veto),
            },
        }
    }

    fn refuse(&mut self, primary: &NodeName, wish: &str, veto: Veto) {
        self.stuck.clone_from(&self.doubted);
        match veto {
            Veto::Evidence(why) => {
                self.record_once(DecisionKind::Vetoed, Some(primary), &format!("no failover: {why}"));
                self.say_suspect(why);
            }
            Veto::Stuck(why) => {
                self.record_once(
                    DecisionKind::Vetoed,
                    Some(primary),
                    &format!("no failover: {why}; writes are held"),
                );
                self.stuck = Some(why.clone());
                self.say_suspect(why);
            }
            Veto::Person(why) => {
                self.stuck = Some(why.clone());
                let reason = format!(
                    "{wish}; but {why}. Writes are held until {primary} is well again or a person decides"
                );
                self.need_person(Some(primary.clone()), reason);
            }
        }
    }

    pub(super) fn say_suspect(&mut self, words: String) {
        if let Phase::Suspect { reason, .. } = &mut self.phase {
            *reason = words;
        }
    }

    pub(super) fn clear(&mut self, primary: &NodeName) {
        if self.forced.take().is_some() {
            let reason = format!("no failover, although an operator asked for it: {primary} answers well");
            self.record(DecisionKind::Aborted, Some(primary), reason);
        }
        let reason = format!("{primary} answered well {CLEAN_ROUNDS} times in a row");
        self.record(DecisionKind::Cleared, Some(primary), reason);
        self.serve();
    }

    pub(super) fn step_manual(&mut self) {
        let Phase::ManualNeeded { primary, .. } = &self.phase else { return };
        let Some(primary) = primary.clone() else { return self.resume_promotion() };
        let Some(state) = self.nodes.get(&primary) else { return };
        if let Some(report) = state.current() {
            match self.judge(&primary, report) {
                Err(reason) => self.need_person(None, reason),
                Ok(()) if self.may_be_replaced(report) => self.doubt(),
                Ok(()) if state.successes >= CLEAN_ROUNDS => self.clear(&primary),
                Ok(()) => {}
            }
        }
    }

    /// The evidence of probes after `since`; `None` while the primary has no failed probe of that time.
    fn evidence(&self, primary: &NodeName, since: Moment) -> Option<Evidence> {
        let state = self.nodes.get(primary).filter(|state| state.answered_after(since))?;
        let (kind, standing_since) = state.charge()?;
        let mut witnesses = WitnessCount::default();
        for standby in self.all_but(primary) {
            witnesses.configured += 1;
            match self.witness(&standby, primary, since) {
                Witness::Fresh => witnesses.fresh += 1,
                Witness::Lost => witnesses.lost += 1,
                Witness::Unseen => witnesses.unseen += 1,
            }
        }
        let failover = &self.settings.failover;
        let synchronous = failover.synchronous.is_some();
        Some(Evidence {
            primary: primary.clone(),
            kind,
            standing: self.now.since(standing_since),
            failures: state.failures,
            witnesses,
            silent_after: failover.silent_after,
            stalled_after: failover.stalled_after,
            start_timeout: failover.start_timeout,
            restart_grace: if synchronous { Duration::ZERO } else { failover.async_restart_grace },
            failure_threshold: self.settings.failure_threshold,
        })
    }

    /// Why the next timeline cannot be begun: a node has it already, so that there would be two of the same number, which
    /// not even `pg_rewind` can tell apart.
    pub(super) fn timeline_in_use(&self) -> Option<String> {
        let (name, timeline) = self.node_beyond(self.journal.as_ref()?.timeline)?;
        Some(format!(
            "{name} is on timeline {timeline} already, which somebody began: a promotion could make it a second time"
        ))
    }

    /// A node of the cluster that was last seen on a later timeline, and on which.
    pub(super) fn node_beyond(&self, timeline: TimelineId) -> Option<(&NodeName, TimelineId)> {
        self.nodes.iter().find_map(|(name, state)| {
            let report = state.report.as_ref().filter(|report| !self.is_foreign(report))?;
            (report.timeline > timeline).then_some((name, report.timeline))
        })
    }

    fn veto(&self, evidence: &Evidence, since: Moment) -> Option<Veto> {
        self.veto_of_evidence(evidence, since)
            .or_else(|| veto_of_patience(evidence))
            .or_else(|| self.veto_of_mode())
            .or_else(|| self.veto_of_history(evidence, since))
            .or_else(|| self.veto_of_budget())
            .or_else(|| self.veto_of_candidates(&evidence.primary, since))
    }

    /// What holds whoever decides: a primary that may be alive is not replaced by force.
    fn veto_of_evidence(&self, evidence: &Evidence, since: Moment) -> Option<Veto> {
        let primary = &evidence.primary;
        match evidence.kind {
            PrimaryEvidence::Healthy | PrimaryEvidence::Full | PrimaryEvidence::InRecovery => {
                return Some(Veto::Evidence(format!("{primary} is alive ({:?})", evidence.kind)));
            }
            PrimaryEvidence::NoLogin => {
                return Some(Veto::Evidence(format!(
                    "{primary} does not let metako log in, which says nothing of its health: check username and password"
                )));
            }
            PrimaryEvidence::WriteStalled => return self.veto_of_streams(primary, since),
            PrimaryEvidence::Refused
            | PrimaryEvidence::Silent
            | PrimaryEvidence::Starting
            | PrimaryEvidence::ShuttingDown
            | PrimaryEvidence::Unclear => {}
        }
        let fresh = self.seen(primary, since, Witness::Fresh).into_iter().next()?;
        Some(Veto::Evidence(format!(
            "{fresh} still streams from {primary}: it is this proxy that is cut off from {primary}"
        )))
    }

    /// Standbys stream on from a primary whose disk stands still, and prove nothing about that disk. But they have to be
    /// stopped before one of them is chosen.
    fn veto_of_streams(&self, primary: &NodeName, since: Moment) -> Option<Veto> {
        let problem = |standby: &NodeName| {
            let tainted =
                || self.is_tainted(standby).then(|| "was left behind in another history".to_owned());
            self.can_be_frozen(standby).err().or_else(tainted)
        };
        self.seen(primary, since, Witness::Fresh).into_iter().find_map(|standby| {
            let why = problem(&standby)?;
            Some(Veto::Evidence(format!(
                "{standby} streams from {primary} and could not be stopped: it {why}"
            )))
        })
    }

    /// Whether metako may decide alone.
    pub(super) fn veto_of_mode(&self) -> Option<Veto> {
        match self.settings.failover.mode {
            FailoverMode::Automatic => {}
            FailoverMode::Manual => return Some(Veto::Person("failover.mode is manual".to_owned())),
            FailoverMode::Observe => {
                let reason = "failover.mode is observe: whoever manages the cluster promotes";
                return Some(Veto::Person(reason.to_owned()));
            }
        }
        if self.journal.as_ref().is_some_and(|journal| journal.paused) {
            return Some(Veto::Person("metako is paused (`metako resume` ends that)".to_owned()));
        }
        None
    }

    /// Whether it may decide alone once more.
    pub(super) fn veto_of_budget(&self) -> Option<Veto> {
        let (most, span) = self.settings.failover.budget;
        let spent = self.promotions.iter().filter(|began| self.now.since(**began) < span).count();
        (spent >= usize::try_from(most).unwrap_or(usize::MAX)).then(|| {
            Veto::Person(format!(
                "the budget of {most} failovers in {}s is used up (failover.budget)",
                span.as_secs()
            ))
        })
    }

    /// Whether those are at hand without whom acknowledged commits could be missed, and nobody was promoted meanwhile.
    fn veto_of_history(&self, evidence: &Evidence, since: Moment) -> Option<Veto> {
        let mut at_hand = self.seen(&evidence.primary, since, Witness::Lost);
        if evidence.kind == PrimaryEvidence::WriteStalled {
            at_hand.extend(self.seen(&evidence.primary, since, Witness::Fresh));
        }
        self.too_few(&at_hand).or_else(|| self.timeline_in_use().map(Veto::Person))
    }

    /// Whether there is one who can follow.
    pub(super) fn veto_of_candidates(&self, primary: &NodeName, since: Moment) -> Option<Veto> {
        let standbys = self.all_but(primary);
        let reasons: Vec<String> = standbys
            .iter()
            .filter_map(|standby| {
                let report = self.heard_after(standby, since);
                self.unelectable(standby, report).map(|why| format!("{standby} {why}"))
            })
            .collect();
        if reasons.len() == standbys.len() {
            let reasons =
                if reasons.is_empty() { "there is no other node".to_owned() } else { reasons.join(", ") };
            return Some(Veto::Stuck(format!("no standby can be promoted: {reasons}")));
        }
        None
    }

    fn seen(&self, primary: &NodeName, since: Moment, witness: Witness) -> Vec<NodeName> {
        let mut standbys = self.all_but(primary);
        standbys.retain(|standby| self.witness(standby, primary, since) == witness);
        standbys
    }

    /// Why not even a person's word can begin a failover now.
    pub(super) fn veto_for_person(&self, primary: &NodeName) -> Option<String> {
        let since = self.suspected;
        let Some(evidence) = self.evidence(primary, since) else {
            return Some(format!("{primary} answers, as far as is known: see `metako switchover`"));
        };
        let mute = self.mute_standbys(primary, since);
        if mute > 0 {
            return Some(format!("{mute} of its standbys have still to answer: ask again"));
        }
        let veto = self
            .veto_of_evidence(&evidence, since)
            .or_else(|| self.veto_of_history(&evidence, since))
            .or_else(|| self.veto_of_candidates(primary, since))?;
        Some(veto.into_reason())
    }

    /// Whether too few standbys are at hand for no acknowledged commit to be missed.
    pub(super) fn too_few(&self, at_hand: &[NodeName]) -> Option<Veto> {
        let rule = self.journal.as_ref().map(|journal| &journal.sync);
        let Some(SyncRule::Quorum { acks, voters }) = rule else {
            if self.settings.failover.synchronous.is_some() {
                return Some(Veto::Person(
                    "synchronous replication was not in force, so that acknowledged commits may be missing on every \
                     standby"
                        .to_owned(),
                ));
            }
            return at_hand.is_empty().then(|| Veto::Stuck("no standby answers this proxy".to_owned()));
        };
        let need = needed(*acks, voters.len());
        let have = at_hand.iter().filter(|standby| voters.contains(standby)).count();
        (have < need).then(|| {
            Veto::Stuck(format!(
                "{have} of the {need} synchronous standbys that must answer do (ANY {acks} of {}): an acknowledged commit \
                 could be missed",
                voters.len()
            ))
        })
    }

    /// Why a node that reports this cannot be promoted, as far as can be told before it is frozen.
    pub(super) fn unelectable(&self, standby: &NodeName, report: Option<&NodeReport>) -> Option<String> {
        let Some(journal) = &self.journal else { return Some("belongs to no known cluster".to_owned()) };
        let Some(report) = report else { return Some("does not answer".to_owned()) };
        if self.work.busy(&Lane::Host(standby.clone())) {
            return Some("is being worked on by a hook".to_owned());
        }
        if self.node(standby).is_none_or(|node| node.priority == Priority::Never) {
            return Some("is never to be promoted (priority)".to_owned());
        }
        if self.is_tainted(standby) {
            return Some("holds history that the cluster did not follow".to_owned());
        }
        if report.is_primary() {
            return Some("is not in recovery".to_owned());
        }
        if report.system_id != journal.system_id {
            return Some("is of another cluster".to_owned());
        }
        if report.timeline != journal.timeline {
            return Some(format!("is on timeline {}, not {}", report.timeline, journal.timeline));
        }
        let begins = journal.last_record.or(journal.fork);
        if begins.is_some_and(|begins| report.position().is_none_or(|position| position < begins)) {
            return Some(format!("has nothing of timeline {} yet", journal.timeline));
        }
        None
    }

    pub(super) fn is_foreign(&self, report: &NodeReport) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.system_id != report.system_id)
    }
}

/// One that starts is alive, and soon has all that it had: whatever the policy wants, it has the time that the configuration
/// gives it. A person need not wait for that.
fn veto_of_patience(evidence: &Evidence) -> Option<Veto> {
    if evidence.kind != PrimaryEvidence::Starting {
        return None;
    }
    let primary = &evidence.primary;
    match evidence.start_timeout {
        None => Some(Veto::Evidence(format!(
            "{primary} is starting or recovering, and is waited for without end (failover.start_timeout: none)"
        ))),
        Some(limit) if evidence.standing < limit => Some(Veto::Evidence(format!(
            "{primary} is starting or recovering, and has {limit:?} for that (failover.start_timeout)"
        ))),
        Some(_) => None,
    }
}

/// Of how many of `voters` the positions must be known so that one of them has every commit that `acks` acknowledged.
pub(super) fn needed(acks: usize, voters: usize) -> usize {
    (voters + 1).saturating_sub(acks).max(1)
}
