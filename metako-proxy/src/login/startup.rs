//! The packets that come before a connection has a protocol version: their length is checked here, then their content,
//! and nothing else looks at them before.

/// The longest packet body, as PostgreSQL has it: what a stranger can make metako keep.
pub(super) const PACKET_MAX: usize = 10_000;
/// Protocol 3.0, the newest that metako speaks to clients.
pub(super) const PROTOCOL_3_0: i32 = 3 << 16;

const LENGTH: usize = 4;
const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
/// What protocol 3.2 allows a cancel key to be long.
const CANCEL_KEY_MAX: usize = 256;

/// A packet without a type byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    /// The client would like TLS.
    SslRequest,
    /// The client would like GSSAPI encryption.
    GssEncRequest,
    /// The client wants the query of another connection cancelled.
    Cancel { process_id: i32, secret_key: Vec<u8> },
    /// The client wants to log in, with protocol 3.
    Startup(Startup),
    /// The client speaks a protocol that metako does not.
    UnsupportedVersion { major: u16, minor: u16 },
}

/// A StartupMessage of protocol 3.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Startup {
    /// The minor version that the client would like.
    pub(super) minor: u16,
    /// `user`, empty if the client gave none.
    pub(super) user: String,
    /// `database`, else the user.
    pub(super) database: String,
    /// `replication`, if given.
    pub(super) replication: Option<String>,
    /// Protocol options (`_pq_.`), by name.
    pub(super) protocol_options: Vec<String>,
    /// All other parameters, as they came.
    pub(super) parameters: Vec<(String, String)>,
}

impl Startup {
    /// Whether the client has to be told that it gets less than it asked for.
    pub(super) fn wants_more(&self) -> bool {
        self.minor > 0 || !self.protocol_options.is_empty()
    }

    /// Whether the client asks for a replication connection; `Err` if the value is no boolean and not `database`.
    pub(super) fn wants_replication(&self) -> Result<bool, &str> {
        let Some(value) = self.replication.as_deref() else { return Ok(false) };
        match value.to_ascii_lowercase().as_str() {
            "database" | "true" | "on" | "yes" | "1" => Ok(true),
            "false" | "off" | "no" | "0" => Ok(false),
            _ => Err(value),
        }
    }
}

/// Bytes that no client of PostgreSQL sends first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PacketError {
    #[error("a first packet of {0} bytes: this is no PostgreSQL client, or it begins with TLS at once")]
    Length(u32),
    #[error("a cancel request of {0} bytes")]
    Cancel(usize),
    #[error("invalid start-up packet layout: expected a terminator as the last byte")]
    Layout,
}

/// The whole packet at the start of `buffer`, if it is there: its length with the length field.
pub(super) fn packet_length(buffer: &[u8]) -> Result<Option<usize>, PacketError> {
    let Some(bytes) = buffer.first_chunk() else { return Ok(None) };
    let length = u32::from_be_bytes(*bytes);
    match usize::try_from(length) {
        Ok(total) if (2 * LENGTH..=PACKET_MAX + LENGTH).contains(&total) => {
            Ok((buffer.len() >= total).then_some(total))
        }
        _ => Err(PacketError::Length(length)),
    }
}

/// Understands a packet that [`packet_length`] has measured.
pub(super) fn parse(packet: &[u8]) -> Result<Packet, PacketError> {
    let body = packet.get(LENGTH..).unwrap_or_default();
    let Some((code, rest)) = body.split_first_chunk() else {
        return Err(PacketError::Length(u32::try_from(packet.len()).unwrap_or(u32::MAX)));
    };
    let [a, b, c, d] = *code;
    match u32::from_be_bytes(*code) {
        SSL_REQUEST => Ok(Packet::SslRequest),
        GSSENC_REQUEST => Ok(Packet::GssEncRequest),
        CANCEL_REQUEST => parse_cancel(rest),
        _ => match (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])) {
            (3, minor) => parse_startup(minor, rest).map(Packet::Startup),
            (major, minor) => Ok(Packet::UnsupportedVersion { major, minor }),
        },
    }
}

fn parse_cancel(rest: &[u8]) -> Result<Packet, PacketError> {
    match rest.split_first_chunk() {
        Some((process_id, key)) if (4..=CANCEL_KEY_MAX).contains(&key.len()) => Ok(Packet::Cancel {
            process_id: i32::from_be_bytes(*process_id),
            secret_key: key.to_vec(),
        }),
        _ => Err(PacketError::Cancel(rest.len())),
    }
}

fn parse_startup(minor: u16, mut rest: &[u8]) -> Result<Startup, PacketError> {
    let mut startup = Startup { minor, ..Startup::default() };
    let mut database = None;
    loop {
        let name = text(&mut rest)?;
        if name.is_empty() {
            break;
        }
        let value = text(&mut rest)?;
        match name.as_str() {
            "user" => startup.user = value,
            "database" => database = Some(value).filter(|database| !database.is_empty()),
            "replication" => startup.replication = Some(value),
            _ if name.starts_with("_pq_.") => startup.protocol_options.push(name),
            _ => startup.parameters.push((name, value)),
        }
    }
    if !rest.is_empty() {
        return Err(PacketError::Layout);
    }
    startup.database = database.unwrap_or_else(|| startup.user.clone());
    Ok(startup)
}

/// Takes a text that a zero byte ends. What is not UTF-8 is replaced: no user or database of the configuration has
/// such a name, and PostgreSQL replaces it in `application_name` as well.
fn text(rest: &mut &[u8]) -> Result<String, PacketError> {
    let end = rest.iter().position(|byte| *byte == 0).ok_or(PacketError::Layout)?;
    let text = String::from_utf8_lossy(&rest[..end]).into_owned();
    *rest = &rest[end + 1..];
    Ok(text)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet with that code and body.
    pub(in crate::login) fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 8).unwrap();
        [&length.to_be_bytes(), &code.to_be_bytes(), body].concat()
    }

    fn startup(code: u32, body: &[u8]) -> Startup {
        match parse(&packet(code, body)) {
            Ok(Packet::Startup(startup)) => startup,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_startup_message_is_understood() {
        let startup = startup(0x0003_0002, b"user\0a\0application_name\0psql\0_pq_.x\x001\0options\0-c a=b\0\0");
        assert_eq!(startup.minor, 2);
        assert_eq!(startup.user, "a");
        assert_eq!(startup.database, "a");
        assert_eq!(startup.protocol_options, ["_pq_.x"]);
        assert_eq!(startup.parameters.len(), 2);
        assert!(startup.wants_more());
        assert_eq!(startup.wants_replication(), Ok(false));
    }

    #[test]
    fn the_last_of_two_users_counts_and_an_empty_database_is_none() {
        let startup = startup(0x0003_0000, b"user\0a\0user\0b\0database\0\0\0");
        assert_eq!((startup.user.as_str(), startup.database.as_str()), ("b", "b"));
    }

    #[test]
    fn replication_is_told_from_its_negation() {
        let wants = |value: &str| {
            let startup = Startup { replication: Some(value.to_owned()), ..Startup::default() };
            startup.wants_replication().map_err(str::to_owned)
        };
        assert_eq!(wants("database"), Ok(true));
        assert_eq!(wants("ON"), Ok(true));
        assert_eq!(wants("false"), Ok(false));
        assert_eq!(wants("perhaps"), Err("perhaps".to_owned()));
    }

    #[test]
    fn lengths_are_bounded_before_the_packet_comes() {
        assert_eq!(packet_length(b"GET "), Err(PacketError::Length(0x4745_5420)));
        assert_eq!(packet_length(&[0x16, 3, 1, 2]), Err(PacketError::Length(0x1603_0102)));
        assert_eq!(packet_length(&7_u32.to_be_bytes()), Err(PacketError::Length(7)));
        assert_eq!(packet_length(&10_005_u32.to_be_bytes()), Err(PacketError::Length(10_005)));
        assert_eq!(packet_length(&10_004_u32.to_be_bytes()), Ok(None));
        assert_eq!(packet_length(&[0, 0, 0]), Ok(None));
        assert_eq!(packet_length(&packet(SSL_REQUEST, b"")), Ok(Some(8)));
    }

    #[test]
    fn text_without_its_end_is_refused() {
        for body in [&b""[..], b"user", b"user\0", b"user\0a", b"user\0a\0", b"user\0a\0\0more"] {
            assert_eq!(parse(&packet(0x0003_0000, body)), Err(PacketError::Layout), "{body:?}");
        }
    }

    #[test]
    fn other_versions_and_requests_are_told_apart() {
        assert_eq!(
            parse(&packet(0x0002_0000, b"")),
            Ok(Packet::UnsupportedVersion { major: 2, minor: 0 })
        );
        assert_eq!(parse(&packet(SSL_REQUEST, b"")), Ok(Packet::SslRequest));
        assert_eq!(parse(&packet(GSSENC_REQUEST, b"")), Ok(Packet::GssEncRequest));
        assert_eq!(
            parse(&packet(CANCEL_REQUEST, &[0, 0, 0, 7, 1, 2, 3, 4])),
            Ok(Packet::Cancel { process_id: 7, secret_key: vec![1, 2, 3, 4] })
        );
        assert_eq!(parse(&packet(CANCEL_REQUEST, &[0; 7])), Err(PacketError::Cancel(7)));
        assert_eq!(parse(&packet(CANCEL_REQUEST, &[0; 261])), Err(PacketError::Cancel(261)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(length)) = packet_length(&bytes) {
                prop_assert!(length <= bytes.len());
            }
            let _ = parse(&bytes);
        }

        #[test]
        fn any_startup_body_is_judged_without_panic(
            minor in any::<u16>(), body in proptest::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..200)
        ) {
            let _ = parse(&packet(0x0003_0000 | u32::from(minor), &body));
        }

        #[test]
        fn parameters_survive(parameters in proptest::collection::vec(("[a-z]{1,8}", "[^\0]{0,12}"), 0..8)) {
            let parameters: Vec<_> = parameters.into_iter()
                .filter(|(name, _)| !["user", "database", "replication"].contains(&name.as_str())).collect();
            let mut body = Vec::new();
            for (name, value) in &parameters {
                body.extend(name.as_bytes());
                body.push(0);
                body.extend(value.as_bytes());
                body.push(0);
            }
            body.push(0);
            prop_assert_eq!(startup(0x0003_0000, &body).parameters, parameters);
        }
    }
}
