//! The text of all metrics. `docs/metrics.md` has the same names.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metako_core::Tick;
use metako_core::cluster::{ClusterView, DecisionKind, Phase, ReadFitness, SyncRule};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, prometheus_text, text as openmetrics,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use super::figures::{Counts, Figures};
use crate::control::{health_name, role_name};
use crate::shared::Traffic;

/// A form of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What a client gets whose request accepts this.
    pub fn accepted(accept: Option<&str>) -> Self {
        let openmetrics = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
        if openmetrics { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The content type of the text.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What the metrics are made of.
#[derive(Debug)]
pub struct Facts {
    /// `cluster` of the configuration.
    pub cluster: String,
    /// When metako was started, since 1970.
    pub started: Duration,
    /// Now, on the clock of the figures.
    pub now: Tick,
    /// The cluster.
    pub view: Arc<ClusterView>,
    /// What has happened.
    pub figures: Arc<Figures>,
    /// Clients, and statements and connections of each node.
    pub traffic: Arc<Traffic>,
    /// Decisions that did not get into the history file.
    pub unwritten_decisions: u64,
    /// Events that did not get into the incident record.
    pub unrecorded_events: u64,
    /// Reloads that were done.
    pub reloads: u64,
    /// Reloads that were refused.
    pub refused_reloads: u64,
}

/// Writes all metrics. Allocates the text; locks the counters of the control plane for a moment.
pub fn text(facts: Facts, format: Format) -> String {
    let cluster = (Cow::from("cluster"), Cow::from(facts.cluster.clone()));
    let mut registry = Registry::with_labels(std::iter::once(cluster));
    registry.register_collector(Box::new(facts));
    let mut text = String::new();
    let written = match format {
        Format::Prometheus => prometheus_text::encode(&mut text, &registry),
        Format::OpenMetrics => openmetrics::encode(&mut text, &registry),
    };
    written.expect("writing to a String does not fail");
    text
}

impl Collector for Facts {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page { encoder };
        let counts = self.figures.counts();
        self.proxy(&mut page, &counts)?;
        self.cluster(&mut page)?;
        self.changes(&mut page, &counts)?;
        self.nodes(&mut page)?;
        Self::control(&mut page, &counts)?;
        self.clients(&mut page)
    }
}

impl Facts {
    fn proxy(&self, page: &mut Page<'_>, counts: &Counts) -> fmt::Result {
        page.info("metako_build", "The metako that runs", [("version", env!("CARGO_PKG_VERSION"))])?;
        page.gauge(
            "metako_start_time_seconds",
            "When metako was started, since 1970",
            self.started.as_secs_f64(),
        )?;
        let results = [("ok", self.reloads), ("failed", self.refused_reloads)];
        page.counters(
            "metako_config_reloads",
            "Reloads of the configuration",
            results.map(|(result, count)| ([("result", result)], count)),
        )?;
        let decisions =
            counts.decisions.iter().map(|(kind, count)| (kind.name(), *count)).collect::<Vec<_>>();
        page.counters(
            "metako_decisions",
            "Decisions of the cluster controller, as `metako history` shows them",
            decisions.iter().map(|(kind, count)| ([("kind", *kind)], *count)),
        )?;
        page.counter(
            "metako_history_lines_unwritten",
            "Decisions that are in the log only, because the history file was behind or could not be written",
            self.unwritten_decisions,
        )?;
        page.counter(
            "metako_record_events_lost",
            "Events that are not in the incident record, because the disk was behind or could not be written",
            self.unrecorded_events,
        )
    }

    fn cluster(&self, page: &mut Page<'_>) -> fmt::Result {
        let view = &*self.view;
        page.gauge("metako_epoch", "The epoch: each change of primary raises it", view.epoch.0)?;
        page.gauge(
            "metako_view_version",
            "Changes of the view of the cluster since the start",
            view.version,
        )?;
        page.states(
            "metako_phase",
            "1 for the phase of the cluster controller",
            "phase",
            &Phase::NAMES,
            [([], view.phase.name())],
        )?;
        let survival = &view.survival;
        page.gauge(
            "metako_survivable_failures",
            "Nodes that may fail at once, the primary among them, before writes stop until a person acts",
            survival.failures,
        )?;
        page.gauge(
            "metako_acknowledged_commits_safe",
            "1 if no failover loses an acknowledged commit, 0 if the last ones may be lost",
            u64::from(survival.loses_nothing),
        )?;
        let spare = survival.standbys_until_commits_wait;
        page.gauges(
            "metako_standbys_until_commits_wait",
            "Standbys that may go before commits wait for one to come back; absent where they wait for none",
            spare.map(|spare| ([], spare)),
        )?;
        let (acks, voters) = match &view.synchronous {
            SyncRule::Async => (0, &[][..]),
            SyncRule::Quorum { acks, voters } => (*acks, voters.as_slice()),
        };
        page.gauge(
            "metako_synchronous_acks",
            "Standbys that must have a commit before it is acknowledged",
            acks,
        )?;
        page.gauges(
            "metako_synchronous_voter",
            "1 if commits may be acknowledged by this node",
            view.nodes
                .iter()
                .map(|node| ([("node", node.name.as_str())], u64::from(voters.contains(&node.name)))),
        )
    }

    fn changes(&self, page: &mut Page<'_>, counts: &Counts) -> fmt::Result {
        let Counts { failovers, switchovers, holds, .. } = counts;
        let present = holds.present(self.now);
        page.gauge(
            "metako_writes_open",
            "1 if writes go to a primary, 0 if they are held",
            u64::from(self.view.primary().is_some()),
        )?;
        page.gauge(
            "metako_writes_held_seconds",
            "How long writes have been held now; 0 if they are open",
            present.as_secs_f64(),
        )?;
        page.gauge(
            "metako_last_write_hold_seconds",
            "How long writes were held the last time that is over",
            holds.last.as_secs_f64(),
        )?;
        page.counter(
            "metako_write_holds",
            "Times that writes were held, the start of metako among them",
            holds.count,
        )?;
        page.counter(
            "metako_write_hold_seconds",
            "How long writes were held in all",
            (holds.over + present).as_secs_f64(),
        )?;
        let aborted = counts.decisions.get(&DecisionKind::Aborted).copied().unwrap_or_default();
        page.counter("metako_failovers", "Failovers that were brought to their end", *failovers)?;
        page.counter("metako_switchovers", "Switchovers that were brought to their end", *switchovers)?;
        page.counter(
            "metako_aborted_changes",
            "Failovers and switchovers that were called off or did not begin",
            aborted,
        )
    }

    fn nodes(&self, page: &mut Page<'_>) -> fmt::Result {
        let nodes = &self.view.nodes;
        let health = nodes.iter().map(|node| ([("node", node.name.as_str())], health_name(&node.health)));
        page.states("metako_node_health", "1 for the health of a node", "health", &HEALTH, health)?;
        let roles = nodes.iter().map(|node| ([("node", node.name.as_str())], role_name(node.role)));
        page.states("metako_node_role", "1 for the role of a node", "role", &ROLES, roles)?;
        page.gauges(
            "metako_node_serves_reads",
            "1 if a node serves reads as a replica",
            nodes
                .iter()
                .map(|node| ([("node", node.name.as_str())], u64::from(node.reads == ReadFitness::Fit))),
        )?;
        page.gauges(
            "metako_node_timeline",
            "The timeline of a node",
            nodes
                .iter()
                .filter_map(|node| Some(([("node", node.name.as_str())], u64::from(node.timeline?.0)))),
        )?;
        page.gauges(
            "metako_node_position_bytes",
            "How far the WAL of a node reaches, as a number of bytes",
            nodes.iter().filter_map(|node| Some(([("node", node.name.as_str())], node.position?.0))),
        )?;
        page.gauges(
            "metako_node_lag_bytes",
            "WAL of the primary that a replica has not replayed",
            nodes.iter().filter_map(|node| Some(([("node", node.name.as_str())], node.lag_bytes?))),
        )?;
        page.gauges(
            "metako_node_lag_seconds",
            "How far the replay of a replica is behind",
            nodes.iter().filter_map(|node| Some(([("node", node.name.as_str())], node.lag?.as_secs_f64()))),
        )?;
        page.gauges(
            "metako_node_probe_seconds",
            "How long the last good probe of a node took",
            nodes
                .iter()
                .filter_map(|node| Some(([("node", node.name.as_str())], node.latency?.as_secs_f64()))),
        )
    }

    fn control(page: &mut Page<'_>, counts: &Counts) -> fmt::Result {
        page.counters(
            "metako_probes",
            "Probes of a node, by what came of them",
            counts
                .probes
                .iter()
                .map(|((node, result), count)| ([("node", node.as_str()), ("result", *result)], *count)),
        )?;
        page.counters(
            "metako_actions",
            "Actions of the cluster controller, by what came of them",
            counts
                .actions
                .iter()
                .map(|((action, result), count)| ([("action", *action), ("result", *result)], *count)),
        )
    }

    fn clients(&self, page: &mut Page<'_>) -> fmt::Result {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        page.gauge("metako_clients", "Clients that are connected", read(&self.traffic.clients))?;
        page.gauge("metako_held_clients", "Clients that wait for a primary", read(&self.traffic.held))?;
        page.gauge(
            "metako_held_bytes",
            "What those clients have sent and metako keeps",
            read(&self.traffic.held_bytes),
        )?;
        let nodes: Vec<_> =
            self.view.nodes.iter().map(|node| (node.name.as_str(), self.traffic.node(&node.name))).collect();
        page.gauges(
            "metako_server_connections",
            "Connections to a node",
            nodes.iter().flat_map(|(node, traffic)| {
                let states = [("in_use", &traffic.in_use), ("idle", &traffic.idle)];
                states.map(|(state, counter)| ([("node", *node), ("state", state)], read(counter)))
            }),
        )?;
        page.counters(
            "metako_statements",
            "Statements that were sent to a node; what is not plainly a read counts as a write",
            nodes.iter().flat_map(|(node, traffic)| {
                let classes = [("read", &traffic.reads), ("write", &traffic.writes)];
                classes.map(|(class, counter)| ([("node", *node), ("class", class)], read(counter)))
            }),
        )?;
        page.counters(
            "metako_failed_statements",
            "Statements that ended in a lost server connection or a server that could not serve",
            nodes.iter().map(|(node, traffic)| ([("node", *node)], read(&traffic.failed))),
        )
    }
}

const HEALTH: [&str; 4] = ["unknown", "up", "unseen", "down"];
const ROLES: [&str; 5] = ["unknown", "primary", "replica", "stale_primary", "foreign"];

/// The labels of a sample.
type Labels<'l, const N: usize> = [(&'l str, &'l str); N];

/// The text as it is written.
struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.gauges(name, help, [([], value)])
    }

    fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l, N>, impl EncodeGaugeValue)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        samples
            .into_iter()
            .try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
    }

    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        self.counters(name, help, [([], value)])
    }

    /// The samples are called `name` with `_total` added.
    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'l, N>, impl EncodeCounterValue)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        samples.into_iter().try_for_each(|(labels, value)| {
            let exemplar: Option<&Exemplar<NoLabelSet, f64>> = None;
            family.encode_family(&labels)?.encode_counter(&value, exemplar)
        })
    }

    /// The sample is called `name` with `_info` added.
    fn info(&mut self, name: &str, help: &str, labels: Labels<'_, 1>) -> fmt::Result {
        self.encoder.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    /// One sample for each of `states`, in the label `label`: 1 for the present one, 0 for the others.
    fn states<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        states: &[&str],
        samples: impl IntoIterator<Item = (Labels<'l, N>, &'static str)>,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        samples.into_iter().try_for_each(|(labels, present)| {
            states.iter().try_for_each(|state| {
                let value = u64::from(*state == present);
                family.encode_family(&(labels, [(label, *state)]))?.encode_gauge(&value)
            })
        })
    }
}
