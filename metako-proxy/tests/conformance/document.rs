//! docs/compatibility.md names every case and every difference.

use std::fmt::Write as _;
use std::path::Path;

use crate::cases::{self, Case};
use crate::differences;
use crate::stage::Place;

const BEGIN: &str =
    "<!-- The list below is made by the conformance suite; METAKO_WRITE_DOCS=1 writes it anew. -->\n";

#[test]
fn every_difference_is_of_a_case() {
    let all = cases::all();
    for listed in differences::cases() {
        assert!(all.iter().any(|case| case.name == listed), "no case `{listed}`");
    }
    for (index, case) in all.iter().enumerate() {
        assert!(all[..index].iter().all(|other| other.name != case.name), "two cases `{}`", case.name);
    }
}

#[test]
fn the_documentation_names_every_case() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility.md");
    let text = std::fs::read_to_string(&path).expect("docs/compatibility.md");
    let (own, listed) = text.split_once(BEGIN).expect("the mark of the list");
    if std::env::var_os("METAKO_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{own}{BEGIN}{}", list())).expect("it is written");
    } else {
        assert!(
            listed == list(),
            "the list in docs/compatibility.md is old: METAKO_WRITE_DOCS=1 writes it anew"
        );
    }
}

fn list() -> String {
    let mut text = String::new();
    for group in cases::GROUPS {
        let _ = writeln!(text, "\n### {}\n", group.heading);
        let _ = writeln!(text, "| case | session | transaction |\n|---|---|---|");
        for case in group.cases {
            let since = if case.since > 0 {
                format!(" (PostgreSQL {} and newer)", case.since)
            } else {
                String::new()
            };
            let name = case.name.replace('_', " ");
            let (session, transaction) = (result(case, Place::Session), result(case, Place::Transaction));
            let _ = writeln!(text, "| {name}{since} | {session} | {transaction} |");
        }
    }
    text.push_str(&crate::semantics::table());
    text
}

fn result(case: &Case, place: Place) -> String {
    match differences::in_any_version(case.name, place) {
        None => "same".to_owned(),
        Some(why) => format!("differs: {why}"),
    }
}
