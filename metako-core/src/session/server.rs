//! What is known of one server connection.

use std::collections::BTreeMap;

use super::replies::{Owed, Replies};
use super::statements::Prepared;
use crate::wire::write::{self, TransactionStatus};
use crate::wire::{Direction, FrameError, Framer, Piece};

/// The protocol state of a server connection: it stays with the connection from client to client.
#[derive(Debug)]
pub struct Server {
    pub(super) framer: Framer,
    pub(super) replies: Replies,
    pub(super) prepared: Prepared,
    pub(super) status: TransactionStatus,
    /// What remains of the frame at hand is not for the client.
    pub(super) swallow_rest: bool,
    /// It sent what it should not have: never to be used again.
    pub(super) out_of_step: bool,
    pub(super) application_name: String,
    parameters: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// Reported parameters that differ from what they were after log-in, with that value.
    changed: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

impl Server {
    /// A connection that is idle after log-in, where it reported `parameters`.
    pub fn new(parameters: &[(String, String)], application_name: &str) -> Self {
        let parameters = parameters
            .iter()
            .map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into()))
            .collect();
        Self {
            framer: Framer::new(Direction::Server, u64::MAX),
            replies: Replies::default(),
            prepared: Prepared::default(),
            status: TransactionStatus::Idle,
            swallow_rest: false,
            out_of_step: false,
            application_name: application_name.to_owned(),
            parameters,
            changed: BTreeMap::new(),
        }
    }

    /// Whether the next client may have it as it is: nothing owed, no block, no frame cut, no parameter changed.
    pub fn is_clean(&self) -> bool {
        self.replies.settled()
            && self.status == TransactionStatus::Idle
            && !self.framer.inside_frame()
            && self.changed.is_empty()
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
                Ok(None) => return at == input.len() && self.is_clean(),
            }
        }
    }

    /// Whether the node says of itself that it is in recovery; `None` before PostgreSQL 14.
    pub(super) fn in_recovery(&self) -> Option<bool> {
        self.parameters.get(&b"in_hot_standby"[..]).map(|value| value.as_ref() == b"on")
    }

    /// The name of a reported parameter that is not what it was after log-in.
    pub(super) fn changed_parameter(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Whether what comes next answers a query of metako's own.
    pub(super) fn answers_metako(&self) -> bool {
        matches!(self.replies.front(), Some(Owed::Query { own: true }))
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
        !self.framer.inside_frame()
            && matches!(self.replies.front(), Some(Owed::ParsedBefore { .. } | Owed::ClosedHere { .. }))
    }

    /// Gives the answers that metako makes itself, as long as it is their turn.
    pub(super) fn give_own_answers(&mut self, to_client: &mut Vec<u8>) {
        while self.has_own_answer() {
            match self.replies.pop() {
                Some(Owed::ParsedBefore { .. }) => write::parse_complete(to_client),
                _ => write::close_complete(to_client),
            }
        }
    }

    pub(super) fn parameter_status(&mut self, body: &[u8]) {
        let Some((name, value)) = crate::wire::read::parameter_status(body) else {
            self.out_of_step = true;
            return;
        };
        let before = self.parameters.insert(name.into(), value.into());
        // The first follows promotion, the second is set by metako itself.
        if name == b"application_name" && !self.answers_metako() {
            // Whoever is next asks for another name than this, or finds its own.
            self.application_name = String::from_utf8_lossy(value).into_owned();
        }
        if matches!(name, b"in_hot_standby" | b"application_name") {
            return;
        }
        match self.changed.get(name) {
            Some(original) if original.as_ref() == value => {
                self.changed.remove(name);
            }
            Some(_) => {}
            None => {
                self.changed.insert(name.into(), before.unwrap_or_default());
            }
        }
    }
}
