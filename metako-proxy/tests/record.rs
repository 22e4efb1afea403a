//! The incident record of a real cluster, played again in the simulator.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test where they stand")]

mod running;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use metako_core::cluster::{DecisionKind, OperatorCommand};
use metako_core::config::{SecretSource, load};
use metako_core::record::Line;
use metako_proxy::playground::Cluster;
use metako_sim::replay::{Replay, Source, replay, what_if};
use running::{Metako, eventually, text};
use tokio_postgres::NoTls;

/// The configuration names none outside of itself.
struct NoSecrets;

impl SecretSource for NoSecrets {
    fn env(&self, _: &str) -> Option<String> {
        None
    }

    fn file(&self, path: &Path) -> std::io::Result<String> {
        panic!("{} is read", path.display())
    }
}

/// Clients that write all the time, and connect again when they are thrown out.
struct Load {
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    runtime: tokio::runtime::Runtime,
}

impl Load {
    fn start(cluster: &Cluster, port: u16) -> Self {
        running::client(cluster, "psql", port, &["-XAtc", "create table written (at timestamptz)"]);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        for _ in 0..4 {
            let (dsn, written, stop) = (running::dsn(cluster, port), Arc::clone(&written), Arc::clone(&stop));
            runtime.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let Ok((client, connection)) = tokio_postgres::connect(&dsn, NoTls).await else {
                        continue;
                    };
                    tokio::spawn(connection);
                    while !client.is_closed() && !stop.load(Ordering::Relaxed) {
                        if client.execute("insert into written values (now())", &[]).await.is_ok() {
                            written.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        let load = Self { written, stop, runtime };
        load.wait_for_more();
        load
    }

    fn wait_for_more(&self) {
        let before = self.written.load(Ordering::Relaxed);
        eventually("rows are written", || {
            let more = self.written.load(Ordering::Relaxed) - before;
            if more > 100 { Ok(()) } else { Err(format!("{more} rows")) }
        });
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.runtime.shutdown_background();
    }
}

fn sources(folder: &Path) -> Vec<Source> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| Source { bytes: std::fs::read(&path).unwrap(), name: path.display().to_string() })
        .collect()
}

/// Replays all segments, and fails where a decision is not the recorded one.
fn equal(sources: &[Source]) -> Replay {
    let found = replay(sources).unwrap_or_else(|problem| panic!("{problem}"));
    assert!(found.difference.is_none(), "{:#?}", found.difference);
    assert!(found.blind.is_empty(), "{:?}", found.blind);
    found
}

#[test]
fn the_record_of_a_failover_a_rejoin_and_a_switchover_is_replayed_to_equal_decisions() {
    let cluster = running::cluster(2, Some(1));
    let conninfo = cluster.node("node-2").sql("show primary_conninfo").unwrap().unwrap();
    let (_, replication) = conninfo.split_once("password=").expect("the standby logs in by a password");
    let replication = replication.split_whitespace().next().unwrap().to_owned();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/hooks/local.sh");
    let configuration = running::configuration(&cluster, &cluster.hooks_yaml(&script));
    let mut metako = Metako::start(&configuration);
    metako.wait_until_open(2);
    metako.wait_until_synchronous();
    let load = Load::start(&cluster, metako.port);

    cluster.node("node-1").kill_9().unwrap();
    eventually("another node is primary", || {
        let status = metako.status()?;
        if status["primary"].as_str().is_some_and(|name| name != "node-1") {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    load.wait_for_more();
    // The hook brings the former primary back.
    metako.wait_until_open(2);

    metako.rewrite(&configuration.replace("hooks:", "health_check: { interval: 700ms }\nhooks:"));
    let reloaded = metako.command(&["reload"]);
    assert!(reloaded.status.success(), "{}", text(&reloaded.stderr));
    let switched = metako.command(&["switchover", "--yes"]);
    assert!(switched.status.success(), "{}\n{}", text(&switched.stdout), text(&switched.stderr));
    load.wait_for_more();
    assert!(metako.end(), "{}", metako.log());
    metako.start_again();
    metako.wait_until_open(2);
    load.wait_for_more();
    load.end();
    assert!(metako.end(), "{}", metako.log());

    let folder = metako.state_dir().join("record");
    let sources = sources(&folder);
    assert!(sources.len() >= 2, "a restart begins a segment");
    let found = equal(&sources);
    assert_eq!(found.starts, 2);
    let kinds: BTreeSet<DecisionKind> = found.decisions.iter().map(|decided| decided.decision.kind).collect();
    for kind in [
        DecisionKind::Suspected,
        DecisionKind::FailoverBegun,
        DecisionKind::Promoted,
        DecisionKind::Opened,
        DecisionKind::Rejoined,
        DecisionKind::Reconfigured,
        DecisionKind::SwitchoverBegun,
    ] {
        assert!(kinds.contains(&kind), "{kind:?}: {kinds:?}");
    }
    // What the history holds, in the same order.
    let history = metako.command(&["history", "--last", "10000", "--json"]);
    let history: Vec<serde_json::Value> =
        text(&history.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let reasons: Vec<&str> = found.decisions.iter().map(|decided| decided.decision.reason.as_str()).collect();
    let known: Vec<&str> = history.iter().map(|entry| entry["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, known);

    let secrets = [replication.as_str(), cluster.superuser_password(), cluster.app_password()];
    let mut masked = 0;
    for Source { name, bytes } in &sources {
        let content = text(bytes);
        for secret in secrets {
            assert!(!content.contains(secret), "a password is in {name}");
        }
        masked += content.matches("password='***'").count();
        let mode = std::fs::metadata(name).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert!(masked > 0, "conninfos are in the record, without their passwords");
    assert!(
        sources.iter().any(|source| source.name.ends_with("-incident.jsonl")),
        "the segment of the failover is one of an incident"
    );
    let switchover = OperatorCommand::Switchover { to: None };
    let told = format!("\"in\":{{\"operator\":{}}}", serde_json::to_string(&switchover).unwrap());
    assert!(sources.iter().any(|source| text(&source.bytes).contains(&told)), "{told}");

    // The replay can tell: an answer that was not given leads to other decisions.
    let changed: Vec<Source> = sources
        .iter()
        .map(|Source { name, bytes }| Source {
            name: name.clone(),
            bytes: text(bytes)
                .replace("{\"error\":{\"refused\":", "{\"error\":{\"starting_up\":")
                .into_bytes(),
        })
        .collect();
    assert!(replay(&changed).unwrap().difference.is_some(), "a primary that starts is not replaced");
}

#[test]
fn a_killed_metako_leaves_a_record_that_can_be_replayed() {
    let cluster = running::cluster(1, None);
    let mut metako = Metako::start(&running::configuration(&cluster, ""));
    metako.wait_until_open(1);
    metako.start_again();
    metako.wait_until_open(1);
    assert!(metako.end(), "{}", metako.log());
    let sources = sources(&metako.state_dir().join("record"));
    let found = equal(&sources);
    assert_eq!(found.starts, 2);
    // The same configuration would have decided the same, late answers and the restart included.
    let text = std::fs::read_to_string(metako.config()).unwrap();
    let loaded = load("metako.yaml", &text, &NoSecrets).unwrap();
    let same = what_if(&sources, &loaded.config).unwrap();
    assert!(same.parted.is_none() && same.recorded == same.other, "{same:#?}");
    assert_eq!(same.recorded.len(), found.decisions.len());

    let numbers: Vec<u64> = sources
        .iter()
        .flat_map(|source| source.bytes.split(|byte| *byte == b'\n'))
        .filter_map(|line| Line::parse(line).ok())
        .map(|line| line.seq)
        .collect();
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len(), "no number is there twice");
}
