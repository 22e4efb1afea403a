//! TLS towards clients.

use std::path::Path;
use std::sync::Arc;

use metako_core::config::TlsFiles;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;

use super::client_certificate::Judge;
use crate::backend::tls_server_end_point;
use crate::tls_files::{Authorities, TlsFile, TlsFileError, load_authorities, load_tls};

/// What a client that begins TLS at once has to name as its protocol.
pub(super) const ALPN: &[u8] = b"postgresql";

/// TLS 1.2 and 1.3 for clients. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerTls {
    pub(super) config: Arc<ServerConfig>,
    /// What SCRAM binds log-ins to; `None` where the certificate's signature defines nothing.
    pub(super) end_point: Option<Arc<[u8]>>,
}

impl ServerTls {
    /// Reads certificate and key, and the authorities whose certificates clients may show. Blocks on the file system.
    ///
    /// # Errors
    ///
    /// All that is wrong with the files.
    pub fn load(files: &TlsFiles, client_ca: Option<&Path>) -> Result<Self, Vec<TlsFileError>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = match client_ca {
            None => Ok(WebPkiClientVerifier::no_client_auth()),
            Some(path) => load_authorities(path).and_then(|authorities| judge(path, &authorities, &provider)),
        };
        let (certified, verifier) = match (load_tls(files), verifier) {
            (Ok(certified), Ok(verifier)) => (Arc::unwrap_or_clone(certified), verifier),
            (certified, verifier) => {
                return Err(certified.err().into_iter().flatten().chain(verifier.err()).collect());
            }
        };
        let end_point = certified.cert.first().and_then(|own| tls_server_end_point(own));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs has the cipher suites of TLS 1.2 and 1.3")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // As with PostgreSQL each log-in is a handshake of its own, in which certificates are looked at.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), end_point: end_point.map(Arc::from) })
    }
}

/// Who judges the certificates that clients show by these authorities.
fn judge(
    path: &Path,
    authorities: &Authorities,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsFileError> {
    // Whether a certificate has to be shown is for the rules to say.
    let webpki = WebPkiClientVerifier::builder_with_provider(
        Arc::new(authorities.roots.clone()),
        Arc::clone(provider),
    )
    .allow_unauthenticated()
    .build()
    .map_err(|error| TlsFileError::BadCertificate {
        file: TlsFile::Authorities,
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    Ok(Arc::new(Judge::new(webpki, authorities, provider.signature_verification_algorithms)))
}
