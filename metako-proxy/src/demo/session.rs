//! One client of the demo: a session that should live, and what became of its statements.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, NoTls};

/// More than metako holds a client; an answer that comes later is none.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);
/// Before the next attempt of one whose log-in failed.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// What a client knows of its statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The server said that it is done.
    Done,
    /// It is not done: an error that rules it out.
    Refused(String),
    /// It may be done or not.
    Unknown(String),
}

/// A client that opens its connection again when it lost it, and counts that.
pub(super) struct Session {
    config: Config,
    client: Option<Client>,
    losses: u64,
}

impl Session {
    pub(super) fn new(config: Config) -> Self {
        Self { config, client: None, losses: 0 }
    }

    /// Whether the first connection still stands.
    pub(super) fn is_kept(&self) -> bool {
        self.losses == 0 && self.client.as_ref().is_some_and(|client| !client.is_closed())
    }

    /// Sends a statement as the simple protocol does, or with `parameters` by the extended one, unnamed.
    pub(super) async fn run(&mut self, sql: &str, parameters: Option<&[i64]>) -> Answer {
        let client = match self.client().await {
            Ok(client) => client,
            Err(error) => {
                tokio::time::sleep(RECONNECT_PAUSE).await;
                return Answer::Refused(format!("log-in: {error}"));
            }
        };
        let answer = tokio::time::timeout(ANSWER_LIMIT, send(client, sql, parameters)).await;
        let closed = client.is_closed();
        match answer {
            Ok(Ok(())) => Answer::Done,
            Ok(Err(error)) => {
                let answer = classify(&error);
                if closed {
                    self.lose();
                }
                answer
            }
            Err(_) => {
                self.lose();
                Answer::Unknown(format!("no answer within {ANSWER_LIMIT:?}"))
            }
        }
    }

    async fn client(&mut self) -> Result<&Client, String> {
        if self.client.as_ref().is_some_and(Client::is_closed) {
            self.lose();
        }
        match &mut self.client {
            Some(client) => Ok(client),
            none => {
                let connect = tokio::time::timeout(ANSWER_LIMIT, self.config.connect(NoTls)).await;
                let connect = connect.map_err(|_| format!("no answer within {ANSWER_LIMIT:?}"))?;
                let (client, connection) = connect.map_err(|error| describe(&error))?;
                tokio::spawn(async move {
                    // Its error reaches whoever waits for an answer.
                    let _ = connection.await;
                });
                Ok(none.insert(client))
            }
        }
    }

    fn lose(&mut self) {
        self.client = None;
        self.losses += 1;
    }
}

async fn send(client: &Client, sql: &str, parameters: Option<&[i64]>) -> Result<(), tokio_postgres::Error> {
    match parameters {
        None => client.simple_query(sql).await.map(drop),
        Some(values) => {
            let values: Vec<_> = values.iter().map(|value| (value as _, Type::INT8)).collect();
            client.query_typed(sql, &values).await.map(drop)
        }
    }
}

/// Whether a statement that ended so can have been committed. A server that is being stopped may say 57P01 after it has
/// committed; class 08 says that the connection ended in the middle; 08007 and 40003 say it outright.
fn classify(error: &tokio_postgres::Error) -> Answer {
    let Some(code) = error.code() else { return Answer::Unknown(describe(error)) };
    let ended =
        [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN];
    if code.code().starts_with("08") || ended.contains(code) {
        Answer::Unknown(describe(error))
    } else {
        Answer::Refused(describe(error))
    }
}

/// The error on one line, with its SQLSTATE where it has one.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} {}", db.code().code(), db.message()),
        None => std::error::Error::source(error)
            .map_or_else(|| error.to_string(), |source| format!("{error}: {source}")),
    }
}
