//! Server connections, and the register of all of them that the fence works on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// What the fence can do to a connection from outside.
#[derive(Debug)]
pub(super) struct Control {
    node: NodeName,
    epoch: Epoch,
    severed: AtomicBool,
}

impl Control {
    /// Whether the connection must not carry another byte. Whoever has it and waits is woken as its client is: see
    /// [`super::clients::Handle::listen`].
    pub(super) fn is_severed(&self) -> bool {
        self.severed.load(Ordering::Acquire)
    }

    fn sever(&self) {
        self.severed.store(true, Ordering::Release);
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
    last_number: u64,
}

impl Register {
    /// Enters a connection that was opened in `epoch`.
    pub(super) fn enter(self: &Arc<Self>, node: &NodeName, epoch: Epoch) -> Registration {
        let mut all = self.all.lock();
        let severed = all.floors.get(node).is_some_and(|floor| epoch < *floor);
        let control = Arc::new(Control { node: node.clone(), epoch, severed: AtomicBool::new(severed) });
        all.last_number += 1;
        let number = all.last_number;
        all.connections.insert(number, Arc::clone(&control));
        Registration { register: Arc::clone(self), number, control }
    }

    /// Marks all connections to `node` of an epoch before `floor`; their owners have to be woken then.
    pub(super) fn sever(&self, node: &NodeName, floor: Epoch) {
        let mut all = self.all.lock();
        let known = all.floors.entry(node.clone()).or_default();
        *known = floor.max(*known);
        for control in all.connections.values() {
            if control.node == *node && control.epoch < floor {
                control.sever();
            }
        }
    }

    fn any_left(&self, node: &NodeName, floor: Epoch) -> bool {
        self.all.lock().connections.values().any(|control| control.node == *node && control.epoch < floor)
    }

    /// Resolves when no connection to `node` of an epoch before `floor` exists any more.
    pub(super) async fn wait_gone(&self, node: &NodeName, floor: Epoch) {
        loop {
            let gone = self.gone.notified();
            tokio::pin!(gone);
            // Registers before looking, so that no departure is missed.
            gone.as_mut().enable();
            if !self.any_left(node, floor) {
                return;
            }
            gone.await;
        }
    }
}
