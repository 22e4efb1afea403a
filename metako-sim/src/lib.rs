//! metako's failover on simulated bad days.
//!
//! The controller, the strategies and the configuration are those of the proxy, unchanged; PostgreSQL, the network, the
//! clients and time are models. A run is a pure function of scenario, configuration and seed: equal arguments give equal
//! logs, bit for bit. It needs no runtime and no thread, so that thousands of runs take seconds.
//!
//! [`main`] is the whole command line: a crate with strategies of its own links them and calls it. [`run`] is one run,
//! for tests.

pub mod chance;
mod check;
mod cli;
mod executor;
pub mod generate;
pub mod grid;
pub mod log;
mod message;
mod model;
mod queue;
mod record;
pub mod replay;
mod report;
pub mod scenario;
mod stage;
mod world;

use std::collections::BTreeSet;

use metako_core::config::Config;

pub use check::{Facts, Finding};
pub use cli::main;
pub use world::SetupError;

use log::Log;
use scenario::Scenario;

/// What a run brought.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The seed of all its draws.
    pub seed: u64,
    /// Everything that happened.
    pub log: Log,
    /// Figures, counted from the log.
    pub facts: Facts,
    /// What went against the rules or the scenario's expectations, in the order of time.
    pub findings: Vec<Finding>,
}

impl Outcome {
    /// Whether all rules held and all expectations were met.
    pub fn met(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Runs a scenario with metako's configuration and a seed. Blocks until it is over; virtual time costs nothing.
///
/// # Errors
/// If the scenario and the configuration do not fit each other, or a strategy cannot be built.
pub fn run(config: &Config, scenario: &Scenario, seed: u64) -> Result<Outcome, SetupError> {
    let (outcome, _) = finish(config, scenario, seed, None)?;
    Ok(outcome)
}

/// As [`run`], and keeps the incident record that the proxy would have written, with a state in it at the beginning and
/// before each of the `snapshots` (steps of the controller, counted from 0).
///
/// # Errors
/// As [`run`].
pub fn run_recorded(
    config: &Config,
    scenario: &Scenario,
    seed: u64,
    snapshots: &BTreeSet<u64>,
) -> Result<(Outcome, String), SetupError> {
    let (outcome, record) = finish(config, scenario, seed, Some(record::Keeper::new(snapshots.clone())))?;
    Ok((outcome, record.map(record::Keeper::text).unwrap_or_default()))
}

fn finish(
    config: &Config,
    scenario: &Scenario,
    seed: u64,
    keeper: Option<record::Keeper>,
) -> Result<(Outcome, Option<record::Keeper>), SetupError> {
    let (log, keeper) = world::World::new(config, scenario, seed)?.keeping(keeper).run();
    let facts = Facts::of(&log);
    let rules = check::Rules::of(config, scenario).ok_or(SetupError::NoNodes)?;
    let findings = check::check(&log, &facts, &scenario.expect, &rules);
    Ok((Outcome { seed, log, facts, findings }, keeper))
}
