//! The controller: takes events, dispatches to the phase it is in, and hands out actions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::failover::Failover;
use super::node::{Moment, NodeState};
use super::rejoin::Rejoins;
use super::restart::Gate;
use super::survival::{Survey, Survival};
use super::switchover::{Drain, Planned};
use super::sync::SyncStep;
use super::work::{Job, Lane, Task, Work};
use super::{
    Action, ActionFailure, ActionId, ActionOutcome, ClusterView, Decision, DecisionKind, Event, Journal,
    Phase, SettingsChange, SyncRule,
};
use crate::config::{ClusterSettings, Node};
use crate::plugin::{NodeReport, Policy, ServerRun};
use crate::{Epoch, NodeName, Tick};

/// How long after a success a settings change is not repeated: until then it shows in a report.
const SETTLE: Duration = Duration::from_secs(2);
/// How long a promotion that was accepted is awaited before it is asked for again.
const PROMOTE_AGAIN: Duration = Duration::from_secs(5);
/// How long after a promotion was declined it is asked for again.
const DECLINED_AGAIN: Duration = Duration::from_millis(500);
/// Transitions in one call: more would be a cycle, and the next event goes on anyway.
const STEPS_MAX: usize = 16;

/// The cluster controller. See the [module](super) for how it is driven. A copy that was written down and read again goes on as
/// this one does, but for secrets, which are not written down.
#[derive(Clone, Serialize, Deserialize)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about the primary and the process, not one state"
)]
pub struct Controller {
    pub(super) settings: Arc<ClusterSettings>,
    pub(super) policy: Policy,
    /// A new configuration that waits for the end of a failover.
    pub(super) waiting: Option<(Arc<ClusterSettings>, Policy)>,
    /// The journal as it is on disk.
    pub(super) journal: Option<Journal>,
    /// The journal that is to be on disk before anything else happens.
    pub(super) writing: Option<Writing>,
    /// The epoch: that of the journal, or the next while that is being written.
    pub(super) epoch: Epoch,
    pub(super) phase: Phase,
    pub(super) nodes: BTreeMap<NodeName, NodeState>,
    pub(super) work: Work,
    /// The data plane lost a connection to the primary then, and the primary has not answered well since.
    pub(super) looking: Option<Moment>,
    /// Only probes after it count for the suspicion that is on.
    pub(super) suspected: Moment,
    /// When metako last changed settings of a node: reports from before say nothing of them.
    pub(super) touched: BTreeMap<NodeName, Moment>,
    /// The primary whose settings as a standby were reset, and in which epoch.
    pub(super) primary_reset: Option<(Epoch, NodeName)>,
    /// Former primaries whose connections are to be cut before an adopted one serves.
    pub(super) replaced: BTreeSet<NodeName>,
    /// Where others promote: the primary was away, so that somebody may have been promoted meanwhile.
    pub(super) away: bool,
    /// Where others promote: the primary has less WAL than it had, so that only a person can say that it is the one.
    pub(super) restored: bool,
    /// When the primary that was away was first seen again: what others said before does not count.
    pub(super) returned: Option<Moment>,
    /// Whether the primary has answered as such since the start.
    pub(super) confirmed: bool,
    /// Why the primary's failure leads to no failover, when it should: writes are held.
    pub(super) stuck: Option<String>,
    pub(super) failover: Option<Failover>,
    /// A switchover that was asked for and has not begun.
    pub(super) planned: Option<Planned>,
    /// A person asked for a failover, to this node if one was named: what was asked of the nodes since then decides.
    pub(super) forced: Option<Forced>,
    /// metako is about to end.
    pub(super) stopping: bool,
    /// Why nothing may go to the primary until it has answered well again, or is replaced: it may be stopping.
    pub(super) doubted: Option<String>,
    /// Nodes that are standbys again, from which slots of others are to be removed.
    pub(super) littered: BTreeSet<NodeName>,
    /// Where a switchover's drain stands.
    pub(super) drain: Option<Drain>,
    /// What came of calls of `hooks.rejoin`.
    pub(super) rejoins: Rejoins,
    /// In this epoch the primary has written a checkpoint.
    pub(super) checkpointed: Option<Epoch>,
    /// When promotions began, for the budget.
    pub(super) promotions: VecDeque<Tick>,
    /// Slots that are known to be on the present primary.
    pub(super) slots: BTreeSet<String>,
    /// The slots that the Prepare in flight creates: those that were sent, whatever is known since.
    pub(super) preparing: BTreeSet<String>,
    pub(super) sync_step: Option<SyncStep>,
    /// Why clients are not sent to the primary, which was started anew.
    #[serde(default)]
    pub(super) gate: Option<Gate>,
    /// The last run of a primary's server that clients were sent to, whether that is in the journal already or not.
    #[serde(default)]
    pub(super) passed: Option<ServerRun>,
    /// The rule that the setting in flight is of.
    pub(super) setting_sync: Option<SyncRule>,
    /// When metako's value was last taken from the primary's `synchronous_standby_names`.
    pub(super) sync_reset: Option<Moment>,
    /// Nodes that show as primaries on a later timeline, and when that was first seen.
    pub(super) claims: BTreeMap<NodeName, Moment>,
    /// Since when the primary is known to be well; replicas are not stale before.
    pub(super) well_since: Tick,
    pub(super) now: Tick,
    pub(super) wake: Option<Tick>,
    pub(super) next_probe: u64,
    /// How many failures could be survived, and from what that followed.
    #[serde(skip)]
    pub(super) surveyed: Option<(Survey, Survival)>,
    view: Arc<ClusterView>,
    #[serde(skip)]
    out: Vec<Action>,
    #[serde(with = "crate::written::pairs")]
    said: BTreeMap<(DecisionKind, Option<NodeName>), String>,
}

/// A failover that a person asks for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Forced {
    /// To whom, if somebody was named.
    pub(super) to: Option<NodeName>,
    /// Whatever the most advanced standby lacks.
    #[serde(default)]
    pub(super) allow_data_loss: bool,
}

/// A journal on its way to disk, and what follows when it is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Writing {
    pub(super) journal: Journal,
    pub(super) then: Then,
    issued: Option<ActionId>,
}

/// What follows a durable journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Then {
    /// Go on in the same phase.
    GoOn,
    /// The journal's primary serves.
    Serve,
    /// The journal's primary serves when nothing can come from the former one any more.
    Adopt,
    /// The journal's primary is under suspicion again.
    Doubt,
    /// The journal's candidate is promoted.
    Promote,
    /// The switchover that was asked for begins.
    Drain,
    /// Automatic decisions go on.
    Resume,
}

impl Controller {
    /// A controller of a cluster, with the journal that was found, if one was.
    pub fn new(settings: Arc<ClusterSettings>, policy: Policy, journal: Option<Journal>, now: Tick) -> Self {
        let mut controller = Self {
            nodes: settings.nodes.iter().map(|node| (node.name.clone(), NodeState::default())).collect(),
            settings,
            policy,
            waiting: None,
            epoch: journal.as_ref().map_or(Epoch(0), |journal| journal.epoch),
            journal,
            writing: None,
            phase: Phase::Discovering { reason: "no node has answered yet".to_owned() },
            work: Work::default(),
            looking: None,
            suspected: Moment(0),
            touched: BTreeMap::new(),
            primary_reset: None,
            replaced: BTreeSet::new(),
            away: false,
            restored: false,
            returned: None,
            sync_reset: None,
            confirmed: false,
            stuck: None,
            failover: None,
            planned: None,
            forced: None,
            stopping: false,
            doubted: None,
            littered: BTreeSet::new(),
            drain: None,
            rejoins: Rejoins::default(),
            checkpointed: None,
            promotions: VecDeque::new(),
            slots: BTreeSet::new(),
            preparing: BTreeSet::new(),
            sync_step: None,
            gate: None,
            passed: None,
            setting_sync: None,
            claims: BTreeMap::new(),
            well_since: now,
            now,
            wake: None,
            next_probe: 0,
            surveyed: None,
            view: Arc::new(ClusterView::empty("no node has answered yet")),
            out: Vec::new(),
            said: BTreeMap::new(),
        };
        controller.resume();
        controller.view = Arc::new(controller.build_view());
        controller
    }

    /// Takes one event at the time `now` and appends what is to be done to `out`, in the order in which it is to begin.
    pub fn handle(&mut self, now: Tick, event: Event, out: &mut Vec<Action>) {
        self.now = self.now.max(now);
        self.wake = None;
        match event {
            Event::Timer => {}
            Event::Probed { id, node, sent: _, result } => self.on_probed(id, &node, result),
            Event::ServerLost { node, loss: _ } => self.on_server_lost(&node),
            Event::Done { id, outcome } => self.on_done(id, outcome),
            Event::Reconfigured { settings, policy } => self.on_reconfigured(settings, policy),
            Event::Operator(command) => self.on_operator(command),
            Event::Stopping => self.on_stopping(),
        }
        self.expire_probes();
        self.apply_settings_if_settled();
        self.advance();
        self.schedule_probes();
        self.publish(out);
        out.append(&mut self.out);
    }

    /// When [`Event::Timer`] is due, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Tick> {
        [self.next_probe_due(), self.work.next_wake(self.now), self.wake].into_iter().flatten().min()
    }

    /// The view that was published last.
    pub fn view(&self) -> Arc<ClusterView> {
        Arc::clone(&self.view)
    }

    /// Where the controller is.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The configuration in force: a new one may be refused, or wait until a failover is over.
    pub fn settings(&self) -> &Arc<ClusterSettings> {
        &self.settings
    }

    /// Whether the journal is on its way to disk: until then nothing else begins, and [`Self::examine`] refuses.
    pub fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// The journal as it is on disk.
    pub fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref()
    }

    fn advance(&mut self) {
        for _ in 0..STEPS_MAX {
            if self.writing.is_some() {
                self.write();
                return;
            }
            let before = self.phase.name();
            match &self.phase {
                Phase::Discovering { .. } => self.step_discovering(),
                Phase::Steady { .. } => self.step_steady(),
                Phase::Suspect { .. } => self.step_suspect(),
                Phase::Fencing { .. } => self.step_fencing(),
                Phase::Freezing { .. } => self.step_freezing(),
                Phase::Promoting { .. } => self.step_promoting(),
                Phase::Verifying { .. } => self.step_verifying(),
                Phase::ManualNeeded { .. } => self.step_manual(),
                Phase::Draining { .. } => self.step_draining(),
                Phase::Stopping { .. } => self.step_stopping(),
                Phase::Paused { .. } => self.step_paused(),
            }
            if self.writing.is_none() && self.phase.name() == before {
                return;
            }
        }
    }

    /// Writes `journal` and goes on with `then` when it is on disk.
    pub(super) fn persist(&mut self, journal: Journal, then: Then) {
        self.writing = Some(Writing { journal, then, issued: None });
    }

    fn write(&mut self) {
        let Some(id) = self.work.start(self.now, Lane::Journal, Task::Persist, self.epoch) else { return };
        if let Some(writing) = &mut self.writing {
            writing.issued = Some(id);
            self.out.push(Action::Persist { id, journal: writing.journal.clone() });
        }
    }

    fn on_written(&mut self, id: ActionId) {
        let Some(writing) = self.writing.take_if(|writing| writing.issued == Some(id)) else { return };
        assert!(
            writing.journal.epoch >= self.epoch,
            "the epoch went back: {} to {}",
            self.epoch,
            writing.journal.epoch
        );
        self.epoch = writing.journal.epoch;
        self.journal = Some(writing.journal);
        match writing.then {
            Then::GoOn => {}
            Then::Serve => self.serve(),
            Then::Adopt => self.cut_replaced(),
            Then::Doubt => self.doubt(),
            Then::Promote => self.promote(),
            Then::Drain => self.begin_drain(),
            Then::Resume => self.resumed(),
        }
    }

    fn on_done(&mut self, id: ActionId, outcome: Result<ActionOutcome, ActionFailure>) {
        let Some(job) = self.work.finish(id) else { return };
        let node = match &job.lane {
            Lane::Node(node) | Lane::Checkpoint(node) | Lane::Host(node) => Some(node.clone()),
            Lane::Journal | Lane::Sever | Lane::Drain => None,
        };
        if let Some(node) = &node {
            // Whatever came of it and whichever epoch it was for: what the node said before is out of date.
            self.touched.insert(node.clone(), self.moment());
            self.probe_soon(node);
        }
        match outcome {
            Ok(outcome) => {
                let settle = match job.task {
                    Task::Unfreeze | Task::Repoint | Task::SetSync => SETTLE,
                    Task::Promote if outcome == ActionOutcome::Declined => DECLINED_AGAIN,
                    Task::Promote => PROMOTE_AGAIN,
                    Task::Rejoin => super::rejoin::SETTLE,
                    _ => Duration::ZERO,
                };
                self.work.done(self.now, &job, settle);
                if job.task == Task::Persist {
                    self.on_written(id);
                } else if job.epoch == self.epoch {
                    self.on_effect(&job, node.as_ref(), outcome);
                }
            }
            Err(failure) => {
                self.work.failed(self.now, &job);
                if self.on_failed(&job, &failure) {
                    return;
                }
                let whom = node.as_ref().map_or_else(String::new, |node| format!(" on {node}"));
                let reason = format!(
                    "{}{whom}: {failure}; it will be tried again while it is needed",
                    job.task.name()
                );
                self.record(DecisionKind::Retried, node.as_ref(), reason);
                if let (Task::Repoint, Some(node), true) = (job.task, &node, job.epoch == self.epoch)
                    && let Some(failover) = &mut self.failover
                {
                    failover.repointed.insert(node.clone());
                }
            }
        }
    }

    fn on_effect(&mut self, job: &Job, node: Option<&NodeName>, outcome: ActionOutcome) {
        match (job.task, node) {
            (Task::Promote, Some(node)) if outcome == ActionOutcome::Declined => {
                let reason = format!(
                    "{node} declined the promotion: it did not carry the token of epoch {} or its settings are locked; asked again soon",
                    self.epoch
                );
                self.record(DecisionKind::Retried, Some(node), reason);
            }
            (Task::Unfreeze, Some(node)) if self.phase_primary() == Some(node) => {
                self.primary_reset = Some((self.epoch, node.clone()));
            }
            (Task::SetSync, _) => self.on_sync_set(),
            (Task::Sever, _) if !self.replaced.is_empty() => {
                self.replaced.pop_first();
            }
            (Task::Checkpoint, _) => self.checkpointed = Some(self.epoch),
            (Task::Drain, _) => self.on_drained(),
            (Task::Stop, _) => self.on_stopped(),
            (Task::Rejoin, Some(node)) => {
                self.count_rejoin(node);
            }
            (Task::DropSlots, Some(node)) => {
                self.littered.remove(node);
            }
            (task, node) => {
                if task == Task::Prepare {
                    self.slots.append(&mut self.preparing);
                }
                let (now, moment) = (self.now, self.moment());
                if let Some(failover) = &mut self.failover {
                    failover.on_effect(task, node, now, moment);
                }
            }
        }
    }

    /// Starts a task on a node if it may run now, and adds the action that `make` makes of the id.
    pub(super) fn start(&mut self, node: &NodeName, task: Task, make: impl FnOnce(ActionId) -> Action) {
        self.start_in(Lane::Node(node.clone()), task, make);
    }

    pub(super) fn start_in(&mut self, lane: Lane, task: Task, make: impl FnOnce(ActionId) -> Action) {
        if let Some(id) = self.work.start(self.now, lane, task, self.epoch) {
            self.out.push(make(id));
        }
    }

    /// Asks for the slots of all who are to follow `upstream`, and for a change of its settings.
    pub(super) fn start_prepare(&mut self, upstream: &NodeName, change: SettingsChange) {
        let slots = self.slots_for(upstream);
        let lane = Lane::Node(upstream.clone());
        if let Some(id) = self.work.start(self.now, lane, Task::Prepare, self.epoch) {
            self.preparing = slots.iter().cloned().collect();
            self.out.push(Action::Prepare { id, node: upstream.clone(), slots, change });
        }
    }

    pub(super) fn emit(&mut self, action: Action) {
        self.out.push(action);
    }

    /// Writes a decision down.
    pub(super) fn record(&mut self, kind: DecisionKind, node: Option<&NodeName>, reason: String) {
        let decision = Decision { kind, node: node.cloned(), epoch: self.epoch, reason };
        self.out.push(Action::Record { decision });
    }

    /// Writes a decision down, unless the last of this kind about this node said the same.
    pub(super) fn record_once(&mut self, kind: DecisionKind, node: Option<&NodeName>, reason: &str) {
        let key = (kind, node.cloned());
        if self.said.get(&key).is_none_or(|said| said != reason) {
            self.said.insert(key, reason.to_owned());
            self.record(kind, node, reason.to_owned());
        }
    }

    /// What was said of this kind may be said again.
    pub(super) fn forget_said(&mut self, kind: DecisionKind) {
        self.said.retain(|(said, _), _| *said != kind);
    }

    /// Probes asked for from now on are after this.
    pub(super) fn moment(&self) -> Moment {
        Moment(self.next_probe)
    }

    pub(super) fn answered_after(&self, node: &NodeName, moment: Moment) -> bool {
        self.nodes.get(node).is_some_and(|state| state.answered_after(moment))
    }

    /// The node is asked without waiting for the interval, unless a probe is under way.
    pub(super) fn probe_soon(&mut self, node: &NodeName) {
        if let Some(state) = self.nodes.get_mut(node) {
            state.asked = None;
        }
    }

    pub(super) fn wake_at(&mut self, at: Tick) {
        if at > self.now {
            self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
        }
    }

    pub(super) fn node(&self, name: &NodeName) -> Option<&Node> {
        self.settings.node(name.as_str())
    }

    /// The report of a node, if its last answer is one.
    pub(super) fn report(&self, name: &NodeName) -> Option<&NodeReport> {
        self.nodes.get(name)?.current()
    }

    /// The names of all nodes but one, in the order of the configuration.
    pub(super) fn all_but(&self, name: &NodeName) -> Vec<NodeName> {
        self.settings.nodes.iter().map(|node| node.name.clone()).filter(|other| other != name).collect()
    }

    fn publish(&mut self, out: &mut Vec<Action>) {
        self.look_ahead();
        let mut view = self.build_view();
        view.version = self.view.version;
        if view == *self.view {
            return;
        }
        view.version += 1;
        self.record_changes(&Arc::clone(&self.view), &view);
        self.view = Arc::new(view);
        out.push(Action::Publish { view: Arc::clone(&self.view) });
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("now", &self.now)
            .field("epoch", &self.epoch)
            .field("phase", &self.phase)
            .field("journal", &self.journal)
            .field("writing", &self.writing)
            .field("failover", &self.failover)
            .field("planned", &self.planned)
            .field("stuck", &self.stuck)
            .field("confirmed", &self.confirmed)
            .field("looking", &self.looking)
            .field("promotions", &self.promotions)
            .field("sync_step", &self.sync_step)
            .field("gate", &self.gate)
            .field("passed", &self.passed)
            .field("slots", &self.slots)
            .field("work", &self.work)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}
