//! How fast connections are opened: a few at a time, and after a failure with pauses, so that a server in trouble, or one
//! that has just come back, is not stormed.

use std::time::Duration;

use crate::Tick;

/// So many connections of a pool are opened at a time.
const OPENING_MAX: usize = 8;
/// The pause after a first failure; each further one doubles it.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: a server that is back is found within it.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The pace of a pool.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Failures since the last success.
    failures: u32,
    again: Tick,
}

impl Pace {
    /// Whether one more may be opened, beside those that are being opened.
    pub(super) fn allows(&self, now: Tick, opening: usize) -> bool {
        match self.failures {
            0 => opening < OPENING_MAX,
            _ => opening == 0 && now >= self.again,
        }
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// The pause is between a half and the whole of what the number of failures says.
    pub(super) fn failed(&mut self, now: Tick, random: u64) {
        // Of those that were being opened together only the first failure counts.
        if self.pauses_until(now).is_some() {
            return;
        }
        let longest = PAUSE.saturating_mul(1 << self.failures.min(4)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.again = now + longest / 2 + longest / 2 * (random % 1001) as u32 / 1000;
    }

    pub(super) fn pauses_until(&self, now: Tick) -> Option<Tick> {
        (self.failures > 0 && now < self.again).then_some(self.again)
    }
}
