//! Drives the pure controller: hands it events and the time, and carries out what it asks for.
//!
//! One task owns the controller. Probes and actions run as tasks of their own and report back over one bounded channel,
//! so no answer waits for another and the controller never waits at all.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use metako_core::NodeName;
use metako_core::cluster::{
    Action, ActionFailure, ActionId, ActionOutcome, Controller, Event, OperatorCommand, Plan, ServerLoss,
};
use metako_core::config::{ClusterSettings, Node};
use metako_core::plugin::panic_text;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::actions::{Order, Servers};
use super::config::ControlConfig;
use super::hooks;
use super::incidents::Recorder;
use super::journal::{Found, JournalError, JournalStore};
use super::persist::JournalWriter;
use super::probes::{ProbeAnswer, Probes};
use super::record::{Entry, History};
use crate::env::Env;
use crate::metrics::Figures;
use crate::shared::{Fence, ViewCell};

/// Answers that may wait for the controller; more than its nodes can have under way.
const REPORTS_MAX: usize = 256;
/// Commands that may wait.
const COMMANDS_MAX: usize = 16;
/// How long the data plane may take to cut its connections to a node.
const SEVER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stopping driver waits for its journal to reach the disk.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What a driver works with.
pub struct Parts {
    /// Settings and strategies.
    pub config: ControlConfig,
    /// The cluster's servers.
    pub servers: Arc<dyn Servers>,
    /// The journal.
    pub journal: Arc<dyn JournalStore>,
    /// Where decisions are written down.
    pub history: Arc<History>,
    /// Where what happens is counted.
    pub figures: Arc<Figures>,
    /// Where everything is written down.
    pub record: Recorder,
    /// Where the view is published.
    pub view: Arc<ViewCell>,
    /// The data plane's fence.
    pub fence: Arc<dyn Fence>,
    /// What the data plane finds out about servers.
    pub evidence: mpsc::Receiver<(NodeName, ServerLoss)>,
}

/// Why the control plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal cannot be kept.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal is another cluster's.
    #[error(
        "the journal in the state directory is that of cluster `{found}`, and the configuration is for `{configured}`: give \
         each cluster a `state_dir` of its own, or correct `cluster`"
    )]
    OtherCluster {
        /// Whose journal it is.
        found: String,
        /// Whose it should be.
        configured: String,
    },
}

/// The driver has ended: nothing can be asked of it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cluster controller has stopped")]
pub struct Stopped;

/// How the rest of the program talks to a [`Driver`].
#[derive(Clone)]
pub struct DriverHandle {
    commands: mpsc::Sender<Command>,
    history: Arc<History>,
}

enum Command {
    Reconfigure(Box<ControlConfig>),
    Operator(Wish),
    Settle,
    Stop(oneshot::Sender<()>),
}

/// What a person asks for.
struct Wish {
    command: OperatorCommand,
    dry_run: bool,
    reply: oneshot::Sender<Result<Accepted, String>>,
}

/// What the controller says to a person's wish before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// What will happen, or would.
    pub plan: Plan,
    /// The number of the last decision before it: those that follow tell what comes of it.
    pub after: u64,
}

/// Why a person's wish is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// The controller refuses it, for this reason.
    #[error("{0}")]
    Refused(String),
    /// Nobody is there to ask.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// What tasks report to the driver.
pub(super) enum Report {
    Probed(Box<ProbeAnswer>),
    Done(ActionId, Result<ActionOutcome, ActionFailure>),
}

impl DriverHandle {
    /// Replaces settings and strategies. Returns when the driver has been told.
    pub async fn reconfigure(&self, config: ControlConfig) -> Result<(), Stopped> {
        self.send(Command::Reconfigure(Box::new(config))).await
    }

    /// Asks the controller whether a person's wish can be followed, and has it begin unless it is a `dry_run`. Returns when
    /// it was decided; what comes of it shows in the view and in the decisions.
    pub async fn operator(&self, command: OperatorCommand, dry_run: bool) -> Result<Accepted, OperatorError> {
        let (reply, decided) = oneshot::channel();
        self.send(Command::Operator(Wish { command, dry_run, reply })).await?;
        decided.await.map_err(|_| Stopped)?.map_err(OperatorError::Refused)
    }

    /// Says that metako is about to end, so that nothing is begun that it could not see through.
    pub async fn settle(&self) {
        // One that has ended begins nothing.
        let _ = self.send(Command::Settle).await;
    }

    /// Ends the driver and returns when it has ended, its journal being on disk as far as the disk allows. An action that
    /// is under way on a server goes on there, and is asked for again at the next start.
    pub async fn stop(&self) {
        let (ended, wait) = oneshot::channel();
        if self.send(Command::Stop(ended)).await.is_ok() {
            // An error means that the driver ended otherwise.
            let _ = wait.await;
        }
    }

    /// Resolves when the driver has ended, be it by a panic. Cancellation-safe.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    /// The decisions after the one with this number, oldest first, as far as they are remembered.
    pub fn decisions_after(&self, after: u64) -> Vec<Entry> {
        self.history.after(after)
    }

    /// The last decisions, oldest first.
    pub fn recent_decisions(&self, count: usize) -> Vec<Entry> {
        self.history.recent(count)
    }

    async fn send(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).await.map_err(|_| Stopped)
    }
}

/// The controller and all that it moves.
pub struct Driver<E: Env> {
    env: E,
    controller: Controller,
    /// The configuration that nodes and probes are of: the one that the controller has in force.
    settings: Arc<ClusterSettings>,
    /// The configuration that was handed to the controller last, until it is in force.
    offered: Option<ControlConfig>,
    nodes: Vec<Arc<Node>>,
    probes: Probes<E>,
    servers: Arc<dyn Servers>,
    journal: JournalWriter,
    history: Arc<History>,
    figures: Arc<Figures>,
    record: Recorder,
    view: Arc<ViewCell>,
    fence: Arc<dyn Fence>,
    evidence: Option<mpsc::Receiver<(NodeName, ServerLoss)>>,
    commands: Option<mpsc::Receiver<Command>>,
    /// What a person asked for while the journal was on its way to disk.
    waiting: VecDeque<Wish>,
    reports: mpsc::Receiver<Report>,
    reporter: mpsc::Sender<Report>,
}

impl<E: Env> Driver<E> {
    /// Reads the journal and makes a driver, which does nothing before it [runs](Self::run).
    pub async fn start(env: E, parts: Parts) -> Result<(Self, DriverHandle), StartError> {
        let Parts { config, servers, journal, history, figures, record, view, fence, evidence } = parts;
        let found = match journal.load().await? {
            Found::Nothing => None,
            Found::Journal(found) => Some(*found),
            Found::Garbled { kept_as, problem } => {
                tracing::error!(
                    kept_as = %kept_as.display(),
                    %problem,
                    "the journal is garbled and counts as lost: as at a first start, writes open when all nodes answer and \
                     agree, or after `metako adopt --primary NAME`"
                );
                None
            }
        };
        if let Some(found) = &found
            && found.cluster != config.settings.name
        {
            return Err(StartError::OtherCluster {
                found: found.cluster.clone(),
                configured: config.settings.name.clone(),
            });
        }
        let settings = Arc::clone(&config.settings);
        let nodes: Vec<_> = settings.nodes.iter().cloned().map(Arc::new).collect();
        let controller = Controller::new(Arc::clone(&settings), config.policy.clone(), found, env.now());
        let (reporter, reports) = mpsc::channel(REPORTS_MAX);
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let mut probes = Probes::new(env.clone(), Arc::clone(&servers), reporter.clone());
        probes.reconfigure(config.probe, config.probe_name, &nodes);
        let handle = DriverHandle { commands: sender, history: Arc::clone(&history) };
        let driver = Self {
            journal: JournalWriter::spawn(&env, journal, reporter.clone()),
            env,
            controller,
            settings,
            offered: None,
            nodes,
            probes,
            servers,
            history,
            figures,
            record,
            view,
            fence,
            evidence: Some(evidence),
            commands: Some(commands),
            waiting: VecDeque::new(),
            reports,
            reporter,
        };
        Ok((driver, handle))
    }

    /// Drives the controller until [`DriverHandle::stop`]. A driver whose handles are all gone goes on.
    pub async fn run(mut self) {
        self.view.publish(self.controller.view());
        let mut event = Event::Timer;
        let mut actions = Vec::new();
        let stopped = loop {
            let mut answered = VecDeque::from([event]);
            while let Some(event) = answered.pop_front() {
                self.handle(event, &mut actions);
                for action in actions.drain(..) {
                    answered.extend(self.carry_out(action));
                }
            }
            match self.next().await {
                ControlFlow::Continue(next) => event = next,
                ControlFlow::Break(ended) => break ended,
            }
        };
        let Self { journal, .. } = self;
        if timeout(STOP_TIMEOUT, journal.finish()).await.is_err() {
            tracing::warn!("the journal did not reach the disk before the controller stopped");
        }
        // Whoever asked may have stopped waiting.
        let _ = stopped.send(());
    }

    async fn next(&mut self) -> ControlFlow<oneshot::Sender<()>, Event> {
        if !self.controller.is_writing()
            && let Some(wish) = self.waiting.pop_front()
        {
            return ControlFlow::Continue(self.consider(wish));
        }
        let due = self.controller.poll_timeout();
        let now = self.env.now();
        // One order, so that a simulated run repeats itself. The timer stands before evidence, which may come in floods.
        let event = tokio::select! {
            biased;
            command = receive(&mut self.commands) => match command {
                Command::Reconfigure(config) => self.offer(*config),
                Command::Operator(wish) => self.consider(wish),
                Command::Settle => Event::Stopping,
                Command::Stop(ended) => return ControlFlow::Break(ended),
            },
            Some(report) = self.reports.recv() => match report {
                Report::Done(id, outcome) => Event::Done { id, outcome },
                Report::Probed(answer) => self.probes.answered(*answer),
            },
            () = sleep_until(due.map(|due| due.since(now))) => Event::Timer,
            (node, loss) = receive(&mut self.evidence) => Event::ServerLost { node, loss },
        };
        ControlFlow::Continue(event)
    }

    /// What can be said only when the journal is on disk waits for that; too many wishes are refused instead.
    fn consider(&mut self, wish: Wish) -> Event {
        if self.controller.is_writing() && self.waiting.len() < COMMANDS_MAX {
            self.waiting.push_back(wish);
            return Event::Timer;
        }
        let Wish { command, dry_run, reply } = wish;
        let plan = self.controller.examine(&command);
        // Whoever asked may be gone: the wish stands all the same.
        let _ = reply.send(plan.map(|plan| Accepted { plan, after: self.history.last() }));
        if dry_run { Event::Timer } else { Event::Operator(command) }
    }

    fn offer(&mut self, config: ControlConfig) -> Event {
        let event =
            Event::Reconfigured { settings: Arc::clone(&config.settings), policy: config.policy.clone() };
        self.offered = Some(config);
        event
    }

    fn handle(&mut self, event: Event, actions: &mut Vec<Action>) {
        self.figures.told(&event);
        let (wall_clock, now) = (self.env.wall_clock(), self.env.now());
        self.record.handle(&mut self.controller, wall_clock, now, event, actions);
        // What it refuses, or keeps for later, must not take away nodes that it goes on to ask and to order about.
        if !Arc::ptr_eq(&self.settings, self.controller.settings())
            && let Some(config) =
                self.offered.take_if(|offered| Arc::ptr_eq(&offered.settings, self.controller.settings()))
        {
            self.reconfigure(config);
        }
    }

    fn reconfigure(&mut self, config: ControlConfig) {
        let ControlConfig { settings, policy: _, probe, probe_name } = config;
        self.settings = Arc::clone(&settings);
        self.nodes = settings
            .nodes
            .iter()
            .map(|node| {
                let same = self.nodes.iter().find(|known| ***known == *node);
                same.map_or_else(|| Arc::new(node.clone()), Arc::clone)
            })
            .collect();
        self.servers.retain(&self.nodes);
        self.probes.reconfigure(probe, probe_name, &self.nodes);
    }

    /// Begins an action. Gives the event that answers it if it cannot begin.
    fn carry_out(&mut self, action: Action) -> Option<Event> {
        self.figures.asked(self.env.now(), &action);
        let settings_change = |change| Order::Change { slots: Vec::new(), change };
        match action {
            Action::Probe { id, node, timeout } => self.probes.begin(id, node, timeout),
            Action::Persist { id, journal } => self.journal.write(id, journal),
            Action::Sever { id, node, epoch } => {
                let severed = self.fence.sever(&node, epoch);
                self.spawn(id, async move {
                    timeout(SEVER_TIMEOUT, severed).await.map(|()| ActionOutcome::Done).map_err(|_| {
                        ActionFailure::Unknown(format!(
                            "connections to {node} were not cut within {SEVER_TIMEOUT:?}"
                        ))
                    })
                });
                None
            }
            Action::Freeze { id, node, change }
            | Action::Unfreeze { id, node, change }
            | Action::Repoint { id, node, change, .. }
            | Action::SetSyncStandbys { id, node, change } => self.order(id, &node, settings_change(change)),
            Action::Prepare { id, node, slots, change } => {
                self.order(id, &node, Order::Change { slots, change })
            }
            Action::Promote { id, promotion } => {
                let node = promotion.node.clone();
                self.order(id, &node, Order::Promote(promotion))
            }
            Action::Verify { id, node, epoch } => self.order(id, &node, Order::Verify(epoch)),
            Action::Checkpoint { id, node } => self.order(id, &node, Order::Checkpoint),
            Action::DropSlots { id, node, slots } => self.order(id, &node, Order::DropSlots(slots)),
            Action::Drain { id, node, epoch, limit } => {
                let drained = self.fence.drain(&node, epoch);
                self.spawn(id, async move {
                    timeout(limit, drained).await.map(|()| ActionOutcome::Done).map_err(|_| {
                        ActionFailure::Failed(format!("some are still open on {node} after {limit:?}"))
                    })
                });
                None
            }
            Action::Hook { id, call } => match hooks::Run::new(&self.settings, call) {
                Ok(run) => {
                    self.spawn(id, run.run(self.env.clone()));
                    None
                }
                Err(failure) => Some(Event::Done { id, outcome: Err(failure) }),
            },
            Action::Publish { view } => {
                self.view.publish(view);
                None
            }
            Action::Record { decision } => {
                self.history.record(self.env.wall_clock(), decision);
                None
            }
        }
    }

    fn order(&self, id: ActionId, node: &NodeName, order: Order) -> Option<Event> {
        let Some(node) = self.nodes.iter().find(|known| known.name == *node).map(Arc::clone) else {
            let outcome = Err(ActionFailure::Failed(format!("{node} is no longer in the configuration")));
            return Some(Event::Done { id, outcome });
        };
        let servers = Arc::clone(&self.servers);
        self.spawn(id, async move { servers.carry_out(&node, order).await });
        None
    }

    /// Runs an action as a task that reports exactly once, even if it panics.
    fn spawn(
        &self,
        id: ActionId,
        work: impl Future<Output = Result<ActionOutcome, ActionFailure>> + Send + 'static,
    ) {
        let reporter = self.reporter.clone();
        self.env.spawn(async move {
            let outcome = AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
                Err(ActionFailure::Unknown(format!("metako panicked: {}", panic_text(&*panic))))
            });
            // The driver may have stopped meanwhile.
            let _ = reporter.send(Report::Done(id, outcome)).await;
        });
    }
}

/// The next message; never, once the channel has closed.
async fn receive<T>(channel: &mut Option<mpsc::Receiver<T>>) -> T {
    if let Some(receiver) = channel {
        if let Some(message) = receiver.recv().await {
            return message;
        }
        *channel = None;
    }
    std::future::pending().await
}

async fn sleep_until(due: Option<Duration>) {
    match due {
        Some(after) => tokio::time::sleep(after).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
