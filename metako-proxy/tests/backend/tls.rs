//! TLS towards servers: who is trusted, who is let in, and by which way.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use metako_core::config::{ChannelBinding, NodeTls, RootCert, SslMode, SslNegotiation, TlsFiles};
use metako_proxy::control::{PgServers, Servers};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::*;
use metako_proxy::backend::ServerTlsTable;

/// Let in to one database without TLS, by which `start` asks whether the server is there.
const HBA: &str = "\
host postgres postgres 127.0.0.1/32 scram-sha-256
hostssl all postgres 127.0.0.1/32 scram-sha-256
hostssl all certified 127.0.0.1/32 cert
hostssl all trusted 127.0.0.1/32 trust
hostnossl all limited_not 127.0.0.1/32 trust
hostssl all scram 127.0.0.1/32 scram-sha-256
host all clear 127.0.0.1/32 password
host all md5 127.0.0.1/32 md5
";

const MORE_USERS: &str = "CREATE ROLE certified LOGIN; CREATE ROLE limited_not LOGIN";

/// An authority, and what it has signed.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key for these hosts, or of this user.
    fn sign(&self, hosts: &[&str], user: &str) -> (String, String) {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, user);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        // metako takes no key that others can read.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
}

async fn start(certificate: &str, key: &str, authority: &str) -> Server {
    let files = [("server.crt", certificate), ("server.key", key), ("root.crt", authority)];
    let server = Server::start(HBA, &[("ssl", "on"), ("ssl_ca_file", "root.crt")], &files).await;
    run(&mut log_in(&server.admin()).await.unwrap(), MORE_USERS).await;
    server
}

fn with(settings: &NodeTls) -> ServerTls {
    ServerTls::load(settings).unwrap()
}

fn rooted(sslmode: SslMode, root: &Path) -> NodeTls {
    NodeTls { sslrootcert: Some(RootCert::File(root.to_owned())), ..NodeTls::new(sslmode) }
}

async fn uses_tls(target: &Target) -> bool {
    let mut connection = log_in(target).await.unwrap();
    let ssl = value(&mut connection, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await == "t";
    assert_eq!(connection.stream.is_tls(), ssl);
    ssl
}

fn is_tls_error(error: &ConnectError, about: &str) {
    assert!(matches!(error.kind, ConnectErrorKind::Tls(_)), "{error}");
    assert!(error.to_string().contains(about), "{error}");
    // That a server has another certificate than it should says nothing of its health.
    assert_eq!(error.server_loss(), None);
}

#[tokio::test]
async fn tls_is_used_and_servers_are_trusted_by_sslmode() {
    let (ours, theirs, files) = (Authority::new("ours"), Authority::new("theirs"), Files::new());
    let (certificate, key) = ours.sign(&["localhost", "127.0.0.1"], "server");
    let server = start(&certificate, &key, &ours.pem).await;
    let root = files.write("ours.pem", &ours.pem);
    let wrong = files.write("theirs.pem", &theirs.pem);
    let both = files.write("both.pem", &format!("{}{}", theirs.pem, ours.pem));
    let admin = Target { database: "template1".to_owned(), ..server.admin() };
    let to = |host: &str, tls: ServerTls| Target { host: host.to_owned(), tls, ..admin.clone() };

    for sslmode in [SslMode::Allow, SslMode::Prefer, SslMode::Require] {
        assert!(uses_tls(&to("127.0.0.1", ServerTls::without_files(sslmode))).await, "{sslmode:?}");
    }
    let disabled = refused(&to("127.0.0.1", ServerTls::without_files(SslMode::Disable))).await;
    assert_eq!(sqlstate(&disabled), "28000");

    let checked = [SslMode::Allow, SslMode::Prefer, SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull];
    for (sslmode, host) in checked.into_iter().flat_map(|mode| [(mode, "127.0.0.1"), (mode, "localhost")]) {
        assert!(uses_tls(&to(host, with(&rooted(sslmode, &root)))).await);
        assert!(uses_tls(&to(host, with(&rooted(sslmode, &both)))).await);
        // As with libpq, a root certificate that is given is used in each mode.
        let error = refused(&to(host, with(&rooted(sslmode, &wrong)))).await;
        is_tls_error(&error, "UnknownIssuer");
    }
    for sslmode in [SslMode::VerifyCa, SslMode::VerifyFull] {
        is_tls_error(&refused(&to("localhost", ServerTls::without_files(sslmode))).await, "UnknownIssuer");
    }
    let strict = Target { tls: with(&rooted(SslMode::VerifyFull, &root)), ..admin.clone() };
    cancel_sleep(&strict).await;
}

#[tokio::test]
async fn a_certificate_for_another_host_passes_all_but_verify_full() {
    let (ours, files) = (Authority::new("ours"), Files::new());
    let (certificate, key) = ours.sign(&["elsewhere.invalid", "127.0.0.2"], "127.0.0.1");
    let server = start(&certificate, &key, &ours.pem).await;
    let root = files.write("ours.pem", &ours.pem);
    for host in ["127.0.0.1", "localhost"] {
        let to = |sslmode| Target {
            host: host.to_owned(),
            tls: with(&rooted(sslmode, &root)),
            ..server.target("trusted", None)
        };
        assert!(uses_tls(&to(SslMode::VerifyCa)).await);
        is_tls_error(&refused(&to(SslMode::VerifyFull)).await, "not valid for");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_authority() {
    let files = Files::new();
    // As `openssl req -x509` makes it: an authority's.
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    let server = start(&certificate, &key.serialize_pem(), &certificate).await;
    let root = files.write("server.pem", &certificate);
    let to = |host: &str, sslmode| Target {
        host: host.to_owned(),
        tls: with(&rooted(sslmode, &root)),
        ..server.target("trusted", None)
    };
    assert!(uses_tls(&to("localhost", SslMode::VerifyFull)).await);
    is_tls_error(&refused(&to("127.0.0.1", SslMode::VerifyFull)).await, "not valid for");
    let another = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    let other = rooted(SslMode::VerifyCa, &files.write("other.pem", &another));
    let impostor = Target { tls: with(&other), ..server.target("trusted", None) };
    assert!(matches!(refused(&impostor).await.kind, ConnectErrorKind::Tls(_)));
}

#[tokio::test]
async fn the_way_that_pg_hba_conf_leaves_is_found() {
    let ours = Authority::new("ours");
    let (certificate, key) = ours.sign(&["localhost"], "server");
    let server = start(&certificate, &key, &ours.pem).await;
    let to = |user: &str, sslmode| Target {
        tls: ServerTls::without_files(sslmode),
        ..server.target(user, Some("password"))
    };
    for (user, sslmode, tls) in [
        ("trusted", SslMode::Allow, true),
        ("trusted", SslMode::Prefer, true),
        ("limited_not", SslMode::Allow, false),
        ("limited_not", SslMode::Prefer, false),
        ("limited_not", SslMode::Disable, false),
        ("clear", SslMode::Allow, false),
        ("clear", SslMode::Prefer, true),
    ] {
        assert_eq!(uses_tls(&to(user, sslmode)).await, tls, "{user} {sslmode:?}");
    }
    for (user, sslmode) in [
        ("limited_not", SslMode::Require),
        ("trusted", SslMode::Disable),
        ("stranger", SslMode::Allow),
        ("stranger", SslMode::Prefer),
    ] {
        assert_eq!(sqlstate(&refused(&to(user, sslmode)).await), "28000", "{user} {sslmode:?}");
    }
    // Where the server has no TLS, what it said without is told.
    let plain = Server::simple().await;
    let to = |sslmode| Target { tls: ServerTls::without_files(sslmode), ..plain.target("stranger", None) };
    for sslmode in [SslMode::Allow, SslMode::Prefer, SslMode::Disable] {
        assert_eq!(sqlstate(&refused(&to(sslmode)).await), "28000", "{sslmode:?}");
    }
}

#[tokio::test]
async fn tls_begins_without_asking_where_the_server_can() {
    let (ours, files) = (Authority::new("ours"), Files::new());
    let (certificate, key) = ours.sign(&["localhost"], "server");
    let server = start(&certificate, &key, &ours.pem).await;
    let mut admin = log_in(&server.admin()).await.unwrap();
    let version: u32 = value(&mut admin, "SHOW server_version_num").await.parse().unwrap();
    let root = files.write("ours.pem", &ours.pem);
    let direct = NodeTls { sslnegotiation: SslNegotiation::Direct, ..rooted(SslMode::VerifyFull, &root) };
    let target =
        Target { host: "localhost".to_owned(), tls: with(&direct), ..server.target("trusted", None) };
    if version >= 170_000 {
        assert!(uses_tls(&target).await);
        cancel_sleep(&target).await;
    } else {
        is_tls_error(&refused(&target).await, "PostgreSQL 17 or newer");
    }
}

#[tokio::test]
async fn metako_shows_its_certificate() {
    let (ours, theirs, files) = (Authority::new("ours"), Authority::new("theirs"), Files::new());
    let (certificate, key) = ours.sign(&["localhost"], "server");
    let server = start(&certificate, &key, &ours.pem).await;
    let client = |authority: &Authority, name: &str, user: &str| {
        let (cert, key) = authority.sign(&[], user);
        TlsFiles {
            cert: files.write(&format!("{name}.crt"), &cert),
            key: files.write(&format!("{name}.key"), &key),
        }
    };
    let by = |files: Option<TlsFiles>| {
        let tls = NodeTls { client: files, ..NodeTls::new(SslMode::Require) };
        Target { tls: with(&tls), ..server.target("certified", None) }
    };
    let certified = by(Some(client(&ours, "certified", "certified")));
    assert!(uses_tls(&certified).await);
    cancel_sleep(&certified).await;
    // The certificate of another user, none at all, and one of an authority that the server does not know.
    let other = refused(&by(Some(client(&ours, "other", "other")))).await;
    assert_eq!(sqlstate(&other), "28000");
    assert_eq!(sqlstate(&refused(&by(None)).await), "28000");
    let unknown = refused(&by(Some(client(&theirs, "unknown", "certified")))).await;
    is_tls_error(&unknown, "alert");
}

#[tokio::test]
async fn scram_is_bound_to_the_connection() {
    let ours = Authority::new("ours");
    let (certificate, key) = ours.sign(&["localhost"], "server");
    let server = start(&certificate, &key, &ours.pem).await;
    let bound = |channel_binding| with(&NodeTls { channel_binding, ..NodeTls::new(SslMode::Require) });
    let required = |user, password: &str| Target {
        tls: bound(ChannelBinding::Require),
        ..server.target(user, Some(password))
    };
    let scram = required("scram", "p\u{e4}ssword");
    for channel_binding in [ChannelBinding::Require, ChannelBinding::Prefer, ChannelBinding::Disable] {
        assert!(uses_tls(&Target { tls: bound(channel_binding), ..scram.clone() }).await);
    }
    let keys = scram_keys(&server.secret_of("scram").await, "p\u{e4}ssword");
    assert!(uses_tls(&Target { credential: keys, ..scram.clone() }).await);
    assert_eq!(sqlstate(&refused(&required("scram", "wrong")).await), "28P01");
    // These let in without it, which is not what was wanted.
    for user in ["md5", "clear", "trusted"] {
        let unbound = refused(&required(user, "password")).await;
        assert!(matches!(unbound.kind, ConnectErrorKind::Authentication(_)), "{unbound}");
        assert!(unbound.to_string().contains("channel_binding is `require`"), "{unbound}");
    }
}

#[tokio::test]
async fn control_connections_use_the_same_tls() {
    let (ours, files) = (Authority::new("ours"), Files::new());
    let (certificate, key) = ours.sign(&["localhost"], "server");
    let server = start(&certificate, &key, &ours.pem).await;
    let root = files.write("ours.pem", &ours.pem);
    let settings = NodeTls { channel_binding: ChannelBinding::Require, ..rooted(SslMode::VerifyFull, &root) };
    let yaml = format!(
        "nodes: [{{ name: pg-1, host: localhost, port: {}, username: postgres, password: '{}', database: template1, \
         sslmode: verify-full, channel_binding: require, sslrootcert: '{}' }}]",
        server.node().port(),
        server.cluster.superuser_password(),
        root.display(),
    );
    let loaded =
        metako_proxy::check::load_text("test.yaml", &yaml, &metako_proxy::check::SystemSecrets).unwrap();
    let node = Arc::new(loaded.config.cluster.nodes[0].clone());
    assert_eq!(node.tls, settings);
    let table = ServerTlsTable::default();
    let servers = PgServers::new(TokioEnv::new()).with_tls(table.clone());
    let unread = servers.access(&node).report().await.unwrap_err();
    assert!(unread.to_string().contains("have not been read"), "{unread}");

    table.replace(ServerTlsTable::load(&loaded.config.cluster.nodes).unwrap(), &[]);
    assert!(servers.access(&node).report().await.unwrap().is_primary());
    let elsewhere = Arc::new(metako_core::config::Node { host: "127.0.0.1".to_owned(), ..(*node).clone() });
    let refused = servers.access(&elsewhere).report().await.unwrap_err();
    assert!(refused.to_string().contains("not valid for"), "{refused}");
    // In use until the configuration says so, and forgotten at the one after.
    table.replace(Vec::new(), &loaded.config.cluster.nodes);
    assert!(table.of(&settings).is_ok());
    table.replace(Vec::new(), &[]);
    assert!(table.of(&settings).is_err());
}
