//! What a server keeps of a password for SCRAM-SHA-256.

use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::constant_time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::scram::{ITERATIONS_MAX, Key, Keys, hash, hmac};

/// Bytes of salt, as PostgreSQL has it.
pub(in crate::login) const SALT_LEN: usize = 16;

pub(in crate::login) const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("4096 is not zero");

/// What a server keeps of a password: enough to check it, not enough to log in elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::login) struct Verifier {
    pub(super) salt: Vec<u8>,
    pub(super) iterations: NonZeroU32,
    pub(super) stored_key: Key,
    pub(super) server_key: Key,
    /// No password fits: it stands for a user who does not exist.
    pub(super) mock: bool,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(verifier)")
    }
}

impl Verifier {
    /// Of a user who does not exist: nobody can tell it from a real one before the log-in fails.
    pub(in crate::login) fn mock(salt: [u8; SALT_LEN], iterations: NonZeroU32) -> Self {
        Self {
            salt: salt.to_vec(),
            iterations,
            stored_key: Key::default(),
            server_key: Key::default(),
            mock: true,
        }
    }

    /// Of a password in clear. Takes a millisecond of computing.
    pub(in crate::login) fn of_password(password: &str, salt: [u8; SALT_LEN]) -> Self {
        Self::derive(password, &salt, ITERATIONS)
    }

    pub(super) fn derive(password: &str, salt: &[u8], iterations: NonZeroU32) -> Self {
        let Keys { client, server } = Keys::derive(password, salt, iterations);
        Self { salt: salt.to_vec(), iterations, stored_key: hash(&client), server_key: server, mock: false }
    }

    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`; `None` if the text is not that.
    pub(in crate::login) fn from_secret(text: &str) -> Option<Self> {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let key = |text: &str| Key::try_from(STANDARD.decode(text).ok()?).ok();
        Some(Self {
            salt: STANDARD.decode(salt).ok()?,
            iterations: iterations.parse().ok()?,
            stored_key: key(stored_key)?,
            server_key: key(server_key)?,
            mock: false,
        })
    }

    /// Whether computing it again from a password would take too long.
    pub(in crate::login) fn is_too_costly(&self) -> bool {
        self.iterations.get() > ITERATIONS_MAX
    }

    /// How often the password is hashed.
    pub(in crate::login) fn iterations(&self) -> NonZeroU32 {
        self.iterations
    }

    /// Whether this is the password; never where that [takes too long](Self::is_too_costly). Takes a millisecond of
    /// computing for each few thousand iterations, whatever the answer.
    pub(in crate::login) fn is_of(&self, password: &str) -> bool {
        if self.is_too_costly() {
            return false;
        }
        let given = Self::derive(password, &self.salt, self.iterations);
        let fits = constant_time::verify_slices_are_equal(&given.stored_key, &self.stored_key).is_ok();
        fits && !self.mock
    }

    /// Whether these are the keys of the password.
    pub(in crate::login) fn is_of_keys(&self, client_key: &Key, server_key: &Key) -> bool {
        let stored = constant_time::verify_slices_are_equal(&hash(client_key), &self.stored_key).is_ok();
        let server = constant_time::verify_slices_are_equal(server_key, &self.server_key).is_ok();
        stored && server && !self.mock
    }

    /// The `ClientKey` that a proof shows, if it is the right one. Takes the same time whatever the answer.
    pub(super) fn client_key(&self, auth_message: &[u8], proof: &Key) -> Option<Key> {
        let signature = hmac(&self.stored_key, auth_message);
        let mut client_key = *proof;
        for (byte, signature) in client_key.iter_mut().zip(signature) {
            *byte ^= signature;
        }
        let fits = constant_time::verify_slices_are_equal(&hash(&client_key), &self.stored_key).is_ok();
        (fits && !self.mock).then_some(client_key)
    }

    /// `ServerKey`
    pub(in crate::login) fn server_key(&self) -> Key {
        self.server_key
    }
}

/// A salt that belongs to a name: the same one each time, for real users and for those who do not exist.
pub(in crate::login) fn salt_of(secret: &[u8], user: &str) -> [u8; SALT_LEN] {
    let tag = hmac(secret, user.as_bytes());
    let mut salt = [0; SALT_LEN];
    salt.copy_from_slice(&tag[..SALT_LEN]);
    salt
}
