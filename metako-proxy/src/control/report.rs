//! The periodic report of the cluster in the log.

use std::sync::Arc;
use std::time::Duration;

use metako_core::config::LogFormat;
use tokio::time::{MissedTickBehavior, interval};

use super::status::{OverallHealth, Status, render};

/// Logs a report every `every`, until the future is dropped. A report tells the whole state, so one that was missed is not
/// made up for.
pub async fn report_periodically(
    every: Duration,
    format: LogFormat,
    status: Arc<dyn Fn() -> Status + Send + Sync>,
) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once, when nothing is known yet.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        log(&status(), format);
    }
}

/// Writes one report as one event: for people a table, for machines its figures as fields, the nodes as a JSON text.
pub fn log(status: &Status, format: LogFormat) {
    match format {
        LogFormat::Human => tracing::info!(target: "metako::report", "{}", render(status).trim_end()),
        LogFormat::Json => log_fields(status),
    }
}

fn log_fields(status: &Status) {
    let nodes = serde_json::to_string(&status.nodes).expect("nodes have only text keys");
    let health = match status.health {
        OverallHealth::Healthy => "healthy",
        OverallHealth::Degraded => "degraded",
        OverallHealth::Unavailable => "unavailable",
    };
    tracing::info!(
        target: "metako::report",
        cluster = %status.cluster,
        health,
        primary = status.primary.as_ref().map(tracing::field::display),
        reason = status.reason.as_deref(),
        epoch = status.epoch.0,
        phase = %status.phase,
        queries_total = status.queries.total,
        queries_read = status.queries.reads,
        queries_write = status.queries.writes,
        queries_failed = status.queries.failed,
        clients = status.clients,
        held_clients = status.held_clients,
        nodes = %nodes,
        "cluster report"
    );
}
