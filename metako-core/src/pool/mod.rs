//! A pool of server connections to one node, for one database and user, as pure state.
//!
//! The pool knows connections by number; whoever drives it owns the sockets. Connections that began with other start-up
//! parameters are not interchangeable: a [`Variant`] tells them apart, and all variants share the one size limit. Idle
//! connections are reused last in, first out, so that the surplus grows old and is closed; clients of one variant are
//! served first in, first out, and those of other variants overtake each of them a few times at most.
//!
//! No connection is opened for one client only: whoever finds none that is idle waits in line, and so many are opened as
//! wait. What comes back first, or is open first, goes to the first in line, and what is open when nobody waits any more
//! is idle. So whoever drives the pool does this after each change, until there is nothing more to do: hands over what
//! [`Pool::next_grant`] names; if that is nothing, begins to open what [`Pool::open`] names; if that is nothing either,
//! closes what [`Pool::shed`] gives up.

mod line;
mod pace;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use self::line::Waiter;
use self::pace::Pace;
use crate::{Epoch, Tick};

/// Which start-up parameters a connection began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Variant(pub u64);

/// A server connection, or one that is being opened. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u64);

/// A thread that serves clients. An idle connection belongs to one, and is cheapest for the clients there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker(pub u32);

impl Worker {
    /// None of them.
    pub const NONE: Self = Self(u32::MAX);
}

/// A client that waits. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// Bounds of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// Connections, whatever their state.
    pub size: u32,
    /// So many of them are kept open.
    pub min: u32,
    /// So many more than `size` there may be while a client has waited for `reserve_after`.
    pub reserve: u32,
    /// How long that is.
    pub reserve_after: Duration,
    /// Clients that wait.
    pub waiters: usize,
    /// How old an idle connection may become; each is given up to a tenth less, so that not all end at once.
    pub lifetime: Duration,
    /// How long a connection beyond `min` may be idle.
    pub idle_timeout: Duration,
}

/// What a client that asks gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkout {
    /// This idle connection. If it turns out to be dead, [`Pool::lost`] and ask again.
    Reuse(ServerId),
    /// A place in line: a [`Grant`] names it later.
    Wait(WaiterId),
    /// Nothing: too many wait already.
    Full,
}

/// An idle connection for a client that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Who gets it.
    pub waiter: WaiterId,
    /// What it gets.
    pub server: ServerId,
}

/// Leave to open a connection: answered by [`Pool::opened`], and by [`Pool::checkin`] after it, or by [`Pool::failed`] or
/// [`Pool::lost`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// The number of the connection.
    pub server: ServerId,
    /// Because of whom: the connection is of its variant.
    pub waiter: WaiterId,
    /// An idle connection that has to be closed for it; it no longer counts.
    pub close: Option<ServerId>,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    variant: Variant,
    epoch: Epoch,
    opened: Tick,
    /// It is not open yet.
    opening: bool,
    /// By how many thousandths its life is shorter than the limit.
    shortened: u32,
    /// How long it is, then.
    lifetime: Duration,
}

impl Member {
    fn opening(now: Tick, variant: Variant, epoch: Epoch) -> Self {
        Self { variant, epoch, opened: now, opening: true, shortened: 0, lifetime: Duration::MAX }
    }

    fn live_for(&mut self, limits: &PoolLimits) {
        self.lifetime = limits.lifetime * (1000 - self.shortened) / 1000;
    }

    fn is_old(&self, now: Tick) -> bool {
        now.since(self.opened) >= self.lifetime
    }
}

#[derive(Debug, Clone, Copy)]
struct Idle {
    server: ServerId,
    since: Tick,
    /// Where it belongs. What it is does not change while it is idle, so a checkout looks at nothing else.
    worker: Worker,
    member: Member,
}

impl Idle {
    fn serves(&self, variant: Variant, epoch: Epoch) -> bool {
        self.member.variant == variant && self.member.epoch >= epoch
    }
}

/// The state of a pool.
#[derive(Debug)]
pub struct Pool {
    limits: PoolLimits,
    members: BTreeMap<ServerId, Member>,
    idle: Vec<Idle>,
    waiters: VecDeque<Waiter>,
    pace: Pace,
    /// Connections of an epoch before this are closed when they come back.
    floor: Epoch,
    last_number: u64,
}

impl Pool {
    /// An empty pool.
    pub fn new(limits: PoolLimits) -> Self {
        Self {
            limits,
            members: BTreeMap::new(),
            idle: Vec::new(),
            waiters: VecDeque::new(),
            pace: Pace::default(),
            floor: Epoch(0),
            last_number: 0,
        }
    }

    /// Changes the bounds. Idle connections that are too many now are returned, to be closed, and no longer count; those in
    /// use are closed when they come back.
    pub fn set_limits(&mut self, limits: PoolLimits) -> Vec<ServerId> {
        self.limits = limits;
        let idle = self.idle.iter_mut().map(|idle| &mut idle.member);
        self.members.values_mut().chain(idle).for_each(|member| member.live_for(&limits));
        self.shed()
    }

    /// Gives up idle connections beyond the size, the oldest first: to be closed, they no longer count.
    pub fn shed(&mut self) -> Vec<ServerId> {
        let surplus = self.members.len().saturating_sub(self.limits.size as usize);
        let gone: Vec<_> = self.idle.iter().take(surplus).map(|idle| idle.server).collect();
        self.drop_idle(&gone);
        gone
    }

    /// Whether it has no connection and nobody waits.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.waiters.is_empty()
    }

    /// Whether it has no connection, nor is one being opened.
    pub fn is_without_connections(&self) -> bool {
        self.members.is_empty()
    }

    /// A client wants a connection of a variant, opened in `epoch` or later. Clients that wait already come first, but for an
    /// idle connection that is of no use to them.
    pub fn checkout(&mut self, now: Tick, variant: Variant, epoch: Epoch) -> Checkout {
        if self.waiters.is_empty() {
            if let Some(server) = self.take_idle(variant, epoch, Worker::NONE) {
                return Checkout::Reuse(server);
            }
        } else if let Some(server) = self.overtake_to_idle(now, variant, epoch) {
            return Checkout::Reuse(server);
        }
        // For so many a connection is being opened, or can be.
        let to_come = (self.limits.size as usize).saturating_sub(self.members.len() - self.opening());
        if self.waiters.len() >= self.limits.waiters.saturating_add(to_come) {
            return Checkout::Full;
        }
        let id = WaiterId(self.number());
        self.waiters.push_back(Waiter { id, variant, epoch, since: now, overtaken: 0 });
        Checkout::Wait(id)
    }

    /// An idle connection of a variant, opened in `epoch` or later, if there is one and nobody waits: one of `worker`'s,
    /// if it has any.
    pub fn take_idle(&mut self, variant: Variant, epoch: Epoch, worker: Worker) -> Option<ServerId> {
        if !self.waiters.is_empty() {
            return None;
        }
        let fits = |idle: &Idle| idle.serves(variant, epoch);
        let own = |idle: &Idle| idle.worker == worker && fits(idle);
        let at = self.idle.iter().rposition(own).or_else(|| self.idle.iter().rposition(fits))?;
        Some(self.idle.remove(at).server)
    }

    /// Whether there is a place among so many for a new connection, or the oldest idle connection can make one.
    fn has_place(&self, allowed: usize) -> bool {
        self.members.len() < allowed || (self.members.len() == allowed && !self.idle.is_empty())
    }

    fn begin_opening(&mut self, now: Tick, variant: Variant, epoch: Epoch) -> ServerId {
        let server = ServerId(self.number());
        self.members.insert(server, Member::opening(now, variant, epoch));
        server
    }

    /// Connections that are being opened.
    fn opening(&self) -> usize {
        self.members.values().filter(|member| member.opening).count()
    }

    /// Whether the pace allows one more connection to be opened now.
    fn may_open(&self, now: Tick) -> bool {
        self.pace.allows(now, self.opening())
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// A connection is open now, and comes back next, by [`Pool::checkin`]. `random` says how much earlier than others it
    /// ends. The server lets metako in: others may be opened.
    pub fn opened(&mut self, now: Tick, server: ServerId, random: u64) {
        if let Some(member) = self.members.get_mut(&server) {
            *member = Member { opened: now, opening: false, shortened: (random % 101) as u32, ..*member };
            member.live_for(&self.limits);
        }
        self.pace.succeeded();
    }

    /// A connection could not be opened, for a reason that holds for others of any variant as well. For a while, which
    /// grows with each failure and is spread by `random`, no other one is opened, and then one alone until it succeeds.
    pub fn failed(&mut self, now: Tick, server: ServerId, random: u64) {
        self.members.remove(&server);
        self.pace.failed(now, random);
    }

    /// Until when no connection is opened after a failure; `None` if that time is over.
    pub fn pauses_until(&self, now: Tick) -> Option<Tick> {
        self.pace.pauses_until(now)
    }

    /// Leave to open a connection that nobody waits for, so that there are as many as `min` says. One at a time. Answered as
    /// [`Opening`] is.
    pub fn ahead(&mut self, now: Tick, variant: Variant, epoch: Epoch) -> Option<ServerId> {
        let wanted = self.limits.min.min(self.limits.size) as usize;
        let under_way = self.members.values().any(|member| member.opening);
        if under_way || !self.waiters.is_empty() || self.members.len() >= wanted || !self.may_open(now) {
            return None;
        }
        Some(self.begin_opening(now, variant, epoch))
    }

    /// A connection comes back, and belongs to `worker` from now on. `reusable` says whether it is in a state that the next
    /// client may find it in. Whether it is idle now; otherwise it has to be closed, and no longer counts.
    #[must_use]
    pub fn checkin(&mut self, now: Tick, server: ServerId, worker: Worker, reusable: bool) -> bool {
        let Some(member) = self.members.get(&server).copied() else { return false };
        // One beyond the size goes on to whoever waits.
        let reserve = if self.waiters.is_empty() { 0 } else { self.limits.reserve as usize };
        let fresh = reusable
            && member.epoch >= self.floor
            && !member.is_old(now)
            && self.members.len() <= self.limits.size as usize + reserve;
        if fresh {
            self.idle.push(Idle { server, since: now, worker, member });
        } else {
            self.lost(server);
        }
        fresh
    }

    /// A connection is gone, or was not opened after all.
    pub fn lost(&mut self, server: ServerId) {
        if self.members.remove(&server).is_some() {
            self.idle.retain(|idle| idle.server != server);
        }
    }

    /// Whether nothing is left to be done after a change: nobody waits, and there are not too many.
    pub fn is_settled(&self) -> bool {
        self.waiters.is_empty() && self.members.len() <= self.limits.size as usize
    }

    /// Idle connections that are to be closed now: too old, beyond the size, or idle for too long and not needed for `min`.
    /// They no longer count.
    pub fn expire(&mut self, now: Tick) -> Vec<ServerId> {
        let limits = self.limits;
        let mut gone = self.shed();
        let mut spare = self.members.len().saturating_sub(limits.min as usize);
        for idle in &self.idle {
            let unused = now.since(idle.since) >= limits.idle_timeout;
            if idle.member.is_old(now) || (spare > 0 && unused) {
                gone.push(idle.server);
                spare = spare.saturating_sub(1);
            }
        }
        self.drop_idle(&gone);
        gone
    }

    /// Connections of an epoch before `floor` serve nobody any more: those that are idle, to be closed now, are
    /// returned and no longer count; those in use are closed when they come back.
    pub fn raise_floor(&mut self, floor: Epoch) -> Vec<ServerId> {
        self.floor = self.floor.max(floor);
        let stale = self.idle.iter().filter(|idle| idle.member.epoch < self.floor);
        let gone: Vec<_> = stale.map(|idle| idle.server).collect();
        self.drop_idle(&gone);
        gone
    }

    /// All that are idle, to be closed now. They no longer count.
    pub fn vacate(&mut self) -> Vec<ServerId> {
        let gone: Vec<_> = self.idle.iter().map(|idle| idle.server).collect();
        self.drop_idle(&gone);
        gone
    }

    fn drop_idle(&mut self, gone: &[ServerId]) {
        for server in gone {
            self.members.remove(server);
        }
        self.idle.retain(|idle| !gone.contains(&idle.server));
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
