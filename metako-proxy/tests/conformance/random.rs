//! Random sequences of messages, sent to PostgreSQL and to metako in both modes, with the same answers; and a second
//! client on the same pool that sees nothing of the first.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::client::{Client, Halt, Script};
use crate::grammar::{self, End, Sequence};
use crate::stage::{Kind, Place, Stage, World};
use crate::{compared, open_ends, send, words};

/// How many sequences are tried in each mode, unless `METAKO_CASES` says otherwise.
const CASES: u32 = 50;

/// How long an answer may take: nothing in a sequence takes long, and a smaller sequence is sought where one is missing.
const LIMIT: Duration = Duration::from_secs(30);

/// Always the same, so that a failure does not come and go.
const SEED: [u8; 32] = *b"metako answers as PostgreSQL doe";

/// Closing so often what is not there, in the end: nothing else in a sequence has such an answer.
const MARKER: usize = 7;

/// All that a session can leave behind, as a second client sees it. A setting that metako set back to what it was is of
/// the session too, and no trace of another.
const STATE: &str = "select \
    (select string_agg(name || '=' || setting, ',' order by name) from pg_settings where source = 'session' \
        and setting is distinct from reset_val and name <> 'transaction_read_only'), \
    (select string_agg(name, ',' order by name) from pg_prepared_statements where from_sql and name not like 'metako%'), \
    (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()), \
    (select count(*) from pg_cursors where name <> ''), \
    (select count(*) from pg_class where relnamespace = pg_my_temp_schema()), \
    (select count(*) from pg_listening_channels()), \
    current_user, session_user, current_schemas(false), \
    current_setting('timezone'), current_setting('application_name'), nullif(current_setting('own.setting', true), '')";

#[test]
fn random_sequences_are_answered_as_by_postgresql() {
    let world = World::shared();
    try_all(&world, Place::Session, &grammar::sequence());
    let version = world.version;
    let closed = grammar::sequence().prop_map(move |sequence| open_ends::without(sequence, version));
    try_all(&world, Place::Transaction, &closed);
}

fn try_all(world: &World, mode: Place, sequences: &impl Strategy<Value = Sequence>) {
    let cases =
        std::env::var("METAKO_CASES").map_or(CASES, |text| text.parse().expect("METAKO_CASES is a number"));
    let config = Config { cases, max_shrink_iters: 400, failure_persistence: None, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &SEED);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let outcome =
        runner.run(sequences, |sequence| compare(world, mode, &sequence).map_err(TestCaseError::fail));
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, sequence)) => panic!("{sequence:#?}\n{why}"),
        Err(error) => panic!("{error}"),
    }
}

/// Runs a sequence at both places.
fn compare(world: &World, mode: Place, sequence: &Sequence) -> Result<(), String> {
    let play = |place| {
        let lines = play(world, place, sequence);
        let database = Kind::Random.database(place);
        lines.into_iter().map(|line| line.replace(&database, "random_x")).collect::<Vec<_>>()
    };
    let [oracle, metako] = std::thread::scope(|scope| {
        [Place::PostgreSql, mode]
            .map(|place| scope.spawn(move || play(place)))
            .map(|thread| thread.join().expect("no panic"))
    });
    if metako == oracle {
        Ok(())
    } else {
        Err(format!("{} mode differs:\n{}", mode.name(), compared(&oracle, &metako)))
    }
}

fn play(world: &World, place: Place, sequence: &Sequence) -> Vec<String> {
    let script = Script::default();
    let played = catch_unwind(AssertUnwindSafe(|| {
        world.reset(Kind::Random, place);
        let mut watcher = world.watcher(Kind::Random, place);
        watcher.value("drop schema if exists elsewhere_of_random cascade");
        for sql in grammar::SETUP {
            watcher.value(sql);
        }
        watcher.leave();
        act(&Stage::new(world, Kind::Random, place, LIMIT, &script), sequence);
    }));
    if let Err(panic) = played
        && !panic.is::<Halt>()
    {
        script.borrow_mut().push(format!("fails: {}", words(&*panic)));
    }
    script.take()
}

fn act(stage: &Stage<'_>, sequence: &Sequence) {
    let mut first = stage.client("first");
    for batch in &sequence.batches {
        let bytes: Vec<u8> = batch.iter().flat_map(grammar::Message::bytes).collect();
        if !answer(&mut first, &bytes) {
            break;
        }
    }
    look(stage);
    match sequence.end {
        _ if first.is_over() => {}
        End::Terminate => first.leave(),
        End::Vanish => first.vanish(),
        End::HalfMessage => last(first, &send::lying(b'Q', 100, b"select")),
        End::LyingLength => last(first, &send::lying(b'Q', 7, b"select 1\0")),
        End::Garbage => last(first, b"\xff\xff\xff\xff\xff\xff"),
    }
    look(stage);
}

/// Sends a batch, then what ends every COPY and every skipping, then the marker; reads up to the marker's answer.
/// Answers whether the connection goes on.
fn answer(client: &mut Client, batch: &[u8]) -> bool {
    let closes = send::close_statement("nothing of that name").repeat(MARKER);
    let end = send::batch(&[&send::copy_fail("the end of the batch"), send::SYNC, &closes, send::SYNC]);
    client.send(&send::batch(&[batch, &end]));
    let mut closed = 0;
    loop {
        match client.next() {
            None => return false,
            Some((b'3', _)) => closed += 1,
            Some((b'Z', _)) if closed >= MARKER => return true,
            Some(_) => closed = 0,
        }
    }
}

/// The last bytes of a client, and what it gets for them.
fn last(mut client: Client, bytes: &[u8]) {
    client.send(bytes);
    client.stop_sending();
    while client.next().is_some() {}
}

/// A second client looks around, twice, so that it is not by luck that it sees nothing.
fn look(stage: &Stage<'_>) {
    let mut second = stage.client("second");
    for _ in 0..2 {
        second.query(STATE);
    }
    second.leave();
}
