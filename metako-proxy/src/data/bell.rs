//! What wakes a client's task from outside.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::task::Waker;

use parking_lot::Mutex;

/// Wakes one task whenever it is rung. It keeps the waker, so a task that waits again and again registers once. Tasks are told
/// apart by what their wakers point at, which is one allocation for each, as tokio has it.
#[derive(Debug, Default)]
pub(super) struct Bell {
    waker: Mutex<Option<Waker>>,
    /// What that waker points at. It lives as long as the waker is kept, so no other has the same.
    known: AtomicPtr<()>,
}

impl Bell {
    /// Has the task woken from now on, and no other. What is rung about has to be looked at after this.
    pub(super) fn listen(&self, waker: &Waker) {
        if !ptr::eq(self.known.load(Ordering::Relaxed), waker.data()) {
            self.change(waker);
        }
    }

    #[cold]
    fn change(&self, waker: &Waker) {
        debug_assert!(!waker.data().is_null(), "a waker that points nowhere tells nobody apart");
        let mut kept = self.waker.lock();
        let before = kept.replace(waker.clone());
        self.known.store(waker.data().cast_mut(), Ordering::Relaxed);
        drop(kept);
        // It may be the last that there is of a task.
        drop(before);
    }

    /// Wakes the task. What it is about has to be there before this.
    pub(super) fn ring(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_task_that_listened_last_is_woken_each_time() {
        let (one, two) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let bell = Bell::default();
        bell.ring();
        bell.listen(&Waker::from(Arc::clone(&one)));
        bell.listen(&Waker::from(Arc::clone(&one)));
        bell.ring();
        bell.ring();
        assert_eq!(one.0.load(Ordering::Relaxed), 2);
        bell.listen(&Waker::from(Arc::clone(&two)));
        bell.ring();
        assert_eq!((one.0.load(Ordering::Relaxed), two.0.load(Ordering::Relaxed)), (2, 1));
    }
}
