//! What is expected to differ from PostgreSQL. A case that stands here and does not differ fails the suite, so that the
//! list can only become shorter.

use crate::stage::Place;

struct Difference {
    case: &'static str,
    modes: &'static [Place],
    /// For users, in docs/compatibility.md.
    why: &'static str,
    /// The major versions of PostgreSQL with which it shows.
    versions: std::ops::RangeInclusive<u32>,
}

const BOTH: &[Place] = &Place::MODES;
const TRANSACTION: &[Place] = &[Place::Transaction];

const LIST: &[Difference] = &[
    known(
        "pg_prepared_statements_shows_the_names_of_the_client",
        TRANSACTION,
        "prepared statements have metako's names on the servers, which are shared, and those of other clients are listed too",
    ),
    known(
        "a_notification_names_its_sender",
        TRANSACTION,
        "notifications name the backend that sent them, which is not what clients have in their keys",
    ),
    known(
        "the_process_id_is_that_of_the_backend",
        TRANSACTION,
        "BackendKeyData has a number of metako's, since the backend changes from transaction to transaction",
    ),
    known(
        "the_end_of_an_idle_backend_is_told",
        TRANSACTION,
        "a client between transactions has no backend: it goes on with another one",
    ),
    known(
        "the_end_of_a_backend_in_a_transaction_is_told",
        TRANSACTION,
        "the next statement gets ERROR 40001, and the session goes on after ROLLBACK",
    ),
    known(
        "the_end_of_a_backend_at_work_is_told",
        TRANSACTION,
        "the statement gets ERROR 40001, or 08007 if it may have committed, and the session goes on",
    ),
    known(
        "a_backend_may_end_itself",
        TRANSACTION,
        "the statement gets ERROR 40001, and the session goes on after ROLLBACK",
    ),
    known_before(
        18,
        "another_major_version_is_refused",
        "the error names the versions that metako has: 3.0 to 3.2",
    ),
    known_before(18, "protocol_2_is_refused", "the error names the versions that metako has: 3.0 to 3.2"),
    known_before(
        18,
        "tls_and_then_gssapi_are_negotiated",
        "the error names the versions that metako has: 3.0 to 3.2",
    ),
    known_before(
        17,
        "tls_with_the_protocol_postgresql_works",
        "metako agrees on the protocol, as newer servers do",
    ),
    newer_protocol("protocol_3_2_is_negotiated"),
    newer_protocol("the_next_minor_version_is_negotiated_down"),
    newer_protocol("a_greased_version_is_negotiated_down"),
    newer_protocol("unknown_protocol_options_are_named_in_the_negotiation"),
    known(
        "settings_stay_with_their_client",
        TRANSACTION,
        "a custom setting of another client of this server is empty instead of unknown",
    ),
    known_before(
        18,
        "a_second_tls_request_is_refused",
        "the error names the versions that metako has: 3.0 to 3.2",
    ),
    known(
        "a_length_beyond_all_bounds_ends_the_connection",
        TRANSACTION,
        "metako says why it ends the connection, where PostgreSQL only logs it",
    ),
    known(
        "a_length_below_four_ends_the_connection",
        TRANSACTION,
        "metako says why it ends the connection, where PostgreSQL only logs it",
    ),
];

const fn known(case: &'static str, modes: &'static [Place], why: &'static str) -> Difference {
    Difference { case, modes, why, versions: 13..=99 }
}

const fn known_before(version: u32, case: &'static str, why: &'static str) -> Difference {
    Difference { case, modes: BOTH, why, versions: 13..=version - 1 }
}

/// Clients that share servers get protocol 3.2, whatever those speak.
const fn newer_protocol(case: &'static str) -> Difference {
    let why = "clients get protocol 3.2, whatever their server speaks";
    Difference { case, modes: TRANSACTION, why, versions: 13..=17 }
}

/// Why a case is expected to differ in a mode, if it is.
pub(crate) fn of(case: &str, place: Place, version: u32) -> Option<&'static str> {
    let fits = |found: &&Difference| {
        found.case == case && found.modes.contains(&place) && found.versions.contains(&version)
    };
    LIST.iter().find(fits).map(|found| found.why)
}

/// The same, whatever the version.
pub(crate) fn in_any_version(case: &str, place: Place) -> Option<&'static str> {
    LIST.iter().find(|found| found.case == case && found.modes.contains(&place)).map(|found| found.why)
}

/// The cases that are listed.
pub(crate) fn cases() -> impl Iterator<Item = &'static str> {
    LIST.iter().map(|found| found.case)
}
