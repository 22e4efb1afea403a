//! How a client proves who it is: one function for each method.

use metako_core::hba::Method;
use metako_core::wire::sqlstate;
use metako_core::wire::write::Report;
use tokio::io::{AsyncRead, AsyncWrite};

use super::account::{Account, Stored};
use super::incoming::Incoming;
use super::scram::{Binding, Exchange, InitialResponse, Mechanism, NONCE_LEN, Proven, ScramError};
use super::{Entropy, LoginError, messages};
use crate::credential::ServerCredential;

/// A client that has proved who it is.
pub(super) struct Proof {
    /// What metako logs in to servers with for it.
    pub(super) credential: ServerCredential,
    /// What it has to be sent before AuthenticationOk.
    pub(super) last: Vec<u8>,
}

impl Proof {
    fn of(credential: ServerCredential) -> Self {
        Self { credential, last: Vec::new() }
    }
}

/// What metako may do on a connection to have the user proved.
pub(super) struct Means<'a> {
    /// The hash of metako's certificate, if the connection is encrypted with it.
    pub(super) end_point: Option<&'a [u8]>,
    pub(super) entropy: Entropy<'a>,
}

/// Has the client prove that it is the user.
///
/// # Errors
/// A refusal that the client still has to be told, or the end of the connection.
pub(super) async fn prove<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut Incoming<S>,
    method: Method,
    account: &Account<'_>,
    means: &Means<'_>,
) -> Result<Proof, LoginError> {
    match method {
        // What a certificate has to show was looked at before.
        Method::Trust | Method::Cert => Ok(Proof::of(account.credential())),
        Method::Reject => Err(LoginError::refused(wrong_password(account.user))),
        Method::Password => password(incoming, account).await,
        Method::Md5 if account.speaks_md5() => md5(incoming, account, means).await,
        Method::Md5 | Method::ScramSha256 => scram(incoming, account, means).await,
    }
}

async fn password<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut Incoming<S>,
    account: &Account<'_>,
) -> Result<Proof, LoginError> {
    incoming.send(&messages::cleartext_password()).await?;
    let given = incoming.password().await?;
    if account.is_too_costly() {
        return Err(no_proof(account).because(
            "the password is not checked: the user's SCRAM secret asks for more than 1000000 iterations; set it again \
             with a lower scram_iterations, or use the method scram-sha-256",
        ));
    }
    match std::str::from_utf8(&given) {
        Ok(given) if account.has_password(given) => {
            Ok(Proof::of(ServerCredential::Password(metako_core::config::Secret::new(given))))
        }
        _ => Err(no_proof(account)),
    }
}

async fn md5<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut Incoming<S>,
    account: &Account<'_>,
    means: &Means<'_>,
) -> Result<Proof, LoginError> {
    let mut salt = [0; 4];
    (means.entropy)(&mut salt);
    incoming.send(&messages::md5_password(salt)).await?;
    let answer = incoming.password().await?;
    if account.answers_md5(salt, &answer) {
        Ok(Proof::of(account.credential()))
    } else {
        Err(no_proof(account))
    }
}

/// SCRAM-SHA-256, with channel binding if the client chooses it. A user who does not exist is led through it like any
/// other, to the same end as a wrong password.
async fn scram<S: AsyncRead + AsyncWrite + Unpin>(
    incoming: &mut Incoming<S>,
    account: &Account<'_>,
    means: &Means<'_>,
) -> Result<Proof, LoginError> {
    let offered: &[Mechanism] = match means.end_point {
        Some(_) => &[Mechanism::Plus, Mechanism::Plain],
        None => &[Mechanism::Plain],
    };
    incoming.send(&messages::sasl(offered)).await?;
    let initial = incoming.sasl_message().await?;
    let response = InitialResponse::parse(&initial).map_err(|error| refusal(account, error))?;
    let chosen = offered.iter().find(|mechanism| mechanism.name().as_bytes() == response.mechanism);
    let Some(mechanism) = chosen.copied() else {
        let message = "client selected an invalid SASL authentication mechanism";
        return Err(LoginError::refused(Report::fatal(sqlstate::PROTOCOL_VIOLATION, message)));
    };
    let data = response.data().map_err(|error| refusal(account, error))?;
    let client_first = if let Some(data) = data {
        initial.slice_ref(data)
    } else {
        incoming.send(&messages::sasl_continue("")).await?;
        incoming.sasl_message().await?
    };
    let mut random = [0; NONCE_LEN];
    (means.entropy)(&mut random);
    let binding = Binding { mechanism, end_point: means.end_point };
    let exchange = Exchange::begin(account.verifier(), &client_first, binding, random)
        .map_err(|error| refusal(account, error))?;
    incoming.send(&messages::sasl_continue(exchange.server_first())).await?;
    let client_final = incoming.sasl_message().await?;
    let Proven { server_final, client_key } =
        exchange.finish(&client_final).map_err(|error| refusal(account, error))?;
    let credential = account.credential_after_scram(client_key);
    Ok(Proof { credential, last: messages::sasl_final(&server_final) })
}

fn refusal(account: &Account<'_>, error: ScramError) -> LoginError {
    match error {
        ScramError::WrongPassword => no_proof(account),
        ScramError::Refused(report) => LoginError::refused(*report),
    }
}

/// What PostgreSQL says to a wrong password and to a user who does not exist.
pub(super) fn wrong_password(user: &str) -> Report {
    let message = format!("password authentication failed for user \"{user}\"");
    Report::fatal(sqlstate::INVALID_PASSWORD, message)
}

fn no_proof(account: &Account<'_>) -> LoginError {
    let reason = match *account.stored {
        Stored::Nothing => "there is no such user, or it has no password that it may log in with",
        Stored::Md5(_) => "the password is wrong, or the method is SCRAM and only an MD5 secret is kept",
        Stored::Clear { .. } | Stored::Scram(_) => "the password is wrong",
    };
    LoginError::refused(wrong_password(account.user)).because(reason)
}
