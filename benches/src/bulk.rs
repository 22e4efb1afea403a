//! COPY through psql: one client that sends or receives a large table again and again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{BenchError, Result, read, tail};
use crate::rig::{Access, BULK_MEGABYTES, Rig};
use crate::rows::Sample;
use crate::window::{Moment, Window};

/// psql says this when a command is done.
const DONE: &str = "metako-bench: done";

/// Copies the large table to the client.
pub(crate) fn copy_out(rig: &Rig, access: Access, seconds: Duration) -> Result<Sample> {
    measure(rig, access, seconds, "COPY bulk TO STDOUT \\g /dev/null\n")
}

/// Copies it from the client into an empty table.
pub(crate) fn copy_in(rig: &Rig, access: Access, seconds: Duration) -> Result<Sample> {
    let command = format!("TRUNCATE sink;\n\\copy sink FROM '{}'\n", rig.bulk_file().display());
    measure(rig, access, seconds, &command)
}

/// Once to warm up, then as often as begins within `seconds`.
fn measure(rig: &Rig, access: Access, seconds: Duration, command: &str) -> Result<Sample> {
    let mut psql = Psql::start(rig, access.port)?;
    psql.run(command)?;
    let begin = Moment::now(access.pid)?;
    let started = Instant::now();
    let mut megabytes = 0.0;
    while started.elapsed() < seconds {
        psql.run(command)?;
        megabytes += BULK_MEGABYTES;
    }
    let window = Window { begin, end: Moment::now(access.pid)? };
    psql.finish()?;
    Ok(window.sample(megabytes, Vec::new()))
}

/// How long one copy may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// A psql that waits for commands.
struct Psql<'a> {
    rig: &'a Rig,
    child: Child,
    input: Option<ChildStdin>,
    /// What it says, line by line: a thread reads it, because a pipe cannot be read with a limit of time.
    lines: Receiver<String>,
    reader: Option<JoinHandle<()>>,
}

impl<'a> Psql<'a> {
    fn start(rig: &'a Rig, port: u16) -> Result<Self> {
        let log = std::fs::File::create(rig.psql_log()).map_err(BenchError::io("making psql's log"))?;
        let mut psql = rig.psql(port);
        psql.args(["--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"]);
        psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = psql.spawn().map_err(BenchError::io("starting psql"))?;
        let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let (sender, lines) = sync_channel(1);
        let reader = std::thread::spawn(move || {
            // Ends with psql, or when nobody listens any more.
            output.lines().map_while(std::result::Result::ok).try_for_each(|line| sender.send(line)).ok();
        });
        Ok(Self { rig, input: child.stdin.take(), child, lines, reader: Some(reader) })
    }

    /// Returns when the command is done.
    fn run(&mut self, command: &str) -> Result<()> {
        let input = self.input.as_mut().expect("it is open until the end");
        if input.write_all(format!("{command}\\echo {DONE}\n").as_bytes()).is_err() {
            return Err(self.failure(""));
        }
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) if line == DONE => Ok(()),
            Ok(line) => Err(self.failure(&line)),
            Err(RecvTimeoutError::Disconnected) => Err(self.failure("")),
            Err(RecvTimeoutError::Timeout) => {
                Err(BenchError::Unfit(format!("no end after {PATIENCE:?} of: {}", command.trim_end())))
            }
        }
    }

    /// psql has ended, or does so when its input ends.
    fn failure(&mut self, line: &str) -> BenchError {
        self.input = None;
        let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let log = read(&self.rig.psql_log()).unwrap_or_else(|error| error.to_string());
        BenchError::Program { program: "psql", status, output: tail(&format!("{line}\n{log}")) }
    }

    fn finish(mut self) -> Result<()> {
        self.input = None;
        let status = self.child.wait().map_err(BenchError::io("waiting for psql"))?;
        if status.success() { Ok(()) } else { Err(self.failure("")) }
    }
}

impl Drop for Psql<'_> {
    /// One that hangs in a command does not end by itself.
    fn drop(&mut self) {
        self.input = None;
        let ended = matches!(self.child.try_wait(), Ok(Some(_)));
        if !ended && let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("psql could not be killed: {error}");
        }
        if let Some(reader) = self.reader.take() {
            // It holds nothing that a panic could break.
            drop(reader.join());
        }
    }
}
