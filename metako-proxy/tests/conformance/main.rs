//! Conformance: the same messages go to PostgreSQL itself and to metako in each pool mode, and the answers are compared,
//! message by message. What is knowingly different stands in [`differences`], and may only become less.

mod cases;
mod client;
mod differences;
mod document;
mod grammar;
mod open_ends;
mod random;
#[path = "../running/mod.rs"]
mod running;
mod scram;
mod semantics;
mod send;
mod show;
mod stage;
mod tls;

use std::any::Any;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use cases::Case;
use client::{Halt, Script};
use stage::{Kind, LIMIT, Place, Stage, World};

/// How long is waited where something is expected to be missing.
const SHORT_LIMIT: Duration = Duration::from_secs(3);

/// Of more lines in a row that are equal, or that are not, the first are shown.
const SHOWN_LINES_MAX: usize = 40;

/// What passed in a case at one place.
struct Played {
    lines: Vec<String>,
    /// Why the case itself is wrong, if it is.
    broken: Option<String>,
}

#[test]
fn metako_answers_as_postgresql_does() {
    let world = World::shared();
    let chosen = std::env::var("METAKO_CASE").unwrap_or_default();
    let all = cases::all();
    let cases: Vec<&Case> =
        all.into_iter().filter(|case| case.since <= world.version && case.name.contains(&chosen)).collect();
    let played = std::thread::scope(|scope| {
        let (world, cases) = (&*world, &cases[..]);
        let play_all = move |place| cases.iter().map(|case| play(world, place, case)).collect::<Vec<_>>();
        let running = Place::ALL.map(|place| scope.spawn(move || play_all(place)));
        running.map(|thread| thread.join().expect("a case's panic is caught"))
    });
    let [oracle, session, transaction] = played;
    let mut report = String::new();
    for (index, case) in cases.iter().enumerate() {
        for (place, played) in [(Place::Session, &session[index]), (Place::Transaction, &transaction[index])]
        {
            judge(case, place, &oracle[index], played, world.version, &mut report);
        }
    }
    assert!(report.is_empty(), "{report}");
}

/// Plays a case at one place, with the database as it was at the beginning.
fn play(world: &World, place: Place, case: &Case) -> Played {
    world.reset(Kind::Case, place);
    let expected = place != Place::PostgreSql && differences::of(case.name, place, world.version).is_some();
    let limit = if expected { SHORT_LIMIT } else { LIMIT };
    let script = Script::default();
    let stage = Stage::new(world, Kind::Case, place, limit, &script);
    let broken = match catch_unwind(AssertUnwindSafe(|| (case.run)(&stage))) {
        Ok(()) => None,
        Err(panic) if panic.is::<Halt>() => {
            (place == Place::PostgreSql).then(|| "PostgreSQL halts it".to_owned())
        }
        Err(panic) => Some(words(&*panic)),
    };
    let neutral = |line: &String| line.replace(&Kind::Case.database(place), "conform_x");
    let mut lines: Vec<String> = script.borrow().iter().map(neutral).collect();
    if let Some(why) = &broken {
        lines.push(format!("the case fails: {why}"));
    }
    Played { lines, broken }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Compares what passed with what has to pass, and adds to the report what is not as expected.
fn judge(case: &Case, place: Place, oracle: &Played, played: &Played, version: u32, report: &mut String) {
    let name = format!("{} ({})", case.name, place.name());
    if let Some(why) = &oracle.broken {
        // Once is enough.
        if place != Place::MODES[0] {
            return;
        }
        let _ = writeln!(report, "\n=== {name}: the case is wrong: {why}\n{}", oracle.lines.join("\n"));
        return;
    }
    assert!(!oracle.lines.is_empty(), "{name} writes nothing down");
    let same = oracle.lines == played.lines;
    match differences::of(case.name, place, version) {
        None if !same => {
            let _ = writeln!(report, "\n=== {name} differs\n{}", compared(&oracle.lines, &played.lines));
        }
        Some(why) if same => {
            let _ = writeln!(report, "\n=== {name} is as in PostgreSQL now: take it from the list ({why})");
        }
        None | Some(_) => {}
    }
}

/// Both scripts: what is equal in the middle, what only one has marked.
fn compared(oracle: &[String], other: &[String]) -> String {
    let same_head = oracle.iter().zip(other).take_while(|(a, b)| a == b).count();
    let rest = oracle.len().min(other.len()) - same_head;
    let same_tail =
        oracle.iter().rev().zip(other.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let mut text = String::new();
    let mut lines = |mark: &str, lines: &[String]| {
        for line in lines.iter().take(SHOWN_LINES_MAX) {
            let _ = writeln!(text, "{mark}{line}");
        }
        if lines.len() > SHOWN_LINES_MAX {
            let _ = writeln!(text, "{mark}... {} lines", lines.len());
        }
    };
    lines("              ", &oracle[..same_head]);
    lines("  PostgreSQL: ", &oracle[same_head..oracle.len() - same_tail]);
    lines("      metako: ", &other[same_head..other.len() - same_tail]);
    lines("              ", &oracle[oracle.len() - same_tail..]);
    text
}
