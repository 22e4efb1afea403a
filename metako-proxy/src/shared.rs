//! What the control plane and the data plane share: the cluster view one way, evidence and traffic figures the other.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use metako_core::cluster::{ClusterView, ServerLoss};
use metako_core::{Epoch, NodeName};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

/// The current [`ClusterView`]: written by the control plane, read by everyone.
#[derive(Debug)]
pub struct ViewCell {
    current: ArcSwap<ClusterView>,
    epoch: AtomicU64,
    version: watch::Sender<u64>,
}

impl ViewCell {
    /// Holds a first view.
    pub fn new(view: ClusterView) -> Self {
        let (epoch, version) = (AtomicU64::new(view.epoch.0), watch::Sender::new(view.version));
        Self { current: ArcSwap::from_pointee(view), epoch, version }
    }

    /// The current view. Does not block.
    pub fn load(&self) -> arc_swap::Guard<Arc<ClusterView>> {
        self.current.load()
    }

    /// The epoch of the current view; for a moment before a view of another epoch comes, already that one's. Costs less than
    /// [`Self::load`].
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// The current view, to be kept.
    pub fn load_full(&self) -> Arc<ClusterView> {
        self.current.load_full()
    }

    /// Replaces the view and wakes those who wait for a change.
    pub fn publish(&self, view: Arc<ClusterView>) {
        let version = view.version;
        // First: what was taken by the old view is to be known as stale by whoever asks.
        self.epoch.store(view.epoch.0, Ordering::Release);
        self.current.store(view);
        self.version.send_replace(version);
    }

    /// Follows changes: `changed().await` on the receiver, then [`Self::load`].
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

/// How the data plane tells the controller that a server connection broke. Bounded; when it is full, evidence enough is
/// under way already.
#[derive(Debug, Clone)]
pub struct EvidenceSender(mpsc::Sender<(NodeName, ServerLoss)>);

impl EvidenceSender {
    /// A channel for evidence.
    pub fn channel() -> (Self, mpsc::Receiver<(NodeName, ServerLoss)>) {
        let (sender, receiver) = mpsc::channel(256);
        (Self(sender), receiver)
    }

    /// Reports a loss. Never blocks.
    pub fn report(&self, node: &NodeName, loss: ServerLoss) {
        // A full or closed channel loses nothing: the controller is already looking, or is gone.
        let _ = self.0.try_send((node.clone(), loss));
    }
}

/// The data plane's fence, as the control plane uses it.
pub trait Fence: Send + Sync {
    /// Closes every server connection to `node` of an epoch before `epoch`, in use or idle, and resolves when no byte
    /// of theirs can reach a client any more.
    fn sever(&self, node: &NodeName, epoch: Epoch) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Has every server connection to `node` of an epoch before `epoch` closed as soon as its client has no transaction
    /// open there and nothing under way, and resolves when all are gone. Transactions go on to their end; replication is
    /// ended at once. Dropped before that, it takes the wish back: connections that are still there serve on.
    ///
    /// A view that sends nothing new there has to be published before.
    fn drain(&self, node: &NodeName, epoch: Epoch) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Traffic of one node, counted by the data plane.
#[derive(Debug, Default)]
pub struct NodeTraffic {
    /// Statements sent to it as reads.
    pub reads: AtomicU64,
    /// Statements sent to it as writes or undecided.
    pub writes: AtomicU64,
    /// Statements that ended in a lost server connection or an error of class 08, 53, 57 or 58.
    pub failed: AtomicU64,
    /// Statements sent to it that may need a database to which nobody is connected.
    pub databases: AtomicU64,
    /// Server connections in use by clients now.
    pub in_use: AtomicU64,
    /// Server connections idle in pools now.
    pub idle: AtomicU64,
}

/// Traffic of the whole proxy.
#[derive(Debug, Default)]
pub struct Traffic {
    nodes: Mutex<BTreeMap<NodeName, Arc<NodeTraffic>>>,
    /// Clients that are connected.
    pub clients: AtomicU64,
    /// Clients that are held for want of a primary.
    pub held: AtomicU64,
    /// What those have sent and is kept for them.
    pub held_bytes: AtomicU64,
}

impl Traffic {
    /// The counters of a node, made when first asked for. Locks: ask once and keep the `Arc`.
    pub fn node(&self, name: &NodeName) -> Arc<NodeTraffic> {
        Arc::clone(self.nodes.lock().entry(name.clone()).or_default())
    }

    /// Reads, writes and failures of a node so far.
    pub fn totals(&self, name: &NodeName) -> (u64, u64, u64) {
        let node = self.node(name);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&node.reads), read(&node.writes), read(&node.failed))
    }
}
