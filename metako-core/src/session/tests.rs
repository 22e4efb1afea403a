use std::sync::Mutex;

use super::*;
use crate::plugin::{Class, Classification, Span};
use crate::wire::read;

mod guard;
mod loss;
mod state;
mod statements;

/// Judges by the first word, as far as these tests need it.
pub(super) struct FirstWord;

impl QueryClassifier for FirstWord {
    fn classify(&self, sql: &[u8]) -> Classification {
        let text = String::from_utf8_lossy(sql).to_lowercase();
        let known = |class| Classification::new(class, "by its first word", Span::default());
        let class = |class| known(class).with_effects(Effects::NONE);
        let verb = |verb| Classification { transaction: Some(verb), ..class(Class::TransactionControl) };
        match text.split([' ', ';']).next().unwrap_or_default() {
            "" => class(Class::Empty),
            "select" => class(Class::Read),
            "begin" => verb(TransactionVerb::Begin),
            "commit" => verb(TransactionVerb::Commit),
            "rollback" => verb(TransactionVerb::Rollback),
            "savepoint" => verb(TransactionVerb::Inside),
            "insert" => class(Class::Write),
            "listen" => known(Class::SessionChanging).with_effects(Effects::HOLDS),
            "currval" => known(Class::Unknown).with_effects(Effects::SEQUENCES),
            "set" | "prepare" | "execute" | "deallocate" => class(Class::SessionChanging),
            "discard" | "unlisten" => class(Class::SessionChanging).with_effects(Effects::RELEASES),
            "call" => known(Class::Unknown),
            _ => class(Class::Unknown),
        }
    }
}

/// A client, and the servers that it is given.
pub(super) struct Bench {
    pub(super) session: Session,
    interner: Mutex<Interner>,
    pub(super) server: Server,
    pub(super) to_server: Vec<u8>,
    pub(super) to_client: Vec<u8>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self {
            session: Session::new(1 << 30),
            interner: Mutex::default(),
            server: Server::new(&Arc::default()),
            to_server: Vec::new(),
            to_client: Vec::new(),
        }
    }

    pub(super) fn plan(&mut self, input: &[u8]) -> Plan {
        let cx = SessionCx { classifier: &FirstWord, statements: &self.interner, split: true, scope: 0 };
        self.session.plan(input, &cx, &mut self.to_client).unwrap()
    }

    pub(super) fn attach(&mut self, replica: bool) {
        self.session.attach(&mut self.server, replica, &mut self.to_server);
    }

    pub(super) fn forward(&mut self, input: &[u8]) -> usize {
        self.try_forward(input).unwrap()
    }

    pub(super) fn try_forward(&mut self, input: &[u8]) -> Result<usize, ClientFault> {
        let cx = SessionCx { classifier: &FirstWord, statements: &self.interner, split: true, scope: 0 };
        let (to_server, to_client) = (&mut self.to_server, &mut self.to_client);
        let forwarded = self.session.forward(&mut self.server, input, &cx, to_server, to_client)?;
        Ok(forwarded.consumed)
    }

    pub(super) fn answer(&mut self, input: &[u8]) -> Effect {
        let answered =
            self.session.answer(&mut self.server, input, &mut self.to_client, &mut self.to_server).unwrap();
        answered.effect
    }

    pub(super) fn repeat(&mut self, replica: bool) {
        let cx = SessionCx { classifier: &FirstWord, statements: &self.interner, split: true, scope: 0 };
        let (to_server, to_client) = (&mut self.to_server, &mut self.to_client);
        self.session.repeat(&mut self.server, replica, &cx, to_server, to_client).unwrap();
    }

    pub(super) fn interned(&self) -> usize {
        self.interner.lock().unwrap().len()
    }

    pub(super) fn lose(&mut self) -> Loss {
        let cx = LossCx { node: "n1", cause: "reset", unknown: UnknownOutcome::TransactionResolutionUnknown };
        self.session.lose(&mut self.server, &cx, &mut self.to_client)
    }

    /// What went to the client since the last call, in short.
    pub(super) fn client_got(&mut self) -> String {
        brief(&std::mem::take(&mut self.to_client))
    }

    pub(super) fn server_got(&mut self) -> String {
        brief_from_client(&std::mem::take(&mut self.to_server))
    }
}

/// A session that began with that application name, where servers have none by themselves.
pub(super) fn named(application_name: &str) -> Session {
    let mut session = Session::new(1 << 30);
    session.welcomed(&reported(&[("application_name", "")]), Some(application_name));
    session
}

pub(super) fn reported(parameters: &[(&str, &str)]) -> Reported {
    Arc::new(parameters.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
}

/// What a server answers to the question what the session left there: these settings, and one of the holdings if given.
pub(super) fn left_behind(holding: Option<usize>, settings: &[(&str, &str)]) -> Vec<u8> {
    let held = |at: usize| Some(if Some(at) == holding { "t" } else { "f" });
    let mut out = pins::row(&[held(0), held(1), held(2), held(3), held(4), held(5)]);
    out.extend(complete("SELECT 1"));
    for (name, value) in settings {
        out.extend(pins::row(&[Some(name), Some(value)]));
    }
    [out, complete("SELECT"), ready(TransactionStatus::Idle)].concat()
}

pub(super) fn frames(bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let (mut found, mut rest) = (Vec::new(), bytes);
    while let [tag, a, b, c, d, ..] = rest {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        found.push((*tag, &rest[5..=length]));
        rest = &rest[length + 1..];
    }
    assert!(rest.is_empty());
    found
}

pub(crate) fn brief(bytes: &[u8]) -> String {
    let one = |(tag, body): (u8, &[u8])| match tag {
        b'Z' => format!("Z{}", char::from(body[0])),
        b'E' => format!("E{}", String::from_utf8_lossy(read::error(body).code)),
        b'C' => format!("C:{}", String::from_utf8_lossy(read::text(body).unwrap().0)),
        _ => char::from(tag).to_string(),
    };
    frames(bytes).into_iter().map(one).collect::<Vec<_>>().join(" ")
}

fn brief_from_client(bytes: &[u8]) -> String {
    let one = |(tag, body): (u8, &[u8])| {
        let name = match tag {
            b'P' => read::parse(body).unwrap().name,
            b'B' => read::bind(body).unwrap().statement,
            b'C' | b'D' => read::text(&body[1..]).unwrap().0,
            _ => b"",
        };
        format!("{}{}", char::from(tag), String::from_utf8_lossy(name))
    };
    frames(bytes).into_iter().map(one).collect::<Vec<_>>().join(" ")
}

pub(super) fn query(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::query(&mut out, sql.as_bytes());
    out
}

pub(super) fn parse(name: &str, sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::parse(&mut out, name.as_bytes(), &[sql.as_bytes(), b"\0\0\0"].concat());
    out
}

pub(super) fn bind(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::frame(&mut out, b'B', |out| {
        out.push(0);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&[0; 7]);
    });
    out
}

pub(super) fn close(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::statement_target(&mut out, b'C', name.as_bytes());
    out
}

pub(super) const EXECUTE: &[u8] = b"E\0\0\0\x09\0\0\0\0\0";
pub(super) const SYNC: &[u8] = b"S\0\0\0\x04";
/// Random bytes as well-framed messages of random tags that a server may send.
pub(super) fn split_frames(bytes: &[u8]) -> Vec<u8> {
    const TAGS: &[u8] = b"123nstTDCIENSZAGHWdcV";
    let mut out = Vec::new();
    for chunk in bytes.chunks(7) {
        write::frame(&mut out, TAGS[usize::from(chunk[0]) % TAGS.len()], |out| {
            out.extend_from_slice(&chunk[1..]);
        });
    }
    out
}

pub(super) const ONE: &[u8] = b"1\0\0\0\x04";
/// No parameters, and no columns.
pub(super) const BARE: &[u8] = b"t\0\0\0\x06\0\0n\0\0\0\x04";
pub(super) const THREE: &[u8] = b"3\0\0\0\x04";
pub(super) const TWO: &[u8] = b"2\0\0\0\x04";
pub(crate) const ROW: &[u8] = b"D\0\0\0\x06\0\0";

pub(crate) fn ready(status: TransactionStatus) -> Vec<u8> {
    let mut out = Vec::new();
    write::ready_for_query(&mut out, status);
    out
}

pub(crate) fn complete(tag: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::command_complete(&mut out, tag);
    out
}

/// A parameter of that type, and a column of that name.
pub(super) fn described(parameter: u8, column: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::frame(&mut out, b't', |out| out.extend_from_slice(&[0, 1, 0, 0, 0, parameter]));
    write::frame(&mut out, b'T', |out| {
        out.extend_from_slice(&[0, 1]);
        out.extend_from_slice(column.as_bytes());
        out.extend_from_slice(&[0; 19]);
    });
    out
}

pub(crate) fn error(code: &'static str, message: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::error_response(&mut out, &Report::error(code, message));
    out
}

pub(super) fn begin(bench: &mut Bench) {
    assert!(matches!(bench.plan(&query("begin")), Plan::Route(Route { read: false, .. })));
    bench.attach(false);
    bench.forward(&query("begin"));
    bench.answer(&[complete("BEGIN"), ready(TransactionStatus::InBlock)].concat());
    assert!(!bench.session.releasable(&bench.server));
    bench.client_got();
}

#[test]
fn a_read_goes_to_a_replica_alone_and_what_follows_waits() {
    let mut bench = Bench::new();
    let input = [query("select 1"), query("insert")].concat();
    assert!(matches!(bench.plan(&input), Plan::Route(Route { read: true, .. })));
    bench.attach(true);
    assert_eq!(bench.forward(&input), query("select 1").len());
    assert_eq!(bench.server_got(), "Q");
    bench.answer(&[ROW, &complete("SELECT 1")].concat());
    assert!(!bench.session.releasable(&bench.server));
    bench.answer(&ready(TransactionStatus::Idle));
    assert!(bench.session.releasable(&bench.server));
    bench.session.release();
    assert!(matches!(bench.plan(&query("insert")), Plan::Route(Route { read: false, .. })));
}

#[test]
fn a_batch_is_as_strong_as_its_strongest_statement() {
    let mut bench = Bench::new();
    let read = [parse("", "select 1"), bind(""), EXECUTE.to_vec()].concat();
    assert_eq!(bench.plan(&read), Plan::More);
    let mixed = [&read[..], &parse("", "insert"), &bind(""), EXECUTE, SYNC].concat();
    assert!(matches!(bench.plan(&mixed), Plan::Route(Route { read: false, class: Class::Write, .. })));
    let read = [&read[..], SYNC].concat();
    assert!(matches!(bench.plan(&read), Plan::Route(Route { read: true, .. })));
    assert!(matches!(
        bench.plan(&[&bind("nobody")[..], EXECUTE, SYNC].concat()),
        Plan::Route(Route { read: false, .. })
    ));
}

#[test]
fn pipelined_syncs_are_counted() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[query("insert"), query("insert")].concat());
    bench.answer(&[complete("INSERT 0 1"), ready(TransactionStatus::Idle)].concat());
    assert!(!bench.session.releasable(&bench.server));
    bench.answer(&[complete("INSERT 0 1"), ready(TransactionStatus::Idle)].concat());
    assert!(bench.session.releasable(&bench.server));
}

#[test]
fn a_malformed_message_is_the_servers_to_refuse() {
    let mut bench = Bench::new();
    let bad = b"Q\0\0\0\x05x";
    assert!(matches!(bench.plan(bad), Plan::Route(_)));
    bench.attach(false);
    bench.forward(bad);
    assert_eq!(bench.to_server, bad);
    bench.answer(&[error("08P01", "invalid string in message"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "E08P01 ZI");
    assert!(bench.session.releasable(&bench.server));
}
