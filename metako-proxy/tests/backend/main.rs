//! metako logs in to real PostgreSQL servers.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod tls;

use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::time::Duration;

use aws_lc_rs::{hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use metako_core::cluster::ServerLoss;
use metako_core::config::{Secret, SslMode};
use metako_core::plugin::ProbeFailure;
use metako_core::wire::read;
use metako_proxy::backend::{Backend, ConnectError, ConnectErrorKind, ServerTls, Target, cancel, connect};
use metako_proxy::credential::ServerCredential;
use metako_proxy::env::{Socket, TokioEnv};
use metako_proxy::playground::{Builder, Cluster, Node, StopMode};
use metako_proxy::stream::MaybeTls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

const HBA: &str = "\
host all postgres 127.0.0.1/32 scram-sha-256
host all scram 127.0.0.1/32 scram-sha-256
host all md5 127.0.0.1/32 md5
host all clear 127.0.0.1/32 password
host all trusted 127.0.0.1/32 trust
host all limited 127.0.0.1/32 trust
";

const USERS: &str = "\
SET password_encryption = 'scram-sha-256';
CREATE ROLE scram LOGIN PASSWORD 'p\u{e4}ssword';
CREATE ROLE clear LOGIN PASSWORD 'password';
CREATE ROLE trusted LOGIN;
CREATE ROLE limited LOGIN CONNECTION LIMIT 0;
SET password_encryption = 'md5';
CREATE ROLE md5 LOGIN PASSWORD 'password';
";

/// One server, with these users, this `pg_hba.conf` and these further files in its data folder.
struct Server {
    cluster: Cluster,
}

impl Server {
    async fn start(hba: &str, settings: &[(&str, &str)], files: &[(&str, &str)]) -> Self {
        let cluster = Cluster::start(Builder::new().replicas(0).setting("fsync", "off")).await.unwrap();
        let server = Self { cluster };
        run(&mut log_in(&server.admin()).await.unwrap(), USERS).await;
        let mut admin = log_in(&server.admin()).await.unwrap();
        for (name, value) in settings {
            run(&mut admin, &format!("ALTER SYSTEM SET {name} = '{value}'")).await;
        }
        drop(admin);
        let (node, owner) = (server.node(), std::fs::metadata(server.node().data_dir()).unwrap());
        for (name, text) in [("pg_hba.conf", hba)].iter().chain(files) {
            let path = node.data_dir().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        node.stop(StopMode::Fast).unwrap();
        node.start().unwrap();
        server
    }

    async fn simple() -> Self {
        Self::start(HBA, &[("ssl", "off")], &[]).await
    }

    fn node(&self) -> &Node {
        &self.cluster.nodes()[0]
    }

    fn target(&self, user: &str, password: Option<&str>) -> Target {
        Target {
            node: "pg-1".into(),
            host: "127.0.0.1".to_owned(),
            port: self.node().port(),
            tls: ServerTls::without_files(SslMode::Prefer),
            user: user.to_owned(),
            credential: password
                .map_or(ServerCredential::None, |password| ServerCredential::Password(Secret::new(password))),
            database: "postgres".to_owned(),
            parameters: vec![("application_name".to_owned(), "metako test".to_owned())],
        }
    }

    fn admin(&self) -> Target {
        self.target(Cluster::SUPERUSER, Some(self.cluster.superuser_password()))
    }

    /// What the server keeps of a user's password.
    async fn secret_of(&self, user: &str) -> String {
        let mut admin = log_in(&self.admin()).await.unwrap();
        value(&mut admin, &format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'")).await
    }
}

type Connection = Backend<MaybeTls<Socket>>;

async fn log_in(target: &Target) -> Result<Connection, ConnectError> {
    timeout(LIMIT, connect(&TokioEnv::new(), target)).await.expect("no log-in in time")
}

async fn refused(target: &Target) -> ConnectError {
    match log_in(target).await {
        Ok(_) => panic!("{} was let in", target.user),
        Err(error) => error,
    }
}

fn sqlstate(error: &ConnectError) -> &str {
    match &error.kind {
        ConnectErrorKind::Server(error) => {
            assert_eq!(error.severity, "FATAL");
            &error.sqlstate
        }
        other => panic!("{other:?}"),
    }
}

async fn send(connection: &mut Connection, sql: &str) {
    let length = u32::try_from(sql.len() + 5).unwrap();
    let query = [b"Q", &length.to_be_bytes()[..], sql.as_bytes(), b"\0"].concat();
    connection.stream.write_all(&query).await.unwrap();
    connection.stream.flush().await.unwrap();
}

async fn frame(connection: &mut Connection) -> (u8, Vec<u8>) {
    let read = async {
        let tag = connection.stream.read_u8().await?;
        let mut body = vec![0; connection.stream.read_u32().await? as usize - 4];
        connection.stream.read_exact(&mut body).await?;
        io::Result::Ok((tag, body))
    };
    timeout(LIMIT, read).await.expect("no answer in time").unwrap()
}

/// Runs a query that gives one row of one column, and returns it. Any message left over from the log-in would show.
async fn value(connection: &mut Connection, sql: &str) -> String {
    send(connection, sql).await;
    assert_eq!(frame(connection).await.0, b'T');
    let (tag, row) = frame(connection).await;
    assert_eq!(tag, b'D');
    assert_eq!(frame(connection).await.0, b'C');
    assert_eq!(frame(connection).await, (b'Z', b"I".to_vec()));
    String::from_utf8(row[6..].to_vec()).unwrap()
}

/// Runs statements that give no rows.
async fn run(connection: &mut Connection, sql: &str) {
    send(connection, sql).await;
    loop {
        match frame(connection).await {
            (b'Z', _) => return,
            (b'E', body) => panic!("{}", String::from_utf8_lossy(read::error(&body).message)),
            _ => {}
        }
    }
}

#[tokio::test]
async fn each_method_of_authentication_lets_in_and_refuses() {
    let server = Server::simple().await;
    for (user, password) in
        [("scram", "p\u{e4}ssword"), ("md5", "password"), ("clear", "password"), ("trusted", "any")]
    {
        let mut connection = log_in(&server.target(user, Some(password))).await.unwrap();
        assert!(!connection.stream.is_tls());
        assert_eq!(value(&mut connection, "SELECT current_user").await, user);
        assert_eq!(
            value(&mut connection, "SELECT pg_backend_pid()").await,
            connection.process_id.to_string()
        );
        let parameter = |name: &str| {
            connection.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
        };
        assert_eq!(parameter("application_name"), Some("metako test"));
        let version =
            parameter("server_version").and_then(|version| version.split(['.', ' ', 'b', 'r']).next());
        // Protocol 3.2 has longer keys.
        let key = if version.unwrap().parse::<u32>().unwrap() >= 18 { 32 } else { 4 };
        assert_eq!(connection.secret_key.len(), key);
        if user == "trusted" {
            log_in(&server.target(user, None)).await.unwrap();
            continue;
        }

        let wrong = refused(&server.target(user, Some("wrong"))).await;
        assert_eq!(sqlstate(&wrong), "28P01");
        assert!(matches!(wrong.probe_failure(), ProbeFailure::Authentication(_)));
        assert_eq!(wrong.server_loss(), None);
        let none = refused(&server.target(user, None)).await;
        assert!(matches!(none.kind, ConnectErrorKind::Authentication(_)), "{none}");
    }
}

/// The keys that a client's SCRAM exchange reveals: `ServerKey` stands in the secret, `ClientKey` comes from the password.
fn scram_keys(secret: &str, password: &str) -> ServerCredential {
    let base64 = |text: &str| STANDARD.decode(text).unwrap();
    let mut parts = secret.split(['$', ':']);
    assert_eq!(parts.next(), Some("SCRAM-SHA-256"));
    let iterations: NonZeroU32 = parts.next().unwrap().parse().unwrap();
    let salt = base64(parts.next().unwrap());
    let server_key = base64(parts.nth(1).unwrap()).try_into().unwrap();
    let mut salted = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password.as_bytes(), &mut salted);
    let client_key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salted), b"Client Key");
    ServerCredential::ScramKeys { client_key: client_key.as_ref().try_into().unwrap(), server_key }
}

fn changed(credential: &ServerCredential) -> ServerCredential {
    match credential {
        ServerCredential::ScramKeys { client_key, server_key } => {
            ServerCredential::ScramKeys { client_key: client_key.map(|byte| !byte), server_key: *server_key }
        }
        ServerCredential::Md5(hash) => {
            ServerCredential::Md5(Secret::new(hash.reveal().replace(char::is_numeric, "0")))
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_a_client_proved_lets_metako_in_without_its_password() {
    let server = Server::simple().await;
    let keys = scram_keys(&server.secret_of("scram").await, "p\u{e4}ssword");
    let hash = server.secret_of("md5").await.strip_prefix("md5").unwrap().to_owned();
    for (user, credential) in [("scram", keys.clone()), ("md5", ServerCredential::Md5(Secret::new(hash)))] {
        let target = Target { credential: credential.clone(), ..server.target(user, None) };
        let mut connection = log_in(&target).await.unwrap();
        assert_eq!(value(&mut connection, "SELECT current_user").await, user);
        let wrong = refused(&Target { credential: changed(&credential), ..target }).await;
        assert_eq!(sqlstate(&wrong), "28P01");
    }
    // A server whose key is another one has not the secret that it seems to have.
    let ServerCredential::ScramKeys { client_key, .. } = keys else { panic!() };
    let other = ServerCredential::ScramKeys { client_key, server_key: [0; 32] };
    let impostor = refused(&Target { credential: other, ..server.target("scram", None) }).await;
    assert!(matches!(impostor.kind, ConnectErrorKind::Authentication(_)), "{impostor}");
    // What is good for one method is not for another, and that is said.
    let scram_for_md5 = refused(&Target { credential: keys_of([1; 32]), ..server.target("md5", None) }).await;
    assert!(matches!(scram_for_md5.kind, ConnectErrorKind::Authentication(_)), "{scram_for_md5}");
}

fn keys_of(key: [u8; 32]) -> ServerCredential {
    ServerCredential::ScramKeys { client_key: key, server_key: key }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let server = Server::simple().await;
    let postgres = server.admin();
    let no_database = refused(&Target { database: "nowhere".to_owned(), ..postgres.clone() }).await;
    assert_eq!(sqlstate(&no_database), "3D000");
    assert_eq!(no_database.to_string(), "pg-1: FATAL: database \"nowhere\" does not exist (SQLSTATE 3D000)");
    let no_entry = refused(&server.target("stranger", Some("x"))).await;
    assert_eq!(sqlstate(&no_entry), "28000");
    let full = refused(&server.target("limited", None)).await;
    assert!(matches!(full.probe_failure(), ProbeFailure::TooManyConnections(_)), "{full}");
    let no_tls =
        refused(&Target { tls: ServerTls::without_files(SslMode::Require), ..postgres.clone() }).await;
    assert!(matches!(no_tls.kind, ConnectErrorKind::Tls(_)), "{no_tls}");
    let bad_parameter = vec![("no_such_setting".to_owned(), "1".to_owned())];
    assert_eq!(sqlstate(&refused(&Target { parameters: bad_parameter, ..postgres }).await), "42704");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_says_so_and_then_refuses() {
    let server = Server::simple().await;
    let target = server.admin();
    let mut session = log_in(&target).await.unwrap();
    let node = server.node().clone();
    let stopped = tokio::task::spawn_blocking(move || node.stop(StopMode::Smart));
    // The signal takes its time; the open session keeps the server in this state.
    let stopping = async {
        loop {
            if let Err(error) = log_in(&target).await {
                return error;
            }
        }
    };
    let stopping = timeout(LIMIT, stopping).await.expect("the server goes on to let in");
    assert_eq!(sqlstate(&stopping), "57P03");
    assert!(matches!(stopping.probe_failure(), ProbeFailure::ShuttingDown(_)), "{stopping}");
    assert_eq!(stopping.server_loss(), Some(ServerLoss::Broken));
    assert_eq!(value(&mut session, "SELECT 1").await, "1");

    drop(session);
    stopped.await.unwrap().unwrap();
    let gone = refused(&target).await;
    assert!(matches!(gone.probe_failure(), ProbeFailure::Refused(_)), "{gone}");
    assert_eq!(gone.server_loss(), Some(ServerLoss::Refused));
}

/// Starts a statement that sleeps, cancels it when it surely sleeps, and looks how it ends and that the connection goes on.
async fn cancel_sleep(target: &Target) {
    let mut connection = log_in(target).await.unwrap();
    send(&mut connection, "DO $$ BEGIN RAISE NOTICE 'asleep'; PERFORM pg_sleep(3600); END $$").await;
    assert_eq!(frame(&mut connection).await.0, b'N');
    let key = connection.secret_key.clone();
    let env = TokioEnv::new();
    timeout(LIMIT, cancel(&env, target, connection.process_id, &key)).await.expect("not cancelled").unwrap();
    let (tag, body) = frame(&mut connection).await;
    assert_eq!((tag, read::error(&body).code), (b'E', &b"57014"[..]));
    assert_eq!(frame(&mut connection).await.0, b'Z');
    // The cancel was waited for, so it hits nothing later.
    assert_eq!(value(&mut connection, "SELECT 1").await, "1");
    // A wrong secret is no error that a server would tell of, and does nothing.
    cancel(&env, target, connection.process_id, &[0; 4]).await.unwrap();
    assert_eq!(value(&mut connection, "SELECT 2").await, "2");
}

#[tokio::test]
async fn a_sleeping_statement_is_cancelled() {
    let server = Server::simple().await;
    cancel_sleep(&server.admin()).await;
}
