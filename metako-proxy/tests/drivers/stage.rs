//! What the checks run against.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use metako_proxy::playground::{Builder, Cluster};

use crate::running::{self, Metako};

/// In what way clients reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Past metako.
    Direct,
    /// `pool.mode: session`
    Session,
    /// `pool.mode: transaction`, all on the primary.
    Transaction,
    /// `pool.mode: transaction`, with reads on replicas.
    Split,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Session => "session",
            Self::Transaction => "transaction",
            Self::Split => "split",
        })
    }
}

/// How one check went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) check: String,
    pub(crate) failure: Option<String>,
}

/// A cluster, metako in front of it unless the mode is direct, and certificates.
pub(crate) struct Stage {
    pub(crate) mode: Mode,
    pub(crate) port: u16,
    pub(crate) direct_port: u16,
    pub(crate) cluster: Cluster,
    /// The authority that metako's certificate is of; nothing without TLS.
    pub(crate) authority: Option<PathBuf>,
    /// Another authority.
    pub(crate) other_authority: Option<PathBuf>,
    _metako: Option<Metako>,
    _folder: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn start(mode: Mode) -> Self {
        let builder = Builder::new().setting("max_prepared_transactions", "20");
        let builder = if mode == Mode::Split {
            // A read on a replica sees what was committed before it.
            builder.replicas(2).synchronous(2).setting("synchronous_commit", "remote_apply")
        } else {
            builder.replicas(0)
        };
        let cluster = builder.start_blocking().unwrap();
        let direct_port = cluster.node("node-1").port();
        let folder = tempfile::Builder::new().prefix("mtk-drivers").tempdir().unwrap();
        if mode == Mode::Direct {
            return Self {
                mode,
                port: direct_port,
                direct_port,
                cluster,
                authority: None,
                other_authority: None,
                _metako: None,
                _folder: folder,
            };
        }
        let authority = certificates(folder.path());
        let metako = Metako::start(&running::configuration(&cluster, &settings(mode, folder.path())));
        metako.wait_until_open(if mode == Mode::Split { 2 } else { 0 });
        Self {
            mode,
            port: metako.port,
            direct_port,
            cluster,
            authority: Some(authority),
            other_authority: Some(folder.path().join("other.pem")),
            _metako: Some(metako),
            _folder: folder,
        }
    }

    /// What scripts are told, without the `METAKO_TEST_` of each name.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let ports: Vec<String> = self.cluster.nodes().iter().map(|node| node.port().to_string()).collect();
        let path =
            |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        vec![
            ("MODE", self.mode.to_string()),
            ("PORT", self.port.to_string()),
            ("DIRECT_PORTS", ports.join(",")),
            ("USER", Cluster::SUPERUSER.to_owned()),
            ("PASSWORD", self.cluster.superuser_password().to_owned()),
            ("DATABASE", Cluster::DATABASE.to_owned()),
            ("CA", path(&self.authority)),
            ("OTHER_CA", path(&self.other_authority)),
        ]
    }
}

fn settings(mode: Mode, folder: &Path) -> String {
    let pool = if mode == Mode::Session { "session" } else { "transaction" };
    let split = if mode == Mode::Split { "auto" } else { "off" };
    format!(
        "pool: {{ mode: {pool}, size: 40 }}\nlimits: {{ login_timeout: 1m }}\nload_balancer: {{ split: {split} }}\n\
         security: {{ tls_enabled: true, cert_file: {0}/server.pem, key_file: {0}/server.key }}",
        folder.display()
    )
}

/// Makes an authority with a certificate for metako, and another authority; answers with the path of the first.
fn certificates(folder: &Path) -> PathBuf {
    let authority = |name: &str| {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.key_usages =
            vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::DigitalSignature];
        parameters.distinguished_name.push(rcgen::DnType::CommonName, format!("{name} authority"));
        let key = rcgen::KeyPair::generate().unwrap();
        let path = folder.join(format!("{name}.pem"));
        std::fs::write(&path, parameters.self_signed(&key).unwrap().pem()).unwrap();
        (rcgen::Issuer::new(parameters, key), path)
    };
    let (issuer, path) = authority("authority");
    authority("other");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut parameters = rcgen::CertificateParams::new(names).unwrap();
    parameters.use_authority_key_identifier_extension = true;
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.signed_by(&key, &issuer).unwrap();
    std::fs::write(folder.join("server.pem"), certificate.pem()).unwrap();
    let key_file = folder.join("server.key");
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Runs checks that panic where they fail.
pub(crate) fn outcomes<C: Copy>(checks: &[(&str, C)], run: impl Fn(C)) -> Vec<Outcome> {
    let outcome = |(name, check): &(&str, C)| {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(*check)));
        let failure = ran.err().map(|panic| match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => (*panic.downcast_ref::<&str>().unwrap_or(&"a panic")).to_string(),
        });
        Outcome { check: (*name).to_owned(), failure }
    };
    checks.iter().map(outcome).collect()
}
