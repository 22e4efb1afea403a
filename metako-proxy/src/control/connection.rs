//! One control connection to a node: opened, used by one question at a time, dropped at the first sign of trouble.

use std::error::Error as _;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use metako_core::config::Node;
use metako_core::plugin::ProbeFailure;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, NoTls, SimpleQueryMessage};

use super::replication::ReplicationStream;
use crate::env::Env;

/// Settings of every control session. The statement time-out only clears up after a question that nobody waits for any
/// more; the waits that matter are bounded by whoever asks.
const SESSION_OPTIONS: &str = "-c search_path=pg_catalog -c statement_timeout=30s -c client_min_messages=notice \
     -c standard_conforming_strings=on -c jit=off";

/// A row as text.
pub(super) type Row = Vec<Option<String>>;

/// A logged-in session. Dropping it closes the socket at once, also in the middle of an answer.
pub(super) struct Connection {
    client: tokio_postgres::Client,
    fate: Arc<Fate>,
    /// Dropped with the connection, which ends the task that serves the socket.
    _open: oneshot::Sender<()>,
}

/// What the task that serves the socket has seen besides answers.
#[derive(Default)]
struct Fate {
    end: Mutex<Option<ProbeFailure>>,
    sync_wait_cut: AtomicBool,
}

impl Connection {
    /// Connects and logs in for SQL.
    ///
    /// Cancellation closes the attempt.
    pub(super) async fn open<E: Env>(env: &E, node: &Node) -> Result<Self, ProbeFailure> {
        let stream = transport(env, node).await?;
        let mut config = log_in(node);
        config.options(SESSION_OPTIONS);
        Self::start(env, stream, &config).await
    }

    /// Connects and logs in for replication commands. The session is tied to the node's database, so that the rules of
    /// pg_hba.conf for that database apply to it and not those for `replication`.
    ///
    /// Cancellation closes the attempt.
    pub(super) async fn open_replication<E: Env>(env: &E, node: &Node) -> Result<Self, ProbeFailure> {
        let stream = ReplicationStream::new(transport(env, node).await?);
        Self::start(env, stream, &log_in(node)).await
    }

    async fn start<E, S>(env: &E, stream: S, config: &tokio_postgres::Config) -> Result<Self, ProbeFailure>
    where
        E: Env,
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (client, mut connection) =
            config.connect_raw(stream, NoTls).await.map_err(|error| log_in_failure(&error))?;
        let fate = Arc::new(Fate::default());
        let (open, mut dropped) = oneshot::channel::<()>();
        let seen = Arc::clone(&fate);
        env.spawn(async move {
            loop {
                let message = tokio::select! {
                    _ = &mut dropped => return,
                    message = poll_fn(|cx| connection.poll_message(cx)) => message,
                };
                match message {
                    Some(Ok(AsyncMessage::Notice(notice))) => {
                        if notice.routine() == Some("SyncRepWaitForLSN") {
                            seen.sync_wait_cut.store(true, Ordering::Release);
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        *seen.end.lock() = Some(standing_failure(&error));
                        return;
                    }
                    None => return,
                }
            }
        });
        Ok(Self { client, fate, _open: open })
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

    /// Whether the server still answers on this connection.
    pub(super) async fn answers(&self) -> bool {
        !self.client.is_closed() && self.client.simple_query("").await.is_ok()
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
        standing_failure(error)
    }
}

async fn transport<E: Env>(env: &E, node: &Node) -> Result<E::Stream, ProbeFailure> {
    env.connect(&node.host, node.port).await.map_err(|error| {
        let text = format!("{}:{}: {error}", node.host, node.port);
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => ProbeFailure::Refused(text),
            _ => ProbeFailure::Unreachable(text),
        }
    })
}

fn log_in(node: &Node) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config
        .user(&node.username)
        .password(node.password.reveal())
        .dbname(&node.database)
        .application_name("metako")
        .ssl_mode(SslMode::Disable);
    config
}

/// Why a log-in failed. A server that closes the connection before it said anything counts as one that refuses.
fn log_in_failure(error: &tokio_postgres::Error) -> ProbeFailure {
    if error.as_db_error().is_some() {
        return server_failure(error);
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

fn standing_failure(error: &tokio_postgres::Error) -> ProbeFailure {
    if error.as_db_error().is_some() {
        return server_failure(error);
    }
    let text = with_source(error);
    if error.is_closed() || io_source(error).is_some() {
        ProbeFailure::Lost(text)
    } else {
        ProbeFailure::Unexpected(text)
    }
}

fn server_failure(error: &tokio_postgres::Error) -> ProbeFailure {
    match error.as_db_error() {
        Some(told) => by_sqlstate(told.code(), told.message()),
        None => ProbeFailure::Unexpected(with_source(error)),
    }
}

/// Sorts what a server answered by its SQLSTATE. 57P03 has one code for coming up and for going down: the text tells
/// them apart, and in a language that is not known here it counts as coming up, which speaks less against the node.
fn by_sqlstate(code: &SqlState, message: &str) -> ProbeFailure {
    let text = message.to_owned();
    match code.code() {
        "53300" => ProbeFailure::TooManyConnections(text),
        "57P03" if message.contains("shutting down") => ProbeFailure::ShuttingDown(text),
        "57P03" => ProbeFailure::StartingUp(text),
        "57P01" => ProbeFailure::ShuttingDown(text),
        "57P02" | "57P04" | "57P05" => ProbeFailure::Lost(text),
        "25006" => ProbeFailure::ReadOnly(text),
        code if code.starts_with("28") => ProbeFailure::Authentication(text),
        code if code.starts_with("08") => ProbeFailure::Lost(text),
        code => ProbeFailure::Unexpected(format!("{text} (SQLSTATE {code})")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_answers_becomes_typed_evidence() {
        let sorted = |code, message| by_sqlstate(&SqlState::from_code(code), message);
        let text = || "text".to_owned();
        assert_eq!(sorted("53300", "text"), ProbeFailure::TooManyConnections(text()));
        assert_eq!(sorted("57P03", "text"), ProbeFailure::StartingUp(text()));
        assert_eq!(sorted("57P01", "text"), ProbeFailure::ShuttingDown(text()));
        assert_eq!(sorted("57P02", "text"), ProbeFailure::Lost(text()));
        assert_eq!(sorted("25006", "text"), ProbeFailure::ReadOnly(text()));
        assert_eq!(sorted("28P01", "text"), ProbeFailure::Authentication(text()));
        assert_eq!(sorted("28000", "text"), ProbeFailure::Authentication(text()));
        assert_eq!(
            sorted("3D000", "database \"x\" does not exist"),
            ProbeFailure::Unexpected("database \"x\" does not exist (SQLSTATE 3D000)".to_owned())
        );
        let going_down = "the database system is shutting down";
        assert_eq!(sorted("57P03", going_down), ProbeFailure::ShuttingDown(going_down.to_owned()));
    }
}
