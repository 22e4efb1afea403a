//! The proxy's control plane: the shipped controller, driven by the queue, with its actions carried out on the model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metako_core::cluster::{
    Action, ActionFailure, ActionId, ActionOutcome, ClusterView, Controller, Event as ControllerEvent,
    HookCall, HookKind, OperatorCommand, ProbeId, ServerLoss,
};
use metako_core::config::{ClusterSettings, Split};
use metako_core::plugin::{HealthProbe, LoadBalancer, Policy, ProbeFailure};
use metako_core::{Epoch, NodeName, Tick};

use super::{ProxyEvent, World};
use crate::chance::Purpose;
use crate::log::LogEvent;
use crate::message::{Answer, Body, CallId, Place, Request};
use crate::model::probe_failed;
use crate::scenario::Span;
use crate::stage::Event;

/// Writing and syncing the journal.
const JOURNAL: Span = Span::micros(500, 5_000);
/// Closing sockets.
const SEVER: Duration = Duration::from_micros(200);
/// After this a connection to a host that is not reached is given up.
const NO_CONNECTION: Duration = Duration::from_secs(5);

/// What the proxy is started with.
pub(super) struct Recipe {
    pub(super) settings: Arc<ClusterSettings>,
    pub(super) policy: Policy,
    pub(super) probe: Arc<dyn HealthProbe>,
    pub(super) balancer: Arc<dyn LoadBalancer>,
    pub(super) split: Split,
}

/// A running proxy: the controller, its calls, and the view that the data plane reads.
pub(super) struct Proxy {
    controller: Controller,
    pub(super) view: Arc<ClusterView>,
    pub(super) probe: Arc<dyn HealthProbe>,
    calls: BTreeMap<CallId, Call>,
    drain: Option<Drain>,
    timer: Option<Tick>,
}

/// Connections to a node of epochs before this one are closed as soon as nothing is under way on them.
#[derive(Debug, Clone, Copy)]
struct Drain {
    id: ActionId,
    node: usize,
    epoch: Epoch,
}

/// A question to a node that is not answered yet.
struct Call {
    node: usize,
    /// The run of the server that the connection leads to; none if it leads to its host.
    server_run: Option<u32>,
    purpose: CallPurpose,
    sent: Tick,
    limit: Duration,
    arrived: bool,
    lingers: bool,
    /// The node has reported, and a commit is awaited.
    stalled: bool,
}

enum CallPurpose {
    Probe(ProbeId),
    Action(ActionId),
}

impl Proxy {
    /// Notes that a call reached its node; tells whether its answer is still awaited.
    pub(super) fn call_arrived(&mut self, call: CallId) -> bool {
        self.calls.get_mut(&call).map(|call| call.arrived = true).is_some()
    }
}

impl World {
    /// Starts the proxy from what is on its disk.
    pub(super) fn start_proxy(&mut self) {
        let Recipe { settings, policy, probe, .. } = &self.recipe;
        self.proxy_run += 1;
        let journal = self.journal.clone();
        self.stage.log(LogEvent::ProxyStarted { epoch: journal.as_ref().map(|journal| journal.epoch) });
        let controller = Controller::new(Arc::clone(settings), policy.clone(), journal, self.stage.now);
        if let Some(keeper) = &mut self.keeper {
            keeper.starts(self.stage.now, &controller);
        }
        let view = controller.view();
        let probe = Arc::clone(probe);
        self.proxy =
            Some(Proxy { controller, view, probe, calls: BTreeMap::new(), drain: None, timer: None });
        self.feed(ControllerEvent::Timer);
    }

    /// Kills the proxy: all but the synced journal is gone.
    pub(super) fn kill_proxy(&mut self) {
        if self.proxy.take().is_some() {
            self.proxy_run += 1;
            self.stage.log(LogEvent::ProxyKilled);
            self.clients_lose_proxy();
        }
    }

    /// Hands an event to the controller and carries out what it asks for.
    pub(super) fn feed(&mut self, event: ControllerEvent) {
        let Some(proxy) = &mut self.proxy else { return };
        let mut actions = Vec::new();
        match &mut self.keeper {
            Some(keeper) => keeper.handle(&mut proxy.controller, self.stage.now, event, &mut actions),
            None => proxy.controller.handle(self.stage.now, event, &mut actions),
        }
        for action in actions {
            self.carry_out(action);
        }
        let Some(proxy) = &mut self.proxy else { return };
        let due = proxy.controller.poll_timeout().map(|due| due.max(self.stage.now));
        if due != proxy.timer {
            proxy.timer = due;
            if let Some(due) = due {
                self.stage.queue.push(due, Event::Proxy { run: self.proxy_run, event: ProxyEvent::Timer });
            }
        }
    }

    pub(super) fn proxy_event(&mut self, event: ProxyEvent) {
        match event {
            ProxyEvent::Timer => {
                let due =
                    self.proxy.as_mut().and_then(|proxy| proxy.timer.take_if(|due| *due <= self.stage.now));
                if due.is_some() {
                    self.feed(ControllerEvent::Timer);
                }
            }
            ProxyEvent::DrainTimedOut(id) => self.drain_timed_out(id),
            ProxyEvent::CallTimedOut(call) => self.call_timed_out(call),
            ProxyEvent::JournalSynced { id, journal } => {
                self.stage.log(LogEvent::JournalSynced(journal.clone()));
                self.journal = Some(*journal);
                self.done(id, Ok(ActionOutcome::Done));
            }
            ProxyEvent::Done { id, outcome } => self.done(id, outcome),
        }
    }

    fn done(&mut self, id: ActionId, outcome: Result<ActionOutcome, ActionFailure>) {
        self.stage.log(LogEvent::Answered { id, outcome: outcome.clone() });
        self.feed(ControllerEvent::Done { id, outcome });
    }

    fn carry_out(&mut self, action: Action) {
        if !matches!(action, Action::Publish { .. } | Action::Record { .. }) {
            self.stage.log(LogEvent::Action(action.clone()));
        }
        let apply = |slots, change| Request::Apply { slots, change };
        match action {
            Action::Probe { id, node, timeout } => {
                self.call(node.as_str(), CallPurpose::Probe(id), Request::Probe, timeout);
            }
            Action::Persist { id, journal } => {
                let delay = self.stage.chance.duration(Purpose::Journal, 0, JOURNAL);
                self.proxy_after(delay, ProxyEvent::JournalSynced { id, journal: Box::new(journal) });
            }
            Action::Sever { id, node, epoch } => {
                self.sever(&node, epoch);
                self.proxy_after(SEVER, ProxyEvent::Done { id, outcome: Ok(ActionOutcome::Done) });
            }
            Action::Freeze { id, node, change }
            | Action::Unfreeze { id, node, change }
            | Action::Repoint { id, node, change, .. }
            | Action::SetSyncStandbys { id, node, change } => {
                self.act(node.as_str(), id, apply(Vec::new(), change));
            }
            Action::DropSlots { id, node, slots } => self.act(node.as_str(), id, Request::DropSlots(slots)),
            Action::Prepare { id, node, slots, change } => self.act(node.as_str(), id, apply(slots, change)),
            Action::Promote { id, promotion } => {
                let node = promotion.node.clone();
                self.act(node.as_str(), id, Request::Promote(promotion));
            }
            Action::Verify { id, node, epoch } => self.act(node.as_str(), id, Request::Verify(epoch)),
            Action::Checkpoint { id, node } => self.act(node.as_str(), id, Request::Checkpoint),
            Action::Drain { id, node, epoch, limit } => self.drain(id, &node, epoch, limit),
            Action::Hook { id, call } => self.run_hook(id, call),
            Action::Publish { view } => self.publish(view),
            Action::Record { decision } => self.stage.log(LogEvent::Decision(decision)),
        }
    }

    fn publish(&mut self, view: Arc<ClusterView>) {
        self.stage.log(LogEvent::View {
            version: view.version,
            epoch: view.epoch,
            phase: view.phase.clone(),
            writes: view.writes.clone(),
        });
        let primary = view.primary().and_then(|name| self.cluster.find(name.as_str()));
        if let Some(index) = primary.filter(|index| self.primaries.last() != Some(index)) {
            self.primaries.push(index);
        }
        if let Some(index) = primary.filter(|index| self.opened != Some((*index, view.epoch))) {
            self.opened = Some((index, view.epoch));
            let node = self.cluster.node(index);
            let (primary, epoch, holds) = (node.name.clone(), view.epoch, node.wal.writes().collect());
            self.stage.log(LogEvent::Opened { primary, epoch, holds });
        }
        if let Some(proxy) = &mut self.proxy {
            proxy.view = view;
        }
        self.release_held();
    }

    /// Lets what is under way on connections of older epochs come to its end.
    fn drain(&mut self, id: ActionId, node: &NodeName, epoch: Epoch, limit: Duration) {
        let (Some(node), Some(proxy)) = (self.cluster.find(node.as_str()), &mut self.proxy) else {
            return self.no_such_node(node);
        };
        proxy.drain = Some(Drain { id, node, epoch });
        self.proxy_after(limit, ProxyEvent::DrainTimedOut(id));
        self.drain_on();
    }

    /// Something came to its end: closes what is to be closed, and answers when that was the last.
    pub(super) fn drain_on(&mut self) {
        let Some(Drain { id, node, epoch }) = self.proxy.as_ref().and_then(|proxy| proxy.drain) else {
            return;
        };
        if self.close_idle(node, epoch) == 0 {
            if let Some(proxy) = &mut self.proxy {
                proxy.drain = None;
            }
            self.proxy_after(SEVER, ProxyEvent::Done { id, outcome: Ok(ActionOutcome::Done) });
        }
    }

    fn drain_timed_out(&mut self, id: ActionId) {
        let Some(proxy) = &mut self.proxy else { return };
        if let Some(drain) = proxy.drain.take_if(|drain| drain.id == id) {
            let open = self.close_idle(drain.node, drain.epoch);
            let outcome = Err(ActionFailure::Failed(format!("{open} transactions are still open")));
            self.done(id, outcome);
        }
    }

    fn no_such_node(&mut self, name: &NodeName) {
        self.stage.log(LogEvent::Broken(format!("the controller named `{name}`, which is no node")));
    }

    pub(super) fn proxy_after(&mut self, delay: Duration, event: ProxyEvent) {
        self.stage.after(delay, Event::Proxy { run: self.proxy_run, event });
    }

    fn act(&mut self, node: &str, id: ActionId, request: Request) {
        let limit = request.limit();
        self.call(node, CallPurpose::Action(id), request, limit);
    }

    fn call(&mut self, node: &str, purpose: CallPurpose, request: Request, limit: Duration) {
        let (Some(node), Some(proxy)) = (self.cluster.find(node), &mut self.proxy) else {
            return self.no_such_node(&NodeName::from(node));
        };
        self.calls_made += 1;
        let call = self.calls_made;
        let run = self.cluster.node(node).run;
        let lingers = self.stage.chance.between(Purpose::Linger, node as u64, 0, 1) == 1;
        let (sent, arrived, server_run) = (self.stage.now, false, Some(run));
        proxy
            .calls
            .insert(call, Call { node, server_run, purpose, sent, limit, arrived, lingers, stalled: false });
        let server_run = run;
        self.stage.send(Place::Proxy, Place::Node(node), Body::Call { call, server_run, lingers, request });
        self.proxy_after(limit, ProxyEvent::CallTimedOut(call));
    }

    /// A command that runs on a node's host, as over ssh.
    fn run_hook(&mut self, id: ActionId, hook: HookCall) {
        let hooks = &self.recipe.settings.hooks;
        let configured = match hook.kind {
            HookKind::Stop => &hooks.stop,
            HookKind::Rejoin => &hooks.rejoin,
        };
        let Some(limit) = configured.as_ref().map(|hook| hook.timeout) else {
            let problem = format!("hooks.{} is called, which is not configured", hook.kind.name());
            return self.stage.log(LogEvent::Broken(problem));
        };
        let (Some(node), Some(proxy)) = (self.cluster.find(hook.node.as_str()), &mut self.proxy) else {
            return self.no_such_node(&hook.node);
        };
        self.calls_made += 1;
        let (call, here, there) = (self.calls_made, Place::Proxy, Place::Node(node));
        let reached = !self.stage.is_cut(here, there) && !self.stage.is_cut(there, here);
        let limit = if reached { limit } else { NO_CONNECTION.min(limit) };
        let (sent, server_run, purpose) = (self.stage.now, None, CallPurpose::Action(id));
        let (arrived, lingers) = (true, false);
        proxy
            .calls
            .insert(call, Call { node, server_run, purpose, sent, limit, arrived, lingers, stalled: false });
        if reached {
            self.begin_hook(call, node, hook);
        }
        self.proxy_after(limit, ProxyEvent::CallTimedOut(call));
    }

    /// Whether the proxy still waits for the answer to a call.
    pub(super) fn awaits(&self, call: CallId) -> bool {
        self.proxy.as_ref().is_some_and(|proxy| proxy.calls.contains_key(&call))
    }

    /// What a person asks for.
    pub(super) fn ask(&mut self, command: OperatorCommand) {
        let refusal = match &self.proxy {
            Some(proxy) => proxy.controller.examine(&command).err(),
            None => Some("metako does not run".to_owned()),
        };
        self.stage.log(LogEvent::Asked { command: command.clone(), refusal });
        self.feed(ControllerEvent::Operator(command));
    }

    pub(super) fn call_answered(&mut self, call: CallId, answer: Answer) {
        if let Answer::Probe(result) = &answer
            && matches!(**result, Err(ProbeFailure::WriteStalled(_)))
        {
            if let Some(call) = self.proxy.as_mut().and_then(|proxy| proxy.calls.get_mut(&call)) {
                call.stalled = true;
            }
            return;
        }
        let Some(call) = self.proxy.as_mut().and_then(|proxy| proxy.calls.remove(&call)) else { return };
        self.call_ended(&call, answer);
    }

    fn call_ended(&mut self, call: &Call, answer: Answer) {
        match call.purpose {
            CallPurpose::Probe(id) => {
                let mut result = probe_failed(answer);
                if let Ok(report) = &mut result {
                    report.latency = self.stage.now.since(call.sent);
                }
                self.probed(id, call, result);
            }
            CallPurpose::Action(id) => {
                let failed = |problem: &str| Err(ActionFailure::Failed(problem.to_owned()));
                let outcome = match answer {
                    Answer::Action(outcome) => outcome,
                    Answer::Refused => failed("connection refused"),
                    Answer::Starting => failed("the database system is starting up"),
                    Answer::ShuttingDown => failed("the database system is shutting down"),
                    Answer::Reset => Err(ActionFailure::Unknown("connection reset".to_owned())),
                    Answer::Probe(_) => failed("a report came in place of an answer"),
                };
                self.done(id, outcome);
            }
        }
    }

    fn probed(
        &mut self,
        id: ProbeId,
        call: &Call,
        result: Result<metako_core::plugin::NodeReport, ProbeFailure>,
    ) {
        let node = self.cluster.node(call.node).name.clone();
        self.stage.log(LogEvent::Probed { id, node: node.clone(), result: result.clone() });
        self.feed(ControllerEvent::Probed { id, node, sent: call.sent, result });
    }

    fn call_timed_out(&mut self, call: CallId) {
        let Some(call) = self.proxy.as_mut().and_then(|proxy| proxy.calls.remove(&call)) else { return };
        match call.purpose {
            CallPurpose::Probe(id) if call.stalled => {
                self.probed(id, &call, Err(ProbeFailure::WriteStalled(call.limit)));
            }
            CallPurpose::Probe(id) => self.probed(id, &call, Err(ProbeFailure::TimedOut(call.limit))),
            // What lies in the buffer of a standing connection may still be carried out.
            CallPurpose::Action(id) if call.arrived || call.lingers => {
                let problem = format!("no answer within {}s", call.limit.as_secs());
                self.done(id, Err(ActionFailure::Unknown(problem)));
            }
            CallPurpose::Action(id) => {
                let problem = format!("no connection within {}s", call.limit.as_secs());
                self.done(id, Err(ActionFailure::Failed(problem)));
            }
        }
    }

    /// The connections to that run of a server are closed by its kernel.
    pub(super) fn calls_reset(&mut self, index: usize, server_run: u32) {
        let Some(proxy) = &mut self.proxy else { return };
        let lost = |call: &Call| call.node == index && call.server_run == Some(server_run);
        let lost: Vec<CallId> =
            proxy.calls.iter().filter(|(_, call)| lost(call)).map(|(id, _)| *id).collect();
        for call in lost {
            self.call_answered(call, Answer::Reset);
        }
    }

    /// The data plane tells the controller that it lost a server connection.
    pub(super) fn report_loss(&mut self, index: usize, loss: ServerLoss) {
        let node = self.cluster.node(index).name.clone();
        self.stage.log(LogEvent::ServerLost { node: node.clone(), loss });
        self.feed(ControllerEvent::ServerLost { node, loss });
    }
}
