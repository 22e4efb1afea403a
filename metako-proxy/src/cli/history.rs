//! `metako history`: the decisions of the past, from the files in the state directory.

use std::io::{self, Write as _};
use std::path::Path;

use super::{Exit, remote, written};
use crate::control::{Entry, read_history};

/// Prints the last decisions, oldest first. The proxy need not run.
pub(super) fn history(config: &Path, count: usize, as_json: bool) -> Exit {
    let directory = match remote::state_dir(config) {
        Ok(directory) => directory,
        Err(problems) => {
            eprintln!("{problems}");
            return Exit::Usage;
        }
    };
    match read_history(&directory, count) {
        Ok(entries) => written(print(&entries, as_json), Exit::Done),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!(
                "metako: there is no history in {}: metako has not run with it yet",
                directory.display()
            );
            Exit::Failed
        }
        Err(error) => {
            eprintln!("metako: cannot read the history in {}: {error}", directory.display());
            Exit::Failed
        }
    }
}

fn print(entries: &[Entry], as_json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for entry in entries {
        if as_json {
            writeln!(out, "{}", serde_json::to_string(entry)?)?;
        } else {
            writeln!(out, "{}  epoch {:<4} {}", entry.at, entry.decision.epoch, entry.decision.reason)?;
        }
    }
    Ok(())
}
