//! What a person asks of a running metako, on real clusters: switchover, failover, pause and resume; and former primaries
//! that come back by a hook.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test where they stand")]

mod running;

use std::path::Path;

use running::day::{direct, wait_streaming};
use running::ledger::{Clients, stored};
use running::{Metako, eventually, text};
use serde_json::Value;
use tokio_postgres::NoTls;

fn wait_for_primary(metako: &Metako, name: &str) -> Value {
    eventually("the node is primary", || {
        let status = metako.status()?;
        if status["primary"] == name { Ok(status) } else { Err(status.to_string()) }
    })
}

fn succeeds(metako: &Metako, arguments: &[&str]) -> String {
    let output = metako.command(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", metako.log());
    text(&output.stdout)
}

fn refused(metako: &Metako, arguments: &[&str]) -> String {
    let output = metako.command(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    text(&output.stderr)
}

fn switches_over(synchronous: Option<u32>) {
    if !running::can_rejoin() {
        return;
    }
    let cluster = running::cluster(2, synchronous);
    let metako = Metako::start(&running::configuration(&cluster, &running::hooks(&cluster)));
    metako.wait_until_open(2);
    let writers = Clients::start(&cluster, metako.port, 8, 0);
    let (idle, connection) = writers
        .runtime()
        .block_on(tokio_postgres::connect(&running::dsn(&cluster, metako.port), NoTls))
        .unwrap();
    writers.runtime().spawn(connection);

    let plan = succeeds(&metako, &["switchover", "--to", "node-2", "--dry-run"]);
    for part in ["primary now: node-1, then: node-2", "writes are held", "node-2 is promoted to timeline 2"] {
        assert!(plan.contains(part), "{part}: {plan}");
    }
    assert_eq!(metako.status().unwrap()["primary"], "node-1", "a plan changes nothing");
    assert!(refused(&metako, &["switchover", "--to", "node-1", "--yes"]).contains("is the primary already"));

    let said = succeeds(&metako, &["switchover", "--to", "node-2", "--yes"]);
    assert!(said.contains("writes go to node-2"), "{said}");
    wait_for_primary(&metako, "node-2");
    writers.wait_for_more(200);
    // The former primary becomes a standby without anybody's help, and without a rewind of anything that was acknowledged.
    wait_streaming(&cluster, "node-2", &["node-1", "node-3"]);
    metako.wait_until_open(2);
    if synchronous.is_some() {
        eventually("commits may wait for the former primary as well", || {
            let names = direct(&cluster, "node-2", "show synchronous_standby_names");
            if names.contains("node-1") && names.contains("node-3") { Ok(()) } else { Err(names) }
        });
    }

    succeeds(&metako, &["switchover", "--yes", "--json"]);
    writers.wait_for_more(200);
    let primary = metako.status().unwrap()["primary"].as_str().unwrap().to_owned();
    assert_ne!(primary, "node-2");
    let others: Vec<&str> =
        ["node-1", "node-2", "node-3"].into_iter().filter(|name| *name != primary).collect();
    wait_streaming(&cluster, &primary, &others);

    let answer: i32 =
        writers.runtime().block_on(idle.query_one("select 1", &[])).expect("an idle session lives on").get(0);
    assert_eq!(answer, 1);
    assert_eq!(writers.errors(), [""; 0]);
    let port = cluster.node(&primary).port();
    let acknowledged = writers.finish(&cluster, port);
    let stored = stored(&cluster, port);
    assert_eq!(acknowledged, stored, "what was acknowledged is there, and nothing else");
    let history = succeeds(&metako, &["history", "--last", "1000"]);
    assert!(history.contains("an operator asked for it: node-2 is to follow node-1"), "{history}");
}

#[test]
fn a_switchover_fails_no_client_and_loses_no_row() {
    switches_over(None);
}

#[test]
fn a_switchover_fails_no_client_under_synchronous_replication() {
    switches_over(Some(1));
}

#[test]
fn an_open_transaction_calls_a_switchover_off_and_goes_on() {
    if !running::can_rejoin() {
        return;
    }
    let cluster = running::cluster(1, None);
    let extra = format!("{}\nfailover: {{ drain_timeout: 500ms }}", running::hooks(&cluster));
    let metako = Metako::start(&running::configuration(&cluster, &extra));
    metako.wait_until_open(1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(&running::dsn(&cluster, metako.port), NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("create table t (id int); begin; insert into t values (1)").await.unwrap();
        let why = refused(&metako, &["switchover", "--yes"]);
        assert!(why.contains("transactions did not end") && why.contains("node-1 stays primary"), "{why}");
        client.batch_execute("insert into t values (2); commit").await.expect("the transaction goes on");
        // Outside a transaction a replica may answer, which has not replayed it yet.
        client.batch_execute("begin").await.unwrap();
        let count: i64 = client.query_one("select count(*) from t", &[]).await.unwrap().get(0);
        client.batch_execute("commit").await.unwrap();
        assert_eq!(count, 2);
    });
    assert_eq!(metako.status().unwrap()["primary"], "node-1");
    // Nothing is left behind: the next one succeeds.
    succeeds(&metako, &["switchover", "--yes"]);
    wait_for_primary(&metako, "node-2");
    wait_streaming(&cluster, "node-2", &["node-1"]);
}

#[test]
fn a_stop_that_fails_leaves_the_primary_in_its_place() {
    let cluster = running::cluster(1, None);
    let extra = "hooks: { stop: { command: [sh, -c, 'echo no key for that host >&2; exit 7'] } }";
    let metako = Metako::start(&running::configuration(&cluster, extra));
    metako.wait_until_open(1);
    let writers = Clients::start(&cluster, metako.port, 8, 0);
    let why = refused(&metako, &["switchover", "--yes"]);
    assert!(why.contains("no key for that host") && why.contains("node-1 stays primary"), "{why}");
    wait_for_primary(&metako, "node-1");
    writers.wait_for_more(100);
    assert_eq!(writers.errors(), [""; 0]);
    let port = cluster.node("node-1").port();
    let acknowledged = writers.finish(&cluster, port);
    assert_eq!(stored(&cluster, port), acknowledged);
}

#[test]
fn a_hook_does_not_outlive_metako() {
    let cluster = running::cluster(1, None);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let extra = format!(
        "hooks: {{ stop: {{ command: [sh, -c, 'trap \"\" TERM; echo $$ >{}; sleep 600 & wait; wait'] }} }}",
        file.display()
    );
    let metako = Metako::start(&running::configuration(&cluster, &extra));
    metako.wait_until_open(1);
    let mut asks = std::process::Command::new(env!("CARGO_BIN_EXE_metako"))
        .args(["switchover", "--yes", "--config"])
        .arg(metako.config())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = eventually("the hook runs", || match std::fs::read_to_string(&file) {
        Ok(text) if text.ends_with('\n') => Ok(text.trim().to_owned()),
        _ => Err(metako.log()),
    });
    assert!(metako.stop());
    eventually("the hook is gone", || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) if !stat.contains(") Z") => Err(stat),
        _ => Ok(()),
    });
    asks.wait().unwrap();
}

#[test]
fn a_paused_metako_does_nothing_until_a_person_says_so_and_a_dead_primary_is_rejoined() {
    if !running::can_rejoin() {
        return;
    }
    let cluster = running::cluster(2, Some(1));
    let metako = Metako::start(&running::configuration(&cluster, &running::hooks(&cluster)));
    metako.wait_until_open(2);
    metako.wait_until_synchronous();
    succeeds(&metako, &["pause"]);
    assert_eq!(metako.status().unwrap()["phase"], "paused");
    assert!(refused(&metako, &["failover", "--yes"]).contains("answers"));
    running::client(&cluster, "psql", metako.port, &["-XAtc", "create table t (id int)"]);
    cluster.node("node-1").kill_9().unwrap();
    let plan = eventually("a person may begin a failover", || {
        let output = metako.command(&["failover", "--dry-run"]);
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    });
    assert!(plan.contains("the most advanced is promoted"), "{plan}");
    let status = metako.status().unwrap();
    assert_eq!((&status["phase"], &status["epoch"]), (&"paused".into(), &1.into()), "{status}");
    succeeds(&metako, &["failover", "--to", "node-3", "--yes"]);
    wait_for_primary(&metako, "node-3");
    assert_eq!(metako.status().unwrap()["phase"], "paused");
    succeeds(&metako, &["resume"]);
    wait_streaming(&cluster, "node-3", &["node-1", "node-2"]);
    assert_eq!(direct(&cluster, "node-1", "select pg_is_in_recovery()"), "t");
    metako.wait_until_open(2);
}

/// metako dies when the old primary has just been stopped: the next one finds that in the journal, and goes on.
#[test]
fn a_metako_that_is_killed_in_mid_switchover_finishes_it_when_it_comes_back() {
    if !running::can_rejoin() {
        return;
    }
    let cluster = running::cluster(2, Some(1));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/hooks/local.sh");
    let folder = tempfile::tempdir().unwrap();
    let once = folder.path().join("once");
    let wrapper = folder.path().join("wrapper.sh");
    let text = format!(
        "if [ $1 = stop ] && mkdir {once}; then sh {script} \"$@\"; kill -9 $PPID; exit 0; fi\nexec sh {script} \"$@\"\n",
        once = once.display(),
        script = script.display()
    );
    std::fs::write(&wrapper, text).unwrap();
    let mut metako = Metako::start(&running::configuration(&cluster, &cluster.hooks_yaml(&wrapper)));
    metako.wait_until_open(2);
    running::client(
        &cluster,
        "psql",
        metako.port,
        &["-XAtc", "create table t (id int); insert into t values (1)"],
    );
    let output = metako.command(&["switchover", "--to", "node-2", "--yes"]);
    assert!(!output.status.success(), "metako died: {output:?}");
    assert!(!cluster.node("node-1").is_running(), "the old primary was stopped");
    metako.start_again();
    let primary = metako.another_primary("node-1");
    let others: Vec<&str> =
        ["node-1", "node-2", "node-3"].into_iter().filter(|name| *name != primary).collect();
    wait_streaming(&cluster, &primary, &others);
    assert_eq!(direct(&cluster, &primary, "select count(*) from t"), "1");
}
