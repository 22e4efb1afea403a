//! The demo counts what happened, not what metako says: shown with a stand-in that forwards bytes and promotes by
//! itself, well or badly.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
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

    async fn switchover(&self) -> Result<(), String> {
        Err("a stand-in cannot".to_owned())
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

/// A port that nobody listens on, and that no outgoing connection is given before metako comes to it: below those, and below
/// the playground's.
fn free_port() -> SocketAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = usize::try_from(std::process::id()).unwrap() * 97;
    let numbers = (0..4_000).map(|_| 12_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 4_000);
    let mut addresses = numbers.map(|number| (Ipv4Addr::LOCALHOST, u16::try_from(number).unwrap()).into());
    addresses.find(|address: &SocketAddr| TcpListener::bind(address).is_ok()).expect("a port is free")
}

fn options() -> DemoOptions {
    DemoOptions {
        scenario: Some(Scenario::KillPrimary),
        synchronous: false,
        json: false,
        listen: free_port(),
    }
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

/// The binary, with metako itself, and what it leaves behind: nothing.
mod binary {
    use std::io::{BufRead, BufReader, Read};
    use std::net::TcpListener;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use metako_proxy::playground::until;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::Value;

    const LIMIT: Duration = Duration::from_mins(2);

    fn demo(options: &[&str], clusters: &Path) -> Command {
        let free = super::free_port().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_metako"));
        command.args(["demo", "--listen", &free]).args(options).env("METAKO_PLAYGROUND_DIR", clusters);
        command.stdin(Stdio::null());
        command
    }

    /// A folder that the servers' user may enter.
    fn clusters() -> tempfile::TempDir {
        use std::os::unix::fs::PermissionsExt;
        let parent = std::env::var_os("METAKO_PLAYGROUND_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = tempfile::Builder::new().prefix("demo-").tempdir_in(parent).unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    /// What the processes of the clusters in this folder show of themselves.
    fn marks(clusters: &Path) -> Vec<String> {
        let folders = std::fs::read_dir(clusters).unwrap().map(|entry| entry.unwrap().file_name());
        let parent = clusters.file_name().unwrap().to_owned();
        folders.chain([parent]).map(|name| name.into_string().unwrap()).collect()
    }

    /// The folder is empty, and nothing that shows such a mark runs.
    fn nothing_is_left(clusters: &Path, marks: &[String]) {
        until("the end of everything", LIMIT, || {
            let files = std::fs::read_dir(clusters).unwrap().count();
            let entries = std::fs::read_dir("/proc").unwrap().flatten();
            let cmdlines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
            let ours = |text: &Vec<u8>| {
                let text = String::from_utf8_lossy(text);
                marks.iter().any(|mark| text.contains(mark))
            };
            let processes = cmdlines.filter(ours).count();
            if (files, processes) == (0, 0) {
                Ok(())
            } else {
                Err(format!("{files} files, {processes} processes"))
            }
        })
        .unwrap();
    }

    fn signal(child: &Child, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }

    #[test]
    fn a_killed_primary_is_replaced_and_synchronous_replication_loses_nothing() {
        let clusters = clusters();
        let options = ["--scenario", "kill-primary", "--synchronous", "--json"];
        let output = demo(&options, clusters.path()).output().unwrap();
        let story = String::from_utf8_lossy(&output.stderr);
        let facts = String::from_utf8(output.stdout).unwrap();
        let facts: Value = serde_json::from_str(facts.lines().last().unwrap_or_default()).expect(&story);
        assert_eq!(facts["schema"], 1);
        assert_eq!(facts["scenario"], "kill-primary");
        assert!(
            ["node-2", "node-3"].contains(&facts["promoted"].as_str().unwrap_or("nobody")),
            "{facts}\n{story}"
        );
        assert_eq!(facts["acknowledged_rows_lost"], 0, "{facts}\n{story}");
        assert_eq!(facts["refused_rows_there"], 0, "{facts}\n{story}");
        assert_eq!(facts["nodes_streaming"], 1, "{facts}\n{story}");
        assert!(facts["acknowledged_rows"].as_u64() > Some(0), "{facts}\n{story}");
        assert!(facts["write_gap_ms"].is_u64() && facts["read_gap_ms"].is_u64(), "{facts}\n{story}");
        assert_eq!(facts["idle_sessions_kept"], facts["idle_sessions_total"], "{facts}\n{story}");
        assert_eq!(output.status.code(), Some(0), "{facts}\n{story}");
        nothing_is_left(clusters.path(), &marks(clusters.path()));
    }

    #[test]
    fn a_signal_ends_the_demo_and_clears_up() {
        for (ending, early) in [(Signal::SIGINT, false), (Signal::SIGTERM, true)] {
            let clusters = clusters();
            let mut child =
                demo(&[], clusters.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            // Early: while the cluster is being started. Else: when the first line of a node is shown.
            let awaited = if early { "starting PostgreSQL" } else { "node-1  " };
            let seen = lines.by_ref().any(|line| line.unwrap().contains(awaited));
            let marks = marks(clusters.path());
            signal(&child, ending);
            // Read to the end, so that nobody waits for a full pipe.
            lines.for_each(drop);
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            let status = child.wait().unwrap();
            assert!(seen, "{said}");
            assert_eq!(status.code(), Some(i32::from(early)), "{said}");
            nothing_is_left(clusters.path(), &marks);
        }
    }

    #[test]
    fn the_psql_line_that_is_printed_works_and_is_the_one_of_the_readme() {
        let clusters = clusters();
        let mut child = demo(&[], clusters.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.by_ref().find(|line| line.trim_start().starts_with("psql ")).unwrap();
        // Nobody reads what comes later: the demo must not wait for that.
        let reader = std::thread::spawn(move || lines.for_each(drop));
        let run = format!("{} -XAtc 'SELECT current_user, current_database()'", line.trim());
        let output = Command::new("sh").args(["-c", &run]).output().unwrap();
        signal(&child, Signal::SIGTERM);
        assert!(child.wait().unwrap().success());
        reader.join().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "app|app\n", "{output:?}");

        let (_, address) = line.split_once("//app:").unwrap();
        let (password, address) = address.split_once('@').unwrap();
        let (listen, _) = address.split_once('/').unwrap();
        let shown = line.trim().replace(password, "PASSWORD").replace(listen, "127.0.0.1:6432");
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
        assert!(std::fs::read_to_string(readme).unwrap().lines().any(|line| line == shown), "{shown}");
    }

    #[test]
    fn a_killed_demo_leaves_nothing() {
        let clusters = clusters();
        let mut child = demo(&[], clusters.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("node-1  ")));
        let marks = marks(clusters.path());
        assert_eq!(marks.len(), 2, "one cluster in one folder: {marks:?}");
        child.kill().unwrap();
        child.wait().unwrap();
        nothing_is_left(clusters.path(), &marks);
    }

    #[test]
    fn wrong_usage_is_refused_before_anything_starts() {
        let metako = |options: &[&str]| {
            Command::new(env!("CARGO_BIN_EXE_metako")).arg("demo").args(options).output().unwrap()
        };
        for options in [&["--scenario", "no-such-thing"][..], &["--json"], &["--listen", "nowhere"]] {
            assert_eq!(metako(options).status.code(), Some(2), "{options:?}");
        }
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let output = metako(&["--listen", &address]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&address) && said.contains("--listen"), "{said}");
    }
}
