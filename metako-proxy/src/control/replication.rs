//! A stream that turns an ordinary log-in into one for replication commands.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The parameter that is put into the start-up packet.
const PARAMETER: &[u8] = b"replication\0database\0";

/// The longest start-up packet that is expected of the library above; PostgreSQL itself refuses more.
const STARTUP_PACKET_MAX: usize = 10_000;

/// Adds `replication=database` to the first packet that is written; all else passes untouched.
#[derive(Debug)]
pub(super) struct ReplicationStream<S> {
    inner: S,
    startup: Startup,
}

#[derive(Debug)]
enum Startup {
    /// The start-up packet is being collected.
    Collecting(Vec<u8>),
    /// It is complete and changed; so much of it has been written.
    Writing { packet: Vec<u8>, written: usize },
    /// It has been sent.
    Sent,
}

impl<S> ReplicationStream<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner, startup: Startup::Collecting(Vec::new()) }
    }
}

impl<S: AsyncWrite + Unpin> ReplicationStream<S> {
    /// Writes what is left of the start-up packet.
    fn poll_startup(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Startup::Writing { packet, written } = &mut self.startup {
            let count = ready!(Pin::new(&mut self.inner).poll_write(cx, &packet[*written..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += count;
            if *written == packet.len() {
                self.startup = Startup::Sent;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Takes bytes of the start-up packet from `from`; says how many, and whether the packet is complete now.
fn collect(packet: &mut Vec<u8>, from: &[u8]) -> io::Result<(usize, bool)> {
    let length_of = |packet: &[u8]| packet.first_chunk().map(|head| u32::from_be_bytes(*head) as usize);
    let mut taken = 0;
    if packet.len() < 4 {
        taken = (4 - packet.len()).min(from.len());
        packet.extend_from_slice(&from[..taken]);
    }
    let Some(length) = length_of(packet) else { return Ok((taken, false)) };
    if !(9..=STARTUP_PACKET_MAX).contains(&length) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first packet is no start-up packet"));
    }
    let rest = (length - packet.len()).min(from.len() - taken);
    packet.extend_from_slice(&from[taken..taken + rest]);
    Ok((taken + rest, packet.len() == length))
}

/// Puts the parameter before the zero that ends the packet, and corrects the length.
fn add_parameter(packet: &mut Vec<u8>) -> io::Result<()> {
    let end = packet.len() - 1;
    packet.splice(end..end, PARAMETER.iter().copied());
    let length = u32::try_from(packet.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    packet[..4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReplicationStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Startup::Collecting(packet) = &mut self.startup {
            let (taken, complete) = collect(packet, bytes)?;
            if complete {
                let mut packet = std::mem::take(packet);
                add_parameter(&mut packet)?;
                self.startup = Startup::Writing { packet, written: 0 };
            }
            return Poll::Ready(Ok(taken));
        }
        ready!(self.poll_startup(cx))?;
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_startup(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_startup(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReplicationStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn packet(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&length.to_be_bytes(), body].concat()
    }

    proptest! {
        #[test]
        fn only_the_startup_packet_is_changed_however_it_is_cut(
            cuts in prop::collection::vec(1_usize..9, 1..40),
            after in prop::collection::vec(any::<u8>(), 0..30),
            pipe in 1_usize..50,
        ) {
            let sent = [packet(b"\0\x03\0\0user\0metako\0\0"), after.clone()].concat();
            let wanted = [packet(b"\0\x03\0\0user\0metako\0replication\0database\0\0"), after].concat();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let got = runtime.block_on(async {
                let (near, mut far) = tokio::io::duplex(pipe);
                let write = async {
                    let mut stream = ReplicationStream::new(near);
                    let mut rest = sent.as_slice();
                    for cut in cuts.iter().cycle() {
                        let (part, left) = rest.split_at((*cut).min(rest.len()));
                        stream.write_all(part).await.unwrap();
                        rest = left;
                        if rest.is_empty() {
                            break;
                        }
                    }
                    stream.shutdown().await.unwrap();
                };
                let read = async {
                    let mut got = Vec::new();
                    far.read_to_end(&mut got).await.unwrap();
                    got
                };
                tokio::join!(write, read).1
            });
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn a_first_packet_of_nonsense_is_an_error_or_waits(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut packet = Vec::new();
            if let Ok((taken, _)) = collect(&mut packet, &bytes) {
                prop_assert_eq!(packet.as_slice(), &bytes[..taken]);
            }
        }
    }
}
