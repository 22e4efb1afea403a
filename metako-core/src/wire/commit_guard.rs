//! The commit guard for connections whose bytes pass untouched otherwise: a commit whose wait for synchronous standbys was
//! cancelled is answered by PostgreSQL with a warning and success, and by an error here.

use super::notice::NoticeReader;
use super::write::{self, Report};

/// Bytes of a header.
const HEADER: usize = 5;

/// The longest ErrorResponse that is looked at, in bytes.
const ERROR_MAX: usize = 64 << 10;

/// The body of an ErrorResponse that stands for another.
pub type Amend = fn(&[u8]) -> Option<Vec<u8>>;

/// Follows what a server sends after log-in, and withholds the success of such a commit.
#[derive(Debug)]
pub struct CommitGuard {
    /// What errors become.
    amend: Amend,
    /// The error at hand, as far as it has come: it waits until it is whole.
    error: Option<Vec<u8>>,
    head: [u8; HEADER],
    /// So many bytes of the header at hand have come.
    have: usize,
    /// Bytes that the frame at hand still has.
    remaining: usize,
    notice: Option<NoticeReader>,
    given: Given,
    /// The frame at hand is for the client.
    shown: bool,
    /// Such commits since the last [`Self::take_found`].
    found: u32,
    /// The server sent what has no header. All of it is the client's to judge.
    unknown: bool,
}

/// What the client was given of the unit at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Given {
    /// No error.
    #[default]
    NoError,
    /// One of the server's.
    Error,
    /// The one about such a commit: what else answers the unit is not for the client.
    Unknown,
}

/// What the client gets of what the server sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarded {
    /// The same bytes.
    AsIs,
    /// What was appended.
    Changed,
    /// What was appended, whole messages; then its connection has to end.
    End,
}

impl CommitGuard {
    /// A connection behind its log-in. `amend` gives what an error of the server's is to become, if that is another.
    pub fn new(amend: Amend) -> Self {
        Self {
            amend,
            error: None,
            head: [0; HEADER],
            have: 0,
            remaining: 0,
            notice: None,
            given: Given::default(),
            shown: true,
            found: 0,
            unknown: false,
        }
    }

    /// Takes what the server sent; appends to `out` what is for the client, unless that is the same. `awaited` is how many
    /// ReadyForQuery were awaited before, and `report` the error in place of success; without one the connection ends.
    pub fn filter(
        &mut self,
        input: &[u8],
        awaited: u32,
        report: Option<&Report>,
        out: &mut Vec<u8>,
    ) -> Guarded {
        let (mut at, mut from, mut awaited, mut changed) = (0, 0, awaited, false);
        while at < input.len() && !self.unknown {
            if self.have == 0 && self.given != Given::Unknown {
                at += plain(&input[at..]);
                if at == input.len() {
                    break;
                }
            }
            let taken = self.take(&input[at..]);
            if !self.shown || self.error.is_some() {
                out.extend_from_slice(&input[from..at]);
                from = at + taken;
                changed = true;
            }
            at += taken;
            let header_is_read = self.have == HEADER;
            if header_is_read
                && (self.remaining > ERROR_MAX || self.unknown)
                && self.error.take_if(|error| error.is_empty()).is_some()
            {
                out.extend_from_slice(&self.head);
            }
            // The client believes that this was not run: it will send no rows, and takes statements for what they were.
            let matters = header_is_read && matches!(self.head[0], b'G' | b'W' | b'1' | b'3');
            if self.given == Given::Unknown && matters {
                return Guarded::End;
            }
            if !self.is_between_frames() {
                continue;
            }
            self.have = 0;
            if let Some(error) = self.error.take() {
                write::frame(out, b'E', |out| match (self.amend)(&error) {
                    Some(other) => out.extend_from_slice(&other),
                    None => out.extend_from_slice(&error),
                });
            }
            match self.head[0] {
                b'E' if self.shown => self.given = Given::Error,
                b'Z' => {
                    self.given = Given::NoError;
                    awaited = awaited.saturating_sub(1);
                }
                _ => {}
            }
            let is_found = self.notice.take().is_some_and(|notice| notice.is_cancelled_wait());
            if is_found && self.given == Given::NoError {
                out.extend_from_slice(&input[from..at]);
                from = at;
                changed = true;
                self.found += 1;
                // Without a Sync behind it, what the client sends next would be run, though an error was given.
                let Some(report) = report.filter(|_| awaited > 0) else { return Guarded::End };
                write::error_response(out, report);
                self.given = Given::Unknown;
            }
        }
        if !changed {
            return Guarded::AsIs;
        }
        out.extend_from_slice(&input[from..]);
        Guarded::Changed
    }

    /// How many such commits there were since the last call.
    pub fn take_found(&mut self) -> u32 {
        std::mem::take(&mut self.found)
    }

    fn is_between_frames(&self) -> bool {
        self.have == HEADER && self.remaining == 0
    }

    /// Takes bytes of one frame from the start of `rest`; gives how many.
    fn take(&mut self, rest: &[u8]) -> usize {
        if self.have == HEADER {
            let taken = rest.len().min(self.remaining);
            self.remaining -= taken;
            if let Some(notice) = &mut self.notice {
                notice.read(&rest[..taken]);
            }
            if let Some(error) = &mut self.error {
                error.extend_from_slice(&rest[..taken]);
            }
            return taken;
        }
        let taken = rest.len().min(HEADER - self.have);
        self.head[self.have..self.have + taken].copy_from_slice(&rest[..taken]);
        self.have += taken;
        let [tag, length @ ..] = self.head;
        self.shown = self.given != Given::Unknown || matches!(tag, b'A' | b'S' | b'Z');
        if tag == b'E' && self.shown {
            self.error.get_or_insert_default();
        }
        if self.have == HEADER {
            match u32::from_be_bytes(length).checked_sub(4) {
                Some(length) => self.remaining = length as usize,
                None => self.unknown = true,
            }
            self.notice = (tag == b'N' && self.shown).then(NoticeReader::default);
        }
        taken
    }
}

/// How many of the bytes, at the start, are whole frames that answer a query and say nothing about a commit.
fn plain(input: &[u8]) -> usize {
    let mut at = 0;
    while let Some(&[b'D' | b'C' | b'T', a, b, c, d]) = input[at..].first_chunk::<HEADER>() {
        let end = u32::from_be_bytes([a, b, c, d]).checked_sub(4).map(|length| at + HEADER + length as usize);
        match end {
            Some(end) if end <= input.len() => at = end,
            _ => break,
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::notice::tests::{cancelled_wait, notice};
    use super::*;
    use crate::session::tests::{ROW, brief, complete, error, ready};
    use crate::wire::write::TransactionStatus;

    fn report() -> Report {
        Report::error("08007", "not known to be replicated")
    }

    fn guard() -> CommitGuard {
        CommitGuard::new(|body| {
            memchr::memmem::find(body, b"planted").map(|_| error("22023", "refused").split_off(HEADER))
        })
    }

    /// What the client gets of frames that come in parts; whether the connection ends.
    fn in_parts(stream: &[u8], cuts: &[usize], awaited: u32) -> (Vec<u8>, bool) {
        let (mut guard, mut out, mut begin) = (guard(), Vec::new(), 0);
        let mut left = awaited;
        for end in cuts.iter().map(|cut| cut % (stream.len() + 1)).chain([stream.len()]) {
            let part = &stream[begin.min(end)..end];
            begin = begin.max(end);
            let ready = u32::try_from(memchr::memchr_iter(b'Z', part).count()).unwrap();
            match guard.filter(part, left, Some(&report()), &mut out) {
                Guarded::AsIs => out.extend_from_slice(part),
                Guarded::Changed => {}
                Guarded::End => return (out, true),
            }
            left = left.saturating_sub(ready);
        }
        (out, false)
    }

    fn idle() -> Vec<u8> {
        ready(TransactionStatus::Idle)
    }

    #[test]
    fn success_behind_a_cancelled_wait_is_an_error_in_both_protocols() {
        let simple =
            [ROW, &cancelled_wait(), &complete("INSERT 0 1"), &idle(), &complete("X"), &idle()].concat();
        assert_eq!(brief(&in_parts(&simple, &[], 2).0), "D N E08007 ZI C:X ZI");
        let extended = [&complete("INSERT 0 1"), &cancelled_wait()[..], &idle()].concat();
        assert_eq!(brief(&in_parts(&extended, &[], 1).0), "C:INSERT 0 1 N E08007 ZI");
    }

    #[test]
    fn one_error_is_given_and_what_follows_is_withheld_but_for_what_answers_nothing() {
        let told = b"S\0\0\0\x08a\0b\0".as_slice();
        let heard = b"A\0\0\0\x0a\0\0\0\0a\0".as_slice();
        let boom = error("22012", "boom");
        let stream = [&cancelled_wait(), told, ROW, heard, &cancelled_wait(), &boom, &idle()].concat();
        assert_eq!(brief(&in_parts(&stream, &[], 1).0), "N E08007 S A ZI");
        let before = [&boom[..], &cancelled_wait(), &idle()].concat();
        assert_eq!(brief(&in_parts(&before, &[], 1).0), "E22012 N ZI");
    }

    #[test]
    fn an_error_may_become_another_and_one_that_is_long_is_not_looked_at() {
        let planted = [error("22P02", "planted"), idle()].concat();
        for cut in 0..planted.len() {
            assert_eq!(brief(&in_parts(&planted, &[cut], 1).0), "E22023 ZI");
        }
        let long = [error("22P02", &"x".repeat(ERROR_MAX)), idle()].concat();
        for cut in [0, 3, 5, 100, ERROR_MAX + 10] {
            assert_eq!(in_parts(&long, &[cut], 1).0, long);
        }
    }

    #[test]
    fn other_warnings_pass_and_change_nothing() {
        let raised = notice("01000", "canceling wait for synchronous replication", "exec_stmt_raise");
        let ending = notice("57P01", "canceling the wait for synchronous replication", "SyncRepWaitForLSN");
        for warning in [raised, ending] {
            let stream = [&warning, &complete("INSERT 0 1")[..], &idle()].concat();
            let (mut guard, mut out) = (guard(), Vec::new());
            assert_eq!(guard.filter(&stream, 1, Some(&report()), &mut out), Guarded::AsIs);
            assert!(out.is_empty());
            assert_eq!(guard.take_found(), 0);
        }
    }

    #[test]
    fn the_connection_ends_where_an_error_would_not_be_understood() {
        // Flushed, with no Sync behind it.
        assert_eq!(
            in_parts(&[cancelled_wait(), complete("COMMIT")].concat(), &[], 0),
            (cancelled_wait(), true)
        );
        // COMMIT; COPY ... FROM STDIN
        let copies = [&cancelled_wait(), &complete("COMMIT")[..], b"G\0\0\0\x07\0\0\0"].concat();
        let (out, ends) = in_parts(&copies, &[], 1);
        assert_eq!((brief(&out).as_str(), ends), ("N E08007", true));
        // Names of statements mean something else to the server than to the client.
        for answer in [b"1\0\0\0\x04", b"3\0\0\0\x04"] {
            let behind = [&cancelled_wait(), &complete("COMMIT")[..], answer, &idle()].concat();
            let (out, ends) = in_parts(&behind, &[], 1);
            assert_eq!((brief(&out).as_str(), ends), ("N E08007", true));
        }
        let (mut guard, mut out) = (guard(), Vec::new());
        assert_eq!(guard.filter(&cancelled_wait(), 1, None, &mut out), Guarded::End);
        assert_eq!(guard.take_found(), 1);
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(cancelled_wait()),
            Just(notice("01000", "whatever", "exec_stmt_raise")),
            Just(complete("INSERT 0 1")),
            Just(ROW.to_vec()),
            Just(idle()),
            Just(error("22012", "boom")),
            Just(b"S\0\0\0\x08a\0b\0".to_vec()),
            Just(error("22P02", "planted")),
            Just(b"G\0\0\0\x07\0\0\0".to_vec()),
            Just(b"1\0\0\0\x04".to_vec()),
            Just(b"n\0\0\0\x04".to_vec()),
        ]
    }

    proptest! {
        #[test]
        fn how_bytes_are_cut_changes_nothing(
            pieces in prop::collection::vec(piece(), 0..12),
            mut cuts in prop::collection::vec(0_usize..800, 0..12),
        ) {
            let stream = pieces.concat();
            cuts.sort_unstable();
            // More are awaited than can come, so that it is the same wherever it is asked.
            prop_assert_eq!(in_parts(&stream, &cuts, 99), in_parts(&stream, &[], 99));
        }

        #[test]
        fn garbage_never_panics(input in prop::collection::vec(any::<u8>(), 0..64)) {
            let (mut guard, mut out) = (guard(), Vec::new());
            guard.filter(&input, 1, Some(&report()), &mut out);
        }
    }
}
