//! From the client to the server.

use std::sync::Arc;

use super::acts;
use super::pins::Pins;
use super::replies::{Carried, Owed};
use super::rewrite::Script;
use super::statements::{NO_SUCH_NAME, PREFIX, Presence, Statement, Undo};
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
struct Pipe<'a> {
    input: &'a [u8],
    /// Where the frame at hand begins.
    at: usize,
    /// From here on, nothing was moved yet.
    from: usize,
    out: &'a mut Vec<u8>,
}

impl Pipe<'_> {
    /// Moves all before the frame at hand, so that something can be put in front of it.
    fn flush(&mut self) -> &mut Vec<u8> {
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

/// How a statement is called on the server.
enum OnServer {
    /// As the client calls it.
    Same,
    /// By another name.
    Named(Arc<Statement>),
    /// It does not exist, and what the client calls it might be something else there: a name that is nothing.
    Missing(Vec<u8>),
}

impl OnServer {
    fn missing(name: &[u8]) -> Self {
        Self::Missing([NO_SUCH_NAME, name].concat())
    }

    fn name(&self) -> Option<&[u8]> {
        match self {
            Self::Same => None,
            Self::Named(statement) => Some(statement.name()),
            Self::Missing(name) => Some(name),
        }
    }

    fn into_statement(self) -> Option<Arc<Statement>> {
        if let Self::Named(statement) = self { Some(statement) } else { None }
    }
}

/// What is owed for a message whose body is not what it should be: the server itself refuses it, and the session goes
/// on. `None` if the body is well formed, or the server would not look at it.
fn malformed(server: &Server, tag: u8, body: &[u8]) -> Option<Owed> {
    let refuses = |name| server.refuses_name(name);
    let refuses_target = |target| matches!(target, Target::Statement(name) if server.refuses_name(name));
    match tag {
        b'Q' if read::query(body).is_none() => Some(Owed::Query { carried: None }),
        b'P' if read::parse(body).is_none_or(|parse| refuses(parse.name)) => Some(Owed::ParseHere),
        b'B' if read::bind(body).is_none_or(|bind| refuses(bind.statement)) => {
            Some(Owed::Bind { statement: None })
        }
        b'D' if read::target(body).is_none_or(refuses_target) => Some(Owed::Describe { statement: None }),
        b'C' if read::target(body).is_none_or(refuses_target) => Some(Owed::Close { own: None }),
        _ => None,
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
        self.tell_if_due(server, to_client);
        while !terminate && self.wants_input(server) {
            if self.has_to_wait(server, &input[pipe.at..]) {
                self.waiting = true;
                break;
            }
            let Some(piece) = self.framer.next(&input[pipe.at..])? else { break };
            let taken = match piece {
                Piece::Rest { taken, .. } => taken,
                Piece::Start { header, taken, whole } => {
                    let body = &input[pipe.at + HEADER..pipe.at + taken];
                    terminate = header.tag == b'X';
                    if terminate {
                        pipe.replace(taken);
                    } else {
                        self.forward_frame(server, header, body, whole, cx, &mut pipe)?;
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
        server.give_own_answers(to_client);
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
            if server.replies.outstanding() > 0 {
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
        if server.replies.outstanding() == 0 {
            self.fresh.settle(unit);
            return false;
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
    /// refused it, and nothing of its answer was given.
    pub fn repeat(
        &mut self,
        server: &mut Server,
        replica: bool,
        cx: &SessionCx<'_>,
        to_server: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) -> Result<(), ClientFault> {
        self.undo_unit();
        let unit = std::mem::take(&mut self.unit);
        self.attach(server, replica, to_server);
        self.forward(server, &unit, cx, to_server, to_client).map(|_| ())
    }

    fn forward_frame(
        &mut self,
        server: &mut Server,
        header: Header,
        body: &[u8],
        whole: bool,
        cx: &SessionCx<'_>,
        pipe: &mut Pipe<'_>,
    ) -> Result<(), ClientFault> {
        if whole && let Some(owed) = malformed(server, header.tag, body) {
            self.sent(server, owed);
            if header.tag == b'Q' {
                self.complete_unit();
            }
            return Ok(());
        }
        let malformed = ClientFault::Body(header.tag);
        match header.tag {
            b'Q' => {
                let sql = if whole { read::query(body).ok_or(malformed)? } else { b"" };
                let verdict = if whole { Verdict::of(cx, sql) } else { Verdict::UNREAD };
                self.begin_here(server, verdict, pipe);
                self.note(verdict);
                self.count(verdict);
                self.unnamed = Unnamed::default();
                let carried = verdict
                    .about_session
                    .then(|| Box::new(self.forward_script(server, sql, header, cx, pipe)));
                self.sent(server, Owed::Query { carried });
                self.complete_unit();
            }
            b'P' if whole => {
                self.forward_parse(server, read::parse(body).ok_or(malformed)?, header, cx, pipe);
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
                let bind = read::bind(body).ok_or(malformed)?;
                let on_server = self.provide(server, bind.statement, pipe);
                self.bound = match &on_server {
                    OnServer::Named(statement) => statement.verdict(),
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
                self.sent(server, Owed::Bind { statement: on_server.into_statement() });
            }
            b'D' => {
                let on_server = match read::target(body).ok_or(malformed)? {
                    Target::Statement(name) => self.provide(server, name, pipe),
                    Target::Portal(_) => OnServer::Same,
                };
                if let Some(name) = on_server.name() {
                    write::statement_target(pipe.replace(HEADER + body.len()), b'D', name);
                }
                self.sent(server, Owed::Describe { statement: on_server.into_statement() });
            }
            b'C' => self.forward_close(server, read::target(body).ok_or(malformed)?, header, pipe),
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
        Ok(())
    }

    fn forward_parse(
        &mut self,
        server: &mut Server,
        parse: read::Parse<'_>,
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
        let statement = self.statement_of(parse, cx);
        self.begin_here(server, statement.verdict(), pipe);
        let unit = server.replies.unit();
        let undo = self.names.insert(parse.name, Arc::clone(&statement));
        self.note_name(&undo);
        self.fresh.names.push((unit, parse.name.into()));
        let presence = server.prepared.presence(&statement, unit);
        let out = pipe.replace(HEADER + header.length as usize);
        // In a block that failed nothing is parsed but what ends it, and the server says so.
        let refused = server.status == TransactionStatus::Failed && !statement.verdict().ends_block;
        if presence == Presence::Present && !refused {
            self.sent(server, Owed::ParsedBefore { undo });
            return;
        }
        if presence != Presence::Present {
            self.make_room(server, &statement, presence, out);
        }
        write::parse(out, statement.name(), statement.tail());
        self.sent(server, Owed::Parse { own: false, statement: Some(statement), unit, undo: Some(undo) });
    }

    /// Before a statement, which may be the first on this server.
    fn begin_here(&mut self, server: &mut Server, verdict: Verdict, pipe: &mut Pipe<'_>) {
        if self.reads_others_sequences(server, verdict) {
            self.discard_sequences(server, pipe.flush());
        }
    }

    fn statement_of(&self, parse: read::Parse<'_>, cx: &SessionCx<'_>) -> Arc<Statement> {
        if !(acts::concerns(parse.sql) || acts::calls_set_config(parse.sql)) {
            return cx.statements.intern(parse.tail, &|| Verdict::of(cx, parse.sql));
        }
        // What names mean is one client's affair.
        let (script, text) = Script::of(parse.sql, &self.names, cx);
        let verdict = Verdict::of(cx, parse.sql);
        let script = verdict.about_session.then(|| Arc::new(script));
        match text {
            Some(text) => {
                let tail = [&text, &parse.tail[parse.sql.len()..]].concat();
                cx.statements.unshared(&tail, verdict, false, script)
            }
            None => cx.statements.unshared(parse.tail, verdict, false, script),
        }
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
                    self.fresh.names.push((server.replies.unit(), name.into()));
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

    /// Sees to it that the server has the statement that the client means, and says what it is called there.
    fn provide(&mut self, server: &mut Server, name: &[u8], pipe: &mut Pipe<'_>) -> OnServer {
        if name.is_empty() {
            let unit = server.replies.unit();
            if matches!(self.unnamed.here, Here::Yes) || self.unnamed.here == Here::Sent(unit) {
                return OnServer::Same;
            }
            let Some(tail) = &self.unnamed.tail else { return OnServer::missing(name) };
            write::parse(pipe.flush(), b"", tail);
            self.unnamed.here = Here::Sent(unit);
            self.sent(server, Owed::Parse { own: true, statement: None, unit, undo: None });
            return OnServer::Same;
        }
        let Some(statement) = self.statement(name) else {
            // Perhaps made by a function, which pins: then this is its server.
            return if name.starts_with(PREFIX) { OnServer::missing(name) } else { OnServer::Same };
        };
        self.ensure(server, &statement, pipe);
        OnServer::Named(statement)
    }

    /// Parses a statement on the server if it is not there.
    fn ensure(&mut self, server: &mut Server, statement: &Arc<Statement>, pipe: &mut Pipe<'_>) {
        let unit = server.replies.unit();
        let presence = server.prepared.presence(statement, unit);
        if presence == Presence::Present {
            return;
        }
        self.bring(server, statement, presence, pipe.flush());
    }

    /// Makes a statement on the server, unless it is present.
    pub(super) fn bring(
        &mut self,
        server: &mut Server,
        statement: &Arc<Statement>,
        presence: Presence,
        out: &mut Vec<u8>,
    ) {
        if presence == Presence::Present {
            return;
        }
        let unit = server.replies.unit();
        self.make_room(server, statement, presence, out);
        if let Some(sql) = statement.prepare() {
            self.prepare_by_sql(server, statement, &sql, out);
            return;
        }
        write::parse(out, statement.name(), statement.tail());
        let statement = Some(Arc::clone(statement));
        self.sent(server, Owed::Parse { own: true, statement, unit, undo: None });
    }

    /// Before a Parse: closes what has to go for it, and what may be there under its name.
    fn make_room(
        &mut self,
        server: &mut Server,
        statement: &Arc<Statement>,
        presence: Presence,
        out: &mut Vec<u8>,
    ) {
        let evicted = server.prepared.add(statement, server.replies.unit());
        let in_doubt = (presence == Presence::Doubtful).then(|| Arc::clone(statement));
        for closed in evicted.into_iter().chain(in_doubt) {
            write::statement_target(out, b'C', closed.name());
            self.sent(server, Owed::Close { own: Some(closed) });
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
