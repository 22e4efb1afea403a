//! From the server to the client.

use std::sync::Arc;

use super::describe::refuse_changed;
use super::pins::Pins;
use super::replies::{Asked, Owed};
use super::rewrite::{self, Renamed};
use super::settings::APPLICATION_NAME;
use super::statements::{NO_SUCH_NAME, PREFIX};
use super::{Attachment, Awaited, Here, Open, Server, Session, State, ends_connection, floor};
use crate::wire::read::{self, ErrorFields};
use crate::wire::write::{self, Report, TransactionStatus};
use crate::wire::{FrameError, Header, Piece, sqlstate};

const HEADER: usize = 5;

/// The most of an answer that is kept back while the unit may yet be repeated, in bytes.
const HOLD_BACK_MAX: usize = 8 << 10;

/// What became of the server's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// So many were taken; the rest is to be offered again with more behind it.
    pub consumed: usize,
    /// What the caller has to do.
    pub effect: Effect,
}

/// What the caller has to do after the server spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Send what was appended; look whether the server may go.
    Continue,
    /// A replica refused the unit, and is ready again: drop what was kept back, release the replica, and repeat the unit
    /// on the primary.
    Refused,
    /// The server says that it is about to end the connection: take it for lost.
    Lost,
    /// The server ended the session with an error that is the client's to see: send it and close both.
    Ended,
}

/// What is done with a frame.
enum Pass {
    AsIs,
    /// It is not for the client.
    Swallow,
    /// It was replaced by something that is in the output already.
    Replaced,
    /// It is not for the client, and something else has to be done.
    Stop(Effect),
    /// It is the last that the client gets.
    Last,
}

impl Session {
    /// Passes on what the server sent. Appends to `to_client`, and to `to_server` what metako has to say to that.
    pub fn answer(
        &mut self,
        server: &mut Server,
        input: &[u8],
        to_client: &mut Vec<u8>,
        to_server: &mut Vec<u8>,
    ) -> Result<Answered, FrameError> {
        let mut effect = Effect::Continue;
        if self.answer_plainly(server, input) {
            to_client.extend_from_slice(input);
            return Ok(Answered { consumed: input.len(), effect });
        }
        let (mut at, mut from) = (0, 0);
        loop {
            let mut unreplicated = false;
            if self.rows_pass(server) {
                at += server.framer.whole(&input[at..], *b"TD");
            }
            let Some(piece) = server.framer.next(&input[at..])? else { break };
            let (taken, pass) = match piece {
                Piece::Rest { taken, last } if server.swallow_rest => {
                    if server.is_in_own_row() {
                        server.own_row(&input[at..at + taken], last);
                    } else if server.describing.goes_on() {
                        self.take_description(server, &input[at..at + taken], last);
                    }
                    (taken, Pass::Swallow)
                }
                Piece::Rest { taken, last } => {
                    unreplicated = server.read_notice(&input[at..at + taken], last);
                    (taken, Pass::AsIs)
                }
                Piece::Start { header: Header { tag: tag @ (b'D' | b'd'), .. }, taken, whole } => {
                    server.swallow_rest = server.answers_metako() || server.told;
                    if !server.swallow_rest {
                        self.stop_holding_back();
                    } else if tag == b'D' {
                        server.own_row(&input[at + HEADER..at + taken], whole);
                    }
                    (taken, if server.swallow_rest { Pass::Swallow } else { Pass::AsIs })
                }
                Piece::Start { header, taken, whole } => {
                    let body = &input[at + HEADER..at + taken];
                    let start = to_client.len();
                    let pass = self.answer_frame(server, header, body, to_client, to_server);
                    if to_client.len() > start && from < at {
                        // What came before goes before.
                        let made = to_client.split_off(start);
                        to_client.extend_from_slice(&input[from..at]);
                        to_client.extend_from_slice(&made);
                        from = at;
                    }
                    server.swallow_rest = !matches!(pass, Pass::AsIs | Pass::Last);
                    if header.tag == b'N' && !server.swallow_rest {
                        self.begin_notice(server);
                        unreplicated = server.read_notice(body, whole);
                    }
                    (taken, pass)
                }
            };
            if !matches!(pass, Pass::AsIs | Pass::Last) {
                to_client.extend_from_slice(&input[from..at]);
                from = at + taken;
            }
            at += taken;
            match pass {
                Pass::Stop(stop) => {
                    effect = stop;
                    break;
                }
                Pass::Last => {
                    effect = Effect::Ended;
                    break;
                }
                _ => {}
            }
            if unreplicated || server.has_own_answer() {
                to_client.extend_from_slice(&input[from..at]);
                from = at;
            }
            if unreplicated && let Some(ended) = self.commit_unreplicated(server, to_client) {
                effect = ended;
                break;
            }
            server.give_own_answers(to_client, &mut self.untold);
            if at == input.len() {
                break;
            }
        }
        to_client.extend_from_slice(&input[from..at]);
        if to_client.len() > HOLD_BACK_MAX {
            self.stop_holding_back();
        }
        Ok(Answered { consumed: at, effect })
    }

    /// Whether rows and their descriptions pass as they are, and change nothing.
    fn rows_pass(&self, server: &Server) -> bool {
        matches!(server.replies.front(), Some(Owed::Query { .. } | Owed::Execute { .. }))
            && !self.refused
            && !server.told
            && !self.is_holding_back()
    }

    fn answer_frame(
        &mut self,
        server: &mut Server,
        header: Header,
        body: &[u8],
        to_client: &mut Vec<u8>,
        to_server: &mut Vec<u8>,
    ) -> Pass {
        if self.refused && !matches!(header.tag, b'Z' | b'S' | b'E') {
            return Pass::Swallow;
        }
        let own_query = server.answers_metako();
        let pass = if own_query || server.told { Pass::Swallow } else { Pass::AsIs };
        match header.tag {
            // It answers nothing: what a client listens to is its own, whatever metako asks meanwhile.
            b'A' => return Pass::AsIs,
            b'E' => return self.answer_error(server, header, body, to_client),
            b'N' if ends_connection(read::error(body).code) => return Pass::Swallow,
            b'S' => {
                server.parameter_status(body);
                if own_query || self.refused {
                    return Pass::Swallow;
                }
                // It is not said twice, so it is not taken back.
                self.stop_holding_back();
                if let Some((name, value)) = read::parameter_status(body) {
                    if name == APPLICATION_NAME && self.has_anothers_name(server) {
                        self.tell_start_name(to_client);
                        return Pass::Replaced;
                    }
                    if let Some(told) = &mut self.told {
                        told.set(name, value);
                    }
                }
                return Pass::AsIs;
            }
            b'Z' => return self.answer_ready(server, body, to_client, to_server),
            _ if own_query => {}
            tag if matches!(server.replies.front(), Some(Owed::Own { tag: own, .. }) if *own == tag) => {
                if let Some(Owed::Own { statement: Some(statement), unit, .. }) = server.replies.pop() {
                    server.prepared.confirm(&statement, unit);
                }
                return Pass::Swallow;
            }
            b'1' => {
                let Some(Owed::Parse { own, statement, unit, undo }) = server.expect(b'1') else {
                    return if server.told { Pass::Stop(self.end_untold(to_client)) } else { pass };
                };
                if server.told {
                    self.untold.extend(undo);
                }
                match statement {
                    Some(statement) => server.prepared.confirm(&statement, unit),
                    // What it was before is gone: to use it is an error, as if it never was.
                    None if server.told && !own && self.unnamed.here == Here::Sent(unit) => {
                        self.unnamed = super::Unnamed::default();
                    }
                    None if self.unnamed.here == Here::Sent(unit) => self.unnamed.here = Here::Yes,
                    None => {}
                }
                if own {
                    return Pass::Swallow;
                }
            }
            b'2' => {
                server.expect(b'2');
            }
            b'3' => match server.expect(b'3') {
                Some(Owed::Close { own: Some(_) }) => return Pass::Swallow,
                Some(_) if server.told && self.pins.has(Pins::LONG) => {
                    return Pass::Stop(self.end_untold(to_client));
                }
                _ => {}
            },
            b'T' | b'n' if matches!(server.replies.front(), Some(Owed::Describe { .. })) => {
                server.replies.pop();
            }
            b't' | b'T' | b'n' if matches!(server.replies.front(), Some(Owed::Described(_))) => {
                server.describing.begin(header.tag);
                self.take_description(server, body, body.len() == header.length as usize);
                return Pass::Swallow;
            }
            b'C' | b'I' | b's' => {
                self.stop_holding_back();
                if header.tag == b'C' {
                    self.succeeded(server);
                    self.completed(server, body);
                }
                if matches!(server.replies.front(), Some(Owed::Execute { .. })) {
                    server.replies.pop();
                }
            }
            b'G' | b'W' if server.told => return Pass::Stop(self.end_untold(to_client)),
            b'G' => {
                self.open_up();
                self.awaited = Awaited::Unbounded;
                server.replies.copy_in();
            }
            b'H' | b'W' => {
                self.open_up();
                self.awaited = Awaited::Unbounded;
            }
            _ => {}
        }
        pass
    }

    fn answer_ready(
        &mut self,
        server: &mut Server,
        body: &[u8],
        to_client: &mut Vec<u8>,
        to_server: &mut Vec<u8>,
    ) -> Pass {
        match body.first().copied().and_then(TransactionStatus::from_byte) {
            Some(status) => server.status = status,
            None => server.out_of_step = true,
        }
        match server.replies.ready() {
            Some(Owed::Metako(asked)) => {
                self.found_answer(server, asked, to_server, to_client);
                return Pass::Swallow;
            }
            Some(Owed::OwnSync) => return Pass::Swallow,
            Some(answered @ Owed::Query { .. }) => {
                server.stand_in = None;
                // What of it did not succeed was not done.
                self.undo(server, answered);
            }
            _ => {}
        }
        if std::mem::take(&mut server.told) {
            self.undo_untold();
        }
        if self.refused {
            return Pass::Stop(Effect::Refused);
        }
        self.stop_holding_back();
        if server.replies.settled() {
            self.open = Open::default();
            self.fresh.settle(server.replies.unit());
            if self.finds.is_some() {
                self.share(server);
            }
        }
        self.found_ready(server, to_server, to_client);
        if server.status != TransactionStatus::Idle {
            // A block on a replica, which the classifier did not foresee: the whole of it stays there.
            self.open_up();
        }
        Pass::AsIs
    }

    fn answer_error(
        &mut self,
        server: &mut Server,
        header: Header,
        body: &[u8],
        to_client: &mut Vec<u8>,
    ) -> Pass {
        let fields = read::error(body);
        if fields.is_fatal() {
            let lost = ends_connection(fields.code) || self.is_holding_back() || server.told;
            return if lost { Pass::Stop(Effect::Lost) } else { Pass::Last };
        }
        if server.replies.front() == Some(&Owed::Metako(Asked::Question)) {
            server.answer.broken = true;
            return Pass::Swallow;
        }
        if server.replies.front() == Some(&Owed::Metako(Asked::Name)) {
            // Nothing but a name: the next client does not get this server.
            server.out_of_step = true;
            return Pass::Swallow;
        }
        if server.answers_metako() {
            return self.not_set_up(server, &fields, to_client);
        }
        if server.replies.is_preparing() {
            // The Query behind it fails too, and is told why.
            server.stand_in = Some(body.to_vec());
            for skipped in server.replies.failed(fields.code) {
                self.undo(server, skipped);
            }
            return Pass::Swallow;
        }
        self.becoming.failed = true;
        let refused = self.is_holding_back() && is_refusal(&fields);
        if fields.code == b"25006" && !refused && server.in_recovery() != Some(false) {
            self.counts.read_only += 1;
        }
        if matches!(fields.code.get(..2), Some(b"08" | b"53" | b"57" | b"58")) {
            self.counts.failed += 1;
        }
        let taken = server.replies.taken();
        let changed = match server.replies.front() {
            Some(Owed::Changed { statement, describes }) if fields.code == b"26000" => {
                Some((Arc::clone(statement), *describes))
            }
            _ => None,
        };
        if fields.code == b"0A000"
            && fields.routine == b"RevalidateCachedQuery"
            && let Some(Owed::Bind { statement: Some(stale) } | Owed::Describe { statement: Some(stale) }) =
                server.replies.front()
        {
            stale.expire();
        }
        let position = position_on_client(server.replies.renamed(), &fields);
        for skipped in server.replies.failed(fields.code) {
            self.undo(server, skipped);
        }
        if refused || self.refused {
            self.refused = true;
            return Pass::Swallow;
        }
        if server.told {
            return Pass::Swallow;
        }
        self.stop_holding_back();
        let whole = body.len() == header.length as usize;
        if let Some((statement, describes)) = changed.filter(|_| whole) {
            refuse_changed(&statement, describes, body, to_client);
            return Pass::Replaced;
        }
        let stands_for = server.stand_in.take().filter(|_| whole);
        let body = stands_for.as_deref().unwrap_or(body);
        let fields = read::error(body);
        if stands_for.is_some() && self.amended(&fields, body, None).is_none() {
            write::frame(to_client, b'E', |out| out.extend_from_slice(body));
            return Pass::Replaced;
        }
        let amended = self.amended(&fields, body, taken.as_deref());
        let amended = match position.filter(|_| stands_for.is_none()) {
            Some(position) => Some(with_field(amended.as_deref().unwrap_or(body), b'P', &position)),
            None => amended,
        };
        match amended {
            Some(amended) if whole => {
                write::frame(to_client, b'E', |out| out.extend_from_slice(&amended));
                Pass::Replaced
            }
            _ => Pass::AsIs,
        }
    }

    /// The server is not what the session needs, and what was sent behind that runs all the same.
    fn not_set_up(&mut self, server: &mut Server, fields: &ErrorFields<'_>, to_client: &mut Vec<u8>) -> Pass {
        server.out_of_step = true;
        if self.is_holding_back() {
            return Pass::Stop(Effect::Lost);
        }
        let said = String::from_utf8_lossy(fields.message);
        let report = Report::fatal(
            sqlstate::CONNECTION_FAILURE,
            format!("the settings of the session could not be made on another server: {said}"),
        )
        .with_detail("Whether the statement took effect is not known; if it did, then with other settings.")
        .with_hint("Connect again.");
        write::error_response(to_client, &report);
        Pass::Stop(Effect::Ended)
    }

    /// An error in the client's own words: its names of statements, and why metako cancelled.
    fn amended(&mut self, fields: &ErrorFields<'_>, body: &[u8], taken: Option<&[u8]>) -> Option<Vec<u8>> {
        if let Some(refusal) = floor::refusal(body) {
            return Some(refusal);
        }
        if fields.code == b"57014"
            && let Some(key) = self.timed_out.take()
        {
            let detail = format!("metako cancelled it: {key} had passed without an answer.");
            return Some(with_field(body, b'D', detail.as_bytes()));
        }
        let start =
            fields.message.windows(PREFIX.len() + 1).position(|w| w[0] == b'"' && &w[1..] == PREFIX)?;
        let end = start + 1 + fields.message[start + 1..].iter().position(|&byte| byte == b'"')?;
        let on_server = &fields.message[start + 1..end];
        let (before, after) = (&fields.message[..start], &fields.message[end + 1..]);
        let name = match on_server.strip_prefix(NO_SUCH_NAME) {
            Some(b"") => {
                return Some(with_field(body, b'M', b"unnamed prepared statement does not exist"));
            }
            Some(name) => name,
            None => taken.or_else(|| self.names.name_of(on_server))?,
        };
        let message = [before, b"\"", name, b"\"", after].concat();
        Some(with_field(body, b'M', &message))
    }

    /// A command succeeded: what it did to prepared statements shows in its tag, which is all of its body.
    fn completed(&mut self, server: &mut Server, tag: &[u8]) {
        if forgets_statements(tag) {
            server.prepared.clear();
            if !server.told {
                self.names.clear();
                self.unnamed = super::Unnamed::default();
            }
        }
        if tag == b"DISCARD ALL\0" {
            self.discarded_all();
        }
    }

    /// The unit may not be repeated any more, and what the client sends next belongs to the same server.
    fn open_up(&mut self) {
        self.stop_holding_back();
        if self.is_attached() {
            self.state = State::Attached(Attachment::Open);
        }
    }
}

/// The position of an error, counted in the client's text, if that is another.
fn position_on_client(renamed: &[Renamed], fields: &ErrorFields<'_>) -> Option<Vec<u8>> {
    if renamed.is_empty() {
        return None;
    }
    let position: usize = std::str::from_utf8(fields.position).ok()?.parse().ok()?;
    Some(rewrite::position_on_client(renamed, position).to_string().into_bytes())
}

/// Whether a command of that tag, with its end, has made the server forget all prepared statements.
pub(super) fn forgets_statements(tag: &[u8]) -> bool {
    matches!(tag, b"DEALLOCATE ALL\0" | b"DISCARD ALL\0")
}

/// Whether a replica refuses what the primary may accept.
fn is_refusal(fields: &ErrorFields<'_>) -> bool {
    matches!(fields.code, b"25006" | b"0A000" | b"55000")
        || (fields.code == b"40001" && fields.routine == b"ProcessInterrupts")
}

/// An error body with one field set anew.
pub(super) fn with_field(body: &[u8], field: u8, value: &[u8]) -> Vec<u8> {
    let mut made = Vec::with_capacity(body.len() + value.len());
    let mut rest = body;
    let mut set = false;
    while let Some((&kind, after)) = rest.split_first() {
        if kind == 0 {
            break;
        }
        let Some((old, after)) = read::text(after) else { break };
        made.push(kind);
        made.extend_from_slice(if kind == field { value } else { old });
        made.push(0);
        set |= kind == field;
        rest = after;
    }
    if !set {
        made.push(field);
        made.extend_from_slice(value);
        made.push(0);
    }
    made.push(0);
    made
}
