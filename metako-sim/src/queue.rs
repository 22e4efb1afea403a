//! The queue of what is going to happen, ordered by time, then by the order of scheduling.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use metako_core::Tick;

/// Events to come.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    /// When, which one in the order of scheduling, and where it lies: events are large, and are not moved when others come.
    order: BinaryHeap<Reverse<(Tick, u64, usize)>>,
    events: Vec<Option<E>>,
    free: Vec<usize>,
    scheduled: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { order: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), scheduled: 0 }
    }
}

impl<E> Queue<E> {
    /// Adds an event. Events of the same time come out in the order in which they were added.
    pub(crate) fn push(&mut self, at: Tick, event: E) {
        self.scheduled += 1;
        let place = self.free.pop().unwrap_or(self.events.len());
        match self.events.get_mut(place) {
            Some(slot) => *slot = Some(event),
            None => self.events.push(Some(event)),
        }
        self.order.push(Reverse((at, self.scheduled, place)));
    }

    /// Takes the next event out.
    pub(crate) fn pop(&mut self) -> Option<(Tick, E)> {
        let Reverse((at, _, place)) = self.order.pop()?;
        let event = self.events.get_mut(place)?.take()?;
        self.free.push(place);
        Some((at, event))
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
        queue.push(Tick(7), "e");
        queue.push(Tick(6), "f");
        assert_eq!(
            [queue.pop(), queue.pop(), queue.pop()],
            [Some((Tick(6), "f")), Some((Tick(7), "e")), None]
        );
    }
}
