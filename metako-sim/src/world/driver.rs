//! The proxy's control plane: the shipped controller, driven by the queue, with its actions carried out on the model.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metako_core::Tick;
use metako_core::cluster::{
    Action, ActionFailure, ActionId, ActionOutcome, ClusterView, Controller, Event as ControllerEvent,
    ProbeId, ServerLoss,
};
use metako_core::config::{ClusterSettings, Split};
use metako_core::plugin::{FailoverPolicy, HealthProbe, LoadBalancer, ProbeFailure};

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

/// What the proxy is started with.
pub(super) struct Recipe {
    pub(super) settings: Arc<ClusterSettings>,
    pub(super) policy: Arc<dyn FailoverPolicy>,
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
    timer: Option<Tick>,
}

/// A question to a node that is not answered yet.
struct Call {
    node: usize,
    server_run: u32,
    purpose: CallPurpose,
    sent: Tick,
    limit: Duration,
    arrived: bool,
    lingers: bool,
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
        let controller = Controller::new(Arc::clone(settings), Arc::clone(policy), journal, self.stage.now);
        let view = controller.view();
        let probe = Arc::clone(probe);
        self.proxy = Some(Proxy { controller, view, probe, calls: BTreeMap::new(), timer: None });
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
        proxy.controller.handle(self.stage.now, event, &mut actions);
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
            Action::Prepare { id, node, slots, change } => self.act(node.as_str(), id, apply(slots, change)),
            Action::Promote { id, promotion } => {
                let node = promotion.node.clone();
                self.act(node.as_str(), id, Request::Promote(promotion));
            }
            Action::Verify { id, node, epoch } => self.act(node.as_str(), id, Request::Verify(epoch)),
            Action::Hook { id, .. } => {
                let outcome = Err(ActionFailure::Failed("hooks are not simulated yet".to_owned()));
                self.proxy_after(Duration::ZERO, ProxyEvent::Done { id, outcome });
            }
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
        if let Some(proxy) = &mut self.proxy {
            proxy.view = view;
        }
        self.release_held();
    }

    fn proxy_after(&mut self, delay: Duration, event: ProxyEvent) {
        self.stage.after(delay, Event::Proxy { run: self.proxy_run, event });
    }

    fn act(&mut self, node: &str, id: ActionId, request: Request) {
        let limit = request.limit();
        self.call(node, CallPurpose::Action(id), request, limit);
    }

    fn call(&mut self, node: &str, purpose: CallPurpose, request: Request, limit: Duration) {
        let (Some(node), Some(proxy)) = (self.cluster.find(node), &mut self.proxy) else {
            return self
                .stage
                .log(LogEvent::Broken(format!("the controller named `{node}`, which is no node")));
        };
        self.calls_made += 1;
        let call = self.calls_made;
        let server_run = self.cluster.node(node).run;
        let lingers = self.stage.chance.between(Purpose::Linger, node as u64, 0, 1) == 1;
        let (sent, arrived) = (self.stage.now, false);
        proxy.calls.insert(call, Call { node, server_run, purpose, sent, limit, arrived, lingers });
        self.stage.send(Place::Proxy, Place::Node(node), Body::Call { call, server_run, lingers, request });
        self.proxy_after(limit, ProxyEvent::CallTimedOut(call));
    }

    pub(super) fn call_answered(&mut self, call: CallId, answer: Answer) {
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
        let lost = |call: &Call| call.node == index && call.server_run == server_run;
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
