//! A client that is not logged in yet: bounded reading, and saying no.

use bytes::{Bytes, BytesMut};
use metako_core::wire::startup::{self, Startup, StartupError};
use metako_core::wire::write::Report;
use metako_core::wire::{self, Direction, FrameError, sqlstate};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{LoginError, messages};

/// The longest SASL message and the longest password, as PostgreSQL has them.
const SASL_MAX: u32 = 1024;
const PASSWORD_MAX: u32 = 65_535;
const HEADER: usize = 5;
const READ: usize = 1024;

/// The stream of a client, and what was read of it ahead: never more than a packet and [`READ`] bytes.
#[derive(Debug)]
pub(super) struct Incoming<S> {
    pub(super) stream: S,
    pub(super) buffer: BytesMut,
    /// What the client is to be told with what comes next.
    pub(super) unsent: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Incoming<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new(), unsent: Vec::new() }
    }

    async fn fill(&mut self) -> Result<(), LoginError> {
        self.buffer.reserve(READ);
        let read = (&mut self.stream).take(READ as u64).read_buf(&mut self.buffer).await?;
        if read == 0 { Err(LoginError::Closed) } else { Ok(()) }
    }

    /// The first byte, which stays in the buffer.
    pub(super) async fn first_byte(&mut self) -> Result<u8, LoginError> {
        loop {
            match self.buffer.first() {
                Some(first) => return Ok(*first),
                None => self.fill().await?,
            }
        }
    }

    /// The next packet without a type byte.
    pub(super) async fn packet(&mut self) -> Result<Startup, LoginError> {
        loop {
            match startup::parse(&self.buffer) {
                Ok(Some((packet, length))) => {
                    drop(self.buffer.split_to(length));
                    return Ok(packet);
                }
                Ok(None) => self.fill().await?,
                // This is another protocol, or none: PostgreSQL gives no answer either.
                Err(error @ StartupError::Length) => return Err(LoginError::Protocol(error.to_string())),
                Err(error) => return Err(self.refuse_start(&error).await),
            }
        }
    }

    /// The body of the next message, which has to be the client's part in SASL.
    pub(super) async fn sasl_message(&mut self) -> Result<Bytes, LoginError> {
        self.answer(SASL_MAX, "SASL").await
    }

    /// The password that the client sends, or what it sends in its place, without the terminator.
    pub(super) async fn password(&mut self) -> Result<Bytes, LoginError> {
        let violation =
            |message: &str| LoginError::refused(Report::fatal(sqlstate::PROTOCOL_VIOLATION, message));
        let body = self.answer(PASSWORD_MAX, "password").await?;
        let Some((text, b"")) = wire::read::text(&body) else {
            return Err(violation("invalid password packet size"));
        };
        if text.is_empty() {
            let report = Report::fatal(sqlstate::INVALID_PASSWORD, "empty password returned by client");
            return Err(LoginError::refused(report));
        }
        Ok(body.slice_ref(text))
    }

    async fn answer(&mut self, longest: u32, what: &str) -> Result<Bytes, LoginError> {
        loop {
            match wire::header(&self.buffer, Direction::ClientLogin, longest) {
                Ok(Some(header)) if self.buffer.len() >= header.frame() => {
                    return Ok(self.buffer.split_to(header.frame()).freeze().slice(HEADER..));
                }
                Ok(_) => self.fill().await?,
                // Terminate: a client that has to ask a person for the password first.
                Err(FrameError::Tag(b'X')) => return Err(LoginError::Closed),
                Err(FrameError::Tag(tag)) => {
                    let message = format!("expected {what} response, got message type {tag}");
                    return Err(LoginError::refused(Report::fatal(sqlstate::PROTOCOL_VIOLATION, message)));
                }
                // PostgreSQL gives no answer either: from here on nothing can be understood.
                Err(error) => return Err(LoginError::Protocol(error.to_string())),
            }
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), LoginError> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Sends the client away before its start-up message was taken; the result says so.
    pub(super) async fn refuse_start(&mut self, error: &StartupError) -> LoginError {
        let report = Report::fatal(error.sqlstate(), error.to_string());
        let bytes = if error.is_for_protocol_2() {
            messages::error_of_protocol_2(&report)
        } else {
            messages::error(&report)
        };
        self.say_last(&bytes).await;
        LoginError::refused(report)
    }

    /// Sends the client away with a FATAL error.
    pub(super) async fn say_no(&mut self, report: &Report) {
        self.say_last(&messages::error(report)).await;
    }

    async fn say_last(&mut self, bytes: &[u8]) {
        let mut all = std::mem::take(&mut self.unsent);
        all.extend_from_slice(bytes);
        // Whether the client still hears it changes nothing: it is not let in.
        if self.send(&all).await.is_ok() {
            let _ = self.stream.shutdown().await;
        }
    }
}
