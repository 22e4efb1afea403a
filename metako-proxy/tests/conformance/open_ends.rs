//! What random sequences do not do yet in transaction mode, because metako is known to answer it differently there.

use crate::grammar::{End, Message, Sequence};

/// The sequence without any of that.
pub(crate) fn without(mut sequence: Sequence, version: u32) -> Sequence {
    // Of a malformed body and an unknown message in one send only the second is answered.
    if sequence.end == End::LyingLength {
        sequence.end = End::HalfMessage;
    }
    for batch in &mut sequence.batches {
        batch.retain(|message| {
            match message {
                // A Sync or Flush with a body is answered like one without, where there is no server to ask.
                Message::Malformed(tag, _) => !matches!(tag, b'S' | b'H'),
                // PostgreSQL 13 reports an application_name at RESET that was not changed.
                Message::Query(sql) | Message::Parse { sql, .. } if version < 14 && resets(sql) => false,
                _ => true,
            }
        });
    }
    sequence
}

fn resets(sql: &str) -> bool {
    sql == "reset all" || sql == "discard all"
}
