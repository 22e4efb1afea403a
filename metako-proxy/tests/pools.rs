//! Pools of a metako process: what they keep open, whom they keep waiting, and what clients are told, on a real server.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod running;

use metako_proxy::playground::Cluster;
use running::{Metako, client_output, eventually, text};
use tokio_postgres::{Client, Config, NoTls};

/// A server with users `one`, `two` and `full_one` (who may have one connection), behind a metako with these pool settings.
struct Bench {
    cluster: Cluster,
    metako: Metako,
}

const ROLES: &str = "CREATE ROLE one LOGIN PASSWORD 'secret'; CREATE ROLE two LOGIN PASSWORD 'secret'; \
                     CREATE ROLE full_one LOGIN PASSWORD 'secret' CONNECTION LIMIT 1";

impl Bench {
    fn start(pool: &str, of_two: &str) -> Self {
        let cluster = running::cluster(0, None);
        for statement in ROLES.split("; ") {
            cluster.nodes()[0].sql(statement).unwrap();
        }
        let users = ["one", "full_one"].map(|name| format!("  - {{ name: {name}, password: secret }}\n"));
        let users =
            format!("users:\n{}  - {{ name: two, password: secret, pool: {of_two} }}\n", users.concat());
        let text = running::configuration(&cluster, pool);
        let own_users = text.find("users:\n").unwrap();
        let after =
            text[own_users..].match_indices('\n').nth(1).map_or(text.len(), |(at, _)| own_users + at + 1);
        let metako = Metako::start(&format!("{}{users}{}", &text[..own_users], &text[after..]));
        metako.wait_until_open(0);
        Self { cluster, metako }
    }

    async fn connect(&self, user: &str) -> Client {
        let mut config = Config::new();
        config
            .host("127.0.0.1")
            .port(self.metako.port)
            .user(user)
            .password("secret")
            .dbname(Cluster::DATABASE);
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// The server processes that serve a user, in the order of their start.
    fn processes(&self, user: &str) -> Vec<String> {
        let sql = format!(
            "SELECT coalesce(string_agg(pid::text, ',' ORDER BY backend_start, pid), '') FROM pg_stat_activity \
             WHERE usename = '{user}'"
        );
        let list = self.cluster.nodes()[0].sql(&sql).unwrap().unwrap_or_default();
        list.split(',').filter(|pid| !pid.is_empty()).map(str::to_owned).collect()
    }

    fn wait_for_processes(&self, user: &str, count: usize) -> Vec<String> {
        eventually(&format!("{user} has {count} server connections"), || {
            let found = self.processes(user);
            if found.len() == count { Ok(found) } else { Err(format!("{found:?}")) }
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minimum_is_opened_ahead_and_filled_up_again() {
    let bench = Bench::start("pool: { min: 3, size: 4 }", "{ min: 0 }");
    let (one, two) = (bench.connect("one").await, bench.connect("two").await);
    two.simple_query("SELECT 1").await.unwrap();
    one.simple_query("SELECT 1").await.unwrap();
    let before = bench.wait_for_processes("one", 3);
    // What dies is replaced, although nobody asks for it.
    bench.cluster.nodes()[0].sql(&format!("SELECT pg_terminate_backend({})", before[1])).unwrap();
    eventually("another process stands in for the one that was ended", || {
        let found = bench.processes("one");
        if found.len() == 3 && !found.contains(&before[1]) { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert_eq!(bench.processes("two").len(), 1, "its own settings hold for a user");
}

/// What a user once proved is no word for ever: with the user, or its password, goes what is opened in its name ahead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_opened_ahead_for_who_is_gone_from_the_configuration() {
    let bench = Bench::start("pool: { min: 2 }", "{ min: 2 }");
    for user in ["one", "two"] {
        bench.connect(user).await.simple_query("SELECT 1").await.unwrap();
        bench.wait_for_processes(user, 2);
    }
    let with = std::fs::read_to_string(bench.metako.config()).unwrap();
    let without: String =
        with.lines().filter(|line| !line.contains("name: one,")).flat_map(|line| [line, "\n"]).collect();
    assert_ne!(with.lines().count(), without.lines().count());
    bench.metako.rewrite(&without);
    let reload = bench.metako.command(&["reload"]);
    assert!(reload.status.success(), "{}", text(&reload.stderr));
    let end = |user: &str| {
        let sql =
            format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{user}'");
        bench.cluster.nodes()[0].sql(&sql).unwrap();
    };
    // What is opened ahead is looked at in rounds; two of them are seen to pass.
    for _ in 0..2 {
        let before = bench.processes("two");
        end("one");
        end("two");
        eventually("other processes stand in for those that were ended", || {
            let found = bench.processes("two");
            let new = found.len() == 2 && found.iter().all(|pid| !before.contains(pid));
            if new { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }
    bench.wait_for_processes("one", 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_whom_the_server_lets_in_no_more_is_not_tried_again_and_again() {
    let bench = Bench::start("pool: { min: 2 }", "{ min: 1 }");
    let (one, two) = (bench.connect("one").await, bench.connect("two").await);
    one.simple_query("SELECT 1").await.unwrap();
    two.simple_query("SELECT 1").await.unwrap();
    let node = &bench.cluster.nodes()[0];
    let end = |pid: &str| node.sql(&format!("SELECT pg_terminate_backend({pid})")).unwrap();
    let processes = bench.wait_for_processes("one", 2);
    node.sql("ALTER ROLE one PASSWORD 'another'").unwrap();
    end(&processes[0]);
    let refusals = || node.log_tail(1000).matches("password authentication failed for user \"one\"").count();
    eventually("it is tried", || if refusals() > 0 { Ok(()) } else { Err("no refusal".to_owned()) });
    // Pools are looked after in turn: each time that the other one is filled up, so would be this one.
    for _ in 0..4 {
        let before = bench.wait_for_processes("two", 1);
        end(&before[0]);
        eventually("another process stands in for the one that was ended", || {
            let found = bench.processes("two");
            if found.len() == 1 && found != before { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }
    assert_eq!(refusals(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reserve_serves_who_waited_long_and_a_user_may_have_settings_of_its_own() {
    let bench = Bench::start(
        "pool: { size: 1, reserve: 1, reserve_after: 200ms }",
        "{ reserve: 0, wait_timeout: 300ms, size: 1 }",
    );
    for (user, served) in [("one", true), ("two", false)] {
        let (holder, waiter) = (bench.connect(user).await, bench.connect(user).await);
        holder.batch_execute("BEGIN; SELECT 1").await.unwrap();
        let answer = waiter.simple_query("SELECT 2").await;
        assert_eq!(answer.is_ok(), served, "{answer:?}");
        if let Err(error) = answer {
            assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("53300"));
        }
        holder.batch_execute("COMMIT").await.unwrap();
        // The reserve does not stay.
        bench.wait_for_processes(user, 1);
        waiter.simple_query("SELECT 3").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_gives_no_more_connections_is_shared() {
    let bench = Bench::start("pool: { size: 5 }", "{}");
    let (first, second) = (bench.connect("full_one").await, bench.connect("full_one").await);
    first.batch_execute("BEGIN; SELECT 1").await.unwrap();
    let waiting = tokio::spawn(async move { second.simple_query("SELECT 2").await.map(drop) });
    // The server has refused a second connection, and said so in its log.
    eventually("the server refuses a second connection", || {
        let log = bench.cluster.nodes()[0].log_tail(200);
        if log.contains("too many connections for role \"full_one\"") { Ok(()) } else { Err(log) }
    });
    assert!(!waiting.is_finished());
    first.batch_execute("COMMIT").await.unwrap();
    waiting.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_told_to_all_who_wait_and_the_server_is_asked_seldom() {
    let bench = Bench::start("pool: { size: 2 }", "{}");
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(bench.connect("one").await);
    }
    let node = &bench.cluster.nodes()[0];
    node.sql("ALTER ROLE one PASSWORD 'another'").unwrap();
    node.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'one'").unwrap();
    bench.wait_for_processes("one", 0);
    let asked = clients.iter().map(|client| client.simple_query("SELECT 1"));
    for answer in futures_util::future::join_all(asked).await {
        let error = answer.unwrap_err();
        let code = error.code().map(tokio_postgres::error::SqlState::code);
        assert_eq!(code, Some("28P01"), "{error:?}");
    }
    let refusals = node.log_tail(1000).matches("password authentication failed for user \"one\"").count();
    assert!((1..12).contains(&refusals), "{refusals} of 12 were tried");

    // Right again, it is found to be so.
    node.sql("ALTER ROLE one PASSWORD 'secret'").unwrap();
    eventually("the right password is found to be right", || {
        let dsn = "user=one password=secret";
        let output =
            client_output(&bench.cluster, "psql", bench.metako.port, &["-XAt", "-d", dsn, "-c", "select 1"]);
        if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
    });
}
