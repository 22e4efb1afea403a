//! The end of a log-in, and what is said to a client that is not served.

use std::future::poll_fn;
use std::sync::Arc;

use metako_core::session::ApplicationName;
use metako_core::wire::sqlstate;
use metako_core::wire::write::{self, Report};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{ClientTask, Core, Found, Gone, Who};
use crate::backend;
use crate::credential::ServerCredential;
use crate::data::buffers::Outbox;
use crate::env::Env;
use crate::login::{self, Client, MaybeTls, Replication};

/// Reads the start-up parameters. What PostgreSQL would do with them, the server does: they begin its connections. All but
/// the application name: clients with another share the connection.
pub(super) fn who<E: Env>(
    core: &Core<E>,
    client: &mut Client<MaybeTls<E::Stream>>,
) -> Result<(Who, Option<String>), Report> {
    let mut application_name = None;
    let mut parameters = Vec::with_capacity(client.parameters.len());
    for (name, value) in &client.parameters {
        match name.to_ascii_lowercase().as_str() {
            "application_name" => application_name = Some(value.clone()),
            // In small letters these would be another user, database or protocol to the server, and nobody proved that.
            lower if backend::is_no_setting(lower) => parameters.push((name.clone(), value.clone())),
            lower => parameters.push((lower.to_owned(), value.clone())),
        }
    }
    let parameters = Arc::new(parameters);
    let (parameters, variant) = core.pools.variant(&parameters).ok_or_else(|| {
        Report::fatal(
            sqlstate::PROGRAM_LIMIT_EXCEEDED,
            "too many different sets of start-up parameters are in use",
        )
        .with_hint("Let clients of one kind connect with the same options.")
    })?;
    let who = Who {
        database: client.database.clone(),
        user: client.user.clone(),
        parameters,
        variant,
        alone: false,
        credential: std::mem::replace(&mut client.credential, ServerCredential::None),
    };
    Ok((who, application_name))
}

/// The same for a client that gets a server connection of its own: that begins with all that the client sent, in its
/// order and spelling.
pub(in crate::data) fn who_alone<E: Env>(core: &Core<E>, client: &Client<MaybeTls<E::Stream>>) -> Who {
    let mut parameters = client.parameters.clone();
    let replication = client.replication.map(|replication| match replication {
        Replication::Physical => "true",
        Replication::Logical => "database",
    });
    parameters.extend(replication.map(|value| ("replication".to_owned(), value.to_owned())));
    Who {
        database: client.database.clone(),
        user: client.user.clone(),
        parameters: Arc::new(parameters),
        variant: core.pools.variant_alone(),
        alone: true,
        credential: client.credential.clone(),
    }
}

/// Tells a client why its connection ends, as far as it listens.
pub(in crate::data) async fn say_last<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, report: &Report) {
    say_behind(stream, &mut Outbox::default(), report).await;
}

/// The same, behind what is on its way to the client already: whole messages.
pub(in crate::data) async fn say_behind<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    output: &mut Outbox,
    report: &Report,
) {
    write::error_response(output.bytes(), report);
    // A client that does not take its last message within a second is not waited for.
    let said = poll_fn(|cx| output.poll_flush(stream, cx));
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), said).await;
}

/// What a client is told that has to go because metako stops.
pub(in crate::data) fn stopping() -> Report {
    Report::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection: metako is shutting down")
}

impl<E: Env> ClientTask<E> {
    /// Says what ends a log-in. Parameters come from a server connection of the client's own kind; if none was opened
    /// yet, one is opened now, so that what PostgreSQL refuses is refused here.
    pub(super) async fn welcome(&mut self, application_name: Option<String>) -> Result<(), Gone> {
        let reported = match self.core.pools.reported(&self.who) {
            Some(reported) => reported,
            None => match self.find(true, Vec::new()).await? {
                Ok(Found { mut lease, .. }) => {
                    let reported = Arc::clone(&lease.conn().reported);
                    lease.give_back();
                    reported
                }
                Err(report) => return self.close_with(&report.as_fatal()).await,
            },
        };
        self.logs_in = false;
        let application_name = application_name.map(|given| ApplicationName::of(&given, &reported));
        self.side.session.welcomed(&reported, application_name.as_ref().map(|name| name.shown.as_str()));
        let mut parameters: Vec<(String, String)> = reported.to_vec();
        for (name, value) in &mut parameters {
            match (name.as_str(), &application_name) {
                ("application_name", Some(own)) => value.clone_from(&own.shown),
                // Writes are possible here, whichever node the connection was to.
                ("in_hot_standby", _) => "off".clone_into(value),
                _ => {}
            }
        }
        if let Some(notice) = application_name.and_then(|name| name.notice) {
            write::notice_response(self.side.output.bytes(), &notice);
        }
        let key = self.handle.key();
        let welcome = login::welcome(&parameters, key.process_id, &key.secret);
        self.side.output.bytes().extend_from_slice(&welcome);
        let flushed = self.flush().await;
        self.side.output = Outbox::default();
        flushed
    }
}
