//! What commits wait for, and what a failover relies on.

use super::*;

#[test]
fn commits_that_wait_for_less_than_a_failover_relies_on_are_found() {
    let run = |rule: &SyncRule, names: &str| {
        let events = vec![
            journal_with(1, JournalPhase::Steady, rule.clone()),
            reloaded("a", "synchronous_standby_names", names),
        ];
        found_by(&Rules { sync_names: "ANY 2 (b, c)".to_owned(), ..rules() }, events)
    };
    let check = ["quorums_meet"];
    let one_of_two = quorum(1, &["b", "c"]);
    assert!(run(&one_of_two, "ANY 1 (b, c)").is_empty());
    assert!(run(&one_of_two, "ANY 1 (b)").is_empty(), "fewer voters demand more");
    assert!(run(&one_of_two, "ANY 2 (b, c)").is_empty());
    assert!(run(&one_of_two, "ANY 2 (b, c, d)").is_empty(), "one of them is asked");
    assert_eq!(run(&one_of_two, ""), check);
    assert_eq!(run(&one_of_two, "ANY 1 (b, c, d)"), check, "d alone may have it");
    assert_eq!(run(&quorum(2, &["b", "c"]), "ANY 1 (b, c)"), check);
    assert_eq!(run(&quorum(1, &["b"]), "ANY 1 (b, c)"), check);
    assert!(run(&SyncRule::Async, "").is_empty());
}

#[test]
fn a_rule_that_the_journal_has_too_early_is_found() {
    let wait = |names: &str| Rules { sync_names: names.to_owned(), ..rules() };
    let events = || vec![journal_with(1, JournalPhase::Steady, quorum(1, &["b", "c"])), view(1, "a")];
    assert_eq!(found_by(&wait(""), events()), ["quorums_meet"]);
    assert!(found_by(&wait("ANY 1 (b, c)"), events()).is_empty());
}

#[test]
fn the_rule_of_a_new_primary_counts_from_its_promotion() {
    let announced = || vec![journal_with(2, promoting("b"), quorum(1, &["c"])), view(2, "a")];
    assert!(found(announced()).is_empty());
    assert_eq!(found([announced(), vec![promoted("b", 2), view(2, "a")]].concat()), ["quorums_meet"]);
    let prepared =
        vec![reloaded("b", "synchronous_standby_names", "ANY 1 (c)"), promoted("b", 2), view(2, "a")];
    assert!(found([announced(), prepared].concat()).is_empty());
}
