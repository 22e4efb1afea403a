//! How a throw-away cluster is made.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustls::crypto::aws_lc_rs;

use super::account::Account;
use super::cluster::Passwords;
use super::folder::Folder;
use super::node::{Common, PATIENCE};
use super::{Cluster, Node, PlaygroundError, Programs};

/// Settings of every node. Those that failover by SQL has to change are not on the command line, where `ALTER SYSTEM`
/// could not reach them.
const SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
max_connections = 100
shared_buffers = '16MB'
dynamic_shared_memory_type = mmap
wal_level = replica
max_wal_senders = 10
max_replication_slots = 10
hot_standby = on
wal_log_hints = on
wal_keep_size = '64MB'
wal_retrieve_retry_interval = '200ms'
wal_receiver_timeout = '2s'
fsync = on
password_encryption = 'scram-sha-256'
log_line_prefix = '%m [%p] %q%a '
log_timezone = 'UTC'
";

/// What `max_wal_senders` allows, with one to spare for a base backup.
const REPLICAS_MAX: usize = 9;

/// Describes a cluster to be started.
#[derive(Debug, Clone)]
pub struct Builder {
    replicas: usize,
    acks: Option<u32>,
    settings: Vec<(String, String)>,
    major: Option<u32>,
    links: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// One primary with two asynchronous replicas, on the newest PostgreSQL that is installed.
    pub fn new() -> Self {
        Self { replicas: 2, acks: None, settings: Vec::new(), major: None, links: false }
    }

    /// So many replicas, from 0 to 9.
    pub fn replicas(mut self, count: usize) -> Self {
        self.replicas = count;
        self
    }

    /// Commits wait until any `acks` replicas have them (`synchronous_standby_names = 'ANY acks (...)'`).
    pub fn synchronous(mut self, acks: u32) -> Self {
        self.acks = Some(acks);
        self
    }

    /// A line more in every node's `postgresql.conf`; the value as it stands inside the quotes.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The major version of PostgreSQL, instead of the newest one.
    pub fn major(mut self, major: u32) -> Self {
        self.major = Some(major);
        self
    }

    /// Two ways to each node that can be cut: [`Node::client_link`] for who connects as [`Cluster::metako_yaml`] says, and
    /// [`Node::replication_link`] for its standbys.
    pub fn links(mut self) -> Self {
        self.links = true;
        self
    }

    /// Starts it and returns when every replica streams. Blocks for some seconds; inside tokio use [`Cluster::start`].
    pub fn start_blocking(self) -> Result<Cluster, PlaygroundError> {
        self.check()?;
        let programs = Programs::find(self.major)?;
        let account = Account::choose()?;
        let folder = Folder::new(account)?;
        let passwords = Passwords {
            superuser: random_password(),
            replication: random_password(),
            app: random_password(),
        };
        let mut client = tokio_postgres::Config::new();
        client.user(Cluster::SUPERUSER).password(&passwords.superuser).dbname("postgres");
        let common = Common {
            programs,
            account,
            root: folder.path().to_owned(),
            tag: folder.tag(),
            client,
            links: self.links,
        };
        let nodes = (1..=self.replicas + 1).map(|number| Node::new(&common, format!("node-{number}")));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        // From here on everything that runs is taken down by the cluster's `Drop`, whatever fails.
        let cluster = Cluster::new(folder, nodes, passwords, self.acks);
        self.make_primary(&common, &cluster)?;
        self.start_nodes(&common, &cluster)?;
        Ok(cluster)
    }

    fn check(&self) -> Result<(), PlaygroundError> {
        let wrong = |what: String| Err(PlaygroundError::WrongState { node: "the cluster".to_owned(), what });
        if self.replicas > REPLICAS_MAX {
            return wrong(format!("{} replicas are more than {REPLICAS_MAX}", self.replicas));
        }
        match self.acks {
            Some(acks) if !(1..=self.replicas).contains(&(acks as usize)) => {
                wrong(format!("no commit can wait for {acks} of {} replicas", self.replicas))
            }
            _ => Ok(()),
        }
    }

    fn make_primary(&self, common: &Common, cluster: &Cluster) -> Result<(), PlaygroundError> {
        let primary = &cluster.nodes()[0];
        let password_file = common.root.join("password");
        std::fs::write(&password_file, cluster.superuser_password())
            .map_err(PlaygroundError::io(format!("writing {}", password_file.display())))?;
        common.account.own(&password_file)?;
        let mut initdb = common.account.command(&common.programs.path("initdb"));
        initdb.arg("-D").arg(primary.data_dir());
        initdb.args(["-U", Cluster::SUPERUSER, "--auth=scram-sha-256"]);
        initdb.arg("--pwfile").arg(&password_file);
        initdb.args(["--encoding=UTF8", "--locale=C", "--no-sync"]);
        run("initdb", initdb, "")?;
        let hba = "local all all scram-sha-256\n\
                   host all all 127.0.0.1/32 scram-sha-256\n\
                   host replication all 127.0.0.1/32 scram-sha-256\n";
        write(primary, "pg_hba.conf", hba)?;
        append(primary, "postgresql.conf", &self.common_settings(common))?;
        let passwords = cluster.passwords();
        let statements = format!(
            "CREATE ROLE {} REPLICATION LOGIN PASSWORD '{}'\n\
             CREATE ROLE {app} LOGIN PASSWORD '{}'\n\
             CREATE DATABASE {} OWNER {app}\n",
            Cluster::REPLICATION_USER,
            passwords.replication,
            passwords.app,
            Cluster::DATABASE,
            app = Cluster::APP_USER,
        );
        let mut single = common.account.command(&common.programs.path("postgres"));
        single.args(["--single", "-c", "exit_on_error=on", "-D"]).arg(primary.data_dir()).arg("postgres");
        run("postgres --single", single, &statements)
    }

    /// Copies the primary while it is down, and starts all.
    fn start_nodes(&self, common: &Common, cluster: &Cluster) -> Result<(), PlaygroundError> {
        let (primary, standbys) = cluster.nodes().split_first().expect("a cluster has a primary");
        for standby in standbys {
            make_replica(common, cluster, primary, standby)?;
        }
        append(primary, "postgresql.conf", &own_settings(primary))?;
        primary.start()?;
        let slots: Vec<String> = standbys
            .iter()
            .map(|standby| format!("pg_create_physical_replication_slot('{}', true)", standby.slot_name()))
            .collect();
        if !slots.is_empty() {
            primary.sql(&format!("SELECT {}", slots.join(", ")))?;
        }
        std::thread::scope(|scope| {
            let starts: Vec<_> = standbys.iter().map(|standby| scope.spawn(|| standby.start())).collect();
            starts.into_iter().try_for_each(|start| match start.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })?;
        let names: Vec<&str> = standbys.iter().map(Node::name).collect();
        cluster.wait_streaming(primary, &names, PATIENCE)?;
        if let Some(acks) = self.acks {
            let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
            let rule = format!("ANY {acks} ({})", quoted.join(", "));
            primary.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{rule}'"))?;
            primary.sql("SELECT pg_reload_conf()")?;
            wait_quorum(primary, names.len())?;
        }
        Ok(())
    }

    fn common_settings(&self, common: &Common) -> String {
        let mut settings = SETTINGS.to_owned();
        let _ = writeln!(settings, "unix_socket_directories = '{}'", common.root.display());
        for (name, value) in &self.settings {
            let _ = writeln!(settings, "{name} = '{value}'");
        }
        settings
    }
}

/// What differs between nodes, and what a copy must be told again.
fn own_settings(node: &Node) -> String {
    format!("port = {}\ncluster_name = '{}'\n", node.port(), node.cluster_name())
}

fn make_replica(
    common: &Common,
    cluster: &Cluster,
    primary: &Node,
    standby: &Node,
) -> Result<(), PlaygroundError> {
    let mut copy = common.account.command(Path::new("cp"));
    copy.arg("-a").arg("--").args([primary.data_dir(), standby.data_dir()]);
    run("cp", copy, "")?;
    append(standby, "postgresql.conf", &own_settings(standby))?;
    let password = &cluster.passwords().replication;
    let upstream = primary.standby_settings(standby, Cluster::REPLICATION_USER, password);
    append(standby, "postgresql.auto.conf", &upstream)?;
    write(standby, "standby.signal", "")?;
    common.account.own(&standby.data_dir().join("standby.signal"))
}

/// The standbys report themselves as voters: from now on every commit waits for them.
fn wait_quorum(primary: &Node, voters: usize) -> Result<(), PlaygroundError> {
    super::until("the synchronous standbys", PATIENCE, || {
        let count = primary
            .sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'")
            .map_err(|error| error.to_string())?;
        if count.as_deref() == Some(voters.to_string().as_str()) { Ok(()) } else { Err(format!("{count:?}")) }
    })
}

fn append(node: &Node, file: &str, text: &str) -> Result<(), PlaygroundError> {
    let path = node.data_dir().join(file);
    let opened = std::fs::OpenOptions::new().append(true).open(&path);
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(PlaygroundError::io(format!("writing {}", path.display())))
}

fn write(node: &Node, file: &str, text: &str) -> Result<(), PlaygroundError> {
    let path = node.data_dir().join(file);
    std::fs::write(&path, text).map_err(PlaygroundError::io(format!("writing {}", path.display())))
}

/// Runs a program to its end, with this on its standard input.
fn run(program: &str, mut command: Command, input: &str) -> Result<(), PlaygroundError> {
    let failed = || PlaygroundError::io(format!("running {program}"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed())?;
    // It is far less than a pipe holds; a program that ended before it read it says why below.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed())?;
    if output.status.success() {
        return Ok(());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stdout));
    Err(PlaygroundError::Program {
        program: program.to_owned(),
        status: output.status.to_string(),
        output: said.trim_end().to_owned(),
    })
}

/// 24 hexadecimal digits: other users of this machine can reach the port.
fn random_password() -> String {
    let mut bytes = [0_u8; 12];
    // Fails only where the system has no entropy at all; without it no password may be made.
    aws_lc_rs::default_provider().secure_random.fill(&mut bytes).expect("the system gives no entropy");
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
