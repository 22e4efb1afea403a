//! The steps of a log-in, each a function of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use metako_core::hba::{ClientCertificate, Connection, Facts, Method, Unknown};
use metako_core::wire::sqlstate;
use metako_core::wire::write::Report;
use tokio::io::{AsyncRead, AsyncWrite};

use super::account::Account;
use super::encryption::{Request, first_request};
use super::incoming::Incoming;
use super::lookup::LookupError;
use super::prove::{Means, Proof, prove, wrong_password};
use super::request::SessionRequest;
use super::users::Access;
use super::{Accepted, Client, Entropy, LoginContext, LoginError, Newest, Replication, messages};
use crate::certificate;
use crate::credential::ServerCredential;
use crate::stream::MaybeTls;

pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    peer: SocketAddr,
    cx: &LoginContext,
    entropy: Entropy<'_>,
    newest: Newest<'_>,
) -> Result<Accepted<S>, LoginError> {
    let (mut incoming, request) = first_request(stream, cx).await?;
    let message = match request {
        Request::Cancel { process_id, secret_key } => {
            return Ok(Accepted::Cancel { stream: incoming.stream, process_id, secret_key });
        }
        Request::Session(message) => message,
    };
    // Whom a refusal is about.
    let claimed = message.parameter("user").map(str::to_owned);
    let admitted = async {
        let request = SessionRequest::read(message).map_err(LoginError::refused)?;
        let newest = newest(&request.user, request.replication);
        if let Some(minor) = request.negotiated_minor(newest) {
            incoming.send(&messages::negotiate(minor, &request.protocol_options)).await?;
        }
        let credential = log_in(&mut incoming, peer, cx, &request, entropy).await?;
        Ok((request.protocol(newest), request, credential))
    };
    let (protocol, request, credential) = match admitted.await {
        Ok(admitted) => admitted,
        Err(LoginError::Refused { report, reason, .. }) => {
            incoming.say_no(&report).await;
            return Err(LoginError::Refused { report, user: claimed, reason });
        }
        Err(error) => return Err(error),
    };
    Ok(Accepted::Session(Box::new(Client {
        protocol,
        stream: incoming.stream,
        user: request.user,
        database: request.database,
        parameters: request.parameters,
        replication: request.replication,
        credential,
        unsent: incoming.unsent,
        leftover: incoming.buffer.into(),
    })))
}

/// All that comes after the agreement on a protocol, to AuthenticationOk, which is left to be sent with what follows it.
/// A refusal is still to be told.
async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut Incoming<MaybeTls<S>>,
    peer: SocketAddr,
    cx: &LoginContext,
    request: &SessionRequest,
    entropy: Entropy<'_>,
) -> Result<ServerCredential, LoginError> {
    if request.user.is_empty() {
        let message = "no PostgreSQL user name specified in startup packet";
        return Err(LoginError::refused(Report::fatal(sqlstate::INVALID_AUTHORIZATION, message)));
    }
    let encrypted = incoming.stream.is_tls();
    let mut facts = Facts::default();
    let rule = admit(peer, cx, request, encrypted, &mut facts).await?;
    let shown = shown_certificate(&incoming.stream);
    let peer_address = peer.ip().to_canonical();
    if rule.certificate != ClientCertificate::NotAsked && shown.is_none() {
        let message = "connection requires a valid client certificate";
        return Err(LoginError::refused(Report::fatal(sqlstate::INVALID_AUTHORIZATION, message)));
    }
    let named = shown.as_deref().and_then(certificate::common_name);
    let account = account(cx, &request.user, peer_address, rule.method).await?;
    let end_point = cx.tls.as_ref().filter(|_| encrypted).and_then(|tls| tls.end_point.as_deref());
    let means = Means { end_point, entropy };
    let Proof { credential, last } = prove(incoming, rule.method, &account, &means).await?;
    if rule.certificate == ClientCertificate::Name {
        let maps = rule.map.as_deref().zip(cx.rules.as_deref().map(|rules| &rules.maps));
        let may = match (named.as_deref(), maps) {
            (Some(named), Some((map, maps))) => {
                settle(cx, &request.user, peer_address, &mut facts, |facts| {
                    maps.may_be(map, named, &request.user, facts)
                })
                .await?
            }
            (named, _) => named == Some(request.user.as_str()),
        };
        if !may {
            return Err(other_name(&request.user, named.as_deref(), rule.method));
        }
    }
    incoming.unsent = messages::authentication_ok(last);
    authorize(cx, request)?;
    Ok(credential)
}

/// What the rules demand of a client.
struct Admission {
    method: Method,
    certificate: ClientCertificate,
    map: Option<String>,
}

/// Finds the rule for a client, before anybody is asked for a password.
async fn admit(
    peer: SocketAddr,
    cx: &LoginContext,
    request: &SessionRequest,
    encrypted: bool,
    facts: &mut Facts,
) -> Result<Admission, LoginError> {
    let SessionRequest { user, database, .. } = request;
    if cx.require_tls && !encrypted {
        let report = not_let_in("no pg_hba.conf entry for", peer, request, encrypted)
            .with_hint("Set sslmode=require in the client.");
        return Err(LoginError::refused(report).because("security.require_tls is on"));
    }
    let Some(rules) = &cx.rules else {
        let (method, certificate) = (Method::ScramSha256, ClientCertificate::NotAsked);
        return Ok(Admission { method, certificate, map: None });
    };
    let connection = Connection {
        address: peer.ip(),
        tls: encrypted,
        user,
        database,
        physical_replication: request.replication == Some(Replication::Physical),
    };
    let address = peer.ip().to_canonical();
    let rule = settle(cx, user, address, facts, |facts| rules.hba.rule(&connection, facts)).await?;
    match rule {
        Some(rule) if rule.method == Method::Reject => {
            let report = not_let_in("pg_hba.conf rejects", peer, request, encrypted);
            Err(LoginError::refused(report).because(&format!("the rule in {}", rule.place())))
        }
        Some(rule) => {
            let (method, certificate, map) = (rule.method, rule.certificate, rule.map.clone());
            Ok(Admission { method, certificate, map })
        }
        None => Err(LoginError::refused(not_let_in("no pg_hba.conf entry for", peer, request, encrypted))),
    }
}

/// Finds out what a judgement depends on, as far as it does, and gives the judgement.
async fn settle<T>(
    cx: &LoginContext,
    user: &str,
    address: IpAddr,
    facts: &mut Facts,
    judge: impl Fn(&Facts) -> Result<T, Unknown>,
) -> Result<T, LoginError> {
    loop {
        match judge(facts) {
            Ok(judgement) => return Ok(judgement),
            Err(Unknown::Roles) => {
                facts.roles = Some(match &cx.roles {
                    Some(roles) => roles
                        .of(user, address)
                        .await
                        .map_err(|error| not_known("members of roles", "auth.hba_file", &error))?,
                    None => Arc::default(),
                });
            }
            Err(Unknown::Host) => {
                facts.host = Some(match &cx.hosts {
                    Some(hosts) => hosts
                        .host_of(address)
                        .await
                        .map_err(|error| not_known("names of hosts", "auth.hba_file", &error))?,
                    None => None,
                });
            }
        }
    }
}

/// PostgreSQL's words for a client that no rule lets in.
fn not_let_in(verb: &str, peer: SocketAddr, request: &SessionRequest, encrypted: bool) -> Report {
    let SessionRequest { user, database, .. } = request;
    let host = peer.ip().to_canonical();
    let encryption = if encrypted { "SSL encryption" } else { "no encryption" };
    let rejects = verb.ends_with("rejects");
    let message = if request.replication == Some(Replication::Physical) {
        let from = if rejects { "for" } else { "from" };
        format!("{verb} replication connection {from} host \"{host}\", user \"{user}\", {encryption}")
    } else {
        let what = if rejects { " connection for" } else { "" };
        format!("{verb}{what} host \"{host}\", user \"{user}\", database \"{database}\", {encryption}")
    };
    Report::fatal(sqlstate::INVALID_AUTHORIZATION, message)
}

/// The client's own certificate. What an authority did not sign has not come through the handshake.
fn shown_certificate<S>(stream: &MaybeTls<S>) -> Option<Vec<u8>> {
    match stream {
        MaybeTls::Plain(_) => None,
        MaybeTls::Tls(tls) => Some(tls.get_ref().1.peer_certificates()?.first()?.to_vec()),
    }
}

/// PostgreSQL's words for a certificate of another name.
fn other_name(user: &str, named: Option<&str>, method: Method) -> LoginError {
    let report = match method {
        Method::Cert => Report::fatal(
            sqlstate::INVALID_AUTHORIZATION,
            format!("certificate authentication failed for user \"{user}\""),
        ),
        Method::Trust => Report::fatal(
            sqlstate::INVALID_AUTHORIZATION,
            format!("\"trust\" authentication failed for user \"{user}\""),
        ),
        _ => wrong_password(user),
    };
    let named = named.map_or("no common name".to_owned(), |name| format!("the common name {name:?}"));
    LoginError::refused(report).because(&format!("the client's certificate has {named}"))
}

/// What is known of the user: by the configuration, else by the server.
async fn account<'a>(
    cx: &LoginContext,
    user: &'a str,
    address: IpAddr,
    method: Method,
) -> Result<Account<'a>, LoginError> {
    let by_password = !matches!(method, Method::Trust | Method::Cert);
    let stored = match (cx.users.stored(user), &cx.lookup) {
        (None, Some(lookup)) if by_password => {
            let found = lookup.stored(user, address, cx.users.salt(user)).await;
            Some(found.map_err(|error| not_known("passwords", "auth.query", &error))?)
        }
        (stored, _) => stored,
    };
    let strangers = cx.lookup.as_ref().map_or_else(|| cx.users.manner(), |lookup| lookup.manner());
    Ok(cx.users.account(user, stored.unwrap_or_default(), strangers))
}

/// Nobody can be told from a stranger while no server answers. The same for both.
fn not_known(what: &str, key: &str, error: &LookupError) -> LoginError {
    let report =
        Report::fatal(sqlstate::CANNOT_CONNECT_NOW, "the database system is not yet accepting connections")
            .with_detail(format!("metako cannot ask a server for {what} ({key}) now."));
    LoginError::refused(report).because(&format!("{key}: {error}"))
}

/// Whether the user, who is known by now, may use the database.
fn authorize(cx: &LoginContext, request: &SessionRequest) -> Result<(), LoginError> {
    let SessionRequest { user, database, .. } = request;
    if request.replication == Some(Replication::Physical) {
        if cx.users.may_replicate(user) {
            return Ok(());
        }
        let report = Report::fatal(sqlstate::INSUFFICIENT_PRIVILEGE, "permission denied to start WAL sender");
        let reason = "users[].databases of the user lacks the word `replication`";
        return Err(LoginError::refused(report).because(reason));
    }
    match cx.users.access(user, database) {
        Access::Granted => Ok(()),
        Access::Denied => {
            let message = format!("permission denied for database \"{database}\"");
            let report = Report::fatal(sqlstate::INSUFFICIENT_PRIVILEGE, message);
            Err(LoginError::refused(report).because("users[].databases of the user lacks it"))
        }
        Access::NoSuchDatabase => {
            let message = format!("database \"{database}\" does not exist");
            let report = Report::fatal(sqlstate::INVALID_CATALOG_NAME, message);
            Err(LoginError::refused(report)
                .because("no user of the configuration has it among its databases"))
        }
    }
}
