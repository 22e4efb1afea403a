//! What goes wrong at the edges: messages that were skipped, units that are repeated, servers that are lost half-way.

use super::tests::{
    Bench, EXECUTE, ONE, ROW, SYNC, TWO, begin, bind, close, complete, error, parse, query, ready,
};
use super::*;

#[test]
fn a_statement_whose_second_parse_was_skipped_can_still_be_used_on_that_server() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&[&parse("s", "select 1")[..], SYNC].concat());
    // Pipelined behind it: whether the server has the statement is not known yet, and an error skips the second Parse.
    bench.forward(&[&bind("nobody")[..], &bind("s"), SYNC].concat());
    assert_eq!(bench.server_got(), "Pmetako_1 S Bnobody Cmetako_1 Pmetako_1 Bmetako_1 S");
    bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    bench.answer(&[error("26000", "no"), ready(TransactionStatus::Idle)].concat());
    bench.forward(&[&bind("s")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Cmetako_1 Pmetako_1 Bmetako_1 S");
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
    assert_eq!(bench.server_got(), "Bnobody Cmetako_1 Pmetako_201 S");
    bench.answer(&[error("26000", "no"), ready(TransactionStatus::Idle)].concat());
    bench.forward(&[&bind(&name(0))[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Cmetako_1 Pmetako_1 Bmetako_1 S");
}
