//! The data plane: clients, pooled server connections, and the bytes between them.
//!
//! Each client has one task, which owns its socket. For a unit of work it borrows a server connection from a pool and
//! moves the bytes both ways itself, in one poll function; what the bytes mean is decided by
//! [`metako_core::session`]. Where a unit goes is decided by [`metako_core::route`] on the current cluster view, which
//! pool connection serves it by [`metako_core::pool`].

mod acquire;
mod bell;
mod buffers;
mod client;
mod clients;
mod conn;
mod hold;
mod pools;
mod relay;
mod settings;
mod transparent;
mod waiting;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use metako_core::config::{Config, PoolMode};
use metako_core::session::Interner;
use metako_core::wire::sqlstate;
use metako_core::wire::write::Report;
use metako_core::{Epoch, NodeName};
use tokio::sync::Notify;

pub use settings::DataError;

use self::buffers::Outbox;
use self::clients::Clients;
use self::conn::Register;
use self::hold::HoldLine;
use self::pools::Pools;
use self::settings::Settings;
use crate::backend::ServerTlsTable;
use crate::control;
use crate::env::{Env, Listener};
use crate::login::{self, Accepted, Client, Protocol, Replication};
use crate::shared::{EvidenceSender, Fence, Traffic, ViewCell};

/// How often pools are looked after.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// So many connections beyond `limits.clients` may be logging in, to be told that there are too many.
const OVERFLOW: u64 = 64;

/// `server_version_num` of the first PostgreSQL that speaks protocol 3.2.
const VERSION_18: u32 = 180_000;

/// What all client tasks share.
struct Core<E: Env> {
    env: E,
    settings: ArcSwap<Settings>,
    /// How often they were replaced: tells who keeps them whether they are those.
    generation: AtomicU64,
    view: Arc<ViewCell>,
    evidence: EvidenceSender,
    traffic: Arc<Traffic>,
    pools: Pools<E>,
    register: Arc<Register>,
    clients: Clients,
    statements: Mutex<Interner>,
    hold: HoldLine,
    stop: Stop,
    /// State of a cheap generator for balancers; nothing secret comes from it.
    random: AtomicU64,
}

#[derive(Debug, Default)]
struct Stop {
    asked: AtomicBool,
    /// Connections that were accepted and have not ended.
    connections: AtomicU64,
    ended: Notify,
}

impl<E: Env> Core<E> {
    /// The next number of a SplitMix64 sequence.
    fn next_random(&self) -> u64 {
        const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut z = self.random.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// The newest protocol that a client can have: where it has a server to itself, the one that its server speaks. All
    /// nodes of a cluster are of one major version.
    fn newest_protocol(&self, user: &str, replication: Option<Replication>) -> Protocol {
        let mode = self.settings.load().config.pool_of(user).mode;
        if mode != PoolMode::Session && replication.is_none() {
            return Protocol::V3_2;
        }
        match self.view.load().nodes.iter().find_map(|node| node.version) {
            Some(version) if version < VERSION_18 => Protocol::V3_0,
            _ => Protocol::V3_2,
        }
    }
}

/// The data plane of one proxy.
pub struct DataPlane<E: Env> {
    core: Arc<Core<E>>,
    server_tls: ServerTlsTable,
    salt_secret: [u8; 32],
}

impl<E: Env> std::fmt::Debug for DataPlane<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataPlane").finish_non_exhaustive()
    }
}

impl<E: Env> DataPlane<E> {
    /// Makes a data plane that works by `config` and `view`, and starts looking after its pools. Accepts nobody yet.
    /// Blocks on the file system where TLS is on.
    pub fn new(
        env: E,
        config: Arc<Config>,
        view: Arc<ViewCell>,
        evidence: EvidenceSender,
        traffic: Arc<Traffic>,
    ) -> Result<Arc<Self>, DataError> {
        let mut salt_secret = [0; 32];
        env.entropy(&mut salt_secret);
        let server_tls = ServerTlsTable::default();
        let sources = control::sources(&env, &view, &server_tls, &config);
        let core = Arc::new(Core {
            settings: ArcSwap::from_pointee(Settings::new(config, &salt_secret, &traffic, sources)?),
            generation: AtomicU64::new(0),
            view,
            evidence,
            traffic,
            pools: Pools::default(),
            register: Arc::default(),
            clients: Clients::default(),
            statements: Mutex::default(),
            hold: HoldLine::default(),
            stop: Stop::default(),
            random: AtomicU64::new(env.random()),
            env,
        });
        core.env.spawn(keep_house(Arc::downgrade(&core)));
        server_tls.replace(core.settings.load().server_tls.clone(), &[]);
        Ok(Arc::new(Self { core, server_tls, salt_secret }))
    }

    /// Accepts clients for as long as it is polled. Dropping it ends no client.
    pub async fn serve<L: Listener<Stream = E::Stream>>(self: Arc<Self>, mut listener: L) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    // Out of file descriptors, most likely: let some be freed.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn admit(&self, stream: E::Stream, peer: SocketAddr) {
        let core = Arc::clone(&self.core);
        let place = Place::take(&core);
        let limit = core.settings.load().config.limits.clients as u64;
        if place.number > limit + OVERFLOW {
            tracing::warn!(%peer, limit, "too many connections: one was closed unheard");
            return;
        }
        let crowded = place.number > limit;
        let env = core.env.clone();
        env.spawn_client(async move {
            connection(core, stream, peer, crowded).await;
            drop(place);
        });
    }

    /// Works by another configuration from the next unit of each client on. No client is dropped; connections to nodes
    /// that are gone are closed as they become free. On an error nothing has changed. Blocks on the file system where
    /// TLS is on.
    pub fn reconfigure(&self, config: Arc<Config>) -> Result<(), DataError> {
        let sources = control::sources(&self.core.env, &self.core.view, &self.server_tls, &config);
        let settings = Settings::new(config, &self.salt_secret, &self.core.traffic, sources)?;
        let before = Arc::clone(&self.core.settings.load().config);
        self.server_tls.replace(settings.server_tls.clone(), &before.cluster.nodes);
        self.core.settings.store(Arc::new(settings));
        self.core.generation.fetch_add(1, Ordering::Release);
        // Those who have nothing open let go of what they keep of the old ones.
        self.core.clients.nudge_all();
        self.core.pools.reconfigure(&self.core);
        Ok(())
    }

    /// TLS towards the nodes, for the control plane: always that of the last configuration.
    pub fn server_tls(&self) -> ServerTlsTable {
        self.server_tls.clone()
    }

    /// The fence, for the control plane.
    pub fn fence(&self) -> Arc<dyn Fence> {
        Arc::new(DataFence(Arc::clone(&self.core)))
    }

    /// Sends idle clients away at once and the others when they have nothing open, or after `patience`. Resolves when
    /// all are gone.
    pub async fn shutdown(&self, patience: Duration) {
        let core = &self.core;
        core.stop.asked.store(true, Ordering::Release);
        core.clients.nudge_all();
        if tokio::time::timeout(patience, core.stop.all_ended()).await.is_err() {
            core.clients.end_all();
            // Those that are logging in have their own time-out; they are not waited for.
            if tokio::time::timeout(Duration::from_secs(2), core.stop.all_ended()).await.is_err() {
                tracing::warn!("some client connections did not end in time");
            }
        }
    }
}

impl Stop {
    /// Whether clients are to be sent away when they have nothing open.
    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.connections.load(Ordering::Acquire) == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// Counts a connection while it lasts.
struct Place<E: Env> {
    core: Arc<Core<E>>,
    number: u64,
}

impl<E: Env> Place<E> {
    fn take(core: &Arc<Core<E>>) -> Self {
        let number = core.stop.connections.fetch_add(1, Ordering::AcqRel) + 1;
        Self { core: Arc::clone(core), number }
    }
}

impl<E: Env> Drop for Place<E> {
    fn drop(&mut self) {
        self.core.stop.connections.fetch_sub(1, Ordering::AcqRel);
        self.core.stop.ended.notify_waiters();
    }
}

/// Serves one connection, whatever it turns out to be.
async fn connection<E: Env>(core: Arc<Core<E>>, mut stream: E::Stream, peer: SocketAddr, crowded: bool) {
    core.env.settle(&mut stream);
    let context = Arc::clone(&core.settings.load().login);
    let env = core.env.clone();
    let entropy = move |bytes: &mut [u8]| env.entropy(bytes);
    let newest = |user: &str, replication: Option<Replication>| core.newest_protocol(user, replication);
    let accepted = login::accept(stream, peer, &context, &entropy, &newest).await;
    drop(context);
    match accepted {
        Err(error) => tracing::debug!(%peer, %error, "a connection did not become a session"),
        Ok(Accepted::Cancel { stream, process_id, secret_key }) => {
            if let Some(handle) = core.clients.find(process_id, &secret_key) {
                Box::pin(handle.cancel(&core.env)).await;
            }
            drop(stream);
        }
        Ok(Accepted::Session(client)) if crowded => {
            let Client { mut stream, unsent, .. } = *client;
            let report = Report::fatal(sqlstate::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
                .with_detail("limits.clients is reached.");
            let mut output = Outbox::of(unsent);
            Box::pin(client::greeting::say_behind(&mut stream, &mut output, &report)).await;
        }
        Ok(Accepted::Session(session)) => {
            core.traffic.clients.fetch_add(1, Ordering::Relaxed);
            let counted = CountedClient(Arc::clone(&core.traffic));
            client::serve(core, session).await;
            drop(counted);
        }
    }
}

struct CountedClient(Arc<Traffic>);

impl Drop for CountedClient {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Looks after the pools until the data plane is gone.
async fn keep_house<E: Env>(core: std::sync::Weak<Core<E>>) {
    let Some(first) = core.upgrade() else { return };
    let mut views = first.view.subscribe();
    let mut epoch = first.view.load().epoch;
    drop(first);
    loop {
        // An error means that the view's owner is gone; the weak reference will tell.
        let _ = tokio::time::timeout(HOUSEKEEPING, views.changed()).await;
        let Some(core) = core.upgrade() else { return };
        let now = core.view.load().epoch;
        if now != epoch {
            epoch = now;
            core.pools.close_stale(&core, None, epoch);
        }
        core.pools.keep_house(&core);
    }
}

struct DataFence<E: Env>(Arc<Core<E>>);

impl<E: Env> Fence for DataFence<E> {
    fn sever(&self, node: &NodeName, epoch: Epoch) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let (core, node) = (Arc::clone(&self.0), node.clone());
        core.register.sever(&node, epoch);
        core.clients.nudge_all();
        core.pools.close_stale(&core, Some(&node), epoch);
        Box::pin(async move { core.register.wait_gone(&node, epoch).await })
    }

    fn drain(&self, node: &NodeName, epoch: Epoch) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let core = &self.0;
        let drain = core.register.drain(node, epoch);
        core.clients.nudge_all();
        core.pools.close_stale(core, Some(node), epoch);
        Box::pin(async move { drain.done().await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::TokioEnv;

    fn size_of_task<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// It is most of what an idle client costs.
    #[test]
    fn a_clients_task_is_small() {
        let size = size_of_task(connection::<TokioEnv>);
        assert!(size <= 7 << 9, "{size} bytes");
    }
}
