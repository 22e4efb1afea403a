//! metako as a client: connecting and logging in to the servers, and cancelling there.
//!
//! [`open`] gives a stream, in TLS where that is wanted; [`connect`] logs in on it and gives a server connection that is
//! idle; [`cancel`] cancels what such a connection does. None of them has a time-out: whoever calls puts one around it
//! and drops the future, which closes the connection.

mod authenticate;
mod error;
mod frames;
mod open;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;

use bytes::BytesMut;
use metako_core::NodeName;
use metako_core::config::{Node, SslMode};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use error::{ConnectError, ConnectErrorKind, ServerError};
pub use open::open;

use self::authenticate::{authenticate, server_error};
use self::frames::Frames;
use crate::credential::ServerCredential;
use crate::env::Env;
pub use crate::stream::MaybeTls;

/// Whom to log in to, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The node, for errors.
    pub node: NodeName,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// TLS towards it.
    pub sslmode: SslMode,
    /// The user.
    pub user: String,
    /// What proves that, if the server asks.
    pub credential: ServerCredential,
    /// The database.
    pub database: String,
    /// Further parameters of the start-up packet, in this order: `application_name`, `options`, ...
    pub parameters: Vec<(String, String)>,
}

impl Target {
    /// A node with the user and database that the configuration gives for it, and no parameters.
    pub fn of_node(node: &Node) -> Self {
        Self {
            node: node.name.clone(),
            host: node.host.clone(),
            port: node.port,
            sslmode: node.sslmode,
            user: node.username.clone(),
            credential: ServerCredential::Password(node.password.clone()),
            database: node.database.clone(),
            parameters: Vec::new(),
        }
    }

    fn error(&self, kind: ConnectErrorKind) -> ConnectError {
        ConnectError { node: self.node.clone(), kind }
    }
}

/// A server connection that is logged in and idle outside a transaction; no byte that it sent is unread.
pub struct Backend<S> {
    /// The stream.
    pub stream: S,
    /// What the server reported by ParameterStatus, the last value of each, in the order of their first report.
    pub parameters: Vec<(String, String)>,
    /// The server process, for cancels. Zero if the server named none.
    pub process_id: i32,
    /// Its secret, for cancels: four bytes in protocol 3.0. Empty if the server named none.
    pub secret_key: Vec<u8>,
}

impl<S> fmt::Debug for Backend<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("process_id", &self.process_id).finish_non_exhaustive()
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Connects to a server, in TLS where that is wanted, and logs in with protocol 3.0.
///
/// Answers trust, clear-text and md5 passwords and SCRAM-SHA-256, whichever the server asks for. With SCRAM the server has
/// to prove that it knows the password as well. Computing SCRAM's salted password takes the thread for milliseconds.
///
/// Has no time-out of its own. Cancelling closes the connection; nothing else is left behind.
pub fn connect<'a, E: Env>(
    env: &'a E,
    target: &'a Target,
) -> BoxFuture<'a, Result<Backend<MaybeTls<E::Stream>>, ConnectError>> {
    Box::pin(async move {
        let login = async {
            let stream = open::open_kind(env, &target.host, target.port, target.sslmode).await?;
            log_in(stream, target).await
        };
        login.await.map_err(|kind| target.error(kind))
    })
}

async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    target: &Target,
) -> Result<Backend<S>, ConnectErrorKind> {
    let fixed = [("user", target.user.as_str()), ("database", target.database.as_str())];
    let further = target.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut packet = BytesMut::new();
    // The only thing that can be wrong with the values is a NUL byte: a fault of configuration, found before sending.
    frontend::startup_message(fixed.into_iter().chain(further), &mut packet).map_err(|error| {
        ConnectErrorKind::Authentication(format!("user, database or parameters: {error}"))
    })?;
    send(&mut stream, &packet).await?;
    let mut frames = Frames::new(&mut stream);
    authenticate(&mut frames, target).await?;

    let mut parameters = Vec::new();
    let mut key = None;
    let mut ready = false;
    // What the server sent after ReadyForQuery in the same packet is read as well: notices, parameters, or the end.
    while !ready || !frames.is_empty() {
        match frames.next().await? {
            Message::ParameterStatus(status) => {
                let text = |value: io::Result<&str>| {
                    value
                        .map(str::to_owned)
                        .map_err(|error| ConnectErrorKind::Protocol(format!("ParameterStatus: {error}")))
                };
                remember(&mut parameters, text(status.name())?, text(status.value())?);
            }
            Message::BackendKeyData(data) if !ready => key = Some((data.process_id(), data.secret_key())),
            Message::NoticeResponse(_) | Message::NotificationResponse(_) => {}
            Message::ErrorResponse(body) => return Err(ConnectErrorKind::Server(Box::new(server_error(&body)?))),
            Message::ReadyForQuery(body) if !ready && body.status() == b'I' => ready = true,
            _ => {
                let problem = "a message that has no place between log-in and the first query";
                return Err(ConnectErrorKind::Protocol(problem.to_owned()));
            }
        }
    }
    let (process_id, secret_key) =
        key.map_or((0, Vec::new()), |(process_id, secret)| (process_id, secret.to_be_bytes().to_vec()));
    Ok(Backend { stream, parameters, process_id, secret_key })
}

fn remember(parameters: &mut Vec<(String, String)>, name: String, value: String) {
    match parameters.iter_mut().find(|(known, _)| *known == name) {
        Some((_, old)) => *old = value,
        None => parameters.push((name, value)),
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), ConnectErrorKind> {
    let sent = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| ConnectErrorKind::talking(&error))
}

/// Cancels what a server connection is doing, over a connection of its own with the same rule for TLS. Resolves when the
/// server has closed that connection: only then can the cancel hit no later statement.
///
/// Has no time-out of its own. If it is dropped, or fails after the request was sent, the cancel may still come: do not use the
/// server connection again.
///
/// # Errors
///
/// `InvalidInput` if the key is not one of protocol 3.0; else whatever connecting, TLS and sending ran into.
pub async fn cancel<E: Env>(env: &E, target: &Target, process_id: i32, secret_key: &[u8]) -> io::Result<()> {
    let Ok(secret) = <[u8; 4]>::try_from(secret_key) else {
        let problem = format!("{}: a cancel key of {} bytes, expected 4", target.node, secret_key.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    };
    let mut stream = open::open_kind(env, &target.host, target.port, target.sslmode)
        .await
        .map_err(|kind| target.error(kind).into_io())?;
    let mut request = BytesMut::new();
    frontend::cancel_request(process_id, i32::from_be_bytes(secret), &mut request);
    stream.write_all(&request).await?;
    stream.flush().await?;
    // The server answers nothing, it closes. A reset and the missing farewell of TLS are its ways of closing too.
    let mut answer = [0; 64];
    match stream.read(&mut answer).await {
        Ok(0) => Ok(()),
        Ok(_) => {
            let problem = format!("{}: answered a cancel request, which has no answer", target.node);
            Err(io::Error::new(io::ErrorKind::InvalidData, problem))
        }
        Err(error)
            if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}
