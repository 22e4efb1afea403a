//! Reading certificates and keys, for the check of a configuration and for their use alike: those that clients are shown,
//! those that metako shows to servers, and the authorities that others' certificates are checked by.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use metako_core::config::TlsFiles;
use nix::fcntl::OFlag;
use rustls::RootCertStore;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// The longest file that is read, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Which file is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFile {
    /// The certificate chain.
    Certificate,
    /// The private key.
    Key,
    /// The certificates of authorities.
    Authorities,
}

impl TlsFile {
    /// The key of the configuration that names the file, where it is about TLS with clients.
    pub const fn config_key(self) -> &'static str {
        match self {
            Self::Certificate => "security.cert_file",
            Self::Key => "security.key_file",
            Self::Authorities => "security.client_ca_file",
        }
    }

    /// The key in a node's section that names the file, where it is about TLS with that node.
    pub const fn node_key(self) -> &'static str {
        match self {
            Self::Certificate => "sslcert",
            Self::Key => "sslkey",
            Self::Authorities => "sslrootcert",
        }
    }
}

/// Why certificate and key cannot be used. The text names the file but not its content.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// The file is missing or unreadable.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// Which file.
        file: TlsFile,
        /// Where it was looked for.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The private key's file can be read, or was made, by others.
    #[error("private key file {} {problem}", path.display())]
    Exposed {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it, and how it should be.
        problem: &'static str,
    },
    /// The file is no PEM, or broken.
    #[error("{} is not valid PEM: {problem}", path.display())]
    Pem {
        /// Which file.
        file: TlsFile,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file is PEM, but not of the right thing.
    #[error("{} holds no {}", path.display(), match file {
        TlsFile::Certificate | TlsFile::Authorities => "certificate: expected PEM sections `BEGIN CERTIFICATE`",
        TlsFile::Key => "private key: expected a PEM section `BEGIN PRIVATE KEY` (also RSA or EC), not encrypted",
    })]
    Nothing {
        /// Which file.
        file: TlsFile,
        /// Where it is.
        path: PathBuf,
    },
    /// A certificate cannot be parsed or used.
    #[error("the certificate in {} cannot be used: {problem}", path.display())]
    BadCertificate {
        /// Which file.
        file: TlsFile,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The key is of a kind that TLS cannot use.
    #[error("the key in {} cannot be used: {problem}", path.display())]
    BadKey {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The authorities that the system trusts cannot be found.
    #[error("the system's trusted certificates cannot be read: {0}; install ca-certificates, or name a file")]
    NoSystem(String),
    /// The key belongs to another certificate.
    #[error("the key in {} does not fit the certificate in {}", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

impl TlsFileError {
    /// Which file is at fault; the key's where key and certificate do not fit.
    pub fn file(&self) -> TlsFile {
        match self {
            Self::Read { file, .. }
            | Self::Pem { file, .. }
            | Self::Nothing { file, .. }
            | Self::BadCertificate { file, .. } => *file,
            Self::NoSystem(_) => TlsFile::Authorities,
            Self::Exposed { .. } | Self::BadKey { .. } | Self::Mismatch { .. } => TlsFile::Key,
        }
    }
}

/// Reads both files and makes sure that they fit each other. Blocks on the file system.
///
/// All faults of the two files are returned, at least one and in the order certificate, key.
pub fn load_tls(files: &TlsFiles) -> Result<Arc<CertifiedKey>, Vec<TlsFileError>> {
    let chain = certificates(TlsFile::Certificate, &files.cert);
    let (chain, key) = match (chain, private_key(&files.key)) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => return Err(chain.err().into_iter().chain(key.err()).collect()),
    };
    certified(files, chain, key).map(Arc::new).map_err(|error| vec![error])
}

/// Certificates of authorities, which others' certificates are checked by.
#[derive(Debug)]
pub struct Authorities {
    /// What chains may end in.
    pub roots: RootCertStore,
    /// The certificates themselves.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// Reads a file of authorities. Blocks on the file system.
pub fn load_authorities(path: &Path) -> Result<Authorities, TlsFileError> {
    let certificates = certificates(TlsFile::Authorities, path)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| TlsFileError::BadCertificate {
            file: TlsFile::Authorities,
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
    }
    Ok(Authorities { roots, certificates })
}

/// The authorities that the system trusts; SSL_CERT_FILE and SSL_CERT_DIR name others, as with OpenSSL. Blocks on the file
/// system.
pub fn system_authorities() -> Result<Authorities, TlsFileError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some stores hold certificates that cannot be used; others than those are meant.
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(TlsFileError::NoSystem(why));
    }
    Ok(Authorities { roots, certificates: Vec::new() })
}

fn certificates(file: TlsFile, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let text = read(file, path, open(file, path)?)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| pem_error(file, path, error))?;
    if chain.is_empty() {
        return Err(TlsFileError::Nothing { file, path: path.to_owned() });
    }
    Ok(chain)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let file = open(TlsFile::Key, path)?;
    let opened = file.metadata().map_err(|source| unreadable(TlsFile::Key, path, source))?;
    if let Some(problem) = exposed(&Access::of(&opened), nix::unistd::geteuid().as_raw()) {
        return Err(TlsFileError::Exposed { path: path.to_owned(), problem });
    }
    let text = read(TlsFile::Key, path, file)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| pem_error(TlsFile::Key, path, error))
}

/// Who may do what with a file.
struct Access {
    regular: bool,
    owner: u32,
    mode: u32,
}

impl Access {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self { regular: metadata.is_file(), owner: metadata.uid(), mode: metadata.mode() }
    }
}

/// What PostgreSQL would say of a private key in such a file to a server of that user.
fn exposed(access: &Access, user: u32) -> Option<&'static str> {
    let Access { regular, owner, mode } = *access;
    if !regular {
        return Some("is not a regular file");
    }
    if owner != user && owner != 0 {
        return Some("must be owned by the user that metako runs as, or by root");
    }
    let others = if owner == user { 0o077 } else { 0o037 };
    (mode & others != 0).then_some(
        "has group or world access: it must have permissions u=rw (0600) or less if the user that metako runs as owns it, \
         or u=rw,g=r (0640) or less if root owns it",
    )
}

fn open(file: TlsFile, path: &Path) -> Result<File, TlsFileError> {
    // A pipe by that name would be waited for without end.
    let opened = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
    opened.map_err(|source| unreadable(file, path, source))
}

fn unreadable(file: TlsFile, path: &Path, source: io::Error) -> TlsFileError {
    TlsFileError::Read { file, path: path.to_owned(), source }
}

fn read(file: TlsFile, path: &Path, opened: File) -> Result<Vec<u8>, TlsFileError> {
    let mut bytes = Vec::new();
    let read = opened.take(FILE_MAX + 1).read_to_end(&mut bytes);
    let read = read.and_then(|read| {
        if read as u64 > FILE_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it is longer than {FILE_MAX} bytes"),
            ));
        }
        Ok(bytes)
    });
    read.map_err(|source| unreadable(file, path, source))
}

fn pem_error(file: TlsFile, path: &Path, error: PemError) -> TlsFileError {
    let path = path.to_owned();
    match error {
        PemError::NoItemsFound => TlsFileError::Nothing { file, path },
        PemError::Io(source) => TlsFileError::Read { file, path, source },
        // Lines of a key file are never shown.
        PemError::MissingSectionEnd { .. } => {
            TlsFileError::Pem { file, path, problem: "a section has no END line".to_owned() }
        }
        PemError::IllegalSectionStart { .. } => {
            TlsFileError::Pem { file, path, problem: "a BEGIN line is malformed".to_owned() }
        }
        PemError::Base64Decode(_) => TlsFileError::Pem { file, path, problem: "not base64".to_owned() },
        other => TlsFileError::Pem { file, path, problem: other.to_string() },
    }
}

fn certified(
    files: &TlsFiles,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, TlsFileError> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| TlsFileError::BadKey { path: files.key.clone(), problem: error.to_string() })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err(TlsFileError::Mismatch { cert: files.cert.clone(), key: files.key.clone() })
        }
        Err(error) => Err(TlsFileError::BadCertificate {
            file: TlsFile::Certificate,
            path: files.cert.clone(),
            problem: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files {
        dir: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().unwrap() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            std::fs::write(self.path(name), text).unwrap();
            allow(&self.path(name), 0o600);
            self.path(name)
        }
    }

    fn allow(path: &Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn keys_that_others_can_read_are_refused_as_postgresql_refuses_them() {
        let (metako, root, another) = (1000, 0, 1001);
        let fits = |owner, mode: u32, user| {
            exposed(&Access { regular: true, owner, mode: 0o100_000 | mode }, user).is_none()
        };
        assert!(fits(metako, 0o600, metako) && fits(metako, 0o400, metako) && fits(root, 0o600, root));
        assert!(!fits(metako, 0o640, metako) && !fits(metako, 0o604, metako) && !fits(root, 0o640, root));
        assert!(fits(root, 0o640, metako) && !fits(root, 0o660, metako) && !fits(root, 0o644, metako));
        assert!(!fits(another, 0o600, metako) && !fits(metako, 0o600, root));
        assert!(exposed(&Access { regular: false, owner: metako, mode: 0o600 }, metako).is_some());

        let files = Files::new();
        let (cert, key) = pair();
        let files_named = TlsFiles { cert: files.write("cert", &cert), key: files.write("key", &key) };
        load_tls(&files_named).unwrap();
        allow(&files_named.key, 0o644);
        let errors = load_tls(&files_named).unwrap_err();
        assert!(matches!(errors[..], [TlsFileError::Exposed { .. }]), "{errors:?}");
        assert!(errors[0].to_string().contains("key has group or world access: it must"), "{}", errors[0]);
        allow(&files_named.key, 0o600);
        allow(&files_named.cert, 0o644);
        load_tls(&files_named).unwrap();
    }

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    fn faults(cert: PathBuf, key: PathBuf) -> Vec<(TlsFile, String)> {
        let errors = load_tls(&TlsFiles { cert, key }).unwrap_err();
        errors.into_iter().map(|error| (error.file(), error.to_string())).collect()
    }

    #[test]
    fn a_pair_that_fits_loads() {
        let files = Files::new();
        let (cert, key) = pair();
        let tls = TlsFiles { cert: files.write("cert", &cert), key: files.write("key", &key) };
        assert_eq!(load_tls(&tls).unwrap().cert.len(), 1);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let files = Files::new();
        let (cert, key) = (files.write("cert", &pair().0), files.write("key", &pair().1));
        let faults = faults(cert, key);
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].0, TlsFile::Key);
        assert!(faults[0].1.contains("does not fit"), "{faults:?}");
    }

    #[test]
    fn both_files_missing_are_two_faults() {
        let files = Files::new();
        let faults = faults(files.path("cert"), files.path("key"));
        assert_eq!([faults[0].0, faults[1].0], [TlsFile::Certificate, TlsFile::Key]);
        assert!(faults.iter().all(|(_, text)| text.contains("cannot be read")), "{faults:?}");
    }

    #[test]
    fn files_swapped_say_what_they_lack() {
        let files = Files::new();
        let (cert, key) = pair();
        let faults = faults(files.write("a", &key), files.write("b", &cert));
        assert!(faults[0].1.contains("holds no certificate"), "{faults:?}");
        assert!(faults[1].1.contains("holds no private key"), "{faults:?}");
    }

    #[test]
    fn a_broken_key_is_not_shown() {
        let files = Files::new();
        let cert = files.write("cert", &pair().0);
        let key = files.write("key", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0!!\n-----END PRIVATE KEY-----\n");
        let faults = faults(cert, key);
        assert!(faults[0].1.contains("not valid PEM"), "{faults:?}");
        assert!(!faults[0].1.contains("c2VjcmV0"), "{faults:?}");
    }

    #[test]
    fn a_file_without_end_is_refused() {
        let faults = faults(PathBuf::from("/dev/zero"), PathBuf::from("/dev/zero"));
        let said: Vec<_> = faults.iter().map(|(_, text)| text.as_str()).collect();
        assert!(said[0].contains("longer than") && said[1].contains("is not a regular file"), "{said:?}");
    }

    #[test]
    fn authorities_are_all_read_and_faults_are_named() {
        let files = Files::new();
        let two = files.write("two", &format!("{}{}", pair().0, pair().0));
        let authorities = load_authorities(&two).unwrap();
        assert_eq!((authorities.roots.len(), authorities.certificates.len()), (2, 2));
        let key = files.write("key", &pair().1);
        let bad = files.write("bad", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        for (path, problem) in [
            (files.path("missing"), "cannot be read"),
            (key, "holds no certificate"),
            (bad, "cannot be used"),
        ] {
            let error = load_authorities(&path).unwrap_err();
            assert_eq!(error.file().node_key(), "sslrootcert");
            assert!(error.to_string().contains(problem), "{error}");
        }
    }

    #[test]
    fn a_certificate_that_is_none_is_named() {
        let files = Files::new();
        let cert = files.write("cert", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let key = files.write("key", &pair().1);
        let faults = faults(cert, key);
        assert_eq!(faults[0].0, TlsFile::Certificate, "{faults:?}");
    }
}
