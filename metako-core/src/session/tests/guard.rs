//! Commits whose wait for synchronous standbys was cancelled.

use proptest::prelude::*;

use super::*;
use crate::wire::TEXT_MAX;
use crate::wire::notice::tests::{cancelled_wait, notice};

fn guarded() -> Bench {
    guarded_by(UnknownOutcome::TransactionResolutionUnknown)
}

fn guarded_by(unknown: UnknownOutcome) -> Bench {
    let mut bench = Bench::new();
    bench.session.guard_commits(Some(unknown));
    bench
}

fn attached(mut bench: Bench) -> Bench {
    bench.attach(false);
    bench
}

fn idle() -> Vec<u8> {
    ready(TransactionStatus::Idle)
}

/// A batch that runs the unnamed statement.
fn batch(sql: &str) -> Vec<u8> {
    [&parse("", sql)[..], &bind(""), EXECUTE].concat()
}

#[test]
fn a_simple_commit_is_an_error_in_place_of_success() {
    let mut bench = attached(guarded());
    bench.forward(&query("insert"));
    bench.answer(&[&cancelled_wait()[..], &complete("INSERT 0 1"), &idle()].concat());
    assert_eq!(bench.client_got(), "N E08007 ZI");
    assert!(bench.session.releasable(&bench.server));
    bench.forward(&query("insert"));
    bench.answer(&[complete("INSERT 0 1"), idle()].concat());
    assert_eq!(bench.client_got(), "C:INSERT 0 1 ZI");
}

#[test]
fn rows_go_before_the_error_and_nothing_behind_it() {
    let mut bench = attached(guarded());
    bench.forward(&query("insert; commit; select 1"));
    let rows = [&complete("INSERT 0 1"), &cancelled_wait()[..], &complete("COMMIT"), ROW, ROW];
    bench.answer(&rows.concat());
    bench.answer(&[ROW, &complete("SELECT 3"), &idle()].concat());
    assert_eq!(bench.client_got(), "C:INSERT 0 1 N E08007 ZI");
}

#[test]
fn an_implicit_transaction_commits_at_its_sync_and_each_sync_is_answered_for_itself() {
    let mut bench = attached(guarded());
    bench.forward(&[batch("insert"), SYNC.to_vec(), batch("insert"), SYNC.to_vec()].concat());
    let done = [ONE, TWO, &complete("INSERT 0 1")].concat();
    bench.answer(&[&done[..], &cancelled_wait(), &idle(), &done].concat());
    bench.answer(&idle());
    assert_eq!(bench.client_got(), "1 2 C:INSERT 0 1 N E08007 ZI 1 2 C:INSERT 0 1 ZI");
    assert!(bench.session.releasable(&bench.server));
}

#[test]
fn the_end_of_a_block_is_told_with_the_status_that_it_has() {
    let mut bench = guarded();
    begin(&mut bench);
    bench.forward(&query("commit and chain"));
    let chained = ready(TransactionStatus::InBlock);
    bench.answer(&[&cancelled_wait()[..], &complete("COMMIT"), &chained].concat());
    assert_eq!(bench.client_got(), "N E08007 ZT");
    assert!(!bench.session.releasable(&bench.server));
}

#[test]
fn what_looks_alike_passes_and_without_the_guard_so_does_this() {
    let raised = notice("01000", "canceling wait for synchronous replication", "exec_stmt_raise");
    let mut bench = attached(guarded());
    bench.forward(&query("insert"));
    bench.answer(&[&raised[..], &complete("INSERT 0 1"), &idle()].concat());
    assert_eq!(bench.client_got(), "N C:INSERT 0 1 ZI");
    let mut bench = attached(Bench::new());
    bench.forward(&query("insert"));
    bench.answer(&[&cancelled_wait()[..], &complete("INSERT 0 1"), &idle()].concat());
    assert_eq!(bench.client_got(), "N C:INSERT 0 1 ZI");
}

#[test]
fn the_error_is_what_unknown_outcomes_are_and_may_be_the_end() {
    let answer = [&cancelled_wait()[..], &complete("INSERT 0 1"), &idle()].concat();
    let mut bench = attached(guarded_by(UnknownOutcome::StatementCompletionUnknown));
    bench.forward(&query("insert"));
    bench.answer(&answer);
    assert_eq!(bench.client_got(), "N E40003 ZI");
    let mut bench = attached(guarded_by(UnknownOutcome::Close));
    bench.forward(&query("insert"));
    assert_eq!(bench.answer(&answer), Effect::Ended);
    assert_eq!(bench.client_got(), "N");
}

#[test]
fn a_wait_that_metako_cancelled_itself_says_so() {
    let mut bench = attached(guarded());
    bench.forward(&query("insert"));
    bench.session.timed_out("load_balancer.write_timeout");
    bench.answer(&[&cancelled_wait()[..], &complete("INSERT 0 1"), &idle()].concat());
    assert!(String::from_utf8_lossy(&bench.to_client).contains("load_balancer.write_timeout had passed"));
}

#[test]
fn a_wait_that_ends_with_its_connection_is_unknown_and_told_once() {
    let ends = notice("57P01", "canceling the wait and terminating connection", "SyncRepWaitForLSN");
    let mut bench = attached(guarded());
    bench.forward(&query("insert"));
    bench.answer(&ends);
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E08007 ZI");
    // The server is lost behind the error.
    let mut bench = attached(guarded());
    bench.forward(&[query("insert; call"), query("insert")].concat());
    bench.answer(&cancelled_wait());
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "N E08007 ZI E08007 ZI");
    // The session has another server now.
    bench.server = Server::new(&Arc::default());
    bench.attach(false);
    bench.forward(&query("insert"));
    bench.answer(&[complete("INSERT 0 1"), idle()].concat());
    assert_eq!(bench.client_got(), "C:INSERT 0 1 ZI");
}

#[test]
fn what_is_sent_behind_the_error_is_dropped_up_to_the_sync() {
    let mut bench = attached(guarded());
    bench.forward(&[&batch("commit")[..], b"H\0\0\0\x04"].concat());
    bench.answer(&[ONE, TWO, &cancelled_wait(), &complete("COMMIT")].concat());
    assert_eq!(bench.client_got(), "1 2 N E08007");
    bench.server_got();
    let long = [b"d\0\0\x20\x04".to_vec(), vec![0; 0x2000]].concat();
    let (first, rest) = long.split_at(100);
    bench.forward(&[&parse("s", "insert")[..], &bind("s"), EXECUTE, &query("insert"), first].concat());
    bench.forward(&[rest, SYNC, &query("select 1")].concat());
    assert_eq!(bench.server_got(), "S Q");
    bench.answer(&[idle(), complete("SELECT 1"), idle()].concat());
    assert_eq!(bench.client_got(), "ZI C:SELECT 1 ZI");
    assert!(bench.session.statement(b"s").is_none());
}

#[test]
fn names_that_were_changed_behind_the_error_mean_what_they_meant() {
    let mut bench = attached(guarded());
    bench.forward(&[&parse("old", "select 1")[..], SYNC].concat());
    bench.answer(&[ONE, BARE, &idle()].concat());
    assert_eq!(bench.client_got(), "1 ZI");
    let old = bench.session.statement(b"old").expect("it was made");
    bench.forward(
        &[&batch("commit")[..], &close("old"), &parse("old", "insert"), &parse("new", "insert"), SYNC]
            .concat(),
    );
    let made = [ONE, BARE, ONE, BARE].concat();
    bench.answer(&[ONE, TWO, &cancelled_wait(), &complete("COMMIT"), &made, &idle()].concat());
    assert_eq!(bench.client_got(), "1 2 N E08007 ZI");
    assert!(bench.session.statement(b"new").is_none());
    assert!(Arc::ptr_eq(&old, &bench.session.statement(b"old").expect("it was not closed")));
    // It can be given again, and used.
    bench.server_got();
    bench.forward(&[&parse("new", "insert")[..], &bind("new"), &bind("old"), SYNC].concat());
    bench.answer(&[ONE, BARE, TWO, TWO, &idle()].concat());
    assert_eq!(bench.client_got(), "1 2 2 ZI");
}

#[test]
fn names_of_sql_behind_the_error_are_not_given_and_none_is_forgotten() {
    let mut bench = attached(guarded());
    bench.forward(&query("prepare old as select 1"));
    bench.answer(&[complete("PREPARE"), idle()].concat());
    bench.client_got();
    bench.forward(&query("commit; deallocate all; prepare new as select 1"));
    let answered = [complete("COMMIT"), complete("DEALLOCATE ALL"), complete("PREPARE"), idle()];
    bench.answer(&[cancelled_wait(), answered.concat()].concat());
    assert_eq!(bench.client_got(), "N E08007 ZI");
    assert!(bench.session.statement(b"new").is_none());
    assert!(bench.session.statement(b"old").is_some());
}

#[test]
fn a_copy_behind_the_error_ends_the_connection() {
    let mut bench = attached(guarded());
    bench.forward(&query("commit; copy t from stdin"));
    let copies = b"G\0\0\0\x07\0\0\0".as_slice();
    let effect = bench.answer(&[&cancelled_wait()[..], &complete("COMMIT"), copies].concat());
    assert_eq!(effect, Effect::Ended);
    assert_eq!(bench.client_got(), "N E08007 E08007");
}

#[test]
fn the_unnamed_statement_of_behind_the_error_is_none_and_one_that_only_the_server_knows_is_the_end() {
    let mut bench = attached(guarded());
    bench.forward(&[&batch("commit")[..], &parse("", "insert"), SYNC].concat());
    bench.answer(&[ONE, TWO, &cancelled_wait(), &complete("COMMIT"), ONE, &idle()].concat());
    assert_eq!(bench.client_got(), "1 2 N E08007 ZI");
    bench.server_got();
    bench.forward(&[&bind("")[..], EXECUTE, SYNC].concat());
    assert!(!String::from_utf8_lossy(&bench.to_server).contains("insert"));
    // A text that is not looked at, because it does not come whole.
    let long = parse("s", &"x".repeat(TEXT_MAX as usize));
    let mut bench = attached(guarded());
    let (first, rest) = long.split_at(100);
    bench.forward(&[&batch("commit")[..], first].concat());
    bench.forward(&[rest, SYNC].concat());
    let effect =
        bench.answer(&[ONE, TWO, &cancelled_wait(), &complete("COMMIT"), ONE, ONE, &idle()].concat());
    assert_eq!(effect, Effect::Ended);
    assert_eq!(bench.client_got(), "1 2 N E08007 E08007");
    let mut bench = attached(guarded());
    bench.forward(first);
    bench.forward(&[rest, SYNC].concat());
    bench.answer(&[ONE, ONE, &idle()].concat());
    assert_eq!(bench.client_got(), "1 ZI");
    bench.server_got();
    bench.forward(&[&batch("commit")[..], &close("s"), SYNC].concat());
    let effect = bench.answer(&[ONE, TWO, &cancelled_wait(), &complete("COMMIT"), THREE, &idle()].concat());
    assert_eq!(bench.server_got(), "P B E Cs S");
    assert_eq!(effect, Effect::Ended);
    assert_eq!(bench.client_got(), "1 2 N E08007 E08007");
}

#[test]
fn a_statement_that_lowers_what_is_needed_is_the_servers_to_refuse() {
    let mut bench = attached(guarded());
    let refused = error(
        "22P02",
        "invalid input syntax for type boolean: \
         \"synchronous_commit is less than failover.synchronous.commit_guard of metako allows\"",
    );
    bench.forward(&query("set local synchronous_commit = off; insert"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("SELECT 'synchronous_commit is less than"));
    assert_eq!(bench.server_got(), "Q");
    bench.answer(&[&refused[..], &idle()].concat());
    assert!(String::from_utf8_lossy(&bench.to_client).contains("commit_guard to false"));
    assert_eq!(bench.client_got(), "E22023 ZI");
    for name in ["", "s"] {
        bench.forward(
            &[
                &parse(name, "select set_config('synchronous_commit', $1, true)")[..],
                &bind(name),
                EXECUTE,
                SYNC,
            ]
            .concat(),
        );
        let sent = String::from_utf8_lossy(&bench.to_server).into_owned();
        assert!(sent.contains("SELECT 'synchronous_commit is") && !sent.contains("$1"), "{sent}");
        bench.to_server.clear();
        bench.answer(&[&refused[..], &idle()].concat());
        assert!(String::from_utf8_lossy(&bench.to_client).contains("commit_guard to false"));
        assert_eq!(bench.client_got(), "E22023 ZI");
        assert!(bench.session.statement(b"s").is_none());
    }
    bench.forward(&query("set synchronous_commit = remote_apply"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("remote_apply"));
}

#[test]
fn what_was_set_before_the_guard_is_given_up() {
    let mut bench = attached(Bench::new());
    bench.forward(&query("set synchronous_commit = off"));
    bench.answer(&[complete("SET"), idle()].concat());
    bench.session.release();
    bench.session.guard_commits(Some(UnknownOutcome::Close));
    bench.server_got();
    bench.attach(false);
    assert!(String::from_utf8_lossy(&bench.to_server).contains("RESET synchronous_commit"));
}

/// What the client and the server get where answers come in parts that end at `cuts`, and how it ends.
fn run(answers: &[Vec<u8>], cuts: &[usize]) -> (Vec<u8>, Vec<u8>, Option<Effect>) {
    let mut bench = attached(guarded());
    let (mut passed, mut effect) = (0, None);
    for answer in answers {
        let sent = match answer.first() {
            Some(b'1') => [batch("insert"), SYNC.to_vec()].concat(),
            _ => query("insert"),
        };
        assert_eq!(bench.forward(&sent), sent.len());
        let inside = cuts.iter().filter_map(|cut| cut.checked_sub(passed)).filter(|cut| *cut < answer.len());
        let (mut begin, mut kept) = (0, Vec::new());
        for end in inside.chain([answer.len()]) {
            kept.extend_from_slice(&answer[begin..end]);
            begin = end;
            let Bench { session, server, to_client, to_server, .. } = &mut bench;
            let answered = session.answer(server, &kept, to_client, to_server).unwrap();
            kept.drain(..answered.consumed);
            if answered.effect != Effect::Continue {
                effect.get_or_insert(answered.effect);
            }
        }
        passed += answer.len();
    }
    (bench.to_client, bench.to_server, effect)
}

fn answer() -> impl Strategy<Value = Vec<u8>> {
    let middle = prop::collection::vec(
        prop_oneof![
            2 => Just(cancelled_wait()),
            1 => Just(notice("01000", &"long ".repeat(2000), "SyncRepWaitForLSN")),
            1 => Just(notice("01000", "raised", "exec_stmt_raise")),
            2 => Just(ROW.to_vec()),
            1 => Just(b"S\0\0\0\x15server_version\0x\0".to_vec()),
            1 => Just(b"A\0\0\0\x0a\0\0\0\0a\0".to_vec()),
        ],
        0..4,
    );
    (any::<bool>(), middle, any::<bool>(), prop::option::of(Just(cancelled_wait()))).prop_map(
        |(simple, middle, fails, late)| {
            let begun = if simple { Vec::new() } else { [ONE, TWO].concat() };
            let done = if fails { error("22012", "boom") } else { complete("DONE") };
            [begun, middle.concat(), done, late.unwrap_or_default(), idle()].concat()
        },
    )
}

proptest! {
    #[test]
    fn how_bytes_are_cut_changes_nothing_and_each_unit_fails_once(
        answers in prop::collection::vec(answer(), 1..4),
        mut cuts in prop::collection::vec(0_usize..12_000, 0..8),
    ) {
        cuts.sort_unstable();
        let whole = run(&answers, &[]);
        prop_assert_eq!(&run(&answers, &cuts), &whole);
        let told = brief(&whole.0);
        let units: Vec<&str> = told.split("ZI").collect();
        for (answer, unit) in answers.iter().zip(&units) {
            let errors = unit.matches(" E").count() + usize::from(unit.starts_with('E'));
            let waits = memchr::memmem::find(answer, b"SyncRepWaitForLSN").is_some();
            let boom = memchr::memmem::find(answer, b"boom").is_some();
            prop_assert_eq!(errors, usize::from(waits || boom), "{}", told);
        }
        prop_assert_eq!(units.len(), answers.len() + 1);
    }
}

#[test]
fn a_setting_that_a_function_has_lowered_is_reset_and_not_made_again() {
    for guarded in [true, false] {
        let mut bench = attached(Bench::new());
        bench.session.guard_commits(guarded.then_some(UnknownOutcome::Close));
        bench.forward(&query("call"));
        bench.answer(&[complete("CALL"), idle()].concat());
        // It, and a question.
        assert_eq!(bench.server_got(), "Q Q");
        bench.answer(&left_behind(None, &[("synchronous_commit", "off"), ("work_mem", "1MB")]));
        let said = String::from_utf8_lossy(&bench.to_server).into_owned();
        assert_eq!(said.contains("RESET synchronous_commit"), guarded, "{said}");
        assert_eq!(bench.session.take_counts().lowered, u32::from(guarded));
        if guarded {
            bench.answer(&[complete("RESET"), idle()].concat());
        }
        assert!(bench.session.releasable(&bench.server));
        // It goes with the session as far as it may.
        bench.session.release();
        bench.server = Server::new(&Arc::default());
        bench.to_server.clear();
        bench.attach(false);
        let made = String::from_utf8_lossy(&bench.to_server).into_owned();
        assert!(made.contains("work_mem"), "{made}");
        assert_eq!(made.contains("synchronous_commit"), !guarded, "{made}");
    }
}
