//! Text with a unit: durations, sizes, and the small phrases of the configuration. Each type parses from and prints as
//! the text that the YAML holds, and carries a `format` in its JSON schema by which the checker knows it.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Priority;

/// Why text is not what it should be: what is expected, and what was probably meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}{}", suggestion.as_deref().map(|word| format!("; did you mean `{word}`?")).unwrap_or_default())]
pub struct UnitError {
    /// What would be right, in words.
    pub expected: &'static str,
    /// A likely spelling.
    pub suggestion: Option<String>,
}

impl UnitError {
    const fn expected(expected: &'static str) -> Self {
        Self { expected, suggestion: None }
    }
}

/// A type that is written as text: serde by `Display` and `FromStr`, and a schema with a format of its own.
macro_rules! written_as_text {
    ($type:ty, $name:literal, $format:expr, $about:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format, "description": $about })
            }
        }
    };
}

/// The `format` of a duration in a schema.
pub(super) const DURATION: &str = "metako-duration";
/// The `format` of a size in a schema.
pub(super) const SIZE: &str = "metako-size";
/// The `format` of a failover budget in a schema.
pub(super) const BUDGET: &str = "metako-budget";
/// The `format` of a node's priority in a schema.
pub(super) const PRIORITY: &str = "metako-priority";
/// The `format` of the short forms of `failover.synchronous` in a schema.
pub(super) const SYNCHRONOUS: &str = "metako-synchronous";

/// Checks text against a format of this module. `None` if the format is unknown here.
pub(super) fn check(format: &str, text: &str) -> Option<Result<(), UnitError>> {
    fn parses<T: FromStr<Err = UnitError>>(text: &str) -> Result<(), UnitError> {
        text.parse::<T>().map(|_| ())
    }
    Some(match format {
        DURATION => parses::<HumanDuration>(text),
        SIZE => parses::<ByteSize>(text),
        BUDGET => parses::<Budget>(text),
        PRIORITY => parses::<PriorityText>(text),
        SYNCHRONOUS => parses::<SynchronousText>(text),
        _ => return None,
    })
}

/// A duration as the YAML writes it: a number and a unit, such as `250ms`, `2.5s`, `10m` or `1h`.
///
/// For options of strategies too: `Option<HumanDuration>` also takes `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HumanDuration(pub Duration);

const DURATION_EXPECTED: &str = "a number with a unit ms, s, m, h or d, such as 250ms, 2.5s or 10m";
const DURATION_UNITS: [(&str, u128); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];
/// A century: beyond it a duration is a slip of the pen, and below it no sum of a few can overflow.
const DURATION_MAX_NANOS: u128 = 100 * 366 * 86_400_000_000_000;

impl HumanDuration {
    /// So many seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl FromStr for HumanDuration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = |suggestion| UnitError { expected: DURATION_EXPECTED, suggestion };
        let (number, unit) = number_and_unit(text);
        let Some((whole, fraction)) = decimal(number) else { return Err(wrong(None)) };
        let Some((_, scale)) = DURATION_UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(wrong(likely_duration_unit(unit).map(|likely| format!("{number}{likely}"))));
        };
        let beyond = || UnitError::expected("a duration of at most a century");
        let (numerator, denominator) = fraction.bytes().fold((whole, 1), |(number, tens), digit| {
            (number.saturating_mul(10).saturating_add(u128::from(digit - b'0')), tens * 10)
        });
        let scaled = numerator.checked_mul(*scale).ok_or_else(beyond)?;
        if !scaled.is_multiple_of(denominator) {
            return Err(UnitError::expected("a duration without fractions of a nanosecond"));
        }
        let nanos = scaled / denominator;
        if nanos > DURATION_MAX_NANOS {
            return Err(beyond());
        }
        let secs = u64::try_from(nanos / 1_000_000_000).map_err(|_| beyond())?;
        let rest = u32::try_from(nanos % 1_000_000_000).map_err(|_| beyond())?;
        Ok(Self(Duration::new(secs, rest)))
    }
}

fn likely_duration_unit(unit: &str) -> Option<&'static str> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "" | "sec" | "secs" | "second" | "seconds" | "s" => "s",
        "msec" | "msecs" | "millis" | "millisecond" | "milliseconds" | "ms" => "ms",
        "min" | "mins" | "minute" | "minutes" | "m" => "m",
        "hr" | "hrs" | "hour" | "hours" | "h" => "h",
        "day" | "days" | "d" => "d",
        _ => return None,
    })
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let whole = |unit: u128| nanos >= unit && nanos.is_multiple_of(unit);
        if nanos == 0 {
            return f.write_str("0s");
        }
        for (name, unit) in [("h", 3_600_000_000_000), ("m", 60_000_000_000)] {
            if whole(unit) {
                return write!(f, "{}{name}", nanos / unit);
            }
        }
        let (name, unit) = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)]
            .into_iter()
            .find(|(_, unit)| nanos >= *unit)
            .unwrap_or(("ns", 1));
        write!(f, "{}", nanos / unit)?;
        let rest = nanos % unit;
        if rest != 0 {
            let width = unit.ilog10() as usize;
            write!(f, ".{}", format!("{rest:0width$}").trim_end_matches('0'))?;
        }
        f.write_str(name)
    }
}

written_as_text!(HumanDuration, "Duration", DURATION, "A duration with a unit: 250ms, 2.5s, 10m, 1h.");

/// A number of bytes as the YAML writes it: `64MiB`, `1GiB`, `512B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

const SIZE_UNITS: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = |suggestion| UnitError {
            expected: "a whole number with a unit B, KiB, MiB, GiB or TiB, such as 64MiB",
            suggestion,
        };
        let (number, unit) = number_and_unit(text);
        let Some((whole, "")) = decimal(number) else { return Err(wrong(None)) };
        let Some((_, scale)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
            let likely = match unit.to_ascii_lowercase().as_str() {
                "" | "b" | "bytes" => Some("B"),
                "k" | "kb" | "kib" => Some("KiB"),
                "m" | "mb" | "mib" => Some("MiB"),
                "g" | "gb" | "gib" => Some("GiB"),
                "t" | "tb" | "tib" => Some("TiB"),
                _ => None,
            };
            return Err(wrong(likely.map(|unit| format!("{number}{unit}"))));
        };
        let bytes = u64::try_from(whole).ok().and_then(|whole| whole.checked_mul(*scale));
        // The greatest size that a signed 64-bit number holds: PostgreSQL and Linux count bytes in those.
        bytes
            .filter(|bytes| i64::try_from(*bytes).is_ok())
            .map(Self)
            .ok_or(UnitError::expected("a size below 8388608TiB"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, unit): &&(&str, u64)| self.0 >= *unit && self.0.is_multiple_of(*unit);
        let (name, unit) = SIZE_UNITS.iter().rev().find(fits).unwrap_or(&SIZE_UNITS[0]);
        write!(f, "{}{name}", self.0 / unit)
    }
}

written_as_text!(ByteSize, "Size", SIZE, "A size with a unit: 64MiB, 1GiB.");

/// So many in such a span, as the YAML writes it: `2 per 10m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    pub(super) count: u32,
    pub(super) span: HumanDuration,
}

impl FromStr for Budget {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::expected("a number of failovers per span of time, such as `2 per 10m`");
        let (count, span) = text.split_once(" per ").ok_or_else(wrong)?;
        let count = count.trim();
        if !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let count = count.parse().map_err(|_| wrong())?;
        let span: HumanDuration = span.trim().parse().map_err(|error: UnitError| UnitError {
            expected: wrong().expected,
            suggestion: error.suggestion.map(|span| format!("{count} per {span}")),
        })?;
        if span.0.is_zero() {
            return Err(wrong());
        }
        Ok(Self { count, span })
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} per {}", self.count, self.span)
    }
}

written_as_text!(Budget, "Budget", BUDGET, "So many in such a span: 2 per 10m.");

/// A node's priority as the YAML writes it: a number, or `never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PriorityText(pub(super) Priority);

impl FromStr for PriorityText {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text == "never" {
            return Ok(Self(Priority::Never));
        }
        let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        number.map(|rank| Self(Priority::Rank(rank))).ok_or_else(|| UnitError {
            expected: "a whole number (smaller is preferred) or `never`",
            suggestion: (strsim::damerau_levenshtein(text, "never") <= 2).then(|| "never".to_owned()),
        })
    }
}

impl fmt::Display for PriorityText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Priority::Rank(rank) => write!(f, "{rank}"),
            Priority::Never => f.write_str("never"),
        }
    }
}

written_as_text!(PriorityText, "Priority", PRIORITY, "A number, smaller is preferred, or never.");

/// The short forms of `failover.synchronous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SynchronousText {
    None,
    Any(u32),
    /// Any one, commits wait for it, and a commit whose wait was cancelled is no success.
    Strict,
}

impl FromStr for SynchronousText {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || {
            let words = ["none", "strict"];
            let near = words.into_iter().find(|word| strsim::damerau_levenshtein(text, word) <= 2);
            let any = text.parse::<u32>().ok().filter(|count| *count > 0).map(|count| format!("any {count}"));
            UnitError {
                expected: "`none`, `any N` (N replicas, at least 1), `strict`, or keys `mode`, `acks`, `on_no_voter`, \
                           `commit_guard`",
                suggestion: near.map(str::to_owned).or(any),
            }
        };
        if text == "none" {
            return Ok(Self::None);
        }
        if text == "strict" {
            return Ok(Self::Strict);
        }
        let count = text.strip_prefix("any ").map(str::trim).ok_or_else(wrong)?;
        if !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        count.parse().ok().filter(|count| *count > 0).map(Self::Any).ok_or_else(wrong)
    }
}

impl fmt::Display for SynchronousText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Any(count) => write!(f, "any {count}"),
            Self::Strict => f.write_str("strict"),
        }
    }
}

written_as_text!(SynchronousText, "SynchronousText", SYNCHRONOUS, "none, any N or strict.");

/// Splits where the number ends: digits and a point, then the rest, which is the unit.
fn number_and_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start_matches(' '))
}

/// The whole part and the digits after the point, at most nine.
fn decimal(number: &str) -> Option<(u128, &str)> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let ends_in_point = number.contains('.') && fraction.is_empty();
    if whole.is_empty() || whole.len() > 20 || fraction.len() > 9 || ends_in_point {
        return None;
    }
    (digits(whole) && digits(fraction)).then(|| whole.parse().ok().map(|whole| (whole, fraction))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn duration(text: &str) -> Result<Duration, UnitError> {
        text.parse::<HumanDuration>().map(|duration| duration.0)
    }

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, millis) in
            [("250ms", 250), ("2.5s", 2500), ("5 s", 5000), ("0s", 0), ("1.5h", 5_400_000), ("0.5m", 30_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("36500d"), Ok(Duration::from_secs(36_500 * 86_400)));
    }

    #[test]
    fn wrong_durations_say_what_was_meant() {
        for (text, meant) in [
            ("5", Some("5s")),
            ("5sec", Some("5s")),
            ("10 minutes", Some("10m")),
            ("1H", Some("1h")),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1.s", None),
            (".5s", None),
            ("1.2.3s", None),
            ("5 parsecs", None),
            ("0.1234567891s", None),
            ("99999999999999999999999999h", None),
        ] {
            assert_eq!(duration(text).unwrap_err().suggestion.as_deref(), meant, "{text}");
        }
        assert!(duration("99999999999h").is_err(), "beyond a century");
        assert!(duration("0.0000001us").is_err(), "finer than a nanosecond");
    }

    #[test]
    fn durations_print_shortly() {
        for text in ["0s", "250ms", "2.5s", "90s", "10m", "1h", "36h", "1.5ms", "7ns"] {
            assert_eq!(text.parse::<HumanDuration>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn sizes_need_binary_units() {
        assert_eq!("64MiB".parse(), Ok(ByteSize(64 << 20)));
        assert_eq!("64MB".parse::<ByteSize>().unwrap_err().suggestion.as_deref(), Some("64MiB"));
        assert_eq!("64".parse::<ByteSize>().unwrap_err().suggestion.as_deref(), Some("64B"));
        assert!("9999999TiB".parse::<ByteSize>().is_err());
        assert!("1.5GiB".parse::<ByteSize>().is_err());
    }

    #[test]
    fn phrases_parse_and_print() {
        for text in ["2 per 10m", "0 per 1h"] {
            assert_eq!(text.parse::<Budget>().unwrap().to_string(), text);
        }
        for text in ["", "2", "2 per", "two per 10m", "2 per 0s", "-1 per 1m", "2 per 10"] {
            assert!(text.parse::<Budget>().is_err(), "{text}");
        }
        for text in ["never", "0", "100"] {
            assert_eq!(text.parse::<PriorityText>().unwrap().to_string(), text);
        }
        for text in ["none", "any 2", "strict"] {
            assert_eq!(text.parse::<SynchronousText>().unwrap().to_string(), text);
        }
        for text in ["any", "any 0", "any x", "any +1", "all", "strict 2"] {
            assert!(text.parse::<SynchronousText>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn durations_survive_text(secs in 0u64..3_000_000_000, nanos in 0u32..1_000_000_000) {
            let duration = HumanDuration(Duration::new(secs, nanos));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn sizes_survive_text(bytes in 0..=i64::MAX.unsigned_abs()) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn any_text_is_answered(text in "\\PC*") {
            for format in [DURATION, SIZE, BUDGET, PRIORITY, SYNCHRONOUS] {
                prop_assert!(check(format, &text).is_some());
            }
        }

        #[test]
        fn numbers_with_any_unit_are_answered(number in "[0-9.]{0,30}", unit in "[a-zA-Z ]{0,4}") {
            let text = format!("{number}{unit}");
            let _ = text.parse::<HumanDuration>();
            let _ = text.parse::<ByteSize>();
        }
    }
}
