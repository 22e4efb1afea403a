//! Random bad days: whatever one or two faults do, the rules hold, and the cluster gets well again afterwards.

mod support;

use std::time::Duration;

use metako_core::cluster::DecisionKind;
use metako_core::config::{FailoverMode, HumanDuration};
use metako_core::{NodeName, Tick};
use metako_sim::generate::{Menu, scenario, with_recovery, with_stall};
use metako_sim::log::{ClientEvent, Entry, LogEvent, NodeChange};
use metako_sim::scenario::{Bounds, Expect, Finally, Scenario};
use metako_sim::{Outcome, run};
use support::{ASYNCHRONOUS, HOOKED, HOOKED_ASYNCHRONOUS, OBSERVED, SYNCHRONOUS, changed_nodes, config};

const NODES: [&str; 3] = ["pg1", "pg2", "pg3"];

/// What a failing seed prints: enough to run it again, and to see what happened.
fn explain(seed: u64, scenario: &Scenario, outcome: &Outcome) -> String {
    let faults: Vec<String> = scenario
        .faults
        .iter()
        .map(|fault| {
            format!("  {:?} for {:?}: {:?}", fault.at.0, fault.lasting.map(|lasting| lasting.0), fault.fault)
        })
        .collect();
    let findings: Vec<String> = outcome
        .findings
        .iter()
        .map(|finding| format!("  {} at {}: {}", finding.check, finding.at, finding.text))
        .collect();
    format!("seed {seed}\n{}\n{}", faults.join("\n"), findings.join("\n"))
}

/// Writes go on so long after the last fault, at the latest.
const GETS_WELL: Duration = Duration::from_secs(20);
/// The same where the old primary may have to be rejoined first.
const GETS_WELL_WITH_HOOKS: Duration = Duration::from_secs(60);

/// What is expected of a cluster after its faults.
fn gets_well(within: Duration) -> Expect {
    Expect {
        writes_go_on_within: Some(HumanDuration(within)),
        finally: Finally { in_place: true, ..Finally::default() },
        ..Expect::default()
    }
}

/// Where others promote: metako changes nothing, and at the end serves whoever was promoted last, or the one that was never
/// away, or calls a person.
fn not_observed_at_the_end(outcome: &Outcome) -> Vec<String> {
    let mut ill = Vec::new();
    if changed_nodes(outcome) {
        ill.push("  a node was changed".to_owned());
    }
    let mut promoted = None;
    let mut told = false;
    for Entry { event, .. } in outcome.log.entries() {
        match event {
            LogEvent::Node { node, change: NodeChange::Promoted { .. } } => promoted = Some(node.clone()),
            LogEvent::Decision(decision) => told |= decision.reason.contains("adopt --primary"),
            _ => {}
        }
    }
    let open = outcome.log.end().and_then(|state| state.primary.clone());
    let wanted = promoted.unwrap_or_else(|| NodeName::from(NODES[0]));
    if open.as_ref() != Some(&wanted) && !told {
        ill.push(format!("  writes are open to {open:?}, and {wanted} was promoted last"));
    }
    let entries = outcome.log.entries();
    let acknowledges =
        |entry: &&Entry| matches!(entry.event, LogEvent::Client(ClientEvent::Acknowledged { .. }));
    let last = entries.iter().rev().find(acknowledges).map_or(Tick::ZERO, |entry| entry.at);
    let over = entries.last().map_or(Tick::ZERO, |entry| entry.at);
    if open.is_some() && over.since(last) >= Duration::from_secs(5) {
        ill.push(format!("  no write was acknowledged after {last}"));
    }
    ill
}

/// Without hooks one or two faults leave nothing to a person.
fn left_to_a_person_at_the_end(outcome: &Outcome) -> Vec<String> {
    let phase = outcome.log.entries().iter().rev().find_map(|entry| match &entry.event {
        LogEvent::View { phase, .. } => Some(phase.name()),
        _ => None,
    });
    phase
        .filter(|phase| *phase == "manual_needed")
        .map(|_| "  a person is called".to_owned())
        .into_iter()
        .collect()
}

/// Runs seeds and gives what the broken ones say.
fn broken(configuration: &str, seeds: std::ops::Range<u64>, menu: Menu) -> Vec<String> {
    broken_with(configuration, seeds, menu, |scenario| scenario)
}

/// As [`broken`], with scenarios that are changed after they are drawn.
fn broken_with(
    configuration: &str,
    seeds: std::ops::Range<u64>,
    menu: Menu,
    change: impl Fn(Scenario) -> Scenario,
) -> Vec<String> {
    let config = config(configuration);
    let mut broken = Vec::new();
    for seed in seeds {
        let mut scenario = change(scenario(seed, &NODES, menu));
        let observed = config.cluster.failover.mode == FailoverMode::Observe;
        let hooks = config.cluster.hooks.rejoin.is_some();
        if !observed {
            scenario.expect = gets_well(if hooks { GETS_WELL_WITH_HOOKS } else { GETS_WELL });
        }
        if menu.faults_max == 0 {
            // Where nothing goes wrong nobody gets an error, and nothing is lost, even without synchronous replication.
            let none = Some(Bounds::Exactly(0));
            let expect = scenario.expect;
            scenario.expect =
                Expect { acknowledged_lost: none, unknown: none, failed: none, failed_reads: none, ..expect };
        }
        let outcome = run(&config, &scenario, seed).expect("the scenario fits the configuration");
        let mut ill = if observed {
            not_observed_at_the_end(&outcome)
        } else if hooks {
            Vec::new()
        } else {
            left_to_a_person_at_the_end(&outcome)
        };
        if menu.faults_max == 0 {
            let undone = |entry: &&Entry| matches!(&entry.event, LogEvent::Decision(decision) if decision.kind == DecisionKind::Aborted);
            ill.extend(outcome.log.entries().iter().filter(undone).map(|entry| format!("  {entry}")));
        }
        if std::env::var_os("TRACE").is_some() {
            println!("{}", outcome.log.text());
        }
        if !outcome.met() || !ill.is_empty() {
            broken.push(format!("{}\n{}\n", explain(seed, &scenario, &outcome), ill.join("\n")));
        }
    }
    broken
}

#[test]
fn one_or_two_faults_break_no_rule_under_synchronous_replication() {
    let broken =
        broken(SYNCHRONOUS, 0..150, Menu { faults_max: 2, proxy: false, operator: false, manager: false });
    assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn one_or_two_faults_break_no_rule_under_asynchronous_replication() {
    let broken =
        broken(ASYNCHRONOUS, 0..75, Menu { faults_max: 2, proxy: false, operator: false, manager: false });
    assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn a_proxy_that_is_killed_as_well_goes_on_from_its_journal() {
    let broken = broken(
        SYNCHRONOUS,
        1_000..1_075,
        Menu { faults_max: 3, proxy: true, operator: false, manager: false },
    );
    assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn disks_that_stall_among_faults_break_no_rule() {
    let menu = Menu { faults_max: 2, proxy: true, operator: false, manager: false };
    let stalls = |scenario| with_stall(scenario, &NODES);
    for configuration in [SYNCHRONOUS, ASYNCHRONOUS, HOOKED, OBSERVED] {
        let broken = broken_with(configuration, 6_000..6_050, menu, stalls);
        assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
    }
}

/// A primary that recovers is given no more than a few seconds.
fn hasty(configuration: &str) -> String {
    let changed = configuration.replace("failover: { ", "failover: { start_timeout: 4s, ");
    assert_ne!(changed, configuration);
    changed
}

#[test]
fn recoveries_without_an_end_among_faults_break_no_rule() {
    let menu = Menu { faults_max: 2, proxy: true, operator: false, manager: false };
    let recoveries = |scenario| with_recovery(scenario, &NODES);
    for configuration in [SYNCHRONOUS, ASYNCHRONOUS, HOOKED, OBSERVED] {
        let broken = broken_with(&hasty(configuration), 7_000..7_050, menu, recoveries);
        assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
    }
}

/// Hooks that are given up while they are at work on their host.
fn impatient(configuration: &str) -> String {
    let changed = configuration
        .replace("[stop-node] }", "[stop-node], timeout: 1s }")
        .replace("[rejoin-node] }", "[rejoin-node], timeout: 4s }");
    assert_ne!(changed, configuration);
    changed
}

#[test]
fn hooks_that_are_given_up_and_go_on_break_no_rule() {
    for configuration in [HOOKED, HOOKED_ASYNCHRONOUS] {
        let menu = Menu { faults_max: 2, proxy: true, operator: true, manager: false };
        let broken = broken(&impatient(configuration), 4_000..4_030, menu);
        assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
    }
}

#[test]
fn what_a_person_asks_for_without_a_fault_fails_nobody_and_loses_nothing() {
    for configuration in [HOOKED, HOOKED_ASYNCHRONOUS] {
        let broken = broken(
            configuration,
            2_000..2_040,
            Menu { faults_max: 0, proxy: false, operator: true, manager: false },
        );
        assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
    }
}

#[test]
fn what_a_person_asks_for_among_faults_breaks_no_rule_and_every_node_is_in_its_place_afterwards() {
    for configuration in [HOOKED, HOOKED_ASYNCHRONOUS] {
        let broken = broken(
            configuration,
            3_000..3_060,
            Menu { faults_max: 2, proxy: true, operator: true, manager: false },
        );
        assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
    }
}

#[test]
fn whom_others_promote_among_faults_is_followed_and_no_node_is_changed() {
    let menu = Menu { faults_max: 3, proxy: true, operator: false, manager: true };
    let broken = broken(OBSERVED, 5_000..5_100, menu);
    assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn what_is_read_of_a_strict_primary_among_faults_is_what_a_failover_keeps() {
    let unsplit = format!("{HOOKED}load_balancer: {{ split: off }}\n");
    let menu = Menu { faults_max: 2, proxy: true, operator: true, manager: false };
    let broken = broken_with(&unsplit, 6_000..6_060, menu, with_restart);
    assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
}

/// A primary that recovers what nobody else has, among whatever else happens.
fn with_restart(mut scenario: Scenario) -> Scenario {
    let restart = support::scenario(include_str!("../scenarios/primary-restarts.yaml"));
    scenario.faults.extend(restart.faults);
    scenario
}

/// Seeds that found a fault once, with what it was.
#[test]
fn seeds_that_once_broke_stay_well() {
    const MENU: Menu = Menu { faults_max: 4, proxy: true, operator: false, manager: false };
    // A call-off met a freeze under way: the standby's own settings were forgotten. A slot was believed to exist under a
    // name that was never sent.
    const ONCE: [(&str, u64); 2] = [(SYNCHRONOUS, 21_048), (ASYNCHRONOUS, 30_810)];
    for (configuration, seed) in ONCE {
        let broken = broken(configuration, seed..seed + 1, MENU);
        assert!(broken.is_empty(), "broken again:\n{}", broken.join("\n"));
    }
}

/// A hand's tool: `SEEDS=0..10000 FAULTS=2 PROXY=1 CONFIG=hooked TRACE= cargo test -p metako-sim --test random -- --ignored --nocapture by_hand`
#[test]
#[ignore = "runs as many seeds as it is told to"]
fn by_hand() {
    let var = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let seeds = var("SEEDS", "0..1000");
    let (from, to) = seeds.split_once("..").expect("FROM..TO");
    let seeds = from.parse().expect("a number")..to.parse().expect("a number");
    let configuration = match var("CONFIG", "hooked").as_str() {
        "hooked" => HOOKED,
        "hooked-asynchronous" => HOOKED_ASYNCHRONOUS,
        "hooked-impatient" => &impatient(HOOKED),
        "hooked-asynchronous-impatient" => &impatient(HOOKED_ASYNCHRONOUS),
        "hooked-degrade" => &HOOKED.replace("any 1", "{ mode: quorum, acks: 1, on_no_voter: degrade }"),
        "hooked-two" => &HOOKED.replace("any 1", "any 2"),
        "hooked-two-degrade" => &HOOKED.replace("any 1", "{ mode: quorum, acks: 2, on_no_voter: degrade }"),
        "synchronous" => SYNCHRONOUS,
        "unsplit" => &format!("{HOOKED}load_balancer: {{ split: off }}\n"),
        "observed" => OBSERVED,
        _ => ASYNCHRONOUS,
    };
    let menu = Menu {
        faults_max: var("FAULTS", "2").parse().expect("a number"),
        proxy: var("PROXY", "0") == "1",
        operator: var("OPERATOR", "1") == "1",
        manager: var("MANAGER", "0") == "1",
    };
    let (stalls, recoveries) = (var("STALLS", "0") == "1", var("RECOVERIES", "0") == "1");
    let change = |scenario| {
        let scenario = if stalls { with_stall(scenario, &NODES) } else { scenario };
        if recoveries { with_recovery(scenario, &NODES) } else { scenario }
    };
    let configuration = if recoveries { &*hasty(configuration) } else { configuration };
    let broken = broken_with(configuration, seeds, menu, change);
    println!("{} broken:\n{}", broken.len(), broken.join("\n"));
}
