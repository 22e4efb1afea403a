//! From a name to a stream: TCP, and TLS where it is wanted.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use bytes::BytesMut;
use metako_core::config::SslMode;
use postgres_protocol::message::frontend;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, TlsStream};

use super::error::{ConnectError, ConnectErrorKind};
use crate::env::Env;
use crate::stream::MaybeTls;

/// Connects to a server and agrees with it on TLS; does not log in. For drivers that log in by themselves, such as
/// tokio-postgres' `connect_raw`.
///
/// `disable` never asks for TLS; `prefer` takes what the server offers; `require` refuses a server without TLS. As with
/// libpq, neither of them checks who the server is: any certificate is accepted. Unlike libpq, `prefer` does not try
/// again in clear when a handshake breaks.
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
    sslmode: SslMode,
) -> Result<MaybeTls<E::Stream>, ConnectError> {
    open_kind(env, host, port, sslmode)
        .await
        .map_err(|kind| ConnectError { node: format!("{host}:{port}").into(), kind })
}

pub(super) async fn open_kind<E: Env>(
    env: &E,
    host: &str,
    port: u16,
    sslmode: SslMode,
) -> Result<MaybeTls<E::Stream>, ConnectErrorKind> {
    let mut stream = env.connect(host, port).await.map_err(|error| ConnectErrorKind::connecting(&error))?;
    if sslmode == SslMode::Disable {
        return Ok(MaybeTls::Plain(stream));
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(|error| ConnectErrorKind::talking(&error))?;
    // One byte and no more: whatever follows it in clear must reach the TLS handshake, where it is an error, and never
    // be taken for something that was said inside TLS.
    let mut answer = [0];
    stream.read_exact(&mut answer).await.map_err(|error| ConnectErrorKind::talking(&error))?;
    match (answer[0], sslmode) {
        (b'S', _) => {}
        (b'N', SslMode::Require) => {
            let problem = "the server offers none, but sslmode is `require`: set ssl = on there, or sslmode to `prefer`";
            return Err(ConnectErrorKind::Tls(problem.to_owned()));
        }
        (b'N', _) => return Ok(MaybeTls::Plain(stream)),
        // A server that is out of resources answers with an ErrorResponse. It is not shown: anybody between here and
        // there could have written it.
        (b'E', _) => {
            return Err(ConnectErrorKind::Closed("it answered the request for TLS with an error".to_owned()));
        }
        (byte, _) => {
            let problem = format!("expected S or N to the request for TLS, got byte 0x{byte:02x}");
            return Err(ConnectErrorKind::Protocol(problem));
        }
    }
    let connector = TlsConnector::from(Arc::clone(&CLIENT_CONFIG));
    // What is no DNS name goes without server name indication, as an address does.
    let name = ServerName::try_from(host.to_owned())
        .unwrap_or(ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()));
    let tls = connector
        .connect(name, stream)
        .await
        .map_err(|error| ConnectErrorKind::Tls(format!("handshake failed: {error}")))?;
    Ok(MaybeTls::Tls(Box::new(TlsStream::Client(tls))))
}

static CLIENT_CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        Arc::new(AnyServer { schemes: provider.signature_verification_algorithms.supported_schemes() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs has the cipher suites of TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    // PostgreSQL resumes no sessions.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
});

/// Accepts every server, as libpq does for `sslmode=prefer` and `require`: TLS without a known certificate keeps
/// listeners out, not impostors. The handshake's signature proves nothing either then, and checking it would shut out
/// the X.509 version 1 certificates that older instructions produce, so it is not checked.
#[derive(Debug)]
struct AnyServer {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
