//! The sockets of idle connections.

use metako_core::pool::ServerId;

/// Idle connections by number. A pool has few, and the one wanted is the one that came last most of the time; a map
/// would allocate each time it is emptied and filled.
pub(super) struct Idle<C>(Vec<(ServerId, C)>);

impl<C> Default for Idle<C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C> Idle<C> {
    pub(super) fn insert(&mut self, server: ServerId, conn: C) {
        self.0.push((server, conn));
    }

    pub(super) fn remove(&mut self, server: ServerId) -> Option<C> {
        let at = self.0.iter().rposition(|(known, _)| *known == server)?;
        Some(self.0.swap_remove(at).1)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&ServerId, &mut C)> {
        self.0.iter_mut().map(|(server, conn)| (&*server, conn))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
