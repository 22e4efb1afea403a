//! Random sequences of messages over a small table, valid and not.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::send;

/// A message of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    Query(&'static str),
    Parse {
        name: &'static str,
        sql: &'static str,
    },
    Bind {
        portal: &'static str,
        statement: &'static str,
        values: Vec<Option<&'static str>>,
    },
    DescribeStatement(&'static str),
    DescribePortal(&'static str),
    Execute {
        portal: &'static str,
        rows: i32,
    },
    CloseStatement(&'static str),
    ClosePortal(&'static str),
    FunctionCall(&'static [&'static str]),
    CopyData(&'static [u8]),
    CopyDone,
    CopyFail,
    Flush,
    Sync,
    /// A message with a true length and a body that makes no sense.
    Malformed(u8, &'static [u8]),
}

impl Message {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Query(sql) => send::query(sql),
            Self::Parse { name, sql } => send::parse(name, sql),
            Self::Bind { portal, statement, values } => send::bind_to(portal, statement, values),
            Self::DescribeStatement(name) => send::describe_statement(name),
            Self::DescribePortal(name) => send::describe_portal(name),
            Self::Execute { portal, rows } => send::execute_some(portal, *rows),
            Self::CloseStatement(name) => send::close_statement(name),
            Self::ClosePortal(name) => send::close_portal(name),
            Self::FunctionCall(arguments) => send::function_call(ABS, arguments),
            Self::CopyData(data) => send::copy_data(data),
            Self::CopyDone => send::COPY_DONE.to_vec(),
            Self::CopyFail => send::copy_fail("no more"),
            Self::Flush => send::FLUSH.to_vec(),
            Self::Sync => send::SYNC.to_vec(),
            Self::Malformed(tag, body) => send::message(*tag, body),
        }
    }
}

/// `abs(int4)`
const ABS: u32 = 1397;

/// How a client goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It says goodbye.
    Terminate,
    /// It is gone without a word.
    Vanish,
    /// It announces more than it sends.
    HalfMessage,
    /// It announces less than a message has.
    LyingLength,
    /// It sends what is no message.
    Garbage,
}

/// What one client does. Each batch goes out in one send; then all of its answers are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) batches: Vec<Vec<Message>>,
    pub(crate) end: End,
}

/// Makes what the statements below are about.
pub(crate) const SETUP: &[&str] = &[
    "create table t (id int primary key, body text)",
    "insert into t values (1, 'one'), (2, 'two'), (3, 'three')",
    "create sequence s",
    "create schema elsewhere_of_random",
    "create view v as select id from t",
];

const READS: &[&str] = &[
    "select 1",
    "select id, body from t order by id",
    "select $1::int + 1",
    "select id from v where id > $1 order by id",
    "select generate_series(1, 4)",
    "show work_mem",
    "show timezone",
    "show application_name",
    "select current_user, current_schemas(false)",
    "values (1), (2)",
    "",
];

const WRITES: &[&str] = &[
    "insert into t values (10, 'ten')",
    "insert into t values ($1, $2)",
    "delete from t where id = 1",
    "update t set body = body || 'u' where id < 3 returning id",
    "select nextval('s')",
    "create table fresh (id int)",
    "lock table t",
    "select 1; select 2",
    "insert into t values (11, 'x'); select 1/0",
    "insert into t values (12, 'x'); begin; insert into t values (13, 'x')",
    "insert into t values (14, 'x'); commit; select 1/0",
    "do $$ begin raise notice 'noted'; end $$",
];

const ERRORS: &[&str] = &[
    "select 1/0",
    "select 1/(id - 2) from t order by id",
    "syntax error",
    "select * from missing",
    "select $1::int / 0",
];

const TRANSACTIONS: &[&str] = &[
    "begin",
    "begin read only",
    "start transaction isolation level serializable",
    "commit",
    "rollback",
    "end",
    "savepoint a",
    "rollback to a",
    "release a",
    "commit and chain",
    "rollback and chain",
];

const SETTINGS: &[&str] = &[
    "set work_mem = '7MB'",
    "set timezone = 'Asia/Tokyo'",
    "set local timezone = 'Europe/Berlin'",
    "set application_name = 'changed'",
    "set search_path = elsewhere_of_random",
    "set datestyle = 'German'",
    "set extra_float_digits = 0",
    "set own.setting = 'x'",
    "select set_config('work_mem', '9MB', false)",
    "select set_config('timezone', 'Asia/Tokyo', true)",
    "set work_mem = 'nonsense'",
    "reset work_mem",
    "reset timezone",
    "reset application_name",
    "reset all",
    "set role plain",
    "reset role",
    "set session authorization plain",
    "reset session authorization",
    "set session characteristics as transaction read only",
    "discard all",
    "discard temp",
    "discard plans",
    "discard sequences",
];

const OBJECTS: &[&str] = &[
    "prepare n as select 5",
    "prepare n2 (int) as select $1",
    "execute n",
    "execute n2 (7)",
    "deallocate n",
    "deallocate all",
    "declare c cursor for select id from t order by id",
    "declare h cursor with hold for select id from t order by id",
    "fetch 1 from c",
    "fetch all from h",
    "close c",
    "close all",
    "listen l",
    "unlisten *",
    "notify l, 'said'",
    "select pg_advisory_lock(1)",
    "select pg_advisory_xact_lock(2)",
    "select pg_advisory_unlock(1)",
    "select pg_advisory_unlock_all()",
    "create temp table mine (id int)",
    "create temp table short (id int) on commit drop",
    "select 1 as id into temp mine",
    "select count(*) from mine",
    "drop table mine",
];

const COPIES: &[&str] = &[
    "copy t from stdin",
    "copy t to stdout",
    "copy missing from stdin",
    "select 1; copy t from stdin; select 2",
];

const MALFORMED: &[(u8, &[u8])] = &[
    (b'Q', b"select 1"),
    (b'Q', b"select 1\0select 2\0"),
    (b'P', b"s\0select 1\0"),
    (b'P', b"s\0select 1\0\0\x05"),
    (b'B', b"\0s\0"),
    (b'B', b"\0s\0\0\0\0\x01\0\0\0\x7fx"),
    (b'B', b"\0s\0\0\x02\0\0\0\0\0\0\0\0"),
    (b'E', b"\0\0"),
    (b'D', b"Xs\0"),
    (b'D', b"S"),
    (b'C', b"Xs\0"),
    (b'C', b"Ss\0x"),
    (b'F', b"\0\0"),
    (b'S', b"x"),
    (b'H', b"x"),
];

const ARGUMENTS: &[&[&str]] = &[&["-5"], &["x"], &[]];

fn sql() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        6 => select(READS),
        4 => select(WRITES),
        3 => select(ERRORS),
        6 => select(TRANSACTIONS),
        5 => select(SETTINGS),
        5 => select(OBJECTS),
        2 => select(COPIES),
    ]
}

fn name() -> impl Strategy<Value = &'static str> {
    select(&["", "s", "n"][..])
}

fn portal() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just(""), 1 => select(&["p", "c"][..])]
}

fn values() -> impl Strategy<Value = Vec<Option<&'static str>>> {
    let value = prop_oneof![3 => select(&["1", "21", "x", ""][..]).prop_map(Some), 1 => Just(None)];
    prop_oneof![5 => Just(Vec::new()), 4 => vec(value.clone(), 1), 1 => vec(value, 2)]
}

fn extended() -> impl Strategy<Value = Message> {
    prop_oneof![
        4 => (name(), sql()).prop_map(|(name, sql)| Message::Parse { name, sql }),
        4 => (portal(), name(), values())
            .prop_map(|(portal, statement, values)| Message::Bind { portal, statement, values }),
        4 => (portal(), select(&[0, 0, 1, 2, -1][..])).prop_map(|(portal, rows)| Message::Execute { portal, rows }),
        1 => name().prop_map(Message::DescribeStatement),
        1 => portal().prop_map(Message::DescribePortal),
        1 => name().prop_map(Message::CloseStatement),
        1 => portal().prop_map(Message::ClosePortal),
        3 => Just(Message::Sync),
        1 => Just(Message::Flush),
    ]
}

fn copying() -> impl Strategy<Value = Message> {
    let data: &'static [&'static [u8]] =
        &[b"20\ttwenty\n", b"21\ttwenty", b"-one\n", b"x\ty\n", b"", b"\\.\n", b"1\tagain\n"];
    prop_oneof![
        4 => select(data).prop_map(Message::CopyData),
        3 => Just(Message::CopyDone),
        1 => Just(Message::CopyFail),
    ]
}

/// A statement in the usual row of messages.
fn whole() -> impl Strategy<Value = Vec<Message>> {
    (name(), sql(), values(), any::<bool>(), any::<bool>()).prop_map(|(name, sql, values, describe, sync)| {
        let mut messages = vec![
            Message::Parse { name, sql },
            Message::Bind { portal: "", statement: name, values },
            Message::Execute { portal: "", rows: 0 },
        ];
        if describe {
            messages.insert(2, Message::DescribePortal(""));
        }
        if sync {
            messages.push(Message::Sync);
        }
        messages
    })
}

fn piece() -> impl Strategy<Value = Vec<Message>> {
    prop_oneof![
        8 => sql().prop_map(|sql| vec![Message::Query(sql)]),
        5 => whole(),
        8 => extended().prop_map(|message| vec![message]),
        2 => (select(COPIES), vec(copying(), 1..4))
            .prop_map(|(sql, rest)| [vec![Message::Query(sql)], rest].concat()),
        1 => copying().prop_map(|message| vec![message]),
        1 => select(ARGUMENTS).prop_map(|arguments| vec![Message::FunctionCall(arguments)]),
        1 => select(MALFORMED).prop_map(|(tag, body)| vec![Message::Malformed(tag, body)]),
    ]
}

/// A sequence of up to a few dozen messages.
pub(crate) fn sequence() -> impl Strategy<Value = Sequence> {
    let batch = vec(piece(), 1..5).prop_map(|pieces| pieces.concat());
    let end = prop_oneof![
        4 => Just(End::Terminate),
        2 => Just(End::Vanish),
        1 => Just(End::HalfMessage),
        1 => Just(End::LyingLength),
        1 => Just(End::Garbage),
    ];
    (vec(batch, 1..6), end).prop_map(|(batches, end)| Sequence { batches, end })
}
