//! Drivers, as applications use them, through a metako process in each of its modes, and past it: what they expect is
//! what PostgreSQL does, or the run past metako fails.
//!
//! `scripts/install-drivers.sh` installs the drivers. `cargo test --test drivers session` runs one mode; with
//! `METAKO_TEST_DRIVER=asyncpg` one driver.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod not_yet;
mod programs;
#[path = "../running/mod.rs"]
mod running;
mod scripts;
mod stage;
mod tokio_client;

use stage::{Mode, Outcome, Stage};

type Run = fn(&Stage) -> Vec<Outcome>;

const DRIVERS: [(&str, Run); 6] = [
    ("programs", programs::run),
    ("tokio-postgres", tokio_client::run),
    ("psycopg", |stage| scripts::python(stage, "psycopg_checks.py", &[])),
    // The pure Python flavour over the machine's own libpq, which is older and does other things.
    ("psycopg-python", |stage| scripts::python(stage, "psycopg_checks.py", &[("PSYCOPG_IMPL", "python")])),
    ("asyncpg", |stage| scripts::python(stage, "asyncpg_checks.py", &[])),
    ("node-postgres", |stage| scripts::node(stage, "node_checks.mjs")),
];

fn drivers_work(mode: Mode) {
    let stage = Stage::start(mode);
    let wanted = std::env::var("METAKO_TEST_DRIVER").ok();
    let mut wrong = Vec::new();
    for (driver, run) in DRIVERS.iter().filter(|(name, _)| wanted.as_deref().is_none_or(|only| only == *name))
    {
        let begun = std::time::Instant::now();
        let outcomes = run(&stage);
        let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
        let passed = outcomes.len() - failed;
        println!("{mode}, {driver}: {passed} of {} in {} s", outcomes.len(), begun.elapsed().as_secs());
        for Outcome { check, failure } in &outcomes {
            match (failure, not_yet::reason(mode, driver, check)) {
                (None, None) => println!("  ok       {check}"),
                (Some(failure), Some(reason)) => println!("  not yet  {check}: {reason}: {failure}"),
                (Some(failure), None) => wrong.push(format!("{mode}, {driver}, {check}: {failure}")),
                (None, Some(reason)) => println!("  ok       {check}, this time: {reason}"),
            }
        }
    }
    assert!(wrong.is_empty(), "{} checks:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn drivers_work_past_metako() {
    drivers_work(Mode::Direct);
}

#[test]
fn drivers_work_in_session_mode() {
    drivers_work(Mode::Session);
}

#[test]
fn drivers_work_in_transaction_mode() {
    drivers_work(Mode::Transaction);
}

#[test]
fn drivers_work_with_reads_on_replicas() {
    drivers_work(Mode::Split);
}
