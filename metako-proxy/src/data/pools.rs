//! The pools: sockets for the state machines of [`metako_core::pool`].

mod ahead;
mod checkout;
mod idle;
mod lease;
mod trouble;
mod variants;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metako_core::cluster::ServerLoss;
use metako_core::config::{Node, NodeTls};
use metako_core::pool::{Checkin, Grant, Pool, ServerId, Variant, WaiterId};
use metako_core::{Epoch, NodeName, Tick};
use parking_lot::Mutex;
use tokio::sync::oneshot;

pub(super) use self::checkout::{Attempt, CheckoutError};
use self::idle::Idle;
pub(super) use self::lease::Lease;
use self::trouble::Trouble;
use self::variants::{Parameters, VARIANTS_MAX, Variants};
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
    /// What proves to servers that it is this user.
    pub(super) credential: ServerCredential,
}

/// What a client that waited gets.
enum Granted<E: Env> {
    Conn(Box<ServerConn<E>>),
    Open(ServerId),
    /// What another one who wanted the same was told: it goes for this one too.
    Refused(ConnectError),
}

/// What became of a connection that came back.
struct Back<E: Env> {
    grant: Option<Grant>,
    closed: Option<Box<ServerConn<E>>>,
}

/// A client that waits.
struct InLine<E: Env> {
    sender: oneshot::Sender<Granted<E>>,
    variant: Variant,
    credential: ServerCredential,
}

struct State<E: Env> {
    pool: Pool,
    idle: Idle<Box<ServerConn<E>>>,
    waiting: BTreeMap<WaiterId, InLine<E>>,
    /// Why a connection could not be opened just now.
    trouble: Option<Trouble>,
    /// For whom connections are opened ahead: whoever opened the last one that others may use.
    warm: Option<Who>,
    /// The node is gone from the configuration: nothing is kept.
    retired: bool,
    vacancy: Vacancy,
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
    /// Hands on what a grant names, to the next in line if its client has gone, and what there is for others in line.
    /// `returned` was in use until now; what else is idle may have died meanwhile.
    fn deliver(core: &Core<E>, state: &mut State<E>, returned: Option<ServerId>, grant: Option<Grant>) {
        let mut next = grant;
        while let Some(grant) = next.take() {
            let now = core.env.now();
            let (waiter, granted) = match grant {
                Grant::Reuse(waiter, server) => {
                    let mut conn = state.idle.remove(server);
                    drop(conn.take_if(|conn| returned != Some(server) && !conn.is_alive(&core.env)));
                    (waiter, conn.map_or(Granted::Open(server), Granted::Conn))
                }
                Grant::Open { waiter, server, close } => {
                    drop(close.and_then(|server| state.idle.remove(server)));
                    (waiter, Granted::Open(server))
                }
            };
            let refused = match state.waiting.remove(&waiter) {
                Some(line) => line.sender.send(granted).err(),
                None => Some(granted),
            };
            next = match refused {
                None | Some(Granted::Refused(_)) => None,
                Some(Granted::Open(server)) => state.pool.lost(now, server),
                Some(Granted::Conn(conn)) => Self::back(core, state, conn, true).grant,
            };
            next = next.or_else(|| state.pool.grant(now));
        }
    }

    /// Puts a connection with those that are idle, unless it has to be closed.
    fn back(core: &Core<E>, state: &mut State<E>, conn: Box<ServerConn<E>>, reusable: bool) -> Back<E> {
        let (now, worker) = (core.env.now(), core.env.worker());
        let server = conn.id;
        let Checkin { close, grant } = state.pool.checkin(now, server, worker, reusable);
        if close {
            return Back { grant, closed: Some(conn) };
        }
        state.idle.insert(server, conn);
        Back { grant, closed: None }
    }

    fn give_back(&self, core: &Core<E>, conn: Box<ServerConn<E>>, reusable: bool) {
        let mut state = self.state.lock();
        let reusable = reusable && !state.retired && conn.epoch == core.view.epoch();
        let server = conn.id;
        let Back { grant, closed } = Self::back(core, &mut state, conn, reusable);
        Self::deliver(core, &mut state, Some(server), grant);
        drop(state);
        drop(closed);
    }

    fn lost(&self, core: &Core<E>, server: ServerId) {
        let mut state = self.state.lock();
        let grant = state.pool.lost(core.env.now(), server);
        Self::deliver(core, &mut state, None, grant);
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
    pub(super) fn reconfigure(&self, core: &Core<E>) {
        let settings = core.settings.load();
        let mut closed = Vec::new();
        self.cells.lock().retain(|(key, cell)| {
            let mut state = cell.state.lock();
            let stays =
                settings.node(key.node.as_str()).is_some_and(|node| Address::of(node) == cell.address);
            if stays {
                let surplus = state.pool.set_limits(settings.pool_limits(&key.user));
                closed.extend(Cell::take_idle(&mut state, surplus));
                let grants = state.pool.serve_waiters(core.env.now());
                for grant in grants {
                    Cell::deliver(core, &mut state, None, Some(grant));
                }
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
    pub(super) fn close_stale(&self, core: &Core<E>, node: Option<&NodeName>, floor: Epoch) {
        for cell in self.all() {
            if node.is_some_and(|node| *node != cell.node) {
                continue;
            }
            let mut state = cell.state.lock();
            let stale = state.pool.raise_floor(floor);
            let closed = Cell::take_idle(&mut state, stale);
            for grant in state.pool.serve_waiters(core.env.now()) {
                Cell::deliver(core, &mut state, None, Some(grant));
            }
            drop(state);
            drop(closed);
        }
    }

    /// Closes what is too old or was idle for too long, notices idle connections that died, ends waits whose patience
    /// is over, has connections opened ahead, and brings the counters up to date. While a database may be wanted without
    /// connections, those of pools that no client has used who is still there are closed.
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
                // One that is not there any more was found dead when it was given to a client, which opens another as it.
                let Some(conn) = state.idle.remove(server) else { continue };
                closed.push(conn);
                let grant = state.pool.lost(now, server);
                Cell::deliver(core, &mut state, None, grant);
            }
            for waiter in state.pool.overdue(now) {
                state.waiting.remove(&waiter);
            }
            for grant in state.pool.serve_waiters(now) {
                Cell::deliver(core, &mut state, None, Some(grant));
            }
            // One reference is the list's, one is that of this round.
            let unused = Arc::strong_count(&cell) == 2;
            if state.vacancy.is_wanted(now, cell.traffic.databases.load(Ordering::Relaxed)) && unused {
                let vacated = state.pool.vacate();
                closed.extend(Cell::take_idle(&mut state, vacated));
            } else {
                ahead::begin(core, &cell, &mut state);
            }
            *idle_by_node.entry(cell.node.clone()).or_default() += state.idle.len() as u64;
            drop(state);
            drop(closed);
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
