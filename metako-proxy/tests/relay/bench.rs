//! A data plane in this process, in front of a real cluster.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metako_core::cluster::{
    ClusterView, Health, NodeView, ObservedRole, Phase, ReadFitness, ServerLoss, Writes,
};
use metako_core::{Epoch, NodeName};
use metako_proxy::check::load_text;
use metako_proxy::data::DataPlane;
use metako_proxy::env::{Env, Listener, TokioEnv};
use metako_proxy::playground::Cluster;
use metako_proxy::shared::{EvidenceSender, Traffic, ViewCell};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::running;

/// Far above what anything here takes: a test that gets here hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct NoSecrets;

impl metako_core::config::SecretSource for NoSecrets {
    fn env(&self, _: &str) -> Option<String> {
        None
    }

    fn file(&self, _: &std::path::Path) -> std::io::Result<String> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    pub(crate) data: Arc<DataPlane<TokioEnv>>,
    pub(crate) view: Arc<ViewCell>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) evidence: mpsc::Receiver<(NodeName, ServerLoss)>,
    pub(crate) port: u16,
}

impl Bench {
    /// A cluster with so many replicas, and a data plane in front of it with `extra` in its configuration.
    pub(crate) async fn start(replicas: usize, extra: &str) -> Self {
        // Clients that change threads after each transaction meet all that several threads can bring.
        Self::start_in(TokioEnv::restless(2).unwrap(), replicas, extra).await
    }

    pub(crate) async fn start_in(env: TokioEnv, replicas: usize, extra: &str) -> Self {
        let cluster = tokio::task::spawn_blocking(move || {
            let cluster = running::cluster(replicas, None);
            let names: Vec<String> = (0..replicas).map(|n| format!("node-{}", n + 2)).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            cluster.wait_streaming(cluster.node("node-1"), &names, LIMIT).unwrap();
            cluster
        })
        .await
        .unwrap();
        let config = Arc::new(Self::config(&cluster, extra));
        let view = Arc::new(ViewCell::new(open(&cluster, "node-1", 1)));
        let traffic = Arc::new(Traffic::default());
        let (sender, evidence) = EvidenceSender::channel();
        let data =
            DataPlane::new(env.clone(), config, Arc::clone(&view), sender, Arc::clone(&traffic)).unwrap();
        let listener = env.bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        env.spawn_data(Arc::clone(&data).serve(listener));
        Self { cluster, data, view, traffic, evidence, port }
    }

    pub(crate) fn config(cluster: &Cluster, extra: &str) -> metako_core::config::Config {
        let yaml = format!("{}\n{extra}\n", cluster.metako_yaml("127.0.0.1:6432"));
        load_text("relay.yaml", &yaml, &NoSecrets).unwrap().config
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_with("").await
    }

    pub(crate) async fn client_with(&self, more: &str) -> Client {
        let dsn = format!("{} {more}", running::dsn(&self.cluster, self.port));
        let connecting = tokio_postgres::connect(&dsn, NoTls);
        let (client, connection) = timeout(LIMIT, connecting).await.unwrap().unwrap();
        tokio::spawn(connection);
        client
    }

    pub(crate) fn reads(&self, node: &str) -> u64 {
        self.traffic.node(&node.into()).reads.load(Ordering::Relaxed)
    }

    /// Waits until no server connection is in use.
    pub(crate) async fn settled(&self) {
        let in_use = || {
            self.cluster
                .nodes()
                .iter()
                .map(|node| self.traffic.node(&node.name().into()).in_use.load(Ordering::Relaxed))
                .sum::<u64>()
        };
        timeout(LIMIT, async {
            while in_use() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("server connections stay in use");
    }
}

pub(crate) fn node(name: &str, role: ObservedRole) -> NodeView {
    NodeView { health: Health::Up, role, reads: ReadFitness::Fit, ..NodeView::unknown(name.into()) }
}

pub(crate) fn open(cluster: &Cluster, primary: &str, epoch: u64) -> ClusterView {
    ClusterView {
        version: epoch * 2,
        epoch: Epoch(epoch),
        phase: Phase::Steady { primary: primary.into() },
        writes: Writes::Open { primary: primary.into() },
        nodes: cluster
            .nodes()
            .iter()
            .map(|known| {
                let role =
                    if known.name() == primary { ObservedRole::Primary } else { ObservedRole::Replica };
                node(known.name(), role)
            })
            .collect(),
        ..ClusterView::empty("")
    }
}

pub(crate) fn held(cluster: &Cluster, epoch: u64) -> ClusterView {
    let mut view = open(cluster, "node-1", epoch);
    view.version += 1;
    view.writes = Writes::Held { reason: "the primary is being replaced".to_owned() };
    view.nodes[0] = node("node-1", ObservedRole::Unknown);
    view.nodes[0].reads = ReadFitness::Unfit { reason: "down".to_owned() };
    view
}

pub(crate) fn code(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("none", SqlState::code)
}

pub(crate) async fn text(client: &Client, sql: &str) -> String {
    let rows = timeout(LIMIT, client.simple_query(sql)).await.expect("an answer").unwrap();
    rows.iter()
        .find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .unwrap_or_default()
}
