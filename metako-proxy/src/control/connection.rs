//! One control connection to a node: opened, used by one question at a time, dropped at the first sign of trouble.

use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use metako_core::NodeName;
use metako_core::cluster::ServerLoss;
use metako_core::config::Node;
use metako_core::plugin::ProbeFailure;
use metako_core::wire::SYNC_WAIT;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, SimpleQueryMessage};

use super::established::Established;
use super::replication::ReplicationStream;
use crate::backend::{self, ConnectError, ConnectErrorKind, MaybeTls, ServerError, ServerTlsTable, Way};
use crate::env::Env;
use crate::shared::EvidenceSender;

/// Settings of every control session. The statement time-out only clears up after a question that nobody waits for any
/// more; the waits that matter are bounded by whoever asks.
const SESSION_OPTIONS: &str = "-c search_path=pg_catalog -c statement_timeout=30s -c client_min_messages=notice \
     -c standard_conforming_strings=on -c jit=off";

/// A row as text.
pub(super) type Row = Vec<Option<String>>;

/// A logged-in session. Dropping it closes the socket at once, also in the middle of an answer.
pub(super) struct Connection {
    node: NodeName,
    client: tokio_postgres::Client,
    fate: Arc<Fate>,
    /// Dropped with the connection, which ends the task that serves the socket.
    _open: oneshot::Sender<()>,
}

/// What the task that serves the socket has seen besides answers.
#[derive(Default)]
struct Fate {
    end: Mutex<Option<ProbeFailure>>,
    /// Who wants to know when it breaks.
    told: Mutex<Option<EvidenceSender>>,
    sync_wait_cut: AtomicBool,
}

impl Connection {
    /// Connects and logs in for SQL.
    ///
    /// Cancellation closes the attempt.
    pub(super) async fn open<E: Env>(
        env: &E,
        node: &Node,
        tls: &ServerTlsTable,
    ) -> Result<Self, ProbeFailure> {
        let mut config = log_in(node);
        config.options(SESSION_OPTIONS);
        Self::try_ways(env, node, tls, &config, |stream| stream).await
    }

    /// Connects and logs in for replication commands. The session is tied to the node's database, so that the rules of
    /// pg_hba.conf for that database apply to it and not those for `replication`.
    ///
    /// Cancellation closes the attempt.
    pub(super) async fn open_replication<E: Env>(
        env: &E,
        node: &Node,
        tls: &ServerTlsTable,
    ) -> Result<Self, ProbeFailure> {
        Self::try_ways(env, node, tls, &log_in(node), ReplicationStream::new).await
    }

    /// Tries the ways that the node's `sslmode` leaves, each after pg_hba.conf has refused the one before.
    async fn try_ways<E, S>(
        env: &E,
        node: &Node,
        tls: &ServerTlsTable,
        config: &tokio_postgres::Config,
        wrap: impl Fn(MaybeTls<E::Stream>) -> S,
    ) -> Result<Self, ProbeFailure>
    where
        E: Env,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let tls = tls
            .of(&node.tls)
            .map_err(|kind| ConnectError { node: node.name.clone(), kind }.probe_failure())?;
        let mut refused = None;
        for way in tls.ways() {
            let stream = match backend::open(env, &node.host, node.port, &tls, *way).await {
                Ok(stream) => stream,
                Err(error) => {
                    refused = Some(not_opened(&error));
                    break;
                }
            };
            let encrypted = stream.is_tls();
            let established = Established::new(&stream);
            let error = match config.connect_raw(wrap(stream), established).await {
                Ok((client, connection)) => return Ok(Self::start(env, &node.name, client, connection)),
                Err(error) => error,
            };
            refused = Some(log_in_failure(&node.name, &error));
            let by_rule = error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
            if !by_rule || (*way == Way::Tls && !encrypted) {
                break;
            }
        }
        Err(refused.unwrap_or_else(|| ProbeFailure::Unreachable("there is no way to it".to_owned())))
    }

    fn start<E, S, T>(
        env: &E,
        node: &NodeName,
        client: tokio_postgres::Client,
        connection: tokio_postgres::Connection<S, T>,
    ) -> Self
    where
        E: Env,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (node, mut connection) = (node.clone(), connection);
        let fate = Arc::new(Fate::default());
        let (open, mut dropped) = oneshot::channel::<()>();
        let (seen, whose) = (Arc::clone(&fate), node.clone());
        env.spawn(async move {
            loop {
                let message = tokio::select! {
                    _ = &mut dropped => return,
                    message = poll_fn(|cx| connection.poll_message(cx)) => message,
                };
                match message {
                    Some(Ok(AsyncMessage::Notice(notice))) => {
                        if notice.routine() == Some(SYNC_WAIT) {
                            seen.sync_wait_cut.store(true, Ordering::Release);
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        *seen.end.lock() = Some(standing_failure(&whose, &error));
                        break;
                    }
                    None => break,
                }
            }
            if let Some(evidence) = seen.told.lock().take() {
                evidence.report(&whose, ServerLoss::Broken);
            }
        });
        Self { node, client, fate, _open: open }
    }

    /// Runs a string of statements by the simple protocol and gives the rows of all of them.
    ///
    /// After an error, or when the future was dropped, the connection is not to be used again.
    pub(super) async fn rows(&self, sql: &str) -> Result<Vec<Row>, ProbeFailure> {
        let messages = self.client.simple_query(sql).await.map_err(|error| self.failure(&error))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Runs one statement with the parameter `$1`, whose type the server infers, and gives its rows. All columns have to
    /// be text.
    ///
    /// After an error, or when the future was dropped, the connection is not to be used again.
    pub(super) async fn rows_for(&self, sql: &str, parameter: &str) -> Result<Vec<Row>, ProbeFailure> {
        let rows = self.client.query_typed(sql, &[(&parameter, Type::UNKNOWN)]).await;
        let rows = rows.map_err(|error| self.failure(&error))?;
        let texts = rows.iter().map(|row| (0..row.len()).map(|column| row.try_get(column)).collect());
        texts.collect::<Result<_, _>>().map_err(|error| self.failure(&error))
    }

    /// Has `evidence` told when the server ends the connection, which is not waited for by anybody.
    pub(super) fn tell_when_lost(&self, evidence: &EvidenceSender) {
        self.fate.told.lock().get_or_insert_with(|| evidence.clone());
    }

    /// Whether the connection is known to have ended.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether the server still answers on this connection.
    pub(super) async fn answers(&self) -> bool {
        !self.is_closed() && self.client.simple_query("").await.is_ok()
    }

    /// Whether a commit on this connection was answered although its wait for standbys was cut short: the server says
    /// so only by a warning.
    pub(super) fn sync_wait_was_cut(&self) -> bool {
        self.fate.sync_wait_cut.load(Ordering::Acquire)
    }

    fn failure(&self, error: &tokio_postgres::Error) -> ProbeFailure {
        if error.as_db_error().is_none()
            && let Some(end) = self.fate.end.lock().clone()
        {
            return end;
        }
        standing_failure(&self.node, error)
    }
}

fn not_opened(error: &ConnectError) -> ProbeFailure {
    match &error.kind {
        ConnectErrorKind::Closed(_) => ProbeFailure::Refused(error.to_string()),
        _ => error.probe_failure(),
    }
}

fn log_in(node: &Node) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .user(&node.username)
        .password(node.password.reveal())
        .dbname(&node.database)
        .application_name("metako")
        // The driver gets a connection on which TLS is agreed on; this way it asks for no more, and asks what is there.
        .ssl_mode(SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct)
        .channel_binding(match node.tls.channel_binding {
            metako_core::config::ChannelBinding::Disable => ChannelBinding::Disable,
            metako_core::config::ChannelBinding::Prefer => ChannelBinding::Prefer,
            metako_core::config::ChannelBinding::Require => ChannelBinding::Require,
        });
    config
}

/// Why a log-in failed. A server that closes the connection before it said anything counts as one that refuses.
fn log_in_failure(node: &NodeName, error: &tokio_postgres::Error) -> ProbeFailure {
    if let Some(told) = error.as_db_error() {
        return server_failure(node, told);
    }
    let text = with_source(error);
    if error.is_closed() || io_source(error).is_some() {
        ProbeFailure::Refused(format!("the server closed the connection at log-in: {text}"))
    } else if text.starts_with("authentication error") || text.starts_with("invalid configuration") {
        ProbeFailure::Authentication(text)
    } else {
        ProbeFailure::Unexpected(text)
    }
}

/// Why a session that was established failed.
fn standing_failure(node: &NodeName, error: &tokio_postgres::Error) -> ProbeFailure {
    if let Some(told) = error.as_db_error() {
        return server_failure(node, told);
    }
    let text = with_source(error);
    if error.is_closed() || io_source(error).is_some() {
        ProbeFailure::Lost(text)
    } else {
        ProbeFailure::Unexpected(text)
    }
}

/// What the server said, sorted by its SQLSTATE as the data plane sorts it.
fn server_failure(node: &NodeName, told: &DbError) -> ProbeFailure {
    // 57P01 is also what a server process says when it finds its postmaster dead: a crash, not a shutdown. Only the place
    // in the source tells them apart in every language.
    let orphaned = told.code() == &SqlState::ADMIN_SHUTDOWN
        && matches!(told.routine(), Some("secure_read" | "secure_write"));
    if orphaned {
        return ProbeFailure::Lost(told.message().to_owned());
    }
    let error = ServerError::new(told.severity(), told.code().code(), told.message(), told.detail());
    ConnectError { node: node.clone(), kind: ConnectErrorKind::Server(Box::new(error)) }.probe_failure()
}

fn io_source(error: &tokio_postgres::Error) -> Option<&io::Error> {
    error.source().and_then(|source| source.downcast_ref())
}

fn with_source(error: &tokio_postgres::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
