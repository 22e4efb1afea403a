//! The steps of a log-in, each a function of its own.

use std::sync::Arc;

use metako_core::wire::sqlstate;
use metako_core::wire::startup::{Startup, StartupMessage};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::incoming::Incoming;
use super::request::SessionRequest;
use super::scram::{Exchange, InitialResponse, MECHANISM, NONCE_LEN, ScramError};
use super::users::Access;
use super::{Accepted, Client, Entropy, LoginContext, LoginError, Protocol, Replication, messages};
use crate::stream::MaybeTls;

/// What a connection is for.
pub(super) enum Request {
    Cancel { process_id: i32, secret_key: Vec<u8> },
    Session(StartupMessage),
}

pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    cx: &LoginContext,
    entropy: Entropy<'_>,
) -> Result<Accepted<S>, LoginError> {
    let (mut incoming, request) = first_request(Incoming::new(MaybeTls::Plain(stream)), cx).await?;
    let request = match request {
        Request::Cancel { process_id, secret_key } => {
            return Ok(Accepted::Cancel { stream: incoming.stream, process_id, secret_key });
        }
        Request::Session(message) => SessionRequest::from(message),
    };
    check(&mut incoming, cx, &request).await?;
    // The value was checked.
    let replication = request.wants_replication().unwrap_or_default();
    if request.wants_more() {
        incoming.send(&messages::negotiate(request.protocol_options)).await?;
    }
    authenticate(&mut incoming, cx, &request.user, entropy).await?;
    // Physical replication is of all databases: as in pg_hba.conf it goes by a name of its own.
    let physical = replication == Some(Replication::Physical);
    let database = if physical { "replication" } else { &request.database };
    authorize(&mut incoming, cx, &request.user, database).await?;
    Ok(Accepted::Session(Client {
        stream: incoming.stream,
        user: request.user.clone(),
        database: request.database,
        parameters: request.parameters,
        protocol: Protocol::V3_0,
        replication,
        credential: cx.users.credential(&request.user),
        leftover: incoming.buffer.into(),
    }))
}

/// Goes through requests for encryption until the client says what it wants.
async fn first_request<S: AsyncRead + AsyncWrite + Unpin>(
    mut incoming: Incoming<MaybeTls<S>>,
    cx: &LoginContext,
) -> Result<(Incoming<MaybeTls<S>>, Request), LoginError> {
    let (mut tls_asked, mut gss_asked) = (false, false);
    loop {
        match incoming.packet().await? {
            Startup::Ssl if !tls_asked => {
                tls_asked = true;
                nothing_buffered(&mut incoming).await?;
                incoming = answer_ssl_request(incoming, cx).await?;
            }
            Startup::GssEncryption if !gss_asked => {
                gss_asked = true;
                nothing_buffered(&mut incoming).await?;
                incoming.send(b"N").await?;
            }
            Startup::Ssl | Startup::GssEncryption => {
                return Err(incoming
                    .refuse(sqlstate::FEATURE_NOT_SUPPORTED, "encryption was asked for a second time")
                    .await);
            }
            Startup::Cancel { process_id, secret_key } => {
                return Ok((incoming, Request::Cancel { process_id, secret_key }));
            }
            Startup::Session(message) => return Ok((incoming, Request::Session(message))),
        }
    }
}

/// Refuses a client that sent more than its request for encryption: somebody in between may have added it in clear, to
/// be taken for the client's own words inside TLS (CVE-2021-23214).
async fn nothing_buffered<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut Incoming<S>,
) -> Result<(), LoginError> {
    if incoming.buffer.is_empty() {
        return Ok(());
    }
    Err(incoming
        .refuse(sqlstate::PROTOCOL_VIOLATION, "received unencrypted data after the request for encryption")
        .await)
}

async fn answer_ssl_request<S: AsyncRead + AsyncWrite + Unpin>(
    mut incoming: Incoming<MaybeTls<S>>,
    cx: &LoginContext,
) -> Result<Incoming<MaybeTls<S>>, LoginError> {
    let Some(config) = &cx.tls else {
        incoming.send(b"N").await?;
        return Ok(incoming);
    };
    incoming.send(b"S").await?;
    let MaybeTls::Plain(stream) = incoming.stream else {
        return Err(LoginError::Protocol("TLS inside TLS".to_owned()));
    };
    let acceptor = TlsAcceptor::from(Arc::clone(config));
    let tls = acceptor.accept(stream).await.map_err(LoginError::Tls)?;
    Ok(Incoming::new(MaybeTls::Tls(Box::new(TlsStream::Server(tls)))))
}

/// What can be refused before anybody is asked for a password.
async fn check<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut Incoming<MaybeTls<S>>,
    cx: &LoginContext,
    request: &SessionRequest,
) -> Result<(), LoginError> {
    let (code, message) = if request.user.is_empty() {
        (sqlstate::INVALID_AUTHORIZATION, "no user name specified in the start-up packet".to_owned())
    } else if cx.require_tls && !incoming.stream.is_tls() {
        let (user, database) = (&request.user, &request.database);
        let message = format!(
            "no encryption: user \"{user}\" may connect to database \"{database}\" with TLS only; \
             set sslmode=require in the client"
        );
        (sqlstate::INVALID_AUTHORIZATION, message)
    } else {
        match request.wants_replication() {
            Ok(_) => return Ok(()),
            Err(value) => ("22023", format!("invalid value for parameter \"replication\": \"{value}\"")),
        }
    };
    Err(incoming.refuse(code, &message).await)
}

/// SCRAM-SHA-256. A user who does not exist is led through it like any other, to the same end as a wrong password.
async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut Incoming<S>,
    cx: &LoginContext,
    user: &str,
    entropy: Entropy<'_>,
) -> Result<(), LoginError> {
    let verifier = cx.users.verifier(user);
    incoming.send(&messages::sasl()).await?;
    let initial = incoming.sasl_message().await?;
    let client_first = match InitialResponse::parse(&initial) {
        Ok(response) if response.mechanism != MECHANISM.as_bytes() => {
            let message = "client selected an invalid SASL authentication mechanism";
            return Err(incoming.refuse(sqlstate::PROTOCOL_VIOLATION, message).await);
        }
        Ok(InitialResponse { data: Some(data), .. }) => initial.slice_ref(data),
        Ok(_) => {
            incoming.send(&messages::sasl_continue("")).await?;
            incoming.sasl_message().await?
        }
        Err(error) => return Err(refuse_scram(incoming, user, error).await),
    };

    let mut random = [0; NONCE_LEN];
    entropy(&mut random);
    let exchange = match Exchange::begin(&verifier, &client_first, random) {
        Ok(exchange) => exchange,
        Err(error) => return Err(refuse_scram(incoming, user, error).await),
    };
    incoming.send(&messages::sasl_continue(exchange.server_first())).await?;
    let client_final = incoming.sasl_message().await?;
    match exchange.finish(&client_final) {
        Ok(server_final) => incoming.send(&messages::sasl_final(&server_final)).await,
        Err(error) => Err(refuse_scram(incoming, user, error).await),
    }
}

async fn refuse_scram<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut Incoming<S>,
    user: &str,
    error: ScramError,
) -> LoginError {
    match error {
        ScramError::WrongPassword => {
            incoming
                .refuse(
                    sqlstate::INVALID_PASSWORD,
                    &format!("password authentication failed for user \"{user}\""),
                )
                .await
        }
        ScramError::Malformed(problem) => {
            incoming
                .refuse(sqlstate::PROTOCOL_VIOLATION, &format!("malformed SCRAM message: {problem}"))
                .await
        }
    }
}

/// Whether the user, who is known by now, may use the database.
async fn authorize<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut Incoming<S>,
    cx: &LoginContext,
    user: &str,
    database: &str,
) -> Result<(), LoginError> {
    match cx.users.access(user, database) {
        Access::Granted => Ok(()),
        Access::Denied => {
            Err(incoming.refuse("42501", &format!("permission denied for database \"{database}\"")).await)
        }
        Access::NoSuchDatabase => Err(incoming
            .refuse(sqlstate::INVALID_CATALOG_NAME, &format!("database \"{database}\" does not exist"))
            .await),
    }
}
