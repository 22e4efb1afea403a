//! Server connections, and the register of all of them that the fence works on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Waker};

use metako_core::pool::{ServerId, Variant};
use metako_core::session::Server;
use metako_core::{Epoch, NodeName};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::buffers::{poll_read, with_scratch};
use crate::backend::{MaybeTls, Notices, Target};
use crate::env::Env;

/// Names and values of parameters that a server reports, in its order.
pub(super) type Reported = Arc<Vec<(String, String)>>;

/// How a running statement can be cancelled.
#[derive(Debug)]
pub(super) struct CancelTarget {
    pub(super) target: Target,
    pub(super) process_id: i32,
    pub(super) secret_key: Vec<u8>,
}

/// What the fence wants of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing: it serves.
    Open,
    /// It is to end as soon as its client has nothing open there. Nothing may begin on it.
    Draining,
    /// It must not carry another byte.
    Severed,
}

/// What the fence can do to a connection from outside.
#[derive(Debug)]
pub(super) struct Control {
    node: NodeName,
    epoch: Epoch,
    standing: AtomicU8,
}

impl Control {
    fn new(node: NodeName, epoch: Epoch, standing: Standing) -> Self {
        Self { node, epoch, standing: AtomicU8::new(standing as u8) }
    }

    /// What the fence wants of the connection. Whoever has it and waits is woken as its client is when that becomes more: see
    /// [`super::clients::Handle::listen`].
    pub(super) fn standing(&self) -> Standing {
        const OPEN: u8 = Standing::Open as u8;
        const DRAINING: u8 = Standing::Draining as u8;
        match self.standing.load(Ordering::Acquire) {
            OPEN => Standing::Open,
            DRAINING => Standing::Draining,
            _ => Standing::Severed,
        }
    }

    /// Whether something may begin on it.
    pub(super) fn is_open(&self) -> bool {
        self.standing() == Standing::Open
    }

    /// Whether it must not carry another byte.
    pub(super) fn is_severed(&self) -> bool {
        self.standing() == Standing::Severed
    }

    fn set(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Release);
    }
}

/// A server connection with its protocol state.
pub(super) struct Conn<S> {
    pub(super) stream: S,
    pub(super) server: Server,
    pub(super) id: ServerId,
    pub(super) epoch: Epoch,
    pub(super) cancel: Arc<CancelTarget>,
    /// What the server reported after log-in.
    pub(super) reported: Reported,
    /// Its variant, if it is of use to one client only.
    pub(super) alone: Option<Variant>,
    /// What it had to say during log-in, for the client that it was opened for.
    pub(super) notices: Notices,
    /// The beginning of a message that has not come whole.
    pub(super) partial: Vec<u8>,
    /// Comes last: the register forgets the connection when its socket is closed.
    pub(super) registration: Registration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    /// Whether the next client may have it as it is.
    pub(super) fn is_clean(&self) -> bool {
        self.server.is_clean() && self.partial.is_empty()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<MaybeTls<S>> {
    /// Takes what came while nobody used it, without waiting; whether it is still alive and clean.
    pub(super) fn is_alive<E: Env<Stream = S>>(&mut self, env: &E) -> bool {
        if self.registration.control.is_severed() {
            return false;
        }
        if let MaybeTls::Plain(stream) = &self.stream
            && env.is_silent(stream)
        {
            return true;
        }
        let mut cx = Context::from_waker(Waker::noop());
        with_scratch(|scratch| {
            loop {
                match poll_read(&mut self.stream, &mut cx, &mut scratch.input) {
                    Poll::Pending => return true,
                    Poll::Ready(Ok(0) | Err(_)) => return false,
                    Poll::Ready(Ok(read)) => {
                        if !self.server.idle_input(&scratch.input[..read]) {
                            return false;
                        }
                    }
                }
            }
        })
    }
}

/// Keeps a connection in the [`Register`].
pub(super) struct Registration {
    register: Arc<Register>,
    number: u64,
    pub(super) control: Arc<Control>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.register.all.lock().connections.remove(&self.number);
        self.register.gone.notify_waiters();
    }
}

/// All server connections that exist.
#[derive(Debug, Default)]
pub(super) struct Register {
    all: Mutex<All>,
    gone: Notify,
}

#[derive(Debug, Default)]
struct All {
    connections: BTreeMap<u64, Arc<Control>>,
    /// Connections to a node of an epoch before this are severed, also those that come to be later.
    floors: BTreeMap<NodeName, Epoch>,
    /// Connections to a node of an epoch before this are drained, also those that come to be later.
    drains: BTreeMap<u64, (NodeName, Epoch)>,
    last_number: u64,
}

impl All {
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// How a connection to `node` of `epoch` stands.
    fn standing(&self, node: &NodeName, epoch: Epoch) -> Standing {
        if self.floors.get(node).is_some_and(|floor| epoch < *floor) {
            Standing::Severed
        } else if self.drains.values().any(|(drained, floor)| drained == node && epoch < *floor) {
            Standing::Draining
        } else {
            Standing::Open
        }
    }

    /// Tells all connections to `node` how they stand now.
    fn tell(&self, node: &NodeName) {
        for control in self.connections.values().filter(|control| control.node == *node) {
            control.set(self.standing(node, control.epoch));
        }
    }

    fn raise_floor(&mut self, node: &NodeName, floor: Epoch) {
        let known = self.floors.entry(node.clone()).or_default();
        *known = floor.max(*known);
        self.tell(node);
    }

    fn any_left(&self, node: &NodeName, floor: Epoch) -> bool {
        self.connections.values().any(|control| control.node == *node && control.epoch < floor)
    }
}

impl Register {
    /// Enters a connection that was opened in `epoch`.
    pub(super) fn enter(self: &Arc<Self>, node: &NodeName, epoch: Epoch) -> Registration {
        let mut all = self.all.lock();
        let control = Arc::new(Control::new(node.clone(), epoch, all.standing(node, epoch)));
        let number = all.number();
        all.connections.insert(number, Arc::clone(&control));
        Registration { register: Arc::clone(self), number, control }
    }

    /// Marks all connections to `node` of an epoch before `floor`; their owners have to be woken then.
    pub(super) fn sever(&self, node: &NodeName, floor: Epoch) {
        self.all.lock().raise_floor(node, floor);
    }

    /// Marks the same connections as to be drained, for as long as what is returned lasts; their owners have to be woken then.
    pub(super) fn drain(self: &Arc<Self>, node: &NodeName, floor: Epoch) -> Drain {
        let mut all = self.all.lock();
        let number = all.number();
        all.drains.insert(number, (node.clone(), floor));
        all.tell(node);
        Drain { register: Arc::clone(self), number, node: node.clone(), floor }
    }

    /// Resolves when no connection to `node` of an epoch before `floor` exists any more.
    pub(super) async fn wait_gone(&self, node: &NodeName, floor: Epoch) {
        self.wait_until(|| !self.all.lock().any_left(node, floor)).await;
    }

    /// Resolves when it is so; that is looked at each time that a connection is gone.
    async fn wait_until(&self, is_so: impl Fn() -> bool) {
        loop {
            let gone = self.gone.notified();
            tokio::pin!(gone);
            // Registers before looking, so that no departure is missed.
            gone.as_mut().enable();
            if is_so() {
                return;
            }
            gone.await;
        }
    }
}

/// The wish that connections to a node of an epoch before `floor` end as they become free. Dropping it takes that back.
pub(super) struct Drain {
    register: Arc<Register>,
    number: u64,
    node: NodeName,
    floor: Epoch,
}

impl Drain {
    /// Resolves when all are gone. From then on they are severed that come to be later: they were being opened when the
    /// last one went.
    pub(super) async fn done(&self) {
        self.register.wait_until(|| self.is_done()).await;
    }

    fn is_done(&self) -> bool {
        let mut all = self.register.all.lock();
        let done = !all.any_left(&self.node, self.floor);
        if done {
            all.raise_floor(&self.node, self.floor);
        }
        done
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        let mut all = self.register.all.lock();
        all.drains.remove(&self.number);
        all.tell(&self.node);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    const NODE: &str = "a";

    /// A register with a connection of epoch 1.
    fn register() -> (Arc<Register>, Registration) {
        let register = Arc::<Register>::default();
        let registration = register.enter(&NODE.into(), Epoch(1));
        (register, registration)
    }

    fn is_ready(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_drain_is_for_one_node_and_for_older_epochs_also_for_what_comes_later() {
        let (register, old) = register();
        let [same_epoch, elsewhere] =
            [(NODE, 2), ("b", 1)].map(|(node, epoch)| register.enter(&node.into(), Epoch(epoch)));
        let drain = register.drain(&NODE.into(), Epoch(2));
        let late = register.enter(&NODE.into(), Epoch(1));
        assert_eq!([&old, &late].map(|one| one.control.standing()), [Standing::Draining; 2]);
        assert_eq!([&same_epoch, &elsewhere].map(|one| one.control.standing()), [Standing::Open; 2]);
        assert!(!is_ready(drain.done()));
        drop((old, late));
        assert!(is_ready(drain.done()));
    }

    #[test]
    fn a_drain_that_is_dropped_takes_back_its_own_wish_alone() {
        let (register, old) = register();
        let first = register.drain(&NODE.into(), Epoch(2));
        let second = register.drain(&NODE.into(), Epoch(3));
        drop(first);
        assert_eq!(old.control.standing(), Standing::Draining);
        drop(second);
        assert_eq!(old.control.standing(), Standing::Open);
        assert!(register.enter(&NODE.into(), Epoch(1)).control.is_open());
    }

    #[test]
    fn whoever_comes_first_a_sever_holds() {
        for sever_first in [true, false] {
            let (register, old) = register();
            let newer = register.enter(&NODE.into(), Epoch(2));
            if sever_first {
                register.sever(&NODE.into(), Epoch(2));
            }
            let drain = register.drain(&NODE.into(), Epoch(3));
            register.sever(&NODE.into(), Epoch(2));
            let standing = || [&old, &newer].map(|one| one.control.standing());
            assert_eq!(standing(), [Standing::Severed, Standing::Draining]);
            drop(drain);
            assert_eq!(standing(), [Standing::Severed, Standing::Open]);
        }
    }

    #[test]
    fn what_was_being_opened_when_the_last_one_went_does_not_serve() {
        let (register, old) = register();
        let drain = register.drain(&NODE.into(), Epoch(2));
        drop(old);
        assert!(is_ready(drain.done()));
        drop(drain);
        assert!(register.enter(&NODE.into(), Epoch(1)).control.is_severed());
        assert!(register.enter(&NODE.into(), Epoch(2)).control.is_open());
    }
}
