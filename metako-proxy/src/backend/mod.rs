//! metako as a client: connecting and logging in to the servers, and cancelling there.
//!
//! [`open`] gives a stream, in TLS where that is wanted; [`connect`] logs in on it and gives a server connection that is
//! idle; [`run_of`] asks there which run of the server it is to; [`cancel`] cancels what such a connection does. None of them has a time-out: whoever calls puts one around it
//! and drops the future, which closes the connection.

mod authenticate;
mod end_point;
mod error;
mod frames;
mod open;
mod run;
mod scram;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::RangeInclusive;
use std::pin::Pin;

use metako_core::NodeName;
use metako_core::config::Node;
use metako_core::wire::write;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use end_point::tls_server_end_point;
pub use error::{ConnectError, ConnectErrorKind, ServerError};
pub use open::{end_point_of, open};
pub use run::run_of;
pub use tls::{ServerTls, ServerTlsTable, Way};

use self::authenticate::{Circumstances, authenticate, parameter, server_error};
use self::frames::Frames;
use crate::credential::ServerCredential;
use crate::env::Env;
use crate::scram::NONCE_LEN;
pub use crate::stream::MaybeTls;

/// The protocol that servers are asked for: 3.2, with keys for cancels of up to 256 bytes. Servers before PostgreSQL 18
/// answer with 3.0, without a further round trip.
const VERSION: u32 = 3 << 16 | 2;
/// What is asked for where that is refused.
const OLD_VERSION: u32 = 3 << 16;
/// How long keys for cancels are, in bytes.
const KEY_LENGTHS: RangeInclusive<usize> = 4..=256;
/// The code of a CancelRequest.
const CANCEL_REQUEST: [u8; 4] = [4, 210, 22, 46];

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
    pub tls: ServerTls,
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
    pub fn of_node(node: &Node, tls: ServerTls) -> Self {
        Self {
            node: node.name.clone(),
            host: node.host.clone(),
            port: node.port,
            tls,
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
    /// Its secret, for cancels: four bytes in protocol 3.0, up to 256 in 3.2. Empty if the server named none.
    pub secret_key: Vec<u8>,
    /// What it had to say beside that.
    pub notices: Notices,
}

/// The most that is kept of a server's notices during log-in, in bytes; further ones are dropped.
const NOTICES_MAX: usize = 16 << 10;

/// Notices of a server during log-in, as whole messages.
#[derive(Debug, Default)]
pub struct Notices {
    /// Those that came before the first parameter.
    pub first: Vec<u8>,
    /// The others.
    pub last: Vec<u8>,
}

impl Notices {
    fn push(&mut self, first: bool, body: &[u8]) {
        if self.first.len() + self.last.len() + body.len() <= NOTICES_MAX {
            let kept = if first { &mut self.first } else { &mut self.last };
            write::frame(kept, b'N', |kept| kept.extend_from_slice(body));
        }
    }
}

impl<S> fmt::Debug for Backend<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("process_id", &self.process_id).finish_non_exhaustive()
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Connects to a server, in TLS where that is wanted, and logs in with protocol 3.2, or what the server speaks of it.
///
/// Answers trust, clear-text and md5 passwords, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS, whichever the server asks for and the
/// credential is good for. With SCRAM the server has to prove that it knows the password as well. Computing SCRAM's keys
/// of a password for the first time takes the thread for milliseconds.
///
/// Has no time-out of its own. Cancelling closes the connection; nothing else is left behind.
pub fn connect<'a, E: Env>(
    env: &'a E,
    target: &'a Target,
) -> BoxFuture<'a, Result<Backend<MaybeTls<E::Stream>>, ConnectError>> {
    Box::pin(async move {
        let ways = target.tls.ways();
        let mut refused = None;
        for way in ways {
            match connect_by(env, target, *way).await {
                Ok(backend) => return Ok(backend),
                Err(Failure { kind, encrypted }) => {
                    let by_rule = kind.is_refused_by_rule();
                    refused = Some(kind);
                    // The server had no TLS to begin with: there is no other way.
                    if !by_rule || (*way == Way::Tls && !encrypted) {
                        break;
                    }
                }
            }
        }
        let kind =
            refused.unwrap_or_else(|| ConnectErrorKind::Unreachable("there is no way to it".to_owned()));
        Err(target.error(kind))
    })
}

/// An attempt that failed.
struct Failure {
    kind: ConnectErrorKind,
    encrypted: bool,
}

async fn connect_by<E: Env>(
    env: &E,
    target: &Target,
    way: Way,
) -> Result<Backend<MaybeTls<E::Stream>>, Failure> {
    let mut version = VERSION;
    loop {
        let stream = open::open_kind(env, &target.host, target.port, &target.tls, way)
            .await
            .map_err(|kind| Failure { kind, encrypted: false })?;
        let encrypted = stream.is_tls();
        let mut random = [0; NONCE_LEN];
        env.entropy(&mut random);
        let end_point = end_point_of(&stream);
        let circumstances = Circumstances { random, tls: encrypted, end_point };
        match log_in(stream, target, version, &circumstances).await {
            Ok(backend) => return Ok(backend),
            // What is no PostgreSQL, or a very old one, may not know how to ask for less.
            Err(ConnectErrorKind::Server(error)) if version == VERSION && error.is_about_the_protocol() => {
                version = OLD_VERSION;
            }
            Err(kind) => return Err(Failure { kind, encrypted }),
        }
    }
}

/// Whether a start-up parameter of this very spelling is none of the server's settings, but decides what the connection
/// is.
pub(crate) fn is_no_setting(name: &str) -> bool {
    matches!(name, "user" | "database" | "replication") || name.starts_with("_pq_.")
}

fn startup_packet(target: &Target, version: u32) -> Result<Vec<u8>, ConnectErrorKind> {
    // Of two users the last one counts for servers.
    if target.parameters.iter().any(|(name, _)| matches!(name.as_str(), "user" | "database")) {
        let problem = "a further start-up parameter says `user` or `database`, which are settled";
        return Err(ConnectErrorKind::Authentication(problem.to_owned()));
    }
    let fixed = [("user", target.user.as_str()), ("database", target.database.as_str())];
    let further = target.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let mut packet = vec![0; 4];
    packet.extend_from_slice(&version.to_be_bytes());
    for text in fixed.into_iter().chain(further).flat_map(|(name, value)| [name, value]) {
        // The only thing that can be wrong with them: a fault of configuration, found before sending.
        if text.contains('\0') {
            let problem = "user, database or a parameter holds a zero byte";
            return Err(ConnectErrorKind::Authentication(problem.to_owned()));
        }
        packet.extend_from_slice(text.as_bytes());
        packet.push(0);
    }
    packet.push(0);
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    packet[..4].copy_from_slice(&length.to_be_bytes());
    Ok(packet)
}

async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    target: &Target,
    version: u32,
    circumstances: &Circumstances,
) -> Result<Backend<S>, ConnectErrorKind> {
    send(&mut stream, &startup_packet(target, version)?).await?;
    let mut frames = Frames::new(&mut stream);
    authenticate(&mut frames, target, circumstances).await?;

    let mut parameters = Vec::new();
    let mut key = None;
    let mut notices = Notices::default();
    let mut ready = false;
    // What the server sent after ReadyForQuery in the same packet is read as well: notices, parameters, or the end.
    while !ready || !frames.is_empty() {
        let message = frames.next().await?;
        match message.tag {
            b'S' => {
                let (name, value) = parameter(&message.body)?;
                remember(&mut parameters, name, value);
            }
            b'K' if !ready => key = Some(cancel_key(&message.body)?),
            b'N' => notices.push(parameters.is_empty(), &message.body),
            b'A' => {}
            b'E' => return Err(server_error(&message.body)),
            b'Z' if !ready && message.body.as_ref() == b"I" => ready = true,
            _ => {
                let problem = "a message that has no place between log-in and the first query";
                return Err(ConnectErrorKind::Protocol(problem.to_owned()));
            }
        }
    }
    let (process_id, secret_key) = key.unwrap_or_default();
    Ok(Backend { stream, parameters, process_id, secret_key, notices })
}

/// Reads a BackendKeyData.
fn cancel_key(body: &[u8]) -> Result<(i32, Vec<u8>), ConnectErrorKind> {
    match body.split_first_chunk() {
        Some((process_id, key)) if KEY_LENGTHS.contains(&key.len()) => {
            Ok((i32::from_be_bytes(*process_id), key.to_vec()))
        }
        _ => {
            Err(ConnectErrorKind::Protocol(format!("a cancel key of {} bytes", body.len().saturating_sub(4))))
        }
    }
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
/// `InvalidInput` if the key is none; else whatever connecting, TLS and sending ran into.
pub async fn cancel<E: Env>(env: &E, target: &Target, process_id: i32, secret_key: &[u8]) -> io::Result<()> {
    if !KEY_LENGTHS.contains(&secret_key.len()) {
        let problem = format!(
            "{}: a cancel key of {} bytes, expected {} to {}",
            target.node,
            secret_key.len(),
            KEY_LENGTHS.start(),
            KEY_LENGTHS.end()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    let way = target.tls.first_way();
    let mut stream = open::open_kind(env, &target.host, target.port, &target.tls, way)
        .await
        .map_err(|kind| target.error(kind).into_io())?;
    let length = u32::try_from(12 + secret_key.len()).unwrap_or(u32::MAX);
    let request =
        [&length.to_be_bytes(), &CANCEL_REQUEST, &process_id.to_be_bytes()[..], secret_key].concat();
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
