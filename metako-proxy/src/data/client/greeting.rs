//! The end of a log-in, and what is said to a client that is not served.

use std::future::poll_fn;
use std::sync::Arc;

use metako_core::config::UnknownOutcome;
use metako_core::pool::Variant;
use metako_core::session::{ApplicationName, FLOOR_OPTIONS, check_startup};
use metako_core::wire::sqlstate;
use metako_core::wire::write::{self, Report};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{ClientTask, Core, Found, Gone, Who};
use crate::backend;
use crate::credential::ServerCredential;
use crate::data::buffers::Outbox;
use crate::data::pools::Parameters;
use crate::data::settings::Settings;
use crate::env::Env;
use crate::login::{self, Client, MaybeTls, Replication};

/// Reads the start-up parameters. What PostgreSQL would do with them, the server does: they begin its connections. All but
/// the application name: clients with another share the connection.
pub(super) fn who<E: Env>(
    core: &Core<E>,
    guards: bool,
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
    let (parameters, variant) = variant(core, begun_by(parameters, guards)?)?;
    let who = Who {
        database: std::mem::take(&mut client.database),
        user: std::mem::take(&mut client.user),
        parameters,
        variant,
        alone: false,
        floor: guards,
        credential: std::mem::replace(&mut client.credential, ServerCredential::None),
    };
    Ok((who, application_name))
}

/// The same client, where commits are guarded from now on, or not any more.
pub(super) fn who_again<E: Env>(core: &Core<E>, who: &Who, guards: bool) -> Result<Who, Report> {
    let mut own = who.parameters.to_vec();
    if who.floor {
        own = without_floor(own);
    }
    let (parameters, variant) = variant(core, begun_by(own, guards)?)?;
    Ok(Who { parameters, variant, floor: guards, ..who.clone() })
}

fn variant<E: Env>(
    core: &Core<E>,
    parameters: Vec<(String, String)>,
) -> Result<(Parameters, Variant), Report> {
    let parameters = Arc::new(parameters);
    core.pools.variant(&parameters).ok_or_else(|| {
        Report::fatal(
            sqlstate::PROGRAM_LIMIT_EXCEEDED,
            "too many different sets of start-up parameters are in use",
        )
        .with_hint("Let clients of one kind connect with the same options.")
    })
}

/// Whether commits are guarded.
pub(in crate::data) fn guards(settings: &Settings) -> bool {
    settings.config.cluster.failover.commit_guard().is_some()
}

/// Whether those of a client are that gets a server connection of its own.
pub(in crate::data) fn guards_alone<E: Env>(core: &Core<E>, replication: Option<Replication>) -> bool {
    replication.is_none_or(Replication::takes_sql) && guards(&core.settings.load())
}

/// The parameters that server connections begin with: where commits are guarded, not without what that needs. What the
/// client itself asks for stands behind that, and may not be less.
fn begun_by(mut parameters: Vec<(String, String)>, guards: bool) -> Result<Vec<(String, String)>, Report> {
    if !guards {
        return Ok(parameters);
    }
    check_startup(&parameters)?;
    match options(&mut parameters) {
        Some(options) => *options = format!("{FLOOR_OPTIONS} {options}"),
        None => parameters.push(("options".to_owned(), FLOOR_OPTIONS.to_owned())),
    }
    Ok(parameters)
}

/// What the client itself asked for, of parameters that [`begun_by`] gave where commits were guarded.
fn without_floor(mut parameters: Vec<(String, String)>) -> Vec<(String, String)> {
    if let Some(options) = options(&mut parameters)
        && let Some(own) = options.strip_prefix(FLOOR_OPTIONS)
    {
        *options = own.strip_prefix(' ').unwrap_or(own).to_owned();
        parameters.retain(|(name, value)| name != "options" || !value.is_empty());
    }
    parameters
}

/// The last options, which are those that the server goes by.
fn options(parameters: &mut [(String, String)]) -> Option<&mut String> {
    parameters.iter_mut().rev().find(|(name, _)| name == "options").map(|(_, value)| value)
}

/// The same for a client that gets a server connection of its own: that begins with all that the client sent, in its
/// order and spelling.
pub(in crate::data) fn who_alone<E: Env>(
    core: &Core<E>,
    client: &Client<MaybeTls<E::Stream>>,
) -> Result<Who, Report> {
    let guards = guards_alone(core, client.replication);
    let mut parameters = begun_by(client.parameters.clone(), guards)?;
    let replication = client.replication.map(|replication| match replication {
        Replication::Physical => "true",
        Replication::Logical => "database",
    });
    parameters.extend(replication.map(|value| ("replication".to_owned(), value.to_owned())));
    Ok(Who {
        database: client.database.clone(),
        user: client.user.clone(),
        parameters: Arc::new(parameters),
        variant: core.pools.variant_alone(),
        alone: true,
        floor: guards,
        credential: client.credential.clone(),
    })
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

/// What a client is told that metako parts from its server; nothing, where `failover.unknown_outcome` says so. `unknown` is
/// how to report what may have been committed, if anything may.
pub(in crate::data) fn broken_off(report: Report, unknown: Option<UnknownOutcome>) -> Option<Report> {
    let Some(unknown) = unknown else { return Some(report) };
    let told = Report::fatal(unknown.sqlstate()?, report.message)
        .with_detail("Whether the statement that was not answered took effect is not known.");
    Some(told.with_hint("Connect again, and look before repeating it: it may have been committed."))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guarded_connections_begin_with_what_that_needs_and_then_with_what_the_client_asks_for() {
        let options = |value: &str| vec![("options".to_owned(), value.to_owned())];
        let begun = |parameters, guards| begun_by(parameters, guards).map_err(|report| report.code);
        assert_eq!(begun(Vec::new(), true), Ok(options(FLOOR_OPTIONS)));
        assert_eq!(begun(Vec::new(), false), Ok(Vec::new()));
        let own = "-c synchronous_commit=remote_apply";
        let both = format!("{FLOOR_OPTIONS} {own}");
        assert_eq!(begun(options(own), true), Ok(options(&both)));
        // After a reload.
        assert_eq!(without_floor(options(&both)), options(own));
        assert_eq!(without_floor(options(FLOOR_OPTIONS)), Vec::new());
        // What is the client's own stays.
        assert_eq!(begun(options(FLOOR_OPTIONS), false), Ok(options(FLOOR_OPTIONS)));
        let twice = format!("{FLOOR_OPTIONS} {FLOOR_OPTIONS}");
        assert_eq!(begun(options(FLOOR_OPTIONS), true), Ok(options(&twice)));
        assert_eq!(without_floor(options(&twice)), options(FLOOR_OPTIONS));
        assert_eq!(begun(options("-c synchronous_commit=off"), true), Err("22023"));
        assert_eq!(
            begun(options("-c synchronous_commit=off"), false),
            Ok(options("-c synchronous_commit=off"))
        );
    }
}
