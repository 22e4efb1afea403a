//! Judges a run by its log alone: what must always hold, and what the scenario expects.

mod expectations;
mod facts;
mod safety;

#[cfg(test)]
mod tests;

use metako_core::Tick;
use serde::Serialize;

use crate::log::Log;
use crate::scenario::Expect;

pub use facts::Facts;

/// Something that should not have happened, or should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which rule or expectation it is about.
    pub check: &'static str,
    /// When it showed; in microseconds since the start.
    pub at: Tick,
    /// What is wrong, for people.
    pub text: String,
}

/// All findings of a run, in the order of time. `synchronous` tells whether the run began with synchronous replication.
pub(crate) fn check(log: &Log, facts: &Facts, expect: &Expect, synchronous: bool) -> Vec<Finding> {
    let mut findings = safety::check(log);
    findings.extend(expectations::check(log, facts, expect, synchronous));
    findings.sort_by_key(|finding| finding.at);
    findings
}
