//! psql, pgbench and tokio-postgres through a metako process, on a real cluster.

mod running;

use running::{Metako, client, client_output, eventually, text};
use tokio_postgres::NoTls;

fn statements(status: &serde_json::Value, node: &str, kind: &str) -> u64 {
    status["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["name"] == node)
        .and_then(|entry| entry["queries"][kind].as_u64())
        .unwrap_or_default()
}

#[test]
fn psql_and_pgbench_work_and_reads_spread_over_the_replicas() {
    let cluster = running::cluster(2, None);
    let metako = Metako::start(&running::configuration(&cluster, ""));
    metako.wait_until_open(2);
    let psql = |sql: &str| client(&cluster, "psql", metako.port, &["-XAtc", sql]);

    assert_eq!(psql("select 40 + 2"), "42\n");
    psql("create table note (id int primary key, body text)");
    assert_eq!(psql("insert into note values (1, 'one'), (2, 'two') returning id"), "1\n2\nINSERT 0 2\n");
    assert_eq!(
        psql("begin; update note set body = 'uno' where id = 1; commit; select body from note where id = 1"),
        "BEGIN\nUPDATE 1\nCOMMIT\nuno\n"
    );

    let failed = client_output(&cluster, "psql", metako.port, &["-XAtc", "select 1/0"]);
    assert!(text(&failed.stderr).contains("division by zero"), "{}", text(&failed.stderr));
    let notice = client_output(
        &cluster,
        "psql",
        metako.port,
        &["-XAtc", "do $$ begin raise notice 'hello %', 1; end $$"],
    );
    assert!(text(&notice.stderr).contains("NOTICE:  hello 1"), "{}", text(&notice.stderr));

    let file = tempfile::NamedTempFile::new().unwrap();
    let rows: Vec<String> = (10..2010).map(|id| format!("{id}\trow {id}\n")).collect();
    std::fs::write(file.path(), rows.concat()).unwrap();
    let copied = psql(&format!("\\copy note from '{}'", file.path().display()));
    assert_eq!(copied, "COPY 2000\n");
    let out = psql("copy (select id from note order by id) to stdout");
    assert_eq!(out.lines().count(), 2002);

    client(&cluster, "pgbench", metako.port, &["-i", "-s", "1", "-q"]);
    for protocol in ["simple", "extended", "prepared"] {
        let report = client(
            &cluster,
            "pgbench",
            metako.port,
            &["-n", "-M", protocol, "-c", "8", "-j", "2", "-t", "50"],
        );
        assert!(report.contains("number of failed transactions: 0 (0.000%)"), "{protocol}: {report}");
        assert!(
            report.contains("number of transactions actually processed: 400/400"),
            "{protocol}: {report}"
        );
    }
    let before = metako.status().unwrap();
    for protocol in ["simple", "extended", "prepared"] {
        let report = client(
            &cluster,
            "pgbench",
            metako.port,
            &["-n", "-S", "-M", protocol, "-c", "8", "-j", "2", "-t", "100"],
        );
        assert!(
            report.contains("number of transactions actually processed: 800/800"),
            "{protocol}: {report}"
        );
    }
    let after = metako.status().unwrap();
    let reads = |node: &str| statements(&after, node, "reads") - statements(&before, node, "reads");
    let (second, third) = (reads("node-2"), reads("node-3"));
    assert!(second + third >= 2400, "reads of the replicas: {second} + {third}");
    assert!(second.abs_diff(third) <= 2400 / 10, "round robin is even: {second} and {third}");
    // tpcb's balance adds up however it was split: no statement was lost or run twice.
    let sums = psql("select sum(abalance) = (select sum(delta) from pgbench_history) from pgbench_accounts");
    assert_eq!(sums, "t\n");
    assert!(metako.stop(), "SIGTERM ends metako with success");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokio_postgres_works_with_prepared_statements_transactions_copy_and_cancel() {
    let (cluster, metako) = tokio::task::spawn_blocking(|| {
        let cluster = running::cluster(1, None);
        let metako = Metako::start(&running::configuration(&cluster, ""));
        metako.wait_until_open(1);
        (cluster, metako)
    })
    .await
    .unwrap();
    let dsn = running::dsn(&cluster, metako.port);
    let (mut client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);

    client.batch_execute("create table item (id int primary key, body text)").await.unwrap();
    let insert = client.prepare("insert into item values ($1, $2)").await.unwrap();
    for id in 0..100_i32 {
        assert_eq!(client.execute(&insert, &[&id, &format!("item {id}")]).await.unwrap(), 1);
    }
    let transaction = client.transaction().await.unwrap();
    let seen: i64 = transaction.query_one("select count(*) from item", &[]).await.unwrap().get(0);
    assert_eq!(seen, 100);
    let error = transaction.execute(&insert, &[&1_i32, &"again"]).await.unwrap_err();
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("23505"));
    transaction.rollback().await.unwrap();

    // Two clients, the same statement name, other texts, one pool of servers.
    let (other, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    let one = client.prepare("select $1::int + 1").await.unwrap();
    let two = other.prepare("select $1::int + 2").await.unwrap();
    for turn in 0..20_i32 {
        assert_eq!(client.query_one(&one, &[&turn]).await.unwrap().get::<_, i32>(0), turn + 1);
        assert_eq!(other.query_one(&two, &[&turn]).await.unwrap().get::<_, i32>(0), turn + 2);
    }

    let cancel = client.cancel_token();
    // Prepared first: while a server parses, it shows the text as active too.
    let sleep = client.prepare("select pg_sleep(60) from item where id = 1 for update").await.unwrap();
    let sleeping = client.execute(&sleep, &[]);
    let killer = async {
        // The cancel must find the statement running: ask the other connection until it does.
        loop {
            let running = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep(60)%'";
            if other.query_one(running, &[]).await.unwrap().get::<_, i64>(0) == 1 {
                return cancel.cancel_query(NoTls).await.unwrap();
            }
        }
    };
    let (slept, ()) = tokio::join!(sleeping, killer);
    let error = slept.unwrap_err();
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("57014"), "{error}");
    // The cancel was for that statement alone: the servers are clean.
    for _ in 0..50 {
        client.query_one("select 1", &[]).await.unwrap();
        other.query_one("select 1", &[]).await.unwrap();
    }

    tokio::task::spawn_blocking(move || {
        eventually("the servers are back in the pools", || {
            let status = metako.status()?;
            let in_use: u64 = status["nodes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|node| node["connections_in_use"].as_u64())
                .sum();
            if in_use == 0 { Ok(()) } else { Err(status.to_string()) }
        });
        drop((metako, cluster));
    })
    .await
    .unwrap();
}
