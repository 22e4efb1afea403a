//! A replay for people, and for programs.

use std::fmt::Write as _;

use metako_core::Tick;
use metako_core::record::What;
use serde_json::{Value, json};

use super::{Blind, Decided, Difference, FieldDifference, Parted, Replay, WhatIf};

/// Characters of a line of JSON that are shown to people.
const WIDTH_MAX: usize = 400;

/// What a replay brought, for people.
pub(crate) fn human(replay: &Replay) -> String {
    let mut text = String::new();
    let (from, until) = replay.span.clone().unwrap_or_default();
    let _ = writeln!(
        text,
        "record of cluster {}, written by {}\n{} events from {from} to {until}",
        replay.cluster,
        replay.programs.join(" and "),
        replay.events,
    );
    for Blind { from, to, lost } in &replay.blind {
        let lost = if *lost > 0 { format!(": {lost} events are not in the record") } else { String::new() };
        let _ =
            writeln!(text, "blind    from {} (line {}) to {} (line {}){lost}", from.1, from.0, to.1, to.0);
    }
    notes(&mut text, &replay.notes);
    text.push('\n');
    for decided in &replay.decisions {
        let _ = writeln!(text, "{}  {}", decided.at, decision(decided));
    }
    match &replay.difference {
        None if replay.events == 0 => text.push_str("\nnothing to compare: there is no whole event\n"),
        None if replay.state_lost => {
            text.push_str(
                "\nno difference, but not equal either: state was lost in reading, see the notes\n",
            );
        }
        None => {
            let equal = if replay.is_complete() { "equal" } else { "equal where it is known" };
            let _ = writeln!(
                text,
                "\n{equal}: this program takes the same {} actions and {} decisions",
                replay.actions,
                replay.decisions.len()
            );
        }
        Some(found) => difference(&mut text, found),
    }
    text
}

fn notes(text: &mut String, notes: &[String]) {
    for note in notes {
        let _ = writeln!(text, "note     {note}");
    }
}

fn decision(decided: &Decided) -> String {
    let Decided { decision, .. } = decided;
    let node = decision.node.as_ref().map_or_else(String::new, |node| format!(" {node}"));
    format!("{}{node}, epoch {}: {}", decision.kind.name(), decision.epoch, decision.reason)
}

fn difference(text: &mut String, found: &Difference) {
    let _ = writeln!(
        text,
        "\ndifferent at {}, line {} (number {}, {})",
        found.file, found.line, found.seq, found.at
    );
    for (seq, at, event) in &found.before {
        let _ = writeln!(text, "  before    {seq} {at} {}", short(&event.to_string()));
    }
    match &found.event {
        Some(event) => {
            let _ = writeln!(text, "  told      {}", short(&event.to_string()));
        }
        None => text.push_str("  the recorded state is not the one that the events before it lead to\n"),
    }
    answers(text, "recorded", &found.recorded);
    answers(text, "now", &found.replayed);
    fields(text, &found.fields, "now");
}

fn answers(text: &mut String, name: &str, answers: &[What]) {
    for answer in answers {
        let line = serde_json::to_string(answer).unwrap_or_default();
        let _ = writeln!(text, "  {name:<9} {}", short(&line));
    }
}

fn fields(text: &mut String, fields: &[FieldDifference], other: &str) {
    for FieldDifference { path, recorded, replayed } in fields {
        let shown = |value: &Option<Value>| {
            value.as_ref().map_or_else(|| "nothing".to_owned(), |value| short(&value.to_string()))
        };
        let path = if path.is_empty() { "the answer" } else { path };
        let _ = writeln!(text, "  {path}: recorded {}, {other} {}", shown(recorded), shown(replayed));
    }
}

fn short(text: &str) -> String {
    match text.char_indices().nth(WIDTH_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What another configuration would have decided, for people.
pub(crate) fn what_if_human(found: &WhatIf) -> String {
    let mut text = String::new();
    notes(&mut text, &found.notes);
    let same = same(found);
    for decided in &found.recorded[..same] {
        let _ = writeln!(text, "both      {}  {}", decided.at, decision(decided));
    }
    if let Some(Parted { seq, at, event, recorded, other, fields: differing, now: _ }) = &found.parted {
        let _ = writeln!(text, "\nthe actions part at number {seq}, {at}");
        let _ = writeln!(text, "  told      {}", short(&event.to_string()));
        answers(&mut text, "recorded", recorded);
        answers(&mut text, "other", other);
        fields(&mut text, differing, "other");
        text.push_str(
            "from here on what the record answers no longer fits: the other column is an indication only\n",
        );
    }
    let mut lines: Vec<(Tick, bool, String)> = Vec::new();
    for decided in &found.recorded[same..] {
        lines.push((decided.now, false, format!("recorded  {}", decision(decided))));
    }
    for decided in &found.other[same..] {
        lines.push((decided.now, true, format!("other     {}", decision(decided))));
    }
    lines.sort_by_key(|(now, other, _)| (*now, *other));
    if !lines.is_empty() {
        text.push('\n');
    }
    for (now, _, line) in lines {
        let (side, rest) = line.split_at(10);
        let _ = writeln!(text, "{side}{now}  {rest}");
    }
    if !found.unanswered.is_empty() {
        let _ = writeln!(text, "\nthe record has no answer to: {}", found.unanswered.join(", "));
    }
    if found.parted.is_none() && found.recorded == found.other {
        let _ = writeln!(
            text,
            "\nequal: the other configuration takes the same actions and the same {} decisions",
            found.recorded.len()
        );
    }
    text
}

/// So many decisions are the same at the beginning.
fn same(found: &WhatIf) -> usize {
    found.recorded.iter().zip(&found.other).take_while(|(then, other)| then == other).count()
}

/// What a replay brought, as one object.
pub(crate) fn json(replay: &Replay) -> Value {
    let (from, until) = replay.span.clone().unwrap_or_default();
    let blind: Vec<Value> = replay
        .blind
        .iter()
        .map(|Blind { from, to, lost }| {
            json!({ "after_seq": from.0, "after": from.1, "before_seq": to.0, "before": to.1, "lost_events": lost })
        })
        .collect();
    let difference = replay.difference.as_ref().map(|found| {
        json!({
            "file": found.file,
            "line": found.line,
            "seq": found.seq,
            "at": found.at,
            "told": found.event,
            "recorded": found.recorded,
            "replayed": found.replayed,
            "fields": fields_json(&found.fields),
            "before": found.before.iter().map(|(seq, at, event)| json!({ "seq": seq, "at": at, "told": event })).collect::<Vec<_>>(),
        })
    });
    json!({
        "schema": 1,
        "equal": replay.is_equal(),
        "complete": replay.is_complete(),
        "cluster": replay.cluster,
        "programs": replay.programs,
        "from": from,
        "until": until,
        "starts": replay.starts,
        "events": replay.events,
        "actions": replay.actions,
        "decisions": decisions_json(&replay.decisions),
        "blind": blind,
        "notes": replay.notes,
        "difference": difference,
    })
}

/// What another configuration would have decided, as one object.
pub(crate) fn what_if_json(found: &WhatIf) -> Value {
    let parted = found.parted.as_ref().map(|parted| {
        json!({
            "seq": parted.seq,
            "at": parted.at,
            "now_us": parted.now,
            "told": parted.event,
            "recorded": parted.recorded,
            "other": parted.other,
            "fields": fields_json(&parted.fields),
        })
    });
    json!({
        "schema": 1,
        "equal": found.parted.is_none() && found.recorded == found.other,
        "same_decisions": same(found),
        "recorded": decisions_json(&found.recorded),
        "other": decisions_json(&found.other),
        "parted": parted,
        "unanswered": found.unanswered,
        "notes": found.notes,
    })
}

fn decisions_json(decisions: &[Decided]) -> Vec<Value> {
    decisions
        .iter()
        .map(|Decided { at, now, decision }| json!({ "at": at, "now_us": now, "decision": decision }))
        .collect()
}

fn fields_json(fields: &[FieldDifference]) -> Vec<Value> {
    fields
        .iter()
        .map(|field| json!({ "path": field.path, "recorded": field.recorded, "replayed": field.replayed }))
        .collect()
}
