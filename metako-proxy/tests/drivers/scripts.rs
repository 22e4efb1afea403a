//! Drivers of other languages: a script does the checks and prints a line of JSON for each.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::running::text;
use crate::stage::{Outcome, Stage};

pub(crate) fn python(stage: &Stage, script: &str, more: &[(&str, &str)]) -> Vec<Outcome> {
    let mut command = Command::new(installed("venv/bin/python"));
    command
        .arg("-X")
        .arg("dev")
        .arg("-W")
        .arg("ignore")
        .arg(folder().join(script))
        .envs(more.iter().copied());
    run(stage, command, script)
}

pub(crate) fn node(stage: &Stage, script: &str) -> Vec<Outcome> {
    let modules = installed("node/node_modules");
    let mut command = Command::new("node");
    command.arg(folder().join(script)).env("METAKO_TEST_NODE_MODULES", modules);
    run(stage, command, script)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers")
}

/// A path in the folder of installed drivers.
fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/drivers").join(path);
    assert!(path.exists(), "{} is missing: run scripts/install-drivers.sh", path.display());
    path
}

fn run(stage: &Stage, mut command: Command, script: &str) -> Vec<Outcome> {
    let variables = stage.variables();
    command.envs(variables.into_iter().map(|(name, value)| (format!("METAKO_TEST_{name}"), value)));
    command.stdin(Stdio::null()).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: run scripts/install-drivers.sh"));
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{script}: {}\n{said}\n{complained}", output.status);
    let outcomes: Vec<Outcome> = said.lines().map(|line| outcome(script, line)).collect();
    assert!(!outcomes.is_empty(), "{script} checked nothing\n{complained}");
    outcomes
}

fn outcome(script: &str, line: &str) -> Outcome {
    let parsed: Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{script}: {error}: {line}"));
    let check = parsed["check"].as_str().unwrap_or_else(|| panic!("{script}: {line}")).to_owned();
    let failed = parsed["ok"] != true;
    Outcome { check, failure: failed.then(|| parsed["detail"].as_str().unwrap_or_default().to_owned()) }
}
