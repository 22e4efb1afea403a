//! The control plane on real PostgreSQL clusters.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod failover;
mod sql;

use std::io;
use std::path::Path;
use std::time::Duration;

use metako_core::config::{Config, SecretSource, load};
use metako_proxy::playground::Cluster;
use metako_strategies as _;

/// Far more than anything here takes: a test that waits so long has failed.
const LIMIT: Duration = Duration::from_mins(1);

/// A configuration without secrets outside.
struct NoSecrets;

impl SecretSource for NoSecrets {
    fn env(&self, _: &str) -> Option<String> {
        None
    }

    fn file(&self, _: &Path) -> io::Result<String> {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// The configuration of a throw-away cluster, with probes that a busy machine can answer.
fn config(cluster: &Cluster) -> Config {
    let yaml = cluster.metako_yaml("127.0.0.1:6432") + "health_check: { interval: 2s, timeout: 2s }\n";
    load("test.yaml", &yaml, &NoSecrets).unwrap().config
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
