//! `pool.mode: statement`: a server for one statement, so there are no transaction blocks.

use super::{ClientFault, Plan, Server, Session, SessionCx};
use crate::plugin::TransactionVerb;
use crate::wire::write::{Report, TransactionStatus};
use crate::wire::{Direction, header, read, sqlstate};

/// Bytes of a header.
const HEADER: usize = 5;

/// Whether a session goes by statements, and how far it is with the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ByStatement {
    /// It goes by transactions.
    #[default]
    Off,
    /// Of the unit for which it has a server, not all was sent.
    Sending,
    /// All was.
    Sent,
}

impl ByStatement {
    /// A server was taken for a unit.
    pub(super) fn begin(&mut self) {
        if *self == Self::Sent {
            *self = Self::Sending;
        }
    }

    /// The unit is complete.
    pub(super) fn complete(&mut self) {
        if *self == Self::Sending {
            *self = Self::Sent;
        }
    }
}

impl Session {
    /// Gives the server back after each unit (a Query, or a batch up to its Sync), and allows no transaction block: what
    /// begins one is refused unsent, and what turns out to have begun one shows in [`Self::opened_block`].
    pub fn go_by_statement(&mut self) {
        self.by_statement = ByStatement::Sending;
    }

    /// Whether the server is in a block that this session must not have. The server has to be closed then, and the client
    /// told [`block_opened`].
    pub fn opened_block(&self, server: &Server) -> bool {
        self.by_statement != ByStatement::Off && server.status != TransactionStatus::Idle
    }

    /// Whether what the client sends next is for another server. A COPY that failed still waits for its Sync.
    pub(super) fn is_done_here(&self, server: &Server) -> bool {
        self.by_statement == ByStatement::Sent
            && self.pinned().is_none()
            && !server.replies.copying_in()
            && !server.replies.unsynced()
    }

    /// Refuses what the input begins with, if that would begin a block.
    pub(super) fn refuse_block(
        &mut self,
        input: &[u8],
        cx: &SessionCx<'_>,
        to_client: &mut Vec<u8>,
    ) -> Result<Option<Plan>, ClientFault> {
        if self.by_statement == ByStatement::Off || !begins_block(input, cx)? {
            return Ok(None);
        }
        self.refuse(input, &block(), to_client).map(|taken| Some(Plan::Consumed(taken)))
    }
}

/// Whether one of the statements up to the first end of a unit is a BEGIN.
fn begins_block(input: &[u8], cx: &SessionCx<'_>) -> Result<bool, ClientFault> {
    let begins = |sql| cx.classifier.classify(sql).transaction == Some(TransactionVerb::Begin);
    let mut rest = input;
    while let Some(frame) = header(rest, Direction::Client, u32::MAX)? {
        let Some(body) = rest.get(HEADER..frame.frame()) else { break };
        match frame.tag {
            b'Q' => return Ok(read::query(body).is_some_and(begins)),
            b'P' if read::parse(body).is_some_and(|parse| begins(parse.sql)) => return Ok(true),
            b'S' => break,
            _ => rest = &rest[frame.frame()..],
        }
    }
    Ok(false)
}

fn block() -> Report {
    Report::error(sqlstate::FEATURE_NOT_SUPPORTED, "transaction blocks not allowed in statement pooling mode")
        .with_detail("pool.mode is statement: each statement may run on another server connection.")
}

/// What a client is told whose statement began a transaction block unforeseen. Its connection ends with it.
pub fn block_opened() -> Report {
    block().as_fatal()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::{Bench, query};

    fn bench() -> Bench {
        let mut bench = Bench::new();
        bench.session.go_by_statement();
        bench
    }

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag], &length.to_be_bytes()[..], body].concat()
    }

    #[test]
    fn a_begin_is_refused_unsent_and_the_session_goes_on() {
        let mut bench = bench();
        let input = query("begin");
        assert_eq!(bench.plan(&input), Plan::Consumed(input.len()));
        assert_eq!(bench.client_got(), "E0A000 ZI");
        assert!(matches!(bench.plan(&query("insert")), Plan::Route(_)));
    }

    #[test]
    fn a_batch_with_a_begin_in_it_is_dropped_up_to_its_sync() {
        let mut bench = bench();
        let parse = |sql: &str| frame(b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"].concat());
        let input = [parse("insert"), parse("begin"), frame(b'S', b""), query("select")].concat();
        let mut rest = &input[..];
        let plan = loop {
            match bench.plan(rest) {
                Plan::Consumed(taken) => rest = &rest[taken..],
                plan => break plan,
            }
        };
        assert!(matches!(plan, Plan::Route(_)));
        assert_eq!(rest, query("select"));
        assert_eq!(bench.client_got(), "E0A000 ZI");
    }

    #[test]
    fn each_statement_of_a_pipeline_is_planned_for_itself() {
        let mut bench = bench();
        let (one, two) = (query("insert"), query("begin"));
        let input = [&one[..], &two].concat();
        assert!(matches!(bench.plan(&input), Plan::Route(_)));
        bench.attach(false);
        assert_eq!(bench.forward(&input), one.len());
        bench.answer(&[frame(b'C', b"INSERT 0 1\0"), frame(b'Z', b"I")].concat());
        assert!(!bench.session.wants_input(&bench.server));
        assert!(bench.session.releasable(&bench.server));
        bench.session.release();
        assert_eq!(bench.plan(&two), Plan::Consumed(two.len()));
        assert_eq!(bench.client_got(), "C:INSERT 0 1 ZI E0A000 ZI");
    }

    #[test]
    fn rows_of_a_copy_and_the_sync_after_one_that_failed_go_to_the_same_server() {
        let mut bench = bench();
        bench.attach(false);
        bench.forward(&query("copy"));
        assert!(!bench.session.wants_input(&bench.server));
        bench.answer(&frame(b'G', b"\0\0\0"));
        assert_eq!(bench.forward(&[frame(b'd', b"1"), frame(b'c', b"")].concat()), 11);
        bench.answer(&[frame(b'C', b"COPY 1\0"), frame(b'Z', b"I")].concat());
        assert!(bench.session.releasable(&bench.server));
        bench.session.release();

        bench.attach(false);
        let batch =
            [frame(b'P', b"\0copy\0\0\0"), frame(b'B', b"\0\0\0\0\0\0\0\0"), frame(b'E', b"\0\0\0\0\0")];
        let batch = [batch.concat(), frame(b'S', b"")].concat();
        assert_eq!(bench.forward(&batch), batch.len());
        bench.answer(&[frame(b'1', b""), frame(b'2', b""), frame(b'G', b"\0\0\0")].concat());
        bench.answer(&frame(b'E', b"SERROR\0C22P04\0\0"));
        let end = [frame(b'c', b""), frame(b'S', b"")].concat();
        assert_eq!(bench.forward(&end), end.len());
        bench.answer(&frame(b'Z', b"I"));
        assert!(bench.session.releasable(&bench.server));
    }

    #[test]
    fn a_block_that_was_not_foreseen_shows() {
        let mut bench = bench();
        bench.attach(false);
        bench.forward(&query("select 1; begin"));
        assert!(!bench.session.opened_block(&bench.server));
        bench.answer(&[frame(b'C', b"BEGIN\0"), frame(b'Z', b"T")].concat());
        assert!(bench.session.opened_block(&bench.server));
    }
}
