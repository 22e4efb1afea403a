//! The PostgreSQL protocol, version 3, as bytes.
//!
//! On the hot path a frame's header is read and nothing else: [`Framer`] cuts a stream into frames without copying, and
//! lets frames that are too large to wait for pass in pieces. What metako has to say itself is made by [`write`], what
//! it has to understand is read by [`read`], and what comes before log-in by [`startup`].

pub mod commit_guard;
mod frame;
pub(crate) mod notice;
pub mod read;
pub mod sqlstate;
pub mod startup;
pub mod tally;
pub mod write;

pub use frame::{Direction, FrameError, Framer, Header, Piece, SMALL_MAX, TEXT_MAX, header};
pub use notice::{NoticeReader, SYNC_WAIT};
