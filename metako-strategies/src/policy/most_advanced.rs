//! `most_advanced`

use std::cmp::{Ordering, Reverse};
use std::time::Duration;

use metako_core::plugin::{
    Assessment, BuildError, Electable, Evidence, FailoverPolicy, FailoverPolicySpec, PrimaryEvidence,
    WitnessCount,
};
use metako_core::register_strategy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Fails over only when the standbys that answer bear out that the primary is gone, and to the one that has the most of
/// its WAL. A primary that refuses connections is replaced at once (after `failover.async_restart_grace`, if that is
/// set), a silent one after `failover.silent_after`. One that answers and does not end a commit is replaced after
/// `failover.stalled_after`, although its standbys stream from it; one that does nothing but start or recover after
/// `failover.start_timeout`. One that answers in any other way is left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MostAdvancedSpec {
    /// Among nodes with the same WAL and the same priority, those in this zone come first.
    pub prefer_zone: Option<String>,
}

#[typetag::serde(name = "most_advanced")]
impl FailoverPolicySpec for MostAdvancedSpec {
    fn build(&self) -> Result<Box<dyn FailoverPolicy>, BuildError> {
        if self.prefer_zone.as_deref().is_some_and(str::is_empty) {
            return Err(BuildError {
                option: "prefer_zone",
                problem: "is empty; expected the `zone` of a node, or leave the option out".to_owned(),
            });
        }
        Ok(Box::new(MostAdvanced { prefer_zone: self.prefer_zone.clone() }))
    }
}

register_strategy!(FailoverPolicy, "most_advanced", MostAdvancedSpec);

/// The running `most_advanced`.
#[derive(Debug)]
pub struct MostAdvanced {
    prefer_zone: Option<String>,
}

impl FailoverPolicy for MostAdvanced {
    fn assess(&self, evidence: &Evidence) -> Assessment {
        let primary = &evidence.primary;
        match evidence.kind {
            PrimaryEvidence::Healthy => wait(format!("{primary} is well")),
            PrimaryEvidence::Refused => refused(evidence),
            PrimaryEvidence::Silent => silent(evidence),
            PrimaryEvidence::WriteStalled => stalled(evidence),
            PrimaryEvidence::Starting => starting(evidence),
            PrimaryEvidence::ShuttingDown => wait(format!(
                "{primary} is shutting down: until it refuses connections it may still finish transactions"
            )),
            PrimaryEvidence::Full => wait(format!(
                "{primary} has no connection slot left: it is alive and serves those who are connected"
            )),
            PrimaryEvidence::InRecovery => wait(format!(
                "{primary} answers as a standby: it was restarted as one or restored, and a promotion would not bring \
                 back what it had"
            )),
            PrimaryEvidence::NoLogin => wait(format!(
                "{primary} does not let metako log in, which says nothing about its health: check user, password and \
                 pg_hba.conf"
            )),
            PrimaryEvidence::Unclear => wait(format!(
                "{primary} answers something unexpected, which proves nothing (failed probes in a row: {}): look at its log",
                evidence.failures
            )),
        }
    }

    fn rank(&self, electable: &mut [Electable]) {
        electable.sort_by(|a, b| self.order(a, b));
    }
}

impl MostAdvanced {
    fn order(&self, a: &Electable, b: &Electable) -> Ordering {
        let key = |node: &Electable| {
            let elsewhere = self.prefer_zone.is_some() && node.zone != self.prefer_zone;
            (Reverse(node.timeline), Reverse(node.position), node.priority, elsewhere, node.backlog)
        };
        key(a).cmp(&key(b)).then_with(|| a.node.cmp(&b.node))
    }
}

/// Nothing listens where the primary should be. Its process is gone if the standbys lost it too, because its
/// walsenders die with it; if one still streams, only the way to it is broken.
fn refused(evidence: &Evidence) -> Assessment {
    let primary = &evidence.primary;
    if let Some(doubt) = doubt(evidence) {
        return wait(format!("{primary} refuses connections, but {doubt}"));
    }
    let testimony = testimony(evidence.witnesses);
    match left(evidence.restart_grace, evidence.standing) {
        Some(left) => Assessment::Wait {
            reason: format!(
                "{primary} refuses connections and {testimony}; it may yet restart with all it had, so it is given \
                 {} (failover.async_restart_grace)",
                millis(evidence.restart_grace)
            ),
            ask_again_in: Some(left),
        },
        None => Assessment::FailOver { reason: format!("{primary} refuses connections and {testimony}") },
    }
}

/// No answer: either the primary's host is gone, or this proxy is cut off from it. The standbys tell which.
fn silent(evidence: &Evidence) -> Assessment {
    let primary = &evidence.primary;
    let standing = millis(evidence.standing);
    if let Some(doubt) = doubt(evidence) {
        return wait(format!("{primary} has not answered for {standing}, but {doubt}"));
    }
    let testimony = testimony(evidence.witnesses);
    match left(evidence.silent_after, evidence.standing) {
        Some(left) => Assessment::Wait {
            reason: format!(
                "{primary} has not answered for {standing} and {testimony}; it is given {} (failover.silent_after)",
                millis(evidence.silent_after)
            ),
            ask_again_in: Some(left),
        },
        None => Assessment::FailOver {
            reason: format!("{primary} has not answered for {standing} and {testimony}"),
        },
    }
}

/// It is alive, and has all that it had when it comes up. But it may never do so: its recovery may need more than there is of
/// disk or memory, and begin again and again.
fn starting(evidence: &Evidence) -> Assessment {
    let primary = &evidence.primary;
    let starting = format!("{primary} is starting or recovering from a crash");
    let Some(limit) = evidence.start_timeout else {
        return wait(format!(
            "{starting}: it is alive, so it is waited for (failover.start_timeout is none)"
        ));
    };
    if let Some(doubt) = doubt(evidence) {
        return wait(format!("{starting}, but {doubt}"));
    }
    match left(limit, evidence.standing) {
        Some(left) => Assessment::Wait {
            reason: format!(
                "{starting}: it is alive, so it is given {} (failover.start_timeout)",
                millis(limit)
            ),
            ask_again_in: Some(left),
        },
        None => Assessment::FailOver {
            reason: format!(
                "{starting} for longer than failover.start_timeout ({}), and {}",
                millis(limit),
                testimony(evidence.witnesses)
            ),
        },
    }
}

/// It answers, and nothing that it writes reaches its disk. Standbys that stream from it get what was on the disk before,
/// so only whether they are at hand counts. Slow disks stall for seconds, in a checkpoint say, and go on.
fn stalled(evidence: &Evidence) -> Assessment {
    let primary = &evidence.primary;
    let WitnessCount { configured, fresh, lost, .. } = evidence.witnesses;
    let stalled = format!("{primary} answers, and a small commit does not end: its disk may stand still");
    let at_hand = fresh + lost;
    if at_hand == 0 {
        return wait(format!("{stalled}; of {configured} standbys none answers, so that nobody can follow"));
    }
    match left(evidence.stalled_after, evidence.standing) {
        Some(left) => Assessment::Wait {
            reason: format!(
                "{stalled}; it is given {} (failover.stalled_after), and writes go there meanwhile",
                millis(evidence.stalled_after)
            ),
            ask_again_in: Some(left),
        },
        None => Assessment::FailOver {
            reason: format!(
                "{stalled}, for longer than failover.stalled_after ({}); of {configured} standbys {at_hand} answer",
                millis(evidence.stalled_after)
            ),
        },
    }
}

/// Why the standbys do not bear out that the primary is gone; `None` if they do: at least one answers, and all that
/// answer have lost its stream.
fn doubt(evidence: &Evidence) -> Option<String> {
    let WitnessCount { configured, fresh, lost, .. } = evidence.witnesses;
    if fresh > 0 {
        Some(format!(
            "of {configured} standbys {fresh} still stream from it: the way from here to it is broken, not the primary"
        ))
    } else if lost > 0 {
        None
    } else if configured == 0 {
        Some("there is no standby to fail over to".to_owned())
    } else {
        Some(format!("of {configured} standbys none answers either: this proxy seems to be cut off"))
    }
}

/// What the standbys say when there is no [`doubt`].
fn testimony(witnesses: WitnessCount) -> String {
    let WitnessCount { configured, lost, unseen, .. } = witnesses;
    let lost = format!("of {configured} standbys {lost} have lost its stream");
    if unseen == 0 { lost } else { format!("{lost} and {unseen} do not answer") }
}

/// How much of `bound` is left after `standing`; `None` when it is over.
fn left(bound: Duration, standing: Duration) -> Option<Duration> {
    bound.checked_sub(standing).filter(|left| !left.is_zero())
}

/// A wait that only new evidence ends.
fn wait(reason: String) -> Assessment {
    Assessment::Wait { reason, ask_again_in: None }
}

fn millis(span: Duration) -> String {
    format!("{} ms", span.as_millis())
}

#[cfg(test)]
mod tests;
