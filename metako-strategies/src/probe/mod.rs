//! Health probes.

mod sql;

pub use sql::{SqlProbe, SqlProbeSpec};
