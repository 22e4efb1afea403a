use super::line::OVERTAKEN_MAX;
use super::*;

pub(super) const LIMITS: PoolLimits = PoolLimits {
    size: 2,
    min: 0,
    reserve: 0,
    reserve_after: Duration::from_secs(5),
    waiters: 3,
    lifetime: Duration::from_secs(3600),
    idle_timeout: Duration::from_secs(600),
};
pub(super) const A: Variant = Variant(1);
pub(super) const B: Variant = Variant(2);

impl Pool {
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn idle(&self) -> usize {
        self.idle.len()
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiters.len()
    }
}

/// What is done after a change: who gets what, what is being opened, and what was closed for being too many.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    pub(super) grants: Vec<Grant>,
    pub(super) openings: Vec<Opening>,
    shed: Vec<ServerId>,
}

pub(super) fn settle(pool: &mut Pool, now: Tick) -> Settled {
    let mut settled = Settled::default();
    loop {
        if let Some(grant) = pool.next_grant(now) {
            pool.hand_over(grant);
            settled.grants.push(grant);
            continue;
        }
        if let Some(opening) = pool.open(now) {
            settled.openings.push(opening);
            continue;
        }
        match pool.shed() {
            none if none.is_empty() => return settled,
            shed => settled.shed.extend(shed),
        }
    }
}

fn granted(waiter: WaiterId, server: ServerId) -> Settled {
    Settled { grants: vec![Grant { waiter, server }], ..Settled::default() }
}

fn seconds(seconds: u64) -> Tick {
    Tick::from_millis(seconds * 1000)
}

fn wait(pool: &mut Pool, now: Tick, variant: Variant) -> WaiterId {
    match pool.checkout(now, variant, Epoch(0)) {
        Checkout::Wait(id) => id,
        other => panic!("{other:?}"),
    }
}

/// A client for which one connection is being opened.
fn begin(pool: &mut Pool, now: Tick, variant: Variant) -> Opening {
    let client = wait(pool, now, variant);
    let settled = settle(pool, now);
    match settled.openings[..] {
        [opening] if opening.waiter == client => opening,
        _ => panic!("{settled:?}"),
    }
}

fn back(pool: &mut Pool, now: Tick, server: ServerId) -> Settled {
    assert!(pool.checkin(now, server, Worker::NONE, true), "{server:?} is kept");
    settle(pool, now)
}

fn opened(pool: &mut Pool, now: Tick, server: ServerId) -> Settled {
    pool.opened(now, server, 0);
    back(pool, now, server)
}

/// A connection in use.
fn open(pool: &mut Pool, variant: Variant) -> ServerId {
    let Opening { server, waiter, .. } = begin(pool, Tick::ZERO, variant);
    assert_eq!(opened(pool, Tick::ZERO, server), granted(waiter, server));
    server
}

/// A connection that is idle.
fn open_idle(pool: &mut Pool, variant: Variant) -> ServerId {
    let server = open(pool, variant);
    assert_eq!(back(pool, Tick::ZERO, server), Settled::default());
    server
}

#[test]
fn the_connection_given_back_last_is_used_first() {
    let mut pool = Pool::new(LIMITS);
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    back(&mut pool, Tick::ZERO, first);
    back(&mut pool, Tick::ZERO, second);
    assert_eq!(pool.checkout(Tick::ZERO, A, Epoch(0)), Checkout::Reuse(second));
}

#[test]
fn a_worker_uses_its_own_connections_before_those_of_others() {
    let mut pool = Pool::new(LIMITS);
    let (here, there) = (open(&mut pool, A), open(&mut pool, A));
    assert!(pool.checkin(Tick::ZERO, here, Worker(0), true));
    assert!(pool.checkin(Tick::ZERO, there, Worker(1), true));
    assert_eq!(pool.take_idle(A, Epoch(0), Worker(0)), Some(here));
    assert_eq!(pool.take_idle(A, Epoch(0), Worker(0)), Some(there));
    assert_eq!(pool.take_idle(A, Epoch(0), Worker(0)), None);
}

#[test]
fn clients_wait_in_line_and_a_line_that_is_too_long_takes_nobody() {
    let mut pool = Pool::new(LIMITS);
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    let [one, two, three] = [(); 3].map(|()| wait(&mut pool, Tick::ZERO, A));
    assert_eq!(pool.checkout(Tick::ZERO, A, Epoch(0)), Checkout::Full);
    pool.cancel(two);
    pool.cancel(two);
    assert_eq!(pool.waiting(), 2);
    assert_eq!(back(&mut pool, Tick::ZERO, first), granted(one, first));
    assert!(!pool.checkin(Tick::ZERO, second, Worker::NONE, false), "it is closed");
    let settled = settle(&mut pool, Tick::ZERO);
    assert!(matches!(settled.openings[..], [Opening { waiter, .. }] if waiter == three), "{settled:?}");
}

#[test]
fn those_for_whom_a_connection_is_opened_do_not_count_as_a_line() {
    let mut pool = Pool::new(PoolLimits { waiters: 0, ..LIMITS });
    let (first, second) = (begin(&mut pool, Tick::ZERO, A), begin(&mut pool, Tick::ZERO, A));
    assert_eq!([first, second].map(|opening| pool.place_in_line(opening.waiter)), [None; 2]);
    assert_eq!(pool.checkout(Tick::ZERO, A, Epoch(0)), Checkout::Full);
    opened(&mut pool, Tick::ZERO, first.server);
    assert_eq!(pool.checkout(Tick::ZERO, A, Epoch(0)), Checkout::Full);
}

#[test]
fn what_comes_back_first_goes_to_the_first_in_line_and_what_is_opened_late_to_others() {
    let mut pool = Pool::new(PoolLimits { size: 3, ..LIMITS });
    let used = open(&mut pool, A);
    let (one, two) = (begin(&mut pool, Tick::ZERO, A), begin(&mut pool, Tick::ZERO, A));
    assert_eq!(back(&mut pool, Tick::ZERO, used), granted(one.waiter, used));
    // The later of the two openings is the faster one, and a third client needs none of its own.
    assert_eq!(opened(&mut pool, Tick::ZERO, two.server), granted(two.waiter, two.server));
    let three = wait(&mut pool, Tick::ZERO, A);
    assert_eq!(settle(&mut pool, Tick::ZERO), Settled::default());
    assert_eq!(pool.place_in_line(three), None);
    assert_eq!(opened(&mut pool, Tick::ZERO, one.server), granted(three, one.server));
}

#[test]
fn an_opening_whose_client_left_is_for_the_next_one_of_its_variant() {
    let mut pool = Pool::new(PoolLimits { size: 3, ..LIMITS });
    let left = begin(&mut pool, Tick::ZERO, A);
    pool.cancel(left.waiter);
    let other = begin(&mut pool, Tick::ZERO, B);
    let next = wait(&mut pool, Tick::ZERO, A);
    assert_eq!(settle(&mut pool, Tick::ZERO), Settled::default());
    pool.cancel(next);
    assert_eq!(opened(&mut pool, Tick::ZERO, left.server), Settled::default());
    assert_eq!((pool.idle(), pool.waiting()), (1, 1));
    // One that fails leaves its client to be opened for anew.
    pool.lost(other.server);
    assert_eq!(pool.place_in_line(other.waiter), Some(0));
    assert!(matches!(settle(&mut pool, Tick::ZERO).openings[..], [again] if again.waiter == other.waiter));
}

#[test]
fn an_opening_of_an_older_epoch_is_for_nobody_who_came_later() {
    let mut pool = Pool::new(LIMITS);
    let old = begin(&mut pool, Tick::ZERO, A);
    pool.raise_floor(Epoch(1));
    let Checkout::Wait(late) = pool.checkout(Tick::ZERO, A, Epoch(1)) else { panic!() };
    assert!(matches!(settle(&mut pool, Tick::ZERO).openings[..], [new] if new.waiter == late));
    pool.opened(Tick::ZERO, old.server, 0);
    assert!(!pool.checkin(Tick::ZERO, old.server, Worker::NONE, true), "nobody gets it");
    assert_eq!(pool.outdated(Epoch(1)), [old.waiter]);
    assert_eq!(pool.waiting(), 1);
}

#[test]
fn another_variant_takes_the_place_of_an_idle_connection() {
    let mut pool = Pool::new(LIMITS);
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    back(&mut pool, Tick::ZERO, first);
    assert_eq!(begin(&mut pool, Tick::ZERO, B).close, Some(first));
    let waiter = wait(&mut pool, Tick::ZERO, B);
    assert_eq!(pool.place_in_line(waiter), Some(1));
    let settled = back(&mut pool, Tick::ZERO, second);
    let [Opening { waiter: served, close, .. }] = settled.openings[..] else { panic!("{settled:?}") };
    assert_eq!((served, close), (waiter, Some(second)));
    assert_eq!(pool.len(), 2);
}

#[test]
fn connections_of_an_older_epoch_serve_nobody() {
    let mut pool = Pool::new(LIMITS);
    let (idle, used) = (open(&mut pool, A), open(&mut pool, A));
    back(&mut pool, Tick::ZERO, idle);
    assert_eq!(pool.raise_floor(Epoch(1)), [idle]);
    assert!(!pool.checkin(Tick::ZERO, used, Worker::NONE, true));
    assert!(pool.is_empty());
}

#[test]
fn what_is_idle_can_be_closed_and_what_is_in_use_stays() {
    let mut pool = Pool::new(LIMITS);
    let (idle, used) = (open(&mut pool, A), open(&mut pool, A));
    back(&mut pool, Tick::ZERO, idle);
    assert_eq!(pool.vacate(), [idle]);
    assert_eq!((pool.len(), pool.idle()), (1, 0));
    back(&mut pool, Tick::ZERO, used);
    assert_eq!(pool.vacate(), [used]);
    assert!(pool.is_empty());
}

#[test]
fn old_and_idle_connections_expire() {
    let mut pool = Pool::new(LIMITS);
    let server = open_idle(&mut pool, A);
    assert!(pool.expire(Tick::from_millis(599_999)).is_empty());
    assert_eq!(pool.expire(Tick::from_millis(600_000)), [server]);
    let old = open(&mut pool, A);
    assert!(!pool.checkin(Tick::from_millis(3_600_000), old, Worker::NONE, true));
}

#[test]
fn connections_end_at_different_times_but_not_much_earlier() {
    for (random, lives) in [(0, 3_600_000), (50, 3_420_000), (100, 3_240_000), (201, 3_240_000)] {
        let mut pool = Pool::new(PoolLimits { idle_timeout: Duration::from_secs(9999), ..LIMITS });
        let Opening { server, waiter, .. } = begin(&mut pool, Tick::ZERO, A);
        pool.opened(Tick::ZERO, server, random);
        assert_eq!(back(&mut pool, Tick::ZERO, server), granted(waiter, server));
        back(&mut pool, Tick::ZERO, server);
        assert_eq!(pool.expire(Tick::from_millis(lives - 1)), []);
        assert_eq!(pool.expire(Tick::from_millis(lives)), [server]);
    }
}

#[test]
fn the_reserve_is_for_those_who_waited_long_and_goes_when_nobody_waits() {
    let mut pool = Pool::new(PoolLimits { reserve: 1, ..LIMITS });
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    let (one, two) = (wait(&mut pool, seconds(0), A), wait(&mut pool, seconds(4), A));
    assert_eq!(settle(&mut pool, Tick::from_millis(4999)), Settled::default());
    let settled = settle(&mut pool, seconds(5));
    let [Opening { waiter, server: third, .. }] = settled.openings[..] else { panic!("{settled:?}") };
    assert_eq!(waiter, one);
    // The one behind has waited for less, and then the reserve is used up.
    assert_eq!(opened(&mut pool, seconds(5), third), granted(one, third));
    assert_eq!(settle(&mut pool, seconds(10)), Settled::default());
    assert_eq!(back(&mut pool, seconds(10), third), granted(two, third));
    assert!(!pool.checkin(seconds(11), third, Worker::NONE, true), "nobody waits");
    back(&mut pool, seconds(11), first);
    back(&mut pool, seconds(11), second);
    assert_eq!(pool.idle(), 2);
}

#[test]
fn so_many_as_wanted_are_opened_ahead_one_at_a_time_and_kept() {
    let mut pool = Pool::new(PoolLimits { min: 2, size: 3, ..LIMITS });
    open_idle(&mut pool, B);
    let second = pool.ahead(Tick::ZERO, B, Epoch(0)).unwrap();
    assert_eq!(pool.ahead(Tick::ZERO, B, Epoch(0)), None, "one is under way");
    assert_eq!(opened(&mut pool, Tick::ZERO, second), Settled::default());
    assert_eq!(pool.ahead(Tick::ZERO, B, Epoch(0)), None, "there are enough");
    let third = {
        let (Checkout::Reuse(a), Checkout::Reuse(b)) =
            (pool.checkout(Tick::ZERO, B, Epoch(0)), pool.checkout(Tick::ZERO, B, Epoch(0)))
        else {
            panic!()
        };
        let third = open(&mut pool, B);
        for server in [a, b, third] {
            back(&mut pool, Tick::ZERO, server);
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
    let waiters: Vec<_> = (0..10).map(|_| wait(&mut pool, Tick::ZERO, A)).collect();
    let opening = settle(&mut pool, Tick::ZERO).openings;
    assert_eq!(opening.iter().map(|opening| opening.waiter).collect::<Vec<_>>(), waiters[..8]);
    let settled = opened(&mut pool, Tick::ZERO, opening[3].server);
    assert_eq!(settled.grants, [Grant { waiter: waiters[0], server: opening[3].server }]);
    assert!(matches!(settled.openings[..], [Opening { waiter, .. }] if waiter == waiters[8]), "{settled:?}");
    pool.lost(opening[1].server);
    // All move up by one opening, and there is room for one more.
    let settled = settle(&mut pool, Tick::ZERO);
    assert!(matches!(settled.openings[..], [Opening { waiter, .. }] if waiter == waiters[8]), "{settled:?}");
}

#[test]
fn after_a_failure_nobody_knocks_for_a_while_and_then_one_alone() {
    let mut pool = Pool::new(PoolLimits { size: 5, waiters: 20, ..LIMITS });
    let used = open(&mut pool, A);
    let mut now = seconds(1);
    for pause in [100, 200, 400, 800, 1000, 1000] {
        let opening = begin(&mut pool, now, A);
        pool.failed(now, opening.server, 1000);
        pool.cancel(opening.waiter);
        let waiter = wait(&mut pool, now, B);
        assert_eq!(pool.pauses_until(now), Some(now + Duration::from_millis(pause)));
        assert_eq!(settle(&mut pool, now), Settled::default());
        assert_eq!(pool.place_in_line(waiter), Some(0));
        pool.cancel(waiter);
        // What is there already can be used.
        back(&mut pool, now, used);
        assert_eq!(pool.checkout(now, A, Epoch(0)), Checkout::Reuse(used));
        now = now + Duration::from_millis(pause);
        assert_eq!(pool.pauses_until(now), None);
    }
    let opening = begin(&mut pool, now, A);
    let waiter = wait(&mut pool, now, A);
    assert_eq!(settle(&mut pool, now), Settled::default());
    let settled = opened(&mut pool, now, opening.server);
    assert_eq!(settled.grants, [Grant { waiter: opening.waiter, server: opening.server }]);
    let [next] = settled.openings[..] else { panic!("{settled:?}") };
    assert_eq!(next.waiter, waiter);
    pool.failed(now, next.server, 0);
    assert_eq!(pool.pauses_until(now), Some(now + Duration::from_millis(50)), "jitter, and begun anew");
}

#[test]
fn variants_overtake_each_other_a_few_times_at_most() {
    let mut pool = Pool::new(PoolLimits { size: 1, waiters: 20, ..LIMITS });
    let server = open(&mut pool, A);
    let first = wait(&mut pool, Tick::ZERO, B);
    let others: Vec<_> = (0..5).map(|_| wait(&mut pool, Tick::ZERO, A)).collect();
    for other in &others[..3] {
        assert_eq!(back(&mut pool, Tick::ZERO, server), granted(*other, server));
    }
    let turn = back(&mut pool, Tick::ZERO, server);
    let [Opening { waiter, close, .. }] = turn.openings[..] else { panic!("{turn:?}") };
    assert_eq!((waiter, close), (first, Some(server)));
    assert_eq!(turn.grants, []);
}

#[test]
fn what_is_idle_serves_those_whom_it_fits_while_others_wait_for_the_end_of_a_pause() {
    let mut pool = Pool::new(PoolLimits { waiters: 20, ..LIMITS });
    let used = open_idle(&mut pool, A);
    let failing = begin(&mut pool, Tick::ZERO, B);
    pool.failed(Tick::ZERO, failing.server, 1000);
    for _ in 0..5 {
        assert_eq!(pool.checkout(Tick::ZERO, A, Epoch(0)), Checkout::Reuse(used));
        assert_eq!(back(&mut pool, Tick::ZERO, used), Settled::default());
    }
    // The pause is over: now it is the other one's turn.
    let served = settle(&mut pool, seconds(1));
    assert!(matches!(served.openings[..], [opening] if opening.waiter == failing.waiter), "{served:?}");
}

#[test]
fn who_is_served_by_an_opening_holds_up_nobody() {
    let mut pool = Pool::new(PoolLimits { waiters: 20, ..LIMITS });
    let used = open(&mut pool, A);
    begin(&mut pool, Tick::ZERO, B);
    for _ in 0..=OVERTAKEN_MAX {
        let waiter = wait(&mut pool, Tick::ZERO, A);
        assert_eq!(settle(&mut pool, Tick::ZERO), Settled::default());
        assert_eq!(back(&mut pool, Tick::ZERO, used), granted(waiter, used));
    }
    back(&mut pool, Tick::ZERO, used);
    assert_eq!(pool.checkout(Tick::ZERO, A, Epoch(0)), Checkout::Reuse(used));
}

#[test]
fn an_idle_connection_makes_room_for_one_who_waits() {
    // All places are taken and eight are being opened, so that there is a line beside what is idle.
    let mut pool = Pool::new(PoolLimits { size: 9, waiters: 20, ..LIMITS });
    let idle = open_idle(&mut pool, A);
    let opening: Vec<_> = (0..8).map(|_| begin(&mut pool, Tick::ZERO, B)).collect();
    let waiter = wait(&mut pool, Tick::ZERO, B);
    assert_eq!(settle(&mut pool, Tick::ZERO), Settled::default());
    let settled = opened(&mut pool, Tick::ZERO, opening[0].server);
    let [Opening { waiter: served, close, .. }] = settled.openings[..] else { panic!("{settled:?}") };
    assert_eq!((served, close), (waiter, Some(idle)));
    assert_eq!(pool.len(), 9);
}

#[test]
fn one_beyond_the_size_goes_on_to_whoever_waits_however_short() {
    let mut pool = Pool::new(PoolLimits { reserve: 1, ..LIMITS });
    let (_, _) = (open(&mut pool, A), open(&mut pool, A));
    let one = wait(&mut pool, seconds(0), A);
    let settled = settle(&mut pool, seconds(5));
    let [Opening { waiter, server: third, .. }] = settled.openings[..] else { panic!("{settled:?}") };
    assert_eq!(waiter, one);
    opened(&mut pool, seconds(5), third);
    let two = wait(&mut pool, seconds(5), A);
    assert_eq!(back(&mut pool, seconds(6), third), granted(two, third));
    // Somebody waits, but it is of no use to them.
    wait(&mut pool, seconds(7), B);
    assert_eq!(back(&mut pool, seconds(7), third), Settled { shed: vec![third], ..Settled::default() });
    assert!(!pool.checkin(seconds(7), third, Worker::NONE, true));
}

#[test]
fn a_smaller_size_closes_what_is_idle_beyond_it() {
    let mut pool = Pool::new(LIMITS);
    let (first, second) = (open(&mut pool, A), open(&mut pool, A));
    back(&mut pool, Tick::ZERO, first);
    back(&mut pool, Tick::ZERO, second);
    assert_eq!(pool.set_limits(PoolLimits { size: 1, ..LIMITS }), [first]);
    // Others get the place that is left.
    assert_eq!(begin(&mut pool, Tick::ZERO, B).close, Some(second));
}
