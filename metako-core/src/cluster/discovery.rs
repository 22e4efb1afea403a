//! Who is primary, when that is not known: after a first start, after a restart, and by an operator's word.

use super::controller::Then;
use super::failover::Failover;
use super::{Controller, DecisionKind, Journal, JournalPhase, Phase};
use crate::config::RoleHint;
use crate::plugin::NodeReport;
use crate::{Epoch, NodeName};

impl Controller {
    /// Goes on where the journal says.
    pub(super) fn resume(&mut self) {
        let Some(journal) = &self.journal else { return };
        self.away = journal.observed.away;
        if journal.cluster != self.settings.name {
            let reason = format!(
                "the journal belongs to the cluster `{}`, the configuration to `{}`: use another state directory, or \
                 `metako adopt --primary NAME` to start over",
                journal.cluster, self.settings.name
            );
            self.phase = Phase::ManualNeeded { primary: None, reason };
            return;
        }
        let primary = journal.primary.clone();
        let unknown = |name: &NodeName| {
            format!(
                "the journal names {name}, which is not in the configuration: add it again, or `metako adopt --primary \
                 NAME`"
            )
        };
        self.phase = match &journal.phase {
            JournalPhase::Steady if self.node(&primary).is_none() => {
                Phase::ManualNeeded { primary: None, reason: unknown(&primary) }
            }
            JournalPhase::Steady => Phase::Discovering {
                reason: format!("the journal says that {primary} is primary; its answer is awaited"),
            },
            JournalPhase::Fencing => {
                let mut failover = Failover::begun(&primary, self.moment(), self.all_but(&primary));
                failover.planned = journal.floor.is_some();
                self.failover = Some(failover);
                Phase::Fencing { old: primary, since: self.now }
            }
            JournalPhase::Promoting { candidate, .. } if self.node(candidate).is_none() => {
                Phase::ManualNeeded { primary: None, reason: unknown(candidate) }
            }
            JournalPhase::Promoting { candidate, timeline, .. } if self.observes() => {
                let reason = format!(
                    "metako was about to promote {candidate} to timeline {timeline} when it ended, and failover.mode is observe \
                     now: see which node is primary, then `metako adopt --primary NAME`"
                );
                Phase::ManualNeeded { primary: None, reason }
            }
            JournalPhase::Promoting { candidate, timeline, .. } => {
                self.failover = Some(Failover::begun(&primary, self.moment(), self.all_but(&primary)));
                let (candidate, timeline) = (candidate.clone(), *timeline);
                Phase::Promoting { old: primary, candidate, timeline, since: self.now }
            }
        };
    }

    pub(super) fn step_discovering(&mut self) {
        if let Some(journal) = &self.journal {
            let primary = journal.primary.clone();
            return self.step_confirming(&primary);
        }
        match self.agreement() {
            Ok(primary) => {
                let reason = format!(
                    "all {} configured nodes answer and {primary} alone is not in recovery: it is the primary",
                    self.settings.nodes.len()
                );
                self.adopt(&primary, &reason);
            }
            Err(reason) => self.phase = Phase::Discovering { reason },
        }
    }

    /// With a journal, its primary only has to say that it still is one.
    fn step_confirming(&mut self, primary: &NodeName) {
        if let Some(node) = self.replaced.first().cloned() {
            return self.sever(&node);
        }
        let Some(state) = self.nodes.get(primary) else { return };
        if state.answer.is_none() {
            return;
        }
        match state.current().map(|report| (self.judge(primary, report), self.may_be_replaced(report))) {
            Some((Ok(()), false)) => {
                let reason = format!("{primary} answers as the primary that the journal names");
                self.record(DecisionKind::Adopted, Some(primary), reason);
                self.serve();
            }
            Some(_) | None => self.suspect(primary, self.moment()),
        }
    }

    /// The primary that all configured nodes agree on, or what is missing.
    fn agreement(&self) -> Result<NodeName, String> {
        let mut reports: Vec<(&NodeName, &NodeReport)> = Vec::new();
        for node in &self.settings.nodes {
            let Some(report) = self.report(&node.name) else {
                let why = self.nodes.get(&node.name).and_then(|state| state.failure());
                let why = why.map_or_else(
                    || "has not answered yet".to_owned(),
                    |why| format!("does not answer ({why})"),
                );
                return Err(format!(
                    "{} {why}: without a journal all configured nodes must answer and agree, or `metako adopt --primary \
                     NAME` decides",
                    node.name
                ));
            };
            reports.push((&node.name, report));
        }
        let Some((first, report)) = reports.first() else { return Err("no node is configured".to_owned()) };
        if let Some((other, _)) = reports.iter().find(|(_, other)| other.system_id != report.system_id) {
            return Err(format!(
                "{first} and {other} have different system identifiers: they are not one cluster"
            ));
        }
        let primaries: Vec<_> = reports.iter().filter(|(_, report)| report.is_primary()).collect();
        let [(primary, report)] = primaries.as_slice() else {
            return Err(self.no_single_primary(primaries.iter().map(|(name, _)| *name)));
        };
        if let Some((ahead, other)) = reports.iter().find(|(_, other)| other.timeline > report.timeline) {
            return Err(format!(
                "{primary} is the only node that is not in recovery, but {ahead} is on timeline {}, {primary} on {}: it \
                 may be an old primary that came back",
                other.timeline, report.timeline
            ));
        }
        let ahead = reports
            .iter()
            .find(|(_, other)| other.timeline < report.timeline && other.position() > report.position());
        if let Some((ahead, other)) = ahead {
            return Err(format!(
                "{ahead} is on the older timeline {} but further than {primary}: it may hold writes that {primary} has not",
                other.timeline
            ));
        }
        let astray = reports.iter().find_map(|(name, other)| {
            let receiver = other.streaming_receiver()?;
            let upstream = self.node_at(&receiver.sender_host, receiver.sender_port)?;
            (upstream == **name).then_some(name)
        });
        match astray {
            Some(name) => Err(format!(
                "{name} streams from itself by its own account: check `replication:` of the nodes"
            )),
            None => Ok((*primary).clone()),
        }
    }

    fn no_single_primary<'a>(&self, primaries: impl Iterator<Item = &'a NodeName>) -> String {
        let names: Vec<&str> = primaries.map(NodeName::as_str).collect();
        let hinted = self.settings.nodes.iter().find(|node| node.role == Some(RoleHint::Primary));
        let hint = hinted.map_or_else(String::new, |node| {
            format!(" (the configuration's `role` names {}, which only is a hint)", node.name)
        });
        if names.is_empty() {
            format!("all nodes are in recovery{hint}: promote one, and metako will find it")
        } else {
            format!(
                "{} are not in recovery{hint}: only one may be; stop the others, or `metako adopt --primary NAME`",
                names.join(" and ")
            )
        }
    }

    /// Why a node cannot be adopted now, if it cannot.
    pub(super) fn refuse_adopt(&self, node: &NodeName) -> Result<(), String> {
        if self.node(node).is_none() {
            return Err(format!("{node} is not in the configuration"));
        }
        let settled = match &self.phase {
            Phase::Discovering { .. } | Phase::ManualNeeded { .. } => true,
            // Where writes are held nothing that metako sees may end that; and whom others promote is theirs to say.
            Phase::Suspect { .. } | Phase::Paused { .. } => self.holds_writes() || self.observes(),
            Phase::Steady { .. } => self.observes(),
            _ => false,
        };
        if !settled {
            return Err(format!("the cluster is {}, nothing is to be adopted", self.phase.name()));
        }
        if matches!(&self.phase, Phase::Steady { primary } if primary == node) {
            return Err(format!("{node} is the primary already"));
        }
        let strange = !matches!(self.phase, Phase::Discovering { .. } | Phase::ManualNeeded { .. });
        match self.report(node) {
            Some(report) if strange && self.is_foreign(report) => {
                Err(format!("{node} is of another cluster (its system identifier differs)"))
            }
            Some(report) if report.is_primary() => Ok(()),
            Some(_) => Err(format!("{node} is in recovery: only a primary can be adopted; promote it first")),
            None => Err(format!("{node} does not answer")),
        }
    }

    /// A client may still wait for the answer of the former primary: none comes through from now on.
    pub(super) fn cut_replaced(&mut self) {
        // Those that are known are the former one's.
        self.slots.clear();
        if self.replaced.is_empty() {
            return self.serve();
        }
        let former = self.replaced.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
        self.phase = Phase::Discovering { reason: format!("connections to {former} are being cut") };
    }

    /// Makes `primary`, which answers as one, the primary of a new epoch.
    pub(super) fn adopt(&mut self, primary: &NodeName, reason: &str) {
        let Some((system_id, timeline, started_at)) =
            self.report(primary).map(|report| (report.system_id, report.timeline, report.started_at))
        else {
            return;
        };
        let (cluster, epoch) = (self.settings.name.clone(), self.epoch.next());
        let mut journal = Journal::begun(cluster, system_id, epoch, primary.clone(), timeline);
        journal.observed.started_at = self.observes().then_some(started_at);
        if let Some(former) = self.journal.as_ref().filter(|former| former.system_id == system_id) {
            journal.saved.clone_from(&former.saved);
            journal.tainted.clone_from(&former.tainted);
            journal.displaced.clone_from(&former.displaced);
            journal.paused = former.paused && !self.observes();
            journal.sync_names.clone_from(&former.sync_names);
            if former.timeline == timeline && former.primary == *primary {
                journal.fork = former.fork;
                journal.last_record = former.last_record;
                // Once a candidate is chosen the rule is the one for its epoch.
                if !matches!(former.phase, JournalPhase::Promoting { .. }) {
                    journal.sync = former.sync.clone();
                    journal.run = former.run;
                }
            }
            let tried = former.attempts.iter().map(|attempt| attempt.node.clone());
            journal.tainted.extend(tried.filter(|node| node != primary));
            journal.tainted.retain(|node| node != primary);
            journal.tainted.dedup();
            journal.displaced.retain(|node| node != primary);
        }
        let role = self.node(primary).and_then(|node| node.role);
        let hinted = self.settings.nodes.iter().find(|node| node.role == Some(RoleHint::Primary));
        let hint = match (role, hinted) {
            (Some(RoleHint::Primary), _) | (_, None) => String::new(),
            (_, Some(hinted)) => {
                format!("; the configuration's `role` says {}, which is out of date", hinted.name)
            }
        };
        self.record(
            DecisionKind::Adopted,
            Some(primary),
            format!("{reason}{hint}; writes open when the journal is written"),
        );
        self.failover = None;
        // On another timeline the same name may be another machine.
        let former = self.journal.as_ref();
        let former = former.filter(|former| former.primary != *primary || former.timeline != timeline);
        self.replaced.extend(former.map(|former| former.primary.clone()));
        // Nothing goes to the former one from here on, however long the journal takes.
        self.forget_planned("another primary is adopted");
        (self.stuck, self.doubted, self.confirmed) = (None, None, false);
        self.gate = None;
        (self.away, self.restored, self.returned, self.forced) = (false, false, None, None);
        self.phase = Phase::Discovering { reason: reason.to_owned() };
        if let Some(state) = self.nodes.get_mut(primary) {
            state.flushed = None;
        }
        self.persist(journal, Then::Adopt);
    }

    /// A primary serves: the one that the journal names.
    pub(super) fn serve(&mut self) {
        let Some(journal) = &self.journal else { return };
        let (primary, timeline) = (journal.primary.clone(), journal.timeline);
        // Others decide, and go on to.
        let paused = journal.paused && !self.observes();
        let was_confirmed = std::mem::replace(&mut self.confirmed, true);
        if self.failover.take().is_some() || !was_confirmed {
            self.work.forget_pauses();
        }
        self.stuck = None;
        self.looking = None;
        self.sync_step = None;
        self.planned = None;
        self.doubted = None;
        (self.away, self.restored, self.returned) = (false, false, None);
        self.well_since = self.now;
        for kind in [DecisionKind::Suspected, DecisionKind::Vetoed, DecisionKind::ManualNeeded] {
            self.forget_said(kind);
        }
        let reason = format!("writes go to {primary}, epoch {}, timeline {timeline}", self.epoch);
        self.phase = if paused {
            let reason = format!(
                "no failover and no change of any node until `metako resume`; writes go to {primary}"
            );
            self.record_once(DecisionKind::Paused, Some(&primary), &reason);
            Phase::Paused { primary: primary.clone() }
        } else {
            Phase::Steady { primary: primary.clone() }
        };
        self.watch_run(&primary);
        if self.gate.is_none() && self.view().primary() != Some(&primary) {
            self.record(DecisionKind::Opened, Some(&primary), reason);
        }
        self.apply_waiting_settings();
    }

    /// A person has to decide; `primary` is given while it may still take writes and the case solves itself when it is
    /// well again.
    pub(super) fn need_person(&mut self, primary: Option<NodeName>, reason: String) {
        self.forced = None;
        self.record(DecisionKind::ManualNeeded, primary.as_ref(), reason.clone());
        self.phase = Phase::ManualNeeded { primary, reason };
    }

    /// Whether a report is that of the journal's primary in good health; an error says for people what is wrong.
    pub(super) fn judge(&self, primary: &NodeName, report: &NodeReport) -> Result<(), String> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let what = if report.system_id != journal.system_id {
            format!(
                "answers with system identifier {}, the cluster has {}",
                report.system_id, journal.system_id
            )
        } else if !report.is_primary() {
            "is in recovery now: somebody made it a standby".to_owned()
        } else if report.timeline != journal.timeline {
            format!("is on timeline {}, the journal has {}", report.timeline, journal.timeline)
        } else if let Some((timeline, flushed)) = self.nodes.get(primary).and_then(|state| state.flushed)
            && timeline == report.timeline
            && report.position().is_some_and(|position| position < flushed)
        {
            format!("went back from {flushed}: restored from a backup?")
        } else {
            return Ok(());
        };
        let others = self.settings.nodes.iter().map(|node| &node.name).filter(|name| *name != primary);
        let elsewhere: Vec<&str> = others
            .filter(|name| self.report(name).is_some_and(NodeReport::is_primary))
            .map(NodeName::as_str)
            .collect();
        let hint = match elsewhere.as_slice() {
            [] => String::new(),
            names => format!("; {} answers as a primary", names.join(", ")),
        };
        Err(format!(
            "{primary} {what}{hint}. Writes are held: `metako adopt --primary NAME` says who is primary"
        ))
    }

    /// The epoch after the present one.
    pub(super) fn next_epoch(&self) -> Epoch {
        self.epoch.next()
    }
}
