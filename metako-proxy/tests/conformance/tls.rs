//! A certificate for both sides, and a client that takes it.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// A folder with `server.crt` and `server.key`.
pub(crate) fn make() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("mtk").tempdir().expect("a temporary folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(folder.path().join("server.crt"), made.cert.pem()).expect("the certificate is written");
    let key = folder.path().join("server.key");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("the key is written");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    folder
}

/// Gives a server copies of them.
pub(crate) fn install(files: &tempfile::TempDir, data_dir: &Path) {
    let owner = std::fs::metadata(data_dir).expect("the data directory");
    for name in ["server.crt", "server.key"] {
        let copy = data_dir.join(name);
        std::fs::copy(files.path().join(name), &copy).expect("a copy");
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).expect("its mode");
        std::os::unix::fs::chown(&copy, Some(owner.uid()), Some(owner.gid())).expect("its owner");
    }
}

/// A client that believes that certificate and offers these application protocols.
pub(crate) fn client(files: &tempfile::TempDir, protocols: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(files)).expect("a certificate");
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs has TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    Arc::new(config)
}

fn certificate(files: &tempfile::TempDir) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(files.path().join("server.crt")).expect("the certificate")
}

/// `tls-server-end-point` of RFC 5929 for it.
pub(crate) fn hash(files: &tempfile::TempDir) -> Vec<u8> {
    digest::digest(&digest::SHA256, &certificate(files)).as_ref().to_vec()
}
