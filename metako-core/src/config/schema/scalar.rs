//! Scalars: text that a schema gives a type.

use serde_json::{Number, Value as Json};

use super::shape::Shape;
use crate::config::problem::{did_you_mean, nearest, one_of};
use crate::config::tree::{Tree, Value};
use crate::config::units::{self, ByteSize, HumanDuration};

/// How much of a value is shown in a message, in characters.
const SHOWN_MAX: usize = 40;

/// Text as it stands in the file.
pub(super) struct Scalar<'t> {
    pub(super) text: &'t str,
    /// Without quotes.
    pub(super) plain: bool,
    /// Nothing at all, `null` or `~`.
    pub(super) nothing: bool,
}

/// Gives a scalar the type that one of the alternatives asks for. The error says what was found and what was expected.
pub(super) fn typed(
    shape: &Shape<'_>,
    alternatives: &[Shape<'_>],
    scalar: &Scalar<'_>,
) -> Result<Json, String> {
    let Scalar { text, plain, nothing } = *scalar;
    if nothing {
        return Err(format!("has no value; expected {}", expected(shape, alternatives)));
    }
    let mut suggestion = None;
    let mut detail = None;
    for alternative in alternatives {
        match one(shape, alternative, text, plain) {
            Ok(value) => return Ok(value),
            Err(refusal) => {
                suggestion = suggestion.or(refusal.suggestion);
                detail = detail.or(refusal.detail);
            }
        }
    }
    if shape.words("x-planned").contains(&text) {
        return Err(format!(
            "`{text}` is not available in this version; expected {}",
            expected(shape, alternatives)
        ));
    }
    let expected = detail.unwrap_or_else(|| expected(shape, alternatives));
    if text.is_empty() {
        return Err(format!("is empty; expected {expected}"));
    }
    // Where no single value is expected it may be anything, a secret too.
    if alternatives.iter().all(|one| one.is_section() || one.is_list()) {
        return Err(format!("found a single value; expected {expected}"));
    }
    let words = words(alternatives);
    let suggestion = suggestion.or_else(|| nearest(text, words.iter().copied()).map(str::to_owned));
    Err(format!(
        "found {}; expected {expected}{}",
        shown(shape, text, plain),
        did_you_mean(suggestion.filter(|_| !secret(shape)).as_deref())
    ))
}

/// Why one alternative refused.
#[derive(Default)]
struct Refusal {
    /// What was probably meant.
    suggestion: Option<String>,
    /// A closer word of what is expected.
    detail: Option<String>,
}

fn one(shape: &Shape<'_>, alternative: &Shape<'_>, text: &str, plain: bool) -> Result<Json, Refusal> {
    let words = words(std::slice::from_ref(alternative));
    if !words.is_empty() {
        return if words.contains(&text) {
            Ok(Json::String(text.to_owned()))
        } else {
            Err(Refusal::default())
        };
    }
    if alternative.is_type("string") {
        return string(shape, alternative, text);
    }
    if alternative.is_anything() {
        return Ok(guessed(text, plain));
    }
    if alternative.is_type("boolean") {
        return boolean(text, plain);
    }
    if !plain && (alternative.is_type("integer") || alternative.is_type("number")) {
        let number = text.parse::<f64>().is_ok();
        let suggestion = number.then(|| text.to_owned());
        return Err(Refusal { suggestion, detail: None });
    }
    if alternative.is_type("integer") {
        let value = integer(text).filter(|value| within(shape, alternative, value));
        return value.map(Json::Number).ok_or_else(Refusal::default);
    }
    if alternative.is_type("number") {
        let finite = text.parse::<f64>().ok().filter(|value| value.is_finite());
        let value = integer(text).or_else(|| finite.and_then(Number::from_f64));
        return value
            .filter(|value| within(shape, alternative, value))
            .map(Json::Number)
            .ok_or_else(Refusal::default);
    }
    Err(Refusal::default())
}

fn string(shape: &Shape<'_>, alternative: &Shape<'_>, text: &str) -> Result<Json, Refusal> {
    if let Some(checked) = alternative.text("format").and_then(|format| units::check(format, text)) {
        checked.map_err(|error| Refusal {
            suggestion: error.suggestion,
            detail: Some(error.expected.to_owned()),
        })?;
        if let Some(least) = shape.text("x-min").filter(|least| below(text, least)) {
            return Err(Refusal { suggestion: None, detail: Some(format!("at least {least}")) });
        }
    }
    let least = shape.number("minLength").or_else(|| alternative.number("minLength")).unwrap_or(0);
    if (text.chars().count() as u64) < least {
        return Err(Refusal::default());
    }
    Ok(Json::String(text.to_owned()))
}

/// Whether a duration or size is less than another.
fn below(text: &str, least: &str) -> bool {
    let durations = text.parse::<HumanDuration>().ok().zip(least.parse::<HumanDuration>().ok());
    let sizes = text.parse::<ByteSize>().ok().zip(least.parse::<ByteSize>().ok());
    durations.is_some_and(|(text, least)| text < least) || sizes.is_some_and(|(text, least)| text < least)
}

fn boolean(text: &str, plain: bool) -> Result<Json, Refusal> {
    let meant = match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "y" => Some(true),
        "false" | "no" | "off" | "n" => Some(false),
        _ => None,
    };
    match (text, plain) {
        ("true" | "True" | "TRUE", true) => Ok(Json::Bool(true)),
        ("false" | "False" | "FALSE", true) => Ok(Json::Bool(false)),
        _ => Err(Refusal { suggestion: meant.map(|meant| meant.to_string()), detail: None }),
    }
}

fn integer(text: &str) -> Option<Number> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse::<u64>().map(Number::from).or_else(|_| text.parse::<i64>().map(Number::from)).ok()
}

/// The least and greatest value that a schema allows, those of its `format` included.
fn bounds(shape: &Shape<'_>, alternative: &Shape<'_>) -> (Option<Number>, Option<Number>) {
    let of_format: (Option<Number>, Option<Number>) = match alternative.text("format") {
        Some("uint8") => (Some(0.into()), Some(u8::MAX.into())),
        Some("uint16") => (Some(0.into()), Some(u16::MAX.into())),
        Some("uint32") => (Some(0.into()), Some(u32::MAX.into())),
        Some("uint64" | "uint") => (Some(0.into()), None),
        Some("int8") => (Some(i8::MIN.into()), Some(i8::MAX.into())),
        Some("int16") => (Some(i16::MIN.into()), Some(i16::MAX.into())),
        Some("int32") => (Some(i32::MIN.into()), Some(i32::MAX.into())),
        _ => (None, None),
    };
    let given = |word: &str| shape.bound(word).or_else(|| alternative.bound(word)).cloned();
    (given("minimum").or(of_format.0), given("maximum").or(of_format.1))
}

fn within(shape: &Shape<'_>, alternative: &Shape<'_>, value: &Number) -> bool {
    let (least, greatest) = bounds(shape, alternative);
    least.is_none_or(|least| !less(value, &least)) && greatest.is_none_or(|greatest| !less(&greatest, value))
}

fn less(one: &Number, other: &Number) -> bool {
    match (one.as_i128(), other.as_i128()) {
        (Some(one), Some(other)) => one < other,
        _ => one.as_f64() < other.as_f64(),
    }
}

/// What the alternatives accept, in words.
pub(super) fn expected(shape: &Shape<'_>, alternatives: &[Shape<'_>]) -> String {
    let words = words(alternatives);
    let mut parts: Vec<String> = Vec::new();
    if !words.is_empty() {
        parts.push(one_of(&words));
    }
    for alternative in alternatives {
        let part = if alternative.is_null() && !alternative.is_type("string") && alternatives.len() > 1 {
            "`none`".to_owned()
        } else if words_of(alternative).is_empty() {
            kind(shape, alternative)
        } else {
            continue;
        };
        if !part.is_empty() && !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts.join(", or ")
}

fn kind(shape: &Shape<'_>, alternative: &Shape<'_>) -> String {
    if let Some(format) = alternative.text("format")
        && let Some(Err(error)) = units::check(format, "\0")
    {
        return error.expected.to_owned();
    }
    let named = if alternative.is_type("integer") || alternative.is_type("number") {
        let name = if alternative.is_type("integer") { "a whole number" } else { "a number" };
        // The limits of the wider types tell people nothing.
        let telling = |greatest: &Number| greatest.as_u64().is_none_or(|value| value < u64::from(u32::MAX));
        match bounds(shape, alternative) {
            (Some(least), Some(greatest)) if !telling(&greatest) => format!("{name}, at least {least}"),
            (Some(least), Some(greatest)) => format!("{name} from {least} to {greatest}"),
            (Some(least), None) => format!("{name}, at least {least}"),
            (None, Some(greatest)) => format!("{name}, at most {greatest}"),
            (None, None) => name.to_owned(),
        }
    } else if alternative.is_type("boolean") {
        "true or false".to_owned()
    } else if alternative.is_type("string") {
        "text".to_owned()
    } else if alternative.is_list() {
        "a list".to_owned()
    } else if alternative.is_section() {
        "a section of keys".to_owned()
    } else {
        "a value".to_owned()
    };
    let nullable = alternative.is_null() && !alternative.is_anything();
    if nullable { format!("{named}, or `none`") } else { named }
}

fn words<'a>(alternatives: &[Shape<'a>]) -> Vec<&'a str> {
    alternatives.iter().flat_map(words_of).collect()
}

fn words_of<'a>(alternative: &Shape<'a>) -> Vec<&'a str> {
    alternative.text("const").map_or_else(|| alternative.words("enum"), |word| vec![word])
}

fn secret(shape: &Shape<'_>) -> bool {
    shape.flag("x-secret")
}

/// The value as a message shows it.
fn shown(shape: &Shape<'_>, text: &str, plain: bool) -> String {
    if secret(shape) {
        return "a value that does not fit".to_owned();
    }
    let mut short: String = text.chars().take(SHOWN_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    let short = short.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"");
    if plain { format!("`{short}`") } else { format!("the quoted text \"{short}\"") }
}

/// A value that no schema speaks of, typed by its look.
pub(super) fn untyped(tree: &Tree) -> Json {
    match &tree.value {
        Value::Scalar { .. } if tree.is_null() => Json::Null,
        Value::Scalar { text, plain } => guessed(text, *plain),
        Value::List(items) => Json::Array(items.iter().map(untyped).collect()),
        Value::Section(entries) => {
            Json::Object(entries.iter().map(|entry| (entry.key.clone(), untyped(&entry.value))).collect())
        }
    }
}

fn guessed(text: &str, plain: bool) -> Json {
    let as_text = || Json::String(text.to_owned());
    if !plain {
        return as_text();
    }
    if let Ok(value) = boolean(text, true) {
        return value;
    }
    let looks_like_a_number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    let float = || text.parse::<f64>().ok().filter(|value| value.is_finite()).and_then(Number::from_f64);
    let number = looks_like_a_number.then(|| integer(text).or_else(float)).flatten();
    number.map_or_else(as_text, Json::Number)
}
