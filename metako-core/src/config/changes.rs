//! What a reload changes.

use std::fmt;
use std::path::PathBuf;

use super::types::{Config, Hook, Node, TlsFiles, User};
use super::units::{ByteSize, HumanDuration};
use crate::NodeName;

/// One difference between the running configuration and a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A node joins.
    NodeAdded(NodeName),
    /// A node leaves: it is drained.
    NodeRemoved(NodeName),
    /// A key of a node has another value. Values that are secret are not shown.
    NodeChanged {
        /// The node.
        node: NodeName,
        /// The key in the node's section, such as `weight`.
        key: &'static str,
    },
    /// A strategy or its options are replaced.
    Strategy {
        /// The key, such as `load_balancer.algorithm`.
        key: &'static str,
        /// The new strategy and options as JSON.
        to: String,
    },
    /// A user may log in from now on.
    UserAdded(String),
    /// A user may no longer log in.
    UserRemoved(String),
    /// The password, databases or rights of a user changed.
    UserChanged(String),
    /// A setting has another value.
    Setting {
        /// The key, such as `pool.size`.
        key: &'static str,
        /// The old value.
        from: String,
        /// The new value.
        to: String,
    },
    /// A setting that cannot change while metako runs: the old value stays until a restart.
    NeedsRestart {
        /// The key, such as `listen`.
        key: &'static str,
        /// The value that stays.
        from: String,
        /// The value that a restart would bring.
        to: String,
    },
}

impl Change {
    /// Whether it takes effect only after a restart.
    pub fn needs_restart(&self) -> bool {
        matches!(self, Self::NeedsRestart { .. })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeAdded(node) => write!(f, "node {node} is added"),
            Self::NodeRemoved(node) => write!(f, "node {node} is removed and drained"),
            Self::NodeChanged { node, key } => write!(f, "node {node}: {key} changes"),
            Self::Strategy { key, to } => write!(f, "{key} becomes {to}"),
            Self::UserAdded(user) => write!(f, "user {user} is added"),
            Self::UserRemoved(user) => write!(f, "user {user} is removed"),
            Self::UserChanged(user) => write!(f, "user {user} changes"),
            Self::Setting { key, from, to } => write!(f, "{key} changes from {from} to {to}"),
            Self::NeedsRestart { key, from, to } => {
                write!(f, "{key} stays {from}: {to} needs a restart")
            }
        }
    }
}

/// What differs between two configurations: nodes, users, strategies, settings, in that order.
pub fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let mut found = Vec::new();
    nodes(&old.cluster.nodes, &new.cluster.nodes, &mut found);
    users(old, new, &mut found);
    for ((key, before), (_, after)) in strategies(old).into_iter().zip(strategies(new)) {
        if before != after {
            found.push(Change::Strategy { key, to: after.to_string() });
        }
    }
    for ((key, from), (_, to)) in settings(old).into_iter().zip(settings(new)) {
        if from != to {
            found.push(Change::Setting { key, from, to });
        }
    }
    for ((key, from), (_, to)) in fixed(old).into_iter().zip(fixed(new)) {
        if from != to {
            found.push(Change::NeedsRestart { key, from, to });
        }
    }
    found
}

fn nodes(old: &[Node], new: &[Node], found: &mut Vec<Change>) {
    let of = |nodes: &[Node], name: &NodeName| nodes.iter().find(|node| node.name == *name).cloned();
    found.extend(
        old.iter()
            .filter(|node| of(new, &node.name).is_none())
            .map(|node| Change::NodeRemoved(node.name.clone())),
    );
    for node in new {
        match of(old, &node.name) {
            None => found.push(Change::NodeAdded(node.name.clone())),
            Some(before) => found.extend(
                node_keys(&before, node)
                    .into_iter()
                    .filter(|(_, same)| !same)
                    .map(|(key, _)| Change::NodeChanged { node: node.name.clone(), key }),
            ),
        }
    }
}

fn node_keys(old: &Node, new: &Node) -> [(&'static str, bool); 18] {
    fn client(node: &Node, pick: fn(&TlsFiles) -> &PathBuf) -> Option<&PathBuf> {
        node.tls.client.as_ref().map(pick)
    }
    [
        ("host", old.host == new.host),
        ("port", old.port == new.port),
        ("role", old.role == new.role),
        ("username", old.username == new.username),
        ("password", old.password == new.password),
        ("database", old.database == new.database),
        ("weight", old.weight == new.weight),
        ("zone", old.zone == new.zone),
        ("priority", old.priority == new.priority),
        ("sslmode", old.tls.sslmode == new.tls.sslmode),
        ("sslrootcert", old.tls.sslrootcert == new.tls.sslrootcert),
        ("sslcert", client(old, |files| &files.cert) == client(new, |files| &files.cert)),
        ("sslkey", client(old, |files| &files.key) == client(new, |files| &files.key)),
        ("sslnegotiation", old.tls.sslnegotiation == new.tls.sslnegotiation),
        ("channel_binding", old.tls.channel_binding == new.tls.channel_binding),
        ("application_name", old.application_name == new.application_name),
        ("pgdata", old.pgdata == new.pgdata),
        ("replication", old.replication == new.replication),
    ]
}

fn users(old: &Config, new: &Config, found: &mut Vec<Change>) {
    for user in &old.users {
        if !new.users.iter().any(|other| other.name == user.name) {
            found.push(Change::UserRemoved(user.name.clone()));
        }
    }
    for user in &new.users {
        match old.users.iter().find(|other| other.name == user.name) {
            None => found.push(Change::UserAdded(user.name.clone())),
            Some(before) if user_changes(before, user, old, new) => {
                found.push(Change::UserChanged(user.name.clone()));
            }
            Some(_) => {}
        }
    }
}

/// Whether a user changes by itself: where its pool follows `pool`, the change is told there.
fn user_changes(before: &User, after: &User, old: &Config, new: &Config) -> bool {
    let followed = before.pool == old.pool && after.pool == new.pool;
    User { pool: after.pool.clone(), ..before.clone() } != *after || (before.pool != after.pool && !followed)
}

/// The strategies by key, as JSON: specs compare by what they would be written as.
fn strategies(config: &Config) -> [(&'static str, serde_json::Value); 4] {
    fn json<S: serde::Serialize + ?Sized>(spec: &S) -> serde_json::Value {
        serde_json::to_value(spec).unwrap_or_else(|error| serde_json::Value::String(error.to_string()))
    }
    let strategies = &config.strategies;
    [
        ("health_check.probe", json(&*strategies.probe)),
        ("load_balancer.algorithm", json(&*strategies.balancer)),
        ("failover.policy", json(&*strategies.policy)),
        ("classifier", json(&*strategies.classifier)),
    ]
}

fn word<T: serde::Serialize>(value: T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

fn time(duration: std::time::Duration) -> String {
    HumanDuration(duration).to_string()
}

fn maybe<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "none".to_owned(), show)
}

fn hook(hook: &Hook) -> String {
    format!("{{ command: [{}], timeout: {} }}", hook.command.join(", "), time(hook.timeout))
}

/// Settings that take effect at once.
fn settings(config: &Config) -> Vec<(&'static str, String)> {
    let (cluster, routing, pool) = (&config.cluster, &config.routing, &config.pool);
    let (failover, security, limits, log) =
        (&cluster.failover, &config.security, &config.limits, &config.log);
    let (count, span) = failover.budget;
    let size = |bytes: u64| ByteSize(bytes).to_string();
    let path = |path: Option<&PathBuf>| maybe(path, |path| path.display().to_string());
    let file = |pick: fn(&TlsFiles) -> &std::path::Path| {
        maybe(security.tls.as_ref(), |tls| pick(tls).display().to_string())
    };
    vec![
        ("health_check.interval", time(cluster.interval)),
        ("health_check.timeout", time(cluster.timeout)),
        ("health_check.failure_threshold", cluster.failure_threshold.to_string()),
        ("load_balancer.split", word(routing.split)),
        ("load_balancer.max_lag", maybe(cluster.max_lag, time)),
        ("load_balancer.read_timeout", maybe(routing.read_timeout, time)),
        ("load_balancer.write_timeout", maybe(routing.write_timeout, time)),
        ("pool.mode", word(pool.mode)),
        ("pool.size", pool.size.to_string()),
        ("pool.min", pool.min.to_string()),
        ("pool.reserve", pool.reserve.to_string()),
        ("pool.reserve_after", time(pool.reserve_after)),
        ("pool.wait_timeout", time(pool.wait_timeout)),
        ("pool.lifetime", time(pool.lifetime)),
        ("pool.idle_timeout", time(pool.idle_timeout)),
        ("failover.mode", word(failover.mode)),
        (
            "failover.synchronous",
            maybe(failover.synchronous.as_ref(), |rule| {
                let (acks, on_no_voter, guard) = (rule.acks.0, word(rule.on_no_voter), rule.commit_guard);
                format!("{{ acks: {acks}, on_no_voter: {on_no_voter}, commit_guard: {guard} }}")
            }),
        ),
        ("failover.silent_after", time(failover.silent_after)),
        ("failover.stalled_after", time(failover.stalled_after)),
        ("failover.start_timeout", maybe(failover.start_timeout, time)),
        ("failover.async_restart_grace", time(failover.async_restart_grace)),
        ("failover.hold_timeout", time(failover.hold_timeout)),
        ("failover.drain_timeout", time(failover.drain_timeout)),
        ("failover.hold_clients", failover.hold_clients.to_string()),
        ("failover.hold_bytes", size(failover.hold_bytes)),
        ("failover.budget", format!("{count} per {}", time(span))),
        ("failover.max_lag_on_failover", maybe(failover.max_lag_on_failover, size)),
        ("failover.unknown_outcome", word(failover.unknown_outcome)),
        ("hooks.stop", maybe(cluster.hooks.stop.as_ref(), hook)),
        ("hooks.rejoin", maybe(cluster.hooks.rejoin.as_ref(), hook)),
        ("security.tls_enabled", security.tls.is_some().to_string()),
        ("security.require_tls", security.require_tls.to_string()),
        ("security.cert_file", file(|tls| &tls.cert)),
        ("security.key_file", file(|tls| &tls.key)),
        ("security.client_ca_file", path(security.client_ca.as_ref())),
        ("auth.hba_file", path(config.auth.hba_file.as_ref())),
        ("auth.ident_file", path(config.auth.ident_file.as_ref())),
        ("auth.query", maybe(config.auth.query.as_ref(), Clone::clone)),
        ("limits.clients", limits.clients.to_string()),
        ("limits.login_timeout", time(limits.login_timeout)),
        ("limits.message_size", size(limits.message_size)),
        ("log.level", log.level.clone()),
        ("log.report_interval", maybe(log.report_interval, time)),
    ]
}

/// Settings that hold until a restart.
fn fixed(config: &Config) -> Vec<(&'static str, String)> {
    let path = |path: &Option<PathBuf>| maybe(path.as_ref(), |path| path.display().to_string());
    vec![
        ("listen", config.listen.join(", ")),
        ("state_dir", path(&config.state_dir)),
        ("cluster", config.cluster.name.clone()),
        ("admin.socket", path(&config.admin.socket)),
        ("log.format", word(config.log.format)),
    ]
}
