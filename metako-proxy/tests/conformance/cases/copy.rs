//! COPY, whose ends are where poolers leave things over.

use crate::cases::cases;
use crate::client::Client;
use crate::send::{
    COPY_DONE, FLUSH, SYNC, batch, bind, close_statement, copy_data, copy_fail, describe_portal, execute,
    message, parse, query, run,
};
use crate::stage::Stage;

cases![
    copy_in_by_a_simple_query,
    copy_in_by_an_execute,
    copy_in_goes_in_one_pipeline_with_what_follows,
    the_sync_sent_with_the_execute_of_a_copy_is_ignored,
    copy_out_is_a_stream_of_rows,
    copies_and_statements_share_a_string,
    a_copy_in_that_fails_is_over_before_its_end_comes,
    a_copy_in_that_fails_in_extended_mode_waits_for_sync,
    copy_fail_fails_the_copy,
    what_is_left_of_a_copy_is_swallowed,
    flush_and_sync_within_copy_in_are_ignored,
    another_message_within_copy_in_ends_the_connection since 14,
    another_message_sent_ahead_of_a_copy_ends_the_connection since 14,
    what_follows_a_copy_that_failed_is_answered,
    copy_in_a_transaction_fails_the_transaction,
    a_copy_that_is_refused_leaves_its_rows_behind,
    a_large_copy_passes_both_ways,
    a_client_gone_within_copy_leaves_nothing,
    binary_copy_passes,
];

fn copy_in_by_a_simple_query(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int, body text)", "CZ");
    a.send(&query("copy t from stdin"));
    a.says("G");
    a.send(&batch(&[&copy_data(b"1\tone\n2\t"), &copy_data(b"two\n"), &copy_data(b""), COPY_DONE]));
    a.says("CZ");
    a.asks("table t", "TDDCZ");
    a.leave();
}

fn copy_in_by_an_execute(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[&parse("", "copy t from stdin"), &bind(""), &describe_portal(""), &execute(), FLUSH]));
    a.says("12nG");
    a.send(&batch(&[&copy_data(b"1\n"), COPY_DONE, SYNC]));
    a.says("CZ");
    a.asks("table t", "TDCZ");
    a.leave();
}

fn copy_in_goes_in_one_pipeline_with_what_follows(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[
        &query("copy t from stdin"),
        &copy_data(b"1\n"),
        COPY_DONE,
        &query("table t"),
        &run("select 5"),
        SYNC,
    ]));
    a.says("GCZTDCZ12DCZ");
    a.leave();
}

fn the_sync_sent_with_the_execute_of_a_copy_is_ignored(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[&run("copy t from stdin"), SYNC, &copy_data(b"1\n"), COPY_DONE, SYNC]));
    a.says("12GCZ");
    a.asks("table t", "TDCZ");
    a.leave();
}

fn copy_out_is_a_stream_of_rows(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("copy (select g, 'x' from generate_series(1, 3) g) to stdout", "HdddcCZ");
    a.send(&batch(&[&run("copy (values (1), (2)) to stdout with (format csv, header)"), SYNC]));
    a.says("12HdddcCZ");
    a.asks("copy (select 1/(2-g) from generate_series(1, 3) g) to stdout", "HdE22012Z");
    a.send(&batch(&[
        &run("copy (select 1/(2-g) from generate_series(1, 3) g) to stdout"),
        &run("select 1"),
        SYNC,
    ]));
    a.says("12HdE22012Z");
    a.leave();
}

fn copies_and_statements_share_a_string(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&query(
        "insert into t values (1); copy t from stdin; copy t to stdout; copy t from stdin; select 9",
    ));
    a.says("CG");
    a.send(&batch(&[&copy_data(b"2\n"), COPY_DONE]));
    a.says("CHddcCG");
    a.send(&batch(&[&copy_data(b"3\n"), COPY_DONE]));
    a.says("CTDCZ");
    a.send(&query("insert into t values (4); copy t from stdin; select 9"));
    a.says("CG");
    a.send(&copy_fail("no more"));
    a.says("E57014Z");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn a_copy_in_that_fails_is_over_before_its_end_comes(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&query("copy t from stdin"));
    a.says("G");
    a.send(&copy_data(b"not a number\n"));
    a.says("E22P02Z");
    a.send(&batch(&[&copy_data(b"2\n"), &copy_data(b"3\n"), COPY_DONE, &query("select count(*) from t")]));
    a.says("TDCZ");
    a.leave();
}

fn a_copy_in_that_fails_in_extended_mode_waits_for_sync(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[&run("copy t from stdin"), FLUSH]));
    a.says("12G");
    a.send(&copy_data(b"not a number\n"));
    a.says("E22P02");
    a.send(&batch(&[&copy_data(b"2\n"), COPY_DONE, SYNC, &query("select count(*) from t")]));
    a.says("ZTDCZ");
    a.leave();
}

fn copy_fail_fails_the_copy(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&query("copy t from stdin"));
    a.says("G");
    a.send(&batch(&[&copy_data(b"1\n"), &copy_fail("the source is gone")]));
    a.says("E57014Z");
    a.send(&batch(&[&run("copy t from stdin"), &copy_fail("again"), SYNC]));
    a.says("12GE57014Z");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn what_is_left_of_a_copy_is_swallowed(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&copy_data(b"1\n"), COPY_DONE, &copy_fail("none"), &query("select 1")]));
    a.says("TDCZ");
    a.send(&batch(&[&copy_data(b"1\n"), &run("select 2"), COPY_DONE, SYNC]));
    a.says("12DCZ");
    a.asks("begin", "CZ");
    a.send(&batch(&[COPY_DONE, &query("select 1")]));
    a.says("TDCZ");
    a.asks("rollback", "CZ");
    a.leave();
}

fn flush_and_sync_within_copy_in_are_ignored(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[
        &query("copy t from stdin"),
        FLUSH,
        SYNC,
        &copy_data(b"1\n"),
        SYNC,
        FLUSH,
        COPY_DONE,
        &query("table t"),
    ]));
    a.says("GCZTDCZ");
    a.leave();
}

fn another_message_within_copy_in_ends_the_connection(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&query("copy t from stdin"));
    a.says("G");
    a.send(&query("select 1"));
    a.says_at_last("E08P01E08P01");
    let mut b = stage.client("b");
    b.send(&batch(&[&run("copy t from stdin"), &copy_data(b"1\n"), &parse("", "select 3"), SYNC]));
    b.says_at_last("12GE08P01E08P01");
    let mut c = stage.client("c");
    c.asks("select count(*) from t", "TDCZ");
    c.leave();
}

fn another_message_sent_ahead_of_a_copy_ends_the_connection(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[
        &query("select 1; copy t from stdin; select 2"),
        &run("select 3"),
        &copy_fail("enough"),
        SYNC,
    ]));
    a.says_at_last("TDCGE08P01E08P01");
}

fn what_follows_a_copy_that_failed_is_answered(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[
        &query("copy t from stdin"),
        &copy_data(b"one\n"),
        &query("select id from t where id > $1"),
        &copy_fail("enough"),
        SYNC,
        &close_statement("nothing"),
        SYNC,
    ]));
    a.says("GE22P02ZE42P02ZZ3Z");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn copy_in_a_transaction_fails_the_transaction(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.asks("begin; insert into t values (1)", "CCZ");
    a.send(&batch(&[&query("copy t from stdin"), &copy_fail("no")]));
    a.says("GE57014Z");
    a.asks("select 1", "E25P02Z");
    a.asks("commit", "CZ");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn a_copy_that_is_refused_leaves_its_rows_behind(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create view v as select 1 as one", "CZ");
    // The rows are on their way before the refusal is known, as psql sends them.
    a.send(&batch(&[&query("copy v from stdin"), &copy_data(b"1\n"), COPY_DONE, &query("select 1")]));
    a.says("GE42809ZTDCZ");
    a.asks("copy nowhere from stdin", "E42P01Z");
    a.send(&batch(&[&query("copy nowhere from stdin"), &copy_data(b"1\n"), COPY_DONE, &query("select 1")]));
    a.says("E42P01ZTDCZ");
    a.asks("copy v to stdout", "E42809Z");
    a.leave();
}

fn a_large_copy_passes_both_ways(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int, body text)", "CZ");
    let row = [&b"7\t"[..], &[b'c'; 8000], b"\n"].concat();
    let rows = copy_data(&row).repeat(4000);
    a.send(&query("copy t from stdin"));
    a.says("G");
    let writing = a.quietly(|a| a.send_much([&rows[..], COPY_DONE].concat()));
    a.says("CZ");
    writing.join().expect("the writer ends").expect("all is taken");
    a.send(&query("copy t to stdout"));
    let seen = a.quietly(Client::ready);
    stage.note("shape of the large COPY", (seen.len(), &seen[seen.len() - 3..]));
    a.leave();
}

fn a_client_gone_within_copy_leaves_nothing(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&query("copy t from stdin"));
    a.says("G");
    a.send(&copy_data(b"1\n"));
    a.vanish();
    let mut b = stage.client("b");
    b.asks("select count(*) from t", "TDCZ");
    b.asks("truncate t", "CZ");
    b.leave();
}

fn binary_copy_passes(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    let head = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
    a.send(&query("copy t from stdin with (format binary)"));
    a.says("G");
    a.send(&batch(&[&message(b'd', head), &copy_data(b"\0\x01\0\0\0\x04\0\0\0\x07\xff\xff"), COPY_DONE]));
    a.says("CZ");
    a.asks("copy t to stdout with (format binary)", "HddcCZ");
    a.leave();
}
