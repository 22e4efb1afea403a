//! Prepared statements by their SQL names: a text is made to name them as servers do.
//!
//! PREPARE and Parse share one namespace, and so do EXECUTE and Bind, DEALLOCATE and Close. What a client calls `s` is
//! `metako_7` on servers, whichever way it was made and is used.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::acts::{Act, take_apart};
use super::replies::{Carried, Owed};
use super::statements::{NO_SUCH_NAME, Names, PREFIX, Presence, Statement};
use super::{Server, Session, SessionCx, Verdict};
use crate::plugin::{Effects, Span};
use crate::wire::write::{self, TransactionStatus};

/// DEALLOCATE is sent with one of these names, followed by a number, which is made for that.
const GONE: &[u8] = b"metako_gone_";

/// How metako calls what it runs PREPARE by in the extended protocol.
const MAKER: &[u8] = b"metako_maker";

/// What a text that is about the session does.
#[derive(Debug, PartialEq, Eq)]
pub struct Script {
    pub(super) acts: Vec<(usize, Act)>,
    /// How many statements it has.
    statements: usize,
    /// What its PREPAREs make, in order.
    made: Vec<Arc<Statement>>,
    /// What servers have to have for it.
    needs: Vec<Arc<Statement>>,
    /// How many names it needs that are there to be deallocated.
    gone: usize,
    /// The first name that it gives although that is taken.
    taken: Option<Box<[u8]>>,
    /// What the statements that it executes may leave behind.
    effects: Effects,
    /// Where the text for the server differs.
    renamed: Vec<Renamed>,
}

/// A name in the text for the server that stands for the client's: where it begins there, and the lengths of both, in
/// characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Renamed {
    at: usize,
    on_server: usize,
    on_client: usize,
}

/// Where in the client's text that is which stands at a position, counted from one, in the text for the server.
pub(super) fn position_on_client(renamed: &[Renamed], position: usize) -> usize {
    let (mut on_server, mut on_client) = (0, 0);
    for name in renamed.iter().take_while(|name| name.at + 1 < position) {
        let inside = position - 1 - name.at;
        on_server += name.on_server.min(inside);
        on_client += if inside < name.on_server { name.on_client.min(inside) } else { name.on_client };
    }
    (position - on_server).saturating_add(on_client)
}

impl Script {
    /// Takes a text apart. Gives the text for the server too, if it is another.
    pub(super) fn of(sql: &[u8], names: &Names, cx: &SessionCx<'_>) -> (Self, Option<Vec<u8>>) {
        let (acts, statements) = take_apart(sql);
        let mut script = Self {
            acts: Vec::new(),
            statements,
            made: Vec::new(),
            needs: Vec::new(),
            gone: 0,
            taken: None,
            effects: Effects::NONE,
            renamed: Vec::new(),
        };
        // What the text itself makes of names, ahead of its success.
        let mut own: BTreeMap<Box<[u8]>, Option<Arc<Statement>>> = BTreeMap::new();
        let mut spans: Vec<(Span, Vec<u8>)> = Vec::new();
        for (number, act) in acts {
            match &act {
                Act::Prepare { name, at, statement } => {
                    let taken = script.lookup(name, names, &own);
                    if let Some(taken) = &taken {
                        // The server itself refuses it, so that an open block fails as it should.
                        spans.push((*at, taken.name().to_vec()));
                        script.taken.get_or_insert_with(|| name.clone());
                        continue;
                    }
                    let tail = &sql[at.end..statement.end];
                    let verdict = Verdict::of(cx, inner(tail));
                    let made = cx.statements.unshared(tail, verdict, true, None);
                    spans.push((*at, made.name().to_vec()));
                    own.insert(name.clone(), Some(Arc::clone(&made)));
                    script.made.push(made);
                }
                Act::Execute { name, at } => {
                    if let Some(found) = script.lookup(name, names, &own) {
                        script.effects = script.effects.and(found.verdict().effects);
                        spans.push((*at, found.name().to_vec()));
                        script.acts.extend(settings_of(&found).map(|act| (number, act)));
                    } else if name.starts_with(PREFIX) {
                        spans.push((*at, quoted(&[NO_SUCH_NAME, name].concat())));
                    }
                }
                Act::Deallocate { name, at } => {
                    let made_here = matches!(own.get(name), Some(Some(_)));
                    let known = made_here || (!own.contains_key(name) && names.get(name).is_some());
                    if !known {
                        if name.starts_with(PREFIX) {
                            spans.push((*at, quoted(&[NO_SUCH_NAME, name].concat())));
                        }
                        continue;
                    }
                    own.insert(name.clone(), None);
                    spans.push((*at, [GONE, script.gone.to_string().as_bytes()].concat()));
                    script.gone += 1;
                }
                _ => {}
            }
            script.acts.push((number, act));
        }
        script.renamed = renamed(sql, &spans);
        let text = (!spans.is_empty()).then(|| replaced(sql, &spans));
        (script, text)
    }

    /// Where the text for the server differs.
    pub(super) fn renamed(&self) -> &[Renamed] {
        &self.renamed
    }

    fn lookup(
        &mut self,
        name: &[u8],
        names: &Names,
        own: &BTreeMap<Box<[u8]>, Option<Arc<Statement>>>,
    ) -> Option<Arc<Statement>> {
        if let Some(here) = own.get(name) {
            return here.clone();
        }
        let found = names.get(name)?;
        if !self.needs.contains(found) {
            self.needs.push(Arc::clone(found));
        }
        Some(Arc::clone(found))
    }
}

/// What a statement does to settings when EXECUTE runs it.
fn settings_of(statement: &Statement) -> impl Iterator<Item = Act> {
    let acts = statement.script().map_or(&[][..], |script| &script.acts);
    acts.iter().filter_map(|(_, act)| match act {
        Act::Set { name, .. } => Some(Act::Set { name: name.clone(), text: None }),
        Act::SetLocal { .. } | Act::Reset { .. } | Act::ResetAll | Act::Role | Act::Stays | Act::Unclear => {
            Some(act.clone())
        }
        _ => None,
    })
}

/// The statement inside a PREPARE, of which `tail` follows the name.
fn inner(tail: &[u8]) -> &[u8] {
    let as_word = |at: &usize| {
        tail[*at..*at + 2].eq_ignore_ascii_case(b"as")
            && tail.get(at.wrapping_sub(1)).is_none_or(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
            && tail.get(at + 2).is_some_and(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
    };
    let found = (0..tail.len().saturating_sub(1)).find(as_word);
    found.map_or(tail, |at| &tail[at + 2..])
}

/// A name in double quotes.
pub(super) fn quoted(name: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for byte in name {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
    out
}

fn renamed(sql: &[u8], spans: &[(Span, Vec<u8>)]) -> Vec<Renamed> {
    // Of text in another encoding than UTF-8, the lengths in bytes.
    let characters = |text: &[u8]| std::str::from_utf8(text).map_or(text.len(), |text| text.chars().count());
    let (mut from, mut at) = (0, 0);
    let one = |(span, name): &(Span, Vec<u8>)| {
        at += characters(&sql[from..span.start]);
        from = span.end;
        let (on_server, on_client) = (name.len(), characters(&sql[span.start..span.end]));
        let renamed = Renamed { at, on_server, on_client };
        at += on_server;
        renamed
    };
    spans.iter().map(one).collect()
}

fn replaced(sql: &[u8], spans: &[(Span, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut at) = (Vec::with_capacity(sql.len() + 16 * spans.len()), 0);
    for (span, name) in spans {
        out.extend_from_slice(&sql[at..span.start]);
        out.extend_from_slice(name);
        at = span.end;
    }
    out.extend_from_slice(&sql[at..]);
    out
}

impl Session {
    /// Notes that a text is run: what it does to names is done, to be undone if it fails. Gives what has to be remembered
    /// until it is answered.
    pub(super) fn perform(&mut self, server: &mut Server, script: &Script) -> Carried {
        self.note_effects(script.effects);
        let alone = script.statements == 1 && server.status == TransactionStatus::Idle;
        let unit = server.replies.unit();
        for statement in &script.made {
            server.prepared.add(statement, unit);
        }
        let (taken, renamed) = (script.taken.clone(), script.renamed.clone());
        let mut carried = Carried { undo: Vec::new(), acts: Vec::new(), unit, taken, renamed };
        let mut made = script.made.iter();
        for (number, act) in &script.acts {
            let undo = match act {
                Act::Prepare { name, .. } => {
                    made.next().map(|statement| self.names.insert(name, Arc::clone(statement)))
                }
                Act::Deallocate { name, .. } => self.names.remove(name),
                _ => None,
            };
            if let Some(undo) = undo {
                self.note_name(&undo);
                carried.undo.push((*number, undo));
            }
        }
        carried.acts = self.note_acts(&script.acts, alone);
        self.fresh.all = Some(unit);
        if script.acts.iter().any(|(_, act)| act.undoes_log_in()) {
            self.fresh.settings = Some(unit);
        }
        carried
    }

    /// Sees to it that the server has what a text needs. `alone` if it is in front of a Query, which is not to depend on
    /// its success.
    pub(super) fn supply(&mut self, server: &mut Server, script: &Script, alone: bool, out: &mut Vec<u8>) {
        let before = out.len();
        for statement in &script.needs {
            let presence = server.prepared.presence(statement, server.replies.unit());
            self.bring(server, statement, presence, out);
        }
        for statement in &script.made {
            // The text makes it; what has to go for it goes now.
            let unit = server.replies.unit();
            let presence = server.prepared.presence(statement, unit);
            if presence != Presence::Absent {
                self.close_on_server(server, statement, out);
            }
            for evicted in server.prepared.add(statement, unit) {
                self.close_on_server(server, &evicted, out);
            }
        }
        for number in 0..script.gone {
            self.make_expendable(server, number, out);
        }
        if alone && out.len() > before {
            write::sync(out);
            self.sent(server, Owed::OwnSync);
        }
    }

    /// Makes a statement that is there for its name alone: to be deallocated, or to be in the way. That goes in a block
    /// that failed too. Gives its name.
    pub(super) fn make_expendable(
        &mut self,
        server: &mut Server,
        number: usize,
        out: &mut Vec<u8>,
    ) -> Vec<u8> {
        let name = [GONE, number.to_string().as_bytes()].concat();
        let unit = server.replies.unit();
        write::statement_target(out, b'C', &name);
        self.sent(server, Owed::Own { tag: b'3', statement: None, unit });
        write::parse(out, &name, b"\0\0\0");
        self.sent(server, Owed::Own { tag: b'1', statement: None, unit });
        name
    }

    fn close_on_server(&mut self, server: &mut Server, statement: &Arc<Statement>, out: &mut Vec<u8>) {
        write::statement_target(out, b'C', statement.name());
        self.sent(server, Owed::Close { own: Some(Arc::clone(statement)) });
    }

    /// Makes a statement on the server as its PREPARE would, between messages of the extended protocol.
    pub(super) fn prepare_by_sql(
        &mut self,
        server: &mut Server,
        statement: &Arc<Statement>,
        sql: &[u8],
        out: &mut Vec<u8>,
    ) {
        let unit = server.replies.unit();
        let own = |tag| Owed::Own { tag, statement: None, unit };
        write::statement_target(out, b'C', MAKER);
        self.sent(server, own(b'3'));
        write::parse(out, MAKER, &[sql, b"\0\0\0"].concat());
        self.sent(server, own(b'1'));
        write::frame(out, b'B', |out| {
            for name in [MAKER, MAKER] {
                out.extend_from_slice(name);
                out.push(0);
            }
            out.extend_from_slice(&[0; 6]);
        });
        self.sent(server, own(b'2'));
        write::frame(out, b'E', |out| {
            out.extend_from_slice(MAKER);
            out.extend_from_slice(&[0; 5]);
        });
        self.sent(server, Owed::Own { tag: b'C', statement: Some(Arc::clone(statement)), unit });
        write::frame(out, b'C', |out| {
            out.push(b'P');
            out.extend_from_slice(MAKER);
            out.push(0);
        });
        self.sent(server, own(b'3'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_counted_in_the_characters_of_the_client() {
        let sql = "/* \u{fc} */ prepare \"\u{fc}\" as select nothing; execute x; select 1/0";
        let place = |part: &str| {
            let start = sql.find(part).unwrap();
            Span { start, end: start + part.len() }
        };
        let names = [(place("\"\u{fc}\""), b"metako_17".to_vec()), (place("x;"), b"metako_2;".to_vec())];
        let text = String::from_utf8(replaced(sql.as_bytes(), &names)).unwrap();
        let character = |text: &str, part: &str| text[..text.find(part).unwrap()].chars().count() + 1;
        let renamed = renamed(sql.as_bytes(), &names);
        for part in ["prepare", "nothing", "; execute", "execute ", " select 1", "1/0"] {
            let found = position_on_client(&renamed, character(&text, part));
            assert_eq!(found, character(sql, part), "{part}");
        }
        let inside = |part| position_on_client(&renamed, character(&text, part));
        assert_eq!(inside("metako_17"), character(sql, "\"\u{fc}"));
        assert_eq!(inside("7 as"), character(sql, " as"));
    }
}
