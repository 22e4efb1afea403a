//! Prepared statements, whatever server the client gets.

use super::*;

#[test]
fn a_named_statement_is_parsed_on_each_server_that_lacks_it_unseen() {
    let mut bench = Bench::new();
    let prepare = [&parse("s", "select 1")[..], SYNC].concat();
    bench.attach(false);
    bench.forward(&prepare);
    assert_eq!(bench.server_got(), "Pmetako_1 Dmetako_1 S");
    bench.answer(&[ONE, BARE, &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "1 ZI");
    bench.session.release();
    let run = [&bind("s")[..], EXECUTE, SYNC].concat();
    bench.attach(false);
    bench.forward(&run);
    assert_eq!(bench.server_got(), "Bmetako_1 E S");
    bench.answer(&[TWO, ROW, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "2 D C:SELECT 1 ZI");
    bench.session.release();
    bench.server = Server::new(&Arc::default());
    bench.attach(false);
    bench.forward(&run);
    // It has no columns that could have changed.
    assert_eq!(bench.server_got(), "Pmetako_1 Bmetako_1 E S");
    bench.answer(&[ONE, TWO, ROW, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "2 D C:SELECT 1 ZI");
    assert!(bench.session.releasable(&bench.server));
}

#[test]
fn what_the_server_has_is_answered_in_its_turn() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[&parse("a", "select 1")[..], SYNC].concat());
    bench.answer(&[ONE, BARE, &ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    bench.server_got();
    bench.forward(&[&bind("a")[..], &parse("b", "select 1"), &close("a"), &bind("b"), SYNC].concat());
    assert_eq!(bench.server_got(), "Bmetako_1 Pmetako_2 Dmetako_2 Bmetako_2 S");
    bench.answer(TWO);
    assert_eq!(bench.client_got(), "2");
    bench.answer(ONE);
    assert_eq!(bench.client_got(), "1");
    bench.answer(BARE);
    assert_eq!(bench.client_got(), "3");
    bench.answer(&[TWO, &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "2 ZI");
    // Both are one.
    bench.forward(&[&bind("b")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Bmetako_1 S");
    bench.answer(&[TWO, &ready(TransactionStatus::Idle)].concat());
    bench.forward(&[&parse("c", "select 2")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Cmetako_2 Pmetako_3 Dmetako_3 S");
    bench.answer(&[THREE, ONE, BARE, &ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    bench.session.release();
    bench.attach(false);
    bench.server_got();
    bench.forward(&[&bind("a")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Ba S");
}

#[test]
fn a_parse_that_was_skipped_leaves_no_name_and_what_is_behind_waits_for_that() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[&bind("nobody")[..], &parse("s", "select 1"), SYNC].concat());
    assert_eq!(bench.forward(&[&bind("s")[..], SYNC].concat()), 0);
    assert_eq!(bench.server_got(), "Bnobody Pmetako_1 Dmetako_1 S");
    bench.answer(&[error("26000", "no"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "E26000 ZI");
    bench.forward(&[&bind("s")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Bs S");
}

#[test]
fn a_name_that_is_taken_is_refused_by_the_server_in_the_clients_words() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[&parse("s", "select 1")[..], SYNC].concat());
    bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    bench.server_got();
    bench.forward(&[&parse("s", "select 2")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Pmetako_1 S");
    let refused = error("42P05", "prepared statement \"metako_1\" already exists");
    bench.answer(&[refused, ready(TransactionStatus::Idle)].concat());
    let got = std::mem::take(&mut bench.to_client);
    let message = read::error(frames(&got)[0].1).message.to_vec();
    assert_eq!(String::from_utf8_lossy(&message), "prepared statement \"s\" already exists");
}

#[test]
fn the_unnamed_statement_moves_with_its_client_and_is_never_anothers() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[&parse("", "select 1")[..], SYNC].concat());
    bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    bench.session.release();
    bench.server_got();
    bench.attach(false);
    bench.forward(&[&bind("")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "P B S");
    bench.answer(&[ONE, TWO, &ready(TransactionStatus::Idle)].concat());
    bench.session.release();
    let mut other = Bench::new();
    std::mem::swap(&mut other.server, &mut bench.server);
    other.attach(false);
    other.forward(&[&bind("")[..], SYNC].concat());
    assert_eq!(other.server_got(), "Bmetako_none S");
}

#[test]
fn closing_statements_and_a_lone_sync_need_no_server() {
    let mut bench = Bench::new();
    let input = [&close("x")[..], SYNC].concat();
    assert_eq!(bench.plan(&input), Plan::Consumed(input.len()));
    assert_eq!(bench.plan(SYNC), Plan::Consumed(5));
    assert_eq!(bench.client_got(), "3 ZI ZI");
    assert_eq!(bench.plan(b"d\0\0\0\x05x"), Plan::Consumed(6));
    assert_eq!(bench.client_got(), "");
}

#[test]
fn names_are_one_whether_made_in_sql_or_by_the_protocol() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("PREPARE s (int) AS select $1"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("PREPARE metako_1 (int) AS select $1"));
    bench.answer(&[complete("PREPARE"), ready(TransactionStatus::Idle)].concat());
    bench.server_got();
    bench.forward(&[&bind("s")[..], EXECUTE, SYNC].concat());
    assert_eq!(bench.server_got(), "Bmetako_1 E S");
    bench.answer(&[TWO, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    // On another server it is made first.
    bench.session.release();
    bench.server = Server::new(&Arc::default());
    bench.client_got();
    bench.attach(false);
    bench.forward(&query("EXPLAIN EXECUTE s(1)"));
    let sent = String::from_utf8_lossy(&bench.to_server).into_owned();
    assert!(sent.contains("PREPARE metako_1 (int) AS select $1"), "{sent}");
    assert!(sent.contains("EXPLAIN EXECUTE metako_1(1)"), "{sent}");
    assert_eq!(bench.server_got(), "Cmetako_maker Pmetako_maker Bmetako_maker E Cmetako_maker S Q");
    let made = [THREE, ONE, TWO, &complete("PREPARE"), THREE, &ready(TransactionStatus::Idle)].concat();
    bench.answer(&made);
    assert_eq!(bench.client_got(), "");
    bench.answer(&[ROW, &complete("EXPLAIN"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "D C:EXPLAIN ZI");
    // A name is taken, and gone, whoever made it.
    bench.forward(&query("DEALLOCATE s"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("DEALLOCATE metako_gone_0"));
    assert_eq!(bench.server_got(), "Cmetako_gone_0 Pmetako_gone_0 S Q");
    let done = [THREE, ONE, &ready(TransactionStatus::Idle), &complete("DEALLOCATE")].concat();
    bench.answer(&[done, ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "C:DEALLOCATE ZI");
    bench.forward(&query("EXECUTE s"));
    assert_eq!(bench.server_got(), "Q");
    let unknown = error("26000", "prepared statement \"s\" does not exist");
    bench.answer(&[unknown, ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    // What nobody else has is closed there.
    bench.forward(&[&parse("s", "select 2")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Cmetako_1 Pmetako_2 Dmetako_2 S");
    bench.answer(&[THREE, ONE, BARE, &ready(TransactionStatus::Idle)].concat());
    bench.forward(&query("PREPARE s AS select 3"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("PREPARE metako_2 AS select 3"));
    let taken = error("42P05", "prepared statement \"metako_2\" already exists");
    bench.client_got();
    bench.answer(&[taken, ready(TransactionStatus::Idle)].concat());
    assert!(String::from_utf8_lossy(&bench.to_client).contains("statement \"s\" already exists"));
}

#[test]
fn a_statement_that_cannot_be_made_any_more_fails_for_that_reason() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("PREPARE s AS select a from t"));
    bench.answer(&[complete("PREPARE"), ready(TransactionStatus::Idle)].concat());
    bench.session.release();
    bench.server = Server::new(&Arc::default());
    bench.attach(false);
    bench.forward(&query("EXECUTE s"));
    bench.client_got();
    let gone = error("42P01", "relation \"t\" does not exist");
    bench.answer(&[THREE, ONE, TWO, &gone, &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "");
    let missing = error("26000", "prepared statement \"metako_1\" does not exist");
    bench.answer(&[missing, ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "E42P01 ZI");
}

#[test]
fn a_name_whose_change_was_not_answered_is_waited_for() {
    let mut bench = Bench::new();
    bench.attach(false);
    let first = [&parse("s", "insert nonsense")[..], SYNC].concat();
    let second = [&bind("s")[..], EXECUTE, SYNC].concat();
    assert_eq!(bench.forward(&[&first[..], &second].concat()), first.len());
    assert!(!bench.session.wants_input(&bench.server));
    bench.answer(&[error("42601", "syntax"), ready(TransactionStatus::Idle)].concat());
    assert!(bench.session.wants_input(&bench.server));
    bench.server_got();
    assert_eq!(bench.forward(&second), second.len());
    assert_eq!(bench.server_got(), "Bs E S");
}

#[test]
fn an_unnamed_statement_that_is_not_parsed_yet_is_waited_for() {
    let mut bench = Bench::new();
    bench.attach(false);
    let (good, bad) =
        ([&parse("", "select 1")[..], SYNC].concat(), [&parse("", "syntax")[..], SYNC].concat());
    let used = [&bind("")[..], SYNC].concat();
    // A Parse need not wait for the one before; what uses it does.
    assert_eq!(bench.forward(&[&good[..], &bad, &used].concat()), good.len() + bad.len());
    bench.answer(&[ONE, &ready(TransactionStatus::Idle), &error("42601", "syntax")].concat());
    bench.answer(&ready(TransactionStatus::Idle));
    bench.server_got();
    bench.forward(&used);
    assert_eq!(bench.server_got(), "Bmetako_none S");
}

/// A client of another session that has the same servers.
fn another(bench: &mut Bench) {
    bench.session.release();
    bench.session = Session::new(1 << 30);
    bench.attach(false);
}

fn prepare(bench: &mut Bench, name: &str, sql: &str, description: &[u8]) -> String {
    bench.forward(&[&parse(name, sql)[..], SYNC].concat());
    let sent = bench.server_got();
    let closed = vec![THREE; sent.matches('C').count()].concat();
    bench.answer(&[&closed, ONE, description, &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "1 ZI");
    sent
}

#[test]
fn what_is_shared_is_what_was_described_the_same() {
    let mut bench = Bench::new();
    bench.attach(false);
    assert_eq!(prepare(&mut bench, "s", "select 1", &described(23, "a")), "Pmetako_1 Dmetako_1 S");
    another(&mut bench);
    // The table was altered.
    assert_eq!(prepare(&mut bench, "s", "select 1", &described(23, "b")), "Pmetako_2 Dmetako_2 S");
    let used = [&bind("s")[..], SYNC].concat();
    bench.forward(&used);
    assert_eq!(bench.server_got(), "Bmetako_2 S");
    bench.answer(&[TWO, &ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    another(&mut bench);
    assert_eq!(prepare(&mut bench, "s", "select 1", &described(23, "b")), "Pmetako_3 Dmetako_3 S");
    another(&mut bench);
    assert_eq!(prepare(&mut bench, "s", "select 1", &described(23, "b")), "Pmetako_4 Dmetako_4 S");
    bench.forward(&used);
    assert_eq!(bench.server_got(), "Bmetako_3 S");
}

#[test]
fn an_error_about_what_is_not_yet_shared_names_it_as_the_client_does() {
    let mut bench = Bench::new();
    bench.attach(false);
    prepare(&mut bench, "s", "select 1", BARE);
    another(&mut bench);
    bench.forward(&[&parse("mine", "select 1")[..], &bind("mine"), SYNC].concat());
    let wrong = error("08P01", "bind message supplies 0 parameters, but \"metako_2\" requires 1");
    bench.answer(&[ONE, BARE, &wrong, &ready(TransactionStatus::Idle)].concat());
    assert!(String::from_utf8_lossy(&bench.to_client).contains("but \"mine\" requires 1"));
}

#[test]
fn a_statement_made_again_has_its_types_and_its_columns_or_is_refused() {
    let used = [&bind("s")[..], EXECUTE, SYNC].concat();
    for (now, sent, got) in [("a", "Bmetako_1 E S", "2 ZI"), ("b", "Bmetako_none E S", "E0A000 ZI")] {
        let mut bench = Bench::new();
        bench.attach(false);
        prepare(&mut bench, "s", "select $1", &described(23, "a"));
        bench.session.release();
        bench.server = Server::new(&Arc::default());
        bench.attach(false);
        assert_eq!(bench.forward(&used), 0);
        assert!(!bench.session.wants_input(&bench.server) && !bench.session.releasable(&bench.server));
        let made = b"metako_1\0select $1\0\0\x01\0\0\0\x17";
        assert!(bench.to_server.windows(made.len()).any(|part| part == made));
        assert_eq!(bench.server_got(), "Pmetako_1 Dmetako_1 H");
        bench.answer(&[ONE, &described(23, now)].concat());
        assert!(bench.session.wants_input(&bench.server));
        assert_eq!(bench.forward(&used), used.len());
        assert_eq!(bench.server_got(), sent);
        let refused = error("26000", "prepared statement \"metako_none\" does not exist");
        let answer = if now == "a" { TWO.to_vec() } else { refused };
        bench.answer(&[answer, ready(TransactionStatus::Idle)].concat());
        assert_eq!(bench.client_got(), got);
        // What has changed may change back.
        bench.forward(&used);
        assert_eq!(bench.server_got(), if now == "a" { sent } else { "Cmetako_1 Pmetako_1 Dmetako_1 H" });
    }
}

#[test]
fn a_changed_statement_is_described_up_to_its_columns() {
    let mut bench = Bench::new();
    bench.attach(false);
    prepare(&mut bench, "s", "select $1", &described(23, "a"));
    bench.session.release();
    bench.server = Server::new(&Arc::default());
    bench.attach(false);
    let mut input = Vec::new();
    write::statement_target(&mut input, b'D', b"s");
    input.extend_from_slice(SYNC);
    assert_eq!(bench.forward(&input), 0);
    bench.answer(&[ONE, &described(23, "b")].concat());
    bench.forward(&input);
    bench.answer(&[error("26000", "no"), ready(TransactionStatus::Idle)].concat());
    assert!(bench.to_client.starts_with(b"t\0\0\0\x0a\0\x01\0\0\0\x17E"));
    let message = read::error(frames(&bench.to_client)[1].1);
    assert_eq!(message.message, b"cached plan must not change result type");
    assert_eq!(message.routine, b"RevalidateCachedQuery");
    assert_eq!(bench.client_got(), "t E0A000 ZI");
}

#[test]
fn a_first_parse_of_another_meaning_on_another_server_does_not_touch_what_is_shared() {
    let mut bench = Bench::new();
    bench.attach(false);
    prepare(&mut bench, "s", "select $1", &described(23, "a"));
    let first = bench.session;
    bench.session = Session::new(1 << 30);
    bench.server = Server::new(&Arc::default());
    bench.attach(false);
    // The type of the parameter has changed, which shows in no column.
    assert_eq!(prepare(&mut bench, "s", "select $1", &described(20, "a")), "Pmetako_1 Dmetako_1 S");
    let used = [&bind("s")[..], SYNC].concat();
    assert_eq!(bench.forward(&used), 0);
    assert_eq!(bench.server_got(), "Pmetako_2 Dmetako_2 H");
    bench.answer(&[ONE, &described(20, "a")].concat());
    bench.forward(&used);
    assert_eq!(bench.server_got(), "Bmetako_2 S");
    bench.answer(&[TWO, &ready(TransactionStatus::Idle)].concat());
    bench.session.release();
    bench.session = first;
    bench.session.release();
    bench.attach(false);
    bench.forward(&used);
    assert_eq!(bench.server_got(), "Cmetako_1 Pmetako_1 Dmetako_1 H");
}

#[test]
fn what_a_text_is_analysed_with_decides_who_shares_it() {
    let mut bench = Bench::new();
    bench.attach(false);
    let set = |bench: &mut Bench, sql: &str, status| {
        bench.forward(&query(sql));
        bench.answer(&[complete("SET"), ready(status)].concat());
        bench.client_got();
        bench.server_got();
    };
    assert_eq!(prepare(&mut bench, "a", "select 1", BARE), "Pmetako_1 Dmetako_1 S");
    set(&mut bench, "set search_path = one", TransactionStatus::Idle);
    assert_eq!(prepare(&mut bench, "b", "select 1", BARE), "Pmetako_2 Dmetako_2 S");
    set(&mut bench, "reset search_path", TransactionStatus::Idle);
    assert_eq!(prepare(&mut bench, "c", "select 1", BARE), "Pmetako_3 Dmetako_3 S");
    assert_eq!(bench.interned(), 2);
    bench.forward(&query("set timezone = 'CET'"));
    let reported = b"S\0\0\0\x11TimeZone\0CET\0";
    bench.answer(&[&complete("SET")[..], reported, &ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    bench.server_got();
    prepare(&mut bench, "d", "select 1", BARE);
    assert_eq!(bench.interned(), 3);
    // Nobody shares what depends on what is not known, or on the moment.
    set(&mut bench, "begin", TransactionStatus::InBlock);
    set(&mut bench, "set local array_nulls = off", TransactionStatus::InBlock);
    bench.forward(&[&parse("e", "select 2")[..], SYNC].concat());
    bench.answer(&[ONE, BARE, &ready(TransactionStatus::InBlock)].concat());
    set(&mut bench, "commit", TransactionStatus::Idle);
    prepare(&mut bench, "f", "select date 'today'", BARE);
    assert_eq!(bench.interned(), 3);
    prepare(&mut bench, "g", "select 2", BARE);
    assert_eq!(bench.interned(), 4);
}

fn zone(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    write::parameter_status(&mut out, "TimeZone", name);
    out
}

#[test]
fn what_is_parsed_behind_settings_that_are_on_their_way_is_not_what_was_parsed_before_them() {
    let mut bench = Bench::new();
    bench.server = Server::new(&reported(&[("TimeZone", "UTC")]));
    bench.attach(false);
    bench.forward(&query("set timezone to 'Asia/Seoul'"));
    let made = [&zone("Asia/Seoul")[..], &complete("SET"), &ready(TransactionStatus::Idle)];
    bench.answer(&made.concat());
    bench.server_got();
    bench.client_got();
    assert_eq!(prepare(&mut bench, "s", "select date", &described(23, "a")), "Pmetako_1 Dmetako_1 S");
    another(&mut bench);
    // The server is told to go back to UTC in the same breath.
    bench.forward(&[&parse("s", "select date")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Q Pmetako_2 Dmetako_2 S");
    let back = [&zone("UTC")[..], &complete("RESET"), &ready(TransactionStatus::Idle)].concat();
    bench.answer(&[&back, ONE, &described(23, "a"), &ready(TransactionStatus::Idle)].concat());
    bench.forward(&[&bind("s")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Bmetako_2 S");
}

#[test]
fn a_unit_that_nobody_repeats_is_answered_once() {
    let mut bench = Bench::new();
    bench.attach(false);
    prepare(&mut bench, "s", "select $1", &described(23, "a"));
    bench.session.release();
    bench.server = Server::new(&Arc::default());
    bench.attach(true);
    let used = [&bind("s")[..], EXECUTE, SYNC].concat();
    assert_eq!(bench.forward(&used), 0);
    assert_eq!(bench.lose(), Loss::Repeat);
    bench.session.refuse_repeat(&Report::error("57P03", "no server"), &mut bench.to_client);
    let mut at = 0;
    while let Plan::Consumed(taken) = bench.plan(&used[at..]) {
        at += taken;
    }
    assert_eq!(at, used.len());
    assert_eq!(bench.client_got(), "E57P03 ZI");
}

#[test]
fn more_changed_names_than_are_told_apart_are_waited_for() {
    let mut bench = Bench::new();
    bench.attach(false);
    let one = |number: usize| [&parse(&format!("s{number}"), "select 1")[..], SYNC].concat();
    let many: Vec<u8> = (0..=FRESH_MAX).flat_map(one).collect();
    let consumed = bench.forward(&many);
    assert_eq!(consumed, (0..FRESH_MAX).map(|number| one(number).len()).sum::<usize>());
    assert!(!bench.session.wants_input(&bench.server));
    let answer = [ONE, BARE, &ready(TransactionStatus::Idle)].concat();
    bench.answer(&answer.repeat(FRESH_MAX));
    assert_eq!(bench.forward(&many[consumed..]), many.len() - consumed);
    // In one unit all may pass: a later one waits for all of its names.
    let unit: Vec<u8> = (0..=FRESH_MAX).flat_map(|number| parse(&format!("t{number}"), "select 1")).collect();
    bench.answer(&answer);
    assert_eq!(bench.forward(&[&unit[..], SYNC].concat()), unit.len() + SYNC.len());
    assert_eq!(bench.forward(&[&bind("t0")[..], SYNC].concat()), 0);
}
