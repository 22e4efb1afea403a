//! What becomes of others when a connection cannot be opened: a server that refuses is not asked again for each of them.

use metako_core::Tick;
use metako_core::pool::ServerId;

use super::{Cell, Core, Granted, InLine, State, Who};
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
pub(super) enum Blame {
    /// The node's: it does not matter who asks.
    Node,
    /// That of the user, the database or the start-up parameters: asking again is of no use, but for others.
    Client,
    /// The server has no connection left to give.
    Full,
}

pub(super) fn blame(error: &ConnectError) -> Blame {
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
    /// A connection could not be opened. Those who wait for the same are told so at once, as far as it is certain that they
    /// would fare no better.
    pub(super) fn open_failed(&self, core: &Core<E>, server: ServerId, who: &Who, error: &ConnectError) {
        let mut state = self.state.lock();
        let now = core.env.now();
        let blame = blame(error);
        if blame == Blame::Client {
            refuse(&mut state, error, |line| {
                line.variant == who.variant && line.credential == who.credential
            });
            let grant = state.pool.lost(now, server);
            Self::deliver(core, &mut state, None, grant);
            return;
        }
        state.pool.failed(now, server, core.next_random());
        // Where others have connections, one of them comes back.
        if blame == Blame::Node || state.pool.is_without_connections() {
            let until = state.pool.pauses_until(now).unwrap_or(now);
            state.trouble = Some(Trouble { error: error.clone(), until });
            refuse(&mut state, error, |_| true);
        }
    }

    /// Whether a client that was not let in can have the connection of another one later.
    pub(super) fn has_others(&self) -> bool {
        let state = self.state.lock();
        !state.retired && !state.pool.is_without_connections()
    }
}

fn refuse<E: Env>(state: &mut State<E>, error: &ConnectError, whom: impl Fn(&InLine<E>) -> bool) {
    let whom: Vec<_> =
        state.waiting.iter().filter(|(_, line)| whom(line)).map(|(waiter, _)| *waiter).collect();
    for waiter in whom {
        // One that does not wait any more has a grant under way.
        if state.pool.cancel(waiter)
            && let Some(line) = state.waiting.remove(&waiter)
        {
            // It may have given up at this moment.
            let _ = line.sender.send(Granted::Refused(error.clone()));
        }
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
