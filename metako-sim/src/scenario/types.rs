//! A scenario, checked.

use std::collections::BTreeMap;
use std::time::Duration;

use metako_core::config::HumanDuration;
use schemars::JsonSchema;
use serde::Deserialize;

use super::fault::FaultSpec;
use super::span::Span;

/// One bad day: a cluster, a load, what goes wrong, and what is expected.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Its name.
    pub scenario: String,
    /// What happens and what it shows, for people.
    pub about: String,
    /// Seed of all draws; `--seed` overrides it.
    pub seed: u64,
    /// The PostgreSQL cluster. Its nodes are those of metako's configuration.
    pub cluster: ClusterSpec,
    /// Who reads and writes.
    pub workload: Vec<Load>,
    /// How long.
    pub run: Run,
    /// What goes wrong, in any order.
    pub faults: Vec<FaultSpec>,
    /// What must hold.
    pub expect: Expect,
}

/// How the cluster is at the start, and how fast its parts are.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClusterSpec {
    /// The primary at the start; by default the node whose `role` in metako's configuration says so, else the first.
    pub primary: Option<String>,
    /// The setting on the primary at the start; by default what `failover.synchronous` of the configuration asks for,
    /// over all other nodes.
    pub synchronous_standby_names: Option<String>,
    /// Timings of all nodes.
    pub defaults: Timings,
    /// Timings of single nodes, in place of the defaults.
    pub nodes: BTreeMap<String, Timings>,
    /// Delays of messages.
    pub links: LinkTimings,
}

/// How fast a node is. What is not given is taken from the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Timings {
    /// Flush of WAL to disk; 300us..2ms.
    pub fsync: Option<Span>,
    /// Replay of WAL on a standby, counted from its flush; 200us..2ms.
    pub replay_delay: Option<Span>,
    /// Promotion; 60ms..300ms.
    pub promote: Option<Span>,
    /// Start and crash recovery; 800ms..3s.
    pub start: Option<Span>,
    /// `wal_retrieve_retry_interval`; 200ms.
    pub wal_retrieve_retry_interval: Option<HumanDuration>,
    /// `wal_receiver_timeout`; 2s.
    pub wal_receiver_timeout: Option<HumanDuration>,
}

/// How long messages take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkTimings {
    /// Between metako and a node, one way.
    pub metako: Span,
    /// Between two nodes, one way.
    pub nodes: Span,
}

impl Default for LinkTimings {
    fn default() -> Self {
        Self { metako: Span::micros(150, 900), nodes: Span::micros(150, 900) }
    }
}

/// A group of clients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Clients that write one row after the other.
    pub writers: u32,
    /// Clients that read.
    pub readers: u32,
    /// Pause between an answer and the next request.
    pub think: Span,
}

impl Default for Load {
    fn default() -> Self {
        Self { writers: 0, readers: 0, think: Span::millis(5, 20) }
    }
}

/// How long the run is.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Virtual time of the whole run.
    #[serde(rename = "for")]
    pub length: HumanDuration,
}

impl Default for Run {
    fn default() -> Self {
        Self { length: HumanDuration(Duration::from_secs(30)) }
    }
}

/// What must hold.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// How many failovers; not checked if not given.
    pub failovers: Option<Bounds>,
    /// How many acknowledged writes may be missing at the end. By default none under synchronous replication, and any
    /// number, which is reported, under asynchronous.
    pub acknowledged_lost: Option<Bounds>,
    /// How many writes may end with an unknown outcome; not checked if not given.
    pub unknown: Option<Bounds>,
    /// How many writes may fail; not checked if not given.
    pub failed: Option<Bounds>,
    /// How many reads may fail; not checked if not given.
    pub failed_reads: Option<Bounds>,
    /// The longest time without an acknowledged write.
    pub max_write_gap: Option<HumanDuration>,
    /// A write is acknowledged within this time after the last fault's end, and writes go on, unless it is left to a person.
    pub writes_go_on_within: Option<HumanDuration>,
    /// How things stand at the end.
    pub finally: Finally,
}

/// How things stand at the end of the run.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Finally {
    /// Writes are open, on one of these nodes.
    pub primary: Option<Vec<String>>,
    /// So many replicas stream from the primary.
    pub replicas_streaming: Option<u32>,
    /// Every node is in its place: it streams from the primary, if `hooks.rejoin` can bring it back, else from somebody, if it
    /// can follow at all.
    pub in_place: bool,
}

/// A number, or a least and a most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number, or `{ min: .., max: .. }`")]
pub enum Bounds {
    /// Just that many.
    Exactly(u64),
    /// Within bounds, both included.
    Range(Range),
}

/// A least and a most, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// At least.
    #[serde(default)]
    pub min: u64,
    /// At most; without it, any number.
    pub max: Option<u64>,
}

impl Bounds {
    /// Whether the number is within.
    pub fn admit(self, number: u64) -> bool {
        match self {
            Self::Exactly(expected) => number == expected,
            Self::Range(Range { min, max }) => number >= min && max.is_none_or(|max| number <= max),
        }
    }
}

impl std::fmt::Display for Bounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exactly(number) => write!(f, "{number}"),
            Self::Range(Range { min, max: None }) => write!(f, "at least {min}"),
            Self::Range(Range { min, max: Some(max) }) => write!(f, "{min} to {max}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bounds_are_a_number_or_a_range() {
        let bounds = |value| serde_json::from_value::<Bounds>(value);
        assert!(bounds(json!(2)).expect("valid").admit(2));
        assert!(!bounds(json!({"min": 1})).expect("valid").admit(0));
        assert!(bounds(json!({"min": 1})).expect("valid").admit(9));
        assert!(!bounds(json!({"max": 1})).expect("valid").admit(2));
        assert!(bounds(json!({"most": 1})).is_err());
    }
}
