//! Forty semantics that are easily got wrong, each with the cases that hold metako to it. What is not about answers on
//! the wire, or needs more nodes than one, is tested elsewhere, and named here.

use std::fmt::Write as _;
use std::path::Path;

use crate::cases;

/// One of the forty: what it is about, its cases, and tests elsewhere as `file: name`.
struct Semantic(&'static str, &'static [&'static str], &'static [&'static str]);

const FORTY: [Semantic; 40] = [
    Semantic(
        "A server is free when every ReadyForQuery that is owed has come",
        &["every_sync_is_answered_by_one_ready", "a_batch_that_was_only_flushed_keeps_its_transaction"],
        &["metako-core/src/session/tests.rs: pipelined_syncs_are_counted"],
    ),
    Semantic(
        "An error discards everything up to Sync, and no further",
        &["an_error_discards_everything_until_sync", "what_follows_the_sync_after_an_error_runs"],
        &[],
    ),
    Semantic("An error is not held back until Sync", &["an_error_comes_at_once_without_flush_or_sync"], &[]),
    Semantic(
        "Notices, notifications, parameters and the death of a server come at any moment",
        &["notifications_come_to_an_idle_listener", "the_end_of_an_idle_backend_is_told"],
        &["metako-proxy/tests/session_mode/main.rs: what_the_server_says_unasked_comes_at_once"],
    ),
    Semantic(
        "A string of several statements is one transaction",
        &[
            "a_multi_statement_string_is_one_transaction",
            "a_begin_in_a_multi_statement_string_takes_what_came_before",
            "a_commit_in_a_multi_statement_string_keeps_what_came_before",
        ],
        &[],
    ),
    Semantic(
        "BEGIN is a statement of its own, with its own tag",
        &[
            "a_begin_alone_is_a_transaction_whatever_follows",
            "a_begin_in_a_transaction_is_a_warning",
            "the_tag_of_begin_is_as_it_was_written",
        ],
        &[],
    ),
    Semantic(
        "How a transaction ended shows in the tag and in ReadyForQuery",
        &[
            "the_commit_of_a_failed_transaction_says_rollback",
            "a_chained_commit_begins_again",
            "savepoints_bring_a_failed_transaction_back",
            "a_prepared_transaction_frees_the_session",
        ],
        &[],
    ),
    Semantic(
        "An empty query is legal in a failed transaction",
        &["an_empty_query_is_legal_in_a_failed_transaction"],
        &[],
    ),
    Semantic(
        "What is left of a COPY that failed reaches nobody",
        &[
            "a_copy_in_that_fails_is_over_before_its_end_comes",
            "the_sync_sent_with_the_execute_of_a_copy_is_ignored",
            "what_is_left_of_a_copy_is_swallowed",
            "copy_fail_fails_the_copy",
            "a_client_gone_within_copy_leaves_nothing",
            "a_large_copy_passes_both_ways",
        ],
        &[],
    ),
    Semantic(
        "A cancel hits the statement that it was meant for, or none",
        &["cancels_in_a_row_hit_no_later_statement", "a_cancel_with_a_wrong_key_does_nothing"],
        &["metako-proxy/tests/relay/main.rs: cancels_and_time_outs_end_statements_and_leave_servers_clean"],
    ),
    Semantic("A cancel while idle is forgotten", &["a_cancel_while_idle_does_nothing"], &[]),
    Semantic(
        "The unnamed statement is replaced and destroyed; named ones outlive rollbacks",
        &[
            "the_unnamed_statement_dies_with_a_simple_query",
            "the_unnamed_statement_outlives_its_sync",
            "named_statements_outlive_rollback_and_errors",
            "a_parse_that_was_discarded_made_nothing",
        ],
        &[],
    ),
    Semantic(
        "Names of statements: taken, missing, closed and given again",
        &[
            "a_name_cannot_be_parsed_twice",
            "closing_what_is_not_there_is_no_error",
            "a_name_may_be_closed_and_parsed_again_in_one_batch",
            "names_belong_to_their_client",
        ],
        &[],
    ),
    Semantic(
        "A statement is not shared across search paths and users",
        &["statements_follow_the_search_path", "a_statement_prepared_by_another_user_tells_nothing"],
        &[],
    ),
    Semantic(
        "A stale plan is an error where the client could see the difference",
        &["a_stale_plan_is_an_error", "a_stale_plan_with_the_same_columns_is_none"],
        &[
            "metako-proxy/tests/relay/hostile.rs: prepared_statements_follow_changes_of_tables_and_refusals_of_replicas",
        ],
    ),
    Semantic(
        "Portals end with their transaction, outlive Flush, and may be suspended",
        &[
            "portals_die_with_their_transaction",
            "portals_outlive_a_flush",
            "a_row_limit_suspends_the_portal",
            "a_portal_may_be_executed_on_and_described",
        ],
        &[],
    ),
    Semantic(
        "PREPARE, EXECUTE and DEALLOCATE share the names of Parse, Bind and Close",
        &[
            "sql_prepare_and_execute_share_the_names_of_parse",
            "sql_deallocate_forgets_names",
            "deallocate_all_forgets_all_names",
            "discard_all_forgets_all_names",
        ],
        &[],
    ),
    Semantic(
        "Nothing is told of a statement before the server has allowed it",
        &[
            "a_statement_prepared_by_another_user_tells_nothing",
            "a_dropped_table_is_an_error_of_its_statement",
        ],
        &[],
    ),
    Semantic(
        "Settings are reported when they change, and reported back when they are undone",
        &[
            "a_setting_in_a_transaction_is_reported_and_taken_back",
            "set_local_is_reported_and_reverts_with_the_commit",
            "a_setting_is_reported_only_when_it_changes",
        ],
        &[],
    ),
    Semantic(
        "Settings that are not reported belong to their client as well",
        &["the_search_path_stays_with_its_client", "settings_made_by_functions_stay_with_their_client"],
        &["metako-proxy/tests/state.rs: what_functions_hide_is_found"],
    ),
    Semantic(
        "RESET goes back to the start-up of the client",
        &[
            "reset_goes_back_to_what_the_start_up_said",
            "reset_all_goes_back_to_what_the_start_up_said",
            "discard_all_goes_back_to_what_the_start_up_said",
            "discard_all_is_refused_in_a_transaction",
            "the_seed_of_random_is_the_clients_own",
        ],
        &[],
    ),
    Semantic(
        "State that cannot move keeps its server",
        &[
            "session_locks_outlive_rollback_and_commit",
            "session_locks_end_with_their_client",
            "temporary_tables_stay_with_their_client",
            "held_cursors_stay_with_their_client",
            "the_last_value_of_a_sequence_stays_with_its_client",
            "large_object_descriptors_end_with_their_transaction",
            "loaded_libraries_do_no_harm",
        ],
        &["metako-proxy/tests/state.rs: what_cannot_move_keeps_its_server_until_it_ends"],
    ),
    Semantic(
        "A role is never another client's",
        &["a_role_stays_with_its_client", "a_session_user_stays_with_its_client"],
        &[],
    ),
    Semantic(
        "LISTEN and NOTIFY take effect with the transaction",
        &[
            "notifications_come_between_the_commit_and_its_ready",
            "notifications_come_to_an_idle_listener",
            "a_rolled_back_listen_listens_to_nothing",
            "unlisten_and_its_end_with_the_client",
        ],
        &[],
    ),
    Semantic(
        "The application name is the client's own",
        &["the_application_name_is_the_clients_own", "an_application_name_may_change"],
        &[],
    ),
    Semantic(
        "What a replica refuses goes to the primary",
        &[],
        &["metako-proxy/tests/relay/main.rs: reads_go_to_the_replica_and_what_it_refuses_to_the_primary"],
    ),
    Semantic(
        "What a replica would silently take for done goes to the primary",
        &[],
        &["metako-strategies/src/classifier/tests.rs: each_statement_has_its_class"],
    ),
    Semantic(
        "Only what was refused before a row was given is repeated",
        &[],
        &[
            "metako-core/src/session/tests/loss.rs: a_refusal_of_a_replica_is_not_seen_and_the_unit_can_be_repeated",
            "metako-core/src/session/tests/loss.rs: a_lost_replica_is_repeated_while_nothing_was_given_and_told_after_that",
        ],
    ),
    Semantic(
        "A transaction that reads may become one that writes",
        &["a_read_only_transaction_may_become_read_write", "session_characteristics_stay_with_their_client"],
        &[],
    ),
    Semantic("A transaction stays on one node", &["a_snapshot_stays_for_its_transaction"], &[]),
    Semantic(
        "A read that recovery or a restart ends is repeated elsewhere",
        &[],
        &["metako-core/src/session/edge_tests.rs: a_read_that_a_replica_ends_the_session_over_is_repeated"],
    ),
    Semantic(
        "Comments change nothing",
        &["leading_comments_change_nothing"],
        &["metako-strategies/src/classifier/tests.rs: comments_white_space_and_case_change_nothing"],
    ),
    Semantic(
        "Whether a node is in recovery is no affair of the client's",
        &["the_start_up_reports_all_parameters"],
        &["metako-proxy/tests/bad_days.rs: a_frozen_primary_is_replaced_and_gets_nothing_when_it_thaws"],
    ),
    Semantic(
        "Protocol versions are negotiated with each side",
        &[
            "protocol_3_2_is_negotiated",
            "a_greased_version_is_negotiated_down",
            "unknown_protocol_options_are_named_in_the_negotiation",
            "another_major_version_is_refused",
            "protocol_2_is_refused",
        ],
        &[],
    ),
    Semantic(
        "TLS at once or by request, and nothing before its handshake",
        &[
            "direct_tls_works",
            "direct_tls_without_the_protocol_is_refused",
            "gssapi_and_then_tls_are_negotiated",
            "bytes_before_the_tls_handshake_are_refused",
        ],
        &[],
    ),
    Semantic(
        "SCRAM is bound to the channel, and not talked down",
        &[
            "the_proof_may_be_bound_to_the_tls_channel",
            "a_proof_bound_to_another_certificate_is_refused",
            "a_garbled_proof_is_refused",
        ],
        &["metako-proxy/src/login/scram/tests.rs: channel_binding_holds_both_ends_together"],
    ),
    Semantic(
        "A stranger cannot be told from a user with another password",
        &["an_unknown_user_is_refused_as_a_wrong_password", "a_role_that_cannot_log_in_is_refused"],
        &[
            "metako-proxy/src/login/tests/looked_up.rs: strangers_look_like_users",
            "metako-proxy/src/login/tests/mod.rs: a_wrong_password_and_a_stranger_cannot_be_told_apart",
        ],
    ),
    Semantic(
        "Lengths are not believed",
        &[
            "too_long_a_start_up_packet_ends_the_connection",
            "too_short_a_start_up_packet_ends_the_connection",
            "a_length_below_four_ends_the_connection",
            "a_length_beyond_all_bounds_ends_the_connection",
            "a_bind_with_lying_counts_is_refused",
        ],
        &["metako-proxy/tests/robust/frames.rs: garbage_in_the_place_of_a_log_in_ends_and_hurts_nobody"],
    ),
    Semantic(
        "Clients that vanish, and servers that die",
        &[
            "a_client_gone_at_work_is_cancelled",
            "what_was_sent_before_the_end_of_the_connection_is_done",
            "the_end_of_a_backend_in_a_transaction_is_told",
        ],
        &["metako-proxy/tests/robust/vanish.rs: at_any_step_of_its_work_in_transaction_mode"],
    ),
    Semantic(
        "No server connection outlives the role of its node",
        &[],
        &[
            "metako-proxy/tests/relay/hostile.rs: nothing_that_was_meant_for_the_old_primary_reaches_it_after_the_fence",
        ],
    ),
];

#[test]
fn each_of_the_forty_is_held_by_cases_or_tests_that_there_are() {
    let all = cases::all();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for Semantic(about, named, elsewhere) in &FORTY {
        assert!(!(named.is_empty() && elsewhere.is_empty()), "nothing holds metako to: {about}");
        for name in *named {
            assert!(all.iter().any(|case| case.name == *name), "no case `{name}`");
        }
        for test in *elsewhere {
            let (file, name) = test.split_once(": ").expect("a file and a name");
            let text =
                std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(text.contains(&format!("fn {name}(")), "no test `{name}` in {file}");
        }
    }
}

/// The table for docs/compatibility.md.
pub(crate) fn table() -> String {
    let mut text = String::from(
        "\n### Forty semantics that are easily got wrong\n\n| | what | held by |\n|---|---|---|\n",
    );
    for (index, Semantic(about, named, elsewhere)) in FORTY.iter().enumerate() {
        let cases = named.iter().map(|name| name.replace('_', " "));
        let tests = elsewhere.iter().map(|test| format!("`{}`", test.replace(": ", " ")));
        let held = cases.chain(tests).collect::<Vec<_>>().join("; ");
        let _ = writeln!(text, "| {} | {about} | {held} |", index + 1);
    }
    text
}
