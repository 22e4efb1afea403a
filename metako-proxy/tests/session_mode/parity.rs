//! The same messages to PostgreSQL directly and through metako: the answers are the same bytes.

use metako_proxy::playground::Cluster;

use crate::bench::Bench;
use crate::wire::{Message, Wire, field, query};
use crate::{SESSION, running};

/// What differs from connection to connection.
fn comparable(messages: &[Message]) -> Vec<Message> {
    let plain = |(tag, body): &Message| match tag {
        b'K' => (*tag, vec![0; body.len()]),
        b'A' => (*tag, body[4..].to_vec()),
        _ => (*tag, body.clone()),
    };
    messages.iter().map(plain).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn log_ins_are_answered_as_postgresql_answers_them() {
    let bench = Bench::start(0, SESSION).await;
    let node = bench.cluster.node("node-1");
    bench.open_to_all(SESSION);
    node.sql(&format!("alter role {} set work_mem to '9MB'", Cluster::APP_USER)).unwrap();
    let cases: &[(&str, &[(&str, &str)])] = &[
        (Cluster::SUPERUSER, &[]),
        (Cluster::APP_USER, &[("application_name", "caf\u{e9} '\\ b")]),
        (
            Cluster::APP_USER,
            &[
                ("DateStyle", "German"),
                ("client_encoding", "latin1"),
                ("TimeZone", "Europe/Berlin"),
                ("options", "-c intervalstyle=iso_8601 -c default_transaction_read_only=on"),
                ("extra_float_digits", "2"),
            ],
        ),
        (Cluster::SUPERUSER, &[("client_encoding", "nonsense")]),
        (Cluster::SUPERUSER, &[("no_such_parameter", "1")]),
        (Cluster::SUPERUSER, &[("options", "-c shared_buffers=1")]),
        (Cluster::SUPERUSER, &[("options", "-z")]),
        (Cluster::SUPERUSER, &[("database", "nowhere")]),
        (Cluster::SUPERUSER, &[("role", "nobody_at_all")]),
    ];
    for (user, more) in cases {
        let parameters = [&[("user", *user), ("database", Cluster::DATABASE)][..], more].concat();
        let password = if *user == Cluster::APP_USER {
            bench.cluster.app_password()
        } else {
            bench.cluster.superuser_password()
        };
        let directly = Wire::start(bench.direct(), &parameters, password).await;
        let through = Wire::start(bench.port, &parameters, password).await;
        match (directly, through) {
            (Ok(directly), Ok(through)) => {
                assert_eq!(comparable(&through.greeting), comparable(&directly.greeting), "{more:?}");
            }
            (Err(directly), Err(through)) => assert_eq!(
                String::from_utf8_lossy(&through.1),
                String::from_utf8_lossy(&directly.1),
                "{more:?}"
            ),
            (directly, through) => {
                panic!("{more:?}: {:?} directly, {:?} through metako", directly.err(), through.err())
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_database_reach_a_user_that_metako_lets_in() {
    let bench = Bench::start(0, SESSION).await;
    let node = bench.cluster.node("node-1");
    node.sql("create role guest login password 'guest'").unwrap();
    node.sql("create database closed").unwrap();
    node.sql("revoke connect on database closed from public").unwrap();
    node.sql("create database full_house connection limit 0").unwrap();
    bench.open_to_all(SESSION);
    let compare = async |database: &str, wanted: &str| {
        let parameters = [("user", "guest"), ("database", database)];
        let directly = Wire::start(bench.direct(), &parameters, "guest").await.err().expect("refused");
        let through = Wire::start(bench.port, &parameters, "guest").await.err().expect("refused");
        assert_eq!(field(&directly.1, b'C'), wanted);
        assert_eq!(String::from_utf8_lossy(&through.1), String::from_utf8_lossy(&directly.1));
    };
    compare("closed", "42501").await;
    compare("full_house", "53300").await;
    node.sql("alter role guest connection limit 0").unwrap();
    compare("postgres", "53300").await;
    node.sql("alter role guest nologin").unwrap();
    compare("postgres", "28000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_client_sends_is_answered_as_postgresql_answers_it() {
    let bench = Bench::start(0, SESSION).await;
    let parse = |sql: &str| {
        let body = [b"\0", sql.as_bytes(), b"\0\0\0"].concat();
        [b"P", &u32::try_from(body.len() + 4).unwrap().to_be_bytes()[..], &body].concat()
    };
    let sync = b"S\0\0\0\x04".to_vec();
    // What is sent, and the message that ends the answer; a zero byte for the end of the connection.
    let cases: Vec<(Vec<u8>, u8)> = vec![
        (query("select n, repeat('x', 100) from generate_series(1, 2000) n"), b'Z'),
        (query("select 1/0"), b'Z'),
        (query(""), b'Z'),
        (query("begin; select 1; rollback; select nothing"), b'Z'),
        (query("listen there; notify there, 'hello'"), b'A'),
        (query("do $$ begin raise notice 'one'; raise warning 'two' using hint = 'three'; end $$"), b'Z'),
        (query("set datestyle to german; show datestyle"), b'Z'),
        (query("copy (select * from generate_series(1, 100)) to stdout"), b'Z'),
        (
            [
                query("create temp table c (n int)"),
                query("copy c from stdin"),
                b"d\0\0\0\x063\n".to_vec(),
                b"c\0\0\0\x04".to_vec(),
            ]
            .concat(),
            b'G',
        ),
        // Errors come without Sync or Flush.
        (parse("select nothing from nowhere"), b'E'),
        ([parse("select 1; select 2"), sync.clone()].concat(), b'Z'),
        (b"H\0\0\0\x04".iter().copied().chain(sync).collect(), b'Z'),
        // None of these is one of PostgreSQL's.
        (b"y\0\0\0\x04".to_vec(), 0),
        (b"S\0\0\0\x03".to_vec(), 0),
        (b"Q\x7f\xff\xff\xff".to_vec(), 0),
        (b"B\0\0\0\x05x".to_vec(), b'E'),
        (b"X\0\0\0\x04".to_vec(), 0),
    ];
    let parameters = [("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)];
    let password = bench.cluster.superuser_password();
    for (sent, last) in cases {
        let mut answers = Vec::new();
        for port in [bench.direct(), bench.port] {
            let mut wire = Wire::start(port, &parameters, password).await.expect("a log-in");
            wire.send(&sent).await;
            answers.push(comparable(&wire.until(last).await));
        }
        let through = answers.pop().unwrap();
        assert_eq!(through, answers[0], "{}", String::from_utf8_lossy(&sent));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_work() {
    let bench = Bench::start(0, SESSION).await;
    tokio::task::spawn_blocking(move || {
        let (cluster, port) = (&bench.cluster, bench.port);
        running::client(cluster, "pgbench", port, &["-i", "-s", "1", "-q"]);
        running::client(
            cluster,
            "psql",
            port,
            &["-XAtc", "create function f() returns int language sql as 'select 1'"],
        );
        let direct = running::client(cluster, "pg_dump", bench.direct(), &["--no-sync"]);
        let through = running::client(cluster, "pg_dump", port, &["--no-sync"]);
        let without_key = |dump: &str| -> String {
            dump.lines().filter(|line| !line.contains("restrict")).flat_map(|line| [line, "\n"]).collect()
        };
        assert_eq!(without_key(&through), without_key(&direct));
        assert!(through.contains("COPY public.pgbench_accounts"));
        let report =
            running::client(cluster, "pgbench", port, &["-n", "-C", "-c", "4", "-t", "20", "-M", "prepared"]);
        assert!(report.contains("number of transactions actually processed: 80/80"), "{report}");
    })
    .await
    .unwrap();
}
