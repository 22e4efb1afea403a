//! The commands of the handbook are commands that exist, and its configurations load.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const PAGES: [&str; 3] = ["README.md", "CONTRIBUTING.md", "examples/README.md"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The code blocks of that language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(opened)) => open = Some((opened == language, String::new())),
            (Some(_), Some(_)) => {
                let (wanted, block) = open.take().unwrap();
                blocks.extend(wanted.then_some(block));
            }
            (Some((_, block)), None) => writeln!(block, "{line}").unwrap(),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a code block does not end");
    blocks
}

fn commands(text: &str) -> Vec<String> {
    let blocks = blocks(text, "sh");
    blocks
        .iter()
        .flat_map(|block| block.lines())
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect()
}

/// Asserts that a command would do something: without running what lasts.
fn check(command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["make", target, variables @ ..] => check_make(target, variables),
        ["cargo", "build", rest @ ..] => check_package(rest),
        ["cargo", "run", rest @ ..] => {
            check_package(rest);
            let (_, arguments) = command.split_once(" -- ").expect(command);
            check_files(arguments);
            let simulator = rest.contains(&"metako-sim") || rest.contains(&"my-metako-sim");
            if !simulator {
                check_metako(arguments);
            }
        }
        ["target/release/metako", ..] => {
            let (_, arguments) = command.split_once(' ').unwrap_or((command, ""));
            check_files(arguments);
            check_metako(arguments);
        }
        // Run against a real demo in `demo.rs`.
        ["psql", ..] => assert_eq!(command, r#"psql "postgresql://app:PASSWORD@127.0.0.1:6432/app""#),
        _ => panic!("`{command}`: no test knows how to check this command"),
    }
}

/// What `make` would run, and whether metako takes the options that come of it.
fn check_make(target: &str, variables: &[&str]) {
    let output = Command::new("make")
        .current_dir(root())
        .args(["--dry-run", target])
        .args(variables)
        .output()
        .unwrap();
    let plan = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "make {target}: {}", String::from_utf8_lossy(&output.stderr));
    for script in plan.split_whitespace().filter(|word| word.starts_with("scripts/")) {
        assert!(root().join(script).is_file(), "make {target}: no {script}");
    }
    for line in plan.lines() {
        if let Some((_, arguments)) = line.split_once(" -- ") {
            check_metako(arguments);
        }
    }
}

fn check_package(words: &[&str]) {
    let package = words.windows(2).find(|pair| ["-p", "--package"].contains(&pair[0])).expect("a package")[1];
    let found = [root().join(package), root().join("examples").join(package)];
    assert!(found.iter().any(|folder| folder.join("Cargo.toml").is_file()), "no package {package}");
}

/// Every path in the arguments exists.
fn check_files(arguments: &str) {
    for word in arguments.split_whitespace().filter(|word| word.contains('/')) {
        assert!(root().join(word).is_file(), "no {word}");
    }
}

/// The binary takes these arguments: with `--help` it parses all of them and does nothing.
fn check_metako(arguments: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_metako"))
        .current_dir(root())
        .args(arguments.split_whitespace())
        .arg("--help")
        .output()
        .unwrap();
    assert!(output.status.success(), "metako {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_command_of_the_handbook_exists() {
    for name in PAGES {
        let text = page(name);
        let found = commands(&text);
        assert!(name == "CONTRIBUTING.md" || !found.is_empty(), "{name} has no commands");
        for command in &found {
            check(command);
        }
    }
}

#[test]
fn an_option_that_does_not_exist_is_noticed() {
    let wrong = [
        "make no-such-target",
        "make demo SCENARIO=no-such-scenario",
        "target/release/metako no-such-command",
        "target/release/metako status --no-such-option",
        "target/release/metako check --config configs/no-such-file.yaml",
        "cargo build --package no-such-package",
        "no-such-program",
    ];
    for command in wrong {
        let noticed = std::panic::catch_unwind(|| check(command)).is_err();
        assert!(noticed, "`{command}` passed");
    }
}

#[test]
fn every_configuration_of_the_readme_loads() {
    let found = blocks(&page("README.md"), "yaml");
    assert!(!found.is_empty());
    for (index, text) in found.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(format!("readme-{index}.yaml"));
        std::fs::write(&file, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_metako"))
            .args(["check", "--config"])
            .arg(&file)
            .env("METAKO_PASSWORD", "secret")
            .env("APP_PASSWORD", "secret")
            .output()
            .unwrap();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_file_that_a_page_links_to_exists() {
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/dependencies.md"] {
        for link in page(name).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !link.starts_with("http") {
                let folder = root().join(name).parent().unwrap().to_owned();
                assert!(folder.join(link).exists(), "{name} links to {link}");
            }
        }
    }
}

/// Where the table of bad days says that tests are.
const TESTS: [(&str, &str); 5] = [
    ("real/", "metako-proxy/tests"),
    ("core/", "metako-core/src/cluster/tests"),
    ("sim/", "metako-sim/tests"),
    ("policy/", "metako-strategies/src/policy"),
    ("proxy/", "metako-proxy/src/control"),
];

/// Fails where that is no test.
fn assert_is_test(name: &str) {
    if let Some(scenario) = name.strip_prefix("scenario/") {
        let file = root().join(format!("metako-sim/scenarios/{scenario}.yaml"));
        return assert!(file.exists(), "there is no scenario {name}");
    }
    let Some((file, test)) = name.split_once("::") else { panic!("{name} names no test") };
    let places = TESTS.iter().find_map(|(prefix, folder)| Some((folder, file.strip_prefix(prefix)?)));
    let Some((folder, file)) = places else { panic!("{name} is nowhere") };
    let text = page(&format!("{folder}/{file}.rs"));
    let Some((before, _)) = text.split_once(&format!("fn {test}(")) else {
        panic!("there is no test {name}")
    };
    // Those of proptest have their attribute before them as well.
    let attributes =
        before.trim_end().lines().rev().take_while(|line| !line.trim().is_empty() && line.trim() != "}");
    let is_test =
        attributes.filter(|line| line.trim_start().starts_with("#[")).any(|line| line.contains("test"));
    assert!(is_test, "{name} is no test");
}

#[test]
fn the_table_of_bad_days_is_whole_and_all_that_it_names_exists() {
    let text = page("docs/bad-days.md");
    let mut named = Vec::new();
    let rows = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| # "));
    for (index, row) in rows.clone().enumerate() {
        let cells: Vec<_> = row.split(" | ").collect();
        assert_eq!((cells[0], cells.len()), (format!("| {}", index + 1).as_str(), 3), "{row}");
        let marks = cells[2].split('`').skip(1).step_by(2);
        let tests: Vec<_> =
            marks.filter(|mark| mark.contains("::") || mark.starts_with("scenario/")).collect();
        assert!(!tests.is_empty() || cells[2].contains("not tested"), "{row}");
        for name in &tests {
            assert_is_test(name);
        }
        named.extend(tests);
    }
    assert_eq!(rows.count(), 70);
    for file in
        ["bad_days", "deaths", "exhaustion", "partitions", "stalls", "strangers", "failover", "limits"]
    {
        let text = page(&format!("metako-proxy/tests/{file}.rs"));
        for test in text.split("#[test]\nfn ").skip(1) {
            let name = format!("real/{file}::{}", test.split('(').next().unwrap());
            assert!(named.contains(&name.as_str()), "docs/bad-days.md does not name {name}");
        }
    }
}

#[test]
fn every_path_of_the_architecture_exists() {
    let text = page("ARCHITECTURE.md");
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let mut checked = 0;
    for cell in cells {
        let mut folder = PathBuf::new();
        for path in cell.split(", ").map(|path| path.trim_matches('`')) {
            // A name without a slash is beside the one before.
            let path = if path.contains('/') { PathBuf::from(path) } else { folder.join(path) };
            folder = path.parent().unwrap().to_owned();
            assert!(root().join(&path).exists(), "ARCHITECTURE.md names {}", path.display());
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}

#[test]
fn every_dependency_is_accounted_for() {
    let manifest = page("Cargo.toml");
    let (_, dependencies) = manifest.split_once("[workspace.dependencies]\n").unwrap();
    let names = dependencies.lines().take_while(|line| !line.starts_with('['));
    let names: Vec<_> = names.filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).collect();
    let text = page("docs/dependencies.md");
    let rows: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next()).collect();
    let rows: Vec<_> = rows.iter().flat_map(|cell| cell.split(", ")).collect();
    for name in names.iter().filter(|name| !name.starts_with("metako-")) {
        assert!(rows.contains(name), "docs/dependencies.md says nothing of {name}");
    }
    for row in rows.iter().filter(|row| **row != "crate") {
        assert!(names.contains(row), "docs/dependencies.md lists {row}, which nothing uses");
    }
}
