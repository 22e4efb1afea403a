//! Records of simulated runs, played again.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use metako_core::NodeName;
use metako_core::cluster::DecisionKind;
use metako_core::config::Config;
use metako_sim::generate::{Menu, scenario as random};
use metako_sim::replay::{Decided, Replay, ReplayError, Source, replay, what_if};
use metako_sim::scenario::Scenario;
use metako_sim::{Outcome, run, run_recorded};
use proptest::prelude::*;
use support::{ASYNCHRONOUS, HOOKED, HOOKED_ASYNCHRONOUS, OBSERVED, SYNCHRONOUS, config, scenario};

const NODES: [&str; 3] = ["pg1", "pg2", "pg3"];
const PRIMARY_DIES: &str = include_str!("../scenarios/primary-dies.yaml");

fn source(text: &str) -> Source {
    Source { name: "incident.jsonl".to_owned(), bytes: text.as_bytes().to_vec() }
}

fn recorded(config: &Config, scenario: &Scenario, seed: u64, snapshots: &[u64]) -> (Outcome, String) {
    let snapshots: BTreeSet<u64> = snapshots.iter().copied().collect();
    run_recorded(config, scenario, seed, &snapshots).expect("scenario and configuration fit")
}

/// Replays text and fails with the first difference.
fn equal(what: &str, text: &str) -> Replay {
    let found = replay(&[source(text)]).unwrap_or_else(|problem| panic!("{what}: {problem}"));
    assert!(found.difference.is_none(), "{what}: {:#?}", found.difference);
    assert!(!found.state_lost && !found.left_out, "{what}: {:?}", found.notes);
    found
}

/// The record from its last state on.
fn from_last_state(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.iter().rposition(|line| line.contains("\"begin\":{")).expect("a state");
    lines[last..].iter().flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn every_shipped_scenario_is_replayed_to_equal_decisions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut replayed = 0;
    for entry in std::fs::read_dir(folder).expect("the folder of scenarios") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        let text = std::fs::read_to_string(&path).expect("a file");
        let Ok(scenario) = Scenario::load(&name, &text) else { continue };
        for configuration in [SYNCHRONOUS, ASYNCHRONOUS, HOOKED, HOOKED_ASYNCHRONOUS] {
            let config = config(configuration);
            let (outcome, text) = recorded(&config, &scenario, scenario.seed, &[]);
            let without = run(&config, &scenario, scenario.seed).expect("they fit");
            assert_eq!(outcome.log.hash(), without.log.hash(), "{name}: keeping a record changes nothing");
            let found = equal(&name, &text);
            assert!(found.events > 50 && found.actions > 30, "{name}: {found:?}");
            assert!(
                !text.contains("simulated") && !text.contains("secret"),
                "{name}: a password is in the record"
            );
            replayed += 1;
        }
    }
    assert!(replayed >= 28, "{replayed}");
}

#[test]
fn the_records_of_random_bad_days_are_replayed_to_equal_decisions() {
    for seed in 7_000..7_020 {
        let (configuration, menu) = match seed % 5 {
            0 => (SYNCHRONOUS, Menu { faults_max: 3, proxy: true, operator: false, manager: false }),
            1 => (ASYNCHRONOUS, Menu { faults_max: 2, proxy: true, operator: true, manager: false }),
            2 => (HOOKED, Menu { faults_max: 2, proxy: true, operator: true, manager: false }),
            3 => (OBSERVED, Menu { faults_max: 3, proxy: true, operator: false, manager: true }),
            _ => (HOOKED_ASYNCHRONOUS, Menu { faults_max: 3, proxy: false, operator: true, manager: false }),
        };
        let (_, text) = recorded(&config(configuration), &random(seed, &NODES, menu), seed, &[]);
        equal(&format!("seed {seed}"), &text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The sceptic's test of the state: written down at any step of any bad day, read again, it goes on as the original did,
    /// to the end of the run.
    #[test]
    fn a_state_that_was_written_down_at_any_step_goes_on_as_the_original(
        seed in 0..100_000_u64,
        which in 0..5_usize,
        at in any::<prop::sample::Index>(),
        proxy in any::<bool>(),
        operator in any::<bool>(),
    ) {
        let config = config([SYNCHRONOUS, ASYNCHRONOUS, HOOKED, HOOKED_ASYNCHRONOUS, OBSERVED][which]);
        let day = random(seed, &NODES, Menu { faults_max: 3, proxy, operator, manager: which == 4 });
        let (_, text) = recorded(&config, &day, seed, &[]);
        let steps = equal("the whole run", &text).events;
        let at = at.index(usize::try_from(steps).unwrap()) as u64;
        let (_, text) = recorded(&config, &day, seed, &[at]);
        equal("the whole run, with the state compared", &text);
        let rest = equal("from the state on", &from_last_state(&text));
        prop_assert!(rest.events >= 1 && rest.events <= steps - at);
    }
}

/// The same at each step of a switchover into which the primary's death falls, of a failover, and of the rejoin after it.
#[test]
fn every_state_of_a_switchover_and_of_a_failover_goes_on_as_the_original() {
    let scenarios = [
        include_str!("../scenarios/switchover.yaml"),
        include_str!("../scenarios/switchover-primary-dies.yaml"),
    ];
    let mut phases = BTreeSet::new();
    for text in scenarios {
        let all: Vec<u64> = (0..100_000).collect();
        let (_, text) = recorded(&config(HOOKED), &scenario(text), 1, &all);
        equal("with every state compared", &text);
        let lines: Vec<&str> = text.lines().collect();
        let is_state = |line: &str| line.contains("\"begin\":{");
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_state(line)) {
            let state: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
            phases
                .insert(state["begin"]["controller"]["phase"]["phase"].as_str().expect("a phase").to_owned());
            let rest = lines[at + 1..].iter().filter(|line| !is_state(line));
            let text: String = std::iter::once(line).chain(rest).flat_map(|line| [line, "\n"]).collect();
            equal(line, &text);
        }
    }
    let seen: Vec<&str> = phases.iter().map(String::as_str).collect();
    let all = [
        "discovering",
        "draining",
        "fencing",
        "freezing",
        "promoting",
        "steady",
        "stopping",
        "suspect",
        "verifying",
    ];
    assert_eq!(seen, all);
}

#[test]
fn a_run_that_was_changed_is_shown_at_its_first_difference() {
    let (_, text) = recorded(&config(SYNCHRONOUS), &scenario(PRIMARY_DIES), 1, &[]);
    let found = equal("the record", &text);
    assert!(found.decisions.iter().any(|decided| decided.decision.kind == DecisionKind::Promoted));

    let other = text.replace("\"out\":{\"promote\":{\"id\":", "\"out\":{\"promote\":{\"id\":9");
    let difference = replay(&[source(&other)]).expect("it is a record").difference.expect("a difference");
    assert_eq!(difference.fields.len(), 1, "{difference:#?}");
    assert_eq!(difference.fields[0].path, "out.promote.id");
    assert!(difference.event.is_some() && difference.before.len() == 5, "{difference:#?}");
    let line = other.lines().nth(difference.line - 1).expect("the line");
    assert!(line.contains(&format!("\"seq\":{},", difference.seq)) && line.contains("\"in\":"), "{line}");

    // An answer of a node that was not as it is written: a later decision gives it away.
    let lines: Vec<&str> = text.lines().collect();
    let refused = lines.iter().position(|line| line.contains("\"error\":{\"refused\"")).expect("a refusal");
    let changed = lines[refused].replace("refused\":\"", "starting_up\":\"");
    let changed: String = lines
        .iter()
        .enumerate()
        .flat_map(|(at, line)| [if at == refused { changed.as_str() } else { line }, "\n"])
        .collect();
    let difference = replay(&[source(&changed)]).expect("it is a record").difference.expect("a difference");
    assert!(difference.line > refused, "{difference:#?}");

    // A state that is not the one that the events lead to.
    let (_, text) = recorded(&config(SYNCHRONOUS), &scenario(PRIMARY_DIES), 1, &[80]);
    let (before, after) = text.split_once("\"cause\":\"goes_on\"").expect("the state");
    let at = after.find("\"next_probe\":").expect("a field") + "\"next_probe\":".len();
    let wrong = format!("{before}\"cause\":\"goes_on\"{}9{}", &after[..at], &after[at..]);
    let difference = replay(&[source(&wrong)]).expect("it is a record").difference.expect("a difference");
    assert_eq!(difference.fields[0].path, "next_probe", "{difference:#?}");
    assert!(difference.event.is_none());
}

#[test]
fn a_gap_is_told_and_the_replay_goes_on_after_it() {
    let (_, text) = recorded(&config(SYNCHRONOUS), &scenario(PRIMARY_DIES), 1, &[80]);
    let lines: Vec<&str> = text.lines().collect();
    let state = lines.iter().rposition(|line| line.contains("\"begin\":{")).expect("a state");
    let cut = lines[..state - 20].iter().rposition(|line| line.contains("\"in\":")).expect("an event");
    let gap = lines[state].replace("\"cause\":\"goes_on\",\"lost\":0", "\"cause\":\"gap\",\"lost\":17");
    assert_ne!(gap, lines[state]);
    let parts = [&lines[..cut], &[gap.as_str()], &lines[state + 1..]].concat();
    let text: String = parts.iter().flat_map(|line| [line, "\n"]).collect();
    let found = equal("with a gap", &text);
    assert_eq!(found.blind.len(), 1, "{:?}", found.blind);
    assert!(found.is_equal() && !found.is_complete());
    assert_eq!(found.blind[0].lost, 17);
    assert!(found.blind[0].from.0 < found.blind[0].to.0);
}

#[test]
fn files_come_in_any_order_and_a_cut_end_does_not_spoil_them() {
    let (_, text) = recorded(&config(SYNCHRONOUS), &scenario(PRIMARY_DIES), 1, &[40, 80]);
    let all: Vec<&str> = text.split_inclusive('\n').collect();
    let begins: Vec<usize> =
        all.iter().enumerate().filter(|(_, line)| line.contains("\"begin\":{")).map(|(at, _)| at).collect();
    let [first, second, third] = begins[..] else { panic!("{begins:?}") };
    let file =
        |name: &str, lines: &[&str]| Source { name: name.to_owned(), bytes: lines.concat().into_bytes() };
    let files = [file("3", &all[third..]), file("1", &all[first..second]), file("2", &all[second..third])];
    let found = replay(&files).expect("a record");
    assert!(found.difference.is_none() && found.blind.is_empty(), "{found:?}");
    let whole = found.events;

    // The second is missing: there the replay is blind.
    let found = replay(&[files[1].clone(), files[0].clone()]).expect("a record");
    assert!(found.difference.is_none() && found.events < whole, "{found:?}");
    assert_eq!(found.blind.len(), 1);

    // The last file ends within a line, or within the answers to an event.
    let last: Vec<u8> = all.concat().into_bytes();
    let mut lacking = 0;
    for end in (last.len() - 3_000..last.len()).step_by(7) {
        let found = replay(&[Source { name: "cut".to_owned(), bytes: last[..end].to_vec() }]);
        let found = found.unwrap_or_else(|problem| panic!("cut at {end}: {problem}"));
        assert!(found.difference.is_none(), "cut at {end}: {found:?}");
        assert!(last[end - 1] == b'\n' || last[end] == b'\n' || !found.notes.is_empty(), "cut at {end}");
        lacking += usize::from(found.notes.iter().any(|note| note.contains("ends before the last answers")));
    }
    assert!(lacking > 0, "an event whose answers are cut off was among them");

    // But an answer that is missing before something that goes on without a gap is a difference.
    let answered = all[..second].iter().rposition(|line| line.contains("\"out\":")).expect("an answer");
    let renumber = |line: &str, by: u64| {
        let (head, rest) = line.split_once("\"seq\":").expect("a number");
        let (seq, rest) = rest.split_once(',').expect("more");
        format!("{head}\"seq\":{},{rest}", seq.parse::<u64>().expect("a number") - by)
    };
    let text: String = all[..answered]
        .iter()
        .map(|line| (*line).to_owned())
        .chain(all[answered + 1..].iter().map(|line| renumber(line, 1)))
        .collect();
    assert!(replay(&[source(&text)]).expect("a record").difference.is_some());
}

#[test]
fn a_file_of_another_program_is_left_out_and_state_that_is_not_known_is_told() {
    let (_, text) = recorded(&config(SYNCHRONOUS), &scenario(PRIMARY_DIES), 1, &[40]);
    let second = from_last_state(&text);
    let first = text.strip_suffix(&second).expect("the part before");
    let later = first.replacen("\"v\":1", "\"v\":2", 1);
    let found = replay(&[source(&later), source(&second)]).expect("one can be read");
    assert!(found.is_equal() && found.left_out && !found.is_complete(), "{:?}", found.notes);
    assert!(
        found.notes.iter().any(|note| note.contains("left out") && note.contains("version 2")),
        "{found:?}"
    );
    assert!(replay(&[source(&later)]).is_err() && replay(&[source(&later), source(&later)]).is_err());

    let known = text.replacen("\"controller\":{", "\"controller\":{\"of_later\":7,", 1);
    let found = replay(&[source(&known)]).expect("it can be read");
    assert!(found.difference.is_none() && found.state_lost && !found.is_equal(), "{:?}", found.difference);
    assert!(found.notes.iter().any(|note| note.contains("lost in reading: of_later")), "{:?}", found.notes);

    let state = text.lines().next().expect("a state").to_owned() + "\n";
    assert!(!replay(&[source(&state)]).expect("it can be read").is_equal(), "nothing was compared");
}

#[test]
fn what_another_configuration_would_have_decided() {
    let text = PRIMARY_DIES;
    let (_, record) = recorded(&config(SYNCHRONOUS), &scenario(text), 1, &[]);
    let same = what_if(&[source(&record)], &config(SYNCHRONOUS)).expect("they fit");
    assert!(same.parted.is_none(), "{:#?}", same.parted);
    assert_eq!(same.recorded, same.other);
    assert!(same.recorded.iter().any(|decided| decided.decision.kind == DecisionKind::Promoted));

    let manual = SYNCHRONOUS.replace("failover: {", "failover: { mode: manual,");
    assert_ne!(manual, SYNCHRONOUS);
    let other = what_if(&[source(&record)], &config(&manual)).expect("they fit");
    let parted = other.parted.as_ref().expect("a person decides instead");
    let kinds = |decided: &[Decided]| -> BTreeSet<DecisionKind> {
        decided.iter().map(|decided| decided.decision.kind).collect()
    };
    assert!(kinds(&other.recorded).contains(&DecisionKind::FailoverBegun));
    assert!(!kinds(&other.other).contains(&DecisionKind::FailoverBegun), "{:#?}", other.other);
    assert!(kinds(&other.other).contains(&DecisionKind::ManualNeeded), "{:#?}", other.other);
    let begun =
        other.recorded.iter().position(|decided| decided.decision.kind == DecisionKind::FailoverBegun);
    let begun = begun.expect("a failover");
    assert_eq!(other.recorded[..begun], other.other[..begun], "up to there the answer is exact");
    assert!(!parted.fields.is_empty());
    // Nodes that the record shows alive stay so, although they are asked at other times than in the record.
    let flaps = |decided: &&Decided| {
        let node = decided.decision.node.as_ref().map(NodeName::as_str);
        decided.decision.kind == DecisionKind::NodeHealth && node != Some("pg1")
    };
    let flaps: Vec<&Decided> = other.other[begun..].iter().filter(flaps).collect();
    assert!(flaps.is_empty(), "{flaps:#?}");

    let two = SYNCHRONOUS.replace("pg3", "pg4");
    let problem = what_if(&[source(&record)], &config(&two)).unwrap_err();
    assert!(problem.to_string().contains("`nodes` are pg1, pg2, pg4 and not pg1, pg2, pg3"), "{problem}");
}

#[test]
fn what_is_no_record_is_refused_with_file_and_line() {
    let (_, text) = recorded(&config(SYNCHRONOUS), &scenario(PRIMARY_DIES), 1, &[]);
    let lines: Vec<&str> = text.lines().take(50).collect();
    let told = lines.iter().position(|line| line.contains("\"in\":")).expect("an event");
    let joined = |lines: &[&str]| -> String { lines.iter().flat_map(|line| [line, "\n"]).collect() };
    let broken = [joined(&lines[..told]), "{\"v\":1\n".to_owned(), joined(&lines[told..])].concat();
    let strange = joined(&lines).replacen("\"in\":\"timer\"", "\"in\":\"tomorrow\"", 1);
    let policy = joined(&lines).replacen("\"type\":\"most_advanced\"", "\"type\":\"oracle\"", 1);
    for (text, expected) in [
        (String::new(), "there is nothing to replay: no whole line"),
        ("{\"v\":1,\"se".to_owned(), "there is nothing to replay: no whole line"),
        ("\n".to_owned(), "line 1: is no line of a record: it is no JSON object"),
        (broken, "is no line of a record: it is no JSON object"),
        (joined(&lines[1..]), "line 1: is not a `begin` line, and only from there a replay can start"),
        (joined(&[lines[0], lines[2]]), "line 2: follows from nothing: there is no `in` line before it"),
        (joined(&[lines[0], lines[1], lines[3]]), "line 3: has number 4, and lines before it are missing"),
        (joined(&[lines[0], lines[0]]), "line 2: has number 1 after 1"),
        (strange, "`in` cannot be read: unknown variant `tomorrow`"),
        (policy, "line 1: `begin.controller` cannot be read: unknown variant `oracle`"),
    ] {
        let problem = replay(&[source(&text)]).expect_err(expected).to_string();
        assert!(problem.contains(expected), "{problem}\nexpected: {expected}");
        assert!(problem.starts_with("incident.jsonl"), "{problem}");
    }
}

proptest! {
    #[test]
    fn whatever_is_in_a_file_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = replay(&[Source { name: "x".to_owned(), bytes }]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// A byte that is another, a part that is missing: an error, a difference, or nothing that matters.
    #[test]
    fn a_damaged_record_is_an_answer_and_no_panic(
        at in any::<prop::sample::Index>(),
        length in 0..200_usize,
        byte in prop::option::of(any::<u8>()),
    ) {
        static RECORD: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            let (_, text) = recorded(&config(HOOKED), &scenario(PRIMARY_DIES), 1, &[40]);
            text.lines().take(400).flat_map(|line| [line, "\n"]).collect::<String>().into_bytes()
        });
        let mut bytes = RECORD.clone();
        let at = at.index(bytes.len());
        match byte {
            Some(byte) => bytes[at] = byte,
            None => drop(bytes.drain(at..(at + length).min(RECORD.len()))),
        }
        match replay(&[Source { name: "damaged".to_owned(), bytes }]) {
            Ok(_) | Err(ReplayError::Empty(_)) => {}
            Err(problem) => prop_assert!(problem.to_string().starts_with("damaged, line "), "{}", problem),
        }
    }
}

fn command(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_metako-sim"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .output()
        .expect("the binary runs")
}

/// The line with which a record begins.
fn text_of_state(file: &Path) -> String {
    let text = std::fs::read_to_string(file).expect("the record");
    text.split_inclusive('\n').next().expect("a line").to_owned()
}

#[test]
fn the_command_writes_records_and_replays_them() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("replayed");
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("incident.jsonl");
    let name = file.to_str().expect("UTF-8");
    let run =
        ["run", "scenarios/primary-dies.yaml", "--config", "scenarios/synchronous.yaml", "--record", name];
    assert_eq!(command(&run).status.code(), Some(0));

    for path in [name, folder.to_str().expect("UTF-8")] {
        let output = command(&["replay", path]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("equal: this program takes the same"), "{text}");
        assert!(text.contains("failover_begun pg1"), "{text}");
    }
    let output = command(&["replay", name, "--json"]);
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!((&object["equal"], &object["schema"]), (&true.into(), &1.into()));
    assert_eq!(object["complete"], true);
    let state = text_of_state(&file);
    let alone = folder.join("state.json");
    std::fs::write(&alone, state).expect("written");
    let output = command(&["replay", alone.to_str().expect("UTF-8")]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && shown.contains("nothing to compare"), "{shown}");

    let text = std::fs::read_to_string(&file).expect("the record");
    std::fs::write(&file, text.replace("\"out\":{\"promote\"", "\"out\":{\"demote\"")).expect("written");
    let output = command(&["replay", name]);
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("different at ") && shown.contains("out.demote: recorded {"), "{shown}");

    std::fs::write(&file, text).expect("written");
    let output = command(&["replay", name, "--config", "scenarios/asynchronous.yaml"]);
    assert_eq!(output.status.code(), Some(0));
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("the actions part at"), "{shown}");

    let output = command(&["replay", "scenarios/primary-dies.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{output:?}");
}
