//! What becomes of a Parse once the server has said what it made of it.

use std::sync::Arc;

use super::answer::with_field;
use super::described::Description;
use super::replies::{By, Owed, Parsed};
use super::statements::{Statement, Undo};
use super::{Server, Session, SessionCx};
use crate::wire::sqlstate;
use crate::wire::write;

/// So many shared statements may wait to take the place of the client's own.
const FINDS_MAX: usize = 256;

/// What Parses were found to be.
#[derive(Debug, Default)]
pub(super) struct Finds {
    shared: Vec<FoundShared>,
    new: Vec<FoundNew>,
}

/// What a client parsed under a name is what is shared already: that takes its place once all is answered.
#[derive(Debug)]
struct FoundShared {
    name: Box<[u8]>,
    parsed: Arc<Statement>,
    shared: Arc<Statement>,
}

/// What a client parsed under a name is not what the shared statement of that text was.
#[derive(Debug)]
struct FoundNew {
    name: Box<[u8]>,
    parsed: Arc<Statement>,
    description: Description,
}

impl Session {
    /// Asks what the server made of the Parse before.
    pub(super) fn ask_for_description(
        &mut self,
        server: &mut Server,
        statement: &Arc<Statement>,
        by: By,
        out: &mut Vec<u8>,
    ) {
        write::statement_target(out, b'D', statement.name());
        let parsed = Parsed { statement: Arc::clone(statement), by };
        self.sent(server, Owed::Described(Box::new(parsed)));
    }

    /// Takes a part of the server's answer to that.
    pub(super) fn take_description(&mut self, server: &mut Server, part: &[u8], last: bool) {
        if server.describing.take(part, last)
            && let Some(Owed::Described(parsed)) = server.replies.pop()
            && let Some(found) = server.describing.finish()
        {
            self.described(server, *parsed, found);
        }
    }

    fn described(&mut self, server: &mut Server, parsed: Parsed, found: Description) {
        let Parsed { statement, by } = parsed;
        match by {
            By::Metako => {
                if !statement.describe(found.clone()).allows(&found) {
                    statement.expire();
                    server.prepared.has_changed(&statement, server.replies.unit());
                }
            }
            By::Client { name, shared: Some(shared) } => {
                if shared.description() == Some(&found) {
                    let found = FoundShared { name, parsed: statement, shared };
                    let finds = &mut self.finds.get_or_insert_default().shared;
                    // Else it stays the client's own, which is as good.
                    if finds.len() < FINDS_MAX {
                        finds.push(found);
                    }
                } else {
                    shared.expire();
                    statement.describe(found);
                }
            }
            By::Client { name, shared: None } => {
                if *statement.describe(found.clone()) != found {
                    statement.expire();
                    server.prepared.distrust(&statement);
                    let found = FoundNew { name, parsed: statement, description: found };
                    self.finds.get_or_insert_default().new.push(found);
                }
            }
        }
    }

    /// All is answered: names mean what was found to be shared. Before, errors speak of what was parsed.
    pub(super) fn share(&mut self, server: &mut Server) {
        for FoundShared { name, parsed, shared } in self.take_finds(|finds| &mut finds.shared) {
            if self.names.replace(&name, &parsed, &shared) {
                server.prepared.release(&parsed);
            }
        }
    }

    fn take_finds<T>(&mut self, of: impl Fn(&mut Finds) -> &mut Vec<T>) -> Vec<T> {
        let Some(finds) = &mut self.finds else { return Vec::new() };
        let taken = std::mem::take(of(finds));
        if finds.shared.is_empty() && finds.new.is_empty() {
            self.finds = None;
        }
        taken
    }

    /// Names mean what their Parse was found to be, and not what others had before.
    pub(super) fn take_new(&mut self, cx: &SessionCx<'_>) {
        for FoundNew { name, parsed, description } in self.take_finds(|finds| &mut finds.new) {
            let own = cx.statements.unshared(parsed.tail(), parsed.verdict(), false, None);
            own.describe(description);
            self.take_for(&name, &parsed, &own);
        }
    }

    /// A name means another statement from now on, which is the same to the client: a unit that is repeated makes, or keeps,
    /// the name all the same.
    pub(super) fn take_for(&mut self, name: &[u8], before: &Arc<Statement>, now: &Arc<Statement>) {
        if !self.names.replace(name, before, now) {
            return;
        }
        for undo in &mut self.unit_names {
            if let Undo::Forget(known, made) = undo
                && known.as_ref() == name
                && Arc::ptr_eq(made, before)
            {
                *made = Arc::clone(now);
            }
        }
    }
}

/// Tells the client that a statement has other columns than before, as PostgreSQL would. `body` is of the error that the
/// server gave instead.
pub(super) fn refuse_changed(statement: &Statement, describes: bool, body: &[u8], to_client: &mut Vec<u8>) {
    if describes {
        let parameters = statement.description().map_or(&[0, 0][..], Description::parameters);
        write::frame(to_client, b't', |out| out.extend_from_slice(parameters));
    }
    let fields = [
        (b'C', sqlstate::FEATURE_NOT_SUPPORTED),
        (b'M', "cached plan must not change result type"),
        (b'F', "plancache.c"),
        (b'R', "RevalidateCachedQuery"),
    ];
    let amended =
        fields.iter().fold(body.to_vec(), |body, (field, value)| with_field(&body, *field, value.as_bytes()));
    write::frame(to_client, b'E', |out| out.extend_from_slice(&amended));
}
