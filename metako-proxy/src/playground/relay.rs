//! A way between two programs on this machine that can be cut, as a cable or a firewall would cut it.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ports::Port;
use super::{PlaygroundError, until};

/// How many connections a relay carries at once; further ones wait until another one ends.
const CONNECTIONS_MAX: usize = 1000;
/// How long a change may take until it is in force. Far more than it should be.
const PATIENCE: Duration = Duration::from_secs(30);

/// What becomes of what is sent through a [`Relay`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It arrives.
    Open,
    /// Silence in both directions, as when a cable is pulled: connections stay, new ones come about and hear nothing.
    /// What is sent meanwhile arrives when the link is open again, as TCP sends it again.
    Cut,
    /// As by a firewall that rejects: connections are reset, new ones are refused.
    Refused,
}

/// A TCP port on 127.0.0.1 that leads to another one. Dropping it ends all connections through it.
///
/// A connection to a port behind it that nobody listens on is reset, not refused: that is seen by those who connect as a
/// server that hangs up.
#[derive(Debug)]
pub struct Relay {
    port: Port,
    orders: Option<watch::Sender<Order>>,
    in_force: Arc<AtomicU64>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug, Clone, Copy)]
struct Order {
    number: u64,
    link: Link,
}

impl Relay {
    /// Opens a way to a port on 127.0.0.1, with a thread of its own.
    pub fn new(to: u16) -> Result<Self, PlaygroundError> {
        let failed = || PlaygroundError::io(format!("opening a relay to port {to}"));
        let port = Port::reserve()?;
        let number = port.number();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, number)).map_err(failed())?;
        listener.set_nonblocking(true).map_err(failed())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed())?;
        let (orders, changes) = watch::channel(Order { number: 0, link: Link::Open });
        let in_force = Arc::new(AtomicU64::new(0));
        let thread = std::thread::Builder::new().name(format!("relay-{number}")).spawn({
            let in_force = Arc::clone(&in_force);
            move || {
                runtime.block_on(async {
                    let listener = TcpListener::from_std(listener)?;
                    serve(listener, to, changes, &in_force).await
                })
            }
        });
        Ok(Self { port, orders: Some(orders), in_force, thread: Some(thread.map_err(failed())?) })
    }

    /// The port that leads there.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Makes it so, and returns when not a byte passes otherwise any more. Blocks for some milliseconds.
    pub fn set(&self, link: Link) -> Result<(), PlaygroundError> {
        let mut number = 0;
        if let Some(orders) = &self.orders {
            orders.send_modify(|order| {
                *order = Order { number: order.number + 1, link };
                number = order.number;
            });
        }
        until(&format!("{link:?} at the relay on port {}", self.port()), PATIENCE, || {
            let in_force = self.in_force.load(Ordering::Acquire);
            if in_force >= number { Ok(()) } else { Err(format!("order {in_force} of {number} is in force")) }
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Without orders its thread ends.
        self.orders = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => eprintln!("the relay on port {} had failed: {error}", self.port()),
            Some(Err(_)) => eprintln!("the relay on port {} had panicked", self.port()),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

async fn serve(
    listener: TcpListener,
    to: u16,
    mut orders: watch::Receiver<Order>,
    in_force: &AtomicU64,
) -> io::Result<()> {
    let port = listener.local_addr()?.port();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let Order { number, link } = *orders.borrow_and_update();
        if link == Link::Refused {
            listener = None;
            while connections.join_next().await.is_some() {}
        } else if listener.is_none() {
            listener = Some(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?);
        }
        // Every connection looks for orders before it carries another byte, and on this one thread none is in the midst.
        in_force.store(number, Ordering::Release);
        loop {
            let takes = link == Link::Open && connections.len() < CONNECTIONS_MAX;
            tokio::select! {
                biased;
                changed = orders.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return Ok(()),
                },
                Some(_) = connections.join_next() => {}
                accepted = accept(listener.as_ref()), if takes => match accepted {
                    Ok(client) => drop(connections.spawn(carry(client, to, orders.clone()))),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error),
                },
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

/// Carries bytes both ways for as long as the link is open, and rests while it is cut.
async fn carry(mut client: TcpStream, to: u16, mut orders: watch::Receiver<Order>) {
    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else { return reset(&client) };
    for stream in [&client, &server] {
        // Without it bytes arrive later, and all the same.
        let _ = stream.set_nodelay(true);
    }
    let ended_well = {
        let mut copy = std::pin::pin!(tokio::io::copy_bidirectional(&mut client, &mut server));
        loop {
            let link = orders.borrow_and_update().link;
            tokio::select! {
                biased;
                changed = orders.changed() => if changed.is_err() { break false },
                () = std::future::ready(()), if link == Link::Refused => break false,
                outcome = &mut copy, if link == Link::Open => break outcome.is_ok(),
            }
        }
    };
    if !ended_well {
        reset(&client);
        reset(&server);
    }
}

/// Has the stream end by a reset when it is dropped.
fn reset(stream: &TcpStream) {
    // One that is reset already needs nothing more.
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A relay to an echo server for one connection, and that connection.
    fn echo() -> (Relay, TcpStream, JoinHandle<()>) {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::new(server.local_addr().unwrap().port()).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut bytes = [0; 100];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
        });
        let mut client = connect(&relay).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(answer(&mut client, b"one"), b"one");
        (relay, client, thread)
    }

    fn connect(relay: &Relay) -> io::Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", relay.port()))
    }

    fn answer(client: &mut TcpStream, question: &[u8]) -> Vec<u8> {
        client.write_all(question).unwrap();
        let mut bytes = vec![0; question.len()];
        client.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_sent_while_the_link_is_cut_arrives_when_it_is_open_again() {
        let (relay, mut client, thread) = echo();
        relay.set(Link::Cut).unwrap();
        client.write_all(b"two").unwrap();
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let silence = client.read(&mut [0; 3]).unwrap_err();
        assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
        let _waits = connect(&relay).expect("a new connection comes about and hears nothing");
        relay.set(Link::Open).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = [0; 3];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"two");
        drop(relay);
        thread.join().unwrap();
    }

    #[test]
    fn a_refused_link_resets_and_refuses_until_it_is_open_again() {
        let (relay, mut client, thread) = echo();
        relay.set(Link::Refused).unwrap();
        assert_eq!(client.read(&mut [0; 3]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(connect(&relay).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        thread.join().unwrap();
        relay.set(Link::Open).unwrap();
        // The server is gone meanwhile: whoever comes is reset.
        let mut client = connect(&relay).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(client.read(&mut [0; 3]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn nothing_is_left_of_a_dropped_relay() {
        let (relay, mut client, thread) = echo();
        let port = relay.port();
        relay.set(Link::Cut).unwrap();
        drop(relay);
        thread.join().unwrap();
        // The runtime may end before the connection is told: an end is as good as a reset.
        assert!(matches!(client.read(&mut [0; 3]), Ok(0) | Err(_)));
        assert_eq!(TcpStream::connect(("127.0.0.1", port)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
}
