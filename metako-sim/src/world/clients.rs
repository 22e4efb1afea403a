//! Clients and the proxy's data plane: routing by the published view, holding, severing, and the ledger of what clients
//! were told.

use std::collections::VecDeque;
use std::time::Duration;

use metako_core::cluster::{ReadFitness, ServerLoss, Vouched, Writes};
use metako_core::config::Split;
use metako_core::plugin::{Candidate, Outcome, PickCx};
use metako_core::{Epoch, NodeName, Tick};

use super::World;
use crate::chance::Purpose;
use crate::log::{ClientEvent, LogEvent};
use crate::message::{Body, Place, QueryAnswer, Ticket};
use crate::scenario::{Load, Span};
use crate::stage::Event;

/// How long a request that could not be sent waits before it is tried again, unless a new view comes first.
const TRY_AGAIN: Duration = Duration::from_millis(50);
/// How long a client waits before it connects again to a proxy that is gone.
const RECONNECT: Duration = Duration::from_millis(250);

/// A client's time has come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ClientTimer {
    /// The pause is over.
    Request,
    /// Time to try a held request again.
    TryAgain { attempt: u64 },
    /// A request was held too long.
    HoldExpires { request: u64 },
}

/// All clients.
pub(super) struct Clients {
    all: Vec<Client>,
    /// Who waits for a primary, first come first served.
    held: VecDeque<u32>,
    hold_timeout: Duration,
}

struct Client {
    writes: bool,
    think: Span,
    state: State,
    /// Counts requests.
    request: u64,
    /// Counts what was sent, so that an answer to something given up is known as such.
    attempt: u64,
    connection: Option<Connection>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Thinking,
    Held,
    InFlight { since: Tick },
}

/// A server connection, as it was checked out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Connection {
    node: usize,
    server_run: u32,
    epoch: Epoch,
}

impl Clients {
    pub(super) fn new(loads: &[Load], hold_timeout: Duration) -> Self {
        let client = |writes, think| Client {
            writes,
            think,
            state: State::Thinking,
            request: 0,
            attempt: 0,
            connection: None,
        };
        let mut clients = Vec::new();
        for load in loads {
            clients.extend((0..load.writers).map(|_| client(true, load.think)));
            clients.extend((0..load.readers).map(|_| client(false, load.think)));
        }
        Self { all: clients, held: VecDeque::new(), hold_timeout }
    }

    fn get(&mut self, client: u32) -> &mut Client {
        &mut self.all[client as usize]
    }

    /// The number of a client's present write, unique in the run.
    fn write_id(&self, client: u32) -> u64 {
        u64::from(client + 1) << 32 | self.all[client as usize].request
    }

    fn in_flight_to(&self, node: usize) -> u32 {
        let busy = |client: &&Client| {
            matches!(client.state, State::InFlight { .. })
                && client.connection.is_some_and(|c| c.node == node)
        };
        u32::try_from(self.all.iter().filter(busy).count()).unwrap_or(u32::MAX)
    }

    fn numbers(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.all.len()).unwrap_or(u32::MAX)
    }
}

impl World {
    pub(super) fn begin_clients(&mut self) {
        for client in self.clients.numbers() {
            self.think(client);
        }
    }

    fn think(&mut self, client: u32) {
        let state = self.clients.get(client);
        state.state = State::Thinking;
        let pause = self.stage.chance.duration(Purpose::Think, u64::from(client), state.think);
        self.client_after(client, pause, ClientTimer::Request);
    }

    fn client_after(&mut self, client: u32, delay: Duration, timer: ClientTimer) {
        self.stage.after(delay, Event::Client { client, timer });
    }

    pub(super) fn client_timer(&mut self, client: u32, timer: ClientTimer) {
        let hold_timeout = self.clients.hold_timeout;
        let state = self.clients.get(client);
        match timer {
            ClientTimer::Request if self.proxy.is_none() => {
                self.client_after(client, RECONNECT, ClientTimer::Request);
            }
            ClientTimer::Request => {
                state.request += 1;
                let request = state.request;
                if state.writes {
                    self.client_after(client, hold_timeout, ClientTimer::HoldExpires { request });
                    self.write(client);
                } else {
                    self.read(client);
                }
            }
            ClientTimer::TryAgain { attempt } => {
                if state.attempt == attempt && state.state == State::Held {
                    self.write(client);
                }
            }
            ClientTimer::HoldExpires { request } => {
                if state.request == request && state.state == State::Held {
                    self.clients.held.retain(|held| *held != client);
                    self.fail(client, "held longer than hold_timeout");
                }
            }
        }
    }

    fn log_client(&mut self, event: ClientEvent) {
        self.stage.log(LogEvent::Client(event));
    }

    fn fail(&mut self, client: u32, reason: &'static str) {
        let id = self.clients.write_id(client);
        self.log_client(ClientEvent::Failed { id, reason });
        self.think(client);
    }

    /// Routes a write by the view: sends it to the primary, or holds it.
    fn write(&mut self, client: u32) {
        let Some(proxy) = &self.proxy else { return self.fail(client, "the proxy is gone") };
        let epoch = proxy.view.epoch;
        let primary = match &proxy.view.writes {
            Writes::Open { primary } => self.cluster.find(primary.as_str()),
            Writes::Held { .. } => None,
        };
        let Some(node) = primary else { return self.hold(client) };
        self.clients.held.retain(|held| *held != client);
        let id = self.clients.write_id(client);
        let name = self.cluster.node(node).name.clone();
        self.log_client(ClientEvent::Sent { id, node: name, epoch });
        self.send_query(client, node, epoch, id);
    }

    fn send_query(&mut self, client: u32, node: usize, epoch: Epoch, id: u64) {
        let present = Connection { node, server_run: self.cluster.node(node).run, epoch };
        let now = self.stage.now;
        let state = self.clients.get(client);
        let kept = state.connection.filter(|connection| connection.node == node && connection.epoch == epoch);
        let connection = kept.unwrap_or(present);
        state.connection = Some(connection);
        state.attempt += 1;
        state.state = State::InFlight { since: now };
        let ticket = Ticket { client, attempt: state.attempt, id };
        let (write, server_run) = (state.writes, connection.server_run);
        let vouched = kept.is_some() || self.is_vouched(node);
        self.stage.send(Place::Proxy, Place::Node(node), Body::Query { ticket, server_run, write, vouched });
    }

    /// Whether clients may be connected to the present run of a node's server.
    fn is_vouched(&self, index: usize) -> bool {
        let node = self.cluster.node(index);
        let view = self.proxy.as_ref().and_then(|proxy| proxy.view.node(node.name.as_str()));
        match view.map_or(Vouched::Nobody, |view| view.vouched) {
            Vouched::Any => true,
            Vouched::Nobody => false,
            Vouched::Run(run) => run.checkpointer == node.checkpointer(),
        }
    }

    fn hold(&mut self, client: u32) {
        let state = self.clients.get(client);
        let fresh = state.state != State::Held;
        state.state = State::Held;
        if fresh {
            self.clients.held.push_back(client);
            let id = self.clients.write_id(client);
            self.log_client(ClientEvent::Held { id });
        }
    }

    /// A write that certainly did not happen, because it did not get to a primary: held, and tried again.
    fn hold_and_try_again(&mut self, client: u32) {
        let state = self.clients.get(client);
        state.connection = None;
        state.attempt += 1;
        let attempt = state.attempt;
        self.hold(client);
        self.client_after(client, TRY_AGAIN, ClientTimer::TryAgain { attempt });
    }

    /// A view was published: those who wait go on if writes are open.
    pub(super) fn release_held(&mut self) {
        if self.proxy.as_ref().is_some_and(|proxy| proxy.view.primary().is_some()) {
            for client in std::mem::take(&mut self.clients.held) {
                self.write(client);
            }
        }
    }

    /// Routes a read: the balancer picks among the nodes that the view calls fit, else the primary serves it.
    fn read(&mut self, client: u32) {
        let Some(proxy) = &self.proxy else { return };
        let view = &proxy.view;
        let fit = view
            .nodes
            .iter()
            .filter(|node| self.recipe.split == Split::Auto && node.reads == ReadFitness::Fit);
        let nodes: Vec<usize> = fit.filter_map(|node| self.cluster.find(node.name.as_str())).collect();
        let candidates: Vec<Candidate<'_>> = nodes
            .iter()
            .filter_map(|index| {
                let node = view.node(self.cluster.node(*index).name.as_str())?;
                Some(Candidate {
                    name: node.name.as_str(),
                    in_flight: self.clients.in_flight_to(*index),
                    latency: node.latency,
                    lag: node.lag,
                    weight: node.weight,
                    zone: node.zone.as_deref(),
                })
            })
            .collect();
        let random = self.stage.chance.bits(Purpose::Balance, u64::from(client));
        let cx = PickCx { now: self.stage.now, random, session: u64::from(client), zone: None };
        let picked = self.recipe.balancer.pick(&candidates, &cx);
        let node = match picked {
            Some(index) if index < nodes.len() => Some(nodes[index]),
            // An index out of range is a fault of the strategy; the first candidate is taken.
            Some(_) => nodes.first().copied(),
            None => view.primary().and_then(|primary| self.cluster.find(primary.as_str())),
        };
        let epoch = view.epoch;
        match node {
            Some(node) => self.send_query(client, node, epoch, 0),
            None => self.read_failed(client, "no node may serve reads"),
        }
    }

    fn read_failed(&mut self, client: u32, reason: &'static str) {
        self.log_client(ClientEvent::ReadFailed { client, reason });
        self.think(client);
    }

    pub(super) fn query_answered(&mut self, node: usize, ticket: Ticket, answer: QueryAnswer) {
        let client = ticket.client;
        let state = self.clients.get(client);
        let State::InFlight { since } = state.state else { return self.discard(node, ticket) };
        if state.attempt != ticket.attempt {
            return self.discard(node, ticket);
        }
        let epoch = state.connection.map_or(Epoch(0), |connection| connection.epoch);
        if !matches!(answer, QueryAnswer::Done { .. }) {
            state.connection = None;
        }
        if !state.writes {
            return self.read_answered(client, node, since, answer);
        }
        let name = self.cluster.node(node).name.clone();
        match answer {
            QueryAnswer::Done { timeline, .. } => {
                self.log_client(ClientEvent::Acknowledged { id: ticket.id, node: name, timeline, epoch });
                self.think(client);
            }
            QueryAnswer::Reset => self.lose_write(client, "the connection was reset"),
            QueryAnswer::Refused | QueryAnswer::Starting | QueryAnswer::Stranger | QueryAnswer::ReadOnly => {
                self.hold_and_try_again(client);
            }
        }
        self.drain_on();
        match answer {
            QueryAnswer::Stranger => self.report_loss(node, ServerLoss::Stranger),
            QueryAnswer::Refused => self.report_loss(node, ServerLoss::Refused),
            QueryAnswer::ReadOnly => self.report_loss(node, ServerLoss::ReadOnly),
            QueryAnswer::Reset | QueryAnswer::Starting => self.report_loss(node, ServerLoss::Broken),
            QueryAnswer::Done { .. } => {}
        }
    }

    fn read_answered(&mut self, client: u32, node: usize, since: Tick, answer: QueryAnswer) {
        let name = self.cluster.node(node).name.clone();
        let ok = matches!(answer, QueryAnswer::Done { .. });
        let took = self.stage.now.since(since);
        self.recipe.balancer.observe(&Outcome { node: name.as_str(), took, ok });
        self.read_ended(client, node, name, answer);
        self.drain_on();
    }

    fn read_ended(&mut self, client: u32, node: usize, name: NodeName, answer: QueryAnswer) {
        match answer {
            QueryAnswer::Done { primary, timeline, visible } => {
                let held_by = if primary { self.cluster.holders(node, visible) } else { Vec::new() };
                self.log_client(ClientEvent::Read { client, node: name, primary, timeline, held_by });
                self.think(client);
            }
            QueryAnswer::Stranger => {
                self.read_failed(client, "the server was started anew");
                self.report_loss(node, ServerLoss::Stranger);
            }
            QueryAnswer::Refused => {
                self.read_failed(client, "connection refused");
                self.report_loss(node, ServerLoss::Refused);
            }
            QueryAnswer::Reset | QueryAnswer::Starting | QueryAnswer::ReadOnly => {
                self.read_failed(client, "the connection was closed");
                self.report_loss(node, ServerLoss::Broken);
            }
        }
    }

    fn discard(&mut self, node: usize, ticket: Ticket) {
        if ticket.id != 0 {
            let node = self.cluster.node(node).name.clone();
            self.log_client(ClientEvent::Discarded { id: ticket.id, node });
        }
    }

    /// The outcome of a write that was sent is not known, and the client is told so.
    fn lose_write(&mut self, client: u32, reason: &'static str) {
        self.clients.get(client).attempt += 1;
        let id = self.clients.write_id(client);
        self.log_client(ClientEvent::Unknown { id, reason });
        self.think(client);
    }

    /// A server's kernel closed its connections.
    pub(super) fn connections_reset(&mut self, node: usize, server_run: u32) {
        let lost = self.drop_connections("the connection was reset", |connection| {
            connection.node == node && connection.server_run == server_run
        });
        if lost {
            self.report_loss(node, ServerLoss::Broken);
        }
        self.drain_on();
    }

    /// The fence: no byte of an older epoch's connection to that node gets to a client any more.
    pub(super) fn sever(&mut self, name: &NodeName, epoch: Epoch) {
        let Some(node) = self.cluster.find(name.as_str()) else { return };
        self.drop_connections("the old primary was fenced", |connection| {
            connection.node == node && connection.epoch < epoch
        });
        self.stage.log(LogEvent::Severed { node: name.clone(), epoch });
        self.drain_on();
    }

    /// Closes connections to a node of epochs before this one on which nothing is under way. Tells how many are left.
    pub(super) fn close_idle(&mut self, node: usize, epoch: Epoch) -> usize {
        let old = |connection: &mut Connection| connection.node == node && connection.epoch < epoch;
        let mut left = 0;
        for client in self.clients.numbers() {
            let state = self.clients.get(client);
            if matches!(state.state, State::InFlight { .. }) {
                left += usize::from(state.connection.as_mut().is_some_and(old));
            } else {
                state.connection.take_if(old);
            }
        }
        left
    }

    fn drop_connections(&mut self, reason: &'static str, which: impl Fn(&Connection) -> bool) -> bool {
        let mut any = false;
        for client in self.clients.numbers() {
            let state = self.clients.get(client);
            if !state.connection.as_ref().is_some_and(&which) {
                continue;
            }
            any = true;
            state.connection = None;
            if matches!(state.state, State::InFlight { .. }) {
                if state.writes {
                    self.lose_write(client, reason);
                } else {
                    state.attempt += 1;
                    self.read_failed(client, reason);
                }
            }
        }
        any
    }

    /// The proxy is gone, and with it all connections.
    pub(super) fn clients_lose_proxy(&mut self) {
        self.clients.held.clear();
        for client in self.clients.numbers() {
            let state = self.clients.get(client);
            state.connection = None;
            match (state.state, state.writes) {
                (State::Thinking, _) => {}
                (State::Held, _) => self.fail(client, "the proxy is gone"),
                (State::InFlight { .. }, true) => self.lose_write(client, "the proxy is gone"),
                (State::InFlight { .. }, false) => {
                    state.attempt += 1;
                    self.read_failed(client, "the proxy is gone");
                }
            }
        }
    }
}
