//! Hooks: commands on a node's host. They go on when the proxy dies, and know nothing of it.

use std::collections::BTreeMap;
use std::time::Duration;

use metako_core::Tick;
use metako_core::cluster::{ActionFailure, ActionOutcome, HookCall, HookKind};

use super::World;
use crate::chance::Purpose;
use crate::log::{HookChange, LogEvent};
use crate::message::{Answer, Body, CallId, Place};
use crate::model::Process;
use crate::scenario::Span;
use crate::stage::Event;

/// From the call until the command runs.
const LOG_IN: Span = Span::millis(20, 120);
/// Rewinding, or copying everything.
const COPY: Span = Span::millis(1_500, 6_000);
/// How often a command looks whether what it waits for has come.
const LOOK: Duration = Duration::from_millis(20);
/// `pg_ctl` waits so long for a server to stop or to start.
const PG_CTL: Duration = Duration::from_mins(1);

/// Hooks that were called and have not ended, by their call.
pub(super) type Hooks = BTreeMap<CallId, Hook>;

/// A hook on a host.
pub(super) struct Hook {
    node: usize,
    call: HookCall,
    step: Step,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// It does not run yet.
    LogIn,
    /// The server of that run is to stop.
    Stopping { run: u32, until: Tick },
    /// The data directory is being copied.
    Copying { upstream: usize, until: Tick },
    /// The server is to come up as a standby.
    Starting { until: Tick },
}

impl World {
    pub(super) fn begin_hook(&mut self, id: CallId, node: usize, call: HookCall) {
        self.hooks.insert(id, Hook { node, call, step: Step::LogIn });
        let delay = self.stage.chance.duration(Purpose::Hook, node as u64, LOG_IN);
        self.stage.after(delay, Event::Hook { call: id });
    }

    pub(super) fn hook_goes_on(&mut self, id: CallId) {
        let Some(hook) = self.hooks.get(&id) else { return };
        let (node, now) = (hook.node, self.stage.now);
        let process = self.cluster.node(node).process;
        let ended = match hook.step {
            Step::LogIn => self.hook_begins(id),
            Step::Stopping { run, .. }
                if process == Process::Stopped || self.cluster.node(node).run != run =>
            {
                Some(Ok(()))
            }
            Step::Stopping { until, .. } => {
                (now >= until).then(|| unknown("pg_ctl: the server does not shut down"))
            }
            Step::Copying { upstream, until } => self.copying(id, upstream, until),
            Step::Starting { .. } if process == Process::Running => Some(Ok(())),
            Step::Starting { .. } if process == Process::Stopped => {
                Some(unknown("pg_ctl: could not start the server"))
            }
            Step::Starting { until } => {
                (now >= until).then(|| unknown("pg_ctl: the server did not start in time"))
            }
        };
        match ended {
            Some(result) => self.hook_ended(id, result),
            None => self.stage.after(LOOK, Event::Hook { call: id }),
        }
    }

    fn hook_begins(&mut self, id: CallId) -> Option<Result<(), ActionFailure>> {
        let hook = self.hooks.get(&id)?;
        let (node, call) = (hook.node, hook.call.clone());
        let until = self.stage.now + PG_CTL;
        let change = HookChange::Began;
        self.stage.log(LogEvent::Hook { node: call.node.clone(), kind: call.kind, change });
        let others = self.hooks.iter().filter(|(other, hook)| **other != id && hook.node == node);
        let others: Vec<CallId> =
            others.filter(|(_, hook)| !matches!(hook.step, Step::LogIn)).map(|(other, _)| *other).collect();
        if let Some(other) = others.first() {
            // One of a proxy that was killed, or gave it up, may still be at work.
            if self.awaits(*other) && self.awaits(id) {
                let problem = format!("two hooks at once on the host of {}", call.node);
                self.stage.log(LogEvent::Broken(problem));
            }
            return Some(Err(ActionFailure::Failed("another hook is still at work there".to_owned())));
        }
        let step = match call.kind {
            HookKind::Stop => {
                let run = self.cluster.node(node).run;
                self.cluster.stop(&mut self.stage, node);
                Step::Stopping { run, until }
            }
            HookKind::Rejoin => {
                let upstream = call.upstream.as_ref().and_then(|name| self.cluster.find(name.as_str()));
                let Some(upstream) = upstream.filter(|upstream| *upstream != node) else {
                    return Some(unknown("there is no such upstream"));
                };
                self.cluster.kill(&mut self.stage, node);
                self.cluster.lock(node, true);
                let copy = self.stage.chance.duration(Purpose::Hook, node as u64, COPY);
                Step::Copying { upstream, until: self.stage.now + copy }
            }
        };
        if let Some(hook) = self.hooks.get_mut(&id) {
            hook.step = step;
        }
        None
    }

    /// The upstream has to be there all the time, and to be a primary that `pg_rewind` takes for what it is.
    fn copying(&mut self, id: CallId, upstream: usize, until: Tick) -> Option<Result<(), ActionFailure>> {
        let hook = self.hooks.get(&id)?;
        let (node, call) = (hook.node, hook.call.clone());
        let (here, there) = (Place::Node(node), Place::Node(upstream));
        let source = self.cluster.node(upstream);
        let trouble = if self.stage.is_cut(here, there) || self.stage.is_cut(there, here) || !source.is_up() {
            Some("the upstream is not reached")
        } else if !source.primary {
            Some("the upstream is in recovery")
        } else if !self.cluster.control_file_is_current(upstream) {
            Some("pg_rewind: source and target are on the same timeline (the upstream wrote no checkpoint)")
        } else {
            None
        };
        if let Some(trouble) = trouble {
            self.cluster.lock(node, false);
            return Some(unknown(trouble));
        }
        if self.stage.now < until {
            return None;
        }
        let conninfo =
            call.conninfo.as_ref().map(|conninfo| conninfo.reveal().to_owned()).unwrap_or_default();
        let slot = call.slot.clone().unwrap_or_default();
        self.cluster.lock(node, false);
        self.cluster.copy(&mut self.stage, node, upstream, &conninfo, &slot);
        self.cluster.start(&mut self.stage, node);
        if let Some(hook) = self.hooks.get_mut(&id) {
            hook.step = Step::Starting { until: self.stage.now + PG_CTL };
        }
        None
    }

    fn hook_ended(&mut self, id: CallId, result: Result<(), ActionFailure>) {
        let Some(hook) = self.hooks.remove(&id) else { return };
        let change = HookChange::Ended(result.clone().map_err(|failure| failure.to_string()));
        self.stage.log(LogEvent::Hook { node: hook.call.node.clone(), kind: hook.call.kind, change });
        let answer = Answer::Action(result.map(|()| ActionOutcome::Done));
        self.stage.send(Place::Node(hook.node), Place::Proxy, Body::Answer { call: id, answer });
    }
}

/// A command that ended badly: what it did until then is not known.
fn unknown(problem: &str) -> Result<(), ActionFailure> {
    Err(ActionFailure::Unknown(problem.to_owned()))
}
