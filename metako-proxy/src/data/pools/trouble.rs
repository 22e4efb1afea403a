//! What becomes of others when a connection cannot be opened: a server that refuses is not asked again for each of them.

use std::sync::Arc;

use metako_core::Tick;
use metako_core::pool::ServerId;

use super::{Cell, Core, Who};
use crate::backend::{ConnectError, ConnectErrorKind};
use crate::env::Env;

/// A failure of the node, which holds for everybody for a while. What a server refuses to one user holds for those who
/// wait for the same at that moment: it may be mended before the next one comes.
#[derive(Debug)]
pub(super) struct Trouble {
    error: ConnectError,
    until: Tick,
}

impl Trouble {
    /// Whether it holds now.
    pub(super) fn is_on(&self, now: Tick) -> bool {
        now < self.until
    }

    pub(super) fn error(&self) -> ConnectError {
        self.error.clone()
    }
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blame {
    /// The node's: it does not matter who asks.
    Node,
    /// That of the user, the database or the start-up parameters: asking again is of no use, but for others.
    Client,
    /// The server has no connection left to give.
    Full,
}

fn blame(error: &ConnectError) -> Blame {
    match &error.kind {
        ConnectErrorKind::Server(error) => match error.sqlstate.get(..2) {
            // A library that a start-up parameter names and that is not there; a database that is being dropped.
            _ if matches!(error.sqlstate.as_str(), "58P01" | "58P02" | "57P04" | "57014") => Blame::Client,
            Some("53") => Blame::Full,
            Some("08" | "57" | "58" | "XX") => Blame::Node,
            _ => Blame::Client,
        },
        ConnectErrorKind::Authentication(_) => Blame::Client,
        _ => Blame::Node,
    }
}

impl<E: Env> Cell<E> {
    /// A connection could not be opened. Those who wait for the same are told so at once, as far as they would fare no
    /// better; those for whom another one is being opened go on waiting.
    pub(super) fn open_failed(
        self: &Arc<Self>,
        core: &Arc<Core<E>>,
        server: ServerId,
        who: &Who,
        error: &ConnectError,
    ) {
        let mut state = self.state.lock();
        let now = core.env.now();
        let blame = blame(error);
        if blame == Blame::Client {
            state.pool.lost(server);
            state.refuse(error, |line| {
                line.who.variant == who.variant && line.who.credential == who.credential
            });
            state.warm.take_if(|warm| **warm == *who);
        } else {
            state.pool.failed(now, server, core.next_random());
            // Where there are other connections, one of them comes back.
            if blame == Blame::Node || state.pool.is_without_connections() {
                let until = state.pool.pauses_until(now).unwrap_or(now);
                state.trouble = Some(Trouble { error: error.clone(), until });
                let whom = state.pool.without_opening();
                state.refuse_each(error, whom);
            }
        }
        self.settle(core, state, None);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::backend::ServerError;

    #[test]
    fn blame_is_put_where_it_belongs() {
        let of = |kind| blame(&ConnectError { node: "pg-1".into(), kind });
        let server =
            |code| of(ConnectErrorKind::Server(Box::new(ServerError::new("FATAL", code, "no", None))));
        assert_eq!(["28P01", "28000", "3D000", "42704", "22023", ""].map(server), [Blame::Client; 6]);
        assert_eq!(["58P01", "58P02", "57P04", "57014"].map(server), [Blame::Client; 4]);
        assert_eq!(["57P03", "57P01", "08006", "58030", "XX000"].map(server), [Blame::Node; 5]);
        assert_eq!(["53300", "53200"].map(server), [Blame::Full; 2]);
        assert_eq!(of(ConnectErrorKind::Authentication("no".to_owned())), Blame::Client);
        for kind in [
            ConnectErrorKind::Refused(String::new()),
            ConnectErrorKind::TimedOut(Duration::ZERO),
            ConnectErrorKind::Tls(String::new()),
        ] {
            assert_eq!(of(kind), Blame::Node);
        }
    }
}
