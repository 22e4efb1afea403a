//! The periodic report of the cluster in the log.

use metako_core::config::LogFormat;

use super::status::{OverallHealth, Status, render};

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
        survivable_failures = status.survival.failures,
        loses_nothing = status.survival.loses_nothing,
        standbys_until_commits_wait = status.survival.standbys_until_commits_wait,
        survival_reason = %status.survival.reason,
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use metako_core::cluster::ClusterView;
    use parking_lot::Mutex;

    use super::*;
    use crate::shared::Traffic;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn status() -> Status {
        Status::new("main", &ClusterView::empty("no node has answered yet"), &Traffic::default(), Vec::new())
    }

    #[test]
    fn machines_get_fields_and_people_get_text() {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber =
            tracing_subscriber::fmt().json().with_writer(move || writer.clone()).without_time().finish();
        tracing::subscriber::with_default(subscriber, || log(&status(), LogFormat::Json));
        let line: serde_json::Value = serde_json::from_slice(&buffer.0.lock()).unwrap();
        let fields = &line["fields"];
        assert_eq!(fields["health"], "unavailable");
        assert_eq!(fields["reason"], "no node has answered yet");
        assert_eq!(fields["queries_total"], 0);
        assert_eq!(fields["nodes"], "[]");

        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .without_time()
            .finish();
        tracing::subscriber::with_default(subscriber, || log(&status(), LogFormat::Human));
        let text = String::from_utf8(buffer.0.lock().clone()).unwrap();
        assert!(text.contains("cluster main: unavailable, primary none"), "{text}");
        assert!(!text.contains("queries_total="), "{text}");
    }
}
