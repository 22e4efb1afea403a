//! Clients at work, and what was acknowledged to them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use metako_proxy::playground::Cluster;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use super::{PATIENCE, client, dsn, eventually};

/// How many errors of clients are kept.
const ERRORS_MAX: usize = 1000;
/// How long a client rests before it connects again.
const BEFORE_THE_NEXT_TRY: Duration = Duration::from_millis(20);

/// What a client does over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// One row by a statement of its own.
    Insert,
    /// Two rows by a transaction.
    Transaction,
    /// Reads what may be read from a standby.
    Read,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Work,
    /// End when what is under way is answered.
    Finish,
    /// End at once, whatever is under way.
    Abandon,
}

/// Writers and readers at work through metako, each with a connection of its own that is opened again when it breaks.
pub(crate) struct Clients {
    orders: watch::Sender<Order>,
    common: Arc<Common>,
    writers: Vec<(Arc<AtomicUsize>, JoinHandle<BTreeSet<i64>>)>,
    readers: Vec<(Arc<AtomicUsize>, JoinHandle<BTreeSet<i64>>)>,
    runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct Common {
    next: AtomicI64,
    errors: Mutex<Vec<String>>,
    errors_left_out: AtomicBool,
}

impl Clients {
    /// Makes the table `ledger` and sets so many clients to work; returns when every one of them has got somewhere.
    pub(crate) fn start(cluster: &Cluster, port: u16, writers: usize, readers: usize) -> Self {
        client(cluster, "psql", port, &["-XAtc", "create table ledger (id bigint primary key)"]);
        for node in cluster.nodes() {
            eventually("the table is everywhere", || match node_has_ledger(cluster, node.port()) {
                answer if answer == "t\n" => Ok(()),
                answer => Err(answer),
            });
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (orders, common) = (watch::Sender::new(Order::Work), Arc::new(Common::default()));
        let start = |work| {
            let done = Arc::new(AtomicUsize::new(0));
            let task =
                run(work, dsn(cluster, port), Arc::clone(&common), Arc::clone(&done), orders.subscribe());
            (done, runtime.spawn(task))
        };
        let kinds = [Work::Insert, Work::Transaction];
        let writers = kinds.into_iter().cycle().take(writers).map(start).collect();
        let readers = (0..readers).map(|_| start(Work::Read)).collect();
        let clients = Self { orders, common, writers, readers, runtime };
        clients.all_go_on();
        clients
    }

    /// Where tests run what is asynchronous.
    pub(crate) fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    /// How many rows have been acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.writers.iter().map(|(done, _)| done.load(Ordering::Relaxed)).sum()
    }

    /// Waits until `rows` more are acknowledged.
    pub(crate) fn wait_for_more(&self, rows: usize) {
        let before = self.acknowledged();
        eventually("rows are acknowledged", || match self.acknowledged() - before {
            new if new >= rows => Ok(()),
            new => Err(format!("{new} of {rows}; {:?}", self.last_error())),
        });
    }

    /// Waits until every writer has written.
    pub(crate) fn all_write_on(&self) {
        wait_for_each(&self.writers, || self.last_error());
    }

    /// Waits until every client, readers too, has got an answer.
    pub(crate) fn all_go_on(&self) {
        self.all_write_on();
        self.all_read_on();
    }

    /// Waits until every reader has read.
    pub(crate) fn all_read_on(&self) {
        wait_for_each(&self.readers, || self.last_error());
    }

    /// What clients were told instead of an answer, connections that broke included; the oldest first.
    pub(crate) fn errors(&self) -> Vec<String> {
        assert!(!self.common.errors_left_out.load(Ordering::Relaxed), "more than {ERRORS_MAX} errors");
        self.common.errors.lock().clone()
    }

    /// Waits until a client is told this SQLSTATE.
    pub(crate) fn wait_for_error(&self, state: &str) {
        let state = format!(": {state}: ");
        eventually("clients are told so", || {
            let errors = self.common.errors.lock();
            if errors.iter().any(|error| error.contains(&state)) {
                Ok(())
            } else {
                Err(format!("{errors:?}"))
            }
        });
    }

    fn last_error(&self) -> Option<String> {
        self.common.errors.lock().last().cloned()
    }

    /// Ends all when what is under way is answered; none of the rows that were acknowledged may be missing at the node on
    /// that port. What was acknowledged.
    pub(crate) fn finish(self, cluster: &Cluster, port: u16) -> BTreeSet<i64> {
        self.end(Order::Finish, cluster, port)
    }

    /// As [`Self::finish`], but does not wait for answers: for when nobody answers.
    pub(crate) fn abandon(self, cluster: &Cluster, port: u16) -> BTreeSet<i64> {
        self.end(Order::Abandon, cluster, port)
    }

    fn end(self, order: Order, cluster: &Cluster, port: u16) -> BTreeSet<i64> {
        let acknowledged = self.stop(order);
        let stored = stored(cluster, port);
        let lost: Vec<_> = acknowledged.difference(&stored).collect();
        assert!(
            lost.is_empty(),
            "of {} acknowledged rows {} are lost: {lost:?}",
            acknowledged.len(),
            lost.len()
        );
        acknowledged
    }

    /// Every row that is written after this call has this number or a higher one.
    pub(crate) fn next_row(&self) -> i64 {
        self.common.next.load(Ordering::Relaxed)
    }

    /// Ends all. Of the rows from this number on none that was acknowledged may be missing there; of those before nothing was
    /// promised: how many of them are.
    pub(crate) fn finish_asynchronous(self, from: i64, cluster: &Cluster, port: u16) -> usize {
        let acknowledged = self.stop(Order::Finish);
        let stored = stored(cluster, port);
        let (before, after): (Vec<i64>, Vec<i64>) =
            acknowledged.difference(&stored).partition(|row| **row < from);
        assert!(after.is_empty(), "lost after {from}: {after:?}; before: {before:?}");
        before.len()
    }

    fn stop(self, order: Order) -> BTreeSet<i64> {
        self.orders.send_replace(order);
        let tasks = self.writers.into_iter().chain(self.readers).map(|(_, task)| task);
        let mut acknowledged = BTreeSet::new();
        for task in tasks {
            let ended = async { tokio::time::timeout(PATIENCE, task).await };
            let ended = self.runtime.block_on(ended).expect("a client hangs");
            acknowledged.extend(ended.expect("a client panicked"));
        }
        acknowledged
    }
}

/// The rows that a node has.
pub(crate) fn stored(cluster: &Cluster, port: u16) -> BTreeSet<i64> {
    let rows = client(cluster, "psql", port, &["-XAtc", "select id from ledger"]);
    rows.lines().map(|line| line.parse().expect("a number")).collect()
}

fn node_has_ledger(cluster: &Cluster, port: u16) -> String {
    client(cluster, "psql", port, &["-XAtc", "select to_regclass('ledger') is not null"])
}

fn wait_for_each(
    clients: &[(Arc<AtomicUsize>, JoinHandle<BTreeSet<i64>>)],
    last_error: impl Fn() -> Option<String>,
) {
    let before: Vec<usize> = clients.iter().map(|(done, _)| done.load(Ordering::Relaxed)).collect();
    eventually("every client gets answers", || {
        let done = clients.iter().zip(&before);
        match done.filter(|((done, _), before)| done.load(Ordering::Relaxed) <= **before).count() {
            0 => Ok(()),
            still => Err(format!("{still} of {} do not; {:?}", clients.len(), last_error())),
        }
    });
}

async fn run(
    work: Work,
    dsn: String,
    common: Arc<Common>,
    done: Arc<AtomicUsize>,
    mut orders: watch::Receiver<Order>,
) -> BTreeSet<i64> {
    let mut acknowledged = BTreeSet::new();
    let mut abandoned = orders.clone();
    let working = async {
        while *orders.borrow_and_update() == Order::Work {
            match tokio_postgres::connect(&dsn, NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    session(work, client, &common, &done, &mut orders, &mut acknowledged).await;
                }
                Err(error) => common.note("connecting", &error),
            }
            tokio::time::sleep(BEFORE_THE_NEXT_TRY).await;
        }
    };
    tokio::select! {
        () = working => {}
        // Whoever gives orders is there until the last client has ended.
        _ = abandoned.wait_for(|order| *order == Order::Abandon) => {}
    }
    acknowledged
}

/// Works until its connection breaks or an order comes.
async fn session(
    work: Work,
    mut client: Client,
    common: &Common,
    done: &AtomicUsize,
    orders: &mut watch::Receiver<Order>,
    acknowledged: &mut BTreeSet<i64>,
) {
    while *orders.borrow_and_update() == Order::Work && !client.is_closed() {
        // No number is tried twice: what became of it may be unknown.
        let outcome = match work {
            Work::Insert => {
                let id = common.next.fetch_add(1, Ordering::Relaxed);
                insert(&client, id).await.map(|()| vec![id])
            }
            Work::Transaction => {
                let id = common.next.fetch_add(2, Ordering::Relaxed);
                insert_two(&mut client, [id, id + 1]).await.map(|()| vec![id, id + 1])
            }
            Work::Read => client.query("select max(id) from ledger", &[]).await.map(|_| Vec::new()),
        };
        match outcome {
            Ok(rows) => {
                done.fetch_add(rows.len().max(1), Ordering::Relaxed);
                acknowledged.extend(rows);
            }
            Err(error) => common.note(&format!("{work:?}"), &error),
        }
    }
}

async fn insert(client: &Client, id: i64) -> Result<(), tokio_postgres::Error> {
    let rows = client.execute("insert into ledger values ($1)", &[&id]).await?;
    assert_eq!(rows, 1, "an insert of one row answered {rows}");
    Ok(())
}

async fn insert_two(client: &mut Client, ids: [i64; 2]) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    for id in ids {
        transaction.execute("insert into ledger values ($1)", &[&id]).await?;
    }
    transaction.commit().await
}

impl Common {
    fn note(&self, work: &str, error: &tokio_postgres::Error) {
        let mut errors = self.errors.lock();
        if errors.len() < ERRORS_MAX {
            let state = error.code().map_or("no SQLSTATE", |state| state.code());
            errors.push(format!("{work}: {state}: {error}: {:?}", std::error::Error::source(error)));
        } else {
            self.errors_left_out.store(true, Ordering::Relaxed);
        }
    }
}
