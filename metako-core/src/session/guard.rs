//! The commit guard: a commit whose wait for synchronous standbys was cancelled is no success to the client.
//!
//! PostgreSQL says so in a notice, and answers success. Where a session guards its commits the client gets the notice and an
//! error in place of success, and nothing else of that Query, or up to that Sync, as after any error. The server has run
//! it all the same: what it answers is taken note of, and withheld.

use super::statements::Undo;
use super::{Effect, Server, Session, floor};
use crate::config::UnknownOutcome;
use crate::wire::NoticeReader;
use crate::wire::write::{self, Report};

const DETAIL: &str = "It has been committed (or prepared) on the primary, where others see it, but might not have been replicated \
                      to a standby: a failover may lose it. What was sent with it may have been run as well.";

/// What the client is told of a commit that is not known to be replicated; nothing where its connection is to end with it.
/// `cancelled_by` is the setting that had metako cancel it.
pub fn unreplicated(unknown: UnknownOutcome, cancelled_by: Option<&str>) -> Option<Report> {
    let mut detail = DETAIL.to_owned();
    if let Some(key) = cancelled_by {
        detail.extend([" metako cancelled the statement: ", key, " had passed without an answer."]);
    }
    let message = "the commit is not known to be replicated: its wait for synchronous standbys was cancelled";
    let report = Report::error(unknown.sqlstate()?, message).with_detail(detail);
    Some(report.with_hint(
        "Look before repeating it. Cancel no commit that waits: it goes on when a standby answers.",
    ))
}

impl Session {
    /// Guards the commits of this session from now on, or does not: what is unknown is reported in this way. To be called
    /// while it has no server. What the session had set below what guarded commits need is given up.
    pub fn guard_commits(&mut self, guard: Option<UnknownOutcome>) {
        if guard.is_some() && self.guard.is_none() && self.settings.any(floor::is_below) {
            let mut settings = self.settings.as_ref().clone();
            settings.remove_if(floor::is_below);
            self.settings = settings.into();
        }
        self.guard = guard;
    }

    /// Whether a COMMIT, or what may be one, is awaited: that is not to be cancelled.
    pub fn is_committing(&self) -> bool {
        self.open.committing
    }

    /// A notice begins that is passed on.
    pub(super) fn begin_notice(&self, server: &mut Server) {
        server.notice = self.guard.is_some().then(NoticeReader::default);
    }

    /// The client was told of such a commit in this unit: what else answers it is not for the client.
    pub(super) fn commit_unreplicated(
        &mut self,
        server: &mut Server,
        to_client: &mut Vec<u8>,
    ) -> Option<Effect> {
        let unknown = self.guard?;
        if server.replies.front().is_none() || server.replies.is_preparing() || self.becoming.failed {
            // No commit of the client's, or what failed already.
            return None;
        }
        self.stop_holding_back();
        // What the unit has made of the session is asked of the server.
        self.becoming.failed = true;
        self.counts.failed += 1;
        self.counts.unreplicated += 1;
        let Some(report) = unreplicated(unknown, self.timed_out.take()) else { return Some(Effect::Ended) };
        write::error_response(to_client, &report);
        server.told = true;
        None
    }

    /// The client believes that something was not run which was, and cannot be undone otherwise: the server wants rows for a
    /// COPY, or has made or closed a statement whose name only it knows.
    pub(super) fn end_untold(&self, to_client: &mut Vec<u8>) -> Effect {
        if let Some(report) = self.guard.and_then(|unknown| unreplicated(unknown, None)) {
            let detail =
                "What was sent behind that commit was run, and the session cannot go on as if it was not.";
            write::error_response(to_client, &report.with_detail(detail).as_fatal());
        }
        Effect::Ended
    }

    /// To the client, nothing behind the error was run: names mean what they meant before.
    pub(super) fn undo_untold(&mut self) {
        while let Some(undo) = self.untold.pop() {
            match undo {
                Undo::Forget(name, _) => drop(self.names.remove(&name)),
                restore @ Undo::Restore(..) => self.names.undo(restore),
            }
        }
    }
}
