//! The application name that a client begins with, as its server would make it.

use std::fmt::Write as _;

use super::settings::{Reported, quote};
use crate::wire::sqlstate;
use crate::wire::write::Report;

/// Names are cut to so many bytes by PostgreSQL.
pub(super) const NAME_MAX: usize = 63;

/// What becomes of a name from a start-up packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplicationName {
    /// As the server shows it: printable ASCII.
    pub shown: String,
    /// What the client is told if it was cut.
    pub notice: Option<Report>,
}

impl ApplicationName {
    /// Of a name that was given to servers that report this after log-in.
    pub fn of(given: &str, reported: &Reported) -> Self {
        let find =
            |name: &str| reported.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let encoding = find("server_encoding").unwrap_or_default();
        let cut = &given.as_bytes()[..clipped(given.as_bytes(), encoding)];
        let notice = (cut.len() < given.len()).then(|| {
            let cut = String::from_utf8_lossy(cut);
            let message = format!("identifier \"{given}\" will be truncated to \"{cut}\"");
            Report { code: sqlstate::NAME_TOO_LONG, ..Report::notice(message) }
        });
        Self { shown: shown(cut, find("server_version")), notice }
    }
}

/// How many bytes are left of a name: no character is cut in two.
fn clipped(name: &[u8], encoding: &str) -> usize {
    let mut end = 0;
    while let Some(first) = name.get(end) {
        let next = end + length(*first, encoding);
        if next.min(name.len()) > NAME_MAX {
            return end;
        }
        end = next;
    }
    name.len()
}

/// The length of a character in that encoding of a server, by its first byte.
fn length(first: u8, encoding: &str) -> usize {
    match (encoding, first) {
        ("UTF8", 0xe0..=0xef) | ("EUC_JP" | "EUC_JIS_2004" | "EUC_KR" | "EUC_TW", 0x8f) => 3,
        ("UTF8", 0xf0..=0xf7) | ("EUC_TW", 0x8e) => 4,
        ("UTF8", 0xc0..=0xdf) | ("EUC_JP" | "EUC_JIS_2004" | "EUC_KR" | "EUC_TW" | "EUC_CN", 0x80..=0xff) => {
            2
        }
        _ => 1,
    }
}

/// A name as a server of that version makes it printable, byte by byte.
fn shown(name: &[u8], server_version: Option<&str>) -> String {
    let major = server_version.and_then(|version| version.split(|c: char| !c.is_ascii_digit()).next());
    let shows_bytes = major.and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= 16);
    let mut shown = String::with_capacity(name.len());
    for byte in name {
        match byte {
            b' '..=b'~' => shown.push(char::from(*byte)),
            _ if shows_bytes => {
                let _ = write!(shown, "\\x{byte:02x}");
            }
            _ => shown.push('?'),
        }
    }
    shown
}

/// Writes a name that a server has shown as the text of a literal that makes it again. What PostgreSQL made longer than
/// it takes was shorter before.
pub(super) fn literal(shown: &[u8], out: &mut Vec<u8>) {
    if shown.len() > NAME_MAX
        && let Some(given) = hidden(shown)
    {
        out.extend_from_slice(b"E'");
        for byte in given {
            match byte {
                b'\'' | b'\\' => out.extend_from_slice(&[byte, byte]),
                b' '..=b'~' => out.push(byte),
                _ => out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
            }
        }
        out.push(b'\'');
    } else {
        quote(shown, out);
    }
}

/// The bytes behind a name that shows them as `\xc3`. A literal can hold them only if they are text.
fn hidden(shown: &[u8]) -> Option<Vec<u8>> {
    let (mut given, mut rest) = (Vec::new(), shown);
    while let Some((&first, after)) = rest.split_first() {
        let byte = after.strip_prefix(b"x").and_then(|digits| {
            let digits = std::str::from_utf8(digits.get(..2)?).ok()?;
            u8::from_str_radix(digits, 16).ok().filter(|byte| *byte != 0 && !matches!(byte, b' '..=b'~'))
        });
        match byte {
            Some(byte) if first == b'\\' => {
                given.push(byte);
                rest = &after[3..];
            }
            _ => {
                given.push(first);
                rest = after;
            }
        }
    }
    (given.len() <= NAME_MAX && std::str::from_utf8(&given).is_ok()).then_some(given)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn of(name: &str, version: &str, encoding: &str) -> ApplicationName {
        let reported = [("server_version", version), ("server_encoding", encoding)];
        let reported = reported.map(|(name, value)| (name.to_owned(), value.to_owned()));
        ApplicationName::of(name, &Arc::new(reported.to_vec()))
    }

    fn written(shown: &str) -> String {
        let mut out = Vec::new();
        literal(shown.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_name_is_made_printable_as_the_servers_version_does() {
        let name = "it's \u{e9}\t~";
        for (version, shown) in [
            ("15.13 (Debian 15.13-0+deb12u1)", "it's ???~"),
            ("16beta1", "it's \\xc3\\xa9\\x09~"),
            ("", "it's ???~"),
        ] {
            assert_eq!(of(name, version, "UTF8"), ApplicationName { shown: shown.to_owned(), notice: None });
        }
    }

    #[test]
    fn a_long_name_is_cut_between_characters_and_that_is_told() {
        let name = format!("a{}", "\u{e9}".repeat(40));
        for (encoding, left) in [("UTF8", 63), ("LATIN1", 63), ("EUC_KR", 63)] {
            assert_eq!(of(&name, "15.1", encoding).shown.len(), left, "{encoding}");
        }
        for (encoding, left) in [("UTF8", 62), ("LATIN1", 63), ("EUC_KR", 62)] {
            let cut = of(&name[1..], "15.1", encoding);
            assert_eq!(cut.shown.len(), left, "{encoding}");
            assert_eq!(cut.notice.unwrap().code, "42622");
        }
        let three = of(&"\u{3042}".repeat(22), "15.1", "UTF8");
        assert_eq!(three.shown.len(), 63);
        assert_eq!(of(&"x".repeat(63), "15.1", "UTF8").notice, None);
        let four = of(&format!("x{}", "\u{1f600}".repeat(17)), "15.1", "UTF8");
        assert_eq!(four.shown.len(), 61);
    }

    #[test]
    fn what_became_longer_than_a_name_may_be_is_written_as_it_was_given() {
        assert_eq!(written("it's \\x"), r"E'it''s \\x'");
        let shown = of(&"\u{e9}'\\".repeat(15), "16.1", "UTF8").shown;
        assert!(shown.len() > NAME_MAX);
        assert_eq!(written(&shown), format!("E'{}'", r"\xc3\xa9''\\".repeat(15)));
        // What is no text, or was longer too, is left to the server.
        for long in [r"\xff".repeat(30), r"\xc3\xa9".repeat(40), r"\x41".repeat(30)] {
            assert_eq!(written(&long), format!("E'{}'", long.replace('\\', "\\\\")));
        }
    }
}
