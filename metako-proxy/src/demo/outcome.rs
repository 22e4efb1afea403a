//! What a scenario ended with.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// The figures of a scenario, as `--json` prints them. All are counted by clients or asked of the nodes past metako.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Version of this format: 1.
    pub schema: u32,
    /// What was done.
    pub scenario: &'static str,
    /// Whether commits waited for a replica.
    pub synchronous: bool,
    /// The node that is primary now and was not before.
    pub promoted: Option<String>,
    /// The longest time in which no write was acknowledged; `null`: it did not end.
    pub write_gap_ms: Option<u64>,
    /// The longest time in which no read was answered; `null`: it did not end.
    pub read_gap_ms: Option<u64>,
    /// Every error that a client saw, unknown outcomes included.
    pub client_errors: u64,
    /// Clients whose first connection lived to the end.
    pub sessions_kept: usize,
    /// All clients.
    pub sessions_total: usize,
    /// Rows whose insert was acknowledged.
    pub acknowledged_rows: usize,
    /// How many of them the final primary does not have; `null`: there was no primary to ask.
    pub acknowledged_rows_lost: Option<usize>,
    /// Replicas that stream from the final primary.
    pub nodes_streaming: usize,
    /// Replicas that should.
    pub nodes_surviving: usize,
    /// Writes whose client was told that their outcome is unknown.
    pub unknown_outcomes: usize,
    /// Rows that are there though their client was told that they are not.
    pub refused_rows_there: Option<usize>,
    /// Of the sessions, those that only waited, kept.
    pub idle_sessions_kept: usize,
    /// Sessions that only waited.
    pub idle_sessions_total: usize,
    /// The errors of clients, by their text.
    pub errors: BTreeMap<String, u64>,
}

impl Outcome {
    /// Whether the cluster recovered, and with synchronous replication nothing acknowledged was lost.
    pub fn passed(&self) -> bool {
        self.promoted.is_some()
            && self.write_gap_ms.is_some()
            && self.nodes_streaming == self.nodes_surviving
            && (!self.synchronous || self.acknowledged_rows_lost == Some(0))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gap = |gap: Option<u64>| gap.map_or_else(|| "never closed".to_owned(), |ms| format!("{ms} ms"));
        let count =
            |count: Option<usize>| count.map_or_else(|| "not known".to_owned(), |count| count.to_string());
        writeln!(f, "\n--- {} ---", self.scenario)?;
        writeln!(f, "promoted            {}", self.promoted.as_deref().unwrap_or("nobody"))?;
        writeln!(f, "write gap           {}", gap(self.write_gap_ms))?;
        writeln!(f, "read gap            {}", gap(self.read_gap_ms))?;
        let unknown = self.unknown_outcomes;
        writeln!(f, "errors at clients   {} ({unknown} writes with unknown outcome)", self.client_errors)?;
        for (text, count) in &self.errors {
            writeln!(f, "  {count:6} x {text}")?;
        }
        let idle = format!("{} of {} idle ones", self.idle_sessions_kept, self.idle_sessions_total);
        writeln!(f, "sessions kept       {} of {} ({idle})", self.sessions_kept, self.sessions_total)?;
        writeln!(f, "rows acknowledged   {}", self.acknowledged_rows)?;
        writeln!(f, "  of these lost     {}", count(self.acknowledged_rows_lost))?;
        writeln!(f, "rows refused        of these there: {}", count(self.refused_rows_there))?;
        write!(
            f,
            "replicas streaming  {} of {} from the new primary",
            self.nodes_streaming, self.nodes_surviving
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovered() -> Outcome {
        Outcome {
            schema: 1,
            scenario: "kill-primary",
            synchronous: false,
            promoted: Some("node-2".to_owned()),
            write_gap_ms: Some(400),
            read_gap_ms: Some(20),
            client_errors: 1,
            sessions_kept: 16,
            sessions_total: 16,
            acknowledged_rows: 9000,
            acknowledged_rows_lost: Some(0),
            nodes_streaming: 1,
            nodes_surviving: 1,
            unknown_outcomes: 1,
            refused_rows_there: Some(0),
            idle_sessions_kept: 4,
            idle_sessions_total: 4,
            errors: BTreeMap::new(),
        }
    }

    #[test]
    fn a_lost_row_fails_only_where_it_was_promised_to_stay() {
        let lost = Outcome { acknowledged_rows_lost: Some(1), ..recovered() };
        assert!(lost.passed());
        assert!(!Outcome { synchronous: true, ..lost }.passed());
        assert!(Outcome { synchronous: true, ..recovered() }.passed());
    }

    #[test]
    fn no_promotion_no_writes_or_no_streaming_is_a_failure() {
        assert!(!Outcome { promoted: None, ..recovered() }.passed());
        assert!(!Outcome { write_gap_ms: None, ..recovered() }.passed());
        assert!(!Outcome { nodes_streaming: 0, ..recovered() }.passed());
    }
}
