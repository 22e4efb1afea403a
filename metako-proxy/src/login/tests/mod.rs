//! Log-ins over an in-memory connection: by tokio-postgres, and by clients that misbehave.

mod encrypted;
mod looked_up;
mod methods;
pub(super) mod version_1;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use metako_core::config::{Secret, TlsFiles};
use proptest::prelude::*;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;
use tokio_postgres::config::SslMode;
use tokio_rustls::TlsConnector;

use super::*;

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f];
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 0xd2, 0x16, 0x30];
const CANCEL_REQUEST: [u8; 16] = [0, 0, 0, 16, 4, 0xd2, 0x16, 0x2e, 0, 0, 0, 7, 1, 2, 3, 4];

fn peer() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7], 4321))
}

type Outcome = Result<Accepted<DuplexStream>, LoginError>;

fn context() -> LoginContext {
    // Made once: each password takes a while.
    static CONTEXT: LazyLock<LoginContext> = LazyLock::new(|| {
        let mut users = Users::empty(&[9; 32]);
        users.add("app", &Secret::new("secret"), Some(&["shop".to_owned()]));
        users.add("report", &Secret::new("word"), Some(&["stock".to_owned()]));
        LoginContext::of_users(users, Sources::default())
    });
    CONTEXT.clone()
}

/// Writes a file that nobody else can read, as a key has to be.
fn write_alone(path: &std::path::Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A context that offers TLS with a fresh certificate for `localhost`, and a client's configuration that trusts it.
fn context_with_tls() -> (LoginContext, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    write_alone(&files.key, &made.signing_key.serialize_pem());
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let cx = LoginContext { tls: Some(ServerTls::load(&files, None).unwrap()), ..context() };
    (cx, TlsConnector::from(Arc::new(client)))
}

/// Accepts one connection in a task of its own, and tells the client what [`accept`] has left to be told.
fn serve(cx: LoginContext) -> (DuplexStream, JoinHandle<Outcome>) {
    let (client, server) = duplex(16 * 1024);
    let outcome = tokio::spawn(async move {
        let mut outcome = accept(server, peer(), &cx, &|bytes| bytes.fill(7), &|_, _| Protocol::V3_2).await;
        if let Ok(Accepted::Session(client)) = &mut outcome {
            client.stream.write_all(&client.unsent).await.unwrap();
            client.stream.flush().await.unwrap();
        }
        outcome
    });
    (client, outcome)
}

/// Ends a client's log-in.
async fn welcome_to(stream: &mut MaybeTls<DuplexStream>) {
    let mut told = Vec::new();
    welcome(&mut told, [("server_version", "15.0")], 7, &[1, 2, 3, 4]);
    stream.write_all(&told).await.unwrap();
    stream.flush().await.unwrap();
}

/// Accepts one connection and welcomes the client; gives the session as it was accepted.
fn serve_session(cx: LoginContext) -> (DuplexStream, JoinHandle<Client<MaybeTls<DuplexStream>>>) {
    let (client, outcome) = serve(cx);
    let session = tokio::spawn(async move {
        let Accepted::Session(mut client) = outcome.await.unwrap().unwrap() else { panic!("a cancel") };
        welcome_to(&mut client.stream).await;
        *client
    });
    (client, session)
}

fn driver(user: &str, password: &str, database: &str) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.user(user).password(password).dbname(database).application_name("test").ssl_mode(SslMode::Disable);
    config
}

/// Logs in with tokio-postgres and gives SQLSTATE and message of the refusal, and what [`accept`] says of it.
async fn refusal(
    cx: LoginContext,
    user: &str,
    password: &str,
    database: &str,
) -> (String, String, LoginError) {
    let (client, outcome) = serve(cx);
    let Err(error) = driver(user, password, database).connect_raw(client, NoTls).await else {
        panic!("{user} was let in")
    };
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error}")).clone();
    assert_eq!(error.severity(), "FATAL");
    (error.code().code().to_owned(), error.message().to_owned(), outcome.await.unwrap().unwrap_err())
}

async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> (u8, Vec<u8>) {
    let tag = stream.read_u8().await.unwrap();
    let mut body = vec![0; stream.read_u32().await.unwrap() as usize - 4];
    stream.read_exact(&mut body).await.unwrap();
    (tag, body)
}

/// The SQLSTATE of the error that comes next, after which the connection ends.
async fn fatal_code(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let (tag, body) = frame(stream).await;
    assert_eq!(tag, b'E');
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the connection goes on");
    let fields = metako_core::wire::read::error(&body);
    assert_eq!(fields.severity, b"FATAL");
    String::from_utf8(fields.code.to_vec()).unwrap()
}

fn startup(version: u32, parameters: &[u8]) -> Vec<u8> {
    let length = u32::try_from(parameters.len() + 9).unwrap();
    [&length.to_be_bytes(), &version.to_be_bytes(), parameters, b"\0"].concat()
}

#[tokio::test]
async fn a_driver_logs_in() {
    let (client, session) = serve_session(context());
    let (_client, connection) = driver("app", "secret", "shop").connect_raw(client, NoTls).await.unwrap();
    assert_eq!(connection.parameter("server_version"), Some("15.0"));
    let session = session.await.unwrap();
    assert_eq!((session.user.as_str(), session.database.as_str()), ("app", "shop"));
    assert!(session.parameters.contains(&("application_name".to_owned(), "test".to_owned())));
    assert!(session.parameters.iter().all(|(name, _)| name != "user" && name != "database"));
    assert!(session.leftover.is_empty());
    assert!(!session.stream.is_tls());
}

#[tokio::test]
async fn a_wrong_password_and_a_stranger_cannot_be_told_apart() {
    for user in ["app", "nobody"] {
        let (code, message, error) = refusal(context(), user, "wrong", "shop").await;
        assert_eq!(code, "28P01");
        assert_eq!(message, format!("password authentication failed for user \"{user}\""));
        let LoginError::Refused { user: claimed, reason: Some(reason), .. } = error else {
            panic!("{error}")
        };
        assert_eq!(claimed.as_deref(), Some(user));
        assert!(!reason.contains("wrong") || user == "app", "{reason}");
    }
    // Not even an empty password, nor the database, makes a difference.
    assert_eq!(refusal(context(), "nobody", "", "nowhere").await.0, "28P01");
    assert_eq!(refusal(context(), "app", "word", "nowhere").await.0, "28P01");
}

#[tokio::test]
async fn databases_are_checked_after_the_password() {
    let (code, message, _) = refusal(context(), "app", "secret", "nowhere").await;
    assert_eq!((code.as_str(), message.as_str()), ("3D000", "database \"nowhere\" does not exist"));
    let (code, message, _) = refusal(context(), "app", "secret", "stock").await;
    assert_eq!((code.as_str(), message.as_str()), ("42501", "permission denied for database \"stock\""));
}

#[tokio::test]
async fn a_driver_that_prefers_tls_goes_on_without() {
    let (client, session) = serve_session(context());
    let mut config = driver("app", "secret", "shop");
    config.ssl_mode(SslMode::Prefer);
    // NoTls cannot do TLS, so the request is made by hand.
    let mut client = client;
    client.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'N');
    client.write_all(&GSSENC_REQUEST).await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'N');
    drop(config.connect_raw(client, NoTls).await.unwrap());
    assert!(!session.await.unwrap().stream.is_tls());
}

async fn over_tls(
    mut client: DuplexStream,
    tls: TlsConnector,
) -> tokio_rustls::client::TlsStream<DuplexStream> {
    client.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'S');
    tls.connect(ServerName::try_from("localhost").unwrap(), client).await.unwrap()
}

#[tokio::test]
async fn a_driver_logs_in_over_tls() {
    let (cx, tls) = context_with_tls();
    let (client, session) = serve_session(LoginContext { require_tls: true, ..cx });
    let client = over_tls(client, tls).await;
    drop(driver("app", "secret", "shop").connect_raw(client, NoTls).await.unwrap());
    assert!(session.await.unwrap().stream.is_tls());
}

#[tokio::test]
async fn where_tls_is_demanded_a_client_without_is_refused() {
    let (cx, _) = context_with_tls();
    let (code, message, _) = refusal(LoginContext { require_tls: true, ..cx }, "app", "secret", "shop").await;
    assert_eq!(code, "28000");
    assert_eq!(
        message,
        "no pg_hba.conf entry for host \"192.0.2.7\", user \"app\", database \"shop\", no encryption"
    );
}

#[tokio::test]
async fn bytes_sent_before_the_handshake_are_refused() {
    let (tls_cx, _) = context_with_tls();
    for (cx, request, answered) in
        [(tls_cx, SSL_REQUEST, false), (context(), SSL_REQUEST, true), (context(), GSSENC_REQUEST, true)]
    {
        let (mut client, outcome) = serve(cx);
        let injected = [&request[..], &startup(0x0003_0000, b"user\0app\0")].concat();
        client.write_all(&injected).await.unwrap();
        if answered {
            assert_eq!(client.read_u8().await.unwrap(), b'N');
        }
        assert_eq!(fatal_code(&mut client).await, "08P01");
        assert!(matches!(outcome.await.unwrap(), Err(LoginError::Refused { .. })));
    }
}

#[tokio::test]
async fn encryption_is_asked_for_once() {
    for request in [SSL_REQUEST, GSSENC_REQUEST] {
        let (mut client, _outcome) = serve(context());
        client.write_all(&request).await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'N');
        client.write_all(&request).await.unwrap();
        assert_eq!(fatal_code(&mut client).await, "0A000");
    }
    let (cx, tls) = context_with_tls();
    let (client, _outcome) = serve(cx);
    let mut client = over_tls(client, tls).await;
    client.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(fatal_code(&mut client).await, "0A000");
}

#[tokio::test]
async fn protocols_are_agreed_on_before_authentication() {
    for (version, told, protocol) in [
        (0x0003_0000, None, Protocol::V3_0),
        (0x0003_0001, None, Protocol::V3_0),
        (0x0003_0002, None, Protocol::V3_2),
        (0x0003_0003, Some(&b"\0\x03\0\x02\0\0\0\0"[..]), Protocol::V3_2),
        (0x0003_270f, Some(b"\0\x03\0\x02\0\0\0\0"), Protocol::V3_2),
    ] {
        let (mut client, outcome) = serve(context());
        client.write_all(&startup(version, b"user\0app\0database\0shop\0")).await.unwrap();
        if let Some(told) = told {
            assert_eq!(frame(&mut client).await, (b'v', told.to_vec()), "{version:x}");
        }
        prove(&mut client, "secret").await;
        let Accepted::Session(session) = outcome.await.unwrap().unwrap() else { panic!("a cancel") };
        assert_eq!(session.protocol, protocol, "{version:x}");
    }
    let (mut client, _outcome) = serve(context());
    client.write_all(&startup(0x0003_0000, b"user\0app\0_pq_.new\0on\0_pq_.b\0\0")).await.unwrap();
    let told = b"\0\x03\0\0\0\0\0\x02_pq_.new\0_pq_.b\0".to_vec();
    assert_eq!(frame(&mut client).await, (b'v', told));
    assert_eq!(frame(&mut client).await.0, b'R');
}

/// The client's side of SCRAM without channel binding.
async fn prove(client: &mut (impl AsyncRead + AsyncWrite + Unpin), password: &str) {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    assert_eq!(frame(client).await.1[..4], [0, 0, 0, 10]);
    let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    client.write_all(&sasl_initial(b"SCRAM-SHA-256", Some(scram.message()))).await.unwrap();
    client.flush().await.unwrap();
    scram.update(&frame(client).await.1[4..]).unwrap();
    client.write_all(&sasl(scram.message())).await.unwrap();
    client.flush().await.unwrap();
    scram.finish(&frame(client).await.1[4..]).unwrap();
    assert_eq!(frame(client).await, (b'R', b"\0\0\0\0".to_vec()));
}

#[tokio::test]
async fn a_client_of_protocol_2_is_told_in_its_own_format() {
    let (mut client, outcome) = serve(context());
    client.write_all(&startup(0x0002_0000, b"user\0app\0")).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let text = b"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.2\n\0";
    assert_eq!(answer, text);
    assert!(matches!(outcome.await.unwrap(), Err(LoginError::Refused { .. })));
}

#[tokio::test]
async fn replication_is_handed_on() {
    let mut users = Users::empty(&[9; 32]);
    users.add("copy", &Secret::new("secret"), None);
    users.add("app", &Secret::new("secret"), Some(&["shop".to_owned()]));
    let cx = LoginContext::of_users(users, Sources::default());
    for (parameters, replication, database) in [
        (&b"user\0copy\0replication\0true\0database\0shop\0"[..], Some(Replication::Physical), ""),
        (b"user\0copy\0replication\0database\0database\0shop\0", Some(Replication::Logical), "shop"),
        (b"user\0copy\0replication\0database\0", Some(Replication::Logical), "copy"),
        (b"user\0copy\0replication\0off\0", None, "copy"),
    ] {
        let (mut client, outcome) = serve(cx.clone());
        client.write_all(&startup(0x0003_0000, parameters)).await.unwrap();
        prove(&mut client, "secret").await;
        let Accepted::Session(session) = outcome.await.unwrap().unwrap() else { panic!("a cancel") };
        assert_eq!((session.replication, session.database.as_str()), (replication, database));
        assert!(session.parameters.is_empty());
    }
    // Physical replication shows all databases.
    let (mut client, _outcome) = serve(cx);
    client.write_all(&startup(0x0003_0000, b"user\0app\0replication\0true\0")).await.unwrap();
    prove(&mut client, "secret").await;
    assert_eq!(fatal_code(&mut client).await, "42501");
}

#[tokio::test]
async fn start_ups_that_cannot_be_served_are_refused() {
    for (version, parameters, code) in [
        (0x0004_0000, &b"user\0app\0"[..], "0A000"),
        (0x0003_0000, b"", "28000"),
        (0x0003_0000, b"database\0shop\0", "28000"),
        (0x0003_0000, b"user\0app\0replication\0perhaps\0", "22023"),
        (0x0003_0000, b"user\0app\0database", "08P01"),
    ] {
        let (mut client, outcome) = serve(context());
        client.write_all(&startup(version, parameters)).await.unwrap();
        assert_eq!(fatal_code(&mut client).await, code, "{parameters:?}");
        assert!(matches!(outcome.await.unwrap(), Err(LoginError::Refused { .. })));
    }
}

#[tokio::test]
async fn what_is_no_postgresql_client_gets_no_answer() {
    for bytes in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x02\0\x01", b"\xff\xff\xff\xff", b"\0\0\0\x04"]
    {
        let (mut client, outcome) = serve(context());
        client.write_all(bytes).await.unwrap();
        assert!(matches!(outcome.await.unwrap(), Err(LoginError::Protocol(_))), "{bytes:?}");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"");
    }
}

#[tokio::test]
async fn cancel_requests_are_handed_on_with_their_connection() {
    let (cx, tls) = context_with_tls();
    for encrypted in [false, true] {
        let (mut client, outcome) = serve(cx.clone());
        let outcome = if encrypted {
            let mut client = over_tls(client, tls.clone()).await;
            client.write_all(&CANCEL_REQUEST).await.unwrap();
            client.flush().await.unwrap();
            outcome.await
        } else {
            client.write_all(&CANCEL_REQUEST).await.unwrap();
            outcome.await
        };
        let Accepted::Cancel { stream, process_id, secret_key } = outcome.unwrap().unwrap() else {
            panic!("a session")
        };
        assert_eq!((process_id, secret_key), (7, vec![1, 2, 3, 4]));
        assert_eq!(stream.is_tls(), encrypted);
    }
}

fn sasl_initial(mechanism: &[u8], data: Option<&[u8]>) -> Vec<u8> {
    let length = data.map_or(-1, |data| i32::try_from(data.len()).unwrap());
    let body = [mechanism, b"\0", &length.to_be_bytes(), data.unwrap_or_default()].concat();
    sasl(&body)
}

fn sasl(body: &[u8]) -> Vec<u8> {
    [b"p", &u32::try_from(body.len() + 4).unwrap().to_be_bytes()[..], body].concat()
}

/// A client that has been asked to authenticate.
async fn asked(cx: LoginContext) -> DuplexStream {
    let (mut client, _outcome) = serve(cx);
    client.write_all(&startup(0x0003_0000, b"user\0app\0database\0shop\0")).await.unwrap();
    assert_eq!(frame(&mut client).await, (b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0".to_vec()));
    client
}

#[tokio::test]
async fn a_client_may_wait_to_be_asked_for_its_first_message() {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    let mut client = asked(context()).await;
    let mut scram = ScramSha256::new(b"secret", ChannelBinding::unrequested());
    client.write_all(&sasl_initial(b"SCRAM-SHA-256", None)).await.unwrap();
    assert_eq!(frame(&mut client).await, (b'R', b"\0\0\0\x0b".to_vec()));
    client.write_all(&sasl(scram.message())).await.unwrap();
    scram.update(&frame(&mut client).await.1[4..]).unwrap();
    // The first query may come along: it is not lost.
    client.write_all(&sasl(scram.message())).await.unwrap();
    scram.finish(&frame(&mut client).await.1[4..]).unwrap();
    assert_eq!(frame(&mut client).await, (b'R', b"\0\0\0\0".to_vec()));
}

#[tokio::test]
async fn what_was_sent_ahead_is_left_over() {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    let (mut client, outcome) = serve(context());
    client.write_all(&startup(0x0003_0000, b"user\0app\0database\0shop\0")).await.unwrap();
    frame(&mut client).await;
    let mut scram = ScramSha256::new(b"secret", ChannelBinding::unsupported());
    client.write_all(&sasl_initial(b"SCRAM-SHA-256", Some(scram.message()))).await.unwrap();
    scram.update(&frame(&mut client).await.1[4..]).unwrap();
    let ahead = b"Q\0\0\0\x05\0";
    client.write_all(&[&sasl(scram.message())[..], ahead].concat()).await.unwrap();
    let Accepted::Session(session) = outcome.await.unwrap().unwrap() else { panic!("a cancel") };
    assert_eq!(session.leftover, ahead);
}

#[tokio::test]
async fn broken_sasl_is_refused() {
    for message in [
        sasl(b""),
        sasl(b"SCRAM-SHA-256\0\x7f\xff\xff\xffn,,n=,r=a"),
        sasl_initial(b"SCRAM-SHA-256-PLUS", Some(b"p=tls-server-end-point,,n=,r=a")),
        sasl_initial(b"SCRAM-SHA-256", Some(b"p=tls-server-end-point,,n=,r=a")),
        sasl_initial(b"SCRAM-SHA-256", Some(b"\xff\xff")),
        b"Q\0\0\0\x05\0".to_vec(),
        sasl(b"unknown"),
        sasl_initial(b"unknown", Some(b"n,,n=,r=a")),
    ] {
        let mut client = asked(context()).await;
        client.write_all(&message).await.unwrap();
        assert_eq!(fatal_code(&mut client).await, "08P01", "{message:?}");
    }
}

#[tokio::test]
async fn a_length_that_cannot_be_gets_no_answer() {
    for message in [&b"p\0\0\0\x03"[..], b"p\x7f\xff\xff\xff", b"p\0\0\x04\x05"] {
        let mut client = asked(context()).await;
        client.write_all(message).await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "{message:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_not_an_error_of_its_own() {
    let (client, outcome) = serve(context());
    drop(client);
    assert!(matches!(outcome.await.unwrap(), Err(LoginError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn whoever_stalls_is_ended_by_the_login_timeout() {
    let (tls_cx, _) = context_with_tls();
    let whole = startup(0x0003_0000, b"user\0app\0");
    for (cx, bytes) in [
        (context(), &b""[..]),
        (context(), &whole[..1]),
        (context(), &whole[..whole.len() - 1]),
        (context(), &whole),
        (tls_cx.clone(), &SSL_REQUEST),
    ] {
        let begun = tokio::time::Instant::now();
        let (mut client, outcome) = serve(cx.clone());
        client.write_all(bytes).await.unwrap();
        let outcome = outcome.await.unwrap();
        assert!(
            matches!(outcome, Err(LoginError::TimedOut(limit)) if limit == cx.login_timeout),
            "{outcome:?}"
        );
        // Virtual time: it moves only when everybody waits.
        assert_eq!(begun.elapsed().as_secs(), cx.login_timeout.as_secs());
    }
}

#[tokio::test(start_paused = true)]
async fn a_trickle_of_bytes_gains_no_time() {
    let (mut client, outcome) = serve(context());
    let packet = startup(0x0003_0000, &b"a\0b\0".repeat(500));
    let trickle = async {
        for byte in packet {
            if client.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the whole packet was taken");
    };
    let ((), outcome) = tokio::join!(trickle, outcome);
    assert!(matches!(outcome.unwrap(), Err(LoginError::TimedOut(_))));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_refusal_is_ended_too() {
    let (mut client, server) = duplex(16);
    let cx = context();
    client.write_all(&SSL_REQUEST).await.unwrap();
    client.write_all(&GSSENC_REQUEST).await.unwrap();
    let outcome = accept(server, peer(), &cx, &|bytes| bytes.fill(7), &|_, _| Protocol::V3_2).await;
    assert!(matches!(outcome, Err(LoginError::TimedOut(_))), "{outcome:?}");
}

fn run_bytes(bytes: &[u8]) -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let (mut client, server) = duplex(64 * 1024);
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let cx = context();
        accept(server, peer(), &cx, &|bytes| bytes.fill(7), &|_, _| Protocol::V3_2).await
    })
}

proptest! {
    #[test]
    fn no_bytes_are_let_in(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(!matches!(run_bytes(&bytes), Ok(Accepted::Session(_))));
    }

    #[test]
    fn no_start_up_is_let_in_without_a_proof(
        parameters in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..60),
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..4),
        cut in 0_usize..400,
    ) {
        let mut bytes = startup(0x0003_0000, &[b"user\0app\0", &parameters[..]].concat());
        for message in messages {
            bytes.extend(sasl(&message));
        }
        bytes.truncate(cut);
        prop_assert!(run_bytes(&bytes).is_err());
    }

    #[test]
    fn no_scram_is_let_in_without_the_password(first in "[ny],,n=,r=[a-z]{1,8}", last in ".{0,80}") {
        let mut bytes = startup(0x0003_0000, b"user\0app\0database\0shop\0");
        bytes.extend(sasl_initial(b"SCRAM-SHA-256", Some(first.as_bytes())));
        bytes.extend(sasl(last.as_bytes()));
        prop_assert!(run_bytes(&bytes).is_err());
    }
}
