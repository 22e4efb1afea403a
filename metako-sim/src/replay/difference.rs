//! Where a replay and its record part, and in what.

use metako_core::record::What;
use serde_json::Value;

/// Fields that are named at most.
const FIELDS_MAX: usize = 20;

/// The first thing that is not as it was recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// The file.
    pub file: String,
    /// The line of it, counted from 1.
    pub line: usize,
    /// The number of the line.
    pub seq: u64,
    /// When it was recorded, by the wall clock.
    pub at: String,
    /// What the controller was told; none if a recorded state is not the one that it should have come to.
    pub event: Option<Value>,
    /// What it answered then.
    pub recorded: Vec<What>,
    /// What it answers now.
    pub replayed: Vec<What>,
    /// The fields in which the first answers that are not the same differ.
    pub fields: Vec<FieldDifference>,
    /// What it was told before, with number and time, oldest first.
    pub before: Vec<(u64, String, Value)>,
}

/// A value that is not as it was recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldDifference {
    /// Where it stands.
    pub path: String,
    /// As it was recorded; none if it was not there.
    pub recorded: Option<Value>,
    /// As it is now; none if it is not there.
    pub replayed: Option<Value>,
}

/// The fields in which the first pair of answers that are not the same differ.
pub(super) fn of_answers(recorded: &[What], replayed: &[What]) -> Vec<FieldDifference> {
    let mut fields = Vec::new();
    let written = |what: Option<&What>| what.map(|what| serde_json::to_value(what).unwrap_or_default());
    let longest = recorded.len().max(replayed.len());
    let pairs = (0..longest).map(|index| (recorded.get(index), replayed.get(index)));
    if let Some((then, now)) = pairs.into_iter().find(|(then, now)| then != now) {
        let (then, now) = (written(then), written(now));
        compare("", then.as_ref(), now.as_ref(), &mut fields);
    }
    fields
}

/// The fields in which two values differ, some of them if there are many.
pub(super) fn of_values(recorded: &Value, replayed: &Value) -> Vec<FieldDifference> {
    let mut fields = Vec::new();
    compare("", Some(recorded), Some(replayed), &mut fields);
    fields
}

fn compare(path: &str, then: Option<&Value>, now: Option<&Value>, fields: &mut Vec<FieldDifference>) {
    if then == now || fields.len() >= FIELDS_MAX {
        return;
    }
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match (then, now) {
        (Some(Value::Object(then)), Some(Value::Object(now))) => {
            let added = now.keys().filter(|key| !then.contains_key(*key));
            for key in then.keys().chain(added) {
                compare(&below(key), then.get(key), now.get(key), fields);
            }
        }
        (Some(Value::Array(then)), Some(Value::Array(now))) => {
            for index in 0..then.len().max(now.len()) {
                compare(&below(&index.to_string()), then.get(index), now.get(index), fields);
            }
        }
        (then, now) => fields.push(FieldDifference {
            path: path.to_owned(),
            recorded: then.cloned(),
            replayed: now.cloned(),
        }),
    }
}
