//! What a client without a server wants.

use super::{ClientFault, Session, SessionCx, State, UNIT_MAX, Verdict};
use crate::plugin::Class;
use crate::wire::read::{self, Target};
use crate::wire::write::TransactionStatus;
use crate::wire::{Direction, Header, Piece, TEXT_MAX, header, write};

/// Bytes of a header.
const HEADER: usize = 5;

const MALFORMED: &str = "a malformed message, which the server is to refuse";

const NO_SPLIT: &str = "load_balancer.split is off";

/// What to do with the client's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Read more of the client first.
    More,
    /// So many bytes are done with; ask again with the rest.
    Consumed(usize),
    /// Find a server for what the input begins with, none of which is consumed.
    Route(Route),
    /// The client is leaving.
    Close,
}

/// Which server is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Whether a replica will do.
    pub read: bool,
    /// The strongest class among the statements.
    pub class: Class,
    /// Why, for people.
    pub reason: &'static str,
}

impl Route {
    fn of(verdict: Verdict, cx: &SessionCx<'_>) -> Self {
        Self { read: cx.split && verdict.class.is_read(), class: verdict.class, reason: verdict.reason }
    }

    const fn primary(reason: &'static str) -> Self {
        Self { read: false, class: Class::Unknown, reason }
    }
}

/// A batch of the extended protocol, as far as it was looked at.
struct Batch {
    strongest: Verdict,
    /// The text of the unnamed statement comes from this batch.
    unnamed: Option<Verdict>,
    /// Nothing but Close of statements.
    only_closes: bool,
}

impl Batch {
    fn add(&mut self, verdict: Verdict) {
        if verdict.class > self.strongest.class {
            self.strongest = verdict;
        }
    }
}

impl Session {
    /// Looks at the start of what the client sent while the session has no server. Answers that need no server are
    /// appended to `to_client`.
    pub fn plan(
        &mut self,
        input: &[u8],
        cx: &SessionCx<'_>,
        to_client: &mut Vec<u8>,
    ) -> Result<Plan, ClientFault> {
        let plan = self.plan_any(input, cx, to_client)?;
        if matches!(plan, Plan::Route(_))
            && let Some(refused) = self.refuse_block(input, cx, to_client)?
        {
            return Ok(refused);
        }
        Ok(match plan {
            Plan::Route(route) => Plan::Route(Route { read: route.read && self.pinned().is_none(), ..route }),
            other => other,
        })
    }

    fn plan_any(
        &mut self,
        input: &[u8],
        cx: &SessionCx<'_>,
        to_client: &mut Vec<u8>,
    ) -> Result<Plan, ClientFault> {
        debug_assert!(!self.is_attached());
        if input.is_empty() {
            return Ok(Plan::More);
        }
        if self.framer.inside_frame() {
            return self.drop_piece(input);
        }
        let Some(first) = header(input, Direction::Client, u32::MAX)? else { return Ok(Plan::More) };
        match (&self.state, first.tag) {
            (_, b'X') => Ok(Plan::Close),
            (State::Skipping, b'S') => {
                let dropped = self.drop_sync(input, to_client)?;
                if dropped != Plan::More {
                    self.state = State::Detached;
                }
                Ok(dropped)
            }
            (State::Skipping, _) | (_, b'd' | b'c' | b'f') => self.drop_piece(input),
            (State::LostBlock(_), _) => self.answer_lost_block(input, cx, to_client),
            (_, b'S') => self.drop_sync(input, to_client),
            (_, b'H') => self.drop_piece(input),
            (_, b'Q') => Ok(plan_query(input, first, cx)),
            (_, b'F') => Ok(Plan::Route(Route::primary("a function call by number"))),
            _ => self.plan_batch(input, cx, to_client),
        }
    }

    /// Answers a Sync that concerns no server, once it is there: one that says that it is longer than a Sync may come in parts.
    fn drop_sync(&mut self, input: &[u8], to_client: &mut Vec<u8>) -> Result<Plan, ClientFault> {
        let dropped = self.drop_piece(input)?;
        if dropped != Plan::More {
            write::ready_for_query(to_client, TransactionStatus::Idle);
        }
        Ok(dropped)
    }

    /// Takes one piece and passes it to nobody.
    pub(super) fn drop_piece(&mut self, input: &[u8]) -> Result<Plan, ClientFault> {
        Ok(match self.framer.next(input)? {
            Some(Piece::Start { taken, .. } | Piece::Rest { taken, .. }) => Plan::Consumed(taken),
            None => Plan::More,
        })
    }

    fn plan_batch(
        &mut self,
        input: &[u8],
        cx: &SessionCx<'_>,
        to_client: &mut Vec<u8>,
    ) -> Result<Plan, ClientFault> {
        let nothing = Verdict { class: Class::Empty, reason: "no statement is run", ..Verdict::UNREAD };
        let mut batch = Batch { strongest: nothing, unnamed: self.unnamed.verdict, only_closes: true };
        let mut at = 0;
        loop {
            let rest = &input[at..];
            let Some(frame) = header(rest, Direction::Client, u32::MAX)? else { break };
            match frame.tag {
                b'S' | b'H' if batch.only_closes => {
                    return self.close_here(input, at + frame.frame(), to_client);
                }
                b'S' => return Ok(Plan::Route(Route::of(batch.strongest, cx))),
                b'H' => {
                    return Ok(Plan::Route(Route::primary(
                        "a batch that is flushed before its Sync may go on",
                    )));
                }
                b'P' if frame.length > TEXT_MAX => {
                    return Ok(Plan::Route(Route::primary("a text too long to be looked at")));
                }
                b'Q' | b'F' | b'd' | b'c' | b'f' | b'X' => {
                    return Ok(Plan::Route(Route::primary("a batch that is not ended by a Sync")));
                }
                _ => {}
            }
            let Some(body) = rest.get(HEADER..frame.frame()) else { break };
            if !cx.split && frame.tag != b'C' {
                // Nothing further on changes where it goes, and an error is answered at once, without Sync.
                return Ok(Plan::Route(Route::primary(NO_SPLIT)));
            }
            if self.judge(&mut batch, frame, body, cx).is_none() {
                return Ok(Plan::Route(Route::primary(MALFORMED)));
            }
            if !cx.split && !batch.only_closes {
                return Ok(Plan::Route(Route::primary(NO_SPLIT)));
            }
            at += frame.frame();
        }
        if input.len() > UNIT_MAX && !waits_for_text(&input[at..]) {
            return Ok(Plan::Route(Route::primary("a batch too long to be repeated on another replica")));
        }
        Ok(Plan::More)
    }

    fn judge(&self, batch: &mut Batch, frame: Header, body: &[u8], cx: &SessionCx<'_>) -> Option<()> {
        match frame.tag {
            b'P' => {
                let parse = read::parse(body)?;
                let verdict = Verdict::of(cx, parse.sql);
                if parse.name.is_empty() {
                    batch.unnamed = Some(verdict);
                }
                batch.add(verdict);
            }
            b'B' => {
                let name = read::bind(body)?.statement;
                let known = if name.is_empty() { batch.unnamed } else { self.verdict_of(name) };
                // A statement that this batch parses was judged at its Parse.
                batch.add(known.unwrap_or(if batch.strongest.class == Class::Empty {
                    Verdict::UNREAD
                } else {
                    batch.strongest
                }));
            }
            b'C' => {
                let target = read::target(body)?;
                batch.only_closes &= matches!(target, Target::Statement(_));
                return Some(());
            }
            _ => {}
        }
        batch.only_closes = false;
        Some(())
    }

    fn verdict_of(&self, name: &[u8]) -> Option<Verdict> {
        self.names.get(name).map(|statement| statement.verdict())
    }

    /// Closing statements concerns no server: what is on servers serves other clients too.
    fn close_here(&mut self, input: &[u8], end: usize, to_client: &mut Vec<u8>) -> Result<Plan, ClientFault> {
        let mut at = 0;
        while at < end {
            let Some(Piece::Start { header, taken, .. }) = self.framer.next(&input[at..])? else { break };
            match header.tag {
                b'C' => {
                    let body = &input[at + HEADER..at + taken];
                    match read::target(body).ok_or(ClientFault::Body(b'C'))? {
                        Target::Statement(b"") => self.unnamed = super::Unnamed::default(),
                        Target::Statement(name) => {
                            self.names.remove(name);
                        }
                        Target::Portal(_) => {}
                    }
                    write::close_complete(to_client);
                }
                b'S' => write::ready_for_query(to_client, TransactionStatus::Idle),
                _ => {}
            }
            at += taken;
        }
        Ok(Plan::Consumed(at))
    }
}

fn plan_query(input: &[u8], first: Header, cx: &SessionCx<'_>) -> Plan {
    if first.length > TEXT_MAX {
        return Plan::Route(Route::primary("a text too long to be looked at"));
    }
    let Some(body) = input.get(HEADER..first.frame()) else { return Plan::More };
    if !cx.split {
        // It is judged when it is sent.
        return Plan::Route(Route::primary(NO_SPLIT));
    }
    let Some(sql) = read::query(body) else { return Plan::Route(Route::primary(MALFORMED)) };
    let mut route = Route::of(Verdict::of(cx, sql), cx);
    route.read &= first.frame() <= UNIT_MAX;
    Plan::Route(route)
}

/// Whether the input ends in a Parse whose text is waited for anyway.
fn waits_for_text(rest: &[u8]) -> bool {
    rest.first() == Some(&b'P')
}
