//! Nodes that stop or die: by a person's hand, in the midst of a promotion, two at once, again and again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod running;

use metako_proxy::playground::{Builder, StopMode};
use running::day::{Day, wait_streaming};
use running::eventually;

/// A primary that a person stops sends all of its WAL before it ends: nothing is lost, whoever was waited for.
fn cleanly_stopped(synchronous: Option<u32>) {
    let day = Day::begin(synchronous);
    day.node("node-1").stop(StopMode::Fast).unwrap();
    let primary = day.another_primary("node-1");
    day.clients.all_go_on();
    let survivor = if primary == "node-2" { "node-3" } else { "node-2" };
    wait_streaming(&day.cluster, &primary, &[survivor]);
    // As a service manager would start it again: as the primary that it was.
    day.node("node-1").start().unwrap();
    day.role("node-1", "stale_primary");
    day.clients.all_go_on();
    assert_eq!(day.metako.status().unwrap()["primary"], primary.as_str());
    assert_eq!(day.failovers_begun(), 1);
    day.end(&primary);
}

#[test]
fn a_primary_that_a_person_stops_is_replaced_and_loses_nothing() {
    cleanly_stopped(None);
}

#[test]
fn a_synchronous_primary_that_a_person_stops_is_replaced_and_loses_nothing() {
    cleanly_stopped(Some(1));
}

#[test]
fn clients_do_not_notice_that_a_standby_goes_and_comes() {
    let day = Day::begin(Some(1));
    day.node("node-3").stop(StopMode::Fast).unwrap();
    day.clients.all_go_on();
    day.status("it serves no reads", |status| {
        status["nodes"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|node| node["name"] == "node-3" && node["serves_reads"] == false && node["health"] == "down")
    });
    day.clients.all_go_on();
    day.node("node-3").start().unwrap();
    day.metako.wait_until_open(2);
    day.node("node-2").kill_9_all().unwrap();
    day.clients.all_go_on();
    day.node("node-2").start().unwrap();
    day.metako.wait_until_open(2);
    day.clients.all_go_on();
    day.assert_no_failover();
    let errors = day.clients.errors();
    let writes: Vec<_> = errors.iter().filter(|error| !error.starts_with("Read")).collect();
    assert!(writes.is_empty(), "no writer notices: {writes:?}");
    assert!(errors.is_empty(), "no reader notices: {errors:?}");
    day.end("node-1");
}

#[test]
fn with_the_primary_and_a_voter_gone_nobody_is_promoted_until_the_voter_is_back() {
    let day = Day::begin(Some(1));
    std::thread::scope(|scope| {
        for name in ["node-1", "node-2"] {
            scope.spawn(|| day.node(name).kill_9_all().unwrap());
        }
    });
    // node-3 may lack what only node-2 acknowledged.
    day.status("writes are held, and it is said why", |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        status["primary"].is_null() && reason.contains("an acknowledged commit could be missed")
    });
    day.clients.all_read_on();
    assert_eq!(day.direct("node-3", "select pg_is_in_recovery()"), "t");
    day.node("node-2").start().unwrap();
    let primary = day.another_primary("node-1");
    day.clients.all_go_on();
    day.end(&primary);
}

#[test]
fn with_the_primary_and_an_asynchronous_standby_gone_the_last_one_serves() {
    let day = Day::begin(None);
    std::thread::scope(|scope| {
        for name in ["node-1", "node-2"] {
            scope.spawn(|| day.node(name).kill_9_all().unwrap());
        }
    });
    assert_eq!(day.another_primary("node-1"), "node-3");
    day.clients.all_write_on();
    // Only what the dead one acknowledged in its last moments may be missing.
    let port = day.node("node-3").port();
    let from = day.clients.next_row();
    day.clients.wait_for_more(100);
    let lost = day.clients.finish_asynchronous(from, &day.cluster, port);
    eprintln!("acknowledged by the primary that died, and by nobody else: {lost}");
}

#[test]
fn a_primary_that_crashes_again_and_again_uses_up_the_budget_and_no_more() {
    let extra = "failover: { synchronous: any 1, budget: 1 per 10m }";
    let day = Day::with(running::cluster(2, None), Some(1), extra);
    day.node("node-1").kill_9_all().unwrap();
    let primary = day.another_primary("node-1");
    day.node("node-1").start().unwrap();
    day.role("node-1", "stale_primary");
    for _ in 0..3 {
        day.clients.all_write_on();
        day.node(&primary).kill_9_all().unwrap();
        day.status("a person is to decide", |status| {
            let reason = status["reason"].as_str().unwrap_or_default();
            status["phase"] == "manual_needed" && reason.contains("failover.budget")
        });
        day.clients.all_read_on();
        day.node(&primary).start().unwrap();
        day.status("it serves again", |status| status["primary"] == primary.as_str());
    }
    day.clients.all_go_on();
    assert_eq!(day.failovers_begun(), 1);
    day.end(&primary);
}

#[test]
fn a_commit_of_a_backend_that_outlived_its_postmaster_is_nothing_that_a_client_is_told() {
    let day = Day::begin(None);
    let late = "do $$ declare last timestamptz := clock_timestamp() + interval '5 seconds'; begin \
                insert into ledger values (-1); while clock_timestamp() < last loop end loop; end $$";
    let (dsn, runtime) = (running::dsn(&day.cluster, day.metako.port), day.clients.runtime());
    let client = runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&dsn, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    });
    let waits = runtime.spawn(async move { client.batch_execute(late).await });
    let active = "select count(*) from pg_stat_activity where query like 'do %' and state = 'active'";
    eventually("it is at work", || match day.direct("node-1", active).as_str() {
        "1" => Ok(()),
        other => Err(other.to_owned()),
    });
    day.node("node-1").kill_9().unwrap();
    let primary = day.another_primary("node-1");
    let told = runtime.block_on(async { tokio::time::timeout(running::PATIENCE, waits).await });
    let error = told.expect("the client is told something").unwrap().expect_err("it is not told success");
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("08007"), "{error:?}");
    day.clients.all_go_on();
    // The backend has committed, or died without doing so: nobody of this cluster has the row.
    day.node("node-1").wait_gone().unwrap();
    assert_eq!(day.direct(&primary, "select count(*) from ledger where id = -1"), "0");
    let port = day.node(&primary).port();
    let from = day.clients.next_row();
    day.clients.wait_for_more(100);
    let lost = day.clients.finish_asynchronous(from, &day.cluster, port);
    eprintln!("acknowledged by the primary that died, and by nobody else: {lost}");
}

#[test]
fn a_prepared_transaction_survives_its_primary() {
    let builder = Builder::new().replicas(2).synchronous(1).setting("max_prepared_transactions", "5");
    let day = Day::with(builder.start_blocking().unwrap(), Some(1), "");
    let prepare = "begin; insert into ledger values (-1); prepare transaction 'two-phase'";
    running::client(&day.cluster, "psql", day.metako.port, &["-XAtc", prepare]);
    day.node("node-1").kill_9_all().unwrap();
    let primary = day.another_primary("node-1");
    day.clients.all_go_on();
    let commit = "commit prepared 'two-phase'";
    running::client(&day.cluster, "psql", day.metako.port, &["-XAtc", commit]);
    assert_eq!(day.direct(&primary, "select count(*) from ledger where id = -1"), "1");
    day.end(&primary);
}

/// At the end of recovery the candidate waits for as long as this file is there, and not for ever.
fn wait_for(file: &std::path::Path) -> String {
    format!("i=0; while [ -e {} ] && [ $i -lt 1200 ]; do sleep 0.1; i=$((i+1)); done", file.display())
}

#[test]
fn a_candidate_that_dies_in_mid_promotion_is_awaited_and_nobody_else_promoted() {
    let folder = tempfile::tempdir().unwrap();
    // The server looks for it as another user.
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), readable).unwrap();
    let file = folder.path().join("promotions-hang");
    std::fs::write(&file, "").unwrap();
    let builder = Builder::new().replicas(2).synchronous(1);
    let builder = builder.setting("recovery_end_command", &wait_for(&file));
    let day = Day::with(builder.start_blocking().unwrap(), Some(1), "");
    day.node("node-1").kill_9_all().unwrap();
    day.status("a promotion is under way", |status| status["phase"] == "promoting");
    let hangs = |name: &str| day.node(name).log_tail(20).contains("selected new timeline ID: 2");
    let candidate = eventually("the candidate has begun timeline 2", || {
        let hanging = ["node-2", "node-3"].into_iter().find(|name| hangs(name));
        hanging.ok_or_else(|| day.metako.log())
    });
    day.node(candidate).kill_9_all().unwrap();
    let other = if candidate == "node-2" { "node-3" } else { "node-2" };
    running::day::for_long(|| {
        let status = day.metako.status().unwrap();
        assert!(status["primary"].is_null(), "{status}");
    });
    assert_eq!(day.direct(other, "select pg_is_in_recovery()"), "t", "nobody else is promoted");
    std::fs::remove_file(&file).unwrap();
    day.node(candidate).start().unwrap();
    let primary = day.another_primary("node-1");
    day.clients.all_go_on();
    assert_eq!(primary, candidate);
    day.end(&primary);
}
