//! How often it is decided, and why.

use metako_core::cluster::OperatorCommand;

use super::*;

fn fault() -> LogEvent {
    LogEvent::Fault("kill".to_owned())
}

fn begins() -> LogEvent {
    decision(DecisionKind::FailoverBegun, Some("a"))
}

fn chosen() -> LogEvent {
    decision(DecisionKind::Chosen, Some("b"))
}

#[test]
fn more_failovers_than_the_budget_allows_are_found() {
    let two = || vec![fault(), begins(), chosen(), begins(), chosen()];
    let third = |events: Vec<LogEvent>| found([two(), events, vec![begins()]].concat());
    assert_eq!(third(Vec::new()), ["failovers_are_rationed"]);
    let asked = LogEvent::Asked {
        command: OperatorCommand::Failover { to: None, allow_data_loss: false },
        refusal: None,
    };
    assert!(third(vec![asked]).is_empty(), "a person asked for it");
    let once =
        vec![fault(), begins(), chosen(), decision(DecisionKind::SwitchoverBegun, None), chosen(), begins()];
    assert!(found(once).is_empty(), "a switchover is no failover");
    let stopping = || LogEvent::View {
        version: 1,
        epoch: Epoch(2),
        phase: Phase::Stopping { old: name("a"), since: Tick::ZERO },
        writes: Writes::Held { reason: "scripted".to_owned() },
    };
    let switchover = || vec![decision(DecisionKind::SwitchoverBegun, None), stopping(), begins(), chosen()];
    let then = |events: Vec<LogEvent>| {
        let findings = found([vec![fault()], switchover(), events].concat());
        findings.contains(&"failovers_are_rationed")
    };
    assert!(
        !then(vec![view(2, "b"), begins(), chosen(), begins()]),
        "nor when the primary was stopped for it"
    );
    assert!(then(vec![view(2, "b"), begins(), chosen(), begins(), chosen(), begins()]));
    assert!(third(vec![LogEvent::ProxyKilled]).is_empty(), "what is counted ends with the process");
    let rare = Rules { budget: (2, Duration::from_millis(250)), ..rules() };
    assert!(found_by(&rare, [two(), vec![begins()]].concat()).is_empty(), "the first was long ago");
}

#[test]
fn a_failover_without_a_cause_is_found() {
    let later = |seconds: usize| {
        let mut events = vec![fault()];
        events.extend(vec![view(1, "a"); seconds - 1]);
        events.push(begins());
        names_of(&must_hold(&slowly(events), &rules()))
    };
    assert_eq!(later(21), ["failovers_have_a_cause"]);
    assert!(later(20).is_empty());
    assert_eq!(found(vec![begins()]), ["failovers_have_a_cause"]);
    let starting = |which| node(which, NodeChange::Starting);
    assert!(found(vec![starting("a"), begins()]).is_empty(), "it recovers, for however long");
    assert_eq!(found(vec![starting("b"), begins()]), ["failovers_have_a_cause"]);
    let ready = NodeChange::Ready { primary: true, timeline: TimelineId(1), position: Lsn(9) };
    assert_eq!(found(vec![starting("a"), node("a", ready), begins()]), ["failovers_have_a_cause"]);
}

#[test]
fn a_decision_without_a_reason_is_found() {
    let decided = |reason: &str| {
        let decision =
            Decision { kind: DecisionKind::Adopted, node: None, epoch: Epoch(1), reason: reason.to_owned() };
        found(vec![LogEvent::Decision(decision)])
    };
    assert_eq!(decided(" "), ["decisions_are_explained"]);
    assert!(decided("all agree").is_empty());
}

#[test]
fn a_phase_that_changes_by_no_decision_is_found() {
    let phase = |phase: Phase| LogEvent::View {
        version: 1,
        epoch: Epoch(2),
        phase,
        writes: Writes::Held { reason: "scripted".to_owned() },
    };
    let fencing = || phase(Phase::Fencing { old: name("a"), since: Tick::ZERO });
    let freezing = || phase(Phase::Freezing { old: name("a"), since: Tick::ZERO });
    assert_eq!(found(vec![view(1, "a"), fencing(), freezing()]), ["phases_are_decided"]);
    assert!(found(vec![fault(), view(1, "a"), begins(), fencing(), freezing()]).is_empty());
    let draining = || phase(Phase::Draining { old: name("a"), to: name("b"), since: Tick::ZERO });
    let switchover = || decision(DecisionKind::SwitchoverBegun, Some("b"));
    assert!(found(vec![view(1, "a"), switchover(), view(1, "a"), draining()]).is_empty());
    assert_eq!(found(vec![view(1, "a"), draining(), view(2, "a")]), ["phases_are_decided"]);
    let aborted = || decision(DecisionKind::Aborted, Some("a"));
    let called_off = |events| found([vec![fault(), view(1, "a"), begins(), fencing()], events].concat());
    let unfrozen = || vec![aborted(), fencing(), view(2, "a"), fault()];
    assert!(called_off(unfrozen()).is_empty(), "the journal was written meanwhile");
    let again = vec![begins(), fencing(), view(3, "a"), fault()];
    assert_eq!(called_off([unfrozen(), again].concat()), ["phases_are_decided"], "once");
    assert!(found(vec![view(1, "a"), LogEvent::ProxyKilled, fencing()]).is_empty(), "it starts anew");
}
