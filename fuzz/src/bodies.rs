//! Any bytes in, and what must hold whatever they are.

use metako_core::wire::startup::{self, STARTUP_MAX, Startup};
use metako_core::wire::{Direction, FrameError, Framer, Header, Piece};

#[path = "session.rs"]
mod session;

pub use session::session;

/// Reads a fuzzer's bytes one after the other; zeroes at the end.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// The scanner: finds the same frames however a stream is cut, takes no byte that is not there, and takes each once.
pub fn frames(data: &[u8]) {
    let mut bytes = Bytes(data);
    let direction = match bytes.byte() % 4 {
        0 => Direction::ClientLogin,
        1 => Direction::Client,
        2 => Direction::ServerLogin,
        _ => Direction::Server,
    };
    let chunk = usize::from(bytes.byte()) + 1;
    let whole = scan(direction, bytes.0, bytes.0.len().max(1));
    assert_eq!(whole, scan(direction, bytes.0, chunk), "chunks of {chunk}");
}

/// The headers in `stream` when `chunk` bytes arrive at a time, and how many bytes were passed.
fn scan(direction: Direction, stream: &[u8], chunk: usize) -> (Vec<Header>, usize, Option<FrameError>) {
    let mut framer = Framer::new(direction, 1 << 30);
    let (mut headers, mut at, mut arrived) = (Vec::new(), 0, 0);
    loop {
        match framer.next(&stream[at..arrived]) {
            Ok(Some(Piece::Start { header, taken, whole })) => {
                assert!(taken > 0 && taken <= arrived - at && whole == (taken == header.frame()));
                headers.push(header);
                at += taken;
            }
            Ok(Some(Piece::Rest { taken, .. })) => {
                assert!(taken > 0 && taken <= arrived - at);
                at += taken;
            }
            Ok(None) if arrived == stream.len() => return (headers, at, None),
            Ok(None) => arrived = (arrived + chunk).min(stream.len()),
            Err(error) => return (headers, at, Some(error)),
        }
    }
}

/// The first packet: a parsed one is as long as it says, bounded, and is not seen before it is whole.
pub fn startup(data: &[u8]) {
    let Ok(Some((packet, length))) = startup::parse(data) else { return };
    assert!(length <= data.len() && length <= STARTUP_MAX);
    for cut in 0..length {
        assert_eq!(startup::parse(&data[..cut]), Ok(None), "the first {cut} of {length} bytes");
    }
    assert_eq!(startup::parse(&data[..length]), Ok(Some((packet.clone(), length))));
    if let Startup::Session(message) = packet {
        let said: usize = message.parameters.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(said <= length);
    }
}
