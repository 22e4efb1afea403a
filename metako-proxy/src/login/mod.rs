//! Clients log in to metako: first packet, TLS, start-up message, SCRAM-SHA-256.
//!
//! [`accept`] takes a connection from its first byte to AuthenticationOk. Nothing that a stranger sends is looked at before
//! its length is checked, nothing of it is kept beyond fixed bounds, and the whole takes at most
//! [`LoginContext::login_timeout`].

mod incoming;
mod messages;
mod request;
mod scram;
mod steps;
#[cfg(test)]
mod tests;
mod users;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use metako_core::config::{Config, TlsFiles};
use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;
use tokio::io::{AsyncRead, AsyncWrite};

pub use messages::welcome;
pub use users::Users;

use crate::credential::ServerCredential;
pub use crate::stream::MaybeTls;
use crate::tls_files::{TlsFileError, load_tls};

/// What a log-in depends on. Cheap to clone; a reload makes a new one.
#[derive(Debug, Clone)]
pub struct LoginContext {
    /// Who may log in.
    pub users: Arc<Users>,
    /// TLS, if it is offered.
    pub tls: Option<Arc<ServerConfig>>,
    /// Whether clients without TLS are refused.
    pub require_tls: bool,
    /// How long a log-in may take, from the first byte to AuthenticationOk.
    pub login_timeout: Duration,
}

impl LoginContext {
    /// Reads certificate and key, and the users; see [`Users::new`] for `salt_secret`. Blocks on the file system.
    ///
    /// # Errors
    ///
    /// All that is wrong with the TLS files.
    pub fn new(config: &Config, salt_secret: &[u8; 32]) -> Result<Self, Vec<TlsFileError>> {
        Ok(Self {
            users: Arc::new(Users::new(config, salt_secret)),
            tls: config.security.tls.as_ref().map(tls_server_config).transpose()?,
            require_tls: config.security.require_tls,
            login_timeout: config.limits.login_timeout,
        })
    }
}

/// TLS 1.2 and 1.3 for clients, with this certificate and key; clients show none. Blocks on the file system.
///
/// # Errors
///
/// All that is wrong with the two files.
pub fn tls_server_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, Vec<TlsFileError>> {
    let certified = Arc::unwrap_or_clone(load_tls(files)?);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs has the cipher suites of TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    Ok(Arc::new(config))
}

/// Fills a slice with randomness fit for secrets, as [`Env::entropy`](crate::env::Env::entropy) does.
pub type Entropy<'a> = &'a (dyn Fn(&mut [u8]) + Send + Sync);

/// What became of a connection.
pub enum Accepted<S> {
    /// A client has logged in.
    Session(Client<MaybeTls<S>>),
    /// A client asks to cancel what another connection does. It gets no answer: it waits for the end of `stream`, which
    /// should be dropped when the cancel was delivered, not before.
    Cancel {
        /// The connection of the request.
        stream: MaybeTls<S>,
        /// As given to the client in BackendKeyData.
        process_id: i32,
        /// As given to the client, 4 to 256 bytes: to be compared in constant time.
        secret_key: Vec<u8>,
    },
}

impl<S> fmt::Debug for Accepted<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(client) => {
                let Client { user, database, .. } = client;
                f.debug_struct("Session")
                    .field("user", user)
                    .field("database", database)
                    .finish_non_exhaustive()
            }
            Self::Cancel { process_id, .. } => {
                f.debug_struct("Cancel").field("process_id", process_id).finish_non_exhaustive()
            }
        }
    }
}

/// A client that has logged in and waits for ParameterStatus, BackendKeyData and ReadyForQuery ([`welcome`]).
#[derive(Debug)]
pub struct Client<S> {
    /// Its connection.
    pub stream: S,
    /// The user that it proved to be.
    pub user: String,
    /// The database, which the user may use.
    pub database: String,
    /// The other parameters of its start-up message as they came, names in any case and possibly twice.
    pub parameters: Vec<(String, String)>,
    /// The protocol agreed on.
    pub protocol: Protocol,
    /// It asks for a replication connection.
    pub replication: Option<Replication>,
    /// What metako logs in to servers with for it.
    pub credential: ServerCredential,
    /// What it sent ahead: to be read before the stream.
    pub leftover: Vec<u8>,
}

/// A version of PostgreSQL's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// 3.0: cancel keys have four bytes.
    V3_0,
    /// 3.2, since PostgreSQL 18: cancel keys are longer.
    V3_2,
}

/// What a replication connection is to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// Commands of physical replication only.
    Physical,
    /// Those of logical replication, and SQL.
    Logical,
}

/// Why a connection became no session. Its text is for metako's log; a client that was refused has been told already.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// It was sent away with a FATAL error.
    #[error("log-in refused: {message} (SQLSTATE {sqlstate})")]
    Refused {
        /// The SQLSTATE that it was told.
        sqlstate: &'static str,
        /// The message that it was told.
        message: String,
    },
    /// It did not finish in time.
    #[error("log-in not finished within {}ms (limits.login_timeout)", .0.as_millis())]
    TimedOut(Duration),
    /// It left before the end, as port checks do and people who are asked for a password.
    #[error("the client left before it was logged in")]
    Closed,
    /// It does not speak PostgreSQL's protocol, and was given no answer.
    #[error("not PostgreSQL's protocol: {0}")]
    Protocol(String),
    /// The TLS handshake failed.
    #[error("TLS handshake: {0}")]
    Tls(io::Error),
    /// The connection broke.
    #[error("connection lost during log-in: {0}")]
    Io(#[from] io::Error),
}

/// Takes a connection from its first byte until the client is logged in: AuthenticationOk was sent, nothing after it.
///
/// Encryption is agreed on, protocol 3.0 is negotiated, the user proves the password by SCRAM-SHA-256 and is checked
/// against the database. `entropy` gives the nonce. Ends within [`LoginContext::login_timeout`], refusals included.
/// Cancelling, like every error, closes the connection.
///
/// The future is boxed, so that a task that goes on to relay does not keep room for it.
pub fn accept<'a, S>(
    stream: S,
    cx: &'a LoginContext,
    entropy: Entropy<'a>,
) -> Pin<Box<dyn Future<Output = Result<Accepted<S>, LoginError>> + Send + 'a>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
{
    Box::pin(async move {
        tokio::time::timeout(cx.login_timeout, steps::run(stream, cx, entropy))
            .await
            .unwrap_or(Err(LoginError::TimedOut(cx.login_timeout)))
    })
}
