//! The clients that are logged in: their cancel keys, and what reaches their tasks from outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use metako_core::NodeName;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::conn::CancelTarget;
use crate::backend;
use crate::env::Env;

/// How long the delivery of a cancel may take; a server whose cancel did not arrive in time is not used again.
const CANCEL_MAX: Duration = Duration::from_secs(5);

/// So many cancels of one client are under way at a time; more are dropped, as PostgreSQL drops those that come when
/// nothing runs.
const CANCELS_MAX: u32 = 4;

/// A client's handle.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) process_id: i32,
    secret_key: [u8; 4],
    state: Mutex<State>,
    /// A cancel was delivered, or failed.
    settled: Notify,
    task: AtomicWaker,
    /// The connection has to end now, whatever it does.
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    serving: Option<Arc<CancelTarget>>,
    /// The client waits for a server.
    waiting: bool,
    /// It shall wait no longer.
    cancelled: bool,
    /// Cancels under way to the server in use.
    running: u32,
    /// A cancel may still arrive there.
    tainted: bool,
}

impl Handle {
    /// Whether the connection has to end now. The task of `cx` is woken when that, or [`Self::is_cancelled`], changes.
    pub(super) fn is_ended(&self, cx: &Context<'_>) -> bool {
        self.task.register(cx.waker());
        self.ended.load(Ordering::Acquire)
    }

    /// Begins to wait for a server; what was cancelled before is forgotten.
    pub(super) fn wait(&self) {
        let mut state = self.state.lock();
        state.waiting = true;
        state.cancelled = false;
    }

    /// Waits no longer. Whether a cancel came meanwhile.
    pub(super) fn stop_waiting(&self) {
        self.state.lock().waiting = false;
    }

    /// Resolves when the wait is cancelled or the connection has to end.
    pub(super) async fn interrupted(&self) {
        std::future::poll_fn(|cx| {
            if self.is_ended(cx) || self.state.lock().cancelled { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// A server is in use: cancels go there.
    pub(super) fn serve(&self, target: &Arc<CancelTarget>) {
        let mut state = self.state.lock();
        state.waiting = false;
        state.serving = Some(Arc::clone(target));
        state.tainted = false;
    }

    /// The server is no longer in use. Resolves when no cancel is under way to it; whether none can arrive there later.
    pub(super) async fn leave(&self) -> bool {
        loop {
            let settled = self.settled.notified();
            {
                let mut state = self.state.lock();
                state.serving = None;
                if state.running == 0 {
                    return !state.tainted;
                }
            }
            settled.await;
        }
    }

    /// As [`Self::leave`], where there is nothing to wait for; `None` if there is.
    pub(super) fn try_leave(&self) -> Option<bool> {
        let mut state = self.state.lock();
        state.serving = None;
        (state.running == 0).then_some(!state.tainted)
    }

    /// Cancels what the client's server does, or the client's wait for one. Resolves when that is delivered.
    pub(super) async fn cancel<E: Env>(&self, env: &E) {
        let target = {
            let mut state = self.state.lock();
            let Some(target) = state.serving.clone() else {
                state.cancelled = state.waiting;
                drop(state);
                self.task.wake();
                return;
            };
            if state.running >= CANCELS_MAX {
                return;
            }
            state.running += 1;
            target
        };
        let mut delivery = Delivery { handle: self, delivered: false };
        delivery.delivered = deliver(env, &target).await;
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Lets the client's task look around.
    fn nudge(&self) {
        self.task.wake();
    }
}

/// Counts a cancel as settled however it ends.
struct Delivery<'a> {
    handle: &'a Handle,
    delivered: bool,
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        let mut state = self.handle.state.lock();
        state.running -= 1;
        state.tainted |= !self.delivered;
        drop(state);
        self.handle.settled.notify_one();
    }
}

/// Delivers a cancel; whether it certainly arrived, so that no later statement can be hit.
pub(super) async fn deliver<E: Env>(env: &E, target: &CancelTarget) -> bool {
    let sent = backend::cancel(env, &target.target, target.process_id, &target.secret_key);
    match tokio::time::timeout(CANCEL_MAX, sent).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            log_failure(&target.target.node, &error.to_string());
            false
        }
        Err(_) => {
            log_failure(&target.target.node, "no answer in time");
            false
        }
    }
}

fn log_failure(node: &NodeName, problem: &str) {
    tracing::warn!(%node, problem, "a cancel request could not be delivered");
}

/// All clients that are logged in.
#[derive(Debug, Default)]
pub(super) struct Clients {
    by_process_id: Mutex<BTreeMap<i32, Arc<Handle>>>,
}

impl Clients {
    /// Enters a client under a new key.
    pub(super) fn enter<E: Env>(&self, env: &E) -> Arc<Handle> {
        let mut clients = self.by_process_id.lock();
        loop {
            let mut random = [0; 8];
            env.entropy(&mut random);
            let [a, b, c, d, secret @ ..] = random;
            // Process ids are positive.
            let process_id = i32::from_be_bytes([a & 0x7F, b, c, d]).max(1);
            if let std::collections::btree_map::Entry::Vacant(place) = clients.entry(process_id) {
                let handle = Arc::new(Handle {
                    process_id,
                    secret_key: secret,
                    state: Mutex::default(),
                    settled: Notify::new(),
                    task: AtomicWaker::new(),
                    ended: AtomicBool::new(false),
                });
                place.insert(Arc::clone(&handle));
                return handle;
            }
        }
    }

    pub(super) fn leave(&self, handle: &Handle) {
        self.by_process_id.lock().remove(&handle.process_id);
    }

    /// The client whom a cancel request means.
    pub(super) fn find(&self, process_id: i32, secret_key: &[u8]) -> Option<Arc<Handle>> {
        let handle = self.by_process_id.lock().get(&process_id).cloned()?;
        let secret: [u8; 4] = secret_key.try_into().ok()?;
        // Without a branch on the secret's bytes.
        let differs = secret.iter().zip(handle.secret_key).fold(0, |all, (a, b)| all | (a ^ b));
        (differs == 0).then_some(handle)
    }

    /// Ends all connections, whatever they do.
    pub(super) fn end_all(&self) {
        self.by_process_id.lock().values().for_each(|handle| handle.end());
    }

    /// Lets all tasks look whether a stop was asked for.
    pub(super) fn nudge_all(&self) {
        self.by_process_id.lock().values().for_each(|handle| handle.nudge());
    }
}

impl Handle {
    pub(super) fn secret_key(&self) -> [u8; 4] {
        self.secret_key
    }
}
