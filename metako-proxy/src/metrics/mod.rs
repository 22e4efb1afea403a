//! What `GET /metrics` answers: the state of proxy and cluster as figures for a monitoring system.
//!
//! Everything is read when it is asked for; only what has no place elsewhere is counted in [`Figures`].

mod figures;
mod page;

pub use figures::Figures;
pub use page::{Facts, Format, text};
