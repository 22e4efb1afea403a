//! Health probes under way: at most one for each node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metako_core::cluster::{Event, ProbeId};
use metako_core::config::Node;
use metako_core::plugin::{HealthProbe, NodeAccess, NodeReport, ProbeFailure};
use metako_core::{NodeName, Tick};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::actions::Servers;
use super::contained::{self, Panicked};
use super::driver::Report;
use crate::env::Env;

/// The probes of all nodes, with the access that each node's probe borrows.
pub(super) struct Probes<E> {
    env: E,
    servers: Arc<dyn Servers>,
    reporter: mpsc::Sender<Report>,
    strategy: Option<(Arc<dyn HealthProbe>, String)>,
    nodes: BTreeMap<NodeName, Slot>,
}

struct Slot {
    node: Arc<Node>,
    /// Lent to the probe that is under way.
    access: Option<Box<dyn NodeAccess>>,
    /// Begins when the one that is under way has ended.
    waiting: Option<(ProbeId, Duration)>,
}

/// A probe that has ended, with the access that it had borrowed.
pub(super) struct ProbeAnswer {
    id: ProbeId,
    node: Arc<Node>,
    sent: Tick,
    result: Result<NodeReport, ProbeFailure>,
    access: Option<Box<dyn NodeAccess>>,
}

impl<E: Env> Probes<E> {
    pub(super) fn new(env: E, servers: Arc<dyn Servers>, reporter: mpsc::Sender<Report>) -> Self {
        Self { env, servers, reporter, strategy: None, nodes: BTreeMap::new() }
    }

    /// Takes another strategy and other nodes. Nodes that stay the same keep their connections.
    pub(super) fn reconfigure(&mut self, probe: Arc<dyn HealthProbe>, name: String, nodes: &[Arc<Node>]) {
        self.strategy = Some((probe, name));
        let mut before = std::mem::take(&mut self.nodes);
        for node in nodes {
            let known = before.remove(&node.name);
            let slot = match known {
                Some(slot) if Arc::ptr_eq(&slot.node, node) => slot,
                known => {
                    let mut access = Some(self.servers.access(node));
                    if let Some((id, limit)) = known.and_then(|slot| slot.waiting)
                        && let Some(access) = access.take()
                    {
                        self.spawn(id, Arc::clone(node), access, limit);
                    }
                    Slot { node: Arc::clone(node), access, waiting: None }
                }
            };
            self.nodes.insert(node.name.clone(), slot);
        }
    }

    /// Begins a probe, or lets it wait for the one under way. Gives the answer to one that will never begin.
    pub(super) fn begin(&mut self, id: ProbeId, node: NodeName, limit: Duration) -> Option<Event> {
        let Some(slot) = self.nodes.get_mut(&node) else {
            let problem = "the node is no longer in the configuration".to_owned();
            return Some(self.unanswered(id, node, ProbeFailure::Unexpected(problem)));
        };
        if let Some(access) = slot.access.take() {
            let node = Arc::clone(&slot.node);
            self.spawn(id, node, access, limit);
            return None;
        }
        let (replaced, _) = slot.waiting.replace((id, limit))?;
        let problem = "a later probe took its place before it began".to_owned();
        Some(self.unanswered(replaced, node, ProbeFailure::Unsupported(problem)))
    }

    fn unanswered(&self, id: ProbeId, node: NodeName, failure: ProbeFailure) -> Event {
        Event::Probed { id, node, sent: self.env.now(), result: Err(failure) }
    }

    fn spawn(&self, id: ProbeId, node: Arc<Node>, mut access: Box<dyn NodeAccess>, limit: Duration) {
        let Some((probe, name)) = self.strategy.clone() else { return };
        let (env, reporter) = (self.env.clone(), self.reporter.clone());
        self.env.spawn(async move {
            let sent = env.now();
            let run = timeout(limit, contained::probe(&*probe, &name, &mut *access)).await;
            let (result, panicked) = run.unwrap_or_else(|_| (Err(access.overdue(limit)), Panicked(false)));
            // What a panic left behind is not used again.
            let access = (panicked == Panicked(false)).then_some(access);
            let answer = Box::new(ProbeAnswer { id, node, sent, result, access });
            // The driver may have stopped meanwhile.
            let _ = reporter.send(Report::Probed(answer)).await;
        });
    }

    /// Takes a probe's end and its access back, begins the one that waited, and gives the event.
    pub(super) fn answered(&mut self, answer: ProbeAnswer) -> Event {
        let ProbeAnswer { id, node, sent, mut result, access } = answer;
        let name = node.name.clone();
        match self.nodes.get_mut(&name) {
            Some(slot) if Arc::ptr_eq(&slot.node, &node) => {
                let access = access.unwrap_or_else(|| self.servers.access(&node));
                match slot.waiting.take() {
                    Some((next, limit)) => self.spawn(next, node, access, limit),
                    None => slot.access = Some(access),
                }
            }
            _ => {
                let problem = "the node's settings changed while it was asked".to_owned();
                result = Err(ProbeFailure::Unexpected(problem));
            }
        }
        Event::Probed { id, node: name, sent, result }
    }
}
