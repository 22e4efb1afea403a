//! The log of clients that were refused: as many lines as a person can read, however many strangers knock.

use std::net::SocketAddr;
use std::time::Duration;

use metako_core::wire::write::Report;
use parking_lot::Mutex;
use tokio::time::Instant;

/// So many lines in each [`SPAN`].
const LINES_MAX: u32 = 30;
const SPAN: Duration = Duration::from_secs(10);
/// The longest name that is shown, in characters.
const NAME_SHOWN: usize = 80;
/// As much of a message: PostgreSQL's words with an address, a user and a database of the longest names.
const MESSAGE_SHOWN: usize = 300;

/// Counts lines.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Refusals {
    /// Logs that a client was refused. `reason` is for the operator alone, and holds no secret.
    pub(super) fn log(&self, peer: SocketAddr, user: Option<&str>, report: &Report, reason: Option<&str>) {
        let Some(left_out) = self.take_line() else { return };
        if left_out > 0 {
            tracing::info!(left_out, "log-ins were refused without a line of their own");
        }
        let (sqlstate, message) = (report.code, shown(&report.message));
        let user: String = user.unwrap_or_default().chars().take(NAME_SHOWN).collect();
        let reason = reason.unwrap_or("as told to the client");
        tracing::info!(%peer, user = %user.escape_debug(), sqlstate, message, reason, "log-in refused");
    }

    /// Whether there is room for a line; if so, how many were left out before it.
    fn take_line(&self) -> Option<u64> {
        let mut counted = self.0.lock();
        if counted.since.is_none_or(|since| since.elapsed() >= SPAN) {
            counted.since = Some(Instant::now());
            counted.lines = 0;
        }
        if counted.lines >= LINES_MAX {
            counted.left_out += 1;
            return None;
        }
        counted.lines += 1;
        Some(std::mem::take(&mut counted.left_out))
    }
}

/// What holds the words of strangers, escaped and cut.
pub(super) fn shown(message: &str) -> String {
    let cut: String = message.chars().take(MESSAGE_SHOWN).collect();
    cut.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_strangers_make_no_lines_of_their_own() {
        let report = Report::fatal("22023", format!("invalid\n{}", "x".repeat(10_000)));
        let error = super::super::LoginError::refused(report).to_string();
        assert!(!error.contains('\n') && error.len() < 400, "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn lines_are_rationed_and_what_was_left_out_is_counted() {
        let refusals = Refusals::default();
        let taken = (0..100).filter(|_| refusals.take_line().is_some()).count();
        assert_eq!(taken, LINES_MAX as usize);
        tokio::time::advance(SPAN).await;
        assert_eq!(refusals.take_line(), Some(100 - u64::from(LINES_MAX)));
        assert_eq!(refusals.take_line(), Some(0));
    }
}
