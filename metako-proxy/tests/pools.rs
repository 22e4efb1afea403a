//! Pools of a metako process: what they keep open, whom they keep waiting, and what clients are told, on a real server.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod running;

use metako_proxy::playground::Cluster;
use running::{Metako, client_output, eventually, text};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// A server with users `one`, `two`, `full_one` (who may have one connection) and `full_three`, behind a metako with these pool settings.
struct Bench {
    cluster: Cluster,
    metako: Metako,
}

const ROLES: &str = "CREATE ROLE one LOGIN PASSWORD 'secret'; CREATE ROLE two LOGIN PASSWORD 'secret'; \
                     CREATE ROLE full_one LOGIN PASSWORD 'secret' CONNECTION LIMIT 1; \
                     CREATE ROLE full_three LOGIN PASSWORD 'secret' CONNECTION LIMIT 3";

impl Bench {
    fn start(pool: &str, of_two: &str) -> Self {
        let cluster = running::cluster(0, None);
        for statement in ROLES.split("; ") {
            cluster.nodes()[0].sql(statement).unwrap();
        }
        let users = ["one", "full_one", "full_three"]
            .map(|name| format!("  - {{ name: {name}, password: secret }}\n"));
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

    fn client(&self, user: &str) -> Config {
        let mut config = Config::new();
        config
            .host("127.0.0.1")
            .port(self.metako.port)
            .user(user)
            .password("secret")
            .dbname(Cluster::DATABASE);
        config
    }

    async fn connect(&self, user: &str) -> Client {
        let (client, connection) = self.client(user).connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// From now on a new process of the server sleeps for so long before it lets anybody in.
    async fn slow_down(&self, seconds: u32, watcher: &Client) {
        let node = &self.cluster.nodes()[0];
        node.sql(&format!("ALTER SYSTEM SET pre_auth_delay = '{seconds}s'")).unwrap();
        node.sql("SELECT pg_reload_conf()").unwrap();
        let begun = std::time::Instant::now();
        while value(watcher, "SHOW pre_auth_delay").await != format!("{seconds}s") {
            assert!(begun.elapsed() < running::PATIENCE, "the server goes by it");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// How many connections to the server are established.
    fn connections(&self) -> usize {
        const ESTABLISHED: &str = "01";
        let remote = format!(":{:04X}", self.cluster.nodes()[0].port());
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let is_one = |line: &&str| {
            let mut fields = line.split_whitespace().skip(2);
            fields.next().is_some_and(|peer| peer.ends_with(&remote)) && fields.next() == Some(ESTABLISHED)
        };
        table.lines().filter(is_one).count()
    }

    fn wait_for_connections(&self, what: &str, is_it: impl Fn(usize) -> bool) {
        eventually(what, || {
            let now = self.connections();
            if is_it(now) { Ok(()) } else { Err(now.to_string()) }
        });
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

/// The one value that a query answers.
async fn value(client: &Client, query: &str) -> String {
    let answer = client.simple_query(query).await.unwrap();
    let row = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.unwrap().to_owned()
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
async fn who_waits_for_a_new_connection_takes_one_that_is_given_back_before() {
    let bench = Bench::start("pool: { size: 3 }", "{}");
    let (first, second) = (bench.connect("one").await, bench.connect("one").await);
    first.batch_execute("BEGIN").await.unwrap();
    let own = value(&first, "SELECT pg_backend_pid()").await;
    bench.slow_down(3, &first).await;
    let before = bench.connections();
    let waiting = tokio::spawn(async move {
        let taken = value(&second, "SELECT pg_backend_pid()").await;
        (second, taken)
    });
    bench.wait_for_connections("one is opened for the second client", |now| now > before);
    first.batch_execute("COMMIT").await.unwrap();
    let (second, taken) = waiting.await.unwrap();
    assert_eq!(taken, own);
    // The one under way is for whoever comes next: no other is opened.
    first.batch_execute("BEGIN").await.unwrap();
    second.batch_execute("BEGIN").await.unwrap();
    assert_eq!(bench.wait_for_processes("one", 2).len(), 2);
    assert_eq!(bench.connections(), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_opened_for_one_client_only_is_given_up_with_it() {
    let bench = Bench::start("pool: { mode: session, size: 2 }\nlog: { level: debug }", "{}");
    let watcher = bench.connect("one").await;
    // Longer than metako waits for a server, which it would say.
    bench.slow_down(50, &watcher).await;
    let before = bench.connections();
    let client = bench.client("one");
    let leaving = tokio::spawn(async move { client.connect(NoTls).await.map(drop) });
    bench.wait_for_connections("one is opened for the client", |now| now > before);
    leaving.abort();
    bench.wait_for_connections("it is closed", |now| now == before);
    assert!(!bench.metako.log().contains("a connection could not be opened"), "{}", bench.metako.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_for_whom_there_is_no_connection_left_share_what_others_get() {
    let bench = Bench::start("pool: { size: 8 }", "{}");
    // All openings begin together, and what the server refuses comes before what it grants.
    let clients: Vec<_> = (0..8).map(|_| bench.client("full_three")).collect();
    let clients = clients.into_iter().map(|client| {
        tokio::spawn(async move {
            let (client, connection) = client.connect(NoTls).await?;
            tokio::spawn(connection);
            client.batch_execute("SELECT pg_sleep(0.05)").await
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap().unwrap();
    }
    assert!((1..=3).contains(&bench.processes("full_three").len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lets_nobody_in_is_told_from_a_pool_that_is_used_up() {
    let bench = Bench::start("pool: { size: 2, wait_timeout: 1s }\nfailover: { hold_timeout: 6s }", "{}");
    let (first, second) = (bench.connect("one").await, bench.connect("one").await);
    first.batch_execute("BEGIN").await.unwrap();
    bench.slow_down(50, &first).await;
    let refused = second.batch_execute("SELECT 1").await.unwrap_err();
    let refused = refused.as_db_error().unwrap();
    assert_eq!(refused.code().code(), "57P03", "{refused:?}");
    assert!(refused.message().contains("no primary to write to"), "{refused:?}");
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
