//! The demo counts what happened, not what metako says: shown with a stand-in that forwards bytes and promotes by
//! itself, well or badly.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metako_core::cluster::ClusterView;
use metako_core::{NodeName, cluster};
use metako_proxy::control::Status;
use metako_proxy::demo::{DemoOptions, Metako, Scenario, run_with};
use metako_proxy::shared::Traffic;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

/// Forwards every connection to the node that it takes for the primary. When that refuses, it promotes the second node
/// and lets the third follow it.
struct StandIn {
    nodes: Arc<Nodes>,
    tasks: Vec<JoinHandle<()>>,
}

struct Nodes {
    ports: Vec<u16>,
    password: String,
    primary: AtomicUsize,
}

impl StandIn {
    async fn start(path: &Path, listen: SocketAddr) -> Result<Self, String> {
        let yaml = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let nodes = Arc::new(Nodes::read(&yaml));
        let listener = tokio::net::TcpListener::bind(listen).await.map_err(|error| error.to_string())?;
        let forward = tokio::spawn(forward(listener, Arc::clone(&nodes)));
        let watch = tokio::spawn(watch(Arc::clone(&nodes)));
        Ok(Self { nodes, tasks: vec![forward, watch] })
    }
}

impl Nodes {
    fn read(yaml: &str) -> Self {
        let value = |line: &str, key: &str| {
            let (_, rest) = line.split_once(&format!("{key}: "))?;
            Some(rest.split([',', ' ']).next()?.trim_matches('"').to_owned())
        };
        let nodes: Vec<&str> = yaml.lines().filter(|line| line.contains("role: ")).collect();
        let ports = nodes.iter().map(|line| value(line, "port").unwrap().parse().unwrap()).collect();
        Self { ports, password: value(nodes[0], "password").unwrap(), primary: AtomicUsize::new(0) }
    }

    async fn run(&self, node: usize, statements: &[&str]) -> Result<(), tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.ports[node])
            .user("postgres")
            .password(&self.password)
            .dbname("postgres");
        let (client, connection) = config.connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        for statement in statements {
            client.simple_query(statement).await?;
        }
        drop(client);
        connection.await.unwrap()
    }

    /// Cuts a standby off from its primary: it falls behind.
    async fn cut_off(&self, node: usize) {
        let cut = ["ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"];
        self.run(node, &cut).await.unwrap();
    }
}

async fn forward(listener: tokio::net::TcpListener, nodes: Arc<Nodes>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let port = nodes.ports[nodes.primary.load(Ordering::Relaxed)];
        tokio::spawn(async move {
            if let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await {
                // However it ends, both ends see it.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

async fn watch(nodes: Arc<Nodes>) {
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    while !TcpStream::connect(("127.0.0.1", nodes.ports[0])).await.is_err_and(refused) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    nodes
        .run(1, &["SELECT pg_promote()", "SELECT pg_create_physical_replication_slot('node_3')"])
        .await
        .unwrap();
    let follow = format!(
        "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port={} user=postgres password={} application_name=node-3'",
        nodes.ports[1], nodes.password
    );
    nodes.run(2, &[&follow, "SELECT pg_reload_conf()"]).await.unwrap();
    nodes.primary.store(1, Ordering::Relaxed);
}

impl Metako for StandIn {
    fn status(&self) -> Status {
        let mut view = ClusterView::empty("a stand-in");
        let primary = format!("node-{}", self.nodes.primary.load(Ordering::Relaxed) + 1);
        view.writes = cluster::Writes::Open { primary: NodeName::from(primary) };
        Status::new("stand-in", &view, &Traffic::default(), Vec::new())
    }

    async fn shutdown(self) {
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            // A failed assertion in a task is this test's failure; an abort is not.
            assert!(task.await.is_err_and(|error| error.is_cancelled()) || !std::thread::panicking());
        }
    }
}

fn options() -> DemoOptions {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    DemoOptions { scenario: Some(Scenario::KillPrimary), synchronous: false, json: false, listen: free }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_breaks_connections_is_shown_as_it_is() {
    let options = options();
    let listen = options.listen;
    let outcome = run_with(options, async |path| StandIn::start(path, listen).await).await.unwrap().unwrap();
    assert_eq!(outcome.promoted.as_deref(), Some("node-2"));
    assert!(outcome.write_gap_ms.is_some() && outcome.read_gap_ms.is_some(), "{outcome:?}");
    assert_eq!((outcome.nodes_streaming, outcome.nodes_surviving), (1, 1));
    // The stand-in is no metako: nobody's session lived through it.
    assert_eq!((outcome.sessions_kept, outcome.sessions_total), (0, 16));
    assert!(outcome.client_errors > 0, "{outcome:?}");
    assert!(outcome.acknowledged_rows > 0);
    assert_eq!(outcome.refused_rows_there, Some(0));
    assert!(outcome.passed());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_a_bad_choice_lost_are_counted() {
    let options = options();
    let listen = options.listen;
    let launch = async |path: &Path| {
        let stand_in = StandIn::start(path, listen).await?;
        let nodes = Arc::clone(&stand_in.nodes);
        // Cut off once there is traffic: what is acknowledged from then on is not on the node that will be promoted.
        tokio::spawn(async move {
            let table = "SELECT 1 / (SELECT count(*)::int FROM metako_demo)";
            let app = async || {
                let mut config = tokio_postgres::Config::new();
                config
                    .host("127.0.0.1")
                    .port(nodes.ports[1])
                    .user("postgres")
                    .password(&nodes.password)
                    .dbname("app");
                let (client, connection) = config.connect(NoTls).await?;
                tokio::spawn(connection);
                client.simple_query(table).await
            };
            while app().await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            nodes.cut_off(1).await;
        });
        Ok(stand_in)
    };
    let outcome = run_with(options, launch).await.unwrap().unwrap();
    assert_eq!(outcome.promoted.as_deref(), Some("node-2"));
    assert!(outcome.acknowledged_rows_lost.unwrap() > 0, "{outcome:?}");
}
