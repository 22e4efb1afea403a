use metako_core::plugin::{Class, Classification, QueryClassifier, QueryClassifierSpec, TransactionVerb};
use proptest::prelude::*;

use super::KeywordSpec;
use super::catalog::Catalog;

fn keyword() -> Box<dyn QueryClassifier> {
    KeywordSpec::default().build().expect("has no options that could be wrong")
}

fn label(verdict: Classification) -> &'static str {
    match (verdict.class, verdict.transaction) {
        (Class::Empty, None) => "empty",
        (Class::Read, None) => "read",
        (Class::Write, None) => "write",
        (Class::Unknown, None) => "unknown",
        (Class::SessionChanging, None) => "session",
        (Class::TransactionControl, None) => "several",
        (Class::TransactionControl, Some(TransactionVerb::Begin)) => "begin",
        (Class::TransactionControl, Some(TransactionVerb::Commit)) => "commit",
        (Class::TransactionControl, Some(TransactionVerb::Rollback)) => "rollback",
        (Class::TransactionControl, Some(TransactionVerb::Inside)) => "inside",
        (_, Some(_)) => "a verb where none belongs",
    }
}

/// The labelled statements.
fn statements() -> Vec<(&'static str, String)> {
    include_str!("statements.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (label, text) = line.split_once(' ').expect("a class and a statement");
            (label, text.trim_start().replace('⏎', "\n"))
        })
        .collect()
}

#[test]
fn each_statement_has_its_class() {
    let classifier = keyword();
    let wrong: Vec<_> = statements()
        .into_iter()
        .filter_map(|(expected, sql)| {
            let verdict = classifier.classify(sql.as_bytes());
            (label(verdict) != expected).then(|| format!("{sql:?} is {expected}, not {verdict:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_lists_hold_each_name_once_and_in_lower_case() {
    let catalog = Catalog::new();
    for list in [catalog.functions(), catalog.relations(), catalog.traceless()] {
        for pair in list.windows(2) {
            assert!(pair[0] < pair[1], "{} stands twice", pair[0]);
        }
        for name in list {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
            assert!(name.bytes().all(plain), "{name}");
        }
    }
    for dangerous in ["nextval", "set_config", "txid_current", "pg_notify", "dblink_exec", "query_to_xml"] {
        assert!(!catalog.knows_function(dangerous), "{dangerous}");
    }
}

#[test]
fn the_reason_and_its_place_name_what_decided() {
    let classifier = keyword();
    for (sql, place, reason) in [
        ("SELECT a, f(b) FROM t", "f", "calls a function that is not known to only read"),
        ("SELECT * FROM t FOR UPDATE", "UPDATE", "locks rows"),
        ("SELECT 1; DELETE FROM t", "DELETE", "modifies data"),
        ("SELECT 1 FROM pg_locks", "pg_locks", "what it shows may differ from node to node"),
        (
            "SELECT 1, set_config('a', 'b', false)",
            "set_config",
            "set_config changes a setting of the session",
        ),
    ] {
        let verdict = classifier.classify(sql.as_bytes());
        assert_eq!((&sql[verdict.span.start..verdict.span.end], verdict.reason), (place, reason), "{sql}");
    }
}

#[test]
fn bytes_of_other_encodings_are_told_or_doubted() {
    let classifier = keyword();
    let class = |sql: &[u8]| classifier.classify(sql).class;
    // LATIN1: no byte of a name can be taken for punctuation.
    assert_eq!(class(b"SELECT gr\xf6\xdfe, 'gr\xfc\xdfe' FROM t"), Class::Read);
    // SJIS: the second byte of a character is a vertical bar, so the name that is called is not `count`.
    assert_eq!(class(b"SELECT \x83\x7ccount(1)"), Class::Unknown);
    // SJIS: the second byte of a character is a backslash that escapes nothing, so the string ends.
    assert_eq!(class(b"SELECT E'\x83\\', nextval('s'), E'"), Class::Unknown);
    assert_eq!(class(b"SELECT 1\0; DELETE FROM t"), Class::Unknown);
}

/// White space that changes nothing.
fn blank() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop_oneof![
            Just(" "),
            Just("\t"),
            Just("\n"),
            Just("/* x */"),
            Just("/*/*;*/'*/"),
            Just("--; delete from t '\n")
        ],
        1..4,
    )
    .prop_map(|parts| parts.concat())
}

/// The statement with each space outside of quotes and comments replaced, and letters outside of them in another case.
fn disguised(sql: &str, blanks: &[String], upper: bool) -> String {
    let mut blanks = blanks.iter().cycle();
    sql.chars()
        .map(|char| match char {
            ' ' => blanks.next().cloned().unwrap_or_default(),
            _ if upper => char.to_ascii_uppercase().to_string(),
            _ => char.to_ascii_lowercase().to_string(),
        })
        .collect()
}

/// Statements without quotes and comments: there every space separates tokens, and every letter may change its case.
fn unquoted() -> Vec<String> {
    statements()
        .into_iter()
        .map(|(_, sql)| sql)
        .filter(|sql| !sql.contains(['\'', '"', '\\', '\n']) && !sql.contains("--") && !sql.contains("/*"))
        .filter(|sql| {
            !sql.contains("$a") && !sql.contains("$$") && !sql.contains("$t") && !sql.contains("$b")
        })
        .collect()
}

#[test]
fn enough_statements_are_labelled_and_free_of_quotes() {
    assert!(statements().len() >= 300, "{}", statements().len());
    assert!(unquoted().len() >= 150, "{}", unquoted().len());
}

proptest! {
    #[test]
    fn comments_white_space_and_case_change_nothing(
        sql in prop::sample::select(unquoted()),
        blanks in prop::collection::vec(blank(), 1..8),
        upper: bool,
    ) {
        let classifier = keyword();
        let disguised = disguised(&sql, &blanks, upper);
        prop_assert_eq!(
            label(classifier.classify(disguised.as_bytes())),
            label(classifier.classify(sql.as_bytes())),
            "{}", disguised
        );
    }

    #[test]
    fn nothing_before_it_makes_an_insert_a_read(
        before in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            "[-/*'\"$;()aEeUu&\\\\ \n]{0,12}".prop_map(String::into_bytes),
            prop::sample::select(statements()).prop_map(|(_, sql)| sql.into_bytes()),
        ]
    ) {
        // A line break first: a comment to the end of the line would hide the insert, from PostgreSQL too.
        let sql = [before.as_slice(), b"\n; INSERT INTO t VALUES (1)"].concat();
        let verdict = keyword().classify(&sql);
        prop_assert!(verdict.class >= Class::Write, "{verdict:?}");
    }

    #[test]
    fn any_bytes_get_an_answer(sql in prop::collection::vec(any::<u8>(), 0..200)) {
        let verdict = keyword().classify(&sql);
        prop_assert!(verdict.span.start <= verdict.span.end && verdict.span.end <= sql.len());
        prop_assert_eq!(verdict, keyword().classify(&sql));
    }

    #[test]
    fn likely_bytes_get_an_answer(sql in "([-/*'\"$;:.,()\\[\\]&\\\\ \n]|[eEuUxX]'|select|with|as|for|update|into|set_config|true|over|count|pg_temp|explain|é){0,30}") {
        let verdict = keyword().classify(sql.as_bytes());
        prop_assert!(verdict.span.start <= verdict.span.end && verdict.span.end <= sql.len());
        prop_assert!(sql.is_char_boundary(verdict.span.start) && sql.is_char_boundary(verdict.span.end));
    }

    #[test]
    fn a_stronger_statement_is_never_weakened(
        (first, second) in (prop::sample::select(statements()), prop::sample::select(statements()))
    ) {
        let classifier = keyword();
        let alone = classifier.classify(second.1.as_bytes()).class;
        let both = classifier.classify(format!("{}\n;{}", first.1, second.1).as_bytes()).class;
        let hidden = classifier.classify(first.1.as_bytes()).class >= Class::Unknown;
        prop_assert!(both >= alone || hidden, "{both:?}");
    }
}

#[test]
fn what_a_statement_may_leave_behind_is_told() {
    use metako_core::plugin::Effects;
    let classifier = keyword();
    let (none, holds, opaque) = (Effects::NONE, Effects::HOLDS, Effects::OPAQUE);
    for (sql, effects) in [
        ("SELECT 1", none),
        ("SELECT count(*), lower(a) FROM t WHERE b IN (1, 2)", none),
        ("SELECT nextval('s'), pg_catalog.pg_notify('a', 'b')", none),
        (
            "INSERT INTO t (a, b) VALUES (1, (2)) ON CONFLICT (a) DO UPDATE SET (a, b) = (1, 2) RETURNING (a)",
            none,
        ),
        ("INSERT INTO s.t (a) SELECT max(a) FROM x", none),
        ("INSERT INTO \"s\".\"t\"(a) VALUES (now())", none),
        ("UPDATE t SET a = coalesce(b, 1) WHERE c = ANY (ARRAY[1])", none),
        ("DELETE FROM t USING x WHERE t.a = x.a", none),
        ("COPY t (a, b) FROM STDIN", none),
        ("BEGIN; INSERT INTO t VALUES (1); COMMIT", none),
        ("SET a.b = 'c'", none),
        ("EXECUTE s (1, 2)", none),
        ("SELECT set_config('a.b', 'c', true)", none),
        ("SELECT set_config('a.b', 'c', false)", opaque),
        ("INSERT INTO t (a) VALUES (f(1))", opaque),
        ("INSERT INTO t (a) SELECT s.lower('x')", opaque),
        ("EXECUTE s (f(2))", opaque),
        ("COPY (SELECT f()) TO STDOUT", opaque),
        ("EXPLAIN ANALYZE SELECT f()", opaque),
        ("SELECT 1; CALL p()", opaque),
        ("DO $$ $$", opaque),
        ("CREATE TABLE t AS SELECT f()", opaque),
        ("CREATE TEMP TABLE t (a int)", opaque.and(holds)),
        ("CREATE TEMP TABLE t AS SELECT 1", holds),
        ("SELECT 1 INTO TEMP t", holds),
        ("SELECT pg_advisory_lock(1)", holds),
        ("SELECT pg_advisory_xact_lock(1)", none),
        ("LISTEN a", holds),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", holds),
        ("DECLARE c CURSOR FOR SELECT 1", none),
        ("DROP TABLE t", Effects::RELEASES),
        ("drop database if exists d", Effects::DATABASES),
        ("CREATE DATABASE d TEMPLATE t", Effects::DATABASES),
        ("ALTER DATABASE d RENAME TO e", Effects::DATABASES),
        ("SELECT pg_advisory_unlock_all()", Effects::RELEASES),
        ("SELECT currval('s')", Effects::SEQUENCES),
        ("LOAD 'x'", Effects::STAYS),
        ("SELECT setseed(0.5)", Effects::STAYS),
        ("SELECT 'x", opaque),
    ] {
        assert_eq!(classifier.classify(sql.as_bytes()).effects, effects, "{sql}");
    }
}
