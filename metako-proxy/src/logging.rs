//! Logs, by `tracing`, on standard error.

use metako_core::config::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

/// Starts logging for the process. A second call changes nothing: the first subscriber stays.
///
/// # Errors
/// `log.level` is neither a level nor a filter.
pub fn start(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.level).map_err(|error| {
        format!(
            "log.level: `{}` is neither a level (error, warn, info, debug, trace) nor a filter: {error}",
            log.level
        )
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Human => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        // Only an embedding program that logs in its own way gets here; its choice stands.
        tracing::debug!(%error, "logging was started before");
    }
    Ok(())
}
