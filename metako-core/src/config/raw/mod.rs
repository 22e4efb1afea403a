//! The file as it is written: a struct a section, a field a key, the defaults, and the docs that `metako schema` shows.
//!
//! Every field can be left out here. What must be given is in the schema, so that the checker names it with its place,
//! and so that what is left of a faulty file can still be checked.

mod hooks;
mod login;

pub(super) use hooks::{Hook, Hooks};
pub(super) use login::{Node, Role, SecretText, User, UserPool};

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::types::{FailoverMode, LogFormat, NoVoter, PoolMode, Split, UnknownOutcome};
use super::units::{Budget, ByteSize, HumanDuration, SynchronousText};

/// The name of a strategy, or a section with `type` and its options.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct StrategyValue(pub(super) Json);

impl StrategyValue {
    fn named(name: &str) -> Self {
        Self(Json::String(name.to_owned()))
    }
}

macro_rules! strategy_schema {
    ($($function:ident: $kind:literal),*) => {
        $(fn $function(_: &mut SchemaGenerator) -> Schema {
            json_schema!({ "x-strategy": $kind })
        })*
    };
}
strategy_schema!(
    health_probe: "health_probe",
    load_balancer: "load_balancer",
    failover_policy: "failover_policy",
    query_classifier: "query_classifier"
);

/// A key whose feature is not built yet.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Reserved;

impl JsonSchema for Reserved {
    fn schema_name() -> Cow<'static, str> {
        Cow::Borrowed("Reserved")
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-reserved": "none" })
    }
}

/// One value or a list of them.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(super) enum OneOrMany {
    One(String),
    Many(#[schemars(length(min = 1))] Vec<String>),
}

impl OneOrMany {
    pub(super) fn list(&self) -> Vec<&str> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many.iter().map(String::as_str).collect(),
        }
    }
}

/// metako's configuration.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct File {
    /// Where clients connect: `host:port`, or a list of them.
    pub(super) listen: OneOrMany,
    /// Where the journal, the records and the admin socket are kept; `none` is $STATE_DIRECTORY, else
    /// $XDG_STATE_HOME/metako, else ./metako-state.
    pub(super) state_dir: Option<String>,
    /// The name of the cluster in the journal, metrics and records.
    pub(super) cluster: String,
    /// The PostgreSQL servers.
    #[serde(skip_serializing)]
    #[schemars(length(min = 1))]
    pub(super) nodes: Vec<Node>,
    /// How nodes are watched.
    pub(super) health_check: HealthCheck,
    /// How reads are spread.
    pub(super) load_balancer: LoadBalancer,
    /// What tells reads from writes.
    #[schemars(schema_with = "query_classifier")]
    pub(super) classifier: StrategyValue,
    /// How server connections are pooled.
    pub(super) pool: Pool,
    /// Who may log in besides the users of the nodes.
    #[serde(skip_serializing)]
    pub(super) users: Vec<User>,
    /// How clients prove who they are.
    pub(super) auth: Auth,
    /// When and how a replica is promoted.
    pub(super) failover: Failover,
    /// Commands for what SQL cannot do.
    pub(super) hooks: Hooks,
    /// How several proxies agree.
    #[serde(skip_serializing)]
    #[schemars(extend("x-reserved" = "local"))]
    pub(super) coordination: Reserved,
    /// TLS for clients.
    pub(super) security: Security,
    /// The admin socket and page.
    pub(super) admin: Admin,
    /// Limits.
    pub(super) limits: Limits,
    /// Logs and the periodic report.
    pub(super) log: Log,
}

impl Default for File {
    fn default() -> Self {
        Self {
            listen: OneOrMany::One("127.0.0.1:6432".to_owned()),
            state_dir: None,
            cluster: "main".to_owned(),
            nodes: Vec::new(),
            health_check: HealthCheck::default(),
            load_balancer: LoadBalancer::default(),
            classifier: StrategyValue::named("keyword"),
            pool: Pool::default(),
            users: Vec::new(),
            auth: Auth::default(),
            failover: Failover::default(),
            hooks: Hooks::default(),
            coordination: Reserved,
            security: Security::default(),
            admin: Admin::default(),
            limits: Limits::default(),
            log: Log::default(),
        }
    }
}

/// `health_check`
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct HealthCheck {
    /// The strategy that asks a node.
    #[schemars(schema_with = "health_probe")]
    pub(super) probe: StrategyValue,
    /// How often each node is asked.
    #[schemars(extend("x-min" = "10ms"))]
    pub(super) interval: HumanDuration,
    /// How long an answer may take; at most `interval`.
    #[schemars(extend("x-min" = "1ms"))]
    pub(super) timeout: HumanDuration,
    /// So many failures in a row take a replica out of the read pool.
    #[schemars(range(min = 1))]
    pub(super) failure_threshold: u32,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            probe: StrategyValue::named("sql"),
            interval: HumanDuration::from_secs(1),
            timeout: HumanDuration::from_millis(500),
            failure_threshold: 3,
        }
    }
}

/// `load_balancer`
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct LoadBalancer {
    /// The strategy that picks a replica.
    #[schemars(schema_with = "load_balancer")]
    pub(super) algorithm: StrategyValue,
    /// Whether reads outside transactions go to replicas.
    pub(super) split: Split,
    /// What a read sees of earlier writes.
    #[serde(skip_serializing)]
    #[schemars(extend("x-reserved" = "session"))]
    pub(super) consistency: Reserved,
    /// A replica further behind gets no reads.
    pub(super) max_lag: Option<HumanDuration>,
    /// How long a read may take until its answer begins.
    #[schemars(extend("x-min" = "1ms"))]
    pub(super) read_timeout: Option<HumanDuration>,
    /// How long a write may take until its answer begins.
    #[schemars(extend("x-min" = "1ms"))]
    pub(super) write_timeout: Option<HumanDuration>,
}

impl Default for LoadBalancer {
    fn default() -> Self {
        Self {
            algorithm: StrategyValue::named("round_robin"),
            split: Split::Auto,
            consistency: Reserved,
            max_lag: Some(HumanDuration::from_secs(10)),
            read_timeout: None,
            write_timeout: None,
        }
    }
}

/// `pool`
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Pool {
    /// For how long a client keeps a server connection.
    pub(super) mode: PoolMode,
    /// Server connections per database, user and node.
    #[schemars(range(min = 1, max = 100_000))]
    pub(super) size: u32,
    /// Server connections that are kept open in each pool that is in use.
    #[schemars(range(max = 100_000))]
    pub(super) min: u32,
    /// Server connections beyond `size` for clients that waited for `reserve_after`.
    #[schemars(range(max = 100_000))]
    pub(super) reserve: u32,
    /// How long a client waits until the reserve is opened for it.
    pub(super) reserve_after: HumanDuration,
    /// How long a client waits for a server connection.
    #[schemars(extend("x-min" = "1ms"))]
    pub(super) wait_timeout: HumanDuration,
    /// A server connection that is older is closed when it is free.
    #[schemars(extend("x-min" = "1s"))]
    pub(super) lifetime: HumanDuration,
    /// A server connection that was idle for longer is closed.
    #[schemars(extend("x-min" = "1s"))]
    pub(super) idle_timeout: HumanDuration,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            mode: PoolMode::Transaction,
            size: 20,
            min: 0,
            reserve: 0,
            reserve_after: HumanDuration::from_secs(5),
            wait_timeout: HumanDuration::from_secs(30),
            lifetime: HumanDuration::from_secs(3600),
            idle_timeout: HumanDuration::from_secs(600),
        }
    }
}

/// `auth`
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Auth {
    /// Who may connect from where and how, in the format of pg_hba.conf; `none` is scram-sha-256 for all.
    pub(super) hba_file: Option<String>,
    /// Which users the names in certificates may be, in the format of pg_ident.conf, for rules with `map=`.
    pub(super) ident_file: Option<String>,
    /// A query that finds name and secret of the user `$1` in the server, for users that are not in this file.
    pub(super) query: Option<String>,
}

/// `failover`
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[expect(clippy::struct_field_names, reason = "the key says when the lag matters, as Patroni's does")]
pub(super) struct Failover {
    /// Who decides to promote.
    pub(super) mode: FailoverMode,
    /// The strategy that judges the evidence and ranks candidates.
    #[schemars(schema_with = "failover_policy")]
    pub(super) policy: StrategyValue,
    /// How many replicas must have a commit before it is acknowledged.
    pub(super) synchronous: Synchronous,
    /// Whether clients exist that do not come through metako.
    #[serde(skip_serializing)]
    #[schemars(extend("x-reserved" = "auto"))]
    pub(super) exclusive_access: Reserved,
    /// A primary that is silent for so long is suspect.
    #[schemars(extend("x-min" = "1ms"))]
    pub(super) silent_after: HumanDuration,
    /// A primary that answers and ends no commit for so long is replaced, although its replicas stream.
    #[schemars(extend("x-min" = "1ms"))]
    pub(super) stalled_after: HumanDuration,
    /// A primary that does nothing but start or recover for so long is replaced; `none` waits without end.
    #[schemars(extend("x-min" = "1ms"))]
    pub(super) start_timeout: Option<HumanDuration>,
    /// How long an asynchronous primary that restarts is waited for.
    pub(super) async_restart_grace: HumanDuration,
    /// How long a client is held while there is no primary.
    pub(super) hold_timeout: HumanDuration,
    /// How long a switchover waits for open transactions to end.
    #[schemars(extend("x-min" = "1ms"))]
    pub(super) drain_timeout: HumanDuration,
    /// How many clients are held at most.
    pub(super) hold_clients: u32,
    /// How many bytes of held clients are kept at most.
    pub(super) hold_bytes: ByteSize,
    /// So many automatic failovers in such a span, then a person decides.
    pub(super) budget: Budget,
    /// What the most advanced replica may lack of the WAL that an asynchronous primary was known to have; beyond it a
    /// person decides; `none` is no limit.
    pub(super) max_lag_on_failover: Option<ByteSize>,
    /// What a client is told of a commit whose outcome is unknown.
    pub(super) unknown_outcome: UnknownOutcome,
}

impl Default for Failover {
    fn default() -> Self {
        Self {
            mode: FailoverMode::Automatic,
            policy: StrategyValue::named("most_advanced"),
            synchronous: Synchronous::Text(SynchronousText::None),
            exclusive_access: Reserved,
            silent_after: HumanDuration::from_millis(2500),
            stalled_after: HumanDuration::from_secs(10),
            start_timeout: Some(HumanDuration::from_secs(300)),
            async_restart_grace: HumanDuration::default(),
            hold_timeout: HumanDuration::from_secs(30),
            drain_timeout: HumanDuration::from_secs(10),
            hold_clients: 10_000,
            hold_bytes: ByteSize(64 << 20),
            budget: Budget { count: 2, span: HumanDuration::from_secs(600) },
            max_lag_on_failover: Some(ByteSize(16 << 20)),
            unknown_outcome: UnknownOutcome::TransactionResolutionUnknown,
        }
    }
}

/// `failover.synchronous`
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(super) enum Synchronous {
    /// In short.
    Text(SynchronousText),
    /// At length.
    Section(Quorum),
}

/// The only mode of `failover.synchronous`.
#[derive(Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum SynchronousMode {
    Quorum,
}

/// `failover.synchronous` at length.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Quorum {
    /// Any of the replicas may acknowledge.
    pub(super) mode: SynchronousMode,
    /// How many replicas must have a commit.
    #[schemars(range(min = 1))]
    pub(super) acks: u32,
    /// What to do when there are fewer; `degrade` if left out and there are two nodes, else `block`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NoVoter")]
    pub(super) on_no_voter: Option<NoVoter>,
    /// Whether a commit whose synchronous wait was cancelled is reported as unknown.
    pub(super) commit_guard: bool,
}

impl Default for Quorum {
    fn default() -> Self {
        Self { mode: SynchronousMode::Quorum, acks: 1, on_no_voter: None, commit_guard: true }
    }
}

/// `security`
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Security {
    /// Whether TLS is offered to clients.
    pub(super) tls_enabled: bool,
    /// Whether clients without TLS are refused.
    pub(super) require_tls: bool,
    /// Certificate chain, PEM.
    pub(super) cert_file: Option<String>,
    /// Private key, PEM.
    pub(super) key_file: Option<String>,
    /// Authorities that sign the certificates of clients, PEM.
    pub(super) client_ca_file: Option<String>,
}

/// `admin`
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Admin {
    /// The admin socket; `none` is admin.sock in the state directory.
    pub(super) socket: Option<String>,
    /// Address of the page and the metrics.
    #[serde(skip_serializing)]
    pub(super) http: Reserved,
}

/// `limits`
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Limits {
    /// Clients at once.
    #[schemars(range(min = 1))]
    pub(super) clients: u32,
    /// Clients at once of one user.
    #[serde(skip_serializing)]
    pub(super) clients_per_user: Reserved,
    /// How long a log-in may take.
    #[schemars(extend("x-min" = "1ms"))]
    pub(super) login_timeout: HumanDuration,
    /// How long a client may leave a transaction idle.
    #[serde(skip_serializing)]
    pub(super) idle_in_transaction_timeout: Reserved,
    /// The longest protocol message.
    #[schemars(extend("x-min" = "64KiB"))]
    pub(super) message_size: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 10_000,
            clients_per_user: Reserved,
            login_timeout: HumanDuration::from_secs(10),
            idle_in_transaction_timeout: Reserved,
            message_size: ByteSize(1 << 30),
        }
    }
}

/// `log`
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Log {
    /// For people or for machines.
    pub(super) format: LogFormat,
    /// A level, or a filter such as `info,metako_proxy=debug`.
    #[schemars(length(min = 1))]
    pub(super) level: String,
    /// How often the cluster report is logged.
    #[schemars(extend("x-min" = "1s"))]
    pub(super) report_interval: Option<HumanDuration>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Human,
            level: "info".to_owned(),
            report_interval: Some(HumanDuration::from_secs(60)),
        }
    }
}

/// The JSON schema of the file.
pub(super) fn schema() -> Schema {
    SchemaGenerator::default().into_root_schema_for::<File>()
}
