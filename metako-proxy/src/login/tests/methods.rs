//! Rules and methods: what each asks of a client, and what servers are given in the end.

use metako_core::hba::{self, HbaFiles};
use postgres_protocol::{authentication, password};

use super::*;
use crate::credential::ServerCredential;

struct OneFile(String);

impl HbaFiles for OneFile {
    fn file(&self, _path: &std::path::Path) -> io::Result<String> {
        Ok(self.0.clone())
    }

    fn folder(&self, _path: &std::path::Path) -> io::Result<Vec<std::path::PathBuf>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn interfaces(&self) -> io::Result<Vec<hba::Network>> {
        Ok(Vec::new())
    }
}

pub(super) fn rules(text: &str) -> Arc<Rules> {
    rules_and_maps(text, "")
}

pub(super) fn rules_and_maps(text: &str, maps: &str) -> Arc<Rules> {
    let path = std::path::Path::new("file");
    let hba = hba::load(path, &OneFile(text.to_owned())).unwrap_or_else(|problems| panic!("{problems:?}"));
    let maps =
        hba::load_maps(path, &OneFile(maps.to_owned())).unwrap_or_else(|problems| panic!("{problems:?}"));
    Arc::new(Rules { hba, maps })
}

/// `clear`, `scram` and `md5` have the password `tiger`, each kept in another way.
fn context_with(text: &str) -> LoginContext {
    let mut users = Users::empty(&[9; 32]);
    users.add("clear", &Secret::new("tiger"), None);
    users.add("scram", &Secret::new(password::scram_sha_256(b"tiger")), None);
    users.add("md5", &Secret::new(password::md5(b"tiger", "md5")), None);
    LoginContext { rules: Some(rules(text)), ..LoginContext::of_users(users, Sources::default()) }
}

/// Logs in with tokio-postgres, which answers whatever it is asked; gives what servers are given.
async fn log_in(text: &str, user: &str, password: &str) -> Result<ServerCredential, (String, String)> {
    let (client, outcome) = serve(context_with(text));
    let session = tokio::spawn(async move {
        match outcome.await.unwrap() {
            Ok(Accepted::Session(mut client)) => {
                welcome_to(&mut client.stream).await;
                Some(client.credential)
            }
            _ => None,
        }
    });
    match driver(user, password, "shop").connect_raw(client, NoTls).await {
        Ok(_) => Ok(session.await.unwrap().unwrap()),
        Err(error) => {
            let error = error.as_db_error().unwrap_or_else(|| panic!("{error}"));
            assert!(session.await.unwrap().is_none());
            Err((error.code().code().to_owned(), error.message().to_owned()))
        }
    }
}

/// Members of roles: `clear` is one of `ops` and of `shop`; nobody can be asked about `md5`.
struct Members;

#[async_trait::async_trait]
impl RoleLookup for Members {
    async fn roles_of(&self, user: &str) -> Result<std::collections::BTreeSet<String>, LookupError> {
        match user {
            "clear" => Ok(["clear", "ops", "shop"].map(str::to_owned).into()),
            "md5" => Err(LookupError("no server answers".to_owned())),
            user => Ok([user.to_owned()].into()),
        }
    }
}

/// Every client comes from `db.example.org`.
#[derive(Debug)]
struct OneHost;

#[async_trait::async_trait]
impl HostNames for OneHost {
    async fn host_of(&self, _address: std::net::IpAddr) -> Result<Option<String>, LookupError> {
        Ok(Some("db.example.org".to_owned()))
    }
}

#[tokio::test]
async fn rules_may_ask_for_roles_and_hosts() {
    let text = "host other,samerole +ops .example.org trust\nhost all scram db.example.org reject\n";
    let mut cx = context_with(text);
    cx.roles = Some(Arc::new(SharedRoles::new(Arc::new(Members))));
    cx.hosts = Some(Arc::new(OneHost));
    let (client, session) = serve_session(cx.clone());
    drop(driver("clear", "", "shop").connect_raw(client, NoTls).await.unwrap());
    assert_eq!(session.await.unwrap().credential, ServerCredential::Password(Secret::new("tiger")));
    for (user, database, code, words) in [
        ("clear", "stock", "28000", "no pg_hba.conf entry for host"),
        ("scram", "shop", "28000", "pg_hba.conf rejects connection for host"),
        ("nobody", "other", "28000", "no pg_hba.conf entry for host"),
        ("md5", "other", "57P03", "the database system is not yet accepting connections"),
    ] {
        let refused = refusal(cx.clone(), user, "tiger", database).await;
        assert!(refused.0 == code && refused.1.starts_with(words), "{user} {database}: {refused:?}");
    }
}

fn password_is_wrong(user: &str) -> Result<ServerCredential, (String, String)> {
    Err(("28P01".to_owned(), format!("password authentication failed for user \"{user}\"")))
}

fn given(password: &str) -> ServerCredential {
    ServerCredential::Password(Secret::new(password))
}

const NAMES: [&str; 4] = ["clear", "scram", "md5", "nobody"];

#[tokio::test]
async fn trust_lets_everybody_in_with_what_is_known_of_them() {
    let rule = "host all all all trust";
    assert_eq!(log_in(rule, "clear", "wrong").await, Ok(given("tiger")));
    assert_eq!(log_in(rule, "scram", "wrong").await, Ok(ServerCredential::None));
    assert_eq!(log_in(rule, "nobody", "").await, Ok(ServerCredential::None));
    assert!(matches!(log_in(rule, "md5", "").await, Ok(ServerCredential::Md5(_))));
}

#[tokio::test]
async fn a_password_in_clear_is_good_for_every_server() {
    let rule = "host all all all password";
    for user in ["clear", "scram", "md5"] {
        assert_eq!(log_in(rule, user, "tiger").await, Ok(given("tiger")), "{user}");
    }
    for user in NAMES {
        assert_eq!(log_in(rule, user, "lion").await, password_is_wrong(user), "{user}");
    }
}

#[tokio::test]
async fn md5_means_scram_where_a_scram_secret_is_kept() {
    let rule = "host all all all md5";
    assert_eq!(log_in(rule, "clear", "tiger").await, Ok(given("tiger")));
    let hex = password::md5(b"tiger", "md5")[3..].to_owned();
    assert_eq!(log_in(rule, "md5", "tiger").await, Ok(ServerCredential::Md5(Secret::new(hex))));
    assert!(matches!(log_in(rule, "scram", "tiger").await, Ok(ServerCredential::ScramKeys { .. })));
    for user in NAMES {
        assert_eq!(log_in(rule, user, "lion").await, password_is_wrong(user), "{user}");
    }
}

#[tokio::test]
async fn scram_shows_the_keys_that_servers_want() {
    let rule = "host all all all scram-sha-256";
    assert_eq!(log_in(rule, "clear", "tiger").await, Ok(given("tiger")));
    let Ok(ServerCredential::ScramKeys { client_key, .. }) = log_in(rule, "scram", "tiger").await else {
        panic!("no keys")
    };
    assert_ne!(client_key, [0; 32]);
    // An MD5 secret cannot be proved by SCRAM, whatever the password.
    assert_eq!(log_in(rule, "md5", "tiger").await, password_is_wrong("md5"));
    for user in NAMES {
        assert_eq!(log_in(rule, user, "lion").await, password_is_wrong(user), "{user}");
    }
}

#[tokio::test]
async fn who_is_not_let_in_is_told_so_in_postgresqls_words() {
    let rules = "host shop clear all reject\nhost all scram 10.0.0.0/8 trust\nhost other all all trust\n";
    let place = "host \"192.0.2.7\", user";
    assert_eq!(
        log_in(rules, "clear", "tiger").await,
        Err((
            "28000".to_owned(),
            format!("pg_hba.conf rejects connection for {place} \"clear\", database \"shop\", no encryption")
        ))
    );
    assert_eq!(
        log_in(rules, "scram", "tiger").await,
        Err((
            "28000".to_owned(),
            format!("no pg_hba.conf entry for {place} \"scram\", database \"shop\", no encryption")
        ))
    );
}

#[tokio::test]
async fn who_replicates_is_told_so_too() {
    for (rule, message) in [
        (
            "host replication all all reject",
            "pg_hba.conf rejects replication connection for host \"192.0.2.7\", user \"clear\", no encryption",
        ),
        (
            "host all all all trust",
            "no pg_hba.conf entry for replication connection from host \"192.0.2.7\", user \"clear\", no encryption",
        ),
    ] {
        let (mut client, outcome) = serve(context_with(rule));
        client.write_all(&startup(0x0003_0000, b"user\0clear\0replication\0on\0")).await.unwrap();
        assert_eq!(fatal_code(&mut client).await, "28000");
        let Err(LoginError::Refused { report, .. }) = outcome.await.unwrap() else { panic!("let in") };
        assert_eq!(report.message, message);
    }
}

/// A client that is asked by `rule` and answers with these bytes; the SQLSTATE of its refusal.
async fn answer(rule: &str, bytes: &[u8]) -> String {
    let (mut client, _outcome) = serve(context_with(rule));
    client.write_all(&startup(0x0003_0000, b"user\0clear\0")).await.unwrap();
    assert_eq!(frame(&mut client).await.0, b'R');
    client.write_all(bytes).await.unwrap();
    fatal_code(&mut client).await
}

#[tokio::test]
async fn broken_passwords_are_refused() {
    for rule in ["host all all all password", "host all all all md5"] {
        assert_eq!(answer(rule, &sasl(b"\0")).await, "28P01");
        assert_eq!(answer(rule, &sasl(b"tiger")).await, "08P01");
        assert_eq!(answer(rule, &sasl(b"ti\0ger\0")).await, "08P01");
        assert_eq!(answer(rule, &sasl(b"\xff\xfe\0")).await, "28P01");
        assert_eq!(answer(rule, b"Q\0\0\0\x05\0").await, "08P01");
    }
    // The answer to another salt.
    let replayed = authentication::md5_hash(b"clear", b"tiger", [1, 2, 3, 4]);
    assert_eq!(answer("host all all all md5", &sasl(&[replayed.as_bytes(), b"\0"].concat())).await, "28P01");
}
