//! Direct TLS, channel binding and the certificates of clients.

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::super::tls::ALPN;
use super::methods::{rules, rules_and_maps};
use super::version_1::authority;
use super::*;
use crate::backend::tls_server_end_point;

/// An authority, and a context whose clients may show its certificates.
struct World {
    authority: CertifiedIssuer<'static, KeyPair>,
    own: CertificateDer<'static>,
    cx: LoginContext,
}

fn world(text: &str) -> World {
    let authority = authority();
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        write_alone(&dir.path().join(name), &text);
        dir.path().join(name)
    };
    let files =
        TlsFiles { cert: write("cert", own.cert.pem()), key: write("key", own.signing_key.serialize_pem()) };
    let ca = write("ca", authority.pem());
    let tls = Some(ServerTls::load(&files, Some(&ca)).unwrap());
    let rules = (!text.is_empty()).then(|| rules(text));
    World { authority, own: own.cert.der().clone(), cx: LoginContext { rules, tls, ..context() } }
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(authority: &CertifiedIssuer<'static, KeyPair>, name: &str) -> Identity {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

impl World {
    fn connector(&self, identity: Option<Identity>, protocols: &[&[u8]]) -> TlsConnector {
        self.connector_of(rustls::DEFAULT_VERSIONS, identity, protocols)
    }

    fn connector_of(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        identity: Option<Identity>,
        protocols: &[&[u8]],
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.own.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut client = match identity {
            Some((chain, key)) => {
                // Without a look at whether they fit.
                let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
                let shown = SingleCertAndKey::from(CertifiedKey::new(chain, key));
                client.with_client_cert_resolver(Arc::new(shown))
            }
            None => client.with_no_client_auth(),
        };
        client.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        TlsConnector::from(Arc::new(client))
    }

    /// The SQLSTATE and message with which a client is refused, or `None` if it is let in.
    async fn log_in(&self, user: &str, identity: Option<Identity>) -> Option<(String, String)> {
        let (client, outcome) = serve(self.cx.clone());
        let session = tokio::spawn(async move {
            if let Ok(Accepted::Session(mut client)) = outcome.await.unwrap() {
                welcome_to(&mut client.stream).await;
            }
        });
        let client = over_tls(client, self.connector(identity, &[])).await;
        let refused = driver(user, "secret", "shop").connect_raw(client, NoTls).await.err();
        session.await.unwrap();
        let refused = refused.as_ref().map(|error| error.as_db_error().unwrap_or_else(|| panic!("{error}")));
        refused.map(|error| (error.code().code().to_owned(), error.message().to_owned()))
    }
}

fn told(code: &str, message: &str) -> (String, String) {
    (code.to_owned(), message.to_owned())
}

#[tokio::test]
async fn a_certificate_for_the_user_lets_in_without_a_password() {
    let world = world("hostssl all all all cert");
    assert_eq!(world.log_in("app", Some(identity(&world.authority, "app"))).await, None);
    assert_eq!(
        world.log_in("app", Some(identity(&world.authority, "report"))).await,
        Some(told("28000", "certificate authentication failed for user \"app\""))
    );
    assert_eq!(
        world.log_in("app", None).await,
        Some(told("28000", "connection requires a valid client certificate"))
    );
}

#[tokio::test]
async fn a_map_says_which_users_the_name_in_a_certificate_may_be() {
    let mut world = world("hostssl all all all trust");
    world.cx.rules = Some(rules_and_maps(
        "hostssl all all all cert map=people\n",
        "people /^(.*)@example\\.org$ \\1\npeople boss app\nothers app app\n",
    ));
    let named = |name| Some(identity(&world.authority, name));
    let refused = Some(told("28000", "certificate authentication failed for user \"app\""));
    for (name, expected) in [
        ("app@example.org", None),
        ("boss", None),
        ("app", refused.clone()),
        ("report@example.org", refused.clone()),
        ("app@example.com", refused),
    ] {
        assert_eq!(world.log_in("app", named(name)).await, expected, "{name}");
    }
}

#[tokio::test]
async fn a_certificate_may_be_asked_for_besides_the_password() {
    let world = world(
        "hostssl all app all scram-sha-256 clientcert=verify-full\nhostssl all all all trust clientcert=verify-ca",
    );
    let named = |name| Some(identity(&world.authority, name));
    assert_eq!(world.log_in("app", named("app")).await, None);
    assert_eq!(
        world.log_in("app", named("other")).await,
        Some(told("28P01", "password authentication failed for user \"app\""))
    );
    assert_eq!(
        world.log_in("app", None).await,
        Some(told("28000", "connection requires a valid client certificate"))
    );
    // Whose it is does not matter here.
    assert_eq!(world.log_in("nobody", named("other")).await, None);
    assert_eq!(
        world.log_in("nobody", None).await,
        Some(told("28000", "connection requires a valid client certificate"))
    );
}

#[tokio::test]
async fn a_certificate_of_a_stranger_ends_the_handshake() {
    let world = world("hostssl all all all trust");
    let (client, outcome) = serve(world.cx.clone());
    let mut client = client;
    client.write_all(&SSL_REQUEST).await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'S');
    let connector = world.connector(Some(identity(&authority(), "app")), &[]);
    // With TLS 1.3 the client believes that it is through before it hears that it is not.
    if let Ok(mut tls) = connector.connect(ServerName::try_from("localhost").unwrap(), client).await {
        assert!(tls.read_u8().await.is_err());
    }
    assert!(matches!(outcome.await.unwrap(), Err(LoginError::Tls(_))));
    // Without rules that ask for one, none is needed.
    assert_eq!(self::world("").log_in("app", None).await, None);
}

#[tokio::test]
async fn a_certificate_of_version_1_is_as_good() {
    let world = world("hostssl all all all cert");
    let shown = |authority: &CertifiedIssuer<'static, KeyPair>, proven_by: Option<KeyPair>| {
        let own = KeyPair::generate().unwrap();
        let certificate = version_1::certificate(authority, "app", &own);
        let key = proven_by.unwrap_or(own);
        (vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    };
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (identity, is_let_in) in [
            (shown(&world.authority, None), true),
            (shown(&authority(), None), false),
            (shown(&world.authority, Some(KeyPair::generate().unwrap())), false),
        ] {
            let connector = world.connector_of(&[version], Some(identity), &[]);
            let (client, outcome) = serve(world.cx.clone());
            let mut client = client;
            client.write_all(&SSL_REQUEST).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'S');
            let tls = connector.connect(ServerName::try_from("localhost").unwrap(), client).await;
            if is_let_in {
                let mut tls = tls.unwrap();
                tls.write_all(&startup(3 << 16, b"user\0app\0database\0shop\0")).await.unwrap();
                tls.flush().await.unwrap();
                let Ok(Accepted::Session(session)) = outcome.await.unwrap() else { panic!("no session") };
                assert_eq!(session.user, "app");
            } else {
                // With TLS 1.3 the client believes that it is through before it hears that it is not.
                if let Ok(mut tls) = tls {
                    assert!(tls.read_u8().await.is_err());
                }
                assert!(matches!(outcome.await.unwrap(), Err(LoginError::Tls(_))));
            }
        }
    }
}

#[tokio::test]
async fn encryption_is_named_where_no_rule_fits() {
    let world = world("hostnossl all all all trust");
    assert_eq!(
        world.log_in("app", None).await,
        Some(told(
            "28000",
            "no pg_hba.conf entry for host \"192.0.2.7\", user \"app\", database \"shop\", SSL encryption"
        ))
    );
}

#[tokio::test]
async fn log_ins_are_bound_to_the_certificate() {
    let world = world("");
    let hash = tls_server_end_point(&world.own).unwrap();
    for (bound_to, code) in [(hash, None), (vec![0; 32], Some("28000"))] {
        let (client, outcome) = serve(world.cx.clone());
        let mut client = over_tls(client, world.connector(None, &[])).await;
        client.write_all(&startup(0x0003_0000, b"user\0app\0database\0shop\0")).await.unwrap();
        client.flush().await.unwrap();
        let offer = b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0".to_vec();
        assert_eq!(frame(&mut client).await, (b'R', offer));
        let mut scram = ScramSha256::new(b"secret", ChannelBinding::tls_server_end_point(bound_to));
        client.write_all(&sasl_initial(b"SCRAM-SHA-256-PLUS", Some(scram.message()))).await.unwrap();
        client.flush().await.unwrap();
        scram.update(&frame(&mut client).await.1[4..]).unwrap();
        client.write_all(&sasl(scram.message())).await.unwrap();
        client.flush().await.unwrap();
        match code {
            None => {
                scram.finish(&frame(&mut client).await.1[4..]).unwrap();
                assert!(matches!(outcome.await.unwrap(), Ok(Accepted::Session(_))));
            }
            Some(code) => {
                let (tag, body) = frame(&mut client).await;
                assert_eq!((tag, metako_core::wire::read::error(&body).code), (b'E', code.as_bytes()));
            }
        }
    }
}

#[tokio::test]
async fn tls_may_begin_at_once_if_the_protocol_is_named() {
    let world = world("");
    let name = || ServerName::try_from("localhost").unwrap();
    for encrypted_cancel in [false, true] {
        let (client, outcome) = serve(world.cx.clone());
        let mut client = world.connector(None, &[b"postgresql"]).connect(name(), client).await.unwrap();
        assert_eq!(client.get_ref().1.alpn_protocol(), Some(ALPN));
        if encrypted_cancel {
            client.write_all(&CANCEL_REQUEST).await.unwrap();
            client.flush().await.unwrap();
            assert!(matches!(outcome.await.unwrap(), Ok(Accepted::Cancel { process_id: 7, .. })));
            continue;
        }
        // As PostgreSQL does: a request inside is answered, and not with TLS in TLS.
        client.write_all(&SSL_REQUEST).await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'N');
        client.write_all(&startup(0x0003_0002, b"user\0app\0database\0shop\0")).await.unwrap();
        client.flush().await.unwrap();
        prove(&mut client, "secret").await;
        let Ok(Accepted::Session(session)) = outcome.await.unwrap() else { panic!("no session") };
        assert!(session.stream.is_tls());
        assert_eq!(session.protocol, Protocol::V3_2);
    }
    // Not named: the handshake succeeds, and then the connection ends.
    let (client, outcome) = serve(world.cx.clone());
    let mut client = world.connector(None, &[]).connect(name(), client).await.unwrap();
    assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
    let Err(LoginError::Protocol(problem)) = outcome.await.unwrap() else { panic!("let in") };
    assert!(problem.contains("without ALPN"), "{problem}");
    // Another one: the handshake fails, also when TLS was asked for.
    let (client, outcome) = serve(world.cx.clone());
    assert!(world.connector(None, &[b"http/1.1"]).connect(name(), client).await.is_err());
    assert!(matches!(outcome.await.unwrap(), Err(LoginError::Tls(_))));
    // It is told to a client that asked for TLS, too.
    let (client, _outcome) = serve(world.cx.clone());
    let client = over_tls(client, world.connector(None, &[b"postgresql"])).await;
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(ALPN));
}

/// A certificate is looked at in every handshake: what was good an hour ago may have expired, or be of an authority that
/// is no longer known.
#[tokio::test]
async fn no_tls_session_is_resumed() {
    let world = world("hostssl all all all cert");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut roots = RootCertStore::empty();
        roots.add(world.own.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (chain, key) = identity(&world.authority, "app");
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        for _ in 0..3 {
            let (client, session) = serve_session(world.cx.clone());
            let mut client = over_tls(client, connector.clone()).await;
            client.write_all(&startup(3 << 16, b"user\0app\0database\0shop\0")).await.unwrap();
            // With this the client has read all that the server sent for later handshakes, too.
            assert_eq!(frame(&mut client).await.0, b'R');
            let (_, connection) = client.get_ref();
            assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
            session.await.unwrap();
        }
    }
}
