//! What hooks may do.

use metako_core::cluster::{ActionFailure, HookCall, HookKind};

use super::*;

fn hook(kind: HookKind, node: &str, upstream: Option<&str>) -> LogEvent {
    let call = HookCall {
        kind,
        node: name(node),
        upstream: upstream.map(name),
        epoch: Epoch(2),
        timeline: TimelineId(1),
        slot: None,
        conninfo: None,
    };
    LogEvent::Action(Action::Hook { id: ActionId(1), call })
}

#[test]
fn a_stop_while_a_write_is_open_is_found() {
    let stop = || hook(HookKind::Stop, "a", None);
    let stops = || LogEvent::Node { node: name("a"), change: NodeChange::Stopping };
    let check = "stopped_without_open_writes";
    assert_eq!(found(vec![view(1, "a"), sent(1, "a", 1), stop()]), [check]);
    assert_eq!(found(vec![view(1, "a"), stop(), sent(1, "a", 1), stops()]), [check]);
    assert!(found(vec![view(1, "a"), sent(1, "a", 1), acknowledged(1, "a", 1), stop(), stops()]).is_empty());
    let given_up =
        || LogEvent::Answered { id: ActionId(1), outcome: Err(ActionFailure::Unknown(String::new())) };
    assert!(found(vec![view(1, "a"), stop(), given_up(), sent(1, "a", 1), stops()]).is_empty());
}

#[test]
fn a_rejoin_of_the_primary_or_to_another_is_found() {
    let rejoin = |node, upstream| hook(HookKind::Rejoin, node, Some(upstream));
    let check = "the_primary_is_not_rejoined";
    assert_eq!(found(vec![view(1, "a"), rejoin("a", "b")]), [check]);
    assert_eq!(found(vec![view(1, "a"), rejoin("c", "b")]), [check]);
    assert_eq!(found(vec![view(1, "a"), promoted("b", 2), rejoin("c", "a")]), [check]);
    assert!(found(vec![view(1, "a"), promoted("b", 2), rejoin("a", "b")]).is_empty());
}
