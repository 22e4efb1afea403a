//! The driver with the real controller: a primary dies, a standby takes its place, the other one follows.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use metako_core::cluster::{
    ClusterView, DecisionKind, Journal, JournalPhase, NodeView, ObservedRole, ReadFitness, SyncRule, Writes,
};
use metako_core::{Epoch, NodeName, TimelineId};
use metako_proxy::control::{
    ControlConfig, Driver, DriverHandle, FileJournal, Found, History, JournalError, JournalStore, Parts,
    PgServers, Recorder,
};
use metako_proxy::env::{Env as _, TokioEnv};
use metako_proxy::metrics::Figures;
use metako_proxy::playground::{Builder, Cluster};
use metako_proxy::shared::{EvidenceSender, Fence, ViewCell};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{LIMIT, config, eventually};

/// There are no clients here: nothing is to be cut.
#[derive(Default)]
struct NoClients(Mutex<Vec<(NodeName, Epoch)>>);

impl Fence for NoClients {
    fn sever(&self, node: &NodeName, epoch: Epoch) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.0.lock().push((node.clone(), epoch));
        Box::pin(std::future::ready(()))
    }

    fn drain(&self, _: &NodeName, _: Epoch) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
}

/// The journal on disk, which also shows what was written last.
struct Kept {
    file: FileJournal,
    last: watch::Sender<Option<Journal>>,
}

#[async_trait]
impl JournalStore for Kept {
    async fn load(&self) -> Result<Found, JournalError> {
        self.file.load().await
    }

    async fn save(&self, journal: &Journal) -> Result<(), JournalError> {
        self.file.save(journal).await?;
        self.last.send_replace(Some(journal.clone()));
        Ok(())
    }
}

struct Running {
    view: Arc<ViewCell>,
    journal: watch::Receiver<Option<Journal>>,
    handle: DriverHandle,
    fence: Arc<NoClients>,
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
        let (last, journal) = watch::channel(None);
        let parts = Parts {
            config: ControlConfig::build(&config(cluster)).unwrap(),
            servers: Arc::new(PgServers::new(env.clone()).telling(evidence)),
            journal: Arc::new(Kept { file: FileJournal::open(state).unwrap(), last }),
            history,
            figures: Arc::new(Figures::new(env.now())),
            record: Recorder::none(),
            view: Arc::clone(&view),
            fence: Arc::clone(&fence) as Arc<dyn Fence>,
            evidence: losses,
        };
        let (driver, handle) = Driver::start(env, parts).await.unwrap();
        Self { view, journal, handle, fence, task: tokio::spawn(driver.run()) }
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

    /// Waits until the rule on disk says the same as the configuration: before that, a failover is a person's.
    async fn sync_rule(&self, fits: impl Fn(&SyncRule) -> bool) {
        let mut journal = self.journal.clone();
        let waiting = journal.wait_for(|journal| journal.as_ref().is_some_and(|journal| fits(&journal.sync)));
        let found = tokio::time::timeout(LIMIT, waiting).await;
        assert!(found.is_ok(), "never: the synchronous rule: {:#?}", self.handle.recent_decisions(50));
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
    let is_async = |rule: &SyncRule| *rule == SyncRule::Async;
    replace_killed_primary(Builder::new().replicas(2), is_async).await;
}

#[tokio::test]
async fn a_killed_primary_is_replaced_where_commits_wait_for_a_standby() {
    let waits = |rule: &SyncRule| matches!(rule, SyncRule::Quorum { acks: 1, voters } if !voters.is_empty());
    replace_killed_primary(Builder::new().replicas(2).synchronous(1), waits).await;
}

/// Kills the primary of a running cluster and checks what comes of it. `rule` is what holds before and after.
async fn replace_killed_primary(builder: Builder, rule: impl Fn(&SyncRule) -> bool) {
    let cluster = Cluster::start(builder).await.unwrap();
    let state = tempfile::tempdir().unwrap();
    let running = Running::start(&cluster, state.path()).await;
    let old = NodeName::from("node-1");
    running
        .view("writes open to node-1, both standbys fit", |view| {
            open_to(view, &old) && view.nodes.iter().filter(|node| follows(node, &old)).count() == 2
        })
        .await;
    running.sync_rule(&rule).await;
    cluster.node("node-1").sql("CREATE TABLE t AS SELECT 1 AS a").unwrap();

    cluster.node("node-1").kill_9_all().unwrap();
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
    assert!(rule(&journal.sync), "{:?}", journal.sync);
}
