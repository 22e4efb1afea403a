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

pub(super) use verifier::{ITERATIONS, SALT_LEN, Verifier, salt_of};

pub(super) use crate::scram::{Key, NONCE_LEN};
use crate::scram::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS, SERVER_END_POINT, hmac};

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
            Self::Plain => SCRAM_SHA_256,
            Self::Plus => SCRAM_SHA_256_PLUS,
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
        let message = text(client_first)?;
        let mut attributes = Attributes(message);
        binding.check_flag(&mut attributes)?;
        attributes.no_identity()?;
        let bare = attributes.0;
        if attributes.next_byte() == b'm' {
            return Err(refused(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "client requires an unsupported SCRAM extension",
            ));
        }
        attributes.value('n')?;
        let client_nonce = attributes.value('r')?;
        if !client_nonce.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refused(sqlstate::PROTOCOL_VIOLATION, "non-printable characters in SCRAM nonce"));
        }
        // Extensions are optional here: they are read and left alone.
        while !attributes.0.is_empty() {
            attributes.any()?;
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
        let message = text(client_final)?;
        let mut attributes = Attributes(message);
        if attributes.value('c')? != self.binding {
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
        let nonce = attributes.value('r')?;
        let (without_proof, proof) = loop {
            let read = &message[..message.len() - attributes.0.len()];
            if let ('p', proof) = attributes.any()? {
                // Without the comma before it.
                break (read.strip_suffix(',').unwrap_or(read), proof);
            }
        };
        let proof = STANDARD.decode(proof).ok().and_then(|proof| Key::try_from(proof).ok());
        let proof = proof.ok_or_else(|| malformed("Malformed proof in client-final-message."))?;
        if !attributes.0.is_empty() {
            return Err(malformed("Garbage found at the end of client-final-message."));
        }
        if nonce != self.nonce {
            let report = Report::fatal(sqlstate::PROTOCOL_VIOLATION, "invalid SCRAM response");
            return Err(ScramError::Refused(Box::new(report.with_detail("Nonce does not match."))));
        }
        let auth_message = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let signature = hmac(&self.verifier.server_key, auth_message.as_bytes());
        let client_key = self.verifier.client_key(auth_message.as_bytes(), &proof);
        let client_key = client_key.ok_or(ScramError::WrongPassword)?;
        Ok(Proven { server_final: format!("v={}", STANDARD.encode(signature)), client_key })
    }
}

impl Binding<'_> {
    /// Judges the flag at the start of the client's first message, and takes it off with what belongs to it.
    fn check_flag(&self, attributes: &mut Attributes<'_>) -> Result<(), ScramError> {
        let plus = self.mechanism == Mechanism::Plus;
        match attributes.next_byte() {
            b'n' | b'y' if plus => Err(malformed(
                "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.",
            )),
            b'y' if self.end_point.is_some() => {
                // Somebody between may have taken the better mechanism out of the offer.
                let report =
                    Report::fatal(sqlstate::INVALID_AUTHORIZATION, "SCRAM channel binding negotiation error");
                Err(ScramError::Refused(Box::new(report.with_detail(
                    "The client supports SCRAM channel binding but thinks the server does not.  However, this server \
                     does support channel binding.",
                ))))
            }
            b'n' | b'y' => {
                attributes.0 = &attributes.0[1..];
                if attributes.next_byte() != b',' {
                    let found = shown(attributes.next_byte());
                    return Err(malformed(format!("Comma expected, but found character \"{found}\".")));
                }
                attributes.0 = &attributes.0[1..];
                Ok(())
            }
            b'p' if !plus => Err(malformed(
                "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel \
                 binding data.",
            )),
            b'p' => match attributes.value('p')? {
                SERVER_END_POINT => Ok(()),
                other => {
                    let shown: String = other
                        .chars()
                        .map(|char| if char.is_ascii_graphic() { char } else { '?' })
                        .take(30)
                        .collect();
                    let message = format!("unsupported SCRAM channel-binding type \"{shown}\"");
                    Err(refused(sqlstate::PROTOCOL_VIOLATION, message))
                }
            },
            other => Err(malformed(format!("Unexpected channel-binding flag \"{}\".", shown(other)))),
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

/// What is left of a message of attributes, which are read one after the other.
struct Attributes<'a>(&'a str);

impl<'a> Attributes<'a> {
    /// The next byte, or 0 at the end: PostgreSQL shows both.
    fn next_byte(&self) -> u8 {
        self.0.bytes().next().unwrap_or(0)
    }

    /// There may be no authorization identity.
    fn no_identity(&mut self) -> Result<(), ScramError> {
        match self.next_byte() {
            b',' => {
                self.0 = &self.0[1..];
                Ok(())
            }
            b'a' => Err(refused(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "client uses authorization identity, but it is not supported",
            )),
            other => {
                let found = shown(other);
                Err(malformed(format!("Unexpected attribute \"{found}\" in client-first-message.")))
            }
        }
    }

    /// The value of the next attribute, which has to have this name.
    fn value(&mut self, name: char) -> Result<&'a str, ScramError> {
        let Some(after) = self.0.strip_prefix(name) else {
            let found = shown(self.next_byte());
            return Err(malformed(format!("Expected attribute \"{name}\" but found \"{found}\".")));
        };
        self.after_name(name, after)
    }

    /// The next attribute, whatever its name.
    fn any(&mut self) -> Result<(char, &'a str), ScramError> {
        let name = match self.0.chars().next() {
            None => return Err(malformed("Attribute expected, but found end of string.")),
            Some(name) if name.is_ascii_alphabetic() => name,
            Some(_) => {
                let found = shown(self.next_byte());
                return Err(malformed(format!(
                    "Attribute expected, but found invalid character \"{found}\"."
                )));
            }
        };
        let value = self.after_name(name, &self.0[1..])?;
        Ok((name, value))
    }

    fn after_name(&mut self, name: char, after: &'a str) -> Result<&'a str, ScramError> {
        let Some(rest) = after.strip_prefix('=') else {
            return Err(malformed(format!("Expected character \"=\" for attribute \"{name}\".")));
        };
        let (value, rest) = rest.split_once(',').unwrap_or((rest, ""));
        self.0 = rest;
        Ok(value)
    }
}

/// A byte as PostgreSQL shows it.
fn shown(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("'{}'", char::from(byte)) } else { format!("0x{byte:02x}") }
}

/// What a SASLInitialResponse holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InitialResponse<'a> {
    /// The mechanism that the client chose.
    pub(super) mechanism: &'a [u8],
    rest: &'a [u8],
}

impl<'a> InitialResponse<'a> {
    /// Reads the body of the message as far as the mechanism, which is looked at first.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, ScramError> {
        let wrong = || refused(sqlstate::PROTOCOL_VIOLATION, "invalid string in message");
        let (mechanism, rest) = metako_core::wire::read::text(body).ok_or_else(wrong)?;
        Ok(Self { mechanism, rest })
    }

    /// The mechanism's first message, unless the client waits to be asked for it.
    pub(super) fn data(&self) -> Result<Option<&'a [u8]>, ScramError> {
        let wrong = |message| refused(sqlstate::PROTOCOL_VIOLATION, message);
        let short = "insufficient data left in message";
        let (length, data) = self.rest.split_first_chunk().ok_or_else(|| wrong(short))?;
        match i32::from_be_bytes(*length) {
            -1 if data.is_empty() => Ok(None),
            length if usize::try_from(length) == Ok(data.len()) => Ok(Some(data)),
            length if usize::try_from(length).is_ok_and(|length| length < data.len()) || length == -1 => {
                Err(wrong("invalid message format"))
            }
            _ => Err(wrong(short)),
        }
    }
}

fn text(message: &[u8]) -> Result<&str, ScramError> {
    if message.is_empty() {
        return Err(malformed("The message is empty."));
    }
    if message.contains(&0) {
        return Err(malformed("Message length does not match input length."));
    }
    std::str::from_utf8(message).map_err(|_| malformed("The message is not UTF-8."))
}
