//! Strategies of our own, one of each kind. Link them by naming the crate in a binary: `use my_strategies as _;`.

mod all_witnesses;
mod hinted;
mod nearest_zone;
mod question;

pub use all_witnesses::{AllWitnesses, AllWitnessesSpec};
pub use hinted::{Hinted, HintedSpec};
pub use nearest_zone::{NearestZone, NearestZoneSpec};
pub use question::{Question, QuestionSpec};
