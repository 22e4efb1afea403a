//! A session that a node's probes share: opened when it is needed, and kept between questions.

use std::sync::Arc;
use std::time::Duration;

use metako_core::Tick;
use metako_core::config::Node;
use metako_core::plugin::ProbeFailure;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::connection::Connection;
use crate::backend::ServerTlsTable;
use crate::env::Env;
use crate::shared::EvidenceSender;

/// How long a log-in may take that nobody waits for any more.
const LOG_IN_GIVEN_UP: Duration = Duration::from_secs(10);

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sql,
    Replication,
}

/// A session to a node, or the way to one.
///
/// A log-in goes on when the probe that began it is dropped, and the next one finds it: otherwise a node that needs longer
/// for a log-in than a probe may take would never be seen again. That next probe also tries anew beside it, because a
/// connection attempt that was lost in a network that has come back is slow to notice.
pub(super) struct Session<E: Env> {
    env: E,
    node: Arc<Node>,
    tls: ServerTlsTable,
    kind: Kind,
    standing: Option<Connection>,
    earlier: Option<LogIn>,
    evidence: Option<EvidenceSender>,
}

struct LogIn {
    begun: Tick,
    answer: oneshot::Receiver<Result<Connection, ProbeFailure>>,
}

async fn log_in<E: Env>(
    env: &E,
    node: &Node,
    tls: &ServerTlsTable,
    kind: Kind,
) -> Result<Connection, ProbeFailure> {
    match kind {
        Kind::Sql => Connection::open(env, node, tls).await,
        Kind::Replication => Connection::open_replication(env, node, tls).await,
    }
}

impl<E: Env> Session<E> {
    pub(super) fn new(env: E, node: Arc<Node>, tls: ServerTlsTable, kind: Kind) -> Self {
        Self { env, node, tls, kind, standing: None, earlier: None, evidence: None }
    }

    /// Has `evidence` told when the standing connection breaks, so that nobody has to ask first.
    pub(super) fn telling(self, evidence: Option<EvidenceSender>) -> Self {
        Self { evidence, ..self }
    }

    /// The standing connection, or a new one. Whoever takes it gives it back when it is fit for another question.
    ///
    /// Cancellation-safe: a log-in that was begun goes on.
    pub(super) async fn take(&mut self) -> Result<Connection, ProbeFailure> {
        // That one broke while nobody used it says less than whether another can be opened.
        if let Some(connection) = self.standing.take().filter(|standing| !standing.is_closed()) {
            return Ok(connection);
        }
        let now = self.env.now();
        self.earlier.take_if(|earlier| now.since(earlier.begun) >= LOG_IN_GIVEN_UP);
        if self.earlier.is_none() {
            self.earlier = Some(self.begin());
            return self.await_earlier().await;
        }
        let (env, node, tls) = (self.env.clone(), Arc::clone(&self.node), self.tls.clone());
        let kind = self.kind;
        let anew = log_in(&env, &node, &tls, kind);
        tokio::pin!(anew);
        tokio::select! {
            biased;
            earlier = self.await_earlier() => match earlier {
                Ok(connection) => Ok(connection),
                // What came of an earlier try says less than what comes of this one.
                Err(_) => anew.await,
            },
            result = &mut anew => {
                if result.is_ok() {
                    self.earlier = None;
                }
                result
            }
        }
    }

    /// Sees to it that a connection is at hand when it will be needed. Does not wait for it; a log-in that failed is not
    /// tried again for a while.
    pub(super) fn prepare(&mut self) {
        self.standing.take_if(|standing| standing.is_closed());
        if self.standing.is_some() {
            return;
        }
        let now = self.env.now();
        self.earlier.take_if(|earlier| now.since(earlier.begun) >= LOG_IN_GIVEN_UP);
        match &mut self.earlier {
            None => self.earlier = Some(self.begin()),
            Some(earlier) => {
                if let Ok(Ok(connection)) = earlier.answer.try_recv() {
                    self.standing = Some(connection);
                    self.earlier = None;
                }
            }
        }
    }

    pub(super) fn give_back(&mut self, connection: Connection) {
        if let Some(evidence) = &self.evidence {
            connection.tell_when_lost(evidence);
        }
        self.standing = Some(connection);
    }

    /// Closes what is open.
    pub(super) fn close(&mut self) {
        self.standing = None;
        self.earlier = None;
    }

    fn begin(&self) -> LogIn {
        let (mut sender, answer) = oneshot::channel();
        let (env, node, tls) = (self.env.clone(), Arc::clone(&self.node), self.tls.clone());
        let kind = self.kind;
        self.env.spawn(async move {
            let attempt = timeout(LOG_IN_GIVEN_UP, log_in(&env, &node, &tls, kind));
            let answer = tokio::select! {
                () = sender.closed() => return,
                answer = attempt => answer.unwrap_or(Err(ProbeFailure::TimedOut(LOG_IN_GIVEN_UP))),
            };
            // The session may be gone meanwhile.
            let _ = sender.send(answer);
        });
        LogIn { begun: self.env.now(), answer }
    }

    /// Waits for the log-in that is under way, and leaves it so if dropped.
    async fn await_earlier(&mut self) -> Result<Connection, ProbeFailure> {
        let Some(earlier) = &mut self.earlier else {
            return Err(ProbeFailure::Unexpected("no log-in is under way".to_owned()));
        };
        let ended = |_| ProbeFailure::Unexpected("the task of a log-in ended".to_owned());
        let answer = (&mut earlier.answer).await.map_err(ended);
        self.earlier = None;
        answer?
    }
}

#[cfg(test)]
mod tests {
    use metako_core::config::{NodeTls, Priority, ReplicationAddress, Secret, SslMode};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Notify;

    use super::*;
    use crate::env::TokioEnv;

    fn node(port: u16) -> Arc<Node> {
        Arc::new(Node {
            name: "a".into(),
            host: "127.0.0.1".to_owned(),
            port,
            role: None,
            username: "postgres".to_owned(),
            password: Secret::new("secret"),
            database: "postgres".to_owned(),
            weight: 1,
            zone: None,
            priority: Priority::Rank(1),
            tls: NodeTls::new(SslMode::Disable),
            application_name: "a".to_owned(),
            pgdata: None,
            replication: ReplicationAddress {
                host: "127.0.0.1".to_owned(),
                port,
                user: None,
                password: None,
                passfile: None,
            },
        })
    }

    /// AuthenticationOk, BackendKeyData and ReadyForQuery.
    const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0\x02Z\0\0\0\x05I";

    async fn start_up_packet(stream: &mut TcpStream) {
        let length = stream.read_u32().await.unwrap();
        let mut rest = vec![0; length as usize - 4];
        stream.read_exact(&mut rest).await.unwrap();
    }

    #[tokio::test]
    async fn a_log_in_that_takes_longer_than_a_probe_is_not_begun_again_and_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (arrived, answer) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let server = {
            let (arrived, answer) = (Arc::clone(&arrived), Arc::clone(&answer));
            tokio::spawn(async move {
                // Only the first client is ever let in.
                let (mut first, _) = listener.accept().await.unwrap();
                start_up_packet(&mut first).await;
                arrived.notify_one();
                answer.notified().await;
                first.write_all(WELCOME).await.unwrap();
                let mut farewell = Vec::new();
                first.read_to_end(&mut farewell).await.unwrap();
                farewell
            })
        };
        let mut session = Session::new(TokioEnv::new(), node(port), ServerTlsTable::default(), Kind::Sql);
        tokio::select! {
            _ = session.take() => panic!("nobody answered"),
            () = arrived.notified() => {}
        }
        answer.notify_one();
        let connection = timeout(LOG_IN_GIVEN_UP, session.take()).await.unwrap().unwrap();
        session.give_back(connection);
        session.close();
        let farewell = server.await.unwrap();
        assert!(
            farewell.is_empty() || farewell == *b"X\0\0\0\x04",
            "closed, with or without a Terminate: {farewell:?}"
        );
    }
}
