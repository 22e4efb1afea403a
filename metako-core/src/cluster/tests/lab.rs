//! A scripted cluster that answers the controller's actions at once (a silent node after the probe's time-out), and
//! watches the rules that no test may break.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{
    Action, ActionFailure, ActionId, ActionOutcome, ClusterView, Controller, Decision, DecisionKind, Event,
    HookKind, Journal, OperatorCommand, SettingsChange, Writes,
};
use crate::config::ClusterSettings;
use crate::plugin::{NodeReport, ProbeFailure, Receiver, ReportedRole, Sender, SettingValue};
use crate::{Epoch, Lsn, NodeName, Tick};

use super::fake::{Fake, Line, eager};
use super::names::lane_of;

/// What the lab does with an action of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Treat {
    /// It is not carried out and not answered until [`Lab::release`].
    Keep,
    /// It is not carried out and answered with a failure.
    Fail,
    /// It is not carried out and answered as unknown.
    Unknown,
    /// It is carried out and answered as unknown.
    DoneUnknown,
}

#[expect(clippy::struct_excessive_bools, reason = "independent facts about the day, not one state")]
pub(super) struct Lab {
    pub(super) now: Tick,
    pub(super) settings: Arc<ClusterSettings>,
    pub(super) controller: Controller,
    pub(super) nodes: BTreeMap<NodeName, Fake>,
    pub(super) disk: Option<Journal>,
    pub(super) view: Arc<ClusterView>,
    pub(super) decisions: Vec<Decision>,
    pub(super) actions: Vec<Action>,
    pub(super) treat: BTreeMap<&'static str, Treat>,
    pub(super) kept: Vec<Action>,
    /// How long a probe takes to be answered.
    pub(super) latency: Duration,
    /// How far commits were acknowledged under the synchronous rule of the journal.
    pub(super) acknowledged: Lsn,
    /// How far the primary said that it is, since this metako was started or the epoch began.
    pub(super) said: Option<Lsn>,
    /// A person says that data may be lost by the failover that is under way or begins.
    pub(super) may_lose: bool,
    /// It streams and gets nothing new.
    pub(super) lagging: Option<NodeName>,
    /// Clients have transactions open that do not end.
    pub(super) open_transactions: bool,
    /// The phases that followed each other in views.
    pub(super) transitions: BTreeSet<(&'static str, &'static str)>,
    /// Whom an operator last took for the primary.
    pub(super) adopted: Option<NodeName>,
    /// Since writes were last open it has another configuration.
    pub(super) reloaded: bool,
    /// Since writes were last open the process was started again.
    pub(super) restarted: bool,
    later: BTreeMap<(Tick, u64), Event>,
    count: u64,
    pub(super) promoted: BTreeMap<Epoch, NodeName>,
    /// Actions that were asked for and not answered, by what may not run twice.
    pub(super) running: BTreeMap<ActionId, String>,
}

impl Lab {
    /// The node on port 5001 is primary, the others stream from it; nothing has been asked yet.
    pub(super) fn new(settings: ClusterSettings) -> Self {
        let settings = Arc::new(settings);
        let nodes = settings.nodes.iter().map(|node| (node.name.clone(), node.port));
        let mut lab = Self {
            now: Tick::ZERO,
            controller: Controller::new(Arc::clone(&settings), eager(), None, Tick::ZERO),
            nodes: nodes.map(|(name, port)| (name, Fake::new(port, port == 5001))).collect(),
            settings,
            disk: None,
            view: Arc::new(ClusterView::empty("")),
            decisions: Vec::new(),
            actions: Vec::new(),
            treat: BTreeMap::new(),
            kept: Vec::new(),
            latency: Duration::ZERO,
            acknowledged: Lsn(0),
            said: None,
            may_lose: false,
            open_transactions: false,
            lagging: None,
            transitions: BTreeSet::new(),
            adopted: None,
            reloaded: false,
            restarted: true,
            later: BTreeMap::new(),
            count: 0,
            promoted: BTreeMap::new(),
            running: BTreeMap::new(),
        };
        lab.view = lab.controller.view();
        lab
    }

    /// The same, steady with a as primary.
    pub(super) fn steady(settings: ClusterSettings) -> Self {
        let mut lab = Self::new(settings);
        lab.start();
        lab.pass(3000);
        assert_eq!(lab.phase(), "steady", "{:?}", lab.controller);
        lab.forget();
        lab
    }

    pub(super) fn start(&mut self) {
        self.event(Event::Timer);
    }

    /// The process dies and a new one starts with the journal that is on disk. What was in flight is lost.
    pub(super) fn restart(&mut self) {
        self.restarted = true;
        self.said = None;
        self.later.clear();
        self.kept.clear();
        self.running.clear();
        self.controller = Controller::new(Arc::clone(&self.settings), eager(), self.disk.clone(), self.now);
        self.view = self.controller.view();
        self.start();
    }

    pub(super) fn forget(&mut self) {
        self.decisions.clear();
        self.actions.clear();
    }

    pub(super) fn phase(&self) -> &'static str {
        self.controller.phase().name()
    }

    pub(super) fn fake(&mut self, name: &str) -> &mut Fake {
        self.nodes.get_mut(name).unwrap()
    }

    pub(super) fn said(&self, kind: DecisionKind) -> Vec<&str> {
        self.decisions
            .iter()
            .filter(|decision| decision.kind == kind)
            .map(|decision| decision.reason.as_str())
            .collect()
    }

    pub(super) fn did(&self, kind: &str) -> Vec<&Action> {
        self.actions.iter().filter(|action| action.name() == kind).collect()
    }

    pub(super) fn held(&self) -> Option<&str> {
        match &self.view.writes {
            Writes::Held { reason } => Some(reason),
            Writes::Open { .. } => None,
        }
    }

    pub(super) fn primary(&self) -> Option<&str> {
        self.view.primary().map(NodeName::as_str)
    }

    /// The node dies: it refuses connections, and whoever streamed from it does no more.
    pub(super) fn kill(&mut self, name: &str) {
        self.fake(name).line = Line::Refused;
        self.fake(name).reachable_by_others = false;
        self.event(Event::ServerLost { node: name.into(), loss: crate::cluster::ServerLoss::Broken });
    }

    pub(super) fn revive(&mut self, name: &str) {
        let fake = self.fake(name);
        if fake.line == Line::Refused {
            fake.start_anew();
        }
        fake.line = Line::Up;
        fake.reachable_by_others = true;
    }

    /// The operator's word counts more than what is missing then.
    pub(super) fn adopt(&mut self, name: &str) {
        self.acknowledged = Lsn(0);
        self.adopted = Some(name.into());
        self.event(Event::Operator(OperatorCommand::Adopt(name.into())));
    }

    /// A person asks for it.
    pub(super) fn order(&mut self, command: OperatorCommand) {
        self.event(Event::Operator(command));
    }

    /// Why the controller refuses it.
    pub(super) fn refusal(&self, command: &OperatorCommand) -> String {
        self.controller.examine(command).expect_err("it is refused")
    }

    /// Lets so many milliseconds pass.
    pub(super) fn pass(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        let mut turns = 0;
        loop {
            let timer = self.controller.poll_timeout();
            let answer = self.later.keys().next().map(|(at, _)| *at);
            let Some(next) = [timer, answer].into_iter().flatten().min().filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            let due = self.later.first_entry().filter(|entry| entry.key().0 <= self.now);
            let event = due.map_or(Event::Timer, std::collections::btree_map::OccupiedEntry::remove);
            self.event(event);
            turns += 1;
            assert!(turns < 20_000, "the controller spins: {:?}", self.controller);
        }
        self.now = end;
    }

    pub(super) fn event(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut turns = 0;
        while let Some(event) = events.pop_front() {
            // What was decided by the former configuration stands.
            self.reloaded |= matches!(event, Event::Reconfigured { .. });
            match &event {
                Event::Done { id, .. } => {
                    self.running.remove(id);
                }
                Event::Probed { id, node, result: Ok(report), .. } => self.note_said(*id, node, report),
                Event::Operator(OperatorCommand::Failover { allow_data_loss: true, .. }) => {
                    self.may_lose = true;
                }
                _ => {}
            }
            let mut out = Vec::new();
            let epoch = self.view.epoch;
            self.controller.handle(self.now, event, &mut out);
            for action in out {
                self.watch(&action);
                events.extend(self.carry_out(action));
            }
            assert!(self.view.epoch >= epoch, "the epoch went back");
            turns += 1;
            assert!(turns < 1000, "the controller answers itself for ever: {:?}", self.controller);
        }
    }

    /// Answers what was kept, in order.
    pub(super) fn release(&mut self) {
        self.treat.retain(|_, treat| *treat != Treat::Keep);
        for action in std::mem::take(&mut self.kept) {
            if let Some(event) = self.perform(&action) {
                self.event(event);
            }
        }
    }

    /// A client's commit through the proxy: acknowledged when the primary and its synchronous standbys have it.
    pub(super) fn commit(&mut self, bytes: u64) {
        let Some(primary) = self.view.primary().cloned() else { return };
        let names = crate::cluster::settings::sync_names(&self.settings, &self.disk.as_ref().unwrap().sync);
        if self.nodes[&primary].line != Line::Up || !self.nodes[&primary].primary {
            return;
        }
        self.write(primary.clone().as_str(), bytes);
        let in_force =
            !names.is_empty() && self.nodes[&primary].setting("synchronous_standby_names") == names;
        if in_force && self.commits(&primary) {
            self.acknowledged = self.nodes[&primary].position();
        }
    }

    fn carry_out(&mut self, action: Action) -> Option<Event> {
        let unknown = |id: ActionId| {
            let outcome = Err(ActionFailure::Unknown("scripted".to_owned()));
            Some(Event::Done { id, outcome })
        };
        match (self.treat.get(action.name()), lane_of(&action)) {
            (Some(Treat::Keep), _) => {
                self.kept.push(action);
                None
            }
            (Some(Treat::Fail), Some((id, _))) => {
                Some(Event::Done { id, outcome: Err(ActionFailure::Failed("scripted".to_owned())) })
            }
            (Some(Treat::Unknown), Some((id, _))) => unknown(id),
            (Some(Treat::DoneUnknown), Some((id, _))) => {
                let _ = self.perform(&action);
                unknown(id)
            }
            _ => self.perform(&action),
        }
    }

    fn perform(&mut self, action: &Action) -> Option<Event> {
        let done = |id: ActionId| Some(Event::Done { id, outcome: Ok(ActionOutcome::Done) });
        match action {
            Action::Probe { id, node, timeout } => {
                let result = self.probe(node, *timeout);
                let hangs = matches!(result, Err(ProbeFailure::TimedOut(_) | ProbeFailure::WriteStalled(_)));
                let pause = if hangs { *timeout } else { self.latency };
                let event = Event::Probed { id: *id, node: node.clone(), sent: self.now, result };
                if !pause.is_zero() {
                    self.count += 1;
                    self.later.insert((self.now + pause, self.count), event);
                    return None;
                }
                Some(event)
            }
            Action::Persist { id, journal } => {
                if journal.sync == crate::cluster::SyncRule::Async {
                    // Without the rule nothing is promised of what was acknowledged under it.
                    self.acknowledged = Lsn(0);
                }
                self.disk = Some(journal.clone());
                done(*id)
            }
            Action::Checkpoint { id, node } => {
                let up = self.nodes.get(node).is_some_and(|fake| fake.line == Line::Up && fake.primary);
                let refused = || Err(ActionFailure::Failed("no connection".to_owned()));
                Some(Event::Done { id: *id, outcome: if up { Ok(ActionOutcome::Done) } else { refused() } })
            }
            Action::Drain { id, .. } if self.open_transactions => {
                Some(Event::Done { id: *id, outcome: Err(ActionFailure::Failed("one is open".to_owned())) })
            }
            Action::Hook { id, call } => {
                match call.kind {
                    HookKind::Stop => self.stop(&call.node),
                    HookKind::Rejoin => self.rejoin(call),
                }
                done(*id)
            }
            Action::Sever { id, .. } | Action::Drain { id, .. } | Action::DropSlots { id, .. } => done(*id),
            Action::Freeze { id, node, change }
            | Action::Unfreeze { id, node, change }
            | Action::Prepare { id, node, change, .. }
            | Action::Repoint { id, node, change, .. }
            | Action::SetSyncStandbys { id, node, change } => {
                if self.nodes.get(node).is_none_or(|fake| fake.line != Line::Up) {
                    return Some(Event::Done {
                        id: *id,
                        outcome: Err(ActionFailure::Failed("no connection".to_owned())),
                    });
                }
                self.change(node, change);
                done(*id)
            }
            Action::Promote { id, promotion } => {
                let fake = self.nodes.get_mut(&promotion.node)?;
                if fake.line != Line::Up {
                    return Some(Event::Done {
                        id: *id,
                        outcome: Err(ActionFailure::Unknown("no answer".to_owned())),
                    });
                }
                if fake.setting("primary_slot_name") != promotion.token {
                    return Some(Event::Done { id: *id, outcome: Ok(ActionOutcome::Declined) });
                }
                if !fake.primary {
                    fake.primary = true;
                    fake.received = None;
                    fake.timeline = fake.timeline.next();
                }
                done(*id)
            }
            Action::Verify { id, node, .. } => {
                let outcome = if self.commits(node) {
                    Ok(ActionOutcome::Done)
                } else {
                    Err(ActionFailure::Unknown("no acknowledgement".to_owned()))
                };
                Some(Event::Done { id: *id, outcome })
            }
            Action::Publish { .. } | Action::Record { .. } => None,
        }
    }

    fn change(&mut self, node: &NodeName, change: &SettingsChange) {
        let Some(fake) = self.nodes.get_mut(node) else { return };
        for (name, value) in &change.set {
            match value {
                Some(value) => fake.settings.insert(name.clone(), value.clone()),
                None => fake.settings.remove(name),
            };
        }
    }

    /// Writes arrive at a node: it and all that stream from it get so much further.
    pub(super) fn write(&mut self, name: &str, bytes: u64) {
        self.fake(name).replayed.0 += bytes;
        for _ in 0..2 {
            self.stream();
        }
    }

    /// Standbys take what their upstream has.
    pub(super) fn stream(&mut self) {
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in names {
            if let Some(upstream) =
                self.upstream(&name).filter(|_| self.lagging.as_ref() != Some(&name)).cloned()
            {
                let fake = self.nodes.get_mut(&name).unwrap();
                fake.timeline = fake.timeline.max(upstream.timeline);
                fake.received = Some(upstream.position());
                fake.replayed = upstream.replayed;
            }
        }
    }

    /// The node that this one streams from right now.
    fn upstream(&self, name: &NodeName) -> Option<&Fake> {
        let fake = self
            .nodes
            .get(name)
            .filter(|fake| !fake.primary && fake.reachable_by_others && !fake.connecting)?;
        let port = if fake.deaf { 5001 } else { fake.upstream_port()? };
        let upstream = self.nodes.values().find(|other| other.port == port && other.port != fake.port)?;
        let follows = upstream.timeline >= fake.timeline && upstream.position() >= fake.replayed;
        (upstream.reachable_by_others && follows && upstream.system_id == fake.system_id).then_some(upstream)
    }

    fn commits(&mut self, node: &NodeName) -> bool {
        if self.nodes.get(node).is_none_or(|fake| fake.line != Line::Up || !fake.primary) {
            return false;
        }
        self.write(node.clone().as_str(), 10);
        let needed = self.nodes[node].setting("synchronous_standby_names");
        let acks: usize = needed.strip_prefix("ANY ").map_or(0, |rest| rest[..1].parse().unwrap());
        let port = self.nodes[node].port;
        let streaming = self.nodes.keys().filter(|name| {
            needed.contains(&format!("\"{name}\""))
                && self.upstream(name).is_some_and(|upstream| upstream.port == port)
        });
        streaming.count() >= acks
    }

    fn probe(&mut self, name: &NodeName, timeout: Duration) -> Result<NodeReport, ProbeFailure> {
        self.stream();
        let Some(fake) = self.nodes.get(name) else {
            return Err(ProbeFailure::Refused("no such node".to_owned()));
        };
        let words = || "scripted".to_owned();
        match fake.line {
            Line::Stalled if fake.primary => Err(ProbeFailure::WriteStalled(timeout)),
            Line::Up | Line::Stalled => Ok(self.report(name, fake)),
            Line::Refused => Err(ProbeFailure::Refused(words())),
            Line::Silent => Err(ProbeFailure::TimedOut(timeout)),
            Line::Starting => Err(ProbeFailure::StartingUp(words())),
            Line::Full => Err(ProbeFailure::TooManyConnections(words())),
            Line::NoLogin => Err(ProbeFailure::Authentication(words())),
        }
    }

    pub(super) fn report(&self, name: &NodeName, fake: &Fake) -> NodeReport {
        let role = if fake.primary {
            let names = fake.setting("synchronous_standby_names").to_owned();
            let sender = |(other, standby): (&NodeName, &Fake)| Sender {
                application_name: other.to_string(),
                streaming: true,
                flushed: Some(standby.position()),
                replayed: Some(standby.replayed),
                synchronous: names.contains(&format!("\"{other}\"")),
            };
            let senders = self
                .nodes
                .iter()
                .filter(|(other, _)| self.upstream(other).is_some_and(|upstream| upstream.port == fake.port))
                .map(sender)
                .collect();
            ReportedRole::Primary {
                flushed: fake.position(),
                senders,
                synchronous_standby_names: names.clone(),
                read_only: false,
            }
        } else {
            let upstream = self.upstream(name);
            ReportedRole::Standby {
                received: fake.received,
                replayed: Some(fake.replayed),
                replay_lag: Some(Duration::ZERO),
                receiver: upstream.map(|upstream| Receiver {
                    streaming: true,
                    sender_host: "localhost".to_owned(),
                    sender_port: upstream.port,
                    timeline: upstream.timeline,
                    last_message_age: Some(Duration::ZERO),
                    slot: Some(fake.setting("primary_slot_name").to_owned()),
                }),
                receiver_process: upstream.is_some() || fake.connecting,
                startup_wait: fake.startup_wait.clone(),
                settings: NodeReport::SETTINGS
                    .iter()
                    .map(|name| {
                        let value = match (*name, fake.setting(name)) {
                            ("recovery_min_apply_delay", "") => "0",
                            (_, value) => value,
                        };
                        (
                            (*name).to_owned(),
                            SettingValue { value: value.to_owned(), changeable: !fake.fixed },
                        )
                    })
                    .collect(),
            }
        };
        NodeReport {
            system_id: fake.system_id,
            version: 150_020,
            started_at: fake.started_at,
            wal_segment_size: 16 << 20,
            checkpointer: Some(fake.checkpointer),
            timeline: fake.timeline,
            role,
            latency: Duration::from_millis(1),
        }
    }

    pub(super) fn kinds(&self) -> BTreeSet<DecisionKind> {
        self.decisions.iter().map(|decision| decision.kind).collect()
    }
}
