//! Answering a server's question who this is.

use std::fmt::Write as _;

use bytes::{Buf, BytesMut};
use md5::{Digest, Md5};
use metako_core::config::ChannelBinding;
use metako_core::wire::{read, write};
use tokio::io::{AsyncRead, AsyncWrite};

use super::error::{ConnectErrorKind, ServerError};
use super::frames::Frames;
use super::scram::{Binding, Exchange, Proof};
use super::{Target, VERSION, send};
use crate::credential::ServerCredential;
use crate::scram::{Keys, NONCE_LEN, SCRAM_SHA_256, SCRAM_SHA_256_PLUS};

/// What a log-in works with besides its target.
pub(super) struct Circumstances {
    /// Fresh randomness for this log-in alone.
    pub(super) random: [u8; NONCE_LEN],
    /// Whether the connection is encrypted.
    pub(super) tls: bool,
    /// The `tls-server-end-point` of the server's certificate; `None` without TLS, or where none is defined for it.
    pub(super) end_point: Option<Vec<u8>>,
}

/// What a server says during authentication.
enum Question {
    Ok,
    Cleartext,
    Md5([u8; 4]),
    Sasl(BytesMut),
    SaslContinue(BytesMut),
    SaslFinal(BytesMut),
    Other(u32),
}

impl Question {
    fn parse(mut body: BytesMut) -> Option<Self> {
        let code = body.try_get_u32().ok()?;
        Some(match code {
            0 => Self::Ok,
            3 => Self::Cleartext,
            5 => Self::Md5(body.as_ref().try_into().ok()?),
            10 => Self::Sasl(body),
            11 => Self::SaslContinue(body),
            12 => Self::SaslFinal(body),
            other => Self::Other(other),
        })
    }
}

/// Answers what the server asks, until it says AuthenticationOk.
pub(super) async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut Frames<'_, S>,
    target: &Target,
    circumstances: &Circumstances,
) -> Result<(), ConnectErrorKind> {
    let bound = target.tls.channel_binding() == ChannelBinding::Require;
    match question(frames).await? {
        Question::Sasl(mechanisms) => scram(frames, target, circumstances, &mechanisms).await?,
        Question::Ok | Question::Cleartext | Question::Md5(_) if bound => return Err(unbound()),
        Question::Ok => return Ok(()),
        Question::Cleartext => send_password(frames, clear(target)?.as_bytes()).await?,
        Question::Md5(salt) => send_password(frames, md5_answer(target, salt)?.as_bytes()).await?,
        Question::SaslContinue(_) | Question::SaslFinal(_) => {
            let problem = "the middle of an authentication that was not begun";
            return Err(ConnectErrorKind::Protocol(problem.to_owned()));
        }
        Question::Other(code) => {
            return Err(ConnectErrorKind::Authentication(format!(
                "the server asks for {}, which metako does not have; use scram-sha-256 in its pg_hba.conf",
                match code {
                    7 | 8 => "GSSAPI".to_owned(),
                    9 => "SSPI".to_owned(),
                    code => format!("authentication method {code}"),
                }
            )));
        }
    }
    match question(frames).await? {
        Question::Ok => Ok(()),
        _ => {
            Err(ConnectErrorKind::Protocol("a second question instead of an answer to the log-in".to_owned()))
        }
    }
}

/// Proves that metako knows the password, and has the server prove the same.
async fn scram<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut Frames<'_, S>,
    target: &Target,
    circumstances: &Circumstances,
    mechanisms: &[u8],
) -> Result<(), ConnectErrorKind> {
    let failed = |problem: String| {
        ConnectErrorKind::Authentication(format!("{SCRAM_SHA_256} of user `{}`: {problem}", target.user))
    };
    let binding = binding(mechanisms, target.tls.channel_binding(), circumstances)?;
    let proof = match &target.credential {
        ServerCredential::Password(password) => Proof::Password(password.reveal()),
        ServerCredential::ScramKeys { client_key, server_key } => {
            Proof::Keys(Keys { client: *client_key, server: *server_key })
        }
        ServerCredential::Md5(_) => {
            return Err(failed(
                "the client logged in by md5, and from that no answer to SCRAM can be made; let it log in with \
                 scram-sha-256, or give its password in `users`"
                    .to_owned(),
            ));
        }
        ServerCredential::None => return Err(no_credential(target)),
    };
    let mechanism = binding.mechanism();
    let exchange = Exchange::begin(binding, circumstances.random);
    let mut message = Vec::new();
    write::frame(&mut message, b'p', |body| {
        let first = exchange.first();
        body.extend_from_slice(mechanism.as_bytes());
        body.push(0);
        body.extend_from_slice(&u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes());
        body.extend_from_slice(first.as_bytes());
    });
    send(frames.stream(), &message).await?;

    let Question::SaslContinue(server_first) = question(frames).await? else { return Err(skipped()) };
    let (last, expected) = exchange.answer(&server_first, &proof).map_err(failed)?;
    message.clear();
    write::frame(&mut message, b'p', |body| body.extend_from_slice(last.as_bytes()));
    send(frames.stream(), &message).await?;

    let Question::SaslFinal(server_final) = question(frames).await? else { return Err(skipped()) };
    expected.check(&server_final).map_err(failed)
}

/// How to bind the exchange, with what the server offers and the configuration wants.
fn binding(
    mechanisms: &[u8],
    wanted: ChannelBinding,
    circumstances: &Circumstances,
) -> Result<Binding, ConnectErrorKind> {
    let refused = |problem: &str| ConnectErrorKind::Authentication(problem.to_owned());
    let offered = |name: &str| mechanisms.split(|byte| *byte == 0).any(|known| known == name.as_bytes());
    let plus = offered(SCRAM_SHA_256_PLUS);
    if plus && !circumstances.tls {
        return Err(refused(
            "the server offers SCRAM-SHA-256-PLUS outside TLS: it may not be a server of PostgreSQL",
        ));
    }
    if wanted != ChannelBinding::Disable && plus {
        match &circumstances.end_point {
            Some(end_point) => return Ok(Binding::ServerEndPoint(end_point.clone())),
            None if wanted == ChannelBinding::Require => {
                return Err(refused(
                    "channel_binding is `require`, and for the signature of the server's certificate none is defined; \
                     give it a certificate signed with RSA or ECDSA",
                ));
            }
            None => {}
        }
    } else if wanted == ChannelBinding::Require {
        return Err(unbound());
    }
    if !offered(SCRAM_SHA_256) {
        return Err(refused("the server does not offer SCRAM-SHA-256"));
    }
    let possible = circumstances.end_point.is_some() && wanted != ChannelBinding::Disable;
    Ok(if possible { Binding::NotOffered } else { Binding::None })
}

/// The server's next message about authentication.
async fn question<S: AsyncRead + Unpin>(frames: &mut Frames<'_, S>) -> Result<Question, ConnectErrorKind> {
    loop {
        let message = frames.next().await?;
        match message.tag {
            b'E' => return Err(server_error(&message.body)),
            b'N' => {}
            b'v' => negotiated(message.body)?,
            b'R' => {
                return Question::parse(message.body).ok_or_else(|| {
                    ConnectErrorKind::Protocol("a broken question of authentication".to_owned())
                });
            }
            _ => {
                let problem = "a message that has no place in authentication";
                return Err(ConnectErrorKind::Protocol(problem.to_owned()));
            }
        }
    }
}

/// NegotiateProtocolVersion: an older server says what it speaks instead. All that metako asks for beyond 3.0 are longer
/// keys for cancels, so there is nothing to remember.
fn negotiated(mut body: BytesMut) -> Result<(), ConnectErrorKind> {
    let broken = || ConnectErrorKind::Protocol("a broken answer on the protocol's version".to_owned());
    // The document says the minor version, servers send the whole one.
    let minor = match body.try_get_u32().map_err(|_| broken())? {
        whole if whole >> 16 == VERSION >> 16 => whole & 0xFFFF,
        minor if minor >> 16 == 0 => minor,
        _ => return Err(broken()),
    };
    if minor > VERSION & 0xFFFF {
        return Err(ConnectErrorKind::Protocol(format!(
            "the server wants protocol 3.{minor}, and was asked for 3.{}",
            VERSION & 0xFFFF
        )));
    }
    Ok(())
}

async fn send_password<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut Frames<'_, S>,
    password: &[u8],
) -> Result<(), ConnectErrorKind> {
    if password.contains(&0) {
        let problem = "the password holds a zero byte, which cannot be sent";
        return Err(ConnectErrorKind::Authentication(problem.to_owned()));
    }
    let mut message = Vec::new();
    write::frame(&mut message, b'p', |body| {
        body.extend_from_slice(password);
        body.push(0);
    });
    send(frames.stream(), &message).await
}

fn clear(target: &Target) -> Result<&str, ConnectErrorKind> {
    let told = match &target.credential {
        ServerCredential::Password(password) => return Ok(password.reveal()),
        ServerCredential::None => return Err(no_credential(target)),
        ServerCredential::Md5(_) => "md5",
        ServerCredential::ScramKeys { .. } => "scram-sha-256",
    };
    Err(ConnectErrorKind::Authentication(format!(
        "the server asks for the password of user `{}` in clear, and the client logged in by {told}, which does not \
         reveal it; use {told} in the server's pg_hba.conf, or give the password in `users`",
        target.user
    )))
}

fn md5_answer(target: &Target, salt: [u8; 4]) -> Result<String, ConnectErrorKind> {
    let inner = match &target.credential {
        ServerCredential::Password(password) => {
            hexadecimal(Md5::new().chain_update(password.reveal()).chain_update(&target.user))
        }
        ServerCredential::Md5(hash) => hash.reveal().to_owned(),
        ServerCredential::None => return Err(no_credential(target)),
        ServerCredential::ScramKeys { .. } => {
            return Err(ConnectErrorKind::Authentication(format!(
                "the server asks for the md5 hash of user `{}`'s password, and the client logged in by scram-sha-256, \
                 which does not reveal it; use scram-sha-256 in the server's pg_hba.conf, or give the password in `users`",
                target.user
            )));
        }
    };
    Ok(format!("md5{}", hexadecimal(Md5::new().chain_update(inner).chain_update(salt))))
}

fn hexadecimal(hash: Md5) -> String {
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn no_credential(target: &Target) -> ConnectErrorKind {
    ConnectErrorKind::Authentication(format!(
        "the server asks for the password of user `{}`, and none is known: the client logged in without one; give it in \
         `users`, or have the server trust metako",
        target.user
    ))
}

fn unbound() -> ConnectErrorKind {
    let problem = "channel_binding is `require`, and the server does not authenticate with SCRAM-SHA-256-PLUS; it needs \
                   ssl = on and scram-sha-256 in its pg_hba.conf";
    ConnectErrorKind::Authentication(problem.to_owned())
}

fn skipped() -> ConnectErrorKind {
    let problem = "the server did not prove that it knows the password; it may not be the one it seems to be";
    ConnectErrorKind::Authentication(problem.to_owned())
}

/// Reads an ErrorResponse.
pub(super) fn server_error(body: &[u8]) -> ConnectErrorKind {
    match ServerError::parse(body) {
        Some(error) => ConnectErrorKind::Server(Box::new(error)),
        None => ConnectErrorKind::Protocol("a broken ErrorResponse".to_owned()),
    }
}

/// Reads a ParameterStatus.
pub(super) fn parameter(body: &[u8]) -> Result<(String, String), ConnectErrorKind> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let (name, value) = read::parameter_status(body)
        .ok_or_else(|| ConnectErrorKind::Protocol("a broken ParameterStatus".to_owned()))?;
    text(name)
        .zip(text(value))
        .ok_or_else(|| ConnectErrorKind::Protocol("a ParameterStatus that is not UTF-8".to_owned()))
}
