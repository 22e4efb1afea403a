//! Checks that fail for want of something that is not built. The list can only shrink: one that passes fails the test.

use crate::stage::Mode::{self, Session, Split, Transaction};

const ALL: &[Mode] = &[Session, Transaction, Split];

/// Modes, check, the drivers that have it, and what is missing.
const NOT_YET: &[(&[Mode], &str, &[&str], &str)] = &[
    (
        &[Session],
        "process_id_is_the_servers",
        &["psycopg", "psycopg-python", "asyncpg", "node-postgres"],
        "the server's own process id in session mode",
    ),
    (
        &[Session],
        "notification_names_its_sender",
        &["psycopg", "psycopg-python"],
        "the server's own process id in session mode",
    ),
    (
        &[Session],
        "psql_process_id",
        &["programs"],
        "the death of the server passed on as it is in session mode",
    ),
    (ALL, "tls_at_once", &["psycopg", "asyncpg", "node-postgres"], "TLS without an SSLRequest"),
    (ALL, "tls_channel_binding", &["psycopg", "psycopg-python"], "SCRAM-SHA-256-PLUS"),
    (
        ALL,
        "prepared_and_evicted",
        &["psycopg-python"],
        "DEALLOCATE in SQL of a statement that was prepared by the protocol",
    ),
];

/// Why a check cannot pass yet, if so.
pub(crate) fn reason(mode: Mode, driver: &str, check: &str) -> Option<&'static str> {
    let found = NOT_YET.iter().find(|(modes, name, drivers, _)| {
        modes.contains(&mode) && *name == check && drivers.contains(&driver)
    });
    found.map(|(.., reason)| *reason)
}
