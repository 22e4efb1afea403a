//! How many nodes may fail before a person is needed, by the same demands that a failover would make of those that are
//! left.
//!
//! The worst case is looked at: the primary and some standbys fail at the same moment, and of all standbys those whose
//! loss does most harm. Standbys that stream count as level with each other, since nobody can know who is ahead at the
//! moment of the failure.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::evidence::{Veto, needed};
use super::node::Moment;
use super::witness::Source;
use super::work::{Lane, Task};
use super::{Controller, Phase, SyncRule, settings};
use crate::config::NoVoter;
use crate::plugin::{Assessment, Evidence, NodeReport, PrimaryEvidence, WitnessCount};
use crate::{Lsn, NodeName};

/// Since the first probe.
const EVER: Moment = Moment(0);
/// For how long a primary that does not come back is imagined to have failed: longer than any patience.
const FOR_GOOD: Duration = Duration::from_hours(24);
/// And in how many probes.
const FAILURES: u32 = 100_000;

/// What would become of the cluster if nodes failed now and did not come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survival {
    /// So many nodes may fail at the same moment, the primary among them and whichever standbys, and writes go on by
    /// themselves. With 0 not even the loss of the primary alone is survived.
    pub failures: usize,
    /// No failover loses a commit that was acknowledged. Otherwise the last ones before the primary's failure may be lost.
    pub loses_nothing: bool,
    /// While the primary serves: so many more standbys may go before commits wait for one to come back. `None` where they
    /// wait for none, go on without (`on_no_voter: degrade`), or the primary does not answer.
    pub standbys_until_commits_wait: Option<usize>,
    /// What would happen after one more failure, for people.
    pub reason: String,
}

/// All that [`Survival`] follows from, so that it is worked out only when some of that has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Survey {
    primary: Result<NodeName, String>,
    rule: SyncRule,
    /// Commits wait rather than go on without standbys.
    blocks: bool,
    until_commits_wait: Option<usize>,
    /// Why no failover would follow, whoever fails besides the primary.
    veto: Option<String>,
    standbys: Vec<Standby>,
}

/// A standby, as it would be found after the primary's failure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about a standby, not one state")]
struct Standby {
    name: NodeName,
    /// It would say that it lost the primary's stream.
    testifies: bool,
    /// It could be stopped from receiving, so that its position counts.
    freezable: bool,
    /// It is on the cluster's timeline, so that it can follow whoever is promoted.
    follows: bool,
    /// It lacks more than may be lost without a person's word.
    lags: bool,
    /// Why it could not be promoted.
    unelectable: Option<String>,
    reach: Reach,
}

/// How far a standby's WAL reaches when the primary fails. The greater one has more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// It receives nothing, and stays where it is.
    At(Lsn),
    /// As far as that of any other that streams.
    Streams,
}

/// What a failover, or the writes after it, would lack when too many standbys are gone.
enum Lack<'a> {
    Witness,
    Voters {
        acks: usize,
        of: usize,
        need: usize,
    },
    Candidate,
    /// Only those that are too far behind would be left.
    Current,
    /// Only this one, which cannot be promoted, would have the last WAL.
    Last(&'a Standby),
    Followers(usize),
    Policy(String),
}

impl Survival {
    /// No failure is survived, for this reason.
    pub fn none(reason: &str) -> Self {
        Self {
            failures: 0,
            loses_nothing: false,
            standbys_until_commits_wait: None,
            reason: reason.to_owned(),
        }
    }
}

impl Survey {
    /// A controller that knows nothing yet.
    pub(super) fn nothing(reason: &str) -> Self {
        Self {
            primary: Err(reason.to_owned()),
            rule: SyncRule::Async,
            blocks: false,
            until_commits_wait: None,
            veto: None,
            standbys: Vec::new(),
        }
    }

    /// `assess` is the policy's judgement of a primary that failed while so many standbys have lost it and nobody else
    /// answers: why it would wait, if it would.
    pub(super) fn survival(&self, assess: impl Fn(&NodeName, usize) -> Option<String>) -> Survival {
        let (failures, reason) = match (&self.primary, &self.veto) {
            (Err(reason), _) => (0, reason.clone()),
            (Ok(primary), Some(veto)) => {
                (0, format!("should {primary} fail, no failover would follow by itself: {veto}"))
            }
            (Ok(primary), None) => {
                let (losses, lack) = self.least_harm(|lost| assess(primary, lost));
                let whom = match losses {
                    0 => format!("should {primary} fail"),
                    1 => format!("should {primary} and one standby fail at once"),
                    some => format!("should {primary} and {some} standbys fail at once"),
                };
                (losses, format!("{whom}, writes might not go on by themselves: {lack}"))
            }
        };
        Survival {
            failures,
            loses_nothing: self.rule != SyncRule::Async,
            standbys_until_commits_wait: self.until_commits_wait,
            reason,
        }
    }

    /// The number of the smallest set of standbys without which the primary's failure is not survived, and what would be
    /// lacking then. A primary and fewer standbys than that may fail.
    fn least_harm(&self, assess: impl Fn(usize) -> Option<String>) -> (usize, Lack<'_>) {
        let freezable = || self.standbys.iter().filter(|standby| standby.freezable);
        let electable = |standby: &&Standby| standby.unelectable.is_none();
        let testifying = self.standbys.iter().filter(|standby| standby.testifies).count();
        let mut harms = Vec::new();
        match &self.rule {
            SyncRule::Async => harms.push((testifying, Lack::Witness)),
            SyncRule::Quorum { acks, voters } => {
                let need = needed(*acks, voters.len());
                let of = voters.len();
                let spare = |count: usize| (count + 1).saturating_sub(need);
                let heard = |standby: &&Standby| voters.contains(&standby.name) && standby.testifies;
                let stopped = freezable().filter(|standby| voters.contains(&standby.name)).count();
                let witnesses = self.standbys.iter().filter(heard).count();
                let lack = || Lack::Voters { acks: *acks, of, need };
                harms.extend([(spare(witnesses), lack()), (spare(stopped), lack())]);
                let (streaming, standing): (Vec<_>, Vec<_>) = freezable()
                    .filter(|standby| standby.follows)
                    .partition(|standby| standby.reach == Reach::Streams);
                // Who is frozen is counted on by the first commit; one that does not stream now may not do so then.
                let counted_on = standing.len() > usize::from(streaming.is_empty());
                if self.blocks || counted_on {
                    harms.push((streaming.len().saturating_sub(*acks), Lack::Followers(*acks)));
                }
            }
        }
        harms.push((freezable().filter(electable).count(), Lack::Candidate));
        for ahead in freezable().filter(|standby| standby.follows && standby.unelectable.is_some()) {
            let level = freezable().filter(electable).filter(|standby| standby.reach >= ahead.reach);
            harms.push((level.count(), Lack::Last(ahead)));
        }
        let current = freezable().filter(|standby| standby.follows && !standby.lags);
        harms.push((current.count(), Lack::Current));
        let (least, mut lack) =
            harms.into_iter().min_by_key(|(losses, _)| *losses).unwrap_or((0, Lack::Witness));
        let patient = (0..least).find_map(|lost| Some((lost, assess(testifying.saturating_sub(lost))?)));
        match patient {
            Some((lost, reason)) => {
                lack = Lack::Policy(reason);
                (lost, lack)
            }
            None => (least, lack),
        }
    }
}

impl fmt::Display for Lack<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Witness => f.write_str("no standby would be left that answers"),
            Self::Voters { acks, of, need } => write!(
                f,
                "too few synchronous standbys would be left: {need} must answer (ANY {acks} of {of}), or an acknowledged \
                 commit could be missed"
            ),
            Self::Candidate => f.write_str("no standby would be left that can be promoted"),
            Self::Current => f.write_str(
                "only standbys would be left that are further behind than failover.max_lag_on_failover allows",
            ),
            Self::Last(standby) => write!(
                f,
                "only {}, which {}, might have the last WAL",
                standby.name,
                standby.unelectable.as_deref().unwrap_or_default()
            ),
            Self::Followers(acks) => write!(
                f,
                "a standby would be promoted, but its first commit would wait until {acks} others stream from it"
            ),
            Self::Policy(reason) => write!(f, "failover.policy would wait: {reason}"),
        }
    }
}

impl Controller {
    /// What could be survived now. The policy is asked again only when something has changed.
    pub(super) fn look_ahead(&mut self) {
        let survey = self.survey();
        if self.surveyed.as_ref().is_none_or(|(former, _)| *former != survey) {
            let configured = survey.standbys.len();
            let survival = survey.survival(|primary, lost| self.hesitation(primary, configured, lost));
            self.surveyed = Some((survey, survival));
        }
    }

    /// What [`Self::look_ahead`] found last.
    pub(super) fn survival(&self) -> Survival {
        let known = self.surveyed.as_ref().map(|(_, survival)| survival.clone());
        known.unwrap_or_else(|| Survival::none("no node has answered yet"))
    }

    fn survey(&self) -> Survey {
        let (primary, journal) = match (&self.phase, &self.journal) {
            (
                Phase::Steady { primary }
                | Phase::Suspect { primary, .. }
                | Phase::Paused { primary }
                | Phase::Draining { old: primary, .. },
                Some(journal),
            ) => (primary, journal),
            (phase, _) => {
                let reason = match phase {
                    Phase::Discovering { .. } => "it is not known yet who is primary",
                    Phase::ManualNeeded { .. } => "a person has to decide first",
                    _ => "the primary is being replaced",
                };
                return Survey {
                    rule: self.journal.as_ref().map_or(SyncRule::Async, |journal| journal.sync.clone()),
                    ..Survey::nothing(reason)
                };
            }
        };
        let synchronous = self.settings.failover.synchronous.as_ref();
        let blocks = synchronous.is_some_and(|rule| rule.on_no_voter == NoVoter::Block);
        let streaming = self.streaming_to(primary);
        let until_commits_wait = match &journal.sync {
            SyncRule::Quorum { acks, voters } if blocks && self.report(primary).is_some() => {
                let there = voters.iter().filter(|voter| streaming.contains(voter)).count();
                Some(there.saturating_sub(*acks))
            }
            _ => None,
        };
        let standbys = self.all_but(primary);
        Survey {
            primary: Ok(primary.clone()),
            rule: journal.sync.clone(),
            blocks,
            until_commits_wait,
            veto: self.veto_of_any(primary, &streaming),
            standbys: standbys.into_iter().map(|name| self.standby_after(name, primary)).collect(),
        }
    }

    /// Why no failover would follow the primary's failure, even if all standbys live on.
    fn veto_of_any(&self, primary: &NodeName, streaming: &[NodeName]) -> Option<String> {
        // One that is only on its way to the disk stops nothing.
        if self.writing.is_some() && self.work.fails(&Lane::Journal, Task::Persist) {
            return Some("the journal cannot be written, and nobody is promoted without it".to_owned());
        }
        let standbys = self.all_but(primary);
        let source = |standby: &NodeName| self.source(standby, primary, EVER);
        let elsewhere = standbys
            .iter()
            .find(|standby| source(standby) == Source::Unknown && !streaming.contains(standby))
            .map(|standby| {
                format!(
                    "{standby} streams from an address that no node has, and would still do so: see `replication` of the nodes"
                )
            });
        let testifying: Vec<NodeName> =
            standbys.into_iter().filter(|standby| source(standby) != Source::Unseen).collect();
        elsewhere.or_else(|| {
            let veto = self
                .veto_of_mode()
                .or_else(|| self.too_few(&testifying))
                .or_else(|| self.veto_of_budget())
                .or_else(|| self.veto_of_candidates(primary, EVER));
            veto.map(Veto::into_reason).or_else(|| self.timeline_in_use())
        })
    }

    fn standby_after(&self, name: NodeName, primary: &NodeName) -> Standby {
        let report = self.heard_after(&name, EVER);
        let source = self.source(&name, primary, EVER);
        let timeline = self.journal.as_ref().map(|journal| journal.timeline);
        let position = report.and_then(NodeReport::position).unwrap_or_default();
        Standby {
            testifies: source != Source::Unseen,
            freezable: report.is_some_and(|report| {
                self.can_freeze(&name, Some(report))
                    && !self.work.busy(&Lane::Host(name.clone()))
                    && settings::freeze(report, &settings::token(self.epoch)).is_ok()
            }),
            lags: report.is_some_and(|report| self.lags(&name, primary, report)),
            follows: report.is_some_and(|report| Some(report.timeline) == timeline),
            unelectable: self.unelectable(&name, report),
            reach: if source == Source::Nowhere { Reach::At(position) } else { Reach::Streams },
            name,
        }
    }

    /// Why the policy would not replace a primary that has failed for good, if it would not.
    fn hesitation(&self, primary: &NodeName, configured: usize, lost: usize) -> Option<String> {
        let failover = &self.settings.failover;
        [PrimaryEvidence::Refused, PrimaryEvidence::Silent].into_iter().find_map(|kind| {
            let evidence = Evidence {
                primary: primary.clone(),
                kind,
                standing: FOR_GOOD,
                failures: FAILURES,
                witnesses: WitnessCount { configured, fresh: 0, lost, unseen: configured - lost },
                silent_after: failover.silent_after,
                stalled_after: failover.stalled_after,
                start_timeout: failover.start_timeout,
                restart_grace: failover.async_restart_grace,
                failure_threshold: self.settings.failure_threshold,
            };
            match self.policy.assess(&evidence) {
                Assessment::Wait { reason, .. } => Some(reason),
                Assessment::FailOver { .. } => None,
            }
        })
    }
}
