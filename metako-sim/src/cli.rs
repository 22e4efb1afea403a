//! The command line of `metako-sim`.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use metako_core::config::{Config, SecretSource, load};
use metako_core::plugin::verify;

use crate::scenario::Scenario;
use crate::{report, run};

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
    },
}

/// The whole command line: reads the arguments of the process, prints, and says how it ended. A crate with strategies of
/// its own calls this from a binary that links them.
pub fn main() -> ExitCode {
    let Command::Run { scenario, config, seed, json, trace } = Cli::parse().command;
    match run_one(&scenario, &config, seed, json, trace) {
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
) -> Result<(String, bool), String> {
    verify().map_err(|problem| problem.to_string())?;
    let config = read_config(config)?;
    let text = read_file(scenario)?;
    let scenario_name = scenario.display().to_string();
    let scenario = Scenario::load(&scenario_name, &text).map_err(|problems| problems.to_string())?;
    let seed = seed.unwrap_or(scenario.seed);
    let outcome = run(&config, &scenario, seed).map_err(|problem| format!("{scenario_name}: {problem}"))?;
    let text = if json {
        format!("{}\n", report::json(&scenario, &outcome))
    } else {
        report::human(&scenario, &outcome, trace)
    };
    Ok((text, outcome.met()))
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
