//! Ports that stay ours for as long as a cluster lives, whether its server is up or not.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use super::PlaygroundError;

/// Below the range that Linux takes ports of outgoing connections from: one of those could sit on the port of a server
/// that is down.
const FIRST: u16 = 16_000;
const COUNT: u16 = 16_000;

/// A TCP port on 127.0.0.1. The UDP port of the same number is held meanwhile: it marks the number as taken for
/// playgrounds of other processes, and the kernel gives it back whatever happens to us.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    _held: UdpSocket,
}

impl Port {
    /// Takes a port that nobody listens on.
    pub(super) fn reserve() -> Result<Self, PlaygroundError> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // Processes start at different places, so that they seldom try the same numbers.
        let start = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(COUNT)).unwrap_or_default();
        let mut last = None;
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
            let number = FIRST + (start + step) % COUNT;
            match Self::take(number) {
                Ok(port) => return Ok(port),
                Err(error) => last = Some(error),
            }
        }
        Err(PlaygroundError::Io {
            what: format!("no free port on 127.0.0.1 between {FIRST} and {}", FIRST + COUNT - 1),
            source: last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into()),
        })
    }

    /// Its number.
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    fn take(number: u16) -> std::io::Result<Self> {
        let held = UdpSocket::bind((Ipv4Addr::LOCALHOST, number))?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, number))?;
        Ok(Self { number, _held: held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_port_is_not_given_twice_and_can_be_listened_on() {
        let first = Port::reserve().unwrap();
        assert!(Port::take(first.number()).is_err());
        TcpListener::bind((Ipv4Addr::LOCALHOST, first.number())).unwrap();
        let number = first.number();
        drop(first);
        Port::take(number).unwrap();
    }

    #[test]
    fn a_port_with_a_listener_is_passed_over() {
        let port = Port::reserve().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).unwrap();
        let number = port.number();
        drop(port);
        assert!(Port::take(number).is_err());
        drop(listener);
    }
}
