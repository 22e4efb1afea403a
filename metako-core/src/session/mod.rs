//! A client's session, as a state machine over frames.
//!
//! [`Session`] is the client's half and stays with the client; [`Server`] is the half that stays with a server
//! connection. While a session has no server, [`Session::plan`] reads what the client sent and says what it needs; then
//! the caller finds a server, calls [`Session::attach`], and hands the bytes of both sides to [`Session::forward`] and
//! [`Session::answer`], which append to the caller's buffers what is to be sent. [`Session::releasable`] says when the
//! server may serve someone else; [`Session::lose`] what the client gets when the server is gone. Bytes pass as they
//! are, but for names of prepared statements. What a client has set goes with it: settings and prepared statements are
//! made anew on each server, and what cannot be made anew keeps the session on its server ([`Session::pinned`]).
//!
//! ```text
//!            plan: Route                 releasable
//! Detached ---------------> Attached --------------------> Detached
//!    ^                        |
//!    |  Sync                  | lose
//!    +------- Skipping <------+------> LostBlock --- ROLLBACK ---> Detached
//! ```
//!
//! Outstanding answers are counted, message by message, in order: an early ReadyForQuery with more in the pipe is not
//! idle.

mod acts;
mod analysis;
mod answer;
mod application_name;
mod by_statement;
mod describe;
mod described;
mod floor;
mod forward;
mod guard;
mod local;
mod loss;
mod pins;
mod plain;
mod plan;
mod provide;
mod replies;
mod rewrite;
mod server;
mod settings;
mod settings_guard;
mod settle;
mod statements;
mod verdict;

#[cfg(test)]
mod edge_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

pub use answer::{Answered, Effect};
pub use application_name::ApplicationName;
pub use by_statement::block_opened;
pub use floor::{FLOOR_OPTIONS, check_startup, refusal};
pub use forward::Forwarded;
pub use guard::unreplicated;
pub use loss::{Loss, LossCx};
pub use plan::{Plan, Route};
pub use rewrite::Script;
pub use server::Server;
pub use settings::Reported;
pub use settings_guard::SettingsGuard;
pub use statements::{Interner, PREPARED_PER_SERVER_MAX, Statement, Statements};
pub use verdict::Verdict;

use crate::config::UnknownOutcome;
use crate::plugin::{Effects, QueryClassifier, TransactionVerb};
use crate::wire::write::{Report, TransactionStatus};
use crate::wire::{Direction, FrameError, Framer, sqlstate, write};
use by_statement::ByStatement;
use describe::Finds;
use local::LostBlock;
use pins::Pins;
use settings::{APPLICATION_NAME, Made, Settings, View};
use settle::Becoming;
use statements::{Names, Undo};

/// The most that is kept of a unit (one Query, or a batch up to its Sync) to be routed to a replica, and repeated on
/// another if that one is lost. Longer units go to the primary.
pub const UNIT_MAX: usize = 16 << 10;

/// What a session needs of the world around it.
#[derive(Clone, Copy)]
pub struct SessionCx<'a> {
    /// Judges texts.
    pub classifier: &'a dyn QueryClassifier,
    /// Interns named statements.
    pub statements: &'a dyn Statements,
    /// Whether reads outside transactions may go to replicas.
    pub split: bool,
    /// Tells databases and users apart: what a text means to one, it need not mean to another.
    pub scope: u64,
}

impl std::fmt::Debug for SessionCx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionCx").field("split", &self.split).finish_non_exhaustive()
    }
}

/// What a client sent that no client may send: the connection ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClientFault {
    /// The header is wrong.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The body is wrong.
    #[error("invalid message format in message \"{}\"", char::from(*.0))]
    Body(u8),
    /// It holds more named statements than one client may.
    #[error("too many prepared statements")]
    Statements,
}

impl ClientFault {
    /// What the client is told.
    pub fn report(&self) -> Report {
        if let Self::Frame(FrameError::Tag(tag)) = self {
            return Report::fatal(
                sqlstate::PROTOCOL_VIOLATION,
                format!("invalid frontend message type {tag}"),
            );
        }
        if let Self::Statements = self {
            return Report::fatal(sqlstate::CONFIGURATION_LIMIT_EXCEEDED, self.to_string())
                .with_detail(format!(
                    "The texts of one client's named statements may have {} MiB together.",
                    statements::NAMED_BYTES_MAX >> 20
                ))
                .with_hint("Deallocate those that are not needed, or use the unnamed statement.");
        }
        Report::fatal(sqlstate::PROTOCOL_VIOLATION, self.to_string())
    }
}

/// What the answer that is awaited may take its time by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// Nothing, or something without a bound: COPY, COMMIT.
    Unbounded,
    /// The first answer, or the next rows, of a read.
    Read,
    /// The same of anything else.
    Write,
    /// What metako asked for itself, with nothing of the client's before it.
    Own,
}

/// What passed since it was last asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Statements that read.
    pub reads: u32,
    /// Statements that write, or may.
    pub writes: u32,
    /// Errors of class 08, 53, 57 or 58.
    pub failed: u32,
    /// Writes refused by a node because it is in recovery.
    pub read_only: u32,
    /// Statements that may need a database to which nobody is connected.
    pub databases: u32,
    /// Commits that are not known to be replicated.
    pub unreplicated: u32,
    /// Settings found lower than guarded commits allow.
    pub lowered: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attachment {
    /// To a node in recovery, for one unit, which can be repeated elsewhere while nothing of its answer was given.
    Unit { complete: bool, holding: bool },
    /// Until nothing is open.
    Open,
}

#[derive(Debug)]
enum State {
    Detached,
    Attached(Attachment),
    /// An error was given; everything is dropped until Sync.
    Skipping,
    /// The transaction block that the client believes itself in was lost.
    LostBlock(LostBlock),
}

/// The unnamed statement, which a server connection holds only until the next client's.
#[derive(Debug, Default)]
struct Unnamed {
    /// Text and types of its Parse, if the client has one.
    tail: Option<Vec<u8>>,
    verdict: Option<Verdict>,
    script: Option<Arc<Script>>,
    here: Here,
}

/// Whether the present server has the client's unnamed statement, and not another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Here {
    #[default]
    No,
    /// If its Parse, sent in this unit, is run.
    Sent(u64),
    Yes,
}

/// So many changed names are told apart.
const FRESH_MAX: usize = 256;

/// Names whose change was sent and not answered: what uses them in a later unit waits.
#[derive(Debug, Default)]
struct Fresh {
    /// Each with the unit of its change.
    names: Vec<(u64, Box<[u8]>)>,
    /// Any name may have changed in this unit.
    all: Option<u64>,
    /// From this unit on the server may have gone back to the settings of its own log-in: unit by unit waits, until no
    /// block is open and they are the client's.
    settings: Option<u64>,
}

impl Fresh {
    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.all.is_none() && self.settings.is_none()
    }

    /// A name changes in this unit.
    fn add(&mut self, unit: u64, name: &[u8]) {
        if self.is_full() {
            // Those of units before this one were waited for.
            self.names.clear();
            self.all = Some(unit);
        }
        self.names.push((unit, name.into()));
    }

    fn is_full(&self) -> bool {
        self.names.len() >= FRESH_MAX
    }

    /// All units before this one are answered.
    fn settle(&mut self, unit: u64) {
        self.names.retain(|(of, _)| *of == unit);
        self.all = self.all.filter(|of| *of == unit);
    }

    /// Whether a message of `unit` that uses a name has to wait.
    fn concerns(&self, name: &[u8], unit: u64) -> bool {
        self.all.is_some_and(|of| of != unit)
            || self.names.iter().any(|(of, known)| *of != unit && known.as_ref() == name)
    }
}

/// What was sent and has not been answered.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Open {
    /// Something that begins or ends a block, or may.
    steers: bool,
    /// Something that changes data, or may.
    may_change: bool,
    /// Something that may commit.
    may_commit: bool,
    /// A ROLLBACK: what follows it is outside the block.
    rolling_back: bool,
    /// A COMMIT: nothing is timed meanwhile.
    committing: bool,
}

/// One client's session.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Session {
    state: State,
    framer: Framer,
    names: Names,
    unnamed: Unnamed,
    by_statement: ByStatement,
    /// Names changed by what was not answered yet.
    fresh: Fresh,
    /// What Parses were found to be, until names mean that.
    finds: Option<Box<Finds>>,
    /// What was read last waits for that answer.
    waiting: bool,
    /// The application name that the client began with, if it gave one; else it is what servers have after log-in.
    start: Option<Made>,
    settings: Arc<Settings>,
    becoming: Becoming,
    /// The reported parameters as the client knows them.
    told: Option<View>,
    /// What the present server reports is to be compared with that.
    tell_due: bool,
    /// Tells this session from others.
    identity: Arc<()>,
    /// Nothing was sent to the present server, which others may have used since this session did.
    new_here: bool,
    pins: Pins,
    open: Open,
    /// The statement that the last Bind bound.
    bound: Verdict,
    bound_script: Option<Arc<Script>>,
    awaited: Awaited,
    timed_out: Option<&'static str>,
    counts: Counts,
    /// A replica refused the unit at hand.
    refused: bool,
    /// The client's bytes of the unit at hand, while it may be repeated.
    unit: Vec<u8>,
    /// What that unit changed of the client's names, first to last.
    unit_names: Vec<Undo>,
    /// Whether commits are guarded, and how one is reported that is not known to be replicated.
    guard: Option<UnknownOutcome>,
    /// What was done to names and the client was not told, first to last.
    untold: Vec<Undo>,
    /// What remains of the client's frame at hand goes nowhere.
    drops_rest: bool,
}

impl Session {
    /// A session after log-in. `message_max` is the longest message body taken, in bytes.
    pub fn new(message_max: u64) -> Self {
        Self {
            state: State::Detached,
            framer: Framer::new(Direction::Client, message_max),
            names: Names::default(),
            unnamed: Unnamed::default(),
            by_statement: ByStatement::Off,
            fresh: Fresh::default(),
            finds: None,
            waiting: false,
            start: None,
            settings: Arc::default(),
            becoming: Becoming::default(),
            told: None,
            tell_due: false,
            identity: Arc::default(),
            new_here: false,
            pins: Pins::default(),
            open: Open::default(),
            bound: Verdict::UNREAD,
            bound_script: None,
            awaited: Awaited::Unbounded,
            timed_out: None,
            counts: Counts::default(),
            refused: false,
            unit: Vec::new(),
            unit_names: Vec::new(),
            guard: None,
            untold: Vec::new(),
            drops_rest: false,
        }
    }

    /// Why the session keeps its server, if it does.
    pub fn pinned(&self) -> Option<&'static str> {
        self.pins.reason()
    }

    /// Notes which parameters the client was told after log-in, and the application name that it began with.
    pub fn welcomed(&mut self, reported: &Reported, application_name: Option<&str>) {
        let mut told = View::new(reported);
        if let Some(name) = application_name {
            told.set(APPLICATION_NAME, name.as_bytes());
            let name = Made::Value(name.as_bytes().into());
            self.settings = Arc::new(Settings::named(&name));
            self.start = Some(name);
        }
        self.told = Some(told);
    }

    /// Whether it has a server.
    pub fn is_attached(&self) -> bool {
        matches!(self.state, State::Attached(_))
    }

    /// Whether what the server answers is to be kept back for the moment, because the unit may yet be repeated on
    /// another node.
    pub fn is_holding_back(&self) -> bool {
        matches!(self.state, State::Attached(Attachment::Unit { holding: true, .. }))
    }

    /// Whether more of the client may be read: not while an answer to a complete unit is awaited, or too many are.
    #[inline]
    pub fn wants_input(&self, server: &Server) -> bool {
        let complete = matches!(self.state, State::Attached(Attachment::Unit { complete: true, .. }));
        // In a COPY nothing is answered before the client has ended it.
        let waits = self.waiting
            && !server.replies.copying_in()
            && (server.replies.are_outstanding() || server.answers_metako() || server.replies.describing());
        !complete && !waits && !server.is_questioned() && !self.is_done_here(server) && !server.replies.full()
    }

    /// By what the answer that is awaited is bounded in time.
    pub fn awaited(&self, server: &Server) -> Awaited {
        if server.replies.front().is_none() {
            Awaited::Unbounded
        } else if server.answers_metako() && !server.replies.are_outstanding() {
            Awaited::Own
        } else if self.waiting && server.replies.describing() {
            self.awaited
        } else if self.open.committing || !server.replies.are_outstanding() || server.replies.copying_in() {
            Awaited::Unbounded
        } else {
            self.awaited
        }
    }

    /// Whether the server owes an answer, so that there is something to cancel.
    pub fn is_busy(&self, server: &Server) -> bool {
        server.replies.front().is_some()
    }

    /// Whether all that the client asked for ends by itself, though nothing more is read of it: units are whole, and no
    /// COPY waits for rows.
    pub fn will_finish(&self, server: &Server) -> bool {
        (server.replies.outstanding_but(self.framer.inside_frame()) > 0 || server.answers_metako())
            && !server.replies.copying_in()
    }

    /// Notes that metako itself cancels what runs; `key` is the setting that asked for it. The error that follows
    /// names it.
    pub fn timed_out(&mut self, key: &'static str) {
        self.timed_out = Some(key);
    }

    /// What passed since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Takes a server for what [`Self::plan`] found: `replica` if the node is in recovery for sure. Appends to
    /// `to_server` what has to be said first.
    pub fn attach(&mut self, server: &mut Server, replica: bool, to_server: &mut Vec<u8>) {
        let attachment =
            if replica { Attachment::Unit { complete: false, holding: true } } else { Attachment::Open };
        self.state = State::Attached(attachment);
        self.unnamed.here = Here::No;
        self.open = Open::default();
        self.by_statement.begin();
        self.timed_out = None;
        self.refused = false;
        self.forget_unit();
        self.fresh = Fresh::default();
        self.waiting = false;
        self.becoming = Becoming::default();
        self.arrive(server, to_server);
    }

    /// Whether it has a server with which nothing is under way: nothing is owed, no block is open, no frame is cut.
    pub fn is_at_rest(&self, server: &Server) -> bool {
        self.is_attached()
            && !self.framer.inside_frame()
            && server.replies.settled()
            && server.status == TransactionStatus::Idle
            && !server.framer.inside_frame()
    }

    /// Whether the server may go: nothing is under way, nothing pins.
    pub fn releasable(&self, server: &Server) -> bool {
        self.is_at_rest(server)
            && self.pinned().is_none()
            && !self.becoming.suspect.has(Effects::OPAQUE.and(Effects::HOLDS))
    }

    /// Lets the server go. To be called when [`Self::releasable`] says so.
    pub fn release(&mut self) {
        self.state = State::Detached;
        self.unnamed.here = Here::No;
        self.open = Open::default();
        self.awaited = Awaited::Unbounded;
        self.timed_out = None;
        self.forget_unit();
    }

    /// No server could be found for what [`Self::plan`] wanted. Appends the error, and what else ends the unit at the
    /// start of `input`; gives how many bytes of that are done with.
    pub fn refuse(
        &mut self,
        input: &[u8],
        error: &Report,
        to_client: &mut Vec<u8>,
    ) -> Result<usize, ClientFault> {
        write::error_response(to_client, error);
        if !matches!(input.first(), Some(b'Q' | b'F')) {
            self.state = State::Skipping;
            return Ok(0);
        }
        write::ready_for_query(to_client, TransactionStatus::Idle);
        match self.drop_piece(input)? {
            Plan::Consumed(taken) => Ok(taken),
            _ => Ok(0),
        }
    }

    /// No server could be found to repeat the unit on. Appends the error and the ReadyForQuery that the unit awaits; where its
    /// end was not taken yet, that comes when it is.
    pub fn refuse_repeat(&mut self, error: &Report, to_client: &mut Vec<u8>) {
        let complete = matches!(self.state, State::Attached(Attachment::Unit { complete: true, .. }));
        self.undo_unit();
        self.release();
        write::error_response(to_client, error);
        if complete {
            write::ready_for_query(to_client, TransactionStatus::Idle);
        } else {
            self.state = State::Skipping;
        }
    }

    /// The client was told nothing of the unit at hand: what it did to names, answered or not, was not done.
    fn undo_unit(&mut self) {
        while let Some(undo) = self.unit_names.pop() {
            self.names.undo(undo);
        }
    }

    /// The unit at hand will not be repeated elsewhere: what the server answers need not be kept back any more.
    pub fn give_up_repeat(&mut self) {
        self.stop_holding_back();
    }

    /// An idle session holds no buffer worth speaking of.
    fn forget_unit(&mut self) {
        self.unit_names.clear();
        self.unit.clear();
        if self.unit.capacity() > 512 {
            self.unit = Vec::new();
        }
    }

    /// Notes that a statement is sent.
    fn note(&mut self, verdict: Verdict) {
        self.open.may_commit |= verdict.may_commit || self.open.rolling_back;
        self.open.rolling_back |= verdict.verb == Some(TransactionVerb::Rollback);
        self.open.steers |= verdict.verb.is_some() || verdict.may_commit;
        let harmless = matches!(
            verdict.verb,
            Some(TransactionVerb::Begin | TransactionVerb::Rollback | TransactionVerb::Inside)
        );
        self.open.may_change |= !verdict.class.is_read() && !harmless;
        self.note_effects(verdict.effects);
        self.open.committing |= verdict.commits;
        self.awaited = if verdict.class.is_read() { Awaited::Read } else { Awaited::Write };
    }

    fn count(&mut self, verdict: Verdict) {
        if verdict.class.is_read() {
            self.counts.reads += 1;
        } else {
            self.counts.writes += 1;
            self.counts.databases += u32::from(verdict.effects.has(Effects::DATABASES));
        }
    }

    /// Takes back what a message that was not run had changed.
    fn undo(&mut self, server: &mut Server, message: replies::Owed) {
        use replies::Owed;
        match message {
            Owed::Parse { statement, undo, own, unit } => {
                match (statement, own) {
                    (Some(statement), false) if statement.is_own() => server.prepared.release(&statement),
                    (Some(statement), _) => server.prepared.refute(&statement, unit),
                    // A later Parse may have taken its place.
                    (None, _) if self.unnamed.here != Here::Sent(unit) => {}
                    (None, true) => self.unnamed.here = Here::No,
                    (None, false) => self.unnamed = Unnamed::default(),
                }
                if let Some(undo) = undo {
                    self.names.undo(undo);
                }
            }
            Owed::ClosedHere { undo } => self.names.undo(undo),
            Owed::Query { carried: Some(carried) } | Owed::Execute { carried: Some(carried) } => {
                for (_, undo) in carried.undo.into_iter().rev() {
                    if let Undo::Forget(_, statement) = &undo {
                        server.prepared.refute(statement, carried.unit);
                    }
                    self.names.undo(undo);
                }
            }
            Owed::Own { statement: Some(statement), unit, .. } => server.prepared.refute(&statement, unit),
            Owed::Close { own: Some(statement) } => server.prepared.doubt(&statement),
            _ => {}
        }
    }

    fn statement(&self, name: &[u8]) -> Option<Arc<Statement>> {
        self.names.get(name).cloned()
    }
}

/// Whether an error or notice of that SQLSTATE announces the end of the server connection.
fn ends_connection(code: &[u8]) -> bool {
    matches!(code, b"57P01" | b"57P02" | b"57P03")
}
