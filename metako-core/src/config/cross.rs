//! Checks of keys against each other, after each of them fits the schema.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::address::{self, Address};
use super::assemble::{self, Secrets, synchronous};
use super::places::Checks;
use super::problem::{did_you_mean, nearest, one_of};
use super::raw::{File, Node, Role, UserPool};
use super::types::{ChannelBinding, FailoverMode, NoVoter, Priority, Split, SslMode, SslNegotiation};

/// PostgreSQL keeps so many bytes of a name.
const NAME_MAX: usize = 63;
/// The longest message whose length PostgreSQL's protocol can tell.
const MESSAGE_SIZE_MAX: u64 = 0x7FFF_FFFF;

pub(super) fn check(file: &File, secrets: &Secrets, checks: &mut Checks<'_>) {
    name(&file.cluster, "cluster", checks);
    let listen = listen(file, checks);
    nodes(&file.nodes, checks);
    hosts_and_ports(&file.nodes, &listen, checks);
    users(file, checks);
    zero_bytes(file, checks);
    hooks(file, checks);
    passwords(file, secrets, checks);
    nodes_tls(&file.nodes, checks);
    pools(file, checks);
    times(file, checks);
    failover(file, checks);
    reads(file, checks);
    tls(file, checks);
    auth_query(file, checks);
    ident_file(file, checks);
    log_level(&file.log.level, checks);
    if file.limits.message_size.0 > MESSAGE_SIZE_MAX {
        checks.problem(
            &["limits.message_size"],
            "is beyond what the protocol can carry; expected less than 2GiB",
        );
    }
}

fn name(text: &str, key: &str, checks: &mut Checks<'_>) {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let starts = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !starts || text.len() > NAME_MAX || !text.bytes().all(fits) {
        let message = format!(
            "found {text:?}; expected 1 to {NAME_MAX} letters, digits, `-`, `_` or `.`, with a letter or digit first"
        );
        checks.problem(&[key], message);
    }
}

fn listen(file: &File, checks: &mut Checks<'_>) -> Vec<(String, Address)> {
    let mut known: Vec<(String, Address)> = Vec::new();
    for (index, text) in file.listen.list().into_iter().enumerate() {
        let key =
            if checks.places.holds("listen[0]") { format!("listen[{index}]") } else { "listen".to_owned() };
        match address::parse(text) {
            Err(message) => checks.problem(&[&key], message),
            Ok(found) => match known.iter().find(|(_, one)| address::takes(one, &found.host, found.port)) {
                Some((first, _)) => {
                    let message =
                        format!("{found} is taken already by `{first}`; expected another host or port");
                    checks.problem(&[&key, first], message);
                }
                None => known.push((key, found)),
            },
        }
    }
    known
}

fn node_key(index: usize, key: &str) -> String {
    format!("nodes[{index}].{key}")
}

fn nodes(nodes: &[Node], checks: &mut Checks<'_>) {
    if nodes.is_empty() {
        checks.problem(
            &["nodes"],
            "no nodes are given; expected at least one PostgreSQL server under `nodes:`",
        );
    }
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    let mut application_names: BTreeMap<String, (usize, &Node)> = BTreeMap::new();
    let mut primary = None;
    for (index, node) in nodes.iter().enumerate() {
        let key = |name: &str| node_key(index, name);
        if let Some(text) = &node.name {
            name(text, &key("name"), checks);
            match names.get(text.as_str()) {
                Some(first) => {
                    let place = checks.named(&node_key(*first, "name"));
                    checks.problem(
                        &[&key("name")],
                        format!(
                            "`{text}` is the name of an earlier node ({place}); expected a name of its own"
                        ),
                    );
                }
                None => drop(names.insert(text, index)),
            }
        }
        if matches!(node.role, Some(Role::Primary | Role::Master)) {
            match primary {
                Some(first) => {
                    let place = checks.named(&node_key(first, "role"));
                    let message = format!(
                        "a second primary; the first is in {place}; expected `replica` for all others"
                    );
                    checks.problem(&[&key("role")], message);
                }
                None => primary = Some(index),
            }
        }
        application_name(index, node, &mut application_names, checks);
    }
    if nodes.len() == 1 {
        checks.warning("nodes", "there is one node: nothing to fail over to");
    }
    if nodes.len() > 1 && nodes.iter().filter(|node| node.priority.0 != Priority::Never).count() < 2 {
        checks.warning(
            "nodes",
            "fewer than two nodes may be primary (`priority: never`): nothing to fail over to",
        );
    }
}

fn application_name<'a>(
    index: usize,
    node: &'a Node,
    known: &mut BTreeMap<String, (usize, &'a Node)>,
    checks: &mut Checks<'_>,
) {
    let key = node_key(index, "application_name");
    if let Some(given) = &node.application_name {
        let printable = given.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !printable || given.len() > NAME_MAX || given == "*" {
            let message = format!(
                "found {given:?}; expected 1 to {NAME_MAX} printable ASCII characters, and not just `*`"
            );
            checks.problem(&[&key], message);
        }
    }
    let Some(own) = node.application_name.as_ref().or(node.name.as_ref()) else { return };
    let key = if node.application_name.is_some() { key } else { node_key(index, "name") };
    // PostgreSQL compares the names of standbys without regard to case.
    match known.get(&own.to_ascii_lowercase()) {
        Some((_, first))
            if first.name == node.name
                && first.application_name == node.application_name
                && node.application_name.is_none() => {}
        Some((first, _)) => {
            let message = format!(
                "`{own}` is what nodes[{first}] is called among standbys, where PostgreSQL does not tell case apart; \
                 expected a name of its own"
            );
            checks.problem(&[&key, &node_key(index, "name")], message);
        }
        None => drop(known.insert(own.to_ascii_lowercase(), (index, node))),
    }
}

fn hosts_and_ports(nodes: &[Node], listen: &[(String, Address)], checks: &mut Checks<'_>) {
    let mut known: BTreeMap<(String, u16), usize> = BTreeMap::new();
    for (index, node) in nodes.iter().enumerate() {
        let (host_key, port_key) = (node_key(index, "host"), node_key(index, "port"));
        let Some(host) = &node.host else { continue };
        if !address::is_host(host) {
            checks.problem(&[&host_key], no_host(host));
            continue;
        }
        let at = if checks.places.holds(&port_key) { &port_key } else { &host_key };
        match known.get(&(address::canonical(host), node.port)) {
            Some(first) => {
                let message = format!(
                    "{host}:{} is the address of nodes[{first}] already; expected another host or port",
                    node.port
                );
                checks.problem(&[at, &host_key], message);
            }
            None => drop(known.insert((address::canonical(host), node.port), index)),
        }
        if let Some((key, ours)) = listen.iter().find(|(_, ours)| address::takes(ours, host, node.port)) {
            let message = format!(
                "metako itself listens on {ours} (`{key}`); expected the address of a PostgreSQL server"
            );
            checks.problem(&[at, &host_key, key], message);
        }
        if let Some(host) = node.replication.as_ref().and_then(|replication| replication.host.as_ref())
            && !address::is_host(host)
        {
            checks.problem(&[&node_key(index, "replication.host")], no_host(host));
        }
    }
}

fn no_host(text: &str) -> String {
    if text.starts_with('/') {
        return "Unix sockets are not available in this version; expected a host name or an IP address"
            .to_owned();
    }
    // A whole connection string may hold a password.
    let found =
        if text.contains(['@', '=']) { "a connection string".to_owned() } else { format!("{text:?}") };
    format!("found {found}; expected a host name or an IP address, without a port")
}

fn users(file: &File, checks: &mut Checks<'_>) {
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, user) in file.users.iter().enumerate() {
        let Some(name) = &user.name else { continue };
        let key = format!("users[{index}].name");
        match known.get(name.as_str()) {
            Some(first) => {
                let place = checks.named(&format!("users[{first}].name"));
                checks.problem(&[&key], format!("`{name}` is the name of an earlier user ({place})"));
            }
            None => drop(known.insert(name, index)),
        }
    }
    for (index, node) in file.nodes.iter().enumerate() {
        let Some(replication) = &node.replication else { continue };
        if replication.passfile.is_some() && replication.secret != super::raw::SecretText::default() {
            let key = node_key(index, "replication.passfile");
            checks.problem(&[&key], "is given beside a password; expected one of them");
        }
    }
}

/// Names of users and databases end at a zero byte in PostgreSQL's protocol: with one in them no log-in could succeed.
fn zero_bytes(file: &File, checks: &mut Checks<'_>) {
    let of_nodes = file.nodes.iter().enumerate().flat_map(|(index, node)| {
        [(node_key(index, "username"), &node.username), (node_key(index, "database"), &node.database)]
    });
    let of_users =
        file.users.iter().enumerate().map(|(index, user)| (format!("users[{index}].name"), &user.name));
    let one = of_nodes.chain(of_users).filter_map(|(key, text)| Some((key, text.as_ref()?)));
    let databases = file.users.iter().enumerate().flat_map(|(user, found)| {
        let key = move |index| format!("users[{user}].databases[{index}]");
        found.databases.iter().enumerate().map(move |(index, text)| (key(index), text))
    });
    for (key, text) in one.chain(databases) {
        if text.contains('\0') {
            checks.problem(&[&key], format!("found {text:?}; expected a name without a zero byte"));
        }
    }
}

/// The command line and the environment of a hook end at a zero byte as well.
fn hooks(file: &File, checks: &mut Checks<'_>) {
    for (name, hook) in [("stop", &file.hooks.stop), ("rejoin", &file.hooks.rejoin)] {
        for (index, word) in hook.iter().flat_map(|hook| hook.command.iter().enumerate()) {
            if word.contains('\0') {
                let key = format!("hooks.{name}.command[{index}]");
                checks.problem(&[&key], format!("found {word:?}; expected text without a zero byte"));
            }
        }
    }
    for (index, node) in file.nodes.iter().enumerate() {
        let Some(path) = node.pgdata.as_ref().filter(|path| !path.is_empty()) else { continue };
        if !path.starts_with('/') || path.contains('\0') {
            let message =
                format!("found {path:?}; expected the absolute path of the data directory on its host");
            checks.problem(&[&node_key(index, "pgdata")], message);
        }
    }
    data_directories(&file.nodes, checks);
}

/// A hook for one node would work on the data directory of the other.
fn data_directories(nodes: &[Node], checks: &mut Checks<'_>) {
    let mut known: BTreeMap<(String, Vec<&str>), usize> = BTreeMap::new();
    for (index, node) in nodes.iter().enumerate() {
        let (Some(host), Some(path)) = (&node.host, &node.pgdata) else { continue };
        if path.is_empty() {
            continue;
        }
        let parts = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        match known.entry((address::canonical(host), parts)) {
            Entry::Occupied(first) => {
                let first = node_key(*first.get(), "pgdata");
                let place = checks.named(&first);
                let message = format!(
                    "{path} is the data directory of another node on {host} already ({place}); expected one of its own"
                );
                checks.problem(&[&node_key(index, "pgdata"), &first], message);
            }
            Entry::Vacant(free) => drop(free.insert(index)),
        }
    }
}

/// One user name has one password, whether a node or `users` gives it.
fn passwords(file: &File, secrets: &Secrets, checks: &mut Checks<'_>) {
    let of_nodes = file.nodes.iter().map(|node| node.username.as_deref()).zip(&secrets.nodes).enumerate();
    let of_users = file.users.iter().map(|user| user.name.as_deref()).zip(&secrets.users).enumerate();
    let all = of_nodes
        .map(|(index, (name, secret))| (format!("nodes[{index}]"), name, secret))
        .chain(of_users.map(|(index, (name, secret))| (format!("users[{index}]"), name, secret)));
    let mut known = BTreeMap::new();
    for (path, name, secret) in all {
        let (Some(name), Some(secret)) = (name, secret) else { continue };
        let (first, earlier) = known.entry(name).or_insert_with(|| (path.clone(), secret));
        if *earlier != secret {
            let key = ["password", "password_env", "password_file"]
                .map(|word| format!("{path}.{word}"))
                .into_iter()
                .find(|key| checks.places.holds(key))
                .unwrap_or(path);
            let message = format!(
                "differs from the password that {first} gives for the same user `{name}`; expected one password for one user"
            );
            checks.problem(&[&key], message);
        }
    }
}

fn times(file: &File, checks: &mut Checks<'_>) {
    let health = &file.health_check;
    if health.timeout > health.interval {
        let keys = ["health_check.timeout", "health_check.interval"];
        // The default of one may be what clashes with the other.
        let keys = if checks.places.holds(keys[0]) { keys } else { [keys[1], keys[0]] };
        let message = format!(
            "a timeout of {} is longer than the interval of {}; expected a timeout of at most the interval",
            health.timeout, health.interval
        );
        checks.problem(&keys, message);
    }
    let failover = &file.failover;
    if failover.drain_timeout >= failover.hold_timeout {
        let keys = ["failover.drain_timeout", "failover.hold_timeout"];
        let key = if checks.places.holds(keys[0]) { keys[0] } else { keys[1] };
        let message = format!(
            "a switchover waits up to {} (drain_timeout) for open transactions, and clients that come meanwhile are held \
             for {} (hold_timeout) only; a drain_timeout below the hold_timeout spares them an error",
            failover.drain_timeout, failover.hold_timeout
        );
        checks.warning(key, message);
    }
}

fn failover(file: &File, checks: &mut Checks<'_>) {
    let observes = file.failover.mode == FailoverMode::Observe;
    if observes && (file.hooks.stop.is_some() || file.hooks.rejoin.is_some()) {
        checks.warning(
            "hooks",
            "are not called where `failover.mode` is observe: whoever manages the cluster does that",
        );
    }
    let Some(rule) = synchronous(file) else { return };
    let key = "failover.synchronous";
    if observes {
        let message =
            "is for whoever manages the cluster where `failover.mode` is observe; leave one of the two out"
                .to_owned();
        return checks.problem(&[key, "failover.mode"], message);
    }
    let acks_key =
        if checks.places.holds("failover.synchronous.acks") { "failover.synchronous.acks" } else { key };
    let replicas = file.nodes.len().saturating_sub(1);
    let acks = rule.acks.0 as usize;
    if acks > replicas {
        let message = format!(
            "{acks} acknowledgements need {acks} replicas, but there are {} nodes, one of them primary; expected fewer, or more nodes",
            file.nodes.len()
        );
        checks.problem(&[acks_key, "nodes"], message);
        return;
    }
    let needed = replicas - acks + 1;
    if replicas == 1 && rule.on_no_voter == NoVoter::Block {
        checks.warning(key, "two nodes that block: commits wait for as long as the only replica is away");
    } else if replicas == 1 {
        checks.warning(
            key,
            "two nodes that degrade: while the only replica is away commits are not synchronous, and the loss of the \
             primary then needs a person",
        );
    } else if needed == replicas && file.failover.mode == FailoverMode::Automatic {
        checks.warning(
            key,
            format!("where any {acks} of {replicas} replicas may acknowledge, a failover needs the answer of all {replicas}"),
        );
    }
}

fn reads(file: &File, checks: &mut Checks<'_>) {
    if checks.places.holds("load_balancer.consistency") && file.load_balancer.split == Split::Auto {
        checks.warning(
            "load_balancer.consistency",
            "is not built yet: a read on a replica may miss what its session wrote before; `split: off` sends all to \
             the primary",
        );
    }
}

fn tls(file: &File, checks: &mut Checks<'_>) {
    let security = &file.security;
    if security.tls_enabled {
        for (key, given) in [("cert_file", &security.cert_file), ("key_file", &security.key_file)] {
            let key = format!("security.{key}");
            if given.as_ref().is_none_or(String::is_empty) {
                let message = "is missing; expected the path of a PEM file, because `tls_enabled` is true";
                checks.problem(&[&key, "security.tls_enabled"], message);
            }
        }
        return;
    }
    if security.require_tls {
        let message =
            "TLS cannot be demanded where it is not offered; expected `tls_enabled: true` beside it";
        checks.problem(&["security.require_tls", "security.tls_enabled"], message);
    }
    if security.client_ca_file.is_some() {
        let message = "clients show certificates in TLS only; expected `tls_enabled: true` beside it";
        checks.problem(&["security.client_ca_file", "security.tls_enabled"], message);
    }
}

fn ident_file(file: &File, checks: &mut Checks<'_>) {
    if file.auth.ident_file.is_some() && file.auth.hba_file.is_none() {
        let message =
            "maps names for the rules of auth.hba_file, which is missing; add it, or take this away";
        checks.problem(&["auth.ident_file"], message);
    }
}

fn auth_query(file: &File, checks: &mut Checks<'_>) {
    let Some(query) = &file.auth.query else { return };
    if !query.contains("$1") {
        let message = "does not ask for a user; expected a query with the parameter $1, the name of the user, that gives \
                       its name and its rolpassword, such as SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin";
        checks.problem(&["auth.query"], message);
    } else if query.contains('\0') {
        checks.problem(&["auth.query"], "holds a zero byte; expected the text of a query");
    }
}

/// TLS towards nodes: what libpq refuses is refused here, and what it would find by default has to be named.
fn nodes_tls(nodes: &[Node], checks: &mut Checks<'_>) {
    for (index, node) in nodes.iter().enumerate() {
        let key = |name: &str| node_key(index, name);
        let given = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let mode = serde_json::to_value(node.sslmode).unwrap_or_default();
        let mode = mode.as_str().unwrap_or_default();
        if node.sslmode >= SslMode::VerifyCa && !given(&node.sslrootcert) {
            let system = if node.sslmode == SslMode::VerifyFull { ", or `system`" } else { "" };
            let message = format!(
                "is missing; expected a PEM file with the authorities that `sslmode: {mode}` checks by{system}"
            );
            checks.problem(&[&key("sslrootcert"), &key("sslmode")], message);
        }
        if node.sslrootcert.as_deref() == Some("system") && node.sslmode != SslMode::VerifyFull {
            let message = format!(
                "`system` proves nothing with `sslmode: {mode}`, because anybody can have such a certificate; expected \
                 `sslmode: verify-full` beside it"
            );
            checks.problem(&[&key("sslrootcert"), &key("sslmode")], message);
        }
        for (one, other) in [("sslcert", "sslkey"), ("sslkey", "sslcert")] {
            let (has_one, has_other) = match one {
                "sslcert" => (given(&node.sslcert), given(&node.sslkey)),
                _ => (given(&node.sslkey), given(&node.sslcert)),
            };
            if has_one && !has_other {
                checks.problem(
                    &[&key(other), &key(one)],
                    format!("is missing; expected the path of a PEM file, because `{one}` is given"),
                );
            }
        }
        if node.sslnegotiation == SslNegotiation::Direct && node.sslmode < SslMode::Require {
            let message = format!(
                "`direct` leaves no way back from TLS, which `sslmode: {mode}` wants; expected `sslmode: require`, \
                 `verify-ca` or `verify-full` beside it"
            );
            checks.problem(&[&key("sslnegotiation"), &key("sslmode")], message);
        }
        if node.channel_binding == ChannelBinding::Require && node.sslmode == SslMode::Disable {
            let message = "`require` cannot be had without TLS; expected another `sslmode` than `disable`";
            checks.problem(&[&key("channel_binding"), &key("sslmode")], message);
        }
    }
}

fn pools(file: &File, checks: &mut Checks<'_>) {
    let default = UserPool::default();
    let own = file
        .users
        .iter()
        .enumerate()
        .filter_map(|(index, user)| Some((format!("users[{index}].pool"), user.pool.as_ref()?)));
    for (path, own) in std::iter::once(("pool".to_owned(), &default)).chain(own) {
        let pool = assemble::pool(&file.pool, own);
        if pool.min > pool.size {
            let (min, size) = (format!("{path}.min"), format!("{path}.size"));
            let message = format!(
                "a minimum of {} connections is more than the size of {}; expected at most the size",
                pool.min, pool.size
            );
            // A user's own value may clash with one of `pool`, which was found at fault already where both are there.
            if checks.places.holds(&min) {
                checks.problem(&[&min, &size], message);
            } else if checks.places.holds(&size) {
                checks.problem(&[&size, &min], message);
            }
        }
    }
}

fn log_level(level: &str, checks: &mut Checks<'_>) {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let single = level.bytes().all(|byte| byte.is_ascii_alphabetic());
    if single && !levels.contains(&level.to_ascii_lowercase().as_str()) {
        let likely = did_you_mean(nearest(level, levels));
        let message = format!(
            "found `{level}`; expected {}, or a filter such as `info,metako_proxy=debug`{likely}",
            one_of(&levels)
        );
        checks.problem(&["log.level"], message);
    }
}
