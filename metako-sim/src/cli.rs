//! The command line of `metako-sim`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use metako_core::config::{Config, SecretSource, load};
use metako_core::plugin::verify;

use crate::replay::{self, Source};
use crate::scenario::Scenario;
use crate::{report, run_recorded};

/// A file of a record that is larger is none.
const RECORD_BYTES_MAX: u64 = 1 << 30;

/// Try metako's configuration and strategies on simulated bad days.
#[derive(Debug, Parser)]
#[command(name = "metako-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one scenario and print what happened and why.
    ///
    /// Ends with 0 if all expectations are met, 1 if one is broken, 2 if the scenario or the configuration is wrong.
    Run {
        /// The scenario file.
        scenario: PathBuf,
        /// metako's configuration, unchanged. Secrets that it names are not read.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The seed of all draws, in place of the scenario's.
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
        /// Print one JSON object.
        #[arg(long, conflicts_with = "trace")]
        json: bool,
        /// Print every event, action and decision.
        #[arg(long)]
        trace: bool,
        /// Write the incident record that the proxy would have written, to this file.
        #[arg(long, value_name = "FILE")]
        record: Option<PathBuf>,
    },
    /// Play an incident record again and compare every action and decision.
    ///
    /// Ends with 0 if they are the same, 1 if one is not, 2 if a file is no record or the configuration does not fit.
    Replay {
        /// Files of a record, or folders of them (`record` in a state directory), in any order.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Ask what would have been decided with this configuration instead. Secrets that it names are not read.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

/// The whole command line: reads the arguments of the process, prints, and says how it ended. A crate with strategies of
/// its own calls this from a binary that links them.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run { scenario, config, seed, json, trace, record } => {
            run_one(&scenario, &config, seed, json, trace, record.as_deref())
        }
        Command::Replay { files, config, json } => replay_files(&files, config.as_deref(), json),
    };
    match done {
        Ok((text, met)) => {
            // A reader that went away, such as `head`, is no failure of the run.
            let _ = io::stdout().write_all(text.as_bytes());
            if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::from(2)
        }
    }
}

fn run_one(
    scenario: &Path,
    config: &Path,
    seed: Option<u64>,
    json: bool,
    trace: bool,
    record: Option<&Path>,
) -> Result<(String, bool), String> {
    verify().map_err(|problem| problem.to_string())?;
    let config = read_config(config)?;
    let text = read_file(scenario)?;
    let scenario_name = scenario.display().to_string();
    let scenario = Scenario::load(&scenario_name, &text).map_err(|problems| problems.to_string())?;
    let seed = seed.unwrap_or(scenario.seed);
    let (outcome, recorded) = run_recorded(&config, &scenario, seed, &BTreeSet::new())
        .map_err(|problem| format!("{scenario_name}: {problem}"))?;
    if let Some(path) = record {
        fs::write(path, recorded)
            .map_err(|problem| format!("{}: cannot be written: {problem}", path.display()))?;
    }
    let text = if json {
        format!("{}\n", report::json(&scenario, &outcome))
    } else {
        report::human(&scenario, &outcome, trace)
    };
    Ok((text, outcome.met()))
}

fn replay_files(files: &[PathBuf], config: Option<&Path>, as_json: bool) -> Result<(String, bool), String> {
    verify().map_err(|problem| problem.to_string())?;
    let mut sources = Vec::new();
    for path in files {
        collect(path, &mut sources)?;
    }
    let Some(config) = config else {
        let replay = replay::replay(&sources).map_err(|problem| problem.to_string())?;
        let text = if as_json { format!("{}\n", replay::json(&replay)) } else { replay::human(&replay) };
        return Ok((text, replay.is_equal()));
    };
    let found = replay::what_if(&sources, &read_config(config)?).map_err(|problem| problem.to_string())?;
    let text =
        if as_json { format!("{}\n", replay::what_if_json(&found)) } else { replay::what_if_human(&found) };
    Ok((text, true))
}

/// Reads a file, or those of a folder whose names end as segments do.
fn collect(path: &Path, sources: &mut Vec<Source>) -> Result<(), String> {
    let wrong = |problem: io::Error| format!("{}: cannot be read: {problem}", path.display());
    if !path.is_dir() {
        let mut bytes = Vec::new();
        let file = fs::File::open(path).map_err(wrong)?;
        file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(wrong)?;
        if bytes.len() as u64 > RECORD_BYTES_MAX {
            return Err(format!("{}: is larger than any record ({RECORD_BYTES_MAX} bytes)", path.display()));
        }
        sources.push(Source { name: path.display().to_string(), bytes });
        return Ok(());
    }
    let entries: Result<Vec<_>, _> = fs::read_dir(path).map_err(wrong)?.collect();
    let mut inside: Vec<PathBuf> = entries.map_err(wrong)?.into_iter().map(|entry| entry.path()).collect();
    inside.retain(|path| path.is_file() && path.extension().is_some_and(|ending| ending == "jsonl"));
    inside.sort();
    if inside.is_empty() {
        return Err(format!("{}: holds no files that end in .jsonl", path.display()));
    }
    inside.iter().try_for_each(|path| collect(path, sources))
}

fn read_config(path: &Path) -> Result<Config, String> {
    let text = read_file(path)?;
    let loaded =
        load(&path.display().to_string(), &text, &NoSecrets).map_err(|problems| problems.to_string())?;
    Ok(loaded.config)
}

fn read_file(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|problem| format!("{}: cannot be read: {problem}", path.display()))
}

/// Nobody logs in to a model: every secret is the same word, so that a configuration runs where its secrets are not.
struct NoSecrets;

impl SecretSource for NoSecrets {
    fn env(&self, _: &str) -> Option<String> {
        Some("simulated".to_owned())
    }

    fn file(&self, _: &Path) -> io::Result<String> {
        Ok("simulated".to_owned())
    }
}
