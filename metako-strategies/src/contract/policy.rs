use std::time::Duration;

use metako_core::plugin::{
    Assessment, Electable, Evidence, FailoverPolicy, FailoverPolicySpec, PrimaryEvidence, WitnessCount,
};
use metako_core::{Lsn, NodeName, TimelineId};

use super::{Numbers, broken, built};

const KINDS: [PrimaryEvidence; 10] = [
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
];

/// Checks a failover policy:
///
/// - it is pure: asked the same again, it answers the same, and what it was asked between makes no difference;
/// - it leaves a healthy primary alone;
/// - it has a reason for people, and when it wants to be asked again, that is not at once;
/// - ranking orders the nodes and neither drops, doubles nor changes one.
///
/// That it fails over to the right node on enough evidence is not among them: the controller refuses what is unsafe.
pub fn failover_policy(spec: &dyn FailoverPolicySpec) -> Result<(), String> {
    let policy = built(spec.build())?;
    let mut numbers = Numbers(1);
    let questions: Vec<_> = (0..500).map(|_| evidence(&mut numbers)).collect();
    let answers: Vec<_> = questions.iter().map(|evidence| policy.assess(evidence)).collect();
    for (evidence, answer) in questions.iter().zip(&answers).rev() {
        if policy.assess(evidence) != *answer {
            return broken(format!(
                "it is not pure: first {answer:?}, later something else, to {evidence:?}"
            ));
        }
        let (Assessment::Wait { reason, .. } | Assessment::FailOver { reason }) = answer;
        if reason.is_empty() {
            return broken(format!("it gives no reason for its answer to {evidence:?}"));
        }
        if evidence.kind == PrimaryEvidence::Healthy && matches!(answer, Assessment::FailOver { .. }) {
            return broken(format!("it fails over from a healthy primary: {evidence:?}"));
        }
        if let Assessment::Wait { ask_again_in: Some(Duration::ZERO), .. } = answer {
            return broken(format!("it wants to be asked again at once: {evidence:?}"));
        }
    }
    (0..200).try_for_each(|_| ranks(&*policy, &mut numbers))
}

fn evidence(numbers: &mut Numbers) -> Evidence {
    let [fresh, lost, unseen] = [(); 3].map(|()| numbers.below(3) as usize);
    let mut span = || Duration::from_millis(u64::from(numbers.below(6000)));
    let (standing, silent_after, stalled_after, restart_grace) = (span(), span(), span(), span());
    let start_timeout = Some(span()).filter(|_| numbers.below(3) > 0);
    Evidence {
        primary: NodeName::from("primary"),
        kind: KINDS[numbers.below(10) as usize],
        standing,
        failures: numbers.below(10),
        witnesses: WitnessCount { configured: fresh + lost + unseen, fresh, lost, unseen },
        silent_after,
        stalled_after,
        start_timeout,
        restart_grace,
        failure_threshold: numbers.below(5) + 1,
    }
}

fn ranks(policy: &dyn FailoverPolicy, numbers: &mut Numbers) -> Result<(), String> {
    let given: Vec<_> = (0..numbers.below(6))
        .map(|index| Electable {
            node: NodeName::from(format!("node-{index}")),
            timeline: TimelineId(numbers.below(2) + 1),
            position: Lsn(u64::from(numbers.below(3))),
            backlog: u64::from(numbers.below(3)),
            priority: numbers.below(2),
            zone: [None, Some("a".to_owned()), Some("b".to_owned())][numbers.below(3) as usize].clone(),
        })
        .collect();
    let mut ranked = given.clone();
    policy.rank(&mut ranked);
    let mut again = given.clone();
    policy.rank(&mut again);
    if ranked != again {
        return broken(format!("it ranks {given:?} differently from time to time"));
    }
    ranked.sort_by(|a, b| a.node.cmp(&b.node));
    if ranked == given { Ok(()) } else { broken(format!("ranking {given:?} lost or changed a node")) }
}
