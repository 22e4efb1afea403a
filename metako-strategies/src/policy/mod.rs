//! Failover policies. All are pure.

mod most_advanced;

pub use most_advanced::{MostAdvanced, MostAdvancedSpec};
