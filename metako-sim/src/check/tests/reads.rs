//! What reads see.

use super::*;

#[test]
fn reads_from_a_stale_primary_and_divergence_are_found() {
    let read = |primary| read("a", primary, true, 0);
    let asked = || [journal(2, promoting("b")), promote("b"), promoted("b", 2)].to_vec();
    assert_eq!(found([asked(), vec![read(true)]].concat()), ["no_read_from_a_stale_primary"]);
    assert!(found([asked(), vec![read(false)]].concat()).is_empty());
    assert!(found([vec![read(true)], asked()].concat()).is_empty());
    // Whom somebody else promotes is a stranger until writes are opened to it.
    assert!(found(vec![promoted("b", 2), read(true)]).is_empty());
    let followed = found(vec![promoted("b", 2), severed("a", 2), view(2, "b"), read(true)]);
    assert_eq!(followed, ["no_read_from_a_stale_primary"]);
    let change = NodeChange::DivergedUnnoticed { upstream: name("b") };
    assert_eq!(found(vec![LogEvent::Node { node: name("a"), change }]), ["no_unnoticed_divergence"]);
}

#[test]
fn a_read_of_another_history_is_found() {
    assert_eq!(found(vec![read("b", false, false, 0)]), ["reads_are_of_the_primarys_history"]);
    assert!(found(vec![read("b", false, true, 0)]).is_empty());
    let observes = Rules { observes: true, ..rules() };
    assert!(found_by(&observes, vec![read("b", false, false, 0)]).is_empty(), "others promote");
}

#[test]
fn a_read_that_is_behind_for_long_is_found() {
    let after = |seconds: usize, behind, rules: &Rules| {
        let mut events = vec![view(1, "a"); seconds];
        events.push(read("b", false, true, behind));
        names_of(&must_hold(&slowly(events), rules))
    };
    assert_eq!(after(30, 21, &rules()), ["reads_are_fresh"]);
    assert!(after(30, 20, &rules()).is_empty(), "max_lag, and the time to notice");
    assert!(after(15, 21, &rules()).is_empty(), "the primary serves for too short a time to say");
    assert!(after(30, 21, &Rules { max_lag: None, ..rules() }).is_empty());
}

#[test]
fn a_read_of_what_too_few_voters_have_is_found() {
    let strict = || journal_with(1, JournalPhase::Steady, quorum(2, &["b", "c"]));
    let of = |primary, holders: &[&str]| {
        let LogEvent::Client(ClientEvent::Read { client, node, timeline, on_history, behind, .. }) =
            read("a", primary, true, 0)
        else {
            unreachable!()
        };
        let held_by = holders.iter().copied().map(name).collect();
        LogEvent::Client(ClientEvent::Read { client, node, primary, timeline, on_history, behind, held_by })
    };
    let with = |events| found_by(&Rules { sync_names: "ANY 2 (b, c)".to_owned(), ..rules() }, events);
    let check = "no_read_of_what_may_be_lost";
    assert_eq!(with(vec![strict(), view(1, "a"), of(true, &["b", "d"])]), [check]);
    assert!(with(vec![strict(), view(1, "a"), of(true, &["b", "c"])]).is_empty());
    assert!(with(vec![strict(), view(1, "a"), of(false, &[])]).is_empty());
    assert!(with(vec![strict(), of(true, &[])]).is_empty(), "writes are not open to it");
    assert!(found(vec![journal(1, JournalPhase::Steady), view(1, "a"), of(true, &[])]).is_empty());
}
