//! Portals: what Bind makes, and how it is read.

use crate::cases::cases;
use crate::send::{
    FLUSH, SYNC, batch, bind, bind_binary, bind_to, close_portal, describe_portal, execute, execute_some,
    parse, query,
};
use crate::stage::Stage;

cases![
    null_and_binary_values_pass,
    a_bind_with_the_wrong_number_of_values_fails,
    results_come_in_the_format_that_was_asked_for,
    portals_die_with_their_transaction,
    portals_outlive_a_flush,
    portals_live_over_syncs_within_a_transaction,
    a_row_limit_suspends_the_portal,
    a_portal_may_be_executed_on_and_described,
    named_portals_are_closed_by_name,
    a_portal_name_cannot_be_bound_twice,
    several_portals_take_turns,
    cursors_are_portals,
];

fn null_and_binary_values_pass(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("s", "select $1::int, $2::text, null, ''"), SYNC]));
    a.says("1Z");
    for values in [[None, None], [Some("7"), None], [Some("7"), Some("")], [Some("x"), Some("y")]] {
        a.send(&batch(&[&bind_to("", "s", &values), &execute(), SYNC]));
        a.ready();
    }
    a.leave();
}

fn a_bind_with_the_wrong_number_of_values_fails(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[
        &parse("s", "select $1::int"),
        &bind("s"),
        SYNC,
        &parse("", "select $1::int"),
        &bind(""),
        SYNC,
    ]));
    a.says("1E08P01Z1E08P01Z");
    a.send(&batch(&[
        &bind_to("", "s", &[Some("1"), Some("2")]),
        &execute(),
        SYNC,
        &bind_to("", "s", &[Some("1")]),
        &execute(),
        SYNC,
    ]));
    a.says("E08P01Z2DCZ");
    a.leave();
}

fn results_come_in_the_format_that_was_asked_for(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("s", "select 258, 'text', true, 1.5::float8"), SYNC]));
    a.says("1Z");
    a.send(&batch(&[&bind_binary("", "s"), &describe_portal(""), &execute(), SYNC]));
    a.says("2TDCZ");
    a.send(&batch(&[&bind("s"), &describe_portal(""), &execute(), SYNC]));
    a.says("2TDCZ");
    a.leave();
}

fn portals_die_with_their_transaction(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("s", "select 1"), &bind_to("p", "s", &[]), SYNC, &execute_some("p", 0), SYNC]));
    a.says("12ZE34000Z");
    a.send(&batch(&[&bind_to("", "s", &[]), SYNC, &execute(), SYNC]));
    a.says("2ZE34000Z");
    a.asks("begin", "CZ");
    a.send(&batch(&[&bind_to("p", "s", &[]), SYNC]));
    a.says("2Z");
    a.asks("commit", "CZ");
    a.send(&batch(&[&execute_some("p", 0), SYNC]));
    a.says("E34000Z");
    a.leave();
}

fn portals_outlive_a_flush(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("", "select 1"), &bind(""), FLUSH]));
    a.says("12");
    a.send(&batch(&[&describe_portal(""), FLUSH]));
    a.says("T");
    a.send(&batch(&[&execute(), FLUSH]));
    a.says("DC");
    a.send(SYNC);
    a.says("Z");
    a.leave();
}

fn portals_live_over_syncs_within_a_transaction(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.send(&batch(&[
        &parse("", "select generate_series(1, 5)"),
        &bind_to("p", "", &[]),
        &execute_some("p", 2),
        SYNC,
    ]));
    a.says("12DDsZ");
    a.send(&batch(&[&execute_some("p", 2), SYNC]));
    a.says("DDsZ");
    a.asks("select 1", "TDCZ");
    a.send(&batch(&[&execute_some("p", 2), SYNC]));
    a.says("DCZ");
    a.asks("commit", "CZ");
    a.leave();
}

fn a_row_limit_suspends_the_portal(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("", "select generate_series(1, 5)"), &bind(""), &execute_some("", 2), FLUSH]));
    a.says("12DDs");
    a.send(&batch(&[&execute_some("", 3), FLUSH]));
    a.says("DDDs");
    a.send(&batch(&[&execute_some("", 3), SYNC]));
    a.says("CZ");
    a.send(&batch(&[&parse("", "values (1), (2)"), &bind(""), &execute_some("", 1), SYNC, &execute(), SYNC]));
    a.says("12DsZE34000Z");
    a.leave();
}

fn a_portal_may_be_executed_on_and_described(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let some = execute_some("", 1);
    a.send(&batch(&[
        &parse("", "values (1), (2)"),
        &bind(""),
        &some,
        &some,
        &execute(),
        &describe_portal(""),
        SYNC,
    ]));
    a.says("12DsDsCTZ");
    a.send(&batch(&[&parse("", "set work_mem = '4MB'"), &bind(""), &execute(), &execute(), SYNC]));
    a.says("12CE55000Z");
    a.leave();
}

fn named_portals_are_closed_by_name(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[
        &parse("", "select 1"),
        &bind_to("p", "", &[]),
        &close_portal("p"),
        &execute_some("p", 0),
        SYNC,
    ]));
    a.says("123E34000Z");
    a.leave();
}

fn a_portal_name_cannot_be_bound_twice(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let twice = [bind_to("p", "", &[]), bind_to("p", "", &[])].concat();
    a.send(&batch(&[
        &parse("", "select 1"),
        &twice,
        SYNC,
        &parse("", "select 1"),
        &bind(""),
        &bind(""),
        &execute(),
        SYNC,
    ]));
    a.says("12E42P03Z122DCZ");
    a.leave();
}

fn several_portals_take_turns(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let (p, q) = (execute_some("p", 1), execute_some("q", 2));
    a.send(&batch(&[
        &parse("s", "select generate_series(1, 3)"),
        &bind_to("p", "s", &[]),
        &bind_to("q", "s", &[]),
        &p,
        &q,
        &p,
        &q,
        SYNC,
    ]));
    a.says("122DsDDsDsDCZ");
    a.leave();
}

fn cursors_are_portals(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("declare c cursor for select 1", "E25P01Z");
    a.asks("begin", "CZ");
    a.asks("declare c scroll cursor for select generate_series(1, 4)", "CZ");
    a.asks("fetch 2 from c", "TDDCZ");
    a.send(&batch(&[&describe_portal("c"), &execute_some("c", 1), SYNC]));
    a.says("TDsZ");
    a.asks("move backward 1 in c", "CZ");
    a.asks("fetch all from c", "TDDCZ");
    a.send(&batch(&[&close_portal("c"), SYNC, &query("fetch c"), &query("rollback")]));
    a.says("3ZE34000ZCZ");
    a.asks("fetch c", "E34000Z");
    a.leave();
}
