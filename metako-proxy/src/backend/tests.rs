//! Servers that misbehave, played by the test; real ones are in `tests/backend.rs`.

use metako_core::cluster::ServerLoss;
use metako_core::config::{ChannelBinding, NodeTls, Secret, SslMode};
use metako_core::plugin::ProbeFailure;
use proptest::prelude::*;
use tokio::io::duplex;
use tokio::net::TcpListener;

use super::*;
use crate::env::TokioEnv;

fn target(port: u16, sslmode: SslMode) -> Target {
    Target {
        node: "pg-1".into(),
        host: "127.0.0.1".to_owned(),
        port,
        tls: ServerTls::without_files(sslmode),
        user: "app".to_owned(),
        credential: ServerCredential::Password(Secret::new("secret")),
        database: "shop".to_owned(),
        parameters: vec![("application_name".to_owned(), "test".to_owned())],
    }
}

/// Logs in to a server that says these things, each after one message of metako's, and then closes.
async fn log_in_to(answers: &[&[u8]]) -> Result<Backend<tokio::io::DuplexStream>, ConnectErrorKind> {
    log_in_as(&target(5432, SslMode::Disable), &clear_text(), answers).await.0
}

fn clear_text() -> Circumstances {
    Circumstances { random: [7; NONCE_LEN], tls: false, end_point: None }
}

/// As [`log_in_to`], with what metako said.
async fn log_in_as(
    target: &Target,
    circumstances: &Circumstances,
    answers: &[&[u8]],
) -> (Result<Backend<tokio::io::DuplexStream>, ConnectErrorKind>, Vec<u8>) {
    let (client, mut server) = duplex(1024 * 1024);
    let script = async move {
        let mut said = Vec::new();
        for (index, answer) in answers.iter().enumerate() {
            // However its bytes come: an answer before the end of what it answers would end the log-in too early.
            if !message(&mut server, index > 0, &mut said).await {
                return said;
            }
            // Whoever has given up meanwhile hears no more.
            if server.write_all(answer).await.is_err() {
                return said;
            }
        }
        let _ = server.shutdown().await;
        said
    };
    let (said, result) = tokio::join!(script, log_in(client, target, VERSION, circumstances));
    (result, said)
}

/// Takes a message, with a type byte or as the start-up packet has none. Whether there was one.
async fn message(stream: &mut (impl AsyncRead + Unpin), tagged: bool, said: &mut Vec<u8>) -> bool {
    let begin = said.len() + usize::from(tagged);
    let mut whole = begin + 4;
    while said.len() < whole {
        let missing = (whole - said.len()) as u64;
        if (&mut *stream).take(missing).read_to_end(said).await.unwrap() == 0 {
            return false;
        }
        if let Some(length) = said.get(begin..).and_then(|rest| rest.first_chunk::<4>()) {
            whole = begin + u32::from_be_bytes(*length) as usize;
        }
    }
    true
}

/// The answers to the salt `salt`, of the password `secret` and of a hash, by another implementation of MD5.
const PASSWORD_BY_MD5: &str = "md57f097e06031b34893c20e25a0e68242c";
const HASH_BY_MD5: &str = "md589a7d675611dc52a6673559723567114";
const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
const KEY: &[u8] = b"K\0\0\0\x0c\0\0\0\x07\x01\x02\x03\x04";
const READY: &[u8] = b"Z\0\0\0\x05I";
const ASK_SCRAM: &[u8] = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], &u32::try_from(body.len() + 4).unwrap().to_be_bytes()[..], body].concat()
}

fn parameter(name: &str, value: &str) -> Vec<u8> {
    frame(b'S', &[name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat())
}

fn authentication(code: u8, body: &[u8]) -> Vec<u8> {
    frame(b'R', &[&[0, 0, 0, code], body].concat())
}

#[tokio::test]
async fn what_the_server_reports_is_kept() {
    let answer = [
        OK,
        &parameter("server_version", "15.0"),
        &parameter("in_hot_standby", "on"),
        &frame(b'N', b"SNOTICE\0\0"),
        KEY,
        READY,
        // A promotion just now: it must not be left in the stream.
        &parameter("in_hot_standby", "off"),
    ]
    .concat();
    let backend = log_in_to(&[&answer]).await.unwrap();
    assert_eq!((backend.process_id, backend.secret_key), (7, vec![1, 2, 3, 4]));
    let expected = [("server_version", "15.0"), ("in_hot_standby", "off")];
    assert_eq!(backend.parameters, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn a_server_that_does_not_prove_itself_is_refused() {
    // It lets metako in without the proof that it knows the password, at either point.
    let skipped = log_in_to(&[ASK_SCRAM, &[OK, KEY, READY].concat()]).await;
    assert!(matches!(skipped, Err(ConnectErrorKind::Authentication(_))), "{skipped:?}");
    let final_alone = log_in_to(&[ASK_SCRAM, &authentication(12, b"v=AAAA")]).await;
    assert!(matches!(final_alone, Err(ConnectErrorKind::Authentication(_))), "{final_alone:?}");
    let foreign_nonce = log_in_to(&[ASK_SCRAM, &authentication(11, b"r=x,s=AAAA,i=4096")]).await;
    assert!(matches!(foreign_nonce, Err(ConnectErrorKind::Authentication(_))), "{foreign_nonce:?}");
}

#[tokio::test]
async fn a_server_that_asks_for_the_password_in_clear_after_scram_does_not_get_it() {
    let result = log_in_to(&[ASK_SCRAM, &authentication(3, b"")]).await;
    assert!(matches!(result, Err(ConnectErrorKind::Authentication(_))), "{result:?}");
}

#[tokio::test]
async fn a_method_that_metako_does_not_have_is_said_so() {
    let gssapi = log_in_to(&[&authentication(7, b"")]).await;
    assert!(matches!(gssapi, Err(ConnectErrorKind::Authentication(_))), "{gssapi:?}");
    let other_sasl = log_in_to(&[&authentication(10, b"OTHER\0\0")]).await;
    assert!(matches!(other_sasl, Err(ConnectErrorKind::Authentication(_))), "{other_sasl:?}");
}

#[tokio::test]
async fn an_error_is_passed_on_at_every_step() {
    let error = &frame(b'E', b"SFATAL\0VFATAL\0C57P03\0Mthe database system is shutting down\0\0")[..];
    for answers in [
        &[error] as &[&[u8]],
        &[ASK_SCRAM, error],
        &[&[OK, error].concat()],
        &[&[OK, KEY, READY, error].concat()],
    ] {
        let result = log_in_to(answers).await;
        let Err(ConnectErrorKind::Server(error)) = result else { panic!("{result:?}") };
        assert_eq!((error.severity.as_str(), error.sqlstate.as_str()), ("FATAL", "57P03"));
    }
}

#[tokio::test]
async fn a_server_that_closes_is_told_from_one_that_speaks_otherwise() {
    for answers in [&[] as &[&[u8]], &[b""], &[OK], &[&[OK, KEY].concat()], &[ASK_SCRAM]] {
        let result = log_in_to(answers).await;
        assert!(matches!(result, Err(ConnectErrorKind::Closed(_))), "{result:?}");
    }
    for answers in [
        &[&b"HTTP/1.1 400 Bad Request\r\n"[..]] as &[&[u8]],
        &[READY],
        &[&[OK, OK].concat()],
        &[&[OK, b"Z\0\0\0\x05T"].concat()],
        &[&[OK, b"S\0\0\0\x06a\0"].concat()],
        &[&[OK, READY, b"C\0\0\0\x05\0"].concat()],
        &[&[OK, b"K\0\0\0\x0b\0\0\0\x07\x01\x02\x03"].concat()],
        &[&[OK, &frame(b'K', &[0; 4 + 257])].concat()],
        &[b"R\0\0\0\x06\0\0"],
        &[b"R\0\0\0\x0a\0\0\0\x05ab"],
        &[&negotiation(0x0003_0003)],
        &[&negotiation(0x0004_0000)],
        &[&authentication(11, b"r=x")],
    ] {
        let result = log_in_to(answers).await;
        assert!(matches!(result, Err(ConnectErrorKind::Protocol(_))), "{result:?}");
    }
}

/// A TCP server that plays one connection: reads the request for TLS and answers with these bytes.
async fn answer_tls_request(
    answer: &'static [u8],
    sslmode: SslMode,
) -> Result<MaybeTls<crate::env::Socket>, ConnectError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 8];
        stream.read_exact(&mut request).await.unwrap();
        assert_eq!(request, [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]);
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
        // A reset would overtake the answer: what the client still says is read.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.unwrap();
    };
    let env = TokioEnv::new();
    let client = async {
        // The stream is dropped with the error, which ends the script.
        open(&env, "127.0.0.1", port, &ServerTls::without_files(sslmode), Way::Tls).await
    };
    tokio::select! {
        result = client => result,
        () = async { script.await; std::future::pending().await } => unreachable!(),
    }
}

#[tokio::test]
async fn tls_comes_about_or_not_by_sslmode() {
    let plain = answer_tls_request(b"N", SslMode::Prefer).await.unwrap();
    assert!(!plain.is_tls());
    let refused = answer_tls_request(b"N", SslMode::Require).await.unwrap_err();
    assert!(matches!(refused.kind, ConnectErrorKind::Tls(_)), "{refused}");
    assert!(matches!(refused.probe_failure(), ProbeFailure::Unexpected(_)));
    // Clear text after the answer is not taken for something that was said inside TLS.
    let injected = answer_tls_request(b"SE\0\0\0\x04", SslMode::Prefer).await.unwrap_err();
    assert!(matches!(injected.kind, ConnectErrorKind::Tls(_)), "{injected}");
    let error = answer_tls_request(b"EFATAL", SslMode::Prefer).await.unwrap_err();
    assert!(matches!(error.kind, ConnectErrorKind::Closed(_)), "{error}");
    assert!(!error.to_string().contains("FATAL"), "{error}");
    let garbage = answer_tls_request(b"H", SslMode::Prefer).await.unwrap_err();
    assert!(matches!(garbage.kind, ConnectErrorKind::Protocol(_)), "{garbage}");
    let closed = answer_tls_request(b"", SslMode::Prefer).await.unwrap_err();
    assert!(matches!(closed.kind, ConnectErrorKind::Closed(_)), "{closed}");
}

fn negotiation(version: u32) -> Vec<u8> {
    frame(b'v', &[&version.to_be_bytes()[..], &[0; 4]].concat())
}

#[tokio::test]
async fn servers_that_speak_an_older_protocol_say_so_and_others_give_longer_keys() {
    for version in [0x0003_0000, 0, 0x0003_0002] {
        let answer = [&negotiation(version), OK, KEY, READY].concat();
        assert_eq!(log_in_to(&[&answer]).await.unwrap().secret_key, [1, 2, 3, 4]);
    }
    let key: Vec<u8> = (0..=255).collect();
    let answer = [OK, &frame(b'K', &[&7u32.to_be_bytes()[..], &key].concat()), READY].concat();
    let (backend, said) = log_in_as(&target(1, SslMode::Disable), &clear_text(), &[&answer]).await;
    assert_eq!(backend.unwrap().secret_key, key);
    let expected = b"\0\x03\0\x02user\0app\0database\0shop\0application_name\0test\0\0";
    assert_eq!(said, [&[0, 0, 0, 4 + u8::try_from(expected.len()).unwrap()], &expected[..]].concat());
}

/// A TCP server that plays connections one by one: reads a packet with its length in front, answers it, and closes.
async fn play(answers: &[&[u8]]) -> (u16, impl Future<Output = Vec<Vec<u8>>> + use<>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers: Vec<Vec<u8>> = answers.iter().map(|answer| answer.to_vec()).collect();
    let script = async move {
        let mut packets = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let length = stream.read_u32().await.unwrap();
            let mut packet = vec![0; length as usize - 4];
            stream.read_exact(&mut packet).await.unwrap();
            packets.push(packet);
            stream.write_all(&answer).await.unwrap();
            stream.shutdown().await.unwrap();
        }
        packets
    };
    (port, script)
}

#[tokio::test]
async fn a_server_that_refuses_the_protocol_is_asked_for_the_old_one() {
    for code in ["0A000", "08P01"] {
        let refusal = frame(b'E', format!("SFATAL\0VFATAL\0C{code}\0Munsupported\0\0").as_bytes());
        let (port, script) = play(&[&refusal, &[OK, KEY, READY].concat()]).await;
        let (env, target) = (TokioEnv::new(), target(port, SslMode::Disable));
        let (packets, backend) = tokio::join!(script, connect(&env, &target));
        assert_eq!(backend.unwrap().process_id, 7);
        assert_eq!((&packets[0][..4], &packets[1][..4]), (&[0, 3, 0, 2][..], &[0, 3, 0, 0][..]));
        // Once is enough.
        let (port, script) = play(&[&refusal, &refusal]).await;
        let target = Target {
            tls: ServerTls::without_files(SslMode::Disable),
            ..self::target(port, SslMode::Disable)
        };
        let (_, refused) = tokio::join!(script, connect(&env, &target));
        assert!(matches!(refused.unwrap_err().kind, ConnectErrorKind::Server(_)));
    }
}

#[tokio::test]
async fn a_cancel_carries_the_whole_key() {
    let key: Vec<u8> = (0..32).collect();
    let (port, script) = play(&[b""]).await;
    let (env, target) = (TokioEnv::new(), target(port, SslMode::Disable));
    let (packets, sent) = tokio::join!(script, cancel(&env, &target, 7, &key));
    sent.unwrap();
    assert_eq!(packets, [[&[4, 210, 22, 46, 0, 0, 0, 7], &key[..]].concat()]);
}

#[tokio::test]
async fn the_credential_that_there_is_answers_what_it_can_answer() {
    let ask_md5 = authentication(5, b"salt");
    let ask_clear = authentication(3, b"");
    let welcome = [OK, KEY, READY].concat();
    let md5 = "f5a78bde8fb31ae1bb9a3b0a39b6a0f2";
    let keys = ServerCredential::ScramKeys { client_key: [1; 32], server_key: [2; 32] };
    for (credential, question, said) in [
        (ServerCredential::Password(Secret::new("secret")), &ask_clear, Some("secret")),
        (ServerCredential::Password(Secret::new("secret")), &ask_md5, Some(PASSWORD_BY_MD5)),
        (ServerCredential::Md5(Secret::new(md5)), &ask_md5, Some(HASH_BY_MD5)),
        (ServerCredential::Md5(Secret::new(md5)), &ask_clear, None),
        (keys.clone(), &ask_clear, None),
        (keys, &ask_md5, None),
        (ServerCredential::None, &ask_clear, None),
        (ServerCredential::None, &ask_md5, None),
    ] {
        let target = Target { credential: credential.clone(), ..target(1, SslMode::Disable) };
        let (result, all) = log_in_as(&target, &clear_text(), &[question, &welcome]).await;
        if let Some(said) = said {
            result.unwrap();
            let answer = frame(b'p', &[said.as_bytes(), b"\0"].concat());
            assert!(all.ends_with(&answer), "{credential:?} answered {:?}", all.escape_ascii().to_string());
        } else {
            let Err(ConnectErrorKind::Authentication(why)) = result else { panic!("{result:?}") };
            assert!(why.contains("user `app`"), "{why}");
        }
    }
    let md5 = Target { credential: ServerCredential::Md5(Secret::new(md5)), ..target(1, SslMode::Disable) };
    let (refused, _) = log_in_as(&md5, &clear_text(), &[ASK_SCRAM]).await;
    assert!(
        matches!(&refused, Err(ConnectErrorKind::Authentication(why)) if why.contains("md5")),
        "{refused:?}"
    );
}

fn bound(channel_binding: ChannelBinding) -> Target {
    let tls = NodeTls { channel_binding, ..NodeTls::new(SslMode::Require) };
    Target { tls: ServerTls::load(&tls).unwrap(), ..target(1, SslMode::Require) }
}

#[tokio::test]
async fn channel_binding_is_chosen_by_what_is_offered_and_wanted() {
    let both = authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    let encrypted = |end_point: Option<&[u8]>| Circumstances {
        random: [7; NONCE_LEN],
        tls: true,
        end_point: end_point.map(<[u8]>::to_vec),
    };
    let hash = Some(&b"hash"[..]);
    for (wanted, end_point, offered, first) in [
        (
            ChannelBinding::Prefer,
            hash,
            &both[..],
            "SCRAM-SHA-256-PLUS\0\0\0\0\x35p=tls-server-end-point,,n=,r=",
        ),
        (ChannelBinding::Require, hash, &both, "SCRAM-SHA-256-PLUS\0\0\0\0\x35p=tls-server-end-point,,n=,r="),
        (ChannelBinding::Prefer, hash, ASK_SCRAM, "SCRAM-SHA-256\0\0\0\0 y,,n=,r="),
        (ChannelBinding::Disable, hash, &both, "SCRAM-SHA-256\0\0\0\0 n,,n=,r="),
        (ChannelBinding::Prefer, None, &both, "SCRAM-SHA-256\0\0\0\0 n,,n=,r="),
    ] {
        let (ended, said) = log_in_as(&bound(wanted), &encrypted(end_point), &[offered, b""]).await;
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains(first), "{wanted:?} {ended:?} {said:?}");
    }
    let welcome = [OK, KEY, READY].concat();
    let (ask_md5, ask_clear) = (authentication(5, b"salt"), authentication(3, b""));
    for (end_point, offered) in
        [(hash, ASK_SCRAM), (None, &both[..]), (hash, &welcome), (hash, &ask_md5), (hash, &ask_clear)]
    {
        let (refused, said) =
            log_in_as(&bound(ChannelBinding::Require), &encrypted(end_point), &[offered, &welcome]).await;
        assert!(
            matches!(&refused, Err(ConnectErrorKind::Authentication(why)) if why.contains("channel_binding is `require`")),
            "{refused:?}"
        );
        // Nothing was said after the start-up packet.
        assert!(said.ends_with(b"test\0\0"), "{}", said.escape_ascii());
    }
    let (impostor, _) = log_in_as(&target(1, SslMode::Disable), &clear_text(), &[&both]).await;
    assert!(
        matches!(&impostor, Err(ConnectErrorKind::Authentication(why)) if why.contains("outside TLS")),
        "{impostor:?}"
    );
}

#[tokio::test]
async fn what_cannot_be_reached_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let env = TokioEnv::new();
    let refused = connect(&env, &target(port, SslMode::Prefer)).await.unwrap_err();
    assert!(matches!(refused.kind, ConnectErrorKind::Refused(_)), "{refused}");
    assert_eq!(refused.server_loss(), Some(ServerLoss::Refused));
    assert!(refused.to_string().starts_with("pg-1: connection refused"), "{refused}");
    let cancel = cancel(&env, &target(port, SslMode::Prefer), 7, &[0; 4]).await.unwrap_err();
    assert_eq!(cancel.kind(), io::ErrorKind::ConnectionRefused);

    // No resolver has to be asked to know that this is no host.
    let nowhere = Target { host: "no\0host".to_owned(), ..target(port, SslMode::Prefer) };
    let unreachable = connect(&env, &nowhere).await.unwrap_err();
    assert!(matches!(unreachable.probe_failure(), ProbeFailure::Unreachable(_)), "{unreachable}");
}

#[tokio::test]
async fn a_key_that_is_none_cancels_nothing() {
    let error = cancel(&TokioEnv::new(), &target(1, SslMode::Disable), 0, &[]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn no_parameter_says_again_who_it_is() {
    for name in ["user", "database"] {
        let parameters = vec![(name.to_owned(), "postgres".to_owned())];
        let target = Target { parameters, ..target(1, SslMode::Disable) };
        let (result, said) = log_in_as(&target, &clear_text(), &[&[OK, KEY, READY].concat()]).await;
        assert!(matches!(result, Err(ConnectErrorKind::Authentication(_))), "{name}: {result:?}");
        assert_eq!(said, b"", "{name}");
    }
}

#[tokio::test]
async fn a_name_with_a_zero_byte_is_not_sent() {
    let target = Target { user: "a\0b".to_owned(), ..target(1, SslMode::Disable) };
    let (client, _server) = duplex(64);
    let result = log_in(client, &target, VERSION, &clear_text()).await;
    assert!(matches!(result, Err(ConnectErrorKind::Authentication(_))), "{result:?}");
}

proptest! {
    #[test]
    fn any_server_is_survived(
        first in proptest::collection::vec(any::<u8>(), 0..80),
        frames in proptest::collection::vec(
            (prop::sample::select(&b"RSKZENAv"[..]), proptest::collection::vec(any::<u8>(), 0..30)), 0..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut framed = Vec::new();
        for (tag, body) in frames {
            framed.extend(frame(tag, &body));
        }
        for answers in [&[&first[..]] as &[&[u8]], &[&framed], &[ASK_SCRAM, &framed], &[&[OK, &framed].concat()]] {
            // Without a key and idle is the least that a server has to say to be one.
            if let Ok(backend) = runtime.block_on(log_in_to(answers)) {
                prop_assert!(backend.parameters.len() <= 5);
            }
        }
    }
}
