//! What the controller is told.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{ActionId, ProbeId};
use crate::config::ClusterSettings;
use crate::plugin::{NodeReport, Policy, ProbeFailure};
use crate::{NodeName, Tick};

/// Something that happened.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "events are handed over one at a time, never stored in bulk")]
pub enum Event {
    /// The time that [`Controller::poll_timeout`](super::Controller::poll_timeout) named has come. May come late, early or twice.
    Timer,
    /// A probe ended.
    Probed {
        /// Which.
        id: ProbeId,
        /// Whom it asked.
        node: NodeName,
        /// When it was sent.
        sent: Tick,
        /// What it found.
        #[serde(with = "crate::written::result")]
        result: Result<NodeReport, ProbeFailure>,
    },
    /// A client's or a pooled server connection broke or could not be opened: a reason to look at the node at once.
    ServerLost {
        /// The node.
        node: NodeName,
        /// How.
        loss: ServerLoss,
    },
    /// An action ended.
    Done {
        /// Which.
        id: ActionId,
        /// How.
        #[serde(with = "crate::written::result")]
        outcome: Result<ActionOutcome, ActionFailure>,
    },
    /// The configuration changed.
    Reconfigured {
        /// The new settings.
        settings: Arc<ClusterSettings>,
        /// The new policy.
        policy: Policy,
    },
    /// A person asks for something.
    Operator(OperatorCommand),
    /// metako is about to end: a switchover that has not stopped the primary yet is called off, and none begins.
    Stopping,
}

/// How the data plane lost a server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerLoss {
    /// Connecting was refused.
    Refused,
    /// An established connection was closed or reset, or ended with a FATAL of class 57P.
    Broken,
    /// No answer in time.
    TimedOut,
    /// A write was refused because the node is in recovery.
    ReadOnly,
    /// It lets clients in, and is not the run of the server that the view vouches for.
    Stranger,
}

/// What an action brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionOutcome {
    /// Done, as described at the action.
    Done,
    /// Nothing was done, because a condition did not hold (a promotion whose token was not there).
    Declined,
}

/// Why an action's outcome is not known to be a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ActionFailure {
    /// It certainly did not happen.
    #[error("{0}")]
    Failed(String),
    /// It may have happened, or may still happen.
    #[error("outcome unknown: {0}")]
    Unknown(String),
}

/// What an operator can ask of the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorCommand {
    /// Take this node for the primary although not all nodes could be asked.
    Adopt(NodeName),
    /// Make another node primary while the present one is well.
    Switchover {
        /// Which; `None` is the best.
        to: Option<NodeName>,
    },
    /// Promote a standby because the primary fails, without waiting for more evidence, whatever `failover.mode` and
    /// `failover.budget` say.
    Failover {
        /// Which; `None` is the best.
        to: Option<NodeName>,
        /// Also where the most advanced standby lacks more than `failover.max_lag_on_failover` allows.
        #[serde(default)]
        allow_data_loss: bool,
    },
    /// Decide nothing from now on: no failover, no change of any node.
    Pause,
    /// Decide again.
    Resume,
}
