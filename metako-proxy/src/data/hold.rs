//! Clients that are held because there is no primary to write to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use metako_core::config::FailoverSettings;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::shared::Traffic;

/// The line of held clients: first in, first out.
#[derive(Debug, Default)]
pub(super) struct HoldLine {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    line: BTreeMap<u64, Arc<Notify>>,
    bytes: u64,
    last_ticket: u64,
}

/// A place in the line. Dropping it leaves the line.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    line: &'a HoldLine,
    traffic: &'a Traffic,
    number: u64,
    bytes: u64,
    turn: Arc<Notify>,
}

impl HoldLine {
    /// Gets in line with so many bytes of what the client sent; an error says which bound is reached.
    pub(super) fn enter<'a>(
        &'a self,
        traffic: &'a Traffic,
        settings: &FailoverSettings,
        bytes: usize,
    ) -> Result<Ticket<'a>, &'static str> {
        let bytes = bytes as u64;
        let mut held = self.held.lock();
        if held.line.len() >= settings.hold_clients {
            return Err("failover.hold_clients is reached");
        }
        if held.bytes.saturating_add(bytes) > settings.hold_bytes {
            return Err("failover.hold_bytes is reached");
        }
        held.last_ticket += 1;
        held.bytes += bytes;
        let (number, turn) = (held.last_ticket, Arc::new(Notify::new()));
        held.line.insert(number, Arc::clone(&turn));
        traffic.held.fetch_add(1, Ordering::Relaxed);
        traffic.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Ticket { line: self, traffic, number, bytes, turn })
    }
}

impl Ticket<'_> {
    /// Resolves when nobody who came before is in line any more. Cancellation-safe.
    pub(super) async fn turn(&self) {
        loop {
            let notified = self.turn.notified();
            if self.line.held.lock().line.first_key_value().is_some_and(|(first, _)| *first == self.number) {
                return;
            }
            notified.await;
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut held = self.line.held.lock();
        held.line.remove(&self.number);
        held.bytes -= self.bytes;
        if let Some((_, next)) = held.line.first_key_value() {
            next.notify_one();
        }
        self.traffic.held.fetch_sub(1, Ordering::Relaxed);
        self.traffic.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metako_core::config::{FailoverMode, UnknownOutcome};

    use super::*;

    fn settings(clients: usize, bytes: u64) -> FailoverSettings {
        FailoverSettings {
            mode: FailoverMode::Automatic,
            synchronous: None,
            silent_after: Duration::ZERO,
            stalled_after: Duration::ZERO,
            start_timeout: None,
            async_restart_grace: Duration::ZERO,
            hold_timeout: Duration::ZERO,
            drain_timeout: Duration::ZERO,
            hold_clients: clients,
            hold_bytes: bytes,
            budget: (2, Duration::ZERO),
            max_lag_on_failover: None,
            unknown_outcome: UnknownOutcome::TransactionResolutionUnknown,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_in_line_goes_first_and_leaving_passes_the_turn_on() {
        let (line, traffic) = (HoldLine::default(), Traffic::default());
        let settings = settings(3, 1000);
        let mut tickets: Vec<_> =
            (0..3).map(|_| line.enter(&traffic, &settings, 10).expect("room in line")).collect();
        tickets[0].turn().await;
        let early = tokio::time::timeout(Duration::from_secs(1), tickets[2].turn()).await;
        assert!(early.is_err());
        tickets.remove(1);
        tickets.remove(0);
        tickets[0].turn().await;
        assert_eq!(traffic.held.load(Ordering::Relaxed), 1);
        assert_eq!(traffic.held_bytes.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn clients_and_bytes_are_bounded() {
        let (line, traffic) = (HoldLine::default(), Traffic::default());
        let first = line.enter(&traffic, &settings(1, 100), 60);
        assert!(first.is_ok());
        assert!(line.enter(&traffic, &settings(1, 100), 1).unwrap_err().contains("hold_clients"));
        assert!(line.enter(&traffic, &settings(2, 100), 41).unwrap_err().contains("hold_bytes"));
        drop(first);
        assert!(line.enter(&traffic, &settings(1, 100), 100).is_ok());
    }
}
