//! Who is promoted, and when.

use metako_core::cluster::ProbeId;
use metako_core::plugin::{NodeReport, ProbeFailure, Receiver, ReportedRole};

use super::*;

#[test]
fn a_promotion_that_the_journal_does_not_announce_is_found() {
    assert_eq!(found(vec![promote("b")]), ["journal_before_promotion"]);
    assert_eq!(found(vec![journal(2, promoting("c")), promote("b")]), ["journal_before_promotion"]);
    assert!(found(vec![journal(2, promoting("b")), promote("b")]).is_empty());
}

#[test]
fn a_timeline_that_is_begun_twice_is_found() {
    assert_eq!(found(vec![promoted("a", 2), promoted("b", 2)]), ["timeline_begun_once"]);
    assert!(found(vec![promoted("a", 2), promoted("b", 3)]).is_empty());
}

#[test]
fn a_promotion_of_one_that_is_behind_is_found() {
    let frozen = |node| {
        let (kind, node) = (DecisionKind::Frozen, Some(name(node)));
        LogEvent::Decision(Decision { kind, node, epoch: Epoch(2), reason: "still".to_owned() })
    };
    let promoted = |ahead: &str| {
        let (timeline, fork, ahead) = (TimelineId(2), Lsn(1), vec![name(ahead)]);
        LogEvent::Node { node: name("b"), change: NodeChange::Promoted { timeline, fork, ahead } }
    };
    assert_eq!(found(vec![frozen("b"), frozen("c"), promoted("c")]), ["most_advanced_is_promoted"]);
    assert!(found(vec![frozen("b"), frozen("c"), promoted("a")]).is_empty(), "the old primary may be ahead");
}

fn steady(sync: SyncRule) -> LogEvent {
    journal_with(1, JournalPhase::Steady, sync)
}

#[test]
fn a_promotion_before_enough_voters_stand_still_is_found() {
    let promotion = |rule: SyncRule, still: Vec<LogEvent>| {
        let begun = vec![steady(rule.clone()), streaming("b", "a", 1), streaming("c", "a", 1)];
        let fencing = journal_with(2, JournalPhase::Fencing, rule.clone());
        let announced = vec![journal_with(2, promoting("b"), SyncRule::Async)];
        let demands_enough = Rules { sync_names: "ANY 2 (b, c)".to_owned(), ..rules() };
        found_by(&demands_enough, [begun, vec![fencing], still, announced].concat())
    };
    let freeze = |which| {
        let gone = node(which, NodeChange::ReceiverGone { reason: "settings".to_owned() });
        vec![reloaded(which, "primary_conninfo", ""), gone]
    };
    let check = ["enough_voters_stand_still"];
    let one_of_two = || quorum(1, &["b", "c"]);
    assert_eq!(promotion(one_of_two(), freeze("b")), check);
    assert!(promotion(one_of_two(), [freeze("b"), freeze("c")].concat()).is_empty());
    let follows_again = [freeze("b"), freeze("c"), vec![streaming("c", "a", 1)]].concat();
    assert_eq!(promotion(one_of_two(), follows_again), check);
    let blank_but_streams = [freeze("b"), vec![reloaded("c", "primary_conninfo", "")]].concat();
    assert_eq!(promotion(one_of_two(), blank_but_streams), check);
    assert!(promotion(quorum(2, &["b", "c"]), freeze("b")).is_empty(), "each commit is on both");
    assert!(promotion(SyncRule::Async, Vec::new()).is_empty());
}

fn probed(standby: &str, streams: bool) -> LogEvent {
    let receiver = Receiver {
        streaming: true,
        sender_host: "a".to_owned(),
        sender_port: 5432,
        timeline: TimelineId(1),
        last_message_age: None,
        slot: None,
    };
    let role = ReportedRole::Standby {
        received: None,
        replayed: None,
        replay_lag: None,
        receiver: streams.then_some(receiver),
        receiver_process: streams,
        startup_wait: None,
        settings: BTreeMap::new(),
    };
    let report = NodeReport {
        system_id: SystemId(1),
        version: 150_000,
        started_at: 0,
        wal_segment_size: 16 << 20,
        checkpointer: None,
        timeline: TimelineId(1),
        role,
        latency: Duration::ZERO,
    };
    LogEvent::Probed { id: ProbeId(1), node: name(standby), result: Ok(report) }
}

#[test]
fn a_choice_while_a_standby_streams_from_the_old_primary_is_found() {
    let chosen = || decision(DecisionKind::Chosen, Some("b"));
    let begun = || vec![steady(SyncRule::Async), streaming("c", "a", 1)];
    let run = |events: Vec<LogEvent>| found([begun(), events, vec![chosen()]].concat());
    assert_eq!(run(vec![severed("a", 2), probed("c", true)]), ["no_choice_while_a_standby_streams"]);
    let silent = LogEvent::Probed {
        id: ProbeId(2),
        node: name("c"),
        result: Err(ProbeFailure::TimedOut(Duration::from_millis(500))),
    };
    assert!(run(vec![severed("a", 2), probed("c", true), silent]).is_empty(), "it is not seen");
    assert!(run(vec![severed("a", 2), probed("c", true), probed("c", false)]).is_empty());
    assert!(run(vec![probed("c", true), severed("a", 2)]).is_empty(), "that was before the fence");
    assert!(run(vec![severed("a", 2), streaming("c", "b", 2), probed("c", true)]).is_empty(), "of another");
}

#[test]
fn a_timeline_that_two_are_told_to_begin_is_found() {
    let twice = |second| {
        vec![journal(2, promoting("b")), promote("b"), journal(3, promoting(second)), promote(second)]
    };
    assert_eq!(found(twice("c")), ["timeline_attempted_once"]);
    assert!(found(twice("b")).is_empty(), "the same once more");
}

#[test]
fn a_promotion_of_a_tainted_node_is_found() {
    let tainted = |node: &str| {
        let journal = journal_of(2, promoting("b"), SyncRule::Async);
        LogEvent::JournalSynced(Box::new(Journal { tainted: vec![name(node)], ..journal }))
    };
    assert_eq!(found(vec![tainted("b"), promote("b")]), ["tainted_is_not_promoted"]);
    assert!(found(vec![tainted("c"), promote("b")]).is_empty());
}

#[test]
fn a_promotion_that_takes_effect_in_another_epoch_is_found() {
    let told = || vec![journal(2, promoting("b")), promote("b")];
    let obeys = |which| node(which, NodeChange::Promoting);
    let later = vec![journal(3, JournalPhase::Fencing), obeys("b")];
    assert_eq!(found([told(), later].concat()), ["no_promotion_of_another_epoch"]);
    assert!(found([told(), vec![obeys("b")]].concat()).is_empty());
    assert!(
        found([told(), vec![journal(3, JournalPhase::Fencing), obeys("c")]].concat()).is_empty(),
        "a stranger's"
    );
}
