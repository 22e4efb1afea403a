//! A model of PostgreSQL's protocol, spoken to directly and through sessions that move from server to server: the
//! client must not see a difference.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Mutex;

use proptest::prelude::*;

use super::tests::{FirstWord, brief, frames, named, reported, split_frames};
use super::*;
use crate::wire::read;

/// A server as the protocol describes it.
#[derive(Default)]
struct Model {
    /// Which columns the one table has; it is the same for all.
    table: Rc<Cell<u8>>,
    statements: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Which it had when a statement was parsed.
    parsed: BTreeMap<Vec<u8>, u8>,
    portals: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Settings, those that the transaction began with, and those after log-in.
    settings: BTreeMap<String, String>,
    before: BTreeMap<String, String>,
    start: BTreeMap<String, String>,
    status: TransactionStatus,
    skipping: bool,
    out: Vec<u8>,
}

impl Model {
    fn named(application_name: &str, table: &Rc<Cell<u8>>) -> Self {
        let table = Rc::clone(table);
        let start = BTreeMap::from([("application_name".to_owned(), application_name.to_owned())]);
        Self { table, settings: start.clone(), before: start.clone(), start, ..Self::default() }
    }

    fn fail(&mut self, code: &'static str, message: String) {
        write::error_response(&mut self.out, &Report::error(code, message));
        if self.status == TransactionStatus::InBlock {
            self.status = TransactionStatus::Failed;
        } else if self.status == TransactionStatus::Idle {
            self.become_those(self.before.clone());
        }
    }

    fn become_those(&mut self, settings: BTreeMap<String, String>) {
        let name = |settings: &BTreeMap<String, String>| {
            settings.get("application_name").cloned().unwrap_or_default()
        };
        if name(&self.settings) != name(&settings) {
            write::parameter_status(&mut self.out, "application_name", name(&settings));
        }
        self.settings = settings;
    }

    fn end(&mut self, keep: bool, tag: &str) {
        if !keep || self.status == TransactionStatus::Failed {
            self.become_those(self.before.clone());
        }
        self.status = TransactionStatus::Idle;
        write::command_complete(&mut self.out, tag);
    }

    /// What a statement shows of the settings that it runs with.
    fn seen(&self) -> String {
        let shown = |(name, value): (&String, &String)| format!("{name}={value}");
        self.settings.iter().map(shown).collect::<Vec<_>>().join(",")
    }

    fn run(&mut self, sql: &[u8]) -> bool {
        let text = String::from_utf8_lossy(sql).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        match (words.as_slice(), self.status) {
            ([], _) => write::empty_query_response(&mut self.out),
            (["rollback"], _) | (["commit"], TransactionStatus::Failed) => self.end(false, "ROLLBACK"),
            (["commit"], _) => self.end(true, "COMMIT"),
            (_, TransactionStatus::Failed) => {
                self.fail(sqlstate::IN_FAILED_SQL_TRANSACTION, "aborted".to_owned());
                return false;
            }
            (["begin"], _) => {
                self.status = TransactionStatus::InBlock;
                write::command_complete(&mut self.out, "BEGIN");
            }
            (["insert", "boom"], _) => {
                self.fail("22012", "boom".to_owned());
                return false;
            }
            (["insert", "altering"], _) => {
                self.table.set((self.table.get() + 1) % 3);
                write::command_complete(&mut self.out, "INSERT 0 1");
            }
            (["set" | "SET", name, "=" | "TO", value], _) => {
                let mut settings = self.settings.clone();
                settings.insert(name.replace('"', ""), value.trim_matches('\'').to_owned());
                self.become_those(settings);
                write::command_complete(&mut self.out, "SET");
            }
            (["reset" | "RESET", "ALL"], _) => {
                self.become_those(self.start.clone());
                write::command_complete(&mut self.out, "RESET");
            }
            (["reset" | "RESET", name], _) => {
                let mut settings = self.settings.clone();
                settings.remove(&name.replace('"', ""));
                self.become_those(settings);
                write::command_complete(&mut self.out, "RESET");
            }
            (["discard", "all"], TransactionStatus::Idle) => {
                self.become_those(self.start.clone());
                self.statements.clear();
                write::command_complete(&mut self.out, "DISCARD ALL");
            }
            (["discard", "all"], _) => {
                self.fail("25001", "DISCARD ALL cannot run inside a transaction block".to_owned());
                return false;
            }
            (["deallocate", "all"], _) => {
                self.statements.clear();
                write::command_complete(&mut self.out, "DEALLOCATE ALL");
            }
            (["deallocate", name], _) => {
                if self.statements.remove(name.as_bytes()).is_none() {
                    self.missing(name.as_bytes());
                    return false;
                }
                write::command_complete(&mut self.out, "DEALLOCATE");
            }
            (["PREPARE" | "prepare", name, "as", ..], _) => {
                if self.statements.contains_key(name.as_bytes()) {
                    self.fail("42P05", format!("prepared statement \"{name}\" already exists"));
                    return false;
                }
                let inner = text.split_once(" as ").unwrap().1;
                self.parsed.remove(name.as_bytes());
                self.statements.insert(name.as_bytes().to_vec(), [inner.as_bytes(), b"\0\0\0"].concat());
                write::command_complete(&mut self.out, "PREPARE");
            }
            (["execute", name], _) => {
                if let Some(tail) = self.statements.get(name.as_bytes()).cloned() {
                    return self.run(read::text(&tail).unwrap().0);
                }
                self.missing(name.as_bytes());
                return false;
            }
            _ => {
                let tag = format!("{text} {{{}}}", self.seen());
                write::command_complete(&mut self.out, &tag);
            }
        }
        true
    }

    /// Answers what metako asks.
    fn tell(&mut self) {
        let none = Some("f");
        self.out.extend(pins::row(&[none; 6]));
        for (name, value) in &self.settings {
            if self.start.get(name) != Some(value) {
                self.out.extend(pins::row(&[Some(name), Some(value)]));
            }
        }
        write::command_complete(&mut self.out, "SELECT");
    }

    fn query(&mut self, sql: &[u8]) {
        self.statements.remove(&b""[..]);
        if sql.starts_with(b"SELECT EXISTS") {
            self.tell();
        } else {
            let text = String::from_utf8_lossy(sql).into_owned();
            let _ = text.split("; ").filter(|part| !part.is_empty()).all(|part| self.run(part.as_bytes()));
        }
        self.ready();
    }

    fn ready(&mut self) {
        self.portals.clear();
        if self.status == TransactionStatus::Idle {
            self.before = self.settings.clone();
        }
        write::ready_for_query(&mut self.out, self.status);
    }

    fn missing(&mut self, name: &[u8]) {
        let message = if name.is_empty() {
            "unnamed prepared statement does not exist".to_owned()
        } else {
            format!("prepared statement \"{}\" does not exist", String::from_utf8_lossy(name))
        };
        self.fail("26000", message);
    }

    fn take(&mut self, input: &[u8]) {
        for (tag, body) in frames(input) {
            match tag {
                b'S' => {
                    self.skipping = false;
                    self.ready();
                }
                b'H' => {}
                _ if self.skipping => {}
                b'Q' => self.query(read::query(body).unwrap()),
                b'P' => self.skipping = !self.parse(read::parse(body).unwrap()),
                b'B' => self.skipping = !self.bind(read::bind(body).unwrap()),
                b'D' => match read::target(body).unwrap() {
                    read::Target::Statement(name) if self.statements.contains_key(name) => {
                        let sql = read::text(&self.statements[name]).unwrap().0.to_vec();
                        self.skipping = !self.may(&sql);
                        if !self.skipping {
                            write::no_parameters(&mut self.out);
                            self.skipping = !self.is_current(name);
                        }
                        if self.skipping {
                            continue;
                        }
                        if sql == OF_TABLE {
                            let column = self.table.get();
                            write::frame(&mut self.out, b'T', |out| {
                                out.extend_from_slice(&[0, 1, b'a' + column]);
                                out.extend_from_slice(&[0; 19]);
                            });
                        } else {
                            write::no_data(&mut self.out);
                        }
                    }
                    read::Target::Statement(name) | read::Target::Portal(name) => {
                        self.missing(name);
                        self.skipping = true;
                    }
                },
                b'C' => {
                    match read::target(body).unwrap() {
                        read::Target::Statement(name) => self.statements.remove(name),
                        read::Target::Portal(name) => self.portals.remove(name),
                    };
                    write::close_complete(&mut self.out);
                }
                b'E' => {
                    if let Some(sql) = self.portals.get(read::text(body).unwrap().0).cloned() {
                        self.skipping = !self.run(&sql);
                    } else {
                        self.fail("34000", "no portal".to_owned());
                        self.skipping = true;
                    }
                }
                other => panic!("{}", char::from(other)),
            }
        }
    }

    /// Whether a statement is one that may be parsed and bound in a block that failed.
    fn may(&mut self, sql: &[u8]) -> bool {
        let ends = matches!(sql, b"" | b"rollback" | b"commit");
        if self.status == TransactionStatus::Failed && !ends {
            self.fail(sqlstate::IN_FAILED_SQL_TRANSACTION, "aborted".to_owned());
            return false;
        }
        true
    }

    /// Whether a statement has still the columns that it had when it was parsed. Of the unnamed one nobody notices: it is
    /// parsed anew on each server.
    fn is_current(&mut self, name: &[u8]) -> bool {
        let of_table = !name.is_empty() && read::text(&self.statements[name]).unwrap().0 == OF_TABLE;
        let changed = of_table && self.parsed.get(name).is_some_and(|then| *then != self.table.get());
        if changed {
            self.fail("0A000", "cached plan must not change result type".to_owned());
        }
        !changed
    }

    fn bind(&mut self, bind: read::Bind<'_>) -> bool {
        let Some(tail) = self.statements.get(bind.statement).cloned() else {
            self.missing(bind.statement);
            return false;
        };
        let sql = read::text(&tail).unwrap().0;
        if !self.may(sql) || !self.is_current(bind.statement) {
            return false;
        }
        self.portals.insert(bind.portal.to_vec(), sql.to_vec());
        write::bind_complete(&mut self.out);
        true
    }

    fn parse(&mut self, parse: read::Parse<'_>) -> bool {
        if parse.name.is_empty() {
            self.statements.remove(&b""[..]);
        }
        if parse.sql == b"insert nonsense" {
            self.fail("42601", "syntax".to_owned());
            return false;
        }
        if !self.may(parse.sql) {
            return false;
        }
        if self.statements.contains_key(parse.name) {
            let name = String::from_utf8_lossy(parse.name);
            self.fail("42P05", format!("prepared statement \"{name}\" already exists"));
            return false;
        }
        self.statements.insert(parse.name.to_vec(), parse.tail.to_vec());
        self.parsed.insert(parse.name.to_vec(), self.table.get());
        write::parse_complete(&mut self.out);
        true
    }
}

const NAMES: [&str; 4] = ["a", "b", "c", "metako_1"];
const OF_TABLE: &[u8] = b"select *";
const TEXTS: [&str; 11] = [
    "select 1",
    "select *",
    "insert altering",
    "select 2",
    "insert 1",
    "insert boom",
    "insert nonsense",
    "rollback",
    "commit",
    "set a.x = 1",
    "reset a.x",
];
/// Texts of a Query alone.
const QUERIES: [&str; 14] = [
    "begin",
    "commit",
    "rollback",
    "set a.x = 2",
    "set a.y = 3",
    "reset a.y",
    "reset ALL",
    "discard all",
    "prepare a as select 3",
    "prepare b as insert boom",
    "execute a",
    "execute b",
    "deallocate a",
    "deallocate all",
];

fn describe(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::statement_target(&mut out, b'D', name.as_bytes());
    out
}

/// Messages that neither give nor take a name.
fn use_of_statements() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(NAMES.to_vec());
    prop_oneof![
        name.clone().prop_map(tests::bind),
        Just(tests::bind("")),
        name.prop_map(describe),
        Just(tests::EXECUTE.to_vec()),
        Just(b"H\0\0\0\x04".to_vec()),
    ]
}

/// One unit: a Query, or a batch with its Sync.
fn unit() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(NAMES.to_vec());
    let text = prop::sample::select(TEXTS.to_vec());
    let parse = (name.clone(), text.clone()).prop_map(|(name, text)| tests::parse(name, text));
    let message = prop_oneof![1 => parse, 1 => name.prop_map(tests::close), 4 => use_of_statements()];
    let first = prop_oneof![
        3 => Just(Vec::new()),
        1 => text.clone().prop_map(|text| tests::parse("", text)),
    ];
    let batch = (first, prop::collection::vec(message, 0..7))
        .prop_map(|(first, rest)| [first, rest.concat(), tests::SYNC.to_vec()].concat());
    let query = prop_oneof![text, prop::sample::select(QUERIES.to_vec())].prop_map(tests::query);
    prop_oneof![2 => batch, 2 => query]
}

/// A few units that are sent in one go.
fn pipeline() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(unit(), 2..5).prop_map(|units| units.concat())
}

/// What a client sends in one go.
struct Sent(Vec<u8>);

impl std::fmt::Debug for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |(tag, body): (u8, &[u8])| {
            format!("{}{}", char::from(tag), body.escape_ascii().to_string().replace("\\x00", "."))
        };
        f.write_str(&frames(&self.0).into_iter().map(text).collect::<Vec<_>>().join(" "))
    }
}

/// What the client sees but for ParameterStatus, which may come at other moments.
fn seen(bytes: &[u8]) -> String {
    brief(bytes).split(' ').filter(|one| *one != "S").collect::<Vec<_>>().join(" ")
}

/// The application name that was reported last.
fn reported_name(bytes: &[u8]) -> Option<String> {
    let named = |(tag, body): (u8, &[u8])| {
        let (name, value) = (tag == b'S').then(|| read::parameter_status(body)).flatten()?;
        (name == b"application_name").then(|| String::from_utf8_lossy(value).into_owned())
    };
    frames(bytes).into_iter().filter_map(named).next_back()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_client_cannot_tell_several_servers_behind_sessions_from_one_of_its_own(
        scripts in prop::array::uniform2(
            prop::collection::vec(prop_oneof![2 => unit(), 1 => pipeline()].prop_map(Sent), 1..12),
        ),
        choices in prop::collection::vec((0..3_usize, 1..40_usize), 24),
    ) {
        let interner = Mutex::new(Interner::default());
        let cx = SessionCx { classifier: &FirstWord, statements: &interner, split: false, scope: 0 };
        let tables: [Rc<Cell<u8>>; 2] = Default::default();
        let login = reported(&[("application_name", "")]);
        let mut servers: Vec<(Server, Model)> =
            (0..3).map(|_| (Server::new(&login), Model::named("", &tables[0]))).collect();
        let mut direct = ["x", "y"].map(|name| Model::named(name, &tables[1]));
        let mut sessions = ["x", "y"].map(named);
        let mut told = ["x", "y"].map(str::to_owned);
        let mut attached: [Option<usize>; 2] = [None, None];
        let mut choices = choices.into_iter().cycle();
        for turn in 0..scripts[0].len().max(scripts[1].len()) {
            for who in 0..2 {
                let Some(Sent(unit)) = scripts[who].get(turn) else { continue };
                let (choice, chunk) = choices.next().unwrap_or((0, 1));
                direct[who].take(unit);
                let wanted = std::mem::take(&mut direct[who].out);
                let session = &mut sessions[who];
                let (mut input, mut got) = (unit.clone(), Vec::new());
                while !input.is_empty() {
                    if attached[who].is_none() {
                        match session.plan(&input, &cx, &mut got).unwrap() {
                            Plan::Consumed(taken) => {
                                input.drain(..taken);
                                continue;
                            }
                            Plan::Route(_) => {}
                            other => panic!("{other:?}"),
                        }
                    }
                    let mut to_server = Vec::new();
                    let place = attached[who].unwrap_or_else(|| {
                        let taken = attached[1 - who];
                        let free = if Some(choice) == taken { (choice + 1) % 3 } else { choice };
                        session.attach(&mut servers[free].0, false, &mut to_server);
                        free
                    });
                    attached[who] = Some(place);
                    let (server, model) = &mut servers[place];
                    let consumed =
                        session.forward(server, &input, &cx, &mut to_server, &mut got).unwrap().consumed;
                    input.drain(..consumed);
                    while !to_server.is_empty() {
                        model.take(&std::mem::take(&mut to_server));
                        let answer = std::mem::take(&mut model.out);
                        let mut rest = Vec::new();
                        for part in answer.chunks(chunk) {
                            rest.extend_from_slice(part);
                            let answered = session.answer(server, &rest, &mut got, &mut to_server).unwrap();
                            prop_assert_eq!(answered.effect, Effect::Continue);
                            rest.drain(..answered.consumed);
                        }
                        prop_assert!(rest.is_empty());
                    }
                    let goes_on = input.is_empty() || session.wants_input(server);
                    prop_assert!(goes_on, "what waits is not let go on");
                    if input.is_empty() {
                        prop_assert!(server.replies.settled(), "owed after all was answered");
                    }
                    if session.releasable(server) {
                        prop_assert!(server.is_clean());
                        session.release();
                        attached[who] = None;
                    }
                }
                prop_assert_eq!(seen(&got), seen(&wanted), "{:?}", &scripts[who][turn]);
                prop_assert_eq!(messages(&got), messages(&wanted));
                if let Some(name) = reported_name(&got) {
                    told[who] = name;
                }
                prop_assert_eq!(&told[who], &direct[who].settings["application_name"]);
                prop_assert_eq!(session.pinned(), None);
            }
        }
    }

    #[test]
    fn garbage_from_either_side_is_an_error_or_is_passed_and_never_panics(
        from_client in prop::collection::vec(any::<u8>(), 0..200),
        from_server in prop::collection::vec(any::<u8>(), 0..200),
        valid in prop::collection::vec(unit(), 0..4),
    ) {
        let interner = Mutex::new(Interner::default());
        let cx = SessionCx { classifier: &FirstWord, statements: &interner, split: true, scope: 0 };
        let mut session = Session::new(1 << 30);
        let mut server = Server::new(&Arc::default());
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        let input = [valid.concat(), from_client].concat();
        let _ = session.plan(&input, &cx, &mut to_client);
        if !session.is_attached() {
            session.attach(&mut server, true, &mut to_server);
        }
        let _ = session.forward(&mut server, &input, &cx, &mut to_server, &mut to_client);
        let tags = split_frames(&from_server);
        let _ = session.answer(&mut server, &tags, &mut to_client, &mut to_server);
        let _ = session.answer(&mut server, &from_server, &mut to_client, &mut to_server);
        let lost = LossCx {
            node: "n",
            cause: "c",
            unknown: UnknownOutcome::TransactionResolutionUnknown,
        };
        let _ = session.lose(&mut server, &lost, &mut to_client);
    }
}

/// The texts of all errors.
fn messages(bytes: &[u8]) -> Vec<String> {
    let errors = frames(bytes).into_iter().filter(|(tag, _)| *tag == b'E');
    errors.map(|(_, body)| String::from_utf8_lossy(read::error(body).message).into_owned()).collect()
}
