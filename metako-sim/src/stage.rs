//! What all parts of the simulated world share: the time, what is going to happen, chance, the links and the log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metako_core::{NodeName, Tick};

use crate::chance::{Chance, Purpose};
use crate::log::{Log, LogEvent, NodeChange};
use crate::message::{Body, CallId, Message, Place};
use crate::model::NodeEvent;
use crate::queue::Queue;
use crate::scenario::LinkTimings;
use crate::world::{ClientTimer, ProxyEvent};

/// Something that is going to happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// A message reaches its place, if the link is open.
    Arrive(Message),
    /// Something happens within a node, if it is still the same run of it.
    Node { node: usize, run: u32, event: NodeEvent },
    /// Something happens within the proxy, if it is still the same run of it.
    Proxy { run: u32, event: ProxyEvent },
    /// A hook goes on on its node's host.
    Hook { call: CallId },
    /// A client's time has come.
    Client { client: u32, timer: ClientTimer },
    /// A fault of the scenario begins.
    FaultBegins(usize),
    /// It ends.
    FaultEnds(usize),
}

/// The shared parts.
pub(crate) struct Stage {
    pub(crate) now: Tick,
    pub(crate) queue: Queue<Event>,
    pub(crate) chance: Chance,
    pub(crate) log: Log,
    latency: LinkTimings,
    links: Links,
}

/// Which ways are cut, what is held back there, and what arrived last.
#[derive(Default)]
struct Links {
    /// Counts, because faults may overlap.
    cuts: BTreeMap<(Place, Place), u32>,
    held: BTreeMap<(Place, Place), Vec<Message>>,
    last_arrival: BTreeMap<(Place, Place), Tick>,
}

impl Stage {
    pub(crate) fn new(seed: u64, latency: LinkTimings) -> Self {
        Self {
            now: Tick::ZERO,
            queue: Queue::default(),
            chance: Chance::new(seed),
            log: Log::default(),
            latency,
            links: Links::default(),
        }
    }

    pub(crate) fn log(&mut self, event: LogEvent) {
        self.log.push(self.now, event);
    }

    pub(crate) fn log_node(&mut self, node: &NodeName, change: NodeChange) {
        self.log(LogEvent::Node { node: node.clone(), change });
    }

    /// Schedules an event.
    pub(crate) fn after(&mut self, delay: Duration, event: Event) {
        self.queue.push(self.now + delay, event);
    }

    /// Sends a message. On one way messages arrive in the order in which they were sent, as on a TCP connection.
    pub(crate) fn send(&mut self, from: Place, to: Place, body: Body) {
        let span =
            if from == Place::Proxy || to == Place::Proxy { self.latency.metako } else { self.latency.nodes };
        let delay = self.chance.duration(Purpose::Latency, from.key() << 32 | to.key(), span);
        let last = self.links.last_arrival.entry((from, to)).or_default();
        let arrival = (self.now + delay).max(*last);
        *last = arrival;
        self.queue.push(arrival, Event::Arrive(Message { from, to, body }));
    }

    /// Passes the message on if its way is open; else it is held back until it is.
    pub(crate) fn admit(&mut self, message: Message) -> Option<Message> {
        let way = (message.from, message.to);
        if self.is_cut(way.0, way.1) {
            self.links.held.entry(way).or_default().push(message);
            return None;
        }
        Some(message)
    }

    pub(crate) fn is_cut(&self, from: Place, to: Place) -> bool {
        self.links.cuts.get(&(from, to)).is_some_and(|count| *count > 0)
    }

    /// All ways that are cut now.
    pub(crate) fn cut_ways(&self) -> BTreeSet<(Place, Place)> {
        self.links.cuts.iter().filter(|(_, count)| **count > 0).map(|(way, _)| *way).collect()
    }

    pub(crate) fn cut(&mut self, from: Place, to: Place) {
        *self.links.cuts.entry((from, to)).or_insert(0) += 1;
    }

    pub(crate) fn mend(&mut self, from: Place, to: Place) {
        if let Some(count) = self.links.cuts.get_mut(&(from, to)) {
            *count = count.saturating_sub(1);
        }
        if !self.is_cut(from, to) {
            for message in self.links.held.remove(&(from, to)).unwrap_or_default() {
                self.send(message.from, message.to, message.body);
            }
        }
    }
}
