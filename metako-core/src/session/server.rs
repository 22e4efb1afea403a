//! What is known of one server connection.

use std::sync::Arc;

use super::described::Describing;
use super::pins::{Answer, ROW_MAX};
use super::replies::{Asked, Owed, Replies};
use super::settings::{Named, Reported, Settings, View, is_settable};
use super::statements::{Prepared, Undo};
use crate::wire::NoticeReader;
use crate::wire::read::Target;
use crate::wire::write::{self, TransactionStatus};
use crate::wire::{Direction, FrameError, Framer, Piece};

/// The protocol state of a server connection: it stays with the connection from client to client.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Server {
    pub(super) framer: Framer,
    pub(super) replies: Replies,
    pub(super) prepared: Prepared,
    pub(super) status: TransactionStatus,
    /// What remains of the frame at hand is not for the client.
    pub(super) swallow_rest: bool,
    /// It sent what it should not have: never to be used again.
    pub(super) out_of_step: bool,
    /// The settings that sessions made here, as far as metako knows.
    pub(super) applied: Arc<Settings>,
    /// Functions were run that may have made settings which no list shows.
    pub(super) unsure: bool,
    /// The session that was here last.
    pub(super) last: Option<Arc<()>>,
    /// What the server reports.
    pub(super) reported: View,
    /// Reported parameters that changed since the client's last ReadyForQuery, with the value that they had then.
    pub(super) touched: Vec<Named<Option<Box<[u8]>>>>,
    /// What it answered to metako's question.
    pub(super) answer: Answer,
    /// What it says of a statement that was parsed.
    pub(super) describing: Describing,
    /// A row of that which has not come whole.
    row: Option<Vec<u8>>,
    /// The error that preparing for a Query ended in: it stands for the one that the Query then ends in.
    pub(super) stand_in: Option<Vec<u8>>,
    /// Reads the notice at hand, where commits are guarded.
    pub(super) notice: Option<NoticeReader>,
    /// The client was told that a commit of the unit at hand is not known to be replicated: what else answers it is not for
    /// the client.
    pub(super) told: bool,
}

impl Server {
    /// A connection that is idle after log-in, where it reported `parameters`.
    pub fn new(parameters: &Reported) -> Self {
        Self {
            framer: Framer::new(Direction::Server, u64::MAX),
            replies: Replies::default(),
            prepared: Prepared::default(),
            status: TransactionStatus::Idle,
            swallow_rest: false,
            out_of_step: false,
            applied: Arc::default(),
            unsure: false,
            last: None,
            reported: View::new(parameters),
            touched: Vec::new(),
            answer: Answer::default(),
            describing: Describing::default(),
            row: None,
            stand_in: None,
            notice: None,
            told: false,
        }
    }

    /// Whether the next client may have it: nothing owed, no block, no frame cut.
    pub fn is_clean(&self) -> bool {
        self.replies.settled()
            && self.status == TransactionStatus::Idle
            && !self.framer.inside_frame()
            && !self.out_of_step
    }

    /// Reads what came while it was idle; whether it may still be used. Notices and reports of unchanged parameters
    /// are taken; anything else (an error, above all) ends it.
    pub fn idle_input(&mut self, input: &[u8]) -> bool {
        let mut at = 0;
        loop {
            match self.framer.next(&input[at..]) {
                Ok(Some(Piece::Start { header, taken, whole: true })) => {
                    let body = &input[at + 5..at + taken];
                    match header.tag {
                        b'S' => self.parameter_status(body),
                        b'N' if !super::ends_connection(crate::wire::read::error(body).code) => {}
                        _ => return false,
                    }
                    at += taken;
                }
                Ok(Some(_)) | Err(FrameError::Tag(_) | FrameError::Length { .. }) => return false,
                Ok(None) => {
                    // No client's statement did it.
                    self.touched.clear();
                    return at == input.len() && self.is_clean();
                }
            }
        }
    }

    /// Whether the node says of itself that it is in recovery; `None` before PostgreSQL 14.
    pub(super) fn in_recovery(&self) -> Option<bool> {
        self.reported.get(b"in_hot_standby").map(|value| value == b"on")
    }

    /// Whether the client was given an error that the server does not know of, and has not sent the Sync behind it yet.
    pub(super) fn skips_to_sync(&self) -> bool {
        self.told && !self.replies.are_outstanding()
    }

    /// Whether what comes next answers a query of metako's own.
    pub(super) fn answers_metako(&self) -> bool {
        matches!(self.replies.front(), Some(Owed::Metako(_)))
    }

    /// Whether it was asked what the session left, which is done when nothing of the client's is open: what comes next from
    /// the client may belong elsewhere.
    pub(super) fn is_questioned(&self) -> bool {
        matches!(self.replies.front(), Some(Owed::Metako(Asked::Question)))
    }

    /// Whether the rest of the message at hand belongs to a row that answers metako.
    pub(super) fn is_in_own_row(&self) -> bool {
        self.row.is_some()
    }

    /// Takes a part of a row that answers metako.
    pub(super) fn own_row(&mut self, part: &[u8], last: bool) {
        if self.replies.front() != Some(&Owed::Metako(Asked::Question)) {
            return;
        }
        let row = self.row.get_or_insert_default();
        if row.len() + part.len() > ROW_MAX {
            self.answer.broken = true;
        } else {
            row.extend_from_slice(part);
        }
        if last && let Some(row) = self.row.take() {
            self.answer.row(&row);
        }
    }

    /// Whether a name is no text in the client's encoding: the server itself has to refuse it. Other encodings than UTF-8
    /// are left to its judgement of what is passed on as it is.
    pub(super) fn refuses_name(&self, name: &[u8]) -> bool {
        let reported = |parameter: &[u8]| self.reported.get(parameter);
        !name.is_ascii()
            && std::str::from_utf8(name).is_err()
            && match reported(b"client_encoding") {
                Some(b"SQL_ASCII") => reported(b"server_encoding") == Some(b"UTF8"),
                client => client == Some(b"UTF8") && reported(b"server_encoding") != Some(b"SQL_ASCII"),
            }
    }

    /// The same of a name in a Describe or a Close.
    pub(super) fn refuses_target(&self, target: &Target<'_>) -> bool {
        matches!(target, Target::Statement(name) if self.refuses_name(name))
    }

    /// Takes what is owed next, which has to fit the tag.
    pub(super) fn expect(&mut self, tag: u8) -> Option<Owed> {
        let fits = matches!(
            (tag, self.replies.front()),
            (b'1', Some(Owed::Parse { .. } | Owed::ParseHere))
                | (b'2', Some(Owed::Bind { .. }))
                | (b'3', Some(Owed::Close { .. }))
        );
        if fits {
            return self.replies.pop();
        }
        self.out_of_step = true;
        None
    }

    /// Whether it is the turn of an answer that metako makes itself.
    pub(super) fn has_own_answer(&self) -> bool {
        !self.framer.inside_frame() && matches!(self.replies.front(), Some(Owed::ClosedHere { .. }))
    }

    /// Takes a part of a notice that is passed on. Whether that is its last, and it says that a commit's wait for synchronous
    /// standbys was cancelled.
    pub(super) fn read_notice(&mut self, part: &[u8], last: bool) -> bool {
        let Some(notice) = &mut self.notice else { return false };
        notice.read(part);
        last && self.notice.take().is_some_and(|notice| notice.is_cancelled_wait())
    }

    /// Gives the answers that metako makes itself, as long as it is their turn. Those that are not for the client show in
    /// `untold`.
    pub(super) fn give_own_answers(&mut self, to_client: &mut Vec<u8>, untold: &mut Vec<Undo>) {
        while self.has_own_answer() {
            let Some(Owed::ClosedHere { undo }) = self.replies.pop() else { break };
            if self.told {
                untold.push(undo);
                continue;
            }
            if let Undo::Restore(_, statement) = undo
                && statement.is_own()
            {
                self.prepared.release(&statement);
            }
            write::close_complete(to_client);
        }
    }

    pub(super) fn parameter_status(&mut self, body: &[u8]) {
        let Some((name, value)) = crate::wire::read::parameter_status(body) else {
            self.out_of_step = true;
            return;
        };
        let before = self.reported.set(name, value);
        if is_settable(name) && !self.touched.iter().any(|(known, _)| known.as_ref() == name) {
            self.touched.push((name.into(), before));
        }
    }
}
