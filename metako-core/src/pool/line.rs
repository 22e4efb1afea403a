//! The line before a pool: who is served next, and with what.

use super::{Grant, Idle, Opening, Pool, ServerId, Variant, WaiterId};
use crate::{Epoch, Tick};

/// How often a client that waits is overtaken by clients whose variant fits what came back. Each time saves closing a good
/// connection and opening another.
pub(super) const OVERTAKEN_MAX: u8 = 3;

#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    pub(super) id: WaiterId,
    pub(super) variant: Variant,
    pub(super) epoch: Epoch,
    pub(super) since: Tick,
    pub(super) overtaken: u8,
}

impl Pool {
    /// An idle connection for a client that has just come, past all who wait.
    pub(super) fn overtake_to_idle(&mut self, now: Tick, variant: Variant, epoch: Epoch) -> Option<ServerId> {
        let behind = self.waiters.len();
        if self.waiters.iter().any(|waiter| waiter.variant == variant) || !self.may_overtake(now, behind) {
            return None;
        }
        let at = self.idle.iter().rposition(|idle| idle.serves(variant, epoch))?;
        self.overtaken(behind);
        Some(self.idle.remove(at).server)
    }

    /// An idle connection for the first in line whom one fits, unless that would be the turn of one before. Answered by
    /// [`Pool::hand_over`], or by [`Pool::lost`] where it turns out to be dead; then there may be more.
    pub fn next_grant(&self, now: Tick) -> Option<Grant> {
        if self.idle.is_empty() {
            return None;
        }
        let fitting =
            |waiter: &Waiter| self.idle.iter().rev().find(|idle| idle.serves(waiter.variant, waiter.epoch));
        let (at, waiter, idle) = self
            .waiters
            .iter()
            .enumerate()
            .find_map(|(at, waiter)| Some((at, waiter.id, fitting(waiter)?)))?;
        self.may_overtake(now, at).then_some(Grant { waiter, server: idle.server })
    }

    /// A client has what it was granted, and waits no longer.
    pub fn hand_over(&mut self, grant: Grant) {
        if let Some(at) = self.position(grant.waiter) {
            self.overtaken(at);
            self.waiters.remove(at);
        }
        self.idle.retain(|idle| idle.server != grant.server);
    }

    /// Leave to open a connection for the first in line for whom none is being opened, if there is a place and the pace
    /// allows it. To be asked again until there is none.
    pub fn open(&mut self, now: Tick) -> Option<Opening> {
        // Nobody has waited for longer than the first.
        if !self.has_place(self.allowed(now, self.waiters.front()?)) || !self.may_open(now) {
            return None;
        }
        let waiter = *self.unserved().next()?.1;
        let allowed = self.allowed(now, &waiter);
        if !self.has_place(allowed) {
            return None;
        }
        let close = (self.members.len() == allowed).then(|| self.idle.remove(self.least_wanted()).server);
        if let Some(closed) = close {
            self.members.remove(&closed);
        }
        let server = self.begin_opening(now, waiter.variant, waiter.epoch);
        Some(Opening { server, waiter: waiter.id, close })
    }

    /// Which idle connection is closed for another one: the oldest of those that fit nobody in line, if there are any.
    fn least_wanted(&self) -> usize {
        let fits = |idle: &Idle| self.waiters.iter().any(|waiter| idle.serves(waiter.variant, waiter.epoch));
        self.idle.iter().position(|idle| !fits(idle)).unwrap_or(0)
    }

    /// Where in line a client is. Their numbers ascend.
    fn position(&self, waiter: WaiterId) -> Option<usize> {
        self.waiters.binary_search_by_key(&waiter, |waiting| waiting.id).ok()
    }

    /// How many are in line before a client; `None` if a connection is being opened for it, or it does not wait.
    pub fn place_in_line(&self, waiter: WaiterId) -> Option<usize> {
        if self.opening() == 0 {
            return self.position(waiter);
        }
        self.unserved().find(|(_, unserved)| unserved.id == waiter).map(|(at, _)| at)
    }

    /// Clients in line for whom no connection is being opened.
    pub fn without_opening(&self) -> Vec<WaiterId> {
        self.unserved().map(|(_, waiter)| waiter.id).collect()
    }

    /// Those in line for whom no connection is being opened, with their places.
    pub(super) fn unserved(&self) -> impl Iterator<Item = (usize, &Waiter)> {
        let mut opening: Vec<_> = self.members.values().filter(|member| member.opening).collect();
        self.waiters.iter().enumerate().filter(move |(_, waiter)| {
            let at = opening
                .iter()
                .position(|member| member.variant == waiter.variant && member.epoch >= waiter.epoch);
            at.map(|at| opening.swap_remove(at)).is_none()
        })
    }

    /// Whether those before a place in line can be overtaken: not so often yet, or none of them could have a connection
    /// opened now all the same.
    fn may_overtake(&self, now: Tick, place: usize) -> bool {
        let first = self.unserved().next().filter(|(at, _)| *at < place);
        first.is_none_or(|(_, first)| {
            first.overtaken < OVERTAKEN_MAX
                || !self.has_place(self.allowed(now, first))
                || !self.may_open(now)
        })
    }

    /// The first so many in line were overtaken.
    fn overtaken(&mut self, first: usize) {
        for waiter in self.waiters.iter_mut().take(first) {
            waiter.overtaken = waiter.overtaken.saturating_add(1);
        }
    }

    /// How many connections there may be for a client: more than the size when it has waited for long.
    fn allowed(&self, now: Tick, waiter: &Waiter) -> usize {
        let size = self.limits.size as usize;
        if now.since(waiter.since) >= self.limits.reserve_after {
            return size + self.limits.reserve as usize;
        }
        size
    }

    /// A client waits no longer. If it does not wait, what it was granted is under way and has to be given back.
    pub fn cancel(&mut self, waiter: WaiterId) {
        if let Some(at) = self.position(waiter) {
            self.waiters.remove(at);
        }
    }

    /// Clients that want a connection of an epoch before `epoch`. They no longer wait.
    pub fn outdated(&mut self, epoch: Epoch) -> Vec<WaiterId> {
        let gone: Vec<_> =
            self.waiters.iter().filter(|waiter| waiter.epoch < epoch).map(|waiter| waiter.id).collect();
        self.waiters.retain(|waiter| waiter.epoch >= epoch);
        gone
    }
}
