//! Waiting for conditions, never for time alone.

use std::time::{Duration, Instant};

use super::PlaygroundError;

/// How long a condition rests between two looks: doubling from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(80));

/// Asks `condition` until it answers `Ok`, and gives up after `limit` with what the last `Err` said. Blocks.
///
/// ```
/// use metako_proxy::playground::until;
/// let mut left = 3;
/// let done = until("the count", std::time::Duration::from_secs(5), || {
///     left -= 1;
///     if left == 0 { Ok("done") } else { Err(format!("{left} left")) }
/// });
/// assert_eq!(done.unwrap(), "done");
/// ```
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<T, PlaygroundError> {
    let deadline = Instant::now() + limit;
    let mut pause = PAUSES.0;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= deadline => {
                return Err(PlaygroundError::TimedOut { what: what.to_owned(), after: limit, last });
            }
            Err(_) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}
