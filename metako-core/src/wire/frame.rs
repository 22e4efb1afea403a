//! Cutting a byte stream into frames by their headers.

/// Bytes of a header: the tag and the length.
const HEADER: usize = 5;

/// The longest query text, in bytes of its frame's body, that is waited for and classified. Longer ones pass in pieces.
pub const TEXT_MAX: u32 = 1 << 20;

/// The longest body of a client's message that carries no data (PostgreSQL's own limit).
pub const SMALL_MAX: u32 = 10_000;

/// How much of a frame's body is waited for where its beginning has to be understood.
const PREFIX_MAX: u32 = 8 << 10;

/// The longest body that PostgreSQL sends or takes.
const BODY_MAX: u32 = 0x3FFF_FFFF;

/// Who speaks, and in which part of a connection's life. It decides which tags are possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// A client that is logging in: only its answers to authentication requests.
    ClientLogin,
    /// A client that is logged in.
    Client,
    /// A server that logs metako in.
    ServerLogin,
    /// A server after its first ReadyForQuery.
    Server,
}

impl Direction {
    /// Whether a message of that tag may come.
    pub const fn allows(self, tag: u8) -> bool {
        match self {
            Self::ClientLogin => tag == b'p',
            Self::Client => matches!(
                tag,
                b'Q' | b'P' | b'B' | b'D' | b'C' | b'E' | b'H' | b'S' | b'X' | b'd' | b'c' | b'f' | b'F'
            ),
            Self::ServerLogin => matches!(tag, b'R' | b'K' | b'S' | b'N' | b'E' | b'Z' | b'v'),
            Self::Server => matches!(
                tag,
                b'1' | b'2'
                    | b'3'
                    | b'n'
                    | b's'
                    | b't'
                    | b'T'
                    | b'D'
                    | b'C'
                    | b'I'
                    | b'E'
                    | b'N'
                    | b'S'
                    | b'Z'
                    | b'A'
                    | b'G'
                    | b'H'
                    | b'W'
                    | b'd'
                    | b'c'
                    | b'V'
            ),
        }
    }

    /// One more than the longest body of each message, whatever the limit of the connection; nothing for those that may not
    /// come. Most frames are whole, and all that has to be known of them is here.
    const fn bounds(self) -> [u32; 256] {
        let mut bounds = [0; 256];
        let mut tag = 0;
        while tag < 256 {
            #[expect(clippy::cast_possible_truncation, reason = "it is below 256")]
            if self.allows(tag as u8) {
                bounds[tag] = self.longest(tag as u8) + 1;
            }
            tag += 1;
        }
        bounds
    }

    /// The longest body of a message of that tag, whatever the limit of the connection.
    const fn longest(self, tag: u8) -> u32 {
        match self {
            Self::ClientLogin => 64 << 10,
            Self::Client => match tag {
                b'Q' | b'P' | b'B' | b'd' | b'F' => BODY_MAX,
                _ => SMALL_MAX,
            },
            Self::ServerLogin | Self::Server => BODY_MAX,
        }
    }

    /// How many bytes of the body must be there before the frame can be acted upon.
    const fn needed(self, tag: u8, length: u32) -> u32 {
        let wanted = match self {
            Self::ClientLogin | Self::ServerLogin => length,
            Self::Client => match tag {
                b'Q' | b'P' if length <= TEXT_MAX => length,
                b'Q' | b'P' | b'd' | b'F' => 0,
                b'B' => PREFIX_MAX,
                _ => length,
            },
            Self::Server => match tag {
                b'D' | b'd' | b'T' | b't' | b'A' | b'V' | b'G' | b'H' | b'W' => 0,
                _ => PREFIX_MAX,
            },
        };
        if wanted < length { wanted } else { length }
    }
}

/// By direction, in the order of its variants.
static BOUNDS: [[u32; 256]; 4] = [
    Direction::ClientLogin.bounds(),
    Direction::Client.bounds(),
    Direction::ServerLogin.bounds(),
    Direction::Server.bounds(),
];

/// A message that cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The tag is none that may come here.
    #[error("invalid message type {}", Tag(*.0))]
    Tag(u8),
    /// The length is below 4, or above what a message of this tag or this connection may have.
    #[error("invalid length {length} of message {}: at most {longest} bytes are allowed", Tag(*.tag))]
    Length {
        /// The tag.
        tag: u8,
        /// The length field.
        length: u32,
        /// The longest body allowed.
        longest: u32,
    },
}

struct Tag(u8);

impl std::fmt::Display for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_ascii_graphic() {
            write!(f, "\"{}\"", char::from(self.0))
        } else {
            write!(f, "0x{:02x}", self.0)
        }
    }
}

/// What the first five bytes of a frame say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The type of the message.
    pub tag: u8,
    /// Bytes after the header.
    pub length: u32,
}

impl Header {
    /// Bytes of the whole frame.
    pub const fn frame(self) -> usize {
        HEADER + self.length as usize
    }
}

/// Reads the header at the start of `input`; `None` if not all of it is there. `limit` is the longest body, in bytes.
#[inline]
pub fn header(input: &[u8], direction: Direction, limit: u32) -> Result<Option<Header>, FrameError> {
    match good_header(input, direction, limit) {
        Some(header) => Ok(Some(header)),
        None => header_or_fault(input, direction, limit),
    }
}

/// A header that is there and as it should be.
#[inline]
fn good_header(input: &[u8], direction: Direction, limit: u32) -> Option<Header> {
    let &[tag, a, b, c, d] = input.first_chunk::<HEADER>()?;
    let length = u32::from_be_bytes([a, b, c, d]).checked_sub(4)?;
    let bound = BOUNDS[direction as usize][usize::from(tag)];
    (length < bound && length <= limit).then_some(Header { tag, length })
}

#[cold]
fn header_or_fault(input: &[u8], direction: Direction, limit: u32) -> Result<Option<Header>, FrameError> {
    let Some((&tag, rest)) = input.split_first() else { return Ok(None) };
    if !direction.allows(tag) {
        return Err(FrameError::Tag(tag));
    }
    let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
    let field = u32::from_be_bytes(*length);
    let longest = direction.longest(tag).min(limit);
    match field.checked_sub(4) {
        Some(length) if length <= longest => Ok(Some(Header { tag, length })),
        _ => Err(FrameError::Length { tag, length: field, longest }),
    }
}

/// A part of the stream that can be acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A frame begins.
    Start {
        /// Its header.
        header: Header,
        /// Bytes of the input that belong to it, header included.
        taken: usize,
        /// Whether that is all of it.
        whole: bool,
    },
    /// The frame that began before goes on.
    Rest {
        /// Bytes of the input that belong to it.
        taken: usize,
        /// Whether it ends here.
        last: bool,
    },
}

/// Cuts one direction of a connection into [`Piece`]s. Holds no bytes: what it cannot use yet, the caller offers again
/// with more behind it.
#[derive(Debug, Clone)]
pub struct Framer {
    direction: Direction,
    limit: u32,
    remaining: u32,
}

impl Framer {
    /// A stream that begins with a header. `limit` is the longest body, in bytes.
    pub fn new(direction: Direction, limit: u64) -> Self {
        let limit = u32::try_from(limit).unwrap_or(BODY_MAX).min(BODY_MAX);
        Self { direction, limit, remaining: 0 }
    }

    /// Whether a frame has begun and not ended.
    pub fn inside_frame(&self) -> bool {
        self.remaining > 0
    }

    /// How many bytes at the start of `input` are whole frames of these tags, one after the other. They count as taken.
    pub fn whole(&self, input: &[u8], tags: [u8; 2]) -> usize {
        let mut at = 0;
        while let Some(&[tag, a, b, c, d]) = input[at..].first_chunk::<HEADER>() {
            let length = u32::from_be_bytes([a, b, c, d]);
            let fits = self.remaining == 0 && length >= 4 && length - 4 <= self.limit;
            if !fits || !tags.contains(&tag) || length as usize >= input.len() - at {
                break;
            }
            at += 1 + length as usize;
        }
        at
    }

    /// Tag and body of the frame at the start of `input`, if all of it is there and it is one. It does not count as taken.
    #[inline]
    pub fn whole_frame<'a>(&self, input: &'a [u8]) -> Option<(u8, &'a [u8])> {
        if self.remaining > 0 {
            return None;
        }
        let header = good_header(input, self.direction, self.limit)?;
        input.get(HEADER..header.frame()).map(|body| (header.tag, body))
    }

    /// Takes the start of a frame back, which is then the next piece again.
    pub fn take_back(&mut self) {
        self.remaining = 0;
    }

    /// The next piece at the start of `input`, which is then taken; `None` if more bytes are needed first. How the
    /// stream is split over calls changes how frames fall into pieces, never which frames there are.
    #[inline]
    pub fn next(&mut self, input: &[u8]) -> Result<Option<Piece>, FrameError> {
        if input.is_empty() {
            return Ok(None);
        }
        if self.remaining == 0
            && let Some(header) = good_header(input, self.direction, self.limit)
            && header.frame() <= input.len()
        {
            return Ok(Some(Piece::Start { header, taken: header.frame(), whole: true }));
        }
        self.next_in_part(input)
    }

    /// The next piece where it is not a whole frame.
    fn next_in_part(&mut self, input: &[u8]) -> Result<Option<Piece>, FrameError> {
        if self.remaining > 0 {
            let taken = input.len().min(self.remaining as usize);
            // At most `remaining`, so it fits.
            self.remaining -= u32::try_from(taken).unwrap_or(self.remaining);
            return Ok(Some(Piece::Rest { taken, last: self.remaining == 0 }));
        }
        let Some(header) = header(input, self.direction, self.limit)? else { return Ok(None) };
        if input.len() < HEADER + self.direction.needed(header.tag, header.length) as usize {
            return Ok(None);
        }
        let taken = input.len().min(header.frame());
        self.remaining = u32::try_from(header.frame() - taken).unwrap_or(0);
        Ok(Some(Piece::Start { header, taken, whole: self.remaining == 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    /// Feeds `stream` in chunks that end at `cuts`; gives the headers, the bytes of all pieces, and what was left.
    fn run(
        direction: Direction,
        stream: &[u8],
        cuts: &[usize],
    ) -> Result<(Vec<Header>, Vec<u8>, usize), FrameError> {
        let mut framer = Framer::new(direction, 1 << 30);
        let (mut headers, mut passed, mut begin) = (Vec::new(), Vec::new(), 0);
        for end in cuts.iter().copied().chain([stream.len()]) {
            while let Some(piece) = framer.next(&stream[begin..end])? {
                let taken = match piece {
                    Piece::Start { header, taken, whole } => {
                        assert_eq!(whole, taken == header.frame());
                        headers.push(header);
                        taken
                    }
                    Piece::Rest { taken, .. } => taken,
                };
                assert!(taken > 0);
                passed.extend_from_slice(&stream[begin..begin + taken]);
                begin += taken;
            }
        }
        Ok((headers, passed, stream.len() - begin))
    }

    fn client_frames() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        let tag = prop::sample::select(b"QPBDCEHSdcf".to_vec());
        prop::collection::vec((tag, prop::collection::vec(any::<u8>(), 0..40)), 0..20)
    }

    proptest! {
        #[test]
        fn a_header_is_taken_at_a_glance_if_it_is_one(
            tag in any::<u8>(),
            length in prop_oneof![0..20u32, 9_990..10_020u32, 65_530..65_550u32, any::<u32>()],
            limit in prop_oneof![0..20u32, any::<u32>()],
            cut in 0..=HEADER,
        ) {
            let bytes = [&[tag], &length.to_be_bytes()[..]].concat();
            for direction in
                [Direction::ClientLogin, Direction::Client, Direction::ServerLogin, Direction::Server]
            {
                let careful = header_or_fault(&bytes[..cut], direction, limit);
                prop_assert_eq!(good_header(&bytes[..cut], direction, limit), careful.ok().flatten());
            }
        }

        #[test]
        fn cutting_a_stream_anywhere_gives_the_same_frames(
            frames in client_frames(),
            cuts in prop::collection::vec(0usize..1000, 0..20),
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|(tag, body)| frame(*tag, body)).collect();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.sort_unstable();
            let (headers, passed, left) = run(Direction::Client, &stream, &cuts).unwrap();
            prop_assert_eq!(left, 0);
            prop_assert_eq!(passed, stream);
            let tags: Vec<_> = headers.iter().map(|h| (h.tag, h.length as usize)).collect();
            let wanted: Vec<_> = frames.iter().map(|(tag, body)| (*tag, body.len())).collect();
            prop_assert_eq!(tags, wanted);
        }

        #[test]
        fn garbage_is_refused_or_framed_but_never_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cuts in prop::collection::vec(0usize..200, 0..5),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            for direction in [Direction::Client, Direction::Server, Direction::ClientLogin, Direction::ServerLogin] {
                let whole = run(direction, &bytes, &[]);
                let cut = run(direction, &bytes, &cuts);
                prop_assert_eq!(whole.is_err(), cut.is_err());
            }
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for length in [0u32, 1, 3, 0x4000_0004, 0x8000_0000, u32::MAX] {
            let mut bytes = vec![b'Q'];
            bytes.extend_from_slice(&length.to_be_bytes());
            assert!(matches!(header(&bytes, Direction::Client, u32::MAX), Err(FrameError::Length { .. })));
        }
        let sync = frame(b'S', &vec![0; SMALL_MAX as usize + 1]);
        assert!(header(&sync, Direction::Client, u32::MAX).is_err());
        assert!(header(&frame(b'd', &[0; 101]), Direction::Client, 100).is_err());
    }

    #[test]
    fn tags_are_checked_before_the_length_is_there() {
        assert_eq!(header(b"Z", Direction::Client, 100), Err(FrameError::Tag(b'Z')));
        assert_eq!(header(b"Q", Direction::ClientLogin, 100), Err(FrameError::Tag(b'Q')));
        assert_eq!(header(b"R", Direction::Server, 100), Err(FrameError::Tag(b'R')));
    }

    #[test]
    fn large_frames_pass_in_pieces_and_texts_are_waited_for() {
        let mut framer = Framer::new(Direction::Server, 1 << 30);
        let row = frame(b'D', &[7; 1000]);
        assert!(matches!(framer.next(&row[..100]), Ok(Some(Piece::Start { taken: 100, whole: false, .. }))));
        assert!(framer.inside_frame());
        assert_eq!(framer.next(&row[100..500]), Ok(Some(Piece::Rest { taken: 400, last: false })));
        assert_eq!(framer.next(&row[500..]), Ok(Some(Piece::Rest { taken: 505, last: true })));
        assert!(!framer.inside_frame());
        let mut framer = Framer::new(Direction::Client, 1 << 30);
        assert_eq!(framer.next(&frame(b'Q', &[1; 1000])[..999]), Ok(None));
    }
}
