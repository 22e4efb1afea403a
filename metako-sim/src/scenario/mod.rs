//! Scenarios: the file that people write, and what it says as data.

mod fault;
mod file;
mod span;
mod types;

pub use fault::{Ask, End, Fault, FaultSpec, Target};
pub use span::Span;
pub(crate) use span::micros;
pub use types::{Bounds, ClusterSpec, Expect, Finally, LinkTimings, Load, Range, Run, Scenario, Timings};
