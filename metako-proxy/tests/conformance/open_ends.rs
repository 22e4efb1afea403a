//! What random sequences do not do yet, because metako is known to answer it differently: each has its case in
//! [`differences`](crate::differences), and goes from here together with the line there.

use crate::grammar::{End, Message, Sequence};

/// Whether a sequence does something of that.
pub(crate) fn is_open(sequence: &Sequence) -> bool {
    let messages = || sequence.batches.iter().flatten();
    // A malformed body ends the connection.
    let malformed = messages().any(|message| matches!(message, Message::Malformed(..)));
    // A length that lies makes a malformed body too; garbage is an unknown message.
    let lies = matches!(sequence.end, End::LyingLength | End::Garbage);
    // SQL's names of prepared statements are not those of Parse, and DISCARD ALL is of both.
    let sql_names = messages().any(|message| {
        let sql = text(message);
        ["prepare", "execute", "deallocate", "discard all"].iter().any(|word| sql.starts_with(word))
    });
    // A name outlives its Parse that failed or was discarded, and batches without their Sync are held back.
    let extended = messages().any(|message| matches!(message, Message::Parse { .. }));
    // RESET goes back to the server's start-up, and what a function sets is not seen.
    let settings =
        messages().any(|message| text(message).starts_with("reset") || text(message).contains("set_config"));
    malformed || lies || sql_names || extended || settings
}

fn text(message: &Message) -> &'static str {
    match message {
        Message::Query(sql) | Message::Parse { sql, .. } => sql,
        _ => "",
    }
}
