//! Buffers: one for reading per thread, and what could not be written yet.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that one read takes.
const READ_MAX: usize = 32 << 10;

/// Buffers of up to this size are kept by an idle client, so that small transactions allocate nothing.
const KEPT_MAX: usize = 512;

/// Buffers that a thread uses for whichever client it polls.
pub(super) struct Scratch {
    pub(super) input: Box<[u8]>,
    pub(super) first: Vec<u8>,
    pub(super) second: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        input: vec![0; READ_MAX].into_boxed_slice(),
        first: Vec::new(),
        second: Vec::new(),
    });
}

/// Lends the thread's buffers; must not be called from within `work`.
pub(super) fn with_scratch<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.first.clear();
        scratch.second.clear();
        work(scratch)
    })
}

/// Reads once.
pub(super) fn poll_read<S: AsyncRead + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}

/// Lets go of a buffer that an idle client should not keep.
pub(super) fn trim(buffer: &mut Vec<u8>) {
    if buffer.is_empty() && buffer.capacity() > KEPT_MAX {
        *buffer = Vec::new();
    }
}

/// Bytes on their way to a peer.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
    /// The stream has its own buffer (TLS), which is not empty yet.
    flush: bool,
}

impl Outbox {
    /// With these bytes in it.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && !self.flush
    }

    /// Bytes that were not given to the stream yet.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
    }

    /// Forgets all that was to be written, also what the stream holds: nobody reads it any more.
    pub(super) fn discard(&mut self) {
        *self = Self::default();
    }

    /// Where to append.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Writes `bytes` behind what is there already: at once as far as the stream takes them, the rest is kept.
    pub(super) fn send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> io::Result<()> {
        let mut rest = bytes;
        if self.bytes.is_empty() {
            while !rest.is_empty() {
                match Pin::new(&mut *stream).poll_write(cx, rest)? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(taken) => {
                        self.flush = true;
                        rest = &rest[taken..];
                    }
                    Poll::Pending => break,
                }
            }
            if rest.is_empty() {
                if self.flush
                    && let Poll::Ready(done) = Pin::new(stream).poll_flush(cx)
                {
                    self.flush = false;
                    done?;
                }
                return Ok(());
            }
        }
        self.bytes.extend_from_slice(rest);
        if let Poll::Ready(done) = self.poll_flush(stream, cx) {
            done?;
        }
        Ok(())
    }

    /// Writes what is there.
    pub(super) fn poll_flush<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            let taken = ready!(Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.sent..]))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += taken;
            self.flush = true;
        }
        self.clear();
        trim(&mut self.bytes);
        if self.flush {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.flush = false;
        }
        Poll::Ready(Ok(()))
    }
}
