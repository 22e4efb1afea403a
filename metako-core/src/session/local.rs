//! A transaction block that was lost with its server, played to its end for the client.

use std::collections::BTreeMap;

use super::{ClientFault, Plan, Session, SessionCx, State, Verdict};
use crate::plugin::{Class, TransactionVerb};
use crate::wire::read::{self, Target};
use crate::wire::write::{self, Report, TransactionStatus};
use crate::wire::{Piece, sqlstate};

const HEADER: usize = 5;

/// Portals that are remembered; more than one at a time is never needed to end a block.
const PORTALS_MAX: usize = 16;

/// What is left of the block.
#[derive(Debug)]
pub(super) struct LostBlock {
    node: String,
    cause: String,
    /// The client was given an error and knows that the block failed.
    told: bool,
    /// The client ended it; the answer to its Sync is due.
    ended: bool,
    /// An error was given in the extended protocol.
    skipping: bool,
    portals: BTreeMap<Box<[u8]>, Verdict>,
}

impl LostBlock {
    pub(super) fn new(node: &str, cause: &str, told: bool) -> Self {
        Self {
            node: node.to_owned(),
            cause: cause.to_owned(),
            told,
            ended: false,
            skipping: false,
            portals: BTreeMap::new(),
        }
    }

    /// Everything up to the next Sync is dropped.
    pub(super) fn skip_to_sync(&mut self) {
        self.skipping = true;
    }

    /// The error for a statement in the block: first that it is lost, then that it failed.
    pub(super) fn next_error(&mut self) -> Report {
        if std::mem::replace(&mut self.told, true) {
            return Report::error(
                sqlstate::IN_FAILED_SQL_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            );
        }
        let message = format!("the transaction was lost with node {} ({})", self.node, self.cause);
        Report::error(sqlstate::SERIALIZATION_FAILURE, message)
            .with_detail("Nothing of it was committed.")
            .with_hint("Roll back, and run the transaction again.")
    }

    fn status(&self) -> TransactionStatus {
        if self.ended { TransactionStatus::Idle } else { TransactionStatus::Failed }
    }

    /// Runs a statement: the end of the block succeeds, everything else fails.
    fn run(&mut self, verdict: Verdict, to_client: &mut Vec<u8>) -> Result<(), Report> {
        if verdict.class == Class::Empty {
            write::empty_query_response(to_client);
            return Ok(());
        }
        if !verdict.ends_block || self.ended {
            return Err(self.next_error());
        }
        self.ended = true;
        if !self.told && verdict.verb == Some(TransactionVerb::Commit) {
            return Err(self.next_error());
        }
        write::command_complete(to_client, "ROLLBACK");
        Ok(())
    }

    fn fail(&mut self, report: &Report, to_client: &mut Vec<u8>) {
        write::error_response(to_client, report);
        self.skipping = true;
    }
}

impl Session {
    /// Answers one frame of a client whose block was lost.
    pub(super) fn answer_lost_block(
        &mut self,
        input: &[u8],
        cx: &SessionCx<'_>,
        to_client: &mut Vec<u8>,
    ) -> Result<Plan, ClientFault> {
        let State::LostBlock(mut block) = std::mem::replace(&mut self.state, State::Detached) else {
            return Ok(Plan::More);
        };
        let piece = self.framer.next(input);
        let plan = match piece {
            Err(fault) => Err(fault.into()),
            Ok(None) => Ok(Plan::More),
            Ok(Some(Piece::Rest { taken, .. })) => Ok(Plan::Consumed(taken)),
            Ok(Some(Piece::Start { header, taken, whole })) => {
                let body = whole.then(|| &input[HEADER..taken]);
                self.lost_block_frame(&mut block, header.tag, body, cx, to_client)
                    .map(|()| Plan::Consumed(taken))
            }
        };
        if !(block.ended && !block.skipping && block.portals.is_empty()) {
            self.state = State::LostBlock(block);
        }
        plan
    }

    fn lost_block_frame(
        &mut self,
        block: &mut LostBlock,
        tag: u8,
        body: Option<&[u8]>,
        cx: &SessionCx<'_>,
        to_client: &mut Vec<u8>,
    ) -> Result<(), ClientFault> {
        let malformed = ClientFault::Body(tag);
        match tag {
            b'S' => {
                block.skipping = false;
                block.portals.clear();
                write::ready_for_query(to_client, block.status());
            }
            _ if block.skipping => {}
            b'Q' | b'F' => {
                let verdict = match body {
                    Some(body) if tag == b'Q' => Verdict::of(cx, read::query(body).ok_or(malformed)?),
                    _ => Verdict::UNREAD,
                };
                if let Err(report) = block.run(verdict, to_client) {
                    write::error_response(to_client, &report);
                }
                write::ready_for_query(to_client, block.status());
            }
            b'P' => {
                let verdict = match body {
                    Some(body) => self.lost_block_parse(read::parse(body).ok_or(malformed)?, cx),
                    None => None,
                };
                if self.names.are_too_many() {
                    return Err(ClientFault::Statements);
                }
                if verdict.is_some() {
                    write::parse_complete(to_client);
                } else {
                    let report = block.next_error();
                    block.fail(&report, to_client);
                }
            }
            // A long one does not end a block.
            b'B' if body.is_none() => {
                let report = block.next_error();
                block.fail(&report, to_client);
            }
            b'B' => {
                let bind = read::bind(body.unwrap_or_default()).ok_or(malformed)?;
                self.lost_block_bind(block, bind, to_client);
            }
            b'D' => match read::target(body.unwrap_or_default()).ok_or(malformed)? {
                Target::Statement(_) => {
                    write::no_parameters(to_client);
                    write::no_data(to_client);
                }
                Target::Portal(_) => write::no_data(to_client),
            },
            b'C' => {
                if let Target::Statement(name) = read::target(body.unwrap_or_default()).ok_or(malformed)? {
                    self.names.remove(name);
                }
                write::close_complete(to_client);
            }
            b'E' => {
                let portal = body.and_then(read::text).ok_or(malformed)?.0;
                let verdict = block.portals.get(portal).copied().unwrap_or(Verdict::UNREAD);
                if let Err(report) = block.run(verdict, to_client) {
                    block.fail(&report, to_client);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Parses what may run in a failed block; nothing else is parsed.
    fn lost_block_parse(&mut self, parse: read::Parse<'_>, cx: &SessionCx<'_>) -> Option<Verdict> {
        let verdict = Verdict::of(cx, parse.sql);
        if !(verdict.ends_block || verdict.class == Class::Empty) || self.statement(parse.name).is_some() {
            return None;
        }
        if parse.name.is_empty() {
            self.unnamed.tail = Some(parse.tail.to_vec());
            self.unnamed.verdict = Some(verdict);
        } else {
            let statement = cx.statements.unshared(parse.tail, verdict, false, None);
            self.names.insert(parse.name, statement);
        }
        Some(verdict)
    }

    fn lost_block_bind(&mut self, block: &mut LostBlock, bind: read::Bind<'_>, to_client: &mut Vec<u8>) {
        let verdict = if bind.statement.is_empty() {
            self.unnamed.verdict
        } else {
            self.statement(bind.statement).map(|statement| statement.verdict())
        };
        match verdict {
            Some(verdict)
                if (verdict.ends_block || verdict.class == Class::Empty)
                    && block.portals.len() < PORTALS_MAX =>
            {
                block.portals.insert(bind.portal.into(), verdict);
                write::bind_complete(to_client);
            }
            _ => {
                let report = block.next_error();
                block.fail(&report, to_client);
            }
        }
    }
}
