//! TCP sockets that can move from one worker to another.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use metako_core::pool::Worker;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::{Listener, workers};

/// Clients that may wait to be accepted; the kernel may allow fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// A TCP connection, and the worker whose reactor watches it. Bytes are received and sent by bare system calls: those of the C
/// library let threads be cancelled, which costs a tenth of the time that a transaction spends outside of the kernel.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    home: Worker,
}

impl Socket {
    /// Connects to the addresses of `host` in turn.
    pub(super) async fn connect(host: &str, port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((host, port)).await?;
        prepare(&stream)?;
        Ok(Self { stream, home: workers::current() })
    }

    /// Whether the reactor has heard of nothing to be read.
    pub(super) fn is_silent(&self) -> bool {
        self.stream.try_io(Interest::READABLE, || Ok(())).is_err()
    }

    /// Lets the reactor of the calling thread watch it. On an error it stays where it was, which works as well.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        let here = workers::current();
        if self.home != here {
            // Only a descriptor of its own can be watched by both for the moment in between.
            let socket = std::net::TcpStream::from(self.stream.as_fd().try_clone_to_owned()?);
            self.stream = TcpStream::from_std(socket)?;
            self.home = here;
        }
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = &self.stream;
        let read = loop {
            ready!(stream.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            let most = space.len();
            let receive = || recv(stream, &mut *space, RecvFlags::empty()).map(|(read, _)| read);
            if let Poll::Ready(read) = attempt(stream, Interest::READABLE, most, receive) {
                break read?;
            }
        };
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let stream = &self.stream;
        loop {
            ready!(stream.poll_write_ready(cx))?;
            let transmit = || send(stream, buf, SendFlags::NOSIGNAL);
            if let Poll::Ready(written) = attempt(stream, Interest::WRITABLE, buf.len(), transmit) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Makes a call that moves up to `most` bytes. `Pending` means that the reactor has to tell when to make it again. A call that
/// moves less than it could has found the end of what is there, as epoll(7) has it: the next one need not find that out.
fn attempt(
    stream: &TcpStream,
    interest: Interest,
    most: usize,
    mut call: impl FnMut() -> rustix::io::Result<usize>,
) -> Poll<io::Result<usize>> {
    let mut moved = None;
    let tried = stream.try_io(interest, || {
        loop {
            match call() {
                Err(Errno::INTR) => {}
                Ok(some) if 0 < some && some < most => {
                    moved = Some(some);
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                other => return other.map_err(Into::into),
            }
        }
    });
    match (moved, tried) {
        (Some(moved), _) => Poll::Ready(Ok(moved)),
        (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        (None, tried) => Poll::Ready(tried),
    }
}

/// A TCP socket that accepts. The thread that first waits for a client watches it from then on.
#[derive(Debug)]
pub struct TcpAcceptor(Acceptor);

#[derive(Debug)]
enum Acceptor {
    Bound(std::net::TcpListener),
    Watched(TcpListener),
}

impl TcpAcceptor {
    /// Binds the first of the addresses that can be bound.
    pub(super) async fn bind(address: &str) -> io::Result<Self> {
        let mut failed = io::Error::new(io::ErrorKind::InvalidInput, "it names no address");
        for address in tokio::net::lookup_host(address).await? {
            match listen(address) {
                Ok(listener) => return Ok(Self(Acceptor::Bound(listener))),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn watched(&mut self) -> io::Result<&TcpListener> {
        if let Acceptor::Bound(listener) = &self.0 {
            self.0 = Acceptor::Watched(TcpListener::from_std(listener.try_clone()?)?);
        }
        match &self.0 {
            Acceptor::Watched(listener) => Ok(listener),
            Acceptor::Bound(_) => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Listener for TcpAcceptor {
    type Stream = Socket;

    async fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)> {
        let (stream, peer) = self.watched()?.accept().await?;
        Ok((Socket { stream, home: workers::current() }, peer))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Acceptor::Bound(listener) => listener.local_addr(),
            Acceptor::Watched(listener) => listener.local_addr(),
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // The connections that it accepts inherit these.
    prepare(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn prepare<S: AsFd>(socket: &S) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn accepted_connections_have_the_options_of_the_listening_socket() {
        let mut acceptor = TcpAcceptor::bind("127.0.0.1:0").await.unwrap();
        let address = acceptor.local_addr().unwrap();
        let client = tokio::spawn(TcpStream::connect(address));
        let (mut accepted, _) = acceptor.accept().await.unwrap();
        let options = socket2::SockRef::from(&accepted.stream);
        assert!(options.tcp_nodelay().unwrap());
        assert!(options.keepalive().unwrap());
        assert_eq!(options.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
        assert_eq!(options.tcp_keepalive_retries().unwrap(), 3);

        let mut client = client.await.unwrap().unwrap();
        client.write_all(b"a").await.unwrap();
        assert_eq!(accepted.read_u8().await.unwrap(), b'a');
    }

    /// Also where a read takes all that there is, or less, and where there is no room to write.
    #[tokio::test]
    async fn all_bytes_arrive_in_pieces_of_any_size() {
        let mut acceptor = TcpAcceptor::bind("127.0.0.1:0").await.unwrap();
        let port = acceptor.local_addr().unwrap().port();
        let (client, accepted) = tokio::join!(Socket::connect("127.0.0.1", port), acceptor.accept());
        let ((mut reader, mut writer), mut echo) = (tokio::io::split(client.unwrap()), accepted.unwrap().0);
        let sent: Vec<u8> =
            (0..8 << 20).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let echoing = tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            for size in (1..=buffer.len()).step_by(997).cycle() {
                match echo.read(&mut buffer[..size]).await.unwrap() {
                    0 => return echo.shutdown().await.unwrap(),
                    read => echo.write_all(&buffer[..read]).await.unwrap(),
                }
            }
        });
        let mut received = Vec::new();
        let write = async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let ((), read) = tokio::join!(write, reader.read_to_end(&mut received));
        assert_eq!(read.unwrap(), sent.len());
        assert!(received == sent);
        echoing.await.unwrap();
        // Who writes to somebody who is gone learns of it by an error, and not by a signal.
        drop((reader, writer));
        let (client, accepted) = tokio::join!(Socket::connect("127.0.0.1", port), acceptor.accept());
        drop(client.unwrap());
        let (mut accepted, _) = accepted.unwrap();
        let error = loop {
            if let Err(error) = accepted.write_all(&sent).await {
                break error;
            }
        };
        assert!(
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset),
            "{error}"
        );
    }

    #[test]
    fn a_socket_is_served_by_the_thread_that_it_settles_on() {
        let elsewhere = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (mut socket, mut peer) = elsewhere.block_on(async {
            let mut acceptor = TcpAcceptor::bind("127.0.0.1:0").await.unwrap();
            let address = acceptor.local_addr().unwrap();
            let peer = tokio::spawn(TcpStream::connect(address));
            let (socket, _) = acceptor.accept().await.unwrap();
            (socket, peer.await.unwrap().unwrap().into_std().unwrap())
        });
        socket.home = Worker(7);
        let here = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        here.block_on(async { socket.settle() }).unwrap();
        // Its first reactor is gone: only the new one can wake a reader.
        drop(elsewhere);
        io::Write::write_all(&mut peer, b"b").unwrap();
        assert_eq!(here.block_on(socket.read_u8()).unwrap(), b'b');
    }
}
