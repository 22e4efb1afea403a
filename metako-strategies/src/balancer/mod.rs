//! Load balancers. None allocates, locks or reads a clock.

mod least_connected;
mod random;
mod round_robin;
mod weighted;

pub use least_connected::{LeastConnected, LeastConnectedSpec};
pub use random::{Random, RandomSpec};
pub use round_robin::{RoundRobin, RoundRobinSpec};
pub use weighted::{Weighted, WeightedSpec};

/// Maps 64 random bits to a number below `bound`; 0 if there is none below it. Each number gets the same share of the
/// random values, to within one value.
fn below(bound: u64, random: u64) -> u64 {
    let scaled = (u128::from(random) * u128::from(bound)) >> 64;
    u64::try_from(scaled).unwrap_or(0)
}

/// As [`below`], for an index into a slice of that length; `None` for an empty one.
fn index_below(len: usize, random: u64) -> Option<usize> {
    if len == 0 {
        return None;
    }
    usize::try_from(below(u64::try_from(len).unwrap_or(u64::MAX), random)).ok()
}

#[cfg(test)]
mod tests {
    use metako_core::Tick;
    use metako_core::plugin::{Candidate, LoadBalancer, PickCx};
    use proptest::prelude::*;

    use super::{LeastConnected, Random, RoundRobin, Weighted, below};

    /// Candidates as (server connections in use, weight).
    fn candidates(shape: &[(u32, u32)]) -> Vec<Candidate<'static>> {
        shape
            .iter()
            .map(|&(in_flight, weight)| Candidate {
                name: "node",
                in_flight,
                latency: None,
                lag: None,
                weight,
                zone: None,
            })
            .collect()
    }

    fn cx(random: u64) -> PickCx<'static> {
        PickCx { now: Tick::ZERO, random, session: 0, zone: None }
    }

    /// How often each candidate is picked when `random` takes `draws` values that are spread evenly over its range.
    fn shares(balancer: &dyn LoadBalancer, candidates: &[Candidate<'_>], draws: u64) -> Vec<u64> {
        let mut shares = vec![0; candidates.len()];
        let step = u64::MAX / draws;
        for draw in 0..draws {
            let index = balancer.pick(candidates, &cx(step * draw + step / 2)).expect("there are candidates");
            shares[index] += 1;
        }
        shares
    }

    #[test]
    fn round_robin_takes_turns() {
        let balancer = RoundRobin::default();
        let three = candidates(&[(0, 1); 3]);
        let picks: Vec<_> = (0..7).map(|_| balancer.pick(&three, &cx(0))).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2, 0].map(Some));
    }

    #[test]
    fn round_robin_is_fair_among_threads() {
        let balancer = RoundRobin::default();
        let three = candidates(&[(0, 1); 3]);
        let picks: Vec<usize> = std::thread::scope(|scope| {
            let pick = || (0..300).filter_map(|_| balancer.pick(&three, &cx(0))).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(pick)).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("picks do not panic")).collect()
        });
        for index in 0..3 {
            assert_eq!(picks.iter().filter(|&&pick| pick == index).count(), 400);
        }
    }

    #[test]
    fn random_gives_equal_shares() {
        assert_eq!(shares(&Random, &candidates(&[(9, 1), (0, 7), (3, 2)]), 3000), [1000, 1000, 1000]);
    }

    #[test]
    fn weighted_gives_shares_by_weight() {
        assert_eq!(shares(&Weighted, &candidates(&[(0, 1), (0, 3), (0, 2)]), 6000), [1000, 3000, 2000]);
        assert_eq!(shares(&Weighted, &candidates(&[(0, u32::MAX), (0, u32::MAX)]), 10), [5, 5]);
    }

    #[test]
    fn weighted_picks_someone_even_when_nobody_has_a_weight() {
        assert_eq!(Weighted.pick(&candidates(&[(0, 0), (0, 0)]), &cx(u64::MAX)), Some(0));
        assert_eq!(Weighted.pick(&candidates(&[(0, 0), (0, 1)]), &cx(0)), Some(1));
    }

    #[test]
    fn least_connected_shares_among_equals_only() {
        let load = [(2, 1), (1, 1), (5, 9), (1, 1)];
        assert_eq!(shares(&LeastConnected, &candidates(&load), 1000), [0, 500, 0, 500]);
    }

    proptest! {
        #[test]
        fn least_connected_never_picks_a_busier_node(loads in prop::collection::vec(0_u32..4, 1..8), random: u64) {
            let shape: Vec<_> = loads.iter().map(|&load| (load, 1)).collect();
            let pick = LeastConnected.pick(&candidates(&shape), &cx(random));
            prop_assert_eq!(pick.map(|index| loads[index]), loads.iter().copied().min());
        }

        #[test]
        fn a_drawn_number_is_below_its_bound_and_grows_with_the_draw(bound: u64, one: u64, other: u64) {
            let (low, high) = (one.min(other), one.max(other));
            prop_assert!(below(bound, high) < bound.max(1));
            prop_assert!(below(bound, low) <= below(bound, high));
        }
    }
}
