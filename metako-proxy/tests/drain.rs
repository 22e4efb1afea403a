//! Draining the server connections of a node, as a planned switchover does, on a real cluster.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[allow(dead_code, reason = "shared with the tests of the relay")]
#[path = "relay/bench.rs"]
mod bench;
mod running;
#[allow(dead_code, reason = "shared with the tests of session mode")]
mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use metako_core::Epoch;
use metako_core::cluster::Writes;
use metako_proxy::playground::Cluster;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

use bench::{Bench, LIMIT, open, text};
use wire::{Message, Wire, field, query};

type Drain = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Bench {
    /// Begins a switchover: writes are held from this epoch on, and the connections of older ones are drained.
    fn drain(&self, epoch: u64) -> Drain {
        let mut view = open(&self.cluster, "node-1", epoch);
        view.writes = Writes::Held { reason: "the primary is handed over".to_owned() };
        self.view.publish(Arc::new(view));
        self.data.fence().drain(&"node-1".into(), Epoch(epoch))
    }

    /// Writes are open again, as in the epoch.
    fn reopen(&self, epoch: u64) {
        let mut view = open(&self.cluster, "node-1", epoch);
        view.version += 1;
        self.view.publish(Arc::new(view));
    }

    async fn wire(&self, more: &[(&str, &str)]) -> Wire {
        let parameters = [&[("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)], more].concat();
        Wire::start(self.port, &parameters, self.cluster.superuser_password()).await.expect("a log-in")
    }

    /// A connection past metako.
    async fn past(&self) -> Client {
        let config = self.cluster.node("node-1").client_config().dbname(Cluster::DATABASE).clone();
        let (past, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        past
    }

    /// Asks past metako until the answer is this.
    async fn until_past(&self, sql: &str, wanted: &str) {
        let past = self.past().await;
        let mut last = String::new();
        let asked = timeout(LIMIT, async {
            while last != wanted {
                last = text(&past, sql).await;
            }
        });
        assert!(asked.await.is_ok(), "{sql}: {last}, never {wanted}");
    }

    async fn until_held(&self, clients: u64) {
        timeout(LIMIT, async {
            while self.traffic.held.load(Ordering::Relaxed) != clients {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("clients are held");
    }
}

/// The server processes that serve clients.
const SERVERS: &str = "select coalesce(string_agg(pid::text, ',' order by pid), '') from pg_stat_activity \
                       where backend_type = 'client backend' and pid <> pg_backend_pid()";

fn is_pending(drain: &mut Drain) -> bool {
    drain.now_or_never().is_none()
}

async fn is_done(drain: Drain) {
    timeout(LIMIT, drain).await.expect("all is drained");
}

/// What ends a connection.
fn fatal(message: Option<Message>) -> String {
    let Some((b'E', body)) = message else { panic!("no error: {message:?}") };
    assert_eq!(field(&body, b'V'), "FATAL");
    format!("{} {}", field(&body, b'C'), field(&body, b'M'))
}

async fn is_ended(client: &mut Wire) {
    is_the_fence(client.next().await);
    assert_eq!(client.next().await, None);
}

fn is_the_fence(message: Option<Message>) {
    let said = fatal(message);
    let ours = ["57P01 ", "node-1", "fenced off"];
    assert!(ours.iter().all(|part| said.contains(part)), "{said}");
}

async fn run(client: &mut Wire, sql: &str) -> Vec<Message> {
    client.send(&query(sql)).await;
    let answer = client.until(b'Z').await;
    assert!(!answer.iter().any(|(tag, _)| *tag == b'E'), "{sql}: {answer:?}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_goes_on_to_its_end_and_who_comes_meanwhile_is_held() {
    let bench = Bench::start(0, "").await;
    let (one, two) = (bench.client().await, bench.client().await);
    one.batch_execute("create table t (n int); begin; insert into t values (1)").await.unwrap();
    two.batch_execute("begin; commit").await.unwrap();
    let kept = text(&one, "select pg_backend_pid()").await;

    let mut drain = bench.drain(2);
    // What is idle goes at once.
    bench.until_past(SERVERS, &kept).await;
    let writing = tokio::spawn(async move {
        two.batch_execute("insert into t values (2)").await.unwrap();
        two
    });
    bench.until_held(1).await;
    assert_eq!(text(&one, "select count(*) from t").await, "1");
    assert!(is_pending(&mut drain));
    one.batch_execute("commit").await.unwrap();
    is_done(drain).await;
    bench.until_past(SERVERS, "").await;
    assert!(!writing.is_finished());

    bench.reopen(3);
    let two = timeout(LIMIT, writing).await.expect("it is served").unwrap();
    assert_eq!(text(&two, "select count(*) from t").await, "2");
    assert_eq!(text(&one, "select count(*) from t").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_server_for_itself_is_ended_once_nothing_is_under_way() {
    for mode in ["transaction", "session"] {
        let bench = Bench::start(0, &format!("pool: {{ mode: {mode} }}")).await;
        let [mut idle, mut asking, mut busy] =
            [bench.wire(&[]).await, bench.wire(&[]).await, bench.wire(&[]).await];
        for client in [&mut idle, &mut asking, &mut busy] {
            run(client, "create temporary table mine (n int)").await;
        }
        run(&mut busy, "begin; insert into mine values (6)").await;
        let holder = bench.past().await;
        holder.batch_execute("begin; select pg_advisory_xact_lock(5)").await.unwrap();
        asking.send(&query("select 7 from pg_advisory_xact_lock(5)")).await;
        let waits = "select count(*) from pg_stat_activity where wait_event = 'advisory'";
        bench.until_past(waits, "1").await;

        let mut drain = bench.drain(2);
        is_ended(&mut idle).await;
        holder.batch_execute("commit").await.unwrap();
        drop(holder);
        let tags: Vec<u8> = asking.until(b'Z').await.iter().map(|(tag, _)| *tag).collect();
        assert_eq!(tags, b"TDCZ", "{mode}");
        is_ended(&mut asking).await;
        assert_eq!(busy.value("select n from mine").await, "6", "{mode}");
        assert!(is_pending(&mut drain), "{mode}");
        assert_eq!(run(&mut busy, "commit").await[0], (b'C', b"COMMIT\0".to_vec()), "{mode}");
        is_ended(&mut busy).await;
        is_done(drain).await;
        bench.until_past(SERVERS, "").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_given_up_spares_whoever_was_in_a_transaction() {
    for mode in ["transaction", "session"] {
        let bench = Bench::start(0, &format!("pool: {{ mode: {mode} }}")).await;
        let mut kept = bench.wire(&[]).await;
        run(&mut kept, "begin; create temporary table mine (n int)").await;
        let server = kept.value("select pg_backend_pid()").await;
        let mut drain = bench.drain(2);
        assert_eq!(kept.value("select pg_backend_pid()").await, server);
        assert!(is_pending(&mut drain));
        drop(drain);
        bench.reopen(2);
        run(&mut kept, "commit").await;
        for _ in 0..3 {
            assert_eq!(kept.value("select count(*) from mine").await, "0", "{mode}");
        }
        assert_eq!(kept.value("select pg_backend_pid()").await, server);
        // The next one finds it idle.
        let drain = bench.drain(3);
        is_ended(&mut kept).await;
        is_done(drain).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sever_does_not_wait_for_what_a_drain_would() {
    let bench = Bench::start(0, "").await;
    let client = bench.client().await;
    client.batch_execute("begin; create table t (n int)").await.unwrap();
    let mut drain = bench.drain(2);
    assert!(is_pending(&mut drain));
    let sever = bench.data.fence().sever(&"node-1".into(), Epoch(2));
    drop(drain);
    is_done(sever).await;
    bench.until_past(SERVERS, "").await;
    assert_eq!(bench::code(&client.batch_execute("commit").await.unwrap_err()), "40001");
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_does_not_keep_a_switchover_waiting() {
    let bench = Bench::start(0, "").await;
    let user = format!(
        "users:\n  - {{ name: {}, password: \"{}\" }}\n",
        Cluster::SUPERUSER,
        bench.cluster.superuser_password()
    );
    let yaml = bench.cluster.metako_yaml("127.0.0.1:6432").replace("users:\n", &user);
    let config = metako_proxy::check::load_text("drain.yaml", &yaml, &bench::NoSecrets).unwrap().config;
    bench.data.reconfigure(Arc::new(config)).unwrap();
    let (mut idle, mut streaming) =
        (bench.wire(&[("replication", "database")]).await, bench.wire(&[("replication", "true")]).await);
    assert_eq!(idle.value("select 1").await, "1");
    let position = bench.cluster.node("node-1").sql("select pg_current_wal_flush_lsn()").unwrap().unwrap();
    streaming.send(&query(&format!("START_REPLICATION {position}"))).await;
    assert_eq!(streaming.until(b'W').await.last().map(|(tag, _)| *tag), Some(b'W'));
    let drain = bench.drain(2);
    is_ended(&mut idle).await;
    is_the_fence(streaming.until(b'E').await.pop());
    is_done(drain).await;
}

/// Whatever a client is at, it does not notice: drains come one after the other, some are given up at once.
#[tokio::test(flavor = "multi_thread")]
async fn no_client_that_shares_servers_fails_through_any_number_of_drains() {
    const ROUNDS: u64 = 60;
    let bench = Arc::new(Bench::start(0, "pool: { size: 4 }").await);
    bench.client().await.batch_execute("create table t (n int)").await.unwrap();
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clients = (0..12).map(|number| {
        let (bench, stop, written) = (Arc::clone(&bench), Arc::clone(&stop), Arc::clone(&written));
        tokio::spawn(async move {
            let mut client = bench.client().await;
            while !stop.load(Ordering::Relaxed) {
                let count = match number % 3 {
                    0 => client.batch_execute("insert into t values (1)").await.map(|()| 1),
                    1 => client.batch_execute("begin; insert into t values (1); commit").await.map(|()| 1),
                    _ => {
                        // Its log-in needs a server of its own kind.
                        let bound =
                            format!("options='-c work_mem={}kB'", 64 + written.load(Ordering::Relaxed));
                        client = bench.client_with(&bound).await;
                        client.batch_execute("begin").await.unwrap();
                        client.batch_execute("insert into t values (1)").await.unwrap();
                        client.batch_execute("insert into t values (1)").await.unwrap();
                        client.batch_execute("commit").await.map(|()| 2)
                    }
                };
                written.fetch_add(count.unwrap(), Ordering::Relaxed);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    for round in 1..=ROUNDS {
        let before = written.load(Ordering::Relaxed);
        let drain = bench.drain(2 * round);
        match round % 3 {
            0 => drop(drain),
            _ => is_done(drain).await,
        }
        bench.reopen(2 * round + round % 2);
        timeout(LIMIT, async {
            while written.load(Ordering::Relaxed) < before + 20 {
                assert!(!clients.iter().any(tokio::task::JoinHandle::is_finished), "a client failed");
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("clients go on");
    }
    stop.store(true, Ordering::Relaxed);
    join_all(clients).await.into_iter().for_each(|ended| ended.unwrap());
    bench.until_past("select count(*) from t", &written.load(Ordering::Relaxed).to_string()).await;
}
