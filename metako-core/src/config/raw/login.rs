//! The servers and the users, as they are written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::types::{AdminAccess, ChannelBinding, PoolMode, Priority, SslMode, SslNegotiation};
use crate::config::units::{HumanDuration, PriorityText};

/// A secret, in one of three ways.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct SecretText {
    /// The password itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1), extend("x-secret" = true))]
    pub(in crate::config) password: Option<String>,
    /// The environment variable that holds the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(in crate::config) password_env: Option<String>,
    /// The file that holds the password; a line break at its end does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(in crate::config) password_file: Option<String>,
}

/// `role`, in today's words and in those of the system that metako succeeds.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(in crate::config) enum Role {
    Primary,
    Replica,
    Master,
    Slave,
}

/// A PostgreSQL server.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name", "host", "username", "database"]))]
pub(in crate::config) struct Node {
    /// Its name, unique: letters, digits, `-`, `_` and `.`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(in crate::config) name: Option<String>,
    /// Host name or address, as metako reaches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub(in crate::config) host: Option<String>,
    /// Port.
    #[schemars(range(min = 1))]
    pub(in crate::config) port: u16,
    /// Its role at the first start; a hint only, PostgreSQL decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Role")]
    pub(in crate::config) role: Option<Role>,
    /// The user that metako logs in as; clients may log in as it too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(in crate::config) username: Option<String>,
    #[serde(flatten)]
    pub(in crate::config) secret: SecretText,
    /// The database of metako's own connections, and of clients of `username`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(in crate::config) database: Option<String>,
    /// Share of reads, for balancers that weigh.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(in crate::config) weight: u32,
    /// Where it stands, for strategies that care.
    pub(in crate::config) zone: Option<String>,
    /// Rank among equals in an election, smaller first; `never` is not promoted.
    pub(in crate::config) priority: PriorityText,
    /// TLS towards it, as libpq has it.
    pub(in crate::config) sslmode: SslMode,
    /// Authorities that sign its certificate: a PEM file, or `system` for those that the system trusts.
    pub(in crate::config) sslrootcert: Option<String>,
    /// metako's own certificate towards it, PEM.
    pub(in crate::config) sslcert: Option<String>,
    /// The key of that certificate, PEM.
    pub(in crate::config) sslkey: Option<String>,
    /// How TLS begins.
    pub(in crate::config) sslnegotiation: SslNegotiation,
    /// Whether SCRAM is bound to the TLS connection.
    pub(in crate::config) channel_binding: ChannelBinding,
    /// Its `application_name` among standbys; its name if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(in crate::config) application_name: Option<String>,
    /// Its data directory on its host, handed to hooks.
    pub(in crate::config) pgdata: Option<String>,
    /// How other nodes reach it, where that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Replication")]
    pub(in crate::config) replication: Option<Replication>,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: None,
            host: None,
            port: 5432,
            role: None,
            username: None,
            secret: SecretText::default(),
            database: None,
            weight: 1,
            zone: None,
            priority: PriorityText(Priority::Rank(100)),
            sslmode: SslMode::Prefer,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            sslnegotiation: SslNegotiation::Postgres,
            channel_binding: ChannelBinding::Prefer,
            application_name: None,
            pgdata: None,
            replication: None,
        }
    }
}

/// How other nodes reach a node.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct Replication {
    /// Host; the node's own if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(in crate::config) host: Option<String>,
    /// Port; the node's own if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u16", range(min = 1))]
    pub(in crate::config) port: Option<u16>,
    /// Replication user; the standby's present one if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(in crate::config) user: Option<String>,
    #[serde(flatten)]
    pub(in crate::config) secret: SecretText,
    /// Password file on the standbys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(in crate::config) passfile: Option<String>,
}

/// A user who may log in.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name"]))]
pub(in crate::config) struct User {
    /// The name that clients log in with, and metako in to the servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1))]
    pub(in crate::config) name: Option<String>,
    #[serde(flatten)]
    pub(in crate::config) secret: SecretText,
    /// Databases that it may use, where `*` stands for any text; all of them if left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1))]
    pub(in crate::config) databases: Vec<String>,
    /// Pool settings of its own; what is left out is taken from `pool`.
    pub(in crate::config) pool: Option<UserPool>,
    /// What it may do in the console.
    pub(in crate::config) admin: AdminAccess,
}

impl Default for User {
    fn default() -> Self {
        Self {
            name: None,
            secret: SecretText::default(),
            databases: Vec::new(),
            pool: None,
            admin: AdminAccess::None,
        }
    }
}

/// What differs from `pool` for one user.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(in crate::config) struct UserPool {
    /// For how long a client keeps a server connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PoolMode")]
    pub(in crate::config) mode: Option<PoolMode>,
    /// Server connections per database and node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(min = 1, max = 100_000))]
    pub(in crate::config) size: Option<u32>,
    /// Server connections that are kept open.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(max = 100_000))]
    pub(in crate::config) min: Option<u32>,
    /// Server connections beyond `size` for clients that waited for `reserve_after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u32", range(max = 100_000))]
    pub(in crate::config) reserve: Option<u32>,
    /// How long a client waits until the reserve is opened for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HumanDuration")]
    pub(in crate::config) reserve_after: Option<HumanDuration>,
    /// How long a client waits for a server connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HumanDuration", extend("x-min" = "1ms"))]
    pub(in crate::config) wait_timeout: Option<HumanDuration>,
    /// A server connection that is older is closed when it is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HumanDuration", extend("x-min" = "1s"))]
    pub(in crate::config) lifetime: Option<HumanDuration>,
    /// A server connection that was idle for longer is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HumanDuration", extend("x-min" = "1s"))]
    pub(in crate::config) idle_timeout: Option<HumanDuration>,
}
