//! `metako check`

use std::io::{self, Write};
use std::path::Path;

use metako_core::config::{Config, Loaded, Problem, Problems, RoleHint};
use serde::Serialize;

use super::{Exit, written};
use crate::check::load_file;

/// Checks a configuration file. Prints a summary on stdout and warnings on stderr and answers success, or prints all problems
/// on stderr and answers wrong usage. With `json` one object on stdout tells it all. Blocks on the file system.
pub(super) fn check(path: &Path, json: bool) -> Exit {
    let result = load_file(path);
    let status = if result.is_ok() { Exit::Done } else { Exit::Usage };
    let (stdout, stderr) = (&mut io::stdout().lock(), &mut io::stderr().lock());
    let printed = if json { write_json(path, &result, stdout) } else { write_text(&result, stdout, stderr) };
    written(printed, status)
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    file: String,
    ok: bool,
    problems: &'a [Problem],
    warnings: &'a [Problem],
}

fn write_json(path: &Path, result: &Result<Loaded, Problems>, out: &mut dyn Write) -> io::Result<()> {
    let (problems, warnings) = match result {
        Ok(loaded) => (&[][..], &loaded.warnings[..]),
        Err(problems) => (&problems.list[..], &[][..]),
    };
    let file = path.display().to_string();
    let report = Report { schema: 1, file, ok: result.is_ok(), problems, warnings };
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

fn write_text(result: &Result<Loaded, Problems>, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    match result {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                let Problem { line, column, key, message } = warning;
                writeln!(err, "{}:{line}:{column}: warning: {key}: {message}", loaded.file)?;
            }
            write!(out, "{}", summary(&loaded.file, &loaded.config))
        }
        Err(problems) => {
            writeln!(err, "{problems}")?;
            let count = problems.list.len();
            writeln!(err, "{}: {count} {}", problems.file, if count == 1 { "problem" } else { "problems" })
        }
    }
}

fn summary(file: &str, config: &Config) -> String {
    let cluster = &config.cluster;
    let mut text = format!("{file}: ok: cluster {}, listens on {}\n", cluster.name, config.listen.join(", "));
    let width = cluster.nodes.iter().map(|node| node.name.as_str().len()).max().unwrap_or(0);
    for node in &cluster.nodes {
        let role = match node.role {
            Some(RoleHint::Primary) => "primary",
            Some(RoleHint::Replica) => "replica",
            None => "",
        };
        let line = format!("  {:width$}  {role:7}  {}:{}", node.name.as_str(), node.host, node.port);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
