//! What the scenario expects of a run.

use metako_core::Tick;

use super::{Facts, Finding, Rules, recovery};
use crate::log::Log;
use crate::scenario::{Bounds, Expect};

/// Compares the figures with the expectations.
pub(super) fn check(log: &Log, facts: &Facts, expect: &Expect, rules: &Rules) -> Vec<Finding> {
    let at = log.entries().last().map_or(Tick::ZERO, |entry| entry.at);
    let mut findings = Vec::new();
    let mut find = |check, text| findings.push(Finding { check, at, text });

    let lost_allowed = expect.acknowledged_lost.or_else(|| rules.synchronous().then_some(Bounds::Exactly(0)));
    let lost = facts.lost.len() as u64;
    if let Some(allowed) = lost_allowed.filter(|allowed| !allowed.admit(lost)) {
        let some: Vec<String> = facts.lost.iter().take(5).map(|id| format!("{id:x}")).collect();
        let text = format!(
            "{lost} of {} acknowledged writes are lost ({}{}), expected {allowed}",
            facts.acknowledged,
            some.join(", "),
            if lost > 5 { ", .." } else { "" }
        );
        find("acknowledged_writes_kept", text);
    }
    let failovers = facts.promoted.len() as u64;
    if let Some(bounds) = expect.failovers.filter(|bounds| !bounds.admit(failovers)) {
        find("failovers", format!("{failovers} failovers, expected {bounds}"));
    }
    for (check, what, found, bounds) in [
        ("unknown", "writes of unknown outcome", facts.unknown, expect.unknown),
        ("failed", "failed writes", facts.failed, expect.failed),
        ("failed_reads", "failed reads", facts.reads_failed, expect.failed_reads),
    ] {
        if let Some(bounds) = bounds.filter(|bounds| !bounds.admit(found)) {
            find(check, format!("{found} {what}, expected {bounds}"));
        }
    }
    if let Some(limit) = expect.max_write_gap {
        match facts.write_gap {
            Some(gap) if gap <= limit.0 => {}
            Some(gap) => find(
                "max_write_gap",
                format!(
                    "no write was acknowledged for {}ms, expected at most {}ms",
                    gap.as_millis(),
                    limit.0.as_millis()
                ),
            ),
            None => find("max_write_gap", "no write was acknowledged at all".to_owned()),
        }
    }
    if let Some(primaries) = &expect.finally.primary {
        match &facts.primary {
            Some(primary) if primaries.iter().any(|name| name == primary.as_str()) => {}
            Some(primary) => {
                find(
                    "finally.primary",
                    format!("writes go to {primary}, expected one of {}", primaries.join(", ")),
                );
            }
            None => find(
                "finally.primary",
                format!("writes are closed, expected one of {}", primaries.join(", ")),
            ),
        }
    }
    if let Some(expected) = expect.finally.replicas_streaming {
        let found = facts.replicas_streaming;
        if found != u64::from(expected) {
            find(
                "finally.replicas_streaming",
                format!("{found} replicas stream from the final primary, expected {expected}"),
            );
        }
    }
    if let Some(bound) = expect.writes_go_on_within
        && let Some(text) = recovery::writes_go_on(log, bound.0, rules)
    {
        find("writes_go_on_within", text);
    }
    if expect.finally.in_place {
        for text in recovery::out_of_place(log, rules) {
            find("finally.in_place", text);
        }
    }
    findings
}
