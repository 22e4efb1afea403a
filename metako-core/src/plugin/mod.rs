//! The four kinds of strategy, and the registry of those that are linked in.
//!
//! A strategy comes in two parts. Its *spec* is plain data: the options that the YAML gives, with defaults, docs and a
//! schema. The spec *builds* the running strategy, which may hold state. So options and state never mix, and a reload
//! compares specs to see what changed.
//!
//! | kind | spec | running | called |
//! |---|---|---|---|
//! | `health_probe` | [`HealthProbeSpec`] | [`HealthProbe`] | once per node and probe, async |
//! | `load_balancer` | [`LoadBalancerSpec`] | [`LoadBalancer`] | once per checkout of a replica, hot |
//! | `failover_policy` | [`FailoverPolicySpec`] | [`FailoverPolicy`] | by the cluster controller, pure |
//! | `query_classifier` | [`QueryClassifierSpec`] | [`QueryClassifier`] | once per statement, hot |
//!
//! A strategy may choose badly, never unsafely: the core filters what a strategy is offered and vetoes what it
//! proposes.

use std::any::Any;

mod failover_policy;
mod health_probe;
mod load_balancer;
mod query_classifier;
mod registry;

pub use failover_policy::{
    Assessment, Electable, Evidence, FailoverPolicy, FailoverPolicySpec, Policy, PrimaryEvidence,
    WitnessCount,
};
pub use health_probe::{
    HealthProbe, HealthProbeSpec, NodeAccess, NodeReport, ProbeFailure, Receiver, ReportedRole, Sender,
    ServerRun, SettingValue,
};
pub use load_balancer::{Candidate, LoadBalancer, LoadBalancerSpec, Outcome, PickCx};
pub use query_classifier::{
    Class, Classification, Effects, QueryClassifier, QueryClassifierSpec, Span, TransactionVerb,
};
pub use registry::{Kind, RegistryError, StrategyInfo, find, strategies, verify};

/// What a panic said, such as that of a strategy.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Why a spec could not be built into a strategy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("option `{option}`: {problem}")]
pub struct BuildError {
    /// The option at fault.
    pub option: &'static str,
    /// What is wrong with it and what would be right.
    pub problem: String,
}
