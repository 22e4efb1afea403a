//! From the first byte to the packet that says what the client wants: requests for encryption, and TLS.

use std::io;
use std::sync::Arc;

use metako_core::wire::sqlstate;
use metako_core::wire::startup::{Startup, StartupError, StartupMessage, TLS_HANDSHAKE};
use metako_core::wire::write::Report;
use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::incoming::Incoming;
use super::tls::{ALPN, ServerTls};
use super::{LoginContext, LoginError};
use crate::stream::MaybeTls;

/// What a connection is for.
pub(super) enum Request {
    Cancel { process_id: i32, secret_key: Vec<u8> },
    Session(StartupMessage),
}

/// Which kinds of encryption were settled. What was agreed on settles both.
#[derive(Default)]
struct Settled {
    tls: bool,
    gss: bool,
}

/// Goes through requests for encryption until the client says what it wants.
pub(super) async fn first_request<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    cx: &LoginContext,
) -> Result<(Incoming<MaybeTls<S>>, Request), LoginError> {
    let mut incoming = Incoming::new(MaybeTls::Plain(stream));
    if incoming.first_byte().await? == TLS_HANDSHAKE {
        incoming = direct_tls(incoming, cx).await?;
    }
    let mut settled = Settled::default();
    loop {
        match incoming.packet().await? {
            Startup::Ssl if !settled.tls => {
                settled.tls = true;
                if let Some(tls) = cx.tls.as_ref().filter(|_| !incoming.stream.is_tls()) {
                    settled.gss = true;
                    nothing_buffered(&mut incoming, "SSL request").await?;
                    incoming.send(b"S").await?;
                    incoming = handshake(incoming, tls).await?;
                } else {
                    incoming.send(b"N").await?;
                    nothing_buffered(&mut incoming, "SSL request").await?;
                }
            }
            Startup::GssEncryption if !settled.gss => {
                settled.gss = true;
                incoming.send(b"N").await?;
                nothing_buffered(&mut incoming, "GSSAPI encryption request").await?;
            }
            Startup::Ssl => return Err(incoming.refuse_start(&StartupError::SECOND_SSL_REQUEST).await),
            Startup::GssEncryption => {
                return Err(incoming.refuse_start(&StartupError::SECOND_GSSENC_REQUEST).await);
            }
            Startup::Cancel { process_id, secret_key } => {
                return Ok((incoming, Request::Cancel { process_id, secret_key }));
            }
            Startup::Session(message) => return Ok((incoming, Request::Session(message))),
        }
    }
}

/// Refuses a client that sent more than its request for encryption: somebody in between may have added it in clear, to
/// be taken for the client's own words inside TLS (CVE-2021-23214).
async fn nothing_buffered<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut Incoming<S>,
    request: &str,
) -> Result<(), LoginError> {
    if incoming.buffer.is_empty() {
        return Ok(());
    }
    let message = format!("received unencrypted data after {request}");
    let report = Report::fatal(sqlstate::PROTOCOL_VIOLATION, message).with_detail(
        "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
    );
    incoming.say_no(&report).await;
    Err(LoginError::refused(report))
}

/// TLS without a request for it. A client has to name its protocol, so that no other server's client is taken for ours.
async fn direct_tls<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: Incoming<MaybeTls<S>>,
    cx: &LoginContext,
) -> Result<Incoming<MaybeTls<S>>, LoginError> {
    let Some(tls) = &cx.tls else {
        return Err(LoginError::Protocol("a TLS handshake, but TLS is not offered".to_owned()));
    };
    let incoming = handshake(incoming, tls).await?;
    let named = match &incoming.stream {
        MaybeTls::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(ALPN),
        MaybeTls::Plain(_) => false,
    };
    if named {
        return Ok(incoming);
    }
    let problem = "received direct SSL connection request without ALPN protocol negotiation extension";
    Err(LoginError::Protocol(problem.to_owned()))
}

/// TLS on a connection of which a part of the handshake, or all that the client says first, was read already.
async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: Incoming<MaybeTls<S>>,
    tls: &ServerTls,
) -> Result<Incoming<MaybeTls<S>>, LoginError> {
    let Incoming { stream, buffer, .. } = incoming;
    let MaybeTls::Plain(stream) = stream else {
        return Err(LoginError::Protocol("TLS inside TLS".to_owned()));
    };
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
    let mut fed = Ok(());
    let accepted = acceptor.accept_with(stream, |session| fed = feed(session, &buffer));
    fed.map_err(LoginError::Tls)?;
    let tls = accepted.await.map_err(LoginError::Tls)?;
    Ok(Incoming::new(MaybeTls::Tls(Box::new(TlsStream::Server(tls)))))
}

fn feed(session: &mut ServerConnection, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        if session.read_tls(&mut bytes)? == 0 {
            return Err(io::Error::other("the first message is too long"));
        }
        if session.process_new_packets().is_err() {
            // The session keeps the error, and has an alert for the client to be sent first.
            break;
        }
    }
    Ok(())
}
