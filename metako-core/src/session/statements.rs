//! Prepared statements that outlive the server connection they were made on.
//!
//! A client's named statement is its text, its parameter types and what it was analysed with, interned once for all clients
//! ([`Interner`]) under a name that is the same on every server. A server connection knows which of these it has
//! ([`Prepared`]); what it lacks is parsed there before it is used.
//!
//! PostgreSQL analyses at Parse, and tables change. So each Parse of a client is run, and the server asked what it found
//! ([`Description`]): only if that is what a shared statement was found to be, the client shares that one. And what is
//! parsed again on another server has to have the columns that it had, or it is refused as PostgreSQL refuses it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Verdict;
use super::described::Description;
use super::rewrite::Script;
use crate::wire::read;

/// Names of statements on servers begin with this.
pub(super) const PREFIX: &[u8] = b"metako_";

/// No server ever has a statement under a name that begins with this; what the client called it follows.
pub(super) const NO_SUCH_NAME: &[u8] = b"metako_none";

/// How many statements are kept on one server connection; the one that was not used for longest is closed.
pub const PREPARED_PER_SERVER_MAX: usize = 200;

/// From so many interned statements on, or so many bytes of their texts, those that nobody holds any more are dropped.
const INTERNED_SWEEP: usize = 4096;
const INTERNED_SWEEP_BYTES: usize = 16 << 20;

/// A named statement: what it was made of, and what it was found to be.
#[derive(Debug)]
pub struct Statement {
    id: u64,
    name: Box<[u8]>,
    tail: Box<[u8]>,
    verdict: Verdict,
    /// Whether it was made by PREPARE: the tail is then what follows the name there.
    sql: bool,
    script: Option<Arc<Script>>,
    /// What it was analysed with; nothing if it is one client's alone.
    context: Option<Box<[u8]>>,
    stale: AtomicBool,
    described: OnceLock<Description>,
}

impl PartialEq for Statement {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Statement {}

impl Statement {
    /// Its name on servers.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// What follows the name in its Parse: text and parameter types.
    pub fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// The PREPARE that makes it, if such a statement made it.
    pub(super) fn prepare(&self) -> Option<Vec<u8>> {
        self.sql.then(|| [b"PREPARE ", self.name(), &self.tail].concat())
    }

    /// What its text does to names and settings of the session, if it was looked at for that.
    pub(super) fn script(&self) -> Option<&Arc<Script>> {
        self.script.as_ref()
    }

    /// What its text means.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether it is one client's alone.
    pub(super) fn is_own(&self) -> bool {
        self.context.is_none()
    }

    /// Whether it may be made again for a client whose texts are analysed with `context`.
    pub(super) fn fits(&self, context: Option<&[u8]>) -> bool {
        self.is_own() || self.context.as_deref() == context
    }

    /// Its text.
    pub(super) fn sql(&self) -> &[u8] {
        read::text(&self.tail).map_or(&[], |(sql, _)| sql)
    }

    /// What it was found to be first.
    pub(super) fn description(&self) -> Option<&Description> {
        self.described.get()
    }

    /// Gives what it was found to be first, which is this if it is the first.
    pub(super) fn describe(&self, found: Description) -> &Description {
        self.described.get_or_init(|| found)
    }

    /// What follows the name in a Parse that makes it again: parameters keep the types that they were found to have.
    pub(super) fn again(&self) -> Vec<u8> {
        match self.description() {
            Some(found) if found.parameters().len() >= 2 => [self.sql(), b"\0", found.parameters()].concat(),
            _ => self.tail.to_vec(),
        }
    }

    /// Its text means something else by now: whoever prepares it next gets a new statement.
    pub(super) fn expire(&self) {
        self.stale.store(true, Ordering::Relaxed);
    }
}

/// All named statements that clients hold. Numbers are never given twice, so a name means one text for ever.
#[derive(Debug, Default)]
pub struct Interner {
    /// By text and types, and what they were analysed with.
    shared: HashMap<Box<[u8]>, Arc<Statement>>,
    last: u64,
    bytes: usize,
    sweep_at: usize,
    sweep_at_bytes: usize,
}

impl Interner {
    /// The statement of that text and those types, analysed with `context`; `verdict` is asked for only if it is new.
    pub fn intern(
        &mut self,
        tail: &[u8],
        context: &[u8],
        verdict: impl FnOnce() -> Verdict,
    ) -> Arc<Statement> {
        let key = [tail, context].concat();
        if let Some(known) = self.shared.get(key.as_slice())
            && !known.stale.load(Ordering::Relaxed)
        {
            return Arc::clone(known);
        }
        if self.shared.len() >= self.sweep_at.max(INTERNED_SWEEP)
            || self.bytes >= self.sweep_at_bytes.max(INTERNED_SWEEP_BYTES)
        {
            self.shared.retain(|_, statement| Arc::strong_count(statement) > 1);
            self.bytes = self.shared.keys().map(|key| key.len()).sum();
            self.sweep_at = self.shared.len() * 2;
            self.sweep_at_bytes = self.bytes * 2;
        }
        self.bytes += key.len();
        let statement = self.statement(tail, verdict(), false, None, Some(context.into()));
        self.shared.insert(key.into(), Arc::clone(&statement));
        statement
    }

    /// A statement of one client alone. `sql` if PREPARE makes it, `tail` being what follows the name there.
    pub fn unshared(
        &mut self,
        tail: &[u8],
        verdict: Verdict,
        sql: bool,
        script: Option<Arc<Script>>,
    ) -> Arc<Statement> {
        self.statement(tail, verdict, sql, script, None)
    }

    fn statement(
        &mut self,
        tail: &[u8],
        verdict: Verdict,
        sql: bool,
        script: Option<Arc<Script>>,
        context: Option<Box<[u8]>>,
    ) -> Arc<Statement> {
        self.last += 1;
        Arc::new(Statement {
            id: self.last,
            name: [PREFIX, self.last.to_string().as_bytes()].concat().into(),
            tail: tail.into(),
            verdict,
            sql,
            script,
            context,
            stale: AtomicBool::new(false),
            described: OnceLock::new(),
        })
    }

    /// How many statements are held.
    pub fn len(&self) -> usize {
        self.shared.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.shared.is_empty()
    }
}

/// Where statements are interned: shared by all sessions.
pub trait Statements: Sync {
    /// See [`Interner::intern`].
    fn intern(&self, tail: &[u8], context: &[u8], verdict: &dyn Fn() -> Verdict) -> Arc<Statement>;

    /// See [`Interner::unshared`].
    fn unshared(
        &self,
        tail: &[u8],
        verdict: Verdict,
        sql: bool,
        script: Option<Arc<Script>>,
    ) -> Arc<Statement>;
}

impl Statements for Mutex<Interner> {
    fn intern(&self, tail: &[u8], context: &[u8], verdict: &dyn Fn() -> Verdict) -> Arc<Statement> {
        // A classifier that panicked in `verdict` left nothing half done.
        self.lock().unwrap_or_else(PoisonError::into_inner).intern(tail, context, verdict)
    }

    fn unshared(
        &self,
        tail: &[u8],
        verdict: Verdict,
        sql: bool,
        script: Option<Arc<Script>>,
    ) -> Arc<Statement> {
        self.lock().unwrap_or_else(PoisonError::into_inner).unshared(tail, verdict, sql, script)
    }
}

/// A change of a client's names that does not hold if the server never ran the message that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Undo {
    /// A name was given.
    Forget(Box<[u8]>, Arc<Statement>),
    /// A name was dropped.
    Restore(Box<[u8]>, Arc<Statement>),
}

/// How many bytes of names and texts one client may hold. PostgreSQL has no such bound; there, a client's statements are in the
/// memory of a process of its own.
pub(super) const NAMED_BYTES_MAX: usize = 64 << 20;

/// What a statement takes besides its text, roughly, in bytes.
const NAMED_BYTES: usize = 256;

/// The named statements of one client.
#[derive(Debug, Default)]
pub(super) struct Names {
    all: BTreeMap<Box<[u8]>, Arc<Statement>>,
    bytes: usize,
}

impl Names {
    /// Whether they are more than one client may hold.
    pub(super) fn are_too_many(&self) -> bool {
        self.bytes > NAMED_BYTES_MAX
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.all.get(name)
    }

    pub(super) fn insert(&mut self, name: &[u8], statement: Arc<Statement>) -> Undo {
        self.put(name.into(), Arc::clone(&statement));
        Undo::Forget(name.into(), statement)
    }

    pub(super) fn remove(&mut self, name: &[u8]) -> Option<Undo> {
        self.take(name).map(|(name, statement)| Undo::Restore(name, statement))
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Lets a name mean `now`, if it means `before` still. Whether it did.
    pub(super) fn replace(&mut self, name: &[u8], before: &Arc<Statement>, now: &Arc<Statement>) -> bool {
        let does = self.all.get(name).is_some_and(|found| Arc::ptr_eq(found, before));
        if does {
            self.put(name.into(), Arc::clone(now));
        }
        does
    }

    pub(super) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Forget(name, statement) => {
                if self.all.get(&name).is_some_and(|now| Arc::ptr_eq(now, &statement)) {
                    self.take(&name);
                }
            }
            Undo::Restore(name, statement) => {
                if !self.all.contains_key(&name) {
                    self.put(name, statement);
                }
            }
        }
    }

    fn put(&mut self, name: Box<[u8]>, statement: Arc<Statement>) {
        self.take(&name);
        self.bytes += Self::size(&name, &statement);
        self.all.insert(name, statement);
    }

    fn take(&mut self, name: &[u8]) -> Option<(Box<[u8]>, Arc<Statement>)> {
        let (name, statement) = self.all.remove_entry(name)?;
        self.bytes -= Self::size(&name, &statement);
        Some((name, statement))
    }

    fn size(name: &[u8], statement: &Statement) -> usize {
        name.len() + statement.tail().len() + NAMED_BYTES
    }

    /// The client's name for what servers call `server_name`.
    pub(super) fn name_of(&self, server_name: &[u8]) -> Option<&[u8]> {
        self.all.iter().find(|(_, statement)| statement.name() == server_name).map(|(name, _)| name.as_ref())
    }
}

/// The unit of a Parse that will never be confirmed: the statement is closed before it is parsed again.
const NEVER: u64 = u64::MAX;

/// The statements that one server connection has, or will have once what was sent is run.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    entries: BTreeMap<u64, Entry>,
    clock: u64,
    /// What nobody needs any more, and is closed next time.
    unneeded: Vec<Arc<Statement>>,
}

#[derive(Debug)]
struct Entry {
    statement: Arc<Statement>,
    used: u64,
    /// Not confirmed yet; sent in this unit, whose failure may have skipped it.
    sent_in: Option<u64>,
    /// In this unit it was found not to have the columns here that it had first.
    changed_in: Option<u64>,
}

/// Whether a server has a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// It has, whenever the message that is about to be sent in this unit is run.
    Present,
    /// It has, and with other columns than the statement had first, as was just seen.
    Changed,
    /// It was sent in an earlier unit that may yet fail, or a message that would have told was skipped, or it had other
    /// columns when it was looked at.
    Doubtful,
    /// It has not.
    Absent,
}

impl Presence {
    /// Whether it is there for sure.
    pub(super) fn is_there(self) -> bool {
        matches!(self, Self::Present | Self::Changed)
    }
}

impl Prepared {
    /// Whether the server has it when a message of `unit` is run; if so, it counts as used now.
    pub(super) fn presence(&mut self, statement: &Statement, unit: u64) -> Presence {
        self.clock += 1;
        let Some(entry) = self.entries.get_mut(&statement.id) else { return Presence::Absent };
        entry.used = self.clock;
        match entry.sent_in {
            Some(sent) if sent != unit => Presence::Doubtful,
            _ => match entry.changed_in {
                None => Presence::Present,
                Some(seen) if seen == unit => Presence::Changed,
                Some(_) => Presence::Doubtful,
            },
        }
    }

    /// Notes that its Parse is sent in `unit`; gives the statements that have to go for it.
    pub(super) fn add(&mut self, statement: &Arc<Statement>, unit: u64) -> Vec<Arc<Statement>> {
        self.clock += 1;
        let mut evicted = std::mem::take(&mut self.unneeded);
        let known = self.entries.contains_key(&statement.id);
        while !known && self.entries.len() >= PREPARED_PER_SERVER_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(id, _)| *id);
            evicted.extend(oldest.and_then(|id| self.entries.remove(&id)).map(|entry| entry.statement));
        }
        let entry = Entry {
            statement: Arc::clone(statement),
            used: self.clock,
            sent_in: Some(unit),
            changed_in: None,
        };
        self.entries.insert(statement.id, entry);
        evicted
    }

    /// ParseComplete came for the Parse sent in `unit`.
    pub(super) fn confirm(&mut self, statement: &Statement, unit: u64) {
        if let Some(entry) = self.entries.get_mut(&statement.id)
            && entry.sent_in == Some(unit)
        {
            entry.sent_in = None;
        }
    }

    /// The Parse sent in `unit` failed or was skipped: what an earlier one made may be there all the same.
    pub(super) fn refute(&mut self, statement: &Statement, unit: u64) {
        if let Some(entry) = self.entries.get_mut(&statement.id)
            && entry.sent_in == Some(unit)
        {
            entry.sent_in = Some(NEVER);
        }
    }

    /// What the server has was made of other types or with other columns than the statement has: it is to be made anew.
    pub(super) fn distrust(&mut self, statement: &Statement) {
        if let Some(entry) = self.entries.get_mut(&statement.id) {
            entry.sent_in = Some(NEVER);
        }
    }

    /// The statement has other columns here than it had first, as is seen in `unit`.
    pub(super) fn has_changed(&mut self, statement: &Statement, unit: u64) {
        if let Some(entry) = self.entries.get_mut(&statement.id) {
            entry.changed_in = Some(unit);
        }
    }

    /// Nobody needs it here any more.
    pub(super) fn release(&mut self, statement: &Statement) {
        self.unneeded.extend(self.entries.remove(&statement.id).map(|entry| entry.statement));
    }

    /// A Close of metako's own was skipped: the statement may still be there.
    pub(super) fn doubt(&mut self, statement: &Arc<Statement>) {
        self.entries.entry(statement.id).or_insert_with(|| Entry {
            statement: Arc::clone(statement),
            used: 0,
            sent_in: Some(NEVER),
            changed_in: None,
        });
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.unneeded.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interned(interner: &mut Interner, tail: &str) -> Arc<Statement> {
        interner.intern(tail.as_bytes(), b"", || Verdict::UNREAD)
    }

    #[test]
    fn one_text_has_one_name_and_no_name_is_given_twice() {
        let mut interner = Interner::default();
        let first = interned(&mut interner, "a");
        assert_eq!(first.name(), b"metako_1");
        assert!(Arc::ptr_eq(&first, &interned(&mut interner, "a")));
        assert_eq!(interned(&mut interner, "b").name(), b"metako_2");
    }

    #[test]
    fn statements_that_nobody_holds_are_swept_and_held_ones_stay() {
        let mut interner = Interner::default();
        let held = interned(&mut interner, "held");
        for n in 0..3 * INTERNED_SWEEP {
            interned(&mut interner, &n.to_string());
        }
        assert!(interner.len() <= INTERNED_SWEEP + 1);
        assert!(Arc::ptr_eq(&held, &interned(&mut interner, "held")));
    }

    #[test]
    fn long_texts_that_nobody_holds_are_swept_early() {
        let mut interner = Interner::default();
        for n in 0..64 {
            interned(&mut interner, &format!("{n}{}", " ".repeat(1 << 20)));
        }
        assert!(interner.len() <= 17);
    }

    #[test]
    fn a_full_server_gives_up_the_statement_not_used_for_longest() {
        let mut interner = Interner::default();
        let mut prepared = Prepared::default();
        let all: Vec<_> =
            (0..PREPARED_PER_SERVER_MAX).map(|n| interned(&mut interner, &n.to_string())).collect();
        for statement in &all {
            assert_eq!(prepared.add(statement, 0), []);
        }
        assert_eq!(prepared.presence(&all[0], 0), Presence::Present);
        let new = interned(&mut interner, "new");
        assert_eq!(prepared.add(&new, 0), [Arc::clone(&all[1])]);
        assert_eq!(prepared.presence(&all[0], 0), Presence::Present);
        assert_eq!(prepared.presence(&all[1], 0), Presence::Absent);
    }

    #[test]
    fn what_an_earlier_unit_sent_is_in_doubt_until_it_is_confirmed() {
        let mut interner = Interner::default();
        let mut prepared = Prepared::default();
        let statement = interned(&mut interner, "s");
        prepared.add(&statement, 1);
        assert_eq!(prepared.presence(&statement, 1), Presence::Present);
        assert_eq!(prepared.presence(&statement, 2), Presence::Doubtful);
        prepared.add(&statement, 2);
        prepared.refute(&statement, 1);
        assert_eq!(prepared.presence(&statement, 2), Presence::Present);
        prepared.confirm(&statement, 2);
        assert_eq!(prepared.presence(&statement, 3), Presence::Present);
    }

    #[test]
    fn undoing_from_last_to_first_brings_the_names_back() {
        let mut interner = Interner::default();
        let (a, b) = (interned(&mut interner, "a"), interned(&mut interner, "b"));
        let mut names = Names::default();
        let mut log = vec![names.insert(b"s", Arc::clone(&a))];
        log.extend(names.remove(b"s"));
        log.push(names.insert(b"s", b));
        for undo in log.into_iter().rev() {
            names.undo(undo);
        }
        assert_eq!(names.get(b"s"), None);
        names.insert(b"s", Arc::clone(&a));
        let dropped = names.remove(b"s").unwrap();
        names.undo(dropped);
        assert_eq!(names.get(b"s"), Some(&a));
    }
}
