//! Reading the record.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::VERSION;
use crate::Tick;
use crate::cluster::{Controller, Event};

/// A line of the record.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Counts lines, over files and restarts.
    pub seq: u64,
    /// The wall clock, RFC 3339 in UTC.
    pub at: String,
    /// The controller's clock.
    pub now: Tick,
    /// What the line tells.
    pub what: What,
}

/// What a line tells.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A replay can start here.
    Begin(Begin),
    /// The controller was told this [`Event`].
    In(Value),
    /// It asked for this [`Action`](crate::cluster::Action).
    Out(Value),
    /// It decided this: a [`Decision`](crate::cluster::Decision).
    Why(Value),
}

/// The state from which a replay can start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// Why it was written down here.
    pub cause: Cause,
    /// So many events before it, with what followed from each, are not in the record.
    pub lost: u64,
    /// The program that wrote it, with its version.
    pub program: String,
    /// The whole [`Controller`], masked.
    pub controller: Value,
}

/// Why a state was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The controller starts: what was before it was another.
    Start,
    /// It goes on in a new file, or somebody wants to start a replay here.
    GoesOn,
    /// It goes on after a part that is not in the record.
    Gap,
}

/// Why text is no line of a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It is no JSON object.
    #[error("it is no JSON object: {0}")]
    NoObject(String),
    /// It is of another version.
    #[error("it is of version {0} of the format, and only version {VERSION} can be read here")]
    OtherVersion(String),
    /// A key is missing or has a wrong value.
    #[error("`{key}` {problem}")]
    Key {
        /// The key.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// It tells nothing, or more than one thing.
    #[error("it must have exactly one of `begin`, `in`, `out` and `why`, and has {0}")]
    NotOne(String),
}

impl Line {
    /// Reads a line, without what ends it.
    pub fn parse(text: &[u8]) -> Result<Self, LineError> {
        let mut fields: Map<String, Value> =
            serde_json::from_slice(text).map_err(|error| LineError::NoObject(error.to_string()))?;
        match fields.shift_remove("v") {
            Some(version) if version.as_u64() == Some(VERSION) => {}
            Some(version) => return Err(LineError::OtherVersion(version.to_string())),
            None => return Err(LineError::Key { key: "v", problem: "is missing".to_owned() }),
        }
        let seq = take(&mut fields, "seq")?;
        let at = take(&mut fields, "at")?;
        let now = take(&mut fields, "now")?;
        let names = || match fields.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>() {
            none if none.is_empty() => "none".to_owned(),
            some => some.join(", "),
        };
        let mut rest = fields.iter();
        let (Some((key, value)), None) = (rest.next(), rest.next()) else {
            return Err(LineError::NotOne(names()));
        };
        let what = match key.as_str() {
            "begin" => What::Begin(read("begin", value.clone())?),
            "in" => What::In(value.clone()),
            "out" => What::Out(value.clone()),
            "why" => What::Why(value.clone()),
            _ => return Err(LineError::NotOne(names())),
        };
        Ok(Self { seq, at, now, what })
    }
}

impl Begin {
    /// The controller as it was, but for its secrets. Fails if the state, or the policy in it, is none of this program's.
    pub fn controller(&self) -> Result<Controller, LineError> {
        read("begin.controller", self.controller.clone())
    }
}

impl What {
    /// The event, if the line tells one. Fails if it is none of this program's.
    pub fn event(&self) -> Result<Option<Event>, LineError> {
        match self {
            Self::In(event) => read("in", event.clone()).map(Some),
            Self::Begin(_) | Self::Out(_) | Self::Why(_) => Ok(None),
        }
    }
}

fn take<T: for<'de> Deserialize<'de>>(
    fields: &mut Map<String, Value>,
    key: &'static str,
) -> Result<T, LineError> {
    match fields.shift_remove(key) {
        Some(value) => read(key, value),
        None => Err(LineError::Key { key, problem: "is missing".to_owned() }),
    }
}

fn read<T: for<'de> Deserialize<'de>>(key: &'static str, value: Value) -> Result<T, LineError> {
    serde_json::from_value(value)
        .map_err(|error| LineError::Key { key, problem: format!("cannot be read: {error}") })
}
