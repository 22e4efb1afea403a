//! What the control plane works by.

use std::sync::Arc;

use metako_core::config::{ClusterSettings, Config};
use metako_core::plugin::{BuildError, FailoverPolicy, FailoverPolicySpec, HealthProbe, Policy};

use super::contained::ContainedPolicy;

/// The failover policy that answers where another one panics.
const STOCK_POLICY: &str = "most_advanced";

/// Settings and running strategies of the control plane. A reload replaces it as a whole.
#[derive(Clone)]
pub struct ControlConfig {
    /// The cluster's settings.
    pub settings: Arc<ClusterSettings>,
    /// The failover policy.
    pub policy: Policy,
    /// The health probe.
    pub probe: Arc<dyn HealthProbe>,
    /// The probe's name, for messages.
    pub probe_name: String,
}

impl ControlConfig {
    /// Builds the strategies of a configuration.
    pub fn build(config: &Config) -> Result<Self, BuildError> {
        let spec = &config.strategies.policy;
        let name = spec.typetag_name();
        let policy = Policy::build(Arc::clone(spec))?.map(|policy| match stock_policy() {
            Some(stock) => Arc::new(ContainedPolicy::new(name, policy, stock)),
            None => policy,
        });
        Ok(Self {
            settings: Arc::clone(&config.cluster),
            policy,
            probe: Arc::from(config.strategies.probe.build()?),
            probe_name: config.strategies.probe.typetag_name().to_owned(),
        })
    }
}

/// The stock policy with its defaults, if it is linked in.
fn stock_policy() -> Option<Arc<dyn FailoverPolicy>> {
    let spec = serde_json::json!({ "type": STOCK_POLICY });
    let spec: Box<dyn FailoverPolicySpec> = serde_json::from_value(spec).ok()?;
    spec.build().ok().map(Arc::from)
}
