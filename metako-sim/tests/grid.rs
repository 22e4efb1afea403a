//! Every fault of the menu alone, and in pairs with every other: not by chance, but one after the other.

mod support;

use std::time::Duration;

use metako_core::config::{Config, FailoverMode};
use metako_sim::chance::{Chance, Purpose};
use metako_sim::grid::Grid;
use metako_sim::scenario::Scenario;
use metako_sim::{Outcome, run};
use support::{ASYNCHRONOUS, HOOKED, HOOKED_ASYNCHRONOUS, OBSERVED, SYNCHRONOUS, config};

const CONFIGURATIONS: [(&str, &str); 5] = [
    ("synchronous", SYNCHRONOUS),
    ("asynchronous", ASYNCHRONOUS),
    ("observed", OBSERVED),
    ("hooked", HOOKED),
    ("hooked-asynchronous", HOOKED_ASYNCHRONOUS),
];

/// So many pairs of each configuration are run each time; which, is drawn by a fixed seed.
const SAMPLE: u64 = 1_000;

fn grid(config: &Config) -> Grid {
    Grid::new("pg2", config.cluster.hooks.rejoin.is_some())
}

/// What a broken scenario says: what it was, and what was wrong.
fn explain(scenario: &Scenario, outcome: &Outcome) -> String {
    let faults = scenario.faults.iter().map(|fault| {
        let lasting = fault.lasting.map_or(Duration::ZERO, |lasting| lasting.0);
        format!("  {:?} for {lasting:?}: {:?}", fault.at.0, fault.fault)
    });
    let findings = outcome
        .findings
        .iter()
        .map(|finding| format!("  {} at {}: {}", finding.check, finding.at, finding.text));
    faults.chain(findings).collect::<Vec<_>>().join("\n")
}

/// Runs one; gives what is wrong with it.
fn broken(config: &Config, mut scenario: Scenario, seed: u64) -> Option<String> {
    if config.cluster.failover.mode == FailoverMode::Observe {
        // Nobody promotes here: what metako changes nothing of does not get well by metako.
        scenario.expect.finally.in_place = false;
    }
    let outcome = run(config, &scenario, seed).expect("the scenario fits the configuration");
    if std::env::var_os("TRACE").is_some() {
        println!("{}", outcome.log.text());
    }
    (!outcome.met()).then(|| explain(&scenario, &outcome))
}

#[test]
fn every_single_fault_breaks_no_rule() {
    for (name, text) in CONFIGURATIONS {
        let config = config(text);
        let broken: Vec<String> = grid(&config)
            .singles()
            .zip(1..)
            .filter_map(|(scenario, seed)| broken(&config, scenario, seed))
            .collect();
        assert!(broken.is_empty(), "{name}: {} broken:\n{}", broken.len(), broken.join("\n\n"));
    }
}

#[test]
fn a_sample_of_all_pairs_of_faults_breaks_no_rule() {
    let mut chance = Chance::new(1);
    for (index, (name, text)) in (0..).zip(CONFIGURATIONS) {
        let config = config(text);
        let grid = grid(&config);
        let mut found = Vec::new();
        for draw in 0..SAMPLE {
            let most = grid.pairs() as u64 - 1;
            let number = chance.between(Purpose::Scenario, index * SAMPLE + draw, 0, most);
            let scenario = grid.pair(usize::try_from(number).expect("small")).expect("a number of a pair");
            found.extend(broken(&config, scenario, number).map(|text| format!("pair {number}\n{text}")));
        }
        assert!(found.is_empty(), "{name}: {} broken:\n{}", found.len(), found.join("\n\n"));
    }
}

/// A hand's tool: all pairs, or those with these numbers.
/// `CONFIG=hooked PAIRS=0..9216 TRACE= cargo test -p metako-sim --test grid -- --ignored --nocapture by_hand`
#[test]
#[ignore = "runs as many pairs as it is told to"]
fn by_hand() {
    let var = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let wanted = var("CONFIG", "hooked");
    let (_, text) =
        CONFIGURATIONS.into_iter().find(|(name, _)| *name == wanted).expect("a configuration's name");
    let config = config(text);
    let grid = grid(&config);
    let pairs = var("PAIRS", &format!("0..{}", grid.pairs()));
    let (from, to) = pairs.split_once("..").expect("FROM..TO");
    let numbers = from.parse::<usize>().expect("a number")..to.parse().expect("a number");
    let begun = std::time::Instant::now();
    let count = numbers.len();
    let mut found = 0;
    for number in numbers {
        let scenario = grid.pair(number).expect("a number of a pair");
        if let Some(text) = broken(&config, scenario, number as u64) {
            found += 1;
            println!("pair {number}\n{text}\n");
        }
    }
    println!("{found} of {count} broken, in {:?}", begun.elapsed());
}
