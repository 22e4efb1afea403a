//! Judges a run by its log alone: what must always hold, and what the scenario expects.
//!
//! Each file has the checkers of one concern; docs/simulator.md has the table of the invariants that they stand for. A
//! checker sees one entry after the other, and what the log said before it.

mod decisions;
mod epochs;
mod expectations;
mod facts;
mod history;
mod past;
mod promotions;
mod rationing;
mod reads;
mod recovery;
mod rules;
mod servers;
mod statements;
mod synchronous;
mod writes;

#[cfg(test)]
mod tests;

use metako_core::Tick;
use serde::Serialize;

use crate::log::{Entry, Log};
use crate::scenario::Expect;

pub use facts::Facts;
use past::Past;
pub(crate) use rules::Rules;

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

/// What was found so far. One finding of a kind tells enough; a thousand hide the others.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, check: &'static str, at: Tick, text: String) {
        if !self.0.iter().any(|finding| finding.check == check) {
            self.0.push(Finding { check, at, text });
        }
    }
}

/// Looks at a run for mistakes of one kind.
trait Checker {
    /// Sees the next entry, after `past`.
    fn observe(&mut self, entry: &Entry, past: &Past, rules: &Rules, found: &mut Findings);
}

/// All findings of a run, in the order of time.
pub(crate) fn check(log: &Log, facts: &Facts, expect: &Expect, rules: &Rules) -> Vec<Finding> {
    let mut findings = must_hold(log, rules);
    findings.extend(expectations::check(log, facts, expect, rules));
    findings.sort_by_key(|finding| finding.at);
    findings
}

/// What must hold in every run, whatever goes wrong.
fn must_hold(log: &Log, rules: &Rules) -> Vec<Finding> {
    let mut checkers: [Box<dyn Checker>; 10] = [
        Box::<writes::Writes>::default(),
        Box::<epochs::Epochs>::default(),
        Box::<promotions::Promotions>::default(),
        Box::<history::History>::default(),
        Box::<reads::Reads>::default(),
        Box::<statements::Statements>::default(),
        Box::<synchronous::Quorums>::default(),
        Box::<rationing::Rationing>::default(),
        Box::<decisions::Decisions>::default(),
        Box::<servers::Servers>::default(),
    ];
    let (mut past, mut found) = (Past::default(), Findings::default());
    for entry in log.entries() {
        for checker in &mut checkers {
            checker.observe(entry, &past, rules, &mut found);
        }
        past.add(entry);
    }
    found.0
}
