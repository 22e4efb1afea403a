//! What can be known of a connection whose bytes pass untouched: how many answers are outstanding, whether a transaction
//! is open, whether a message is cut.
//!
//! Only headers are read, and the first bytes of ReadyForQuery and ErrorResponse. What is wrong with a message is for its
//! receiver to say: from there on nothing more is known, and the connection counts as busy.

use super::write::TransactionStatus;
use super::{FrameError, read};

/// Bytes of a header.
const HEADER: usize = 5;

/// So much is read of an ErrorResponse, in bytes: severity in any language, and SQLSTATE, which come first.
const ERROR_PREFIX: usize = 64;

/// The longest body that PostgreSQL sends or takes, in bytes.
const BODY_MAX: u32 = 0x3FFF_FFFF;

/// What passed since it was last asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// Statements: queries, function calls, executed portals.
    pub statements: u32,
    /// Errors of class 08, 53, 57 or 58.
    pub failed: u32,
    /// Writes refused because the transaction is read-only (25006).
    pub read_only: u32,
}

/// Follows both directions of a connection after log-in.
#[derive(Debug)]
pub struct Tally {
    from_client: Scan<HEADER>,
    from_server: Scan<{ HEADER + ERROR_PREFIX }>,
    flow: Flow,
}

#[derive(Debug, Default)]
struct Flow {
    /// Messages that a ReadyForQuery answers, and that has not come.
    outstanding: u32,
    /// Messages that a Sync has to follow.
    unsynced: bool,
    status: TransactionStatus,
    copy: Copy,
    left: bool,
    end: Option<ServerEnd>,
    /// One of the two sent what has no header.
    unknown: bool,
    passed: Passed,
}

/// Why the server said that it ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServerEnd {
    OfThisOne,
    /// The whole server ends, or somebody ended this one by hand.
    ShutDown,
}

/// COPY FROM STDIN swallows each Sync that comes before its end.
#[derive(Debug, Default)]
struct Copy {
    /// The server waits for rows.
    running: bool,
    /// Both copy, as replication does.
    both: bool,
    /// Syncs at the end of what the client sent, without anything else that is answered by ReadyForQuery.
    syncs: u32,
    /// Ends of rows that were sent before the server asked for rows.
    early_ends: u32,
    /// Syncs right before the only early end that are outstanding.
    syncs_before_end: u32,
    /// All that was outstanding at that end and still is.
    before_end: u32,
}

impl Tally {
    /// A connection that is idle after log-in. `limit` is the longest body of a message that a client may send, in bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            from_client: Scan::new(u32::try_from(limit).unwrap_or(BODY_MAX).min(BODY_MAX)),
            from_server: Scan::new(BODY_MAX),
            flow: Flow::default(),
        }
    }

    /// The client sent this.
    ///
    /// # Errors
    ///
    /// A message is longer than the limit: it must not be passed on.
    pub fn sent(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        let flow = &mut self.flow;
        let Err(error) = self.from_client.feed(bytes, |tag, _| flow.client(tag)) else { return Ok(()) };
        flow.unknown = true;
        match error {
            FrameError::Length { length, .. } if (4..=BODY_MAX + 4).contains(&length) => Err(error),
            _ => Ok(()),
        }
    }

    /// The server sent this.
    pub fn received(&mut self, bytes: &[u8]) {
        let flow = &mut self.flow;
        let scanned = self.from_server.feed(bytes, |tag, prefix| flow.server(tag, prefix));
        flow.unknown |= scanned.is_err();
    }

    /// Whether nothing is under way: no answer outstanding, no transaction open, no message cut. What a client asked for
    /// and is not seen through (a COPY that was sent ahead among others) counts as under way.
    pub fn is_idle(&self) -> bool {
        self.flow.is_idle() && !self.from_client.inside_frame() && !self.from_server.inside_frame()
    }

    /// Whether both sides copy, as replication does until somebody ends it.
    pub fn is_streaming(&self) -> bool {
        self.flow.copy.both
    }

    /// Whether the client sent what is no message, for which the server closes without a word.
    pub fn client_broke_off(&self) -> bool {
        self.from_client.failed
    }

    /// Whether the client's last message is not whole yet. Its length may be one that the server takes for a lie.
    pub fn client_is_cut(&self) -> bool {
        self.from_client.inside_frame()
    }

    /// Whether the server owes an answer, so that there is something to cancel.
    pub fn is_busy(&self) -> bool {
        self.flow.outstanding > 0 || self.flow.unsynced || self.flow.unknown
    }

    /// How many ReadyForQuery are awaited.
    pub fn awaited(&self) -> u32 {
        self.flow.outstanding
    }

    /// Whether all that the server sent were whole messages, so that another can follow.
    pub fn between_messages(&self) -> bool {
        !self.from_server.failed && !self.from_server.inside_frame()
    }

    /// Whether the client said that it leaves.
    pub fn client_left(&self) -> bool {
        self.flow.left
    }

    /// Whether the server said that it ends the connection.
    pub fn server_ended(&self) -> bool {
        self.flow.end.is_some()
    }

    /// Whether it said so because the whole server ends, or somebody ended this one by hand (57P01 to 57P03).
    pub fn server_shut_down(&self) -> bool {
        self.flow.end == Some(ServerEnd::ShutDown)
    }

    /// What passed since the last call.
    pub fn take_passed(&mut self) -> Passed {
        std::mem::take(&mut self.flow.passed)
    }
}

impl Flow {
    fn is_idle(&self) -> bool {
        self.outstanding == 0 && !self.unsynced && self.status == TransactionStatus::Idle && !self.unknown
    }

    fn client(&mut self, tag: u8) {
        match tag {
            b'Q' | b'F' => {
                self.outstanding = self.outstanding.saturating_add(1);
                self.passed.statements = self.passed.statements.saturating_add(1);
                self.copy.syncs = 0;
            }
            b'S' if self.copy.running => {}
            b'S' => {
                self.outstanding = self.outstanding.saturating_add(1);
                self.unsynced = false;
                self.copy.syncs = self.copy.syncs.saturating_add(1);
            }
            b'P' | b'B' | b'D' | b'C' | b'H' => self.unsynced = true,
            b'E' => {
                self.unsynced = true;
                self.passed.statements = self.passed.statements.saturating_add(1);
            }
            b'c' | b'f' => self.copy.rows_end(self.unsynced, self.outstanding),
            b'X' => self.left = true,
            _ => {}
        }
    }

    fn server(&mut self, tag: u8, prefix: &[u8]) {
        match tag {
            b'Z' => {
                self.outstanding = self.outstanding.saturating_sub(1);
                match prefix.first().copied().and_then(TransactionStatus::from_byte) {
                    Some(status) => self.status = status,
                    None => self.unknown = true,
                }
                self.copy.ready(self.outstanding);
            }
            b'G' => {
                let swallowed = self.copy.begin();
                self.outstanding = self.outstanding.saturating_sub(swallowed);
                // The batch still has to be ended.
                self.unsynced |= self.copy.running && swallowed > 0;
            }
            b'W' => self.copy.both = true,
            b'E' => {
                self.copy.running = false;
                let fields = read::error(prefix);
                if fields.is_fatal() {
                    let shut_down = matches!(fields.code, b"57P01" | b"57P02" | b"57P03");
                    self.end = Some(if shut_down { ServerEnd::ShutDown } else { ServerEnd::OfThisOne });
                }
                self.passed.read_only += u32::from(fields.code == b"25006");
                let failed = matches!(fields.code.get(..2), Some(b"08" | b"53" | b"57" | b"58"));
                self.passed.failed += u32::from(failed);
            }
            _ => {}
        }
    }
}

impl Copy {
    /// CopyDone or CopyFail was sent. One that was sent ahead is told from one that comes after an error by what is
    /// outstanding.
    fn rows_end(&mut self, unsynced: bool, outstanding: u32) {
        if !self.running && !self.both && (unsynced || outstanding > 0) {
            self.early_ends = self.early_ends.saturating_add(1);
            self.syncs_before_end = if self.early_ends == 1 { self.syncs } else { 0 };
            self.before_end = outstanding;
        }
        self.running = false;
        self.syncs = 0;
    }

    /// The server asks for rows; so many Syncs are swallowed for sure.
    fn begin(&mut self) -> u32 {
        if self.early_ends == 0 {
            self.running = true;
            return std::mem::take(&mut self.syncs);
        }
        self.early_ends -= 1;
        std::mem::take(&mut self.syncs_before_end)
    }

    /// ReadyForQuery came; so many are outstanding still.
    fn ready(&mut self, outstanding: u32) {
        self.running = false;
        self.both = false;
        self.syncs = self.syncs.min(outstanding);
        self.before_end = self.before_end.saturating_sub(1);
        self.syncs_before_end = self.syncs_before_end.min(self.before_end);
        if outstanding == 0 {
            *self = Self::default();
        }
    }
}

/// Finds the headers in one direction. Keeps the beginning of a message until enough of it is there to be looked at.
#[derive(Debug)]
struct Scan<const KEPT: usize> {
    kept: [u8; KEPT],
    have: usize,
    /// Bytes that the frame at hand still has.
    remaining: usize,
    /// The longest body, in bytes.
    longest: u32,
    failed: bool,
}

/// What is known of a frame from its header.
#[derive(Clone, Copy)]
struct Head {
    tag: u8,
    length: usize,
    /// Bytes of the body that are looked at.
    looked_at: usize,
}

impl<const KEPT: usize> Scan<KEPT> {
    fn new(longest: u32) -> Self {
        Self { kept: [0; KEPT], have: 0, remaining: 0, longest, failed: false }
    }

    fn inside_frame(&self) -> bool {
        self.remaining > 0 || self.have > 0
    }

    /// Calls `each` for each frame, once as many bytes of its body have come as are looked at.
    fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(u8, &[u8])) -> Result<(), FrameError> {
        let mut rest = bytes;
        while !rest.is_empty() && !self.failed {
            if self.remaining > 0 {
                let taken = rest.len().min(self.remaining);
                self.remaining -= taken;
                rest = &rest[taken..];
            } else if self.have == 0
                && let Some(head) = self.head(rest)?
                && let Some(prefix) = rest.get(HEADER..HEADER + head.looked_at)
            {
                each(head.tag, prefix);
                self.remaining = head.length;
                rest = &rest[HEADER..];
            } else {
                rest = &rest[self.keep(rest, &mut each)?..];
            }
        }
        Ok(())
    }

    /// Keeps some bytes of a frame of which not enough is there; gives how many.
    fn keep(&mut self, bytes: &[u8], each: &mut impl FnMut(u8, &[u8])) -> Result<usize, FrameError> {
        let kept = self.kept;
        let wanted = self.head(&kept[..self.have])?.map_or(HEADER, |head| HEADER + head.looked_at);
        let taken = bytes.len().min(wanted - self.have);
        self.kept[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
        self.have += taken;
        let kept = self.kept;
        if let Some(head) = self.head(&kept[..self.have])?
            && self.have == HEADER + head.looked_at
        {
            each(head.tag, &kept[HEADER..self.have]);
            self.remaining = head.length - head.looked_at;
            self.have = 0;
        }
        Ok(taken)
    }

    /// The header at the start of `bytes`, if it is whole.
    fn head(&mut self, bytes: &[u8]) -> Result<Option<Head>, FrameError> {
        let Some((&[tag, a, b, c, d], _)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let field = u32::from_be_bytes([a, b, c, d]);
        let Some(length) = field.checked_sub(4).filter(|length| *length <= self.longest) else {
            self.failed = true;
            return Err(FrameError::Length { tag, length: field, longest: self.longest });
        };
        let length = length as usize;
        let looked_at = match tag {
            b'Z' => 1,
            b'E' => ERROR_PREFIX,
            _ => 0,
        };
        Ok(Some(Head { tag, length, looked_at: looked_at.min(length).min(KEPT - HEADER) }))
    }
}

#[cfg(test)]
mod tests;
