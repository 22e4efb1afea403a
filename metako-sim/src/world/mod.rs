//! The simulated world: it takes events from the queue in the order of time and lets nodes, proxy, clients and faults
//! act on them. There is no runtime, no thread and no clock: time is the queue's.

mod clients;
mod driver;
mod faults;
mod hooks;
mod setup;

use metako_core::cluster::{ActionFailure, ActionId, ActionOutcome, Journal};
use metako_core::{Epoch, NodeName, Tick};

use crate::executor::run_ready;
use crate::log::{EndNode, EndState, Log, LogEvent};
use crate::message::{Answer, Body, CallId, Message, Place, Request};
use crate::model::{Access, Cluster, Node, NodeEvent};
use crate::record::Keeper;
use crate::scenario::FaultSpec;
use crate::stage::{Event, Stage};

pub(crate) use clients::ClientTimer;
use clients::Clients;
use driver::{Proxy, Recipe};
pub use setup::SetupError;
pub(crate) use setup::{first_primary, synchronous_standby_names};

/// More events than this at one point in time mean that something calls itself again and again.
const EVENTS_AT_ONCE_MAX: u32 = 50_000;

/// Something that happens within the proxy, at a time of its own.
#[derive(Debug)]
pub(crate) enum ProxyEvent {
    /// The controller asked to be called.
    Timer,
    /// A call was not answered in time.
    CallTimedOut(CallId),
    /// Transactions were waited for long enough.
    DrainTimedOut(ActionId),
    /// The journal is on disk.
    JournalSynced { id: ActionId, journal: Box<Journal> },
    /// An action within the proxy is done.
    Done { id: ActionId, outcome: Result<ActionOutcome, ActionFailure> },
}

/// Everything.
pub(crate) struct World {
    stage: Stage,
    cluster: Cluster,
    /// How to start the proxy.
    recipe: Recipe,
    /// The proxy, while it lives.
    proxy: Option<Proxy>,
    proxy_run: u32,
    calls_made: CallId,
    /// Hooks that run on hosts, by the call that began them.
    hooks: hooks::Hooks,
    /// What the proxy finds on its disk when it starts.
    journal: Option<Journal>,
    clients: Clients,
    faults: Vec<FaultSpec>,
    /// What is to be undone when a fault ends.
    undo: Vec<Option<faults::Undo>>,
    /// Nodes that writes were opened to, in order; at first the primary that the scenario begins with.
    primaries: Vec<usize>,
    /// Where writes were opened last, and in which epoch.
    opened: Option<(usize, Epoch)>,
    end: Tick,
    keeper: Option<Keeper>,
}

impl World {
    /// Has the incident record kept, or not.
    pub(crate) fn keeping(mut self, keeper: Option<Keeper>) -> Self {
        self.keeper = keeper;
        self
    }

    /// Runs to the end and gives the log, and the record if one was kept.
    pub(crate) fn run(mut self) -> (Log, Option<Keeper>) {
        self.cluster.begin(&mut self.stage);
        self.start_proxy();
        self.begin_clients();
        for (index, fault) in self.faults.iter().enumerate() {
            self.stage.queue.push(Tick::ZERO + fault.at.0, Event::FaultBegins(index));
            if let Some(lasting) = fault.lasting {
                self.stage.queue.push(Tick::ZERO + fault.at.0 + lasting.0, Event::FaultEnds(index));
            }
        }
        let mut at_once = 0;
        while let Some((at, event)) = self.stage.queue.pop() {
            if at > self.end {
                break;
            }
            at_once = if at == self.stage.now { at_once + 1 } else { 0 };
            if at_once > EVENTS_AT_ONCE_MAX {
                self.stage
                    .log(LogEvent::Broken(format!("more than {EVENTS_AT_ONCE_MAX} events at one time")));
                break;
            }
            self.stage.now = at;
            self.dispatch(event);
        }
        self.stage.now = self.end;
        let end = self.end_state();
        self.stage.log(LogEvent::End(Box::new(end)));
        (self.stage.log, self.keeper)
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Arrive(message) => {
                if let Some(message) = self.stage.admit(message) {
                    self.arrive(message);
                }
            }
            Event::Node { node, run, event } => self.node_event(node, run, event),
            Event::Proxy { run, event } if run == self.proxy_run => self.proxy_event(event),
            Event::Proxy { .. } => {}
            Event::Hook { call } => self.hook_goes_on(call),
            Event::Client { client, timer } => self.client_timer(client, timer),
            Event::FaultBegins(index) => self.fault_begins(index),
            Event::FaultEnds(index) => self.fault_ends(index),
        }
    }

    fn node_event(&mut self, index: usize, run: u32, event: NodeEvent) {
        let node = self.cluster.node(index);
        if node.run != run {
            return;
        }
        if node.frozen {
            self.cluster.keep(index, Event::Node { node: index, run, event });
        } else {
            self.cluster.handle(&mut self.stage, index, event);
        }
    }

    fn arrive(&mut self, message: Message) {
        let Place::Node(index) = message.to else {
            return self.arrive_at_proxy(message);
        };
        if self.cluster.node(index).frozen {
            return self.cluster.keep(index, Event::Arrive(message));
        }
        let Some(message) = self.cluster.turn_away(&mut self.stage, index, message) else { return };
        match message.body {
            Body::Call { call, lingers, request, .. } => {
                let awaited = self.proxy.as_mut().is_some_and(|proxy| proxy.call_arrived(call));
                if !awaited && !lingers {
                    return;
                }
                if matches!(request, Request::Probe) {
                    return self.probe(index, call);
                }
                let body = Body::Call { call, server_run: self.cluster.node(index).run, lingers, request };
                self.cluster.receive(&mut self.stage, index, message.from, body);
            }
            body => {
                if let Body::Query { ticket, write: false, .. } = &body {
                    self.note_read(ticket.client, index);
                }
                self.cluster.receive(&mut self.stage, index, message.from, body);
            }
        }
    }

    fn arrive_at_proxy(&mut self, message: Message) {
        let Place::Node(index) = message.from else { return };
        match message.body {
            Body::Answer { call, answer } => self.call_answered(call, answer),
            Body::QueryAnswer { ticket, answer } => self.query_answered(index, ticket, answer),
            Body::Reset { server_run } => {
                self.connections_reset(index, server_run);
                self.calls_reset(index, server_run);
            }
            body => self.stage.log(LogEvent::Broken(format!("a node sent {body:?} to the proxy"))),
        }
    }

    /// Runs the probe strategy that is shipped, on the model.
    fn probe(&mut self, index: usize, call: CallId) {
        let Some(proxy) = &self.proxy else { return };
        let mut access = Access::new(&mut self.cluster, &mut self.stage, index);
        let result = run_ready(proxy.probe.probe(&mut access));
        let took = access.took();
        let result = result.unwrap_or_else(|| {
            let problem = "the probe waits for something other than the node: it cannot run in the simulator";
            self.stage.log(LogEvent::Broken(problem.to_owned()));
            Err(metako_core::plugin::ProbeFailure::Unsupported(problem.to_owned()))
        });
        let body = Body::Answer { call, answer: Answer::Probe(Box::new(result)) };
        let event = NodeEvent::Send { to: Place::Proxy, body };
        self.stage.after(took, Event::Node { node: index, run: self.cluster.node(index).run, event });
    }

    fn end_state(&self) -> EndState {
        let primary = self.proxy.as_ref().and_then(|proxy| proxy.view.primary().cloned());
        let primary_node = primary.as_ref().and_then(|name| self.node_named(name));
        let cut = self.stage.cut_ways();
        let nodes = (0..self.cluster.len()).map(|index| {
            let node = self.cluster.node(index);
            let here = Place::Node(index);
            EndNode {
                node: node.name.clone(),
                well: node.is_up()
                    && !node.stalled
                    && !cut.iter().any(|(from, to)| *from == here || *to == here),
                primary: node.primary,
                timeline: node.wal.timeline(),
                position: node.wal.flushed(),
                streams_from: node.streams_from().map(|upstream| self.cluster.node(upstream).name.clone()),
                on_history: primary_node.is_none_or(|primary| node.wal.is_prefix_of(&primary.wal)),
                holds: node.wal.writes().collect(),
            }
        });
        EndState { primary, nodes: nodes.collect() }
    }

    fn node_named(&self, name: &NodeName) -> Option<&Node> {
        self.cluster.find(name.as_str()).map(|index| self.cluster.node(index))
    }
}
