//! What can go wrong.

use metako_core::config::HumanDuration;
use schemars::JsonSchema;
use serde::Deserialize;

/// A fault: when, what, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultSpec {
    /// When it begins.
    pub at: HumanDuration,
    /// How long it lasts; without it, until the end.
    pub lasting: Option<HumanDuration>,
    /// What happens.
    pub fault: Fault,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// All processes of a server are killed with SIGKILL. When the fault ends, the server is started again.
    Kill(Target),
    /// A stopped server is started.
    Start(Target),
    /// All processes of a server are stopped with SIGSTOP. When the fault ends, they go on.
    Freeze(Target),
    /// The disk of a server stands still: it answers and streams what is on disk, and nothing is flushed. When the fault ends,
    /// the disk goes on.
    Stall(Target),
    /// A server process dies, and the server recovers until the fault ends: it takes no connection, and says why.
    Recover(Target),
    /// Whoever manages the cluster promotes a standby behind metako's back, and has the other standbys follow it.
    Promote(Target),
    /// Nothing gets from one place to the other: it is held back, as TCP does, and sent again when the fault ends.
    Cut {
        /// From here.
        from: End,
        /// To there.
        to: End,
        /// Whether the way back stays open.
        one_way: bool,
    },
    /// The proxy is killed, loses all but its synced journal, and starts again when the fault ends.
    KillProxy,
    /// No fault: a person asks metako for something.
    Ask {
        /// What.
        what: Ask,
        /// Which node is to be primary; by default the best.
        to: Option<Target>,
    },
}

/// What a person can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Ask {
    /// Another primary, while the present one is well.
    Switchover,
    /// Another primary, because the present one fails.
    Failover,
    /// No more decisions.
    Pause,
    /// Decisions again.
    Resume,
}

/// One end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The proxy: `metako`.
    Proxy,
    /// A node.
    Node(Target),
    /// All nodes: `all`.
    AllNodes,
}

/// Which node. Roles are looked up when the fault begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `primary`: the node that clients write to.
    Primary,
    /// `old_primary`: the primary before the present one.
    OldPrimary,
    /// By name.
    Named(String),
}

impl From<&str> for Target {
    fn from(name: &str) -> Self {
        match name {
            "primary" => Self::Primary,
            "old_primary" => Self::OldPrimary,
            name => Self::Named(name.to_owned()),
        }
    }
}

impl From<&str> for End {
    fn from(name: &str) -> Self {
        match name {
            "metako" => Self::Proxy,
            "all" => Self::AllNodes,
            name => Self::Node(name.into()),
        }
    }
}
