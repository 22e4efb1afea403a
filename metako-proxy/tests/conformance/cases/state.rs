//! Session state: locks, temporary tables, roles, notifications; and that no client sees another's.

use crate::cases::cases;
use crate::client::Client;
use crate::send::{SYNC, V3_0, batch, query, run};
use crate::stage::{PASSWORD, PLAIN, Stage, USER};

cases![
    session_locks_outlive_rollback_and_commit,
    session_locks_end_with_their_client,
    temporary_tables_stay_with_their_client,
    temporary_tables_that_end_with_the_commit_do_so,
    held_cursors_stay_with_their_client,
    a_role_stays_with_its_client,
    a_session_user_stays_with_its_client,
    the_last_value_of_a_sequence_stays_with_its_client,
    large_object_descriptors_end_with_their_transaction,
    loaded_libraries_do_no_harm,
    notifications_come_between_the_commit_and_its_ready,
    notifications_come_to_an_idle_listener,
    a_rolled_back_listen_listens_to_nothing,
    unlisten_and_its_end_with_the_client,
    a_notification_names_its_sender,
    a_read_only_transaction_may_become_read_write,
    a_snapshot_stays_for_its_transaction,
    leading_comments_change_nothing,
    the_process_id_is_that_of_the_backend,
    nothing_is_left_of_a_client_that_is_gone,
    the_seed_of_random_is_the_clients_own,
    a_database_is_in_use_until_its_clients_leave,
];

const LOCKS: &str = "select count(*) from pg_locks where locktype = 'advisory' \
    and database = (select oid from pg_database where datname = current_database())";

fn session_locks_outlive_rollback_and_commit(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("begin; select pg_advisory_lock(1); rollback", "CTDCCZ");
    b.asks("select pg_try_advisory_lock(1), pg_try_advisory_lock(2)", "TDCZ");
    a.asks("select pg_try_advisory_lock(2), pg_try_advisory_lock(1)", "TDCZ");
    a.asks("select pg_advisory_unlock(1), pg_advisory_unlock(1), pg_advisory_unlock(1)", "TN01000DCZ");
    b.asks("select pg_advisory_unlock_all()", "TDCZ");
    a.asks("begin; select pg_advisory_xact_lock(3); commit", "CTDCCZ");
    a.asks(LOCKS, "TDCZ");
    a.leave();
    b.leave();
}

fn session_locks_end_with_their_client(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&run("select pg_advisory_lock(1)"), SYNC]));
    a.says("12DCZ");
    a.asks("do $$ begin perform pg_advisory_lock(2); end $$", "CZ");
    a.leave();
    stage.watcher().wait_until(LOCKS, "0");
    let mut b = stage.client("b");
    b.asks("select pg_try_advisory_lock(1), pg_try_advisory_lock(2)", "TDCZ");
    b.vanish();
    stage.watcher().wait_until(LOCKS, "0");
}

fn temporary_tables_stay_with_their_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("create temp table mine as select 'of a' as owner", "CZ");
    b.asks("table mine", "E42P01Z");
    b.asks("select 'of b' as owner into temporary mine", "CZ");
    for _ in 0..2 {
        a.asks("table mine", "TDCZ");
        b.asks("table mine", "TDCZ");
    }
    a.leave();
    b.leave();
    let mut c = stage.client("c");
    c.asks("table mine", "E42P01Z");
    c.asks("create table pg_temp.mine (id int); create temp sequence s; select nextval('s')", "CCTDCZ");
    c.asks("select nextval('s')", "TDCZ");
    c.leave();
}

fn temporary_tables_that_end_with_the_commit_do_so(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin; create temp table mine on commit drop as select 1 as id; table mine; commit", "CCTDCCZ");
    a.asks("table mine", "E42P01Z");
    a.asks("create temp table emptied (id int) on commit delete rows; insert into emptied values (1)", "CCZ");
    a.asks("select count(*) from emptied", "TDCZ");
    a.leave();
}

fn held_cursors_stay_with_their_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("declare c cursor with hold for select generate_series(1, 3)", "CZ");
    a.asks("fetch c", "TDCZ");
    b.asks("fetch c", "E34000Z");
    a.asks("fetch 5 from c", "TDDCZ");
    a.asks("close c", "CZ");
    a.asks("fetch c", "E34000Z");
    a.leave();
    b.leave();
}

fn a_role_stays_with_its_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.query(&format!("set role {PLAIN}"));
    b.asks("select current_user, session_user", "TDCZ");
    a.asks_of_all("select current_user, session_user");
    a.query("begin; set local role tester; commit");
    a.asks_of_all("select current_user, session_user");
    a.leave();
    let mut c = stage.client("c");
    c.asks_of_all("select current_user, session_user");
    b.asks_of_all("select current_user, session_user");
    b.leave();
    c.leave();
}

fn a_session_user_stays_with_its_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.query(&format!("set session authorization {PLAIN}"));
    b.asks_of_all("select current_user, session_user");
    a.asks_of_all("select current_user, session_user");
    a.asks("set session_authorization to default", "CSSZ");
    a.asks_of_all("select current_user, session_user");
    a.query(&format!("set session authorization {PLAIN}"));
    a.leave();
    b.asks_of_all("select current_user, session_user");
    b.leave();
}

fn the_last_value_of_a_sequence_stays_with_its_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("create sequence s", "CZ");
    a.asks("select currval('s')", "TE55000Z");
    a.asks("select nextval('s')", "TDCZ");
    b.asks("select currval('s')", "TE55000Z");
    b.asks("select lastval()", "TE55000Z");
    b.asks("select nextval('s')", "TDCZ");
    a.asks("select currval('s'), lastval()", "TDCZ");
    a.leave();
    b.leave();
}

fn large_object_descriptors_end_with_their_transaction(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin; select lo_create(4711) > 0; select lo_open(4711, 131072)", "CTDCTDCZ");
    a.asks("select lowrite(0, 'bytes')", "TDCZ");
    a.asks("commit", "CZ");
    a.asks("select loread(0, 5)", "TE42704Z");
    a.asks("select lo_unlink(4711)", "TDCZ");
    a.leave();
}

fn loaded_libraries_do_no_harm(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("load 'plpgsql'", "CZ");
    a.asks("load 'no such library'", "E58P01Z");
    a.asks("select 1", "TDCZ");
    a.leave();
}

fn notifications_come_between_the_commit_and_its_ready(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("listen \"Chan nel\"", "CZ");
    a.asks("notify \"Chan nel\", 'one'", "CAZ");
    a.asks("begin", "CZ");
    a.asks(
        "notify \"Chan nel\", 'two'; select pg_notify('Chan nel', 'two'), pg_notify('Chan nel', 'three')",
        "CTDCZ",
    );
    a.asks("select 1", "TDCZ");
    a.asks("commit", "CAAZ");
    a.asks("begin; notify \"Chan nel\", 'never'; rollback", "CCCZ");
    a.send(&batch(&[&run("notify \"Chan nel\", 'four'"), SYNC]));
    a.says("12CAZ");
    a.leave();
}

fn notifications_come_to_an_idle_listener(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("listen l", "CZ");
    b.asks("notify l, 'one'", "CZ");
    a.says("A");
    b.asks("notify l, 'two'", "CZ");
    a.says("A");
    a.asks("begin", "CZ");
    b.asks("notify l, 'three'", "CZ");
    a.asks("select 1", "TDCZ");
    a.asks("commit", "CAZ");
    a.leave();
    b.leave();
}

fn a_rolled_back_listen_listens_to_nothing(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin; listen l; rollback", "CCCZ");
    a.asks("notify l", "CZ");
    a.asks("select * from pg_listening_channels()", "TCZ");
    a.asks("begin; listen l; listen l; commit", "CCCCZ");
    a.asks("select * from pg_listening_channels()", "TDCZ");
    a.asks("begin; unlisten *; rollback", "CCCZ");
    a.asks("notify l", "CAZ");
    a.leave();
}

fn unlisten_and_its_end_with_the_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("listen l; listen m", "CCZ");
    b.asks("select * from pg_listening_channels()", "TCZ");
    a.asks("unlisten l", "CZ");
    a.asks("notify l; notify m", "CCAZ");
    a.leave();
    b.asks("notify m", "CZ");
    let mut c = stage.client("c");
    c.asks("select * from pg_listening_channels()", "TCZ");
    c.asks("notify m", "CZ");
    b.leave();
    c.leave();
}

fn a_notification_names_its_sender(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("listen l", "CZ");
    for sender in [&mut a, &mut b] {
        sender.send(&query("notify l"));
    }
    let own = a.key.0.to_be_bytes();
    let theirs = b.key.0.to_be_bytes();
    b.says("CZ");
    let (mut from_a, mut from_b, mut readies) = (false, false, 0);
    while readies == 0 || !(from_a && from_b) {
        let Some((tag, body)) = a.quietly(Client::next) else { break };
        readies += usize::from(tag == b'Z');
        if tag == b'A' {
            from_a |= body.starts_with(&own);
            from_b |= body.starts_with(&theirs);
            if !body.starts_with(&own) && !body.starts_with(&theirs) {
                stage.note("a notification of", "a stranger");
                break;
            }
        }
    }
    stage.note("senders that are known by their keys", (from_a, from_b));
    if from_a && from_b {
        a.leave();
    } else {
        a.vanish();
    }
    b.leave();
}

fn a_read_only_transaction_may_become_read_write(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id int)", "CZ");
    a.asks("begin read only", "CZ");
    a.asks("set transaction read write", "CZ");
    a.asks("insert into t values (1)", "CZ");
    a.asks("commit", "CZ");
    a.asks("begin read only; select 1", "CTDCZ");
    a.asks("insert into t values (2)", "E25006Z");
    a.asks("rollback", "CZ");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
}

fn a_snapshot_stays_for_its_transaction(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("create table t (id int)", "CZ");
    a.asks("begin isolation level repeatable read; select count(*) from t", "CTDCZ");
    b.asks("insert into t values (1)", "CZ");
    a.asks("select count(*) from t", "TDCZ");
    a.asks("commit", "CZ");
    a.asks("select count(*) from t", "TDCZ");
    a.leave();
    b.leave();
}

fn leading_comments_change_nothing(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("/* traceparent='00-0' */ create table t (id int)", "CZ");
    a.asks("-- a note\n /* and /* nested */ one */ begin", "CZ");
    a.asks("/**/insert into t values (1)", "CZ");
    a.asks("/* commit */ rollback /* commit */; -- commit", "CZ");
    a.asks("select count(*) from t -- /* not open", "TDCZ");
    a.asks("/* open", "E42601Z");
    a.send(&batch(&[&run("/* a */ set work_mem = '7MB'"), SYNC]));
    a.says("12CZ");
    a.asks_of_all("/* b */ show work_mem");
    a.leave();
}

fn the_process_id_is_that_of_the_backend(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let pid = a.value("select pg_backend_pid()").unwrap_or_default();
    stage.note("the key's process is the backend", pid == a.key.0.to_string());
    let mut watcher = stage.watcher();
    let known = watcher.value(&format!("select count(*) from pg_stat_activity where pid = {}", a.key.0));
    stage.note("and is in pg_stat_activity", known);
    watcher.leave();
    a.leave();
}

fn nothing_is_left_of_a_client_that_is_gone(stage: &Stage<'_>) {
    // A setting that was set back to what it was is no trace of another.
    let state = "select (select string_agg(name || setting, ',' order by name) from pg_settings where source = 'session' \
                 and setting is distinct from reset_val and name <> 'transaction_read_only'), \
                 (select count(*) from pg_prepared_statements where name in ('s', 'p')), \
                 (select count(*) from pg_cursors where is_holdable), pg_my_temp_schema() <> 0, \
                 (select count(*) from pg_listening_channels()), current_user, current_schemas(false)";
    let mut before = stage.client("before");
    before.asks(state, "TDCZ");
    before.leave();
    for sql in [
        "set work_mem = '7MB'",
        "select set_config('search_path', 'elsewhere', false)",
        "begin; set local work_mem = '7MB'",
        "create temp table mine (id int)",
        "listen l",
        "prepare p as select 1",
        "begin; declare c cursor with hold for select 1; commit",
        "set role plain",
        "set session authorization plain",
        "set time zone 'Asia/Tokyo'",
        "do $$ begin execute 'create temp table hidden (id int)'; end $$",
        "do $$ begin execute 'set application_name to stealth'; end $$",
        "set session characteristics as transaction read only",
        "begin; select 1/0",
    ] {
        let mut gone = stage.client("gone");
        gone.quietly(|gone| gone.query(sql));
        gone.vanish();
        let mut next = stage.client("next");
        next.asks(state, "TDCZ");
        next.leave();
    }
}

fn the_seed_of_random_is_the_clients_own(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    // In one transaction nothing can come between.
    a.asks("begin; select setseed(0.5); select random() from generate_series(1, 2); commit", "CTDCTDDCCZ");
    b.asks("begin; select setseed(0.25); select random(); commit", "CTDCTDCCZ");
    a.asks("set seed = 0.5; select random()", "CTDCZ");
    a.leave();
    b.leave();
}

fn a_database_is_in_use_until_its_clients_leave(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let database = format!("{}_left", stage.database());
    a.asks(&format!("create database {database}"), "CZ");
    let mut b = stage.connection("b");
    b.quietly(|b| b.log_in(V3_0, &[("user", USER), ("database", &database)], PASSWORD));
    b.asks("create table t (id int)", "CZ");
    a.asks(&format!("drop database {database}"), "E55006Z");
    b.leave();
    a.asks(&format!("create database {database}_2 template {database}"), "CZ");
    a.asks(&format!("alter database {database} rename to {database}_3"), "CZ");
    a.asks(&format!("drop database {database}_2"), "CZ");
    a.asks(&format!("drop database {database}_3"), "CZ");
    a.leave();
}
