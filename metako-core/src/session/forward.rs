//! From the client to the server.

use std::sync::Arc;

use super::replies::Owed;
use super::statements::{NO_SUCH_NAME, PREFIX, Presence, Statement, Undo};
use super::{Attachment, ClientFault, Here, Server, Session, SessionCx, State, UNIT_MAX, Unnamed, Verdict};
use crate::wire::read::{self, Target};
use crate::wire::{Header, Piece, write};

const HEADER: usize = 5;

const TOO_LONG: &str = "a text too long to be looked at was run";

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
        while !terminate && self.wants_input(server) {
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
        self.keep_for_repeat(&input[..consumed]);
        server.give_own_answers(to_client);
        Ok(Forwarded { consumed, terminate })
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
        let malformed = ClientFault::Body(header.tag);
        match header.tag {
            b'Q' => {
                let verdict = if whole {
                    Verdict::of(cx.classifier, read::query(body).ok_or(malformed)?)
                } else {
                    self.pin(TOO_LONG);
                    Verdict::UNREAD
                };
                self.note(verdict);
                self.count(verdict);
                self.unnamed = Unnamed::default();
                self.sent(server, Owed::Query { own: false });
                self.complete_unit();
            }
            b'P' if whole => {
                self.forward_parse(server, read::parse(body).ok_or(malformed)?, header, cx, pipe);
            }
            b'P' => {
                // It keeps the client's name on this server, which nobody else will use.
                self.pin(TOO_LONG);
                if self.unnamed.here != Here::Yes {
                    // If it is a named one, the unnamed one must not be what another client left.
                    let unit = server.replies.unit();
                    write::parse(pipe.flush(), b"", b"\0\0\0");
                    self.sent(server, Owed::Parse { own: true, statement: None, unit, undo: None });
                }
                self.unnamed = Unnamed { tail: None, verdict: None, here: Here::Yes };
                self.sent(server, Owed::ParseHere);
            }
            b'B' => {
                let bind = read::bind(body).ok_or(malformed)?;
                let on_server = self.provide(server, bind.statement, pipe);
                self.bound = match &on_server {
                    OnServer::Named(statement) => statement.verdict(),
                    _ if bind.statement.is_empty() => self.unnamed.verdict.unwrap_or(Verdict::UNREAD),
                    _ => Verdict::UNREAD,
                };
                self.note(self.bound);
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
                self.sent(server, Owed::Execute);
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
        let verdict = || Verdict::of(cx.classifier, parse.sql);
        if parse.name.is_empty() {
            let unit = server.replies.unit();
            self.remember_unnamed(parse.tail, verdict(), unit);
            self.sent(server, Owed::Parse { own: false, statement: None, unit, undo: None });
            return;
        }
        if let Some(taken) = self.statement(parse.name) {
            // The server itself refuses it, so that an open block fails as it should.
            self.ensure(server, &taken, pipe);
            let out = pipe.replace(HEADER + header.length as usize);
            write::parse(out, taken.name(), parse.tail);
            self.sent(server, Owed::Duplicate { name: parse.name.into() });
            return;
        }
        let statement = cx.statements.intern(parse.tail, &verdict);
        let undo = self.names.insert(parse.name, Arc::clone(&statement));
        self.note_name(&undo);
        let unit = server.replies.unit();
        let presence = server.prepared.presence(&statement, unit);
        let out = pipe.replace(HEADER + header.length as usize);
        if presence == Presence::Present {
            self.sent(server, Owed::ParsedBefore { undo });
            return;
        }
        self.make_room(server, &statement, presence, out);
        write::parse(out, statement.name(), statement.tail());
        self.sent(server, Owed::Parse { own: false, statement: Some(statement), unit, undo: Some(undo) });
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
            // Perhaps made by PREPARE, which pins: then this is its server.
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
        let out = pipe.flush();
        self.make_room(server, statement, presence, out);
        write::parse(out, statement.name(), statement.tail());
        self.sent(
            server,
            Owed::Parse { own: true, statement: Some(Arc::clone(statement)), unit, undo: None },
        );
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
    fn sent(&mut self, server: &mut Server, message: Owed) {
        if let Some(skipped) = server.replies.sent(message) {
            self.undo(server, skipped);
        }
    }

    fn note_name(&mut self, undo: &Undo) {
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
