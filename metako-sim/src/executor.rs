//! Runs a future whose every await is ready at once: a probe strategy over the model.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Polls `future` once. `None` means that it waits for something that the simulator does not have, such as a socket or
/// a clock of its own.
pub(crate) fn run_ready<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_future_that_waits_for_the_outside_is_noticed() {
        assert_eq!(run_ready(async { 7 }), Some(7));
        assert_eq!(run_ready(std::future::pending::<()>()), None);
    }
}
