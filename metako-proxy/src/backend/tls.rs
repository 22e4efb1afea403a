//! TLS towards servers: what the configuration wants, with its files read.

use std::fmt;
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use metako_core::config::{ChannelBinding, Node, NodeTls, RootCert, SslMode, SslNegotiation};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::error::ConnectErrorKind;
use crate::tls_files::{Authorities, TlsFileError, load_authorities, load_tls, system_authorities};

/// The protocol that a TLS client names which begins with TLS at once.
pub(super) const ALPN: &[u8] = b"postgresql";

/// TLS towards one node. Cheap to clone.
#[derive(Clone)]
pub struct ServerTls(Arc<Inner>);

struct Inner {
    settings: NodeTls,
    config: Arc<ClientConfig>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerTls").field(&self.0.settings).finish()
    }
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &Self) -> bool {
        self.0.settings == other.0.settings
    }
}

impl Eq for ServerTls {}

/// A way to try a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In clear.
    Plain,
    /// In TLS; with `allow` and `prefer` in clear if the server has none.
    Tls,
}

impl ServerTls {
    /// That mode without any file: no certificate is checked, and none is shown. For `verify-ca` and `verify-full`, which
    /// need a file, no server is good enough.
    pub fn without_files(sslmode: SslMode) -> Self {
        Self::build(&NodeTls::new(sslmode), None, None)
    }

    /// Reads the files that the settings name. Blocks on the file system.
    ///
    /// # Errors
    ///
    /// All faults of the files, at least one.
    pub fn load(settings: &NodeTls) -> Result<Self, Vec<TlsFileError>> {
        let authorities = match &settings.sslrootcert {
            None => None,
            Some(RootCert::System) => Some(system_authorities()),
            Some(RootCert::File(path)) => Some(load_authorities(path)),
        };
        let certified = settings.client.as_ref().map(load_tls);
        let (authorities, certified) = match (authorities.transpose(), certified.transpose()) {
            (Ok(authorities), Ok(certified)) => (authorities, certified),
            (authorities, certified) => {
                return Err(authorities
                    .err()
                    .into_iter()
                    .chain(certified.err().into_iter().flatten())
                    .collect());
            }
        };
        Ok(Self::build(settings, authorities, certified))
    }

    fn build(
        settings: &NodeTls,
        authorities: Option<Authorities>,
        certified: Option<Arc<CertifiedKey>>,
    ) -> Self {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs has the cipher suites of TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(authorities, settings.sslmode)));
        let mut config = match certified {
            Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
            None => builder.with_no_client_auth(),
        };
        // PostgreSQL resumes no sessions.
        config.resumption = rustls::client::Resumption::disabled();
        if settings.sslnegotiation == SslNegotiation::Direct {
            config.alpn_protocols = vec![ALPN.to_vec()];
        }
        Self(Arc::new(Inner { settings: settings.clone(), config: Arc::new(config) }))
    }

    /// The ways to try a server, in order: the next one where the server's pg_hba.conf refuses the one before.
    pub fn ways(&self) -> &'static [Way] {
        match self.sslmode() {
            SslMode::Disable => &[Way::Plain],
            SslMode::Allow => &[Way::Plain, Way::Tls],
            SslMode::Prefer => &[Way::Tls, Way::Plain],
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Way::Tls],
        }
    }

    /// The way for what no rule of pg_hba.conf forbids: cancels.
    pub(super) fn first_way(&self) -> Way {
        self.ways()[0]
    }

    pub(super) fn sslmode(&self) -> SslMode {
        self.0.settings.sslmode
    }

    /// Whether TLS begins without asking.
    pub(super) fn is_direct(&self) -> bool {
        self.0.settings.sslnegotiation == SslNegotiation::Direct
    }

    /// Whether SCRAM is bound to the TLS connection.
    pub fn channel_binding(&self) -> ChannelBinding {
        self.0.settings.channel_binding
    }

    pub(super) fn config(&self) -> &Arc<ClientConfig> {
        &self.0.config
    }
}

/// TLS towards all nodes, as the files were at the last reload.
#[derive(Debug, Clone, Default)]
pub struct ServerTlsTable(Arc<ArcSwap<Vec<ServerTls>>>);

impl ServerTlsTable {
    /// Reads the files of all nodes. Blocks on the file system.
    ///
    /// # Errors
    ///
    /// All faults, each with the number of its node.
    pub fn load(nodes: &[Node]) -> Result<Vec<ServerTls>, Vec<(usize, TlsFileError)>> {
        let (mut loaded, mut faults) = (Vec::new(), Vec::new());
        for (index, node) in nodes.iter().enumerate() {
            match ServerTls::load(&node.tls) {
                Ok(tls) => loaded.push(tls),
                Err(errors) => faults.extend(errors.into_iter().map(|error| (index, error))),
            }
        }
        if faults.is_empty() { Ok(loaded) } else { Err(faults) }
    }

    /// From now on this is what the files say. What the nodes had before is still known until the next time, for those who
    /// have not heard yet that the configuration is another.
    pub fn replace(&self, loaded: Vec<ServerTls>, before: &[Node]) {
        let mut all = loaded;
        for old in self.0.load().iter() {
            let was_in_force = before.iter().any(|node| node.tls == old.0.settings);
            if was_in_force && !all.contains(old) {
                all.push(old.clone());
            }
        }
        self.0.store(Arc::new(all));
    }

    /// TLS with these settings.
    ///
    /// # Errors
    ///
    /// If they name files that were not read.
    pub fn of(&self, settings: &NodeTls) -> Result<ServerTls, ConnectErrorKind> {
        if let Some(known) = self.0.load().iter().find(|known| known.0.settings == *settings) {
            return Ok(known.clone());
        }
        if settings.sslrootcert.is_some() || settings.client.is_some() {
            let problem = "the files that the node's section names have not been read; they are at the start and at a reload";
            return Err(ConnectErrorKind::Tls(problem.to_owned()));
        }
        Ok(ServerTls::build(settings, None, None))
    }
}

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// Judges a server's certificate as libpq does.
///
/// Without authorities every server is accepted: TLS without a known certificate keeps listeners out, not impostors. The
/// handshake's signature proves nothing either then, and checking it would shut out the X.509 version 1 certificates that
/// older instructions produce, so it is not checked.
#[derive(Debug)]
struct Verifier {
    authorities: Option<Authorities>,
    /// The certificate has to be for the host as well.
    full: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(authorities: Option<Authorities>, sslmode: SslMode) -> Self {
        let algorithms = PROVIDER.signature_verification_algorithms;
        // What is to be checked by nothing passes no check.
        let nobody = || Authorities { roots: RootCertStore::empty(), certificates: Vec::new() };
        let authorities = authorities.or_else(|| (sslmode >= SslMode::VerifyCa).then(nobody));
        Self { authorities, full: sslmode == SslMode::VerifyFull, algorithms }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let signed = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &authorities.roots,
            intermediates,
            now,
            self.algorithms.all,
        );
        match signed {
            Ok(()) => {}
            // A server's self-signed certificate says that it is an authority's, if made by PostgreSQL's instructions, and
            // such a one is refused for a server, as `Other`, after its dates were found right. Where it stands among the
            // authorities itself it is what is looked for.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if authorities.certificates.iter().any(|known| known == end_entity) => {}
            Err(error) => return Err(error),
        }
        if self.full {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self.authorities {
            None => Ok(HandshakeSignatureValid::assertion()),
            Some(_) => rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match self.authorities {
            None => Ok(HandshakeSignatureValid::assertion()),
            Some(_) => rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
