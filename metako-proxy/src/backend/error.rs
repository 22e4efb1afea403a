//! Why a server could not be reached or would not let metako in, and what that says about the server.

use std::fmt;
use std::io;
use std::time::Duration;

use metako_core::NodeName;
use metako_core::cluster::ServerLoss;
use metako_core::plugin::ProbeFailure;
use metako_core::wire::read;

/// A connection to a server that did not come to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{node}: {kind}")]
pub struct ConnectError {
    /// The server: a node's name, or `host:port` where only an address was known ([`open`](super::open)).
    pub node: NodeName,
    /// What happened.
    pub kind: ConnectErrorKind,
}

/// What can go wrong between the first packet and `ReadyForQuery`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectErrorKind {
    /// Nothing listens there.
    #[error("connection refused: {0}")]
    Refused(String),
    /// Whoever waited for it gave up after so long; made by [`ConnectError::timed_out`].
    #[error("no log-in within {}ms", .0.as_millis())]
    TimedOut(Duration),
    /// The name does not resolve, or there is no way to the host from here.
    #[error("cannot be reached from here: {0}")]
    Unreachable(String),
    /// The connection was there and ended before the log-in was done.
    #[error("the server closed the connection during log-in: {0}")]
    Closed(String),
    /// The server answered with an error.
    #[error("{0}")]
    Server(Box<ServerError>),
    /// The server asks for what metako cannot or will not give, or could not prove that it knows the password.
    #[error("log-in failed: {0}")]
    Authentication(String),
    /// The answer is not PostgreSQL's protocol.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// It let metako in, and is not the run of the server that clients may be connected to.
    #[error("the server was started anew, or is another one: clients wait until it has been looked at")]
    Stranger,
    /// TLS was demanded and did not come about.
    #[error("TLS: {0}")]
    Tls(String),
}

/// An ErrorResponse, with all that the server said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// Severity, in English where the server says it: `FATAL`, `ERROR`, `PANIC`.
    pub severity: String,
    /// The SQLSTATE.
    pub sqlstate: String,
    /// The message, in the server's language.
    pub message: String,
    /// The detail, if there is one.
    pub detail: Option<String>,
    /// All fields in the server's order, each as its type and its text: what a client gets to which the error is passed
    /// on. The text is what the server sent, in its encoding. Severity, SQLSTATE, message and detail are here too.
    pub fields: Vec<(u8, Vec<u8>)>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity, self.message, self.sqlstate)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl ServerError {
    /// An error of which no more is known than this.
    pub fn new(severity: &str, sqlstate: &str, message: &str, detail: Option<&str>) -> Self {
        let known = [(b'S', severity), (b'V', severity), (b'C', sqlstate), (b'M', message)];
        let detail_field = detail.map(|detail| (b'D', detail));
        let fields = known.into_iter().chain(detail_field);
        Self {
            severity: severity.to_owned(),
            sqlstate: sqlstate.to_owned(),
            message: message.to_owned(),
            detail: detail.map(str::to_owned),
            fields: fields.map(|(kind, text)| (kind, text.as_bytes().to_vec())).collect(),
        }
    }

    /// Reads the body of an ErrorResponse; `None` if it is broken. Where text is wanted, what is not UTF-8 is made so.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut error = Self::default();
        let mut localised = String::new();
        let mut rest = body;
        loop {
            let (kind, after) = rest.split_first()?;
            if *kind == 0 {
                break;
            }
            let (value, after) = read::text(after)?;
            rest = after;
            let text = || String::from_utf8_lossy(value).into_owned();
            match kind {
                b'S' => localised = text(),
                b'V' => error.severity = text(),
                b'C' => error.sqlstate = text(),
                b'M' => error.message = text(),
                b'D' => error.detail = Some(text()),
                _ => {}
            }
            error.fields.push((*kind, value.to_vec()));
        }
        if error.severity.is_empty() {
            error.severity = localised;
        }
        Some(error)
    }

    /// Whether it refuses the protocol's version.
    pub(super) fn is_about_the_protocol(&self) -> bool {
        matches!(self.sqlstate.as_str(), "0A000" | "08P01")
    }

    /// Of the refusals that share 57P03, whether this one says that the server goes down rather than comes up. Only the
    /// text tells them apart; in a language that is not English they all count as coming up, which is the milder claim: such
    /// a primary is waited for, for `failover.start_timeout`.
    fn is_shutting_down(&self) -> bool {
        self.sqlstate == "57P01" || (self.sqlstate == "57P03" && self.message.contains("shutting down"))
    }
}

impl ConnectErrorKind {
    /// What an I/O error says when it came from connecting.
    pub(super) fn connecting(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused(error.to_string()),
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
                Self::Closed(error.to_string())
            }
            _ => Self::Unreachable(error.to_string()),
        }
    }

    /// What an I/O error says when it came from a connection that was established.
    pub(super) fn talking(error: &io::Error) -> Self {
        // In TLS 1.3 the server's judgement on a client's certificate comes after the handshake.
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(told) => Self::Tls(told.to_string()),
            None => Self::Closed(error.to_string()),
        }
    }

    /// Whether the server's pg_hba.conf has no place for a connection like this one: it may have one for another.
    pub fn is_refused_by_rule(&self) -> bool {
        matches!(self, Self::Server(error) if error.sqlstate == "28000")
    }
}

impl ConnectError {
    /// The error of a wait that the caller ended: [`connect`](super::connect) and [`open`](super::open) have no time-out
    /// of their own.
    pub fn timed_out(node: &NodeName, after: Duration) -> Self {
        Self { node: node.clone(), kind: ConnectErrorKind::TimedOut(after) }
    }

    /// What this tells the cluster controller; `None` where the server is alive, or the fault is not the server's.
    ///
    /// A host that cannot be reached counts as one that does not answer: neither says whose fault it is.
    pub fn server_loss(&self) -> Option<ServerLoss> {
        match &self.kind {
            ConnectErrorKind::Refused(_) => Some(ServerLoss::Refused),
            ConnectErrorKind::TimedOut(_) | ConnectErrorKind::Unreachable(_) => Some(ServerLoss::TimedOut),
            ConnectErrorKind::Closed(_) => Some(ServerLoss::Broken),
            ConnectErrorKind::Stranger => Some(ServerLoss::Stranger),
            ConnectErrorKind::Server(error) => match error.sqlstate.as_str() {
                "25006" => Some(ServerLoss::ReadOnly),
                state if state.starts_with("57P") => Some(ServerLoss::Broken),
                _ => None,
            },
            ConnectErrorKind::Authentication(_)
            | ConnectErrorKind::Protocol(_)
            | ConnectErrorKind::Tls(_) => None,
        }
    }

    /// The same as a health probe reports it.
    pub fn probe_failure(&self) -> ProbeFailure {
        let text = self.kind.to_string();
        match &self.kind {
            ConnectErrorKind::Refused(problem) => ProbeFailure::Refused(problem.clone()),
            ConnectErrorKind::TimedOut(after) => ProbeFailure::TimedOut(*after),
            ConnectErrorKind::Unreachable(problem) => ProbeFailure::Unreachable(problem.clone()),
            // No session was lost: this is how a port refuses whose server is gone behind something that still listens.
            ConnectErrorKind::Closed(_) => ProbeFailure::Refused(text),
            ConnectErrorKind::Server(error) => server_probe_failure(error),
            ConnectErrorKind::Authentication(problem) => ProbeFailure::Authentication(problem.clone()),
            ConnectErrorKind::Protocol(_) | ConnectErrorKind::Tls(_) | ConnectErrorKind::Stranger => {
                ProbeFailure::Unexpected(text)
            }
        }
    }

    /// As an I/O error, for callers that know no other.
    pub fn into_io(self) -> io::Error {
        let kind = match self.kind {
            ConnectErrorKind::Refused(_) => io::ErrorKind::ConnectionRefused,
            ConnectErrorKind::TimedOut(_) => io::ErrorKind::TimedOut,
            ConnectErrorKind::Unreachable(_) => io::ErrorKind::HostUnreachable,
            ConnectErrorKind::Closed(_) => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}

fn server_probe_failure(error: &ServerError) -> ProbeFailure {
    let text = error.to_string();
    match error.sqlstate.as_str() {
        "53300" => ProbeFailure::TooManyConnections(text),
        "25006" => ProbeFailure::ReadOnly(text),
        "57P01" | "57P03" if error.is_shutting_down() => ProbeFailure::ShuttingDown(text),
        "57P03" => ProbeFailure::StartingUp(text),
        "57P02" => ProbeFailure::Lost(text),
        state if state.starts_with("28") => ProbeFailure::Authentication(text),
        _ => ProbeFailure::Unexpected(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(sqlstate: &str, message: &str) -> ConnectError {
        let error = ServerError::new("FATAL", sqlstate, message, None);
        ConnectError { node: "pg-1".into(), kind: ConnectErrorKind::Server(Box::new(error)) }
    }

    #[test]
    fn refusals_of_a_live_server_are_told_apart() {
        let failure = |sqlstate, message| server(sqlstate, message).probe_failure();
        assert!(matches!(
            failure("57P03", "the database system is starting up"),
            ProbeFailure::StartingUp(_)
        ));
        assert!(matches!(
            failure("57P03", "the database system is shutting down"),
            ProbeFailure::ShuttingDown(_)
        ));
        assert!(matches!(
            failure("57P03", "the database system is not yet accepting connections"),
            ProbeFailure::StartingUp(_)
        ));
        assert!(matches!(
            failure("57P03", "the database system is in recovery mode"),
            ProbeFailure::StartingUp(_)
        ));
        assert!(matches!(
            failure("53300", "sorry, too many clients already"),
            ProbeFailure::TooManyConnections(_)
        ));
        assert!(matches!(
            failure("28P01", "password authentication failed"),
            ProbeFailure::Authentication(_)
        ));
        assert!(matches!(failure("28000", "no pg_hba.conf entry"), ProbeFailure::Authentication(_)));
        assert!(matches!(failure("57P01", "terminating connection"), ProbeFailure::ShuttingDown(_)));
        assert!(matches!(failure("3D000", "database does not exist"), ProbeFailure::Unexpected(_)));
    }

    #[test]
    fn only_what_speaks_against_the_server_is_a_loss() {
        assert_eq!(
            server("57P03", "the database system is starting up").server_loss(),
            Some(ServerLoss::Broken)
        );
        assert_eq!(server("53300", "sorry, too many clients already").server_loss(), None);
        assert_eq!(server("28P01", "password authentication failed").server_loss(), None);
        let io = |kind: io::ErrorKind| ConnectError {
            node: "pg-1".into(),
            kind: ConnectErrorKind::connecting(&kind.into()),
        };
        assert_eq!(io(io::ErrorKind::ConnectionRefused).server_loss(), Some(ServerLoss::Refused));
        assert_eq!(io(io::ErrorKind::NetworkUnreachable).server_loss(), Some(ServerLoss::TimedOut));
        assert_eq!(io(io::ErrorKind::ConnectionReset).server_loss(), Some(ServerLoss::Broken));
    }

    #[test]
    fn every_field_is_kept_as_the_server_sent_it() {
        let body = b"SFEHLER\0VERROR\0C42501\0Mm\xfcde\0Ddetail\0Hhint\0Fauth.c\0L42\0Rroutine\0x\0\0";
        let error = ServerError::parse(body).unwrap();
        assert_eq!((error.severity.as_str(), error.sqlstate.as_str()), ("ERROR", "42501"));
        assert_eq!((error.message.as_str(), error.detail.as_deref()), ("m\u{fffd}de", Some("detail")));
        let again = error.fields.iter().flat_map(|(kind, text)| [&[*kind], &text[..], b"\0"].concat());
        assert_eq!(again.chain([0]).collect::<Vec<_>>(), body);
        let old = ServerError::parse(b"SFATAL\0C28P01\0Mno\0\0").unwrap();
        assert_eq!(
            old,
            ServerError { fields: old.fields.clone(), ..ServerError::new("FATAL", "28P01", "no", None) }
        );
        for broken in [&b""[..], b"S", b"SFATAL", b"SFATAL\0", b"SFATAL\0C"] {
            assert_eq!(ServerError::parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn people_read_the_node_first() {
        assert_eq!(
            server("53300", "sorry, too many clients already").to_string(),
            "pg-1: FATAL: sorry, too many clients already (SQLSTATE 53300)"
        );
    }
}
