//! Both binaries know our strategies, and our configuration runs in both.

use std::process::{Command, Output};

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/metako.yaml");
const SCENARIO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/primary-dies.yaml");
const PROXY: &str = env!("CARGO_BIN_EXE_my-metako");
const SIMULATOR: &str = env!("CARGO_BIN_EXE_my-metako-sim");

fn run(binary: &str, arguments: &[&str]) -> Output {
    Command::new(binary).args(arguments).output().expect("the binary was built for this test")
}

fn succeed(binary: &str, arguments: &[&str]) -> String {
    let output = run(binary, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn the_proxy_lists_our_strategies_beside_the_stock_ones() {
    let listing: serde_json::Value =
        serde_json::from_str(&succeed(PROXY, &["strategies", "--json"])).expect("it is JSON");
    let strategies = listing["strategies"].as_array().expect("a list");
    for (name, origin) in [
        ("all_witnesses", "my-strategies"),
        ("hinted", "my-strategies"),
        ("nearest_zone", "my-strategies"),
        ("question", "my-strategies"),
        ("round_robin", "metako-strategies"),
    ] {
        assert!(
            strategies.iter().any(|listed| listed["name"] == name && listed["crate"] == origin),
            "{name} of {origin} is missing in {listing:#}"
        );
    }
}

#[test]
fn the_configuration_is_right() {
    succeed(PROXY, &["check", "--config", CONFIG]);
}

#[test]
fn our_policy_fails_over_in_the_simulator() {
    let report = succeed(SIMULATOR, &["run", SCENARIO, "--config", CONFIG]);
    assert!(report.contains("lost to all replicas"), "{report}");
}
