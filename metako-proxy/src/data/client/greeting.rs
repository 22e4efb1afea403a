//! The end of a log-in, and what is said to a client that is not served.

use std::future::poll_fn;
use std::sync::Arc;

use metako_core::wire::sqlstate;
use metako_core::wire::write::{self, Report};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{ClientTask, Core, Found, Gone, Who};
use crate::backend;
use crate::credential::ServerCredential;
use crate::data::buffers::Outbox;
use crate::env::Env;
use crate::login::{self, Client, MaybeTls, Replication};

/// Reads the start-up parameters. What PostgreSQL would do with them, the server does: they begin its connections.
pub(super) fn who<E: Env>(core: &Core<E>, client: &mut Client<MaybeTls<E::Stream>>) -> Result<Who, Report> {
    let mut application_name = String::new();
    let mut parameters = Vec::with_capacity(client.parameters.len());
    for (mut name, value) in std::mem::take(&mut client.parameters) {
        if name.eq_ignore_ascii_case("application_name") {
            application_name = value;
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
    Ok(Who {
        database: std::mem::take(&mut client.database),
        user: std::mem::take(&mut client.user),
        application_name,
        parameters,
        variant,
        alone: false,
        credential: std::mem::replace(&mut client.credential, ServerCredential::None),
    })
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
        application_name: String::new(),
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

/// An application name as a server of that version makes it printable ASCII, byte by byte.
fn in_ascii(name: &str, server_version: Option<&str>) -> String {
    if name.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return name.to_owned();
    }
    let major = server_version.and_then(|version| version.split(|c: char| !c.is_ascii_digit()).next());
    let shows_bytes = major.and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= 16);
    let shown = |byte: u8| match byte {
        b' '..=b'~' => char::from(byte).to_string(),
        _ if shows_bytes => format!("\\x{byte:02x}"),
        _ => "?".to_owned(),
    };
    name.bytes().map(shown).collect()
}

/// What a client is told that has to go because metako stops.
pub(in crate::data) fn stopping() -> Report {
    Report::fatal(sqlstate::ADMIN_SHUTDOWN, "terminating connection: metako is shutting down")
}

impl<E: Env> ClientTask<E> {
    /// Says what ends a log-in. Parameters come from a server connection of the client's own kind; if none was opened
    /// yet, one is opened now, so that what PostgreSQL refuses is refused here.
    pub(super) async fn welcome(&mut self) -> Result<(), Gone> {
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
        self.side.session.welcomed(&reported);
        let version = reported.iter().find(|(name, _)| name == "server_version");
        let application_name =
            in_ascii(&self.who.application_name, version.map(|(_, version)| version.as_str()));
        let parameters = reported.iter().map(|(name, value)| match name.as_str() {
            "application_name" => (name.as_str(), application_name.as_str()),
            // Writes are possible here, whichever node the connection was to.
            "in_hot_standby" => (name.as_str(), "off"),
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
    use super::in_ascii;

    #[test]
    fn application_names_are_made_printable_as_the_servers_version_does() {
        let name = "it's \u{e9}\t~";
        assert_eq!(in_ascii(name, Some("15.13 (Debian 15.13-0+deb12u1)")), "it's ???~");
        assert_eq!(in_ascii(name, Some("16beta1")), "it's \\xc3\\xa9\\x09~");
        assert_eq!(in_ascii(name, None), "it's ???~");
    }
}
