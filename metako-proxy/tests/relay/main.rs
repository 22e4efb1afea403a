//! The data plane in this process, on a real cluster, with a cluster view that the test publishes.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod bench;
mod hostile;
mod noting;
mod raw;
#[path = "../running/mod.rs"]
mod running;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use metako_core::Epoch;
use metako_core::cluster::{ObservedRole, ReadFitness};
use metako_proxy::playground::Cluster;
use tokio::time::timeout;
use tokio_postgres::NoTls;

use bench::{Bench, LIMIT, code, held, node, open, text};

#[tokio::test(flavor = "multi_thread")]
async fn all_kinds_of_statements_work_on_one_shared_server() {
    let bench = Bench::start(0, "pool: { size: 1 }").await;
    let (mut one, two) = (bench.client().await, bench.client().await);

    one.batch_execute("create table item (id int primary key, body text)").await.unwrap();
    let insert = one.prepare("insert into item values ($1, $2)").await.unwrap();
    let count = two.prepare("select count(*) from item where id < $1").await.unwrap();
    for id in 0..50_i32 {
        one.execute(&insert, &[&id, &"x"]).await.unwrap();
        assert_eq!(two.query_one(&count, &[&1000_i32]).await.unwrap().get::<_, i64>(0), i64::from(id) + 1);
    }

    // A transaction keeps the only server; the other client waits for its turn.
    let transaction = one.transaction().await.unwrap();
    transaction.execute(&insert, &[&100_i32, &"y"]).await.unwrap();
    let waiting = two.query_one(&count, &[&1000_i32]);
    let rollback = async {
        let error = transaction.execute(&insert, &[&100_i32, &"again"]).await.unwrap_err();
        assert_eq!(code(&error), "23505");
        let error = transaction.query("select 1", &[]).await.unwrap_err();
        assert_eq!(code(&error), "25P02");
        transaction.rollback().await.unwrap();
    };
    let (counted, ()) = tokio::join!(waiting, rollback);
    assert_eq!(counted.unwrap().get::<_, i64>(0), 50);

    // Errors in pipelines hit only their own unit.
    let bad = one.simple_query("select 1/0");
    let good = one.simple_query("select 7");
    let (bad, good) = tokio::join!(bad, good);
    assert_eq!(code(&bad.unwrap_err()), "22012");
    assert!(good.is_ok());

    let sink = one.copy_in("copy item from stdin").await.unwrap();
    tokio::pin!(sink);
    for id in 1000..3000 {
        sink.send(bytes::Bytes::from(format!("{id}\trow {id}\n"))).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 2000);
    let failed = one.copy_in::<_, bytes::Bytes>("copy item from stdin").await.unwrap();
    drop(failed);
    let out = one.copy_out("copy item to stdout").await.unwrap();
    let rows = out.map(|chunk| chunk.unwrap().len()).collect::<Vec<_>>().await;
    assert_eq!(rows.len(), 2050);

    // Larger than any buffer, both ways, and many rows.
    let big = "b".repeat(3 << 20);
    let back: String = one.query_one("select $1::text", &[&big]).await.unwrap().get(0);
    assert_eq!(back, big);
    assert_eq!(text(&two, &format!("select length('{big}')")).await, big.len().to_string());
    let many = two.query("select g, repeat('z', 500) from generate_series(1, 20000) g", &[]).await.unwrap();
    assert_eq!(many.len(), 20_000);
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_to_the_replica_and_what_it_refuses_to_the_primary() {
    let bench = Bench::start(1, "").await;
    let client = bench.client().await;
    // Views hide from the classifier what the functions in them do.
    client
        .batch_execute(
            "create sequence s; create view next as select nextval('s') as n; \
             create view standby as select pg_is_in_recovery() as yes; \
             create view slow as select pg_sleep(0.5)::text as slept",
        )
        .await
        .unwrap();
    let replica = bench.cluster.node("node-2").clone();
    timeout(LIMIT, async {
        let config = replica.client_config().dbname(Cluster::DATABASE).clone();
        let (direct, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        while text(&direct, "select count(*) from pg_class where relname = 'slow'").await != "1" {}
    })
    .await
    .unwrap();
    assert_eq!(text(&client, "select yes from standby").await, "t");
    assert_eq!(text(&client, "begin; select yes from standby").await, "f");
    client.batch_execute("rollback").await.unwrap();
    // Looks like a read, and writes: the replica refuses it, and nobody sees that.
    assert_eq!(text(&client, "select n from next").await, "1");
    assert_eq!(client.query_one("select n from next", &[]).await.unwrap().get::<_, i64>(0), 2);
    bench.settled().await;
    assert!(bench.reads("node-2") > 2);

    // The replica dies: reads that it has not answered are run elsewhere.
    let sleeping = text(&client, "select 5 from slow");
    let kill = async {
        let other = replica.connect().await.unwrap();
        let query = "select count(*) from pg_stat_activity where query = 'select 5 from slow'";
        while other.query_one(query, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
        replica.kill_9_all().unwrap();
    };
    let (slept, ()) = tokio::join!(sleeping, kill);
    assert_eq!(slept, "5");
    assert_eq!(text(&client, "select yes from standby").await, "f");
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_stay_with_their_client() {
    let bench = Bench::start(0, "pool: { size: 3 }").await;
    let (pinned, other) = (bench.client().await, bench.client().await);
    pinned.batch_execute("set search_path = 'nowhere'").await.unwrap();
    pinned.batch_execute("create temp table mine (id int)").await.unwrap();
    assert_eq!(text(&pinned, "show search_path").await, "nowhere");
    for _ in 0..10 {
        assert_ne!(text(&other, "show search_path").await, "nowhere");
    }
    drop(pinned);
    for _ in 0..10 {
        assert_ne!(text(&other, "show search_path").await, "nowhere");
        // By name, not in pg_class: the table itself goes a moment after its client, when the server has noticed.
        assert_eq!(text(&other, "select to_regclass('mine') is null").await, "t");
    }
    // Start-up parameters are the client's own, whoever had the server before.
    let named = bench.client_with("application_name=it's").await;
    let optioned = bench.client_with("options='-c work_mem=7MB -c extra_float_digits=1'").await;
    for _ in 0..5 {
        assert_eq!(text(&named, "show application_name").await, "it's");
        assert_eq!(text(&optioned, "show work_mem").await, "7MB");
        assert_eq!(text(&other, "show application_name").await, "");
        assert_ne!(text(&other, "show work_mem").await, "7MB");
    }
    // What PostgreSQL refuses at log-in is refused at log-in.
    let dsn = format!("{} options='-c work_mem=nonsense'", running::dsn(&bench.cluster, bench.port));
    let Err(refused) = tokio_postgres::connect(&dsn, NoTls).await else { panic!("was accepted") };
    assert_eq!(code(&refused), "22023");
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancels_and_time_outs_end_statements_and_leave_servers_clean() {
    let bench =
        Bench::start(0, "pool: { size: 1 }\nload_balancer: { read_timeout: 400ms, write_timeout: 400ms }")
            .await;
    let (client, other) = (bench.client().await, bench.client().await);
    let error = client.simple_query("select pg_sleep(60)").await.unwrap_err();
    let db = error.as_db_error().unwrap();
    assert_eq!(db.code().code(), "57014");
    assert!(db.detail().unwrap().contains("load_balancer."), "{db:?}");

    // A client that waits for the only server can be cancelled too.
    client.batch_execute("begin").await.unwrap();
    let token = other.cancel_token();
    let waiting = other.simple_query("select 1");
    tokio::pin!(waiting);
    // A cancel that comes before the client waits does nothing, so there are as many as it takes.
    let error = timeout(LIMIT, async {
        loop {
            tokio::select! {
                biased;
                result = &mut waiting => break result.unwrap_err(),
                cancelled = token.cancel_query(NoTls) => cancelled.unwrap(),
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(code(&error), "57014");
    client.batch_execute("commit").await.unwrap();
    for _ in 0..20 {
        assert_eq!(text(&other, "select 2").await, "2");
        assert_eq!(text(&client, "select 3").await, "3");
    }
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_held_while_there_is_no_primary_and_sent_once_to_the_next() {
    let mut bench = Bench::start(1, "failover: { hold_timeout: 20s }").await;
    let (idle, open_block, running_block) =
        (bench.client().await, bench.client().await, bench.client().await);
    idle.batch_execute("create table t (id int)").await.unwrap();
    let insert = idle.prepare("insert into t values ($1)").await.unwrap();
    idle.execute(&insert, &[&1_i32]).await.unwrap();
    open_block.batch_execute("begin; insert into t values (2)").await.unwrap();
    running_block.batch_execute("begin").await.unwrap();
    let sleeping = running_block.simple_query("insert into t select 3 from pg_sleep(30)");
    bench.cluster.wait_streaming(bench.cluster.node("node-1"), &["node-2"], LIMIT).unwrap();

    let fence = bench.data.fence();
    let failover = async {
        // The statement must be on its way before the fence falls.
        let watcher = bench.cluster.node("node-1").connect().await.unwrap();
        let query = "select count(*) from pg_stat_activity where query like 'insert into t select 3%'";
        while watcher.query_one(query, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
        bench.view.publish(Arc::new(held(&bench.cluster, 1)));
        timeout(LIMIT, fence.sever(&"node-1".into(), Epoch(2))).await.unwrap();
        bench.cluster.node("node-1").kill_9_all().unwrap();
    };
    let (slept, ()) = tokio::join!(sleeping, failover);
    assert_eq!(code(&slept.unwrap_err()), "40001");
    let error = running_block.simple_query("select 1").await.unwrap_err();
    assert_eq!(code(&error), "25P02");
    running_block.batch_execute("rollback").await.unwrap();

    // Reads go on; the write waits, and is sent to the new primary.
    assert_eq!(text(&idle, "select count(*) from t").await, "1");
    let writer = tokio::spawn(async move {
        idle.execute(&insert, &[&4_i32]).await.unwrap();
        idle
    });
    timeout(LIMIT, async {
        while bench.traffic.held.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let promoted = bench.cluster.node("node-2").clone();
    tokio::task::spawn_blocking(move || promoted.sql("select pg_promote()::text").unwrap()).await.unwrap();
    let mut view = open(&bench.cluster, "node-2", 2);
    view.nodes[0] = node("node-1", ObservedRole::Unknown);
    view.nodes[0].reads = ReadFitness::Unfit { reason: "down".to_owned() };
    bench.view.publish(Arc::new(view));
    let idle = timeout(LIMIT, writer).await.unwrap().unwrap();
    assert_eq!(text(&idle, "select string_agg(id::text, ',' order by id) from t").await, "1,4");

    // The block that was open is lost for sure, is told so once, and ends by the client's own hand.
    let error = open_block.simple_query("select 1").await.unwrap_err();
    assert_eq!(code(&error), "40001");
    open_block.batch_execute("commit").await.unwrap();
    assert_eq!(text(&open_block, "select count(*) from t").await, "2");
    bench.evidence.close();
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_ends_with_its_time_out_and_the_session_goes_on() {
    let bench = Bench::start(0, "failover: { hold_timeout: 300ms }").await;
    let client = bench.client().await;
    bench.view.publish(Arc::new(held(&bench.cluster, 1)));
    let error = client.simple_query("create table t ()").await.unwrap_err();
    let db = error.as_db_error().unwrap();
    assert_eq!(db.code().code(), "57P03");
    assert!(db.message().contains("the primary is being replaced"), "{db:?}");
    let error = client.query("select 1", &[]).await.unwrap_err();
    assert_eq!(code(&error), "57P03");
    bench.view.publish(Arc::new(open(&bench.cluster, "node-1", 1)));
    assert_eq!(text(&client, "select 5").await, "5");
    bench.data.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_drops_nobody_and_a_stop_lets_transactions_end() {
    let bench = Bench::start(0, "pool: { size: 1 }\nlimits: { clients: 3 }").await;
    let (one, two) = (bench.client().await, bench.client().await);
    one.batch_execute("begin; create table t (id int)").await.unwrap();
    bench.data.reconfigure(Arc::new(Bench::config(&bench.cluster, "pool: { size: 2 }"))).unwrap();
    assert_eq!(text(&two, "select 1").await, "1");
    let data = Arc::clone(&bench.data);
    let stopping = tokio::spawn(async move { data.shutdown(LIMIT).await });
    let idle = timeout(LIMIT, async { while two.simple_query("select 1").await.is_ok() {} });
    idle.await.expect("an idle client is sent away");
    one.batch_execute("commit").await.unwrap();
    timeout(LIMIT, stopping).await.expect("all end").unwrap();
    assert_eq!(bench.traffic.clients.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_of_another_crate_places_reads_and_learns_how_they_went() {
    let bench = Bench::start(1, "load_balancer: { algorithm: noting }").await;
    let client = bench.client().await;
    client.simple_query("create table t ()").await.unwrap();
    for _ in 0..5 {
        // Its success comes with the end of the unit; an error would come before, and what is sent then goes behind it.
        client.simple_query("insert into t default values").await.unwrap();
        assert_eq!(text(&client, "select 1").await, "1");
    }
    bench.settled().await;
    assert_eq!(noting::GOOD.load(Ordering::Relaxed), bench.reads("node-2"));
    assert_eq!(bench.reads("node-2"), 5);
}
