//! Logs, by `tracing`, on standard error.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use metako_core::config::{Log, LogFormat};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// The filter in force, once [`start`] has put one there: the subscriber that it belongs to is one for the process too.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging for the process. A second call changes nothing: the first subscriber stays.
///
/// # Errors
/// `log.level` is neither a level nor a filter.
pub fn start(log: &Log) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(filter(log)?);
    let output = fmt::layer().with_writer(io::stderr).with_ansi(wants_colour());
    let output = match log.format {
        LogFormat::Human => output.with_target(false).boxed(),
        LogFormat::Json => output.json().flatten_event(true).boxed(),
    };
    match tracing_subscriber::registry().with(filter).with(output).try_init() {
        // Nothing was there before, since the subscriber is the first.
        Ok(()) => drop(FILTER.set(handle)),
        // Only an embedding program that logs in its own way gets here; its choice stands.
        Err(error) => tracing::debug!(%error, "logging was started before"),
    }
    Ok(())
}

/// The filter of `log.level`.
///
/// # Errors
/// It is neither a level nor a filter.
pub fn filter(log: &Log) -> Result<EnvFilter, String> {
    EnvFilter::try_new(&log.level).map_err(|error| {
        format!(
            "log.level: `{}` is neither a level (error, warn, info, debug, trace) nor a filter: {error}",
            log.level
        )
    })
}

/// Filters by `filter` from now on, where [`start`] has started logging; else nobody's log is touched.
pub fn follow(filter: EnvFilter) {
    let Some(handle) = FILTER.get() else { return };
    if let Err(error) = handle.reload(filter) {
        tracing::error!(%error, "log.level could not be changed");
    }
}

/// Colours are for a terminal, unless its owner wants none (no-color.org).
fn wants_colour() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
