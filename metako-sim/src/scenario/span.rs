//! Spans of durations, as scenario files write them: `200ms`, `1ms..3ms`.

use std::str::FromStr;
use std::time::Duration;

use metako_core::config::{HumanDuration, UnitError};

/// A duration that is drawn anew each time, from `low_micros` to `high_micros`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The shortest, in microseconds.
    pub low_micros: u64,
    /// The longest, in microseconds.
    pub high_micros: u64,
}

impl Span {
    /// From so many microseconds to so many.
    pub const fn micros(low_micros: u64, high_micros: u64) -> Self {
        Self { low_micros, high_micros }
    }

    /// From so many milliseconds to so many.
    pub const fn millis(low: u64, high: u64) -> Self {
        Self::micros(low * 1_000, high * 1_000)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError {
            expected: "a duration or two of them, the shorter first, such as 200ms or 1ms..3ms",
            suggestion: None,
        };
        let (low, high) = text.split_once("..").unwrap_or((text, text));
        let part = |text: &str| text.trim().parse::<HumanDuration>().map(|duration| micros(duration.0));
        let (low, high) = (part(low).map_err(|_| wrong())?, part(high).map_err(|_| wrong())?);
        if low <= high { Ok(Self::micros(low, high)) } else { Err(wrong()) }
    }
}

/// Microseconds of a duration, at most `u64::MAX`.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_and_spans_are_read() {
        for (text, span) in [
            ("200ms", Span::millis(200, 200)),
            ("1ms..3ms", Span::millis(1, 3)),
            ("0.5s .. 2s", Span::millis(500, 2000)),
            ("150us..900us", Span::micros(150, 900)),
        ] {
            assert_eq!(text.parse(), Ok(span), "{text:?}");
        }
        for wrong in ["", "5", "ms", "3ms..1ms", "1ms..", "-1s", "1.2.3s", "1 week"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,20}") {
            let _ = text.parse::<Span>();
        }
    }
}
