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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &tempfile::TempDir, nodes: &str) -> std::path::PathBuf {
        let path = dir.path().join("m.yaml");
        std::fs::write(&path, format!("nodes:\n{nodes}")).unwrap();
        path
    }

    const NODE: &str = "  - { name: one, host: db1, role: master, username: u, password: p, database: d }\n";

    #[test]
    fn a_good_file_is_summed_up_and_its_warnings_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, NODE);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        write_text(&load_file(&path), &mut out, &mut err).unwrap();
        let shown = |bytes| String::from_utf8(bytes).unwrap().replace(path.to_str().unwrap(), "m.yaml");
        assert_eq!(
            shown(out),
            "m.yaml: ok: cluster main, listens on 127.0.0.1:6432\n  one  primary  db1:5432\n"
        );
        assert_eq!(shown(err), "m.yaml:2:3: warning: nodes: there is one node: nothing to fail over to\n");
        assert_eq!(check(&path, false), Exit::Done);
    }

    #[test]
    fn a_bad_file_is_wrong_usage_and_its_problems_as_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir, &NODE.replace("db1", "db1, port: 0"));
        assert_eq!((check(&path, true), check(&path, false)), (Exit::Usage, Exit::Usage));
        let mut out = Vec::new();
        write_json(Path::new("m.yaml"), &load_file(&path), &mut out).unwrap();
        let expected = serde_json::json!({
            "schema": 1,
            "file": "m.yaml",
            "ok": false,
            "problems": [{
                "line": 2,
                "column": 35,
                "key": "nodes[0].port",
                "message": "found `0`; expected a whole number from 1 to 65535",
            }],
            "warnings": [],
        });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), expected);
    }

    #[test]
    fn a_file_that_is_not_there_is_a_problem() {
        let problems = load_file(Path::new("/nowhere/metako.yaml")).unwrap_err();
        assert!(
            problems.to_string().starts_with("/nowhere/metako.yaml:1:1: the configuration cannot be read: ")
        );
    }
}
