//! The scenarios that ship: each meets its expectations, for its own seed and for others.

mod support;

use std::process::Command;

use metako_sim::{Outcome, run};
use support::{
    ASYNCHRONOUS, HOOKED, HOOKED_ASYNCHRONOUS, OBSERVED, SYNCHRONOUS, changed_nodes, config, scenario,
};

const PRIMARY_DIES: &str = include_str!("../scenarios/primary-dies.yaml");
const PRIMARY_DIES_ASYNCHRONOUS: &str = include_str!("../scenarios/primary-dies-asynchronous.yaml");
const PROXY_CUT_OFF: &str = include_str!("../scenarios/proxy-cut-off.yaml");
const PRIMARY_FREEZES: &str = include_str!("../scenarios/primary-freezes.yaml");
const DISK_STALLS: &str = include_str!("../scenarios/disk-stalls.yaml");
const RECOVERS_FOR_EVER: &str = include_str!("../scenarios/recovers-for-ever.yaml");
const SOMEBODY_PROMOTES: &str = include_str!("../scenarios/somebody-promotes.yaml");
const STALE_PRIMARY_AT_START: &str = include_str!("../scenarios/stale-primary-at-start.yaml");
const OLD_PRIMARY_RETURNS: &str = include_str!("../scenarios/old-primary-returns.yaml");
const PRIMARY_RESTARTS: &str = include_str!("../scenarios/primary-restarts.yaml");
const SWITCHOVER: &str = include_str!("../scenarios/switchover.yaml");
const SWITCHOVER_PRIMARY_DIES: &str = include_str!("../scenarios/switchover-primary-dies.yaml");

fn outcome(configuration: &str, text: &str, seed: u64) -> Outcome {
    run(&config(configuration), &scenario(text), seed).expect("scenario and configuration fit")
}

fn met(configuration: &str, text: &str) -> Vec<Outcome> {
    let outcomes: Vec<Outcome> = (1..=5).map(|seed| outcome(configuration, text, seed)).collect();
    for outcome in &outcomes {
        assert!(outcome.met(), "seed {}: {:?}", outcome.seed, outcome.findings);
    }
    outcomes
}

#[test]
fn the_primary_dies_and_no_acknowledged_write_is_lost() {
    for outcome in met(SYNCHRONOUS, PRIMARY_DIES) {
        assert!(outcome.facts.acknowledged > 1_000, "{:?}", outcome.facts);
        assert!(outcome.facts.lost.is_empty());
        assert!(
            outcome.facts.unknown <= 8,
            "at most one write of each client was under way: {:?}",
            outcome.facts
        );
    }
}

#[test]
fn two_runs_of_a_seed_are_equal_and_another_seed_is_another_run() {
    let (one, two) = (outcome(SYNCHRONOUS, PRIMARY_DIES, 7), outcome(SYNCHRONOUS, PRIMARY_DIES, 7));
    assert_eq!(one.log.text(), two.log.text());
    assert_eq!(one.log.hash(), two.log.hash());
    let other = outcome(SYNCHRONOUS, PRIMARY_DIES, 8);
    assert_ne!(one.log.hash(), other.log.hash());
}

#[test]
fn another_process_gives_the_same_trace() {
    let hash = |seed: &str| {
        let output = command(&["scenarios/primary-dies.yaml", "--seed", seed, "--json"]);
        assert!(output.status.success(), "{output:?}");
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        object["trace_hash"].as_str().expect("text").to_owned()
    };
    assert_eq!(hash("7"), format!("{:016x}", outcome(SYNCHRONOUS, PRIMARY_DIES, 7).log.hash()));
    assert_ne!(hash("7"), hash("8"));
}

#[test]
fn asynchronous_replication_loses_acknowledged_writes_and_says_so() {
    let outcomes = met(ASYNCHRONOUS, PRIMARY_DIES_ASYNCHRONOUS);
    let lossy = outcomes.iter().filter(|outcome| !outcome.facts.lost.is_empty()).count();
    assert!(lossy > 0, "an acknowledgement that races the kill is lost in some of the runs");
}

#[test]
fn a_proxy_that_is_cut_off_promotes_nobody() {
    met(SYNCHRONOUS, PROXY_CUT_OFF);
    met(ASYNCHRONOUS, PROXY_CUT_OFF);
}

#[test]
fn a_primary_that_freezes_is_replaced() {
    met(SYNCHRONOUS, PRIMARY_FREEZES);
}

#[test]
fn a_primary_whose_disk_stalls_is_replaced_although_its_replicas_stream() {
    for configuration in [SYNCHRONOUS, ASYNCHRONOUS] {
        for outcome in met(configuration, DISK_STALLS) {
            assert!(outcome.facts.acknowledged > 1_000, "{:?}", outcome.facts);
            assert!(outcome.facts.lost.is_empty(), "what was acknowledged was on its disk, and streamed");
        }
    }
}

#[test]
fn a_primary_whose_disk_is_slow_is_not_replaced() {
    let slow = DISK_STALLS.replace("for: 25s", "for: 7s").replace("failovers: 1", "failovers: 0");
    let slow =
        slow.replace("primary: [pg2, pg3], replicas_streaming: 1", "primary: [pg1], replicas_streaming: 2");
    met(SYNCHRONOUS, &slow);
    met(ASYNCHRONOUS, &slow);
}

#[test]
fn a_primary_that_recovers_for_ever_is_replaced() {
    met(SYNCHRONOUS, RECOVERS_FOR_EVER);
    met(ASYNCHRONOUS, RECOVERS_FOR_EVER);
}

#[test]
fn a_primary_that_recovers_in_time_is_not_replaced() {
    let soon = RECOVERS_FOR_EVER.replace("for: 310s", "for: 290s").replace("failovers: 1", "failovers: 0");
    let soon =
        soon.replace("primary: [pg2, pg3], replicas_streaming: 1", "primary: [pg1], replicas_streaming: 2");
    met(SYNCHRONOUS, &soon);
    met(ASYNCHRONOUS, &soon);
}

#[test]
fn an_old_primary_that_returns_gets_no_traffic() {
    met(SYNCHRONOUS, OLD_PRIMARY_RETURNS);
}

#[test]
fn what_a_primary_recovers_is_seen_when_a_voter_has_it() {
    // So that reads go to the primary.
    let unsplit = format!("{SYNCHRONOUS}load_balancer: {{ split: off }}\n");
    for outcome in met(&unsplit, PRIMARY_RESTARTS) {
        let text = outcome.log.text();
        assert!(text.contains("0 of the 1 standbys that must have its WAL"), "{text}");
        assert!(outcome.facts.reads > 1_000, "{:?}", outcome.facts);
    }
}

#[test]
fn a_promotion_by_others_is_followed() {
    for outcome in met(OBSERVED, SOMEBODY_PROMOTES) {
        assert!(outcome.facts.acknowledged > 1_000, "{:?}", outcome.facts);
        assert!(!changed_nodes(&outcome));
    }
}

#[test]
fn a_primary_that_was_replaced_while_metako_was_away_is_not_served() {
    for outcome in met(OBSERVED, STALE_PRIMARY_AT_START) {
        assert!(!changed_nodes(&outcome));
    }
}

#[test]
fn a_switchover_under_load_fails_nobody_and_loses_nothing() {
    for configuration in [HOOKED, HOOKED_ASYNCHRONOUS] {
        for outcome in met(configuration, SWITCHOVER) {
            assert!(outcome.facts.acknowledged > 5_000, "{:?}", outcome.facts);
        }
    }
}

#[test]
fn without_hooks_a_switchover_is_refused_with_the_reason() {
    let outcome = outcome(SYNCHRONOUS, SWITCHOVER, 1);
    assert!(
        outcome.log.text().contains("asked    switchover to pg2: refused: `hooks.stop` is not configured")
    );
    assert!(outcome.facts.promoted.is_empty());
}

/// Where the kill hits: the last step that the log shows before it.
fn step_at_the_kill(outcome: &Outcome) -> &'static str {
    let text = outcome.log.text();
    let before = text.split("fault    kill").next().unwrap_or_default();
    let steps = [
        "stopped in order",
        "shuts down",
        "severed",
        ", stopping, ",
        ", draining, ",
        "wrote a checkpoint",
        "switchover_begun",
    ];
    steps.into_iter().find(|step| before.contains(step)).unwrap_or("before")
}

#[test]
fn a_primary_that_dies_at_any_step_of_a_switchover_is_replaced_and_rejoined() {
    let mut hit = std::collections::BTreeSet::new();
    for at in (5_000..=6_000).step_by(25) {
        let text = SWITCHOVER_PRIMARY_DIES.replace("5400ms", &format!("{at}ms"));
        let outcome = outcome(HOOKED, &text, 1);
        assert!(outcome.met(), "killed at {at}ms: {:?}", outcome.findings);
        hit.insert(step_at_the_kill(&outcome));
    }
    for step in ["switchover_begun", ", draining, ", "shuts down", "stopped in order"] {
        assert!(hit.contains(step), "{step}: {hit:?}");
    }
}

fn command(arguments: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_metako-sim"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["run", "--config", "scenarios/synchronous.yaml"])
        .args(arguments)
        .output()
        .expect("the binary runs")
}

#[test]
fn the_exit_status_tells_met_broken_and_wrong() {
    let good = command(&["scenarios/primary-dies.yaml"]);
    assert_eq!(good.status.code(), Some(0));
    let text = String::from_utf8(good.stdout).expect("UTF-8");
    for part in ["decision chosen", "fault    kill pg1", "all expectations are met"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let directory = env!("CARGO_TARGET_TMPDIR");
    let broken = format!("{directory}/broken.yaml");
    std::fs::write(&broken, PRIMARY_DIES.replace("failovers: 1", "failovers: 0")).expect("written");
    let output = command(&[&broken]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 failovers, expected 0"), "{output:?}");

    let wrong = format!("{directory}/wrong.yaml");
    std::fs::write(&wrong, PRIMARY_DIES.replace("kill: primary", "kill: pg9")).expect("written");
    let output = command(&[&wrong]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no node `pg9`"), "{output:?}");

    let output = command(&["scenarios/no-such-file.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{output:?}");
}
