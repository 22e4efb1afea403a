//! Clients and the proxy's data plane: routing by the published view, holding, severing, and the ledger of what clients
//! were told.

use std::collections::BTreeMap;
use std::time::Duration;

use metako_core::cluster::{JournalPhase, ServerLoss, Vouched};
use metako_core::config::Split;
use metako_core::plugin::{Outcome, PickCx};
use metako_core::route::{self, Choice};
use metako_core::{Epoch, NodeName, Tick};

use super::World;
use crate::chance::Purpose;
use crate::log::{ClientEvent, LogEvent};
use crate::message::{Body, Place, QueryAnswer, Ticket};
use crate::scenario::{Load, Span};
use crate::stage::Event;

/// How long a held request waits before it is tried again, unless a new view comes first.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How often one read is tried on another server after it was lost.
const REPEATS_MAX: usize = 4;
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
    /// Who waits for a primary, by the number of its ticket: first come first served.
    held: BTreeMap<u64, u32>,
    tickets: u64,
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
    hold: Option<Hold>,
    /// Replicas that lost or refused the present read.
    avoid: Vec<NodeName>,
    /// How many primaries there had been when the present request was sent.
    sent_under: usize,
    /// How far the data was that the present read saw.
    seen: Seen,
}

/// Where a request stands in the line. It keeps its place when it is tried and comes back.
#[derive(Debug, Clone, Copy)]
struct Hold {
    ticket: u64,
    until: Tick,
}

/// What a read saw, compared with the primary's log at that moment.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    on_history: bool,
    behind: Duration,
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
            hold: None,
            avoid: Vec::new(),
            sent_under: 0,
            seen: Seen::default(),
        };
        let mut clients = Vec::new();
        for load in loads {
            clients.extend((0..load.writers).map(|_| client(true, load.think)));
            clients.extend((0..load.readers).map(|_| client(false, load.think)));
        }
        Self { all: clients, held: BTreeMap::new(), tickets: 0, hold_timeout }
    }

    fn get(&mut self, client: u32) -> &mut Client {
        &mut self.all[client as usize]
    }

    /// The number of a client's present write, unique in the run.
    fn write_id(&self, client: u32) -> u64 {
        u64::from(client + 1) << 32 | self.all[client as usize].request
    }

    /// Whether nobody who came before waits for the primary.
    fn may_go_to_the_primary(&self, client: u32) -> bool {
        let first = self.held.first_key_value().map(|(ticket, _)| *ticket);
        let own = self.all[client as usize].hold.map(|hold| hold.ticket);
        first.is_none_or(|first| own.is_some_and(|own| own <= first))
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
        state.avoid.clear();
        if let Some(hold) = state.hold.take() {
            self.clients.held.remove(&hold.ticket);
        }
        let state = self.clients.get(client);
        let pause = self.stage.chance.duration(Purpose::Think, u64::from(client), state.think);
        self.client_after(client, pause, ClientTimer::Request);
    }

    fn client_after(&mut self, client: u32, delay: Duration, timer: ClientTimer) {
        self.stage.after(delay, Event::Client { client, timer });
    }

    pub(super) fn client_timer(&mut self, client: u32, timer: ClientTimer) {
        let gone = self.proxy.is_none();
        let state = self.clients.get(client);
        match timer {
            ClientTimer::Request if gone => self.client_after(client, RECONNECT, ClientTimer::Request),
            ClientTimer::Request => {
                state.request += 1;
                self.route(client);
            }
            ClientTimer::TryAgain { attempt } => {
                if state.attempt == attempt && state.state == State::Held {
                    self.route(client);
                }
            }
            ClientTimer::HoldExpires { request } => {
                if state.request == request && state.state == State::Held {
                    self.fail(client, "held longer than hold_timeout");
                }
            }
        }
    }

    fn log_client(&mut self, event: ClientEvent) {
        self.stage.log(LogEvent::Client(event));
    }

    /// The request certainly did not happen, and the client is told so.
    fn fail(&mut self, client: u32, reason: &'static str) {
        if self.clients.get(client).writes {
            let id = self.clients.write_id(client);
            self.log_client(ClientEvent::Failed { id, reason });
        } else {
            self.log_client(ClientEvent::ReadFailed { client, reason });
        }
        self.think(client);
    }

    /// Has the proxy's router choose the node by the view: sends the request there, or holds it.
    fn route(&mut self, client: u32) {
        let Some(proxy) = &self.proxy else { return self.fail(client, "the proxy is gone") };
        let state = &self.clients.all[client as usize];
        let read = !state.writes && self.recipe.split == Split::Auto;
        let random = if read { self.stage.chance.bits(Purpose::Balance, u64::from(client)) } else { 0 };
        let cx = PickCx { now: self.stage.now, random, session: u64::from(client), zone: None };
        let in_flight = |node: &NodeName| {
            self.cluster.find(node.as_str()).map_or(0, |index| self.clients.in_flight_to(index))
        };
        let balancer = self.recipe.balancer.as_ref();
        let chosen = match route::choose(&proxy.view, read, &state.avoid, balancer, &cx, in_flight) {
            Choice::Replica(node) => Some(node),
            // Who was held before comes first.
            Choice::Primary(node) if self.clients.may_go_to_the_primary(client) => Some(node),
            Choice::Primary(_) | Choice::Held { .. } => None,
        };
        let (node, epoch) = (chosen.and_then(|node| self.cluster.find(node.as_str())), proxy.view.epoch);
        let Some(node) = node else { return self.hold(client) };
        if let Some(hold) = self.clients.get(client).hold {
            self.clients.held.remove(&hold.ticket);
        }
        let state = self.clients.get(client);
        let (writes, held) = (state.writes, state.state == State::Held);
        let id = if writes { self.clients.write_id(client) } else { 0 };
        let name = self.cluster.node(node).name.clone();
        if writes {
            self.log_client(ClientEvent::Sent { id, node: name, epoch });
        } else if held {
            self.log_client(ClientEvent::ReadSent { client, node: name });
        }
        self.send_query(client, node, epoch, id);
    }

    fn send_query(&mut self, client: u32, node: usize, epoch: Epoch, id: u64) {
        let present = Connection { node, server_run: self.cluster.node(node).run, epoch };
        let (now, sent_under) = (self.stage.now, self.primaries.len());
        let state = self.clients.get(client);
        state.sent_under = sent_under;
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

    /// Waits in line for a primary, for as long as `failover.hold_timeout` allows.
    fn hold(&mut self, client: u32) {
        let now = self.stage.now;
        let state = self.clients.get(client);
        let (request, attempt, waited) = (state.request, state.attempt, state.state == State::Held);
        state.state = State::Held;
        let hold = match state.hold {
            Some(hold) if now >= hold.until => {
                return self.fail(client, "held longer than hold_timeout");
            }
            Some(hold) => hold,
            None => {
                let timeout = self.clients.hold_timeout;
                self.clients.tickets += 1;
                let hold = Hold { ticket: self.clients.tickets, until: now + timeout };
                self.clients.get(client).hold = Some(hold);
                self.client_after(client, timeout, ClientTimer::HoldExpires { request });
                hold
            }
        };
        self.clients.held.insert(hold.ticket, client);
        if !waited {
            let event = if self.clients.get(client).writes {
                ClientEvent::Held { id: self.clients.write_id(client) }
            } else {
                ClientEvent::ReadHeld { client }
            };
            self.log_client(event);
        }
        self.client_after(client, TRY_AGAIN, ClientTimer::TryAgain { attempt });
    }

    /// A request that certainly did not happen, because it did not get to a server that would do it: held, and tried again.
    fn hold_and_try_again(&mut self, client: u32) {
        let state = self.clients.get(client);
        state.connection = None;
        state.attempt += 1;
        self.hold(client);
    }

    /// A view was published: those who wait go on, the first first.
    pub(super) fn release_held(&mut self) {
        let waiting: Vec<u32> = self.clients.held.values().copied().collect();
        for client in waiting {
            if self.clients.get(client).state == State::Held {
                self.route(client);
            }
        }
    }

    /// A read reaches a server: what it is about to see is compared with the log of whom writes were opened to last.
    pub(super) fn note_read(&mut self, client: u32, node: usize) {
        let Some(primary) = self.primaries.last() else { return };
        let (own, reference) = (&self.cluster.node(node).wal, &self.cluster.node(*primary).wal);
        let behind = own.lacks_since(reference).map_or(Duration::ZERO, |since| self.stage.now.since(since));
        // Whom the journal on disk announces is about to be the primary; and what was sent before a change may see what
        // was there before it.
        let next = match self.journal.as_ref().map(|journal| &journal.phase) {
            Some(JournalPhase::Promoting { candidate, .. }) => self.cluster.find(candidate.as_str()),
            _ => None,
        };
        let sent_under = self.clients.all[client as usize].sent_under.saturating_sub(1);
        let mut lines = self.primaries.iter().skip(sent_under).copied().chain(next);
        let on_history = lines.any(|line| own.replayed_of(&self.cluster.node(line).wal));
        let seen = Seen { on_history, behind };
        self.clients.get(client).seen = seen;
    }

    fn read_failed(&mut self, client: u32, reason: &'static str) {
        self.clients.get(client).attempt += 1;
        self.fail(client, reason);
    }

    /// A read was lost with its server: a replica's is sent to another, a primary's may have had effects.
    fn read_lost(&mut self, client: u32, node: usize, reason: &'static str) {
        let replica = !self.proxy.as_ref().is_some_and(|proxy| {
            proxy.view.primary().is_some_and(|primary| *primary == self.cluster.node(node).name)
        });
        let name = self.cluster.node(node).name.clone();
        let state = self.clients.get(client);
        state.attempt += 1;
        state.connection = None;
        state.avoid.push(name);
        if replica && state.avoid.len() <= REPEATS_MAX {
            self.route(client);
        } else {
            self.read_failed(client, reason);
        }
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
                let Seen { on_history, behind } = self.clients.get(client).seen;
                let node = name;
                let read = ClientEvent::Read { client, node, primary, timeline, on_history, behind, held_by };
                self.log_client(read);
                self.think(client);
            }
            QueryAnswer::Refused | QueryAnswer::Starting | QueryAnswer::Stranger => {
                self.read_not_taken(client, name);
                let loss = match answer {
                    QueryAnswer::Refused => ServerLoss::Refused,
                    QueryAnswer::Stranger => ServerLoss::Stranger,
                    _ => ServerLoss::Broken,
                };
                self.report_loss(node, loss);
            }
            QueryAnswer::Reset | QueryAnswer::ReadOnly => {
                self.read_lost(client, node, "the connection was closed");
                self.report_loss(node, ServerLoss::Broken);
            }
        }
    }

    /// A server did not take a read at all: another replica may, and the primary is waited for.
    fn read_not_taken(&mut self, client: u32, node: NodeName) {
        let primary = self.proxy.as_ref().and_then(|proxy| proxy.view.primary().cloned());
        if primary.as_ref() == Some(&node) {
            return self.hold_and_try_again(client);
        }
        let state = self.clients.get(client);
        state.connection = None;
        state.attempt += 1;
        state.avoid.push(node);
        self.route(client);
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
            let Some(Connection { node, .. }) = state.connection.take_if(|connection| which(connection))
            else {
                continue;
            };
            any = true;
            if matches!(state.state, State::InFlight { .. }) {
                if state.writes {
                    self.lose_write(client, reason);
                } else {
                    self.read_lost(client, node, reason);
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
                (State::InFlight { .. }, false) => self.read_failed(client, "the proxy is gone"),
            }
        }
    }
}
