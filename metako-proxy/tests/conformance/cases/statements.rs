//! Prepared statements.

use crate::cases::cases;
use crate::send::{
    SYNC, batch, bind, bind_to, close_portal, close_statement, describe_portal, describe_statement, execute,
    execute_some, parse, parse_typed, run,
};
use crate::stage::Stage;

cases![
    the_unnamed_statement_outlives_its_sync,
    the_unnamed_statement_dies_with_a_simple_query,
    the_next_unnamed_parse_replaces_the_last,
    a_failed_unnamed_parse_leaves_none,
    named_statements_outlive_rollback_and_errors,
    a_parse_that_was_discarded_made_nothing,
    a_parse_that_failed_made_nothing,
    a_name_cannot_be_parsed_twice,
    closing_what_is_not_there_is_no_error,
    a_name_may_be_closed_and_parsed_again_in_one_batch,
    names_belong_to_their_client,
    a_closed_name_is_gone,
    describe_tells_parameters_and_columns,
    describing_what_is_not_there_fails,
    parameters_have_the_types_that_parse_gave,
    statements_follow_the_search_path,
    a_stale_plan_is_an_error,
    a_stale_plan_with_the_same_columns_is_none,
    a_parse_sees_the_table_as_it_is_now,
    a_statement_has_the_columns_it_had_wherever_it_runs,
    a_parse_in_a_transaction_sees_what_that_has_made,
    constants_are_read_with_the_settings_of_the_parse,
    a_dropped_table_is_an_error_of_its_statement,
    sql_prepare_and_execute_share_the_names_of_parse,
    sql_deallocate_forgets_names,
    deallocate_all_forgets_all_names,
    discard_all_forgets_all_names,
    sql_prepare_is_known_to_its_client_only,
    an_execute_of_a_missing_name_fails,
    positions_in_errors_are_those_of_the_clients_text,
    a_statement_prepared_by_another_user_tells_nothing,
    many_statements_are_kept,
    pg_prepared_statements_shows_the_names_of_the_client,
];

fn the_unnamed_statement_outlives_its_sync(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let mut b = stage.client("b");
    a.send(&batch(&[&parse("", "select 1"), SYNC]));
    a.says("1Z");
    b.send(&batch(&[&run("select 2"), SYNC]));
    b.says("12DCZ");
    a.send(&batch(&[&bind(""), &execute(), SYNC]));
    a.says("2DCZ");
    a.send(&batch(&[&describe_statement(""), SYNC, &bind(""), &execute(), SYNC]));
    a.says("tTZ2DCZ");
    a.leave();
    b.leave();
}

fn the_unnamed_statement_dies_with_a_simple_query(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    for sql in ["select 2", "", "select 1/0", "syntax error"] {
        a.send(&batch(&[&parse("", "select 1"), SYNC]));
        a.says("1Z");
        a.query(sql);
        a.send(&batch(&[&bind(""), &execute(), SYNC]));
        a.says("E26000Z");
        a.send(&batch(&[&describe_statement(""), SYNC]));
        a.says("E26000Z");
    }
    a.leave();
}

fn the_next_unnamed_parse_replaces_the_last(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("", "select 1"), &parse("", "select 2"), &bind(""), &execute(), SYNC]));
    a.says("112DCZ");
    a.send(&batch(&[
        &parse("", "select 3"),
        &bind_to("p", "", &[]),
        &parse("", "select 4"),
        &bind(""),
        &execute(),
        &execute_some("p", 0),
        SYNC,
    ]));
    a.says("1212DCDCZ");
    a.leave();
}

fn a_failed_unnamed_parse_leaves_none(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("", "select 1"), SYNC, &parse("", "syntax error"), SYNC, &bind(""), SYNC]));
    a.says("1ZE42601ZE26000Z");
    // Closed, it is gone as well.
    a.send(&batch(&[&parse("", "select 1"), &close_statement(""), &bind(""), SYNC]));
    a.says("13E26000Z");
    a.leave();
}

fn named_statements_outlive_rollback_and_errors(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.send(&batch(&[&parse("s", "select 1"), SYNC]));
    a.says("1Z");
    a.asks("rollback", "CZ");
    a.send(&batch(&[&bind("s"), &execute(), SYNC]));
    a.says("2DCZ");
    a.send(&batch(&[&parse("t", "select 2"), &run("select 1/0"), SYNC, &bind("t"), &execute(), SYNC]));
    a.says("11E22012Z2DCZ");
    a.leave();
}

fn a_parse_that_was_discarded_made_nothing(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&run("select 1/0"), &parse("s", "select 1"), SYNC, &bind("s"), SYNC]));
    a.says("1E22012ZE26000Z");
    // Neither did a Close that was discarded.
    a.send(&batch(&[&parse("s", "select 2"), SYNC, &run("select 1/0"), &close_statement("s"), SYNC]));
    a.says("1Z1E22012Z");
    a.send(&batch(&[&bind("s"), &execute(), SYNC]));
    a.says("2DCZ");
    a.leave();
}

fn a_parse_that_failed_made_nothing(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("s", "select nothing"), SYNC]));
    a.says("E42703Z");
    a.send(&batch(&[&bind("s"), SYNC, &describe_statement("s"), SYNC, &close_statement("s"), SYNC]));
    a.says("E26000ZE26000Z3Z");
    a.send(&batch(&[&parse("s", "select 1"), &bind("s"), &execute(), SYNC]));
    a.says("12DCZ");
    a.asks("begin; select 1/0", "CE22012Z");
    a.send(&batch(&[&parse("t", "select 1"), SYNC]));
    a.says("E25P02Z");
    a.asks("rollback", "CZ");
    a.send(&batch(&[&bind("t"), SYNC]));
    a.says("E26000Z");
    a.leave();
}

fn a_name_cannot_be_parsed_twice(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("s", "select 1"), SYNC, &parse("s", "select 2"), &bind("s"), &execute(), SYNC]));
    a.says("1ZE42P05Z");
    a.send(&batch(&[&bind("s"), &execute(), SYNC, &parse("s", "select 1"), SYNC]));
    a.says("2DCZE42P05Z");
    a.leave();
}

fn closing_what_is_not_there_is_no_error(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[
        &close_statement("none"),
        &close_portal("none"),
        &close_statement(""),
        &close_portal(""),
        SYNC,
    ]));
    a.says("3333Z");
    a.asks("begin; select 1/0", "CE22012Z");
    a.send(&batch(&[&close_statement("none"), &close_portal("none"), SYNC]));
    a.says("33Z");
    a.asks("rollback", "CZ");
    a.leave();
}

fn a_name_may_be_closed_and_parsed_again_in_one_batch(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let (one, two) = (parse("s", "select 1"), parse("s", "select 2, 3"));
    let use_it = [bind("s"), describe_portal(""), execute()].concat();
    a.send(&batch(&[&one, &close_statement("s"), &two, &use_it, &close_statement("s"), &one, &use_it, SYNC]));
    a.says("1312TDC312TDCZ");
    a.send(&batch(&[&close_statement("s"), &two, SYNC, &use_it, SYNC]));
    a.says("31Z2TDCZ");
    a.leave();
}

fn names_belong_to_their_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.send(&batch(&[&parse("s", "select 'of a'"), SYNC]));
    a.says("1Z");
    b.send(&batch(&[&bind("s"), SYNC]));
    b.says("E26000Z");
    b.send(&batch(&[&parse("s", "select 'of b'"), SYNC]));
    b.says("1Z");
    for client in [&mut a, &mut b] {
        client.send(&batch(&[&bind("s"), &execute(), SYNC]));
        client.says("2DCZ");
    }
    a.send(&batch(&[&close_statement("s"), SYNC]));
    a.says("3Z");
    b.send(&batch(&[&bind("s"), &execute(), SYNC]));
    b.says("2DCZ");
    a.leave();
    b.leave();
}

fn a_closed_name_is_gone(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("s", "select 1"), SYNC, &close_statement("s"), SYNC, &bind("s"), SYNC]));
    a.says("1Z3ZE26000Z");
    a.send(&batch(&[&describe_statement("s"), SYNC]));
    a.says("E26000Z");
    a.leave();
}

fn describe_tells_parameters_and_columns(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t (id bigint, body varchar(20), at timestamptz)", "CZ");
    for sql in [
        "select id, body, at from t where id = $1 and body like $2",
        "insert into t values ($1, $2, $3)",
        "insert into t values ($1) returning *",
        "set work_mem = '4MB'",
        "begin",
        "",
        "show all",
        "explain select 1",
    ] {
        a.send(&batch(&[&parse("s", sql), &describe_statement("s"), &close_statement("s"), SYNC]));
        a.ready();
    }
    a.leave();
}

fn describing_what_is_not_there_fails(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&describe_statement("none"), SYNC, &describe_portal("none"), SYNC]));
    a.says("E26000ZE34000Z");
    a.send(&batch(&[&describe_portal(""), SYNC, &execute(), SYNC, &execute_some("none", 0), SYNC]));
    a.says("E34000ZE34000ZE34000Z");
    a.leave();
}

/// `int8`, `text`, and none given.
const INT8: u32 = 20;

const TEXT: u32 = 25;

fn parameters_have_the_types_that_parse_gave(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    for types in [&[INT8, TEXT][..], &[TEXT], &[0, INT8], &[]] {
        a.send(&batch(&[
            &parse_typed("s", "select $1, $2, pg_typeof($1)::text", types),
            &describe_statement("s"),
            SYNC,
        ]));
        a.ready();
        a.send(&batch(&[
            &bind_to("", "s", &[Some("1"), Some("2")]),
            &execute(),
            &close_statement("s"),
            SYNC,
        ]));
        a.ready();
    }
    a.send(&batch(&[&parse_typed("", "select $1", &[999_999]), SYNC]));
    a.ready();
    a.leave();
}

fn statements_follow_the_search_path(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create schema one; create schema two; create table one.t as select 'one' as from_; create table two.t as select 'two' as from_", "CCCCZ");
    // Reported from PostgreSQL 18 on.
    a.query("set search_path = one");
    a.send(&batch(&[&parse("s", "select * from t"), &bind("s"), &execute(), SYNC]));
    a.says("12DCZ");
    a.query("set search_path = two");
    a.send(&batch(&[&bind("s"), &execute(), SYNC]));
    a.says("2DCZ");
    let mut b = stage.client("b");
    b.send(&batch(&[&parse("s", "select * from t"), SYNC]));
    b.says("E42P01Z");
    b.asks("drop schema one, two cascade", "N00000CZ");
    a.leave();
    b.leave();
}

fn a_stale_plan_is_an_error(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("create table t as select 1 as id", "CZ");
    a.send(&batch(&[
        &parse("s", "select * from t"),
        &describe_statement("s"),
        SYNC,
        &bind("s"),
        &execute(),
        SYNC,
    ]));
    a.says("1tTZ2DCZ");
    b.asks("alter table t add column more int", "CZ");
    a.send(&batch(&[&bind("s"), &execute(), SYNC]));
    a.says("E0A000Z");
    a.send(&batch(&[&describe_statement("s"), SYNC]));
    a.says("tE0A000Z");
    a.asks("begin", "CZ");
    a.send(&batch(&[&bind("s"), &execute(), SYNC]));
    a.says("E0A000Z");
    a.asks("rollback", "CZ");
    a.send(&batch(&[
        &close_statement("s"),
        &parse("s", "select * from t"),
        &describe_statement("s"),
        &bind("s"),
        &execute(),
        SYNC,
    ]));
    a.says("31tT2DCZ");
    a.leave();
    b.leave();
}

fn a_stale_plan_with_the_same_columns_is_none(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("create table t as select 1 as id", "CZ");
    a.send(&batch(&[&parse("s", "select id from t"), &bind("s"), &execute(), SYNC]));
    a.says("12DCZ");
    b.asks("alter table t add column more int; create index on t (id); analyze t", "CCCZ");
    a.send(&batch(&[&bind("s"), &execute(), SYNC]));
    a.says("2DCZ");
    a.leave();
    b.leave();
}

fn a_parse_sees_the_table_as_it_is_now(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    let prepare = batch(&[&parse("s", "select * from t where id = $1"), &describe_statement("s"), SYNC]);
    let run = batch(&[&bind_to("", "s", &[Some("1")]), &execute(), SYNC]);
    a.asks("create table t as select 1 as id", "CZ");
    a.send(&prepare);
    a.says("1tTZ");
    a.send(&run);
    a.says("2DCZ");
    a.asks("alter table t alter id type bigint", "CZ");
    b.send(&prepare);
    b.says("1tTZ");
    b.send(&run);
    b.says("2DCZ");
    a.send(&run);
    a.says("E0A000Z");
    a.asks("alter table t alter id type int", "CZ");
    a.send(&run);
    a.says("2DCZ");
    b.send(&run);
    b.says("E0A000Z");
    a.asks("drop table t", "CZ");
    let mut c = stage.client("c");
    c.send(&prepare);
    c.says("E42P01Z");
    for client in [a, b, c] {
        client.leave();
    }
}

fn a_statement_has_the_columns_it_had_wherever_it_runs(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("create table t as select 1 as id", "CZ");
    a.send(&batch(&[&parse("s", "select * from t"), &describe_statement("s"), SYNC]));
    a.says("1tTZ");
    // Through metako, b gets the server that a had, and a another one.
    b.asks("begin; alter table t add column more int; commit; begin", "CCCCZ");
    let run = batch(&[&bind("s"), &execute(), SYNC]);
    a.send(&run);
    a.says("E0A000Z");
    a.send(&batch(&[&describe_statement("s"), SYNC]));
    a.says("tE0A000Z");
    a.asks("begin", "CZ");
    a.send(&run);
    a.says("E0A000Z");
    a.send(&run);
    a.says("E25P02Z");
    a.asks("rollback", "CZ");
    b.asks("alter table t drop column more; commit", "CCZ");
    a.send(&run);
    a.says("2DCZ");
    a.leave();
    b.leave();
}

fn a_parse_in_a_transaction_sees_what_that_has_made(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t as select 'for all' as body", "CZ");
    let (prepare, run) = (parse("s", "select body from t"), batch(&[&bind("s"), &execute(), SYNC]));
    a.send(&batch(&[&prepare, SYNC, &run]));
    a.says("1Z2DCZ");
    a.asks("begin; create temp table t on commit drop as select 'for the moment' as body", "CCZ");
    a.send(&batch(&[&close_statement("s"), &prepare, SYNC, &run]));
    a.says("31Z2DCZ");
    a.asks("commit", "CZ");
    a.send(&run);
    a.says("2DCZ");
    a.leave();
}

fn constants_are_read_with_the_settings_of_the_parse(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    let prepare = parse(
        "s",
        "select '01/02/2003'::date - date '2003-01-01' as days, array_length('{null}'::text[], 1)",
    );
    let run = batch(&[&bind("s"), &execute(), SYNC]);
    a.send(&batch(&[&prepare, SYNC, &run]));
    a.says("1Z2DCZ");
    b.query("set datestyle = 'ISO, DMY'");
    b.send(&batch(&[&prepare, SYNC, &run]));
    b.says("1Z2DCZ");
    b.query("begin; set local datestyle = 'ISO, YMD'; set local array_nulls = off");
    b.send(&batch(&[&close_statement("s"), &parse("s", "select '{null}'::text[]"), SYNC, &run]));
    b.says("31Z2DCZ");
    b.query("rollback");
    a.send(&batch(&[&close_statement("s"), &parse("s", "select '{null}'::text[]"), SYNC, &run]));
    a.says("31Z2DCZ");
    a.leave();
    b.leave();
}

fn a_dropped_table_is_an_error_of_its_statement(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("create table t as select 1 as id", "CZ");
    a.send(&batch(&[&parse("s", "select id from t"), &bind("s"), &execute(), SYNC]));
    a.says("12DCZ");
    a.asks("drop table t", "CZ");
    a.send(&batch(&[&bind("s"), &execute(), SYNC]));
    a.says("E42P01Z");
    a.asks("create table t as select 2 as id", "CZ");
    a.send(&batch(&[&bind("s"), &execute(), SYNC]));
    a.says("2DCZ");
    a.leave();
}

fn sql_prepare_and_execute_share_the_names_of_parse(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("prepare s (int) as select $1 + 1", "CZ");
    a.asks("execute s (1)", "TDCZ");
    a.send(&batch(&[&describe_statement("s"), &bind_to("", "s", &[Some("2")]), &execute(), SYNC]));
    a.says("tT2DCZ");
    a.send(&batch(&[&parse("s", "select 1"), SYNC, &parse("t", "select 'of t'"), SYNC]));
    a.says("E42P05Z1Z");
    a.asks("execute t", "TDCZ");
    a.asks("prepare t as select 1", "E42P05Z");
    a.asks("explain (costs off) execute t", "TDCZ");
    a.asks("create table made as execute t", "CZ");
    a.leave();
}

fn sql_deallocate_forgets_names(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("s", "select 1"), &parse("Other Name", "select 2"), SYNC]));
    a.says("11Z");
    a.asks("deallocate s", "CZ");
    a.send(&batch(&[&bind("s"), SYNC]));
    a.says("E26000Z");
    a.asks("deallocate s", "E26000Z");
    a.asks("deallocate prepare \"Other Name\"", "CZ");
    a.asks("prepare s as select 3", "CZ");
    a.send(&batch(&[&close_statement("s"), SYNC]));
    a.says("3Z");
    a.asks("execute s", "E26000Z");
    a.leave();
}

fn deallocate_all_forgets_all_names(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("s", "select 1"), SYNC]));
    a.says("1Z");
    a.asks("prepare t as select 2", "CZ");
    a.asks("deallocate all", "CZ");
    a.send(&batch(&[
        &bind("s"),
        SYNC,
        &bind("t"),
        SYNC,
        &parse("s", "select 3"),
        &bind("s"),
        &execute(),
        SYNC,
    ]));
    a.says("E26000ZE26000Z12DCZ");
    // In a transaction it takes effect at once, whatever becomes of that.
    a.asks("begin; deallocate all; rollback", "CCCZ");
    a.send(&batch(&[&bind("s"), SYNC]));
    a.says("E26000Z");
    a.leave();
}

fn discard_all_forgets_all_names(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("s", "select 1"), SYNC]));
    a.says("1Z");
    a.asks("begin", "CZ");
    a.asks("discard all", "E25001Z");
    a.asks("rollback", "CZ");
    a.send(&batch(&[&bind("s"), &execute(), SYNC]));
    a.says("2DCZ");
    a.asks("discard plans", "CZ");
    a.send(&batch(&[&bind("s"), &execute(), SYNC]));
    a.says("2DCZ");
    a.asks("discard all", "CZ");
    a.send(&batch(&[&bind("s"), SYNC]));
    a.says("E26000Z");
    a.leave();
}

fn sql_prepare_is_known_to_its_client_only(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("prepare s as select 'of a'", "CZ");
    b.asks("execute s", "E26000Z");
    b.asks("prepare s as select 'of b'", "CZ");
    a.asks("execute s", "TDCZ");
    b.asks("execute s", "TDCZ");
    a.leave();
    b.asks("execute s", "TDCZ");
    b.leave();
    let mut c = stage.client("c");
    c.asks("execute s", "E26000Z");
    c.asks("prepare s as select 'of c'", "CZ");
    c.leave();
}

fn an_execute_of_a_missing_name_fails(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("execute nothing", "E26000Z");
    a.asks("deallocate nothing", "E26000Z");
    a.asks("prepare broken as select nothing", "E42703Z");
    a.asks("execute broken", "E26000Z");
    a.asks("begin; prepare s as select 1; rollback", "CCCZ");
    a.asks("execute s", "TDCZ");
    a.leave();
}

fn positions_in_errors_are_those_of_the_clients_text(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("/* \u{fc} */ prepare \"a rather long n\u{e4}me\" as select nothing", "E42703Z");
    a.asks("prepare s as select 1; execute s; select nothing", "CTDCE42703Z");
    a.asks("deallocate s; execute s; select 1", "CE26000Z");
    a.asks("prepare t as selec 1", "E42601Z");
    a.send(&batch(&[&run("prepare u as select nothing"), SYNC]));
    a.says("12E42703Z");
    a.send(&batch(&[&parse("v", "prepare u as select nothing"), SYNC, &bind("v"), &execute(), SYNC]));
    a.says("1Z2E42703Z");
    a.leave();
}

fn a_statement_prepared_by_another_user_tells_nothing(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client_with("b", &[("user", crate::stage::PLAIN)]));
    a.asks("create table secret as select 1 as id", "CZ");
    a.send(&batch(&[&parse("s", "select * from secret"), &bind("s"), &execute(), SYNC]));
    a.says("12DCZ");
    b.send(&batch(&[&parse("s", "select * from secret"), &describe_statement("s"), SYNC]));
    b.says("1tTZ");
    b.send(&batch(&[&bind("s"), &execute(), SYNC]));
    b.says("E42501Z");
    a.leave();
    b.leave();
}

fn many_statements_are_kept(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    let names: Vec<String> = (0..700).map(|number| format!("s{number}")).collect();
    let parses = names.iter().flat_map(|name| parse(name, &format!("select '{name}'"))).collect::<Vec<_>>();
    let uses = names.iter().flat_map(|name| [bind(name), execute()].concat()).collect::<Vec<_>>();
    let shapes = a.quietly(|a| {
        a.send(&batch(&[&parses, SYNC]));
        let first = a.ready();
        a.send(&batch(&[&uses, SYNC]));
        (first, a.ready())
    });
    stage.note("700 statements", shapes);
    a.send(&batch(&[&bind("s3"), &execute(), &bind("s699"), &execute(), SYNC]));
    a.says("2DC2DCZ");
    a.leave();
}

fn pg_prepared_statements_shows_the_names_of_the_client(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.send(&batch(&[&parse("by parse", "select 1"), SYNC]));
    a.says("1Z");
    a.asks("prepare by_sql as select 2", "CZ");
    a.asks("select name, statement, from_sql from pg_prepared_statements order by name", "TDDCZ");
    a.leave();
}
