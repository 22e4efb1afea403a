//! The driver with the real controller: a primary dies, a standby takes its place, the other one follows.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use metako_core::cluster::{
    ClusterView, DecisionKind, JournalPhase, NodeView, ObservedRole, ReadFitness, Writes,
};
use metako_core::plugin::{
    Assessment, Electable, Evidence, FailoverPolicy, HealthProbe, NodeAccess, NodeReport, PrimaryEvidence,
    ProbeFailure,
};
use metako_core::{Epoch, NodeName, TimelineId};
use metako_proxy::control::{
    ControlConfig, Driver, DriverHandle, FileJournal, Found, History, JournalStore, Parts, PgServers,
};
use metako_proxy::env::TokioEnv;
use metako_proxy::playground::{Builder, Cluster};
use metako_proxy::shared::{EvidenceSender, Fence, ViewCell};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::{LIMIT, eventually, settings};

/// There are no clients here: nothing is to be cut.
#[derive(Default)]
struct NoClients(Mutex<Vec<(NodeName, Epoch)>>);

impl Fence for NoClients {
    fn sever(&self, node: &NodeName, epoch: Epoch) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.0.lock().push((node.clone(), epoch));
        Box::pin(std::future::ready(()))
    }
}

struct Report;

#[async_trait]
impl HealthProbe for Report {
    async fn probe(&self, node: &mut dyn NodeAccess) -> Result<NodeReport, ProbeFailure> {
        node.report().await
    }
}

/// A refusing primary that its standbys have lost is dead.
struct Refused;

impl FailoverPolicy for Refused {
    fn assess(&self, evidence: &Evidence) -> Assessment {
        let lost = evidence.witnesses.lost > 0 && evidence.witnesses.fresh == 0;
        if evidence.kind == PrimaryEvidence::Refused && lost {
            Assessment::FailOver { reason: "it refuses, and its standbys lost it".to_owned() }
        } else {
            Assessment::Wait { reason: "not dead".to_owned(), ask_again_in: Some(Duration::from_millis(50)) }
        }
    }

    fn rank(&self, electable: &mut [Electable]) {
        electable.sort_by_key(|one| (std::cmp::Reverse(one.position), one.node.clone()));
    }
}

struct Running {
    view: Arc<ViewCell>,
    handle: DriverHandle,
    fence: Arc<NoClients>,
    evidence: EvidenceSender,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(cluster: &Cluster, state: &Path) -> Self {
        let view = Arc::new(ViewCell::new(ClusterView::empty("starting")));
        let fence = Arc::new(NoClients::default());
        let (evidence, losses) = EvidenceSender::channel();
        let (history, writer) = History::open(state).unwrap();
        tokio::spawn(writer.run());
        let env = TokioEnv::new();
        let parts = Parts {
            config: ControlConfig {
                settings: settings(cluster),
                policy: Arc::new(Refused),
                probe: Arc::new(Report),
                probe_name: "report".to_owned(),
            },
            servers: Arc::new(PgServers::new(env.clone())),
            journal: Arc::new(FileJournal::open(state).unwrap()),
            history,
            view: Arc::clone(&view),
            fence: Arc::clone(&fence) as Arc<dyn Fence>,
            evidence: losses,
        };
        let (driver, handle) = Driver::start(env, parts).await.unwrap();
        Self { view, handle, fence, evidence, task: tokio::spawn(driver.run()) }
    }

    /// Waits for a view, as the data plane would see it.
    async fn view(&self, what: &str, fits: impl Fn(&ClusterView) -> bool) -> Arc<ClusterView> {
        let mut changes = self.view.subscribe();
        let waiting = async {
            loop {
                let view = self.view.load_full();
                if fits(&view) {
                    return view;
                }
                changes.changed().await.unwrap();
            }
        };
        let fitting = tokio::time::timeout(LIMIT, waiting).await;
        fitting.unwrap_or_else(|_| {
            panic!("never: {what}: {:#?} {:#?}", self.view.load_full(), self.handle.recent_decisions(50))
        })
    }

    async fn stop(self) {
        self.handle.stop().await;
        self.task.await.unwrap();
    }
}

fn follows(node: &NodeView, upstream: &NodeName) -> bool {
    node.upstream.as_ref() == Some(upstream) && node.reads == ReadFitness::Fit
}

fn open_to(view: &ClusterView, primary: &NodeName) -> bool {
    view.writes == Writes::Open { primary: primary.clone() }
}

#[tokio::test]
async fn a_killed_primary_is_replaced_and_the_other_standby_follows() {
    let cluster = Cluster::start(Builder::new().replicas(2)).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let running = Running::start(&cluster, state.path()).await;
    let old = NodeName::from("node-1");
    running
        .view("writes open to node-1, both standbys fit", |view| {
            open_to(view, &old) && view.nodes.iter().filter(|node| follows(node, &old)).count() == 2
        })
        .await;
    cluster.node("node-1").sql("CREATE TABLE t AS SELECT 1 AS a").unwrap();

    cluster.node("node-1").kill_9_all().unwrap();
    running.evidence.report(&old, metako_core::cluster::ServerLoss::Broken);
    let view = running
        .view("a new primary with one standby", |view| {
            let new = view.primary().filter(|primary| **primary != old);
            new.is_some_and(|new| view.nodes.iter().any(|node| follows(node, new)))
        })
        .await;
    let new = view.primary().unwrap().clone();
    assert_eq!((view.epoch, view.node(new.as_str()).unwrap().timeline), (Epoch(2), Some(TimelineId(2))));
    assert_eq!(*running.fence.0.lock(), [(old.clone(), Epoch(2))]);
    let follower = view.nodes.iter().find(|node| follows(node, &new)).unwrap().name.clone();
    let new_server = cluster.node(new.as_str()).clone();
    cluster.wait_streaming(&new_server, &[follower.as_str()], LIMIT).unwrap();
    new_server.sql("INSERT INTO t VALUES (2)").unwrap();
    let client = new_server.connect().await.unwrap();
    eventually("the freeze token is removed from the new primary", || async {
        let row = client.query_one("SHOW primary_slot_name", &[]).await.unwrap();
        row.get::<_, String>(0).is_empty().then_some(())
    })
    .await;

    let back = cluster.node("node-1").clone();
    tokio::task::spawn_blocking(move || back.start().unwrap()).await.unwrap();
    let view = running
        .view("the old primary seen for what it is", |view| {
            view.node("node-1").is_some_and(|node| node.role == ObservedRole::StalePrimary)
        })
        .await;
    assert!(open_to(&view, &new), "{view:?}");

    let kinds: Vec<_> =
        running.handle.recent_decisions(100).into_iter().map(|entry| entry.decision.kind).collect();
    for kind in [DecisionKind::FailoverBegun, DecisionKind::Chosen, DecisionKind::Opened] {
        assert!(kinds.contains(&kind), "{kind:?} is missing in {kinds:?}");
    }
    running.stop().await;

    let store = FileJournal::open(state.path()).unwrap();
    let Found::Journal(journal) = store.load().await.unwrap() else { panic!("no journal") };
    assert_eq!((&journal.primary, journal.epoch, journal.phase), (&new, Epoch(2), JournalPhase::Steady));
    drop(store);

    // The journal alone tells a new proxy who is primary, although the old one claims to be one as well.
    let again = Running::start(&cluster, state.path()).await;
    again.view("the same primary after a restart", |view| open_to(view, &new)).await;
    again.stop().await;
}
