//! The checked configuration.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::NodeName;
use crate::plugin::{FailoverPolicySpec, HealthProbeSpec, LoadBalancerSpec, QueryClassifierSpec};
use crate::wire::sqlstate;

/// A checked configuration, with every default filled in.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to listen on, as `host:port`.
    pub listen: Vec<String>,
    /// `state_dir`, if given.
    pub state_dir: Option<PathBuf>,
    /// What the controller works by.
    pub cluster: Arc<ClusterSettings>,
    /// The strategies, by their specs.
    pub strategies: Strategies,
    /// How statements are routed.
    pub routing: Routing,
    /// How server connections are pooled.
    pub pool: PoolSettings,
    /// Users who may log in besides those of the nodes.
    pub users: Vec<User>,
    /// How clients prove who they are.
    pub auth: Auth,
    /// TLS for clients.
    pub security: Security,
    /// The admin socket and page.
    pub admin: Admin,
    /// Limits.
    pub limits: Limits,
    /// Logs and the periodic report.
    pub log: Log,
}

impl Config {
    /// How server connections of that user are pooled.
    pub fn pool_of(&self, user: &str) -> &PoolSettings {
        self.users.iter().find(|known| known.name == user).map_or(&self.pool, |known| &known.pool)
    }
}

/// The specs of the strategies in use.
#[derive(Debug, Clone)]
pub struct Strategies {
    /// `health_check.probe`
    pub probe: Arc<dyn HealthProbeSpec>,
    /// `load_balancer.algorithm`
    pub balancer: Arc<dyn LoadBalancerSpec>,
    /// `failover.policy`
    pub policy: Arc<dyn FailoverPolicySpec>,
    /// `classifier`
    pub classifier: Arc<dyn QueryClassifierSpec>,
}

/// What the cluster controller works by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSettings {
    /// `cluster`
    pub name: String,
    /// `nodes`, in the order of the file.
    pub nodes: Vec<Node>,
    /// `health_check.interval`
    pub interval: Duration,
    /// `health_check.timeout`
    pub timeout: Duration,
    /// `health_check.failure_threshold`
    pub failure_threshold: u32,
    /// `load_balancer.max_lag`; `None` is no limit.
    pub max_lag: Option<Duration>,
    /// `failover`
    pub failover: FailoverSettings,
    /// `hooks`
    pub hooks: Hooks,
}

impl ClusterSettings {
    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name.as_str() == name)
    }
}

/// One PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name, unique.
    pub name: NodeName,
    /// Host name or address, as metako reaches it.
    pub host: String,
    /// Port.
    pub port: u16,
    /// What the file says of its role: a hint for the first start only.
    pub role: Option<RoleHint>,
    /// The user that metako logs in as, for probes and control, and a user that clients may log in as.
    pub username: String,
    /// Its password.
    pub password: Secret,
    /// The database of control connections, and the one that clients of `username` may use.
    pub database: String,
    /// Share of reads, for balancers that weigh; at least 1.
    pub weight: u32,
    /// Where it stands, for strategies that care.
    pub zone: Option<String>,
    /// Rank among equals in an election.
    pub priority: Priority,
    /// TLS towards it.
    pub tls: NodeTls,
    /// Its name among standbys: `application_name` of its replication connection.
    pub application_name: String,
    /// `pgdata`: its data directory on its host, for hooks.
    pub pgdata: Option<String>,
    /// How other nodes reach it.
    pub replication: ReplicationAddress,
}

/// `role:` of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleHint {
    /// `primary` or `master`
    Primary,
    /// `replica` or `slave`
    Replica,
}

/// `priority:` of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Smaller is preferred.
    Rank(u32),
    /// Never promoted.
    Never,
}

/// TLS towards a node, with libpq's names and meanings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTls {
    /// `sslmode`
    pub sslmode: SslMode,
    /// `sslrootcert`: who may have signed the server's certificate; `None`: anybody.
    pub sslrootcert: Option<RootCert>,
    /// `sslcert` and `sslkey`: metako's own certificate towards the server.
    pub client: Option<TlsFiles>,
    /// `sslnegotiation`
    pub sslnegotiation: SslNegotiation,
    /// `channel_binding`
    pub channel_binding: ChannelBinding,
}

impl NodeTls {
    /// That mode, and the defaults.
    pub const fn new(sslmode: SslMode) -> Self {
        Self {
            sslmode,
            sslrootcert: None,
            client: None,
            sslnegotiation: SslNegotiation::Postgres,
            channel_binding: ChannelBinding::Prefer,
        }
    }
}

/// `sslmode:` of a node, as libpq has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server refuses metako without.
    Allow,
    /// TLS if the server has it.
    Prefer,
    /// TLS or nothing. The server's certificate is checked only where `sslrootcert` is given.
    Require,
    /// TLS, and the server's certificate comes from `sslrootcert`.
    VerifyCa,
    /// As `VerifyCa`, and the certificate is for the node's host.
    VerifyFull,
}

/// `sslrootcert:` of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootCert {
    /// The authorities that the system trusts.
    System,
    /// Those in this file, PEM.
    File(PathBuf),
}

/// `sslnegotiation:` of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum SslNegotiation {
    /// Asks the server by PostgreSQL's protocol whether it has TLS.
    Postgres,
    /// Begins with TLS at once: PostgreSQL 17 and newer.
    Direct,
}

/// `channel_binding:` of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where the server has it.
    Prefer,
    /// Always: a server that authenticates in another way is refused.
    Require,
}

/// `replication:` of a node: what goes into other nodes' `primary_conninfo`. Where nothing is given, a standby's
/// present conninfo is kept but for host and port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationAddress {
    /// Host; the node's own by default.
    pub host: String,
    /// Port; the node's own by default.
    pub port: u16,
    /// User, if it is to be changed.
    pub user: Option<String>,
    /// Password, if it is to be changed.
    pub password: Option<Secret>,
    /// Password file, if it is to be changed.
    pub passfile: Option<String>,
}

/// Text that is never shown: where it is written down, [`Secret::MASK`] stands in its place.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// What is written down in place of a secret, in records for example.
    pub const MASK: &'static str = "***";

    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself: to be sent or compared, never logged.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Self::MASK)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// `failover`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverSettings {
    /// `mode`
    pub mode: FailoverMode,
    /// `synchronous`; `None` is asynchronous.
    pub synchronous: Option<Synchronous>,
    /// `silent_after`
    pub silent_after: Duration,
    /// `stalled_after`
    pub stalled_after: Duration,
    /// `start_timeout`; `None` waits without end.
    pub start_timeout: Option<Duration>,
    /// `async_restart_grace`
    pub async_restart_grace: Duration,
    /// `hold_timeout`
    pub hold_timeout: Duration,
    /// `drain_timeout`: how long a switchover waits for open transactions to end.
    pub drain_timeout: Duration,
    /// `hold_clients`
    pub hold_clients: usize,
    /// `hold_bytes`
    pub hold_bytes: u64,
    /// `budget`: so many automatic failovers in such a span.
    pub budget: (u32, Duration),
    /// `max_lag_on_failover`, in bytes; `None` is no limit.
    pub max_lag_on_failover: Option<u64>,
    /// `unknown_outcome`
    pub unknown_outcome: UnknownOutcome,
}

impl FailoverSettings {
    /// How a commit whose synchronous wait was cancelled is reported, if not as the success that PostgreSQL makes of it.
    pub fn commit_guard(&self) -> Option<UnknownOutcome> {
        self.synchronous.as_ref().filter(|rule| rule.commit_guard).map(|_| self.unknown_outcome)
    }
}

/// `hooks`: commands that do on a node's host what SQL cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// Stops the PostgreSQL of a node.
    pub stop: Option<Hook>,
    /// Makes a former primary or a diverged standby follow the present primary.
    pub rejoin: Option<Hook>,
    /// Variables of metako's environment that hold passwords (`password_env`), and are none of theirs.
    pub withheld: Vec<String>,
}

/// A command, run without a shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// The program and its first arguments: not empty, nor is any of them, and none holds a zero byte. Only the program is
    /// written down.
    #[serde(serialize_with = "program")]
    pub command: Vec<String>,
    /// How long it may take until it is ended.
    pub timeout: Duration,
}

fn program<S: Serializer>(command: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(command.first())
}

/// `failover.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum FailoverMode {
    /// metako promotes by itself.
    Automatic,
    /// metako promotes nothing by itself; a person does.
    Manual,
    /// Others promote, and metako follows.
    Observe,
}

/// `failover.synchronous`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synchronous {
    /// How many standbys must have a commit before it is acknowledged.
    pub acks: Acks,
    /// What to do when there are fewer.
    pub on_no_voter: NoVoter,
    /// Whether a commit whose synchronous wait was cancelled is reported as unknown, not as success.
    pub commit_guard: bool,
}

/// A number of standbys, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acks(pub u32);

/// `failover.synchronous.on_no_voter`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum NoVoter {
    /// Commits wait.
    Block,
    /// Commits go on without.
    Degrade,
}

/// `failover.unknown_outcome`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum UnknownOutcome {
    /// SQLSTATE 08007.
    #[serde(rename = "unknown")]
    TransactionResolutionUnknown,
    /// SQLSTATE 40003.
    #[serde(rename = "completion_unknown")]
    StatementCompletionUnknown,
    /// The client connection is closed.
    #[serde(rename = "close")]
    Close,
}

impl UnknownOutcome {
    /// The SQLSTATE of the error; `None` if the connection ends without one.
    pub fn sqlstate(self) -> Option<&'static str> {
        match self {
            Self::TransactionResolutionUnknown => Some(sqlstate::TRANSACTION_RESOLUTION_UNKNOWN),
            Self::StatementCompletionUnknown => Some(sqlstate::STATEMENT_COMPLETION_UNKNOWN),
            Self::Close => None,
        }
    }
}

/// `load_balancer`, but for the balancer itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// `split`
    pub split: Split,
    /// `read_timeout`
    pub read_timeout: Option<Duration>,
    /// `write_timeout`
    pub write_timeout: Option<Duration>,
}

/// `load_balancer.split`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Split {
    /// Reads outside transactions go to replicas.
    Auto,
    /// Everything goes to the primary.
    Off,
}

/// `pool`, and `users[].pool` over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// `mode`
    pub mode: PoolMode,
    /// `size`: server connections per database, user and node.
    pub size: u32,
    /// `min`: so many of them are kept open.
    pub min: u32,
    /// `reserve`: so many beyond `size`, when clients wait for long.
    pub reserve: u32,
    /// `reserve_after`: how long that is.
    pub reserve_after: Duration,
    /// `wait_timeout`
    pub wait_timeout: Duration,
    /// `lifetime`
    pub lifetime: Duration,
    /// `idle_timeout`
    pub idle_timeout: Duration,
}

/// `pool.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum PoolMode {
    /// A server connection for a transaction.
    Transaction,
    /// A server connection for the whole session; never splits.
    Session,
    /// A server connection for a statement; no transaction blocks.
    Statement,
}

/// `users`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name that clients log in with, and that metako logs in to the servers with.
    pub name: String,
    /// Password in clear, or as PostgreSQL keeps it: `SCRAM-SHA-256$...` or `md5...`.
    pub password: Secret,
    /// Databases that it may use, where `*` stands for any text; empty: any.
    pub databases: Vec<String>,
    /// How its server connections are pooled.
    pub pool: PoolSettings,
    /// What it may do in the console.
    pub admin: AdminAccess,
}

/// `users.admin`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum AdminAccess {
    /// Nothing.
    None,
    /// Look.
    Read,
    /// Everything.
    Full,
}

/// `auth`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Auth {
    /// `hba_file`; `None` is scram-sha-256 for all.
    pub hba_file: Option<PathBuf>,
    /// `ident_file`: maps of names for its rules.
    pub ident_file: Option<PathBuf>,
    /// `query`: finds the secrets of users that are not in the configuration.
    pub query: Option<String>,
}

/// `security`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// TLS is offered to clients, with these files.
    pub tls: Option<TlsFiles>,
    /// Authorities that sign the certificates of clients, PEM.
    pub client_ca: Option<PathBuf>,
    /// Clients without TLS are refused.
    pub require_tls: bool,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// `admin`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// `socket`; `None` is `admin.sock` in the state directory.
    pub socket: Option<PathBuf>,
}

/// `limits`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// `clients`
    pub clients: usize,
    /// `login_timeout`
    pub login_timeout: Duration,
    /// `message_size` in bytes.
    pub message_size: u64,
}

/// `log`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// `format`
    pub format: LogFormat,
    /// `level`: a level or a filter of tracing-subscriber.
    pub level: String,
    /// `report_interval`; `None` is no report.
    pub report_interval: Option<Duration>,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}
