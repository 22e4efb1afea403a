//! The line before a pool: who is served next, and with what.

use super::{Grant, Place, Pool, ServerId, Variant, WaiterId};
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
    pub(super) deadline: Tick,
    pub(super) overtaken: u8,
}

impl Pool {
    /// An idle connection for a client that has just come, past all who wait.
    pub(super) fn overtake_to_idle(&mut self, now: Tick, variant: Variant, epoch: Epoch) -> Option<ServerId> {
        if self.waiters.iter().any(|waiter| waiter.variant == variant) || !self.may_overtake(now) {
            return None;
        }
        let at = self.idle.iter().rposition(|idle| idle.serves(variant, epoch))?;
        self.overtaken(self.waiters.len());
        Some(self.idle.remove(at).server)
    }

    /// What the next in line can have now, if anything. To be asked again after each grant until there is none: what comes
    /// back may let one open a connection and another use what is idle.
    pub fn grant(&mut self, now: Tick) -> Option<Grant> {
        if self.waiters.is_empty() {
            return None;
        }
        self.grant_idle(now).or_else(|| self.grant_open(now))
    }

    /// An idle connection for the first whom one fits, unless that would be the turn of the first in line.
    fn grant_idle(&mut self, now: Tick) -> Option<Grant> {
        let fitting =
            |waiter: &Waiter| self.idle.iter().rposition(|idle| idle.serves(waiter.variant, waiter.epoch));
        let (at, idle) =
            self.waiters.iter().enumerate().find_map(|(at, waiter)| Some((at, fitting(waiter)?)))?;
        if at > 0 && !self.may_overtake(now) {
            return None;
        }
        self.overtaken(at);
        let waiter = self.waiters.remove(at)?;
        Some(Grant::Reuse(waiter.id, self.idle.remove(idle).server))
    }

    /// Leave for the first in line to open a connection, if there is a place and the pace allows it.
    fn grant_open(&mut self, now: Tick) -> Option<Grant> {
        if !self.may_open(now) {
            return None;
        }
        let Place { close } = self.place(self.allowed(now))?;
        let waiter = self.waiters.pop_front()?;
        let server = self.begin_opening(now, waiter.variant, waiter.epoch.max(self.floor));
        Some(Grant::Open { waiter: waiter.id, server, close })
    }

    /// Whether the first in line can be overtaken: not so often yet, or it could not be served now all the same.
    fn may_overtake(&self, now: Tick) -> bool {
        let allowed = self.allowed(now);
        let place = self.members.len() < allowed || (self.members.len() == allowed && !self.idle.is_empty());
        let servable = place && self.may_open(now);
        !servable || self.waiters.front().is_none_or(|first| first.overtaken < OVERTAKEN_MAX)
    }

    /// The first so many in line were overtaken.
    fn overtaken(&mut self, first: usize) {
        for waiter in self.waiters.iter_mut().take(first) {
            waiter.overtaken = waiter.overtaken.saturating_add(1);
        }
    }

    /// How many connections there may be now: more than the size while the first in line has waited for long.
    fn allowed(&self, now: Tick) -> usize {
        let size = self.limits.size as usize;
        match self.waiters.front() {
            Some(first) if now.since(first.since) >= self.limits.reserve_after => {
                size + self.limits.reserve as usize
            }
            _ => size,
        }
    }

    /// A client waits no longer. Whether it was still waiting: if not, its grant is under way and has to be given back.
    pub fn cancel(&mut self, waiter: WaiterId) -> bool {
        let before = self.waiters.len();
        self.waiters.retain(|waiting| waiting.id != waiter);
        self.waiters.len() < before
    }

    /// Clients whose patience has ended. They no longer wait.
    pub fn overdue(&mut self, now: Tick) -> Vec<WaiterId> {
        let gone = self.waiters.iter().filter(|waiter| waiter.deadline <= now).map(|waiter| waiter.id);
        let gone: Vec<_> = gone.collect();
        self.waiters.retain(|waiter| waiter.deadline > now);
        gone
    }

    /// Clients that can be served because places became free by closing idle connections or by a larger size, because the
    /// first has waited so long that the reserve is for it, or because a pause after a failure is over.
    pub fn serve_waiters(&mut self, now: Tick) -> Vec<Grant> {
        std::iter::from_fn(|| self.grant(now)).collect()
    }
}
