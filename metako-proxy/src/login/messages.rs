//! What metako says to clients before the relay begins.

use metako_core::wire::write::{self, Report};

use super::Protocol;
use super::scram::Mechanism;

const AUTHENTICATION_OK: u32 = 0;
const CLEARTEXT_PASSWORD: u32 = 3;
const MD5_PASSWORD: u32 = 5;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// Bytes of what PostgreSQL says from AuthenticationOk to ReadyForQuery, with some room.
const WELCOME_USUAL: usize = 640;

/// An ErrorResponse in the format of protocol 3.
pub(super) fn error(report: &Report) -> Vec<u8> {
    let mut bytes = Vec::new();
    write::error_response(&mut bytes, report);
    bytes
}

/// An ErrorResponse in the format of protocol 2, which has no length.
pub(super) fn error_of_protocol_2(report: &Report) -> Vec<u8> {
    format!("EFATAL:  {}\n\0", report.message).into_bytes()
}

/// The end of a log-in: the parameters that the client is told, its cancel key and ReadyForQuery, idle.
///
/// To be sent once, behind [`Client::unsent`](super::Client::unsent). Names and values must hold no NUL character. The key
/// has 4 to 256 bytes, and 4 in protocol 3.0.
pub fn welcome<'a>(
    out: &mut Vec<u8>,
    parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
    process_id: i32,
    secret_key: &[u8],
) {
    for (name, value) in parameters {
        write::frame(out, b'S', |body| {
            for text in [name, value] {
                body.extend_from_slice(text.as_bytes());
                body.push(0);
            }
        });
    }
    write::frame(out, b'K', |body| {
        body.extend_from_slice(&process_id.to_be_bytes());
        body.extend_from_slice(secret_key);
    });
    write::frame(out, b'Z', |body| body.push(b'I'));
}

/// Tells a client that it gets this minor version of protocol 3 and none of these options.
///
/// The field is called the newest *minor* version; PostgreSQL puts the whole version there, and libpq expects that.
pub(super) fn negotiate(minor: u16, unsupported_options: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write::frame(&mut bytes, b'v', |body| {
        body.extend_from_slice(&Protocol::MAJOR.to_be_bytes());
        body.extend_from_slice(&minor.to_be_bytes());
        // A start-up packet has no room for more.
        let count = u32::try_from(unsupported_options.len()).unwrap_or(u32::MAX);
        body.extend_from_slice(&count.to_be_bytes());
        for option in unsupported_options {
            body.extend_from_slice(option.as_bytes());
            body.push(0);
        }
    });
    bytes
}

fn authentication(bytes: &mut Vec<u8>, kind: u32, data: &[u8]) {
    write::frame(bytes, b'R', |body| {
        body.extend_from_slice(&kind.to_be_bytes());
        body.extend_from_slice(data);
    });
}

fn one(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + data.len());
    authentication(&mut bytes, kind, data);
    bytes
}

pub(super) fn cleartext_password() -> Vec<u8> {
    one(CLEARTEXT_PASSWORD, b"")
}

pub(super) fn md5_password(salt: [u8; 4]) -> Vec<u8> {
    one(MD5_PASSWORD, &salt)
}

/// Offers mechanisms, the best one first.
pub(super) fn sasl(mechanisms: &[Mechanism]) -> Vec<u8> {
    let mut names = Vec::new();
    for mechanism in mechanisms {
        names.extend_from_slice(mechanism.name().as_bytes());
        names.push(0);
    }
    names.push(0);
    one(SASL, &names)
}

pub(super) fn sasl_continue(data: &str) -> Vec<u8> {
    one(SASL_CONTINUE, data.as_bytes())
}

pub(super) fn sasl_final(data: &str) -> Vec<u8> {
    one(SASL_FINAL, data.as_bytes())
}

/// AuthenticationOk, after what is to be said before it, with room for the usual welcome behind it.
pub(super) fn authentication_ok(mut before: Vec<u8>) -> Vec<u8> {
    before.reserve(WELCOME_USUAL);
    authentication(&mut before, AUTHENTICATION_OK, b"");
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fatal_error_is_framed_as_postgresql_frames_it() {
        let report = Report::fatal("28000", "no");
        assert_eq!(error(&report), b"E\0\0\0\x1eSFATAL\0VFATAL\0C28000\0Mno\0\0");
        assert_eq!(error_of_protocol_2(&report), b"EFATAL:  no\n\0");
    }

    #[test]
    fn the_welcome_ends_idle() {
        let mut bytes = Vec::new();
        welcome(&mut bytes, [("a", "b")], 7, &[1, 2, 3, 4]);
        let expected = b"S\0\0\0\x08a\0b\0K\0\0\0\x0c\0\0\0\x07\x01\x02\x03\x04Z\0\0\0\x05I";
        assert_eq!(bytes, expected);
    }

    #[test]
    fn the_negotiated_version_is_whole() {
        assert_eq!(negotiate(2, &["_pq_.x".to_owned()]), b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0");
    }

    #[test]
    fn authentication_asks_as_postgresql_asks() {
        assert_eq!(cleartext_password(), b"R\0\0\0\x08\0\0\0\x03");
        assert_eq!(md5_password([1, 2, 3, 4]), b"R\0\0\0\x0c\0\0\0\x05\x01\x02\x03\x04");
        assert_eq!(sasl(&[Mechanism::Plain]), b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0");
        assert_eq!(authentication_ok(sasl_final("v=")), b"R\0\0\0\x0a\0\0\0\x0cv=R\0\0\0\x08\0\0\0\0");
    }
}
