//! The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), with and without channel binding, as a pure exchange of
//! messages.
//!
//! postgres-protocol has one, but it draws its nonce by itself, where metako's randomness is an argument, and it knows
//! only passwords, where metako often has no more than the keys that a client's own log-in revealed.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use aws_lc_rs::constant_time;
use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;

use crate::scram::{
    ITERATIONS_MAX, Key, Keys, NONCE_LEN, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, hash, hmac, key_of,
};

/// So many derived keys are kept.
const KEPT_MAX: usize = 4096;

/// How the exchange is bound to the TLS connection that it runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Binding {
    /// It is not, and metako could not.
    None,
    /// It is not, because the server did not offer it. A server that did is then the victim of somebody in between, and
    /// will say so.
    NotOffered,
    /// By this `tls-server-end-point`.
    ServerEndPoint(Vec<u8>),
}

impl Binding {
    const fn gs2_header(&self) -> &'static str {
        match self {
            Self::None => "n,,",
            Self::NotOffered => "y,,",
            Self::ServerEndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    /// The mechanism that goes with it.
    pub(super) const fn mechanism(&self) -> &'static str {
        match self {
            Self::None | Self::NotOffered => SCRAM_SHA_256,
            Self::ServerEndPoint(_) => SCRAM_SHA_256_PLUS,
        }
    }
}

/// What proves the user to the server.
pub(super) enum Proof<'a> {
    Password(&'a str),
    Keys(Keys),
}

impl Proof<'_> {
    fn keys(&self, salt: &[u8], iterations: NonZeroU32) -> Result<Keys, String> {
        match self {
            Self::Keys(keys) => Ok(*keys),
            Self::Password(_) if iterations.get() > ITERATIONS_MAX => Err(format!(
                "the server asks for {iterations} iterations, and metako does at most {ITERATIONS_MAX}; \
                 set the user's password again with a lower scram_iterations"
            )),
            Self::Password(password) => Ok(KEPT.keys(password, salt, iterations)),
        }
    }
}

/// An exchange that has begun.
pub(super) struct Exchange {
    binding: Binding,
    nonce: String,
}

impl Exchange {
    pub(super) fn begin(binding: Binding, random: [u8; NONCE_LEN]) -> Self {
        Self { binding, nonce: STANDARD.encode(random) }
    }

    /// The user's name stays empty, as with libpq: the one of the start-up packet counts.
    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// The first message to the server.
    pub(super) fn first(&self) -> String {
        format!("{}{}", self.binding.gs2_header(), self.first_bare())
    }

    /// Takes the server's first message, and gives the last one to the server and what it has to answer. May take the
    /// thread for milliseconds, or most of a second where the server asks for many iterations.
    pub(super) fn answer(self, server_first: &[u8], proof: &Proof<'_>) -> Result<(String, Expected), String> {
        let server_first = text(server_first)?;
        let mut attributes = server_first.split(',');
        let mut next = |prefix| attributes.next().and_then(|attribute: &str| attribute.strip_prefix(prefix));
        let nonce = next("r=").ok_or("expected the server's nonce")?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) {
            return Err("the server's nonce does not begin with metako's".to_owned());
        }
        let salt = next("s=").and_then(|salt| STANDARD.decode(salt).ok()).ok_or("expected the salt")?;
        let iterations = next("i=").and_then(|count| count.parse::<NonZeroU32>().ok());
        let iterations = iterations.ok_or("expected the number of iterations")?;
        if attributes.next().is_some() {
            return Err("the server's first message has something after its end".to_owned());
        }

        let keys = proof.keys(&salt, iterations)?;
        let mut bound = self.binding.gs2_header().as_bytes().to_vec();
        if let Binding::ServerEndPoint(data) = &self.binding {
            bound.extend_from_slice(data);
        }
        let without_proof = format!("c={},r={nonce}", STANDARD.encode(bound));
        let auth_message = format!("{},{server_first},{without_proof}", self.first_bare());
        let signature = hmac(&hash(&keys.client), auth_message.as_bytes());
        let mut client_proof = keys.client;
        for (byte, signature) in client_proof.iter_mut().zip(signature) {
            *byte ^= signature;
        }
        let last = format!("{without_proof},p={}", STANDARD.encode(client_proof));
        Ok((last, Expected(hmac(&keys.server, auth_message.as_bytes()))))
    }
}

/// The proof that the server knows the password too.
#[derive(Debug)]
pub(super) struct Expected(Key);

impl Expected {
    /// Takes the server's last message.
    pub(super) fn check(&self, server_final: &[u8]) -> Result<(), String> {
        let server_final = text(server_final)?;
        if let Some(error) = server_final.strip_prefix("e=") {
            return Err(format!("the server says {}", error.escape_debug()));
        }
        let signature = server_final.strip_prefix("v=").and_then(|text| STANDARD.decode(text).ok());
        let signature = signature.ok_or("expected the server's signature")?;
        constant_time::verify_slices_are_equal(&signature, &self.0).map_err(|_| {
            "the server does not know the password; it may not be the one it seems to be".to_owned()
        })
    }
}

/// The keys that were derived last: of a user's many connections only the first has to compute them.
struct Kept(Mutex<BTreeMap<Key, Keys>>);

static KEPT: Kept = Kept(Mutex::new(BTreeMap::new()));

impl Kept {
    fn keys(&self, password: &str, salt: &[u8], iterations: NonZeroU32) -> Keys {
        // Passwords themselves are not kept.
        let mut name = Context::new(&SHA256);
        name.update(&iterations.get().to_be_bytes());
        name.update(&salt.len().to_be_bytes());
        name.update(salt);
        name.update(password.as_bytes());
        let name = key_of(name.finish().as_ref());
        if let Some(known) = self.0.lock().get(&name) {
            return *known;
        }
        let keys = Keys::derive(password, salt, iterations);
        let mut kept = self.0.lock();
        // Names are hashes, so the first is any of them.
        if kept.len() >= KEPT_MAX {
            kept.pop_first();
        }
        kept.insert(name, keys);
        keys
    }
}

fn text(message: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(message).map_err(|_| "the server's message is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SERVER_FIRST: &[u8] =
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    /// The nonce of the example in RFC 7677. Its client gives a user's name, where PostgreSQL's leave it empty, so its
    /// proof is another one.
    fn exchange(binding: Binding) -> Exchange {
        Exchange { binding, nonce: "rOprNGfwEbeRWgbNEkqO".to_owned() }
    }

    #[test]
    fn the_keys_of_rfc_7677_prove_what_its_example_proves() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let keys = Keys::derive("pencil", &salt, NonZeroU32::new(4096).unwrap());
        let without_proof = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let server_first = std::str::from_utf8(SERVER_FIRST).unwrap();
        let auth_message = format!("n=user,r=rOprNGfwEbeRWgbNEkqO,{server_first},{without_proof}");
        let signature = hmac(&keys.server, auth_message.as_bytes());
        assert_eq!(STANDARD.encode(signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let signature = hmac(&hash(&keys.client), auth_message.as_bytes());
        let proof: Vec<u8> = keys.client.iter().zip(signature).map(|(key, byte)| key ^ byte).collect();
        assert_eq!(STANDARD.encode(proof), "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
    }

    #[test]
    fn keys_prove_the_same_as_the_password_they_come_from() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let keys = Keys::derive("pencil", &salt, NonZeroU32::new(4096).unwrap());
        let answer = |proof: &Proof<'_>| exchange(Binding::None).answer(SERVER_FIRST, proof).unwrap();
        let (by_keys, expected) = answer(&Proof::Keys(keys));
        let (by_password, _) = answer(&Proof::Password("pencil"));
        assert_eq!(by_keys, by_password);
        let signature = format!("v={}", STANDARD.encode(expected.0));
        assert_eq!(expected.check(signature.as_bytes()), Ok(()));
        assert_ne!(by_keys, answer(&Proof::Password("Pencil")).0);
    }

    #[test]
    fn the_binding_is_told_and_sent() {
        for (binding, first, sent) in [
            (Binding::None, "n,,n=,r=rOprNGfwEbeRWgbNEkqO", "n,,"),
            (Binding::NotOffered, "y,,n=,r=rOprNGfwEbeRWgbNEkqO", "y,,"),
            (
                Binding::ServerEndPoint(b"hash".to_vec()),
                "p=tls-server-end-point,,n=,r=rOprNGfwEbeRWgbNEkqO",
                "p=tls-server-end-point,,hash",
            ),
        ] {
            let exchange = exchange(binding);
            assert_eq!(exchange.first(), first);
            let (last, _) = exchange.answer(SERVER_FIRST, &Proof::Password("pencil")).unwrap();
            assert!(last.starts_with(&format!("c={},r=", STANDARD.encode(sent))), "{last}");
        }
    }

    #[test]
    fn the_nonce_is_drawn_by_the_caller() {
        let first = |random| Exchange::begin(Binding::None, random).first();
        assert_eq!(first([0; NONCE_LEN]), format!("n,,n=,r={}", "A".repeat(24)));
        assert_ne!(first([1; NONCE_LEN]), first([2; NONCE_LEN]));
    }

    #[test]
    fn a_server_that_is_none_is_found_out() {
        let long = format!("r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i={}", ITERATIONS_MAX + 1);
        for (first, problem) in [
            (&b""[..], "nonce"),
            (b"r=", "nonce"),
            (b"r=other,s=AAAA,i=1", "nonce"),
            (b"r=rOprNGfwEbeRWgbNEkqO,s=AAAA,i=1", "nonce"),
            (b"m=ext,r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=1", "nonce"),
            (b"r=rOprNGfwEbeRWgbNEkqOx,s=%,i=1", "salt"),
            (b"r=rOprNGfwEbeRWgbNEkqOx,s=AAAA", "iterations"),
            (b"r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=0", "iterations"),
            (b"r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=-1", "iterations"),
            (b"r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=99999999999", "iterations"),
            (b"r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=1,x=1", "after its end"),
            (b"r=rOprNGfwEbeRWgbNEkqOx\xff,s=AAAA,i=1", "UTF-8"),
            (long.as_bytes(), "1000001 iterations"),
        ] {
            let refused = exchange(Binding::None).answer(first, &Proof::Password("pencil")).unwrap_err();
            assert!(refused.contains(problem), "{refused}");
        }
        // Keys are there already: nothing has to be computed, whatever the server's number is.
        let keys = Keys { client: [1; 32], server: [2; 32] };
        assert!(exchange(Binding::None).answer(long.as_bytes(), &Proof::Keys(keys)).is_ok());

        let (_, expected) = exchange(Binding::None).answer(SERVER_FIRST, &Proof::Password("pencil")).unwrap();
        for last in [&b""[..], b"v=", b"v=AAAA", b"e=other-error", b"v=%", b"\xff"] {
            assert!(expected.check(last).is_err(), "{last:?}");
        }
    }

    #[test]
    fn kept_keys_are_those_that_would_be_derived_and_do_not_grow_without_end() {
        let kept = Kept(Mutex::default());
        let once = NonZeroU32::MIN;
        for password in 0..KEPT_MAX + 10 {
            let password = password.to_string();
            let first = kept.keys(&password, b"salt", once);
            assert_eq!(first.client, Keys::derive(&password, b"salt", once).client);
            assert_eq!(first.server, kept.keys(&password, b"salt", once).server);
        }
        assert_eq!(kept.0.lock().len(), KEPT_MAX);
        let again = NonZeroU32::new(2).unwrap();
        assert_ne!(kept.keys("1", b"salt", once).client, kept.keys("1", b"salt", again).client);
        assert_ne!(kept.keys("1", b"salt", once).client, kept.keys("1", b"tlas", once).client);
    }

    proptest! {
        #[test]
        fn any_answers_are_judged_without_panic(
            first in "(r=rOprNGfwEbeRWgbNEkqO[ -~]{0,9})?(,s=[A-Za-z0-9+/=]{0,9})?(,i=[0-9]{0,4})?.{0,3}",
            last in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let proof = Proof::Password("pencil");
            if let Ok((_, expected)) = exchange(Binding::None).answer(first.as_bytes(), &proof) {
                prop_assert!(expected.check(&last).is_err());
            }
        }
    }
}
