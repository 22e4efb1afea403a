//! State of the session that outlives transactions: it is made on each server that the session comes to, and after each
//! transaction it is found out what the session has become.

use std::sync::Arc;

use super::acts::Act;
use super::analysis::InTransaction;
use super::pins::{Answer, Pins, question};
use super::replies::{Asked, Owed};
use super::settings::{self, APPLICATION_NAME, Made, Settings, View};
use super::statements::Undo;
use super::{Attachment, Here, Server, Session, State, Verdict, floor};
use crate::plugin::Effects;
use crate::wire::write::{self, TransactionStatus};

/// What the session may have become in the transaction at hand.
#[derive(Debug, Default)]
pub(super) struct Becoming {
    /// What was sent may have left so much behind, and the server was not asked yet.
    pub(super) suspect: Effects,
    /// The same, to be asked after the next unit.
    later: Effects,
    /// What the question that is on its way is about.
    asked: Effects,
    /// Settings that statements outside blocks have made, and that hold if the unit succeeds.
    done: Vec<Act>,
    /// Settings that no list of the server shows, and that may have been made.
    named: Vec<Box<[u8]>>,
    /// An error was given in the unit at hand.
    pub(super) failed: bool,
    /// How many statements of the Query at hand are done.
    pub(super) statement: usize,
    /// What was set in it.
    pub(super) set: InTransaction,
}

/// The settings whose change statements explain.
#[derive(Debug, Default)]
struct Explained {
    all: bool,
    names: Vec<Box<[u8]>>,
}

impl Explained {
    fn has(&self, name: &[u8]) -> bool {
        self.all || self.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

impl Becoming {
    /// Whether success would show nothing new.
    pub(super) fn is_settled(&self) -> bool {
        !self.failed
            && self.suspect == Effects::NONE
            && self.later == Effects::NONE
            && self.done.is_empty()
            && self.set.is_nothing()
    }
}

impl Session {
    /// Makes the server what the session wants it to be. Costs nothing where it is so already.
    pub(super) fn arrive(&mut self, server: &mut Server, to_server: &mut Vec<u8>) {
        let known = server.last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &self.identity));
        self.new_here = !known;
        let mut sql = Vec::new();
        if !known {
            if server.unsure {
                // Functions may have made settings that no list shows.
                sql.extend_from_slice(b"RESET ALL; ");
                server.applied = Arc::default();
                server.unsure = false;
            }
            server.last = Some(Arc::clone(&self.identity));
        }
        self.make_settings(server, sql, to_server);
        match &mut self.told {
            None => self.told = Some(View::new(server.reported.base())),
            Some(told) => self.tell_due = !told.is_surely_one(&mut server.reported),
        }
    }

    /// At the first message to a server: tells the client what is in force there, unless that is about to change.
    pub(super) fn tell_if_due(&mut self, server: &Server, to_client: &mut Vec<u8>) {
        if self.tell_due && !server.answers_metako() {
            self.tell(server, to_client);
        }
    }

    /// Sends what turns the settings that the server has into those of the session, behind `sql`.
    fn make_settings(&mut self, server: &mut Server, mut sql: Vec<u8>, to_server: &mut Vec<u8>) {
        let mut asked = if sql.is_empty() { Asked::Name } else { Asked::State };
        if !Arc::ptr_eq(&server.applied, &self.settings) {
            if server.applied == self.settings {
                settings::become_one(&mut self.settings, &mut server.applied);
            } else {
                if !server.applied.is_but_for_the_name(&self.settings) {
                    asked = Asked::State;
                }
                server.applied.become_those(&self.settings, &mut sql);
                server.applied = Arc::clone(&self.settings);
            }
        }
        if !sql.is_empty() {
            self.ask(server, asked, &sql, to_server);
        }
    }

    fn ask(&mut self, server: &mut Server, asked: Asked, sql: &[u8], to_server: &mut Vec<u8>) {
        write::query(to_server, sql);
        self.unnamed.here = Here::No;
        // Only sent where nothing is skipped, so it is never given back.
        let _ = server.replies.sent(Owed::Metako(asked));
    }

    /// Whether the statement at hand reads what nextval() left on a server that others had before: that is not this
    /// session's.
    pub(super) fn reads_others_sequences(&self, server: &Server, verdict: Verdict) -> bool {
        self.new_here
            && verdict.effects.has(Effects::SEQUENCES)
            && server.status == TransactionStatus::Idle
            && !server.replies.are_outstanding()
            && !server.replies.unsynced()
    }

    pub(super) fn discard_sequences(&mut self, server: &mut Server, to_server: &mut Vec<u8>) {
        self.new_here = false;
        self.ask(server, Asked::State, b"DISCARD SEQUENCES", to_server);
    }

    /// Notes what a statement that is sent may leave behind.
    pub(super) fn note_effects(&mut self, effects: Effects) {
        self.becoming.suspect = self.becoming.suspect.and(effects);
        if effects.has(Effects::STAYS) {
            self.pins.add(Pins::STAYS);
        }
        if effects.has(Effects::SEQUENCES) {
            self.pins.add(Pins::SEQUENCES);
        }
    }

    /// Notes the acts of a text that is sent; those on prepared statements are seen to elsewhere. `alone` if it is one
    /// statement and no block is open: what it sets is then known from its success. Gives what is to be kept for that.
    pub(super) fn note_acts(&mut self, found: &[(usize, Act)], alone: bool) -> Vec<Act> {
        let mut kept = Vec::new();
        for (_, act) in found {
            if act.undoes_log_in() && !alone {
                kept.push(act.clone());
            }
            match act {
                Act::Set { .. } | Act::Reset { .. } | Act::ResetAll if alone => {}
                Act::Set { name, text } | Act::SetLocal { name, text } => {
                    self.becoming.set.set(name, text.as_deref());
                }
                Act::Reset { name } | Act::SetConfig { name } => self.becoming.set.set(name, None),
                Act::ResetAll | Act::Unclear => self.becoming.set.set_any(),
                _ => {}
            }
            match act {
                Act::Role => self.note_effects(Effects::HOLDS.and(Effects::RELEASES)),
                Act::Stays => self.note_effects(Effects::STAYS),
                // No list shows it, and metako could not make it again.
                Act::SetConfigOfUnknown => self.pins.add(Pins::UNNAMED),
                Act::Set { .. } | Act::Reset { .. } | Act::ResetAll | Act::DiscardSequences if alone => {
                    kept.push(act.clone());
                }
                Act::Set { name, .. } | Act::Reset { name } | Act::SetConfig { name } => self.look_at(name),
                Act::ResetAll | Act::Unclear => self.note_effects(Effects::OPAQUE),
                // DISCARD ALL is seen by its tag.
                Act::DiscardAll if alone => kept.push(Act::DiscardAll),
                Act::DiscardAll
                | Act::DiscardSequences
                | Act::SetLocal { .. }
                | Act::Prepare { .. }
                | Act::Execute { .. }
                | Act::Deallocate { .. } => {}
            }
        }
        kept
    }

    /// A setting may have been made: the server is to be asked.
    fn look_at(&mut self, name: &[u8]) {
        self.note_effects(Effects::OPAQUE);
        if name.contains(&b'.') && !self.becoming.named.iter().any(|known| known.as_ref() == name) {
            self.becoming.named.push(name.into());
        }
    }

    /// A statement succeeded.
    pub(super) fn succeeded(&mut self, server: &mut Server) {
        let Server { replies, prepared, told, .. } = server;
        let done = self.becoming.statement;
        if matches!(replies.front(), Some(Owed::Query { .. })) {
            self.becoming.statement += 1;
        }
        let Some(carried) = replies.carried() else { return };
        for (_, undo) in carried.undo.iter().filter(|(of, _)| *of == done) {
            match undo {
                Undo::Forget(_, statement) => prepared.confirm(statement, carried.unit),
                Undo::Restore(_, statement) if statement.is_own() && !*told => prepared.release(statement),
                Undo::Restore(..) => {}
            }
        }
        let (held, open): (Vec<_>, Vec<_>) =
            std::mem::take(&mut carried.undo).into_iter().partition(|(of, _)| *of == done);
        carried.undo = open;
        if *told {
            self.untold.extend(held.into_iter().map(|(_, undo)| undo));
        }
        self.becoming.done.append(&mut carried.acts);
    }

    /// DISCARD ALL succeeded: nothing is left but what it does not reach.
    pub(super) fn discarded_all(&mut self) {
        self.becoming.done.push(Act::ResetAll);
        self.becoming.suspect = self.becoming.suspect.and(Effects::RELEASES);
        self.pins.remove(Pins::SEQUENCES);
        self.pins.remove(Pins::LONG);
        self.pins.remove(Pins::UNNAMED);
    }

    /// Whether a statement of the unit at hand has sent the server back to the application name of its own log-in, where
    /// the client's is another.
    pub(super) fn has_anothers_name(&self, server: &mut Server) -> bool {
        let now = server.reported.get(APPLICATION_NAME);
        let is_lost = matches!((&self.start, now), (Some(Made::Value(start)), Some(now)) if **start != *now)
            && now == server.reported.of_base(APPLICATION_NAME);
        let running = server.replies.carried().map_or(&[][..], |carried| &carried.acts);
        is_lost && self.becoming.done.iter().chain(running).any(Act::undoes_log_in)
    }

    /// Tells the client that it has the name of its start-up again.
    pub(super) fn tell_start_name(&mut self, to_client: &mut Vec<u8>) {
        if let (Some(Made::Value(name)), Some(told)) = (&self.start, &mut self.told)
            && told.get(APPLICATION_NAME) != Some(name)
        {
            write::parameter_status(to_client, APPLICATION_NAME, name);
            told.set(APPLICATION_NAME, name);
        }
    }

    /// ReadyForQuery came for the client. Asks the server what the session has become, where that is not known.
    pub(super) fn found_ready(
        &mut self,
        server: &mut Server,
        to_server: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) {
        let failed = std::mem::take(&mut self.becoming.failed);
        self.becoming.statement = 0;
        if !failed && !self.becoming.done.is_empty() && self.has_anothers_name(server) {
            self.tell_start_name(to_client);
            if server.status == TransactionStatus::InBlock
                && let Some(start) = &self.start
            {
                let mut sql = Vec::new();
                Settings::default().become_those(&Settings::named(start), &mut sql);
                self.ask(server, Asked::Name, &sql, to_server);
            }
        }
        let mut explained = Explained::default();
        if !self.becoming.done.is_empty() {
            explained = self.finish_acts(server, failed);
        }
        if server.status != TransactionStatus::Idle {
            return;
        }
        if !self.becoming.suspect.and(self.becoming.asked).has(Effects::OPAQUE) {
            self.becoming.set = InTransaction::default();
        }
        for (name, before) in std::mem::take(&mut server.touched) {
            let changed = server.reported.get(&name) != before.as_deref();
            if changed && settings::is_settable(&name) && !explained.has(&name) {
                // By a function, or by the node's administrator: its list tells.
                self.note_effects(Effects::OPAQUE);
            }
        }
        let later = std::mem::take(&mut self.becoming.later);
        self.note_effects(later);
        self.settle(server, to_server);
    }

    /// Once all is answered and no block is open: asks what is not known, and makes what is not right.
    pub(super) fn settle(&mut self, server: &mut Server, to_server: &mut Vec<u8>) {
        if !server.replies.settled()
            || server.status != TransactionStatus::Idle
            || self.framer.inside_frame()
            || !self.is_attached()
        {
            return;
        }
        let suspect = std::mem::take(&mut self.becoming.suspect);
        let opaque = suspect.has(Effects::OPAQUE);
        let may_have_ended = suspect.has(Effects::RELEASES) && self.pins.has(Pins::ASKED);
        if opaque || suspect.has(Effects::HOLDS) || may_have_ended {
            self.becoming.asked = suspect;
            let named = self.becoming.named.iter().map(AsRef::as_ref);
            let known = self.settings.names().filter(|name| name.contains(&b'.'));
            let sql = question(
                opaque,
                named.chain(known.filter(|name| !self.becoming.named.iter().any(|n| n.as_ref() == *name))),
            );
            server.answer = Answer::default();
            self.ask(server, Asked::Question, &sql, to_server);
        } else if !Arc::ptr_eq(&server.applied, &self.settings) {
            self.make_settings(server, Vec::new(), to_server);
        }
    }

    fn finish_acts(&mut self, server: &mut Server, failed: bool) -> Explained {
        let done = std::mem::take(&mut self.becoming.done);
        if failed || server.status != TransactionStatus::Idle {
            // Whether they hold is seen when the transaction is over.
            for act in done {
                match act {
                    Act::Set { name, .. } | Act::Reset { name } => self.look_at(&name),
                    _ => self.note_effects(Effects::OPAQUE),
                }
            }
            return Explained::default();
        }
        let mut settings = Settings::clone(&self.settings);
        let mut explained = Explained::default();
        for act in done {
            match &act {
                Act::Set { name, .. } | Act::Reset { name } => explained.names.push(name.clone()),
                _ => explained.all |= act == Act::ResetAll,
            }
            match act {
                Act::Set { name, text } => match (server.reported.find(&name), text) {
                    (Some(value), _) => settings.set(&name, Made::Value(value.into())),
                    (None, Some(text)) => settings.set(&name, Made::Text(text)),
                    (None, None) => self.look_at(&name),
                },
                Act::Reset { name } => settings.remove(&name),
                Act::ResetAll => settings = Settings::default(),
                Act::DiscardSequences => self.pins.remove(Pins::SEQUENCES),
                _ => {}
            }
        }
        server.unsure &= !explained.all;
        self.take_settings(server, settings);
        explained
    }

    /// The session has these settings now, and its server as well. Those that a function has made, and that guarded commits
    /// do not allow, are on the server only: they go before anything else is run there.
    fn take_settings(&mut self, server: &mut Server, mut settings: Settings) {
        let on_server = server.reported.get(APPLICATION_NAME).map(|name| Made::Value(name.into()));
        if settings.get(APPLICATION_NAME).is_none()
            && let Some(start) = &self.start
        {
            // The server went back to its own.
            settings.set(APPLICATION_NAME, start.clone());
        }
        let mut applied = settings.clone();
        if self.guard.is_some() && settings.any(floor::is_below) {
            settings.remove_if(floor::is_below);
            self.counts.lowered += 1;
        }
        let stuck = settings.is_stuck();
        self.pins.remove(Pins::SETTINGS);
        if stuck {
            self.pins.add(Pins::SETTINGS);
        }
        let wanted = settings.get(APPLICATION_NAME);
        let differs = on_server.filter(|name| wanted.is_some_and(|wanted| wanted != name));
        if let Some(name) = differs {
            applied.set(APPLICATION_NAME, name);
        }
        self.settings = Arc::new(settings);
        server.applied =
            if applied == *self.settings { Arc::clone(&self.settings) } else { Arc::new(applied) };
    }

    /// ReadyForQuery came for a query of metako's own.
    pub(super) fn found_answer(
        &mut self,
        server: &mut Server,
        asked: Asked,
        to_server: &mut Vec<u8>,
        to_client: &mut Vec<u8>,
    ) {
        server.touched.clear();
        if asked == Asked::Question {
            self.learn(server);
        }
        self.settle(server, to_server);
        if !server.answers_metako() {
            // Else what the server has is not yet what the client has.
            self.tell(server, to_client);
        }
    }

    fn learn(&mut self, server: &mut Server) {
        let Answer { pins, settings: found, broken } = std::mem::take(&mut server.answer);
        let opaque = std::mem::take(&mut self.becoming.asked).has(Effects::OPAQUE);
        let Some(pins) = pins.filter(|_| !broken) else {
            // It is asked again after the next statement.
            self.becoming.later = Effects::OPAQUE;
            self.pins.add(Pins::UNASKED);
            return;
        };
        self.pins.remove(Pins::ASKED);
        let mut pins = pins;
        if server.reported.changed(b"session_authorization").is_some() {
            pins.add(Pins::ROLE);
        }
        if opaque {
            self.becoming.named.clear();
            self.becoming.set = InTransaction::default();
            server.unsure = true;
            let mut settings = Settings::default();
            for (name, value) in found.into_iter().filter(|(name, _)| !name.starts_with(b"transaction_")) {
                settings.set(&name, Made::Value(value));
            }
            if settings != *self.settings {
                self.take_settings(server, settings);
            }
        }
        if matches!(self.state, State::Attached(Attachment::Unit { .. })) {
            // The session could not write there: the replica is closed after use, and what is on it with it.
            server.out_of_step |= pins != Pins::NONE;
        } else {
            self.pins.add(pins);
        }
    }

    /// The client is always told the value in force of a reported parameter.
    pub(super) fn tell(&mut self, server: &Server, to_client: &mut Vec<u8>) {
        self.tell_due = false;
        let before = to_client.len();
        if let Some(told) = &mut self.told {
            told.catch_up(&server.reported, |name, value| {
                write::parameter_status(to_client, name, value);
            });
        }
        if to_client.len() > before {
            // It is not said twice, so it is not taken back.
            self.stop_holding_back();
        }
    }
}
