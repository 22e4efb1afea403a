//! The control plane on real PostgreSQL clusters.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod failover;
mod sql;

use std::sync::Arc;
use std::time::Duration;

use metako_core::config::{
    ClusterSettings, FailoverMode, FailoverSettings, Node, Priority, ReplicationAddress, Secret, SslMode,
    UnknownOutcome,
};
use metako_proxy::playground::{self, Cluster};

/// Far more than anything here takes: a test that waits so long has failed.
const LIMIT: Duration = Duration::from_mins(1);

/// A node of a throw-away cluster as a configuration would describe it.
fn configured(cluster: &Cluster, node: &playground::Node) -> Node {
    Node {
        name: node.name().into(),
        host: "127.0.0.1".to_owned(),
        port: node.port(),
        role: None,
        username: Cluster::SUPERUSER.to_owned(),
        password: Secret::new(cluster.superuser_password()),
        database: "postgres".to_owned(),
        weight: 1,
        zone: None,
        priority: Priority::Rank(100),
        sslmode: SslMode::Prefer,
        application_name: node.name().to_owned(),
        replication: ReplicationAddress {
            host: "127.0.0.1".to_owned(),
            port: node.port(),
            user: None,
            password: None,
            passfile: None,
        },
    }
}

fn settings(cluster: &Cluster) -> Arc<ClusterSettings> {
    Arc::new(ClusterSettings {
        name: "test".to_owned(),
        nodes: cluster.nodes().iter().map(|node| configured(cluster, node)).collect(),
        interval: Duration::from_millis(500),
        timeout: Duration::from_secs(2),
        failure_threshold: 3,
        max_lag: None,
        failover: FailoverSettings {
            mode: FailoverMode::Automatic,
            synchronous: None,
            silent_after: Duration::from_millis(2500),
            async_restart_grace: Duration::ZERO,
            hold_timeout: Duration::from_secs(30),
            hold_clients: 100,
            hold_bytes: 1 << 20,
            budget: (2, Duration::from_mins(10)),
            unknown_outcome: UnknownOutcome::TransactionResolutionUnknown,
        },
    })
}

/// Asks again and again until the answer is there. For what PostgreSQL announces to nobody.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, asking).await.unwrap_or_else(|_| panic!("never: {what}"))
}
