use proptest::prelude::*;

use super::line::OVERTAKEN_MAX;
use super::*;

const LIMITS: PoolLimits = PoolLimits {
    size: 2,
    min: 0,
    reserve: 0,
    reserve_after: Duration::from_secs(5),
    waiters: 3,
    lifetime: Duration::from_secs(3600),
    idle_timeout: Duration::from_secs(600),
};
const A: Variant = Variant(1);
const B: Variant = Variant(2);
const PATIENCE: Duration = Duration::from_secs(30);

fn open(pool: &mut Pool, variant: Variant) -> ServerId {
    match pool.checkout(Tick::ZERO, variant, Epoch(0), PATIENCE) {
        Checkout::Open { server, .. } => {
            assert_eq!(pool.opened(Tick::ZERO, server, 0), None);
            server
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_connection_given_back_last_is_used_first() {
    let mut pool = Pool::new(LIMITS);
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    pool.checkin(Tick::ZERO, first, Worker::NONE, true);
    pool.checkin(Tick::ZERO, second, Worker::NONE, true);
    assert_eq!(pool.checkout(Tick::ZERO, A, Epoch(0), PATIENCE), Checkout::Reuse(second));
}

#[test]
fn a_worker_uses_its_own_connections_before_those_of_others() {
    let mut pool = Pool::new(LIMITS);
    let (here, there) = (open(&mut pool, A), open(&mut pool, A));
    pool.checkin(Tick::ZERO, here, Worker(0), true);
    pool.checkin(Tick::ZERO, there, Worker(1), true);
    assert_eq!(pool.take_idle(A, Epoch(0), Worker(0)), Some(here));
    assert_eq!(pool.take_idle(A, Epoch(0), Worker(0)), Some(there));
    assert_eq!(pool.take_idle(A, Epoch(0), Worker(0)), None);
}

#[test]
fn clients_wait_in_line_and_a_line_that_is_too_long_takes_nobody() {
    let mut pool = Pool::new(LIMITS);
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    let mut wait = || match pool.checkout(Tick::ZERO, A, Epoch(0), PATIENCE) {
        Checkout::Wait(id) => id,
        other => panic!("{other:?}"),
    };
    let (one, two, three) = (wait(), wait(), wait());
    assert_eq!(pool.checkout(Tick::ZERO, A, Epoch(0), PATIENCE), Checkout::Full);
    assert!(pool.cancel(two));
    assert!(!pool.cancel(two));
    assert_eq!(pool.checkin(Tick::ZERO, first, Worker::NONE, true).grant, Some(Grant::Reuse(one, first)));
    let broken = pool.checkin(Tick::ZERO, second, Worker::NONE, false);
    assert!(broken.close);
    assert!(matches!(broken.grant, Some(Grant::Open { waiter, .. }) if waiter == three));
}

#[test]
fn another_variant_takes_the_place_of_an_idle_connection() {
    let mut pool = Pool::new(LIMITS);
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    pool.checkin(Tick::ZERO, first, Worker::NONE, true);
    match pool.checkout(Tick::ZERO, B, Epoch(0), PATIENCE) {
        Checkout::Open { close, .. } => assert_eq!(close, Some(first)),
        other => panic!("{other:?}"),
    }
    let Checkout::Wait(waiter) = pool.checkout(Tick::ZERO, B, Epoch(0), PATIENCE) else { panic!() };
    let back = pool.checkin(Tick::ZERO, second, Worker::NONE, true);
    assert!(
        back.close && matches!(back.grant, Some(Grant::Open { waiter: granted, .. }) if granted == waiter)
    );
    assert_eq!(pool.len(), 2);
}

#[test]
fn connections_of_an_older_epoch_serve_nobody() {
    let mut pool = Pool::new(LIMITS);
    let (idle, used) = (open(&mut pool, A), open(&mut pool, A));
    pool.checkin(Tick::ZERO, idle, Worker::NONE, true);
    assert_eq!(pool.raise_floor(Epoch(1)), [idle]);
    assert!(pool.checkin(Tick::ZERO, used, Worker::NONE, true).close);
    assert!(pool.is_empty());
}

#[test]
fn what_is_idle_can_be_closed_and_what_is_in_use_stays() {
    let mut pool = Pool::new(LIMITS);
    let (idle, used) = (open(&mut pool, A), open(&mut pool, A));
    pool.checkin(Tick::ZERO, idle, Worker::NONE, true);
    assert_eq!(pool.vacate(), [idle]);
    assert_eq!((pool.len(), pool.idle()), (1, 0));
    assert!(!pool.checkin(Tick::ZERO, used, Worker::NONE, true).close);
    assert_eq!(pool.vacate(), [used]);
    assert!(pool.is_empty());
}

#[test]
fn old_and_idle_connections_expire_and_patience_ends() {
    let mut pool = Pool::new(LIMITS);
    let server = open(&mut pool, A);
    pool.checkin(Tick::ZERO, server, Worker::NONE, true);
    assert!(pool.expire(Tick::from_millis(599_999)).is_empty());
    assert_eq!(pool.expire(Tick::from_millis(600_000)), [server]);
    let old = open(&mut pool, A);
    assert!(pool.checkin(Tick::from_millis(3_600_000), old, Worker::NONE, true).close);
    let (_, _) = (open(&mut pool, A), open(&mut pool, A));
    let Checkout::Wait(waiter) = pool.checkout(Tick::ZERO, A, Epoch(0), PATIENCE) else { panic!() };
    assert!(pool.overdue(Tick::from_millis(29_999)).is_empty());
    assert_eq!(pool.overdue(Tick::from_millis(30_000)), [waiter]);
    assert_eq!(pool.waiting(), 0);
}

fn seconds(seconds: u64) -> Tick {
    Tick::from_millis(seconds * 1000)
}

fn wait(pool: &mut Pool, now: Tick, variant: Variant) -> WaiterId {
    match pool.checkout(now, variant, Epoch(0), PATIENCE) {
        Checkout::Wait(id) => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn connections_end_at_different_times_but_not_much_earlier() {
    for (random, lives) in [(0, 3_600_000), (50, 3_420_000), (100, 3_240_000), (201, 3_240_000)] {
        let mut pool = Pool::new(PoolLimits { idle_timeout: Duration::from_secs(9999), ..LIMITS });
        let Checkout::Open { server, .. } = pool.checkout(Tick::ZERO, A, Epoch(0), PATIENCE) else {
            panic!()
        };
        pool.opened(Tick::ZERO, server, random);
        pool.checkin(Tick::ZERO, server, Worker::NONE, true);
        assert_eq!(pool.expire(Tick::from_millis(lives - 1)), []);
        assert_eq!(pool.expire(Tick::from_millis(lives)), [server]);
    }
}

#[test]
fn the_reserve_is_for_those_who_waited_long_and_goes_when_nobody_waits() {
    let mut pool = Pool::new(PoolLimits { reserve: 1, ..LIMITS });
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    let (one, two) = (wait(&mut pool, seconds(0), A), wait(&mut pool, seconds(4), A));
    assert_eq!(pool.serve_waiters(Tick::from_millis(4999)), []);
    let [Grant::Open { waiter: granted, server: third, .. }] = pool.serve_waiters(seconds(5))[..] else {
        panic!()
    };
    assert_eq!(granted, one);
    // The one behind has waited for less, and then the reserve is used up.
    assert_eq!(pool.opened(seconds(5), third, 0), None);
    assert_eq!(pool.serve_waiters(seconds(10)), []);
    assert_eq!(pool.checkin(seconds(10), third, Worker::NONE, true).grant, Some(Grant::Reuse(two, third)));
    assert!(pool.checkin(seconds(11), third, Worker::NONE, true).close);
    assert!(!pool.checkin(seconds(11), first, Worker::NONE, true).close);
    assert!(!pool.checkin(seconds(11), second, Worker::NONE, true).close);
}

#[test]
fn so_many_as_wanted_are_opened_ahead_one_at_a_time_and_kept() {
    let mut pool = Pool::new(PoolLimits { min: 2, size: 3, ..LIMITS });
    let first = open(&mut pool, B);
    pool.checkin(Tick::ZERO, first, Worker::NONE, true);
    let second = pool.ahead(Tick::ZERO, B, Epoch(0)).unwrap();
    assert_eq!(pool.ahead(Tick::ZERO, B, Epoch(0)), None, "one is under way");
    pool.opened(Tick::ZERO, second, 0);
    assert_eq!(pool.checkin(Tick::ZERO, second, Worker::NONE, true), Checkin { close: false, grant: None });
    assert_eq!(pool.ahead(Tick::ZERO, B, Epoch(0)), None, "there are enough");
    let third = {
        let (Checkout::Reuse(a), Checkout::Reuse(b)) = (
            pool.checkout(Tick::ZERO, B, Epoch(0), PATIENCE),
            pool.checkout(Tick::ZERO, B, Epoch(0), PATIENCE),
        ) else {
            panic!()
        };
        let third = open(&mut pool, B);
        for server in [a, b, third] {
            pool.checkin(Tick::ZERO, server, Worker::NONE, true);
        }
        third
    };
    // Only the surplus goes for being idle, all go for being old.
    let gone = pool.expire(seconds(1000));
    assert_eq!((gone.len(), pool.len()), (1, 2));
    assert!(!gone.contains(&third));
    assert_eq!(pool.expire(seconds(3600)).len(), 2);
    assert!(pool.ahead(seconds(3600), B, Epoch(0)).is_some());
}

#[test]
fn a_few_are_opened_at_a_time_and_each_success_lets_in_the_next() {
    let mut pool = Pool::new(PoolLimits { size: 20, waiters: 20, ..LIMITS });
    let opening: Vec<_> = std::iter::from_fn(|| match pool.checkout(Tick::ZERO, A, Epoch(0), PATIENCE) {
        Checkout::Open { server, .. } => Some(server),
        _ => None,
    })
    .collect();
    assert_eq!(opening.len(), 8);
    let second = wait(&mut pool, Tick::ZERO, A);
    let granted = pool.opened(Tick::ZERO, opening[0], 0);
    // Whoever came first after the eight got the place.
    assert!(matches!(granted, Some(Grant::Open { waiter, .. }) if waiter < second), "{granted:?}");
    assert!(
        matches!(pool.lost(Tick::ZERO, opening[1]), Some(Grant::Open { waiter, .. }) if waiter == second)
    );
}

#[test]
fn after_a_failure_nobody_knocks_for_a_while_and_then_one_alone() {
    let mut pool = Pool::new(PoolLimits { size: 5, waiters: 20, ..LIMITS });
    let used = open(&mut pool, A);
    let mut now = seconds(1);
    for pause in [100, 200, 400, 800, 1000, 1000] {
        let opening = match pool.checkout(now, A, Epoch(0), PATIENCE) {
            Checkout::Open { server, .. } => server,
            Checkout::Wait(waiter) => {
                assert!(pool.cancel(waiter));
                panic!("the pause is over at {now:?}");
            }
            other => panic!("{other:?}"),
        };
        pool.failed(now, opening, 1000);
        let waiter = wait(&mut pool, now, B);
        assert_eq!(pool.pauses_until(now), Some(now + Duration::from_millis(pause)));
        assert_eq!(pool.serve_waiters(now), []);
        assert!(pool.cancel(waiter));
        // What is there already can be used.
        assert!(!pool.checkin(now, used, Worker::NONE, true).close);
        assert_eq!(pool.checkout(now, A, Epoch(0), PATIENCE), Checkout::Reuse(used));
        now = now + Duration::from_millis(pause);
        assert_eq!(pool.pauses_until(now), None);
    }
    let (first, second) = (wait_or_open(&mut pool, now), wait_or_open(&mut pool, now));
    let (Checkout::Open { server, .. }, Checkout::Wait(waiter)) = (first, second) else { panic!() };
    assert_eq!(pool.serve_waiters(now), []);
    assert!(
        matches!(pool.opened(now, server, 0), Some(Grant::Open { waiter: granted, .. }) if granted == waiter)
    );
    pool.failed(now, server, 0);
    assert_eq!(pool.pauses_until(now), Some(now + Duration::from_millis(50)), "jitter, and begun anew");
}

fn wait_or_open(pool: &mut Pool, now: Tick) -> Checkout {
    pool.checkout(now, A, Epoch(0), PATIENCE)
}

#[test]
fn variants_overtake_each_other_a_few_times_at_most() {
    let mut pool = Pool::new(PoolLimits { size: 1, waiters: 20, ..LIMITS });
    let server = open(&mut pool, A);
    let first = wait(&mut pool, Tick::ZERO, B);
    let others: Vec<_> = (0..5).map(|_| wait(&mut pool, Tick::ZERO, A)).collect();
    for other in &others[..3] {
        assert_eq!(
            pool.checkin(Tick::ZERO, server, Worker::NONE, true).grant,
            Some(Grant::Reuse(*other, server))
        );
    }
    let turn = pool.checkin(Tick::ZERO, server, Worker::NONE, true);
    assert!(
        turn.close && matches!(turn.grant, Some(Grant::Open { waiter, .. }) if waiter == first),
        "{turn:?}"
    );
}

#[test]
fn what_is_idle_serves_those_whom_it_fits_while_others_wait_for_the_end_of_a_pause() {
    let mut pool = Pool::new(PoolLimits { waiters: 20, ..LIMITS });
    let idle = open(&mut pool, A);
    pool.checkin(Tick::ZERO, idle, Worker::NONE, true);
    let Checkout::Open { server, .. } = pool.checkout(Tick::ZERO, B, Epoch(0), PATIENCE) else { panic!() };
    pool.failed(Tick::ZERO, server, 1000);
    let used = match pool.checkout(Tick::ZERO, A, Epoch(0), PATIENCE) {
        Checkout::Reuse(server) => server,
        other => panic!("{other:?}"),
    };
    let waiter = wait(&mut pool, Tick::ZERO, B);
    assert_eq!(pool.checkin(Tick::ZERO, used, Worker::NONE, true), Checkin { close: false, grant: None });
    for _ in 0..5 {
        assert_eq!(pool.checkout(Tick::ZERO, A, Epoch(0), PATIENCE), Checkout::Reuse(idle));
        pool.checkin(Tick::ZERO, idle, Worker::NONE, true);
    }
    // The pause is over: now it is the other one's turn.
    let served = pool.serve_waiters(seconds(1));
    assert!(matches!(served[..], [Grant::Open { waiter: granted, .. }] if granted == waiter), "{served:?}");
}

#[test]
fn an_idle_connection_makes_room_for_one_who_waits() {
    let mut pool = Pool::new(PoolLimits { waiters: 20, ..LIMITS });
    let (idle, used) = (open(&mut pool, A), open(&mut pool, A));
    pool.checkin(Tick::ZERO, idle, Worker::NONE, true);
    let Checkout::Open { server: failing, close } = pool.checkout(Tick::ZERO, B, Epoch(0), PATIENCE) else {
        panic!()
    };
    assert_eq!(close, Some(idle));
    pool.failed(Tick::ZERO, failing, 1000);
    let first = wait(&mut pool, Tick::ZERO, B);
    pool.checkin(Tick::ZERO, used, Worker::NONE, true);
    assert!(matches!(pool.serve_waiters(seconds(1))[..], [Grant::Open { waiter, .. }] if waiter == first));

    // All places are taken and eight are being opened, so that there is a line beside what is idle.
    let mut pool = Pool::new(PoolLimits { size: 9, waiters: 20, ..LIMITS });
    let idle = open(&mut pool, A);
    let opening: Vec<_> = (0..8)
        .map(|_| match pool.checkout(Tick::ZERO, B, Epoch(0), PATIENCE) {
            Checkout::Open { server, close: None } => server,
            other => panic!("{other:?}"),
        })
        .collect();
    pool.checkin(Tick::ZERO, idle, Worker::NONE, true);
    let waiter = wait(&mut pool, Tick::ZERO, B);
    let granted = pool.opened(Tick::ZERO, opening[0], 0);
    let Some(Grant::Open { waiter: served, close, .. }) = granted else { panic!("{granted:?}") };
    assert_eq!((served, close), (waiter, Some(idle)));
    assert_eq!(pool.len(), 9);
}

#[test]
fn one_beyond_the_size_goes_on_to_whoever_waits_however_short() {
    let mut pool = Pool::new(PoolLimits { reserve: 1, ..LIMITS });
    let (_, _) = (open(&mut pool, A), open(&mut pool, A));
    let one = wait(&mut pool, seconds(0), A);
    let [Grant::Open { waiter: granted, server: third, .. }] = pool.serve_waiters(seconds(5))[..] else {
        panic!()
    };
    assert_eq!(granted, one);
    pool.opened(seconds(5), third, 0);
    let two = wait(&mut pool, seconds(5), A);
    assert_eq!(pool.checkin(seconds(6), third, Worker::NONE, true).grant, Some(Grant::Reuse(two, third)));
    assert!(pool.checkin(seconds(7), third, Worker::NONE, true).close);
}

#[test]
fn a_smaller_size_closes_what_is_idle_beyond_it() {
    let mut pool = Pool::new(LIMITS);
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    pool.checkin(Tick::ZERO, first, Worker::NONE, true);
    pool.checkin(Tick::ZERO, second, Worker::NONE, true);
    assert_eq!(pool.set_limits(PoolLimits { size: 1, ..LIMITS }), [first]);
    // Others get the place that is left.
    let room = pool.checkout(Tick::ZERO, B, Epoch(0), PATIENCE);
    assert!(matches!(room, Checkout::Open { close: Some(closed), .. } if closed == second), "{room:?}");
}

#[derive(Debug, Clone)]
enum Step {
    Checkout(bool),
    Opened(usize),
    Failed(usize),
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
                match self.pool.checkout(now, variant, epoch, PATIENCE) {
                    Checkout::Reuse(server) => {
                        for (_, other, overtaken) in &mut self.line {
                            assert_ne!(*other, variant, "served past those who wait");
                            *overtaken += 1;
                        }
                        self.used.push(server);
                    }
                    Checkout::Open { server, .. } => {
                        assert!(self.line.is_empty(), "served past those who wait");
                        self.opening.push(server);
                    }
                    Checkout::Wait(waiter) => self.line.push((waiter, variant, 0)),
                    Checkout::Full => assert_eq!(self.line.len(), self.limits.waiters),
                }
            }
            Step::Opened(n) if !self.opening.is_empty() => {
                let server = self.opening.remove(n % self.opening.len());
                self.used.push(server);
                let grant = self.pool.opened(now, server, n as u64);
                self.granted(grant);
            }
            Step::Failed(n) if !self.opening.is_empty() => {
                self.ever_failed = true;
                let server = self.opening.remove(n % self.opening.len());
                self.pool.failed(now, server, n as u64);
            }
            Step::Return(n, clean) if !self.used.is_empty() => {
                let server = self.used.remove(n % self.used.len());
                let checkin = self.pool.checkin(now, server, Worker::NONE, clean);
                self.granted(checkin.grant);
            }
            Step::Cancel(n) if !self.line.is_empty() => {
                let (waiter, ..) = self.line.remove(n % self.line.len());
                assert!(self.pool.cancel(waiter));
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
            Step::Opened(_) | Step::Failed(_) | Step::Return(..) | Step::Cancel(_) => {}
        }
        self.check();
    }

    fn keep_house(&mut self) {
        self.pool.expire(self.now);
        for waiter in self.pool.overdue(self.now) {
            let before = self.line.len();
            self.line.retain(|(id, ..)| *id != waiter);
            assert_eq!(self.line.len() + 1, before);
        }
        for grant in self.pool.serve_waiters(self.now) {
            self.granted(Some(grant));
        }
        let taken = self.used.len() + self.opening.len();
        assert!(
            self.line.is_empty() || !self.pool.may_open(self.now) || taken >= self.limits.size as usize,
            "{:?} wait beside {:?}",
            self.line,
            self.pool.idle
        );
    }

    /// Each grant names somebody who waits, the first of its variant.
    fn granted(&mut self, grant: Option<Grant>) {
        let mut next = grant;
        while let Some(grant) = next.take().or_else(|| self.pool.grant(self.now)) {
            let (Grant::Reuse(waiter, server) | Grant::Open { waiter, server, .. }) = grant;
            let at = self.line.iter().position(|(id, ..)| *id == waiter).expect("it waits");
            let (_, variant, _) = self.line.remove(at);
            for (_, other, overtaken) in &mut self.line[..at] {
                assert_ne!(*other, variant, "not first come, first served");
                *overtaken += 1;
            }
            match grant {
                Grant::Reuse(..) => self.used.push(server),
                Grant::Open { .. } => self.opening.push(server),
            }
        }
    }

    fn check(&self) {
        let (size, all) = (self.limits.size as usize, (self.limits.size + self.limits.reserve) as usize);
        assert!(self.pool.len() <= all);
        assert_eq!(self.pool.len(), self.used.len() + self.opening.len() + self.pool.idle());
        assert_eq!(self.pool.waiting(), self.line.len());
        // Whoever waits does so because every place is taken, by a client or for one, or because of a failure.
        assert!(self.line.is_empty() || self.ever_failed || self.used.len() + self.opening.len() >= size);
        // What is idle is of use to nobody who waits, but for the one whose turn it is to have its place.
        let fits = |variant: Variant| self.pool.idle.iter().any(|idle| idle.member.variant == variant);
        let unused = self.line.iter().any(|(_, variant, _)| fits(*variant));
        assert!(
            !unused || self.line[0].2 >= OVERTAKEN_MAX,
            "{:?} wait beside {:?}",
            self.line,
            self.pool.idle
        );
        if !self.ever_failed {
            assert!(self.line.iter().all(|(.., overtaken)| *overtaken <= OVERTAKEN_MAX), "{:?}", self.line);
        }
    }

    /// All that is under way ends well, and nobody new comes.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.step(&Step::Opened(0));
            self.step(&Step::Return(0, true));
            self.now = self.now + Duration::from_secs(1);
            for grant in self.pool.serve_waiters(self.now) {
                self.granted(Some(grant));
            }
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
        world.settle();
        prop_assert!(world.line.is_empty() && world.used.is_empty() && world.opening.is_empty());
        prop_assert!(world.pool.idle() >= min.min(size) as usize, "{} are kept", world.pool.idle());
    }
}
