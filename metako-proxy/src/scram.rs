//! What both sides of SCRAM-SHA-256 (RFC 5802, RFC 7677) compute: metako is the server towards clients and a client
//! towards servers.

use std::borrow::Cow;
use std::num::NonZeroU32;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::pbkdf2;

/// The mechanism without channel binding.
pub(crate) const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub(crate) const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// The only kind of channel binding that PostgreSQL knows (RFC 5929, section 4).
pub(crate) const SERVER_END_POINT: &str = "tls-server-end-point";

/// Random bytes in one side's part of the nonce, as libpq and PostgreSQL have it.
pub(crate) const NONCE_LEN: usize = 18;

/// The most rounds of hashing that metako does for one log-in. PostgreSQL's default is 4096; this many take a worker thread
/// most of a second.
pub(crate) const ITERATIONS_MAX: u32 = 1_000_000;

/// `ClientKey`, `StoredKey` or `ServerKey`.
pub(crate) type Key = [u8; SHA256_OUTPUT_LEN];

/// `ClientKey` and `ServerKey`.
#[derive(Clone, Copy)]
pub(crate) struct Keys {
    pub(crate) client: Key,
    pub(crate) server: Key,
}

impl Keys {
    /// Those of a password. Takes a millisecond of computing for each few thousand iterations.
    pub(crate) fn derive(password: &str, salt: &[u8], iterations: NonZeroU32) -> Self {
        // A password that SASLprep forbids is taken as it is: PostgreSQL and its clients do the same.
        let prepared = stringprep::saslprep(password).unwrap_or(Cow::Borrowed(password));
        let mut salted = [0; SHA256_OUTPUT_LEN];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, prepared.as_bytes(), &mut salted);
        Self { client: hmac(&salted, b"Client Key"), server: hmac(&salted, b"Server Key") }
    }
}

pub(crate) fn hmac(key: &[u8], message: &[u8]) -> Key {
    key_of(hmac::sign(&hmac::Key::new(HMAC_SHA256, key), message).as_ref())
}

pub(crate) fn hash(message: &[u8]) -> Key {
    key_of(digest(&SHA256, message).as_ref())
}

/// The 32 bytes that SHA-256 gives, as an array.
pub(crate) fn key_of(bytes: &[u8]) -> Key {
    let mut key = [0; SHA256_OUTPUT_LEN];
    key.copy_from_slice(bytes);
    key
}
