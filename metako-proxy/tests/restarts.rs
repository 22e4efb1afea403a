//! A primary that crashes and recovers in its place while commits wait for a standby: rows that it brings back, and that nobody
//! else has, are shown to nobody.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test where they stand")]

mod running;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use metako_proxy::playground::{Builder, Cluster, Link};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use running::day::direct;
use running::{Metako, eventually};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// The rows in the ledger, as the primary shows them.
const COUNT: &str = "begin; select count(*) from ledger; commit";

/// A client that looks at the primary through metako over and over, and connects again whenever it has to.
struct Reader {
    stop: Arc<AtomicBool>,
    most: Arc<AtomicI64>,
    answers: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Reader {
    fn start(cluster: &Cluster, port: u16) -> Self {
        let (stop, most) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let answers = Arc::new(AtomicU64::new(0));
        let dsn = running::dsn(cluster, port);
        let thread = std::thread::spawn({
            let (stop, most, answers) = (Arc::clone(&stop), Arc::clone(&most), Arc::clone(&answers));
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    let Ok(rows) = runtime.block_on(look(&dsn)) else { continue };
                    most.fetch_max(rows, Ordering::Relaxed);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { stop, most, answers, thread }
    }

    fn finish(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.most.load(Ordering::Relaxed)
    }
}

async fn look(dsn: &str) -> Result<i64, tokio_postgres::Error> {
    let client = connect(dsn).await?;
    let messages = client.simple_query(COUNT).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(row.unwrap().parse().unwrap())
}

async fn connect(dsn: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(dsn, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Cuts the standby off, has a row written that waits for it, and has the primary crash and recover.
fn what_nobody_else_has_is_not_shown(mode: &str, crash: impl Fn(&Cluster, Pid)) {
    let cluster = Builder::new().replicas(1).synchronous(1).links().start_blocking().unwrap();
    let node = cluster.node("node-1");
    direct(&cluster, "node-1", "create table ledger (id int primary key)");
    let extra = format!("load_balancer: {{ split: off }}\npool: {{ mode: {mode} }}");
    // Where metako could promote the standby, which has all that was acknowledged, it might.
    let strict = "synchronous: strict, mode: manual";
    let metako =
        Metako::start(&running::configuration(&cluster, &extra).replace("synchronous: any 1", strict));
    metako.wait_until_open(1);
    metako.wait_until_synchronous();
    let reader = Reader::start(&cluster, metako.port);
    eventually("a client reads", || match reader.answers.load(Ordering::Relaxed) {
        0 => Err("nothing yet".to_owned()),
        answers => Ok(answers),
    });
    node.replication_link().set(Link::Cut).unwrap();
    let writer = std::thread::spawn({
        let dsn = running::dsn(&cluster, metako.port);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime
                .block_on(async { connect(&dsn).await?.batch_execute("insert into ledger values (1)").await })
        }
    });
    let waits = "select pid from pg_stat_activity where wait_event = 'SyncRep' and query like 'insert%'";
    let process = eventually("the commit waits for the standby", || {
        let process = direct(&cluster, "node-1", waits);
        if process.is_empty() { Err("not yet".to_owned()) } else { Ok(process) }
    });
    crash(&cluster, Pid::from_raw(process.parse().unwrap()));
    let error = writer.join().unwrap().expect_err("its server is gone");
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("08007"), "{error:?}");
    node.wait_ready(running::PATIENCE).unwrap();
    assert_eq!(direct(&cluster, "node-1", "select count(*) from ledger"), "1", "it is there");
    eventually("clients wait, and status says for what", || {
        let status = metako.status()?;
        let reason = status["reason"].as_str().unwrap_or_default();
        let says = reason.contains("was started anew") && reason.contains("0 of the 1 standbys");
        if says && status["primary"].is_null() { Ok(()) } else { Err(status.to_string()) }
    });
    assert_eq!(reader.most.load(Ordering::Relaxed), 0, "the row was shown");
    node.replication_link().set(Link::Open).unwrap();
    eventually("the row is shown", || match reader.most.load(Ordering::Relaxed) {
        1 => Ok(()),
        _ => Err(metako.status().map_or_else(|error| error, |status| status.to_string())),
    });
    assert!(reader.answers.load(Ordering::Relaxed) > 1);
    assert_eq!(reader.finish(), 1);
    let history = running::text(&metako.command(&["history", "--last", "100", "--json"]).stdout);
    assert!(history.contains("\"restarted\"") && !history.contains("failover_begun"), "{history}");
    assert!(!metako.log().contains("panicked"));
}

#[test]
fn after_a_recovery_in_place_clients_wait_until_the_standby_has_what_it_brought_back() {
    what_nobody_else_has_is_not_shown("transaction", |_, process| kill(process, Signal::SIGKILL).unwrap());
}

#[test]
fn after_a_start_clients_wait_until_the_standby_has_what_it_brought_back() {
    what_nobody_else_has_is_not_shown("session", |cluster, _| {
        let node = cluster.node("node-1");
        node.kill_9_all().unwrap();
        node.start().unwrap();
    });
}
