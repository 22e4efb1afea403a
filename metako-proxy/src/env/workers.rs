//! Worker threads for clients, each with a runtime of its own.
//!
//! Waking a second core for a small transaction costs more than the transaction: work stays on as few workers as keep
//! up. A new client goes to the first worker that is not busy; when one has too much to do, some of its clients go on on
//! one that has time; when two have little, the clients of one move to the other. How busy a worker is, is told by the
//! processor time of its thread: time between polls would count what other programs take as well.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use metako_core::pool::Worker as Number;
use nix::time::ClockId;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// A worker takes new clients until its thread uses so much of a core.
const BUSY: f64 = 0.7;
/// From here on, some of a worker's clients are moved.
const OVERLOADED: f64 = 0.9;
/// Two workers that together use less than this are one too many; a worker that uses less has time for others' clients.
const LIGHT: f64 = 0.5;
/// How often clients are moved, if they have to be.
const BALANCE_EVERY: Duration = Duration::from_millis(250);
/// See [`tick`].
const TICK: Duration = Duration::from_secs(1);
/// What a worker did is looked at over at least this time.
const WINDOW: Duration = Duration::from_millis(50);

thread_local! {
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
    /// Where the task that is being polled is to go on.
    static DESTINATION: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The number of the calling thread among the workers; [`Number::NONE`] for other threads.
pub(super) fn current() -> Number {
    CURRENT.get().and_then(|number| u32::try_from(number).ok()).map_or(Number::NONE, Number)
}

/// The workers. Dropping them ends their threads, and the tasks on them.
#[derive(Debug)]
pub(super) struct Workers {
    all: Vec<Worker>,
    shares: Mutex<Shares>,
    /// Clients go to the workers in turn and leave for the next whenever they may.
    restless: bool,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    clock: ClockId,
    clients: AtomicUsize,
    /// So many of its clients are to go on elsewhere.
    leavers: AtomicUsize,
    /// On this worker.
    destination: AtomicUsize,
    /// Its end ends the thread.
    _running: oneshot::Sender<()>,
}

/// How much of a core each worker used lately.
#[derive(Debug)]
struct Shares {
    since: Instant,
    used: Vec<Duration>,
    of: Vec<f64>,
    /// How many clients were moved last, and between which workers.
    last: Option<(Move, usize)>,
    /// Whose turn it is among restless workers.
    turn: usize,
}

/// From a worker to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Move {
    from: usize,
    to: usize,
}

impl Workers {
    /// Starts so many threads, at least one. Has to be called in a runtime, where it goes on looking after the balance.
    pub(super) fn start(count: usize, restless: bool) -> io::Result<Arc<Self>> {
        let all = (0..count.max(1)).map(start_one).collect::<io::Result<Vec<_>>>()?;
        let idle = vec![0.0; all.len()];
        let used = all.iter().map(Worker::used).collect();
        let shares = Mutex::new(Shares { since: Instant::now(), used, of: idle, last: None, turn: 0 });
        let workers = Arc::new(Self { all, shares, restless });
        if workers.all.len() > 1 && !restless {
            tokio::spawn(keep_balance(Arc::downgrade(&workers)));
        }
        Ok(workers)
    }

    /// Runs a task on the first worker.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.all[0].runtime.spawn(task);
    }

    /// Runs a client's task on the worker that has room for it.
    pub(super) fn spawn_client(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let at = if self.all.len() > 1 { self.roomy() } else { 0 };
        self.run(at, Box::pin(task));
    }

    fn run(self: &Arc<Self>, at: usize, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.all[at].clients.fetch_add(1, Ordering::Relaxed);
        self.all[at].runtime.spawn(Client { task: Some(task), workers: Arc::clone(self), at });
    }

    fn roomy(&self) -> usize {
        let mut shares = self.shares.lock();
        if self.restless {
            shares.turn = (shares.turn + 1) % self.all.len();
            return shares.turn;
        }
        shares.update(&self.all, WINDOW);
        shares.of.iter().position(|share| *share < BUSY).unwrap_or_else(|| least(&shares.of))
    }

    /// Whether the client's task that is being polled is to go on on another worker.
    pub(super) fn moves_on(&self) -> bool {
        let Some(worker) = CURRENT.get().and_then(|current| self.all.get(current)) else { return false };
        if self.restless {
            DESTINATION.set(CURRENT.get().map(|current| (current + 1) % self.all.len()));
            return true;
        }
        if worker.leavers.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let leave = |leavers: usize| leavers.checked_sub(1);
        let leaves = worker.leavers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, leave).is_ok();
        if leaves {
            DESTINATION.set(Some(worker.destination.load(Ordering::Relaxed)));
        }
        leaves
    }

    fn balance(&self) {
        let mut shares = self.shares.lock();
        shares.update(&self.all, WINDOW);
        for worker in &self.all {
            // Those who did not come by: what they were to do is over.
            worker.leavers.store(0, Ordering::Relaxed);
        }
        let moved = wanted(&shares.of);
        shares.last = moved.map(|next| {
            let clients = self.all[next.from].clients.load(Ordering::Relaxed);
            // Nobody knows which of them are the busy ones: twice as many each time, as long as it takes.
            let count = match shares.last {
                Some((last, count)) if last == next => (count * 2).min(clients.div_ceil(2)),
                _ => 1,
            };
            self.all[next.from].destination.store(next.to, Ordering::Relaxed);
            self.all[next.from].leavers.store(count, Ordering::Relaxed);
            (next, count)
        });
    }
}

impl Worker {
    /// The processor time that its thread has used.
    fn used(&self) -> Duration {
        nix::time::clock_gettime(self.clock).map_or(Duration::ZERO, Duration::from)
    }
}

impl Shares {
    fn update(&mut self, workers: &[Worker], window: Duration) {
        let elapsed = self.since.elapsed();
        if elapsed < window {
            return;
        }
        self.since += elapsed;
        for ((worker, used), share) in workers.iter().zip(&mut self.used).zip(&mut self.of) {
            let now = worker.used();
            *share = now.saturating_sub(*used).as_secs_f64() / elapsed.as_secs_f64();
            *used = now;
        }
    }
}

fn least(shares: &[f64]) -> usize {
    (0..shares.len()).min_by(|a, b| shares[*a].total_cmp(&shares[*b])).unwrap_or(0)
}

/// Which worker's clients should go where.
fn wanted(shares: &[f64]) -> Option<Move> {
    if let Some(from) = shares.iter().position(|share| *share >= OVERLOADED) {
        let to = shares.iter().position(|share| *share < LIGHT)?;
        return Some(Move { from, to });
    }
    // The last one that does anything is the one to be emptied.
    let from = shares.iter().rposition(|share| *share > 0.01)?;
    let to = shares[..from].iter().position(|share| share + shares[from] < LIGHT)?;
    Some(Move { from, to })
}

async fn keep_balance(workers: Weak<Workers>) {
    loop {
        tokio::time::sleep(BALANCE_EVERY).await;
        let Some(workers) = workers.upgrade() else { return };
        workers.balance();
    }
}

fn start_one(number: usize) -> io::Result<Worker> {
    let (running, ended) = oneshot::channel();
    let (report, started) = mpsc::channel();
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        CURRENT.set(Some(number));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let thread = nix::unistd::gettid();
        match runtime {
            Ok(runtime) => {
                // Without a receiver there is nobody to work for: `ended` resolves at once.
                let _ = report.send(Ok((runtime.handle().clone(), thread)));
                runtime.block_on(async {
                    tokio::select! {
                        // An error is what it waits for: the sender is gone.
                        _ = ended => {}
                        () = tick() => {}
                    }
                });
                runtime.shutdown_background();
            }
            Err(error) => drop(report.send(Err(error))),
        }
    })?;
    let (runtime, thread) = started.recv().map_err(io::Error::other)??;
    Ok(Worker {
        runtime,
        clock: clock_of(thread),
        clients: AtomicUsize::new(0),
        leavers: AtomicUsize::new(0),
        destination: AtomicUsize::new(number),
        _running: running,
    })
}

/// Keeps a timer pending that is due before most others: a runtime without one wakes itself by a system call for each timer
/// that is set, such as that of every log-in.
async fn tick() {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
    }
}

/// The clock that counts the processor time of one thread, as Linux numbers them (`pthread_getcpuclockid` does this).
fn clock_of(thread: nix::unistd::Pid) -> ClockId {
    const PER_THREAD: i32 = 4;
    const SCHEDULED: i32 = 2;
    ClockId::from_raw((!thread.as_raw() << 3) | PER_THREAD | SCHEDULED)
}

/// A client's task, which can go on on another worker between two polls.
struct Client {
    task: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    workers: Arc<Workers>,
    at: usize,
}

impl Future for Client {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(task) = &mut self.task else { return Poll::Ready(()) };
        if task.as_mut().poll(cx).is_ready() {
            DESTINATION.set(None);
            return Poll::Ready(());
        }
        let Some(to) = DESTINATION.take() else { return Poll::Pending };
        if let Some(task) = self.task.take() {
            self.workers.run(to, task);
        }
        Poll::Ready(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.workers.all[self.at].clients.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_a_worker_that_cannot_keep_up_for_one_that_has_time() {
        assert_eq!(wanted(&[0.95, 0.1]), Some(Move { from: 0, to: 1 }));
        assert_eq!(wanted(&[0.95, 0.6, 0.2]), Some(Move { from: 0, to: 2 }));
        assert_eq!(wanted(&[0.95, 0.8]), None);
        assert_eq!(wanted(&[0.8, 0.0]), None);
    }

    #[test]
    fn two_workers_with_little_to_do_become_one() {
        assert_eq!(wanted(&[0.2, 0.2]), Some(Move { from: 1, to: 0 }));
        assert_eq!(wanted(&[0.2, 0.4]), None);
        assert_eq!(wanted(&[0.4, 0.2, 0.1]), Some(Move { from: 2, to: 1 }));
        assert_eq!(wanted(&[0.3, 0.0]), None);
        assert_eq!(wanted(&[0.0, 0.0]), None);
    }

    #[tokio::test]
    async fn the_processor_time_of_each_worker_is_seen() {
        let workers = Workers::start(2, false).unwrap();
        let (done, told) = oneshot::channel();
        let begun = workers.all[0].used();
        workers.spawn(async move {
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
            done.send(()).unwrap();
        });
        told.await.unwrap();
        assert!(workers.all[0].used() > begun);
    }

    #[tokio::test]
    async fn a_client_that_is_to_leave_goes_on_where_it_was_sent() {
        let workers = Workers::start(2, false).unwrap();
        let (done, told) = oneshot::channel();
        workers.all[0].destination.store(1, Ordering::Relaxed);
        workers.all[0].leavers.store(1, Ordering::Relaxed);
        let seen = Arc::clone(&workers);
        let task = async move {
            let before = current();
            let mut moved = false;
            std::future::poll_fn(|_| {
                if !moved && seen.moves_on() {
                    moved = true;
                    return Poll::Pending;
                }
                Poll::Ready(())
            })
            .await;
            done.send((before, current())).unwrap();
        };
        workers.run(0, Box::pin(task));
        assert_eq!(told.await.unwrap(), (Number(0), Number(1)));
        assert_eq!(workers.all[0].leavers.load(Ordering::Relaxed), 0);
    }
}
