//! What `metako status` and the periodic report show.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use metako_core::cluster::{
    ClusterView, Health, NodeView, ObservedRole, Phase, ReadFitness, Survival, SyncRule, Writes,
};
use metako_core::{Epoch, Lsn, NodeName, TimelineId};
use serde::{Deserialize, Serialize};

use super::record::Entry;
use crate::shared::Traffic;

/// The state of a running proxy and of its cluster, as it is shown to people and to tools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this format: 1.
    pub schema: u32,
    /// `cluster` of the configuration.
    pub cluster: String,
    /// All in one word.
    pub health: OverallHealth,
    /// The epoch.
    pub epoch: Epoch,
    /// The controller's phase.
    pub phase: String,
    /// The node that takes writes, if one does.
    pub primary: Option<NodeName>,
    /// Why something waits: why writes are held, or what the phase waits for.
    pub reason: Option<String>,
    /// Which commits wait for whom, as a failover may rely on it.
    pub synchronous: SyncRule,
    /// What would become of the cluster if nodes failed now.
    pub survival: Survival,
    /// The nodes, in the order of the configuration.
    pub nodes: Vec<NodeStatus>,
    /// Statements since the start.
    pub queries: Queries,
    /// Clients now.
    pub clients: u64,
    /// Clients that wait for a primary now.
    pub held_clients: u64,
    /// The last decisions, oldest first.
    pub decisions: Vec<Entry>,
}

/// The cluster in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverallHealth {
    /// Writes are open, and every node is up and serves what it is for.
    Healthy,
    /// Writes are open, but something is not as it should be.
    Degraded,
    /// Writes are held.
    Unavailable,
}

/// Statements since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Queries {
    /// Reads and writes.
    pub total: u64,
    /// Sent as reads.
    pub reads: u64,
    /// Sent as writes or undecided.
    pub writes: u64,
    /// Ended in a lost server connection or a server that could not serve.
    pub failed: u64,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: NodeName,
    /// `unknown`, `up`, `unseen` or `down`.
    pub health: String,
    /// `unknown`, `primary`, `replica`, `stale_primary` or `foreign`.
    pub role: String,
    /// Whether it serves reads as a replica.
    pub serves_reads: bool,
    /// Why it is not up, or does not serve reads.
    pub reason: Option<String>,
    /// Its timeline.
    pub timeline: Option<TimelineId>,
    /// How far its WAL reaches.
    pub position: Option<Lsn>,
    /// Replay delay of a replica.
    pub lag_ms: Option<u64>,
    /// How much WAL a replica has still to replay.
    pub lag_bytes: Option<u64>,
    /// How long its last good probe took.
    pub probe_ms: Option<u64>,
    /// `server_version_num`.
    pub version: Option<u32>,
    /// From which node it streams.
    pub upstream: Option<NodeName>,
    /// Its statements.
    pub queries: Queries,
    /// Server connections in use by clients.
    pub connections_in_use: u64,
    /// Server connections idle in pools.
    pub connections_idle: u64,
}

impl Status {
    /// Puts together what the controller and the data plane know.
    pub fn new(cluster: &str, view: &ClusterView, traffic: &Traffic, decisions: Vec<Entry>) -> Self {
        let nodes: Vec<_> = view.nodes.iter().map(|node| node_status(node, traffic)).collect();
        let queries = nodes.iter().fold(Queries::default(), |sum, node| sum.plus(node.queries));
        Self {
            schema: 1,
            cluster: cluster.to_owned(),
            health: overall(view),
            epoch: view.epoch,
            phase: view.phase.name().to_owned(),
            primary: view.primary().cloned(),
            reason: reason(view),
            synchronous: view.synchronous.clone(),
            survival: view.survival.clone(),
            nodes,
            queries,
            clients: traffic.clients.load(Ordering::Relaxed),
            held_clients: traffic.held.load(Ordering::Relaxed),
            decisions,
        }
    }
}

impl Queries {
    fn plus(self, other: Self) -> Self {
        Self {
            total: self.total + other.total,
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
            failed: self.failed + other.failed,
        }
    }
}

fn overall(view: &ClusterView) -> OverallHealth {
    let Writes::Open { primary } = &view.writes else { return OverallHealth::Unavailable };
    let well = |node: &NodeView| {
        let serves = node.name == *primary || node.reads == ReadFitness::Fit;
        node.health == Health::Up && serves
    };
    if matches!(view.phase, Phase::Steady { .. }) && view.nodes.iter().all(well) {
        OverallHealth::Healthy
    } else {
        OverallHealth::Degraded
    }
}

fn reason(view: &ClusterView) -> Option<String> {
    if let Writes::Held { reason } = &view.writes {
        return Some(reason.clone());
    }
    match &view.phase {
        Phase::Discovering { reason }
        | Phase::Suspect { reason, .. }
        | Phase::ManualNeeded { reason, .. } => Some(reason.clone()),
        _ => None,
    }
}

fn node_status(node: &NodeView, traffic: &Traffic) -> NodeStatus {
    let counters = traffic.node(&node.name);
    let (reads, writes, failed) = traffic.totals(&node.name);
    let unwell = match &node.health {
        Health::Unknown | Health::Up => None,
        Health::Unseen { reason } | Health::Down { reason } => Some(reason),
    };
    let unfit = match &node.reads {
        ReadFitness::Unfit { reason } if node.role != ObservedRole::Primary => Some(reason),
        _ => None,
    };
    NodeStatus {
        name: node.name.clone(),
        health: health_name(&node.health).to_owned(),
        role: role_name(node.role).to_owned(),
        serves_reads: node.reads == ReadFitness::Fit,
        reason: unwell.or(unfit).cloned(),
        timeline: node.timeline,
        position: node.position,
        lag_ms: node.lag.map(millis),
        lag_bytes: node.lag_bytes,
        probe_ms: node.latency.map(millis),
        version: node.version,
        upstream: node.upstream.clone(),
        queries: Queries { total: reads + writes, reads, writes, failed },
        connections_in_use: counters.in_use.load(Ordering::Relaxed),
        connections_idle: counters.idle.load(Ordering::Relaxed),
    }
}

/// A health in one word.
pub(crate) fn health_name(health: &Health) -> &'static str {
    match health {
        Health::Unknown => "unknown",
        Health::Up => "up",
        Health::Unseen { .. } => "unseen",
        Health::Down { .. } => "down",
    }
}

/// A role in one word.
pub(crate) fn role_name(role: ObservedRole) -> &'static str {
    match role {
        ObservedRole::Unknown => "unknown",
        ObservedRole::Primary => "primary",
        ObservedRole::Replica => "replica",
        ObservedRole::StalePrimary => "stale_primary",
        ObservedRole::Foreign => "foreign",
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The status as text for people: a few lines and a table.
pub fn render(status: &Status) -> String {
    let mut text = String::new();
    let health = match status.health {
        OverallHealth::Healthy => "healthy",
        OverallHealth::Degraded => "degraded",
        OverallHealth::Unavailable => "unavailable",
    };
    let primary = status.primary.as_ref().map_or("none", NodeName::as_str);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "cluster {}: {health}, primary {primary}, epoch {}, phase {}",
        status.cluster, status.epoch, status.phase
    );
    if let Some(reason) = &status.reason {
        let _ = writeln!(text, "  {reason}");
    }
    let _ = writeln!(text, "{}", survival_words(&status.survival));
    let _ = writeln!(text, "  {}", status.survival.reason);
    let Queries { total, reads, writes, failed } = status.queries;
    let _ = writeln!(text, "queries {total} ({reads} reads, {writes} writes, {failed} failed)");
    let _ = writeln!(text, "clients {} ({} held)", status.clients, status.held_clients);
    if !status.nodes.is_empty() {
        text.push('\n');
        table(&mut text, &rows(status));
    }
    text
}

fn survival_words(survival: &Survival) -> String {
    let failures = match survival.failures {
        0 => "survives no failure of the primary".to_owned(),
        1 => "survives the failure of one node".to_owned(),
        some => format!("survives the failure of {some} nodes at once"),
    };
    let losses = if survival.loses_nothing {
        "no acknowledged commit is lost"
    } else {
        "the last acknowledged commits may be lost with the primary"
    };
    match survival.standbys_until_commits_wait {
        None => format!("{failures}; {losses}"),
        Some(0) => format!("{failures}; {losses}; commits wait when one more standby is gone"),
        Some(spare) => format!("{failures}; {losses}; {spare} standbys may go before commits wait"),
    }
}

const HEADS: [&str; 10] =
    ["node", "role", "health", "reads", "timeline", "position", "lag", "upstream", "in use", "queries"];

fn rows(status: &Status) -> Vec<[String; 10]> {
    let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let mut rows = vec![HEADS.map(str::to_owned)];
    rows.extend(status.nodes.iter().map(|node| {
        [
            node.name.to_string(),
            node.role.replace('_', " "),
            node.health.clone(),
            if node.serves_reads { "yes" } else { "no" }.to_owned(),
            shown(node.timeline.map(|timeline| timeline.to_string())),
            shown(node.position.map(|position| position.to_string())),
            shown(lag(node)),
            shown(node.upstream.as_ref().map(ToString::to_string)),
            node.connections_in_use.to_string(),
            node.queries.total.to_string(),
        ]
    }));
    // The reason takes the place of an eleventh column, because it may be long.
    for (row, node) in rows.iter_mut().skip(1).zip(&status.nodes) {
        if let Some(reason) = &node.reason {
            let _ = write!(row[9], "  {reason}");
        }
    }
    rows
}

fn lag(node: &NodeStatus) -> Option<String> {
    match (node.lag_ms, node.lag_bytes) {
        (Some(ms), Some(bytes)) => Some(format!("{ms} ms, {bytes} B")),
        (Some(ms), None) => Some(format!("{ms} ms")),
        (None, Some(bytes)) => Some(format!("{bytes} B")),
        (None, None) => None,
    }
}

fn table<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use metako_core::Tick;

    use super::*;

    fn node(name: &str, role: ObservedRole, health: Health, reads: ReadFitness) -> NodeView {
        NodeView {
            name: NodeName::from(name),
            health,
            role,
            reads,
            vouched: metako_core::cluster::Vouched::Any,
            timeline: Some(TimelineId(1)),
            position: Some(Lsn(0x300_0060)),
            lag: (role == ObservedRole::Replica).then_some(Duration::from_millis(3)),
            lag_bytes: (role == ObservedRole::Replica).then_some(120),
            latency: Some(Duration::from_micros(1500)),
            version: Some(150_018),
            upstream: (role == ObservedRole::Replica).then(|| NodeName::from("a")),
            weight: 1,
            zone: None,
        }
    }

    fn view() -> ClusterView {
        let primary = NodeName::from("a");
        let unfit = ReadFitness::Unfit { reason: "it is the primary".to_owned() };
        ClusterView {
            version: 3,
            epoch: Epoch(1),
            phase: Phase::Steady { primary: primary.clone() },
            writes: Writes::Open { primary },
            nodes: vec![
                node("a", ObservedRole::Primary, Health::Up, unfit),
                node("b", ObservedRole::Replica, Health::Up, ReadFitness::Fit),
            ],
            synchronous: SyncRule::Quorum { acks: 1, voters: vec![NodeName::from("b")] },
            survival: Survival {
                failures: 1,
                loses_nothing: true,
                standbys_until_commits_wait: Some(0),
                reason: "should a and one standby fail at once, no standby would be left".to_owned(),
            },
        }
    }

    fn traffic() -> Traffic {
        let traffic = Traffic::default();
        traffic.clients.store(7, Ordering::Relaxed);
        traffic.node(&NodeName::from("a")).writes.store(40, Ordering::Relaxed);
        traffic.node(&NodeName::from("a")).failed.store(2, Ordering::Relaxed);
        traffic.node(&NodeName::from("b")).reads.store(60, Ordering::Relaxed);
        traffic.node(&NodeName::from("b")).in_use.store(3, Ordering::Relaxed);
        traffic
    }

    #[test]
    fn the_table_reads_well() {
        let status = Status::new("main", &view(), &traffic(), Vec::new());
        assert_eq!(
            render(&status),
            "\
cluster main: healthy, primary a, epoch 1, phase steady
survives the failure of one node; no acknowledged commit is lost; commits wait when one more standby is gone
  should a and one standby fail at once, no standby would be left
queries 100 (60 reads, 40 writes, 2 failed)
clients 7 (0 held)

node  role     health  reads  timeline  position   lag          upstream  in use  queries
a     primary  up      no     1         0/3000060  -            -         0       40
b     replica  up      yes    1         0/3000060  3 ms, 120 B  a         3       60
"
        );
    }

    #[test]
    fn a_node_that_is_down_degrades_and_says_why() {
        let mut view = view();
        view.nodes[1].health = Health::Down { reason: "connection refused".to_owned() };
        view.nodes[1].reads = ReadFitness::Unfit { reason: "down".to_owned() };
        let status = Status::new("main", &view, &traffic(), Vec::new());
        assert_eq!(status.health, OverallHealth::Degraded);
        assert!(render(&status).contains("60  connection refused\n"), "{}", render(&status));
    }

    #[test]
    fn held_writes_are_unavailable_with_the_reason() {
        let mut view = view();
        view.phase = Phase::Fencing { old: NodeName::from("a"), since: Tick::ZERO };
        view.writes = Writes::Held { reason: "a is being replaced".to_owned() };
        let status = Status::new("main", &view, &traffic(), Vec::new());
        assert_eq!(status.health, OverallHealth::Unavailable);
        assert!(render(&status).starts_with(
            "cluster main: unavailable, primary none, epoch 1, phase fencing\n  a is being replaced\n"
        ));
    }

    #[test]
    fn json_has_stable_names_and_reads_back() {
        let status = Status::new("main", &view(), &traffic(), Vec::new());
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["health"], "healthy");
        assert_eq!(
            json["survival"],
            serde_json::json!({
                "failures": 1, "loses_nothing": true, "standbys_until_commits_wait": 0,
                "reason": "should a and one standby fail at once, no standby would be left"
            })
        );
        assert_eq!(json["synchronous"], serde_json::json!({"quorum": {"acks": 1, "voters": ["b"]}}));
        assert_eq!(
            json["queries"],
            serde_json::json!({"total": 100, "reads": 60, "writes": 40, "failed": 2})
        );
        assert_eq!(
            json["nodes"][1],
            serde_json::json!({
                "name": "b", "health": "up", "role": "replica", "serves_reads": true, "reason": null, "timeline": 1,
                "position": "0/3000060", "lag_ms": 3, "lag_bytes": 120, "probe_ms": 1, "version": 150_018,
                "upstream": "a", "queries": {"total": 60, "reads": 60, "writes": 0, "failed": 0},
                "connections_in_use": 3, "connections_idle": 0
            })
        );
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
    }
}
