//! The assembly: configuration, control plane, data plane, admin socket; start, reload, end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::{Fuse, FusedFuture};
use metako_core::cluster::{ClusterView, OperatorCommand};
use metako_core::config::{Config, changes};
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, Notify, oneshot, watch};

use crate::admin::{self, Admin, Order, Reply};
use crate::check::load_file;
use crate::cli::Exit;
use crate::control::{
    Accepted, ControlConfig, Driver, DriverHandle, FileJournal, History, Parts, PgServers, Recorder,
    Segments, Status, Writer,
};
use crate::data::DataPlane;
use crate::env::{Env, Listener, TokioEnv};
use crate::metrics::{Facts, Figures, Format};
use crate::shared::{EvidenceSender, Traffic, ViewCell};
use crate::{control, descriptors, logging, metrics, state_dir};

/// How long a shutdown waits for the last decisions to reach the disk.
const ENDING_MAX: Duration = Duration::from_secs(5);
/// How long clients may finish their transactions after SIGTERM.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Decisions that `metako status` shows.
const DECISIONS_SHOWN: usize = 20;

/// `metako run`: runs until SIGTERM or SIGINT.
pub(crate) async fn run(path: &Path) -> Exit {
    // First of all: a SIGHUP that comes during the start must not end the process.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("metako: cannot listen for signals: {error}");
            return Exit::Failed;
        }
    };
    let loaded = match load_file(path) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return Exit::Usage;
        }
    };
    if let Err(problem) = logging::start(&loaded.config.log) {
        eprintln!("metako: {problem}");
        return Exit::Usage;
    }
    for warning in &loaded.warnings {
        tracing::warn!("{}:{warning}", loaded.file);
    }
    descriptors::raise_limit(&loaded.config);
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let env = match TokioEnv::with_workers(workers) {
        Ok(env) => env,
        Err(error) => {
            eprintln!("metako: cannot start {workers} threads for clients: {error}");
            return Exit::Failed;
        }
    };
    let app = match App::start(env, loaded.config, path).await {
        Ok(app) => app,
        Err(error) => {
            eprintln!("metako: {error}");
            return Exit::Failed;
        }
    };
    let exit = follow_signals(&app, &mut signals).await;
    let again = async {
        signals.stop().await;
        tracing::warn!("asked a second time to stop: open transactions are cut off");
    };
    app.shutdown_until(again).await;
    exit
}

/// The signals that a running metako obeys.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on none of them ends the process by itself.
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Resolves when metako is asked to stop. Cancellation-safe.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Reloads at each SIGHUP until a stop is asked for, also while a reload is under way. Fails when the control plane has
/// ended by itself: without it no failure of a node would be noticed, and a supervisor can start metako again.
async fn follow_signals(app: &App<TokioEnv>, signals: &mut Signals) -> Exit {
    let mut reload = std::pin::pin!(Fuse::terminated());
    loop {
        let idle = reload.is_terminated();
        tokio::select! {
            // What came of it is logged by the reload itself. Signals that come meanwhile count as one more.
            _ = &mut reload, if !idle => {}
            _ = signals.hangup.recv(), if idle => reload.set(app.reload().fuse()),
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            () = app.inner.control.ended() => {
                tracing::error!("the cluster controller has ended by itself: metako stops");
                return Exit::Failed;
            }
        }
    }
    tracing::info!("asked to stop: no new clients; open transactions may end within {DRAIN_MAX:?}");
    Exit::Done
}

/// Why metako cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be used.
    #[error(transparent)]
    StateDir(#[from] state_dir::StateDirError),
    /// The journal is in use, or another cluster's.
    #[error(transparent)]
    Control(#[from] control::StartError),
    /// A strategy's options do not go together.
    #[error("a strategy cannot be built: {0}")]
    Strategy(#[from] metako_core::plugin::BuildError),
    /// A file of the state directory cannot be opened.
    #[error("the history in {} cannot be opened: {source}", path.display())]
    History {
        /// The state directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The data plane cannot work by the configuration.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// An address or socket cannot be listened on.
    #[error("cannot listen on {address}: {source}; free it, or change `{key}`")]
    Bind {
        /// The address or path.
        address: String,
        /// The key of the configuration.
        key: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// A running metako.
pub struct App<E: Env> {
    inner: Arc<Inner<E>>,
    addresses: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    history: Arc<History>,
    history_written: oneshot::Receiver<()>,
    /// None where nothing is recorded.
    record_written: Option<oneshot::Receiver<()>>,
    socket_closed: oneshot::Receiver<()>,
}

struct Inner<E: Env> {
    path: PathBuf,
    config: ArcSwap<Config>,
    view: Arc<ViewCell>,
    traffic: Arc<Traffic>,
    data: Arc<DataPlane<E>>,
    control: DriverHandle,
    /// One reload at a time.
    reloading: Mutex<()>,
    reloads: Reloads,
    env: E,
    /// When it was started, since 1970.
    started: Duration,
    history: Arc<History>,
    /// Events that are not in the incident record.
    events_lost: Arc<AtomicU64>,
    figures: Arc<Figures>,
    /// `log.report_interval` has another value.
    report_changed: Notify,
}

/// Reloads since the start.
#[derive(Debug, Default)]
struct Reloads {
    done: AtomicU64,
    refused: AtomicU64,
}

impl<E: Env> App<E> {
    /// Starts everything. `path` is the file that the configuration came from, to be read again by a reload.
    pub async fn start(env: E, config: Config, path: &Path) -> Result<Self, StartError> {
        let state_dir = state_dir::locate(config.state_dir.as_deref(), |name| std::env::var(name).ok());
        state_dir::prepare(&state_dir)?;
        let journal = FileJournal::open(&state_dir).map_err(control::StartError::from)?;
        let (history, history_writer) = History::open(&state_dir)
            .map_err(|source| StartError::History { path: state_dir.clone(), source })?;
        let (record, record_writer) = open_record(&state_dir);
        let events_lost = record.lost();
        let config = Arc::new(config);
        let view = Arc::new(ViewCell::new(ClusterView::empty("metako is starting")));
        let traffic = Arc::new(Traffic::default());
        let figures = Arc::new(Figures::new(env.now()));
        let (evidence, losses) = EvidenceSender::channel();
        let data = DataPlane::new(
            env.clone(),
            Arc::clone(&config),
            Arc::clone(&view),
            evidence.clone(),
            Arc::clone(&traffic),
        )?;
        let parts = Parts {
            config: ControlConfig::build(&config)?,
            servers: Arc::new(PgServers::new(env.clone()).with_tls(data.server_tls()).telling(evidence)),
            journal: Arc::new(journal),
            history: Arc::clone(&history),
            figures: Arc::clone(&figures),
            record,
            view: Arc::clone(&view),
            fence: data.fence(),
            evidence: losses,
        };
        let (driver, control) = Driver::start(env.clone(), parts).await?;

        let (listeners, addresses) = listen(&env, &config).await?;
        let socket_path = state_dir::admin_socket(config.admin.socket.as_deref(), &state_dir);
        let socket = env.bind_local(&socket_path).await.map_err(|source| StartError::Bind {
            address: socket_path.display().to_string(),
            key: "admin.socket",
            source,
        })?;

        let history_written = spawn_with_end(&env, history_writer.run());
        let record_written = record_writer.map(|writer| spawn_with_end(&env, writer.run()));
        env.spawn(driver.run());
        let (stop, stopping) = watch::channel(false);
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            config: ArcSwap::from(config),
            view,
            traffic,
            data: Arc::clone(&data),
            control,
            reloading: Mutex::new(()),
            reloads: Reloads::default(),
            env: env.clone(),
            started: env.wall_clock(),
            history: Arc::clone(&history),
            events_lost,
            figures,
            report_changed: Notify::new(),
        });
        for listener in listeners {
            env.spawn_data(until(stopping.clone(), Arc::clone(&data).serve(listener)));
        }
        let owner = nix::unistd::geteuid().as_raw();
        let admin: Arc<dyn Admin> = Arc::clone(&inner) as Arc<dyn Admin>;
        let serving = until(stopping.clone(), admin::serve(env.clone(), socket, owner, admin));
        let socket_closed = spawn_with_end(&env, serving);
        env.spawn(until(stopping, report(Arc::clone(&inner))));
        for address in &addresses {
            tracing::info!(%address, admin = %socket_path.display(), "metako listens");
        }
        Ok(Self { inner, addresses, stop, history, history_written, record_written, socket_closed })
    }

    /// The addresses that clients can connect to.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The cluster view.
    pub fn view(&self) -> &Arc<ViewCell> {
        &self.inner.view
    }

    /// State of proxy and cluster.
    pub fn status(&self) -> Status {
        self.inner.status()
    }

    /// Begins what an operator orders; what comes of it shows in the state.
    ///
    /// # Errors
    ///
    /// Why it is refused.
    pub async fn operate(&self, command: OperatorCommand) -> Result<(), String> {
        self.inner.control.operator(command, false).await.map(drop).map_err(|error| error.to_string())
    }

    /// Reads the configuration again; see [`Admin::reload`].
    pub async fn reload(&self) -> Reply {
        self.inner.reload().await
    }

    /// Stops accepting, lets open transactions end for some seconds, closes the rest, and stops the control plane.
    pub async fn shutdown(self) {
        self.shutdown_until(std::future::pending()).await;
    }

    /// As [`Self::shutdown`], but transactions that are still open when `hurry` resolves are cut off.
    async fn shutdown_until(self, hurry: impl Future<Output = ()>) {
        // There may be nobody left to tell.
        let _ = self.stop.send(true);
        self.inner.control.settle().await;
        tokio::select! {
            () = self.inner.data.shutdown(DRAIN_MAX) => {}
            () = hurry => self.inner.data.shutdown(Duration::ZERO).await,
        }
        self.inner.control.stop().await;
        if tokio::time::timeout(ENDING_MAX, self.socket_closed).await.is_err() {
            tracing::warn!("the admin socket could not be closed within {ENDING_MAX:?}: its file stays");
        }
        self.history.close();
        if tokio::time::timeout(ENDING_MAX, self.history_written).await.is_err() {
            tracing::warn!("the last decisions did not reach the history file within {ENDING_MAX:?}");
        }
        if let Some(written) = self.record_written
            && tokio::time::timeout(ENDING_MAX, written).await.is_err()
        {
            tracing::warn!("the end of the incident record did not reach its file within {ENDING_MAX:?}");
        }
    }
}

/// The incident record with its writer. A cluster is not without its proxy because nothing can be recorded.
fn open_record(state_dir: &Path) -> (Recorder, Option<Writer<Segments>>) {
    match Recorder::open(state_dir) {
        Ok((record, writer)) => (record, Some(writer)),
        Err(error) => {
            tracing::warn!(
                state_dir = %state_dir.display(),
                %error,
                "the incident record cannot be opened: nothing is recorded until metako is started again"
            );
            (Recorder::none(), None)
        }
    }
}

/// Runs a task, and tells when it has ended.
fn spawn_with_end<E: Env>(env: &E, task: impl Future<Output = ()> + Send + 'static) -> oneshot::Receiver<()> {
    let (end, ended) = oneshot::channel();
    env.spawn(async move {
        task.await;
        // Nobody waits for it but a shutdown.
        let _ = end.send(());
    });
    ended
}

async fn listen<E: Env>(env: &E, config: &Config) -> Result<(Vec<E::Listener>, Vec<SocketAddr>), StartError> {
    let mut listeners = Vec::with_capacity(config.listen.len());
    let mut addresses = Vec::with_capacity(config.listen.len());
    for address in &config.listen {
        let wrong = |source| StartError::Bind { address: address.clone(), key: "listen", source };
        let listener = env.bind(address).await.map_err(wrong)?;
        addresses.push(listener.local_addr().map_err(wrong)?);
        listeners.push(listener);
    }
    Ok((listeners, addresses))
}

/// Runs `work` until it ends or a stop is asked for.
async fn until(mut stopping: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        // An error means that the application is gone: a stop as well.
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

/// The periodic report. A reload that changes the interval counts from then on.
async fn report<E: Env>(inner: Arc<Inner<E>>) {
    loop {
        let log = inner.config.load().log.clone();
        let due = async {
            match log.report_interval {
                Some(every) => tokio::time::sleep(every).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => control::log_report(&inner.status(), log.format),
            () = inner.report_changed.notified() => {}
        }
    }
}

impl<E: Env> Inner<E> {
    fn status(&self) -> Status {
        let config = self.config.load();
        let decisions = self.control.recent_decisions(DECISIONS_SHOWN);
        Status::new(&config.cluster.name, &self.view.load(), &self.traffic, decisions)
    }

    async fn replace_config(&self) -> Result<Vec<String>, String> {
        let path = self.path.clone();
        let loaded = tokio::task::spawn_blocking(move || load_file(&path))
            .await
            .map_err(|error| format!("reading the configuration failed: {error}"))?
            .map_err(|problems| problems.to_string())?;
        let old = self.config.load_full();
        let new = Arc::new(loaded.config);
        let differences = changes(&old, &new);
        let fixed: Vec<String> =
            differences.iter().filter(|change| change.needs_restart()).map(ToString::to_string).collect();
        if !fixed.is_empty() {
            return Err(format!("{}: nothing was changed", fixed.join("; ")));
        }
        let filter = logging::filter(&new.log)?;
        let control =
            ControlConfig::build(&new).map_err(|error| format!("a strategy cannot be built: {error}"))?;
        // The data plane goes first: it may still refuse, and a node must be known to it before it is routed to.
        self.data.reconfigure(Arc::clone(&new)).map_err(|error| error.to_string())?;
        self.control.reconfigure(control).await.map_err(|error| error.to_string())?;
        logging::follow(filter);
        let report_changed = old.log.report_interval != new.log.report_interval;
        self.config.store(new);
        if report_changed {
            self.report_changed.notify_one();
        }
        let mut lines: Vec<String> = differences.iter().map(ToString::to_string).collect();
        lines.extend(loaded.warnings.iter().map(|warning| format!("warning: {warning}")));
        Ok(lines)
    }
}

#[async_trait]
impl<E: Env> Admin for Inner<E> {
    fn status(&self) -> Value {
        serde_json::to_value(Self::status(self)).unwrap_or(Value::Null)
    }

    fn metrics(&self, format: Format) -> String {
        let facts = Facts {
            cluster: self.config.load().cluster.name.clone(),
            started: self.started,
            now: self.env.now(),
            view: self.view.load_full(),
            figures: Arc::clone(&self.figures),
            traffic: Arc::clone(&self.traffic),
            unwritten_decisions: self.history.unwritten(),
            unrecorded_events: self.events_lost.load(Ordering::Relaxed),
            reloads: self.reloads.done.load(Ordering::Relaxed),
            refused_reloads: self.reloads.refused.load(Ordering::Relaxed),
        };
        metrics::text(facts, format)
    }

    async fn reload(&self) -> Reply {
        let _one_at_a_time = self.reloading.lock().await;
        match self.replace_config().await {
            Ok(lines) => {
                self.reloads.done.fetch_add(1, Ordering::Relaxed);
                tracing::info!(changes = lines.join("; "), "configuration reloaded");
                Ok(json!({ "schema": 1, "changes": lines }))
            }
            Err(why) => {
                self.reloads.refused.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%why, "reload refused; the configuration in force stays");
                Err(why)
            }
        }
    }

    async fn operate(&self, order: Order) -> Reply {
        let accepted = self.control.operator(order.command, order.dry_run).await;
        let Accepted { plan, after } = accepted.map_err(|error| error.to_string())?;
        Ok(json!({ "schema": 1, "plan": plan, "after": after }))
    }

    fn decisions(&self, after: u64) -> Value {
        json!({ "schema": 1, "decisions": self.control.decisions_after(after) })
    }
}
