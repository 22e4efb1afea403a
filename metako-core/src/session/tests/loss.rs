//! Servers that are lost, refuse, or end.

use super::*;

#[test]
fn what_changes_nothing_may_be_run_again_when_its_server_is_lost() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("begin"));
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E40001 ZI");
    bench.server = Server::new(&Arc::default());
    bench.attach(false);
    bench.forward(&[query("begin"), query("insert")].concat());
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E08007 ZI E08007 ZI");
}

#[test]
fn a_refusal_of_a_replica_is_not_seen_and_the_unit_can_be_repeated() {
    let mut bench = Bench::new();
    bench.attach(true);
    bench.forward(&query("select f()"));
    assert_eq!(bench.answer(b"T\0\0\0\x06\0\0"), Effect::Continue);
    assert!(bench.session.is_holding_back());
    let refused = [error("25006", "cannot execute"), ready(TransactionStatus::Idle)].concat();
    assert_eq!(bench.answer(&refused), Effect::Refused);
    assert!(bench.server.is_clean());
    bench.to_client.clear();
    bench.server_got();
    bench.server = Server::new(&Arc::default());
    bench.repeat(false);
    assert_eq!(bench.server_got(), "Q");
    bench.answer(&[ROW, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "D C:SELECT 1 ZI");
    assert!(bench.session.releasable(&bench.server));
}

#[test]
fn a_lost_replica_is_repeated_while_nothing_was_given_and_told_after_that() {
    let mut bench = Bench::new();
    bench.attach(true);
    bench.forward(&query("select 1"));
    assert_eq!(bench.lose(), Loss::Repeat);
    bench.server = Server::new(&Arc::default());
    bench.attach(true);
    bench.forward(&query("select 1"));
    bench.answer(ROW);
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "D E40001 ZI");
    bench.attach(true);
    bench.forward(&query("select 1"));
    bench.answer(&[ROW, &ROW[..6]].concat());
    assert_eq!(bench.lose(), Loss::Close);
}

#[test]
fn a_lost_primary_outside_a_block_leaves_the_outcome_unknown_for_each_that_waits() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[query("insert"), query("select 1")].concat());
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E08007 ZI E08007 ZI");
    bench.server = Server::new(&Arc::default());
    bench.attach(false);
    bench.forward(&[parse("", "insert"), bind(""), EXECUTE.to_vec()].concat());
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E08007");
    assert_eq!(bench.plan(EXECUTE), Plan::Consumed(EXECUTE.len()));
    assert_eq!(bench.plan(SYNC), Plan::Consumed(5));
    assert_eq!(bench.client_got(), "ZI");
}

#[test]
fn a_block_lost_for_sure_fails_until_the_client_ends_it() {
    let mut bench = Bench::new();
    begin(&mut bench);
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "");
    for (sql, answer) in [
        ("insert", "E40001 ZE"),
        ("insert", "E25P02 ZE"),
        ("", "I ZE"),
        ("savepoint a", "E25P02 ZE"),
        ("rollback and chain", "E25P02 ZE"),
        ("commit", "C:ROLLBACK ZI"),
    ] {
        bench.plan(&query(sql));
        assert_eq!(bench.client_got(), answer, "{sql}");
    }
    assert!(matches!(bench.plan(&query("insert")), Plan::Route(_)));
}

#[test]
fn a_lost_block_ends_in_the_extended_protocol_too() {
    let mut bench = Bench::new();
    begin(&mut bench);
    bench.forward(&[parse("", "insert"), bind(""), EXECUTE.to_vec(), SYNC.to_vec()].concat());
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E40001 ZE");
    let send = |bench: &mut Bench, input: &[u8]| {
        let mut rest = input;
        while let Plan::Consumed(taken) = bench.plan(rest) {
            rest = &rest[taken..];
        }
        assert!(rest.is_empty());
        bench.client_got()
    };
    let insert = [&parse("", "insert")[..], &bind(""), EXECUTE, SYNC].concat();
    assert_eq!(send(&mut bench, &insert), "E25P02 ZE");
    let rollback = [&parse("", "rollback")[..], &bind(""), EXECUTE, SYNC].concat();
    assert_eq!(send(&mut bench, &rollback), "1 2 C:ROLLBACK ZI");
    assert!(matches!(bench.plan(&insert), Plan::Route(_)));
}

#[test]
fn a_commit_that_comes_first_after_the_loss_is_an_error_and_ends_the_block() {
    let mut bench = Bench::new();
    begin(&mut bench);
    bench.lose();
    bench.plan(&query("commit"));
    assert_eq!(bench.client_got(), "E40001 ZI");
    assert!(matches!(bench.plan(&query("insert")), Plan::Route(_)));
}

#[test]
fn a_block_that_may_have_been_committed_is_unknown() {
    let mut bench = Bench::new();
    begin(&mut bench);
    bench.forward(&query("commit"));
    assert_eq!(bench.lose(), Loss::Kept);
    assert_eq!(bench.client_got(), "E08007 ZI");
}

#[test]
fn an_error_the_server_ends_the_session_with_is_the_clients_unless_it_shuts_down() {
    for (code, effect) in [("25P03", Effect::Ended), ("57P01", Effect::Lost)] {
        let mut bench = Bench::new();
        bench.attach(false);
        bench.forward(&query("insert"));
        let mut fatal = Vec::new();
        write::error_response(&mut fatal, &Report::fatal(code, "going"));
        assert_eq!(bench.answer(&fatal), effect);
    }
}
