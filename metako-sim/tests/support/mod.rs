//! Configurations and scenarios of the tests.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io;
use std::path::Path;

use metako_core::cluster::Action;
use metako_core::config::{Config, SecretSource, load};
use metako_sim::Outcome;
use metako_sim::log::LogEvent;
use metako_sim::scenario::Scenario;
use metako_strategies as _;

pub(crate) const SYNCHRONOUS: &str = include_str!("../../scenarios/synchronous.yaml");
pub(crate) const ASYNCHRONOUS: &str = include_str!("../../scenarios/asynchronous.yaml");
pub(crate) const OBSERVED: &str = include_str!("../../scenarios/observed.yaml");
pub(crate) const HOOKED: &str = include_str!("../../scenarios/hooked.yaml");
pub(crate) const HOOKED_ASYNCHRONOUS: &str = include_str!("../../scenarios/hooked-asynchronous.yaml");

struct Secrets;

impl SecretSource for Secrets {
    fn env(&self, _: &str) -> Option<String> {
        Some("secret".to_owned())
    }

    fn file(&self, _: &Path) -> io::Result<String> {
        Ok("secret".to_owned())
    }
}

pub(crate) fn config(text: &str) -> Config {
    load("metako.yaml", text, &Secrets).expect("a valid configuration").config
}

pub(crate) fn scenario(text: &str) -> Scenario {
    Scenario::load("scenario.yaml", text).expect("a valid scenario")
}

/// Whether metako changed anything on a node.
pub(crate) fn changed_nodes(outcome: &Outcome) -> bool {
    outcome.log.entries().iter().any(|entry| match &entry.event {
        LogEvent::Action(action) => !matches!(
            action,
            Action::Probe { .. }
                | Action::Persist { .. }
                | Action::Sever { .. }
                | Action::Publish { .. }
                | Action::Record { .. }
        ),
        _ => false,
    })
}
