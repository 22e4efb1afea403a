//! The world at its beginning: metako's configuration, the scenario and the seed put together.

use std::sync::Arc;

use metako_core::Tick;
use metako_core::config::{ClusterSettings, Config, HumanDuration, RoleHint};
use metako_core::plugin::{BuildError, Policy};

use super::World;
use super::clients::Clients;
use super::driver::Recipe;
use super::hooks;
use crate::model::{Cluster, NodeSpec, Rates, SyncNames};
use crate::scenario::{End, Fault, Scenario, Span, Target, Timings};
use crate::stage::Stage;

/// Why a scenario cannot be run with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The scenario names a node that the configuration does not have.
    #[error("{place}: there is no node `{name}` in metako's configuration; its nodes are {known}")]
    UnknownNode {
        /// The key of the scenario.
        place: String,
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The configuration has no nodes.
    #[error("metako's configuration has no nodes")]
    NoNodes,
    /// A strategy of the configuration cannot be built.
    #[error("{key}: {problem}")]
    Strategy {
        /// The key of the configuration.
        key: &'static str,
        /// Why.
        problem: BuildError,
    },
    /// The scenario's `synchronous_standby_names` is not what PostgreSQL would take.
    #[error("cluster.synchronous_standby_names: {0}")]
    SyncNames(String),
}

impl World {
    pub(crate) fn new(config: &Config, scenario: &Scenario, seed: u64) -> Result<Self, SetupError> {
        let settings = &config.cluster;
        check_names(settings, scenario)?;
        let built = |key| move |problem| SetupError::Strategy { key, problem };
        let strategies = &config.strategies;
        let recipe = Recipe {
            settings: Arc::clone(settings),
            policy: Policy::build(Arc::clone(&strategies.policy)).map_err(built("failover.policy"))?,
            probe: Arc::from(strategies.probe.build().map_err(built("health_check.probe"))?),
            balancer: Arc::from(strategies.balancer.build().map_err(built("load_balancer.algorithm"))?),
            split: config.routing.split,
        };
        let primary = first_primary(settings, scenario);
        let sync_names = synchronous_standby_names(settings, scenario);
        SyncNames::parse(&sync_names).map_err(|problem| SetupError::SyncNames(problem.to_string()))?;
        let specs = settings.nodes.iter().map(|node| NodeSpec {
            name: node.name.clone(),
            host: node.replication.host.clone(),
            port: node.replication.port,
            application_name: node.application_name.clone(),
            rates: rates(scenario, node.name.as_str()),
        });
        Ok(Self {
            stage: Stage::new(seed, scenario.cluster.links),
            cluster: Cluster::new(specs.collect(), primary, &sync_names),
            clients: Clients::new(&scenario.workload, settings.failover.hold_timeout),
            recipe,
            proxy: None,
            proxy_run: 0,
            calls_made: 0,
            hooks: hooks::Hooks::default(),
            journal: None,
            undo: scenario.faults.iter().map(|_| None).collect(),
            faults: scenario.faults.clone(),
            primaries: vec![primary],
            opened: None,
            end: Tick::ZERO + scenario.run.length.0,
            keeper: None,
        })
    }
}

/// The setting with which the cluster begins: the scenario's, else what the configuration asks for.
pub(crate) fn synchronous_standby_names(settings: &ClusterSettings, scenario: &Scenario) -> String {
    if let Some(names) = &scenario.cluster.synchronous_standby_names {
        return names.clone();
    }
    let Some(synchronous) = &settings.failover.synchronous else { return String::new() };
    let primary = first_primary(settings, scenario);
    let others = settings.nodes.iter().enumerate().filter(|(index, _)| *index != primary);
    let names: Vec<String> = others.map(|(_, node)| format!("\"{}\"", node.application_name)).collect();
    if names.is_empty() {
        String::new()
    } else {
        format!("ANY {} ({})", synchronous.acks.0, names.join(", "))
    }
}

/// The index of the primary at the start.
pub(crate) fn first_primary(settings: &ClusterSettings, scenario: &Scenario) -> usize {
    let named = scenario.cluster.primary.as_ref();
    let is_first = |node: &metako_core::config::Node| match named {
        Some(name) => node.name.as_str() == name,
        None => node.role == Some(RoleHint::Primary),
    };
    settings.nodes.iter().position(is_first).unwrap_or(0)
}

fn rates(scenario: &Scenario, name: &str) -> Rates {
    let defaults = &scenario.cluster.defaults;
    let own = scenario.cluster.nodes.get(name).copied().unwrap_or_default();
    let span =
        |get: fn(&Timings) -> Option<Span>, fallback| get(&own).or_else(|| get(defaults)).unwrap_or(fallback);
    let length = |get: fn(&Timings) -> Option<HumanDuration>, fallback| {
        get(&own).or_else(|| get(defaults)).map_or(fallback, |length| length.0)
    };
    Rates {
        fsync: span(|t| t.fsync, Span::micros(300, 2_000)),
        replay_delay: span(|t| t.replay_delay, Span::micros(200, 2_000)),
        promote: span(|t| t.promote, Span::millis(60, 300)),
        start: span(|t| t.start, Span::millis(800, 3_000)),
        retry_interval: length(|t| t.wal_retrieve_retry_interval, std::time::Duration::from_millis(200)),
        receiver_timeout: length(|t| t.wal_receiver_timeout, std::time::Duration::from_secs(2)),
    }
}

/// Checks that every node that the scenario names is there.
fn check_names(settings: &ClusterSettings, scenario: &Scenario) -> Result<(), SetupError> {
    if settings.nodes.is_empty() {
        return Err(SetupError::NoNodes);
    }
    let known: Vec<&str> = settings.nodes.iter().map(|node| node.name.as_str()).collect();
    let check = |place: String, name: &str| {
        if known.contains(&name) {
            return Ok(());
        }
        Err(SetupError::UnknownNode { place, name: name.to_owned(), known: known.join(", ") })
    };
    if let Some(name) = &scenario.cluster.primary {
        check("cluster.primary".to_owned(), name)?;
    }
    for name in scenario.cluster.nodes.keys() {
        check(format!("cluster.nodes.{name}"), name)?;
    }
    for (index, fault) in scenario.faults.iter().enumerate() {
        for name in named_nodes(&fault.fault) {
            check(format!("faults[{index}]"), name)?;
        }
    }
    for name in scenario.expect.finally.primary.iter().flatten() {
        check("expect.finally.primary".to_owned(), name)?;
    }
    Ok(())
}

fn named_nodes(fault: &Fault) -> Vec<&str> {
    fn of(target: &Target) -> Option<&str> {
        if let Target::Named(name) = target { Some(name) } else { None }
    }
    fn of_end(end: &End) -> Option<&str> {
        if let End::Node(target) = end { of(target) } else { None }
    }
    match fault {
        Fault::Kill(target)
        | Fault::Start(target)
        | Fault::Freeze(target)
        | Fault::Stall(target)
        | Fault::Recover(target)
        | Fault::Promote(target) => of(target).into_iter().collect(),
        Fault::Cut { from, to, .. } => [of_end(from), of_end(to)].into_iter().flatten().collect(),
        Fault::Ask { to, .. } => to.iter().filter_map(of).collect(),
        Fault::KillProxy => Vec::new(),
    }
}
