//! A pool of server connections to one node, for one database and user, as pure state.
//!
//! The pool knows connections by number; whoever drives it owns the sockets. Connections that began with other start-up
//! parameters are not interchangeable: a [`Variant`] tells them apart, and all variants share the one size limit. Idle
//! connections are reused last in, first out, so that the surplus grows old and is closed; clients are served first in,
//! first out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

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
    /// Clients that wait.
    pub waiters: usize,
    /// How old an idle connection may become.
    pub lifetime: Duration,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
}

/// What a client that asks gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkout {
    /// This idle connection. If it turns out to be dead, [`Pool::lost`] and ask again.
    Reuse(ServerId),
    /// Leave to open a connection under this number: answered by [`Pool::opened`] or [`Pool::lost`].
    Open {
        /// The number.
        server: ServerId,
        /// An idle connection of another variant that has to be closed for it; it no longer counts.
        close: Option<ServerId>,
    },
    /// A place in the queue: a [`Grant`] names it later.
    Wait(WaiterId),
    /// Nothing: too many wait already.
    Full,
}

/// What a client that waited gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The connection that was just given back.
    Reuse(WaiterId, ServerId),
    /// Leave to open a connection, as in [`Checkout::Open`].
    Open(WaiterId, ServerId),
}

/// What becomes of a connection that is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkin {
    /// It has to be closed; it no longer counts.
    pub close: bool,
    /// A waiting client that is served now.
    pub grant: Option<Grant>,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    variant: Variant,
    epoch: Epoch,
    opened: Tick,
    worker: Worker,
}

#[derive(Debug, Clone, Copy)]
struct Idle {
    server: ServerId,
    since: Tick,
}

#[derive(Debug, Clone, Copy)]
struct Waiter {
    id: WaiterId,
    variant: Variant,
    deadline: Tick,
}

/// The state of a pool.
#[derive(Debug)]
pub struct Pool {
    limits: PoolLimits,
    members: BTreeMap<ServerId, Member>,
    idle: Vec<Idle>,
    waiters: VecDeque<Waiter>,
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
            floor: Epoch(0),
            last_number: 0,
        }
    }

    /// Changes the bounds. What is above them now shrinks as connections come back and expire.
    pub fn set_limits(&mut self, limits: PoolLimits) {
        self.limits = limits;
    }

    /// Connections open or being opened.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether it has no connection and nobody waits.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.waiters.is_empty()
    }

    /// Connections that are idle.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Clients that wait.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// A client wants a connection of a variant, opened in `epoch` or later. Clients that wait already come first.
    pub fn checkout(&mut self, now: Tick, variant: Variant, epoch: Epoch, patience: Duration) -> Checkout {
        if self.waiters.is_empty() {
            if let Some(server) = self.take_idle(variant, epoch, Worker::NONE) {
                return Checkout::Reuse(server);
            }
            if let Some((server, close)) = self.room(now, variant, epoch) {
                return Checkout::Open { server, close };
            }
        }
        if self.waiters.len() >= self.limits.waiters {
            return Checkout::Full;
        }
        let id = WaiterId(self.number());
        self.waiters.push_back(Waiter { id, variant, deadline: now + patience });
        Checkout::Wait(id)
    }

    /// An idle connection of a variant, opened in `epoch` or later, if there is one and nobody waits: one of `worker`'s,
    /// if it has any.
    pub fn take_idle(&mut self, variant: Variant, epoch: Epoch, worker: Worker) -> Option<ServerId> {
        if !self.waiters.is_empty() {
            return None;
        }
        let fits = |idle: &Idle| self.serves(idle.server, variant, epoch);
        let own = |idle: &Idle| {
            self.members.get(&idle.server).is_some_and(|member| member.worker == worker) && fits(idle)
        };
        let at = self.idle.iter().rposition(own).or_else(|| self.idle.iter().rposition(fits))?;
        Some(self.idle.remove(at).server)
    }

    /// Notes that a connection belongs to `worker` now.
    pub fn settled(&mut self, server: ServerId, worker: Worker) {
        if let Some(member) = self.members.get_mut(&server) {
            member.worker = worker;
        }
    }

    fn serves(&self, server: ServerId, variant: Variant, epoch: Epoch) -> bool {
        self.members.get(&server).is_some_and(|member| member.variant == variant && member.epoch >= epoch)
    }

    /// A place for a new connection, if there is one or an idle connection can make one.
    fn room(&mut self, now: Tick, variant: Variant, epoch: Epoch) -> Option<(ServerId, Option<ServerId>)> {
        let mut close = None;
        if self.members.len() >= self.limits.size as usize {
            if self.idle.is_empty() || self.members.len() > self.limits.size as usize {
                return None;
            }
            let oldest = self.idle.remove(0).server;
            self.members.remove(&oldest);
            close = Some(oldest);
        }
        let server = ServerId(self.number());
        self.members.insert(server, Member { variant, epoch, opened: now, worker: Worker::NONE });
        Some((server, close))
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// A connection is open now, and in use by the client that opened it.
    pub fn opened(&mut self, now: Tick, server: ServerId) {
        if let Some(member) = self.members.get_mut(&server) {
            member.opened = now;
        }
    }

    /// A connection comes back. `reusable` says whether it is in a state that the next client may find it in.
    pub fn checkin(&mut self, now: Tick, server: ServerId, reusable: bool) -> Checkin {
        let Some(member) = self.members.get(&server).copied() else {
            return Checkin { close: true, grant: None };
        };
        let fresh = reusable
            && member.epoch >= self.floor
            && now.since(member.opened) < self.limits.lifetime
            && self.members.len() <= self.limits.size as usize;
        if !fresh {
            return Checkin { close: true, grant: self.lost(now, server) };
        }
        match self.waiters.pop_front() {
            None => {
                self.idle.push(Idle { server, since: now });
                Checkin { close: false, grant: None }
            }
            Some(waiter) if waiter.variant == member.variant => {
                Checkin { close: false, grant: Some(Grant::Reuse(waiter.id, server)) }
            }
            Some(waiter) => {
                self.members.remove(&server);
                let grant = self.open_for(now, waiter);
                Checkin { close: true, grant: Some(grant) }
            }
        }
    }

    fn open_for(&mut self, now: Tick, waiter: Waiter) -> Grant {
        let server = ServerId(self.number());
        let member = Member { variant: waiter.variant, epoch: self.floor, opened: now, worker: Worker::NONE };
        self.members.insert(server, member);
        Grant::Open(waiter.id, server)
    }

    /// A connection is gone, or could not be opened. Its place goes to a client that waits.
    pub fn lost(&mut self, now: Tick, server: ServerId) -> Option<Grant> {
        self.members.remove(&server)?;
        self.idle.retain(|idle| idle.server != server);
        if self.members.len() >= self.limits.size as usize {
            return None;
        }
        let waiter = self.waiters.pop_front()?;
        Some(self.open_for(now, waiter))
    }

    /// The epoch in which a connection is opened, as far as it is known better than at checkout.
    pub fn set_epoch(&mut self, server: ServerId, epoch: Epoch) {
        if let Some(member) = self.members.get_mut(&server) {
            member.epoch = epoch;
        }
    }

    /// A client waits no longer. Whether it was still waiting: if not, its grant is under way and has to be given back.
    pub fn cancel(&mut self, waiter: WaiterId) -> bool {
        let before = self.waiters.len();
        self.waiters.retain(|waiting| waiting.id != waiter);
        self.waiters.len() < before
    }

    /// Idle connections that are to be closed now: too old, or idle for too long. They no longer count.
    pub fn expire(&mut self, now: Tick) -> Vec<ServerId> {
        let (members, limits) = (&self.members, self.limits);
        let expired = |idle: &Idle| {
            let old =
                members.get(&idle.server).is_none_or(|member| now.since(member.opened) >= limits.lifetime);
            old || now.since(idle.since) >= limits.idle_timeout
        };
        let gone: Vec<_> = self.idle.iter().filter(|idle| expired(idle)).map(|idle| idle.server).collect();
        self.drop_idle(&gone);
        gone
    }

    /// Clients whose patience has ended. They no longer wait.
    pub fn overdue(&mut self, now: Tick) -> Vec<WaiterId> {
        let gone = self.waiters.iter().filter(|waiter| waiter.deadline <= now).map(|waiter| waiter.id);
        let gone: Vec<_> = gone.collect();
        self.waiters.retain(|waiter| waiter.deadline > now);
        gone
    }

    /// Connections of an epoch before `floor` serve nobody any more: those that are idle, to be closed now, are
    /// returned and no longer count; those in use are closed when they come back.
    pub fn raise_floor(&mut self, floor: Epoch) -> Vec<ServerId> {
        self.floor = self.floor.max(floor);
        let floor = self.floor;
        let stale = |server: &ServerId| self.members.get(server).is_none_or(|member| member.epoch < floor);
        let gone: Vec<_> = self.idle.iter().map(|idle| idle.server).filter(stale).collect();
        self.drop_idle(&gone);
        gone
    }

    fn drop_idle(&mut self, gone: &[ServerId]) {
        for server in gone {
            self.members.remove(server);
        }
        self.idle.retain(|idle| !gone.contains(&idle.server));
    }

    /// Clients that can be served because places became free by closing idle connections or by a larger size.
    pub fn serve_waiters(&mut self, now: Tick) -> Vec<Grant> {
        let mut grants = Vec::new();
        while self.members.len() < self.limits.size as usize
            && let Some(waiter) = self.waiters.pop_front()
        {
            let grant = self.open_for(now, waiter);
            grants.push(grant);
        }
        grants
    }
}

#[cfg(test)]
mod tests;
