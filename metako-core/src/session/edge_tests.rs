//! What goes wrong at the edges: messages that were skipped, units that are repeated, servers that are lost half-way.

use super::tests::{
    BARE, Bench, EXECUTE, ONE, ROW, SYNC, TWO, begin, bind, close, complete, error, left_behind, named,
    parse, query, ready, reported,
};
use super::*;

#[test]
fn a_statement_whose_second_parse_was_skipped_can_still_be_used_on_that_server() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[&bind("nobody")[..], &parse("s", "select 1"), SYNC].concat());
    bench.answer(&[error("26000", "no"), ready(TransactionStatus::Idle)].concat());
    bench.server_got();
    bench.forward(&[&parse("s", "select 1")[..], &bind("nobody"), SYNC].concat());
    assert_eq!(bench.server_got(), "Cmetako_1 Pmetako_1 Dmetako_1 Bnobody S");
    bench.answer(
        &[b"3\0\0\0\x04", ONE, BARE, &error("26000", "no"), &ready(TransactionStatus::Idle)].concat(),
    );
    bench.forward(&[&bind("s")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Bmetako_1 S");
}

#[test]
fn a_statement_whose_eviction_was_skipped_is_closed_before_it_is_parsed_again() {
    let mut bench = Bench::new();
    bench.attach(false);
    let name = |n: usize| format!("s{n}");
    for n in 0..PREPARED_PER_SERVER_MAX {
        bench.forward(&[&parse(&name(n), &format!("select {n}"))[..], SYNC].concat());
        bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    }
    bench.server_got();
    bench.forward(&[&bind("nobody")[..], &parse("more", "select more"), SYNC].concat());
    assert_eq!(bench.server_got(), "Bnobody Cmetako_1 Pmetako_201 Dmetako_201 S");
    bench.answer(&[error("26000", "no"), ready(TransactionStatus::Idle)].concat());
    bench.forward(&[&bind(&name(0))[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Cmetako_1 Pmetako_1 Dmetako_1 Bmetako_1 S");
}

#[test]
fn a_client_may_not_hold_statements_without_end() {
    let mut bench = Bench::new();
    bench.attach(false);
    let text = format!("select '{}'", "x".repeat(1_000_000));
    // What it gives up, or never got, does not count.
    for n in 0..200 {
        bench.forward(&[&parse("s", &format!("{text}, {n}"))[..], SYNC].concat());
        if n % 2 == 0 {
            bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
            bench.forward(&[&close("s")[..], SYNC].concat());
            bench.answer(&ready(TransactionStatus::Idle));
        } else {
            bench.answer(&[error("42601", "no"), ready(TransactionStatus::Idle)].concat());
        }
    }
    let held = (0..100).find(|n| {
        let message = [&parse(&format!("s{n}"), &format!("{text}, {n}"))[..], SYNC].concat();
        let forwarded = bench.try_forward(&message);
        bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
        forwarded == Err(ClientFault::Statements)
    });
    assert_eq!(held, Some(67));
    assert_eq!(ClientFault::Statements.report().code, "53400");
}

#[test]
fn a_unit_that_is_repeated_may_give_its_names_again() {
    let mut bench = Bench::new();
    bench.attach(true);
    bench.forward(&[&parse("s", "select f()")[..], &bind("s"), EXECUTE, SYNC].concat());
    bench.answer(&[ONE, BARE, TWO].concat());
    let refused = [error("25006", "cannot execute"), ready(TransactionStatus::Idle)].concat();
    assert_eq!(bench.answer(&refused), Effect::Refused);
    bench.to_client.clear();
    bench.server_got();
    bench.server = Server::new(&Arc::default());
    bench.repeat(false);
    assert_eq!(bench.server_got(), "Pmetako_1 Dmetako_1 Bmetako_1 E S");
    bench.answer(&[ONE, BARE, TWO, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "1 2 C:SELECT 1 ZI");
    bench.session.release();
    // Nor does a name stay that the client was never told of.
    bench.attach(true);
    bench.forward(&[&parse("t", "select 2")[..], SYNC].concat());
    bench.answer(ONE);
    assert_eq!(bench.lose(), Loss::Repeat);
    bench.session.refuse_repeat(&Report::error("08006", "none left"), &mut bench.to_client);
    bench.server_got();
    bench.attach(false);
    bench.forward(&[&bind("t")[..], SYNC].concat());
    assert!(bench.server_got().ends_with("Bt S"));
}

#[test]
fn what_follows_a_rollback_in_flight_may_have_been_committed() {
    let mut bench = Bench::new();
    begin(&mut bench);
    bench.forward(&[query("rollback"), query("insert")].concat());
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E08007 ZI E08007 ZI");
    // The rollback alone lost nothing that was to be kept, and the block is over.
    let mut bench = Bench::new();
    begin(&mut bench);
    bench.forward(&[query("insert"), query("rollback")].concat());
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E40001 ZE E25P02 ZI");
    assert!(matches!(bench.plan(&query("insert")), Plan::Route(_)));
}

#[test]
fn closing_behind_a_flush_is_answered_at_once() {
    let mut bench = Bench::new();
    let input = [&close("x")[..], b"H\0\0\0\x04"].concat();
    assert_eq!(bench.plan(&input), Plan::Consumed(input.len()));
    assert_eq!(bench.client_got(), "3");
    assert_eq!(bench.plan(SYNC), Plan::Consumed(5));
    assert_eq!(bench.client_got(), "ZI");
}

#[test]
fn a_replica_on_which_a_read_left_something_is_let_go_and_not_given_to_others() {
    let mut bench = Bench::new();
    bench.server = Server::new(&reported(&[("TimeZone", "UTC")]));
    bench.attach(true);
    bench.forward(&query("select view"));
    let mut answer = [ROW, &complete("SELECT 1")].concat();
    write::parameter_status(&mut answer, "TimeZone", "Asia/Seoul");
    answer.extend(ready(TransactionStatus::Idle));
    bench.answer(&answer);
    assert!(!bench.session.releasable(&bench.server));
    bench.answer(&left_behind(Some(1), &[("TimeZone", "Asia/Seoul")]));
    assert!(bench.session.releasable(&bench.server));
    assert!(!bench.server.is_clean());
    assert_eq!(bench.session.pinned(), None);
}

#[test]
fn a_long_bind_in_a_lost_block_fails_like_a_short_one() {
    let mut bench = Bench::new();
    begin(&mut bench);
    bench.lose();
    let mut long = Vec::new();
    write::frame(&mut long, b'B', |out| out.extend_from_slice(&[0; 10_000]));
    let input = [&long[..], EXECUTE, SYNC].concat();
    let mut rest = &input[..];
    while let Plan::Consumed(taken) = bench.plan(&rest[..rest.len().min(9_000)]) {
        rest = &rest[taken..];
    }
    assert!(rest.is_empty());
    assert_eq!(bench.client_got(), "E40001 ZE");
}

#[test]
fn an_application_name_set_by_stealth_does_not_stay() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("select f()"));
    let mut answer = complete("SELECT 1");
    write::parameter_status(&mut answer, "application_name", "stealth");
    answer.extend(ready(TransactionStatus::Idle));
    bench.answer(&answer);
    bench.answer(&left_behind(None, &[("application_name", "stealth")]));
    assert!(bench.session.releasable(&bench.server));
    bench.session = Session::new(1 << 30);
    bench.to_server.clear();
    bench.attach(false);
    let sent = String::from_utf8_lossy(&bench.to_server).into_owned();
    assert!(sent.contains("RESET ALL; "), "{sent}");
}

#[test]
fn an_application_name_is_quoted_for_the_server() {
    let mut bench = Bench::new();
    bench.session = named("a\\'");
    bench.attach(false);
    let sent = String::from_utf8_lossy(&bench.to_server).into_owned();
    assert!(sent.contains(r"SET application_name TO E'a\\'''"), "{sent}");
}

#[test]
fn a_server_that_could_not_be_given_the_clients_name_is_not_used_again() {
    let mut bench = Bench::new();
    bench.session = named("named");
    bench.attach(false);
    bench.forward(&query("select 1"));
    // A cancel that was meant for the statement hits what metako says first.
    bench.answer(&[error("57014", "canceling"), ready(TransactionStatus::Idle)].concat());
    bench.answer(&[ROW, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "D C:SELECT 1 ZI");
    assert!(bench.session.releasable(&bench.server) && !bench.server.is_clean());
}

#[test]
fn a_commit_under_way_is_not_timed_whatever_was_sent_behind_it() {
    let mut bench = Bench::new();
    begin(&mut bench);
    bench.forward(&[query("commit"), query("select 1")].concat());
    assert_eq!(bench.session.awaited(&bench.server), Awaited::Unbounded);
    bench.answer(&[complete("COMMIT"), ready(TransactionStatus::Idle)].concat());
    bench.answer(&[ROW, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    bench.forward(&query("select 1"));
    assert_eq!(bench.session.awaited(&bench.server), Awaited::Read);
    bench.answer(&[ROW, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    bench.forward(&query("insert; commit"));
    assert_eq!(bench.session.awaited(&bench.server), Awaited::Unbounded);
}

#[test]
fn a_statement_whose_result_type_changed_is_made_anew_when_it_is_prepared_again() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[&parse("s", "select 1")[..], SYNC].concat());
    bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    bench.forward(&[&bind("s")[..], EXECUTE, SYNC].concat());
    let mut stale = Vec::new();
    write::frame(&mut stale, b'E', |out| {
        out.extend_from_slice(b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0");
        out.extend_from_slice(b"RRevalidateCachedQuery\0\0");
    });
    bench.answer(&[stale, ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    bench.server_got();
    bench.forward(&[&close("s")[..], &parse("s", "select 1"), &bind("s"), EXECUTE, SYNC].concat());
    assert_eq!(bench.server_got(), "Pmetako_2 Dmetako_2 Bmetako_2 E S");
}

#[test]
fn a_read_that_a_replica_ends_the_session_over_is_repeated() {
    let mut bench = Bench::new();
    bench.attach(true);
    bench.forward(&query("select 1"));
    let mut fatal = Vec::new();
    write::error_response(&mut fatal, &Report::fatal("40001", "conflict with recovery"));
    assert_eq!(bench.answer(&fatal), Effect::Lost);
    assert_eq!(bench.lose(), Loss::Repeat);
}

#[test]
fn a_client_that_leaves_is_finished_only_while_its_units_are_whole() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("insert"));
    assert!(bench.session.will_finish(&bench.server));
    // Nobody will send the rows.
    bench.answer(b"G\0\0\0\x07\0\0\0");
    assert!(!bench.session.will_finish(&bench.server));
    // Nobody will send the Sync.
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[parse("", "insert"), bind(""), EXECUTE.to_vec()].concat());
    assert!(!bench.session.will_finish(&bench.server));
}

#[test]
fn an_unnamed_statement_whose_parse_was_skipped_is_never_anothers() {
    let mut bench = Bench::new();
    bench.attach(false);
    // The server still has what somebody else parsed.
    bench.forward(&[&bind("nobody")[..], &parse("", "select mine"), SYNC].concat());
    let used = [&bind("")[..], EXECUTE, SYNC].concat();
    assert_eq!(bench.forward(&used), 0);
    assert_eq!(bench.server_got(), "Bnobody P S");
    bench.answer(&[error("26000", "no"), ready(TransactionStatus::Idle)].concat());
    bench.forward(&used);
    assert_eq!(bench.server_got(), "Bmetako_none E S");
}

#[test]
fn a_notification_that_comes_while_metako_asks_is_the_clients() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("listen a"));
    bench.answer(&[complete("LISTEN"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "C:LISTEN ZI");
    let mut notification = Vec::new();
    write::frame(&mut notification, b'A', |out| out.extend_from_slice(b"\0\0\0\x07a\0payload\0"));
    // In pieces, as any frame may come.
    let (front, rest) = notification.split_at(9);
    bench.answer(front);
    bench.answer(rest);
    bench.answer(&left_behind(Some(3), &[]));
    assert_eq!(bench.client_got(), "A");
}

#[test]
fn a_server_that_is_lost_before_it_says_what_a_session_left_there_was_bound_to_it() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("listen a"));
    bench.answer(&[complete("LISTEN"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "C:LISTEN ZI");
    assert_eq!(bench.lose(), Loss::Close);
    assert_eq!(bench.client_got(), "E57P01");
}

#[test]
fn what_comes_while_metako_asks_what_was_left_may_go_elsewhere() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("call p()"));
    bench.answer(&[complete("CALL"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.server_got(), "Q Q");
    assert_eq!(bench.session.awaited(&bench.server), Awaited::Own);
    assert_eq!(bench.forward(&query("select 1")), 0);
    assert!(!bench.session.wants_input(&bench.server));
    bench.answer(&left_behind(None, &[]));
    assert!(bench.session.releasable(&bench.server) && bench.session.wants_input(&bench.server));
    bench.session.release();
    assert!(matches!(bench.plan(&query("select 1")), Plan::Route(Route { read: true, .. })));
}

#[test]
fn a_name_that_is_no_text_is_refused_by_the_server_itself() {
    let mut bench = Bench::new();
    bench.server = Server::new(&reported(&[("client_encoding", "UTF8"), ("server_encoding", "UTF8")]));
    bench.attach(false);
    let mut garbled = Vec::new();
    write::parse(&mut garbled, b"n\xff", b"select 1\0\0\0");
    bench.forward(&[&garbled[..], SYNC].concat());
    assert!(bench.to_server.starts_with(&garbled));
    bench.answer(&[error("22021", "invalid byte sequence"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "E22021 ZI");
    assert!(bench.session.releasable(&bench.server) && bench.server.is_clean());
    // Another encoding may have such a letter.
    bench.server = Server::new(&reported(&[("client_encoding", "LATIN1"), ("server_encoding", "UTF8")]));
    bench.session.release();
    bench.attach(false);
    bench.to_server.clear();
    bench.forward(&[&garbled[..], SYNC].concat());
    assert!(!bench.to_server.starts_with(&garbled));
}

#[test]
fn a_message_that_is_cut_is_not_waited_for() {
    let mut bench = Bench::new();
    bench.attach(false);
    let cut = query(&"x".repeat(100));
    bench.forward(&[&query("insert")[..], &cut[..cut.len() - 1]].concat());
    assert!(bench.session.will_finish(&bench.server));
    bench.answer(&[complete("INSERT 0 1"), ready(TransactionStatus::Idle)].concat());
    assert!(!bench.session.will_finish(&bench.server));
}

#[test]
fn a_sync_that_is_too_long_and_comes_in_parts_is_answered_once() {
    for skipping in [false, true] {
        let mut bench = Bench::new();
        if skipping {
            bench.session.refuse(&bind("s"), &Report::error("57P03", "no"), &mut bench.to_client).unwrap();
            bench.client_got();
        }
        let long = b"S\0\0\0\x08more";
        assert_eq!(bench.plan(&long[..6]), Plan::More);
        assert_eq!(bench.client_got(), "");
        assert_eq!(bench.plan(long), Plan::Consumed(long.len()));
        assert_eq!(bench.client_got(), "ZI");
    }
}
