//! Every registered strategy, with its defaults, obeys the laws of its kind.

use metako_core::plugin::{
    FailoverPolicySpec, HealthProbeSpec, Kind, LoadBalancerSpec, QueryClassifierSpec, strategies,
};
use metako_strategies::contract;
use serde_json::json;

#[test]
fn every_strategy_obeys_the_laws_of_its_kind() {
    for info in strategies() {
        let options = json!({ "type": info.name });
        macro_rules! obeys {
            ($spec:ident, $check:ident) => {
                contract::$check(&*serde_json::from_value::<Box<dyn $spec>>(options).expect(info.name))
            };
        }
        let verdict = match info.kind {
            Kind::FailoverPolicy => obeys!(FailoverPolicySpec, failover_policy),
            Kind::HealthProbe => obeys!(HealthProbeSpec, health_probe),
            Kind::LoadBalancer => obeys!(LoadBalancerSpec, load_balancer),
            Kind::QueryClassifier => obeys!(QueryClassifierSpec, query_classifier),
        };
        assert_eq!(verdict, Ok(()), "{}", info.name);
    }
}

/// The checks themselves can fail: each is given a strategy that breaks one law.
mod breakers {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Duration;

    use async_trait::async_trait;
    use metako_core::plugin::*;
    use metako_core::{NodeName, Tick};
    use metako_strategies::contract;
    use serde::{Deserialize, Serialize};

    static CALLS: AtomicU64 = AtomicU64::new(0);

    /// Which law to break.
    #[derive(Debug, Clone, Copy, Serialize, Deserialize)]
    enum Law {
        Range,
        Something,
        History,
        Pure,
        Healthy,
        Reason,
        AtOnce,
        Ranking,
        Span,
        Verb,
        InsertIsNoRead,
        Failure,
        Report,
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Breaks(Law);

    #[typetag::serde(name = "breaks")]
    impl LoadBalancerSpec for Breaks {
        fn build(&self) -> Result<Box<dyn LoadBalancer>, BuildError> {
            Ok(Box::new(Self(self.0)))
        }
    }

    impl LoadBalancer for Breaks {
        fn pick(&self, candidates: &[Candidate<'_>], _cx: &PickCx<'_>) -> Option<usize> {
            match self.0 {
                Law::Range => Some(0),
                Law::History => {
                    usize::try_from(CALLS.fetch_add(1, Relaxed)).ok()?.checked_rem(candidates.len())
                }
                _ => None,
            }
        }
    }

    #[test]
    fn of_load_balancers_are_found() {
        for (law, complaint) in [
            (Law::Range, "it picked number"),
            (Law::Something, "it picked none"),
            (Law::History, "two built alike"),
        ] {
            let verdict = contract::load_balancer(&Breaks(law)).expect_err(complaint);
            assert!(verdict.contains(complaint), "{verdict}");
        }
    }

    #[typetag::serde(name = "breaks")]
    impl FailoverPolicySpec for Breaks {
        fn build(&self) -> Result<Box<dyn FailoverPolicy>, BuildError> {
            Ok(Box::new(Self(self.0)))
        }
    }

    impl FailoverPolicy for Breaks {
        fn assess(&self, _evidence: &Evidence) -> Assessment {
            match self.0 {
                Law::Healthy => Assessment::FailOver { reason: "always".to_owned() },
                Law::Reason => Assessment::Wait { reason: String::new(), ask_again_in: None },
                Law::AtOnce => {
                    Assessment::Wait { reason: "hurry".to_owned(), ask_again_in: Some(Duration::ZERO) }
                }
                Law::Pure => {
                    Assessment::Wait { reason: CALLS.fetch_add(1, Relaxed).to_string(), ask_again_in: None }
                }
                _ => Assessment::Wait { reason: "never".to_owned(), ask_again_in: None },
            }
        }

        fn rank(&self, electable: &mut [Electable]) {
            if let (Law::Ranking, [first, ..]) = (self.0, electable) {
                first.node = NodeName::from("another");
            }
        }
    }

    #[test]
    fn of_failover_policies_are_found() {
        for (law, complaint) in [
            (Law::Healthy, "healthy"),
            (Law::Reason, "no reason"),
            (Law::AtOnce, "at once"),
            (Law::Pure, "not pure"),
            (Law::Ranking, "lost or changed"),
        ] {
            let verdict = contract::failover_policy(&Breaks(law)).expect_err(complaint);
            assert!(verdict.contains(complaint), "{verdict}");
        }
    }

    #[typetag::serde(name = "breaks")]
    impl QueryClassifierSpec for Breaks {
        fn build(&self) -> Result<Box<dyn QueryClassifier>, BuildError> {
            Ok(Box::new(Self(self.0)))
        }
    }

    impl QueryClassifier for Breaks {
        fn classify(&self, sql: &[u8]) -> Classification {
            let mut verdict = Classification::new(Class::Unknown, "because", Span::default());
            match self.0 {
                Law::Span => verdict.span.end = sql.len() + 1,
                Law::Verb => verdict.transaction = Some(TransactionVerb::Begin),
                Law::InsertIsNoRead => verdict.class = Class::Read,
                _ => {}
            }
            verdict
        }
    }

    #[test]
    fn of_query_classifiers_are_found() {
        for (law, complaint) in
            [(Law::Span, "the span"), (Law::Verb, "a transaction verb"), (Law::InsertIsNoRead, "INSERT")]
        {
            let verdict = contract::query_classifier(&Breaks(law)).expect_err(complaint);
            assert!(verdict.contains(complaint), "{verdict}");
        }
    }

    #[typetag::serde(name = "breaks")]
    impl HealthProbeSpec for Breaks {
        fn build(&self) -> Result<Box<dyn HealthProbe>, BuildError> {
            Ok(Box::new(Self(self.0)))
        }
    }

    #[async_trait]
    impl HealthProbe for Breaks {
        async fn probe(&self, node: &mut dyn NodeAccess) -> Result<NodeReport, ProbeFailure> {
            let report = node.report().await;
            match self.0 {
                Law::Failure => report.map_err(|failure| ProbeFailure::Unexpected(failure.to_string())),
                _ => report.map(|report| NodeReport { latency: Tick(9).since(Tick(0)), ..report }),
            }
        }
    }

    #[test]
    fn of_health_probes_are_found() {
        for law in [Law::Failure, Law::Report] {
            let verdict = contract::health_probe(&Breaks(law)).expect_err("it breaks a law");
            assert!(verdict.contains("instead of"), "{verdict}");
        }
    }
}
