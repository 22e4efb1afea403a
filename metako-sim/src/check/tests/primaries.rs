//! Who takes writes, in which epoch.

use super::*;

#[test]
fn a_failover_without_mistakes_has_no_findings() {
    let events = vec![
        journal(1, JournalPhase::Steady),
        view(1, "a"),
        sent(1, "a", 1),
        acknowledged(1, "a", 1),
        journal(2, JournalPhase::Fencing),
        severed("a", 2),
        journal(2, promoting("b")),
        promote("b"),
        promoted("b", 2),
        view(2, "b"),
        sent(2, "b", 2),
    ];
    assert_eq!(found(events), Vec::<&str>::new());
}

#[test]
fn two_primaries_of_one_epoch_are_found() {
    assert_eq!(found(vec![acknowledged(1, "a", 1), acknowledged(2, "b", 1)]), ["one_primary_per_epoch"]);
    assert!(found(vec![acknowledged(1, "a", 1), acknowledged(2, "b", 2)]).is_empty());
}

#[test]
fn traffic_over_severed_connections_is_found() {
    assert_eq!(found(vec![severed("a", 2), acknowledged(1, "a", 1)]), ["severed_stays_severed"]);
    assert_eq!(found(vec![severed("a", 2), sent(1, "a", 1)]), ["severed_stays_severed"]);
    assert!(found(vec![severed("a", 2), sent(1, "a", 2)]).is_empty());
}

#[test]
fn opening_without_a_fence_is_found() {
    assert_eq!(found(vec![view(1, "a"), view(2, "b")]), ["fence_before_opening"]);
    assert!(found(vec![view(1, "a"), severed("a", 2), view(2, "b")]).is_empty());
}

#[test]
fn epochs_that_go_back_are_found() {
    assert_eq!(found(vec![view(2, "a"), view(1, "a")]), ["epochs_only_grow"]);
    let steady = JournalPhase::Steady;
    assert_eq!(found(vec![journal(2, steady.clone()), journal(1, steady)]), ["epochs_only_grow"]);
}

#[test]
fn an_acknowledgement_of_another_than_the_primary_is_found() {
    let events = vec![view(1, "a"), severed("a", 2), view(2, "b"), acknowledged(1, "c", 3)];
    assert_eq!(found(events), ["only_the_primary_acknowledges"]);
}

#[test]
fn an_epoch_that_was_steady_with_two_is_found() {
    let with = |primary: &str| {
        let journal = journal_of(2, JournalPhase::Steady, SyncRule::Async);
        LogEvent::JournalSynced(Box::new(Journal { primary: name(primary), ..journal }))
    };
    assert_eq!(found(vec![with("a"), with("b")]), ["one_steady_primary_per_epoch"]);
    assert!(found(vec![with("a"), with("a")]).is_empty());
}

#[test]
fn traffic_to_a_former_primary_is_found_until_it_streams_what_came_after() {
    let moved = || vec![view(1, "a"), promoted("b", 2), severed("a", 2), view(2, "b")];
    let then = |events: Vec<LogEvent>| found([moved(), events].concat());
    assert_eq!(then(vec![sent(1, "a", 2)]), ["no_traffic_to_a_former_primary"]);
    assert_eq!(then(vec![read("a", false, true, 0)]), ["no_traffic_to_a_former_primary"]);
    assert_eq!(
        then(vec![streaming("a", "b", 1), read("a", false, true, 0)]),
        ["no_traffic_to_a_former_primary"]
    );
    assert!(then(vec![streaming("a", "b", 2), read("a", false, true, 0)]).is_empty());
    let before = vec![view(1, "a"), severed("a", 2), streaming("a", "b", 2), view(2, "b")];
    assert!(found([before, vec![read("a", false, true, 0)]].concat()).is_empty(), "it followed before");
}
