//! Strategies behind a net: one that panics is named and counted, and the work goes on without it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt as _;
use metako_core::plugin::{
    Assessment, Electable, Evidence, FailoverPolicy, HealthProbe, NodeAccess, NodeReport, ProbeFailure,
    panic_text,
};

/// A failover policy whose panics are answered by the stock policy.
pub struct ContainedPolicy {
    name: String,
    policy: Arc<dyn FailoverPolicy>,
    stock: Arc<dyn FailoverPolicy>,
    panics: AtomicU64,
}

impl ContainedPolicy {
    /// Puts `policy`, called `name`, behind the net; `stock` answers where it panics.
    pub fn new(name: &str, policy: Arc<dyn FailoverPolicy>, stock: Arc<dyn FailoverPolicy>) -> Self {
        Self { name: name.to_owned(), policy, stock, panics: AtomicU64::new(0) }
    }

    fn report(&self, panic: &(dyn Any + Send)) {
        let count = self.panics.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::error!(
            strategy = %self.name,
            count,
            panic = panic_text(panic),
            "the failover policy panicked; the stock policy answers in its place"
        );
    }
}

impl FailoverPolicy for ContainedPolicy {
    fn assess(&self, evidence: &Evidence) -> Assessment {
        catch_unwind(AssertUnwindSafe(|| self.policy.assess(evidence))).unwrap_or_else(|panic| {
            self.report(&*panic);
            self.stock.assess(evidence)
        })
    }

    fn rank(&self, electable: &mut [Electable]) {
        let mut ranked = electable.to_vec();
        match catch_unwind(AssertUnwindSafe(|| self.policy.rank(&mut ranked))) {
            Ok(()) => electable.clone_from_slice(&ranked),
            Err(panic) => {
                self.report(&*panic);
                self.stock.rank(electable);
            }
        }
    }
}

/// Runs a probe; a panic becomes a failure that names the strategy. Whether the access is still fit for use after a panic
/// is for the caller to doubt.
pub(super) async fn probe(
    probe: &dyn HealthProbe,
    name: &str,
    access: &mut dyn NodeAccess,
) -> (Result<NodeReport, ProbeFailure>, Panicked) {
    match AssertUnwindSafe(probe.probe(access)).catch_unwind().await {
        Ok(result) => (result, Panicked(false)),
        Err(panic) => {
            let text = panic_text(&*panic);
            tracing::error!(strategy = %name, panic = text, "the health probe panicked");
            (Err(ProbeFailure::Unexpected(format!("health probe `{name}` panicked: {text}"))), Panicked(true))
        }
    }
}

/// Whether a strategy panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Panicked(pub(super) bool);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metako_core::plugin::{PrimaryEvidence, WitnessCount};
    use metako_core::{Lsn, NodeName, TimelineId};

    use super::*;

    struct Panics;

    impl FailoverPolicy for Panics {
        fn assess(&self, _: &Evidence) -> Assessment {
            panic!("on purpose")
        }

        fn rank(&self, electable: &mut [Electable]) {
            electable.swap(0, 1);
            panic!("half-way, on purpose")
        }
    }

    struct Stock;

    impl FailoverPolicy for Stock {
        fn assess(&self, _: &Evidence) -> Assessment {
            Assessment::FailOver { reason: "stock".to_owned() }
        }

        fn rank(&self, electable: &mut [Electable]) {
            assert_eq!(
                electable[0].node.as_str(),
                "a",
                "what the policy did before it panicked must not show"
            );
        }
    }

    #[test]
    fn the_stock_policy_answers_for_one_that_panics() {
        let policy = ContainedPolicy::new("bad", Arc::new(Panics), Arc::new(Stock));
        let evidence = Evidence {
            primary: NodeName::from("p"),
            kind: PrimaryEvidence::Refused,
            standing: Duration::ZERO,
            failures: 1,
            witnesses: WitnessCount::default(),
            silent_after: Duration::ZERO,
            stalled_after: Duration::ZERO,
            start_timeout: None,
            restart_grace: Duration::ZERO,
            failure_threshold: 1,
        };
        assert_eq!(policy.assess(&evidence), Assessment::FailOver { reason: "stock".to_owned() });
        let electable = |name| Electable {
            node: NodeName::from(name),
            timeline: TimelineId(1),
            position: Lsn(1),
            backlog: 0,
            priority: 1,
            zone: None,
        };
        policy.rank(&mut [electable("a"), electable("b")]);
        assert_eq!(policy.panics.load(Ordering::Relaxed), 2);
    }
}
