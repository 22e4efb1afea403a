//! tokio-postgres.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{SinkExt as _, StreamExt as _, TryStreamExt as _};
use metako_proxy::playground::Cluster;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;
use tokio_postgres::binary_copy::{BinaryCopyInWriter, BinaryCopyOutStream};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Error, IsolationLevel, NoTls};

use crate::stage::{Outcome, Stage, outcomes};

/// Far above what anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn run(stage: &Stage) -> Vec<Outcome> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let names: [(&str, usize); 12] = [
        ("statements_and_types", 0),
        ("pipelined_statements", 1),
        ("portals", 2),
        ("transactions_and_savepoints", 3),
        ("copy", 4),
        ("binary_copy", 5),
        ("errors", 6),
        ("notifications", 7),
        ("cancel", 8),
        ("settings_at_connect", 9),
        ("many_clients", 10),
        ("large_values", 11),
    ];
    outcomes(&names, |check| {
        let run = async {
            match check {
                0 => statements_and_types(stage).await,
                1 => pipelined_statements(stage).await,
                2 => portals(stage).await,
                3 => transactions_and_savepoints(stage).await,
                4 => copy(stage).await,
                5 => binary_copy(stage).await,
                6 => errors(stage).await,
                7 => notifications(stage).await,
                8 => cancel(stage).await,
                9 => settings_at_connect(stage).await,
                10 => many_clients(stage).await,
                _ => large_values(stage).await,
            }
        };
        runtime.block_on(async { timeout(LIMIT, run).await.expect("it ends") });
    })
}

fn config(stage: &Stage, port: u16) -> Config {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user(Cluster::SUPERUSER).dbname(Cluster::DATABASE);
    config.password(stage.cluster.superuser_password());
    config
}

async fn connect(stage: &Stage) -> Client {
    client(&config(stage, stage.port)).await
}

async fn client(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A client whose asynchronous messages can be read.
async fn listener(stage: &Stage) -> (Client, UnboundedReceiver<AsyncMessage>) {
    let (client, mut connection) = config(stage, stage.port).connect(NoTls).await.unwrap();
    let (sender, receiver) = unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            // The check may have ended.
            let _ = sender.send(message);
        }
    });
    (client, receiver)
}

fn code(error: &Error) -> &str {
    error.code().map_or("none", SqlState::code)
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn statements_and_types(stage: &Stage) {
    let (one, two) = (connect(stage).await, connect(stage).await);
    let first = one
        .prepare("select $1::int + 1, $2::text, $3::bytea, $4::float8, $5::bool, $6::int[]")
        .await
        .unwrap();
    let second = two.prepare_typed("select $1 * 2", &[Type::INT8]).await.unwrap();
    assert_eq!(first.params().len(), 6);
    for turn in 0..30_i32 {
        let numbers: &[i32] = &[turn, 2];
        let row =
            one.query_one(&first, &[&turn, &"é✓", &&b"\0\xff"[..], &1.5_f64, &true, &numbers]).await.unwrap();
        assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (turn + 1, "é✓"));
        assert_eq!((row.get::<_, &[u8]>(2), row.get::<_, Vec<i32>>(5)), (&b"\0\xff"[..], numbers.to_vec()));
        assert_eq!(
            two.query_one(&second, &[&i64::from(turn)]).await.unwrap().get::<_, i64>(0),
            i64::from(turn) * 2
        );
    }
    assert!(one.query_opt("select 1 where false", &[]).await.unwrap().is_none());
    let row =
        one.query_typed("select $1::text || $2", &[(&"a", Type::TEXT), (&"b", Type::TEXT)]).await.unwrap();
    assert_eq!(row[0].get::<_, &str>(0), "ab");
    let messages = one.simple_query("select 1; select 2; set work_mem = '4MB'").await.unwrap();
    assert_eq!(messages.len(), 7, "{messages:?}");
    drop(first);
    assert_eq!(one.query_one("select 3", &[]).await.unwrap().get::<_, i32>(0), 3);
}

async fn pipelined_statements(stage: &Stage) {
    let client = connect(stage).await;
    let statement = client.prepare("select $1::int / $2::int").await.unwrap();
    let divide = |turn: i32| {
        let (client, statement) = (&client, &statement);
        async move { client.query_one(statement, &[&turn, &(turn % 10)]).await.map(|row| row.get::<_, i32>(0)) }
    };
    let answers = join_all((0..500).map(divide)).await;
    for (turn, answer) in (0..500_i32).zip(answers) {
        match answer {
            Ok(value) => assert_eq!(value, turn / (turn % 10)),
            Err(error) => assert_eq!((code(&error), turn % 10), ("22012", 0)),
        }
    }
    let texts: Vec<String> = (0..100).map(|turn| format!("select {turn}")).collect();
    let answers = join_all(texts.iter().map(|text| client.query_one(text, &[]))).await;
    for (turn, answer) in (0..100_i32).zip(answers) {
        assert_eq!(answer.unwrap().get::<_, i32>(0), turn);
    }
}

async fn portals(stage: &Stage) {
    let mut client = connect(stage).await;
    let transaction = client.transaction().await.unwrap();
    let sql = "select n from generate_series(1, 1000) n where n > $1";
    let portal = transaction.bind(sql, &[&10_i32]).await.unwrap();
    let other = transaction.bind("select 'other'", &[]).await.unwrap();
    let rows = transaction.query_portal(&portal, 5).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [11, 12, 13, 14, 15]);
    assert_eq!(transaction.query_portal(&other, 0).await.unwrap()[0].get::<_, &str>(0), "other");
    assert_eq!(transaction.query_portal(&portal, 0).await.unwrap().len(), 985);
    assert_eq!(transaction.query_portal(&portal, 0).await.unwrap().len(), 0);
    transaction.commit().await.unwrap();
}

async fn transactions_and_savepoints(stage: &Stage) {
    let mut client = connect(stage).await;
    client.batch_execute("create table tokio_tx (id int primary key)").await.unwrap();
    let insert = client.prepare("insert into tokio_tx values ($1)").await.unwrap();
    let mut transaction = client.transaction().await.unwrap();
    transaction.execute(&insert, &[&1_i32]).await.unwrap();
    let savepoint = transaction.savepoint("first").await.unwrap();
    let error = savepoint.execute(&insert, &[&1_i32]).await.unwrap_err();
    assert_eq!(code(&error), "23505");
    assert_eq!(code(&savepoint.query("select 1", &[]).await.unwrap_err()), "25P02");
    savepoint.rollback().await.unwrap();
    let savepoint = transaction.savepoint("again").await.unwrap();
    savepoint.execute(&insert, &[&2_i32]).await.unwrap();
    savepoint.commit().await.unwrap();
    transaction.commit().await.unwrap();
    // Rolled back by going out of scope.
    client.transaction().await.unwrap().execute(&insert, &[&3_i32]).await.unwrap();
    let read =
        client.build_transaction().isolation_level(IsolationLevel::Serializable).read_only(true).start();
    let read = read.await.unwrap();
    assert_eq!(read.query_one("select sum(id) from tokio_tx", &[]).await.unwrap().get::<_, i64>(0), 3);
    assert_eq!(code(&read.execute(&insert, &[&4_i32]).await.unwrap_err()), "25006");
}

async fn copy(stage: &Stage) {
    let client = connect(stage).await;
    client.batch_execute("create table tokio_copy (id int, body text)").await.unwrap();
    let sink = client.copy_in("copy tokio_copy from stdin").await.unwrap();
    tokio::pin!(sink);
    for id in 0..20_000 {
        sink.feed(Bytes::from(format!("{id}\trow {id}\n"))).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 20_000);
    let sink = client.copy_in("copy tokio_copy from stdin").await.unwrap();
    tokio::pin!(sink);
    sink.send(Bytes::from_static(b"no number\tx\n")).await.unwrap();
    assert_eq!(code(&sink.finish().await.unwrap_err()), "22P02");
    // One that is given up by both ends.
    drop(client.copy_in::<_, Bytes>("copy tokio_copy from stdin").await.unwrap());
    drop(
        client
            .copy_out("copy (select repeat('x', 1000) from generate_series(1, 9000)) to stdout")
            .await
            .unwrap(),
    );
    let chunks: Vec<Bytes> =
        client.copy_out("copy tokio_copy to stdout").await.unwrap().try_collect().await.unwrap();
    assert_eq!(chunks.len(), 20_000);
}

async fn binary_copy(stage: &Stage) {
    let client = connect(stage).await;
    client.batch_execute("create table tokio_binary (id int, body text)").await.unwrap();
    let types = [Type::INT4, Type::TEXT];
    let sink = client.copy_in("copy tokio_binary from stdin binary").await.unwrap();
    let writer = BinaryCopyInWriter::new(sink, &types);
    tokio::pin!(writer);
    for id in 0..2000_i32 {
        let row: [&(dyn ToSql + Sync); 2] = [&id, &"body"];
        writer.as_mut().write(&row).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap(), 2000);
    let stream = client.copy_out("copy tokio_binary to stdout binary").await.unwrap();
    let rows = BinaryCopyOutStream::new(stream, &types).map(|row| row.unwrap().get::<i32>(0));
    assert_eq!(rows.collect::<Vec<_>>().await, (0..2000).collect::<Vec<_>>());
}

async fn errors(stage: &Stage) {
    let client = connect(stage).await;
    client.batch_execute("create table tokio_errors (id int primary key)").await.unwrap();
    client.execute("insert into tokio_errors values (1)", &[]).await.unwrap();
    let error = client.execute("insert into tokio_errors values ($1)", &[&1_i32]).await.unwrap_err();
    let db = error.as_db_error().unwrap();
    assert_eq!(
        (code(&error), db.constraint(), db.table()),
        ("23505", Some("tokio_errors_pkey"), Some("tokio_errors"))
    );
    assert_eq!(code(&client.prepare("selec 1").await.unwrap_err()), "42601");
    assert_eq!(
        code(
            &client
                .query("select $1::int", &[&1_i32])
                .await
                .map(drop)
                .and(client.query("select 1/0", &[]).await)
                .unwrap_err()
        ),
        "22012"
    );
    assert_eq!(
        code(&client.batch_execute("insert into tokio_errors values (2); select 1/0").await.unwrap_err()),
        "22012"
    );
    client.batch_execute("begin").await.unwrap();
    assert_eq!(number(&client, "select count(*) from tokio_errors").await, 1);
    client.batch_execute("commit").await.unwrap();
    let refused = config(stage, stage.port).password("wrong").connect(NoTls).await.err().unwrap();
    assert_eq!(code(&refused), "28P01");
    let refused = config(stage, stage.port).dbname("no such database").connect(NoTls).await.err().unwrap();
    assert_eq!(code(&refused), "3D000");
}

async fn notifications(stage: &Stage) {
    let ((listener, mut messages), sender) = (listener(stage).await, connect(stage).await);
    listener.batch_execute("listen tokio_channel").await.unwrap();
    sender.batch_execute("notify tokio_channel, 'one'").await.unwrap();
    let payload = |message: Option<AsyncMessage>| match message {
        Some(AsyncMessage::Notification(notification)) => notification.payload().to_owned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(payload(messages.recv().await), "one");
    listener.batch_execute("do $$ begin raise notice 'a notice'; end $$").await.unwrap();
    match messages.recv().await {
        Some(AsyncMessage::Notice(notice)) => assert_eq!(notice.message(), "a notice"),
        other => panic!("{other:?}"),
    }
    sender.batch_execute("begin; notify tokio_channel, 'two'; commit").await.unwrap();
    assert_eq!(payload(messages.recv().await), "two");
}

async fn cancel(stage: &Stage) {
    let victim = connect(stage).await;
    let watchers = join_all(
        stage.cluster.nodes().iter().map(|node| async { client(&config(stage, node.port())).await }),
    )
    .await;
    let token = victim.cancel_token();
    let running = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep(60) -- tokio%'";
    let kill = async {
        while join_all(watchers.iter().map(|watcher| number(watcher, running))).await.iter().sum::<i64>() == 0
        {
        }
        token.cancel_query(NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::join!(victim.batch_execute("select pg_sleep(60) -- tokio"), kill);
    assert_eq!(code(&slept.unwrap_err()), "57014");
    // One that comes when nothing runs hits nobody.
    token.cancel_query(NoTls).await.unwrap();
    for _ in 0..20 {
        victim.query_one("select 1", &[]).await.unwrap();
    }
}

async fn settings_at_connect(stage: &Stage) {
    let mut own = config(stage, stage.port);
    own.application_name("tokio app")
        .options("-c work_mem=7MB -c search_path=pg_catalog -c timezone=Asia/Tokyo");
    let (own, plain) = (client(&own).await, connect(stage).await);
    for _ in 0..3 {
        assert_eq!(text(&own, "show work_mem").await, "7MB");
        assert_eq!(text(&plain, "show work_mem").await, "4MB");
        assert_eq!(text(&own, "show search_path").await, "pg_catalog");
        assert_eq!(text(&own, "show timezone").await, "Asia/Tokyo");
        assert_eq!(text(&own, "show application_name").await, "tokio app");
    }
    let refused = config(stage, stage.port).options("-c nonsense=1").connect(NoTls).await.err().unwrap();
    assert_eq!(code(&refused), "42704");
}

async fn many_clients(stage: &Stage) {
    let setup = connect(stage).await;
    setup.batch_execute("create table tokio_many (id int primary key, n int)").await.unwrap();
    setup.batch_execute("insert into tokio_many select n, 0 from generate_series(0, 7) n").await.unwrap();
    let work = |who: i32| async move {
        let mut client = connect(stage).await;
        let add = client.prepare("update tokio_many set n = n + 1 where id = $1").await.unwrap();
        for turn in 0..20_i32 {
            let transaction = client.transaction().await.unwrap();
            transaction.execute(&add, &[&((who + turn) % 8)]).await.unwrap();
            transaction.commit().await.unwrap();
        }
    };
    join_all((0..24).map(work)).await;
    setup.batch_execute("begin").await.unwrap();
    assert_eq!(number(&setup, "select sum(n) from tokio_many").await, 480);
    setup.batch_execute("commit").await.unwrap();
}

async fn large_values(stage: &Stage) {
    let client = connect(stage).await;
    client.batch_execute("create table tokio_large (body text, raw bytea)").await.unwrap();
    let (body, raw) = ("äbc".repeat(2_000_000), vec![7_u8; 8_000_000]);
    client.execute("insert into tokio_large values ($1, $2)", &[&body, &raw]).await.unwrap();
    let row = client.query_one("select body, raw from tokio_large for update", &[]).await.unwrap();
    assert!(row.get::<_, &str>(0) == body && row.get::<_, &[u8]>(1) == raw, "what was stored comes back");
    let rows =
        client.query("select n, repeat('x', 100) from generate_series(1, 100000) n", &[]).await.unwrap();
    assert_eq!(rows.len(), 100_000);
}
