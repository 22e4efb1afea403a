//! A day on a real cluster, on which something goes wrong.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use metako_proxy::playground::{Builder, Cluster, Node};
use serde_json::Value;

use super::ledger::Clients;
use super::{Metako, client, configuration, eventually};

/// Longer than it takes until a dead primary is replaced at default settings.
const LONG: Duration = Duration::from_secs(5);

/// A cluster with metako before it and clients at work.
pub(crate) struct Day {
    // Stopped in this order.
    pub(crate) clients: Clients,
    pub(crate) metako: Metako,
    pub(crate) cluster: Cluster,
}

impl Day {
    /// Three nodes, of which `node-1` is primary; with `synchronous`, commits wait for so many of the others.
    pub(crate) fn begin(synchronous: Option<u32>) -> Self {
        Self::with(super::cluster(2, synchronous), synchronous, "")
    }

    /// As [`Self::begin`], with links that can be cut.
    pub(crate) fn with_links(synchronous: Option<u32>) -> Self {
        let builder = Builder::new().replicas(2).links();
        let builder = match synchronous {
            Some(acks) => builder.synchronous(acks),
            None => builder,
        };
        Self::with(builder.start_blocking().expect("the cluster starts"), synchronous, "")
    }

    /// As [`Self::begin`], on a cluster of one's own and with more top-level keys of the configuration.
    pub(crate) fn with(cluster: Cluster, synchronous: Option<u32>, extra: &str) -> Self {
        let metako = Metako::start(&configuration(&cluster, extra));
        metako.wait_until_open(cluster.nodes().len() - 1);
        if synchronous.is_some() {
            metako.wait_until_synchronous();
        }
        let clients = Clients::start(&cluster, metako.port, 4, 2);
        Self { clients, metako, cluster }
    }

    /// Waits until `status` fits.
    pub(crate) fn status(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        eventually(what, || {
            let status = self.metako.status()?;
            if fits(&status) { Ok(status) } else { Err(status.to_string()) }
        })
    }

    /// Waits until another node than this one is primary, and answers with its name.
    pub(crate) fn another_primary(&self, than: &str) -> String {
        self.metako.another_primary(than)
    }

    /// Waits until that node is seen in that role.
    pub(crate) fn role(&self, node: &str, wanted: &str) {
        self.status(&format!("{node} is {wanted}"), |status| role(status, node) == wanted);
    }

    /// Asks a node itself, not through metako.
    pub(crate) fn direct(&self, node: &str, sql: &str) -> String {
        direct(&self.cluster, node, sql)
    }

    /// The node of that name.
    pub(crate) fn node(&self, name: &str) -> &Node {
        self.cluster.node(name)
    }

    /// No failover was even begun, and `node-1` serves.
    pub(crate) fn assert_no_failover(&self) {
        let status = self.metako.status().expect("metako answers");
        assert_eq!((&status["primary"], &status["epoch"]), (&"node-1".into(), &1.into()), "{status}");
        assert_eq!(self.failovers_begun(), 0, "{status}");
    }

    /// How many failovers metako began, those that it called off included.
    pub(crate) fn failovers_begun(&self) -> usize {
        let output = self.metako.command(&["history", "--last", "10000", "--json"]);
        assert!(output.status.success(), "{output:?}");
        let history = super::text(&output.stdout);
        let entries = history.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        entries.filter(|entry| entry["kind"] == "failover_begun").count()
    }

    /// Stops the clients. No acknowledged row may be missing on `primary`. What was acknowledged.
    pub(crate) fn end(self, primary: &str) -> BTreeSet<i64> {
        let port = self.node(primary).port();
        self.clients.finish(&self.cluster, port)
    }

    /// As [`Self::end`], where writes are held: clients are not waited for.
    pub(crate) fn end_held(self, primary: &str) -> BTreeSet<i64> {
        let port = self.node(primary).port();
        self.clients.abandon(&self.cluster, port)
    }
}

/// Does something over and over for longer than it takes until a dead primary is replaced.
pub(crate) fn for_long(mut check: impl FnMut()) {
    let begun = Instant::now();
    while begun.elapsed() < LONG {
        check();
    }
}

/// Asks a node itself, not through metako.
pub(crate) fn direct(cluster: &Cluster, node: &str, sql: &str) -> String {
    client(cluster, "psql", cluster.node(node).port(), &["-XAtc", sql]).trim_end().to_owned()
}

/// Waits until exactly these stream from that node; names in their order.
pub(crate) fn wait_streaming(cluster: &Cluster, upstream: &str, standbys: &[&str]) {
    let upstream = cluster.node(upstream);
    cluster.wait_streaming(upstream, standbys, super::PATIENCE).expect("they stream");
}

fn role<'a>(status: &'a Value, node: &str) -> &'a str {
    let mut nodes = status["nodes"].as_array().into_iter().flatten();
    nodes.find(|one| one["name"] == node).and_then(|one| one["role"].as_str()).unwrap_or_default()
}
