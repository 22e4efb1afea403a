//! What a session has set, on whatever server.

use super::*;

#[test]
fn what_a_session_sets_goes_with_it_to_another_server() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("set a.b = 1"));
    bench.answer(&[complete("SET"), ready(TransactionStatus::Idle)].concat());
    assert!(bench.session.releasable(&bench.server));
    bench.session.release();
    bench.server_got();
    // The same server has it, another one not.
    bench.attach(false);
    assert_eq!(bench.server_got(), "");
    bench.session.release();
    bench.server = Server::new(&Arc::default());
    bench.attach(false);
    assert!(String::from_utf8_lossy(&bench.to_server).contains("set a.b = 1"));
    // And the next session there does not get it.
    bench.answer(&[complete("SET"), ready(TransactionStatus::Idle)].concat());
    bench.session = Session::new(1 << 30);
    bench.to_server.clear();
    bench.attach(false);
    assert!(String::from_utf8_lossy(&bench.to_server).contains("RESET \"a\".\"b\""));
}

#[test]
fn a_setting_that_was_refused_or_rolled_back_is_none() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("set a.b = 1"));
    bench.answer(&[error("22023", "no"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.server_got(), "Q");
    assert!(bench.session.releasable(&bench.server));
    bench.session.release();
    begin(&mut bench);
    bench.forward(&query("set a.c = 1"));
    bench.answer(&[complete("SET"), ready(TransactionStatus::InBlock)].concat());
    bench.to_server.clear();
    bench.forward(&query("rollback"));
    bench.answer(&[complete("ROLLBACK"), ready(TransactionStatus::Idle)].concat());
    let asked = String::from_utf8_lossy(&bench.to_server).into_owned();
    assert!(asked.contains("current_setting('a.c', true)"), "{asked}");
    assert!(!bench.session.releasable(&bench.server));
    bench.answer(&left_behind(None, &[]));
    assert!(bench.session.releasable(&bench.server));
    bench.session.release();
    bench.server = Server::new(&Arc::default());
    bench.to_server.clear();
    bench.attach(false);
    assert_eq!(bench.server_got(), "");
}

#[test]
fn a_parameter_changed_by_a_function_goes_along_and_one_that_came_back_does_not() {
    let mut bench = Bench::new();
    bench.server = Server::new(&reported(&[("TimeZone", "UTC")]));
    let report = |value: &str| {
        let mut out = Vec::new();
        write::parameter_status(&mut out, "TimeZone", value);
        out
    };
    let (away, back) = (report("Asia/Seoul"), report("UTC"));
    bench.attach(false);
    bench.forward(&query("select f()"));
    bench.answer(&[&away[..], &back, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert!(bench.session.releasable(&bench.server));
    bench.session.release();
    bench.attach(false);
    bench.forward(&query("select f()"));
    bench.answer(&[&complete("SELECT 1")[..], &away, &ready(TransactionStatus::Idle)].concat());
    assert!(!bench.session.releasable(&bench.server));
    bench.answer(&left_behind(None, &[("TimeZone", "Asia/Seoul")]));
    assert!(bench.session.releasable(&bench.server));
    bench.session.release();
    bench.client_got();
    bench.server = Server::new(&reported(&[("TimeZone", "UTC")]));
    bench.to_server.clear();
    bench.attach(false);
    assert!(String::from_utf8_lossy(&bench.to_server).contains("SET timezone TO 'Asia/Seoul'"));
    // The client knows it already.
    bench.answer(&[&complete("SET")[..], &away, &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "");
}

#[test]
fn a_parameter_changed_by_the_administrator_is_told_and_is_nobodys_setting() {
    let mut bench = Bench::new();
    let base = reported(&[("TimeZone", "UTC")]);
    bench.session.welcomed(&base, None);
    bench.server = Server::new(&base);
    bench.attach(false);
    bench.forward(&query("insert"));
    let mut seoul = Vec::new();
    write::parameter_status(&mut seoul, "TimeZone", "Asia/Seoul");
    bench.answer(&[&complete("INSERT 0 1")[..], &seoul, &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "C:INSERT 0 1 S ZI");
    bench.answer(&left_behind(None, &[]));
    assert_eq!(bench.session.pinned(), None);
    bench.session.release();
    // Another client was told something else when it came.
    bench.session = Session::new(1 << 30);
    bench.session.welcomed(&base, None);
    bench.attach(false);
    bench.forward(&query("insert"));
    bench.answer(&[complete("RESET"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "S");
}

#[test]
fn what_the_server_answers_to_metako_may_come_in_parts() {
    let answer = [described(23, "exists"), left_behind(Some(1), &[])].concat();
    for cut in 1..answer.len() {
        let mut bench = Bench::new();
        bench.attach(false);
        bench.forward(&query("call f"));
        bench.answer(&[complete("CALL"), ready(TransactionStatus::Idle)].concat());
        let taken = bench.session.answer(
            &mut bench.server,
            &answer[..cut],
            &mut bench.to_client,
            &mut bench.to_server,
        );
        bench.answer(&answer[taken.unwrap().consumed..]);
        assert_eq!(bench.session.pinned(), Some("it holds advisory locks"), "cut at {cut}");
    }
}

#[test]
fn what_cannot_be_made_elsewhere_keeps_the_server_until_it_is_given_up() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("listen a"));
    bench.answer(&[complete("LISTEN"), ready(TransactionStatus::Idle)].concat());
    bench.answer(&left_behind(Some(3), &[]));
    assert_eq!(bench.session.pinned(), Some("it listens to notifications"));
    assert!(!bench.session.releasable(&bench.server));
    bench.forward(&query("insert"));
    bench.answer(&[complete("INSERT 0 1"), ready(TransactionStatus::Idle)].concat());
    bench.server_got();
    bench.forward(&query("unlisten *"));
    bench.answer(&[complete("UNLISTEN"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.server_got(), "Q Q");
    bench.answer(&left_behind(None, &[]));
    assert_eq!(bench.session.pinned(), None);
    assert!(bench.session.releasable(&bench.server));
    // What the server does not answer keeps it too.
    bench.forward(&query("call p()"));
    bench.answer(&[complete("CALL"), ready(TransactionStatus::Idle)].concat());
    bench.answer(&[error("57014", "canceling statement"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.session.pinned(), Some("its server could not be asked what it has there"));
    bench.client_got();
    assert_eq!(bench.lose(), Loss::Close);
    assert_eq!(bench.client_got(), "E57P01");
}

#[test]
fn discard_all_ends_what_the_session_has() {
    let mut bench = Bench::new();
    bench.attach(false);
    for (sql, tag, asks) in
        [("set a.b = 1", "SET", false), ("listen a", "LISTEN", true), ("currval s", "SELECT 1", false)]
    {
        bench.forward(&query(sql));
        bench.answer(&[complete(tag), ready(TransactionStatus::Idle)].concat());
        if asks {
            bench.answer(&left_behind(Some(3), &[]));
        }
    }
    bench.forward(&[&parse("s", "select 1")[..], SYNC].concat());
    bench.answer(&[ONE, &ready(TransactionStatus::Idle)].concat());
    assert!(bench.session.pinned().is_some());
    bench.forward(&query("discard all"));
    bench.answer(&[complete("DISCARD ALL"), ready(TransactionStatus::Idle)].concat());
    bench.answer(&left_behind(None, &[]));
    assert_eq!(bench.session.pinned(), None);
    bench.session.release();
    bench.server = Server::new(&Arc::default());
    bench.to_server.clear();
    bench.attach(false);
    bench.forward(&[&bind("s")[..], SYNC].concat());
    assert_eq!(bench.server_got(), "Bs S");
}

#[test]
fn a_sequence_value_of_another_session_is_not_read() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("insert"));
    bench.answer(&[complete("INSERT 0 1"), ready(TransactionStatus::Idle)].concat());
    bench.session.release();
    bench.server_got();
    // Its own it may read.
    bench.attach(false);
    bench.forward(&query("currval s"));
    assert_eq!(bench.server_got(), "Q");
    bench.answer(&[complete("SELECT 1"), ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.session.pinned(), Some("it uses currval() or lastval()"));
    bench.session = Session::new(1 << 30);
    bench.attach(false);
    bench.forward(&query("currval s"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("DISCARD SEQUENCES"));
    assert_eq!(bench.server_got(), "Q Q");
}

#[test]
fn a_server_that_does_not_become_what_the_session_needs_ends_it() {
    let mut bench = Bench::new();
    bench.attach(false);
    bench.forward(&query("set a.b = 1"));
    bench.answer(&[complete("SET"), ready(TransactionStatus::Idle)].concat());
    bench.client_got();
    bench.session.release();
    bench.server = Server::new(&Arc::default());
    bench.attach(false);
    bench.forward(&query("insert"));
    assert_eq!(bench.answer(&error("57014", "canceling statement")), Effect::Ended);
    assert_eq!(bench.client_got(), "E08006");
    assert!(!bench.server.is_clean());
}

#[test]
fn the_clients_application_name_is_set_unseen() {
    let mut bench = Bench::new();
    bench.session = named("it's");
    bench.attach(true);
    bench.forward(&query("select 1"));
    assert!(String::from_utf8_lossy(&bench.to_server).contains("SET application_name TO 'it''s'"));
    let mut answer = complete("SET");
    write::parameter_status(&mut answer, "application_name", "it's");
    answer.extend(ready(TransactionStatus::Idle));
    bench.answer(&answer);
    assert_eq!(bench.client_got(), "");
    bench.answer(&[ROW, &complete("SELECT 1"), &ready(TransactionStatus::Idle)].concat());
    assert_eq!(bench.client_got(), "D C:SELECT 1 ZI");
    assert!(bench.session.releasable(&bench.server));
}
