//! Messages and ReadyForQuery.

use crate::cases::cases;
use crate::send::{
    FLUSH, SYNC, batch, bind, bind_to, close_statement, describe_portal, execute, execute_some,
    function_call, message, parse, query, run,
};
use crate::stage::Stage;

cases![
    every_sync_is_answered_by_one_ready,
    a_batch_that_was_only_flushed_keeps_its_transaction,
    an_error_discards_everything_until_sync,
    what_follows_the_sync_after_an_error_runs,
    an_error_comes_at_once_without_flush_or_sync,
    a_pipeline_of_simple_queries_is_answered_in_order,
    simple_and_extended_messages_mix_in_one_pipeline,
    a_query_after_an_unsynced_batch_shares_its_transaction,
    a_begin_in_a_pipeline_holds_over_its_syncs,
    a_commit_in_a_pipeline_ends_the_transaction_before_the_sync,
    a_multi_statement_string_is_one_transaction,
    a_begin_in_a_multi_statement_string_takes_what_came_before,
    a_commit_in_a_multi_statement_string_keeps_what_came_before,
    a_multi_statement_string_answers_for_each_statement,
    a_multi_statement_string_cannot_be_prepared,
    a_begin_alone_is_a_transaction_whatever_follows,
    a_begin_in_a_transaction_is_a_warning,
    the_tag_of_begin_is_as_it_was_written,
    the_commit_of_a_failed_transaction_says_rollback,
    a_chained_commit_begins_again,
    savepoints_bring_a_failed_transaction_back,
    a_prepared_transaction_frees_the_session,
    commit_outside_a_transaction_is_a_warning,
    only_the_end_is_taken_in_a_failed_transaction,
    an_empty_query_is_legal_in_a_failed_transaction,
    empty_queries_have_an_answer_of_their_own,
    notices_come_before_the_end_of_their_statement,
    a_function_call_is_answered,
    a_function_call_may_fail,
    a_function_call_in_a_pipeline_has_its_turn,
    an_unknown_message_ends_the_connection,
    flush_and_sync_alone_are_legal,
    terminate_ends_without_an_answer,
    a_large_answer_and_a_large_query_pass,
    errors_name_detail_hint_and_place,
];

fn every_sync_is_answered_by_one_ready(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&run("select 1"), SYNC, SYNC, &run("select 2"), SYNC, SYNC]));
    a.says("12DCZZ12DCZZ");
    a.asks("select 3", "TDCZ");
    a.leave();
}

fn a_batch_that_was_only_flushed_keeps_its_transaction(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[&run("insert into t values (1)"), FLUSH]));
    a.says("12C");
    let mut b = stage.client("b");
    b.asks("select count(*) from t", "TDCZ");
    a.send(SYNC);
    a.says("Z");
    b.asks("select count(*) from t", "TDCZ");
    a.leave();
    b.leave();
}

fn an_error_discards_everything_until_sync(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    let rest = [run("insert into t values (1)"), query("insert into t values (2)"), FLUSH.to_vec()].concat();
    a.send(&batch(&[&run("select 1/0"), &rest, &close_statement("none"), SYNC]));
    a.says("1E22012Z");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn what_follows_the_sync_after_an_error_runs(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[&run("select 1/0"), SYNC, &run("insert into t values (1)"), SYNC, &query("table t")]));
    a.says("1E22012Z12CZTDCZ");
    a.leave();
}

fn an_error_comes_at_once_without_flush_or_sync(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&parse("", "select nothing from nowhere"));
    a.says("E42P01");
    a.send(SYNC);
    a.says("Z");
    a.send(&run("select 1/0"));
    a.says("1E22012");
    a.send(SYNC);
    a.says("Z");
    a.leave();
}

fn a_pipeline_of_simple_queries_is_answered_in_order(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let all = ["select 1", "select 1/0", "", "select 2; select 3", "set work_mem = '4MB'", "select 4"];
    a.send(&all.map(query).concat());
    a.says("TDCZE22012ZIZTDCTDCZCZTDCZ");
    a.leave();
}

fn simple_and_extended_messages_mix_in_one_pipeline(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&query("select 1"), &parse("s", "select 2"), SYNC, &query("select 3"), &bind("s")]));
    a.says("TDCZ1ZTDCZ");
    a.send(&batch(&[&execute(), &bind("s"), &execute(), SYNC, &query("select 4")]));
    a.says("2DC2DCZTDCZ");
    a.leave();
}

fn a_query_after_an_unsynced_batch_shares_its_transaction(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[&run("insert into t values (1)"), &query("select 1/0"), SYNC]));
    a.says("12CE22012ZZ");
    // PostgreSQL 18 finds itself in an unexpected state after it, and says so: whatever it says.
    a.query("select count(*) from t");
    a.send(&batch(&[&run("insert into t values (1)"), &query("insert into t values (2)"), SYNC]));
    a.says("12CCZZ");
    a.query("select count(*) from t");
    a.query("select count(*) from t");
    a.leave();
}

fn a_begin_in_a_pipeline_holds_over_its_syncs(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    let messages =
        ["begin", "insert into t values (1)", "select 1/0", "insert into t values (2)", "rollback"];
    a.send(&messages.map(|sql| [run(sql), SYNC.to_vec()].concat()).concat());
    a.says("12CZ12CZ1E22012ZE25P02Z12CZ");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn a_commit_in_a_pipeline_ends_the_transaction_before_the_sync(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    let messages = ["begin", "insert into t values (1)", "commit", "insert into t values (2)", "select 1/0"];
    a.send(&batch(&[&messages.map(run).concat(), SYNC]));
    a.says("12C12C12C12C1E22012Z");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn a_multi_statement_string_is_one_transaction(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.asks("insert into t values (1); select 1/0; insert into t values (2)", "CE22012Z");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn a_begin_in_a_multi_statement_string_takes_what_came_before(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.asks("insert into t values (1); begin; insert into t values (2)", "CCCZ");
    a.asks("rollback", "CZ");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn a_commit_in_a_multi_statement_string_keeps_what_came_before(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.asks("insert into t values (1); commit; select 1/0", "CN25P01CE22012Z");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn a_multi_statement_string_answers_for_each_statement(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("select 1; ; select 2 where false; set work_mem = '4MB'; select 3, 4;", "TDCTCCTDCZ");
    a.asks(";;", "IZ");
    a.asks("select 1; select 2; begin; select 3", "TDCTDCCTDCZ");
    a.asks("select 4; commit; select 5", "TDCCTDCZ");
    a.leave();
}

fn a_multi_statement_string_cannot_be_prepared(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("s", "select 1; select 2"), SYNC, &bind("s"), SYNC]));
    a.says("E42601ZE26000Z");
    a.leave();
}

fn a_begin_alone_is_a_transaction_whatever_follows(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.asks("selec 1", "E42601Z");
    a.asks("select 1", "E25P02Z");
    a.asks("rollback", "CZ");
    a.asks("begin; selec 1", "E42601Z");
    a.asks("select 1", "TDCZ");
    a.leave();
}

fn a_begin_in_a_transaction_is_a_warning(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.asks("begin", "N25001CZ");
    a.asks("start transaction isolation level serializable", "N25001CZ");
    a.asks("commit", "CZ");
    a.leave();
}

fn the_tag_of_begin_is_as_it_was_written(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    for begin in ["begin work", "start transaction", "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"] {
        a.asks(begin, "CZ");
        a.asks("show transaction_isolation", "TDCZ");
        a.asks("end", "CZ");
    }
    a.leave();
}

fn the_commit_of_a_failed_transaction_says_rollback(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    for end in ["commit", "end", "abort", "rollback", "commit and chain"] {
        a.asks("begin", "CZ");
        a.asks("select 1/0", "E22012Z");
        a.asks(end, "CZ");
    }
    a.asks("rollback", "CZ");
    a.send(&batch(&[&run("begin"), SYNC, &run("select 1/0"), SYNC, &run("commit"), SYNC]));
    a.says("12CZ1E22012Z12CZ");
    a.leave();
}

fn a_chained_commit_begins_again(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin isolation level serializable", "CZ");
    a.asks("commit and chain", "CZ");
    a.asks("show transaction_isolation", "TDCZ");
    a.asks("rollback and chain", "CZ");
    a.asks("commit and no chain", "CZ");
    a.asks("commit and chain", "E25P01Z");
    a.leave();
}

fn savepoints_bring_a_failed_transaction_back(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("savepoint s", "E25P01Z");
    a.asks("begin", "CZ");
    a.asks("savepoint s", "CZ");
    a.asks("select 1/0", "E22012Z");
    a.asks("release s", "E25P02Z");
    a.asks("rollback to nowhere", "E3B001Z");
    a.asks("rollback to s", "CZ");
    a.asks("select 1", "TDCZ");
    a.asks("release s", "CZ");
    a.asks("rollback to s", "E3B001Z");
    a.asks("commit", "CZ");
    a.leave();
}

fn a_prepared_transaction_frees_the_session(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    // Names of prepared transactions are one list for the whole cluster.
    let name = format!("two phases of {}", stage.database());
    a.asks("begin; insert into t values (1)", "CCZ");
    a.asks(&format!("prepare transaction '{name}'"), "CZ");
    a.asks("select count(*) from t", "TDCZ");
    a.asks("set lock_timeout = '10ms'", "CZ");
    a.asks("lock table t", "E25P01Z");
    let mut b = stage.client("b");
    b.asks(&format!("commit prepared '{name}'"), "CZ");
    a.asks("select count(*) from t", "TDCZ");
    a.asks(&format!("rollback prepared '{name}'"), "E42704Z");
    a.leave();
    b.leave();
}

fn commit_outside_a_transaction_is_a_warning(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("commit", "N25P01CZ");
    a.asks("rollback", "N25P01CZ");
    a.send(&batch(&[&run("commit"), SYNC]));
    a.says("12N25P01CZ");
    a.leave();
}

fn only_the_end_is_taken_in_a_failed_transaction(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.asks("select 1/0", "E22012Z");
    for refused in ["select 1", "set work_mem = '4MB'", "begin", "savepoint s", "show work_mem", "listen l"] {
        a.asks(refused, "E25P02Z");
    }
    a.send(&batch(&[&parse("", "select 1"), SYNC, &parse("", "rollback"), &bind(""), &execute(), SYNC]));
    a.says("E25P02Z12CZ");
    a.leave();
}

fn an_empty_query_is_legal_in_a_failed_transaction(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.asks("select 1/0", "E22012Z");
    a.asks("", "IZ");
    a.asks(" ; -- nothing", "IZ");
    // Parse takes it, Bind does not.
    a.send(&batch(&[&run(""), SYNC]));
    a.says("1E25P02Z");
    a.asks("rollback", "CZ");
    a.leave();
}

fn empty_queries_have_an_answer_of_their_own(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    for empty in ["", " ", ";", "/* nothing */", "-- nothing\n"] {
        a.asks(empty, "IZ");
        a.send(&batch(&[&parse("", empty), &bind(""), &describe_portal(""), &execute(), SYNC]));
        a.says("12nIZ");
    }
    a.leave();
}

fn notices_come_before_the_end_of_their_statement(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks(
        "do $$ begin raise notice 'one'; raise warning 'two' using hint = 'h', detail = 'd'; end $$",
        "N00000N01000CZ",
    );
    a.asks("drop table if exists nowhere", "N00000CZ");
    a.send(&batch(&[&run("do $$ begin raise notice 'three'; raise info 'four'; end $$"), SYNC]));
    a.says("12N00000N00000CZ");
    a.asks("set client_min_messages = error; do $$ begin raise notice 'unheard'; end $$", "CCZ");
    a.leave();
}

/// `abs(int4)`
const ABS: u32 = 1397;
/// `int4div(int4, int4)`
const INT4DIV: u32 = 154;

fn a_function_call_is_answered(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&function_call(ABS, &["-5"]));
    a.says("VZ");
    a.asks("begin", "CZ");
    a.send(&function_call(ABS, &["-6"]));
    a.says("VZ");
    a.asks("rollback", "CZ");
    a.leave();
}

fn a_function_call_may_fail(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&function_call(INT4DIV, &["1", "0"]));
    a.says("E22012Z");
    a.send(&function_call(1, &[]));
    a.says("E42883Z");
    a.send(&function_call(ABS, &["x"]));
    a.says("E22P02Z");
    a.asks("begin", "CZ");
    a.send(&function_call(INT4DIV, &["1", "0"]));
    a.says("E22012Z");
    a.send(&function_call(ABS, &["1"]));
    a.says("E25P02Z");
    a.asks("rollback", "CZ");
    a.leave();
}

fn a_function_call_in_a_pipeline_has_its_turn(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let call = function_call(ABS, &["-5"]);
    a.send(&batch(&[
        &query("select 1"),
        &call,
        &run("select 2"),
        SYNC,
        &call,
        SYNC,
        &run("select 1/0"),
        &call,
        SYNC,
    ]));
    a.says("TDCZVZ12DCZVZZ1E22012Z");
    a.leave();
}

fn an_unknown_message_ends_the_connection(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("select 1", "TDCZ");
    a.send(&message(b'y', b""));
    a.says_at_last("E08P01");
}

fn flush_and_sync_alone_are_legal(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[FLUSH, FLUSH, SYNC, FLUSH, SYNC]));
    a.says("ZZ");
    a.asks("begin", "CZ");
    a.send(&batch(&[FLUSH, SYNC]));
    a.says("Z");
    a.asks("select 1/0", "E22012Z");
    a.send(&batch(&[SYNC, FLUSH]));
    a.says("Z");
    a.leave();
}

fn terminate_ends_without_an_answer(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[
        &query("insert into t values (1)"),
        crate::send::TERMINATE,
        &query("insert into t values (2)"),
    ]));
    a.says_at_last("CZ");
    stage.watcher().wait_until("select count(*) from t", "1");
    let mut b = stage.client("b");
    b.asks("begin; insert into t values (3)", "CCZ");
    b.send(crate::send::TERMINATE);
    b.says_at_last("");
    let mut c = stage.client("c");
    c.asks("select count(*) from t", "TDCZ");
    c.leave();
}

fn a_large_answer_and_a_large_query_pass(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let large = "x".repeat(24 << 20);
    let writing = a.send_much(query(&format!("select length('{large}'), '{large}'")));
    a.says("TDCZ");
    writing.join().expect("the writer ends").expect("all is taken");
    let bound = batch(&[
        &parse("", "select $1::text, repeat('y', 20000000)"),
        &bind_to("", "", &[Some(&large)]),
        &execute(),
        SYNC,
    ]);
    let writing = a.send_much(bound);
    a.says("12DCZ");
    writing.join().expect("the writer ends").expect("all is taken");
    a.send(&batch(&[
        &parse("", "select g, repeat('z', 300) from generate_series(1, 3000) g"),
        &bind(""),
        &execute_some("", 2999),
    ]));
    a.send(&batch(&[&execute(), SYNC]));
    a.ready();
    a.leave();
}

fn errors_name_detail_hint_and_place(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int primary key, parent int references t)", "CZ");
    a.asks("insert into t values (1); insert into t values (1)", "CE23505Z");
    a.asks("insert into t values (2, 3)", "E23503Z");
    a.asks("select idd from t", "E42703Z");
    a.asks(
        "do $$ begin raise exception 'own' using errcode = 'U1234', table = 't', hint = 'h'; end $$",
        "EU1234Z",
    );
    a.leave();
}
