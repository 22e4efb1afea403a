//! What a client gets when its server connection is gone.

use super::local::LostBlock;
use super::pins::Pins;
use super::replies::{Asked, Owed};
use super::{Attachment, Open, Server, Session, State};
use crate::config::UnknownOutcome;
use crate::wire::write::{self, Report, TransactionStatus};
use crate::wire::{sqlstate, write::ready_for_query};

/// What happened to the server, for the client to read.
#[derive(Debug, Clone, Copy)]
pub struct LossCx<'a> {
    /// The node.
    pub node: &'a str,
    /// How its connection ended.
    pub cause: &'a str,
    /// How an unknown outcome is reported.
    pub unknown: UnknownOutcome,
}

/// What the caller has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Drop what was kept back, find another server, attach it and call [`Session::repeat`].
    Repeat,
    /// Send what was appended; the session goes on without a server.
    Kept,
    /// Send what was appended and close the client's connection.
    Close,
}

impl Session {
    /// Whether anything can be said to the client: nothing can in the middle of a message of its server.
    pub fn can_be_told(&self, server: &Server) -> bool {
        !server.framer.inside_frame() || server.swallow_rest || self.is_holding_back()
    }

    /// Whether something is awaited that changes data, or may, without a COMMIT that is still to come: if its answer
    /// does not, nobody knows whether it took effect.
    pub fn is_undecided(&self, server: &Server) -> bool {
        let in_block = server.status != TransactionStatus::Idle;
        (server.replies.outstanding() > 0 || server.replies.unsynced())
            && (self.open.may_commit || (self.open.may_change && !in_block))
    }

    /// The server of this session is gone. Appends to `to_client` what the client is told: exactly one error and one
    /// ReadyForQuery for each that it waits for.
    pub fn lose(&mut self, server: &mut Server, cx: &LossCx<'_>, to_client: &mut Vec<u8>) -> Loss {
        if !self.can_be_told(server) {
            return Loss::Close;
        }
        if server.replies.front() == Some(&Owed::Metako(Asked::Question)) {
            // It may have held a lock or a table that the client believes it has.
            self.pins.add(Pins::UNASKED);
        }
        let (outstanding, unsynced) = (server.replies.outstanding(), server.replies.unsynced());
        let in_block = server.status != TransactionStatus::Idle;
        if let Some(reason) = self.pinned() {
            if let Some(report) = lost_for_good(reason, self.is_undecided(server), cx) {
                write::error_response(to_client, &report);
            }
            return Loss::Close;
        }
        for message in server.replies.abandon() {
            self.undo(server, message);
        }
        // Of the first that is awaited the client has its error already.
        let told = std::mem::take(&mut server.told);
        self.undo_untold();
        self.counts.failed += u32::from(outstanding > 0 || unsynced);
        match self.state {
            State::Attached(Attachment::Unit { holding: true, .. }) if !in_block => {
                return Loss::Repeat;
            }
            State::Attached(Attachment::Unit { .. }) if !in_block => {
                let report = Report::error(
                    sqlstate::SERIALIZATION_FAILURE,
                    format!("replica {} was lost while it answered ({})", cx.node, cx.cause),
                )
                .with_detail("A part of the result had been delivered already.")
                .with_hint("The statement only reads: run it again.");
                self.release();
                self.give_errors(&report, (outstanding, unsynced), told, to_client);
                return Loss::Kept;
            }
            _ => {}
        }
        let Open { may_commit, rolling_back, may_change, .. } = self.open;
        self.release();
        if in_block && !may_commit {
            let ended = rolling_back && outstanding > 0 && !unsynced;
            self.lose_block(cx, outstanding, unsynced, server.status, ended, to_client);
            return Loss::Kept;
        }
        if outstanding == 0 && !unsynced {
            return Loss::Kept;
        }
        if !may_change && !in_block {
            let report = Report::error(
                sqlstate::SERIALIZATION_FAILURE,
                format!("node {} was lost before it answered ({})", cx.node, cx.cause),
            )
            .with_detail(
                "Nothing was changed: only reads, and the beginnings of transactions, were not answered.",
            )
            .with_hint("Run it again.");
            self.give_errors(&report, (outstanding, unsynced), told, to_client);
            return Loss::Kept;
        }
        let Some(report) = unknown(cx) else { return Loss::Close };
        self.give_errors(&report, (outstanding, unsynced), told, to_client);
        Loss::Kept
    }

    /// One error and ReadyForQuery for each that is awaited, outside a block; no error for the first if it was `told`.
    fn give_errors(
        &mut self,
        report: &Report,
        (outstanding, unsynced): (usize, bool),
        told: bool,
        to_client: &mut Vec<u8>,
    ) {
        for nth in 0..outstanding {
            if !told || nth > 0 {
                write::error_response(to_client, report);
            }
            ready_for_query(to_client, TransactionStatus::Idle);
        }
        if unsynced {
            if !told || outstanding > 0 {
                write::error_response(to_client, report);
            }
            self.state = State::Skipping;
        }
    }

    /// Nothing in the open block can have been committed: it is lost for sure, and the client has to end it, unless the
    /// last that it sent was the ROLLBACK.
    fn lose_block(
        &mut self,
        cx: &LossCx<'_>,
        outstanding: usize,
        unsynced: bool,
        status: TransactionStatus,
        ended: bool,
        to_client: &mut Vec<u8>,
    ) {
        let told = status == TransactionStatus::Failed;
        let mut block = LostBlock::new(cx.node, cx.cause, told);
        for left in (0..outstanding).rev() {
            write::error_response(to_client, &block.next_error());
            let over = ended && left == 0;
            let status = if over { TransactionStatus::Idle } else { TransactionStatus::Failed };
            ready_for_query(to_client, status);
        }
        if ended {
            return;
        }
        if unsynced {
            write::error_response(to_client, &block.next_error());
            block.skip_to_sync();
        }
        self.state = State::LostBlock(block);
    }
}

/// What a session is told that cannot go on without that server connection; nothing, where what is unknown is to be told so.
fn lost_for_good(reason: &str, is_unknown: bool, cx: &LossCx<'_>) -> Option<Report> {
    let code = if is_unknown { cx.unknown.sqlstate()? } else { sqlstate::ADMIN_SHUTDOWN };
    let message = format!("terminating connection: node {} was lost ({})", cx.node, cx.cause);
    let outcome = if is_unknown { " Whether the statement took effect is not known." } else { "" };
    Some(
        Report::fatal(code, message)
            .with_detail(format!("The session was bound to that server connection: {reason}.{outcome}"))
            .with_hint("Connect again; what the session had set up on the server is gone."),
    )
}

fn unknown(cx: &LossCx<'_>) -> Option<Report> {
    let code = cx.unknown.sqlstate()?;
    let message = format!("node {} was lost before it answered ({})", cx.node, cx.cause);
    Some(
        Report::error(code, message)
            .with_detail("Whether the statement took effect is not known.")
            .with_hint("Look before repeating it: it may have been committed."),
    )
}
