//! The end of a log-in, and what is said to a client that is not served.

use std::future::poll_fn;
use std::sync::Arc;

use metako_core::wire::sqlstate;
use metako_core::wire::write::{self, Report};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{ClientTask, Core, Found, Gone, Who};
use crate::credential::ServerCredential;
use crate::data::buffers::Outbox;
use crate::env::Env;
use crate::login::{self, Client, MaybeTls};

/// Reads the start-up parameters. What PostgreSQL would do with them, the server does: they begin its connections.
pub(super) fn who<E: Env>(core: &Core<E>, client: &mut Client<MaybeTls<E::Stream>>) -> Result<Who, Report> {
    let mut application_name = String::new();
    let mut parameters = Vec::with_capacity(client.parameters.len());
    for (name, value) in &client.parameters {
        match name.to_ascii_lowercase().as_str() {
            "application_name" => application_name.clone_from(value),
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
    Ok(Who {
        database: client.database.clone(),
        user: client.user.clone(),
        application_name,
        parameters,
        variant,
        credential: std::mem::replace(&mut client.credential, ServerCredential::None),
    })
}

/// Tells a client why its connection ends, as far as it listens.
pub(in crate::data) async fn say_last<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, report: &Report) {
    let mut bytes = Vec::new();
    write::error_response(&mut bytes, report);
    let mut output = Outbox::default();
    output.bytes().extend_from_slice(&bytes);
    // A client that does not take its last message within a second is not waited for.
    let said = poll_fn(|cx| output.poll_flush(stream, cx));
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), said).await;
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
        let mut parameters: Vec<(String, String)> = reported.to_vec();
        for (name, value) in &mut parameters {
            match name.as_str() {
                "application_name" => value.clone_from(&self.who.application_name),
                // Writes are possible here, whichever node the connection was to.
                "in_hot_standby" => "off".clone_into(value),
                _ => {}
            }
        }
        let welcome = login::welcome(&parameters, self.handle.process_id, &self.handle.secret_key());
        self.side.output.bytes().extend_from_slice(&welcome);
        let flushed = self.flush().await;
        self.side.output = Outbox::default();
        flushed
    }
}
