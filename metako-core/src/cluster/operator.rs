//! What a person asks for: whether it may be, and what would happen.

use serde::{Deserialize, Serialize};

use super::controller::{Forced, Then};
use super::work::Lane;
use super::{Controller, DecisionKind, OperatorCommand, Phase, SyncRule};
use crate::NodeName;
use crate::config::NoVoter;
use crate::plugin::Electable;

/// What a command would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The primary now, if one is known.
    pub primary: Option<NodeName>,
    /// The node that would be primary, if that is another.
    pub candidate: Option<NodeName>,
    /// What would happen, in its order, for people.
    pub steps: Vec<String>,
}

impl Controller {
    /// What a command would do now, or why it would be refused. Changes nothing.
    ///
    /// # Errors
    ///
    /// The reason, for people, and what to do instead.
    pub fn examine(&self, command: &OperatorCommand) -> Result<Plan, String> {
        if self.is_writing() {
            return Err("the journal is being written: ask again".to_owned());
        }
        let changes = !matches!(command, OperatorCommand::Adopt(_) | OperatorCommand::Resume);
        if changes && self.observes() {
            return Err(
                "failover.mode is observe: whoever manages the cluster does that, and metako follows"
                    .to_owned(),
            );
        }
        match command {
            OperatorCommand::Adopt(node) => {
                self.refuse_adopt(node)?;
                Ok(self.plan(Some(node), vec![format!("writes go to {node}, in a new epoch")]))
            }
            OperatorCommand::Switchover { to } => self.examine_switchover(to.as_ref()),
            OperatorCommand::Failover { to, allow_data_loss } => {
                self.examine_failover(to.as_ref(), *allow_data_loss)
            }
            OperatorCommand::Pause => match &self.phase {
                Phase::Steady { .. } if self.planned.is_none() => {
                    if let Some(node) = self.hooked_node() {
                        return Err(format!("a hook works on {node}: ask again when it has ended"));
                    }
                    let step =
                        "no failover and no change of any node until `metako resume`; clients are served";
                    Ok(self.plan(None, vec![step.to_owned()]))
                }
                Phase::Paused { .. } => Err("it is paused already".to_owned()),
                phase => Err(format!("the cluster is {}: it can be paused when it is steady", phase.name())),
            },
            OperatorCommand::Resume if self.journal.as_ref().is_some_and(|journal| journal.paused) => {
                let step = "the primary and its standbys are looked at, then metako decides again";
                Ok(self.plan(None, vec![step.to_owned()]))
            }
            OperatorCommand::Resume => Err("it is not paused".to_owned()),
        }
    }

    fn plan(&self, candidate: Option<&NodeName>, steps: Vec<String>) -> Plan {
        let primary = self.journal.as_ref().map(|journal| journal.primary.clone());
        Plan { primary, candidate: candidate.cloned(), steps }
    }

    pub(super) fn on_operator(&mut self, command: OperatorCommand) {
        let plan = match self.examine(&command) {
            Ok(plan) => plan,
            Err(why) => {
                let (what, node) = match &command {
                    OperatorCommand::Adopt(node) => ("adopt", Some(node)),
                    OperatorCommand::Switchover { to } => ("switchover", to.as_ref()),
                    OperatorCommand::Failover { to, .. } => ("failover", to.as_ref()),
                    OperatorCommand::Pause => ("pause", None),
                    OperatorCommand::Resume => ("resume", None),
                };
                let reason = format!("`metako {what}` is refused: {why}");
                return self.record(DecisionKind::Vetoed, node, reason);
            }
        };
        match (command, plan.candidate) {
            (OperatorCommand::Adopt(node), _) => {
                self.adopt(&node, &format!("an operator says that {node} is the primary"));
            }
            (OperatorCommand::Switchover { .. }, Some(to)) => self.plan_switchover(to),
            (OperatorCommand::Failover { to, .. }, _) if matches!(self.phase, Phase::Freezing { .. }) => {
                self.accept_loss(to);
            }
            (OperatorCommand::Failover { to, allow_data_loss }, _) => {
                let Some(primary) = self.phase_primary().cloned() else { return };
                self.forced = Some(Forced { to, allow_data_loss });
                self.suspect(&primary, self.moment());
            }
            (OperatorCommand::Pause, _) => self.set_paused(true),
            (OperatorCommand::Resume, _) => self.set_paused(false),
            (OperatorCommand::Switchover { .. }, None) => {}
        }
    }

    fn set_paused(&mut self, paused: bool) {
        let Some(mut journal) = self.journal.clone() else { return };
        journal.paused = paused;
        self.forget_said(DecisionKind::Paused);
        self.persist(journal, if paused { Then::Serve } else { Then::Resume });
    }

    /// It is on disk that automatic decisions go on.
    pub(super) fn resumed(&mut self) {
        let primary = self.journal.as_ref().map(|journal| journal.primary.clone());
        let reason = "an operator asked for it: the primary and its standbys are looked at first".to_owned();
        self.record(DecisionKind::Resumed, primary.as_ref(), reason);
        if matches!(self.phase, Phase::Paused { .. } | Phase::ManualNeeded { primary: Some(_), .. }) {
            self.doubt();
        }
    }

    /// Nothing is decided; but writes go to no node that is not what the journal says, and what metako froze for a
    /// failover does not stay frozen.
    pub(super) fn step_paused(&mut self) {
        let Phase::Paused { primary } = &self.phase else { return };
        let primary = primary.clone();
        if let Some(report) = self.report(&primary) {
            self.stuck = self.judge(&primary, report).err();
        }
        if self.stuck.is_none() && self.pass_gate(&primary) {
            return;
        }
        self.release_frozen(&primary);
    }

    fn examine_switchover(&self, to: Option<&NodeName>) -> Result<Plan, String> {
        let Phase::Steady { primary } = &self.phase else {
            return Err(match &self.phase {
                Phase::Paused { .. } => "it is paused: `metako resume` first".to_owned(),
                phase => format!(
                    "the cluster is {}: a switchover needs a primary that is well; `metako status` tells more",
                    phase.name()
                ),
            });
        };
        if let Some(planned) = &self.planned {
            return Err(format!("a switchover to {} is under way", planned.to));
        }
        let ready = self
            .all_but(primary)
            .into_iter()
            .filter(|standby| self.can_follow(standby).is_ok())
            .collect::<Vec<_>>();
        let to = match to {
            Some(to) if to == primary => return Err(format!("{to} is the primary already")),
            Some(to) if self.node(to).is_none() => {
                return Err(format!("{to} is not in the configuration"));
            }
            Some(to) => to.clone(),
            None => self.first_of(&ready).ok_or_else(|| {
                let why = |standby: NodeName| Some(format!("{standby} {}", self.can_follow(&standby).err()?));
                let reasons: Vec<String> = self.all_but(primary).into_iter().filter_map(why).collect();
                format!("no standby can follow {primary}: {}", reasons.join(", "))
            })?,
        };
        self.may_switch_over(primary, &to)?;
        Ok(self.plan(Some(&to), self.switchover_steps(primary, &to)))
    }

    /// Why a switchover to a node would stop half way, if it would. Holds when it is asked for, and again before the primary
    /// is stopped.
    pub(super) fn may_switch_over(&self, primary: &NodeName, to: &NodeName) -> Result<(), String> {
        if self.stopping {
            return Err("metako is stopping".to_owned());
        }
        if self.settings.hooks.stop.is_none() {
            return Err(format!(
                "`hooks.stop` is not configured: {primary} has to be stopped cleanly, and metako cannot do that by SQL"
            ));
        }
        if self.work.busy(&Lane::Host(primary.clone())) {
            return Err(format!("a hook works on {primary}"));
        }
        if let Some(why) = self.timeline_in_use() {
            return Err(why);
        }
        self.can_follow(to).map_err(|why| format!("{to} {why}"))?;
        let Some(SyncRule::Quorum { acks, voters }) = self.journal.as_ref().map(|journal| &journal.sync)
        else {
            return Ok(());
        };
        let others = self.all_but(primary);
        let frozen: Vec<&NodeName> =
            others.iter().filter(|standby| self.can_be_frozen(standby).is_ok()).collect();
        let need = super::evidence::needed(*acks, voters.len());
        let have = voters.iter().filter(|voter| frozen.contains(voter)).count();
        if have < need {
            return Err(format!("{have} of the {need} synchronous standbys that are needed are ready"));
        }
        let followers = frozen.iter().filter(|standby| **standby != to).count();
        if self.blocks() && followers < *acks && !self.waits_for_the_old_primary(*acks) {
            return Err(format!(
                "{followers} of the {acks} synchronous standbys that commits on {to} would wait for are ready: writes would \
                 wait until {primary} is back as a standby"
            ));
        }
        Ok(())
    }

    fn blocks(&self) -> bool {
        self.settings.failover.synchronous.as_ref().is_some_and(|rule| rule.on_no_voter == NoVoter::Block)
    }

    /// With too few nodes it is the old primary itself that commits wait for, whenever a switchover is asked for.
    fn waits_for_the_old_primary(&self, acks: usize) -> bool {
        self.settings.nodes.len() < acks + 2 && self.settings.hooks.rejoin.is_some()
    }

    /// A node on whose host a hook works.
    fn hooked_node(&self) -> Option<&NodeName> {
        self.nodes.keys().find(|node| self.work.busy(&Lane::Host((*node).clone())))
    }

    fn switchover_steps(&self, primary: &NodeName, to: &NodeName) -> Vec<String> {
        let stop = self.settings.hooks.stop.as_ref().map(|hook| hook.command.join(" ")).unwrap_or_default();
        let timeline = self.journal.as_ref().map(|journal| journal.timeline.next()).unwrap_or_default();
        let failover = &self.settings.failover;
        let mut steps = vec![
            format!("{primary} writes a checkpoint, and serves meanwhile"),
            format!(
                "writes are held; transactions that are open on {primary} have {:?} to end, or all is undone \
                 (failover.drain_timeout)",
                failover.drain_timeout
            ),
            format!("{to} gets what WAL it lacks; {primary} is fenced and stopped: {stop}"),
            format!(
                "the standbys are frozen; {to} is promoted to timeline {timeline}, unless another has more WAL"
            ),
            match self.journal.as_ref().map(|journal| &journal.sync) {
                Some(SyncRule::Quorum { acks, .. })
                    if self.blocks() && self.waits_for_the_old_primary(*acks) =>
                {
                    format!("writes go on when {primary} streams as a standby, because commits wait for it")
                }
                _ => "writes go on; the other standbys follow".to_owned(),
            },
        ];
        steps.push(match &self.settings.hooks.rejoin {
            Some(hook) => format!("{primary} is made a standby of {to}: {}", hook.command.join(" ")),
            None => format!("{primary} stays stopped: `hooks.rejoin` is not configured"),
        });
        steps
    }

    fn examine_failover(&self, to: Option<&NodeName>, allow_data_loss: bool) -> Result<Plan, String> {
        let primary = match &self.phase {
            Phase::Freezing { old, .. } if allow_data_loss => old,
            Phase::Suspect { primary, .. }
            | Phase::ManualNeeded { primary: Some(primary), .. }
            | Phase::Paused { primary }
            | Phase::Steady { primary } => primary,
            phase => {
                let busy = || format!("the cluster is {}: no primary is to be replaced", phase.name());
                return Err(self.may_accept_loss().unwrap_or_else(|_| busy()));
            }
        };
        if let Some(to) = to.filter(|to| self.node(to).is_none() || *to == primary) {
            return Err(format!("{to} is no standby of {primary}"));
        }
        if matches!(self.phase, Phase::Freezing { .. }) {
            let lack = self.may_accept_loss()?;
            if let Some((to, why)) = to.and_then(|to| Some((to, self.unelectable(to, self.report(to))?))) {
                return Err(format!("{to} {why}"));
            }
            let step = "the most advanced frozen standby is promoted, whatever it lacks";
            return Ok(self.plan(to, vec![step.to_owned(), lack]));
        }
        if let Some(why) = self.veto_for_person(primary) {
            return Err(why);
        }
        let able = |standby: &NodeName| self.unelectable(standby, self.heard_after(standby, self.suspected));
        if let Some((to, why)) = to.and_then(|to| Some((to, able(to)?))) {
            return Err(format!("{to} {why}"));
        }
        let able: Vec<NodeName> =
            self.all_but(primary).into_iter().filter(|standby| able(standby).is_none()).collect();
        let candidate = to.cloned().or_else(|| self.first_of(&able));
        let mut steps = vec![
            format!(
                "writes are held, and {primary} is fenced: commits without an answer are reported as unknown"
            ),
            "the standbys are frozen, and the most advanced is promoted".to_owned(),
            format!("{primary} gets no traffic until it follows"),
        ];
        steps.extend(self.foreseen_loss(primary, self.suspected));
        Ok(self.plan(candidate.as_ref(), steps))
    }

    /// The first of these in the policy's order.
    fn first_of(&self, standbys: &[NodeName]) -> Option<NodeName> {
        let mut electable: Vec<Electable> = standbys
            .iter()
            .filter_map(|standby| self.electable(standby, self.report(standby)?.position()?))
            .collect();
        self.policy.rank(&mut electable);
        electable.into_iter().map(|one| one.node).find(|node| standbys.contains(node))
    }
}
