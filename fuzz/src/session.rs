//! A session between any client and servers that keep to the protocol, or do not.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use metako_core::config::UnknownOutcome;
use metako_core::plugin::{Class, Classification, QueryClassifier, Span, TransactionVerb};
use metako_core::session::{ClientFault, Effect, Interner, Loss, LossCx, Plan, Server, Session, SessionCx};
use metako_core::wire::read::{self, Target};
use metako_core::wire::write::{self, Report, TransactionStatus};

use super::Bytes;

/// Judges by the first letters, as far as is needed here.
struct FirstLetters;

impl QueryClassifier for FirstLetters {
    fn classify(&self, sql: &[u8]) -> Classification {
        let class = |class| Classification::new(class, "by its first letters", Span::default());
        let verb = |verb| Classification { transaction: Some(verb), ..class(Class::TransactionControl) };
        match sql.get(..3) {
            Some(b"sel") => class(Class::Read),
            Some(b"beg") => verb(TransactionVerb::Begin),
            Some(b"com") => verb(TransactionVerb::Commit),
            Some(b"rol") => verb(TransactionVerb::Rollback),
            Some(b"ins") => class(Class::Write),
            Some(b"set") => class(Class::SessionChanging),
            _ => class(Class::Unknown),
        }
    }
}

const TEXTS: [&[u8]; 6] = [b"select 1", b"begin", b"commit", b"rollback", b"insert 1", b"whatever"];
const NAMES: [&[u8]; 4] = [b"", b"a", b"b", b"metako_1"];
/// The most that metako says by itself for one message of a client, in bytes.
const OWN_WORDS_MAX: usize = 1024;

/// A server that keeps to the protocol; whether statements succeed is the fuzzer's choice.
#[derive(Default)]
struct Model {
    names: BTreeSet<Vec<u8>>,
    portal: bool,
    status: TransactionStatus,
    skipping: bool,
    input: Vec<u8>,
}

impl Model {
    fn fail(&mut self, code: &'static str, out: &mut Vec<u8>) {
        write::error_response(out, &Report::error(code, "no".to_owned()));
        if self.status == TransactionStatus::InBlock {
            self.status = TransactionStatus::Failed;
        }
    }

    fn run(&mut self, sql: &[u8], luck: u8, out: &mut Vec<u8>) -> bool {
        match (sql.get(..3), self.status) {
            (Some(b"rol"), _) | (Some(b"com"), TransactionStatus::Failed) => {
                self.status = TransactionStatus::Idle;
                write::command_complete(out, "ROLLBACK");
            }
            (_, TransactionStatus::Failed) => {
                self.fail("25P02", out);
                return false;
            }
            _ if luck % 5 == 4 => {
                self.fail("22012", out);
                return false;
            }
            (Some(b"beg"), _) => {
                self.status = TransactionStatus::InBlock;
                write::command_complete(out, "BEGIN");
            }
            (Some(b"com"), _) => {
                self.status = TransactionStatus::Idle;
                write::command_complete(out, "COMMIT");
            }
            _ => write::command_complete(out, "SELECT 0"),
        }
        true
    }

    fn message(&mut self, tag: u8, body: &[u8], luck: u8, out: &mut Vec<u8>) {
        let good = match tag {
            b'S' => {
                (self.skipping, self.portal) = (false, false);
                return write::ready_for_query(out, self.status);
            }
            b'H' | b'd' | b'c' | b'f' => return,
            _ if self.skipping => return,
            b'Q' => {
                self.names.remove(&b""[..]);
                let sql = read::query(body).expect("the session passes on whole messages").to_vec();
                self.run(&sql, luck, out);
                return write::ready_for_query(out, self.status);
            }
            b'F' => {
                self.fail("42883", out);
                return write::ready_for_query(out, self.status);
            }
            b'P' => {
                let name = read::parse(body).expect("the session passes on whole messages").name.to_vec();
                let known = self.names.contains(&name) && !name.is_empty();
                if known || luck % 5 == 4 {
                    self.names.remove(&b""[..]);
                    self.fail(if known { "42P05" } else { "42601" }, out);
                    false
                } else {
                    self.names.insert(name);
                    write::parse_complete(out);
                    true
                }
            }
            b'B' => {
                let name = read::bind(body).map(|bind| bind.statement.to_vec()).unwrap_or_default();
                self.portal = self.names.contains(&name);
                if self.portal {
                    write::bind_complete(out);
                } else {
                    self.fail("26000", out);
                }
                self.portal
            }
            b'D' => {
                let known = match read::target(body) {
                    Some(Target::Statement(name)) => self.names.contains(name),
                    _ => self.portal,
                };
                if known {
                    write::no_data(out);
                } else {
                    self.fail("26000", out);
                }
                known
            }
            b'C' => {
                if let Some(Target::Statement(name)) = read::target(body) {
                    self.names.remove(name);
                }
                write::close_complete(out);
                true
            }
            b'E' if self.portal => self.run(b"select", luck, out),
            b'E' => {
                self.fail("34000", out);
                false
            }
            other => panic!("the session sends a server {:?}", char::from(other)),
        };
        self.skipping = !good;
    }

    /// Answers what is whole by now.
    fn take(&mut self, bytes: &[u8], luck: &mut Bytes<'_>) -> Vec<u8> {
        self.input.extend_from_slice(bytes);
        let (mut out, input) = (Vec::new(), std::mem::take(&mut self.input));
        let (frames, rest) = split(&input);
        for (tag, body) in frames {
            self.message(tag, body, luck.byte(), &mut out);
        }
        self.input = rest.to_vec();
        out
    }

    fn settled(&self) -> bool {
        self.input.is_empty() && !self.skipping && self.status == TransactionStatus::Idle
    }
}

/// The whole messages at the start of a stream, and what is left.
fn split(bytes: &[u8]) -> (Vec<(u8, &[u8])>, &[u8]) {
    let (mut found, mut rest) = (Vec::new(), bytes);
    while let [tag, a, b, c, d, ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        assert!(length >= 4, "a length of {length}");
        let Some(body) = rest.get(5..=length) else { break };
        found.push((*tag, body));
        rest = &rest[length + 1..];
    }
    (found, rest)
}

/// One unit: a Query, a Sync, or a batch with its Sync.
fn unit(bytes: &mut Bytes<'_>, out: &mut Vec<u8>) {
    let kind = bytes.byte();
    if kind.is_multiple_of(3) {
        return write::query(out, TEXTS[usize::from(kind / 3) % TEXTS.len()]);
    }
    for _ in 0..bytes.byte() % 8 {
        let what = bytes.byte();
        let (name, text) = (NAMES[usize::from(what / 8) % 4], TEXTS[usize::from(what / 32) % TEXTS.len()]);
        match what % 8 {
            0 | 1 => write::parse(out, name, &[text, b"\0\0\0"].concat()),
            2 | 3 => write::frame(out, b'B', |out| {
                out.push(0);
                out.extend_from_slice(name);
                out.extend_from_slice(&[0; 7]);
            }),
            4 => write::statement_target(out, b'D', name),
            5 => write::statement_target(out, b'C', name),
            6 => write::frame(out, b'E', |out| out.extend_from_slice(&[0; 5])),
            _ => write::frame(out, b'H', |_| {}),
        }
    }
    write::frame(out, b'S', |_| {});
}

/// A session, and the server that it has.
struct World {
    session: Session,
    interner: Mutex<Interner>,
    server: Server,
    model: Model,
    input: Vec<u8>,
    /// All that the client has sent and that was taken of it.
    taken: Vec<u8>,
    to_client: Vec<u8>,
    /// Bytes that servers sent.
    answered: usize,
    /// All servers have kept to the protocol.
    honest: bool,
    /// The client sends whole units that are well formed.
    units: bool,
}

/// The session has ended.
struct Over;

impl World {
    fn new(units: bool, honest: bool) -> Self {
        Self {
            session: Session::new(1 << 20),
            interner: Mutex::default(),
            server: Server::new(&Arc::default()),
            model: Model::default(),
            input: Vec::new(),
            taken: Vec::new(),
            to_client: Vec::new(),
            answered: 0,
            honest,
            units,
        }
    }

    /// What a client is sent away for; not one that sends units.
    fn fault(&self, fault: ClientFault) -> Over {
        assert!(!self.units, "{fault}");
        Over
    }

    fn took(&mut self, count: usize) {
        self.taken.extend(self.input.drain(..count));
    }

    /// Does all that can be done without more of the client.
    fn go_on(&mut self, bytes: &mut Bytes<'_>) -> Result<(), Over> {
        loop {
            let before = (self.input.len(), self.session.is_attached());
            let cx = SessionCx {
                classifier: &FirstLetters,
                statements: &self.interner,
                split: bytes.byte() % 2 == 1,
                scope: 0,
            };
            let mut to_server = Vec::new();
            if !self.session.is_attached() {
                let plan = self.session.plan(&self.input, &cx, &mut self.to_client);
                match plan.map_err(|fault| self.fault(fault))? {
                    Plan::More => return Ok(()),
                    Plan::Close => return Err(Over),
                    Plan::Consumed(count) => {
                        assert!(count > 0 && count <= self.input.len());
                        self.took(count);
                        continue;
                    }
                    Plan::Route(route) => self.session.attach(&mut self.server, route.read, &mut to_server),
                }
            }
            let done = self
                .session
                .forward(&mut self.server, &self.input, &cx, &mut to_server, &mut self.to_client)
                .map_err(|fault| self.fault(fault))?;
            self.took(done.consumed);
            if done.terminate {
                return Err(Over);
            }
            self.serve(&to_server, bytes)?;
            if before == (self.input.len(), self.session.is_attached()) {
                return Ok(());
            }
        }
    }

    /// The server answers, in pieces.
    fn serve(&mut self, to_server: &[u8], bytes: &mut Bytes<'_>) -> Result<(), Over> {
        let mut answer = self.model.take(to_server, bytes);
        if !self.honest {
            answer = bytes.take(usize::from(bytes.0.first().copied().unwrap_or_default())).to_vec();
        }
        self.answered += answer.len();
        let piece = usize::from(bytes.byte()) + 1;
        let (mut rest, mut further) = (Vec::new(), Vec::new());
        for part in answer.chunks(piece) {
            rest.extend_from_slice(part);
            let answered = self.session.answer(&mut self.server, &rest, &mut self.to_client, &mut further);
            assert!(answered.is_ok() || !self.honest, "{answered:?}");
            let answered = answered.map_err(|_| Over)?;
            assert!(answered.consumed <= rest.len());
            rest.drain(..answered.consumed);
            if answered.effect != Effect::Continue {
                assert!(!self.honest, "{:?} of a server that keeps to the protocol", answered.effect);
                return Err(Over);
            }
        }
        if !further.is_empty() {
            return self.serve(&further, bytes);
        }
        if self.session.is_attached() && self.session.releasable(&self.server) {
            if self.honest {
                assert!(self.model.settled(), "a server that is not settled goes to the next client");
            }
            self.session.release();
        }
        Ok(())
    }

    /// The server is lost, and another takes its place.
    fn lose(&mut self, bytes: &mut Bytes<'_>) -> Result<(), Over> {
        if !self.session.is_attached() {
            return Ok(());
        }
        let cx = LossCx { node: "n", cause: "c", unknown: UnknownOutcome::TransactionResolutionUnknown };
        let loss = self.session.lose(&mut self.server, &cx, &mut self.to_client);
        (self.server, self.model) = (Server::new(&Arc::default()), Model::default());
        match loss {
            Loss::Kept => Ok(()),
            Loss::Close => Err(Over),
            Loss::Repeat => {
                let cx = SessionCx {
                    classifier: &FirstLetters,
                    statements: &self.interner,
                    split: true,
                    scope: 0,
                };
                let mut to_server = Vec::new();
                let rest = self
                    .session
                    .repeat(
                        &mut self.server,
                        bytes.byte().is_multiple_of(2),
                        &cx,
                        &mut to_server,
                        &mut self.to_client,
                    )
                    .map_err(|fault| self.fault(fault))?;
                self.taken.truncate(self.taken.len() - rest.len());
                self.input.splice(..0, rest);
                self.serve(&to_server, bytes)
            }
        }
    }

    /// What holds at any time.
    fn check(&self) {
        let (asked, begun) = split(&self.taken);
        let bound = self.answered + (asked.len() + 1) * OWN_WORDS_MAX;
        assert!(self.to_client.len() <= bound, "{} bytes said, at most {bound}", self.to_client.len());
        if !self.honest {
            return;
        }
        let (told, cut) = split(&self.to_client);
        assert!(cut.is_empty(), "part of a message");
        let ready = told.iter().filter(|(tag, _)| *tag == b'Z').count();
        // A server can be lost, and the client told so, while a long message is on its way.
        let tags = asked.iter().map(|(tag, _)| tag).chain(begun.first());
        let wanted = tags.filter(|tag| matches!(tag, b'Q' | b'F' | b'S')).count();
        if self.units {
            assert_eq!(ready, wanted, "ReadyForQuery, of {wanted} units");
        } else {
            assert!(ready <= wanted, "{ready} times ReadyForQuery for {wanted} units");
        }
    }
}

/// A session whose client sends units, or anything at all, and whose servers keep to the protocol, or do not: it never
/// panics, what it says is bounded and well framed, each unit gets one ReadyForQuery, and a server that it lets go is
/// settled.
pub fn session(data: &[u8]) {
    let mut bytes = Bytes(data);
    let kind = bytes.byte();
    let (units, honest) = (kind & 1 == 0, kind & 2 == 0);
    let mut world = World::new(units, honest);
    while !bytes.0.is_empty() {
        let what = bytes.byte();
        let outcome = match what % 8 {
            0 => world.lose(&mut bytes),
            _ if units => {
                for _ in 0..=what / 64 {
                    unit(&mut bytes, &mut world.input);
                }
                world.go_on(&mut bytes)
            }
            _ => {
                world.input.extend_from_slice(bytes.take(usize::from(what / 4)));
                world.go_on(&mut bytes)
            }
        };
        if outcome.is_err() {
            return;
        }
        world.check();
    }
}
