//! Users that the configuration does not name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use postgres_protocol::password;

use super::*;
use crate::credential::ServerCredential;

/// A server with these secrets; it cannot be asked for the user `broken`.
#[derive(Default)]
struct Server {
    secrets: BTreeMap<&'static str, String>,
    asked: AtomicUsize,
}

#[async_trait]
impl SecretLookup for Server {
    async fn look_up(&self, user: &str) -> Result<Option<Secret>, LookupError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if user == "broken" {
            return Err(LookupError("the query is wrong".to_owned()));
        }
        Ok(self.secrets.get(user).map(Secret::new))
    }
}

fn asking(server: Arc<Server>) -> Sources {
    Sources { secrets: Some(server), ..Sources::default() }
}

fn server() -> (Arc<Server>, LoginContext) {
    let secrets = [
        ("ann", password::scram_sha_256(b"tiger")),
        ("old", password::md5(b"tiger", "old")),
        ("app", password::scram_sha_256(b"of the server")),
        ("none", String::new()),
    ];
    let server = Arc::new(Server { secrets: secrets.into(), asked: AtomicUsize::new(0) });
    let mut users = Users::empty(&[9; 32]);
    users.add("app", &Secret::new("secret"), Some(&["shop".to_owned()]));
    let cx = LoginContext::of_users(users, asking(Arc::clone(&server)));
    (server, cx)
}

#[tokio::test]
async fn a_secret_of_the_server_lets_in_and_gives_its_keys() {
    let (server, cx) = server();
    for _ in 0..2 {
        let (client, session) = serve_session(cx.clone());
        drop(driver("ann", "tiger", "any").connect_raw(client, NoTls).await.unwrap());
        let session = session.await.unwrap();
        assert_eq!(session.database, "any");
        assert!(matches!(session.credential, ServerCredential::ScramKeys { .. }));
    }
    // At each log-in: what has changed there holds at once.
    assert_eq!(server.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_configuration_goes_first() {
    let (server, cx) = server();
    let (client, session) = serve_session(cx.clone());
    drop(driver("app", "secret", "shop").connect_raw(client, NoTls).await.unwrap());
    session.await.unwrap();
    assert_eq!(refusal(cx, "app", "of the server", "shop").await.0, "28P01");
    assert_eq!(server.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn strangers_look_like_users() {
    let (server, cx) = server();
    let mut shown = Vec::new();
    for user in ["ann", "nobody", "none", "old"] {
        let (code, message, _) = refusal(cx.clone(), user, "lion", "any").await;
        assert_eq!(code, "28P01");
        shown.push(message.replace(user, "USER"));
    }
    shown.dedup();
    assert_eq!(shown, ["password authentication failed for user \"USER\""]);
    assert_eq!(server.asked.load(Ordering::SeqCst), 4);
    // Its MD5 secret is no use for SCRAM.
    assert_eq!(refusal(cx, "old", "tiger", "any").await.0, "28P01");
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_lets_nobody_in() {
    let (_, cx) = server();
    let (code, message, error) = refusal(cx, "broken", "tiger", "any").await;
    assert_eq!(code, "57P03");
    assert!(!message.contains("query"), "{message}");
    let LoginError::Refused { reason: Some(reason), .. } = error else { panic!("{error}") };
    assert_eq!(reason, "auth.query: the query is wrong");
}

/// The server's first message of SCRAM shows salt and iterations: they tell nothing.
#[tokio::test]
async fn strangers_are_asked_for_as_many_iterations_as_users() {
    let slow = |password: &[u8]| password::scram_sha_256(password).replacen("4096", "10000", 1);
    let secrets = [("ann", slow(b"tiger")), ("joe", slow(b"lion"))];
    let server = Arc::new(Server { secrets: secrets.into(), asked: AtomicUsize::new(0) });
    let cx = LoginContext::of_users(Users::empty(&[9; 32]), asking(server));
    for user in ["ann", "nobody", "joe", "somebody"] {
        let (mut client, _outcome) = serve(cx.clone());
        client.write_all(&startup(3 << 16, format!("user\0{user}\0").as_bytes())).await.unwrap();
        assert_eq!(frame(&mut client).await.0, b'R');
        client.write_all(&sasl_initial(b"SCRAM-SHA-256", Some(b"n,,n=,r=abc"))).await.unwrap();
        let (_, first) = frame(&mut client).await;
        assert!(first.ends_with(b",i=10000"), "{user}: {}", first.escape_ascii());
    }
}
