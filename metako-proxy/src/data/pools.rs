//! The pools: sockets for the state machines of [`metako_core::pool`].

mod checkout;
mod idle;
mod lease;
mod opening;
mod trouble;
mod variants;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metako_core::cluster::ServerLoss;
use metako_core::config::{Node, NodeTls};
use metako_core::pool::{Opening, Pool, ServerId, Variant, WaiterId};
use metako_core::{Epoch, NodeName, Tick};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

pub(super) use self::checkout::{Attempt, CheckoutError};
use self::idle::Idle;
pub(super) use self::lease::Lease;
use self::opening::Order;
use self::trouble::Trouble;
pub(super) use self::variants::Parameters;
use self::variants::{VARIANTS_MAX, Variants};
use super::Core;
use super::conn::{Conn, Reported};
use crate::backend::{ConnectError, MaybeTls};
use crate::credential::ServerCredential;
use crate::env::Env;
use crate::shared::NodeTraffic;

/// How long PostgreSQL waits for others to leave a database that is to be dropped, renamed or copied.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);

pub(super) type ServerConn<E> = Conn<MaybeTls<<E as Env>::Stream>>;

/// For whom a server connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) database: String,
    pub(super) user: String,
    /// Start-up parameters but for those above, and for the application name of clients that share servers.
    pub(super) parameters: Parameters,
    /// The number of those.
    pub(super) variant: Variant,
    /// The connection serves nobody else: its variant is nobody else's.
    pub(super) alone: bool,
    /// The parameters begin with what guarded commits need.
    pub(super) floor: bool,
    /// What proves to servers that it is this user.
    pub(super) credential: ServerCredential,
}

/// What a client that waited gets.
enum Granted<E: Env> {
    Conn(Box<ServerConn<E>>),
    /// What another one who wanted the same was told: it goes for this one too.
    Refused(ConnectError),
    /// The epoch is over in which the node was picked.
    Stale,
}

/// A client that waits.
struct InLine<E: Env> {
    sender: oneshot::Sender<Granted<E>>,
    who: Arc<Who>,
    epoch: Epoch,
    /// Held for as long as it waits, for whoever opens a connection that is of use to it alone.
    presence: Option<oneshot::Sender<Infallible>>,
}

struct State<E: Env> {
    pool: Pool,
    idle: Idle<Box<ServerConn<E>>>,
    waiting: BTreeMap<WaiterId, InLine<E>>,
    /// Why a connection could not be opened just now.
    trouble: Option<Trouble>,
    /// For whom connections are opened ahead: whoever opened the last one that others may use.
    warm: Option<Arc<Who>>,
    /// The newest epoch that those in line were told of.
    epoch: Epoch,
    /// The node is gone from the configuration: nothing is kept.
    retired: bool,
    vacancy: Vacancy,
}

impl<E: Env> State<E> {
    /// Puts a connection with those that are idle. Gives it where it has to be closed instead.
    fn put_back(
        &mut self,
        core: &Core<E>,
        conn: Box<ServerConn<E>>,
        reusable: bool,
    ) -> Option<Box<ServerConn<E>>> {
        // One that is for one client only is of no use without it.
        let wanted =
            conn.alone.is_none_or(|variant| self.waiting.values().any(|line| line.who.variant == variant));
        let server = conn.id;
        if self.pool.checkin(core.env.now(), server, core.env.worker(), reusable && wanted) {
            self.idle.insert(server, conn);
            return None;
        }
        Some(conn)
    }

    /// Tells a client that waits what it gets. Gives that back if it waits no longer.
    fn tell(&mut self, waiter: WaiterId, granted: Granted<E>) -> Option<Granted<E>> {
        match self.waiting.remove(&waiter) {
            Some(line) => line.sender.send(granted).err(),
            None => Some(granted),
        }
    }

    /// Tells those who wait and to whom it applies why nothing can be opened for them.
    fn refuse(&mut self, error: &ConnectError, whom: impl Fn(&InLine<E>) -> bool) {
        let whom: Vec<_> =
            self.waiting.iter().filter(|(_, line)| whom(line)).map(|(waiter, _)| *waiter).collect();
        self.refuse_each(error, whom);
    }

    fn refuse_each(&mut self, error: &ConnectError, whom: Vec<WaiterId>) {
        for waiter in whom {
            self.pool.cancel(waiter);
            self.tell(waiter, Granted::Refused(error.clone()));
        }
    }
}

/// Until when nothing is kept for want of clients, because a database may be wanted without connections.
struct Vacancy {
    /// So many statements of this kind were seen.
    asked: u64,
    until: Option<Tick>,
}

impl Vacancy {
    fn after(asked: u64) -> Self {
        Self { asked, until: None }
    }

    fn is_wanted(&mut self, now: Tick, asked: u64) -> bool {
        if asked != self.asked {
            *self = Self { asked, until: Some(now + LEAVE_WITHIN) };
        }
        self.until.is_some_and(|until| now < until)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Address {
    host: String,
    port: u16,
    tls: NodeTls,
}

impl Address {
    fn of(node: &Node) -> Self {
        Self { host: node.host.clone(), port: node.port, tls: node.tls.clone() }
    }
}

/// The pool of one database, user and node.
pub(in crate::data) struct Cell<E: Env> {
    node: NodeName,
    /// How the node is reached. Where that changes, the connections are others.
    address: Address,
    state: Mutex<State<E>>,
    pub(super) traffic: Arc<NodeTraffic>,
}

impl<E: Env> Cell<E> {
    /// Does what is to be done after each change: those in line get what is idle, what they miss is opened, and what is too
    /// much is closed. `returned` was in use until now; what else is idle may have died meanwhile.
    fn settle(
        self: &Arc<Self>,
        core: &Arc<Core<E>>,
        mut state: MutexGuard<'_, State<E>>,
        returned: Option<ServerId>,
    ) {
        if state.pool.is_settled() || state.retired {
            return;
        }
        let now = core.env.now();
        let (mut closed, mut orders) = (Vec::new(), Vec::new());
        let epoch = core.view.epoch();
        if state.epoch < epoch {
            state.epoch = epoch;
            for waiter in state.pool.outdated(epoch) {
                state.tell(waiter, Granted::Stale);
            }
        }
        loop {
            if let Some(grant) = state.pool.next_grant(now) {
                let mut conn = state.idle.remove(grant.server);
                let is_fresh = returned == Some(grant.server);
                if conn.as_mut().is_some_and(|conn| is_fresh || conn.is_alive(&core.env)) {
                    state.pool.hand_over(grant);
                    let unwanted = conn.and_then(|conn| state.tell(grant.waiter, Granted::Conn(conn)));
                    if let Some(Granted::Conn(conn)) = unwanted {
                        closed.extend(state.put_back(core, conn, true));
                    }
                } else {
                    core.evidence.report(&self.node, ServerLoss::Broken);
                    closed.extend(conn);
                    state.pool.lost(grant.server);
                }
                continue;
            }
            if let Some(Opening { server, waiter, close }) = state.pool.open(now) {
                closed.extend(close.and_then(|server| state.idle.remove(server)));
                if let Some(line) = state.waiting.get_mut(&waiter) {
                    orders.push(Order::of(server, line));
                } else {
                    state.pool.lost(server);
                    state.pool.cancel(waiter);
                }
                continue;
            }
            let shed = state.pool.shed();
            if shed.is_empty() {
                break;
            }
            closed.extend(Self::take_idle(&mut state, shed));
        }
        drop(state);
        drop(closed);
        for order in orders {
            opening::begin(core, self, order);
        }
    }

    fn give_back(self: &Arc<Self>, core: &Arc<Core<E>>, conn: Box<ServerConn<E>>, reusable: bool) {
        self.take_back(core, self.state.lock(), conn, reusable);
    }

    fn take_back(
        self: &Arc<Self>,
        core: &Arc<Core<E>>,
        mut state: MutexGuard<'_, State<E>>,
        conn: Box<ServerConn<E>>,
        reusable: bool,
    ) {
        let reusable = reusable && !state.retired && conn.epoch == core.view.epoch();
        let server = conn.id;
        let closed = state.put_back(core, conn, reusable);
        self.settle(core, state, Some(server));
        drop(closed);
    }

    fn lost(self: &Arc<Self>, core: &Arc<Core<E>>, server: ServerId) {
        let mut state = self.state.lock();
        state.pool.lost(server);
        self.settle(core, state, None);
    }

    fn take_idle(state: &mut State<E>, servers: Vec<ServerId>) -> Vec<Box<ServerConn<E>>> {
        servers.into_iter().filter_map(|server| state.idle.remove(server)).collect()
    }
}

/// All pools.
pub(super) struct Pools<E: Env> {
    cells: Mutex<Vec<(PoolKey, Arc<Cell<E>>)>>,
    variants: Mutex<Variants>,
    /// What servers reported after log-in, by database, user and variant.
    reported: Mutex<BTreeMap<ReportKey, Reported>>,
}

/// Database, user and variant.
type ReportKey = (String, String, Variant);

#[derive(Debug, PartialEq, Eq)]
struct PoolKey {
    database: String,
    user: String,
    node: NodeName,
}

impl<E: Env> Default for Pools<E> {
    fn default() -> Self {
        Self { cells: Mutex::default(), variants: Mutex::default(), reported: Mutex::default() }
    }
}

impl<E: Env> Pools<E> {
    /// A set of start-up parameters as all clients share it, with its number; `None` if there are too many.
    pub(super) fn variant(&self, parameters: &Parameters) -> Option<(Parameters, Variant)> {
        self.variants.lock().number(parameters)
    }

    /// A number for a connection that serves one client only.
    pub(super) fn variant_alone(&self) -> Variant {
        self.variants.lock().alone()
    }

    /// What a server reported to the first connection of this kind, if there was one.
    pub(super) fn reported(&self, who: &Who) -> Option<Reported> {
        let key = (who.database.clone(), who.user.clone(), who.variant);
        self.reported.lock().get(&key).cloned()
    }

    /// Notes what a server reported. Gives it as all those share it that were told the same.
    fn report(&self, who: &Who, parameters: Vec<(String, String)>) -> Reported {
        if who.alone {
            return Arc::new(parameters);
        }
        let key = (who.database.clone(), who.user.clone(), who.variant);
        let mut reported = self.reported.lock();
        if let Some(known) = reported.get(&key)
            && **known == parameters
        {
            return Arc::clone(known);
        }
        if reported.len() >= VARIANTS_MAX {
            reported.clear();
        }
        let parameters = Arc::new(parameters);
        reported.insert(key, Arc::clone(&parameters));
        parameters
    }

    fn cell(&self, core: &Core<E>, who: &Who, node: &NodeName) -> Option<Arc<Cell<E>>> {
        let mut cells = self.cells.lock();
        let found = cells
            .iter()
            .find(|(key, _)| key.node == *node && key.user == who.user && key.database == who.database);
        if let Some((_, cell)) = found {
            return Some(Arc::clone(cell));
        }
        let settings = core.settings.load();
        let configured = settings.node(node.as_str())?;
        let mut pool = Pool::new(settings.pool_limits(&who.user));
        pool.raise_floor(core.view.load().epoch);
        let traffic = core.traffic.node(node);
        let cell = Arc::new(Cell {
            node: node.clone(),
            address: Address::of(configured),
            state: Mutex::new(State {
                pool,
                idle: Idle::default(),
                waiting: BTreeMap::new(),
                trouble: None,
                warm: None,
                epoch: core.view.epoch(),
                retired: false,
                vacancy: Vacancy::after(traffic.databases.load(Ordering::Relaxed)),
            }),
            traffic,
        });
        let key = PoolKey { database: who.database.clone(), user: who.user.clone(), node: node.clone() };
        cells.push((key, Arc::clone(&cell)));
        Some(cell)
    }

    fn all(&self) -> Vec<Arc<Cell<E>>> {
        self.cells.lock().iter().map(|(_, cell)| Arc::clone(cell)).collect()
    }

    /// Works by other settings from now on. Pools of nodes that are gone, or are somewhere else now, are emptied as
    /// their connections come back.
    pub(super) fn reconfigure(&self, core: &Arc<Core<E>>) {
        let settings = core.settings.load();
        let mut closed = Vec::new();
        self.cells.lock().retain(|(key, cell)| {
            let mut state = cell.state.lock();
            let stays =
                settings.node(key.node.as_str()).is_some_and(|node| Address::of(node) == cell.address);
            if stays {
                let surplus = state.pool.set_limits(settings.pool_limits(&key.user));
                closed.extend(Cell::take_idle(&mut state, surplus));
                cell.settle(core, state, None);
            } else {
                state.retired = true;
                let idle = state.pool.raise_floor(Epoch(u64::MAX));
                closed.extend(Cell::take_idle(&mut state, idle));
                // Those who wait find out that the node is gone.
                state.waiting.clear();
            }
            stays
        });
    }

    /// Closes the idle connections to `node` of an epoch before `floor`.
    pub(super) fn close_stale(&self, core: &Arc<Core<E>>, node: Option<&NodeName>, floor: Epoch) {
        for cell in self.all() {
            if node.is_some_and(|node| *node != cell.node) {
                continue;
            }
            let mut state = cell.state.lock();
            let stale = state.pool.raise_floor(floor);
            let closed = Cell::take_idle(&mut state, stale);
            cell.settle(core, state, None);
            drop(closed);
        }
    }

    /// Closes what is too old or was idle for too long, notices idle connections that died, serves those in line for whom
    /// there was nothing before, has connections opened ahead, and brings the counters up to date. While a database may be
    /// wanted without connections, those of pools that no client has used who is still there are closed.
    pub(super) fn keep_house(&self, core: &Arc<Core<E>>) {
        let mut idle_by_node: BTreeMap<NodeName, u64> = BTreeMap::new();
        for cell in self.all() {
            let now = core.env.now();
            let mut state = cell.state.lock();
            let expired = state.pool.expire(now);
            let mut closed = Cell::take_idle(&mut state, expired);
            let dead: Vec<_> = state
                .idle
                .iter_mut()
                .filter_map(|(id, conn)| (!conn.is_alive(&core.env)).then_some(*id))
                .collect();
            if !dead.is_empty() && !state.retired {
                core.evidence.report(&cell.node, ServerLoss::Broken);
            }
            for server in dead {
                closed.extend(state.idle.remove(server));
                state.pool.lost(server);
            }
            // One reference is the list's, one is that of this round.
            let unused = Arc::strong_count(&cell) == 2;
            let mut ahead = None;
            if state.vacancy.is_wanted(now, cell.traffic.databases.load(Ordering::Relaxed)) && unused {
                let vacated = state.pool.vacate();
                closed.extend(Cell::take_idle(&mut state, vacated));
            } else {
                ahead = opening::ahead(core, &cell, &mut state);
            }
            *idle_by_node.entry(cell.node.clone()).or_default() += state.idle.len() as u64;
            cell.settle(core, state, None);
            drop(closed);
            if let Some(order) = ahead {
                opening::begin(core, &cell, order);
            }
        }
        // One that nobody uses, waits for or has a connection of is as good as one that was never made.
        self.cells
            .lock()
            .retain(|(_, cell)| Arc::strong_count(cell) > 1 || !cell.state.lock().pool.is_empty());
        for (node, idle) in idle_by_node {
            core.traffic.node(&node).idle.store(idle, Ordering::Relaxed);
        }
    }
}
