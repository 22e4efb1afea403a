//! Reads a server's messages one by one, each checked and bounded before anything looks into it.

use bytes::{Buf, BytesMut};
use metako_core::wire::{Direction, header};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::error::ConnectErrorKind;

/// The longest message taken before `ReadyForQuery`.
const MESSAGE_MAX: u32 = 64 * 1024;
/// The most bytes taken before `ReadyForQuery`: notices and parameters of a log-in together.
const LOGIN_MAX: usize = 1024 * 1024;
const READ: usize = 4096;

/// A message: its type and its body.
pub(super) struct Message {
    pub(super) tag: u8,
    pub(super) body: BytesMut,
}

/// A reader of messages that takes at most [`LOGIN_MAX`] bytes in all.
pub(super) struct Frames<'a, S> {
    stream: &'a mut S,
    direction: Direction,
    buffer: BytesMut,
    taken: usize,
}

impl<'a, S: AsyncRead + Unpin> Frames<'a, S> {
    pub(super) fn new(stream: &'a mut S) -> Self {
        Self { stream, direction: Direction::ServerLogin, buffer: BytesMut::new(), taken: 0 }
    }

    /// The same, of a server that has said ReadyForQuery.
    pub(super) fn after_log_in(stream: &'a mut S) -> Self {
        Self { direction: Direction::Server, ..Self::new(stream) }
    }

    /// Whether no byte was read that has not been handed out as part of a message.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The stream, to write to.
    pub(super) fn stream(&mut self) -> &mut S {
        self.stream
    }

    /// The next message.
    pub(super) async fn next(&mut self) -> Result<Message, ConnectErrorKind> {
        loop {
            let header = header(&self.buffer, self.direction, MESSAGE_MAX)
                .map_err(|error| ConnectErrorKind::Protocol(error.to_string()))?;
            if let Some(header) = header.filter(|header| self.buffer.len() >= header.frame()) {
                let mut body = self.buffer.split_to(header.frame());
                body.advance(header.frame() - header.length as usize);
                if header.tag == b'Z' {
                    self.direction = Direction::Server;
                }
                return Ok(Message { tag: header.tag, body });
            }
            if self.taken >= LOGIN_MAX {
                let problem = format!("more than {LOGIN_MAX} bytes and no end of the log-in");
                return Err(ConnectErrorKind::Protocol(problem));
            }
            self.buffer.reserve(READ);
            let read = (&mut self.stream)
                .take(READ as u64)
                .read_buf(&mut self.buffer)
                .await
                .map_err(|error| ConnectErrorKind::talking(&error))?;
            if read == 0 {
                return Err(ConnectErrorKind::Closed("end of stream".to_owned()));
            }
            self.taken += read;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    async fn drain(bytes: &[u8]) -> ConnectErrorKind {
        let mut stream = bytes;
        let mut frames = Frames::new(&mut stream);
        loop {
            if let Err(kind) = frames.next().await {
                return kind;
            }
        }
    }

    #[tokio::test]
    async fn endless_notices_end() {
        let notice = b"N\0\0\0\x0dSNOTICE\0\0";
        let bytes = notice.repeat(2 * LOGIN_MAX / notice.len());
        let ConnectErrorKind::Protocol(problem) = drain(&bytes).await else { panic!("not a protocol error") };
        assert!(problem.contains("no end of the log-in"), "{problem}");
    }

    #[tokio::test]
    async fn lengths_are_bounded_before_the_body_comes() {
        for start in
            [&b"S\0\0\0\x03"[..], b"S\x7f\xff\xff\xff", b"S\xff\xff\xff\xff", b"S\0\x01\0\x05", b"\x15\x03"]
        {
            assert!(matches!(drain(start).await, ConnectErrorKind::Protocol(_)), "{start:?}");
        }
        assert!(matches!(drain(b"S\0\x01\0\x04").await, ConnectErrorKind::Closed(_)));
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(drain(&bytes));
        }

        #[test]
        fn framed_bytes_end_without_panic(
            frames in proptest::collection::vec(
                (prop::sample::select(&b"RSKZENAv1"[..]), proptest::collection::vec(any::<u8>(), 0..40)),
                0..6,
            )
        ) {
            let mut bytes = Vec::new();
            for (tag, body) in frames {
                bytes.push(tag);
                bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
                bytes.extend(body);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(drain(&bytes));
        }
    }
}
