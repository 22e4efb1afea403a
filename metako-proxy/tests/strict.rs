//! `failover.synchronous: strict` on a real cluster: what a commit's client is told when the wait for its standby ends
//! without that standby.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test where they stand")]

mod running;

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metako_proxy::playground::Cluster;
use nix::sys::signal::Signal;
use running::{Metako, eventually, text};
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client, Config, Error, NoTls};

const LIMIT: Duration = Duration::from_secs(60);

/// How a client commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Simple,
    /// By the extended protocol, without BEGIN: the commit is at the Sync.
    Implicit,
    /// COMMIT as a Query, after BEGIN.
    Explicit,
}

const WAYS: [Way; 3] = [Way::Simple, Way::Implicit, Way::Explicit];

/// A primary, its only standby, and metako before them.
struct Bench {
    cluster: Cluster,
    metako: Metako,
    runtime: tokio::runtime::Runtime,
    rows: i32,
}

/// A client with what it was told beside answers.
struct Told {
    client: Arc<Client>,
    notices: Arc<Mutex<Vec<String>>>,
    connection: JoinHandle<()>,
}

impl Told {
    /// Closes its socket without a word.
    fn vanish(self) {
        self.connection.abort();
    }
}

impl Bench {
    fn start(synchronous: &str, extra: &str) -> Self {
        let cluster = running::cluster(1, Some(1));
        let setup = "create table ledger (id int primary key, by text)";
        running::client(&cluster, "psql", cluster.node("node-1").port(), &["-XAtc", setup]);
        let metako = Metako::start(&configuration(&cluster, synchronous, extra));
        metako.wait_until_open(1);
        metako.wait_until_synchronous();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { cluster, metako, runtime, rows: 0 }
    }

    fn reload(&self, synchronous: &str, extra: &str) {
        self.metako.rewrite(&configuration(&self.cluster, synchronous, extra));
        let output = self.metako.command(&["reload"]);
        assert!(output.status.success(), "{output:?}");
    }

    fn direct(&self, sql: &str) -> String {
        let port = self.cluster.node("node-1").port();
        running::client(&self.cluster, "psql", port, &["-XAtc", sql]).trim().to_owned()
    }

    fn connect(&self) -> Told {
        self.try_connect(|_| {}).expect("a log-in")
    }

    fn try_connect(&self, adapt: impl FnOnce(&mut Config)) -> Result<Told, Error> {
        let mut config: Config = running::dsn(&self.cluster, self.metako.port).parse().unwrap();
        adapt(&mut config);
        self.runtime.block_on(async {
            let (client, mut connection) = config.connect(NoTls).await?;
            let notices = Arc::new(Mutex::new(Vec::new()));
            let heard = Arc::clone(&notices);
            let connection = tokio::spawn(async move {
                while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                    if let AsyncMessage::Notice(notice) = message {
                        heard.lock().unwrap().push(notice.message().to_owned());
                    }
                }
            });
            Ok(Told { client: Arc::new(client), notices, connection })
        })
    }

    /// Begins to write a row and waits until its commit waits for the standby. Gives the row, the commit's end, and the
    /// server process.
    fn begin_commit(&mut self, told: &Told, way: Way) -> (i32, JoinHandle<Result<(), Error>>, String) {
        self.rows += 1;
        let (row, client) = (self.rows, Arc::clone(&told.client));
        let end = self.runtime.spawn(async move {
            let insert = format!("insert into ledger values ({row}, 'row-{row}-')");
            match way {
                Way::Simple => client.batch_execute(&insert).await,
                Way::Implicit => client.execute(&insert, &[]).await.map(drop),
                Way::Explicit => {
                    client.batch_execute("begin").await?;
                    client.batch_execute(&insert).await?;
                    client.batch_execute(&format!("commit /* row-{row}- */")).await
                }
            }
        });
        let process = eventually("the commit waits for the standby", || {
            let waits = "select pid from pg_stat_activity where wait_event = 'SyncRep' and query like";
            let found = self.direct(&format!("{waits} '%row-{row}-%'"));
            if found.is_empty() { Err(format!("{way:?}")) } else { Ok(found) }
        });
        (row, end, process)
    }

    fn end(&self, commit: JoinHandle<Result<(), Error>>) -> Result<(), Error> {
        let ended = async { tokio::time::timeout(LIMIT, commit).await };
        self.runtime.block_on(ended).expect("the commit ends").unwrap()
    }

    fn value(&self, told: &Told, sql: &str) -> String {
        let asked = async { tokio::time::timeout(LIMIT, told.client.simple_query(sql)).await };
        let messages = self.runtime.block_on(asked).expect("an answer").unwrap();
        let row = messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        row.unwrap_or_else(|| panic!("{sql} gives no row")).to_owned()
    }

    fn is_on_the_primary(&self, row: i32) -> bool {
        self.direct(&format!("select count(*) from ledger where id = {row}")) == "1"
    }

    fn refused(&self, told: &Told, sql: &str) -> String {
        let asked = async { tokio::time::timeout(LIMIT, told.client.batch_execute(sql)).await };
        code(&self.runtime.block_on(asked).expect("an answer").expect_err(sql))
    }
}

fn configuration(cluster: &Cluster, synchronous: &str, extra: &str) -> String {
    // Reads of the ledger are the primary's: the standby is frozen.
    let split = if extra.contains("load_balancer") { "" } else { "load_balancer: { split: off }\n" };
    running::configuration(cluster, &format!("{split}{extra}"))
        .replace("synchronous: any 1", &format!("synchronous: {synchronous}"))
}

fn code(error: &Error) -> String {
    error.code().unwrap_or_else(|| panic!("not by the server: {error:?}")).code().to_owned()
}

fn detail(error: &Error) -> &str {
    error.as_db_error().and_then(|error| error.detail()).unwrap_or_default()
}

#[test]
fn a_commit_whose_wait_is_cancelled_is_unknown_to_its_client_in_every_pool_mode() {
    let mut bench = Bench::start("strict", "");
    for mode in ["transaction", "session", "statement"] {
        bench.reload("strict", &format!("pool: {{ mode: {mode} }}"));
        let told = bench.connect();
        assert_eq!(bench.value(&told, "show synchronous_commit"), "on");
        bench.cluster.node("node-2").freeze().unwrap();
        let allowed = |way: &&Way| mode != "statement" || **way != Way::Explicit;
        for (nth, way) in WAYS.iter().filter(allowed).enumerate() {
            for by_client in [true, false] {
                let (row, commit, process) = bench.begin_commit(&told, *way);
                assert!(!commit.is_finished());
                if by_client {
                    bench.runtime.block_on(told.client.cancel_token().cancel_query(NoTls)).unwrap();
                } else {
                    assert_eq!(bench.direct(&format!("select pg_cancel_backend({process})")), "t");
                }
                let error = bench.end(commit).expect_err("the commit's wait was cancelled");
                assert_eq!(code(&error), "08007", "{mode} {way:?} {by_client}: {error:?}");
                assert!(detail(&error).contains("might not have been replicated"), "{error:?}");
                // The session goes on, outside a transaction.
                assert_eq!(bench.value(&told, "select count(*) > 0 from ledger"), "t", "{mode} {nth}");
                assert!(bench.is_on_the_primary(row), "{mode} {way:?}");
            }
        }
        // What PostgreSQL itself says is not kept from the client.
        let heard = told.notices.lock().unwrap().clone();
        assert!(heard.iter().any(|notice| notice.contains("wait for synchronous replication")), "{heard:?}");
        bench.cluster.node("node-2").thaw().unwrap();
        let (way, row) = (Way::Simple, bench.rows + 1);
        let insert = format!("insert into ledger values ({row}, 'acknowledged')");
        let done = async { tokio::time::timeout(LIMIT, told.client.batch_execute(&insert)).await };
        bench.runtime.block_on(done).expect("the standby acknowledges again").unwrap_or_else(|error| {
            panic!("{mode} {way:?}: {error:?}");
        });
        bench.rows = row;
    }
}

#[test]
fn a_wait_that_is_terminated_is_unknown_and_a_reload_turns_the_guard_on_and_off() {
    let mut bench = Bench::start("strict", "");
    let told = bench.connect();
    bench.cluster.node("node-2").freeze().unwrap();
    for way in WAYS {
        let (row, commit, process) = bench.begin_commit(&told, way);
        assert_eq!(bench.direct(&format!("select pg_terminate_backend({process})")), "t");
        let error = bench.end(commit).expect_err("the connection was terminated");
        assert_eq!(code(&error), "08007", "{way:?}: {error:?}");
        assert_eq!(bench.value(&told, "select 1"), "1");
        assert!(bench.is_on_the_primary(row));
    }
    bench.reload("any 1", "");
    let (row, commit, process) = bench.begin_commit(&told, Way::Implicit);
    bench.direct(&format!("select pg_cancel_backend({process})"));
    bench.end(commit).expect("to PostgreSQL, this is success");
    assert!(bench.is_on_the_primary(row));
    let heard = told.notices.lock().unwrap().last().cloned().unwrap_or_default();
    assert!(heard.starts_with("canceling wait for synchronous replication"), "{heard}");
    bench.reload("strict", "");
    let (_, commit, process) = bench.begin_commit(&told, Way::Implicit);
    bench.direct(&format!("select pg_cancel_backend({process})"));
    assert_eq!(code(&bench.end(commit).expect_err("guarded again")), "08007");
    // With a server connection of its own the client loses that, and is told the same.
    bench.reload("strict", "pool: { mode: session }");
    let told = bench.connect();
    let (row, commit, process) = bench.begin_commit(&told, Way::Explicit);
    bench.direct(&format!("select pg_terminate_backend({process})"));
    assert_eq!(code(&bench.end(commit).expect_err("the connection was terminated")), "08007");
    assert!(bench.is_on_the_primary(row));
    bench.cluster.node("node-2").thaw().unwrap();
}

#[test]
fn metako_cancels_no_commit_by_itself() {
    let mut bench = Bench::start("strict", "load_balancer: { split: off, write_timeout: 1s }");
    let (committing, vanishing) = (bench.connect(), bench.connect());
    bench.cluster.node("node-2").freeze().unwrap();
    let (row, commit, process) = bench.begin_commit(&committing, Way::Explicit);
    // A statement that commits by itself is under that time-out, and says so. The COMMIT began before it.
    let (other, insert, _) = bench.begin_commit(&vanishing, Way::Simple);
    let error = bench.end(insert).expect_err("write_timeout");
    assert_eq!(code(&error), "08007");
    assert!(detail(&error).contains("load_balancer.write_timeout"), "{error:?}");
    assert!(bench.is_on_the_primary(other));
    let waits = |bench: &Bench, process: &str| {
        let sql =
            format!("select count(*) from pg_stat_activity where pid = {process} and wait_event = 'SyncRep'");
        bench.direct(&sql) == "1"
    };
    assert!(waits(&bench, &process) && !commit.is_finished());
    // A client that vanishes takes its COMMIT along to nobody's knowledge: it is not cancelled either. What commits by
    // itself, of a client that vanished later, is.
    let (_, lost, lost_process) = bench.begin_commit(&vanishing, Way::Explicit);
    vanishing.vanish();
    bench.end(lost).expect_err("its connection is gone");
    bench.reload("strict", "");
    let later = bench.connect();
    let (_, insert, later_process) = bench.begin_commit(&later, Way::Simple);
    later.vanish();
    bench.end(insert).expect_err("its connection is gone");
    eventually("the statement of a client that vanished ends", || {
        if waits(&bench, &later_process) { Err("it waits".to_owned()) } else { Ok(()) }
    });
    assert!(waits(&bench, &lost_process), "the COMMIT of a client that vanished before is not cancelled");
    assert!(waits(&bench, &process));
    bench.cluster.node("node-2").thaw().unwrap();
    bench.end(commit).expect("a standby has it now");
    assert!(bench.is_on_the_primary(row));
}

#[test]
fn a_commit_in_flight_is_not_cancelled_where_its_client_is_sent_away() {
    let mut bench = Bench::start("strict", "pool: { mode: session }\nlimits: { message_size: 64KiB }");
    let told = bench.connect();
    bench.cluster.node("node-2").freeze().unwrap();
    let (row, commit, process) = bench.begin_commit(&told, Way::Explicit);
    let too_long = format!("select '{}'", "x".repeat(128 << 10));
    bench.runtime.block_on(told.client.batch_execute(&too_long)).expect_err("it is too long");
    assert_eq!(code(&bench.end(commit).expect_err("its connection ended")), "08007");
    let sql = format!("select wait_event from pg_stat_activity where pid = {process}");
    assert_eq!(bench.direct(&sql), "SyncRep");
    bench.cluster.node("node-2").thaw().unwrap();
    eventually("it is committed once a standby has it", || {
        if bench.is_on_the_primary(row) { Ok(()) } else { Err("it waits".to_owned()) }
    });
}

#[test]
fn a_commit_in_flight_is_unknown_to_its_client_when_metako_stops() {
    for (way, cancelled) in [(Way::Explicit, false), (Way::Simple, true)] {
        let mut bench = Bench::start("strict", "");
        let (told, reader) = (bench.connect(), bench.connect());
        let read = bench.runtime.spawn({
            let client = Arc::clone(&reader.client);
            async move { client.batch_execute("select count(*) from generate_series(1, 100000000000)").await }
        });
        bench.cluster.node("node-2").freeze().unwrap();
        let (row, commit, process) = bench.begin_commit(&told, way);
        bench.metako.signal(Signal::SIGTERM);
        bench.metako.wait_logged("asked to stop");
        bench.metako.signal(Signal::SIGTERM);
        assert_eq!(code(&bench.end(commit).expect_err("metako stops")), "08007", "{way:?}");
        assert_eq!(code(&bench.end(read).expect_err("metako stops")), "57P01");
        let waits =
            format!("select count(*) from pg_stat_activity where pid = {process} and wait_event = 'SyncRep'");
        eventually("a COMMIT goes on, and another statement is cancelled", || {
            let waits = bench.direct(&waits);
            if (waits == "0") == cancelled { Ok(()) } else { Err(waits) }
        });
        bench.cluster.node("node-2").thaw().unwrap();
        eventually("it is committed in the end", || {
            if bench.is_on_the_primary(row) { Ok(()) } else { Err("it waits".to_owned()) }
        });
    }
}

#[test]
fn what_the_guard_needs_is_set_and_kept() {
    let bench = Bench::start("strict", "");
    let app = Cluster::APP_USER;
    let lowered = format!(
        "alter role {app} set synchronous_commit = off; alter role {app} set client_min_messages = error"
    );
    running::client(&bench.cluster, "psql", bench.cluster.node("node-1").port(), &["-XAtc", &lowered]);
    let password = bench.cluster.app_password().to_owned();
    let as_app = |config: &mut Config| {
        config.user(app).password(&password);
    };
    for mode in ["transaction", "session"] {
        bench.reload("strict", &format!("pool: {{ mode: {mode} }}"));
        let told = bench.try_connect(as_app).unwrap();
        for sql in ["", "reset all", "set synchronous_commit to default", "discard all"] {
            bench.runtime.block_on(told.client.batch_execute(sql)).unwrap();
            assert_eq!(bench.value(&told, "show synchronous_commit"), "on", "{mode} {sql}");
            assert_eq!(bench.value(&told, "show client_min_messages"), "notice", "{mode} {sql}");
        }
        let more = bench.try_connect(|config| {
            as_app(config);
            config.options("-c synchronous_commit=remote_apply -c client_min_messages=warning");
        });
        let more = more.unwrap();
        assert_eq!(bench.value(&more, "show synchronous_commit"), "remote_apply");
        assert_eq!(bench.value(&more, "show client_min_messages"), "warning");
        let less = bench.try_connect(|config| {
            as_app(config);
            config.options("-c synchronous_commit=off");
        });
        assert_eq!(less.map(drop).map_err(|error| code(&error)), Err("22023".to_owned()));
        for sql in [
            "set synchronous_commit = off",
            "set local client_min_messages = error; select 1",
            "select set_config('synchronous_commit', 'local', false)",
        ] {
            assert_eq!(bench.refused(&told, sql), "22023", "{mode}: {sql}");
        }
        let by_call = "select set_config('synchronous_commit', $1, true)";
        for error in [
            bench.runtime.block_on(told.client.batch_execute("set synchronous_commit = off")).map(drop),
            bench.runtime.block_on(told.client.execute("set synchronous_commit = off", &[])).map(drop),
            bench.runtime.block_on(told.client.execute(by_call, &[&"off"])).map(drop),
        ] {
            let error = error.expect_err("it is refused");
            assert_eq!(code(&error), "22023", "{mode}: {error:?}");
            let told = error.as_db_error().unwrap();
            let message = "\"synchronous_commit\" is not to be set to that while commits are guarded";
            assert_eq!(told.message(), message, "{mode}");
            assert!(
                told.hint().unwrap_or_default().contains("sets commit_guard to false"),
                "{mode}: {error:?}"
            );
        }
        // In a block it fails as PostgreSQL's errors do.
        bench.runtime.block_on(told.client.batch_execute("begin")).unwrap();
        assert_eq!(bench.refused(&told, "set local synchronous_commit = off"), "22023");
        assert_eq!(bench.refused(&told, "select 1"), "25P02");
        bench.runtime.block_on(told.client.batch_execute("rollback")).unwrap();
        assert_eq!(bench.value(&told, "show synchronous_commit"), "on");
    }
    // What no text shows is found behind it, where servers are shared.
    bench.reload("strict", "");
    let told = bench.try_connect(as_app).unwrap();
    let hidden = "do $$ begin set synchronous_commit = off; set client_min_messages = error; end $$";
    bench.runtime.block_on(told.client.batch_execute(hidden)).unwrap();
    assert_eq!(bench.value(&told, "show synchronous_commit"), "on");
    assert_eq!(bench.value(&told, "show client_min_messages"), "notice");
    assert!(bench.metako.log().contains("lower than commit_guard allows"));
    // A connection of logical replication takes SQL.
    let logical = |sql: &str| {
        running::client_output(
            &bench.cluster,
            "psql",
            bench.metako.port,
            &["-XAtc", sql, "replication=database"],
        )
    };
    assert_eq!(text(&logical("show client_min_messages").stdout).trim(), "notice");
    let output = logical("set synchronous_commit = off");
    assert!(text(&output.stderr).contains("while commits are guarded"), "{output:?}");
    // Without the guard it is the client's own affair again.
    bench.reload("any 1", "");
    let told = bench.try_connect(as_app).unwrap();
    assert_eq!(bench.value(&told, "show synchronous_commit"), "off");
    assert_eq!(text(bench.metako.log().as_bytes()).matches("panicked").count(), 0);
}
