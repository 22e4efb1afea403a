//! State of sessions in transaction mode, on a real server that two clients share: each has its own, and sees nothing of
//! the other's.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "relay/bench.rs"]
mod bench;
#[path = "running/mod.rs"]
mod running;

use std::time::Duration;

use bench::{Bench, LIMIT, code, text};
use tokio::time::timeout;
use tokio_postgres::{Client, SimpleQueryMessage};

const ONE_SERVER: &str = "pool: { size: 1 }\nload_balancer: { split: off }";

/// Runs a statement that has to succeed.
async fn run(client: &Client, sql: &str) {
    timeout(LIMIT, client.batch_execute(sql)).await.expect("an answer").unwrap();
}

async fn fails(client: &Client, sql: &str) -> String {
    let error = timeout(LIMIT, client.batch_execute(sql)).await.expect("an answer").unwrap_err();
    code(&error).to_owned()
}

async fn show(client: &Client, setting: &str) -> String {
    text(client, &format!("select coalesce(current_setting('{setting}', true), '')")).await
}

async fn pid(client: &Client) -> String {
    text(client, "select pg_backend_pid()").await
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_every_kind_are_their_clients_own() {
    let bench = Bench::start(0, ONE_SERVER).await;
    let (a, b) = (bench.client().await, bench.client_with("application_name=b").await);
    let settings = [
        "work_mem",
        "TimeZone",
        "search_path",
        "DateStyle",
        "app.tenant",
        "application_name",
        "lock_timeout",
    ];
    let mut before = Vec::new();
    for setting in settings {
        before.push((setting, show(&b, setting).await));
    }
    for (make, setting, value) in [
        ("set work_mem = '7MB'", "work_mem", "7MB"),
        ("set time zone 'Asia/Seoul'", "TimeZone", "Asia/Seoul"),
        ("set search_path to nowhere, \"Some Where\"", "search_path", "nowhere, \"Some Where\""),
        ("set datestyle = 'SQL, DMY'", "DateStyle", "SQL, DMY"),
        ("set app.tenant = 'it''s a'", "app.tenant", "it's a"),
        ("set application_name to 'changed'", "application_name", "changed"),
        ("select set_config('app.tenant', 'five', false)", "app.tenant", "five"),
        // A reserved word is a name here.
        ("select set_config('app.user', 'six', false)", "app.user", "six"),
        ("begin; set work_mem = '8MB'; commit", "work_mem", "8MB"),
        ("begin; set work_mem = '9MB'; rollback", "work_mem", "8MB"),
        (
            "begin; set app.tenant = 'x'; savepoint s; set app.tenant = 'y'; rollback to s; commit",
            "app.tenant",
            "x",
        ),
        ("begin; set local work_mem = '10MB'; commit", "work_mem", "8MB"),
        ("set work_mem = '11MB'; set lock_timeout = 77", "work_mem", "11MB"),
        ("select 1", "lock_timeout", "77ms"),
        ("do $$ begin perform set_config('lock_timeout', '88', false); end $$", "lock_timeout", "88ms"),
        ("reset work_mem", "work_mem", "4MB"),
        ("set session characteristics as transaction read only", "default_transaction_read_only", "on"),
        ("set session characteristics as transaction read write", "default_transaction_read_only", "off"),
        ("reset application_name", "application_name", ""),
        ("reset all", "search_path", "\"$user\", public"),
        ("select 1", "app.tenant", ""),
        ("select 1", "TimeZone", before[1].1.as_str()),
    ] {
        run(&a, make).await;
        for (setting, value) in &before {
            assert_eq!(show(&b, setting).await, *value, "{setting} after {make}");
        }
        assert_eq!(show(&a, setting).await, value, "after {make}");
    }
    // By the extended protocol too.
    a.execute("set work_mem = '12MB'", &[]).await.unwrap();
    assert_eq!(show(&b, "work_mem").await, "4MB");
    assert_eq!(show(&a, "work_mem").await, "12MB");
    assert_eq!(fails(&a, "set work_mem = 'nonsense'").await, "22023");
    assert_eq!(show(&a, "work_mem").await, "12MB");
    assert_eq!(pid(&a).await, pid(&b).await);
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_functions_hide_is_found() {
    let bench = Bench::start(0, ONE_SERVER).await;
    let (a, b) = (bench.client().await, bench.client().await);
    run(
        &a,
        "create function hidden(name text, value text) returns text language plpgsql as \
         $$ begin return set_config(name, value, false); end $$; \
         create view behind as select set_config('TimeZone', 'Asia/Seoul', false) as zone",
    )
    .await;
    let before = show(&b, "work_mem").await;
    assert_eq!(text(&a, "select hidden('work_mem', '9MB')").await, "9MB");
    assert_eq!(show(&b, "work_mem").await, before);
    assert_eq!(show(&a, "work_mem").await, "9MB");
    // No list shows these: the other client never sees them all the same.
    assert_eq!(text(&a, "select hidden('app.secret', 'x')").await, "x");
    assert_eq!(show(&b, "app.secret").await, "");
    // A view hides the function, and what the server reports shows it.
    let zone = show(&b, "TimeZone").await;
    assert_eq!(text(&a, "select zone from behind").await, "Asia/Seoul");
    assert_eq!(show(&b, "TimeZone").await, zone);
    assert_eq!(show(&a, "TimeZone").await, "Asia/Seoul");
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_made_in_sql_and_by_the_protocol_share_their_clients_names() {
    let bench = Bench::start(0, ONE_SERVER).await;
    let (a, b) = (bench.client().await, bench.client().await);
    run(&a, "prepare s (int) as select $1 + 1").await;
    run(&b, "prepare s (int) as select $1 * 10").await;
    for _ in 0..3 {
        assert_eq!(text(&a, "execute s(4)").await, "5");
        assert_eq!(text(&b, "execute s(4)").await, "40");
    }
    assert_eq!(fails(&a, "prepare s as select 1").await, "42P05");
    assert_eq!(text(&a, "prepare t as select 6; execute t; deallocate t").await, "6");
    let error = timeout(LIMIT, a.batch_execute("execute t")).await.unwrap().unwrap_err();
    assert_eq!(error.as_db_error().unwrap().message(), "prepared statement \"t\" does not exist");
    assert!(text(&a, "explain execute s(1)").await.contains("Result"));
    run(&a, "create temp table made as execute s(7); drop table made").await;
    // By the extended protocol: names are those of SQL.
    a.execute("prepare u as select 8", &[]).await.unwrap();
    assert_eq!(text(&b, "select 1").await, "1");
    assert_eq!(text(&a, "execute u").await, "8");
    a.execute("deallocate u", &[]).await.unwrap();
    assert_eq!(fails(&a, "execute u").await, "26000");
    run(&a, "deallocate s").await;
    assert_eq!(fails(&a, "execute s(1)").await, "26000");
    assert_eq!(text(&b, "execute s(2)").await, "20");
    // Statements that a driver made are known to EXECUTE and DEALLOCATE by the driver's name.
    let made = a.prepare("select 9").await.unwrap();
    let mut answers = Vec::new();
    // The driver numbers its names over all of its connections.
    for number in 0..100 {
        answers.extend(a.simple_query(&format!("execute s{number}")).await.unwrap_or_default());
    }
    let nine = |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("9"));
    assert_eq!(answers.iter().filter(|message| nine(message)).count(), 1);
    run(&a, "deallocate all").await;
    assert_eq!(code(&a.query(&made, &[]).await.unwrap_err()), "26000");
    assert_eq!(text(&b, "execute s(3)").await, "30");
    // In a block that failed all fails, and what is left is as before.
    run(&a, "prepare v as select 11").await;
    assert_eq!(fails(&a, "begin; select 1/0").await, "22012");
    for sql in ["execute v", "deallocate v", "prepare w as select 1"] {
        assert_eq!(fails(&a, sql).await, "25P02", "{sql}");
    }
    run(&a, "rollback").await;
    assert_eq!(text(&a, "execute v").await, "11");
    assert_eq!(pid(&a).await, pid(&b).await);
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_move_keeps_its_server_until_it_ends() {
    let bench = Bench::start(0, ONE_SERVER).await;
    let (a, b) = (bench.client().await, bench.client().await);
    run(&a, "create table t (id int); create role other; create function hides() returns void language plpgsql as $$ begin perform pg_advisory_lock(9); end $$").await;
    for (make, end) in [
        ("create temp table mine (id int)", "drop table mine"),
        ("select 1 as id into temp mine", "discard temp"),
        ("create function pg_temp.f() returns int language sql as 'select 1'", "discard all"),
        ("select pg_advisory_lock(5)", "select pg_advisory_unlock(5)"),
        ("select pg_try_advisory_lock(6)", "select pg_advisory_unlock_all()"),
        ("select hides()", "select pg_advisory_unlock_all()"),
        ("listen news", "unlisten *"),
        ("begin; declare c cursor with hold for select 1; commit", "close c"),
        ("set role other", "reset role"),
        ("set session authorization other", "reset session authorization"),
        ("create temp table mine (id int); listen news; set role other", "discard all"),
    ] {
        run(&a, make).await;
        // The other client waits for the only server, and gets it when nothing is left there.
        let waiting = text(&b, "select count(*) from t");
        tokio::pin!(waiting);
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("{make} does not keep the server"),
            kept = text(&a, "select 'kept'") => assert_eq!(kept, "kept"),
        }
        run(&a, end).await;
        assert_eq!(waiting.await, "0", "{end}");
    }
    // What leaves nothing keeps nothing.
    for make in [
        "begin; create temp table mine (id int); rollback",
        "begin; create temp table mine (id int) on commit drop; commit",
        "begin; listen news; rollback",
        "select pg_advisory_xact_lock(5)",
        "begin; select lo_open(lo_create(0), 131072); commit",
        "do $$ begin end $$",
    ] {
        run(&a, make).await;
        assert_eq!(text(&b, "select count(*) from t").await, "0", "{make}");
    }
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_all_leaves_nothing_of_the_session() {
    let bench = Bench::start(0, ONE_SERVER).await;
    let (a, b) = (bench.client_with("application_name=a").await, bench.client().await);
    run(&a, "set work_mem = '9MB'").await;
    run(&a, "set app.tenant = '5'").await;
    run(&a, "prepare s as select 1").await;
    assert_eq!(text(&b, "select 1").await, "1");
    run(&a, "discard all").await;
    assert_eq!(text(&b, "select 1").await, "1");
    assert_eq!(show(&a, "work_mem").await, "4MB");
    assert_eq!(show(&a, "app.tenant").await, "");
    assert_eq!(show(&a, "application_name").await, "a");
    assert_eq!(fails(&a, "execute s").await, "26000");
    assert_eq!(fails(&a, "begin; discard all").await, "25001");
    run(&a, "rollback").await;
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_value_of_another_client_is_not_seen() {
    let bench = Bench::start(0, ONE_SERVER).await;
    let (a, b) = (bench.client().await, bench.client().await);
    run(&a, "create sequence s").await;
    run(&a, "select nextval('s')").await;
    assert_eq!(fails(&b, "select lastval()").await, "55000");
    drop(b);
    let b = bench.client().await;
    assert_eq!(text(&b, "begin; select nextval('s')").await, "2");
    assert_eq!(text(&b, "select currval('s')").await, "2");
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_the_administrator_changes_keeps_no_server() {
    let bench = Bench::start(0, ONE_SERVER).await;
    let (a, b) = (bench.client().await, bench.client().await);
    run(&a, "set work_mem = '9MB'").await;
    bench.cluster.node("node-1").sql("alter system set timezone = 'Asia/Tokyo'").unwrap();
    bench.cluster.node("node-1").sql("select pg_reload_conf()").unwrap();
    timeout(LIMIT, async {
        while show(&a, "TimeZone").await != "Asia/Tokyo" || show(&b, "TimeZone").await != "Asia/Tokyo" {}
    })
    .await
    .expect("both see it");
    assert_eq!(show(&a, "work_mem").await, "9MB");
    assert_eq!(pid(&a).await, pid(&b).await);
    bench.data.shutdown(Duration::from_secs(5)).await;
}
