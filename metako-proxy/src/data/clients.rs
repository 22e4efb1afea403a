//! The clients that are logged in: their cancel keys, and what reaches their tasks from outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Context;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use metako_core::NodeName;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::bell::Bell;
use super::conn::CancelTarget;
use crate::backend;
use crate::env::Env;
use crate::login::Protocol;

/// How long the delivery of a cancel may take; a server whose cancel did not arrive in time is not used again.
const CANCEL_MAX: Duration = Duration::from_secs(5);

/// Bytes of the longest secret that metako makes.
const SECRET_MAX: usize = 32;

/// So many cancels of one client are under way at a time; more are dropped, as PostgreSQL drops those that come when
/// nothing runs.
const CANCELS_MAX: u32 = 4;

/// A client's handle.
#[derive(Debug)]
pub(super) struct Handle {
    /// Never given twice.
    pub(super) number: u64,
    key: Mutex<Key>,
    state: Mutex<State>,
    /// A cancel was delivered, or failed.
    settled: Notify,
    task: Bell,
    /// The connection has to end now, whatever it does.
    ended: AtomicBool,
}

/// What a client is told to cancel with.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) process_id: i32,
    pub(super) secret: Box<[u8]>,
}

impl Key {
    /// One that is metako's own altogether.
    fn made_up<E: Env>(env: &E, protocol: Protocol) -> Self {
        // One question for both: the system's answers cost more than their bytes.
        let mut random = [0; 4 + SECRET_MAX];
        env.entropy(&mut random);
        let [first, second, third, fourth, secret @ ..] = random;
        // Process ids are positive.
        let process_id = (i32::from_be_bytes([first, second, third, fourth]) & i32::MAX) | ABOVE_PROCESSES;
        Self { process_id, secret: secret[..secret_length(protocol)].into() }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("process_id", &self.process_id).finish_non_exhaustive()
    }
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
    /// Has the task of `cx` woken when [`Self::is_ended`] or [`Self::is_cancelled`] changes, when a stop is asked for, and
    /// when server connections are severed or drained, whoever has them. All of that is to be looked at after this.
    pub(super) fn listen(&self, cx: &Context<'_>) {
        self.task.listen(cx.waker());
    }

    /// Whether the connection has to end now.
    pub(super) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Begins to wait for a server; what was cancelled before is forgotten.
    pub(super) fn wait(&self) {
        let mut state = self.state.lock();
        state.waiting = true;
        state.cancelled = false;
    }

    /// Waits no longer.
    pub(super) fn stop_waiting(&self) {
        self.state.lock().waiting = false;
    }

    /// Whether the wait was cancelled; see [`Self::listen`].
    pub(super) fn is_cancelled(&self) -> bool {
        self.state.lock().cancelled
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
                self.task.ring();
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
        self.task.ring();
    }

    /// Lets the client's task look around.
    fn nudge(&self) {
        self.task.ring();
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

/// All clients that are logged in, by process id and number: servers of several nodes may have the same process id.
#[derive(Debug, Default)]
pub(super) struct Clients {
    all: Mutex<BTreeMap<(i32, u64), Arc<Handle>>>,
    last: AtomicU64,
}

impl Clients {
    /// Enters a client under a new key that is metako's own, with a secret as long as `protocol` has it.
    pub(super) fn enter<E: Env>(&self, env: &E, protocol: Protocol) -> Arc<Handle> {
        loop {
            let key = Key::made_up(env, protocol);
            let process_id = key.process_id;
            let mut clients = self.all.lock();
            if clients.range((process_id, 0)..=(process_id, u64::MAX)).next().is_none() {
                let number = self.last.fetch_add(1, Ordering::Relaxed);
                let handle = Arc::new(Handle {
                    number,
                    key: Mutex::new(key),
                    state: Mutex::default(),
                    settled: Notify::new(),
                    task: Bell::default(),
                    ended: AtomicBool::new(false),
                });
                clients.insert((process_id, number), Arc::clone(&handle));
                return handle;
            }
        }
    }

    /// Gives a client the process id of its server, with another secret of metako's own.
    pub(super) fn take_process_id<E: Env>(
        &self,
        env: &E,
        handle: &Arc<Handle>,
        process_id: i32,
        protocol: Protocol,
    ) {
        let new = Key { process_id, ..Key::made_up(env, protocol) };
        let mut clients = self.all.lock();
        let mut key = handle.key.lock();
        clients.remove(&(key.process_id, handle.number));
        *key = new;
        clients.insert((process_id, handle.number), Arc::clone(handle));
    }

    pub(super) fn leave(&self, handle: &Handle) {
        let mut clients = self.all.lock();
        clients.remove(&(handle.key.lock().process_id, handle.number));
    }

    /// The client whom a cancel request means.
    pub(super) fn find(&self, process_id: i32, secret_key: &[u8]) -> Option<Arc<Handle>> {
        let clients = self.all.lock();
        let mut candidates =
            clients.range((process_id, 0)..=(process_id, u64::MAX)).map(|(_, handle)| handle);
        // Without a branch on the secret's bytes.
        let fits =
            |handle: &&Arc<Handle>| verify_slices_are_equal(&handle.key.lock().secret, secret_key).is_ok();
        candidates.find(fits).cloned()
    }

    /// Ends all connections, whatever they do.
    pub(super) fn end_all(&self) {
        self.all.lock().values().for_each(|handle| handle.end());
    }

    /// Lets all tasks look around: a stop was asked for, server connections were severed or are drained, or settings have
    /// changed.
    pub(super) fn nudge_all(&self) {
        self.all.lock().values().for_each(|handle| handle.nudge());
    }
}

/// No operating system numbers its processes so high (Linux ends at 2^22): a client that hands its number to
/// `pg_terminate_backend` must not meet the backend of another.
const ABOVE_PROCESSES: i32 = 1 << 30;

/// Bytes of a secret, as PostgreSQL makes them.
const fn secret_length(protocol: Protocol) -> usize {
    match protocol {
        Protocol::V3_0 => 4,
        Protocol::V3_2 => SECRET_MAX,
    }
}

impl Handle {
    /// What the client cancels with.
    pub(super) fn key(&self) -> Key {
        self.key.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::TokioEnv;

    #[tokio::test]
    async fn a_process_id_of_metakos_own_is_positive_and_no_processs() {
        let (env, clients) = (TokioEnv::new(), Clients::default());
        let made_up = (0..64).map(|_| clients.enter(&env, Protocol::V3_0).key().process_id);
        assert!(made_up.into_iter().all(|process_id| process_id > 1 << 22));
    }

    #[tokio::test]
    async fn clients_with_the_same_process_id_are_told_apart_by_their_secrets() {
        let (env, clients) = (TokioEnv::new(), Clients::default());
        let (one, two) = (clients.enter(&env, Protocol::V3_0), clients.enter(&env, Protocol::V3_2));
        let (made_up, old_secret) = (one.key().process_id, one.key().secret);
        clients.take_process_id(&env, &one, 77, Protocol::V3_0);
        clients.take_process_id(&env, &two, 77, Protocol::V3_2);
        assert_eq!((one.key().secret.len(), two.key().secret.len()), (4, 32));
        for handle in [&one, &two] {
            let found = clients.find(77, &handle.key().secret).expect("the key is known");
            assert_eq!(found.number, handle.number);
        }
        assert!(clients.find(made_up, &old_secret).is_none());
        for wrong in [&[][..], &[0; 4], &[0; 32], &one.key().secret[..3]] {
            assert!(clients.find(77, wrong).is_none());
        }
        clients.leave(&one);
        assert!(clients.find(77, &one.key().secret).is_none());
        assert!(clients.find(77, &two.key().secret).is_some());
    }
}
