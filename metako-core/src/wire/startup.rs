//! What a client says before anything else: StartupMessage, SSLRequest, GSSENCRequest, CancelRequest.

use std::fmt;

/// The longest start-up packet, in bytes behind its length (PostgreSQL's own limit).
pub const STARTUP_MAX: usize = 10_000;

/// The longest cancel key that protocol 3.2 allows, in bytes.
const CANCEL_KEY_MAX: usize = 256;

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// The first byte of a TLS handshake; no start-up packet can begin with it.
pub const TLS_HANDSHAKE: u8 = 0x16;

/// A packet without a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Startup {
    /// The client asks for TLS: to be answered by one byte, `S` or `N`.
    Ssl,
    /// The client asks for GSSAPI encryption: to be answered by one byte, `N`.
    GssEncryption,
    /// A running query shall be cancelled; nothing is answered.
    Cancel {
        /// The process id of BackendKeyData.
        process_id: i32,
        /// The secret of BackendKeyData.
        secret_key: Vec<u8>,
    },
    /// A session shall begin.
    Session(StartupMessage),
}

/// The StartupMessage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupMessage {
    /// The version asked for: major, minor.
    pub version: (u16, u16),
    /// Names and values in the order sent, `user` and `database` included, protocol options (`_pq_.`) not.
    pub parameters: Vec<(String, String)>,
    /// Protocol options asked for: names that begin with `_pq_.`.
    pub options: Vec<String>,
}

impl StartupMessage {
    /// The value of a parameter; the last one counts, as with PostgreSQL.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }
}

/// A start-up packet that cannot be one. The client gets no second chance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// The length field is too small or too large.
    #[error("invalid length of startup packet")]
    Length,
    /// The protocol is not version 3.
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 to 3.2")]
    Version(u16, u16),
    /// Names and values are not well formed.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    /// A name or value is no UTF-8: the bytes at fault.
    #[error("invalid byte sequence for encoding \"UTF8\":{}", Hexadecimal(.0))]
    Encoding(Vec<u8>),
}

struct Hexadecimal<'a>(&'a [u8]);

impl fmt::Display for Hexadecimal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, " 0x{byte:02x}"))
    }
}

impl StartupError {
    /// What PostgreSQL says to a second SSLRequest: by then it is a version like any other.
    pub const SECOND_SSL_REQUEST: Self = Self::Version(1234, 5679);
    /// What PostgreSQL says to a second GSSENCRequest.
    pub const SECOND_GSSENC_REQUEST: Self = Self::Version(1234, 5680);

    /// Whether the client is so old that it understands errors only in the format of protocol 2.
    pub fn is_for_protocol_2(&self) -> bool {
        matches!(self, Self::Version(major, _) if *major < 3)
    }

    /// The SQLSTATE that PostgreSQL would give.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::Version(..) => super::sqlstate::FEATURE_NOT_SUPPORTED,
            Self::Encoding(_) => super::sqlstate::CHARACTER_NOT_IN_REPERTOIRE,
            Self::Length | Self::Layout => super::sqlstate::PROTOCOL_VIOLATION,
        }
    }
}

/// Reads the packet at the start of `input`; gives it and its length in bytes, or `None` if not all of it is there.
pub fn parse(input: &[u8]) -> Result<Option<(Startup, usize)>, StartupError> {
    let Some(length) = input.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if !(8..=STARTUP_MAX + 4).contains(&length) {
        return Err(StartupError::Length);
    }
    let Some(packet) = input.get(4..length) else { return Ok(None) };
    let Some((code, body)) = packet.split_first_chunk::<4>() else { return Err(StartupError::Length) };
    let startup = match u32::from_be_bytes(*code) {
        SSL_REQUEST if body.is_empty() => Startup::Ssl,
        GSSENC_REQUEST if body.is_empty() => Startup::GssEncryption,
        CANCEL_REQUEST => {
            let Some((process_id, key)) = body.split_first_chunk::<4>() else {
                return Err(StartupError::Length);
            };
            if key.is_empty() || key.len() > CANCEL_KEY_MAX {
                return Err(StartupError::Length);
            }
            Startup::Cancel { process_id: i32::from_be_bytes(*process_id), secret_key: key.to_vec() }
        }
        SSL_REQUEST | GSSENC_REQUEST => return Err(StartupError::Length),
        version => Startup::Session(session(version, body)?),
    };
    Ok(Some((startup, length)))
}

fn session(version: u32, body: &[u8]) -> Result<StartupMessage, StartupError> {
    let [major_high, major_low, minor_high, minor_low] = version.to_be_bytes();
    let version = (u16::from_be_bytes([major_high, major_low]), u16::from_be_bytes([minor_high, minor_low]));
    if version.0 != 3 {
        return Err(StartupError::Version(version.0, version.1));
    }
    let (mut parameters, mut options, mut rest) = (Vec::new(), Vec::new(), body);
    loop {
        let (name, after) = text(rest)?;
        if name.is_empty() {
            return if after.is_empty() {
                Ok(StartupMessage { version, parameters, options })
            } else {
                Err(StartupError::Layout)
            };
        }
        let (value, after) = text(after)?;
        if name.starts_with("_pq_.") {
            options.push(name.to_owned());
        } else {
            parameters.push((name.to_owned(), value.to_owned()));
        }
        rest = after;
    }
}

fn text(input: &[u8]) -> Result<(&str, &[u8]), StartupError> {
    let (text, rest) = super::read::text(input).ok_or(StartupError::Layout)?;
    let text = std::str::from_utf8(text).map_err(|error| {
        let wrong = &text[error.valid_up_to()..];
        // As PostgreSQL shows it: as long as the first byte says that the character is.
        let length = match wrong.first() {
            Some(0xc0..=0xdf) => 2,
            Some(0xe0..=0xef) => 3,
            Some(0xf0..=0xf7) => 4,
            _ => 1,
        };
        StartupError::Encoding(wrong.iter().take(length).copied().collect())
    })?;
    Ok((text, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&code.to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn each_kind_of_packet_is_told_apart() {
        assert_eq!(parse(&packet(SSL_REQUEST, b"")), Ok(Some((Startup::Ssl, 8))));
        assert_eq!(parse(&packet(GSSENC_REQUEST, b"")), Ok(Some((Startup::GssEncryption, 8))));
        assert_eq!(
            parse(&packet(CANCEL_REQUEST, b"\0\0\0\x07abcd")),
            Ok(Some((Startup::Cancel { process_id: 7, secret_key: b"abcd".to_vec() }, 16)))
        );
        let start = packet(0x0003_0002, b"user\0u\0_pq_.x\0on\0database\0d\0\0");
        let Ok(Some((Startup::Session(message), length))) = parse(&start) else { panic!("no session") };
        assert_eq!(length, start.len());
        assert_eq!(message.version, (3, 2));
        assert_eq!(message.parameter("user"), Some("u"));
        assert_eq!(message.parameter("database"), Some("d"));
        assert_eq!(message.options, ["_pq_.x"]);
    }

    #[test]
    fn what_is_cut_off_is_waited_for_and_what_is_wrong_is_refused() {
        let start = packet(0x0003_0000, b"user\0u\0\0");
        for end in 0..start.len() {
            assert_eq!(parse(&start[..end]), Ok(None));
        }
        assert_eq!(parse(&packet(0x0003_0000, b"user\0u")), Err(StartupError::Layout));
        assert_eq!(parse(&packet(0x0003_0000, b"user\0\0\0\0")), Err(StartupError::Layout));
        assert_eq!(parse(&packet(0x0002_0000, b"\0")), Err(StartupError::Version(2, 0)));
        assert_eq!(parse(&packet(0x0003_0000, b"user\0\xff\0\0")), Err(StartupError::Encoding(vec![0xff])));
        let cut = parse(&packet(0x0003_0000, b"user\0a\xe2\x82\0\0")).unwrap_err();
        assert_eq!(cut.to_string(), "invalid byte sequence for encoding \"UTF8\": 0xe2 0x82");
        let split = parse(&packet(0x0003_0000, b"user\0\xc3(\0\0")).unwrap_err();
        assert_eq!(split.to_string(), "invalid byte sequence for encoding \"UTF8\": 0xc3 0x28");
        assert!(StartupError::Version(2, 0).is_for_protocol_2());
        assert!(!StartupError::Version(4, 0).is_for_protocol_2());
        let longest = packet(0x0003_0000, &[b"user\0u\0", &[b'o'; STARTUP_MAX - 14][..], b"\0\0\0"].concat());
        assert_eq!(longest.len(), STARTUP_MAX + 4);
        assert!(matches!(parse(&longest), Ok(Some((Startup::Session(_), _)))));
        assert_eq!(parse(b"\0\0\0\x07xxx"), Err(StartupError::Length));
        assert_eq!(parse(b"\x7f\0\0\0"), Err(StartupError::Length));
        assert_eq!(parse(&packet(CANCEL_REQUEST, b"\0\0\0\x07")), Err(StartupError::Length));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100), code: u32) {
            let _ = parse(&bytes);
            let _ = parse(&packet(code, &bytes));
            let _ = parse(&packet(0x0003_0000, &bytes));
        }
    }
}
