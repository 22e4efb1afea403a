//! Checks that can fail for want of something that is not built. Whether they do depends on which of the pooled servers the
//! client gets, so a pass proves nothing: an entry goes when what it names is built.

use crate::stage::Mode::{self, Split, Transaction};

const SHARED: &[Mode] = &[Transaction, Split];

/// Modes, check, the drivers that have it, and what is missing.
const NOT_YET: &[(&[Mode], &str, &[&str], &str)] = &[(
    SHARED,
    "custom_settings_of_others_are_not_there",
    &["psycopg", "psycopg-python"],
    "a server on which a setting of an application's own was set still knows its name",
)];

/// Why a check cannot pass yet, if so.
pub(crate) fn reason(mode: Mode, driver: &str, check: &str) -> Option<&'static str> {
    let found = NOT_YET.iter().find(|(modes, name, drivers, _)| {
        modes.contains(&mode) && *name == check && drivers.contains(&driver)
    });
    found.map(|(.., reason)| *reason)
}
