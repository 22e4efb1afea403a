//! `GET /metrics`: its form, its handbook, and its figures beside `metako status` and a failover on a real cluster.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod exposition;
mod running;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use exposition::{Families, read};
use metako_core::Tick;
use metako_core::cluster::{
    Action, ActionId, ActionOutcome, ClusterView, Decision, DecisionKind, Event, NodeView, ObservedRole,
    ProbeId, Survival, SyncRule,
};
use metako_core::plugin::ProbeFailure;
use metako_core::{Epoch, Lsn, TimelineId};
use metako_proxy::metrics::{Facts, Figures, Format, text};
use metako_proxy::shared::Traffic;
use running::{Metako, client, eventually};
use serde_json::Value;

/// A name that is hard to write.
const ODD: &str = "b\"\\\n}";

/// Facts that have a sample of each metric.
fn facts() -> Facts {
    let node = |name: &str, role| NodeView {
        role,
        timeline: Some(TimelineId(3)),
        position: Some(Lsn(1 << 40)),
        lag: Some(Duration::from_millis(1500)),
        lag_bytes: Some(17),
        latency: Some(Duration::from_micros(250)),
        ..NodeView::unknown(name.into())
    };
    let view = ClusterView {
        version: 9,
        epoch: Epoch(4),
        nodes: vec![node("a", ObservedRole::Primary), node(ODD, ObservedRole::Replica)],
        synchronous: SyncRule::Quorum { acks: 1, voters: vec![ODD.into()] },
        survival: Survival { standbys_until_commits_wait: Some(2), ..Survival::none("for a test") },
        ..ClusterView::empty("for a test")
    };
    let figures = Figures::new(Tick::ZERO);
    for result in [Err(ProbeFailure::Refused(String::new())), Err(ProbeFailure::TimedOut(Duration::ZERO))] {
        figures.told(&Event::Probed { id: ProbeId(1), node: ODD.into(), sent: Tick::ZERO, result });
    }
    let decision = Decision {
        kind: DecisionKind::Aborted,
        node: None,
        epoch: Epoch(4),
        reason: "for a test".to_owned(),
    };
    figures.asked(Tick::ZERO, &Action::Record { decision });
    let id = ActionId(1);
    figures.asked(Tick::ZERO, &Action::Sever { id, node: "a".into(), epoch: Epoch(4) });
    figures.told(&Event::Done { id, outcome: Ok(ActionOutcome::Done) });
    Facts {
        cluster: "the \"main\"\none".to_owned(),
        started: Duration::from_millis(1_700_000_000_250),
        now: Tick::ZERO + Duration::from_millis(2500),
        view: Arc::new(view),
        figures: Arc::new(figures),
        traffic: Arc::new(Traffic::default()),
        unwritten_decisions: 5,
        unrecorded_events: 8,
        reloads: 6,
        refused_reloads: 7,
    }
}

/// The value of the one sample with these labels besides `cluster`.
fn value(families: &Families, name: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted: BTreeMap<&str, &str> = labels.iter().copied().collect();
    let family = families.get(name).unwrap_or_else(|| panic!("there is no {name}"));
    let fits = |found: &exposition::Labels| {
        found
            .iter()
            .filter(|(label, _)| *label != "cluster")
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect::<BTreeMap<_, _>>()
            == wanted
    };
    let found = family.samples.iter().find(|(labels, _)| fits(labels));
    found.unwrap_or_else(|| panic!("{name} has no sample {labels:?}: {family:?}")).1
}

/// A metric, the labels of one sample besides `cluster`, and its value.
type Sample<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

/// Fails unless the samples have these values.
fn check(families: &Families, expected: &[Sample<'_>]) {
    for (name, labels, expected) in expected {
        let found = value(families, name, labels);
        assert!((found - expected).abs() < 1e-9, "{name} {labels:?} is {found}, not {expected}");
    }
}

#[test]
fn both_forms_can_be_read_and_say_the_same() {
    let prometheus = read(&text(facts(), Format::Prometheus), Format::Prometheus).unwrap();
    let openmetrics = read(&text(facts(), Format::OpenMetrics), Format::OpenMetrics).unwrap();
    let values = |families: &Families| {
        let samples = families.iter().map(|(name, family)| (name.clone(), family.samples.clone()));
        samples.collect::<Vec<_>>()
    };
    assert_eq!(values(&prometheus), values(&openmetrics));
    check(
        &prometheus,
        &[
            ("metako_node_lag_seconds", &[("node", ODD)], 1.5),
            ("metako_node_position_bytes", &[("node", "a")], 1_099_511_627_776.0),
            ("metako_node_probe_seconds", &[("node", "a")], 0.000_25),
            ("metako_start_time_seconds", &[], 1_700_000_000.25),
            ("metako_writes_held_seconds", &[], 2.5),
            ("metako_probes_total", &[("node", ODD), ("result", "timed_out")], 1.0),
            ("metako_synchronous_voter", &[("node", "a")], 0.0),
            ("metako_aborted_changes_total", &[], 1.0),
            ("metako_config_reloads_total", &[("result", "failed")], 7.0),
            ("metako_history_lines_unwritten_total", &[], 5.0),
            ("metako_record_events_lost_total", &[], 8.0),
        ],
    );
    for (name, family) in &prometheus {
        for (labels, _) in &family.samples {
            assert_eq!(labels["cluster"], "the \"main\"\none", "{name}");
        }
    }
}

#[test]
fn the_reader_of_these_tests_is_strict() {
    let good = "# HELP a_total Help.\n# TYPE a_total counter\na_total{x=\"1\"} 1\n";
    assert!(read(good, Format::Prometheus).is_ok());
    for (from, to) in [
        ("} 1\n", "} 1"),
        ("} 1\n", "} one\n"),
        ("} 1\n", "} -1\n"),
        ("} 1\n", "} 1 1\n"),
        ("} 1\n", "} 1\na_total{x=\"1\"} 2\n"),
        ("} 1\n", "} 1\n# HELP a_total Help.\n# TYPE a_total counter\n"),
        ("x=\"1\"", "x=\"1"),
        ("x=\"1\"", "x=\"\\1\""),
        ("x=\"1\"", "x=\"1\",x=\"2\""),
        ("# HELP a_total Help.\n", ""),
        ("# TYPE a_total counter\n", ""),
        ("counter", "gauge"),
        ("counter", "number"),
        ("a_total{", "b_total{"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert!(read(&bad, Format::Prometheus).is_err(), "{bad}");
    }
    assert!(read(good, Format::OpenMetrics).is_err());
}

#[test]
fn the_handbook_has_every_metric_and_no_other() {
    let handbook = include_str!("../../docs/metrics.md");
    let families = read(&text(facts(), Format::Prometheus), Format::Prometheus).unwrap();
    let word = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let mut documented = BTreeMap::new();
    for line in handbook.lines().filter(|line| line.starts_with("| `metako_")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let labels: BTreeSet<String> =
            cells[2].split(',').map(word).filter(|label| !label.is_empty()).collect();
        assert!(documented.insert(word(cells[0]), (word(cells[1]), labels)).is_none(), "twice: {line}");
    }
    let written: BTreeMap<String, (String, BTreeSet<String>)> = families
        .iter()
        .map(|(name, family)| {
            let (labels, _) = family.samples.first().unwrap_or_else(|| panic!("{name} has no sample"));
            let labels = labels.keys().filter(|label| *label != "cluster").cloned().collect();
            assert!(family.help.len() > 10, "{name}: {}", family.help);
            (name.clone(), (family.kind.clone(), labels))
        })
        .collect();
    assert_eq!(documented, written);
    // The alerts ask for what there is.
    for name in handbook.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_') {
        if name.starts_with("metako_") {
            assert!(written.contains_key(name), "{name}");
        }
    }
}

/// Asks a running metako, as Prometheus would by `accept`.
fn scrape(metako: &Metako, format: Format) -> Families {
    let socket = metako.config().with_file_name("state").join("admin.sock");
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(running::PATIENCE)).unwrap();
    let accept = match format {
        Format::Prometheus => "text/plain",
        Format::OpenMetrics => "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
    };
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: metako\r\nAccept: {accept}\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("content-type: {}", format.content_type())), "{head}");
    read(body, format).unwrap_or_else(|wrong| panic!("{wrong}\n{body}"))
}

/// What of the metrics differs from a status of nearly the same moment.
fn differences(families: &Families, status: &Value) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |name: &str, labels: &[(&str, &str)], shown: &Value| {
        let expected = shown.as_f64().unwrap_or_else(|| f64::from(u8::from(shown == &Value::Bool(true))));
        let found = value(families, name, labels);
        if (found - expected).abs() > f64::EPSILON {
            differences.push(format!("{name}{labels:?} is {found}, status says {shown}"));
        }
    };
    let survival = &status["survival"];
    compare("metako_epoch", &[], &status["epoch"]);
    compare("metako_phase", &[("phase", status["phase"].as_str().unwrap())], &Value::Bool(true));
    compare("metako_writes_open", &[], &Value::Bool(status["primary"].is_string()));
    compare("metako_survivable_failures", &[], &survival["failures"]);
    compare("metako_acknowledged_commits_safe", &[], &survival["loses_nothing"]);
    let quorum = &status["synchronous"]["quorum"];
    compare("metako_synchronous_acks", &[], if quorum.is_null() { &Value::Null } else { &quorum["acks"] });
    compare("metako_clients", &[], &status["clients"]);
    compare("metako_held_clients", &[], &status["held_clients"]);
    for node in status["nodes"].as_array().unwrap() {
        let name = node["name"].as_str().unwrap();
        let one = [("node", name)];
        let votes = quorum["voters"].as_array().is_some_and(|voters| voters.contains(&node["name"]));
        compare("metako_synchronous_voter", &one, &Value::Bool(votes));
        let (health, role) = (node["health"].as_str().unwrap(), node["role"].as_str().unwrap());
        compare("metako_node_health", &[("node", name), ("health", health)], &Value::Bool(true));
        compare("metako_node_role", &[("node", name), ("role", role)], &Value::Bool(true));
        compare("metako_node_serves_reads", &one, &node["serves_reads"]);
        compare("metako_node_timeline", &one, &node["timeline"]);
        for (class, shown) in [("read", "reads"), ("write", "writes")] {
            compare("metako_statements_total", &[("node", name), ("class", class)], &node["queries"][shown]);
        }
        compare("metako_failed_statements_total", &one, &node["queries"]["failed"]);
        for (state, shown) in [("in_use", "connections_in_use"), ("idle", "connections_idle")] {
            compare("metako_server_connections", &[("node", name), ("state", state)], &node[shown]);
        }
    }
    differences
}

/// Waits until metrics and status agree, and gives the metrics.
fn agreeing(metako: &Metako) -> Families {
    eventually("metrics and status agree", || {
        let status = metako.status()?;
        let families = scrape(metako, Format::Prometheus);
        let differences = differences(&families, &status);
        if differences.is_empty() { Ok(families) } else { Err(differences.join("\n")) }
    })
}

#[test]
fn the_figures_are_those_of_status_and_a_failover_shows_in_them() {
    let cluster = running::cluster(2, Some(1));
    let configuration = running::configuration(&cluster, "");
    let metako = Metako::start(&configuration);
    metako.wait_until_open(2);
    metako.wait_until_synchronous();
    let ask = |sql: &str| client(&cluster, "psql", metako.port, &["-XAtc", sql]);
    ask("create table t (i int)");
    ask("select count(*) from t");
    assert!(metako.command(&["reload"]).status.success());
    metako.rewrite(&format!("{configuration}\nload_blancer: {{ algorithm: random }}\n"));
    assert!(!metako.command(&["reload"]).status.success());
    metako.rewrite(&configuration);

    let before = agreeing(&metako);
    let of = |name: &str| value(&before, name, &[]);
    check(
        &before,
        &[
            ("metako_failovers_total", &[], 0.0),
            ("metako_write_holds_total", &[], 1.0),
            ("metako_survivable_failures", &[], 1.0),
            ("metako_acknowledged_commits_safe", &[], 1.0),
            ("metako_writes_held_seconds", &[], 0.0),
            ("metako_config_reloads_total", &[("result", "ok")], 1.0),
            ("metako_config_reloads_total", &[("result", "failed")], 1.0),
            ("metako_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0),
        ],
    );
    assert!(of("metako_start_time_seconds") > 1_600_000_000.0 && of("metako_view_version") > 1.0);
    assert!(value(&before, "metako_node_position_bytes", &[("node", "node-1")]) > 0.0);
    assert!(value(&before, "metako_node_lag_bytes", &[("node", "node-2")]) >= 0.0);
    assert!(value(&before, "metako_statements_total", &[("node", "node-1"), ("class", "write")]) >= 1.0);
    assert!(value(&before, "metako_probes_total", &[("node", "node-3"), ("result", "ok")]) >= 1.0);
    assert!(value(&before, "metako_actions_total", &[("action", "persist"), ("result", "done")]) >= 1.0);
    assert_eq!(scrape(&metako, Format::OpenMetrics).len(), before.len());

    cluster.node("node-1").kill_9().unwrap();
    ask("insert into t values (1)");
    metako.wait_until_open(1);
    let after = agreeing(&metako);
    check(
        &after,
        &[
            ("metako_failovers_total", &[], 1.0),
            ("metako_switchovers_total", &[], 0.0),
            ("metako_write_holds_total", &[], 2.0),
            ("metako_decisions_total", &[("kind", "failover_begun")], 1.0),
            ("metako_actions_total", &[("action", "promote"), ("result", "done")], 1.0),
            ("metako_node_health", &[("node", "node-1"), ("health", "down")], 1.0),
        ],
    );
    assert!(value(&after, "metako_epoch", &[]) > of("metako_epoch"));
    let gap = value(&after, "metako_last_write_hold_seconds", &[]);
    assert!(gap > 0.0 && value(&after, "metako_write_hold_seconds_total", &[]) >= gap, "{after:?}");
    let refused = value(&after, "metako_probes_total", &[("node", "node-1"), ("result", "refused")]);
    assert!(refused >= 1.0, "{after:?}");
}
