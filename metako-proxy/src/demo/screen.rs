//! What people see: lines, and one live line per node.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::control::{NodeStatus, Status};

/// How often unchanged nodes are shown again where lines cannot be overwritten.
const REPEAT: Duration = Duration::from_secs(10);

/// Standard output for people; with `--json` that is standard error, and standard output has the JSON alone.
pub(super) struct Screen {
    json: bool,
    terminal: bool,
    /// Live lines that the next ones overwrite.
    live: usize,
    shown: Vec<String>,
    shown_at: Option<Instant>,
}

impl Screen {
    pub(super) fn new(json: bool) -> Self {
        let terminal = if json { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
        Self { json, terminal, live: 0, shown: Vec::new(), shown_at: None }
    }

    /// Lines that stay.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        self.live = 0;
        self.put(&format!("{text}\n"))
    }

    /// One line per node, in the place of the last ones on a terminal; elsewhere only when more than lag changed, or
    /// some seconds have gone by.
    pub(super) fn nodes(&mut self, status: &Status) -> io::Result<()> {
        let states: Vec<String> = status.nodes.iter().map(state).collect();
        let due = self.terminal || self.shown_at.is_none_or(|at| at.elapsed() >= REPEAT);
        if !due && states == self.shown {
            return Ok(());
        }
        let mut text = String::new();
        if self.terminal && self.live > 0 {
            text = format!("\x1b[{}A\x1b[J", self.live);
        }
        for (node, state) in status.nodes.iter().zip(&states) {
            let _ = writeln!(text, "{state}  {}", figures(node));
        }
        self.live = status.nodes.len();
        self.shown = states;
        self.shown_at = Some(Instant::now());
        self.put(&text)
    }

    fn put(&self, text: &str) -> io::Result<()> {
        if self.json {
            let mut out = io::stderr().lock();
            out.write_all(text.as_bytes())?;
            out.flush()
        } else {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()
        }
    }
}

/// One JSON object on a line of standard output.
pub(super) fn json(object: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(object).map_err(io::Error::other)?;
    writeln!(io::stdout(), "{text}")
}

fn state(node: &NodeStatus) -> String {
    let timeline = node.timeline.map_or_else(|| "-".to_owned(), |timeline| timeline.to_string());
    format!(
        "{:10}  {:13}  {:7}  timeline {timeline}",
        node.name.as_str(),
        node.role.replace('_', " "),
        node.health
    )
}

fn figures(node: &NodeStatus) -> String {
    let lag = match (node.lag_ms, node.lag_bytes) {
        (Some(ms), _) => format!("{ms} ms"),
        (None, Some(bytes)) => format!("{bytes} B"),
        (None, None) => "-".to_owned(),
    };
    let reason = node.reason.as_deref().unwrap_or_default();
    format!("lag {lag:8}  clients {:3}  {reason}", node.connections_in_use).trim_end().to_owned()
}
