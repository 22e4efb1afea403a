//! A client that is not logged in yet: bounded reading, and saying no.

use bytes::{Bytes, BytesMut};
use metako_core::wire::startup::{self, Startup, StartupError};
use metako_core::wire::{self, Direction, FrameError, sqlstate};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{LoginError, messages};

/// The longest SASL message, as PostgreSQL has it.
const SASL_MAX: u32 = 1024;
const HEADER: usize = 5;
const READ: usize = 1024;

/// The stream of a client, and what was read of it ahead: never more than a packet and [`READ`] bytes.
#[derive(Debug)]
pub(super) struct Incoming<S> {
    pub(super) stream: S,
    pub(super) buffer: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Incoming<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    async fn fill(&mut self) -> Result<(), LoginError> {
        self.buffer.reserve(READ);
        let read = (&mut self.stream).take(READ as u64).read_buf(&mut self.buffer).await?;
        if read == 0 { Err(LoginError::Closed) } else { Ok(()) }
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
                Err(error) => return Err(self.refuse(error.sqlstate(), &error.to_string()).await),
            }
        }
    }

    /// The body of the next message, which has to be the client's part in SASL.
    pub(super) async fn sasl_message(&mut self) -> Result<Bytes, LoginError> {
        loop {
            match wire::header(&self.buffer, Direction::ClientLogin, SASL_MAX) {
                Ok(Some(header)) if self.buffer.len() >= header.frame() => {
                    return Ok(self.buffer.split_to(header.frame()).freeze().slice(HEADER..));
                }
                Ok(_) => self.fill().await?,
                // Terminate: a client that has to ask a person for the password first.
                Err(FrameError::Tag(b'X')) => return Err(LoginError::Closed),
                Err(error) => {
                    let message = format!("expected a SASL response: {error}");
                    return Err(self.refuse(sqlstate::PROTOCOL_VIOLATION, &message).await);
                }
            }
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), LoginError> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    /// Sends the client away with a FATAL error; the result says so.
    pub(super) async fn refuse(&mut self, sqlstate: &'static str, message: &str) -> LoginError {
        // Whether the client still hears it changes nothing: it is not let in.
        if self.send(&messages::fatal(sqlstate, message)).await.is_ok() {
            let _ = self.stream.shutdown().await;
        }
        LoginError::Refused { sqlstate, message: message.to_owned() }
    }
}
