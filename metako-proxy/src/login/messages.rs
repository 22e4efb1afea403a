//! What metako says to clients before and around the relay, made with pgwire's message types.

use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::response::{ErrorResponse, ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::{
    Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey,
};

use super::scram;

/// The newest version that metako speaks to clients.
const PROTOCOL_3_0: i32 = 3 << 16;

/// Encodes a message. pgwire checks nothing but the length of cancel keys, which is fixed here by type.
fn encode(message: &impl Message, bytes: &mut BytesMut) {
    message.encode(bytes).expect("none of the messages made here can be refused");
}

fn encoded(message: &impl Message) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    encode(message, &mut bytes);
    bytes.into()
}

/// An ErrorResponse of severity FATAL, after which the connection has to be closed.
pub(super) fn fatal(sqlstate: &str, message: &str) -> Vec<u8> {
    let fields = [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', sqlstate), (b'M', message)];
    encoded(&ErrorResponse::new(fields.map(|(code, text)| (code, text.to_owned())).to_vec()))
}

/// The end of a log-in: the parameters that the client is told, its cancel key and ReadyForQuery, idle.
///
/// To be sent once, after [`accept`](super::accept) and before anything else. Names and values must hold no NUL character.
/// The key has 4 to 256 bytes, and 4 in protocol 3.0.
pub fn welcome(parameters: &[(String, String)], process_id: i32, secret_key: &[u8]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    for (name, value) in parameters {
        encode(&ParameterStatus::new(name.clone(), value.clone()), &mut bytes);
    }
    let secret = SecretKey::Bytes(secret_key.to_vec().into());
    encode(&BackendKeyData::new(process_id, secret), &mut bytes);
    encode(&ReadyForQuery::new(TransactionStatus::Idle), &mut bytes);
    bytes.into()
}

/// Tells a client that it gets protocol 3.0 and none of these options.
///
/// The field is called the newest *minor* version; PostgreSQL puts the whole version there, and libpq expects that.
pub(super) fn negotiate(unsupported_options: Vec<String>) -> Vec<u8> {
    encoded(&NegotiateProtocolVersion::new(PROTOCOL_3_0, unsupported_options))
}

pub(super) fn sasl() -> Vec<u8> {
    encoded(&Authentication::SASL(vec![scram::MECHANISM.to_owned()]))
}

pub(super) fn sasl_continue(data: &str) -> Vec<u8> {
    encoded(&Authentication::SASLContinue(data.to_owned().into()))
}

/// The end of SASL together with AuthenticationOk.
pub(super) fn sasl_final(data: &str) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    encode(&Authentication::SASLFinal(data.to_owned().into()), &mut bytes);
    encode(&Authentication::Ok, &mut bytes);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fatal_error_is_framed_as_postgresql_frames_it() {
        assert_eq!(fatal("28000", "no"), b"E\0\0\0\x1eSFATAL\0VFATAL\0C28000\0Mno\0\0");
    }

    #[test]
    fn the_welcome_ends_idle() {
        let parameters = [("a".to_owned(), "b".to_owned())];
        let expected = b"S\0\0\0\x08a\0b\0K\0\0\0\x0c\0\0\0\x07\x01\x02\x03\x04Z\0\0\0\x05I";
        assert_eq!(welcome(&parameters, 7, &[1, 2, 3, 4]), expected);
    }

    #[test]
    fn the_negotiated_version_is_whole() {
        assert_eq!(negotiate(vec!["_pq_.x".to_owned()]), b"v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.x\0");
    }
}
