//! The server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677), as a pure exchange of messages. What
//! is wrong with a client's messages is told in PostgreSQL's words.
//!
//! pgwire has one, but it draws its nonce by itself, where metako's randomness is an argument, and does not compare in
//! constant time. The cryptography is aws-lc-rs', which TLS brings along.

#[cfg(test)]
mod tests;
mod verifier;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use metako_core::wire::sqlstate;
use metako_core::wire::write::Report;

pub(super) use verifier::{Key, SALT_LEN, Verifier, salt_of};

/// Random bytes in the server's part of the nonce, as PostgreSQL has it.
pub(super) const NONCE_LEN: usize = 18;

const BINDING: &str = "tls-server-end-point";

/// A mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    /// Without channel binding.
    Plain,
    /// With channel binding.
    Plus,
}

impl Mechanism {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "SCRAM-SHA-256",
            Self::Plus => "SCRAM-SHA-256-PLUS",
        }
    }
}

/// What a client may bind its log-in to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Binding<'a> {
    /// The mechanism that the client chose.
    pub(super) mechanism: Mechanism,
    /// The hash of metako's certificate, if the connection is encrypted and channel binding was offered.
    pub(super) end_point: Option<&'a [u8]>,
}

/// Why a log-in by SCRAM fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ScramError {
    /// The password is wrong, or there is no such user.
    WrongPassword,
    /// The client asks for what it cannot have, or does not speak SCRAM.
    Refused(Box<Report>),
}

fn malformed(detail: impl Into<String>) -> ScramError {
    let report = Report::fatal(sqlstate::PROTOCOL_VIOLATION, "malformed SCRAM message");
    ScramError::Refused(Box::new(report.with_detail(detail)))
}

fn refused(sqlstate: &'static str, message: impl Into<String>) -> ScramError {
    ScramError::Refused(Box::new(Report::fatal(sqlstate, message)))
}

/// An exchange whose first half is done.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    verifier: &'a Verifier,
    client_first_bare: &'a str,
    mechanism: Mechanism,
    /// What the client's final message has to repeat.
    binding: String,
    server_first: String,
    nonce: String,
}

/// A log-in that succeeded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Proven {
    /// The server's final message, which proves that the server knows the password too.
    pub(super) server_final: String,
    /// `ClientKey`, as the client's proof shows it.
    pub(super) client_key: Key,
}

impl<'a> Exchange<'a> {
    /// Takes the client's first message. The user name in it is ignored, as PostgreSQL does: the one of the start-up
    /// packet counts.
    pub(super) fn begin(
        verifier: &'a Verifier,
        client_first: &'a [u8],
        binding: Binding<'_>,
        random: [u8; NONCE_LEN],
    ) -> Result<Self, ScramError> {
        Self::begin_with_nonce(verifier, client_first, binding, &STANDARD.encode(random))
    }

    fn begin_with_nonce(
        verifier: &'a Verifier,
        client_first: &'a [u8],
        binding: Binding<'_>,
        server_nonce: &str,
    ) -> Result<Self, ScramError> {
        let message = utf8(client_first)?;
        let after_flag = binding.check_flag(message)?;
        let bare = match after_flag.strip_prefix(',') {
            Some(bare) => bare,
            None if after_flag.starts_with('a') => {
                return Err(refused(
                    sqlstate::FEATURE_NOT_SUPPORTED,
                    "client uses authorization identity, but it is not supported",
                ));
            }
            None => return Err(malformed("Unexpected attribute in client-first-message.")),
        };
        if bare.starts_with('m') {
            return Err(refused(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "client requires an unsupported SCRAM extension",
            ));
        }
        let mut attributes = bare.split(',');
        attribute(attributes.next(), 'n')?;
        let client_nonce = attribute(attributes.next(), 'r')?;
        if !client_nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refused(sqlstate::PROTOCOL_VIOLATION, "non-printable characters in SCRAM nonce"));
        }
        if client_nonce.is_empty() {
            return Err(malformed("The nonce is empty."));
        }
        let nonce = format!("{client_nonce}{server_nonce}");
        let salt = STANDARD.encode(&verifier.salt);
        let gs2_header = &message[..message.len() - bare.len()];
        Ok(Self {
            verifier,
            client_first_bare: bare,
            mechanism: binding.mechanism,
            binding: binding.repeated(gs2_header),
            server_first: format!("r={nonce},s={salt},i={}", verifier.iterations),
            nonce,
        })
    }

    /// The server's first message.
    pub(super) fn server_first(&self) -> &str {
        &self.server_first
    }

    /// Takes the client's final message.
    pub(super) fn finish(self, client_final: &[u8]) -> Result<Proven, ScramError> {
        let message = utf8(client_final)?;
        let (without_proof, proof) = message
            .rsplit_once(",p=")
            .ok_or_else(|| malformed("Expected attribute \"p\" at the end of client-final-message."))?;
        let mut attributes = without_proof.split(',');
        let binding = attribute(attributes.next(), 'c')?;
        if binding != self.binding {
            return Err(match self.mechanism {
                Mechanism::Plus => {
                    refused(sqlstate::INVALID_AUTHORIZATION, "SCRAM channel binding check failed")
                }
                Mechanism::Plain => refused(
                    sqlstate::PROTOCOL_VIOLATION,
                    "unexpected SCRAM channel-binding attribute in client-final-message",
                ),
            });
        }
        if attribute(attributes.next(), 'r')? != self.nonce {
            let report = Report::fatal(sqlstate::PROTOCOL_VIOLATION, "invalid SCRAM response");
            return Err(ScramError::Refused(Box::new(report.with_detail("Nonce does not match."))));
        }
        let proof = STANDARD.decode(proof).ok().and_then(|proof| Key::try_from(proof).ok());
        let proof = proof.ok_or_else(|| malformed("Malformed proof in client-final-message."))?;

        let auth_message = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let signature = verifier::hmac(&self.verifier.server_key, auth_message.as_bytes());
        let client_key = self.verifier.client_key(auth_message.as_bytes(), &proof);
        let client_key = client_key.ok_or(ScramError::WrongPassword)?;
        Ok(Proven { server_final: format!("v={}", STANDARD.encode(signature)), client_key })
    }
}

impl Binding<'_> {
    /// Judges the flag at the start of the client's first message, and gives what follows it and its comma.
    fn check_flag<'m>(&self, message: &'m str) -> Result<&'m str, ScramError> {
        let plus = self.mechanism == Mechanism::Plus;
        let after = |flag: &str| {
            let rest = message.strip_prefix(flag)?;
            rest.strip_prefix(',')
        };
        match message.chars().next() {
            Some('n' | 'y') if plus => Err(malformed(
                "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.",
            )),
            Some('y') if self.end_point.is_some() => {
                // Somebody between may have taken the better mechanism out of the offer.
                let report =
                    Report::fatal(sqlstate::INVALID_AUTHORIZATION, "SCRAM channel binding negotiation error");
                Err(ScramError::Refused(Box::new(report.with_detail(
                    "The client supports SCRAM channel binding but thinks the server does not.  However, this server \
                     does support channel binding.",
                ))))
            }
            Some(flag @ ('n' | 'y')) => after(flag.encode_utf8(&mut [0; 4]))
                .ok_or_else(|| malformed("Comma expected after the channel-binding flag.")),
            Some('p') if !plus => Err(malformed(
                "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel \
                 binding data.",
            )),
            Some('p') => {
                let (kind, rest) = message
                    .strip_prefix("p=")
                    .and_then(|rest| rest.split_once(','))
                    .ok_or_else(|| malformed("Attribute expected, but the message ends."))?;
                if kind == BINDING {
                    return Ok(rest);
                }
                let shown: String = kind.chars().filter(char::is_ascii_graphic).take(30).collect();
                let message = format!("unsupported SCRAM channel-binding type \"{shown}\"");
                Err(refused(sqlstate::PROTOCOL_VIOLATION, message))
            }
            _ => Err(malformed("Unexpected channel-binding flag.")),
        }
    }

    /// The attribute `c` of the final message.
    fn repeated(&self, gs2_header: &str) -> String {
        let mut bytes = gs2_header.as_bytes().to_vec();
        if self.mechanism == Mechanism::Plus {
            bytes.extend_from_slice(self.end_point.unwrap_or_default());
        }
        STANDARD.encode(bytes)
    }
}

fn attribute(text: Option<&str>, name: char) -> Result<&str, ScramError> {
    text.and_then(|text| text.strip_prefix(name)?.strip_prefix('='))
        .ok_or_else(|| malformed(format!("Expected attribute \"{name}\".")))
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
        let wrong = || refused(sqlstate::PROTOCOL_VIOLATION, "invalid message format");
        let end = body.iter().position(|byte| *byte == 0).ok_or_else(wrong)?;
        let (length, data) = body[end + 1..].split_first_chunk().ok_or_else(wrong)?;
        let data = match i32::from_be_bytes(*length) {
            -1 if data.is_empty() => None,
            length if usize::try_from(length) == Ok(data.len()) => Some(data),
            _ => return Err(wrong()),
        };
        Ok(Self { mechanism: &body[..end], data })
    }
}

fn utf8(message: &[u8]) -> Result<&str, ScramError> {
    std::str::from_utf8(message).map_err(|_| malformed("The message is not UTF-8."))
}
