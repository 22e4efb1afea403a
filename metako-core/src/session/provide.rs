//! A statement that the client uses: made on the server where it is missing, and refused where it is not what it was.

use std::sync::Arc;

use super::described::Description;
use super::forward::Pipe;
use super::replies::{By, Owed};
use super::statements::{NO_SUCH_NAME, PREFIX, Presence, Statement};
use super::{Awaited, Here, Server, Session, SessionCx};
use crate::wire::write::{self, TransactionStatus};

/// How a statement is called on the server.
pub(super) enum OnServer {
    /// As the client calls it.
    Same,
    /// By another name.
    Named(Arc<Statement>),
    /// By another name, with other columns than the client was told of.
    Changed(Arc<Statement>),
    /// First it is to be seen what the server made of it.
    NotYet,
    /// It does not exist, and what the client calls it might be something else there: a name that is nothing.
    Missing(Vec<u8>),
}

impl OnServer {
    pub(super) fn missing(name: &[u8]) -> Self {
        Self::Missing([NO_SUCH_NAME, name].concat())
    }

    pub(super) fn name(&self) -> Option<&[u8]> {
        match self {
            Self::Same | Self::NotYet => None,
            Self::Named(statement) => Some(statement.name()),
            Self::Changed(_) => Some(NO_SUCH_NAME),
            Self::Missing(name) => Some(name),
        }
    }

    pub(super) fn into_owed(self, describes: bool) -> Owed {
        let statement = match self {
            Self::Changed(statement) => return Owed::Changed { statement, describes },
            Self::Named(statement) => Some(statement),
            Self::Same | Self::NotYet | Self::Missing(_) => None,
        };
        if describes { Owed::Describe { statement } } else { Owed::Bind { statement } }
    }
}

impl Session {
    /// Sees to it that the server has the statement that the client means, and says what it is called there.
    pub(super) fn provide(
        &mut self,
        server: &mut Server,
        name: &[u8],
        cx: &SessionCx<'_>,
        pipe: &mut Pipe<'_>,
    ) -> OnServer {
        if name.is_empty() {
            let unit = server.replies.unit();
            if matches!(self.unnamed.here, Here::Yes) || self.unnamed.here == Here::Sent(unit) {
                return OnServer::Same;
            }
            let Some(tail) = &self.unnamed.tail else { return OnServer::missing(name) };
            write::parse(pipe.flush(), b"", tail);
            self.unnamed.here = Here::Sent(unit);
            self.sent(server, Owed::Parse { own: true, statement: None, unit, undo: None });
            return OnServer::Same;
        }
        let Some(statement) = self.statement(name) else {
            // Perhaps made by a function, which pins: then this is its server.
            return if name.starts_with(PREFIX) { OnServer::missing(name) } else { OnServer::Same };
        };
        let presence = server.prepared.presence(&statement, server.replies.unit());
        if presence == Presence::Present {
            return OnServer::Named(statement);
        }
        if presence == Presence::Changed {
            // In a block that failed, the server says that first.
            let failed = server.status == TransactionStatus::Failed;
            return if failed { OnServer::Named(statement) } else { OnServer::Changed(statement) };
        }
        let statement = self.as_analysed_here(server, name, statement, cx);
        let presence = server.prepared.presence(&statement, server.replies.unit());
        let out = pipe.flush();
        self.bring(server, &statement, presence, out);
        if statement.description().is_some_and(Description::has_columns) && server.replies.describing() {
            write::frame(out, b'H', |_| {});
            self.awaited = if statement.verdict().class.is_read() { Awaited::Read } else { Awaited::Write };
            return OnServer::NotYet;
        }
        OnServer::Named(statement)
    }

    /// A shared statement is never made with other settings than it was: a client that has others now gets its own.
    fn as_analysed_here(
        &mut self,
        server: &Server,
        name: &[u8],
        statement: Arc<Statement>,
        cx: &SessionCx<'_>,
    ) -> Arc<Statement> {
        if statement.fits(self.analysed_with(server, statement.sql(), cx).as_deref()) {
            return statement;
        }
        let own = cx.statements.unshared(statement.tail(), statement.verdict(), false, None);
        if let Some(found) = statement.description() {
            own.describe(found.clone());
        }
        self.take_for(name, &statement, &own);
        own
    }

    /// Parses a statement on the server if it is not there.
    pub(super) fn ensure(&mut self, server: &mut Server, statement: &Arc<Statement>, pipe: &mut Pipe<'_>) {
        let unit = server.replies.unit();
        let presence = server.prepared.presence(statement, unit);
        if !presence.is_there() {
            self.bring(server, statement, presence, pipe.flush());
        }
    }

    /// Makes a statement on the server, unless it is present.
    pub(super) fn bring(
        &mut self,
        server: &mut Server,
        statement: &Arc<Statement>,
        presence: Presence,
        out: &mut Vec<u8>,
    ) {
        if presence.is_there() {
            return;
        }
        let unit = server.replies.unit();
        self.make_room(server, statement, presence, out);
        if let Some(sql) = statement.prepare() {
            self.prepare_by_sql(server, statement, &sql, out);
            return;
        }
        write::parse(out, statement.name(), &statement.again());
        let parsed = Some(Arc::clone(statement));
        self.sent(server, Owed::Parse { own: true, statement: parsed, unit, undo: None });
        if statement.script().is_none() && statement.description().is_none_or(Description::has_columns) {
            self.ask_for_description(server, statement, By::Metako, out);
        }
    }

    /// Before a Parse: closes what has to go for it, and what may be there under its name.
    pub(super) fn make_room(
        &mut self,
        server: &mut Server,
        statement: &Arc<Statement>,
        presence: Presence,
        out: &mut Vec<u8>,
    ) {
        let evicted = server.prepared.add(statement, server.replies.unit());
        let in_doubt = (presence == Presence::Doubtful).then(|| Arc::clone(statement));
        for closed in evicted.into_iter().chain(in_doubt) {
            write::statement_target(out, b'C', closed.name());
            self.sent(server, Owed::Close { own: Some(closed) });
        }
    }
}
