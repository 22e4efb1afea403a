//! Which answers a server connection still owes, in order, and what is done with each.

use std::collections::VecDeque;
use std::sync::Arc;

use super::acts::Act;
use super::rewrite::Renamed;
use super::statements::{Statement, Undo};
use crate::wire::sqlstate;

/// How many answers may be owed before no more of the client is read. A server sends what fills its buffer (8 kB,
/// fewer than two thousand answers) without being asked, so the bound cannot lock both sides.
pub(super) const OWED_MAX: usize = 1 << 16;

/// What is sent in answer to one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owed {
    /// ParseComplete; metako's own if `own`. `statement` is what the server then has, if it is not the unnamed
    /// one; `unit` the [`Replies::unit`] that it was sent in.
    Parse { own: bool, statement: Option<Arc<Statement>>, unit: u64, undo: Option<Undo> },
    /// The error that this name is taken, to a Parse that cannot succeed.
    Duplicate { name: Box<[u8]> },
    /// ParseComplete for a statement that is known to this one server alone.
    ParseHere,
    /// BindComplete, if the statement can be bound.
    Bind { statement: Option<Arc<Statement>> },
    /// CloseComplete; metako's own, and swallowed, if it names the statement that it closes.
    Close { own: Option<Arc<Statement>> },
    /// A CloseComplete that metako makes: the statement stays on the server for others.
    ClosedHere { undo: Undo },
    /// ParameterDescription and RowDescription or NoData.
    Describe { statement: Option<Arc<Statement>> },
    /// The same, asked by metako of what was just parsed.
    Described(Box<Parsed>),
    /// The error that a statement has other columns than before, to a Bind or, if `describes`, a Describe that cannot succeed.
    Changed { statement: Arc<Statement>, describes: bool },
    /// Rows or a COPY, then CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute { carried: Option<Box<Carried>> },
    /// ReadyForQuery after Sync.
    Sync,
    /// All answers to a Query.
    Query { carried: Option<Box<Carried>> },
    /// All answers to a Query of metako's own.
    Metako(Asked),
    /// A message of this tag, in answer to one of metako's own; with its success the server has `statement`, sent in `unit`.
    Own { tag: u8, statement: Option<Arc<Statement>>, unit: u64 },
    /// ReadyForQuery after a Sync of metako's own, in front of a Query.
    OwnSync,
    /// FunctionCallResponse and ReadyForQuery.
    Function,
    /// Nothing: where the client ended a COPY.
    CopyEnd,
}

/// What was parsed, and is then described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parsed {
    pub(super) statement: Arc<Statement>,
    pub(super) by: By,
}

/// Who had it parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum By {
    /// metako, where it was missing.
    Metako,
    /// The client, under this name. What it gets is `shared` if that was found to be the same.
    Client { name: Box<[u8]>, shared: Option<Arc<Statement>> },
}

/// What metako asks of a server for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// To become what the session needs.
    State,
    /// The same, but it is only about the application name.
    Name,
    /// What the session left there.
    Question,
}

/// What a statement does beside its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carried {
    /// Changes of names, each with the number of its statement in the text, that hold only if it succeeds.
    pub(super) undo: Vec<(usize, Undo)>,
    /// What it does to settings if it succeeds.
    pub(super) acts: Vec<Act>,
    /// The unit that it was sent in.
    pub(super) unit: u64,
    /// The client's name that it gives although that is taken.
    pub(super) taken: Option<Box<[u8]>>,
    /// Where its text on the server differs.
    pub(super) renamed: Vec<Renamed>,
}

impl Owed {
    /// Whether a ReadyForQuery ends it.
    fn ends_ready(&self) -> bool {
        matches!(self, Self::Sync | Self::Query { .. } | Self::Function) || self.ends_own()
    }

    /// Whether a ReadyForQuery ends it that is not for the client.
    fn ends_own(&self) -> bool {
        matches!(self, Self::Metako(_) | Self::OwnSync)
    }

    /// Whether it belongs to the extended protocol, where an error skips what follows until Sync.
    fn is_extended(&self) -> bool {
        !self.ends_ready() && !matches!(self, Self::CopyEnd)
    }

    fn is_sync(&self) -> bool {
        matches!(self, Self::Sync | Self::OwnSync)
    }
}

/// The answers owed by one server connection.
#[derive(Debug, Default)]
pub(super) struct Replies {
    owed: VecDeque<Owed>,
    /// An error came, and the Sync that ends the skipping was not sent yet.
    skipping: bool,
    /// Extended messages were sent after the last Sync.
    unsynced: bool,
    copy: CopyIn,
    unit: u64,
}

/// A COPY from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum CopyIn {
    /// None, or the client has ended it.
    #[default]
    No,
    /// The server takes data, and the client has not ended it.
    Open,
    /// What is owed next but one was sent into it, where it has no place: refused as such, it is not run; but the COPY may
    /// have failed before, and then it is.
    Intruded,
}

/// Messages that the server will not run after all, last one first.
pub(super) type Discarded = Vec<Owed>;

impl Replies {
    /// Notes that a message was sent. Gives it back if the server will skip it.
    pub(super) fn sent(&mut self, message: Owed) -> Option<Owed> {
        if self.copying_in() {
            match message {
                Owed::CopyEnd => {
                    self.copy = CopyIn::No;
                    return None;
                }
                // The server reads it during COPY and does nothing about it.
                Owed::Sync => return None,
                _ => self.copy = CopyIn::Intruded,
            }
        }
        match message {
            Owed::CopyEnd if self.owed.is_empty() || self.skipping => return None,
            Owed::Sync | Owed::OwnSync => {
                self.skipping = false;
                self.unsynced = false;
                self.unit += 1;
            }
            _ if self.skipping => return Some(message),
            _ if message.is_extended() => self.unsynced = true,
            // A Query among messages without Sync is skipped with them.
            _ => self.unit += u64::from(!self.unsynced),
        }
        self.owed.push_back(message);
        None
    }

    /// Counts the units sent: messages of one unit are run or skipped together.
    pub(super) fn unit(&self) -> u64 {
        self.unit
    }

    /// The answer that comes next.
    pub(super) fn front(&self) -> Option<&Owed> {
        self.owed.front()
    }

    /// What the statement that is being answered does beside.
    pub(super) fn carried(&mut self) -> Option<&mut Carried> {
        match self.owed.front_mut() {
            Some(Owed::Query { carried } | Owed::Execute { carried }) => carried.as_deref_mut(),
            _ => None,
        }
    }

    /// The client's name that what comes next fails to give, because it is taken.
    pub(super) fn taken(&self) -> Option<Box<[u8]>> {
        match self.front()? {
            Owed::Duplicate { name } => Some(name.clone()),
            Owed::Query { carried } | Owed::Execute { carried } => carried.as_ref()?.taken.clone(),
            _ => None,
        }
    }

    /// Where the text of what comes next differs from the client's.
    pub(super) fn renamed(&self) -> &[Renamed] {
        match self.front() {
            Some(Owed::Query { carried: Some(carried) } | Owed::Execute { carried: Some(carried) }) => {
                &carried.renamed
            }
            Some(Owed::Parse { statement: Some(statement), .. }) => {
                statement.script().map_or(&[], |script| script.renamed())
            }
            _ => &[],
        }
    }

    /// Whether what is answered was sent by metako for a Query behind it.
    pub(super) fn is_preparing(&self) -> bool {
        self.front().is_some_and(Owed::is_extended)
            && self.owed.iter().find(|owed| owed.ends_ready()) == Some(&Owed::OwnSync)
    }

    /// Takes the answer that comes next, which is complete.
    pub(super) fn pop(&mut self) -> Option<Owed> {
        let answered = self.owed.pop_front();
        self.drop_copy_ends();
        answered
    }

    /// An end of a COPY that was none is not answered.
    fn drop_copy_ends(&mut self) {
        while matches!(self.owed.front(), Some(Owed::CopyEnd)) {
            self.owed.pop_front();
        }
    }

    /// The server entered COPY FROM STDIN: what was sent behind the command belongs to the COPY until it was ended.
    pub(super) fn copy_in(&mut self) {
        let extended = matches!(self.front(), Some(Owed::Execute { .. }));
        loop {
            match self.owed.get(1) {
                Some(Owed::Sync) => {
                    self.owed.remove(1);
                }
                Some(Owed::CopyEnd) => {
                    self.owed.remove(1);
                    return;
                }
                Some(_) => {
                    self.copy = CopyIn::Intruded;
                    return;
                }
                None => {
                    self.copy = CopyIn::Open;
                    self.unsynced |= extended;
                    return;
                }
            }
        }
    }

    /// An error of that SQLSTATE answered what comes next: in the extended protocol, it and all up to the next Sync are gone.
    pub(super) fn failed(&mut self, code: &[u8]) -> Discarded {
        let intruder = std::mem::take(&mut self.copy) == CopyIn::Intruded;
        if !self.front().is_some_and(Owed::is_extended) {
            // PostgreSQL 13 has read it and goes on; newer servers end the connection.
            let refused = intruder && code == sqlstate::PROTOCOL_VIOLATION.as_bytes();
            return if refused { self.owed.remove(1).into_iter().collect() } else { Vec::new() };
        }
        let until = self.owed.iter().position(Owed::is_sync);
        if until.is_none() {
            self.skipping = true;
            self.unsynced = true;
        }
        self.owed.drain(..until.unwrap_or(self.owed.len())).rev().collect()
    }

    /// ReadyForQuery came: the answer that it ends.
    pub(super) fn ready(&mut self) -> Option<Owed> {
        if self.copy == CopyIn::Intruded {
            self.copy = CopyIn::No;
        }
        while let Some(owed) = self.pop() {
            if owed.ends_ready() {
                return Some(owed);
            }
        }
        // A Sync that was taken for one inside a COPY, which had failed before the server read it.
        self.skipping = false;
        self.unsynced = false;
        None
    }

    /// All that is owed, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Owed> {
        self.owed.iter()
    }

    /// Whether nothing waits for a Sync, is skipped or is copied in.
    pub(super) fn are_in_step(&self) -> bool {
        !self.skipping && !self.unsynced && self.copy == CopyIn::No
    }

    /// All that was owed is answered.
    pub(super) fn answered(&mut self) {
        self.owed.clear();
    }

    /// How many ReadyForQuery are still to come for the client.
    pub(super) fn outstanding(&self) -> usize {
        self.owed.iter().filter(|owed| owed.ends_ready() && !owed.ends_own()).count()
    }

    /// Whether a ReadyForQuery is still to come for the client.
    pub(super) fn are_outstanding(&self) -> bool {
        self.owed.iter().rev().any(|owed| owed.ends_ready() && !owed.ends_own())
    }

    /// How many are still to come, but for the message sent last if that is cut: it is not answered before the rest of it is sent.
    pub(super) fn outstanding_but(&self, is_cut: bool) -> usize {
        let is_awaited = |owed: &&Owed| owed.ends_ready() && !owed.ends_own();
        self.outstanding() - usize::from(is_cut && self.owed.back().as_ref().is_some_and(is_awaited))
    }

    /// Whether nothing is owed and nothing waits for a Sync.
    pub(super) fn settled(&self) -> bool {
        self.owed.is_empty() && !self.unsynced && !self.copying_in()
    }

    /// Whether a statement was parsed that is still to be described.
    pub(super) fn describing(&self) -> bool {
        self.owed.iter().any(|owed| matches!(owed, Owed::Described(_)))
    }

    /// Whether the settings of the session at hand are about to be made: that is asked before anything of the client's.
    pub(super) fn becomes_the_sessions(&self) -> bool {
        matches!(self.front(), Some(Owed::Metako(Asked::State | Asked::Name)))
    }

    /// Whether something is to be answered that is about the session itself.
    pub(super) fn carry(&self) -> bool {
        let about_it = |owed: &Owed| {
            matches!(owed, Owed::Query { carried: Some(_) } | Owed::Execute { carried: Some(_) })
        };
        self.owed.iter().any(about_it)
    }

    /// Whether messages wait for a Sync that the client has not sent.
    pub(super) fn unsynced(&self) -> bool {
        self.unsynced
    }

    /// Whether the client is sending COPY data.
    pub(super) fn copying_in(&self) -> bool {
        self.copy == CopyIn::Open
    }

    /// Whether the bound on answers owed is reached.
    pub(super) fn full(&self) -> bool {
        self.owed.len() >= OWED_MAX
    }

    /// Gives up all that is owed, last one first.
    pub(super) fn abandon(&mut self) -> Discarded {
        self.skipping = false;
        self.unsynced = false;
        self.copy = CopyIn::No;
        self.owed.drain(..).rev().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(messages: &[Owed]) -> Replies {
        let mut replies = Replies::default();
        for message in messages {
            assert_eq!(replies.sent(message.clone()), None);
        }
        replies
    }

    const BIND: Owed = Owed::Bind { statement: None };
    const QUERY: Owed = Owed::Query { carried: None };
    const EXECUTE: Owed = Owed::Execute { carried: None };

    #[test]
    fn an_error_skips_to_the_next_sync_and_the_unit_behind_it_runs() {
        let mut replies = owed(&[BIND, EXECUTE, Owed::Sync, BIND, Owed::Sync]);
        assert_eq!(replies.failed(b"22012"), [EXECUTE, BIND]);
        assert_eq!(replies.ready(), Some(Owed::Sync));
        assert_eq!(replies.pop(), Some(BIND));
        assert_eq!(replies.ready(), Some(Owed::Sync));
        assert!(replies.settled());
    }

    #[test]
    fn after_an_error_without_sync_even_a_query_is_skipped() {
        let mut replies = owed(&[BIND]);
        replies.failed(b"22012");
        assert_eq!(replies.sent(QUERY), Some(QUERY));
        assert!(!replies.settled());
        assert_eq!(replies.sent(Owed::Sync), None);
        assert_eq!(replies.outstanding(), 1);
        replies.ready();
        assert!(replies.settled());
    }

    #[test]
    fn a_sync_inside_an_extended_copy_is_not_answered() {
        let mut replies = owed(&[EXECUTE, Owed::Sync]);
        replies.copy_in();
        assert!(replies.copying_in() && !replies.settled());
        replies.sent(Owed::CopyEnd);
        replies.sent(Owed::Sync);
        assert_eq!(replies.pop(), Some(EXECUTE));
        assert_eq!(replies.ready(), Some(Owed::Sync));
        assert!(replies.settled());
    }

    #[test]
    fn a_copy_that_was_sent_in_one_go_is_settled_by_its_sync() {
        let mut replies = owed(&[EXECUTE, Owed::CopyEnd, Owed::Sync]);
        replies.copy_in();
        assert!(!replies.copying_in());
        assert_eq!(replies.pop(), Some(EXECUTE));
        assert_eq!(replies.ready(), Some(Owed::Sync));
        assert!(replies.settled());
    }

    #[test]
    fn a_query_sent_into_a_copy_is_refused_as_such_or_runs_behind_a_copy_that_had_failed() {
        for ahead in [true, false] {
            for (code, answers) in [(b"08P01", 1), (b"22P02", 2)] {
                let mut replies = owed(&[QUERY]);
                if ahead {
                    assert_eq!(replies.sent(QUERY), None);
                }
                replies.copy_in();
                if !ahead {
                    assert_eq!(replies.sent(QUERY), None);
                }
                assert_eq!(replies.failed(code).len(), 2 - answers);
                for _ in 0..answers {
                    assert!(!replies.settled());
                    assert_eq!(replies.ready(), Some(QUERY));
                }
                assert!(replies.settled());
            }
        }
    }

    #[test]
    fn the_end_of_a_copy_that_failed_already_is_not_answered() {
        let mut replies = owed(&[QUERY]);
        replies.copy_in();
        replies.failed(b"22012");
        assert_eq!(replies.sent(Owed::CopyEnd), None);
        assert_eq!(replies.ready(), Some(QUERY));
        assert_eq!(replies.sent(Owed::CopyEnd), None);
        assert!(replies.settled());
    }
}
