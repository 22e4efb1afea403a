//! Settings, and that no client has those of another.

use crate::cases::cases;
use crate::send::{batch, query};
use crate::stage::Stage;

cases![
    a_setting_in_a_transaction_is_reported_and_taken_back,
    set_local_is_reported_and_reverts_with_the_commit,
    a_setting_is_reported_only_when_it_changes,
    settings_stay_with_their_client,
    settings_made_by_functions_stay_with_their_client,
    the_search_path_stays_with_its_client,
    reported_settings_stay_with_their_client,
    a_setting_of_a_failed_transaction_is_gone,
    reset_goes_back_to_what_the_start_up_said,
    reset_all_goes_back_to_what_the_start_up_said,
    discard_all_goes_back_to_what_the_start_up_said,
    discard_all_is_refused_in_a_transaction,
    the_settings_of_the_start_up_are_the_clients_own,
    the_options_of_the_start_up_are_the_clients_own,
    the_application_name_is_the_clients_own,
    an_application_name_may_change,
    client_encoding_is_the_clients_own,
    date_style_is_the_clients_own,
    session_characteristics_stay_with_their_client,
    a_setting_is_of_its_session_in_pg_settings,
];

fn a_setting_in_a_transaction_is_reported_and_taken_back(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.asks("set timezone = 'Asia/Tokyo'", "CSZ");
    a.asks("show timezone", "TDCZ");
    a.asks("rollback", "CSZ");
    a.asks("show timezone", "TDCZ");
    a.asks("begin; set timezone = 'Asia/Tokyo'; commit", "CCCSZ");
    a.asks("show timezone", "TDCZ");
    a.asks("begin; savepoint s; set timezone = 'UTC'; rollback to s; commit", "CCCCCZ");
    a.asks("show timezone", "TDCZ");
    a.leave();
}

fn set_local_is_reported_and_reverts_with_the_commit(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.asks("set local datestyle = 'German'", "CSZ");
    a.asks("commit", "CSZ");
    a.asks("show datestyle", "TDCZ");
    a.asks("set local datestyle = 'German'", "N25P01CZ");
    a.asks("show datestyle", "TDCZ");
    a.asks(
        "begin; select set_config('timezone', 'Asia/Tokyo', true), set_config('work_mem', '7MB', true)",
        "CTDCSZ",
    );
    a.asks("end; show work_mem", "CTDCSZ");
    a.leave();
}

fn a_setting_is_reported_only_when_it_changes(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("set timezone = 'utc'", "CZ");
    a.asks("set timezone = 'Asia/Tokyo'", "CSZ");
    a.asks("set timezone = 'asia/tokyo'", "CZ");
    a.asks("set work_mem = '5MB'", "CZ");
    a.asks("set timezone = 'Nowhere/At_All'", "E22023Z");
    a.asks("set nonsense = 1", "E42704Z");
    a.asks("set own.setting = 1; show own.setting", "CTDCZ");
    a.leave();
}

fn settings_stay_with_their_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("set work_mem = '7MB'", "CZ");
    b.asks("set work_mem = '9MB'; set own.setting = 'of b'", "CCZ");
    a.asks_of_all("show work_mem");
    b.asks_of_all("show work_mem");
    a.asks("show own.setting", "E42704Z");
    b.asks("show own.setting", "TDCZ");
    let mut c = stage.client("c");
    c.asks_of_all("show work_mem");
    for client in [a, b, c] {
        client.leave();
    }
    let mut d = stage.client("d");
    d.asks_of_all("show work_mem");
    d.leave();
}

fn settings_made_by_functions_stay_with_their_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks(
        "create function hidden() returns int language plpgsql as \
         $$ begin perform set_config('work_mem', '7MB', false); return 1; end $$",
        "CZ",
    );
    a.asks("select hidden()", "TDCZ");
    b.asks_of_all("show work_mem");
    a.asks_of_all("show work_mem");
    b.asks("do $$ begin set work_mem = '8MB'; end $$", "CZ");
    b.asks_of_all("show work_mem");
    a.asks_of_all("show work_mem");
    a.leave();
    b.leave();
}

fn the_search_path_stays_with_its_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("create schema apart; create table apart.t as select 1 as id", "CCZ");
    // Reported from PostgreSQL 18 on.
    a.query("set search_path = apart");
    b.asks("table t", "E42P01Z");
    a.asks("table t", "TDCZ");
    b.query("select set_config('search_path', 'apart', false)");
    b.asks("table t", "TDCZ");
    let mut c = stage.client_with("c", &[("search_path", "apart, public")]);
    c.asks("table t", "TDCZ");
    let mut d = stage.client("d");
    d.asks("show search_path", "TDCZ");
    d.asks("drop schema apart cascade", "N00000CZ");
    for client in [a, b, c, d] {
        client.leave();
    }
}

fn reported_settings_stay_with_their_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.asks("set datestyle = 'SQL, DMY'; set intervalstyle = 'iso_8601'; set default_transaction_isolation = serializable", "CCCSSZ");
    a.asks("set bytea_output = 'escape'; set extra_float_digits = -3", "CCZ");
    let sql = "select date '2020-12-31', interval '1 day', 'A'::bytea, 0.1::float8 / 3";
    b.asks(sql, "TDCZ");
    a.asks(sql, "TDCZ");
    b.asks(sql, "TDCZ");
    a.leave();
    b.asks(sql, "TDCZ");
    b.leave();
}

fn a_setting_of_a_failed_transaction_is_gone(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin; set work_mem = '7MB'; set timezone = 'Asia/Tokyo'; select 1/0", "CCCE22012Z");
    a.query("commit");
    a.asks("show work_mem", "TDCZ");
    a.asks("set work_mem = '7MB'; select 1/0", "CE22012Z");
    a.asks("show work_mem", "TDCZ");
    a.leave();
}

const OWN: &[(&str, &str)] =
    &[("TimeZone", "Asia/Tokyo"), ("options", "-c work_mem=7MB"), ("application_name", "own")];
const SHOWN: &str =
    "select current_setting('timezone'), current_setting('work_mem'), current_setting('application_name')";

fn reset_goes_back_to_what_the_start_up_said(stage: &Stage<'_>) {
    let mut a = stage.client_with("a", OWN);
    a.asks("set timezone = 'UTC'; set work_mem = '9MB'; set application_name = 'other'", "CCCSSZ");
    a.asks("reset timezone; reset work_mem; set application_name to default", "CCCSSZ");
    a.asks_of_all(SHOWN);
    a.leave();
}

fn reset_all_goes_back_to_what_the_start_up_said(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client_with("a", OWN), stage.client("b"));
    a.asks("set timezone = 'UTC'; set work_mem = '9MB'; set application_name = 'other'", "CCCSSZ");
    a.asks("reset all", "CSSZ");
    a.asks_of_all(SHOWN);
    b.asks("reset all", "CZ");
    b.asks_of_all(SHOWN);
    a.asks_of_all(SHOWN);
    a.leave();
    b.leave();
}

fn discard_all_goes_back_to_what_the_start_up_said(stage: &Stage<'_>) {
    let mut a = stage.client_with("a", OWN);
    a.asks(
        "set timezone = 'UTC'; create temp table mine (id int); listen l; select pg_advisory_lock(1)",
        "CCCTDCSZ",
    );
    a.asks("discard all", "CSZ");
    a.asks_of_all(SHOWN);
    a.asks("table mine", "E42P01Z");
    a.asks("select * from pg_listening_channels()", "TCZ");
    a.asks("select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()", "TDCZ");
    a.leave();
}

fn discard_all_is_refused_in_a_transaction(stage: &Stage<'_>) {
    let mut a = stage.client("a");
    a.asks("begin", "CZ");
    a.asks("discard all", "E25001Z");
    a.asks("rollback", "CZ");
    a.asks("discard all; select 1", "E25001Z");
    for sql in ["discard temp", "discard sequences", "discard plans", "DISCARD ALL"] {
        a.asks(sql, "CZ");
    }
    a.leave();
}

fn the_settings_of_the_start_up_are_the_clients_own(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client_with("a", OWN), stage.client("b"));
    let mut c = stage.client_with(
        "c",
        &[("datestyle", "SQL, DMY"), ("statement_timeout", "1234"), ("extra_float_digits", "2")],
    );
    for _ in 0..2 {
        a.asks(SHOWN, "TDCZ");
        b.asks(SHOWN, "TDCZ");
        c.asks("select date '2020-12-31', current_setting('statement_timeout'), current_setting('extra_float_digits')", "TDCZ");
    }
    for client in [a, b, c] {
        client.leave();
    }
}

fn the_options_of_the_start_up_are_the_clients_own(stage: &Stage<'_>) {
    let options = "-c work_mem=7MB --default-transaction-isolation=serializable -c own.words=with\\ space";
    let (mut a, mut b) = (stage.client_with("a", &[("options", options)]), stage.client("b"));
    let sql = "select current_setting('work_mem'), current_setting('transaction_isolation'), current_setting('own.words', true)";
    for _ in 0..2 {
        a.asks(sql, "TDCZ");
        b.asks(sql, "TDCZ");
    }
    a.leave();
    b.leave();
}

fn the_application_name_is_the_clients_own(stage: &Stage<'_>) {
    let sql = "select application_name from pg_stat_activity where pid = pg_backend_pid()";
    let mut clients = [
        stage.client_with("a", &[("application_name", "it's \\ own")]),
        stage.client_with("b", &[("application_name", "b\u{e9}")]),
        stage.client("c"),
        stage.client_with("d", &[("application_name", &"long".repeat(30))]),
    ];
    for _ in 0..2 {
        for client in &mut clients {
            client.asks(sql, "TDCZ");
            client.asks("show application_name", "TDCZ");
        }
    }
    for client in clients {
        client.leave();
    }
}

fn an_application_name_may_change(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client_with("a", &[("application_name", "a")]), stage.client("b"));
    a.asks("set application_name = 'changed'", "CSZ");
    b.asks("show application_name", "TDCZ");
    a.asks_of_all("show application_name");
    a.asks("begin; set application_name = 'for a while'; rollback", "CCCZ");
    a.asks_of_all("show application_name");
    a.asks("reset application_name", "CSZ");
    a.asks_of_all("show application_name");
    a.asks("begin; set application_name = 'changed'", "CCSZ");
    a.asks("reset all", "CSZ");
    a.asks("show application_name", "TDCZ");
    a.asks("commit", "CZ");
    b.asks("set application_name = 'changed'; set application_name = default", "CCZ");
    b.asks("show application_name", "TDCZ");
    a.asks_of_all("show application_name");
    a.leave();
    b.leave();
}

fn client_encoding_is_the_clients_own(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client_with("a", &[("client_encoding", "latin1")]), stage.client("b"));
    for _ in 0..2 {
        a.asks("select convert_from('\\xc3a9', 'utf8'), current_setting('client_encoding')", "TDCZ");
        b.asks("select convert_from('\\xc3a9', 'utf8'), current_setting('client_encoding')", "TDCZ");
    }
    a.send(&batch(&[&query("select length('"), &[]])[..]);
    a.says("E42601Z");
    // A byte that is no UTF-8 is a letter in LATIN1.
    a.send(&[&b"Q\0\0\0\x17select length('"[..], &[0xe9], b"')\0"].concat());
    a.says("TDCZ");
    b.send(&[&b"Q\0\0\0\x17select length('"[..], &[0xe9], b"')\0"].concat());
    b.says("E22021Z");
    b.asks("set client_encoding = 'latin1'", "CSZ");
    a.asks("set names 'utf8'", "CSZ");
    b.asks("select convert_from('\\xc3a9', 'utf8')", "TDCZ");
    a.asks("select convert_from('\\xc3a9', 'utf8')", "TDCZ");
    a.asks("set client_encoding = 'nonsense'", "E22023Z");
    a.leave();
    b.leave();
}

fn date_style_is_the_clients_own(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client_with("a", &[("DateStyle", "Postgres, DMY")]), stage.client("b"));
    let mut c = stage.client_with("c", &[("datestyle", "dmy")]);
    for client in [&mut a, &mut b, &mut c] {
        client.asks("select date '2020-12-31', current_setting('datestyle')", "TDCZ");
    }
    b.asks("set datestyle = 'German'", "CSZ");
    for client in [&mut a, &mut b, &mut c] {
        client.asks("select date '2020-12-31', current_setting('datestyle')", "TDCZ");
    }
    for client in [a, b, c] {
        client.leave();
    }
}

fn session_characteristics_stay_with_their_client(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client("a"), stage.client("b"));
    a.query("set session characteristics as transaction isolation level serializable, read only");
    b.asks_of_all(
        "select current_setting('transaction_isolation'), current_setting('transaction_read_only')",
    );
    a.asks_of_all(
        "select current_setting('transaction_isolation'), current_setting('transaction_read_only')",
    );
    a.asks("create table t (id int)", "E25006Z");
    b.asks("create table t (id int)", "CZ");
    a.leave();
    b.leave();
}

fn a_setting_is_of_its_session_in_pg_settings(stage: &Stage<'_>) {
    let (mut a, mut b) = (stage.client_with("a", &[("work_mem", "7MB")]), stage.client("b"));
    let sql = "select name, setting, source from pg_settings where source in ('session', 'client') \
               and name not in ('application_name', 'client_encoding') order by name";
    a.asks("set extra_float_digits = 0", "CZ");
    a.query(sql);
    b.query(sql);
    a.leave();
    b.leave();
}
