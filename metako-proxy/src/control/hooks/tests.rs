use std::path::Path;
use std::sync::Arc;

use metako_core::config::{self, SecretSource};
use metako_core::{Epoch, NodeName, TimelineId};

use super::*;
use crate::env::TokioEnv;

/// Nothing is outside of the file.
struct Nothing;

impl SecretSource for Nothing {
    fn env(&self, _: &str) -> Option<String> {
        None
    }

    fn file(&self, _: &Path) -> std::io::Result<String> {
        Err(std::io::Error::other("not here"))
    }
}

/// Two nodes, and both hooks with that command.
fn settings(command: &[String], limit: &str) -> Arc<ClusterSettings> {
    let text = format!(
        "nodes:\n  \
         - {{ name: a, host: db-a, port: 5433, pgdata: '/data/a b', username: u, password: p, database: d }}\n  \
         - {{ name: b, host: db-b, username: u, password: p, database: d, replication: {{ host: b.internal, port: 6000 }} }}\n\
         hooks:\n  stop: {{ command: {command:?}, timeout: {limit} }}\n  rejoin: {{ command: {command:?} }}\n"
    );
    let loaded = config::load("t.yaml", &text, &Nothing).unwrap_or_else(|problems| panic!("{problems}"));
    loaded.config.cluster
}

fn call(kind: HookKind) -> HookCall {
    let rejoin = kind == HookKind::Rejoin;
    HookCall {
        kind,
        node: NodeName::from("a"),
        upstream: rejoin.then(|| NodeName::from("b")),
        epoch: Epoch(7),
        timeline: TimelineId(3),
        slot: rejoin.then(|| "metako_a".to_owned()),
        conninfo: rejoin.then(|| Secret::new(r"host='b' password='it\'s \\ lion' user='x'")),
    }
}

/// Runs a hook that is a script.
async fn run(kind: HookKind, script: &str, limit: &str) -> Result<ActionOutcome, ActionFailure> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hook");
    std::fs::write(&path, script).unwrap();
    let command = ["sh".to_owned(), path.display().to_string(), "own argument".to_owned()];
    Run::new(&settings(&command, limit), call(kind)).unwrap().run(TokioEnv::new()).await
}

fn failed(outcome: Result<ActionOutcome, ActionFailure>) -> String {
    match outcome {
        Err(ActionFailure::Failed(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn unknown(outcome: Result<ActionOutcome, ActionFailure>) -> String {
    match outcome {
        Err(ActionFailure::Unknown(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// Complains where what it is handed is not `$expected`.
const TELLS_ALL: &str = r#"
found=$(printf '%s|' "$@" "$METAKO_NODE" "$METAKO_HOST" "$METAKO_PORT" "$METAKO_PGDATA" "$METAKO_UPSTREAM_HOST" \
    "$METAKO_UPSTREAM_PORT" "$METAKO_SLOT" "$METAKO_EPOCH" "$METAKO_TIMELINE" "${#METAKO_PRIMARY_CONNINFO}")
[ "$found" = "$expected" ] || { echo "$found"; exit 1; }
"#;

#[tokio::test]
async fn a_hook_is_told_what_it_needs() {
    let expected = "own argument|rejoin|a|b|a|db-a|5433|/data/a b|b.internal|6000|metako_a|7|3|42|";
    let script = format!("expected='{expected}'{TELLS_ALL}");
    assert_eq!(run(HookKind::Rejoin, &script, "1m").await, Ok(ActionOutcome::Done));
    let expected = "own argument|stop|a||a|db-a|5433|/data/a b||||7|3|0|";
    let script = format!("expected='{expected}'{TELLS_ALL}");
    assert_eq!(run(HookKind::Stop, &script, "1m").await, Ok(ActionOutcome::Done));
}

#[tokio::test]
async fn every_ending_has_its_answer() {
    let later = failed(run(HookKind::Stop, "echo busy; exit 75", "1m").await);
    assert_eq!(later, "the stop hook of a asks to try again later, and said: busy");
    let ended = unknown(run(HookKind::Stop, "echo one; echo; echo two >&2; exit 3", "1m").await);
    assert_eq!(ended, "the stop hook of a ended with status 3, and said: one / two");
    let killed = unknown(run(HookKind::Stop, "kill -9 $$", "1m").await);
    assert_eq!(killed, "the stop hook of a was ended by signal 9, without a word");
    let late = unknown(run(HookKind::Stop, "echo slow; sleep 600", "2s").await);
    assert_eq!(late, "the stop hook of a was ended after 2s, and said: slow");
    let settings = settings(&["/no/such/hook".to_owned()], "1m");
    let absent = Run::new(&settings, call(HookKind::Stop)).unwrap().run(TokioEnv::new()).await;
    let absent = failed(absent);
    assert!(absent.starts_with("the stop hook of a cannot be started: "), "{absent}");
}

#[test]
fn what_is_not_in_the_configuration_fails() {
    let mut settings = (*settings(&["true".to_owned()], "1m")).clone();
    let stranger = HookCall { node: NodeName::from("z"), ..call(HookKind::Stop) };
    let text = failed(Run::new(&settings, stranger).map(|_| ActionOutcome::Done));
    assert_eq!(text, "z is no longer in the configuration");
    settings.hooks.rejoin = None;
    let text = failed(Run::new(&settings, call(HookKind::Rejoin)).map(|_| ActionOutcome::Done));
    assert_eq!(text, "there is no rejoin hook in the configuration (hooks.rejoin)");
}

#[tokio::test]
async fn what_is_told_is_short_and_holds_no_secret() {
    let script = "set -x; : \"$METAKO_PRIMARY_CONNINFO\"; echo \"it's \\\\ lion\"; exit 1";
    let text = unknown(run(HookKind::Rejoin, script, "1m").await);
    assert!(!text.contains("lion") && text.contains("(secret)"), "{text}");
    let script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); printf 'word%s\\t' $i; done; exit 1";
    let text = unknown(run(HookKind::Stop, script, "1m").await);
    assert!(text.len() < 700 && text.ends_with("word299 word300"), "{text}");
    let run = format!("{:?}", Run::new(&settings(&["true".to_owned()], "1m"), call(HookKind::Rejoin)));
    assert!(!run.contains("lion"), "{run}");
}
