//! Reports and orders, one by one.

use std::sync::Arc;
use std::time::Duration;

use metako_core::cluster::{ActionFailure, ActionOutcome, Promotion, SettingsChange};
use metako_core::config::{Node, Secret};
use metako_core::plugin::{NodeAccess, NodeReport, ProbeFailure, ReportedRole};
use metako_core::{Epoch, TimelineId};
use metako_proxy::control::{Order, PgServers, Servers};
use metako_proxy::env::TokioEnv;
use metako_proxy::playground::{Builder, Cluster};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{LIMIT, config, eventually};

const DONE: Result<ActionOutcome, ActionFailure> = Ok(ActionOutcome::Done);

struct Bench {
    cluster: Cluster,
    servers: PgServers<TokioEnv>,
    nodes: Vec<Arc<Node>>,
}

impl Bench {
    async fn start(builder: Builder) -> Self {
        let cluster = Cluster::start(builder).await.unwrap();
        let nodes = config(&cluster).cluster.nodes.iter().cloned().map(Arc::new).collect();
        Self { servers: PgServers::new(TokioEnv::new()), cluster, nodes }
    }

    fn access(&self, index: usize) -> Box<dyn NodeAccess> {
        self.servers.access(&self.nodes[index])
    }

    async fn order(&self, index: usize, order: Order) -> Result<ActionOutcome, ActionFailure> {
        self.servers.carry_out(&self.nodes[index], order).await
    }
}

fn change(set: &[(&str, Option<&str>)]) -> Order {
    with_slots(&[], set)
}

fn with_slots(slots: &[&str], set: &[(&str, Option<&str>)]) -> Order {
    let set = set.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
    let slots = slots.iter().map(|slot| (*slot).to_owned()).collect();
    Order::Change { slots, change: SettingsChange { set, resume_replay: true } }
}

fn promotion(node: &Node, token: &str) -> Order {
    Order::Promote(Promotion {
        node: node.name.clone(),
        epoch: Epoch(2),
        timeline: TimelineId(2),
        token: token.to_owned(),
    })
}

fn is_frozen(report: &NodeReport, token: &str) -> bool {
    let ReportedRole::Standby { receiver, receiver_process, startup_wait, settings, .. } = &report.role
    else {
        return false;
    };
    settings["primary_slot_name"].value == token
        && settings["primary_conninfo"].value.is_empty()
        && receiver.is_none()
        && !receiver_process
        && matches!(startup_wait.as_deref(), Some("RecoveryWalStream" | "RecoveryRetrieveRetryInterval"))
}

#[tokio::test]
async fn nodes_report_are_frozen_promoted_by_token_only_and_followed() {
    let bench = Bench::start(Builder::new().replicas(2)).await;
    let (mut primary, mut chosen, mut other) = (bench.access(0), bench.access(1), bench.access(2));

    let report = primary.report().await.unwrap();
    let ReportedRole::Primary { senders, read_only, .. } = &report.role else { panic!("{report:?}") };
    let names: Vec<_> = senders.iter().map(|sender| sender.application_name.as_str()).collect();
    assert_eq!((names, *read_only, report.timeline), (vec!["node-2", "node-3"], false, TimelineId(1)));
    let system_id = report.system_id;

    let report = chosen.report().await.unwrap();
    let receiver = report.streaming_receiver().expect("it streams");
    assert_eq!((receiver.sender_port, receiver.timeline), (bench.nodes[0].port, TimelineId(1)));
    assert_eq!(report.system_id, system_id);
    let ReportedRole::Standby { settings, .. } = &report.role else { panic!("{report:?}") };
    assert_eq!(settings.keys().len(), NodeReport::SETTINGS.len());
    // PostgreSQL 13 reads its restore_command only when it starts.
    let fixed = settings.iter().filter(|(_, setting)| !setting.changeable).map(|(name, _)| name.as_str());
    let restartable: &[&str] = if report.version < 140_000 { &["restore_command"] } else { &[] };
    assert_eq!(fixed.collect::<Vec<_>>(), restartable);
    let conninfo = settings["primary_conninfo"].value.clone();

    primary.commit().await.unwrap();
    assert!(matches!(chosen.commit().await, Err(ProbeFailure::ReadOnly(_))));

    let token = "metako_epoch_2";
    let freeze = change(&[("primary_conninfo", Some("")), ("primary_slot_name", Some(token))]);
    for index in [1, 2, 1] {
        assert_eq!(bench.order(index, freeze.clone()).await, DONE);
    }
    let mut positions = Vec::new();
    for access in [&mut chosen, &mut other] {
        let report = loop {
            let report = access.report().await.unwrap();
            if is_frozen(&report, token) {
                break report;
            }
        };
        assert_eq!(report.timeline, TimelineId(1));
        positions.push(report.position());
    }
    primary.commit().await.unwrap();
    assert_eq!(chosen.report().await.unwrap().position(), positions[0], "a frozen standby receives nothing");

    let stale = promotion(&bench.nodes[1], "metako_epoch_1");
    assert_eq!(bench.order(1, stale).await, Ok(ActionOutcome::Declined));
    assert!(!chosen.report().await.unwrap().is_primary());
    for _ in 0..2 {
        let prepare = with_slots(&["node_3"], &[("synchronous_standby_names", Some("ANY 1 (\"node-3\")"))]);
        assert_eq!(bench.order(1, prepare).await, DONE);
    }
    assert_eq!(bench.order(1, promotion(&bench.nodes[1], token)).await, DONE);
    let promoted = loop {
        let report = chosen.report().await.unwrap();
        if report.is_primary() {
            break report;
        }
    };
    assert_eq!(promoted.timeline, TimelineId(2));
    assert_eq!(bench.order(1, promotion(&bench.nodes[1], token)).await, DONE);

    let conninfo = conninfo
        .replace("node-2", "node-3")
        .replace(&format!("port={}", bench.nodes[0].port), &format!("port={}", bench.nodes[1].port));
    let follow = change(&[("primary_conninfo", Some(&conninfo)), ("primary_slot_name", Some("node_3"))]);
    assert_eq!(bench.order(2, follow).await, DONE);
    loop {
        let report = other.report().await.unwrap();
        if report.streaming_receiver().is_some_and(|receiver| receiver.timeline == TimelineId(2)) {
            break;
        }
    }
    assert_eq!(bench.order(1, Order::Verify(Epoch(2))).await, DONE);
}

#[tokio::test]
async fn a_first_commit_whose_wait_for_a_standby_was_cancelled_verifies_nothing() {
    let bench = Bench::start(Builder::new().replicas(1)).await;
    let nobody = change(&[("synchronous_standby_names", Some("ANY 1 (nobody)"))]);
    assert_eq!(bench.order(0, nobody).await, DONE);
    let verify = bench.order(0, Order::Verify(Epoch(2)));
    let cancel = async {
        let client = bench.cluster.nodes()[0].connect().await.unwrap();
        let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        eventually("a commit that waits for nobody", || async {
            client.query_opt(cancel, &[]).await.unwrap()
        })
        .await;
    };
    let (outcome, ()) = tokio::join!(verify, cancel);
    assert!(matches!(outcome, Err(ActionFailure::Unknown(_))), "{outcome:?}");
}

/// The checkpointer decides whether commits wait for standbys. On a busy disk it may read a setting long after sessions do.
#[tokio::test]
async fn a_first_commit_verifies_only_when_commits_wait_for_standbys_in_fact() {
    let bench = Bench::start(Builder::new().replicas(2)).await;
    let mut chosen = bench.access(1);
    let token = "metako_epoch_2";
    let freeze = change(&[("primary_conninfo", Some("")), ("primary_slot_name", Some(token))]);
    assert_eq!(bench.order(1, freeze.clone()).await, DONE);
    assert_eq!(bench.order(2, freeze).await, DONE);
    while !is_frozen(&chosen.report().await.unwrap(), token) {}

    let client = bench.cluster.nodes()[1].connect().await.unwrap();
    let question = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let checkpointer = Pid::from_raw(client.query_one(question, &[]).await.unwrap().get(0));
    kill(checkpointer, Signal::SIGSTOP).unwrap();
    let prepare = with_slots(&["node_3"], &[("synchronous_standby_names", Some("ANY 1 (\"node-3\")"))]);
    assert_eq!(bench.order(1, prepare).await, DONE);
    assert_eq!(bench.order(1, promotion(&bench.nodes[1], token)).await, DONE);
    // One that was asked in the moment of its promotion says so, and is asked again.
    while !matches!(chosen.report().await, Ok(report) if report.is_primary()) {}

    let position = async || {
        let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap();
        row.get::<_, String>(0).parse::<metako_core::Lsn>().unwrap()
    };
    let verify = bench.order(1, Order::Verify(Epoch(2)));
    tokio::pin!(verify);
    let before = position().await;
    tokio::select! {
        biased;
        outcome = &mut verify => panic!("nobody follows, and yet: {outcome:?}"),
        () = eventually("an unwaited commit", async || (position().await > before).then_some(())) => {}
    }
    kill(checkpointer, Signal::SIGCONT).unwrap();
    let waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    tokio::select! {
        biased;
        outcome = &mut verify => panic!("nobody follows, and yet: {outcome:?}"),
        _ = eventually("a commit that waits", async || client.query_opt(waits, &[]).await.unwrap()) => {}
    }
    let port = bench.nodes[1].port;
    let conninfo = format!(
        "host=127.0.0.1 port={port} user=postgres password={} application_name=node-3",
        bench.cluster.superuser_password()
    );
    let follow = change(&[("primary_conninfo", Some(&conninfo)), ("primary_slot_name", Some("node_3"))]);
    assert_eq!(bench.order(2, follow).await, DONE);
    assert_eq!(verify.await, DONE);
}

#[tokio::test]
async fn a_rule_for_synchronous_standbys_is_in_force_only_when_commits_wait_in_fact() {
    let bench = Bench::start(Builder::new().replicas(1)).await;
    let client = bench.cluster.nodes()[0].connect().await.unwrap();
    let question = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let checkpointer = Pid::from_raw(client.query_one(question, &[]).await.unwrap().get(0));
    kill(checkpointer, Signal::SIGSTOP).unwrap();
    let position = async || {
        let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap();
        row.get::<_, String>(0).parse::<metako_core::Lsn>().unwrap()
    };
    let before = position().await;
    let rule = bench.order(0, change(&[("synchronous_standby_names", Some("ANY 1 (\"node-2\")"))]));
    tokio::pin!(rule);
    tokio::select! {
        biased;
        outcome = &mut rule => panic!("commits wait for nobody, and yet: {outcome:?}"),
        () = eventually("an unwaited commit", async || (position().await > before).then_some(())) => {}
    }
    kill(checkpointer, Signal::SIGCONT).unwrap();
    assert_eq!(rule.await, DONE);
}

#[tokio::test]
async fn odd_passwords_and_names_reach_postgresql_as_they_are() {
    let bench = Bench::start(Builder::new().replicas(1)).await;
    let client = bench.cluster.nodes()[0].connect().await.unwrap();
    client.batch_execute(r#"ALTER ROLE replicator PASSWORD 'it''s a \ "b" = $1 '"#).await.unwrap();
    let conninfo = format!(
        r#"host='127.0.0.1' port='{}' user='replicator' password='it\'s a \\ "b" = $1 ' application_name='Od"d, \'n\\'"#,
        bench.nodes[0].port
    );
    assert_eq!(bench.order(1, change(&[("primary_conninfo", Some(&conninfo))])).await, DONE);
    let names = r#"ANY 1 ("nobody","Od""d, 'n\")"#;
    assert_eq!(bench.order(0, change(&[("synchronous_standby_names", Some(names))])).await, DONE);
    let question = "SELECT application_name FROM pg_stat_replication WHERE sync_state = 'quorum'";
    let row =
        eventually("the standby streams and counts", async || client.query_opt(question, &[]).await.unwrap());
    assert_eq!(row.await.get::<_, &str>(0), r#"Od"d, 'n\"#);
    assert_eq!(bench.order(0, Order::Verify(Epoch(2))).await, DONE);
}

#[tokio::test]
async fn what_hangs_on_a_server_does_not_add_up() {
    let bench = Bench::start(Builder::new().replicas(0)).await;
    let nobody = change(&[("synchronous_standby_names", Some("ANY 1 (nobody)"))]);
    assert_eq!(bench.order(0, nobody).await, DONE);
    let client = bench.cluster.nodes()[0].connect().await.unwrap();
    let waiting = async || {
        let question = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let rows = client.query(question, &[]).await.unwrap();
        rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>()
    };
    let mut last = None;
    for _ in 0..3 {
        let given_up = async {
            let alone = async || match waiting().await[..] {
                [pid] if Some(pid) != last => Some(pid),
                _ => None,
            };
            eventually("a commit waits, and that of the try before does not any more", alone).await
        };
        last = tokio::select! {
            outcome = bench.order(0, Order::Verify(Epoch(2))) => panic!("{outcome:?}"),
            pid = given_up => Some(pid),
        };
    }

    let mut access = bench.access(0);
    access.commit().await.unwrap();
    let node = &bench.cluster.nodes()[0];
    node.freeze().unwrap();
    for _ in 0..3 {
        tokio::time::timeout(Duration::from_millis(50), access.commit()).await.unwrap_err();
    }
    node.thaw().unwrap();
    access.commit().await.unwrap();
    let question = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%''metako'', ''probe''%' \
         AND application_name = 'metako'";
    let sessions = client.query_one(question, &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(sessions, 1, "a commit that was given up is joined, not tried beside");
}

/// One probe of a node, given up when its commit has not ended after so long.
async fn probed(access: &mut dyn NodeAccess, limit: Duration) -> Result<Duration, ProbeFailure> {
    access.report().await?;
    match tokio::time::timeout(limit, access.commit()).await {
        Ok(result) => result,
        Err(_) => Err(access.overdue(limit)),
    }
}

async fn until(access: &mut dyn NodeAccess, limit: Duration, wanted: &Result<Duration, ProbeFailure>) {
    let probing = async { while probed(access, limit).await != *wanted {} };
    tokio::time::timeout(LIMIT, probing).await.unwrap();
}

#[tokio::test]
async fn a_commit_that_hangs_is_told_from_a_node_that_does_not_answer() {
    let bench = Bench::start(Builder::new().replicas(0)).await;
    let node = &bench.cluster.nodes()[0];
    let limit = Duration::from_millis(300);
    let mut access = bench.access(0);
    access.report().await.unwrap();
    access.commit().await.unwrap();
    let question = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%''metako'', ''probe''%' \
         AND application_name = 'metako'";
    let client = node.connect().await.unwrap();
    let committing = Pid::from_raw(client.query_one(question, &[]).await.unwrap().get(0));
    kill(committing, Signal::SIGSTOP).unwrap();

    let stalled = Err(ProbeFailure::WriteStalled(limit));
    until(&mut *access, limit, &stalled).await;
    assert_eq!(access.overdue(Duration::from_mins(1)), ProbeFailure::TimedOut(Duration::from_mins(1)));
    node.freeze().unwrap();
    tokio::time::timeout(limit, access.report()).await.unwrap_err();
    assert_eq!(access.overdue(limit), ProbeFailure::TimedOut(limit), "nothing was answered");
    node.thaw().unwrap();
    tokio::time::timeout(LIMIT, access.commit()).await.unwrap().unwrap();

    // One process that hangs alone: another connection shows that, and until then nothing else is said.
    kill(committing, Signal::SIGSTOP).unwrap();
    until(&mut *access, limit, &stalled).await;
    let well = async {
        loop {
            match probed(&mut *access, limit).await {
                Ok(_) => return,
                Err(ProbeFailure::WriteStalled(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
    };
    tokio::time::timeout(LIMIT, well).await.unwrap();
    kill(committing, Signal::SIGCONT).unwrap();
}

#[tokio::test]
async fn trouble_is_typed_and_the_next_question_gets_a_fresh_connection() {
    let bench = Bench::start(Builder::new().replicas(0)).await;
    let node = bench.cluster.nodes()[0].clone();
    let mut access = bench.access(0);
    access.report().await.unwrap();

    let asked = tokio::time::timeout(Duration::from_millis(50), access.query("SELECT pg_sleep(60)"));
    asked.await.unwrap_err();
    assert_eq!(access.query("SELECT 'next'").await.unwrap(), [[Some("next".to_owned())]]);
    let unknown = access.query("SELECT nonsense").await.unwrap_err();
    assert!(matches!(&unknown, ProbeFailure::Unexpected(text) if text.contains("42703")), "{unknown}");
    access.report().await.unwrap();

    let stranger = Node { password: Secret::new("wrong"), ..(*bench.nodes[0]).clone() };
    let refused = bench.servers.access(&Arc::new(stranger)).report().await;
    assert!(matches!(refused, Err(ProbeFailure::Authentication(_))), "{refused:?}");
    let elsewhere = Node { database: "nowhere".to_owned(), ..(*bench.nodes[0]).clone() };
    let refused = bench.servers.access(&Arc::new(elsewhere)).report().await;
    assert!(matches!(refused, Err(ProbeFailure::Unexpected(_))), "{refused:?}");

    let fixed = change(&[("archive_command", Some("true"))]);
    assert!(matches!(bench.order(0, fixed).await, Err(ActionFailure::Failed(_))));

    node.kill_9_all().unwrap();
    let lost = access.report().await;
    assert!(matches!(lost, Err(ProbeFailure::Lost(_) | ProbeFailure::Refused(_))), "{lost:?}");
    let refused = access.report().await;
    assert!(matches!(refused, Err(ProbeFailure::Refused(_))), "{refused:?}");
    let refused = bench.order(0, change(&[("primary_conninfo", None)])).await;
    assert!(matches!(refused, Err(ActionFailure::Failed(_))), "{refused:?}");
}
