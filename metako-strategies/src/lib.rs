//! The stock strategies.
//!
//! | kind | name | what it does |
//! |---|---|---|
//! | load balancer | [`round_robin`](RoundRobinSpec) | each fit node in turn |
//! | load balancer | [`least_connected`](LeastConnectedSpec) | the node with the fewest server connections in use |
//! | load balancer | [`random`](RandomSpec) | any node, all equally likely |
//! | load balancer | [`weighted`](WeightedSpec) | any node, as likely as its weight says |
//! | health probe | [`sql`](SqlProbeSpec) | asks over a standing connection, commits on a primary |
//! | failover policy | [`most_advanced`](MostAdvancedSpec) | fails over on proof only, to the node that lost least |
//! | query classifier | [`keyword`](KeywordSpec) | tells reads by their tokens, without a grammar |
//!
//! Each is one file: the options (*spec*) and the running strategy. They depend on `metako-core` alone, as a strategy
//! from anywhere else does: `examples/my-strategies` shows one.
//!
//! [`contract`] holds the laws that each kind obeys, as checks for tests: of these, and of yours.
//!
//! A binary must name this crate (`use metako_strategies as _;`), or the linker leaves the strategies out.

mod balancer;
mod classifier;
pub mod contract;
mod policy;
mod probe;

pub use balancer::{
    LeastConnected, LeastConnectedSpec, Random, RandomSpec, RoundRobin, RoundRobinSpec, Weighted,
    WeightedSpec,
};
pub use classifier::{Keyword, KeywordSpec};
pub use policy::{MostAdvanced, MostAdvancedSpec};
pub use probe::{SqlProbe, SqlProbeSpec};
