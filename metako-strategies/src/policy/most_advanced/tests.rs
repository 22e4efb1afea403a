use metako_core::{Lsn, NodeName, TimelineId};
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> Box<dyn FailoverPolicy> {
    MostAdvancedSpec::default().build().expect("the defaults are right")
}

/// Evidence of that kind and age, with so many standbys of each sort; silence is borne for 2.5 s, a refusal for 0 s.
fn evidence(kind: PrimaryEvidence, standing: Duration, fresh: usize, lost: usize, unseen: usize) -> Evidence {
    Evidence {
        primary: NodeName::from("db-1"),
        kind,
        standing,
        failures: 3,
        witnesses: WitnessCount { configured: fresh + lost + unseen, fresh, lost, unseen },
        silent_after: Duration::from_millis(2500),
        stalled_after: 10 * SECOND,
        start_timeout: Some(10 * SECOND),
        restart_grace: Duration::ZERO,
        failure_threshold: 3,
    }
}

/// Whether it fails over, and when it wants to be asked again; and its reason.
fn judged(evidence: &Evidence) -> (bool, Option<Duration>, String) {
    match policy().assess(evidence) {
        Assessment::Wait { reason, ask_again_in } => (false, ask_again_in, reason),
        Assessment::FailOver { reason } => (true, None, reason),
    }
}

#[test]
fn each_row_of_the_evidence_table() {
    use PrimaryEvidence::{
        Full, Healthy, InRecovery, NoLogin, Refused, ShuttingDown, Silent, Starting, Unclear, WriteStalled,
    };
    let early = Duration::from_millis(400);
    let soon = Some(Duration::from_millis(2100));
    let late = 10 * SECOND;
    // Kind, its age; standbys that stream, have lost it, do not answer; fails over, asks again in; words of the reason.
    let rows = [
        (Healthy, late, (0, 2, 0), (false, None), "is well"),
        (Refused, Duration::ZERO, (0, 2, 0), (true, None), "of 2 standbys 2 have lost its stream"),
        (Refused, late, (0, 1, 1), (true, None), "1 have lost its stream and 1 do not answer"),
        (Refused, late, (1, 1, 0), (false, None), "the way from here to it is broken, not the primary"),
        (Refused, late, (1, 0, 1), (false, None), "still stream from it"),
        (Refused, late, (0, 0, 2), (false, None), "this proxy seems to be cut off"),
        (Refused, late, (0, 0, 0), (false, None), "no standby to fail over to"),
        (Silent, early, (0, 2, 0), (false, soon), "failover.silent_after"),
        (Silent, Duration::from_millis(2500), (0, 2, 0), (true, None), "has not answered for 2500 ms"),
        (Silent, late, (0, 1, 1), (true, None), "1 do not answer"),
        (Silent, late, (1, 1, 0), (false, None), "the way from here to it is broken"),
        (Silent, late, (0, 0, 2), (false, None), "this proxy seems to be cut off"),
        (Silent, late, (0, 0, 0), (false, None), "no standby to fail over to"),
        (
            WriteStalled,
            early,
            (2, 0, 0),
            (false, Some(Duration::from_millis(9600))),
            "failover.stalled_after",
        ),
        (WriteStalled, late, (2, 0, 0), (true, None), "of 2 standbys 2 answer"),
        (WriteStalled, late, (0, 1, 1), (true, None), "of 2 standbys 1 answer"),
        (WriteStalled, late, (0, 0, 2), (false, None), "none answers"),
        (WriteStalled, late, (0, 0, 0), (false, None), "nobody can follow"),
        (Starting, early, (0, 2, 0), (false, Some(Duration::from_millis(9600))), "failover.start_timeout"),
        (Starting, late, (0, 2, 0), (true, None), "for longer than failover.start_timeout (10000 ms)"),
        (Starting, late, (0, 1, 1), (true, None), "1 have lost its stream and 1 do not answer"),
        (Starting, late, (1, 1, 0), (false, None), "still stream from it"),
        (Starting, late, (0, 0, 2), (false, None), "this proxy seems to be cut off"),
        (ShuttingDown, late, (0, 2, 0), (false, None), "until it refuses connections"),
        (Full, late, (0, 2, 0), (false, None), "no connection slot"),
        (InRecovery, late, (0, 2, 0), (false, None), "answers as a standby"),
        (NoLogin, late, (0, 2, 0), (false, None), "pg_hba.conf"),
        (Unclear, late, (0, 2, 0), (false, None), "failed probes in a row: 3"),
    ];
    for (kind, standing, (fresh, lost, unseen), expected, words) in rows {
        let (fails_over, ask_again_in, reason) = judged(&evidence(kind, standing, fresh, lost, unseen));
        assert_eq!((fails_over, ask_again_in), expected, "{kind:?}, {standing:?}: {reason}");
        assert!(reason.contains(words) && reason.contains("db-1"), "{kind:?}, {standing:?}: {reason}");
    }
}

#[test]
fn a_refusing_primary_is_given_its_grace_to_restart() {
    let mut evidence = evidence(PrimaryEvidence::Refused, SECOND, 0, 2, 0);
    evidence.restart_grace = 3 * SECOND;
    let (fails_over, ask_again_in, reason) = judged(&evidence);
    assert_eq!((fails_over, ask_again_in), (false, Some(2 * SECOND)));
    assert!(reason.contains("failover.async_restart_grace"), "{reason}");
    evidence.standing = 3 * SECOND;
    assert!(judged(&evidence).0);
}

#[test]
fn without_a_limit_a_primary_that_starts_is_waited_for_without_end() {
    let mut evidence = evidence(PrimaryEvidence::Starting, Duration::from_hours(24), 0, 2, 0);
    evidence.start_timeout = None;
    let (fails_over, ask_again_in, reason) = judged(&evidence);
    assert_eq!((fails_over, ask_again_in), (false, None));
    assert!(reason.contains("alive") && reason.contains("failover.start_timeout is none"), "{reason}");
}

fn electable(node: &str, timeline: u32, position: u64) -> Electable {
    Electable {
        node: NodeName::from(node),
        timeline: TimelineId(timeline),
        position: Lsn(position),
        backlog: 0,
        priority: 100,
        zone: None,
    }
}

fn ranked(spec: &MostAdvancedSpec, mut nodes: Vec<Electable>) -> Vec<String> {
    spec.build().expect("the options are right").rank(&mut nodes);
    nodes.into_iter().map(|node| node.node.to_string()).collect()
}

#[test]
fn the_most_wal_wins_then_priority_then_the_shorter_backlog_then_the_name() {
    let nodes = vec![
        electable("name-b", 2, 50),
        electable("name-a", 2, 50),
        Electable { backlog: 9, ..electable("backlog", 2, 50) },
        Electable { priority: 101, ..electable("priority", 2, 50) },
        Electable { priority: 1, ..electable("behind", 2, 49) },
        Electable { priority: 1, ..electable("old-timeline", 1, 99) },
    ];
    let order = ["name-a", "name-b", "backlog", "priority", "behind", "old-timeline"];
    assert_eq!(ranked(&MostAdvancedSpec::default(), nodes), order);
}

#[test]
fn a_preferred_zone_decides_among_equals_only() {
    let zone = |zone: &str| Some(zone.to_owned());
    let nodes = vec![
        Electable { zone: None, ..electable("nowhere", 1, 50) },
        Electable { zone: zone("b"), backlog: 7, ..electable("there", 1, 50) },
        Electable { zone: zone("a"), priority: 1, ..electable("priority", 1, 50) },
        Electable { zone: zone("a"), ..electable("ahead", 1, 51) },
    ];
    let spec = MostAdvancedSpec { prefer_zone: zone("b") };
    assert_eq!(ranked(&spec, nodes), ["ahead", "priority", "there", "nowhere"]);
}

#[test]
fn an_empty_zone_is_refused() {
    let problem = MostAdvancedSpec { prefer_zone: Some(String::new()) }.build().map(drop);
    assert_eq!(problem.map_err(|error| error.option), Err("prefer_zone"));
}

fn any_evidence() -> impl Strategy<Value = Evidence> {
    let kinds = prop::sample::select(vec![
        PrimaryEvidence::Healthy,
        PrimaryEvidence::Refused,
        PrimaryEvidence::Silent,
        PrimaryEvidence::WriteStalled,
        PrimaryEvidence::Starting,
        PrimaryEvidence::ShuttingDown,
        PrimaryEvidence::Full,
        PrimaryEvidence::InRecovery,
        PrimaryEvidence::NoLogin,
        PrimaryEvidence::Unclear,
    ]);
    let millis = || (0_u64..6000).prop_map(Duration::from_millis);
    let patience = (millis(), millis(), prop::option::of(millis()), millis());
    (kinds, millis(), 0_usize..3, 0_usize..3, 0_usize..3, patience).prop_map(
        |(kind, standing, fresh, lost, unseen, patience)| {
            let (silent_after, stalled_after, start_timeout, restart_grace) = patience;
            Evidence {
                silent_after,
                stalled_after,
                start_timeout,
                restart_grace,
                ..evidence(kind, standing, fresh, lost, unseen)
            }
        },
    )
}

proptest! {
    #[test]
    fn it_fails_over_only_when_all_standbys_that_answer_lost_the_primary_or_it_cannot_write(evidence in any_evidence()) {
        if judged(&evidence).0 && evidence.kind == PrimaryEvidence::WriteStalled {
            prop_assert!(evidence.witnesses.fresh + evidence.witnesses.lost > 0);
            prop_assert!(evidence.standing >= evidence.stalled_after);
        } else if judged(&evidence).0 {
            prop_assert_eq!(evidence.witnesses.fresh, 0);
            prop_assert!(evidence.witnesses.lost > 0);
            match evidence.kind {
                PrimaryEvidence::Refused | PrimaryEvidence::Silent => {}
                PrimaryEvidence::Starting => {
                    prop_assert!(evidence.start_timeout.is_some_and(|limit| evidence.standing >= limit));
                }
                kind => prop_assert!(false, "{kind:?}"),
            }
        }
    }

    #[test]
    fn what_was_enough_stays_enough(evidence in any_evidence(), more in 0_u64..9000) {
        let later = Evidence { standing: evidence.standing + Duration::from_millis(more), ..evidence.clone() };
        prop_assert!(!judged(&evidence).0 || judged(&later).0);
    }

    #[test]
    fn a_wait_with_an_end_ends_in_a_failover_then_and_not_before(evidence in any_evidence()) {
        if let (false, Some(wait), _) = judged(&evidence) {
            let after = |wait| judged(&Evidence { standing: evidence.standing + wait, ..evidence.clone() }).0;
            prop_assert!(after(wait));
            prop_assert!(!after(wait.saturating_sub(Duration::from_millis(1))));
        }
    }

    #[test]
    fn nobody_ahead_is_ranked_behind(
        nodes in prop::collection::vec((1_u32..3, 0_u64..4, 0_u64..3, 0_u32..3), 0..7)
    ) {
        let mut nodes: Vec<_> = nodes
            .into_iter()
            .enumerate()
            .map(|(index, (timeline, position, backlog, priority))| Electable {
                backlog,
                priority,
                ..electable(&format!("node-{index}"), timeline, position)
            })
            .collect();
        policy().rank(&mut nodes);
        for pair in nodes.windows(2) {
            prop_assert!((pair[0].timeline, pair[0].position) >= (pair[1].timeline, pair[1].position));
        }
    }
}
