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
