use proptest::prelude::*;

use super::*;

const LIMITS: PoolLimits = PoolLimits {
    size: 2,
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
            pool.opened(Tick::ZERO, server);
            server
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_connection_given_back_last_is_used_first() {
    let mut pool = Pool::new(LIMITS);
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    pool.checkin(Tick::ZERO, first, true);
    pool.checkin(Tick::ZERO, second, true);
    assert_eq!(pool.checkout(Tick::ZERO, A, Epoch(0), PATIENCE), Checkout::Reuse(second));
}

#[test]
fn a_worker_uses_its_own_connections_before_those_of_others() {
    let mut pool = Pool::new(LIMITS);
    let (here, there) = (open(&mut pool, A), open(&mut pool, A));
    pool.settled(here, Worker(0));
    pool.settled(there, Worker(1));
    pool.checkin(Tick::ZERO, here, true);
    pool.checkin(Tick::ZERO, there, true);
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
    assert_eq!(pool.checkin(Tick::ZERO, first, true).grant, Some(Grant::Reuse(one, first)));
    let broken = pool.checkin(Tick::ZERO, second, false);
    assert!(broken.close);
    assert!(matches!(broken.grant, Some(Grant::Open(waiter, _)) if waiter == three));
}

#[test]
fn another_variant_takes_the_place_of_an_idle_connection() {
    let mut pool = Pool::new(LIMITS);
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    pool.checkin(Tick::ZERO, first, true);
    match pool.checkout(Tick::ZERO, B, Epoch(0), PATIENCE) {
        Checkout::Open { close, .. } => assert_eq!(close, Some(first)),
        other => panic!("{other:?}"),
    }
    let Checkout::Wait(waiter) = pool.checkout(Tick::ZERO, B, Epoch(0), PATIENCE) else { panic!() };
    let back = pool.checkin(Tick::ZERO, second, true);
    assert!(back.close && matches!(back.grant, Some(Grant::Open(granted, _)) if granted == waiter));
    assert_eq!(pool.len(), 2);
}

#[test]
fn connections_of_an_older_epoch_serve_nobody() {
    let mut pool = Pool::new(LIMITS);
    let (idle, used) = (open(&mut pool, A), open(&mut pool, A));
    pool.checkin(Tick::ZERO, idle, true);
    assert_eq!(pool.raise_floor(Epoch(1)), [idle]);
    assert!(pool.checkin(Tick::ZERO, used, true).close);
    assert!(pool.is_empty());
}

#[test]
fn old_and_idle_connections_expire_and_patience_ends() {
    let mut pool = Pool::new(LIMITS);
    let server = open(&mut pool, A);
    pool.checkin(Tick::ZERO, server, true);
    assert!(pool.expire(Tick::from_millis(599_999)).is_empty());
    assert_eq!(pool.expire(Tick::from_millis(600_000)), [server]);
    let old = open(&mut pool, A);
    assert!(pool.checkin(Tick::from_millis(3_600_000), old, true).close);
    let (_, _) = (open(&mut pool, A), open(&mut pool, A));
    let Checkout::Wait(waiter) = pool.checkout(Tick::ZERO, A, Epoch(0), PATIENCE) else { panic!() };
    assert!(pool.overdue(Tick::from_millis(29_999)).is_empty());
    assert_eq!(pool.overdue(Tick::from_millis(30_000)), [waiter]);
    assert_eq!(pool.waiting(), 0);
}

#[derive(Debug, Clone)]
enum Step {
    Checkout(bool),
    Return(usize, bool),
    Cancel(usize),
    Expire,
    Raise,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => any::<bool>().prop_map(Step::Checkout),
        4 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(n, clean)| Step::Return(n, clean)),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => Just(Step::Expire),
        1 => Just(Step::Raise),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn the_size_holds_and_nobody_is_forgotten_or_overtaken(steps in steps()) {
        let mut pool = Pool::new(LIMITS);
        let (mut used, mut line): (Vec<ServerId>, VecDeque<WaiterId>) = Default::default();
        let mut epoch = Epoch(0);
        for (n, step) in steps.into_iter().enumerate() {
            let now = Tick::from_millis(n as u64 * 1000);
            let mut grants = Vec::new();
            match step {
                Step::Checkout(a) => match pool.checkout(now, if a { A } else { B }, epoch, PATIENCE) {
                    Checkout::Reuse(server) | Checkout::Open { server, .. } => {
                        prop_assert!(line.is_empty(), "served past those who wait");
                        prop_assert!(!used.contains(&server));
                        used.push(server);
                    }
                    Checkout::Wait(waiter) => line.push_back(waiter),
                    Checkout::Full => prop_assert_eq!(line.len(), LIMITS.waiters),
                },
                Step::Return(n, clean) if !used.is_empty() => {
                    let server = used.remove(n % used.len());
                    grants.extend(pool.checkin(now, server, clean).grant);
                }
                Step::Cancel(n) if !line.is_empty() => {
                    let waiter = line.remove(n % line.len()).unwrap();
                    prop_assert!(pool.cancel(waiter));
                }
                Step::Expire => {
                    pool.expire(now);
                    for waiter in pool.overdue(now) {
                        prop_assert_eq!(line.pop_front(), Some(waiter));
                    }
                    grants.extend(pool.serve_waiters(now));
                }
                Step::Raise => {
                    epoch = epoch.next();
                    pool.raise_floor(epoch);
                    grants.extend(pool.serve_waiters(now));
                }
                Step::Return(..) | Step::Cancel(_) => {}
            }
            for grant in grants {
                let (Grant::Reuse(waiter, server) | Grant::Open(waiter, server)) = grant;
                prop_assert_eq!(line.pop_front(), Some(waiter), "not first come, first served");
                prop_assert!(!used.contains(&server));
                used.push(server);
            }
            prop_assert!(pool.len() <= LIMITS.size as usize);
            prop_assert_eq!(pool.len(), used.len() + pool.idle());
            prop_assert_eq!(pool.waiting(), line.len());
            // Whoever waits does so because every place is taken by a client.
            prop_assert!(line.is_empty() || used.len() == LIMITS.size as usize);
        }
    }
}
