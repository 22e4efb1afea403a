//! Messages as lines that people can read, and that are equal where the messages mean the same.

use aws_lc_rs::digest;

/// Of longer bodies the beginning is shown, with a sum of the whole.
const SHOWN_MAX: usize = 400;

/// Object ids from here on are given out as objects are made.
const FIRST_NORMAL_OBJECT_ID: u32 = 16_384;

/// Bytes with everything escaped that is not printable.
pub(crate) fn bytes(body: &[u8]) -> String {
    if body.len() <= SHOWN_MAX {
        return body.escape_ascii().to_string();
    }
    let sum = digest::digest(&digest::SHA256, body);
    let head = body[..SHOWN_MAX / 4].escape_ascii();
    format!("{head}... ({} bytes, sum {})", body.len(), sum.as_ref()[..4].escape_ascii())
}

/// A message of the server. What is left out, and why, stands at each kind.
pub(crate) fn answer(tag: u8, body: &[u8]) -> String {
    let shown = match tag {
        b'E' | b'N' => report(body),
        b'T' => row_description(body),
        b't' => parameter_description(body),
        // The process that notified: which one that is stands in a case of its own.
        b'A' => bytes(body.get(4..).unwrap_or(body)),
        // Process and key are drawn by lot: their lengths are not.
        b'K' => format!("pid, {} bytes of key", body.len().saturating_sub(4)),
        b'R' => authentication(body),
        _ => bytes(body),
    };
    format!("{} {shown}", char::from(tag)).trim_end().to_owned()
}

/// The fields of an ErrorResponse or NoticeResponse but for file, line and routine: they are places in PostgreSQL's
/// source, which other programs and other releases do not have.
fn report(body: &[u8]) -> String {
    let fields = body.split(|&byte| byte == 0).filter(|field| !field.is_empty());
    let kept = fields.filter(|field| !matches!(field[0], b'F' | b'L' | b'R'));
    kept.map(|field| format!("{}={}", char::from(field[0]), bytes(&field[1..])))
        .collect::<Vec<_>>()
        .join(" | ")
}

/// The SQLSTATE in the body of an ErrorResponse or NoticeResponse.
pub(crate) fn sqlstate(body: &[u8]) -> String {
    let field = body.split(|&byte| byte == 0).find_map(|field| field.strip_prefix(b"C"));
    bytes(field.unwrap_or(b"?????"))
}

fn oid(value: u32) -> String {
    // The ids of tables and types of the case differ from database to database.
    if value >= FIRST_NORMAL_OBJECT_ID { "oid".to_owned() } else { value.to_string() }
}

fn row_description(body: &[u8]) -> String {
    let mut rest = body.get(2..).unwrap_or_default();
    let mut columns = Vec::new();
    while let Some(end) = rest.iter().position(|&byte| byte == 0) {
        let (name, after) = rest.split_at(end);
        let Some(fixed) = after.get(1..19) else { break };
        let number = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        columns.push(format!(
            "{}:{}.{}:{}:{}",
            bytes(name),
            oid(number(0)),
            u16::from_be_bytes([fixed[4], fixed[5]]),
            oid(number(6)),
            bytes(&fixed[10..])
        ));
        rest = &after[19..];
    }
    format!("{columns:?} {}", bytes(rest))
}

fn parameter_description(body: &[u8]) -> String {
    let types = body.get(2..).unwrap_or_default().chunks(4);
    types
        .map(|chunk| chunk.try_into().map_or_else(|_| bytes(chunk), |chunk| oid(u32::from_be_bytes(chunk))))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Salts and nonces are drawn by lot; that the exchange is right is shown by its end.
fn authentication(body: &[u8]) -> String {
    match body {
        [0, 0, 0, 5, ..] => "md5 salt".to_owned(),
        [0, 0, 0, 11, ..] => "SCRAM, server first".to_owned(),
        [0, 0, 0, 12, ..] => "SCRAM, server final".to_owned(),
        _ => bytes(body),
    }
}

/// Messages of a client, one after the other.
pub(crate) fn sent(mut input: &[u8]) -> String {
    let mut shown = Vec::new();
    while let Some((&tag, rest)) = input.split_first()
        && tag.is_ascii_alphabetic()
        && let Some(length) = rest.first_chunk::<4>()
        && let Some(body) = rest.get(4..u32::from_be_bytes(*length) as usize)
    {
        shown.push(format!("{} {}", char::from(tag), bytes(body)).trim_end().to_owned());
        input = &rest[4 + body.len()..];
    }
    if !input.is_empty() {
        shown.push(format!("bytes {}", bytes(input)));
    }
    shown.join("; ")
}
