//! Commands for what SQL cannot do, as they are written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::units::HumanDuration;

/// `hooks`
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct Hooks {
    /// Stops the PostgreSQL of a node; 60s by default.
    pub(in crate::config) stop: Option<Hook>,
    /// Makes a former primary or a diverged standby follow the present primary; 1h by default.
    pub(in crate::config) rejoin: Option<Hook>,
}

/// A command, run without a shell.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["command"]))]
pub(in crate::config) struct Hook {
    /// The program and its first arguments.
    #[schemars(length(min = 1), inner(length(min = 1)))]
    pub(in crate::config) command: Vec<String>,
    /// How long it may take until it is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HumanDuration", extend("x-min" = "1s"))]
    pub(in crate::config) timeout: Option<HumanDuration>,
}
