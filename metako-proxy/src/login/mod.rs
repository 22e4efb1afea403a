//! Clients log in to metako: first packet, TLS, start-up message, rules, and the proof of who they are.
//!
//! [`accept`] takes a connection from its first byte until AuthenticationOk can be sent. Nothing that a stranger sends is looked at before
//! its length is checked, nothing of it is kept beyond fixed bounds, and the whole takes at most
//! [`LoginContext::login_timeout`].

mod account;
mod client_certificate;
mod encryption;
mod hosts;
mod incoming;
mod lookup;
mod messages;
mod prove;
mod refusals;
mod request;
pub(crate) mod rules;
mod scram;
mod steps;
#[cfg(test)]
mod tests;
mod tls;
mod users;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use metako_core::config::Config;
use metako_core::hba::HbaProblem;
use metako_core::wire::write::Report;
use tokio::io::{AsyncRead, AsyncWrite};

pub use hosts::{EnvHostNames, HostNames};
pub use lookup::{LookupError, RoleLookup, SecretLookup};
use lookup::{SharedLookup, SharedRoles};
pub use messages::welcome;
use refusals::Refusals;
use rules::Rules;
pub use tls::ServerTls;
pub use users::Users;

use crate::credential::ServerCredential;
pub use crate::stream::MaybeTls;
use crate::tls_files::TlsFileError;

/// What a log-in depends on. Cheap to clone; a reload makes a new one.
#[derive(Debug, Clone)]
pub struct LoginContext {
    /// The users of the configuration.
    pub users: Arc<Users>,
    /// Who may connect from where, and how; `None` is SCRAM-SHA-256 for all.
    rules: Option<Arc<Rules>>,
    /// TLS, if it is offered.
    pub tls: Option<ServerTls>,
    /// Whether clients without TLS are refused.
    pub require_tls: bool,
    /// How long a log-in may take, from the first byte to AuthenticationOk.
    pub login_timeout: Duration,
    lookup: Option<Arc<SharedLookup>>,
    roles: Option<Arc<SharedRoles>>,
    hosts: Option<Arc<dyn HostNames>>,
    refusals: Arc<Refusals>,
}

/// Where a log-in finds out what the configuration does not say.
#[derive(Clone, Default)]
pub struct Sources {
    /// Secrets of users that the configuration does not name.
    pub secrets: Option<Arc<dyn SecretLookup>>,
    /// Members of roles, for rules that ask for them.
    pub roles: Option<Arc<dyn RoleLookup>>,
    /// Names of hosts, for rules that ask for them.
    pub hosts: Option<Arc<dyn HostNames>>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl LoginContext {
    /// Reads the users, the rules, certificates and keys; see [`Users::new`] for `salt_secret`. Blocks on the file system.
    ///
    /// # Errors
    ///
    /// All that is wrong with the files.
    pub fn new(config: &Config, salt_secret: &[u8; 32], sources: Sources) -> Result<Self, LoginFilesError> {
        let security = &config.security;
        let tls = security.tls.as_ref().map(|files| ServerTls::load(files, security.client_ca.as_deref()));
        Ok(Self {
            rules: rules::load(config).map_err(LoginFilesError::Rules)?.map(Arc::new),
            tls: tls.transpose().map_err(LoginFilesError::Tls)?,
            require_tls: security.require_tls,
            login_timeout: config.limits.login_timeout,
            ..Self::of_users(Users::new(config, salt_secret), sources)
        })
    }

    /// Whether a user could have that credential by a log-in of now. Where only the server can tell, it is asked.
    pub(crate) fn still_knows(&self, user: &str, credential: &ServerCredential) -> bool {
        match self.users.stored(user) {
            Some(stored) => stored.may_give(credential),
            None => self.lookup.is_some() || *credential == ServerCredential::None,
        }
    }

    /// These users and nothing else.
    fn of_users(users: Users, sources: Sources) -> Self {
        let Sources { secrets, roles, hosts } = sources;
        Self {
            users: Arc::new(users),
            rules: None,
            tls: None,
            require_tls: false,
            login_timeout: Duration::from_secs(10),
            lookup: secrets.map(|secrets| Arc::new(SharedLookup::new(secrets))),
            roles: roles.map(|roles| Arc::new(SharedRoles::new(roles))),
            hosts,
            refusals: Arc::default(),
        }
    }
}

/// What is wrong with the files that log-in needs.
#[derive(Debug, thiserror::Error)]
pub enum LoginFilesError {
    /// Certificates or keys.
    #[error("TLS for clients: {}", joined(.0))]
    Tls(Vec<TlsFileError>),
    /// The rules.
    #[error("rules of log-in: {}", joined(.0))]
    Rules(Vec<HbaProblem>),
}

fn joined(problems: &[impl fmt::Display]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Fills a slice with randomness fit for secrets, as [`Env::entropy`](crate::env::Env::entropy) does.
pub type Entropy<'a> = &'a (dyn Fn(&mut [u8]) + Send + Sync);

/// What became of a connection.
pub enum Accepted<S> {
    /// A client has logged in. Boxed, so that its task keeps no room for it.
    Session(Box<Client<MaybeTls<S>>>),
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
                let Client { user, database, .. } = &**client;
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

/// A client that has logged in and waits for the end of it: what is unsent, and ParameterStatus, BackendKeyData and
/// ReadyForQuery ([`welcome`]).
#[derive(Debug)]
pub struct Client<S> {
    /// Its connection.
    pub stream: S,
    /// The user that it proved to be.
    pub user: String,
    /// The database, which the user may use as far as metako knows; empty for physical replication.
    pub database: String,
    /// The other parameters of its start-up message as they came, names in any case and possibly twice.
    pub parameters: Vec<(String, String)>,
    /// The protocol agreed on.
    pub protocol: Protocol,
    /// It asks for a replication connection.
    pub replication: Option<Replication>,
    /// What metako logs in to servers with for it.
    pub credential: ServerCredential,
    /// What it has to be sent before anything else, AuthenticationOk at its end.
    pub unsent: Vec<u8>,
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

impl Replication {
    /// Whether transactions can be committed on such a connection.
    pub fn takes_sql(self) -> bool {
        self == Self::Logical
    }
}

/// Why a connection became no session. Its text is for metako's log; a client that was refused has been told already.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// It was sent away with a FATAL error.
    #[error("log-in refused: {} (SQLSTATE {})", refusals::shown(&.report.message), .report.code)]
    Refused {
        /// What it was told.
        report: Box<Report>,
        /// The user that it claimed to be, if it came so far.
        user: Option<String>,
        /// Why in truth, where the client was told less.
        reason: Option<String>,
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

impl LoginError {
    fn refused(report: Report) -> Self {
        Self::Refused { report: Box::new(report), user: None, reason: None }
    }

    /// The same with a reason for the operator. It holds no secret.
    fn because(self, why: &str) -> Self {
        match self {
            Self::Refused { report, user, .. } => {
                Self::Refused { report, user, reason: Some(why.to_owned()) }
            }
            other => other,
        }
    }
}

impl Protocol {
    const MAJOR: u16 = 3;

    fn minor(self) -> u16 {
        match self {
            Self::V3_0 => 0,
            Self::V3_2 => 2,
        }
    }
}

/// The newest protocol that a client can have: of which user, and whether it asks for replication.
pub type Newest<'a> = &'a (dyn Fn(&str, Option<Replication>) -> Protocol + Send + Sync);

/// Takes a connection from its first byte until the client is logged in: AuthenticationOk is what it has to be sent next
/// ([`Client::unsent`]).
///
/// Encryption and protocol are agreed on, the rules say how the user has to prove who it is, and the user is checked
/// against the database. `entropy` gives nonces and salts, `newest` the newest protocol that the client can have. Ends
/// within [`LoginContext::login_timeout`], refusals included. Cancelling, like every error, closes the connection.
/// Refusals are logged, in bounds.
///
/// The future is boxed, so that a task that goes on to relay does not keep room for it.
pub fn accept<'a, S>(
    stream: S,
    peer: SocketAddr,
    cx: &'a LoginContext,
    entropy: Entropy<'a>,
    newest: Newest<'a>,
) -> Pin<Box<dyn Future<Output = Result<Accepted<S>, LoginError>> + Send + 'a>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + Sync + 'static,
{
    Box::pin(async move {
        let outcome = tokio::time::timeout(cx.login_timeout, steps::run(stream, peer, cx, entropy, newest))
            .await
            .unwrap_or(Err(LoginError::TimedOut(cx.login_timeout)));
        if let Err(LoginError::Refused { report, user, reason }) = &outcome {
            cx.refusals.log(peer, user.as_deref(), report, reason.as_deref());
        }
        outcome
    })
}
