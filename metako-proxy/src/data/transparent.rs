//! Clients that have a server connection of their own, to which metako is a pair of wires: `pool.mode: session`, and
//! replication in every mode.
//!
//! The connection is opened for its client, with the client's own start-up parameters, on the primary; it counts against
//! the size of its pool and serves nobody else. From then on bytes pass both ways untouched, and the client has to do
//! with PostgreSQL itself: its errors, its notices at any moment, its end. metako only counts
//! ([`metako_core::wire::tally`]), to know when nothing is under way and whether a message is cut. Only where commits are
//! guarded, the success of one that is not known to be replicated is withheld ([`metako_core::wire::commit_guard`]).
//!
//! `load_balancer.read_timeout` and `write_timeout` do not apply here: without looking into statements a COMMIT cannot be
//! told from others, and a COMMIT must not be cancelled. PostgreSQL's `statement_timeout` does that.
//!
//! When the client leaves:
//!
//! - With Terminate the server gets that, as it gets everything, finishes what the client sent before it, and ends.
//! - Without it, the server sees the end of the client's stream as it would directly: it finishes its statement and ends.
//!   PostgreSQL would let that take hours, because it does not look; here, what nobody waits for is cancelled after
//!   [`LEFT_MAX`], for the place in the pool is wanted by others.
//!
//! Until the server has ended, it keeps its place in the pool.

mod relay;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use metako_core::cluster::ServerLoss;
use metako_core::config::UnknownOutcome;
use metako_core::session::unreplicated;
use metako_core::wire::sqlstate;
use metako_core::wire::tally::Tally;
use metako_core::wire::write::Report;
use tokio::io::{AsyncRead, AsyncWrite};

use self::relay::{End, Relay};
use super::Core;
use super::acquire::{First, Wanted, try_acquire};
use super::buffers::Outbox;
use super::client::greeting::{self, broken_off, say_behind, stopping};
use super::clients::{Handle, Key, deliver};
use super::pools::{Lease, Who};
use super::waiting::{Gone, Waiter, wait};
use crate::backend::Notices;
use crate::env::Env;
use crate::login::{self, Client, MaybeTls, Protocol, Replication};

/// Bytes of a ReadyForQuery.
const READY: usize = 6;

/// Serves a client whose bytes are nobody else's business, to its end.
pub(super) async fn serve<E: Env>(
    core: Arc<Core<E>>,
    handle: Arc<Handle>,
    mut client: Client<MaybeTls<E::Stream>>,
) {
    let (protocol, replication) = (client.protocol, client.replication);
    let mut input = std::mem::take(&mut client.leftover);
    let mut output = Outbox::of(std::mem::take(&mut client.unsent));
    let lease = loop {
        let who = match greeting::who_alone(&core, &client) {
            Ok(who) => Arc::new(who),
            Err(report) => return say_behind(&mut client.stream, &mut output, &report).await,
        };
        match find(&core, &handle, &who, &mut client.stream, (&mut input, &mut output)).await {
            // Unless a reload meanwhile asks for one that begins in another way.
            Ok(Ok(lease)) if who.floor == greeting::guards_alone(&core, replication) => break lease,
            Ok(Ok(_)) => {}
            Ok(Err(report)) => {
                return say_behind(&mut client.stream, &mut output, &report.as_fatal()).await;
            }
            Err(Gone) => return,
        }
    };
    relay(&core, &handle, lease, client.stream, (&input, output), protocol, replication).await;
}

async fn find<E: Env, S: AsyncRead + AsyncWrite + Unpin>(
    core: &Arc<Core<E>>,
    handle: &Handle,
    who: &Arc<Who>,
    stream: &mut S,
    (input, output): (&mut Vec<u8>, &mut Outbox),
) -> Result<Result<Lease<E>, Report>, Gone> {
    let mut wanted = Wanted {
        who,
        read: false,
        avoid: Vec::new(),
        session: handle.number,
        bytes: input.len(),
        progress: None,
    };
    let picked = match try_acquire(core, &wanted, &core.settings.load(), &mut None) {
        First::Found(found) => return Ok(Ok(found.lease)),
        First::Later(picked) => picked,
    };
    let waiter = Waiter { stream, input, output, handle, logs_in: true };
    let found = wait(core, waiter, &mut wanted, picked).await?;
    Ok(found.map(|found| found.lease))
}

/// Tells the client what its server told metako, and moves bytes until one of the two ends.
async fn relay<E: Env>(
    core: &Arc<Core<E>>,
    handle: &Arc<Handle>,
    mut lease: Lease<E>,
    mut stream: MaybeTls<E::Stream>,
    (input, mut to_client): (&[u8], Outbox),
    protocol: Protocol,
    replication: Option<Replication>,
) {
    let cancel = Arc::clone(&lease.conn().cancel);
    core.clients.take_process_id(&core.env, handle, cancel.process_id, protocol);
    handle.serve(&cancel);
    let key = handle.key();
    let reported = Arc::clone(&lease.conn().reported);
    let notices = std::mem::take(&mut lease.conn().notices);
    welcome(to_client.bytes(), &notices, &reported, &key);
    let node = lease.node().clone();
    let knows_its_role = reported.iter().any(|(name, _)| name == "in_hot_standby");
    let mut tally = Tally::new(core.settings.load().config.limits.message_size);
    let (conn, _, traffic) = lease.parts();
    let mut relay = Relay::new(core, handle, &mut stream, &mut conn.stream, to_client, replication);
    let end = relay.run(&mut tally, &conn.registration.control, (&node, traffic), input).await;
    if relay.was_read_only() && !knows_its_role {
        core.evidence.report(&node, ServerLoss::ReadOnly);
    }
    let guarded = relay.guards_commits();
    let mut rest = relay.into_rest();
    tracing::debug!(%node, ?end, "a client and the server connection of its own part");
    if let End::ServerEnded(_) = end {
        let unexplained = !tally.server_ended() && !tally.client_broke_off();
        if unexplained || tally.server_shut_down() {
            core.evidence.report(&node, ServerLoss::Broken);
        }
        if tally.is_busy() {
            traffic.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
    // The server's socket is closed before anything else is said: nothing of that server can follow.
    drop(lease);
    let unknown = core.settings.load().config.cluster.failover.unknown_outcome;
    let report = match &end {
        End::ClientLeft => None,
        // Where the server said why, or the client knows, there is nothing to add.
        End::ServerEnded(_) if tally.server_ended() || tally.client_broke_off() || tally.client_is_cut() => {
            None
        }
        End::ServerEnded(cause) => lost(&tally, node.as_str(), cause, unknown),
        // What a fenced server said last must not reach the client any more.
        End::Severed if !rest.is_empty() => None,
        End::Severed => lost(&tally, node.as_str(), "fenced off, because the primary changes", unknown),
        End::Stopped => broken_off(stopping(), (guarded && tally.is_busy()).then_some(unknown)),
        End::Unreplicated => unreplicated(unknown, None).map(Report::as_fatal),
        End::TooLong(error) => {
            let report = Report::fatal(sqlstate::PROTOCOL_VIOLATION, error.to_string());
            broken_off(report, (guarded && tally.awaited() > 0).then_some(unknown))
        }
    };
    let said = async {
        if let Some(report) = &report
            && (tally.between_messages() || matches!(end, End::Unreplicated))
        {
            say_behind(&mut stream, &mut rest, report).await;
        }
    };
    let stopped = async {
        // The server would go on with what nobody waits for. Where commits are guarded it does: it may be one.
        if matches!(end, End::Stopped | End::TooLong(_)) && tally.is_busy() && !guarded {
            // If it does not arrive, the statement ends when it next speaks to the connection.
            let _ = deliver(&core.env, &cancel).await;
        }
    };
    tokio::join!(said, stopped);
}

/// What a client is told between AuthenticationOk and its first message, with its server's notices where they were.
fn welcome(out: &mut Vec<u8>, notices: &Notices, reported: &[(String, String)], key: &Key) {
    out.extend_from_slice(&notices.first);
    let parameters = reported.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    login::welcome(out, parameters, key.process_id, &key.secret);
    let ready = out.split_off(out.len() - READY);
    out.extend_from_slice(&notices.last);
    out.extend_from_slice(&ready);
}

/// What a client is told whose server is gone; nothing, where `failover.unknown_outcome` says so.
fn lost(tally: &Tally, node: &str, cause: &str, unknown: UnknownOutcome) -> Option<Report> {
    let report = if tally.is_busy() && !tally.is_streaming() {
        Report::fatal(unknown.sqlstate()?, format!("node {node} was lost before it answered ({cause})"))
            .with_detail("Whether the statement took effect is not known.")
            .with_hint("Connect again, and look before repeating it: it may have been committed.")
    } else {
        Report::fatal(
            sqlstate::ADMIN_SHUTDOWN,
            format!("terminating connection: the connection to node {node} was lost ({cause})"),
        )
        .with_detail("The session had that server connection for itself.")
        .with_hint("Connect again; what the session had set up on the server is gone.")
    };
    Some(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_off_while_a_commit_may_wait_is_unknown() {
        let code = |unknown| broken_off(stopping(), unknown).map(|report| report.code);
        assert_eq!(code(None), Some("57P01"));
        assert_eq!(code(Some(UnknownOutcome::TransactionResolutionUnknown)), Some("08007"));
        assert_eq!(code(Some(UnknownOutcome::Close)), None);
    }
}
