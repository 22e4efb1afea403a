//! What the configuration says to the data plane, made ready for use.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metako_core::NodeName;
use metako_core::config::{Config, Node, PoolMode};
use metako_core::plugin::{
    BuildError, Candidate, Class, Classification, LoadBalancer, Outcome, PickCx, QueryClassifier, Span,
};
use metako_core::pool::PoolLimits;

use crate::backend::{ServerTls, ServerTlsTable};
use crate::login::{LoginContext, LoginFilesError, Sources};
use crate::shared::{NodeTraffic, Traffic};
use crate::tls_files::TlsFileError;

/// Why the data plane cannot work by a configuration.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A strategy's options do not go together.
    #[error("a strategy cannot be built: {0}")]
    Strategy(#[from] BuildError),
    /// A file that log-in needs cannot be used.
    #[error(transparent)]
    LoginFiles(#[from] LoginFilesError),
    /// A certificate or key that a node's section names cannot be used.
    #[error("TLS towards nodes: {}", texts(.0))]
    ServerTls(Vec<TlsFileError>),
}

fn texts(errors: &[TlsFileError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// One configuration, with its strategies built. Replaced whole by a reload.
pub(super) struct Settings {
    pub(super) config: Arc<Config>,
    pub(super) login: Arc<LoginContext>,
    pub(super) balancer: ContainedBalancer,
    pub(super) classifier: ContainedClassifier,
    /// TLS towards each node, in the configuration's order.
    pub(super) server_tls: Vec<ServerTls>,
    /// The counters of each node, so that a pick locks nothing.
    traffic: Vec<(NodeName, Arc<NodeTraffic>)>,
}

impl Settings {
    /// Blocks on the file system where log-in or TLS towards nodes needs files.
    pub(super) fn new(
        config: Arc<Config>,
        salt_secret: &[u8; 32],
        traffic: &Traffic,
        sources: Sources,
    ) -> Result<Self, DataError> {
        let nodes = config.cluster.nodes.iter().map(|node| &node.name);
        Ok(Self {
            server_tls: ServerTlsTable::load(&config.cluster.nodes).map_err(|errors| {
                DataError::ServerTls(errors.into_iter().map(|(_, error)| error).collect())
            })?,
            login: Arc::new(LoginContext::new(&config, salt_secret, sources)?),
            balancer: ContainedBalancer {
                inner: config.strategies.balancer.build()?,
                panics: AtomicU64::new(0),
            },
            classifier: ContainedClassifier {
                inner: config.strategies.classifier.build()?,
                panics: AtomicU64::new(0),
            },
            traffic: nodes.map(|name| (name.clone(), traffic.node(name))).collect(),
            config,
        })
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.config.cluster.node(name)
    }

    /// A node with TLS towards it.
    pub(super) fn node_with_tls(&self, name: &str) -> Option<(&Node, &ServerTls)> {
        self.config.cluster.nodes.iter().zip(&self.server_tls).find(|(node, _)| node.name.as_str() == name)
    }

    /// How many server connections to a node are in use.
    pub(super) fn in_flight(&self, node: &NodeName) -> u32 {
        let known = self.traffic.iter().find(|(name, _)| name == node);
        let in_use = known.map_or(0, |(_, traffic)| traffic.in_use.load(Ordering::Relaxed));
        u32::try_from(in_use).unwrap_or(u32::MAX)
    }

    pub(super) fn pool_limits(&self, user: &str) -> PoolLimits {
        let pool = self.config.pool_of(user);
        PoolLimits {
            size: pool.size,
            // In session mode nobody can use what was opened before it came.
            min: if pool.mode == PoolMode::Session { 0 } else { pool.min },
            reserve: pool.reserve,
            reserve_after: pool.reserve_after,
            waiters: self.config.limits.clients,
            lifetime: pool.lifetime,
            idle_timeout: pool.idle_timeout,
        }
    }
}

fn count_panic(kind: &str, counter: &AtomicU64) {
    let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
    tracing::error!(strategy = kind, count, "a strategy panicked; the safe answer was taken in its place");
}

/// A balancer whose panics count as "the first one".
pub(super) struct ContainedBalancer {
    inner: Box<dyn LoadBalancer>,
    panics: AtomicU64,
}

impl LoadBalancer for ContainedBalancer {
    fn pick(&self, candidates: &[Candidate<'_>], cx: &PickCx<'_>) -> Option<usize> {
        catch_unwind(AssertUnwindSafe(|| self.inner.pick(candidates, cx))).unwrap_or_else(|_| {
            count_panic("load_balancer", &self.panics);
            (!candidates.is_empty()).then_some(0)
        })
    }

    fn observe(&self, outcome: &Outcome<'_>) {
        if catch_unwind(AssertUnwindSafe(|| self.inner.observe(outcome))).is_err() {
            count_panic("load_balancer", &self.panics);
        }
    }
}

/// A classifier whose panics count as "unknown".
pub(super) struct ContainedClassifier {
    inner: Box<dyn QueryClassifier>,
    panics: AtomicU64,
}

impl QueryClassifier for ContainedClassifier {
    fn classify(&self, sql: &[u8]) -> Classification {
        catch_unwind(AssertUnwindSafe(|| self.inner.classify(sql))).unwrap_or_else(|_| {
            count_panic("classifier", &self.panics);
            Classification::new(Class::Unknown, "the classifier panicked", Span::default())
        })
    }
}
