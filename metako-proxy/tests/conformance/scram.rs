//! The client's side of SCRAM-SHA-256, with and without channel binding. Of its own, so that what metako proves is not
//! checked by the code that proves it.

use std::num::NonZeroU32;

use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;

/// Any will do: nobody but the test listens.
const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";

/// An exchange that has begun.
pub(crate) struct Scram {
    password: String,
    /// The channel's certificate hash, where the exchange is bound to it.
    binding: Option<Vec<u8>>,
    proof_of_server: Vec<u8>,
}

impl Scram {
    pub(crate) fn new(password: &str, binding: Option<Vec<u8>>) -> Self {
        Self { password: password.to_owned(), binding, proof_of_server: Vec::new() }
    }

    fn header(&self) -> &'static str {
        if self.binding.is_some() { "p=tls-server-end-point,," } else { "n,," }
    }

    /// The body of the SASLInitialResponse.
    pub(crate) fn first(&self) -> Vec<u8> {
        let mechanism = if self.binding.is_some() { "SCRAM-SHA-256-PLUS" } else { "SCRAM-SHA-256" };
        let message = format!("{}n=,r={NONCE}", self.header());
        let length = u32::try_from(message.len()).expect("short").to_be_bytes();
        [mechanism.as_bytes(), b"\0", &length, message.as_bytes()].concat()
    }

    /// The body of the SASLResponse to the server's first message; nothing if that makes no sense.
    pub(crate) fn last(&mut self, server_first: &[u8]) -> Option<Vec<u8>> {
        let server_first = std::str::from_utf8(server_first).ok()?;
        let field = |name: &str| server_first.split(',').find_map(|field| field.strip_prefix(name));
        let nonce = field("r=").filter(|nonce| nonce.starts_with(NONCE) && nonce.len() > NONCE.len())?;
        let salt = BASE64.decode(field("s=")?).ok()?;
        let iterations = field("i=")?.parse::<NonZeroU32>().ok()?;
        let mut salted = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, self.password.as_bytes(), &mut salted);
        let bound = [self.header().as_bytes(), self.binding.as_deref().unwrap_or_default()].concat();
        let without_proof = format!("c={},r={nonce}", BASE64.encode(bound));
        let signed = format!("n=,r={NONCE},{server_first},{without_proof}");
        let client_key = mac(&salted, b"Client Key");
        let signature = mac(digest::digest(&digest::SHA256, &client_key).as_ref(), signed.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(key, mask)| key ^ mask).collect();
        self.proof_of_server = mac(&mac(&salted, b"Server Key"), signed.as_bytes());
        Some(format!("{without_proof},p={}", BASE64.encode(proof)).into_bytes())
    }

    /// Whether the server has proven that it knows the password too.
    pub(crate) fn is_proven(&self, server_last: &[u8]) -> bool {
        let proof = server_last.strip_prefix(b"v=").and_then(|proof| BASE64.decode(proof).ok());
        proof.is_some_and(|proof| proof == self.proof_of_server)
    }
}

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}
