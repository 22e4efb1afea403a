//! The seam between metako and the world.
//!
//! The proxy reaches the network, the wall clock and other tasks only through [`Env`], so that the simulator can put
//! another world in its place. tokio's timers, channels and `select!` are used as they are: under a paused runtime they
//! are deterministic by themselves.

mod names;
mod programs;
mod socket;
mod workers;

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metako_core::Tick;
use metako_core::config::Secret;
use metako_core::pool::Worker;
use nix::sys::stat::Mode;
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::socket::{Socket, TcpAcceptor};
use self::workers::Workers;

/// Programs on the same machine that may wait to be accepted.
const LOCAL_BACKLOG: i32 = 128;

/// A world to run in. Cloning is cheap.
pub trait Env: Clone + Send + Sync + 'static {
    /// A byte stream to a peer.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static;
    /// A bound socket.
    type Listener: Listener<Stream = Self::Stream>;
    /// A byte stream to a program on the same machine.
    type LocalStream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// A bound local socket.
    type LocalListener: LocalListener<Stream = Self::LocalStream>;

    /// Resolves `host` and connects to its addresses in turn, with TCP_NODELAY and keep-alive set. Has no time-out of
    /// its own. Cancellation closes the attempt.
    fn connect(&self, host: &str, port: u16) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// The name that the name service has for an address, if that name has that address. Has no time-out of its own.
    fn host_of(&self, address: IpAddr) -> impl Future<Output = io::Result<Option<String>>> + Send;

    /// Binds `address` (`host:port`).
    fn bind(&self, address: &str) -> impl Future<Output = io::Result<Self::Listener>> + Send;

    /// Binds a local socket that only its owner may use, at `path`. Replaces a socket that nobody listens on any
    /// more, and no other file; fails with `AddrInUse` when somebody does.
    fn bind_local(&self, path: &Path) -> impl Future<Output = io::Result<Self::LocalListener>> + Send;

    /// Connects to a local socket.
    fn connect_local(&self, path: &Path) -> impl Future<Output = io::Result<Self::LocalStream>> + Send;

    /// Runs a task of its own until it ends.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);

    /// Runs a task of the data plane that is no client's until it ends.
    fn spawn_data(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(task);
    }

    /// Runs a client's task until it ends, on the worker that has room for it; see [`Self::moves_on`].
    fn spawn_client(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(task);
    }

    /// Whether the client's task that asks is to go on on another worker: then its poll has to answer `Pending`, and it
    /// is polled once more there. To be asked once, by a client's task that is about to wait with nothing open.
    fn moves_on(&self) -> bool {
        false
    }

    /// The worker that asks.
    fn worker(&self) -> Worker {
        Worker::NONE
    }

    /// Lets the worker that asks hear of what comes on a stream first-hand; streams work without it, at a higher price.
    fn settle(&self, stream: &mut Self::Stream) {
        let _ = stream;
    }

    /// Whether nothing is known to have come on a stream that was not read, its end included. May be wrong in saying no.
    fn is_silent(&self, stream: &Self::Stream) -> bool {
        let _ = stream;
        false
    }

    /// Runs a program to its end, in a process group of its own. After `program.limit` it is ended, and all that is left in
    /// its group with it; what it started in sessions of their own goes on. The answer does not wait for those.
    ///
    /// Dropping the future ends the program and its group as well, in the background.
    ///
    /// # Errors
    ///
    /// It could not be started.
    fn run_hook(&self, program: HookProgram) -> impl Future<Output = io::Result<HookOutput>> + Send;

    /// Time since the start of the world, on the clock that the runtime's timers use.
    fn now(&self) -> Tick;

    /// Time since 1970, for people and records only: nothing is decided by it.
    fn wall_clock(&self) -> Duration;

    /// Fills `bytes` with randomness fit for secrets.
    fn entropy(&self, bytes: &mut [u8]);

    /// 64 random bits; not for secrets.
    fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        self.entropy(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// A program to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookProgram {
    /// The program and its arguments. Without a slash in its name it is looked for in `PATH`.
    pub command: Vec<String>,
    /// Variables that it finds in its environment, beside those of metako.
    pub environment: Vec<(String, Secret)>,
    /// Variables of metako's environment that it does not find in its own.
    pub withheld: Vec<String>,
    /// How long it may take.
    pub limit: Duration,
}

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookOutput {
    /// How it ended.
    pub ending: HookEnding,
    /// The end of what it said on both of its outputs, a few KiB.
    pub output: String,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookEnding {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal, which metako did not send.
    Killed(i32),
    /// It was ended because its time was up.
    TimedOut,
    /// Nobody knows.
    Lost,
}

/// A bound socket.
pub trait Listener: Send + 'static {
    /// What it accepts.
    type Stream;

    /// The next client. Cancellation-safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// Where it is bound.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A bound local socket.
pub trait LocalListener: Send + 'static {
    /// What it accepts.
    type Stream;

    /// The next client, with the user id of its process. Cancellation-safe.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, u32)>> + Send;
}

/// The real world: tokio, TCP, the system's clocks and entropy.
#[derive(Debug, Clone)]
pub struct TokioEnv {
    origin: tokio::time::Instant,
    /// Without them, everything is done by the runtime that it is used in.
    workers: Option<Arc<Workers>>,
}

impl TokioEnv {
    /// A world that begins now, all in the runtime that it is used in.
    pub fn new() -> Self {
        Self { origin: tokio::time::Instant::now(), workers: None }
    }

    /// A world that begins now, with threads of their own for clients. Has to be called in a runtime.
    ///
    /// # Errors
    ///
    /// The system gives no threads or descriptors for them.
    pub fn with_workers(count: usize) -> io::Result<Self> {
        Ok(Self { origin: tokio::time::Instant::now(), workers: Some(Workers::start(count, false)?) })
    }

    /// As [`Self::with_workers`], but clients go to the workers in turn and move on to the next whenever they may, so
    /// that a test meets all that can happen between workers.
    ///
    /// # Errors
    ///
    /// As [`Self::with_workers`].
    pub fn restless(count: usize) -> io::Result<Self> {
        Ok(Self { origin: tokio::time::Instant::now(), workers: Some(Workers::start(count, true)?) })
    }
}

impl Default for TokioEnv {
    fn default() -> Self {
        Self::new()
    }
}

impl Env for TokioEnv {
    type Stream = Socket;
    type Listener = TcpAcceptor;
    type LocalStream = tokio::net::UnixStream;
    type LocalListener = UnixAcceptor;

    async fn connect(&self, host: &str, port: u16) -> io::Result<Self::Stream> {
        Socket::connect(host, port).await
    }

    async fn host_of(&self, address: IpAddr) -> io::Result<Option<String>> {
        names::host_of(address).await
    }

    async fn bind(&self, address: &str) -> io::Result<Self::Listener> {
        TcpAcceptor::bind(address).await
    }

    async fn bind_local(&self, path: &Path) -> io::Result<Self::LocalListener> {
        remove_stale(path).await?;
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        // Before it has a name: at no moment can others open it. (Linux makes the file with the socket's own mode.)
        nix::sys::stat::fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
        socket.bind(&socket2::SockAddr::unix(path)?)?;
        socket.listen(LOCAL_BACKLOG)?;
        socket.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(socket.into())?;
        Ok(UnixAcceptor { listener, path: path.to_owned() })
    }

    async fn connect_local(&self, path: &Path) -> io::Result<Self::LocalStream> {
        tokio::net::UnixStream::connect(path).await
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }

    fn spawn_data(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.workers {
            Some(workers) => workers.spawn(task),
            None => self.spawn(task),
        }
    }

    fn spawn_client(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.workers {
            Some(workers) => workers.spawn_client(task),
            None => self.spawn(task),
        }
    }

    fn moves_on(&self) -> bool {
        self.workers.as_ref().is_some_and(|workers| workers.moves_on())
    }

    fn worker(&self) -> Worker {
        workers::current()
    }

    fn settle(&self, stream: &mut Self::Stream) {
        if let Err(error) = stream.settle() {
            tracing::debug!(%error, "a socket could not be moved to another worker");
        }
    }

    fn is_silent(&self, stream: &Self::Stream) -> bool {
        stream.is_silent()
    }

    async fn run_hook(&self, program: HookProgram) -> io::Result<HookOutput> {
        programs::run(program).await
    }

    fn now(&self) -> Tick {
        Tick::ZERO + self.origin.elapsed()
    }

    fn wall_clock(&self) -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }

    fn entropy(&self, bytes: &mut [u8]) {
        // aws-lc-rs fails only where the system has no entropy at all; without it no secret may be made.
        aws_lc_rs::rand::fill(bytes).expect("the system gives no entropy");
    }
}

/// A local socket that accepts. Its file goes when it is dropped.
#[derive(Debug)]
pub struct UnixAcceptor {
    listener: tokio::net::UnixListener,
    path: PathBuf,
}

impl LocalListener for UnixAcceptor {
    type Stream = tokio::net::UnixStream;

    async fn accept(&mut self) -> io::Result<(Self::Stream, u32)> {
        let (stream, _) = self.listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        Ok((stream, uid))
    }
}

impl Drop for UnixAcceptor {
    fn drop(&mut self) {
        // A file that is gone already is what was wanted.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes a socket that nobody listens on any more, and nothing else.
async fn remove_stale(path: &Path) -> io::Result<()> {
    let there = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        there => there?,
    };
    if !there.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"));
    }
    match tokio::net::UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on it")),
        // It is not known to be dead.
        Err(error) => Err(error),
    }
}
