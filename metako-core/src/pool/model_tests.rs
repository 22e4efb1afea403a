//! A pool and its clients at random: nobody is forgotten, overtaken too often or given what is another's.

use proptest::prelude::*;

use super::line::OVERTAKEN_MAX;
use super::tests::{A, B, LIMITS, Settled, settle};
use super::*;

#[derive(Debug, Clone)]
enum Step {
    Checkout(bool),
    Opened(usize),
    Failed(usize),
    Refused(usize),
    Return(usize, bool),
    Cancel(usize),
    KeepHouse,
    Ahead,
    Raise,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => any::<bool>().prop_map(Step::Checkout),
        5 => any::<usize>().prop_map(Step::Opened),
        1 => any::<usize>().prop_map(Step::Failed),
        1 => any::<usize>().prop_map(Step::Refused),
        4 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(n, clean)| Step::Return(n, clean)),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => Just(Step::KeepHouse),
        1 => Just(Step::Ahead),
        1 => Just(Step::Raise),
    ];
    prop::collection::vec(step, 0..200)
}

/// A pool with what its clients know.
struct World {
    pool: Pool,
    limits: PoolLimits,
    now: Tick,
    epoch: Epoch,
    used: Vec<ServerId>,
    opening: Vec<ServerId>,
    /// Those who wait, and how often a later one was served before them.
    line: Vec<(WaiterId, Variant, u8)>,
    ever_failed: bool,
}

impl World {
    fn new(limits: PoolLimits) -> Self {
        Self {
            pool: Pool::new(limits),
            limits,
            now: Tick::ZERO,
            epoch: Epoch(0),
            used: Vec::new(),
            opening: Vec::new(),
            line: Vec::new(),
            ever_failed: false,
        }
    }

    fn step(&mut self, step: &Step) {
        self.now = self.now + Duration::from_millis(700);
        let (now, epoch) = (self.now, self.epoch);
        match *step {
            Step::Checkout(a) => {
                let variant = if a { A } else { B };
                match self.pool.checkout(now, variant, epoch) {
                    Checkout::Reuse(server) => {
                        for (_, other, overtaken) in &mut self.line {
                            assert_ne!(*other, variant, "served past those who wait");
                            *overtaken += 1;
                        }
                        self.used.push(server);
                    }
                    Checkout::Wait(waiter) => self.line.push((waiter, variant, 0)),
                    Checkout::Full => {
                        let open = self.used.len() + self.pool.idle();
                        let to_come = (self.limits.size as usize).saturating_sub(open);
                        assert_eq!(self.line.len(), self.limits.waiters + to_come);
                    }
                }
            }
            Step::Opened(n) if !self.opening.is_empty() => {
                let server = self.opening.remove(n % self.opening.len());
                self.pool.opened(now, server, n as u64);
                let _kept = self.pool.checkin(now, server, Worker::NONE, true);
            }
            Step::Failed(n) if !self.opening.is_empty() => {
                self.ever_failed = true;
                let server = self.opening.remove(n % self.opening.len());
                self.pool.failed(now, server, n as u64);
            }
            Step::Refused(n) if !self.opening.is_empty() => {
                self.ever_failed = true;
                self.pool.lost(self.opening.remove(n % self.opening.len()));
            }
            Step::Return(n, clean) if !self.used.is_empty() => {
                let server = self.used.remove(n % self.used.len());
                let _kept = self.pool.checkin(now, server, Worker::NONE, clean);
            }
            Step::Cancel(n) if !self.line.is_empty() => {
                let (waiter, ..) = self.line.remove(n % self.line.len());
                self.pool.cancel(waiter);
            }
            Step::KeepHouse => self.keep_house(),
            Step::Ahead => {
                if let Some(server) = self.pool.ahead(now, A, epoch) {
                    assert!(self.line.is_empty() && self.opening.is_empty());
                    assert!(self.pool.len() <= self.limits.min as usize);
                    self.opening.push(server);
                }
            }
            Step::Raise => {
                self.epoch = epoch.next();
                self.pool.raise_floor(self.epoch);
                self.keep_house();
            }
            Step::Opened(_) | Step::Failed(_) | Step::Refused(_) | Step::Return(..) | Step::Cancel(_) => {}
        }
        self.settle();
        self.check();
    }

    fn keep_house(&mut self) {
        self.pool.expire(self.now);
        for waiter in self.pool.outdated(self.epoch) {
            let before = self.line.len();
            self.line.retain(|(id, ..)| *id != waiter);
            assert_eq!(self.line.len() + 1, before);
        }
    }

    /// Each grant names somebody who waits, the first of its variant; nothing is opened but for those.
    fn settle(&mut self) {
        let Settled { grants, openings, .. } = settle(&mut self.pool, self.now);
        for Grant { waiter, server } in grants {
            let at = self.line.iter().position(|(id, ..)| *id == waiter).expect("it waits");
            let (_, variant, _) = self.line.remove(at);
            for (_, other, overtaken) in &mut self.line[..at] {
                assert_ne!(*other, variant, "not first come, first served");
                *overtaken += 1;
            }
            self.used.push(server);
        }
        for Opening { waiter, server, .. } in openings {
            assert!(self.line.iter().any(|(id, ..)| *id == waiter), "it waits");
            self.opening.push(server);
        }
    }

    fn check(&self) {
        let (size, all) = (self.limits.size as usize, (self.limits.size + self.limits.reserve) as usize);
        assert!(self.pool.len() <= all);
        assert_eq!(self.pool.len(), self.used.len() + self.opening.len() + self.pool.idle());
        assert_eq!(self.pool.waiting(), self.line.len());
        assert!(self.line.len() <= self.limits.waiters + size);
        // Whoever waits while nothing is opened does so because every place is taken, or because of a failure.
        let mut unserved = self.pool.unserved();
        assert!(
            unserved.next().is_none()
                || !self.pool.may_open(self.now)
                || self.used.len() + self.opening.len() >= size,
            "{:?}",
            self.pool
        );
        // What is idle is of use to nobody who waits.
        let fits = |variant: Variant| self.pool.idle.iter().any(|idle| idle.member.variant == variant);
        assert!(
            self.line.iter().all(|(_, variant, _)| !fits(*variant)),
            "{:?} wait beside {:?}",
            self.line,
            self.pool.idle
        );
        if let Some((first, _)) = self.pool.unserved().next()
            && !self.ever_failed
        {
            assert!(self.line[first].2 <= OVERTAKEN_MAX, "{:?}", self.line);
        }
    }

    /// All that is under way ends well, and nobody new comes.
    fn end(&mut self) {
        for _ in 0..100 {
            self.step(&Step::Opened(0));
            self.step(&Step::Return(0, true));
            self.now = self.now + Duration::from_secs(1);
            self.step(&Step::Ahead);
        }
    }
}

proptest! {
    #[test]
    fn the_size_holds_and_nobody_is_forgotten_or_overtaken(
        steps in steps(), size in 1u32..4, min in 0u32..3, reserve in 0u32..3,
    ) {
        let mut world = World::new(PoolLimits { size, min, reserve, ..LIMITS });
        for step in &steps {
            world.step(step);
        }
        world.end();
        prop_assert!(world.line.is_empty() && world.used.is_empty() && world.opening.is_empty());
        prop_assert!(world.pool.idle() >= min.min(size) as usize, "{} are kept", world.pool.idle());
    }
}
