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
    for (mut name, value) in std::mem::take(&mut client.parameters) {
        if name.eq_ignore_ascii_case("application_name") {
            application_name = Some(value);
            continue;
        }
        // In small letters these would be another user, database or protocol to the server, and nobody proved that.
        let is_small = !name.bytes().any(|byte| byte.is_ascii_uppercase());
        if !is_small && !backend::is_no_setting(&name.to_ascii_lowercase()) {
            name.make_ascii_lowercase();
        }
        parameters.push((name, value));
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
        database: std::mem::take(&mut client.database),
        user: std::mem::take(&mut client.user),
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

/// Tells a client why its connection ends, as far as it listens, behind what is on its way to it already: whole messages.
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
                    drop(lease.give_back());
                    reported
                }
                Err(report) => return self.close_with(&report.as_fatal()).await,
            },
        };
        self.logs_in = false;
        let application_name = application_name.map(|given| ApplicationName::of(&given, &reported));
        self.side.session.welcomed(&reported, application_name.as_ref().map(|name| name.shown.as_str()));
        if let Some(notice) = application_name.as_ref().and_then(|name| name.notice.as_ref()) {
            write::notice_response(self.side.output.bytes(), notice);
        }
        let parameters = reported.iter().map(|(name, value)| match (name.as_str(), &application_name) {
            ("application_name", Some(own)) => (name.as_str(), own.shown.as_str()),
            // Writes are possible here, whichever node the connection was to.
            ("in_hot_standby", _) => (name.as_str(), "off"),
            _ => (name.as_str(), value.as_str()),
        });
        let key = self.handle.key();
        login::welcome(self.side.output.bytes(), parameters, key.process_id, &key.secret);
        let flushed = self.flush().await;
        self.side.output = Outbox::default();
        flushed
    }
}
