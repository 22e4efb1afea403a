//! Making messages: each function appends one frame to a buffer.

/// A severity of errors and notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The connection ends.
    Fatal,
    /// A warning.
    Warning,
    /// A notice.
    Notice,
}

impl Severity {
    const fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
        }
    }
}

/// An error or notice for a SQL client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Severity.
    pub severity: Severity,
    /// SQLSTATE.
    pub code: &'static str,
    /// What happened.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// All fields, types and texts, as a server worded it. With severity FATAL they are written in place of the others: a
    /// server's refusal reaches the client as it came.
    pub fields: Vec<(u8, Vec<u8>)>,
}

impl Report {
    /// An error of the statement.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { severity: Severity::Error, code, message, detail: None, hint: None, fields: Vec::new() }
    }

    /// A notice.
    pub fn notice(message: impl Into<String>) -> Self {
        Self { severity: Severity::Notice, ..Self::error(super::sqlstate::SUCCESSFUL_COMPLETION, message) }
    }

    /// An error that ends the connection.
    pub fn fatal(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Fatal, ..Self::error(code, message) }
    }

    /// The same with a detail.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same with a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with the fields of the server that refused.
    pub fn with_fields(mut self, fields: Vec<(u8, Vec<u8>)>) -> Self {
        self.fields = fields;
        self
    }

    /// The same as an error that ends the connection.
    pub fn as_fatal(mut self) -> Self {
        self.severity = Severity::Fatal;
        self
    }
}

/// Appends a frame whose body `fill` makes.
pub fn frame(out: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends the header of a frame whose body of `length` bytes follows.
pub fn header(out: &mut Vec<u8>, tag: u8, length: u32) {
    out.push(tag);
    out.extend_from_slice(&length.saturating_add(4).to_be_bytes());
}

/// Appends text and its terminator; text ends at its first zero byte.
fn text(out: &mut Vec<u8>, text: &[u8]) {
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    out.extend_from_slice(&text[..end]);
    out.push(0);
}

fn report(out: &mut Vec<u8>, tag: u8, report: &Report) {
    frame(out, tag, |out| {
        if report.severity == Severity::Fatal && !report.fields.is_empty() {
            for (kind, value) in &report.fields {
                out.push(*kind);
                text(out, value);
            }
            return out.push(0);
        }
        let fields = [
            (b'S', Some(report.severity.name())),
            (b'V', Some(report.severity.name())),
            (b'C', Some(report.code)),
            (b'M', Some(report.message.as_str())),
            (b'D', report.detail.as_deref()),
            (b'H', report.hint.as_deref()),
        ];
        for (kind, value) in fields {
            if let Some(value) = value {
                out.push(kind);
                text(out, value.as_bytes());
            }
        }
        out.push(0);
    });
}

/// ErrorResponse.
pub fn error_response(out: &mut Vec<u8>, error: &Report) {
    report(out, b'E', error);
}

/// NoticeResponse.
pub fn notice_response(out: &mut Vec<u8>, notice: &Report) {
    report(out, b'N', notice);
}

/// Status of a transaction, as ReadyForQuery gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransactionStatus {
    /// Not in a transaction block.
    #[default]
    Idle,
    /// In a block.
    InBlock,
    /// In a block that failed.
    Failed,
}

impl TransactionStatus {
    /// The status of that byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InBlock),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    /// The byte of ReadyForQuery.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InBlock => b'T',
            Self::Failed => b'E',
        }
    }
}

/// ReadyForQuery.
pub fn ready_for_query(out: &mut Vec<u8>, status: TransactionStatus) {
    frame(out, b'Z', |out| out.push(status.byte()));
}

/// CommandComplete.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    frame(out, b'C', |out| text(out, tag.as_bytes()));
}

/// EmptyQueryResponse.
pub fn empty_query_response(out: &mut Vec<u8>) {
    header(out, b'I', 0);
}

/// ParseComplete.
pub fn parse_complete(out: &mut Vec<u8>) {
    header(out, b'1', 0);
}

/// BindComplete.
pub fn bind_complete(out: &mut Vec<u8>) {
    header(out, b'2', 0);
}

/// CloseComplete.
pub fn close_complete(out: &mut Vec<u8>) {
    header(out, b'3', 0);
}

/// NoData.
pub fn no_data(out: &mut Vec<u8>) {
    header(out, b'n', 0);
}

/// ParameterDescription of a statement without parameters.
pub fn no_parameters(out: &mut Vec<u8>) {
    frame(out, b't', |out| out.extend_from_slice(&[0, 0]));
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
    frame(out, b'S', |out| {
        text(out, name.as_ref());
        text(out, value.as_ref());
    });
}

/// BackendKeyData.
pub fn backend_key_data(out: &mut Vec<u8>, process_id: i32, secret_key: &[u8]) {
    frame(out, b'K', |out| {
        out.extend_from_slice(&process_id.to_be_bytes());
        out.extend_from_slice(secret_key);
    });
}

/// AuthenticationOk.
pub fn authentication_ok(out: &mut Vec<u8>) {
    frame(out, b'R', |out| out.extend_from_slice(&[0; 4]));
}

/// NegotiateProtocolVersion: the newest minor version of protocol 3 that is spoken, and the options not understood.
pub fn negotiate_protocol_version(out: &mut Vec<u8>, minor: u16, options: &[String]) {
    frame(out, b'v', |out| {
        out.extend_from_slice(&(0x0003_0000 | u32::from(minor)).to_be_bytes());
        out.extend_from_slice(&u32::try_from(options.len()).unwrap_or(u32::MAX).to_be_bytes());
        for option in options {
            text(out, option.as_bytes());
        }
    });
}

/// Query, for a server.
pub fn query(out: &mut Vec<u8>, sql: &[u8]) {
    frame(out, b'Q', |out| text(out, sql));
}

/// Parse, for a server: a name, and the tail of a client's Parse (text and parameter types).
pub fn parse(out: &mut Vec<u8>, name: &[u8], tail: &[u8]) {
    frame(out, b'P', |out| {
        text(out, name);
        out.extend_from_slice(tail);
    });
}

/// Describe (`D`) or Close (`C`) of a statement, for a server.
pub fn statement_target(out: &mut Vec<u8>, tag: u8, name: &[u8]) {
    frame(out, tag, |out| {
        out.push(b'S');
        text(out, name);
    });
}

/// Sync.
pub fn sync(out: &mut Vec<u8>) {
    header(out, b'S', 0);
}

/// CopyFail.
pub fn copy_fail(out: &mut Vec<u8>, reason: &str) {
    frame(out, b'f', |out| text(out, reason.as_bytes()));
}

/// Terminate.
pub fn terminate(out: &mut Vec<u8>) {
    header(out, b'X', 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Direction, read};

    #[test]
    fn an_error_is_read_as_it_was_written() {
        let mut out = Vec::new();
        let error = Report::error("57P03", "no primary\0hidden").with_detail("d").with_hint("h");
        error_response(&mut out, &error);
        let header = super::super::header(&out, Direction::Server, 1 << 20).unwrap().unwrap();
        assert_eq!(header.frame(), out.len());
        let fields = read::error(&out[5..]);
        assert_eq!((fields.severity, fields.code), (&b"ERROR"[..], &b"57P03"[..]));
        assert_eq!(fields.message, b"no primary");
    }

    #[test]
    fn a_servers_own_words_are_passed_on_where_it_ended_the_connection_and_only_there() {
        let fields =
            vec![(b'S', b"FATAL".to_vec()), (b'C', b"3D000".to_vec()), (b'R', b"InitPostgres".to_vec())];
        let error = Report::error("3D000", "no database").with_fields(fields);
        let mut out = Vec::new();
        error_response(&mut out, &error);
        assert_eq!(read::error(&out[5..]).message, b"no database");
        out.clear();
        error_response(&mut out, &error.as_fatal());
        assert_eq!(&out[5..], b"SFATAL\0C3D000\0RInitPostgres\0\0");
    }

    #[test]
    fn small_messages_are_byte_for_byte_postgresqls() {
        let mut out = Vec::new();
        ready_for_query(&mut out, TransactionStatus::Idle);
        command_complete(&mut out, "ROLLBACK");
        parse_complete(&mut out);
        no_parameters(&mut out);
        backend_key_data(&mut out, 1, b"abcd");
        assert_eq!(
            out,
            b"Z\0\0\0\x05IC\0\0\0\x0dROLLBACK\x001\0\0\0\x04t\0\0\0\x06\0\0K\0\0\0\x0c\0\0\0\x01abcd"
        );
    }
}
