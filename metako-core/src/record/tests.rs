//! The format, as it was when it was last looked at; and what is no record.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::cluster::tests::{eager, hooked, settings};
use crate::cluster::{
    Action, ActionFailure, ActionId, ActionOutcome, Controller, Decision, DecisionKind, Event, HookCall,
    HookKind, OperatorCommand, ProbeId, Promotion, ServerLoss, SettingsChange,
};
use crate::config::Secret;
use crate::plugin::{NodeReport, ProbeFailure, Receiver, ReportedRole, Sender, SettingValue};
use crate::{Epoch, Lsn, NodeName, SystemId, Tick, TimelineId};

const CONNINFO: &str = "host=localhost port=5001 user=repl password=lion";

fn report(role: ReportedRole) -> NodeReport {
    NodeReport {
        system_id: SystemId(7_000_000_000_000_000_001),
        version: 150_020,
        started_at: 1_700_000_000_000_000,
        wal_segment_size: 16 << 20,
        checkpointer: Some(4711),
        timeline: TimelineId(1),
        role,
        latency: Duration::from_micros(700),
    }
}

fn primary() -> NodeReport {
    let sender = Sender {
        application_name: "b".to_owned(),
        streaming: true,
        flushed: Some(Lsn(0x300_0060)),
        replayed: None,
        synchronous: true,
    };
    report(ReportedRole::Primary {
        flushed: Lsn(0x300_0060),
        senders: vec![sender],
        synchronous_standby_names: "ANY 1 (\"b\")".to_owned(),
        read_only: false,
    })
}

fn standby() -> NodeReport {
    let setting = |value: &str| SettingValue { value: value.to_owned(), changeable: true };
    report(ReportedRole::Standby {
        received: Some(Lsn(0x300_0060)),
        replayed: Some(Lsn(0x300_0060)),
        replay_lag: Some(Duration::ZERO),
        receiver: Some(Receiver {
            streaming: true,
            sender_host: "localhost".to_owned(),
            sender_port: 5001,
            timeline: TimelineId(1),
            last_message_age: Some(Duration::from_millis(20)),
            slot: Some("metako_b".to_owned()),
        }),
        receiver_process: true,
        startup_wait: Some("RecoveryWalStream".to_owned()),
        settings: BTreeMap::from([
            ("primary_conninfo".to_owned(), setting(CONNINFO)),
            ("restore_command".to_owned(), setting("fetch --key lion %f %p")),
        ]),
    })
}

fn events() -> Vec<Event> {
    let node = |name: &str| NodeName::from(name);
    let probed = |name: &str, result| Event::Probed {
        id: ProbeId(1),
        node: node(name),
        sent: Tick::from_millis(1),
        result,
    };
    let done = |outcome| Event::Done { id: ActionId(1), outcome };
    vec![
        Event::Timer,
        probed("a", Ok(primary())),
        probed("b", Ok(standby())),
        probed("c", Err(ProbeFailure::TimedOut(Duration::from_millis(500)))),
        probed("c", Err(ProbeFailure::Refused("connection refused".to_owned()))),
        Event::ServerLost { node: node("a"), loss: ServerLoss::Broken },
        done(Ok(ActionOutcome::Done)),
        done(Err(ActionFailure::Unknown("no answer".to_owned()))),
        Event::Reconfigured { settings: Arc::new(hooked(settings())), policy: eager() },
        Event::Operator(OperatorCommand::Switchover { to: Some(node("b")) }),
        Event::Operator(OperatorCommand::Pause),
        Event::Stopping,
    ]
}

fn actions(controller: &Controller) -> Vec<Action> {
    let (id, node) = (ActionId(1), NodeName::from("b"));
    let promotion = Promotion {
        node: node.clone(),
        epoch: Epoch(2),
        timeline: TimelineId(2),
        token: "metako_epoch_2".to_owned(),
    };
    let call = HookCall {
        kind: HookKind::Rejoin,
        node: node.clone(),
        upstream: None,
        epoch: Epoch(2),
        timeline: TimelineId(2),
        slot: Some("metako_b".to_owned()),
        conninfo: Some(Secret::new(CONNINFO)),
    };
    let change = SettingsChange {
        set: vec![
            ("primary_conninfo".to_owned(), Some(CONNINFO.to_owned())),
            ("primary_slot_name".to_owned(), None),
        ],
        resume_replay: true,
    };
    let decision = Decision {
        kind: DecisionKind::Suspected,
        node: Some(node.clone()),
        epoch: Epoch(1),
        reason: "connection refused".to_owned(),
    };
    let mut other = (*controller.view()).clone();
    other.epoch = Epoch(9);
    vec![
        Action::Probe { id: ProbeId(1), node: node.clone(), timeout: Duration::from_millis(500) },
        Action::Sever { id, node: node.clone(), epoch: Epoch(2) },
        Action::Repoint { id, node: node.clone(), upstream: NodeName::from("a"), change },
        Action::Promote { id, promotion },
        Action::Hook { id, call },
        Action::Record { decision },
        Action::Publish { view: controller.view() },
        Action::Publish { view: Arc::new(other) },
    ]
}

/// A line of each kind.
fn sample() -> String {
    let controller = Controller::new(Arc::new(hooked(settings())), eager(), None, Tick::from_millis(1));
    let (at, now) = (Duration::from_millis(1_700_000_000_123), Tick::from_millis(2));
    let mut scribe = Scribe::new("metako 0.0.0", 41);
    let mut text = String::new();
    let mut all = actions(&controller);
    let snapshot = Snapshot { at, now, cause: Cause::Start, lost: 3, controller: Box::new(controller) };
    scribe.begin(&snapshot, &mut text);
    for event in events() {
        scribe.step(&Step { at, now, event, actions: std::mem::take(&mut all) }, &mut text);
    }
    text
}

/// What is written down today is what was written down when somebody last looked: who reads records relies on it.
/// `METAKO_REWRITE=1` writes the file anew; a line that changed its meaning needs another [`VERSION`].
#[test]
fn the_format_is_the_one_that_is_known() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/record/golden.jsonl");
    let text = sample();
    if std::env::var_os("METAKO_REWRITE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap();
    for (number, (now, then)) in text.lines().zip(known.lines()).enumerate() {
        assert_eq!(now, then, "line {}", number + 1);
    }
    assert_eq!(text, known);
}

#[test]
fn every_line_can_be_read_and_says_the_same_again() {
    let text = sample();
    for (number, line) in text.lines().enumerate() {
        let read = Line::parse(line.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(read.seq, 41 + number as u64);
        assert_eq!((read.at.as_str(), read.now), ("2023-11-14T22:13:20.123Z", Tick::from_millis(2)));
        if let What::Begin(begin) = &read.what {
            assert_eq!((begin.cause, begin.lost), (Cause::Start, 3));
            assert_eq!(state(&begin.controller().unwrap()), begin.controller);
        }
        if let (What::In(told), Some(event)) = (&read.what, read.what.event().unwrap()) {
            assert_eq!(serde_json::to_value(&event).unwrap(), *told, "an event says the same again");
        }
    }
}

#[test]
fn no_secret_is_written_down() {
    let text = sample();
    assert!(!text.contains("lion"), "{text}");
    assert!(text.contains("password='***'"), "{text}");
    // The nodes' own password is `password` as well, and stands nowhere but as a keyword.
    for (at, _) in text.match_indices("password") {
        assert!(
            ["password='***'", "password\":\"***\"", "password\":null"]
                .iter()
                .any(|masked| text[at..].starts_with(masked)),
            "{}",
            &text[at..at + 40]
        );
    }
}

#[test]
fn what_is_no_line_is_refused_with_what_is_wrong() {
    for (text, problem) in [
        ("", "it is no JSON object: EOF while parsing a value at line 1 column 0"),
        ("[]", "it is no JSON object: invalid type: sequence, expected a map at line 1 column 0"),
        (r#"{"seq":1}"#, "`v` is missing"),
        (r#"{"v":2}"#, "it is of version 2 of the format, and only version 1 can be read here"),
        (r#"{"v":1,"at":"x","now":0,"in":"timer"}"#, "`seq` is missing"),
        (
            r#"{"v":1,"seq":-1,"at":"x","now":0,"in":"timer"}"#,
            "`seq` cannot be read: invalid value: integer `-1`, expected u64",
        ),
        (
            r#"{"v":1,"seq":1,"at":"x","now":0}"#,
            "it must have exactly one of `begin`, `in`, `out` and `why`, and has none",
        ),
        (
            r#"{"v":1,"seq":1,"at":"x","now":0,"in":"timer","out":{}}"#,
            "it must have exactly one of `begin`, `in`, `out` and `why`, and has `in`, `out`",
        ),
        (
            r#"{"v":1,"seq":1,"at":"x","now":0,"what":{}}"#,
            "it must have exactly one of `begin`, `in`, `out` and `why`, and has `what`",
        ),
        (
            r#"{"v":1,"seq":1,"at":"x","now":0,"begin":{"cause":"start"}}"#,
            "`begin` cannot be read: missing field `lost`",
        ),
    ] {
        assert_eq!(Line::parse(text.as_bytes()).unwrap_err().to_string(), problem, "{text}");
    }
    let unknown = Line::parse(br#"{"v":1,"seq":1,"at":"x","now":0,"in":"tomorrow"}"#).unwrap();
    let problem = unknown.what.event().err().map(|error| error.to_string()).unwrap_or_default();
    assert!(problem.starts_with("`in` cannot be read: unknown variant `tomorrow`"), "{problem}");
}

proptest! {
    #[test]
    fn any_bytes_are_a_line_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Line::parse(&bytes);
    }

    #[test]
    fn a_cut_or_broken_line_is_refused_or_read(line in 0..30_usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let text = sample();
        let line = text.lines().nth(line % text.lines().count()).unwrap().as_bytes();
        let at = at.index(line.len());
        prop_assert!(Line::parse(&line[..at]).is_err(), "a part of an object is no object");
        let mut broken = line.to_vec();
        broken[at] = byte;
        if let Ok(line) = Line::parse(&broken) {
            let _ = line.what.event();
            if let What::Begin(begin) = &line.what {
                let _ = begin.controller();
            }
        }
    }
}
