//! A client that is not logged in yet: bounded reading, and saying no.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::startup::{self, Packet};
use super::{LoginError, messages};

/// The longest SASL message, as PostgreSQL has it.
const SASL_MAX: usize = 1024;
const LENGTH: usize = 4;
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

    /// The next packet without a type byte. What is no such packet gets no answer, as PostgreSQL gives none.
    pub(super) async fn packet(&mut self) -> Result<Packet, LoginError> {
        loop {
            let protocol = |error: startup::PacketError| LoginError::Protocol(error.to_string());
            if let Some(length) = startup::packet_length(&self.buffer).map_err(protocol)? {
                return startup::parse(&self.buffer.split_to(length)).map_err(protocol);
            }
            self.fill().await?;
        }
    }

    /// The body of the next message, which has to be the client's part in SASL.
    pub(super) async fn sasl_message(&mut self) -> Result<Bytes, LoginError> {
        loop {
            match sasl_length(&self.buffer) {
                Ok(Some(length)) => {
                    let message = self.buffer.split_to(length).freeze();
                    return Ok(message.slice(1 + LENGTH..));
                }
                Ok(None) => self.fill().await?,
                // libpq leaves like this when a person has to be asked for the password first.
                Err(NotSasl::Tag(b'X')) => return Err(LoginError::Closed),
                Err(wrong) => return Err(self.refuse("08P01", &wrong.to_string()).await),
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
        if self.send(&messages::fatal(sqlstate, message, None)).await.is_ok() {
            let _ = self.stream.shutdown().await;
        }
        LoginError::Refused { sqlstate, message: message.to_owned() }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum NotSasl {
    #[error("expected SASL response, got message type {0}")]
    Tag(u8),
    #[error("a SASL response of {0} bytes, at most {SASL_MAX} are accepted")]
    Length(u32),
}

/// The length, header included, of the first message if all of it is there.
fn sasl_length(buffer: &[u8]) -> Result<Option<usize>, NotSasl> {
    let Some((&tag, rest)) = buffer.split_first() else { return Ok(None) };
    if tag != b'p' {
        return Err(NotSasl::Tag(tag));
    }
    let Some(length) = rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else { return Ok(None) };
    match usize::try_from(length) {
        Ok(body) if (LENGTH..=SASL_MAX + LENGTH).contains(&body) => {
            Ok((rest.len() >= body).then_some(body + 1))
        }
        _ => Err(NotSasl::Length(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_bounded_before_the_body_comes() {
        assert_eq!(sasl_length(b"Q"), Err(NotSasl::Tag(b'Q')));
        assert_eq!(sasl_length(b"p\0\0\0"), Ok(None));
        assert_eq!(sasl_length(b"p\0\0\0\x03"), Err(NotSasl::Length(3)));
        assert_eq!(sasl_length(b"p\xff\xff\xff\xff"), Err(NotSasl::Length(u32::MAX)));
        assert_eq!(sasl_length(b"p\0\0\x04\x05"), Err(NotSasl::Length(1029)));
        assert_eq!(sasl_length(b"p\0\0\0\x05"), Ok(None));
        assert_eq!(sasl_length(b"p\0\0\0\x05aQ"), Ok(Some(6)));
    }
}
