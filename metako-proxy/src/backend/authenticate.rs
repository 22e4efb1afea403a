//! Answering a server's question who this is.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};

use super::error::{ConnectErrorKind, ServerError};
use super::frames::Frames;
use super::{Target, send};
use crate::credential::ServerCredential;

/// Answers what the server asks, until it says AuthenticationOk.
pub(super) async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut Frames<'_, S>,
    target: &Target,
) -> Result<(), ConnectErrorKind> {
    let mut answer = BytesMut::new();
    match question(frames).await? {
        Message::AuthenticationOk => return Ok(()),
        Message::AuthenticationCleartextPassword => {
            frontend::password_message(password(target)?, &mut answer).map_err(unsendable)?;
        }
        Message::AuthenticationMd5Password(body) => {
            let hash = md5_hash(target.user.as_bytes(), password(target)?, body.salt());
            frontend::password_message(hash.as_bytes(), &mut answer).map_err(unsendable)?;
        }
        Message::AuthenticationSasl(body) => {
            let known = body
                .mechanisms()
                .any(|mechanism| Ok(mechanism == SCRAM_SHA_256))
                .map_err(|error| ConnectErrorKind::Protocol(format!("SASL mechanisms: {error}")))?;
            if !known {
                return Err(ConnectErrorKind::Authentication(format!(
                    "the server does not offer {SCRAM_SHA_256}"
                )));
            }
            scram(frames, password(target)?).await?;
        }
        _ => {
            let problem = "the server asks for GSSAPI, SSPI or another method that metako does not have; \
                           use scram-sha-256 in its pg_hba.conf";
            return Err(ConnectErrorKind::Authentication(problem.to_owned()));
        }
    }
    if !answer.is_empty() {
        send(frames.stream(), &answer).await?;
    }
    match question(frames).await? {
        Message::AuthenticationOk => Ok(()),
        _ => {
            Err(ConnectErrorKind::Protocol("a second question instead of an answer to the log-in".to_owned()))
        }
    }
}

/// Proves that metako knows the password, and has the server prove the same.
async fn scram<S: AsyncRead + AsyncWrite + Unpin>(
    frames: &mut Frames<'_, S>,
    password: &[u8],
) -> Result<(), ConnectErrorKind> {
    let untrusted =
        |error: std::io::Error| ConnectErrorKind::Authentication(format!("{SCRAM_SHA_256}: {error}"));
    let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
    let mut message = BytesMut::new();
    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut message).map_err(unsendable)?;
    send(frames.stream(), &message).await?;

    let Message::AuthenticationSaslContinue(body) = question(frames).await? else {
        return Err(skipped());
    };
    scram.update(body.data()).map_err(untrusted)?;
    message.clear();
    frontend::sasl_response(scram.message(), &mut message).map_err(unsendable)?;
    send(frames.stream(), &message).await?;

    let Message::AuthenticationSaslFinal(body) = question(frames).await? else {
        return Err(skipped());
    };
    scram.finish(body.data()).map_err(untrusted)
}

/// The server's next message about authentication.
async fn question<S: AsyncRead + Unpin>(frames: &mut Frames<'_, S>) -> Result<Message, ConnectErrorKind> {
    loop {
        match frames.next().await? {
            Message::ErrorResponse(body) => return Err(ConnectErrorKind::Server(Box::new(server_error(&body)?))),
            Message::NoticeResponse(_) => {}
            message @ (Message::AuthenticationOk
            | Message::AuthenticationCleartextPassword
            | Message::AuthenticationMd5Password(_)
            | Message::AuthenticationSasl(_)
            | Message::AuthenticationSaslContinue(_)
            | Message::AuthenticationSaslFinal(_)
            | Message::AuthenticationGss
            | Message::AuthenticationGssContinue(_)
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential
            | Message::AuthenticationSspi) => return Ok(message),
            _ => {
                let problem = "a message that has no place in authentication";
                return Err(ConnectErrorKind::Protocol(problem.to_owned()));
            }
        }
    }
}

fn password(target: &Target) -> Result<&[u8], ConnectErrorKind> {
    match &target.credential {
        ServerCredential::Password(password) => Ok(password.reveal().as_bytes()),
        _ => Err(ConnectErrorKind::Authentication(format!(
            "the server asks for the password of user `{}`, and none is configured",
            target.user
        ))),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn unsendable(error: std::io::Error) -> ConnectErrorKind {
    ConnectErrorKind::Authentication(format!("the password cannot be sent: {error}"))
}

fn skipped() -> ConnectErrorKind {
    let problem = "the server did not prove that it knows the password; it may not be the one it seems to be";
    ConnectErrorKind::Authentication(problem.to_owned())
}

/// Reads an ErrorResponse. Text that is not UTF-8 is made so.
pub(super) fn server_error(body: &ErrorResponseBody) -> Result<ServerError, ConnectErrorKind> {
    let mut error = ServerError::default();
    let mut localised = String::new();
    let mut fields = body.fields();
    loop {
        let field = fields
            .next()
            .map_err(|problem| ConnectErrorKind::Protocol(format!("a broken ErrorResponse: {problem}")))?;
        let Some(field) = field else { break };
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'S' => localised = text(),
            b'V' => error.severity = text(),
            b'C' => error.sqlstate = text(),
            b'M' => error.message = text(),
            b'D' => error.detail = Some(text()),
            _ => {}
        }
        error.fields.push((field.type_(), field.value_bytes().to_vec()));
    }
    if error.severity.is_empty() {
        error.severity = localised;
    }
    Ok(error)
}
