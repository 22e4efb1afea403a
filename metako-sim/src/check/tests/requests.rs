//! What becomes of requests, and of what was acknowledged.

use super::*;

fn client(event: ClientEvent) -> LogEvent {
    LogEvent::Client(event)
}

fn unknown(id: u64) -> LogEvent {
    client(ClientEvent::Unknown { id, reason: "scripted" })
}

fn failed(id: u64) -> LogEvent {
    client(ClientEvent::Failed { id, reason: "scripted" })
}

fn held(id: u64) -> LogEvent {
    client(ClientEvent::Held { id })
}

#[test]
fn a_write_under_way_at_the_fence_whose_client_was_not_told_is_found() {
    assert_eq!(found(vec![sent(1, "a", 1), severed("a", 2)]), ["fenced_is_unknown"]);
    assert!(found(vec![sent(1, "a", 1), unknown(1), severed("a", 2)]).is_empty());
    assert!(found(vec![sent(1, "a", 2), severed("a", 2)]).is_empty(), "it is of the epoch that begins");
    assert!(found(vec![sent(1, "b", 1), severed("a", 2)]).is_empty());
}

#[test]
fn a_write_that_goes_on_after_it_was_called_unknown_is_found() {
    for event in [sent(1, "b", 2), acknowledged(1, "a", 1), failed(1), held(1)] {
        assert_eq!(found(vec![sent(1, "a", 1), unknown(1), event]), ["unknown_is_final"]);
    }
    assert!(found(vec![sent(1, "a", 1), unknown(1), sent(2, "b", 2)]).is_empty());
}

#[test]
fn a_write_that_is_sent_again_without_an_answer_is_found() {
    assert_eq!(found(vec![sent(1, "a", 1), sent(1, "b", 2)]), ["sent_once"]);
    assert!(found(vec![sent(1, "a", 1), held(1), sent(1, "b", 2)]).is_empty(), "it was refused");
}

#[test]
fn a_client_that_is_held_for_too_long_is_found() {
    let run = |seconds: usize, hold: LogEvent, last: LogEvent| {
        let mut events = vec![hold];
        events.extend(vec![view(1, "a"); seconds - 1]);
        events.push(last);
        names_of(&must_hold(&slowly(events), &rules()))
    };
    let read_held = || client(ClientEvent::ReadHeld { client: 1 });
    let over = || end(Some("a"), &[]);
    for seconds in [30, 31] {
        let expected: &[&str] = if seconds > 30 { &["held_is_answered"] } else { &[] };
        assert_eq!(run(seconds, held(1), sent(1, "a", 1)), expected);
        assert_eq!(run(seconds, held(1), failed(1)), expected);
        assert_eq!(run(seconds, held(1), over()), expected);
        let goes_on = client(ClientEvent::ReadSent { client: 1, node: name("a") });
        assert_eq!(run(seconds, read_held(), goes_on), expected);
        assert_eq!(run(seconds, read_held(), over()), expected);
    }
}

#[test]
fn an_opening_without_an_acknowledged_write_is_found() {
    let opened = |holds: &[u64]| LogEvent::Opened {
        primary: name("b"),
        epoch: Epoch(2),
        holds: holds.iter().copied().collect(),
    };
    let run = |rule: SyncRule, holds: &[u64]| {
        let begun = journal_with(1, JournalPhase::Steady, rule);
        let names = Rules { sync_names: "ANY 1 (b, c)".to_owned(), ..rules() };
        found_by(&names, vec![begun, acknowledged(1, "a", 1), acknowledged(2, "a", 1), opened(holds)])
    };
    assert_eq!(run(quorum(1, &["b", "c"]), &[1]), ["acknowledged_writes_stay"]);
    assert!(run(quorum(1, &["b", "c"]), &[1, 2, 3]).is_empty());
    assert!(run(SyncRule::Async, &[1]).is_empty(), "nobody promised that");
}

#[test]
fn a_write_that_was_called_failed_and_happened_is_found() {
    let run = |holds: &[u64]| found(vec![failed(1), end(Some("a"), &[("a", holds, None)])]);
    assert_eq!(run(&[1]), ["failed_writes_did_not_happen"]);
    assert!(run(&[2]).is_empty());
}
