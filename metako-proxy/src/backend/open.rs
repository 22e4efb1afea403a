//! From a name to a stream: TCP, and TLS where it is wanted.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use metako_core::config::SslMode;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, TlsStream};

use super::end_point::tls_server_end_point;
use super::error::{ConnectError, ConnectErrorKind};
use super::tls::{ALPN, ServerTls, Way};
use crate::env::Env;
use crate::stream::MaybeTls;

/// Length and code of the packet that asks for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Connects to a server by one of the ways that [`ServerTls::ways`] gives and agrees with it on TLS; does not log in. For
/// drivers that log in by themselves, such as tokio-postgres' `connect_raw`; the caller tries the next way when
/// pg_hba.conf refuses this one.
///
/// Unlike libpq, `prefer` does not try again in clear when a handshake breaks.
///
/// Has no time-out of its own. Cancelling closes the connection.
///
/// # Errors
///
/// [`ConnectError::node`] is `host:port` here.
pub async fn open<E: Env>(
    env: &E,
    host: &str,
    port: u16,
    tls: &ServerTls,
    way: Way,
) -> Result<MaybeTls<E::Stream>, ConnectError> {
    open_kind(env, host, port, tls, way)
        .await
        .map_err(|kind| ConnectError { node: format!("{host}:{port}").into(), kind })
}

pub(super) async fn open_kind<E: Env>(
    env: &E,
    host: &str,
    port: u16,
    tls: &ServerTls,
    way: Way,
) -> Result<MaybeTls<E::Stream>, ConnectErrorKind> {
    let mut stream = env.connect(host, port).await.map_err(|error| ConnectErrorKind::connecting(&error))?;
    if way == Way::Plain {
        return Ok(MaybeTls::Plain(stream));
    }
    if tls.is_direct() {
        return shake_hands(stream, host, tls).await;
    }
    stream.write_all(&SSL_REQUEST).await.map_err(|error| ConnectErrorKind::talking(&error))?;
    stream.flush().await.map_err(|error| ConnectErrorKind::talking(&error))?;
    // One byte and no more: whatever follows it in clear must reach the TLS handshake, where it is an error, and never
    // be taken for something that was said inside TLS.
    let mut answer = [0];
    stream.read_exact(&mut answer).await.map_err(|error| ConnectErrorKind::talking(&error))?;
    match (answer[0], tls.sslmode()) {
        (b'S', _) => shake_hands(stream, host, tls).await,
        // With `allow` it has refused metako without TLS before, and will say so again.
        (b'N', SslMode::Prefer | SslMode::Allow) => Ok(MaybeTls::Plain(stream)),
        (b'N', _) => {
            let problem =
                "the server offers none, and sslmode demands it: set ssl = on there, or sslmode to `prefer`";
            Err(ConnectErrorKind::Tls(problem.to_owned()))
        }
        // A server that is out of resources answers with an ErrorResponse. It is not shown: anybody between here and
        // there could have written it.
        (b'E', _) => {
            Err(ConnectErrorKind::Closed("it answered the request for TLS with an error".to_owned()))
        }
        (byte, _) => {
            let problem = format!("expected S or N to the request for TLS, got byte 0x{byte:02x}");
            Err(ConnectErrorKind::Protocol(problem))
        }
    }
}

async fn shake_hands<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    stream: S,
    host: &str,
    tls: &ServerTls,
) -> Result<MaybeTls<S>, ConnectErrorKind> {
    let name = match ServerName::try_from(host.to_owned()) {
        Ok(name) => name,
        Err(_) if tls.sslmode() == SslMode::VerifyFull => {
            let problem =
                format!("`{host}` is no name that a certificate could be for, and sslmode is `verify-full`");
            return Err(ConnectErrorKind::Tls(problem));
        }
        // What is no DNS name goes without server name indication, as an address does.
        Err(_) => ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()),
    };
    let connector = TlsConnector::from(Arc::clone(tls.config()));
    let stream = connector.connect(name, stream).await.map_err(|error| {
        let hint =
            if tls.is_direct() { " (sslnegotiation `direct` needs PostgreSQL 17 or newer)" } else { "" };
        ConnectErrorKind::Tls(format!("handshake failed: {error}{hint}"))
    })?;
    if tls.is_direct() && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        let problem = "whoever answers there speaks TLS but did not agree on ALPN `postgresql`: no PostgreSQL server, or \
                       something before it; set sslnegotiation to `postgres`";
        return Err(ConnectErrorKind::Tls(problem.to_owned()));
    }
    Ok(MaybeTls::Tls(Box::new(TlsStream::Client(stream))))
}

/// What SCRAM can be bound to: `None` in clear, and where the server's certificate has no such thing.
pub fn end_point_of<S>(stream: &MaybeTls<S>) -> Option<Vec<u8>> {
    let MaybeTls::Tls(tls) = stream else { return None };
    let (_, connection) = tls.get_ref();
    tls_server_end_point(connection.peer_certificates()?.first()?)
}
