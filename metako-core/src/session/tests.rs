use std::sync::Mutex;

use super::*;
use crate::config::UnknownOutcome;
use crate::plugin::{Class, Classification, Span};
use crate::wire::read;

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
            session: Session::new("", 1 << 30),
            interner: Mutex::default(),
            server: Server::new(&Arc::default(), ""),
            to_server: Vec::new(),
            to_client: Vec::new(),
        }
    }

    pub(super) fn plan(&mut self, input: &[u8]) -> Plan {
        let cx = SessionCx { classifier: &FirstWord, statements: &self.interner, split: true };
        self.session.plan(input, &cx, &mut self.to_client).unwrap()
    }

    pub(super) fn attach(&mut self, replica: bool) {
        self.session.attach(&mut self.server, replica, &mut self.to_server);
    }

    pub(super) fn forward(&mut self, input: &[u8]) -> usize {
        let cx = SessionCx { classifier: &FirstWord, statements: &self.interner, split: true };
        let (to_server, to_client) = (&mut self.to_server, &mut self.to_client);
        self.session.forward(&mut self.server, input, &cx, to_server, to_client).unwrap().consumed
    }

    pub(super) fn answer(&mut self, input: &[u8]) -> Effect {
        let answered =
            self.session.answer(&mut self.server, input, &mut self.to_client, &mut self.to_server).unwrap();
        answered.effect
    }

    pub(super) fn repeat(&mut self, replica: bool) {
        let cx = SessionCx { classifier: &FirstWord, statements: &self.interner, split: true };
        let (to_server, to_client) = (&mut self.to_server, &mut self.to_client);
        self.session.repeat(&mut self.server, replica, &cx, to_server, to_client).unwrap();
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

pub(super) fn brief(bytes: &[u8]) -> String {
    let one = |(tag, body): (u8, &[u8])| match tag {
        b'Z' => format!("Z{}", char::from(body[0])),
        b'E' => format!("E{}", String::from_utf8_lossy(read::error(body).code)),
        b'C' => format!("C:{}", String::from_utf8_lossy(read::command_tag(body).unwrap())),
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
pub(super) const THREE: &[u8] = b"3\0\0\0\x04";
pub(super) const TWO: &[u8] = b"2\0\0\0\x04";
pub(super) const ROW: &[u8] = b"D\0\0\0\x06\0\0";

pub(super) fn ready(status: TransactionStatus) -> Vec<u8> {
    let mut out = Vec::new();
    write::ready_for_query(&mut out, status);
    out
}

pub(super) fn complete(tag: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::command_complete(&mut out, tag);
    out
}

pub(super) fn error(code: &'static str, message: &str) -> Vec<u8> {
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
fn a_named_statement_is_parsed_on_each_server_that_lacks_it_unseen() {
    let mut bench = Bench::new();
    let prepare = [&parse("s", "select 1")[..], SYNC].concat();
    bench.attach(false);
    bench.forward(&prepare);
    assert_eq!(bench.server_got(), "Pmetako_1 S");
    bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "1 ZI");
    bench.session.release();
    let run = [&bind("s")[..], EXECUTE, SYNC].concat();
    bench.attach(false);
    bench.forward(&run);
    assert_eq!(bench.server_got(), "Bmetako_1 E S");
    bench.answer(&[TWO, ROW, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "2 D C:SELECT 1 ZI");
    bench.session.release();
    bench.server = Server::new(&Arc::default(), "");
    bench.attach(false);
    bench.forward(&run);
    assert_eq!(bench.server_got(), "Pmetako_1 Bmetako_1 E S");
    bench.answer(&[ONE, TWO, ROW, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "2 D C:SELECT 1 ZI");
    assert!(bench.session.releasable(&bench.server));
}

#[test]
fn what_the_server_has_is_answered_in_its_turn() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[&parse("a", "select 1")[..], SYNC].concat());
    bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    bench.server_got();
    bench.forward(&[&bind("a")[..], &parse("b", "select 1"), &close("a"), &bind("b"), SYNC].concat());
    assert_eq!(bench.server_got(), "Bmetako_1 Bmetako_1 S");
    bench.answer(TWO);
    assert_eq!(bench.client_got(), "2 1 3");
    bench.answer(&[TWO, &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "2 ZI");
    bench.session.release();
    bench.attach(false);
    bench.server_got();
    bench.forward(&[&bind("a")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Ba S");
}

#[test]
fn a_parse_that_was_skipped_leaves_no_name_and_what_is_behind_waits_for_that() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[&bind("nobody")[..], &parse("s", "select 1"), SYNC].concat());
    assert_eq!(bench.forward(&[&bind("s")[..], SYNC].concat()), 0);
    assert_eq!(bench.server_got(), "Bnobody Pmetako_1 S");
    bench.answer(&[error("26000", "no"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "E26000 ZI");
    bench.forward(&[&bind("s")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Bs S");
}

#[test]
fn a_name_that_is_taken_is_refused_by_the_server_in_the_clients_words() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[&parse("s", "select 1")[..], SYNC].concat());
    bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    bench.server_got();
    bench.forward(&[&parse("s", "select 2")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Pmetako_1 S");
    let refused = error("42P05", "prepared statement \"metako_1\" already exists");
    bench.answer(&[refused, ready(TransactionStatus::Idle)].concat());
    let got = std::mem::take(&mut bench.to_client);
    let message = read::error(frames(&got)[0].1).message.to_vec();
    assert_eq!(String::from_utf8_lossy(&message), "prepared statement \"s\" already exists");
}

#[test]
fn the_unnamed_statement_moves_with_its_client_and_is_never_anothers() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[&parse("", "select 1")[..], SYNC].concat());
    bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    bench.session.release();
    bench.server_got();
    bench.attach(false);
    bench.forward(&[&bind("")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "P B S");
    bench.answer(&[ONE, TWO, &ready(TransactionStatus::Idle)].concat());
    bench.session.release();
    let mut other = Bench::new();
    std::mem::swap(&mut other.server, &mut bench.server);
    other.attach(false);
    other.forward(&[&bind("")[..], SYNC].concat());
    assert_eq!(other.server_got(), "Bmetako_none S");
}

#[test]
fn closing_statements_and_a_lone_sync_need_no_server() {
    let mut bench = Bench::new();
    let input = [&close("x")[..], SYNC].concat();
    assert_eq!(bench.plan(&input), Plan::Consumed(input.len()));
    assert_eq!(bench.plan(SYNC), Plan::Consumed(5));
    assert_eq!(bench.client_got(), "3 ZI ZI");
    assert_eq!(bench.plan(b"d\0\0\0\x05x"), Plan::Consumed(6));
    assert_eq!(bench.client_got(), "");
}

#[test]
fn what_a_session_sets_goes_with_it_to_another_server() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("set a.b = 1"));
    bench.answer(&[complete("SET"), ready(TransactionStatus::Idle)].concat());
    assert!(bench.session.releasable(&bench.server));
    bench.session.release();
    bench.server_got();
    // The same server has it, another one not.
    bench.attach(false);
    assert_eq!(bench.server_got(), "");
    bench.session.release();
    bench.server = Server::new(&Arc::default(), "");
    bench.attach(false);
    assert!(String::from_utf8_lossy(&bench.to_server).contains("set a.b = 1"));
    // And the next session there does not get it.
    bench.answer(&[complete("SET"), ready(TransactionStatus::Idle)].concat());
    bench.session = Session::new("", 1 << 30);
    bench.to_server.clear();
    bench.attach(false);
    assert!(String::from_utf8_lossy(&bench.to_server).contains("RESET a.b"));
}

#[test]
fn a_setting_that_was_refused_or_rolled_back_is_none() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("set a.b = 1"));
    bench.answer(&[error("22023", "no"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.server_got(), "Q");
    assert!(bench.session.releasable(&bench.server));
    bench.session.release();
    begin(&mut bench);
    bench.forward(&query("set a.c = 1"));
    bench.answer(&[complete("SET"), ready(TransactionStatus::InBlock)].concat());
    bench.to_server.clear();
    bench.forward(&query("rollback"));
    bench.answer(&[complete("ROLLBACK"), ready(TransactionStatus::Idle)].concat());
    let asked = String::from_utf8_lossy(&bench.to_server).into_owned();
    assert!(asked.contains("current_setting('a.c', true)"), "{asked}");
    assert!(!bench.session.releasable(&bench.server));
    bench.answer(&left_behind(None, &[]));
    assert!(bench.session.releasable(&bench.server));
    bench.session.release();
    bench.server = Server::new(&Arc::default(), "");
    bench.to_server.clear();
    bench.attach(false);
    assert_eq!(bench.server_got(), "");
}

#[test]
fn a_parameter_changed_by_a_function_goes_along_and_one_that_came_back_does_not() {
    let mut bench = Bench::new();
    bench.server = Server::new(&reported(&[("TimeZone", "UTC")]), "");
    let report = |value: &str| {
        let mut out = Vec::new();
        write::parameter_status(&mut out, "TimeZone", value);
        out
    };
    let (away, back) = (report("Asia/Seoul"), report("UTC"));
    bench.attach(false);
    bench.forward(&query("select f()"));
    bench.answer(&[&away[..], &back, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert!(bench.session.releasable(&bench.server));
    bench.session.release();
    bench.attach(false);
    bench.forward(&query("select f()"));
    bench.answer(&[&complete("SELECT 1")[..], &away, &ready(TransactionStatus::Idle)].concat());
    assert!(!bench.session.releasable(&bench.server));
    bench.answer(&left_behind(None, &[("TimeZone", "Asia/Seoul")]));
    assert!(bench.session.releasable(&bench.server));
    bench.session.release();
    bench.client_got();
    bench.server = Server::new(&reported(&[("TimeZone", "UTC")]), "");
    bench.to_server.clear();
    bench.attach(false);
    assert!(String::from_utf8_lossy(&bench.to_server).contains("SET timezone TO 'Asia/Seoul'"));
    // The client knows it already.
    bench.answer(&[&complete("SET")[..], &away, &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "");
}

#[test]
fn a_parameter_changed_by_the_administrator_is_told_and_is_nobodys_setting() {
    let mut bench = Bench::new();
    let base = reported(&[("TimeZone", "UTC")]);
    bench.session.welcomed(&base);
    bench.server = Server::new(&base, "");
    bench.attach(false);
    bench.forward(&query("insert"));
    let mut seoul = Vec::new();
    write::parameter_status(&mut seoul, "TimeZone", "Asia/Seoul");
    bench.answer(&[&complete("INSERT 0 1")[..], &seoul, &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "C:INSERT 0 1 S ZI");
    bench.answer(&left_behind(None, &[]));
    assert_eq!(bench.session.pinned(), None);
    bench.session.release();
    // Another client was told something else when it came.
    bench.session = Session::new("", 1 << 30);
    bench.session.welcomed(&base);
    bench.attach(false);
    bench.forward(&query("insert"));
    bench.answer(&[complete("RESET"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "S");
}

#[test]
fn what_cannot_be_made_elsewhere_keeps_the_server_until_it_is_given_up() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("listen a"));
    bench.answer(&[complete("LISTEN"), ready(TransactionStatus::Idle)].concat());
    bench.answer(&left_behind(Some(3), &[]));
    assert_eq!(bench.session.pinned(), Some("it listens to notifications"));
    assert!(!bench.session.releasable(&bench.server));
    bench.forward(&query("insert"));
    bench.answer(&[complete("INSERT 0 1"), ready(TransactionStatus::Idle)].concat());
    bench.server_got();
    bench.forward(&query("unlisten *"));
    bench.answer(&[complete("UNLISTEN"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.server_got(), "Q Q");
    bench.answer(&left_behind(None, &[]));
    assert_eq!(bench.session.pinned(), None);
    assert!(bench.session.releasable(&bench.server));
    // What the server does not answer keeps it too.
    bench.forward(&query("call p()"));
    bench.answer(&[complete("CALL"), ready(TransactionStatus::Idle)].concat());
    bench.answer(&[error("57014", "canceling statement"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.session.pinned(), Some("its server could not be asked what it has there"));
    bench.client_got();
    assert_eq!(bench.lose(), Loss::Close);
    assert_eq!(bench.client_got(), "E57P01");
}

#[test]
fn discard_all_ends_what_the_session_has() {
    let mut bench = Bench::new();
    bench.attach(false);
    for (sql, tag, asks) in
        [("set a.b = 1", "SET", false), ("listen a", "LISTEN", true), ("currval s", "SELECT 1", false)]
    {
        bench.forward(&query(sql));
        bench.answer(&[complete(tag), ready(TransactionStatus::Idle)].concat());
        if asks {
            bench.answer(&left_behind(Some(3), &[]));
        }
    }
    bench.forward(&[&parse("s", "select 1")[..], SYNC].concat());
    bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    assert!(bench.session.pinned().is_some());
    bench.forward(&query("discard all"));
    bench.answer(&[complete("DISCARD ALL"), ready(TransactionStatus::Idle)].concat());
    bench.answer(&left_behind(None, &[]));
    assert_eq!(bench.session.pinned(), None);
    bench.session.release();
    bench.server = Server::new(&Arc::default(), "");
    bench.to_server.clear();
    bench.attach(false);
    bench.forward(&[&bind("s")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Bs S");
}

#[test]
fn a_sequence_value_of_another_session_is_not_read() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("insert"));
    bench.answer(&[complete("INSERT 0 1"), ready(TransactionStatus::Idle)].concat());
    bench.session.release();
    bench.server_got();
    // Its own it may read.
    bench.attach(false);
    bench.forward(&query("currval s"));
    assert_eq!(bench.server_got(), "Q");
    bench.answer(&[complete("SELECT 1"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.session.pinned(), Some("it uses currval() or lastval()"));
    bench.session = Session::new("", 1 << 30);
    bench.attach(false);
    bench.forward(&query("currval s"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("DISCARD SEQUENCES"));
    assert_eq!(bench.server_got(), "Q Q");
}

#[test]
fn names_are_one_whether_made_in_sql_or_by_the_protocol() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("PREPARE s (int) AS select $1"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("PREPARE metako_1 (int) AS select $1"));
    bench.answer(&[complete("PREPARE"), ready(TransactionStatus::Idle)].concat());
    bench.server_got();
    bench.forward(&[&bind("s")[..], EXECUTE, SYNC].concat());
    assert_eq!(bench.server_got(), "Bmetako_1 E S");
    bench.answer(&[TWO, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    // On another server it is made first.
    bench.session.release();
    bench.server = Server::new(&Arc::default(), "");
    bench.client_got();
    bench.attach(false);
    bench.forward(&query("EXPLAIN EXECUTE s(1)"));
    let sent = String::from_utf8_lossy(&bench.to_server).into_owned();
    assert!(sent.contains("PREPARE metako_1 (int) AS select $1"), "{sent}");
    assert!(sent.contains("EXPLAIN EXECUTE metako_1(1)"), "{sent}");
    assert_eq!(bench.server_got(), "Cmetako_maker Pmetako_maker Bmetako_maker E Cmetako_maker S Q");
    let made = [THREE, ONE, TWO, &complete("PREPARE"), THREE, &ready(TransactionStatus::Idle)].concat();
    bench.answer(&made);
    assert_eq!(bench.client_got(), "");
    bench.answer(&[ROW, &complete("EXPLAIN"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "D C:EXPLAIN ZI");
    // A name is taken, and gone, whoever made it.
    bench.forward(&query("DEALLOCATE s"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("DEALLOCATE metako_gone_0"));
    assert_eq!(bench.server_got(), "Cmetako_gone_0 Pmetako_gone_0 S Q");
    let done = [THREE, ONE, &ready(TransactionStatus::Idle), &complete("DEALLOCATE")].concat();
    bench.answer(&[done, ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "C:DEALLOCATE ZI");
    bench.forward(&query("EXECUTE s"));
    assert_eq!(bench.server_got(), "Q");
    let unknown = error("26000", "prepared statement \"s\" does not exist");
    bench.answer(&[unknown, ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    bench.forward(&[&parse("s", "select 2")[..], SYNC].concat());
    bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    bench.server_got();
    bench.forward(&query("PREPARE s AS select 3"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("PREPARE metako_2 AS select 3"));
    let taken = error("42P05", "prepared statement \"metako_2\" already exists");
    bench.client_got();
    bench.answer(&[taken, ready(TransactionStatus::Idle)].concat());
    assert!(String::from_utf8_lossy(&bench.to_client).contains("statement \"s\" already exists"));
}

#[test]
fn a_statement_that_cannot_be_made_any_more_fails_for_that_reason() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("PREPARE s AS select a from t"));
    bench.answer(&[complete("PREPARE"), ready(TransactionStatus::Idle)].concat());
    bench.session.release();
    bench.server = Server::new(&Arc::default(), "");
    bench.attach(false);
    bench.forward(&query("EXECUTE s"));
    bench.client_got();
    let gone = error("42P01", "relation \"t\" does not exist");
    bench.answer(&[THREE, ONE, TWO, &gone, &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "");
    let missing = error("26000", "prepared statement \"metako_1\" does not exist");
    bench.answer(&[missing, ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "E42P01 ZI");
}

#[test]
fn a_name_whose_change_was_not_answered_is_waited_for() {
    let mut bench = Bench::new();
    bench.attach(false);
    let first = [&parse("s", "insert nonsense")[..], SYNC].concat();
    let second = [&bind("s")[..], EXECUTE, SYNC].concat();
    assert_eq!(bench.forward(&[&first[..], &second].concat()), first.len());
    assert!(!bench.session.wants_input(&bench.server));
    bench.answer(&[error("42601", "syntax"), ready(TransactionStatus::Idle)].concat());
    assert!(bench.session.wants_input(&bench.server));
    bench.server_got();
    assert_eq!(bench.forward(&second), second.len());
    assert_eq!(bench.server_got(), "Bs E S");
}

#[test]
fn an_unnamed_statement_that_is_not_parsed_yet_is_waited_for() {
    let mut bench = Bench::new();
    bench.attach(false);
    let (good, bad) =
        ([&parse("", "select 1")[..], SYNC].concat(), [&parse("", "syntax")[..], SYNC].concat());
    let used = [&bind("")[..], SYNC].concat();
    // A Parse need not wait for the one before; what uses it does.
    assert_eq!(bench.forward(&[&good[..], &bad, &used].concat()), good.len() + bad.len());
    bench.answer(&[ONE, &ready(TransactionStatus::Idle), &error("42601", "syntax")].concat());
    bench.answer(&ready(TransactionStatus::Idle));
    bench.server_got();
    bench.forward(&used);
    assert_eq!(bench.server_got(), "Bmetako_none S");
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

#[test]
fn what_changes_nothing_may_be_run_again_when_its_server_is_lost() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("begin"));
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E40001 ZI");
    bench.server = Server::new(&Arc::default(), "");
    bench.attach(false);
    bench.forward(&[query("begin"), query("insert")].concat());
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E08007 ZI E08007 ZI");
}

#[test]
fn a_server_that_does_not_become_what_the_session_needs_ends_it() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("set a.b = 1"));
    bench.answer(&[complete("SET"), ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    bench.session.release();
    bench.server = Server::new(&Arc::default(), "");
    bench.attach(false);
    bench.forward(&query("insert"));
    assert_eq!(bench.answer(&error("57014", "canceling statement")), Effect::Ended);
    assert_eq!(bench.client_got(), "E08006");
    assert!(!bench.server.is_clean());
}

#[test]
fn the_clients_application_name_is_set_unseen() {
    let mut bench = Bench::new();
    bench.session = Session::new("it's", 1 << 30);
    bench.attach(true);
    bench.forward(&query("select 1"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("SET application_name TO 'it''s'"));
    let mut answer = complete("SET");
    write::parameter_status(&mut answer, "application_name", "it's");
    answer.extend(ready(TransactionStatus::Idle));
    bench.answer(&answer);
    assert_eq!(bench.client_got(), "");
    bench.answer(&[ROW, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "D C:SELECT 1 ZI");
    assert!(bench.session.releasable(&bench.server));
}

#[test]
fn a_refusal_of_a_replica_is_not_seen_and_the_unit_can_be_repeated() {
    let mut bench = Bench::new();
    bench.attach(true);
    bench.forward(&query("select f()"));
    assert_eq!(bench.answer(b"T\0\0\0\x06\0\0"), Effect::Continue);
    assert!(bench.session.is_holding_back());
    let refused = [error("25006", "cannot execute"), ready(TransactionStatus::Idle)].concat();
    assert_eq!(bench.answer(&refused), Effect::Refused);
    assert!(bench.server.is_clean());
    bench.to_client.clear();
    bench.server_got();
    bench.server = Server::new(&Arc::default(), "");
    bench.repeat(false);
    assert_eq!(bench.server_got(), "Q");
    bench.answer(&[ROW, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "D C:SELECT 1 ZI");
    assert!(bench.session.releasable(&bench.server));
}

#[test]
fn a_lost_replica_is_repeated_while_nothing_was_given_and_told_after_that() {
    let mut bench = Bench::new();
    bench.attach(true);
    bench.forward(&query("select 1"));
    assert_eq!(bench.lose(), Loss::Repeat);
    bench.server = Server::new(&Arc::default(), "");
    bench.attach(true);
    bench.forward(&query("select 1"));
    bench.answer(ROW);
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "D E40001 ZI");
    bench.attach(true);
    bench.forward(&query("select 1"));
    bench.answer(&[ROW, &ROW[..6]].concat());
    assert_eq!(bench.lose(), Loss::Close);
}

#[test]
fn a_lost_primary_outside_a_block_leaves_the_outcome_unknown_for_each_that_waits() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[query("insert"), query("select 1")].concat());
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E08007 ZI E08007 ZI");
    bench.server = Server::new(&Arc::default(), "");
    bench.attach(false);
    bench.forward(&[parse("", "insert"), bind(""), EXECUTE.to_vec()].concat());
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E08007");
    assert_eq!(bench.plan(EXECUTE), Plan::Consumed(EXECUTE.len()));
    assert_eq!(bench.plan(SYNC), Plan::Consumed(5));
    assert_eq!(bench.client_got(), "ZI");
}

#[test]
fn a_block_lost_for_sure_fails_until_the_client_ends_it() {
    let mut bench = Bench::new();
    begin(&mut bench);
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "");
    for (sql, answer) in [
        ("insert", "E40001 ZE"),
        ("insert", "E25P02 ZE"),
        ("", "I ZE"),
        ("savepoint a", "E25P02 ZE"),
        ("rollback and chain", "E25P02 ZE"),
        ("commit", "C:ROLLBACK ZI"),
    ] {
        bench.plan(&query(sql));
        assert_eq!(bench.client_got(), answer, "{sql}");
    }
    assert!(matches!(bench.plan(&query("insert")), Plan::Route(_)));
}

#[test]
fn a_lost_block_ends_in_the_extended_protocol_too() {
    let mut bench = Bench::new();
    begin(&mut bench);
    bench.forward(&[parse("", "insert"), bind(""), EXECUTE.to_vec(), SYNC.to_vec()].concat());
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E40001 ZE");
    let send = |bench: &mut Bench, input: &[u8]| {
        let mut rest = input;
        while let Plan::Consumed(taken) = bench.plan(rest) {
            rest = &rest[taken..];
        }
        assert!(rest.is_empty());
        bench.client_got()
    };
    let insert = [&parse("", "insert")[..], &bind(""), EXECUTE, SYNC].concat();
    assert_eq!(send(&mut bench, &insert), "E25P02 ZE");
    let rollback = [&parse("", "rollback")[..], &bind(""), EXECUTE, SYNC].concat();
    assert_eq!(send(&mut bench, &rollback), "1 2 C:ROLLBACK ZI");
    assert!(matches!(bench.plan(&insert), Plan::Route(_)));
}

#[test]
fn a_commit_that_comes_first_after_the_loss_is_an_error_and_ends_the_block() {
    let mut bench = Bench::new();
    begin(&mut bench);
    bench.lose();
    bench.plan(&query("commit"));
    assert_eq!(bench.client_got(), "E40001 ZI");
    assert!(matches!(bench.plan(&query("insert")), Plan::Route(_)));
}

#[test]
fn a_block_that_may_have_been_committed_is_unknown() {
    let mut bench = Bench::new();
    begin(&mut bench);
    bench.forward(&query("commit"));
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E08007 ZI");
}

#[test]
fn an_error_the_server_ends_the_session_with_is_the_clients_unless_it_shuts_down() {
    for (code, effect) in [("25P03", Effect::Ended), ("57P01", Effect::Lost)] {
        let mut bench = Bench::new();
        bench.attach(false);
        bench.forward(&query("insert"));
        let mut fatal = Vec::new();
        write::error_response(&mut fatal, &Report::fatal(code, "going"));
        assert_eq!(bench.answer(&fatal), effect);
    }
}
