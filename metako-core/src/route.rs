//! Which nodes may serve a unit, by the cluster's state alone.

use crate::NodeName;
use crate::cluster::{ClusterView, ObservedRole, ReadFitness, Writes};
use crate::plugin::{Candidate, LoadBalancer, PickCx};

/// The most replicas that are offered to a balancer at once.
pub const CANDIDATES_MAX: usize = 32;

/// Where a unit goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<'a> {
    /// To a standby that is fit for reads.
    Replica(&'a NodeName),
    /// To the primary of this epoch.
    Primary(&'a NodeName),
    /// Nowhere for now.
    Held {
        /// Why, for people.
        reason: &'a str,
    },
}

/// Chooses the node for a unit. `read` says whether a replica will do; `avoid` names nodes that failed this unit
/// already; `in_flight` tells how many server connections to a node are in use. A read goes to the primary when no
/// replica is fit. Does not allocate.
pub fn choose<'a>(
    view: &'a ClusterView,
    read: bool,
    avoid: &[NodeName],
    balancer: &dyn LoadBalancer,
    cx: &PickCx<'_>,
    in_flight: impl Fn(&NodeName) -> u32,
) -> Choice<'a> {
    if read && let Some(replica) = choose_replica(view, avoid, balancer, cx, in_flight) {
        return Choice::Replica(replica);
    }
    match &view.writes {
        Writes::Open { primary } => Choice::Primary(primary),
        Writes::Held { reason } => Choice::Held { reason },
    }
}

fn choose_replica<'a>(
    view: &'a ClusterView,
    avoid: &[NodeName],
    balancer: &dyn LoadBalancer,
    cx: &PickCx<'_>,
    in_flight: impl Fn(&NodeName) -> u32,
) -> Option<&'a NodeName> {
    const NOBODY: Candidate<'_> =
        Candidate { name: "", in_flight: 0, latency: None, lag: None, weight: 1, zone: None };
    let fit = || {
        view.nodes.iter().filter(|node| {
            node.role == ObservedRole::Replica
                && node.reads == ReadFitness::Fit
                && !avoid.contains(&node.name)
        })
    };
    let mut candidates = [NOBODY; CANDIDATES_MAX];
    let mut count = 0;
    for (candidate, node) in candidates.iter_mut().zip(fit()) {
        *candidate = Candidate {
            name: node.name.as_str(),
            in_flight: in_flight(&node.name),
            latency: node.latency,
            lag: node.lag,
            weight: node.weight,
            zone: node.zone.as_deref(),
        };
        count += 1;
    }
    let candidates = &candidates[..count];
    if candidates.is_empty() {
        return None;
    }
    // An index out of range is a fault of the strategy; the first one serves.
    let picked = balancer.pick(candidates, cx).filter(|&index| index < count).unwrap_or(0);
    fit().nth(picked).map(|node| &node.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tick;
    use crate::cluster::{Health, NodeView};

    struct Last;

    impl LoadBalancer for Last {
        fn pick(&self, candidates: &[Candidate<'_>], _: &PickCx<'_>) -> Option<usize> {
            candidates.len().checked_sub(1)
        }
    }

    struct Wild;

    impl LoadBalancer for Wild {
        fn pick(&self, _: &[Candidate<'_>], _: &PickCx<'_>) -> Option<usize> {
            Some(usize::MAX)
        }
    }

    fn node(name: &str, role: ObservedRole, fit: bool) -> NodeView {
        NodeView {
            health: Health::Up,
            role,
            reads: if fit { ReadFitness::Fit } else { ReadFitness::Unfit { reason: "lag".into() } },
            ..NodeView::unknown(name.into())
        }
    }

    fn view() -> ClusterView {
        ClusterView {
            writes: Writes::Open { primary: "p".into() },
            nodes: vec![
                node("p", ObservedRole::Primary, true),
                node("a", ObservedRole::Replica, true),
                node("b", ObservedRole::Replica, true),
                node("c", ObservedRole::Replica, false),
                node("old", ObservedRole::StalePrimary, true),
            ],
            ..ClusterView::empty("")
        }
    }

    fn chosen(view: &ClusterView, read: bool, avoid: &[NodeName], balancer: &dyn LoadBalancer) -> String {
        let cx = PickCx { now: Tick::ZERO, random: 0, session: 0, zone: None };
        match choose(view, read, avoid, balancer, &cx, |_| 0) {
            Choice::Replica(name) | Choice::Primary(name) => name.to_string(),
            Choice::Held { reason } => format!("held: {reason}"),
        }
    }

    #[test]
    fn reads_go_to_fit_replicas_and_writes_to_the_primary() {
        assert_eq!(chosen(&view(), true, &[], &Last), "b");
        assert_eq!(chosen(&view(), true, &["b".into()], &Last), "a");
        assert_eq!(chosen(&view(), true, &["b".into(), "a".into()], &Last), "p");
        assert_eq!(chosen(&view(), false, &[], &Last), "p");
    }

    #[test]
    fn a_balancer_that_answers_nonsense_does_no_harm() {
        assert_eq!(chosen(&view(), true, &[], &Wild), "a");
    }

    #[test]
    fn reads_go_on_while_writes_are_held() {
        let held = ClusterView { writes: Writes::Held { reason: "fencing".into() }, ..view() };
        assert_eq!(chosen(&held, true, &[], &Last), "b");
        assert_eq!(chosen(&held, false, &[], &Last), "held: fencing");
    }
}
