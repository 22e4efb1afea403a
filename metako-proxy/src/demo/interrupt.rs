//! Ctrl-C and its kind.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a demo: SIGINT, SIGTERM, SIGHUP.
pub(super) struct Interrupt {
    int: Signal,
    term: Signal,
    hup: Signal,
}

impl Interrupt {
    /// From now on they no longer end the process by themselves.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves when one comes. Cancellation-safe.
    pub(super) async fn wait(&mut self) {
        // `None` would mean that the runtime is ending: an interruption as well.
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
            _ = self.hup.recv() => {}
        }
    }
}
