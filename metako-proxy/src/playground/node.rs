//! One PostgreSQL server of a playground.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::account::Account;
use super::ports::Port;
use super::process::{self, Mark};
use super::{PlaygroundError, Programs, Relay, sql, until};

/// How long a server may take to start, to stop, and its processes to end. Far more than it should be.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// When all clients are gone.
    Smart,
    /// Clients are cut off, everything is written down.
    Fast,
    /// At once; the next start recovers.
    Immediate,
}

/// One server. Clones are the same server; it is killed when its [`super::Cluster`] is dropped.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    cluster_name: String,
    programs: Programs,
    account: Account,
    port: Port,
    links: Option<Links>,
    data_dir: PathBuf,
    log: PathBuf,
    client: tokio_postgres::Config,
    mark: Mark,
    postmaster: Mutex<Option<Child>>,
}

/// The ways to a node that can be cut.
#[derive(Debug)]
struct Links {
    client: Relay,
    replication: Relay,
}

/// What all nodes of a cluster have in common.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) programs: Programs,
    pub(super) account: Account,
    pub(super) root: PathBuf,
    pub(super) tag: String,
    /// Superuser's log-in: everything but the port.
    pub(super) client: tokio_postgres::Config,
    /// Whether there are relays before each node.
    pub(super) links: bool,
}

impl Node {
    /// A node that has no data yet.
    pub(super) fn new(common: &Common, name: String) -> Result<Self, PlaygroundError> {
        let port = Port::reserve()?;
        let links = if common.links {
            Some(Links { client: Relay::new(port.number())?, replication: Relay::new(port.number())? })
        } else {
            None
        };
        let mut client = common.client.clone();
        client.host("127.0.0.1").port(port.number());
        let data_dir = common.root.join(&name);
        let cluster_name = format!("{}-{name}", common.tag);
        Ok(Self(Arc::new(Inner {
            mark: Mark::new(&cluster_name, &data_dir),
            log: common.root.join(format!("{name}.log")),
            programs: common.programs.clone(),
            account: common.account,
            postmaster: Mutex::new(None),
            name,
            cluster_name,
            port,
            links,
            data_dir,
            client,
        })))
    }

    /// Its name: `node-1` is the first primary.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.0.port.number()
    }

    /// The way to it for metako, in a cluster with [`super::Builder::links`].
    ///
    /// # Panics
    ///
    /// In any other cluster.
    pub fn client_link(&self) -> &Relay {
        &self.links().client
    }

    /// The way to it for its standbys, in a cluster with [`super::Builder::links`].
    ///
    /// # Panics
    ///
    /// In any other cluster.
    pub fn replication_link(&self) -> &Relay {
        &self.links().replication
    }

    fn links(&self) -> &Links {
        match &self.0.links {
            Some(links) => links,
            None => panic!("{}: its cluster was built without `links`", self.name()),
        }
    }

    /// Where metako and standbys connect to: the ports of its links, if it has them.
    pub(super) fn ports_of_links(&self) -> Option<(u16, u16)> {
        self.0.links.as_ref().map(|links| (links.client.port(), links.replication.port()))
    }

    /// Its data folder.
    pub fn data_dir(&self) -> &Path {
        &self.0.data_dir
    }

    /// PostgreSQL's programs that it runs.
    pub(super) fn programs(&self) -> &Programs {
        &self.0.programs
    }

    /// `cluster_name`, which its processes show in their titles.
    pub(super) fn cluster_name(&self) -> &str {
        &self.0.cluster_name
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let Ok(log) = std::fs::read(&self.0.log) else { return "(no log)".to_owned() };
        let log = String::from_utf8_lossy(&log);
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Whether its postmaster runs (or is frozen).
    pub fn is_running(&self) -> bool {
        self.postmaster_pid().is_some()
    }

    /// How many processes it has now, those that outlived a killed postmaster included.
    pub fn processes(&self) -> usize {
        self.0.mark.processes().len()
    }

    fn postmaster_pid(&self) -> Option<Pid> {
        let mut postmaster = self.0.postmaster.lock();
        if let Some(Ok(None)) = postmaster.as_mut().map(Child::try_wait) {
            return postmaster.as_ref().and_then(|child| i32::try_from(child.id()).ok()).map(Pid::from_raw);
        }
        *postmaster = None;
        self.foreign_postmaster()
    }

    /// A postmaster that somebody else started on the data folder, such as a hook.
    fn foreign_postmaster(&self) -> Option<Pid> {
        let lock_file = std::fs::read_to_string(self.data_dir().join("postmaster.pid")).ok()?;
        let pid = Pid::from_raw(lock_file.lines().next()?.trim().parse().ok()?);
        self.0.mark.processes().contains(&pid).then_some(pid)
    }

    /// Starts the server and waits until it answers a query. Waits before that until every process of an earlier run
    /// is gone, as PostgreSQL itself would refuse. Blocks for a second or so.
    pub fn start(&self) -> Result<(), PlaygroundError> {
        self.spawn()?;
        self.wait_ready(PATIENCE)
    }

    /// Starts the postmaster and does not wait.
    pub(super) fn spawn(&self) -> Result<(), PlaygroundError> {
        if self.is_running() {
            return Err(self.wrong_state("it runs already"));
        }
        self.wait_gone()?;
        let failed = || PlaygroundError::io(format!("{}: opening {}", self.name(), self.0.log.display()));
        let log = OpenOptions::new().create(true).append(true).open(&self.0.log).map_err(failed())?;
        let child = self.command("postgres", log)?.arg("-D").arg(self.data_dir()).spawn();
        let child = child.map_err(PlaygroundError::io(format!("{}: starting postgres", self.name())))?;
        *self.0.postmaster.lock() = Some(child);
        Ok(())
    }

    fn command(&self, program: &str, log: File) -> Result<Command, PlaygroundError> {
        let mut command = self.0.account.command(&self.0.programs.path(program));
        let second = log.try_clone().map_err(PlaygroundError::io(format!("{}: its log", self.name())))?;
        command.stdin(Stdio::null()).stdout(log).stderr(second);
        Ok(command)
    }

    /// Waits until the server answers a query. Fails at once when its postmaster ends. Blocks.
    pub fn wait_ready(&self, limit: Duration) -> Result<(), PlaygroundError> {
        let mut ended = None;
        let what = format!("{}: the first answer", self.name());
        until(&what, limit, || {
            ended = self.ended();
            if ended.is_some() {
                return Ok(());
            }
            self.sql("SELECT 1").map(drop).map_err(|error| error.to_string())
        })?;
        match ended {
            None => Ok(()),
            Some(status) => Err(PlaygroundError::Ended {
                node: self.name().to_owned(),
                status: status.to_string(),
                log: self.log_tail(20),
            }),
        }
    }

    /// How the postmaster ended, if it did.
    fn ended(&self) -> Option<ExitStatus> {
        self.0.postmaster.lock().as_mut()?.try_wait().ok()?
    }

    /// Stops the server and waits until it is gone. Blocks.
    pub fn stop(&self, mode: StopMode) -> Result<(), PlaygroundError> {
        self.signal_postmaster(match mode {
            StopMode::Smart => Signal::SIGTERM,
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
        })?;
        self.reap()
    }

    /// Kills the postmaster alone, as a crash does: its children notice and end when they next look, a busy one later.
    pub fn kill_9(&self) -> Result<(), PlaygroundError> {
        self.signal_postmaster(Signal::SIGKILL)?;
        self.reap()
    }

    /// Kills every process of the node, frozen ones too, and waits until none is left.
    pub fn kill_9_all(&self) -> Result<(), PlaygroundError> {
        let what = format!("{}: the end of its processes", self.name());
        until(&what, PATIENCE, || {
            // The postmaster first: it makes new ones.
            if let Some(pid) = self.postmaster_pid() {
                process::signal(pid, Signal::SIGKILL).map_err(|error| error.to_string())?;
            }
            let left = self.0.mark.processes();
            for pid in &left {
                process::signal(*pid, Signal::SIGKILL).map_err(|error| error.to_string())?;
            }
            if left.is_empty() && !self.is_running() { Ok(()) } else { Err(format!("{} left", left.len())) }
        })
    }

    /// Stops every process of the node where it stands (`SIGSTOP`): connections stay open, nothing answers. Waits
    /// until all stand.
    pub fn freeze(&self) -> Result<(), PlaygroundError> {
        self.signal_postmaster(Signal::SIGSTOP)?;
        let what = format!("{}: all its processes frozen", self.name());
        until(&what, PATIENCE, || {
            let moving: Vec<Pid> =
                self.0.mark.processes().into_iter().filter(|pid| !process::is_stopped(*pid)).collect();
            for pid in &moving {
                process::signal(*pid, Signal::SIGSTOP).map_err(|error| error.to_string())?;
            }
            if moving.is_empty() { Ok(()) } else { Err(format!("{} run", moving.len())) }
        })
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self) -> Result<(), PlaygroundError> {
        for pid in self.0.mark.processes() {
            process::signal(pid, Signal::SIGCONT).map_err(self.io("thawing it"))?;
        }
        Ok(())
    }

    fn signal_postmaster(&self, signal: Signal) -> Result<(), PlaygroundError> {
        let pid = self.postmaster_pid().ok_or_else(|| self.wrong_state("it does not run"))?;
        process::signal(pid, signal).map_err(self.io(&format!("sending {signal} to it")))
    }

    fn reap(&self) -> Result<(), PlaygroundError> {
        until(&format!("{}: the end of its postmaster", self.name()), PATIENCE, || {
            if self.is_running() { Err("it runs".to_owned()) } else { Ok(()) }
        })
    }

    /// Waits until no process of the node is left. Blocks.
    pub fn wait_gone(&self) -> Result<(), PlaygroundError> {
        until(&format!("{}: the end of its processes", self.name()), PATIENCE, || match self.processes() {
            0 => Ok(()),
            left => Err(format!("{left} left")),
        })
    }

    /// The superuser's log-in at this node.
    pub fn client_config(&self) -> tokio_postgres::Config {
        self.0.client.clone()
    }

    /// Logs in to the database `postgres` as the superuser, past any proxy.
    pub async fn connect(&self) -> Result<tokio_postgres::Client, PlaygroundError> {
        self.connect_to("postgres").await
    }

    /// Logs in to a database as the superuser, past any proxy.
    pub async fn connect_to(&self, database: &str) -> Result<tokio_postgres::Client, PlaygroundError> {
        let mut config = self.client_config();
        config.dbname(database);
        sql::connect(&config).await.map_err(|source| PlaygroundError::Sql {
            node: self.name().to_owned(),
            sql: "log-in".to_owned(),
            source,
        })
    }

    /// Runs SQL as the superuser on a connection of its own; the first column of the first row, as text. Blocks.
    pub fn sql(&self, text: &str) -> Result<Option<String>, PlaygroundError> {
        let outcome = sql::block_on(async {
            let client = self.connect().await?;
            sql::first_value(&client, text).await.map_err(|source| PlaygroundError::Sql {
                node: self.name().to_owned(),
                sql: text.to_owned(),
                source,
            })
        });
        outcome.map_err(self.io("a runtime to ask it"))?
    }

    /// Removes the System V segment that a killed postmaster leaves: nothing else would, once the data is gone.
    pub(super) fn remove_shared_memory(&self) {
        let Ok(lock_file) = std::fs::read_to_string(self.data_dir().join("postmaster.pid")) else { return };
        let id = lock_file.lines().nth(6).and_then(|line| line.split_ascii_whitespace().nth(1));
        let Some(id) = id else { return };
        let removed = Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status();
        if let Err(error) = removed {
            eprintln!("{}: shared memory segment {id} is left (ipcrm: {error})", self.name());
        }
    }

    fn wrong_state(&self, what: &str) -> PlaygroundError {
        PlaygroundError::WrongState { node: self.name().to_owned(), what: what.to_owned() }
    }

    fn io(&self, what: &str) -> impl FnOnce(std::io::Error) -> PlaygroundError + use<> {
        PlaygroundError::io(format!("{}: {what}", self.name()))
    }

    /// `primary_conninfo` and slot of a standby of this node.
    pub(super) fn standby_settings(&self, standby: &Node, user: &str, password: &str) -> String {
        let mut settings = String::new();
        let _ = writeln!(
            settings,
            "primary_conninfo = 'host=127.0.0.1 port={} user={user} password={password} application_name={} \
             sslmode=disable'",
            self.ports_of_links().map_or(self.port(), |(_, replication)| replication),
            standby.name()
        );
        let _ = writeln!(settings, "primary_slot_name = '{}'", standby.slot_name());
        settings
    }

    /// The name of the slot that it uses as a standby: its own name with the letters that slots may have.
    pub fn slot_name(&self) -> String {
        self.name().replace('-', "_")
    }
}
