//! What is expected to differ from PostgreSQL. A case that stands here and does not differ fails the suite, so that the
//! list can only become shorter.

use crate::stage::Place;

/// Why a case differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// For good: no pooler can do otherwise. For users, in docs/compatibility.md.
    Known(&'static str),
    /// To be done.
    NotYet(&'static str),
}

struct Difference {
    case: &'static str,
    modes: &'static [Place],
    verdict: Verdict,
    /// The major versions of PostgreSQL with which it shows.
    versions: std::ops::RangeInclusive<u32>,
}

const BOTH: &[Place] = &Place::MODES;
const TRANSACTION: &[Place] = &[Place::Transaction];
const SESSION: &[Place] = &[Place::Session];

const LIST: &[Difference] = &[];

/// Why a case is expected to differ in a mode, if it is.
pub(crate) fn of(case: &str, place: Place, version: u32) -> Option<Verdict> {
    let fits = |found: &&Difference| {
        found.case == case && found.modes.contains(&place) && found.versions.contains(&version)
    };
    LIST.iter().find(fits).map(|found| found.verdict)
}

/// The cases that are listed.
pub(crate) fn cases() -> impl Iterator<Item = &'static str> {
    LIST.iter().map(|found| found.case)
}
