//! What random sequences do not do yet, because metako is known to answer it differently: each has its case in
//! [`differences`](crate::differences), and goes from here together with the line there.

use crate::grammar::{End, Message, Sequence};

/// The sequence without any of that.
pub(crate) fn without(mut sequence: Sequence) -> Sequence {
    for batch in &mut sequence.batches {
        batch.retain(|message| !is_open(message));
    }
    // A length that lies makes a malformed body, and garbage is an unknown message.
    if matches!(sequence.end, End::LyingLength | End::Garbage) {
        sequence.end = End::HalfMessage;
    }
    sequence
}

fn is_open(message: &Message) -> bool {
    let sql = match message {
        Message::Query(sql) | Message::Parse { sql, .. } => *sql,
        _ => "",
    };
    // SQL's names of prepared statements are not those of Parse, and DISCARD ALL is of both.
    let names = ["prepare", "execute", "deallocate", "discard all"].iter().any(|word| sql.starts_with(word));
    // RESET goes back to the server's start-up.
    let resets = sql.starts_with("reset");
    // A statement outlives its Parse that failed or was discarded, named or not.
    let parses = matches!(message, Message::Parse { .. });
    // A malformed body ends the connection.
    matches!(message, Message::Malformed(..)) || names || resets || parses
}
