//! TLS towards clients, for tests of the steps before it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Writes a certificate and gives the section of the configuration that names it.
pub(crate) fn tls(folder: &Path) -> String {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.join("server.pem"), folder.join("server.key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    format!("security: {{ tls_enabled: true, cert_file: {}, key_file: {} }}", cert.display(), key.display())
}
