//! `metako demo`: a throw-away cluster with metako in front of it, to be used or to be hurt.

mod interrupt;
mod launch;
mod ledger;
mod outcome;
mod scenario;
mod screen;
mod session;
mod traffic;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use self::interrupt::Interrupt;
pub(crate) use self::launch::run;
pub use self::outcome::Outcome;
use self::screen::Screen;
use crate::control::Status;
use crate::playground::{Builder, Cluster, PlaygroundError};

/// How long metako may take to find the primary and open writes.
const OPEN_LIMIT: Duration = Duration::from_mins(1);
/// What stops and rejoins nodes on this machine.
const HOOKS: &str = include_str!("../../../configs/hooks/local.sh");
/// How often the state is looked at to be shown.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// Options of `metako demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoOptions {
    /// What to do to the cluster while clients use it; without it the cluster is yours until Ctrl-C.
    #[arg(long, value_enum)]
    pub scenario: Option<Scenario>,
    /// Commits wait for one replica, so that no acknowledged row can be lost with one server.
    #[arg(long)]
    pub synchronous: bool,
    /// Print the outcome of the scenario as one JSON object on the last line of standard output.
    #[arg(long, requires = "scenario")]
    pub json: bool,
    /// Where metako listens.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:6432")]
    pub listen: SocketAddr,
}

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// SIGKILL to the primary's postmaster while 8 clients write and 4 read.
    KillPrimary,
    /// SIGSTOP to all processes of the primary, and SIGCONT when another one serves.
    FreezePrimary,
    /// A planned change of primary.
    Switchover,
}

impl Scenario {
    const fn name(self) -> &'static str {
        match self {
            Self::KillPrimary => "kill-primary",
            Self::FreezePrimary => "freeze-primary",
            Self::Switchover => "switchover",
        }
    }

    /// What is done to the primary, for people.
    fn what(self, primary: &str) -> String {
        match self {
            Self::KillPrimary => {
                format!("SIGKILL to the postmaster of {primary} (its other processes end when they notice)")
            }
            Self::FreezePrimary => format!("SIGSTOP to all processes of {primary}"),
            Self::Switchover => format!("switchover from {primary} to another node"),
        }
    }

    /// How many replicas stream from the new primary when all is done.
    fn replicas(self, cluster: &Cluster) -> usize {
        match self {
            Self::KillPrimary | Self::FreezePrimary => cluster.nodes().len() - 2,
            Self::Switchover => cluster.nodes().len() - 1,
        }
    }
}

/// The metako under demonstration, in this process.
pub trait Metako: Send {
    /// What `metako status` would show.
    fn status(&self) -> Status;
    /// Begins a switchover to the best node.
    fn switchover(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// Stops it.
    fn shutdown(self) -> impl Future<Output = ()> + Send;
}

/// Why a demo ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The cluster.
    #[error(transparent)]
    Playground(#[from] PlaygroundError),
    /// The address is taken, or is not ours.
    #[error("cannot listen on {listen}: {source}; free it, or give another address with --listen")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// metako itself.
    #[error("metako did not start: {0}")]
    Start(String),
    /// Signals cannot be caught.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
    /// The configuration cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Standard output is gone.
    #[error("cannot write to standard output: {0}")]
    Print(#[from] std::io::Error),
    /// metako found no primary.
    #[error("metako did not open writes within {OPEN_LIMIT:?}: {reason}")]
    NotOpen {
        /// What it waits for.
        reason: String,
    },
    /// A statement of the demo itself.
    #[error("{what}: {source}")]
    Sql {
        /// What it was for.
        what: &'static str,
        /// Why it failed.
        source: tokio_postgres::Error,
    },
    /// metako does not begin the switchover.
    #[error("no switchover: {0}")]
    Switchover(String),
    /// The cluster could not be taken down.
    #[error("clearing up the cluster failed: {0}")]
    Clear(String),
    /// A signal.
    #[error("interrupted: everything that was started has been stopped")]
    Interrupted,
}

/// Runs the demo. `launch` starts metako with the configuration file that it is given. A scenario has an outcome; without
/// one the demo runs until a signal comes. Whatever happens, nothing that was started is left.
pub async fn run_with<M: Metako>(
    options: DemoOptions,
    launch: impl AsyncFnOnce(&Path) -> Result<M, String>,
) -> Result<Option<Outcome>, DemoError> {
    // Asked before the cluster is started, because that takes some seconds.
    TcpListener::bind(options.listen)
        .map_err(|source| DemoError::Listen { listen: options.listen, source })
        .map(drop)?;
    let mut interrupt = Interrupt::listen().map_err(DemoError::Signals)?;
    let mut screen = Screen::new(options.json);
    let cluster = start_cluster(&options, &mut screen, &mut interrupt).await?;
    let outcome = with_cluster(&options, &cluster, launch, &mut screen, &mut interrupt).await;
    // Killing and removing blocks for a moment; what the demo ended with is told after the clearing up.
    if let Err(error) = tokio::task::spawn_blocking(move || drop(cluster)).await {
        return Err(DemoError::Clear(error.to_string()));
    }
    let outcome = outcome?;
    if let (Some(outcome), true) = (&outcome, options.json) {
        screen::json(outcome)?;
    }
    Ok(outcome)
}

async fn start_cluster(
    options: &DemoOptions,
    screen: &mut Screen,
    interrupt: &mut Interrupt,
) -> Result<Cluster, DemoError> {
    let mut builder = Builder::new().replicas(2);
    if options.synchronous {
        builder = builder.synchronous(1);
    }
    screen.line("starting PostgreSQL: one primary, two streaming replicas ...")?;
    let mut start = std::pin::pin!(Cluster::start(builder));
    tokio::select! {
        cluster = &mut start => Ok(cluster?),
        () = interrupt.wait() => {
            screen.line("interrupted: waiting for the cluster's start, to take it down ...")?;
            drop(start.await);
            Err(DemoError::Interrupted)
        }
    }
}

async fn with_cluster<M: Metako>(
    options: &DemoOptions,
    cluster: &Cluster,
    launch: impl AsyncFnOnce(&Path) -> Result<M, String>,
    screen: &mut Screen,
    interrupt: &mut Interrupt,
) -> Result<Option<Outcome>, DemoError> {
    let path = cluster.folder().join("metako.yaml");
    let mut yaml = cluster.metako_yaml(&options.listen.to_string());
    if matches!(options.scenario, None | Some(Scenario::Switchover)) {
        let script = cluster.folder().join("hook.sh");
        // The servers' account runs it, which may be another.
        write(&script, HOOKS, 0o644).map_err(|source| DemoError::Write { path: script.clone(), source })?;
        yaml.push_str(&cluster.hooks_yaml(&script));
    }
    // It holds passwords.
    write(&path, &yaml, 0o600).map_err(|source| DemoError::Write { path: path.clone(), source })?;
    let metako = launch(&path).await.map_err(DemoError::Start)?;
    let outcome = tokio::select! {
        outcome = with_metako(options, cluster, &metako, screen) => outcome,
        () = interrupt.wait() => match options.scenario {
            // Ctrl-C is how this one ends.
            None => Ok(None),
            Some(_) => Err(DemoError::Interrupted),
        },
    };
    // A reader that went away is no reason to leave metako running.
    let told = screen.line("stopping ...");
    metako.shutdown().await;
    told?;
    outcome
}

async fn with_metako<M: Metako>(
    options: &DemoOptions,
    cluster: &Cluster,
    metako: &M,
    screen: &mut Screen,
) -> Result<Option<Outcome>, DemoError> {
    wait_open(metako).await?;
    screen.line(&how_to_connect(options, cluster))?;
    let Some(scenario) = options.scenario else {
        screen.line("Ctrl-C stops everything and removes the folder.\n")?;
        let mut clock = tokio::time::interval(SHOW_EVERY);
        loop {
            clock.tick().await;
            for node in cluster.nodes() {
                // One that was killed by hand is a child of this process, and in the way of its rejoin until it is reaped.
                node.is_running();
            }
            screen.nodes(&metako.status())?;
        }
    };
    let outcome = scenario::run(options, scenario, cluster, metako, screen).await?;
    screen.line(&outcome.to_string())?;
    Ok(Some(outcome))
}

async fn wait_open<M: Metako>(metako: &M) -> Result<(), DemoError> {
    let open = async {
        while metako.status().primary.is_none() {
            tokio::time::sleep(SHOW_EVERY).await;
        }
    };
    tokio::time::timeout(OPEN_LIMIT, open).await.map_err(|_| DemoError::NotOpen {
        reason: metako.status().reason.unwrap_or_else(|| "no reason is known".to_owned()),
    })
}

fn how_to_connect(options: &DemoOptions, cluster: &Cluster) -> String {
    let (host, port) = (options.listen.ip(), options.listen.port());
    let (user, password, database) = (Cluster::APP_USER, cluster.app_password(), Cluster::DATABASE);
    format!(
        "metako listens on {host}:{port}. Connect with user {user}, password {password}, database {database}:\n\n\
         \x20   psql \"postgresql://{user}:{password}@{host}:{port}/{database}\"\n\n\
         Data, logs and metako.yaml are in {}.",
        cluster.folder().display()
    )
}

fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())
}
