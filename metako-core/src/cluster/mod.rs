//! The cluster controller: who is primary, when that changes, and what is done about it.
//!
//! [`Controller`] is a pure state machine. Whoever drives it (the proxy with real sockets, the simulator with a model)
//! hands it [`Event`]s and the time, carries out the [`Action`]s that come back, and calls again when
//! [`Controller::poll_timeout`] says so. Every action is idempotent and may be issued again, after a time-out or after
//! a restart from the persisted [`Journal`].
//!
//! Each call takes one event, lets the phase that it is in take as many steps as it can, asks for the probes that are
//! due and publishes the view if it changed. A step looks at what is known now, not at the event: that is what makes a
//! restart, a repeated event or a late answer harmless. One file per concern:
//!
//! | file | concern |
//! |---|---|
//! | `controller` | events in, actions out, the journal on its way to disk |
//! | `probes`, `node` | when nodes are asked, what their answers leave behind |
//! | `discovery` | who is primary when that is not known |
//! | `evidence`, `witness` | suspicion, the policy's judgement and the core's vetoes, what standbys say of the primary |
//! | `failover`, `freeze`, `promote` | fence, freeze and choose, promote and verify |
//! | `lag` | how far the primary was known to be, and how much of that a standby may lack |
//! | `switchover` | a change of primary that somebody asked for, up to the stop of the old one |
//! | `observe` | following whom others promote |
//! | `operator` | what a person asks for: whether it may be, and what would happen |
//! | `rejoin` | former primaries and diverged standbys, back by a hook |
//! | `standbys`, `sync` | standbys and synchronous replication while a primary serves |
//! | `restart` | a primary that was started anew while commits wait for standbys |
//! | `settings`, `conninfo` | what is set on nodes, and the proof that a frozen one is frozen |
//! | `health`, `views` | what the data plane and people see |
//! | `survival` | how many failures the cluster would survive now |
//! | `reconfigure` | a new configuration while it runs |
//! | `work` | actions in flight, one per node, and their repetition |

mod action;
pub(crate) mod conninfo;
mod controller;
mod discovery;
mod event;
mod evidence;
mod failover;
mod freeze;
mod health;
mod lag;
mod node;
mod observe;
mod operator;
mod phase;
mod probes;
mod promote;
mod reconfigure;
mod record;
mod rejoin;
mod restart;
mod settings;
mod standbys;
mod survival;
mod switchover;
mod sync;
#[cfg(test)]
pub(crate) mod tests;
mod view;
mod views;
mod witness;
mod work;

pub use action::{Action, ActionId, HookCall, HookKind, ProbeId, Promotion, SettingsChange};
pub use controller::Controller;
pub use event::{ActionFailure, ActionOutcome, Event, OperatorCommand, ServerLoss};
pub use operator::Plan;
pub use phase::Phase;
pub use record::{Attempt, Decision, DecisionKind, Journal, JournalPhase, Observed, SavedSettings, SyncRule};
pub use survival::Survival;
pub use view::{ClusterView, Health, NodeView, ObservedRole, ReadFitness, Vouched, Writes};
