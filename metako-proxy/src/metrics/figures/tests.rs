use std::sync::Arc;

use metako_core::cluster::{Decision, NodeView, ProbeId};
use metako_core::plugin::ProbeFailure;
use metako_core::{Epoch, TimelineId};

use super::*;

fn at(seconds: u64) -> Tick {
    Tick::ZERO + Duration::from_secs(seconds)
}

fn view(phase: Phase, nodes: &[&str]) -> Action {
    let writes = match &phase {
        Phase::Steady { primary } | Phase::Paused { primary } => Writes::Open { primary: primary.clone() },
        _ => Writes::Held { reason: "for a test".to_owned() },
    };
    let nodes = nodes.iter().map(|name| NodeView::unknown(NodeName::from(*name))).collect();
    Action::Publish { view: Arc::new(ClusterView { phase, writes, nodes, ..ClusterView::empty("") }) }
}

fn steady(primary: &str) -> Phase {
    Phase::Steady { primary: primary.into() }
}

fn fencing() -> Phase {
    Phase::Fencing { old: "a".into(), since: Tick::ZERO }
}

fn verifying() -> Phase {
    Phase::Verifying { old: "a".into(), candidate: "b".into(), timeline: TimelineId(2), since: Tick::ZERO }
}

#[test]
fn holds_are_counted_from_the_view_that_holds_to_the_view_that_opens() {
    let figures = Figures::new(at(1));
    assert_eq!(figures.counts().holds.present(at(3)), Duration::from_secs(2));
    figures.asked(at(4), &view(steady("a"), &["a"]));
    figures.asked(at(5), &view(steady("a"), &["a"]));
    figures.asked(at(10), &view(fencing(), &["a"]));
    figures.asked(at(11), &view(verifying(), &["a"]));
    let holds = figures.counts().holds;
    assert_eq!((holds.count, holds.over, holds.last), (2, Duration::from_secs(3), Duration::from_secs(3)));
    assert_eq!(holds.present(at(12)), Duration::from_secs(2));
    figures.asked(at(17), &view(steady("b"), &["a"]));
    let holds = figures.counts().holds;
    assert_eq!((holds.count, holds.over, holds.last), (2, Duration::from_secs(10), Duration::from_secs(7)));
    assert_eq!(holds.present(at(20)), Duration::ZERO);
}

#[test]
fn a_failover_a_switchover_and_what_was_called_off_are_told_apart() {
    let figures = Figures::new(at(0));
    let follow = |phases: &[Phase]| {
        for phase in phases {
            figures.asked(at(1), &view(phase.clone(), &["a"]));
        }
        let counts = figures.counts();
        (counts.failovers, counts.switchovers)
    };
    let stopping = || Phase::Stopping { old: "a".into(), since: Tick::ZERO };
    let paused = || Phase::Paused { primary: "b".into() };
    assert_eq!(follow(&[steady("a"), fencing(), verifying(), steady("b"), steady("b")]), (1, 0));
    assert_eq!(follow(&[stopping(), verifying(), steady("a")]), (1, 1));
    assert_eq!(follow(&[fencing(), steady("a")]), (1, 1), "called off");
    assert_eq!(follow(&[stopping(), steady("a")]), (1, 1), "called off");
    assert_eq!(follow(&[fencing(), verifying(), paused()]), (2, 1), "not the one that was called off");
}

#[test]
fn probes_and_actions_are_counted_by_what_came_of_them() {
    let figures = Figures::new(at(0));
    let failed = Err(ProbeFailure::TimedOut(Duration::from_secs(1)));
    for node in ["a", "a", "b"] {
        let (node, result) = (node.into(), failed.clone());
        figures.told(&Event::Probed { id: ProbeId(1), node, sent: at(0), result });
    }
    assert_eq!(figures.counts().probes[&("a".into(), "timed_out")], 2);
    figures.asked(at(0), &view(steady("a"), &["a"]));
    let counts = figures.counts();
    assert_eq!(counts.probes.len(), 1, "those of a node that is gone go, too: {counts:?}");

    let decision = Decision {
        kind: DecisionKind::Opened,
        node: None,
        epoch: Epoch(1),
        reason: "writes are open".to_owned(),
    };
    figures.asked(at(0), &Action::Record { decision });
    let sever = Action::Sever { id: ActionId(7), node: "a".into(), epoch: Epoch(2) };
    figures.asked(at(0), &sever);
    let done = |id, outcome| figures.told(&Event::Done { id: ActionId(id), outcome });
    done(7, Err(ActionFailure::Unknown("no answer".to_owned())));
    done(7, Ok(ActionOutcome::Done));
    let counts = figures.counts();
    assert_eq!(counts.actions, BTreeMap::from([(("sever", "unknown"), 1)]), "an answer counts once");
    assert_eq!(counts.decisions, BTreeMap::from([(DecisionKind::Opened, 1)]));
    assert!(counts.running.is_empty());
}
