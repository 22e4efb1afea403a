//! The cluster controller: who is primary, when that changes, and what is done about it.
//!
//! [`Controller`] is a pure state machine. Whoever drives it (the proxy with real sockets, the simulator with a model)
//! hands it [`Event`]s and the time, carries out the [`Action`]s that come back, and calls again when
//! [`Controller::poll_timeout`] says so. Every action is idempotent and may be issued again, after a time-out or after
//! a restart from the persisted [`Journal`].

mod action;
mod event;
mod phase;
mod record;
mod view;

pub use action::{Action, ActionId, ProbeId, Promotion, SettingsChange};
pub use event::{ActionFailure, ActionOutcome, Event, OperatorCommand, ServerLoss};
pub use phase::Phase;
pub use record::{Attempt, Decision, DecisionKind, Journal, JournalPhase, SavedSettings, SyncRule};
pub use view::{ClusterView, Health, NodeView, ObservedRole, ReadFitness, Writes};
