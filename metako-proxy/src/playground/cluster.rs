//! A whole throw-away cluster.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::folder::Folder;
use super::{Builder, Node, PlaygroundError, until};

/// A primary and its replicas. Dropping it kills all of their processes and removes the folder.
#[derive(Debug)]
pub struct Cluster {
    // Dropped after `Drop` has killed the servers.
    folder: Folder,
    nodes: Vec<Node>,
    passwords: Passwords,
    acks: Option<u32>,
}

/// Of each node's log, when a test panics.
const LINES_SHOWN: usize = 40;
/// Of those who may log in.
#[derive(Debug, Clone)]
pub(super) struct Passwords {
    pub(super) superuser: String,
    pub(super) replication: String,
    pub(super) app: String,
}

impl Cluster {
    /// The superuser, for control connections.
    pub const SUPERUSER: &'static str = "postgres";
    /// The user of standbys.
    pub const REPLICATION_USER: &'static str = "replicator";
    /// An ordinary user, owner of [`Self::DATABASE`].
    pub const APP_USER: &'static str = "app";
    /// The database of applications.
    pub const DATABASE: &'static str = "app";

    /// Starts what the builder describes and resolves when every replica streams. Dropping the future does not leave
    /// anything behind: the start ends in the background and is taken down again.
    pub async fn start(builder: Builder) -> Result<Self, PlaygroundError> {
        match tokio::task::spawn_blocking(move || builder.start_blocking()).await {
            Ok(outcome) => outcome,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(PlaygroundError::Io {
                    what: "starting a cluster".to_owned(),
                    source: std::io::Error::other(error),
                }),
            },
        }
    }

    pub(super) fn new(folder: Folder, nodes: Vec<Node>, passwords: Passwords, acks: Option<u32>) -> Self {
        Self { folder, nodes, passwords, acks }
    }

    /// The nodes; the first one started as primary.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn node(&self, name: &str) -> &Node {
        match self.nodes.iter().find(|node| node.name() == name) {
            Some(node) => node,
            None => panic!("no node `{name}` in this cluster"),
        }
    }

    pub(super) fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    /// The folder with data, sockets and logs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Password of [`Self::SUPERUSER`].
    pub fn superuser_password(&self) -> &str {
        &self.passwords.superuser
    }

    /// Password of [`Self::APP_USER`].
    pub fn app_password(&self) -> &str {
        &self.passwords.app
    }

    /// Waits until exactly these standbys (in any order) stream from `upstream`. Blocks.
    pub fn wait_streaming(
        &self,
        upstream: &Node,
        standbys: &[&str],
        limit: Duration,
    ) -> Result<(), PlaygroundError> {
        let mut wanted = standbys.to_vec();
        wanted.sort_unstable();
        let wanted = wanted.join(",");
        let what = format!("streaming of {wanted} from {}", upstream.name());
        until(&what, limit, || match streaming(upstream) {
            Ok(names) if names == wanted => Ok(()),
            Ok(names) => Err(format!("[{names}]")),
            Err(error) => Err(error.to_string()),
        })
    }

    /// A configuration of metako for this cluster, listening on `listen` (`host:port`), with its state in the cluster's
    /// folder.
    pub fn metako_yaml(&self, listen: &str) -> String {
        let mut yaml = String::new();
        let state = self.folder().join("metako");
        let _ =
            writeln!(yaml, "listen: {listen}\nstate_dir: {}\ncluster: playground\nnodes:", state.display());
        for (index, node) in self.nodes.iter().enumerate() {
            let (port, replication) = match node.ports_of_links() {
                Some((client, standbys)) => {
                    (client, format!(", replication: {{ host: 127.0.0.1, port: {standbys} }}"))
                }
                None => (node.port(), String::new()),
            };
            let _ = writeln!(
                yaml,
                "  - {{ name: {}, host: 127.0.0.1, port: {port}, role: {}, username: {}, password: \"{}\", \
                 database: {}, sslmode: disable, pgdata: \"{}\"{replication} }}",
                node.name(),
                if index == 0 { "primary" } else { "replica" },
                Self::SUPERUSER,
                self.superuser_password(),
                Self::DATABASE,
                node.data_dir().display(),
            );
        }
        let _ = writeln!(
            yaml,
            "users:\n  - {{ name: {}, password: \"{}\", databases: [{}] }}",
            Self::APP_USER,
            self.app_password(),
            Self::DATABASE
        );
        if let Some(acks) = self.acks {
            let _ = writeln!(yaml, "failover: {{ synchronous: any {acks} }}");
        }
        yaml
    }

    /// The section `hooks` of a configuration in which `script` serves both.
    pub fn hooks_yaml(&self, script: &Path) -> String {
        let (bin, script) = (self.nodes[0].programs().folder().display(), script.display());
        let command = format!("{{ command: [env, \"PG_BIN={bin}\", sh, \"{script}\"] }}");
        format!("hooks:\n  stop: {command}\n  rejoin: {command}\n")
    }
}

/// Names of the standbys that stream from a node, sorted, with commas between.
fn streaming(upstream: &Node) -> Result<String, PlaygroundError> {
    let names = upstream.sql(
        "SELECT coalesce(string_agg(application_name, ',' ORDER BY application_name), '') \
         FROM pg_stat_replication WHERE state = 'streaming'",
    )?;
    Ok(names.unwrap_or_default())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The folder goes with the logs, and they often tell what a test saw.
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("--- the log of {} ends ---\n{}", node.name(), node.log_tail(LINES_SHOWN));
            }
        }
        for node in &self.nodes {
            if let Err(error) = node.kill_9_all() {
                eprintln!("{error}");
            }
            node.remove_shared_memory();
        }
    }
}
