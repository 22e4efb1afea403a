//! From the first byte to the first ReadyForQuery: versions, TLS, log-in, refusals.

use crate::cases::cases;
use crate::client::Client;
use crate::send::{V3_0, V3_2, gssenc_request, packet, password, ssl_request, startup};
use crate::stage::{PASSWORD, PLAIN, Stage, USER};

cases![
    the_start_up_reports_all_parameters,
    the_start_up_echoes_what_the_client_set,
    options_that_are_refused_refuse_the_log_in,
    protocol_3_2_is_negotiated,
    the_next_minor_version_is_negotiated_down,
    a_greased_version_is_negotiated_down,
    unknown_protocol_options_are_named_in_the_negotiation,
    another_major_version_is_refused,
    protocol_2_is_refused,
    gssapi_encryption_is_refused_and_the_start_goes_on,
    gssapi_and_then_tls_are_negotiated,
    tls_and_then_gssapi_are_negotiated,
    a_second_tls_request_is_refused,
    tls_works_after_its_request,
    tls_with_the_protocol_postgresql_works,
    tls_with_another_protocol_is_refused since 17,
    direct_tls_works,
    direct_tls_without_the_protocol_is_refused since 17,
    bytes_before_the_tls_handshake_are_refused,
    the_proof_may_be_bound_to_the_tls_channel,
    a_proof_bound_to_another_certificate_is_refused,
    the_mechanisms_without_tls_are_without_binding,
    an_unknown_mechanism_is_refused,
    a_wrong_password_is_refused,
    an_unknown_user_is_refused_as_a_wrong_password,
    an_unknown_database_is_refused_after_the_password,
    an_ordinary_user_logs_in,
    a_user_without_the_right_to_connect_is_refused,
    a_role_that_cannot_log_in_is_refused,
    a_user_is_demanded,
    the_database_is_the_users_name_by_default,
    a_garbled_proof_is_refused,
    a_password_in_clear_is_no_proof,
    a_query_instead_of_a_proof_is_refused,
    too_long_a_start_up_packet_ends_the_connection,
    too_short_a_start_up_packet_ends_the_connection,
    a_start_up_without_its_terminator_is_refused,
    a_start_up_that_is_cut_off_ends_quietly,
    the_start_up_may_come_byte_by_byte,
    names_are_cut_to_63_bytes,
];

fn enter(client: &mut Client, stage: &Stage<'_>, more: &[(&str, &str)]) -> bool {
    let database = stage.database();
    let parameters = [&[("user", USER), ("database", database.as_str())], more].concat();
    client.log_in(V3_0, &parameters, PASSWORD)
}

fn the_start_up_reports_all_parameters(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    enter(&mut a, stage, &[]);
    a.leave();
    let mut b = stage.connection("b");
    enter(&mut b, stage, &[("client_encoding", "UTF8"), ("DateStyle", "ISO"), ("extra_float_digits", "2")]);
    b.leave();
}

fn the_start_up_echoes_what_the_client_set(stage: &Stage<'_>) {
    let long = "it's \u{e9}".repeat(11);
    let sets: [&[(&str, &str)]; 9] = [
        &[("application_name", &long)],
        &[("application_name", &long[1..]), ("options", "-c application_name=by_options")],
        &[("client_encoding", "latin1"), ("TimeZone", "asia/tokyo")],
        &[("CLIENT_ENCODING", "utf-8"), ("timezone", "-3")],
        &[("datestyle", "german"), ("IntervalStyle", "iso_8601"), ("application_name", "it's \u{e9}")],
        &[("options", "-c application_name=by_options -c datestyle=dmy")],
        &[("application_name", "by name"), ("options", "-c application_name=by_options")],
        &[("standard_conforming_strings", "off"), ("session_authorization", "plain")],
        &[
            ("application_name", "first"),
            ("application_name", "second"),
            ("options", "--timezone=UTC  -cwork_mem=7MB"),
        ],
    ];
    for more in sets {
        let mut a = stage.connection("a");
        if enter(&mut a, stage, more) {
            a.query("show application_name");
            a.query("select application_name from pg_stat_activity where pid = pg_backend_pid()");
        }
        a.leave();
    }
}

fn options_that_are_refused_refuse_the_log_in(stage: &Stage<'_>) {
    for more in [
        [("work_mem", "nonsense")],
        [("no_such_parameter", "1")],
        [("options", "-c work_mem=nonsense")],
        [("options", "-c no_such_parameter=1")],
        [("options", "--")],
        [("options", "-x")],
        [("client_encoding", "nonsense")],
        [("TimeZone", "Nowhere/At_All")],
        [("max_connections", "7")],
        [("datestyle", "nonsense")],
    ] {
        let mut a = stage.connection("a");
        enter(&mut a, stage, &more);
        a.leave();
    }
}

fn versioned(stage: &Stage<'_>, version: u32, more: &[(&str, &str)]) {
    let mut a = stage.connection("a");
    let database = stage.database();
    let parameters = [&[("user", USER), ("database", database.as_str())], more].concat();
    if a.log_in(version, &parameters, PASSWORD) {
        a.asks("select 1", "TDCZ");
    }
    a.leave();
}

fn protocol_3_2_is_negotiated(stage: &Stage<'_>) {
    versioned(stage, V3_2, &[]);
}

fn the_next_minor_version_is_negotiated_down(stage: &Stage<'_>) {
    versioned(stage, 0x0003_0001, &[]);
    versioned(stage, 0x0003_0003, &[]);
}

fn a_greased_version_is_negotiated_down(stage: &Stage<'_>) {
    versioned(stage, 0x0003_270f, &[("_pq_.test_protocol_negotiation", "")]);
}

fn unknown_protocol_options_are_named_in_the_negotiation(stage: &Stage<'_>) {
    versioned(stage, V3_0, &[("_pq_.one", "1"), ("_pq_.two", "")]);
    versioned(stage, V3_2, &[("_pq_.one", "1")]);
}

fn another_major_version_is_refused(stage: &Stage<'_>) {
    for version in [0x0004_0000, 0x0001_0000, 0x0003_0000 + 0x0100_0000] {
        let mut a = stage.connection("a");
        a.send(&startup(version, &[("user", USER)]));
        while a.next().is_some() {}
    }
}

fn protocol_2_is_refused(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    a.send(&packet(0x0002_0000, &[0; 288]));
    while a.byte().is_some() {}
}

/// Asks for GSSAPI encryption, which is refused. Whether PostgreSQL has it depends on how it was built: it is not asked.
fn ask_for_gssapi(stage: &Stage<'_>, client: &mut Client) {
    let is_refused = stage.is_postgresql_before(u32::MAX)
        || client.quietly(|client| {
            client.send(&gssenc_request());
            client.byte() == Some(b'N')
        });
    stage.note("GSSAPI is refused", is_refused);
}

fn gssapi_encryption_is_refused_and_the_start_goes_on(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    ask_for_gssapi(stage, &mut a);
    enter(&mut a, stage, &[]);
    a.leave();
}

fn gssapi_and_then_tls_are_negotiated(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    ask_for_gssapi(stage, &mut a);
    a.send(&ssl_request());
    a.byte();
    let Some(mut a) = a.start_tls(stage.tls(&[])) else { return };
    enter(&mut a, stage, &[]);
    a.leave();
}

fn tls_and_then_gssapi_are_negotiated(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    a.send(&ssl_request());
    a.byte();
    let Some(mut a) = a.start_tls(stage.tls(&[])) else { return };
    a.send(&gssenc_request());
    while a.next().is_some() {}
}

fn a_second_tls_request_is_refused(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    a.send(&ssl_request());
    a.byte();
    let Some(mut a) = a.start_tls(stage.tls(&[])) else { return };
    a.send(&ssl_request());
    while a.next().is_some() {}
}

fn with_tls(stage: &Stage<'_>, protocols: &[&str]) {
    let mut a = stage.connection("a");
    a.send(&ssl_request());
    a.byte();
    let Some(mut a) = a.start_tls(stage.tls(protocols)) else { return };
    enter(&mut a, stage, &[]);
    a.asks("select 1", "TDCZ");
    a.asks(&format!("select length('{}')", "x".repeat(100_000)), "TDCZ");
    a.leave();
}

fn tls_works_after_its_request(stage: &Stage<'_>) {
    with_tls(stage, &[]);
}

fn tls_with_the_protocol_postgresql_works(stage: &Stage<'_>) {
    with_tls(stage, &["postgresql"]);
}

fn tls_with_another_protocol_is_refused(stage: &Stage<'_>) {
    with_tls(stage, &["http/1.1"]);
}

fn direct_tls_works(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    // Servers before 17 have it only after a request: what comes then has to be the same.
    if stage.is_postgresql_before(17) {
        a.quietly(|a| {
            a.send(&ssl_request());
            a.byte();
        });
    }
    let Some(mut a) = a.quietly_start_tls(stage.tls(&["postgresql"])) else {
        stage.note("direct TLS", "refused");
        return;
    };
    enter(&mut a, stage, &[]);
    a.asks("select 1", "TDCZ");
    a.leave();
}

fn direct_tls_without_the_protocol_is_refused(stage: &Stage<'_>) {
    for protocols in [&[][..], &["http/1.1"]] {
        let is_open = stage.connection("a").quietly_start_tls(stage.tls(protocols)).is_some_and(|mut a| {
            let is_in =
                a.quietly(|a| a.log_in(V3_0, &[("user", USER), ("database", &stage.database())], PASSWORD));
            a.quietly(Client::leave_now);
            is_in
        });
        stage.note("let in", is_open);
    }
}

fn bytes_before_the_tls_handshake_are_refused(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    // What an attacker put in between may not be taken for what comes through the channel.
    let smuggled = startup(V3_0, &[("user", USER), ("database", &stage.database())]);
    a.quietly(|a| {
        a.send(&[ssl_request(), smuggled].concat());
        a.byte();
    });
    let is_answered = a.quietly_start_tls(stage.tls(&[])).is_some_and(|mut a| {
        let first = a.quietly(Client::next);
        a.quietly(Client::leave_now);
        first.is_some_and(|(tag, _)| tag == b'R')
    });
    stage.note("the smuggled packet is answered", is_answered);
}

fn the_proof_may_be_bound_to_the_tls_channel(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    a.send(&ssl_request());
    a.byte();
    let Some(mut a) = a.start_tls(stage.tls(&[])) else { return };
    a.send(&startup(V3_0, &[("user", USER), ("database", &stage.database())]));
    let is_in = a.prove(PASSWORD, Some(stage.world.certificate_hash()));
    stage.note("let in", is_in);
    a.leave();
}

fn a_proof_bound_to_another_certificate_is_refused(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    a.send(&ssl_request());
    a.byte();
    let Some(mut a) = a.start_tls(stage.tls(&[])) else { return };
    a.send(&startup(V3_0, &[("user", USER), ("database", &stage.database())]));
    a.prove(PASSWORD, Some(vec![7; 32]));
    a.leave();
}

fn the_mechanisms_without_tls_are_without_binding(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    a.send(&startup(V3_0, &[("user", USER), ("database", &stage.database())]));
    a.next();
    // Bound to a channel that there is not.
    a.send(&password(b"SCRAM-SHA-256-PLUS\0\0\0\0\x20p=tls-server-end-point,,n=,r=abcd"));
    a.says_at_last("E08P01");
}

fn an_unknown_mechanism_is_refused(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    a.send(&startup(V3_0, &[("user", USER), ("database", &stage.database())]));
    a.next();
    a.send(&password(b"SCRAM-SHA-512\0\0\0\0\x0bn,,n=,r=abcd"));
    a.says_at_last("E08P01");
}

/// A log-in that ends as it ends.
fn attempt(stage: &Stage<'_>, parameters: &[(&str, &str)], password: &str) {
    let mut a = stage.connection("a");
    a.log_in(V3_0, parameters, password);
    a.leave();
}

fn a_wrong_password_is_refused(stage: &Stage<'_>) {
    let database = stage.database();
    attempt(stage, &[("user", USER), ("database", &database)], "wrong");
    attempt(stage, &[("user", PLAIN), ("database", &database)], "");
    attempt(stage, &[("user", USER), ("database", "nowhere")], "wrong");
}

fn an_unknown_user_is_refused_as_a_wrong_password(stage: &Stage<'_>) {
    let database = stage.database();
    attempt(stage, &[("user", "nobody"), ("database", &database)], PASSWORD);
    attempt(stage, &[("user", "no\"body\u{e9}"), ("database", &database)], PASSWORD);
}

fn an_unknown_database_is_refused_after_the_password(stage: &Stage<'_>) {
    attempt(stage, &[("user", USER), ("database", "nowhere")], PASSWORD);
    attempt(stage, &[("user", USER), ("database", "no\"where\u{e9}")], PASSWORD);
}

fn an_ordinary_user_logs_in(stage: &Stage<'_>) {
    attempt(stage, &[("user", PLAIN), ("database", &stage.database())], PASSWORD);
}

fn a_user_without_the_right_to_connect_is_refused(stage: &Stage<'_>) {
    attempt(stage, &[("user", PLAIN), ("database", "closed")], PASSWORD);
}

fn a_role_that_cannot_log_in_is_refused(stage: &Stage<'_>) {
    attempt(stage, &[("user", "locked"), ("database", &stage.database())], PASSWORD);
}

fn a_user_is_demanded(stage: &Stage<'_>) {
    for parameters in [&[][..], &[("database", "app")], &[("user", ""), ("database", "app")]] {
        let mut a = stage.connection("a");
        a.send(&startup(V3_0, parameters));
        while a.next().is_some() {}
    }
}

fn the_database_is_the_users_name_by_default(stage: &Stage<'_>) {
    attempt(stage, &[("user", USER)], PASSWORD);
    attempt(stage, &[("user", USER), ("database", "")], PASSWORD);
}

fn a_garbled_proof_is_refused(stage: &Stage<'_>) {
    for first in [
        &b"n,,n=,r="[..],
        b"x,,n=,r=abcd",
        b"y,,n=,r=abcd",
        b"n,,m=x,n=,r=abcd",
        b"n,a=other,n=,r=abcd",
        b"",
        b"n",
    ] {
        let mut a = stage.connection("a");
        a.send(&startup(V3_0, &[("user", USER), ("database", &stage.database())]));
        a.next();
        let length = u32::try_from(first.len()).expect("short").to_be_bytes();
        a.send(&password(&[b"SCRAM-SHA-256\0", &length[..], first].concat()));
        if a.next().is_some_and(|(tag, _)| tag == b'R') {
            a.send(&password(b"c=biws,r=abcd,p=AAAA"));
        }
        while !a.is_over() && a.next().is_some() {}
    }
}

fn a_password_in_clear_is_no_proof(stage: &Stage<'_>) {
    for body in [
        format!("{PASSWORD}\0").into_bytes(),
        b"\0".to_vec(),
        Vec::new(),
        b"SCRAM-SHA-256\0\0\0\xff\xffn,,".to_vec(),
    ] {
        let mut a = stage.connection("a");
        a.send(&startup(V3_0, &[("user", USER), ("database", &stage.database())]));
        a.next();
        a.send(&password(&body));
        while a.next().is_some() {}
    }
}

fn a_query_instead_of_a_proof_is_refused(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    a.send(&startup(V3_0, &[("user", USER), ("database", &stage.database())]));
    a.next();
    a.send(&crate::send::query("select 1"));
    a.says_at_last("E08P01");
}

fn too_long_a_start_up_packet_ends_the_connection(stage: &Stage<'_>) {
    for length in [10_005_u32, 0x7fff_ffff, 0xffff_ffff] {
        let mut a = stage.connection("a");
        a.send(&[&length.to_be_bytes()[..], &V3_0.to_be_bytes()].concat());
        while a.next().is_some() {}
    }
    // Almost the longest that is taken.
    let long = "x".repeat(9_000);
    let mut a = stage.connection("a");
    let is_in = a.quietly(|a| enter(a, stage, &[("application_name", &long)]));
    stage.note("let in with 9,000 bytes of a name", is_in);
    a.asks("show application_name", "TDCZ");
    a.leave();
}

fn too_short_a_start_up_packet_ends_the_connection(stage: &Stage<'_>) {
    for length in [0_u32, 4, 7] {
        let mut a = stage.connection("a");
        a.send(&[&length.to_be_bytes()[..], b"abcd"].concat());
        while a.next().is_some() {}
    }
}

fn a_start_up_without_its_terminator_is_refused(stage: &Stage<'_>) {
    for body in [&b"user\0tester"[..], b"user\0tester\0", b"user\0tester\0\0\0", b"user\0", b""] {
        let mut a = stage.connection("a");
        a.send(&packet(V3_0, body));
        while a.next().is_some_and(|(tag, _)| tag != b'R') {}
        a.vanish();
    }
}

fn a_start_up_that_is_cut_off_ends_quietly(stage: &Stage<'_>) {
    let whole = startup(V3_0, &[("user", USER), ("database", "app")]);
    for end in [0, 3, 4, 8, whole.len() - 1] {
        let mut a = stage.connection("a");
        a.send(&whole[..end]);
        a.stop_sending();
        while a.next().is_some() {}
    }
}

fn the_start_up_may_come_byte_by_byte(stage: &Stage<'_>) {
    let mut a = stage.connection("a");
    a.quietly(|a| {
        for byte in startup(V3_0, &[("user", USER), ("database", &stage.database())]) {
            a.send(&[byte]);
        }
    });
    a.prove(PASSWORD, None);
    a.leave();
}

fn names_are_cut_to_63_bytes(stage: &Stage<'_>) {
    let long = "u".repeat(70);
    attempt(stage, &[("user", &long), ("database", &stage.database())], PASSWORD);
    attempt(stage, &[("user", USER), ("database", &"d".repeat(70))], PASSWORD);
}
