//! From the raw file to the checked configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::address;
use super::places::Checks;
use super::raw::{self, File, Role, StrategyValue};
use super::secrets::{self, SecretSource, Use};
use super::types::{
    Acks, Admin, Auth, ClusterSettings, Config, FailoverSettings, Hook, Hooks, Limits, Log, NoVoter, Node,
    NodeTls, PoolSettings, ReplicationAddress, RoleHint, RootCert, Routing, Secret, Security, Strategies,
    Synchronous, TlsFiles, User,
};
use super::units::{HumanDuration, SynchronousText};
use crate::NodeName;
use crate::plugin::{
    BuildError, FailoverPolicySpec, HealthProbeSpec, Kind, LoadBalancerSpec, QueryClassifierSpec, find,
};

/// How long hooks may take where the file does not say: a checkpoint for one, a whole base backup for the other.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);
const REJOIN_TIMEOUT: Duration = Duration::from_hours(1);

/// The secrets of the file in its order; `None` where there is none or where it is at fault.
pub(super) struct Secrets {
    pub(super) nodes: Vec<Option<Secret>>,
    pub(super) replication: Vec<Option<Secret>>,
    pub(super) users: Vec<Option<Secret>>,
}

impl Secrets {
    pub(super) fn resolve(file: &File, source: &dyn SecretSource, checks: &mut Checks<'_>) -> Self {
        let mut secrets = Self { nodes: Vec::new(), replication: Vec::new(), users: Vec::new() };
        for (index, node) in file.nodes.iter().enumerate() {
            let path = format!("nodes[{index}]");
            secrets.nodes.push(secrets::resolve(&node.secret, &path, Use::LogIn, source, checks));
            let replication = node.replication.as_ref().and_then(|replication| {
                secrets::resolve(
                    &replication.secret,
                    &format!("{path}.replication"),
                    Use::Replication,
                    source,
                    checks,
                )
            });
            secrets.replication.push(replication);
        }
        for (index, user) in file.users.iter().enumerate() {
            secrets.users.push(secrets::resolve(
                &user.secret,
                &format!("users[{index}]"),
                Use::Check,
                source,
                checks,
            ));
        }
        secrets
    }
}

/// Makes the specs and has each build its strategy once, so that an impossible option is found now.
pub(super) fn strategies(file: &File, checks: &mut Checks<'_>) -> Option<Strategies> {
    let probe: Option<Box<dyn HealthProbeSpec>> =
        spec(Kind::HealthProbe, &file.health_check.probe, "health_check.probe", checks);
    let balancer: Option<Box<dyn LoadBalancerSpec>> =
        spec(Kind::LoadBalancer, &file.load_balancer.algorithm, "load_balancer.algorithm", checks);
    let policy: Option<Box<dyn FailoverPolicySpec>> =
        spec(Kind::FailoverPolicy, &file.failover.policy, "failover.policy", checks);
    let classifier: Option<Box<dyn QueryClassifierSpec>> =
        spec(Kind::QueryClassifier, &file.classifier, "classifier", checks);
    built(probe.as_ref().map(|spec| spec.build().map(drop)), "health_check.probe", checks);
    built(balancer.as_ref().map(|spec| spec.build().map(drop)), "load_balancer.algorithm", checks);
    built(policy.as_ref().map(|spec| spec.build().map(drop)), "failover.policy", checks);
    built(classifier.as_ref().map(|spec| spec.build().map(drop)), "classifier", checks);
    Some(Strategies {
        probe: Arc::from(probe?),
        balancer: Arc::from(balancer?),
        policy: Arc::from(policy?),
        classifier: Arc::from(classifier?),
    })
}

fn spec<S: DeserializeOwned>(
    kind: Kind,
    value: &StrategyValue,
    key: &str,
    checks: &mut Checks<'_>,
) -> Option<S> {
    let value = match &value.0 {
        Json::String(name) if find(kind, name).is_none() => {
            checks.problem(&[key], format!("the default, {kind} `{name}`, is not linked into this binary"));
            return None;
        }
        Json::String(name) => serde_json::json!({ "type": name }),
        other => other.clone(),
    };
    match serde_json::from_value(value) {
        Ok(spec) => Some(spec),
        // What the schema does not show: a rule of the spec's own.
        Err(error) => {
            checks.problem(&[key], format!("cannot be made: {error}"));
            None
        }
    }
}

fn built(result: Option<Result<(), BuildError>>, key: &str, checks: &mut Checks<'_>) {
    if let Some(Err(BuildError { option, problem })) = result {
        checks.problem(&[&format!("{key}.{option}"), key], problem);
    }
}

/// The rule for synchronous commits that the file asks for.
pub(super) fn synchronous(file: &File) -> Option<Synchronous> {
    let by_nodes = if file.nodes.len() == 2 { NoVoter::Degrade } else { NoVoter::Block };
    let rule = |acks, on_no_voter, commit_guard| Synchronous { acks: Acks(acks), on_no_voter, commit_guard };
    match &file.failover.synchronous {
        raw::Synchronous::Text(SynchronousText::None) => None,
        raw::Synchronous::Text(SynchronousText::Any(acks)) => Some(rule(*acks, by_nodes, false)),
        raw::Synchronous::Text(SynchronousText::Strict) => Some(rule(1, NoVoter::Block, true)),
        raw::Synchronous::Section(quorum) => {
            Some(rule(quorum.acks, quorum.on_no_voter.unwrap_or(by_nodes), quorum.commit_guard))
        }
    }
}

/// Puts together what has been checked.
pub(super) fn assemble(file: File, secrets: Secrets, strategies: Strategies) -> Config {
    let path = |text: Option<String>| text.filter(|text| !text.is_empty()).map(PathBuf::from);
    let rule = synchronous(&file);
    let withheld = password_variables(&file);
    let listen = file.listen.list().into_iter().filter_map(|text| address::parse(text).ok());
    let listen = listen.map(|address| address.to_string()).collect();
    let nodes = file.nodes.into_iter().zip(secrets.nodes).zip(secrets.replication);
    let nodes = nodes
        .filter_map(|((node, secret), replication)| Some(self::node(node, secret?, replication)))
        .collect();
    let pool = pool(&file.pool, &raw::UserPool::default());
    let users = file.users.into_iter().zip(secrets.users);
    let users = users.filter_map(|(user, secret)| {
        Some(User {
            name: user.name.unwrap_or_default(),
            password: secret?,
            databases: user.databases,
            pool: self::pool(&file.pool, &user.pool.unwrap_or_default()),
            admin: user.admin,
        })
    });
    let tls = path(file.security.cert_file).zip(path(file.security.key_file));
    Config {
        listen,
        state_dir: path(file.state_dir),
        cluster: Arc::new(ClusterSettings {
            name: file.cluster,
            nodes,
            interval: file.health_check.interval.0,
            timeout: file.health_check.timeout.0,
            failure_threshold: file.health_check.failure_threshold,
            max_lag: plain(file.load_balancer.max_lag),
            failover: failover(&file.failover, rule),
            hooks: Hooks {
                stop: hook(file.hooks.stop, STOP_TIMEOUT),
                rejoin: hook(file.hooks.rejoin, REJOIN_TIMEOUT),
                withheld,
            },
        }),
        strategies,
        routing: Routing {
            split: file.load_balancer.split,
            read_timeout: plain(file.load_balancer.read_timeout),
            write_timeout: plain(file.load_balancer.write_timeout),
        },
        users: users.collect(),
        auth: Auth {
            hba_file: path(file.auth.hba_file),
            ident_file: path(file.auth.ident_file),
            query: file.auth.query,
        },
        pool,
        security: Security {
            client_ca: path(file.security.client_ca_file),
            tls: tls.filter(|_| file.security.tls_enabled).map(|(cert, key)| TlsFiles { cert, key }),
            require_tls: file.security.require_tls,
        },
        admin: Admin { socket: path(file.admin.socket) },
        limits: Limits {
            clients: file.limits.clients as usize,
            login_timeout: file.limits.login_timeout.0,
            message_size: file.limits.message_size.0,
        },
        log: Log {
            format: file.log.format,
            level: file.log.level,
            report_interval: plain(file.log.report_interval),
        },
    }
}

/// The pool of a user: what its own section says, over what `pool` says.
pub(super) fn pool(all: &raw::Pool, own: &raw::UserPool) -> PoolSettings {
    PoolSettings {
        mode: own.mode.unwrap_or(all.mode),
        size: own.size.unwrap_or(all.size),
        min: own.min.unwrap_or(all.min),
        reserve: own.reserve.unwrap_or(all.reserve),
        reserve_after: own.reserve_after.unwrap_or(all.reserve_after).0,
        wait_timeout: own.wait_timeout.unwrap_or(all.wait_timeout).0,
        lifetime: own.lifetime.unwrap_or(all.lifetime).0,
        idle_timeout: own.idle_timeout.unwrap_or(all.idle_timeout).0,
    }
}

fn node_tls(node: &raw::Node) -> NodeTls {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    NodeTls {
        sslmode: node.sslmode,
        sslrootcert: given(&node.sslrootcert).map(|text| match text.as_str() {
            "system" => RootCert::System,
            _ => RootCert::File(PathBuf::from(text)),
        }),
        client: given(&node.sslcert)
            .zip(given(&node.sslkey))
            .map(|(cert, key)| TlsFiles { cert: PathBuf::from(cert), key: PathBuf::from(key) }),
        sslnegotiation: node.sslnegotiation,
        channel_binding: node.channel_binding,
    }
}

fn plain(duration: Option<HumanDuration>) -> Option<Duration> {
    duration.map(Duration::from)
}

fn node(node: raw::Node, password: Secret, replication_password: Option<Secret>) -> Node {
    let tls = node_tls(&node);
    let name = node.name.unwrap_or_default();
    let host = node.host.unwrap_or_default();
    let replication = node.replication.unwrap_or_default();
    Node {
        role: node.role.map(|role| match role {
            Role::Primary | Role::Master => RoleHint::Primary,
            Role::Replica | Role::Slave => RoleHint::Replica,
        }),
        username: node.username.unwrap_or_default(),
        password,
        database: node.database.unwrap_or_default(),
        weight: node.weight,
        zone: node.zone.filter(|zone| !zone.is_empty()),
        priority: node.priority.0,
        tls,
        application_name: node.application_name.unwrap_or_else(|| name.clone()),
        replication: ReplicationAddress {
            host: replication.host.unwrap_or_else(|| host.clone()),
            port: replication.port.unwrap_or(node.port),
            user: replication.user,
            password: replication_password,
            passfile: replication.passfile,
        },
        pgdata: node.pgdata.filter(|path| !path.is_empty()),
        name: NodeName::from(name),
        host,
        port: node.port,
    }
}

fn failover(raw: &raw::Failover, synchronous: Option<Synchronous>) -> FailoverSettings {
    FailoverSettings {
        mode: raw.mode,
        synchronous,
        silent_after: raw.silent_after.0,
        stalled_after: raw.stalled_after.0,
        start_timeout: plain(raw.start_timeout),
        async_restart_grace: raw.async_restart_grace.0,
        hold_timeout: raw.hold_timeout.0,
        drain_timeout: raw.drain_timeout.0,
        hold_clients: raw.hold_clients as usize,
        hold_bytes: raw.hold_bytes.0,
        budget: (raw.budget.count, raw.budget.span.0),
        max_lag_on_failover: raw.max_lag_on_failover.map(|size| size.0),
        unknown_outcome: raw.unknown_outcome,
    }
}

fn password_variables(file: &File) -> Vec<String> {
    let of_nodes = file.nodes.iter().flat_map(|node| {
        let replication = node.replication.as_ref().map(|replication| &replication.secret);
        std::iter::once(&node.secret).chain(replication)
    });
    let all = of_nodes.chain(file.users.iter().map(|user| &user.secret));
    all.filter_map(|secret| secret.password_env.clone()).collect()
}

fn hook(raw: Option<raw::Hook>, timeout: Duration) -> Option<Hook> {
    raw.map(|hook| Hook { command: hook.command, timeout: plain(hook.timeout).unwrap_or(timeout) })
}
