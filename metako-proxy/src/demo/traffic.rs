//! Clients of the demo: 8 that write, 4 that read, 4 that hold a session and wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_postgres::Config;

use super::ledger::Ledger;
use super::session::{Answer, Session};

const WRITERS: i64 = 8;
const READERS: usize = 4;
const IDLERS: usize = 4;
/// One statement of each client in such a time, if the last one is answered.
const PACE: Duration = Duration::from_millis(5);
/// How long statements that are under way at the end may take.
const FINISH_LIMIT: Duration = Duration::from_secs(5);

/// The table that is written to: one row for each insert.
pub(super) const TABLE: &str = "metako_demo";

/// Running clients. Dropping it ends them.
pub(super) struct Traffic {
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
    records: Vec<Arc<Mutex<Record>>>,
}

/// What one client did, kept outside of its task so that nothing is lost when the task is ended.
struct Record {
    kind: Kind,
    ledger: Ledger,
    /// The row whose insert is under way.
    under_way: Option<i64>,
    kept: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Writer(i64),
    Reader,
    Idler,
}

/// What all clients saw.
pub(super) struct Seen {
    pub(super) writes: Ledger,
    pub(super) reads: Ledger,
    pub(super) idle_errors: Ledger,
    pub(super) sessions_kept: usize,
    pub(super) sessions_total: usize,
    pub(super) idle_kept: usize,
    pub(super) idle_total: usize,
}

impl Traffic {
    /// Starts the clients, which log in with `config`.
    pub(super) fn start(config: &Config) -> Self {
        let mut traffic =
            Self { stop: watch::Sender::new(false), clients: JoinSet::new(), records: Vec::new() };
        let writers = (0..WRITERS).map(Kind::Writer);
        let others = [Kind::Reader; READERS].into_iter().chain([Kind::Idler; IDLERS]);
        for kind in writers.chain(others) {
            let record = Record { kind, ledger: Ledger::default(), under_way: None, kept: false };
            let record = Arc::new(Mutex::new(record));
            traffic.records.push(Arc::clone(&record));
            let client = run(kind, Session::new(config.clone()), record, traffic.stop.subscribe());
            traffic.clients.spawn(client);
        }
        traffic
    }

    /// Whether every client has been answered at least once.
    pub(super) fn is_flowing(&self) -> bool {
        self.records.iter().all(|record| !record.lock().ledger.answered.is_empty())
    }

    /// Inserts that were acknowledged so far.
    pub(super) fn acknowledged(&self) -> usize {
        self.records.iter().map(|record| record.lock().ledger.acknowledged.len()).sum()
    }

    /// Ends the clients after the statements that they are at, and puts their records together. What is not answered in
    /// some seconds is cut off, and its outcome unknown.
    pub(super) async fn finish(mut self) -> Seen {
        self.stop.send_replace(true);
        let all = async { while self.clients.join_next().await.is_some() {} };
        if tokio::time::timeout(FINISH_LIMIT, all).await.is_err() {
            self.clients.shutdown().await;
        }
        self.seen()
    }

    fn seen(&self) -> Seen {
        let ledgers = |wanted: fn(Kind) -> bool| {
            let records = self.records.iter().map(|record| record.lock());
            Ledger::sum(records.filter(|record| wanted(record.kind)).map(|record| {
                let mut ledger = record.ledger.clone();
                ledger.unknown.extend(record.under_way);
                ledger
            }))
        };
        let kept = |wanted: fn(Kind) -> bool| {
            self.records
                .iter()
                .map(|record| record.lock())
                .filter(|record| wanted(record.kind) && record.kept)
                .count()
        };
        Seen {
            writes: ledgers(|kind| matches!(kind, Kind::Writer(_))),
            reads: ledgers(|kind| kind == Kind::Reader),
            idle_errors: ledgers(|kind| kind == Kind::Idler),
            sessions_kept: kept(|_| true),
            sessions_total: self.records.len(),
            idle_kept: kept(|kind| kind == Kind::Idler),
            idle_total: IDLERS,
        }
    }
}

async fn run(kind: Kind, mut session: Session, record: Arc<Mutex<Record>>, mut stop: watch::Receiver<bool>) {
    match kind {
        Kind::Writer(number) => write(number, &mut session, &record, &stop).await,
        Kind::Reader => {
            let mut pace = pace();
            while !*stop.borrow() {
                read(&mut session, &record, &format!("SELECT max(id) FROM {TABLE}")).await;
                pace.tick().await;
            }
        }
        Kind::Idler => {
            read(&mut session, &record, "SELECT 1").await;
            // An error means that the traffic is gone: an end as well.
            let _ = stop.wait_for(|stop| *stop).await;
            read(&mut session, &record, "SELECT 1").await;
        }
    }
    record.lock().kept = session.is_kept();
}

/// Inserts a new row each time, whatever became of the one before. Every other writer uses the extended protocol.
async fn write(number: i64, session: &mut Session, record: &Mutex<Record>, stop: &watch::Receiver<bool>) {
    let mut pace = pace();
    let mut id = number;
    while !*stop.borrow() {
        record.lock().under_way = Some(id);
        let answer = if number % 2 == 0 {
            session.run(&format!("INSERT INTO {TABLE} (id, writer) VALUES ({id}, {number})"), None).await
        } else {
            let sql = format!("INSERT INTO {TABLE} (id, writer) VALUES ($1, $2)");
            session.run(&sql, Some(&[id, number])).await
        };
        book(&mut record.lock(), id, answer);
        id += WRITERS;
        pace.tick().await;
    }
}

fn book(record: &mut Record, id: i64, answer: Answer) {
    record.under_way = None;
    let ledger = &mut record.ledger;
    match answer {
        Answer::Done => {
            ledger.acknowledged.insert(id);
            ledger.answered.push(Instant::now());
        }
        Answer::Refused(error) => {
            ledger.refused.insert(id);
            ledger.errors.add(format!("write refused: {error}"));
        }
        Answer::Unknown(error) => {
            ledger.unknown.insert(id);
            ledger.errors.add(format!("write with unknown outcome: {error}"));
        }
    }
}

async fn read(session: &mut Session, record: &Mutex<Record>, sql: &str) {
    let answer = session.run(sql, None).await;
    let now = Instant::now();
    let ledger = &mut record.lock().ledger;
    match answer {
        Answer::Done => ledger.answered.push(now),
        Answer::Refused(error) | Answer::Unknown(error) => ledger.errors.add(format!("read failed: {error}")),
    }
}

fn pace() -> tokio::time::Interval {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace
}
