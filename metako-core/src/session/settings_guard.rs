//! What guarded commits need of settings, on connections whose bytes pass untouched otherwise.

use super::floor::lowered;
use crate::wire::{TEXT_MAX, read, write};

/// Bytes of a header.
const HEADER: usize = 5;

/// Follows what a client sends after log-in. A statement that lowers what guarded commits need is replaced by one that the
/// server refuses. A Query or Parse waits until it is whole, unless it is longer than [`TEXT_MAX`]: that is not looked at.
#[derive(Debug, Default)]
pub struct SettingsGuard {
    /// The beginning of a frame.
    kept: Vec<u8>,
    /// So many bytes of it are needed before more can be said.
    needed: usize,
    /// Bytes of the frame at hand that are to pass.
    passing: usize,
    /// The client sent what has no header: the server will say so.
    unknown: bool,
}

/// The frame at the start of some bytes.
enum Next {
    /// So many bytes of it are needed.
    Wait(usize),
    /// So many bytes of it pass, now and later.
    Pass(usize),
    /// So many bytes of it, which are all, are replaced by this.
    Replace(usize, Vec<u8>),
    Unknown,
}

impl SettingsGuard {
    /// Takes what the client sent. Whether something else goes to the server for it, which was appended to `out`: it may be
    /// nothing for now.
    pub fn filter(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        if self.kept.is_empty() {
            return self.walk(input, out);
        }
        let mut rest = input;
        while !self.kept.is_empty() {
            let (taken, left) = rest.split_at(rest.len().min(self.needed - self.kept.len()));
            self.kept.extend_from_slice(taken);
            rest = left;
            if self.kept.len() < self.needed {
                return true;
            }
            match next(&self.kept) {
                Next::Wait(needed) => self.needed = needed,
                Next::Pass(length) => {
                    self.passing = length - self.kept.len();
                    out.append(&mut self.kept);
                }
                Next::Replace(_, other) => {
                    out.extend_from_slice(&other);
                    self.kept.clear();
                }
                Next::Unknown => {
                    self.unknown = true;
                    out.append(&mut self.kept);
                }
            }
        }
        // It may have been long.
        self.kept = Vec::new();
        if !self.walk(rest, out) {
            out.extend_from_slice(rest);
        }
        true
    }

    fn walk(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        let (mut at, mut from) = (0, 0);
        while at < input.len() && !self.unknown {
            if self.passing > 0 {
                let taken = self.passing.min(input.len() - at);
                self.passing -= taken;
                at += taken;
                continue;
            }
            match next(&input[at..]) {
                Next::Wait(needed) => {
                    out.extend_from_slice(&input[from..at]);
                    self.kept = input[at..].to_vec();
                    self.needed = needed;
                    return true;
                }
                Next::Pass(length) => self.passing = length,
                Next::Replace(length, other) => {
                    out.extend_from_slice(&input[from..at]);
                    out.extend_from_slice(&other);
                    at += length;
                    from = at;
                }
                Next::Unknown => self.unknown = true,
            }
        }
        if from == 0 {
            return false;
        }
        out.extend_from_slice(&input[from..]);
        true
    }
}

fn next(input: &[u8]) -> Next {
    let Some(&[tag, a, b, c, d]) = input.first_chunk::<HEADER>() else {
        return Next::Wait(HEADER);
    };
    let field = u32::from_be_bytes([a, b, c, d]);
    let Some(length) = field.checked_sub(4) else { return Next::Unknown };
    let frame = HEADER + length as usize;
    if !matches!(tag, b'Q' | b'P') || length > TEXT_MAX {
        return Next::Pass(frame);
    }
    let Some(body) = input.get(HEADER..frame) else { return Next::Wait(frame) };
    let mut other = Vec::new();
    if tag == b'Q' {
        if let Some(lowered) = read::query(body).and_then(lowered) {
            write::query(&mut other, &lowered.planted());
        }
    } else if let Some(parse) = read::parse(body)
        && let Some(lowered) = lowered(parse.sql)
    {
        write::parse(&mut other, parse.name, &lowered.planted_tail());
    }
    if other.is_empty() { Next::Pass(frame) } else { Next::Replace(frame, other) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::tests::{SYNC, parse, query};

    fn in_parts(stream: &[u8], cuts: &[usize]) -> Vec<u8> {
        let (mut guard, mut out, mut begin) = (SettingsGuard::default(), Vec::new(), 0);
        for end in cuts.iter().map(|cut| cut % (stream.len() + 1)).chain([stream.len()]) {
            let part = &stream[begin.min(end)..end];
            begin = begin.max(end);
            let mut changed = Vec::new();
            if guard.filter(part, &mut changed) {
                out.extend(changed);
            } else {
                out.extend_from_slice(part);
            }
        }
        out
    }

    #[test]
    fn only_what_lowers_a_setting_is_replaced() {
        let off = "set synchronous_commit = off";
        let planted = "SELECT 'synchronous_commit is less than failover.synchronous.commit_guard of metako allows'\
                       ::pg_catalog.bool";
        let sent = [query("select 1"), query(off), parse("s", off), SYNC.to_vec()].concat();
        let goes = [query("select 1"), query(planted), parse("s", planted), SYNC.to_vec()].concat();
        assert_eq!(in_parts(&sent, &[]), goes);
        let (mut guard, mut out) = (SettingsGuard::default(), Vec::new());
        assert!(!guard.filter(&[query("set synchronous_commit = on"), SYNC.to_vec()].concat(), &mut out));
        assert!(out.is_empty());
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(query("select 1")),
            Just(query("set local synchronous_commit = off")),
            Just(parse("s", "set client_min_messages = error")),
            Just(parse("", "insert into t values ($1)")),
            Just(b"d\0\0\0\x09QQQQQ".to_vec()),
            Just(b"Q\0\0\0\x05x".to_vec()),
            Just(SYNC.to_vec()),
            Just(b"X\0\0\0\0".to_vec()),
        ]
    }

    proptest! {
        #[test]
        fn how_bytes_are_cut_changes_nothing(
            pieces in prop::collection::vec(piece(), 0..10),
            mut cuts in prop::collection::vec(0_usize..400, 0..10),
        ) {
            cuts.sort_unstable();
            let stream = pieces.concat();
            prop_assert_eq!(in_parts(&stream, &cuts), in_parts(&stream, &[]));
        }

        #[test]
        fn garbage_never_panics(input in prop::collection::vec(any::<u8>(), 0..64)) {
            in_parts(&input, &[input.len() / 2]);
        }
    }
}
