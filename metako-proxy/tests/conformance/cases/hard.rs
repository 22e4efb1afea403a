//! Cancels, deaths, lies.

use crate::cases::cases;
use crate::client::Client;
use crate::send::{
    FLUSH, SYNC, TERMINATE, batch, bind, bind_to, copy_data, execute, function_call, lying, message, parse,
    query, run,
};
use crate::stage::Stage;

cases![
    a_cancel_ends_the_running_statement,
    a_cancel_while_idle_does_nothing,
    a_cancel_in_a_transaction_fails_the_transaction,
    a_cancel_in_a_pipeline_fails_one_batch,
    a_cancel_within_copy_fails_the_copy,
    a_cancel_with_a_wrong_key_does_nothing,
    cancels_in_a_row_hit_no_later_statement,
    a_statement_time_out_is_an_error,
    an_idle_transaction_may_be_ended_by_the_server,
    the_end_of_an_idle_backend_is_told,
    the_end_of_a_backend_in_a_transaction_is_told,
    the_end_of_a_backend_at_work_is_told,
    a_backend_may_end_itself,
    a_client_gone_at_work_is_cancelled since 14,
    what_was_sent_before_the_end_of_the_connection_is_done,
    a_client_gone_in_a_transaction_is_rolled_back,
    a_client_gone_in_a_batch_leaves_nothing,
    a_deadlock_is_an_error_of_one,
    a_lock_is_waited_for,
    a_length_below_four_ends_the_connection,
    a_length_beyond_all_bounds_ends_the_connection,
    half_a_message_and_the_end_leave_nothing,
    a_query_without_its_terminator_is_refused,
    a_parse_that_is_too_short_is_refused,
    a_bind_that_is_too_short_is_refused,
    a_bind_with_lying_counts_is_refused,
    an_execute_that_is_too_short_is_refused,
    describe_and_close_of_neither_kind_are_refused,
    a_function_call_that_is_too_short_is_refused,
    a_sync_with_a_body_is_refused,
    messages_with_bytes_left_over_are_refused,
    a_statement_with_bad_bytes_is_refused,
    a_password_message_in_a_session_is_refused,
    messages_may_come_byte_by_byte,
    many_small_messages_in_one_send_pass,
];

/// Waits until the client's statement, which has this text in it, runs.
fn wait_for(stage: &Stage<'_>, marker: &str) {
    let sql = format!(
        "select count(*) > 0 from pg_stat_activity where state = 'active' and query like '%{marker}%' \
         and pid <> pg_backend_pid() and datname = current_database()"
    );
    let mut watcher = stage.watcher();
    watcher.wait_until(&sql, "t");
    watcher.leave();
}

fn a_cancel_ends_the_running_statement(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&query("select 1, pg_sleep(60)"));
    wait_for(stage, "select 1, pg_sleep");
    stage.cancel(&a.key);
    a.says("TE57014Z");
    a.send(&batch(&[&run("select 2, pg_sleep(60)"), SYNC]));
    wait_for(stage, "select 2, pg_sleep");
    stage.cancel(&a.key);
    a.says("12E57014Z");
    a.asks("select 3", "TDCZ");
    a.leave();
}

fn a_cancel_while_idle_does_nothing(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    for _ in 0..5 {
        a.asks("select 1", "TDCZ");
        stage.cancel(&a.key);
    }
    a.asks("begin", "CZ");
    stage.cancel(&a.key);
    a.asks("select 2", "TDCZ");
    a.asks("commit", "CZ");
    a.leave();
}

fn a_cancel_in_a_transaction_fails_the_transaction(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.send(&query("select pg_sleep(61)"));
    wait_for(stage, "pg_sleep(61)");
    stage.cancel(&a.key);
    a.says("TE57014Z");
    a.asks("select 1", "E25P02Z");
    a.asks("rollback", "CZ");
    a.leave();
}

fn a_cancel_in_a_pipeline_fails_one_batch(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[
        &run("select 1"),
        SYNC,
        &run("select pg_sleep(62)"),
        &run("select 2"),
        SYNC,
        &run("select 3"),
        SYNC,
    ]));
    wait_for(stage, "pg_sleep(62)");
    stage.cancel(&a.key);
    a.says("12DCZ12E57014Z12DCZ");
    a.leave();
}

fn a_cancel_within_copy_fails_the_copy(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&query("copy t from stdin"));
    a.says("G");
    stage.cancel(&a.key);
    // The server looks when it has read something.
    a.send(&copy_data(b"1\n"));
    // Its context names the line, which is the one before or after: that depends on when the signal arrives.
    let seen = a.quietly(Client::ready);
    stage.note("the answer", seen);
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn a_cancel_with_a_wrong_key_does_nothing(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&query("select pg_sleep(1.5)"));
    wait_for(stage, "pg_sleep(1.5)");
    let wrong: Vec<u8> = a.key.1.iter().map(|byte| byte ^ 0xff).collect();
    stage.cancel(&(a.key.0, wrong));
    stage.cancel(&(1, a.key.1.clone()));
    stage.cancel(&(a.key.0, Vec::new()));
    stage.cancel(&(a.key.0, vec![7; 300]));
    a.says("TDCZ");
    a.leave();
}

fn cancels_in_a_row_hit_no_later_statement(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    for round in 0..10 {
        let sql = format!("select pg_sleep(63), {round}");
        a.send(&query(&sql));
        wait_for(stage, &sql);
        stage.cancel(&a.key);
        a.says("TE57014Z");
        a.asks("select 'unharmed'", "TDCZ");
    }
    a.leave();
}

fn a_statement_time_out_is_an_error(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("set statement_timeout = '20ms'", "CZ");
    a.asks("select pg_sleep(64)", "TE57014Z");
    a.asks("begin; set local statement_timeout = 0; select pg_sleep(0.05); commit", "CCTDCCZ");
    a.leave();
}

fn an_idle_transaction_may_be_ended_by_the_server(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("set idle_in_transaction_session_timeout = '50ms'", "CZ");
    a.asks("begin", "CZ");
    a.says_at_last("E25P03");
}

/// Ends the backend that works for the client at the moment.
fn terminate(stage: &Stage<'_>, marker: &str) {
    let mut watcher = stage.watcher();
    let ended = watcher.value(&format!(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where query like '%{marker}%' \
         and pid <> pg_backend_pid() and datname = current_database() and backend_type = 'client backend'"
    ));
    stage.note("backends ended", ended);
    watcher.leave();
}

fn the_end_of_an_idle_backend_is_told(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("select 'idle one'", "TDCZ");
    terminate(stage, "idle one");
    a.says_at_last("E57P01");
}

fn the_end_of_a_backend_in_a_transaction_is_told(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin; select 'in a block'", "CTDCZ");
    terminate(stage, "in a block");
    a.says_at_last("E57P01");
}

fn the_end_of_a_backend_at_work_is_told(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.send(&query("select pg_sleep(65)"));
    wait_for(stage, "pg_sleep(65)");
    terminate(stage, "pg_sleep(65)");
    a.says_at_last("TE57P01");
}

fn a_backend_may_end_itself(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.send(&query("select pg_terminate_backend(pg_backend_pid())"));
    a.says_at_last("TDE57P01");
}

const AT_WORK: &str = "select count(*) from pg_stat_activity where datname = current_database() \
                       and pid <> pg_backend_pid() and backend_type = 'client backend' and state <> 'idle'";

fn a_client_gone_at_work_is_cancelled(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    // A server asks for its client now and then where it is told to; metako gives it five seconds.
    a.query("set client_connection_check_interval = '100ms'");
    a.send(&query("select pg_sleep(66)"));
    wait_for(stage, "pg_sleep(66)");
    a.vanish();
    let mut watcher = stage.watcher();
    watcher.wait_until(AT_WORK, "0");
    watcher.leave();
}

fn what_was_sent_before_the_end_of_the_connection_is_done(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    let insert = [&run("insert into t values (1)"), SYNC].concat();
    let ahead = batch(&[&query("select pg_sleep(0.3)"), &insert, &query("insert into t values (2)")]);
    let half = &query("insert into t values (3)")[..9];
    for (more, shape) in [(&[][..], "TDCZ12CZCZ"), (half, "TDCZ12CZCZ"), (TERMINATE, "TDCZ12CZCZ")] {
        let mut b = stage.client("b");
        // From here on an idle server is there: a pooled client that waits for one leaves the line with its end.
        b.asks("select 1", "TDCZ");
        b.send(&batch(&[&ahead, more]));
        b.stop_sending();
        b.says_at_last(shape);
    }
    let mut c = stage.client("c");
    c.send(&query("insert into t select 4 from pg_sleep(0.3)"));
    wait_for(stage, "insert into t select 4");
    c.vanish();
    let mut watcher = stage.watcher();
    watcher.wait_until(AT_WORK, "0");
    let rows = watcher.value("select string_agg(id::text, ',' order by id) from t");
    stage.note("rows", rows);
    watcher.leave();
    a.leave();
}

fn a_client_gone_in_a_transaction_is_rolled_back(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.asks("begin; insert into t values (1); lock table t", "CCCZ");
    a.vanish();
    let mut b = stage.client("b");
    b.asks("select count(*) from t", "TDCZ");
    b.leave();
}

fn a_client_gone_in_a_batch_leaves_nothing(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.send(&batch(&[&run("insert into t values (1)"), FLUSH]));
    a.says("12C");
    a.send(&batch(&[&parse("", "insert into t values (2)"), &bind("")]));
    a.vanish();
    let mut b = stage.client("b");
    b.asks("lock table t in access exclusive mode; select count(*) from t", "CTDCZ");
    b.leave();
}

fn a_deadlock_is_an_error_of_one(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("create table t as select g as id from generate_series(1, 2) g", "CZ");
    a.asks("set deadlock_timeout = '10s'; begin; update t set id = 1 where id = 1", "CCCZ");
    b.asks("set deadlock_timeout = '20ms'; begin; update t set id = 2 where id = 2", "CCCZ");
    a.send(&query("update t set id = 2 where id = 2"));
    wait_for(stage, "set id = 2 where id = 2");
    b.send(&query("update t set id = 1 where id = 1"));
    // Its detail names the processes.
    let seen = b.quietly(Client::ready);
    stage.note("the one", seen);
    a.says("CZ");
    b.asks("rollback", "CZ");
    a.asks("commit", "CZ");
    a.leave();
    b.leave();
}

fn a_lock_is_waited_for(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("create table t (id int)", "CZ");
    a.asks("begin; lock table t", "CCZ");
    b.send(&query("insert into t values (1)"));
    wait_for(stage, "insert into t values (1)");
    b.send(&query("select count(*) from t"));
    a.asks("commit", "CZ");
    b.says("CZTDCZ");
    b.asks("set lock_timeout = '10ms'", "CZ");
    a.asks("begin; lock table t", "CCZ");
    b.asks("insert into t values (2)", "E55P03Z");
    a.asks("rollback", "CZ");
    a.leave();
    b.leave();
}

fn a_length_below_four_ends_the_connection(stage: &Stage<'_>) {
    for length in [0, 1, 3, 0xffff_ffff] {
        let mut a = stage.client("a");
        a.send(&lying(b'Q', length, b"select 1\0"));
        a.says_at_last("");
    }
}

fn a_length_beyond_all_bounds_ends_the_connection(stage: &Stage<'_>) {
    for (tag, length) in
        [(b'Q', 0x7fff_ffff), (b'S', 20_000), (b'X', 20_000), (b'D', 0x3000_0000), (b'E', 0x0100_0000)]
    {
        let mut a = stage.client("a");
        a.send(&lying(tag, length, b"abc\0"));
        // PostgreSQL takes up to 1 GiB of some kinds: then the end of the connection ends it.
        a.stop_sending();
        while a.next().is_some() {}
    }
}

fn half_a_message_and_the_end_leave_nothing(stage: &Stage<'_>) {
    let whole = query("create table never (id int)");
    for end in [1, 4, 5, whole.len() - 1] {
        let mut a = stage.client("a");
        a.send(&whole[..end]);
        a.stop_sending();
        a.says_at_last("");
    }
    let mut b = stage.client("b");
    b.asks("select to_regclass('never')", "TDCZ");
    b.leave();
}

fn a_query_without_its_terminator_is_refused(stage: &Stage<'_>) {
    for body in [&b"select 1"[..], b"", b"select 1\0select 2\0", b"select 1\0\0"] {
        let mut a = stage.client("a");
        a.send(&batch(&[&message(b'Q', body), &query("select 3")]));
        a.says("E08P01ZTDCZ");
        a.leave();
    }
}

/// Sends a broken message and what comes after it.
fn broken(stage: &Stage<'_>, tag: u8, bodies: &[&[u8]]) {
    for body in bodies {
        let mut a = stage.client("a");
        a.send(&batch(&[
            &parse("s", "select $1::int"),
            &message(tag, body),
            &run("select 1"),
            SYNC,
            &query("select 2"),
        ]));
        let mut readies = 0;
        while readies < 2 && !a.is_over() {
            readies += usize::from(a.next().is_some_and(|(tag, _)| tag == b'Z'));
        }
        a.leave();
    }
}

fn a_parse_that_is_too_short_is_refused(stage: &Stage<'_>) {
    broken(
        stage,
        b'P',
        &[
            b"",
            b"\0",
            b"\0select 1",
            b"\0select 1\0",
            b"\0select 1\0\0",
            b"\0select 1\0\0\x01\0\0",
            b"\0select 1\0\xff\xff",
        ],
    );
}

fn a_bind_that_is_too_short_is_refused(stage: &Stage<'_>) {
    broken(
        stage,
        b'B',
        &[
            b"",
            b"\0",
            b"\0s",
            b"\0s\0",
            b"\0s\0\0\0",
            b"\0s\0\0\0\0\x01\0\0\0\x05x",
            b"\0s\0\0\0\0\x01\0\0\0\x01x",
        ],
    );
}

fn a_bind_with_lying_counts_is_refused(stage: &Stage<'_>) {
    broken(
        stage,
        b'B',
        &[
            b"\0s\0\0\x02\0\0\0\0\0\x01\0\0\0\x011\0\0",
            b"\0s\0\0\x01\0\x07\0\x01\0\0\0\x011\0\0",
            b"\0s\0\xff\xff\0\x01\0\0\0\x011\0\0",
            b"\0s\0\0\0\xff\xff\0\0\0\x011\0\0",
            b"\0s\0\0\0\0\x01\x7f\xff\xff\xff1\0\0",
            b"\0s\0\0\0\0\x01\xff\xff\xff\xfe1\0\0",
            b"\0s\0\0\0\0\x01\0\0\0\x011\0\x03\0\0\0\0\0\0",
            b"\0s\0\0\0\0\x01\0\0\0\x011\0\x01\0\x07",
        ],
    );
}

fn an_execute_that_is_too_short_is_refused(stage: &Stage<'_>) {
    broken(stage, b'E', &[b"", b"\0", b"p\0\0\0", b"\0\0\0\0\0\0"]);
}

fn describe_and_close_of_neither_kind_are_refused(stage: &Stage<'_>) {
    for tag in [b'D', b'C'] {
        broken(stage, tag, &[b"", b"S", b"Ss", b"Xs\0", b"\0", b"Ss\0x", b"P"]);
    }
}

fn a_function_call_that_is_too_short_is_refused(stage: &Stage<'_>) {
    broken(
        stage,
        b'F',
        &[b"", b"\0\0\x05\x75", b"\0\0\x05\x75\0\0\0\x01", b"\0\0\x05\x75\0\0\0\x01\0\0\0\x02-5\0\0x"],
    );
}

fn a_sync_with_a_body_is_refused(stage: &Stage<'_>) {
    for tag in [b'S', b'H'] {
        broken(stage, tag, &[b"x"]);
    }
}

fn messages_with_bytes_left_over_are_refused(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let mut long = bind_to("", "", &[]);
    long.push(b'x');
    let length = u32::try_from(long.len() - 1).expect("short").to_be_bytes();
    long[1..5].copy_from_slice(&length);
    a.send(&batch(&[&parse("", "select 1"), &long, &execute(), SYNC, &run("select 2"), SYNC]));
    a.says("1E08P01Z12DCZ");
    let mut call = function_call(1397, &["-5"]);
    call.push(b'x');
    let length = u32::try_from(call.len() - 1).expect("short").to_be_bytes();
    call[1..5].copy_from_slice(&length);
    a.send(&batch(&[&call, &query("select 3")]));
    a.says("E08P01ZTDCZ");
    a.leave();
}

fn a_statement_with_bad_bytes_is_refused(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&message(b'Q', b"select '\xff'\0"));
    a.says("E22021Z");
    a.send(&batch(&[
        &message(b'P', b"\0select '\xc3\x28'\0\0\0"),
        SYNC,
        &message(b'P', b"n\xff\0select 1\0\0\0"),
        SYNC,
    ]));
    a.says("E22021ZE22021Z");
    a.leave();
}

fn a_password_message_in_a_session_is_refused(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&message(b'p', b"secret\0"));
    a.says_at_last("E08P01");
}

fn messages_may_come_byte_by_byte(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let all = batch(&[
        &query("select 1"),
        &parse("s", "select 2"),
        &bind("s"),
        &execute(),
        FLUSH,
        SYNC,
        &query("select 3"),
    ]);
    a.quietly(|a| {
        for byte in all {
            a.send(&[byte]);
        }
    });
    a.says("TDCZ12DCZTDCZ");
    a.leave();
}

fn many_small_messages_in_one_send_pass(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let one = batch(&[&run("select 1"), SYNC]);
    let writing = a.quietly(|a| a.send_much(one.repeat(3000)));
    let shape = a.quietly(|a| (0..3000).map(|_| a.ready()).collect::<String>());
    stage.note("answers", shape == "12DCZ".repeat(3000));
    writing.join().expect("the writer ends").expect("all is taken");
    a.asks("select 2", "TDCZ");
    a.leave();
}
