//! Whatever happens, in whatever order: the rules that [`Lab`] watches, and a way back.

use std::sync::Arc;

use proptest::prelude::*;

use super::fake::{Line, eager, hooked, settings, synchronous};
use super::lab::{Lab, Treat};
use crate::cluster::{ActionId, ActionOutcome, Event, OperatorCommand, ProbeId, ServerLoss};
use crate::config::{ClusterSettings, NoVoter};
use crate::plugin::ProbeFailure;

#[derive(Debug, Clone)]
enum Step {
    Pass(u64),
    Line(usize, usize),
    Cut(usize),
    Join(usize),
    Write(u64),
    Connecting(usize, bool),
    Treat(usize, usize),
    Release,
    Restart,
    Lost(usize),
    Adopt(usize),
    Noise(u64),
    Reload(usize),
    Ask(usize, usize),
    Open(bool),
    /// Somebody else promotes a node.
    Promoted(usize),
    /// The server of a node is started again, or recovers from a crash.
    Started(usize, bool),
}

const NAMES: [&str; 3] = ["a", "b", "c"];
const LINES: [Line; 7] =
    [Line::Up, Line::Refused, Line::Silent, Line::Starting, Line::Full, Line::NoLogin, Line::Stalled];
const TASKS: [&str; 14] = [
    "probe",
    "persist",
    "sever",
    "freeze",
    "unfreeze",
    "prepare",
    "promote",
    "verify",
    "repoint",
    "set_sync",
    "checkpoint",
    "drain",
    "stop",
    "rejoin",
];
const TREATS: [Treat; 4] = [Treat::Keep, Treat::Fail, Treat::Unknown, Treat::DoneUnknown];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u64..4000).prop_map(Step::Pass),
        4 => (0..3_usize, 0..LINES.len()).prop_map(|(node, line)| Step::Line(node, line)),
        3 => (0..3_usize).prop_map(Step::Cut),
        3 => (0..3_usize).prop_map(Step::Join),
        3 => (1_u64..1000).prop_map(Step::Write),
        1 => (0..3_usize, any::<bool>()).prop_map(|(node, on)| Step::Connecting(node, on)),
        2 => (0..TASKS.len(), 0..TREATS.len()).prop_map(|(task, treat)| Step::Treat(task, treat)),
        2 => Just(Step::Release),
        1 => Just(Step::Restart),
        2 => (0..3_usize).prop_map(Step::Lost),
        1 => (0..3_usize).prop_map(Step::Adopt),
        1 => (0_u64..500).prop_map(Step::Noise),
        1 => (0..4_usize).prop_map(Step::Reload),
        1 => (0..3_usize).prop_map(Step::Promoted),
        2 => (0..3_usize, any::<bool>()).prop_map(|(node, crash)| Step::Started(node, crash)),
        4 => (0..4_usize, 0..4_usize).prop_map(|(what, node)| Step::Ask(what, node)),
        1 => any::<bool>().prop_map(Step::Open),
    ]
}

fn configuration(which: usize) -> ClusterSettings {
    hooked(match which {
        0 => {
            let mut limited = settings();
            limited.failover.max_lag_on_failover = Some(500);
            limited
        }
        1 => synchronous(1, NoVoter::Block),
        3 => super::observe::observed(),
        _ => synchronous(1, NoVoter::Degrade),
    })
}

fn take(lab: &mut Lab, step: &Step) {
    match step {
        Step::Pass(millis) => lab.pass(*millis),
        Step::Line(node, line) => lab.fake(NAMES[*node]).line = LINES[*line],
        Step::Cut(node) => lab.fake(NAMES[*node]).reachable_by_others = false,
        Step::Join(node) => lab.fake(NAMES[*node]).reachable_by_others = true,
        Step::Write(bytes) => {
            lab.commit(*bytes);
        }
        Step::Connecting(node, on) => lab.fake(NAMES[*node]).connecting = *on,
        Step::Treat(task, treat) => {
            // A probe is either answered or not; a journal is never written and then not.
            let treat = match TASKS[*task] {
                "probe" => Treat::Keep,
                "persist" if TREATS[*treat] == Treat::DoneUnknown => Treat::Fail,
                _ => TREATS[*treat],
            };
            lab.treat.insert(TASKS[*task], treat);
        }
        Step::Release => {
            lab.treat.clear();
            lab.release();
        }
        Step::Restart => lab.restart(),
        Step::Lost(node) => {
            lab.event(Event::ServerLost { node: NAMES[*node].into(), loss: ServerLoss::Broken });
        }
        Step::Adopt(node) => lab.adopt(NAMES[*node]),
        Step::Ask(what, node) => {
            let to = NAMES.get(*node).map(|name| (*name).into());
            lab.event(Event::Operator(match what {
                0 => OperatorCommand::Switchover { to },
                1 => OperatorCommand::Failover { to, allow_data_loss: *node % 2 == 0 },
                2 => OperatorCommand::Pause,
                _ => OperatorCommand::Resume,
            }));
        }
        Step::Open(open) => lab.open_transactions = *open,
        Step::Promoted(node) => {
            if !lab.fake(NAMES[*node]).primary {
                super::observe::promote(lab, NAMES[*node], &[]);
            }
            // Nobody promised anything of what somebody else promotes.
            lab.acknowledged = crate::Lsn(0);
        }
        Step::Started(node, true) => lab.fake(NAMES[*node]).recover(),
        Step::Started(node, false) => lab.fake(NAMES[*node]).start_anew(),
        Step::Noise(number) => {
            let result = Err(ProbeFailure::Refused("noise".to_owned()));
            lab.event(Event::Probed { id: ProbeId(number / 2), node: "b".into(), sent: lab.now, result });
            lab.event(Event::Done { id: ActionId(number + 100_000), outcome: Ok(ActionOutcome::Done) });
            lab.event(Event::Timer);
        }
        Step::Reload(which) => {
            let settings = Arc::new(configuration(*which));
            lab.settings = Arc::clone(&settings);
            lab.event(Event::Reconfigured { settings, policy: eager() });
        }
    }
}

/// The transitions that there are, one line for each phase; a call can pass through several phases at once.
const TRANSITIONS: [(&str, &[&str]); 11] = [
    ("discovering", &["steady", "paused", "suspect", "manual_needed"]),
    // After a broken connection everybody may have answered before suspicion is spoken out: then it is decided at once.
    ("steady", &["suspect", "fencing", "manual_needed", "draining", "paused", "discovering"]),
    ("suspect", &["steady", "paused", "fencing", "manual_needed", "discovering"]),
    ("draining", &["stopping", "steady", "suspect"]),
    ("stopping", &["freezing", "suspect"]),
    ("fencing", &["freezing", "steady", "paused", "suspect"]),
    ("freezing", &["promoting", "steady", "paused", "suspect", "manual_needed"]),
    ("promoting", &["verifying", "manual_needed"]),
    ("verifying", &["steady", "paused", "manual_needed"]),
    ("paused", &["suspect", "fencing", "discovering"]),
    ("manual_needed", &["steady", "paused", "suspect", "fencing", "verifying", "discovering"]),
];

fn check_transitions(lab: &Lab) {
    for (from, to) in &lab.transitions {
        let known = TRANSITIONS.iter().any(|(phase, next)| phase == from && next.contains(to));
        assert!(known, "{from} -> {to} is in no table");
    }
}

proptest! {
    #[test]
    fn no_order_of_events_breaks_a_rule(which in 0..4_usize, steps in prop::collection::vec(step(), 1..60)) {
        let mut lab = Lab::new(configuration(which));
        lab.start();
        for step in &steps {
            take(&mut lab, step);
        }
        check_transitions(&lab);
    }

    /// One node dies at any time, with actions that fail on the way; when all is well again, so is the cluster, or a
    /// person was called with a reason.
    #[test]
    fn after_faults_end_writes_open_or_a_person_is_called(
        which in prop::sample::select(vec![0_usize, 1, 3]),
        steps in prop::collection::vec(
            step().prop_filter("no person, no reload", |step| {
                !matches!(step, Step::Adopt(_) | Step::Reload(_) | Step::Promoted(_))
            }), 1..25),
    ) {
        let mut lab = Lab::steady(configuration(which));
        for step in &steps {
            take(&mut lab, step);
        }
        lab.treat.clear();
        lab.release();
        for name in NAMES {
            lab.revive(name);
            lab.fake(name).connecting = false;
        }
        lab.pass(90_000);
        check_transitions(&lab);
        // A strict cluster whose standbys diverged waits for somebody to rejoin them, and says so.
        let waits = which == 1 && lab.held().is_some_and(|reason| reason.contains("its first commit waits for"));
        // What a paused one waits for is a person.
        let settled = lab.primary().is_some() || lab.phase() == "manual_needed" || waits;
        prop_assert!(settled, "stuck in {}: {:?} {:#?}", lab.phase(), lab.held(), lab.controller);
    }
}
