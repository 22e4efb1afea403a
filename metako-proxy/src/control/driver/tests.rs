//! The driver's loop and its parts, in paused time, on servers that are made up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use metako_core::cluster::{
    ClusterView, Decision, DecisionKind, HookCall, HookKind, Journal, ProbeId, Promotion, SettingsChange,
};
use metako_core::config::{
    FailoverMode, FailoverSettings, Hook, Hooks, NodeTls, Priority, ReplicationAddress, Secret, SslMode,
    UnknownOutcome,
};
use metako_core::plugin::{
    Assessment, BuildError, Electable, Evidence, FailoverPolicy, FailoverPolicySpec, HealthProbe, NodeAccess,
    NodeReport, Policy, ProbeFailure, ReportedRole,
};
use metako_core::{Epoch, Lsn, SystemId, TimelineId};
use parking_lot::Mutex;

use super::*;
use crate::control::journal::MockJournalStore;
use crate::env::TokioEnv;

struct Never;

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct NeverSpec {}

#[typetag::serde(name = "never")]
impl FailoverPolicySpec for NeverSpec {
    fn build(&self) -> Result<Box<dyn FailoverPolicy>, BuildError> {
        Ok(Box::new(Never))
    }
}

impl FailoverPolicy for Never {
    fn assess(&self, _: &Evidence) -> Assessment {
        Assessment::Wait { reason: "never".to_owned(), ask_again_in: None }
    }

    fn rank(&self, _: &mut [Electable]) {}
}

/// Does to the nodes what their names say.
struct ByName;

#[async_trait]
impl HealthProbe for ByName {
    async fn probe(&self, node: &mut dyn NodeAccess) -> Result<NodeReport, ProbeFailure> {
        node.report().await
    }
}

struct Access {
    name: NodeName,
    number: usize,
}

#[async_trait]
impl NodeAccess for Access {
    async fn report(&mut self) -> Result<NodeReport, ProbeFailure> {
        match self.name.as_str() {
            "hangs" => std::future::pending().await,
            "panics" => panic!("access {} on purpose", self.number),
            "slow" => tokio::time::sleep(Duration::from_secs(1)).await,
            _ => {}
        }
        Ok(NodeReport {
            system_id: SystemId(7),
            version: 150_018,
            started_at: i64::try_from(self.number).unwrap(),
            wal_segment_size: 16 << 20,
            checkpointer: None,
            timeline: TimelineId(1),
            role: if self.name.as_str().starts_with("primary") {
                ReportedRole::Primary {
                    flushed: Lsn(1),
                    senders: Vec::new(),
                    synchronous_standby_names: String::new(),
                    read_only: false,
                }
            } else {
                ReportedRole::Standby {
                    received: Some(Lsn(1)),
                    replayed: Some(Lsn(1)),
                    replay_lag: None,
                    receiver: None,
                    receiver_process: false,
                    startup_wait: None,
                    settings: BTreeMap::new(),
                }
            },
            latency: Duration::from_millis(1),
        })
    }

    async fn commit(&mut self) -> Result<Duration, ProbeFailure> {
        Err(ProbeFailure::Unsupported("commit".to_owned()))
    }

    async fn query(&mut self, _: &str) -> Result<Vec<Vec<Option<String>>>, ProbeFailure> {
        Err(ProbeFailure::Unsupported("query".to_owned()))
    }
}

#[derive(Default)]
struct Made {
    accesses: AtomicUsize,
    orders: Mutex<Vec<(NodeName, Order)>>,
}

#[async_trait]
impl Servers for Made {
    fn access(&self, node: &Arc<Node>) -> Box<dyn NodeAccess> {
        let number = self.accesses.fetch_add(1, Ordering::Relaxed);
        Box::new(Access { name: node.name.clone(), number })
    }

    async fn carry_out(&self, node: &Arc<Node>, order: Order) -> Result<ActionOutcome, ActionFailure> {
        self.orders.lock().push((node.name.clone(), order));
        assert_ne!(node.name.as_str(), "panics", "an order on purpose");
        Ok(ActionOutcome::Done)
    }
    fn retain(&self, _: &[Arc<Node>]) {}
}

mockall::mock! {
    Cut {}
    impl Fence for Cut {
        fn sever(
            &self,
            node: &NodeName,
            epoch: Epoch,
        ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

        fn drain(
            &self,
            node: &NodeName,
            epoch: Epoch,
        ) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
    }
}

fn node(name: &str, port: u16) -> Node {
    Node {
        name: NodeName::from(name),
        host: "localhost".to_owned(),
        port,
        role: None,
        username: "postgres".to_owned(),
        password: Secret::new("secret"),
        database: "postgres".to_owned(),
        weight: 1,
        zone: None,
        priority: Priority::Rank(100),
        tls: NodeTls::new(SslMode::Disable),
        application_name: name.to_owned(),
        pgdata: None,
        replication: ReplicationAddress {
            host: "localhost".to_owned(),
            port,
            user: None,
            password: None,
            passfile: None,
        },
    }
}

fn config(nodes: Vec<Node>) -> ControlConfig {
    let settings = ClusterSettings {
        name: "main".to_owned(),
        nodes,
        interval: Duration::from_secs(1),
        timeout: Duration::from_millis(500),
        failure_threshold: 3,
        max_lag: None,
        failover: FailoverSettings {
            mode: FailoverMode::Automatic,
            synchronous: None,
            silent_after: Duration::from_millis(2500),
            stalled_after: Duration::from_secs(10),
            start_timeout: None,
            async_restart_grace: Duration::ZERO,
            hold_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            hold_clients: 10,
            hold_bytes: 1000,
            budget: (2, Duration::from_mins(10)),
            max_lag_on_failover: None,
            unknown_outcome: UnknownOutcome::TransactionResolutionUnknown,
        },
        hooks: Hooks::default(),
    };
    ControlConfig {
        settings: Arc::new(settings),
        policy: Policy::build(Arc::new(NeverSpec {})).unwrap(),
        probe: Arc::new(ByName),
        probe_name: "by_name".to_owned(),
    }
}

fn journal(cluster: &str, epoch: u64) -> Journal {
    Journal::begun(cluster.to_owned(), SystemId(7), Epoch(epoch), NodeName::from("a"), TimelineId(1))
}

fn empty_store() -> MockJournalStore {
    let mut store = MockJournalStore::new();
    store.expect_load().returning(|| Ok(Found::Nothing));
    store
}

struct Bench {
    driver: Driver<TokioEnv>,
    handle: DriverHandle,
    servers: Arc<Made>,
    view: Arc<ViewCell>,
}

async fn bench(names: &[&str], store: MockJournalStore, fence: MockCut) -> Bench {
    let servers = Arc::new(Made::default());
    let view = Arc::new(ViewCell::new(ClusterView::empty("starting")));
    let (_, evidence) = mpsc::channel(1);
    let nodes = names.iter().zip(1..).map(|(name, port)| node(name, port)).collect();
    let parts = Parts {
        config: config(nodes),
        servers: Arc::clone(&servers) as Arc<dyn Servers>,
        journal: Arc::new(store),
        history: History::in_memory(),
        figures: Arc::new(Figures::new(metako_core::Tick::ZERO)),
        record: Recorder::none(),
        view: Arc::clone(&view),
        fence: Arc::new(fence),
        evidence,
    };
    let (driver, handle) = Driver::start(TokioEnv::new(), parts).await.unwrap();
    Bench { driver, handle, servers, view }
}

impl Bench {
    /// Begins an action that cannot be answered at once, and waits for its end.
    async fn carry_out(&mut self, action: Action) -> Event {
        assert!(self.driver.carry_out(action).is_none());
        self.answer().await
    }

    async fn answer(&mut self) -> Event {
        match self.driver.reports.recv().await.unwrap() {
            Report::Done(id, outcome) => Event::Done { id, outcome },
            Report::Probed(answer) => self.driver.probes.answered(*answer),
        }
    }
}

fn probe(id: u64, node: &str) -> Action {
    Action::Probe { id: ProbeId(id), node: NodeName::from(node), timeout: Duration::from_millis(500) }
}

fn probed(event: Event) -> (u64, Result<NodeReport, ProbeFailure>) {
    match event {
        Event::Probed { id, result, .. } => (id.0, result),
        _ => panic!("another event"),
    }
}

fn done(event: Event) -> (u64, Result<ActionOutcome, ActionFailure>) {
    match event {
        Event::Done { id, outcome } => (id.0, outcome),
        _ => panic!("another event"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_ends_by_its_time_out_and_the_next_can_begin() {
    let mut bench = bench(&["hangs"], empty_store(), MockCut::new()).await;
    for id in 1..3 {
        let answer = bench.carry_out(probe(id, "hangs")).await;
        assert_eq!(probed(answer), (id, Err(ProbeFailure::TimedOut(Duration::from_millis(500)))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_is_named_and_gets_another_connection() {
    let mut bench = bench(&["panics"], empty_store(), MockCut::new()).await;
    for id in [1, 2] {
        let (_, result) = probed(bench.carry_out(probe(id, "panics")).await);
        let problem = format!("health probe `by_name` panicked: access {} on purpose", id - 1);
        assert_eq!(result, Err(ProbeFailure::Unexpected(problem)));
    }
}

#[tokio::test(start_paused = true)]
async fn one_probe_a_node_is_under_way_and_the_last_one_asked_for_follows_it() {
    let mut bench = bench(&["slow"], empty_store(), MockCut::new()).await;
    let long =
        |id| Action::Probe { id: ProbeId(id), node: NodeName::from("slow"), timeout: Duration::from_secs(5) };
    assert!(bench.driver.carry_out(long(1)).is_none());
    assert!(bench.driver.carry_out(long(2)).is_none());
    let replaced = bench.driver.carry_out(long(3)).unwrap();
    assert!(matches!(probed(replaced), (2, Err(ProbeFailure::Unsupported(_)))));
    assert!(matches!(probed(bench.answer().await), (1, Ok(_))));
    assert!(matches!(probed(bench.answer().await), (3, Ok(_))));
    assert_eq!(bench.servers.accesses.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_changed_is_asked_anew_and_its_old_answer_counts_for_nothing() {
    let mut bench = bench(&["a", "slow"], empty_store(), MockCut::new()).await;
    assert!(bench.driver.carry_out(probe(1, "slow")).is_none());
    let changed = config(vec![node("a", 1), node("slow", 99)]);
    bench.driver.reconfigure(changed);
    let (_, result) = probed(bench.answer().await);
    assert!(matches!(result, Err(ProbeFailure::Unexpected(_))), "{result:?}");
    let started_at = |event| probed(event).1.unwrap().started_at;
    assert_eq!(started_at(bench.carry_out(probe(2, "a")).await), 0, "a keeps its connection");
    assert_eq!(bench.servers.accesses.load(Ordering::Relaxed), 3);
    bench.driver.reconfigure(config(vec![node("slow", 99)]));
    let gone = bench.driver.carry_out(probe(3, "a")).unwrap();
    assert!(matches!(probed(gone), (3, Err(ProbeFailure::Unexpected(_)))));
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_the_controller_refuses_changes_no_node() {
    let mut store = MockJournalStore::new();
    store.expect_load().returning(|| Ok(Found::Journal(Box::new(journal("main", 3)))));
    let mut bench = bench(&["a", "b"], store, MockCut::new()).await;
    let mut actions = Vec::new();
    let offer = |bench: &mut Bench, names: &[&str], actions: &mut Vec<Action>| {
        let nodes = names.iter().zip(1..).map(|(name, port)| node(name, port)).collect();
        let event = bench.driver.offer(config(nodes));
        bench.driver.handle(event, actions);
    };
    offer(&mut bench, &["b"], &mut actions);
    let refused = actions.iter().any(|action| {
        matches!(action, Action::Record { decision } if decision.reason.contains("cannot be removed"))
    });
    assert!(refused, "{actions:?}");
    assert!(probed(bench.carry_out(probe(77, "a")).await).1.is_ok(), "the primary is still asked");
    offer(&mut bench, &["a", "c"], &mut actions);
    assert!(probed(bench.carry_out(probe(78, "c")).await).1.is_ok());
    let gone = bench.driver.carry_out(probe(79, "b")).unwrap();
    assert!(matches!(probed(gone), (79, Err(ProbeFailure::Unexpected(_)))));
}

#[tokio::test(start_paused = true)]
async fn orders_reach_their_node_and_each_is_answered_once() {
    let mut bench = bench(&["a", "panics"], empty_store(), MockCut::new()).await;
    let a = NodeName::from("a");
    let change = SettingsChange { set: vec![("primary_conninfo".to_owned(), None)], resume_replay: true };
    let promotion = Promotion {
        node: a.clone(),
        epoch: Epoch(2),
        timeline: TimelineId(2),
        token: "metako_epoch_2".to_owned(),
    };
    let plain = Order::Change { slots: Vec::new(), change: change.clone() };
    let with_slots = Order::Change { slots: vec!["b".to_owned()], change: change.clone() };
    let id = ActionId(4);
    let cases = [
        (Action::Freeze { id, node: a.clone(), change: change.clone() }, plain.clone()),
        (Action::Unfreeze { id, node: a.clone(), change: change.clone() }, plain.clone()),
        (
            Action::Repoint { id, node: a.clone(), upstream: NodeName::from("b"), change: change.clone() },
            plain.clone(),
        ),
        (Action::SetSyncStandbys { id, node: a.clone(), change: change.clone() }, plain),
        (
            Action::Prepare { id, node: a.clone(), slots: vec!["b".to_owned()], change: change.clone() },
            with_slots,
        ),
        (Action::Promote { id, promotion: promotion.clone() }, Order::Promote(promotion)),
        (Action::Verify { id, node: a.clone(), epoch: Epoch(2) }, Order::Verify(Epoch(2))),
    ];
    for (action, order) in cases {
        assert_eq!(done(bench.carry_out(action).await), (4, Ok(ActionOutcome::Done)));
        assert_eq!(bench.servers.orders.lock().pop(), Some((a.clone(), order)));
    }
    let verify = |node: &str| Action::Verify { id: ActionId(5), node: NodeName::from(node), epoch: Epoch(2) };
    let (_, outcome) = done(bench.carry_out(verify("panics")).await);
    assert!(matches!(outcome, Err(ActionFailure::Unknown(_))), "{outcome:?}");
    let (_, outcome) = done(bench.driver.carry_out(verify("gone")).unwrap());
    assert!(matches!(outcome, Err(ActionFailure::Failed(_))), "{outcome:?}");
}

#[tokio::test]
async fn hooks_are_run_by_the_configuration_in_force_and_answered_once() {
    let mut bench = bench(&["a"], empty_store(), MockCut::new()).await;
    let call = |node: &str| HookCall {
        kind: HookKind::Stop,
        node: NodeName::from(node),
        upstream: None,
        epoch: Epoch(2),
        timeline: TimelineId(2),
        slot: None,
        conninfo: None,
    };
    let hook = |id, node| Action::Hook { id: ActionId(id), call: call(node) };
    let (id, outcome) = done(bench.driver.carry_out(hook(1, "a")).unwrap());
    assert!(id == 1 && matches!(outcome, Err(ActionFailure::Failed(_))), "{outcome:?}");
    let mut settings = (*bench.driver.settings).clone();
    settings.hooks.stop = Some(Hook { command: vec!["true".to_owned()], timeout: Duration::from_mins(1) });
    bench.driver.settings = Arc::new(settings);
    assert_eq!(done(bench.carry_out(hook(2, "a")).await), (2, Ok(ActionOutcome::Done)));
    let (id, outcome) = done(bench.driver.carry_out(hook(3, "gone")).unwrap());
    assert!(id == 3 && matches!(outcome, Err(ActionFailure::Failed(_))), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn severing_goes_through_the_fence_and_is_bounded() {
    let mut fence = MockCut::new();
    fence
        .expect_sever()
        .withf(|node, epoch| node.as_str() == "a" && *epoch == Epoch(2))
        .times(1)
        .returning(|_, _| Box::pin(std::future::ready(())));
    fence.expect_sever().times(1).returning(|_, _| Box::pin(std::future::pending()));
    let mut bench = bench(&["a"], empty_store(), fence).await;
    let sever = |id| Action::Sever { id: ActionId(id), node: NodeName::from("a"), epoch: Epoch(2) };
    assert_eq!(done(bench.carry_out(sever(1)).await), (1, Ok(ActionOutcome::Done)));
    let (_, outcome) = done(bench.carry_out(sever(2)).await);
    assert!(matches!(outcome, Err(ActionFailure::Unknown(_))), "{outcome:?}");
}

/// A store that takes as long as it is told for each journal.
struct SlowStore {
    takes: Duration,
    saved: Mutex<Vec<Epoch>>,
    saving: AtomicUsize,
}

#[async_trait]
impl JournalStore for SlowStore {
    async fn load(&self) -> Result<Found, JournalError> {
        Ok(Found::Nothing)
    }

    async fn save(&self, journal: &Journal) -> Result<(), JournalError> {
        assert_eq!(self.saving.fetch_add(1, Ordering::Relaxed), 0, "two writes at once");
        tokio::time::sleep(self.takes).await;
        self.saving.fetch_sub(1, Ordering::Relaxed);
        self.saved.lock().push(journal.epoch);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn journals_are_written_one_after_the_other_and_a_slow_disk_is_told() {
    let store = Arc::new(SlowStore {
        takes: Duration::from_mins(1),
        saved: Mutex::default(),
        saving: AtomicUsize::new(0),
    });
    let (reporter, mut reports) = mpsc::channel(16);
    let env = TokioEnv::new();
    let writer = JournalWriter::spawn(&env, Arc::clone(&store) as Arc<dyn JournalStore>, reporter);
    for id in 1..=2 {
        assert!(writer.write(ActionId(id), journal("main", id)).is_none());
    }
    for expected in 1..=2 {
        let Some(Report::Done(id, outcome)) = reports.recv().await else { panic!() };
        assert_eq!(id.0, expected);
        assert!(matches!(outcome, Err(ActionFailure::Unknown(_))), "{outcome:?}");
    }
    writer.finish().await;
    assert_eq!(*store.saved.lock(), [Epoch(1), Epoch(2)]);
}

#[tokio::test(start_paused = true)]
async fn journals_that_wait_for_the_disk_are_bounded() {
    let store =
        SlowStore { takes: Duration::from_secs(1), saved: Mutex::default(), saving: AtomicUsize::new(0) };
    let (reporter, _reports) = mpsc::channel(16);
    let writer = JournalWriter::spawn(&TokioEnv::new(), Arc::new(store), reporter);
    let refused = (1..100).find_map(|id| writer.write(ActionId(id), journal("main", id)));
    let (_, outcome) = done(refused.expect("the queue has no end"));
    assert!(matches!(outcome, Err(ActionFailure::Failed(_))), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn another_clusters_journal_is_refused() {
    let mut store = MockJournalStore::new();
    store.expect_load().returning(|| Ok(Found::Journal(Box::new(journal("other", 3)))));
    let (_, evidence) = mpsc::channel(1);
    let parts = Parts {
        config: config(vec![node("a", 1)]),
        servers: Arc::new(Made::default()),
        journal: Arc::new(store),
        history: History::in_memory(),
        figures: Arc::new(Figures::new(metako_core::Tick::ZERO)),
        record: Recorder::none(),
        view: Arc::new(ViewCell::new(ClusterView::empty("starting"))),
        fence: Arc::new(MockCut::new()),
        evidence,
    };
    let Err(error) = Driver::start(TokioEnv::new(), parts).await else { panic!("it started") };
    assert!(matches!(error, StartError::OtherCluster { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn decisions_and_views_go_where_they_are_read() {
    let mut bench = bench(&["a"], empty_store(), MockCut::new()).await;
    let decision = Decision {
        kind: DecisionKind::Opened,
        node: Some(NodeName::from("a")),
        epoch: Epoch(2),
        reason: "because".to_owned(),
    };
    assert!(bench.driver.carry_out(Action::Record { decision: decision.clone() }).is_none());
    assert_eq!(
        bench.handle.recent_decisions(9).into_iter().map(|entry| entry.decision).collect::<Vec<_>>(),
        [decision]
    );
    let mut view = ClusterView::empty("another");
    view.version = 77;
    assert!(bench.driver.carry_out(Action::Publish { view: Arc::new(view) }).is_none());
    assert_eq!(bench.view.load().version, 77);
}

#[tokio::test(start_paused = true)]
async fn a_driver_asks_its_nodes_by_itself_and_stops_when_told() {
    let Bench { driver, handle, view, .. } = bench(&["a", "b"], empty_store(), MockCut::new()).await;
    let mut changes = view.subscribe();
    let running = tokio::spawn(driver.run());
    let up = async {
        loop {
            let now = view.load_full();
            if now.nodes.len() == 2
                && now.nodes.iter().all(|node| node.health == metako_core::cluster::Health::Up)
            {
                return;
            }
            changes.changed().await.unwrap();
        }
    };
    timeout(Duration::from_mins(1), up).await.expect("both nodes answer");
    handle.stop().await;
    running.await.unwrap();
    let adopt = OperatorCommand::Adopt(NodeName::from("a"));
    assert_eq!(handle.operator(adopt, false).await, Err(Stopped.into()));
    handle.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_person_asks_for_waits_until_the_journal_is_on_disk() {
    let mut store = empty_store();
    store.expect_save().returning(|_| Ok(()));
    let Bench { mut driver, handle, .. } = bench(&["primary-1", "primary-2"], store, MockCut::new()).await;
    // Both nodes say that they are primaries, so nothing is written before a person says which is.
    while driver.controller.view().nodes.iter().any(|node| node.health != metako_core::cluster::Health::Up) {
        let ControlFlow::Continue(event) = driver.next().await else { panic!() };
        let mut actions = Vec::new();
        driver.handle(event, &mut actions);
        for action in actions {
            drop(driver.carry_out(action));
        }
    }
    assert_eq!(driver.controller.view().primary(), None);
    let mut actions = Vec::new();
    driver.handle(Event::Operator(OperatorCommand::Adopt(NodeName::from("primary-1"))), &mut actions);
    assert!(driver.controller.is_writing());
    let (reply, decided) = oneshot::channel();
    driver.consider(Wish { command: OperatorCommand::Pause, dry_run: true, reply });
    assert_eq!(driver.waiting.len(), 1);
    let written = actions.iter().find(|action| matches!(action, Action::Persist { .. }));
    let Some(&Action::Persist { id, .. }) = written else { panic!("{actions:?}") };
    driver.handle(Event::Done { id, outcome: Ok(ActionOutcome::Done) }, &mut actions);
    assert!(!driver.controller.is_writing());
    assert!(matches!(driver.next().await, ControlFlow::Continue(_)));
    let answer = decided.await.unwrap();
    assert!(answer.as_ref().err().is_none_or(|why| !why.contains("being written")), "{answer:?}");
    drop(handle);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_driver_is_noticed_however_it_comes() {
    let Bench { driver, handle, .. } = bench(&["a"], empty_store(), MockCut::new()).await;
    let running = tokio::spawn(driver.run());
    assert!(timeout(Duration::from_mins(1), handle.ended()).await.is_err(), "it runs");
    // Dropped where it stands, as a panic would.
    running.abort();
    timeout(Duration::from_mins(1), handle.ended()).await.expect("it has ended");
}
