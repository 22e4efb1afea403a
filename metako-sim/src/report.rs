//! A run for people, and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Outcome;
use crate::log::LogEvent;
use crate::scenario::Scenario;

/// The timeline of what mattered, then the outcome.
pub(crate) fn human(scenario: &Scenario, outcome: &Outcome, all: bool) -> String {
    let mut text = format!("scenario {}, seed {}\n", scenario.scenario, outcome.seed);
    if !scenario.about.is_empty() {
        let _ = writeln!(text, "{}", scenario.about.trim_end());
    }
    text.push('\n');
    for entry in outcome.log.entries() {
        if all || matters(&entry.event) {
            let _ = writeln!(text, "{entry}");
        }
    }
    let facts = &outcome.facts;
    let _ = writeln!(
        text,
        "\nwrites   {} acknowledged, {} of them lost, {} of unknown outcome, {} failed",
        facts.acknowledged,
        facts.lost.len(),
        facts.unknown,
        facts.failed
    );
    let _ = writeln!(text, "reads    {} answered, {} failed", facts.reads, facts.reads_failed);
    let gap = facts
        .write_gap
        .map_or_else(|| "no write was acknowledged".to_owned(), |gap| format!("{}ms", millis(gap)));
    let _ = writeln!(text, "gap      {gap} without an acknowledged write at most");
    let promoted: Vec<&str> = facts.promoted.iter().map(metako_core::NodeName::as_str).collect();
    let promoted = if promoted.is_empty() { "nobody".to_owned() } else { promoted.join(", then ") };
    let primary = facts.primary.as_ref().map_or("nowhere", metako_core::NodeName::as_str);
    let _ = writeln!(
        text,
        "end      promoted: {promoted}; writes go to {primary}; {} replicas stream from there",
        facts.replicas_streaming
    );
    let _ = writeln!(text, "trace    {:016x}, {} entries", outcome.log.hash(), outcome.log.entries().len());
    for finding in &outcome.findings {
        let _ = writeln!(text, "BROKEN   {} at {}: {}", finding.check, finding.at, finding.text);
    }
    text.push_str(if outcome.met() { "all expectations are met\n" } else { "expectations are broken\n" });
    text
}

/// Whether a person wants to see it in a timeline.
fn matters(event: &LogEvent) -> bool {
    match event {
        LogEvent::Fault(_)
        | LogEvent::Asked { .. }
        | LogEvent::Hook { .. }
        | LogEvent::Node { .. }
        | LogEvent::Decision(_)
        | LogEvent::Severed { .. }
        | LogEvent::ProxyKilled
        | LogEvent::ProxyStarted { .. }
        | LogEvent::Broken(_) => true,
        LogEvent::Action(_)
        | LogEvent::Answered { .. }
        | LogEvent::Probed { .. }
        | LogEvent::ServerLost { .. }
        | LogEvent::JournalSynced(_)
        | LogEvent::View { .. }
        | LogEvent::Opened { .. }
        | LogEvent::Client(_)
        | LogEvent::End(_) => false,
    }
}

/// One object.
pub(crate) fn json(scenario: &Scenario, outcome: &Outcome) -> Value {
    let facts = &outcome.facts;
    let findings: Vec<Value> = outcome
        .findings
        .iter()
        .map(|finding| json!({ "check": finding.check, "at_ms": finding.at.0 / 1_000, "text": finding.text }))
        .collect();
    json!({
        "schema": 1,
        "scenario": scenario.scenario,
        "seed": outcome.seed,
        "met": outcome.met(),
        "promoted": facts.promoted,
        "primary": facts.primary,
        "nodes_streaming": facts.replicas_streaming,
        "write_gap_ms": facts.write_gap.map(millis),
        "acknowledged_writes": facts.acknowledged,
        "acknowledged_writes_lost": facts.lost.len(),
        "unknown_writes": facts.unknown,
        "failed_writes": facts.failed,
        "reads": facts.reads,
        "failed_reads": facts.reads_failed,
        "trace_hash": format!("{:016x}", outcome.log.hash()),
        "trace_entries": outcome.log.entries().len(),
        "findings": findings,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
