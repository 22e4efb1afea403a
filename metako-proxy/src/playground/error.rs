//! What can go wrong in a playground.

use std::io;
use std::time::Duration;

/// Why a throw-away cluster could not be started or handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaygroundError {
    /// No server programs.
    #[error(
        "PostgreSQL's server programs (initdb, postgres) were not found in {searched}: \
         install them (Debian: apt-get install postgresql-15) or set METAKO_PG_BIN to their folder"
    )]
    NoPrograms {
        /// Where they were looked for.
        searched: String,
    },
    /// PostgreSQL refuses to run as root, and there is no other user to run it as.
    #[error(
        "PostgreSQL refuses to run as root and neither the user `postgres` nor `nobody` exists: create one of them"
    )]
    NoAccount,
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A program of PostgreSQL failed.
    #[error("{program} failed ({status}):\n{output}")]
    Program {
        /// Which.
        program: String,
        /// How it ended.
        status: String,
        /// What it said.
        output: String,
    },
    /// A server did not stay up.
    #[error("{node} ended while it was starting ({status}); its log ends with:\n{log}")]
    Ended {
        /// Which node.
        node: String,
        /// How it ended.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// A statement or a log-in failed.
    #[error("{node}: {sql}: {source}")]
    Sql {
        /// Which node.
        node: String,
        /// What was asked.
        sql: String,
        /// Why it failed.
        source: tokio_postgres::Error,
    },
    /// A condition did not come true in time.
    #[error("{what} did not happen within {after:?}; last seen: {last}")]
    TimedOut {
        /// The condition.
        what: String,
        /// How long it was awaited.
        after: Duration,
        /// What was seen last.
        last: String,
    },
    /// The node's state does not allow what was asked.
    #[error("{node}: {what}")]
    WrongState {
        /// Which node.
        node: String,
        /// What is wrong.
        what: String,
    },
}

impl PlaygroundError {
    /// Makes an [`Self::Io`] of a system error.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
