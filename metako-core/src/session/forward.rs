//! From the client to the server.

use std::sync::Arc;

use super::acts;
use super::floor::{self, Floored};
use super::pins::Pins;
use super::provide::OnServer;
use super::replies::{By, Carried, Owed};
use super::rewrite::Script;
use super::statements::{NO_SUCH_NAME, PREFIX, Statement, Undo};
use super::{Attachment, ClientFault, Here, Server, Session, SessionCx, State, UNIT_MAX, Unnamed, Verdict};
use crate::plugin::Effects;
use crate::wire::read::{self, Target};
use crate::wire::write::TransactionStatus;
use crate::wire::{Direction, Header, Piece, header, write};

const HEADER: usize = 5;

/// What became of the client's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarded {
    /// So many were taken; the rest is to be offered again, with more behind it or once the server was released.
    pub consumed: usize,
    /// The client is leaving.
    pub terminate: bool,
}

/// Input on its way to the output: runs of frames that stay as they are move in one piece.
pub(super) struct Pipe<'a> {
    input: &'a [u8],
    /// Where the frame at hand begins.
    at: usize,
    /// From here on, nothing was moved yet.
    from: usize,
    out: &'a mut Vec<u8>,
}

impl Pipe<'_> {
    /// Moves all before the frame at hand, so that something can be put in front of it.
    pub(super) fn flush(&mut self) -> &mut Vec<u8> {
        self.out.extend_from_slice(&self.input[self.from..self.at]);
        self.from = self.at;
        self.out
    }

    /// Moves all before the frame at hand, and drops `taken` bytes of it: something else takes its place.
    fn replace(&mut self, taken: usize) -> &mut Vec<u8> {
        self.flush();
        self.from = self.at + taken;
        self.out
    }
}

impl Session {
    /// Passes on what the client sent, as far as it may go to `server` now. Appends to both buffers.
    pub fn forward(
        &mut self,
        server: &mut Server,
        input: &[u8],
        cx: &SessionCx<'_>,
        to_server: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) -> Result<Forwarded, ClientFault> {
        let mut pipe = Pipe { input, at: 0, from: 0, out: to_server };
        let mut terminate = false;
        self.waiting = false;
        if self.finds.is_some() {
            self.take_new(cx);
        }
        self.tell_if_due(server, to_client);
        while pipe.at < input.len() && !terminate && self.wants_input(server) {
            if self.has_to_wait(server, &input[pipe.at..]) {
                self.waiting = true;
                break;
            }
            let Some(piece) = self.framer.next(&input[pipe.at..])? else { break };
            let taken = match piece {
                Piece::Rest { taken, last } if self.drops_rest => {
                    pipe.replace(taken);
                    self.drops_rest = !last;
                    taken
                }
                Piece::Rest { taken, .. } => taken,
                Piece::Start { header, taken, whole } => {
                    let body = &input[pipe.at + HEADER..pipe.at + taken];
                    terminate = header.tag == b'X';
                    let skipped = server.skips_to_sync() && header.tag != b'S';
                    if skipped || terminate {
                        self.drops_rest = !whole;
                        pipe.replace(taken);
                    } else if !self.forward_frame(server, header, body, whole, cx, &mut pipe)? {
                        self.framer.take_back();
                        self.waiting = true;
                        break;
                    }
                    if self.names.are_too_many() {
                        return Err(ClientFault::Statements);
                    }
                    taken
                }
            };
            pipe.at += taken;
        }
        pipe.flush();
        let consumed = pipe.at;
        self.new_here &= consumed == 0;
        self.keep_for_repeat(&input[..consumed]);
        server.give_own_answers(to_client, &mut self.untold);
        Ok(Forwarded { consumed, terminate })
    }

    /// Whether the frame at the start of `input` uses a name that something not answered may have changed: what the
    /// name means depends on the answer.
    fn has_to_wait(&mut self, server: &Server, input: &[u8]) -> bool {
        if server.replies.copying_in() {
            return false;
        }
        let in_block = server.status != TransactionStatus::Idle || self.open.steers;
        if in_block && input.first() == Some(&b'P') && !self.framer.inside_frame() {
            // In a block that failed nothing is parsed: whether this one has is not known yet.
            if server.replies.are_outstanding() {
                return true;
            }
        }
        let unit = server.replies.unit();
        let unnamed_is_fresh = matches!(self.unnamed.here, Here::Sent(of) if of != unit);
        if (self.fresh.is_empty() && !unnamed_is_fresh) || self.framer.inside_frame() {
            return false;
        }
        if self.fresh.settings.is_some_and(|of| of != unit) && !server.replies.unsynced() {
            if server.replies.front().is_some() {
                return true;
            }
            if server.status == TransactionStatus::Idle {
                self.fresh.settings = None;
            }
        }
        if !server.replies.are_outstanding() {
            self.fresh.settle(unit);
            return false;
        }
        if self.fresh.is_full() && matches!(input.first(), Some(b'P' | b'C')) {
            return true;
        }
        let Ok(Some(found)) = header(input, Direction::Client, u32::MAX) else { return false };
        let body = &input[HEADER.min(input.len())..found.frame().min(input.len())];
        let uses_unnamed = |name: &[u8]| unnamed_is_fresh && name.is_empty() && found.tag != b'P';
        let name = match found.tag {
            b'P' => read::text(body).map(|(name, _)| name),
            b'B' => read::bind(body).map(|bind| bind.statement),
            b'D' | b'C' => match read::target(body) {
                Some(Target::Statement(name)) => Some(name),
                _ => None,
            },
            b'Q' => return read::query(body).is_some_and(acts::concerns),
            _ => None,
        };
        name.is_some_and(|name| uses_unnamed(name) || self.fresh.concerns(name, unit))
    }

    /// Attaches to another server and sends it the unit at hand once more: the server that it went to first is gone or
    /// refused it, and nothing of its answer was given. Gives the rest of the unit, if not all could be sent yet.
    pub fn repeat(
        &mut self,
        server: &mut Server,
        replica: bool,
        cx: &SessionCx<'_>,
        to_server: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) -> Result<Vec<u8>, ClientFault> {
        self.undo_unit();
        let mut unit = std::mem::take(&mut self.unit);
        self.attach(server, replica, to_server);
        let consumed = self.forward(server, &unit, cx, to_server, to_client)?.consumed;
        unit.drain(..consumed);
        Ok(unit)
    }

    /// Passes a frame on; not if it is to be offered again once more is answered.
    fn forward_frame(
        &mut self,
        server: &mut Server,
        header: Header,
        body: &[u8],
        whole: bool,
        cx: &SessionCx<'_>,
        pipe: &mut Pipe<'_>,
    ) -> Result<bool, ClientFault> {
        match header.tag {
            b'Q' => return self.forward_query(server, header, body, whole, cx, pipe),
            b'P' if whole => {
                let Some(parse) = read::parse(body).filter(|parse| !server.refuses_name(parse.name)) else {
                    return self.forward_malformed(server, header, whole);
                };
                if let Some(lowered) = self.lowers(parse.sql) {
                    let (sql, tail) = (lowered.planted(), lowered.planted_tail());
                    let planted = read::Parse { name: parse.name, sql: &sql, tail: &tail };
                    self.forward_parse(server, planted, true, header, cx, pipe);
                } else {
                    self.forward_parse(server, parse, false, header, cx, pipe);
                }
            }
            b'P' => {
                // It keeps the client's name on this server, which nobody else will use.
                self.pins.add(Pins::LONG);
                if self.unnamed.here != Here::Yes {
                    // If it is a named one, the unnamed one must not be what another client left.
                    let unit = server.replies.unit();
                    write::parse(pipe.flush(), b"", b"\0\0\0");
                    self.sent(server, Owed::Parse { own: true, statement: None, unit, undo: None });
                }
                self.unnamed = Unnamed { here: Here::Yes, ..Unnamed::default() };
                self.sent(server, Owed::ParseHere);
            }
            b'B' => {
                let Some(bind) = read::bind(body).filter(|bind| !server.refuses_name(bind.statement)) else {
                    return self.forward_malformed(server, header, whole);
                };
                let on_server = self.provide(server, bind.statement, cx, pipe);
                self.bound = match &on_server {
                    OnServer::NotYet => return Ok(false),
                    OnServer::Named(statement) | OnServer::Changed(statement) => statement.verdict(),
                    _ if bind.statement.is_empty() => self.unnamed.verdict.unwrap_or(Verdict::UNREAD),
                    // One that a function made, perhaps.
                    _ if self.pins.has(Pins::PREPARED.and(Pins::LONG)) => Verdict::UNREAD,
                    _ => Verdict { effects: Effects::NONE, ..Verdict::UNREAD },
                };
                self.begin_here(server, self.bound, pipe);
                self.note(self.bound);
                self.bound_script = match &on_server {
                    OnServer::Named(statement) => statement.script().cloned(),
                    _ if bind.statement.is_empty() => self.unnamed.script.clone(),
                    _ => None,
                };
                if let Some(script) = self.bound_script.clone() {
                    self.supply(server, &script, false, pipe.flush());
                }
                if let Some(name) = on_server.name() {
                    let out = pipe.replace(HEADER + body.len());
                    let length = header.length as usize + name.len() - bind.statement.len();
                    write::header(out, b'B', u32::try_from(length).unwrap_or(u32::MAX));
                    for part in [bind.portal, b"\0", name, b"\0", bind.tail] {
                        out.extend_from_slice(part);
                    }
                }
                self.sent(server, on_server.into_owed(false));
            }
            b'D' => {
                let on_server = match read::target(body).filter(|target| !server.refuses_target(target)) {
                    Some(Target::Statement(name)) => self.provide(server, name, cx, pipe),
                    Some(Target::Portal(_)) => OnServer::Same,
                    None => return self.forward_malformed(server, header, whole),
                };
                if matches!(on_server, OnServer::NotYet) {
                    return Ok(false);
                }
                if let Some(name) = on_server.name() {
                    write::statement_target(pipe.replace(HEADER + body.len()), b'D', name);
                }
                self.sent(server, on_server.into_owed(true));
            }
            b'C' => {
                let Some(target) = read::target(body).filter(|target| !server.refuses_target(target)) else {
                    return self.forward_malformed(server, header, whole);
                };
                self.forward_close(server, target, header, pipe);
            }
            b'E' => {
                self.count(self.bound);
                let script = self.bound_script.clone();
                let carried = script.map(|script| Box::new(self.perform(server, &script)));
                self.sent(server, Owed::Execute { carried });
            }
            b'S' => {
                self.sent(server, Owed::Sync);
                self.complete_unit();
            }
            b'F' => {
                self.note(Verdict::UNREAD);
                self.count(Verdict::UNREAD);
                self.sent(server, Owed::Function);
            }
            b'c' | b'f' => self.sent(server, Owed::CopyEnd),
            _ => {}
        }
        Ok(true)
    }

    fn forward_query(
        &mut self,
        server: &mut Server,
        header: Header,
        body: &[u8],
        whole: bool,
        cx: &SessionCx<'_>,
        pipe: &mut Pipe<'_>,
    ) -> Result<bool, ClientFault> {
        let (sql, verdict) = if whole {
            let Some(sql) = read::query(body) else { return self.forward_malformed(server, header, whole) };
            (sql, Verdict::of(cx, sql))
        } else {
            (&b""[..], Verdict::UNREAD)
        };
        self.begin_here(server, verdict, pipe);
        self.note(verdict);
        self.count(verdict);
        self.unnamed = Unnamed::default();
        if let Some(lowered) = self.lowers(sql) {
            write::query(pipe.replace(HEADER + header.length as usize), &lowered.planted());
            self.sent(server, Owed::Query { carried: None });
            self.complete_unit();
            return Ok(true);
        }
        let carried =
            verdict.about_session.then(|| Box::new(self.forward_script(server, sql, header, cx, pipe)));
        self.sent(server, Owed::Query { carried });
        self.complete_unit();
        Ok(true)
    }

    /// A body that is not what it should be passes: the server itself refuses it, and the session goes on. Of one that did
    /// not come whole, too little is known for that.
    fn forward_malformed(
        &mut self,
        server: &mut Server,
        header: Header,
        whole: bool,
    ) -> Result<bool, ClientFault> {
        let owed = match header.tag {
            b'Q' if whole => Owed::Query { carried: None },
            b'P' if whole => Owed::ParseHere,
            b'B' if whole => Owed::Bind { statement: None },
            b'D' if whole => Owed::Describe { statement: None },
            b'C' if whole => Owed::Close { own: None },
            tag => return Err(ClientFault::Body(tag)),
        };
        self.sent(server, owed);
        if header.tag == b'Q' {
            self.complete_unit();
        }
        Ok(true)
    }

    /// The setting that a text lowers and must not, because commits are guarded.
    fn lowers(&self, sql: &[u8]) -> Option<Floored> {
        self.guard.and_then(|_| floor::lowered(sql))
    }

    /// Passes on a Parse, which is another than the client's if it is `planted`.
    fn forward_parse(
        &mut self,
        server: &mut Server,
        parse: read::Parse<'_>,
        planted: bool,
        header: Header,
        cx: &SessionCx<'_>,
        pipe: &mut Pipe<'_>,
    ) {
        let verdict = || Verdict::of(cx, parse.sql);
        if parse.name.is_empty() {
            let verdict = verdict();
            self.begin_here(server, verdict, pipe);
            let unit = server.replies.unit();
            let script = verdict.about_session.then(|| Script::of(parse.sql, &self.names, cx));
            let (script, text) = script.map_or((None, None), |(script, text)| (Some(Arc::new(script)), text));
            if let Some(text) = text {
                let tail = [&text, &parse.tail[parse.sql.len()..]].concat();
                write::parse(pipe.replace(HEADER + header.length as usize), b"", &tail);
                self.remember_unnamed(&tail, verdict, unit);
            } else {
                if planted {
                    write::parse(pipe.replace(HEADER + header.length as usize), b"", parse.tail);
                }
                self.remember_unnamed(parse.tail, verdict, unit);
            }
            self.unnamed.script = script;
            self.sent(server, Owed::Parse { own: false, statement: None, unit, undo: None });
            return;
        }
        if let Some(taken) = self.statement(parse.name) {
            // The server itself refuses it, so that an open block fails as it should.
            let name = if server.status == TransactionStatus::Failed {
                // There it cannot be made if it is not there already.
                self.make_expendable(server, 0, pipe.flush())
            } else {
                self.ensure(server, &taken, pipe);
                taken.name().to_vec()
            };
            let out = pipe.replace(HEADER + header.length as usize);
            write::parse(out, &name, parse.tail);
            self.sent(server, Owed::Duplicate { name: parse.name.into() });
            return;
        }
        let (statement, by) = self.statement_of(server, parse, cx);
        self.begin_here(server, statement.verdict(), pipe);
        let unit = server.replies.unit();
        let undo = self.names.insert(parse.name, Arc::clone(&statement));
        self.note_name(&undo);
        self.fresh.add(unit, parse.name);
        let presence = server.prepared.presence(&statement, unit);
        let out = pipe.replace(HEADER + header.length as usize);
        self.make_room(server, &statement, presence, out);
        write::parse(out, statement.name(), statement.tail());
        let parsed = Some(Arc::clone(&statement));
        self.sent(server, Owed::Parse { own: false, statement: parsed, unit, undo: Some(undo) });
        if let Some(by) = by {
            self.ask_for_description(server, &statement, by, out);
        }
    }

    /// Before a statement, which may be the first on this server.
    fn begin_here(&mut self, server: &mut Server, verdict: Verdict, pipe: &mut Pipe<'_>) {
        if self.reads_others_sequences(server, verdict) {
            self.discard_sequences(server, pipe.flush());
        }
    }

    /// What a Parse of the client's is to make, and how it is found out what that is.
    fn statement_of(
        &self,
        server: &mut Server,
        parse: read::Parse<'_>,
        cx: &SessionCx<'_>,
    ) -> (Arc<Statement>, Option<By>) {
        if !(acts::concerns(parse.sql) || acts::calls_set_config(parse.sql)) {
            let by = |shared| Some(By::Client { name: parse.name.into(), shared });
            let verdict = || Verdict::of(cx, parse.sql);
            let Some(context) = self.analysed_with(server, parse.sql, cx) else {
                return (cx.statements.unshared(parse.tail, verdict(), false, None), by(None));
            };
            let shared = cx.statements.intern(parse.tail, &context, &verdict);
            if !server.prepared.presence(&shared, server.replies.unit()).is_there() {
                return (shared, by(None));
            }
            // What is there may have been made when the text meant something else.
            let own = cx.statements.unshared(parse.tail, shared.verdict(), false, None);
            return (own, by(Some(shared)));
        }
        // What names mean is one client's affair.
        let (script, text) = Script::of(parse.sql, &self.names, cx);
        let verdict = Verdict::of(cx, parse.sql);
        let script = verdict.about_session.then(|| Arc::new(script));
        let tail = text.map(|text| [&text, &parse.tail[parse.sql.len()..]].concat());
        let tail = tail.as_deref().unwrap_or(parse.tail);
        (cx.statements.unshared(tail, verdict, false, script), None)
    }

    /// Passes on a Query that is about the session, with the names that servers know.
    fn forward_script(
        &mut self,
        server: &mut Server,
        sql: &[u8],
        header: Header,
        cx: &SessionCx<'_>,
        pipe: &mut Pipe<'_>,
    ) -> Carried {
        let (script, text) = Script::of(sql, &self.names, cx);
        // In the middle of a unit without Sync, what fails there has to take the Query with it.
        let alone = !server.replies.unsynced();
        self.supply(server, &script, alone, pipe.flush());
        if let Some(text) = text {
            write::query(pipe.replace(HEADER + header.length as usize), &text);
        }
        self.perform(server, &script)
    }

    fn forward_close(
        &mut self,
        server: &mut Server,
        target: Target<'_>,
        header: Header,
        pipe: &mut Pipe<'_>,
    ) {
        let dropped = match target {
            Target::Statement(b"") => {
                self.unnamed = Unnamed::default();
                None
            }
            Target::Statement(name) => self.names.remove(name),
            Target::Portal(_) => None,
        };
        match (dropped, target) {
            (Some(undo), _) => {
                self.note_name(&undo);
                if let Target::Statement(name) = target {
                    self.fresh.add(server.replies.unit(), name);
                }
                pipe.replace(HEADER + header.length as usize);
                self.sent(server, Owed::ClosedHere { undo });
            }
            (None, Target::Statement(name)) if name.starts_with(PREFIX) => {
                write::statement_target(pipe.replace(HEADER + header.length as usize), b'C', NO_SUCH_NAME);
                self.sent(server, Owed::Close { own: None });
            }
            (None, _) => self.sent(server, Owed::Close { own: None }),
        }
    }

    fn remember_unnamed(&mut self, tail: &[u8], verdict: Verdict, unit: u64) {
        let kept = self.unnamed.tail.get_or_insert_default();
        kept.clear();
        kept.extend_from_slice(tail);
        if kept.capacity() > 4096 && kept.capacity() > 2 * kept.len() {
            kept.shrink_to_fit();
        }
        self.unnamed.verdict = Some(verdict);
        self.unnamed.here = Here::Sent(unit);
    }

    /// Notes that a message goes to the server.
    pub(super) fn sent(&mut self, server: &mut Server, message: Owed) {
        if let Some(skipped) = server.replies.sent(message) {
            self.undo(server, skipped);
        }
    }

    pub(super) fn note_name(&mut self, undo: &Undo) {
        if self.is_holding_back() {
            self.unit_names.push(undo.clone());
        }
    }

    fn complete_unit(&mut self) {
        self.by_statement.complete();
        if let State::Attached(Attachment::Unit { complete, .. }) = &mut self.state {
            *complete = true;
        }
    }

    fn keep_for_repeat(&mut self, taken: &[u8]) {
        if self.is_holding_back() {
            if self.unit.len() + taken.len() <= UNIT_MAX {
                self.unit.extend_from_slice(taken);
            } else {
                self.stop_holding_back();
            }
        }
    }

    pub(super) fn stop_holding_back(&mut self) {
        if let State::Attached(Attachment::Unit { holding, .. }) = &mut self.state {
            *holding = false;
            self.forget_unit();
        }
    }
}
