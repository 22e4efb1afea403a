//! A model of PostgreSQL's protocol, spoken to directly and through sessions that move from server to server: the
//! client must not see a difference.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;

use super::tests::{FirstWord, brief, frames, split_frames};
use super::*;
use crate::wire::read;

/// A server as the protocol describes it.
#[derive(Default)]
struct Model {
    statements: BTreeMap<Vec<u8>, Vec<u8>>,
    portal: Option<Vec<u8>>,
    status: TransactionStatus,
    skipping: bool,
    out: Vec<u8>,
}

impl Model {
    fn fail(&mut self, code: &'static str, message: String) {
        write::error_response(&mut self.out, &Report::error(code, message));
        if self.status == TransactionStatus::InBlock {
            self.status = TransactionStatus::Failed;
        }
    }

    fn run(&mut self, sql: &[u8]) -> bool {
        match (sql, self.status) {
            (b"rollback", _) => {
                self.status = TransactionStatus::Idle;
                write::command_complete(&mut self.out, "ROLLBACK");
            }
            (_, TransactionStatus::Failed) => {
                self.fail(sqlstate::IN_FAILED_SQL_TRANSACTION, "aborted".to_owned());
                return false;
            }
            (b"begin", _) => {
                self.status = TransactionStatus::InBlock;
                write::command_complete(&mut self.out, "BEGIN");
            }
            (b"insert boom", _) => {
                self.fail("22012", "boom".to_owned());
                return false;
            }
            (sql, _) => write::command_complete(&mut self.out, &String::from_utf8_lossy(sql)),
        }
        true
    }

    fn missing(&mut self, name: &[u8]) {
        let message = if name.is_empty() {
            "unnamed prepared statement does not exist".to_owned()
        } else {
            format!("prepared statement \"{}\" does not exist", String::from_utf8_lossy(name))
        };
        self.fail("26000", message);
        self.skipping = true;
    }

    fn take(&mut self, input: &[u8]) {
        for (tag, body) in frames(input) {
            match tag {
                b'S' => {
                    self.skipping = false;
                    self.portal = None;
                    write::ready_for_query(&mut self.out, self.status);
                }
                b'H' => {}
                _ if self.skipping => {}
                b'Q' => {
                    self.statements.remove(&b""[..]);
                    let sql = read::query(body).unwrap();
                    if sql.starts_with(b"SET application_name") {
                        write::parameter_status(&mut self.out, "application_name", "x");
                    }
                    self.run(sql);
                    write::ready_for_query(&mut self.out, self.status);
                }
                b'P' => self.parse(read::parse(body).unwrap()),
                b'B' => {
                    let name = read::bind(body).unwrap().statement;
                    match self.statements.get(name).cloned() {
                        Some(tail) => {
                            self.portal = Some(read::text(&tail).unwrap().0.to_vec());
                            write::bind_complete(&mut self.out);
                        }
                        None => self.missing(name),
                    }
                }
                b'D' => match read::target(body).unwrap() {
                    read::Target::Statement(name) if self.statements.contains_key(name) => {
                        write::no_parameters(&mut self.out);
                        write::no_data(&mut self.out);
                    }
                    read::Target::Statement(name) | read::Target::Portal(name) => self.missing(name),
                },
                b'C' => {
                    if let read::Target::Statement(name) = read::target(body).unwrap() {
                        self.statements.remove(name);
                    }
                    write::close_complete(&mut self.out);
                }
                b'E' => {
                    if let Some(sql) = self.portal.clone() {
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

    fn parse(&mut self, parse: read::Parse<'_>) {
        if parse.name.is_empty() {
            self.statements.remove(&b""[..]);
        } else if self.statements.contains_key(parse.name) {
            let name = String::from_utf8_lossy(parse.name);
            self.fail("42P05", format!("prepared statement \"{name}\" already exists"));
            self.skipping = true;
            return;
        }
        if parse.sql == b"insert nonsense" {
            self.fail("42601", "syntax".to_owned());
            self.skipping = true;
            return;
        }
        self.statements.insert(parse.name.to_vec(), parse.tail.to_vec());
        write::parse_complete(&mut self.out);
    }
}

const NAMES: [&str; 4] = ["a", "b", "c", "metako_1"];
const TEXTS: [&str; 6] = ["select 1", "select 2", "insert 1", "insert boom", "insert nonsense", "rollback"];

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
    let query = prop_oneof![text, Just("begin")].prop_map(tests::query);
    prop_oneof![3 => batch, 1 => query]
}

/// A few units that are sent in one go. None changes a name: a unit that is sent before the one in front of it was
/// answered takes it for granted that that succeeds.
fn pipeline() -> impl Strategy<Value = Vec<u8>> {
    let batch = prop::collection::vec(use_of_statements(), 0..5)
        .prop_map(|messages| [messages.concat(), tests::SYNC.to_vec()].concat());
    prop::collection::vec(batch, 2..5).prop_map(|units| units.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_client_cannot_tell_several_servers_behind_sessions_from_one_of_its_own(
        scripts in prop::array::uniform2(prop::collection::vec(prop_oneof![2 => unit(), 1 => pipeline()], 1..12)),
        choices in prop::collection::vec((0..3_usize, 1..40_usize), 24),
    ) {
        let interner = Mutex::new(Interner::default());
        let cx = SessionCx { classifier: &FirstWord, statements: &interner, split: false };
        let mut servers: Vec<(Server, Model)> =
            (0..3).map(|_| (Server::new(&[], ""), Model::default())).collect();
        let mut direct = [Model::default(), Model::default()];
        let mut sessions = [Session::new("x", 1 << 30), Session::new("y", 1 << 30)];
        let mut attached: [Option<usize>; 2] = [None, None];
        let mut choices = choices.into_iter().cycle();
        for turn in 0..scripts[0].len().max(scripts[1].len()) {
            for who in 0..2 {
                let Some(unit) = scripts[who].get(turn) else { continue };
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
                    model.take(&to_server);
                    let answer = std::mem::take(&mut model.out);
                    let mut rest = Vec::new();
                    for part in answer.chunks(chunk) {
                        rest.extend_from_slice(part);
                        let answered = session.answer(server, &rest, &mut got).unwrap();
                        prop_assert_eq!(answered.effect, Effect::Continue);
                        rest.drain(..answered.consumed);
                    }
                    prop_assert!(rest.is_empty());
                    prop_assert!(server.replies.settled(), "owed after all was answered");
                    if session.releasable(server) {
                        prop_assert!(server.is_clean());
                        session.release();
                        attached[who] = None;
                    }
                }
                prop_assert_eq!(brief(&got), brief(&wanted));
                prop_assert_eq!(messages(&got), messages(&wanted));
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
        let cx = SessionCx { classifier: &FirstWord, statements: &interner, split: true };
        let mut session = Session::new("", 1 << 30);
        let mut server = Server::new(&[], "");
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        let input = [valid.concat(), from_client].concat();
        let _ = session.plan(&input, &cx, &mut to_client);
        if !session.is_attached() {
            session.attach(&mut server, true, &mut to_server);
        }
        let _ = session.forward(&mut server, &input, &cx, &mut to_server, &mut to_client);
        let tags = split_frames(&from_server);
        let _ = session.answer(&mut server, &tags, &mut to_client);
        let _ = session.answer(&mut server, &from_server, &mut to_client);
        let lost = LossCx {
            node: "n",
            cause: "c",
            unknown: crate::config::UnknownOutcome::TransactionResolutionUnknown,
        };
        let _ = session.lose(&mut server, &lost, &mut to_client);
    }
}

/// The texts of all errors.
fn messages(bytes: &[u8]) -> Vec<String> {
    let errors = frames(bytes).into_iter().filter(|(tag, _)| *tag == b'E');
    errors.map(|(_, body)| String::from_utf8_lossy(read::error(body).message).into_owned()).collect()
}
