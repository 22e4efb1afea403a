//! The laws of each kind, and what is particular to ours.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use metako_core::plugin::*;
use metako_core::{Lsn, NodeName, SystemId, Tick, TimelineId};
use metako_strategies::contract;
use my_strategies::{AllWitnessesSpec, HintedSpec, NearestZoneSpec, QuestionSpec};

#[test]
fn they_obey_the_laws() {
    assert_eq!(contract::load_balancer(&NearestZoneSpec::default()), Ok(()));
    assert_eq!(contract::health_probe(&QuestionSpec::default()), Ok(()));
    assert_eq!(contract::failover_policy(&AllWitnessesSpec::default()), Ok(()));
    assert_eq!(contract::query_classifier(&HintedSpec::default()), Ok(()));
}

#[test]
fn they_are_registered_and_no_name_is_taken() {
    assert_eq!(verify(), Ok(()));
    let ours = strategies().into_iter().filter(|info| info.crate_name == "my-strategies");
    let names: Vec<_> = ours.map(|info| (info.kind, info.name)).collect();
    let expected = [
        (Kind::FailoverPolicy, "all_witnesses"),
        (Kind::HealthProbe, "question"),
        (Kind::LoadBalancer, "nearest_zone"),
        (Kind::QueryClassifier, "hinted"),
    ];
    assert_eq!(names, expected);
}

#[test]
fn options_are_read_by_name_and_checked() {
    let read = |text| serde_json::from_str::<Box<dyn FailoverPolicySpec>>(text);
    let spec = read(r#"{ "type": "all_witnesses", "patience": 5 }"#).expect("it is right");
    assert!(format!("{spec:?}").contains("patience: 5"));
    let spec = read(r#"{ "type": "all_witnesses", "patience": 0 }"#).expect("it can be read");
    assert_eq!(spec.build().map(drop).map_err(|error| error.option), Err("patience"));
    assert!(read(r#"{ "type": "all_witnesses", "patienc": 5 }"#).is_err());
}

#[test]
fn nearest_zone_stays_near_until_it_is_too_busy() {
    let balancer = NearestZoneSpec { detour: 5 }.build().expect("its option cannot be wrong");
    let node = |zone, in_flight| Candidate {
        name: "node",
        in_flight,
        latency: None,
        lag: None,
        weight: 1,
        zone: Some(zone),
    };
    let cx = PickCx { now: Tick::ZERO, random: 0, session: 0, zone: Some("a") };
    assert_eq!(balancer.pick(&[node("b", 0), node("a", 5)], &cx), Some(1));
    assert_eq!(balancer.pick(&[node("b", 0), node("a", 6), node("a", 7)], &cx), Some(0));
    assert_eq!(balancer.pick(&[node("b", 1), node("a", 0)], &PickCx { zone: None, ..cx }), Some(1));
}

#[test]
fn all_witnesses_needs_all_of_them_and_time() {
    let policy = AllWitnessesSpec::default().build().expect("the default is right");
    let evidence = |seconds, lost, unseen| Evidence {
        primary: NodeName::from("pg1"),
        kind: PrimaryEvidence::Refused,
        standing: Duration::from_secs(seconds),
        failures: 9,
        witnesses: WitnessCount { configured: lost + unseen, fresh: 0, lost, unseen },
        silent_after: Duration::from_secs(2),
        stalled_after: Duration::from_secs(10),
        start_timeout: None,
        restart_grace: Duration::ZERO,
        failure_threshold: 3,
    };
    assert!(matches!(policy.assess(&evidence(4, 2, 0)), Assessment::FailOver { .. }));
    assert!(matches!(policy.assess(&evidence(9, 1, 1)), Assessment::Wait { ask_again_in: None, .. }));
    let Assessment::Wait { ask_again_in, .. } = policy.assess(&evidence(1, 2, 0)) else {
        panic!("it fails over in haste");
    };
    assert_eq!(ask_again_in, Some(Duration::from_secs(3)));
}

#[test]
fn hinted_lifts_a_doubt_and_nothing_else() {
    let classifier = HintedSpec::default().build().expect("the default is right");
    let class = |sql: &str| classifier.classify(sql.as_bytes()).class;
    assert_eq!(class("SELECT report()"), Class::Unknown);
    assert_eq!(class("/*metako:read*/ SELECT report()"), Class::Read);
    assert_eq!(class("SELECT report() /*metako:read*/"), Class::Unknown);
    assert_eq!(class("/*metako:read*/ DELETE FROM t"), Class::Write);
    assert_eq!(class("/*metako:read*/ SET a = b"), Class::SessionChanging);
}

/// A replica that gives one answer to every question.
struct Replica(&'static str);

#[async_trait]
impl NodeAccess for Replica {
    async fn report(&mut self) -> Result<NodeReport, ProbeFailure> {
        Ok(NodeReport {
            system_id: SystemId(1),
            version: 150_000,
            started_at: 0,
            wal_segment_size: 16 << 20,
            checkpointer: None,
            timeline: TimelineId(1),
            role: ReportedRole::Standby {
                received: Some(Lsn(1)),
                replayed: Some(Lsn(1)),
                replay_lag: None,
                receiver: None,
                receiver_process: false,
                startup_wait: None,
                settings: Default::default(),
            },
            latency: Duration::ZERO,
        })
    }

    async fn commit(&mut self) -> Result<Duration, ProbeFailure> {
        Err(ProbeFailure::ReadOnly("a replica".to_owned()))
    }

    async fn query(&mut self, _sql: &str) -> Result<Vec<Vec<Option<String>>>, ProbeFailure> {
        Ok(vec![vec![Some(self.0.to_owned())]])
    }
}

#[test]
fn question_takes_a_replica_out_that_does_not_say_yes() {
    let probe = QuestionSpec::default().build().expect("the default is right");
    let good = |mut node: Replica| {
        let mut future = pin!(probe.probe(&mut node));
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result.is_ok(),
            Poll::Pending => panic!("the replica answers at once"),
        }
    };
    assert!(good(Replica("t")));
    assert!(!good(Replica("f")));
}
