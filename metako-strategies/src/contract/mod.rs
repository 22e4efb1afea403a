//! The laws that each kind of strategy obeys, as checks that a test calls: for the stock ones and for yours.
//!
//! ```
//! use metako_strategies::{RoundRobinSpec, contract};
//!
//! assert_eq!(contract::load_balancer(&RoundRobinSpec::default()), Ok(()));
//! ```
//!
//! Each check builds the strategy and tries it on some hundred situations, always the same ones. `Err` says which law
//! is broken and where. A check that passes proves no law, and says nothing about whether the strategy chooses well: that
//! is for tests of its own, and for the simulator.

mod balancer;
mod classifier;
mod policy;
mod probe;

pub use balancer::load_balancer;
pub use classifier::query_classifier;
pub use policy::failover_policy;
pub use probe::health_probe;

/// A sequence of numbers that look random and are the same in each run (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound)).unwrap_or(0)
    }
}

fn broken<T>(law: impl Into<String>) -> Result<T, String> {
    Err(law.into())
}

fn built<T>(result: Result<T, metako_core::plugin::BuildError>) -> Result<T, String> {
    result.map_err(|error| format!("it does not build: {error}"))
}
