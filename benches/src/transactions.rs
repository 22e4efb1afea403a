//! Runs of pgbench, counted by its log of every transaction.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use metako_proxy::playground::until;

use crate::error::{BenchError, Result, read, tail};
use crate::figures::number;
use crate::rig::{Access, Rig, jobs};
use crate::rows::Sample;
use crate::window::{Moment, Window};

/// Clients have logged in and caches are warm when the window opens.
const WARM_UP: Duration = Duration::from_secs(1);

/// pgbench takes whole seconds, and has to be still at work when the window closes.
const TAIL: Duration = Duration::from_millis(500);

/// How long pgbench may go on after the window.
const PATIENCE: Duration = Duration::from_mins(1);

/// What pgbench is told besides where to connect.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) options: Vec<String>,
    pub(crate) clients: u32,
    /// Units in one transaction.
    pub(crate) units: f64,
    /// Whether the log's latencies are those of a whole unit.
    pub(crate) latencies: bool,
}

/// Runs it for `seconds` after the warm-up.
pub(crate) fn measure(rig: &Rig, access: Access, load: &Load, seconds: Duration) -> Result<Sample> {
    let folder = rig.empty_folder("log")?;
    let total = (WARM_UP + seconds + TAIL).as_secs_f64().ceil();
    let mut pgbench = rig.pgbench(access.port);
    pgbench.args(["--no-vacuum", "--log", "--log-prefix"]).arg(folder.join("transactions"));
    pgbench.args(["--client", &load.clients.to_string()]);
    pgbench.args(["--jobs", &jobs().min(load.clients).to_string()]);
    pgbench.args(["--time", &format!("{total:.0}")]).args(&load.options);
    let (window, output) = during(pgbench, access, seconds)?;
    check(&output)?;
    let mut latencies = Vec::new();
    let entries =
        std::fs::read_dir(&folder).map_err(BenchError::io("reading the folder of pgbench's logs"))?;
    for entry in entries {
        let entry = entry.map_err(BenchError::io("reading the folder of pgbench's logs"))?;
        for line in read(&entry.path())?.lines() {
            let transaction = Transaction::parse(line)?;
            if window.holds(transaction.ended) {
                latencies.push(transaction.latency);
            }
        }
    }
    if latencies.is_empty() {
        return Err(BenchError::Unfit(format!(
            "pgbench ended no transaction within {seconds:?}: {}",
            tail(&output.out)
        )));
    }
    let units = number(latencies.len() as u64) * load.units;
    Ok(window.sample(units, if load.latencies { latencies } else { Vec::new() }))
}

struct Output {
    status: String,
    success: bool,
    out: String,
    err: String,
}

fn during(mut pgbench: Command, access: Access, seconds: Duration) -> Result<(Window, Output)> {
    pgbench.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pgbench.spawn().map_err(BenchError::io("starting pgbench"))?;
    let window = window(access, seconds);
    // It writes a page at most, so it never waits for us to read. It ends by itself, unless an answer does not come.
    let ended = until("the end of pgbench", PATIENCE, || match child.try_wait() {
        Ok(None) => Err("it still runs".to_owned()),
        Ok(Some(_)) | Err(_) => Ok(()),
    });
    if ended.is_err() {
        child.kill().map_err(BenchError::io("killing pgbench"))?;
    }
    let output = child.wait_with_output().map_err(BenchError::io("waiting for pgbench"))?;
    ended?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let output = Output {
        status: output.status.to_string(),
        success: output.status.success(),
        out: text(&output.stdout),
        err: text(&output.stderr),
    };
    Ok((window?, output))
}

/// The window is time by its nature: nothing to wait for but its end.
fn window(access: Access, seconds: Duration) -> Result<Window> {
    std::thread::sleep(WARM_UP);
    let begin = Moment::now(access.pid)?;
    std::thread::sleep(seconds);
    Ok(Window { begin, end: Moment::now(access.pid)? })
}

/// That it ran to its end, and no transaction failed.
fn check(output: &Output) -> Result<()> {
    let failed = failed_transactions(&output.out)?;
    if output.success && failed == 0 {
        return Ok(());
    }
    let said = if failed == 0 { tail(&output.err) } else { format!("{failed} transactions failed") };
    Err(BenchError::Program { program: "pgbench", status: output.status.clone(), output: said })
}

/// From pgbench's summary. It has no such line where it could not begin.
fn failed_transactions(summary: &str) -> Result<u64> {
    let Some(rest) = summary.lines().find_map(|line| line.strip_prefix("number of failed transactions: "))
    else {
        return Ok(0);
    };
    let count = rest.split(' ').next().and_then(|count| count.parse().ok());
    count.ok_or_else(|| BenchError::Output { what: "pgbench's summary", text: rest.to_owned() })
}

/// One line of pgbench's log.
#[derive(Debug, PartialEq, Eq)]
struct Transaction {
    /// Microseconds; at a fixed rate from the moment when it should have begun.
    latency: u64,
    /// By the clock, microseconds since 1970.
    ended: u64,
}

impl Transaction {
    /// `client transaction latency script seconds microseconds`, and more behind it at a fixed rate.
    fn parse(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split(' ').collect();
        let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        match (field(2), field(4), field(5)) {
            (Some(latency), Some(seconds), Some(microseconds)) => {
                Ok(Self { latency, ended: seconds * 1_000_000 + microseconds })
            }
            _ => Err(BenchError::Output { what: "a line of pgbench's log", text: line.to_owned() }),
        }
    }
}

/// Fills pgbench's own tables.
pub(crate) fn initialize(rig: &Rig, port: u16, scale: u32) -> Result<()> {
    let mut pgbench = rig.pgbench(port);
    pgbench.args(["--initialize", "--quiet", "--scale", &scale.to_string()]);
    let output = pgbench.stdin(Stdio::null()).output().map_err(BenchError::io("starting pgbench"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(BenchError::Program {
        program: "pgbench --initialize",
        status: output.status.to_string(),
        output: tail(&String::from_utf8_lossy(&output.stderr)),
    })
}

/// The options of a script of our own.
pub(crate) fn script(path: &Path) -> Vec<String> {
    vec!["--file".to_owned(), path.display().to_string()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_gives_latency_and_end() {
        let wanted = Transaction { latency: 2241, ended: 1_175_850_568_995_598 };
        assert_eq!(Transaction::parse("0 199 2241 0 1175850568 995598").unwrap(), wanted);
        // With the lag behind its schedule.
        assert_eq!(Transaction::parse("0 199 2241 0 1175850568 995598 5621").unwrap(), wanted);
        for wrong in ["", "0 199 failed 0 1175850568 995598", "0 199 2241 0 1175850568"] {
            assert!(Transaction::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn failures_are_read_from_the_summary() {
        let summary = "transaction type: <builtin: select only>\nnumber of failed transactions: 3 (0.001%)\n";
        assert_eq!(failed_transactions(summary).unwrap(), 3);
        assert_eq!(failed_transactions("transaction type: x\n").unwrap(), 0);
        assert!(failed_transactions("number of failed transactions: none\n").is_err());
    }

    #[test]
    fn a_run_that_failed_is_no_measurement() {
        let output = |success, out: &str| Output {
            status: "exit status: 2".to_owned(),
            success,
            out: out.to_owned(),
            err: "client 0 aborted".to_owned(),
        };
        check(&output(true, "number of failed transactions: 0 (0.000%)")).unwrap();
        let error = check(&output(false, "")).unwrap_err().to_string();
        assert!(error.contains("client 0 aborted"), "{error}");
        assert!(check(&output(true, "number of failed transactions: 3 (0.001%)")).is_err());
    }
}
