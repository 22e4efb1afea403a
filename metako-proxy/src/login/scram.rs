//! The server's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), as a pure exchange of messages.
//!
//! pgwire has one, but it draws its nonce by itself, where metako's randomness is an argument, and does not compare in
//! constant time. The cryptography is aws-lc-rs', which TLS brings along.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::{constant_time, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The mechanism's name.
pub(super) const MECHANISM: &str = "SCRAM-SHA-256";
/// Random bytes in the server's part of the nonce, as PostgreSQL has it.
pub(super) const NONCE_LEN: usize = 18;
/// Bytes of salt, as PostgreSQL has it.
pub(super) const SALT_LEN: usize = 16;

const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("4096 is not zero");

type Key = [u8; SHA256_OUTPUT_LEN];

/// What a server keeps of a password: enough to check it, not enough to log in elsewhere.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Verifier {
    salt: Vec<u8>,
    iterations: NonZeroU32,
    stored_key: Key,
    server_key: Key,
    /// No password fits: it stands for a user who does not exist.
    mock: bool,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(verifier)")
    }
}

impl Verifier {
    /// Of a password in clear, or of one that is already a SCRAM secret as PostgreSQL stores it. Computing it from
    /// clear text takes a millisecond.
    pub(super) fn new(password: &str, salt: [u8; SALT_LEN]) -> Self {
        Self::from_secret(password).unwrap_or_else(|| Self::derive(password, &salt, ITERATIONS))
    }

    /// Of a user who does not exist: nobody can tell it from a real one before the log-in fails.
    pub(super) fn mock(salt: [u8; SALT_LEN]) -> Self {
        Self {
            salt: salt.to_vec(),
            iterations: ITERATIONS,
            stored_key: [0; SHA256_OUTPUT_LEN],
            server_key: [0; SHA256_OUTPUT_LEN],
            mock: true,
        }
    }

    fn derive(password: &str, salt: &[u8], iterations: NonZeroU32) -> Self {
        // A password that SASLprep forbids is taken as it is: clients and PostgreSQL do the same.
        let prepared = stringprep::saslprep(password).unwrap_or(Cow::Borrowed(password));
        let mut salted = [0; SHA256_OUTPUT_LEN];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, prepared.as_bytes(), &mut salted);
        let client_key = hmac(&salted, b"Client Key");
        let server_key = hmac(&salted, b"Server Key");
        Self { salt: salt.to_vec(), iterations, stored_key: hash(&client_key), server_key, mock: false }
    }

    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`; `None` if the text is not that.
    fn from_secret(text: &str) -> Option<Self> {
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

    /// Whether the proof shows knowledge of the password. Takes the same time whatever the answer.
    fn fits(&self, auth_message: &[u8], proof: &Key) -> bool {
        let signature = hmac(&self.stored_key, auth_message);
        let mut client_key = *proof;
        for (byte, signature) in client_key.iter_mut().zip(signature) {
            *byte ^= signature;
        }
        let fits = constant_time::verify_slices_are_equal(&hash(&client_key), &self.stored_key).is_ok();
        fits && !self.mock
    }
}

/// Why a log-in by SCRAM fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScramError {
    /// The password is wrong, or there is no such user.
    WrongPassword,
    /// The message is not SCRAM, or asks for what was not offered.
    Malformed(&'static str),
}

/// An exchange whose first half is done.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    verifier: &'a Verifier,
    client_first_bare: &'a str,
    gs2_header: &'a str,
    server_first: String,
    nonce: String,
}

impl<'a> Exchange<'a> {
    /// Takes the client's first message. The user name in it is ignored, as PostgreSQL does: the one of the start-up
    /// packet counts.
    pub(super) fn begin(
        verifier: &'a Verifier,
        client_first: &'a [u8],
        random: [u8; NONCE_LEN],
    ) -> Result<Self, ScramError> {
        Self::begin_with_nonce(verifier, client_first, &STANDARD.encode(random))
    }

    fn begin_with_nonce(
        verifier: &'a Verifier,
        client_first: &'a [u8],
        server_nonce: &str,
    ) -> Result<Self, ScramError> {
        let message = utf8(client_first)?;
        let bare = message
            .strip_prefix("n,")
            .or_else(|| message.strip_prefix("y,"))
            .ok_or(ScramError::Malformed("channel binding was asked for and not offered"))?;
        let bare = bare
            .strip_prefix(',')
            .ok_or(ScramError::Malformed("an authorization identity, which is not supported"))?;
        let mut attributes = bare.split(',');
        let mut next = |prefix| attributes.next().and_then(|attribute: &str| attribute.strip_prefix(prefix));
        next("n=")
            .ok_or(ScramError::Malformed("expected the user name, or an extension is not supported"))?;
        let client_nonce = next("r=").ok_or(ScramError::Malformed("expected the nonce"))?;
        if client_nonce.is_empty() || !client_nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ScramError::Malformed("the nonce is not printable"));
        }
        let nonce = format!("{client_nonce}{server_nonce}");
        let salt = STANDARD.encode(&verifier.salt);
        Ok(Self {
            verifier,
            client_first_bare: bare,
            gs2_header: &message[..message.len() - bare.len()],
            server_first: format!("r={nonce},s={salt},i={}", verifier.iterations),
            nonce,
        })
    }

    /// The server's first message.
    pub(super) fn server_first(&self) -> &str {
        &self.server_first
    }

    /// Takes the client's final message and gives the server's, which proves that the server knows the password too.
    pub(super) fn finish(self, client_final: &[u8]) -> Result<String, ScramError> {
        let message = utf8(client_final)?;
        let (without_proof, proof) =
            message.rsplit_once(",p=").ok_or(ScramError::Malformed("expected the proof"))?;
        let mut attributes = without_proof.split(',');
        let mut next = |prefix| attributes.next().and_then(|attribute: &str| attribute.strip_prefix(prefix));
        let binding = next("c=").ok_or(ScramError::Malformed("expected the channel binding"))?;
        if binding != STANDARD.encode(self.gs2_header) {
            return Err(ScramError::Malformed("the channel binding changed on the way"));
        }
        let nonce = next("r=").ok_or(ScramError::Malformed("expected the nonce"))?;
        if nonce != self.nonce {
            return Err(ScramError::Malformed("the nonce is not the one that was sent"));
        }
        let proof = STANDARD.decode(proof).ok().and_then(|proof| Key::try_from(proof).ok());
        let proof = proof.ok_or(ScramError::Malformed("the proof is not 32 bytes in base64"))?;

        let auth_message = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let signature = hmac(&self.verifier.server_key, auth_message.as_bytes());
        if !self.verifier.fits(auth_message.as_bytes(), &proof) {
            return Err(ScramError::WrongPassword);
        }
        Ok(format!("v={}", STANDARD.encode(signature)))
    }
}

/// What a SASLInitialResponse holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InitialResponse<'a> {
    /// The mechanism that the client chose.
    pub(super) mechanism: &'a [u8],
    /// The mechanism's first message, unless the client waits to be asked for it.
    pub(super) data: Option<&'a [u8]>,
}

impl<'a> InitialResponse<'a> {
    /// Reads the body of the message.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, ScramError> {
        let wrong = ScramError::Malformed("not a SASLInitialResponse");
        let end = body.iter().position(|byte| *byte == 0).ok_or(wrong)?;
        let (length, data) = body[end + 1..].split_first_chunk().ok_or(wrong)?;
        let data = match i32::from_be_bytes(*length) {
            -1 if data.is_empty() => None,
            length if usize::try_from(length) == Ok(data.len()) => Some(data),
            _ => return Err(wrong),
        };
        Ok(Self { mechanism: &body[..end], data })
    }
}

/// A salt that belongs to a name: the same one each time, for real users and for those who do not exist.
pub(super) fn salt_of(secret: &[u8], user: &str) -> [u8; SALT_LEN] {
    let tag = hmac(secret, user.as_bytes());
    let mut salt = [0; SALT_LEN];
    salt.copy_from_slice(&tag[..SALT_LEN]);
    salt
}

fn utf8(message: &[u8]) -> Result<&str, ScramError> {
    std::str::from_utf8(message).map_err(|_| ScramError::Malformed("not UTF-8"))
}

fn hmac(key: &[u8], message: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(HMAC_SHA256, key), message);
    let mut out = [0; SHA256_OUTPUT_LEN];
    out.copy_from_slice(tag.as_ref());
    out
}

fn hash(message: &[u8]) -> Key {
    let digest = digest(&SHA256, message);
    let mut out = [0; SHA256_OUTPUT_LEN];
    out.copy_from_slice(digest.as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use proptest::prelude::*;

    const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const CLIENT_FINAL: &[u8] = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                  p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn rfc_verifier() -> Verifier {
        Verifier::derive("pencil", &STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), ITERATIONS)
    }

    #[test]
    fn the_example_of_rfc_7677_works() {
        let verifier = rfc_verifier();
        let exchange = Exchange::begin_with_nonce(&verifier, CLIENT_FIRST, SERVER_NONCE).unwrap();
        assert_eq!(
            exchange.server_first(),
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        assert_eq!(
            exchange.finish(CLIENT_FINAL),
            Ok("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=".to_owned())
        );
    }

    #[test]
    fn a_mock_refuses_even_a_proof_that_fits_its_key() {
        let verifier = Verifier { mock: true, ..rfc_verifier() };
        let exchange = Exchange::begin_with_nonce(&verifier, CLIENT_FIRST, SERVER_NONCE).unwrap();
        assert_eq!(exchange.finish(CLIENT_FINAL), Err(ScramError::WrongPassword));
    }

    #[test]
    fn a_secret_of_postgresql_is_taken_as_one() {
        let secret = postgres_protocol::password::scram_sha_256(b"pencil");
        let verifier = Verifier::new(&secret, [0; SALT_LEN]);
        assert_eq!(verifier, Verifier::derive("pencil", &verifier.salt, ITERATIONS));
        assert_ne!(verifier.salt, [0; SALT_LEN]);
        for text in ["SCRAM-SHA-256$", "SCRAM-SHA-256$0:AA==$AA==:AA==", "SCRAM-SHA-256$4096:AA==$AA==:AA=="]
        {
            assert_eq!(Verifier::from_secret(text), None, "{text}");
        }
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        let verifier = rfc_verifier();
        for first in [
            &b"p=tls-server-end-point,,n=,r=abc"[..],
            b"n,a=other,n=,r=abc",
            b"n,,m=ext,n=,r=abc",
            b"n,,n=",
            b"n,,n=,r=",
            b"n,,n=,r=a\x7f",
            b"n,,n=,r=\xff",
            b"",
        ] {
            assert!(matches!(
                Exchange::begin(&verifier, first, [0; NONCE_LEN]),
                Err(ScramError::Malformed(_))
            ));
        }
    }

    #[test]
    fn a_final_message_of_another_exchange_is_refused() {
        let verifier = rfc_verifier();
        for (nonce, client_final) in [
            ("other", CLIENT_FINAL),
            (SERVER_NONCE, b"c=eSws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=AA=="),
            (SERVER_NONCE, b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=AA=="),
            (SERVER_NONCE, b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"),
        ] {
            let exchange = Exchange::begin_with_nonce(&verifier, CLIENT_FIRST, nonce).unwrap();
            assert!(matches!(exchange.finish(client_final), Err(ScramError::Malformed(_))));
        }
    }

    fn log_in(real: &str, given: &str, random: [u8; NONCE_LEN]) -> Result<(), ScramError> {
        let verifier = Verifier::new(real, salt_of(b"key", "user"));
        let mut client = ScramSha256::new(given.as_bytes(), ChannelBinding::unsupported());
        let client_first = client.message().to_vec();
        let exchange = Exchange::begin(&verifier, &client_first, random)?;
        client.update(exchange.server_first().as_bytes()).unwrap();
        let server_final = exchange.finish(client.message())?;
        client.finish(server_final.as_bytes()).unwrap();
        Ok(())
    }

    #[test]
    fn an_independent_client_agrees() {
        assert_eq!(log_in("p\u{e4}ss\u{a0}w\u{f6}rd", "p\u{e4}ss w\u{f6}rd", [7; NONCE_LEN]), Ok(()));
        assert_eq!(log_in("secret", "Secret", [7; NONCE_LEN]), Err(ScramError::WrongPassword));
        assert_eq!(log_in("\u{7}", "\u{7}", [7; NONCE_LEN]), Ok(()));
    }

    #[test]
    fn initial_responses_hold_what_they_say() {
        let parse = InitialResponse::parse;
        assert_eq!(parse(b"X\0\0\0\0\x02ab"), Ok(InitialResponse { mechanism: b"X", data: Some(b"ab") }));
        assert_eq!(parse(b"X\0\xff\xff\xff\xff"), Ok(InitialResponse { mechanism: b"X", data: None }));
        for wrong in [
            &b""[..],
            b"X",
            b"X\0",
            b"X\0\0\0\0",
            b"X\0\0\0\0\x03ab",
            b"X\0\0\0\0\x01ab",
            b"X\0\xff\xff\xff\xffab",
            b"X\0\x7f\xff\xff\xffab",
            b"X\0\x80\0\0\0ab",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_messages_are_judged_without_panic(
            first in proptest::collection::vec(any::<u8>(), 0..80),
            last in proptest::collection::vec(any::<u8>(), 0..120),
        ) {
            let _ = InitialResponse::parse(&first);
            let verifier = Verifier::mock([1; SALT_LEN]);
            let _ = Exchange::begin(&verifier, &first, [0; NONCE_LEN]);
            let exchange = Exchange::begin(&verifier, CLIENT_FIRST, [0; NONCE_LEN]).unwrap();
            prop_assert!(exchange.finish(&last).is_err());
        }

        #[test]
        fn messages_that_look_right_are_judged_without_panic(
            first in "[nyp][,=a-z]{0,6}(n=[^,]{0,4})?,r=[ -~\u{e4}]{0,20}(,[a-z]=.{0,4})?",
            last in "c=[A-Za-z=]{0,8},r=.{0,20}(,p=[A-Za-z0-9+/=]{0,50})?",
        ) {
            let verifier = Verifier::mock([1; SALT_LEN]);
            if let Ok(exchange) = Exchange::begin(&verifier, first.as_bytes(), [0; NONCE_LEN]) {
                prop_assert!(exchange.finish(last.as_bytes()).is_err());
            }
        }
    }
}
