//! What the configuration promises, as far as checks need it.

use std::collections::BTreeMap;
use std::time::Duration;

use metako_core::NodeName;
use metako_core::config::{Config, FailoverMode};

use crate::scenario::Scenario;
use crate::world::{first_primary, synchronous_standby_names};

/// What the configuration promises, and how the cluster is at the start.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rules {
    /// Others promote.
    pub(super) observes: bool,
    /// The primary at the start.
    pub(super) first: NodeName,
    /// Its `synchronous_standby_names` at the start.
    pub(super) sync_names: String,
    /// Nodes by the names that they have as standbys.
    pub(super) standbys: BTreeMap<String, NodeName>,
    /// `failover.budget`
    pub(super) budget: (u32, Duration),
    /// `failover.hold_timeout`
    pub(super) hold_timeout: Duration,
    /// `load_balancer.max_lag`
    pub(super) max_lag: Option<Duration>,
    /// A hook makes standbys of former primaries.
    pub(super) rejoins: bool,
}

impl Rules {
    /// Reads them from the configuration and the scenario, which fit each other.
    pub(crate) fn of(config: &Config, scenario: &Scenario) -> Option<Self> {
        let cluster = &config.cluster;
        let named = cluster.nodes.iter().map(|node| (node.application_name.clone(), node.name.clone()));
        Some(Self {
            observes: cluster.failover.mode == FailoverMode::Observe,
            first: cluster.nodes.get(first_primary(cluster, scenario))?.name.clone(),
            sync_names: synchronous_standby_names(cluster, scenario),
            standbys: named.collect(),
            budget: cluster.failover.budget,
            hold_timeout: cluster.failover.hold_timeout,
            max_lag: cluster.max_lag,
            rejoins: cluster.hooks.rejoin.is_some(),
        })
    }

    /// Whether the run begins with synchronous replication.
    pub(super) fn synchronous(&self) -> bool {
        !self.sync_names.is_empty()
    }
}
