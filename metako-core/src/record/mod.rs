//! The incident record: everything that the controller was told, and everything that it answered, as lines of JSON from
//! which the simulator can play it again.
//!
//! A line has `v` (the version of the format, 1), `seq` (counts lines), `at` (the wall clock), `now` (the controller's
//! clock, in microseconds) and exactly one of:
//!
//! | key | what |
//! |---|---|
//! | `begin` | the controller's whole state with settings and policy: a replay starts from there ([`Begin`]) |
//! | `in` | an [`Event`] that the controller was told at `now` |
//! | `out` | an [`Action`] that followed, in the order in which they begin |
//! | `why` | a [`Decision`](crate::cluster::Decision) that followed, among them |
//!
//! A view is written down only when epoch, phase or writes have changed, and without its nodes: the rest of it follows
//! from what was told, and replicas that come and go are decisions. No secret is written down: passwords, the values of
//! `restore_command` and the arguments of hooks are masked, and the hooks' `conninfo` is left out.
//!
//! Nothing here writes files or reads clocks: [`Scribe`] makes text, [`Line`] reads it.

mod line;
mod mask;
mod scribe;

pub use line::{Begin, Cause, Line, LineError, What};
pub use scribe::{Scribe, Shown, Snapshot, Step, state};

use std::time::Duration;

/// Version of the format.
pub const VERSION: u64 = 1;

/// A point in time since 1970 as RFC 3339 in UTC.
pub fn timestamp(wall_clock: Duration) -> String {
    let micros = i64::try_from(wall_clock.as_micros()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests;
