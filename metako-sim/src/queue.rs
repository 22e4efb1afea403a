//! The queue of what is going to happen, ordered by time, then by the order of scheduling.

use std::collections::BTreeMap;

use metako_core::Tick;

/// Events to come.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    events: BTreeMap<(Tick, u64), E>,
    scheduled: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { events: BTreeMap::new(), scheduled: 0 }
    }
}

impl<E> Queue<E> {
    /// Adds an event. Events of the same time come out in the order in which they were added.
    pub(crate) fn push(&mut self, at: Tick, event: E) {
        self.scheduled += 1;
        self.events.insert((at, self.scheduled), event);
    }

    /// Takes the next event out.
    pub(crate) fn pop(&mut self) -> Option<(Tick, E)> {
        self.events.pop_first().map(|((at, _), event)| (at, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_then_by_order_of_scheduling() {
        let mut queue = Queue::default();
        for (at, name) in [(5, "c"), (1, "a"), (5, "d"), (3, "b")] {
            queue.push(Tick(at), name);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(at, name)| (at.0, name)).collect();
        assert_eq!(order, [(1, "a"), (3, "b"), (5, "c"), (5, "d")]);
    }
}
