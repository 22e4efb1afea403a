//! A node's write-ahead log: records with positions and timelines, and where timelines forked.

use metako_core::{Epoch, Lsn, Tick, TimelineId};

/// A segment is 16 MiB, as PostgreSQL's default.
pub(super) const SEGMENT_BYTES: u64 = 16 << 20;

/// What a record holds. No two records that were written apart are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    /// The commit of a client's write.
    Write(u64),
    /// A commit that says nothing: a probe's, a timeline's first record. The number makes it unique.
    Other(u64),
    /// The first commit of an epoch.
    Marker(Epoch, u64),
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) end: Lsn,
    pub(crate) timeline: TimelineId,
    pub(crate) payload: Payload,
    pub(crate) written: Tick,
}

/// The end of a timeline, and with it the beginning of the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fork {
    pub(crate) timeline: TimelineId,
    pub(crate) end: Lsn,
}

/// The log of one node.
#[derive(Debug, Clone)]
pub(crate) struct Wal {
    start: Lsn,
    records: Vec<Record>,
    /// How many of the records are on this node's disk.
    flushed: usize,
    /// How many are replayed (on a primary: all that are written).
    replayed: usize,
    /// The timeline that is written or followed.
    timeline: TimelineId,
    /// The ancestors of that timeline.
    history: Vec<Fork>,
    /// The highest timeline that this node has a history file of.
    highest: TimelineId,
}

/// Why a standby cannot follow an upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CannotFollow {
    #[error("highest timeline {upstream} of the primary is behind recovery timeline {own}")]
    UpstreamBehind { upstream: TimelineId, own: TimelineId },
    #[error("requested starting point {own} is ahead of the WAL flush position of this server {upstream}")]
    AheadOfUpstream { own: Lsn, upstream: Lsn },
    #[error(
        "new timeline {upstream} forked off current database system timeline {own} at {fork} before current recovery point {position}"
    )]
    PastFork { upstream: TimelineId, own: TimelineId, fork: Lsn, position: Lsn },
    #[error("requested timeline {own} is not in this server's history")]
    ForeignTimeline { own: TimelineId },
}

impl Wal {
    /// The log of a new cluster: nothing written after `start` on timeline 1.
    pub(crate) fn new(start: Lsn) -> Self {
        let timeline = TimelineId(1);
        Self {
            start,
            records: Vec::new(),
            flushed: 0,
            replayed: 0,
            timeline,
            history: Vec::new(),
            highest: timeline,
        }
    }

    fn end_of(&self, count: usize) -> Lsn {
        count.checked_sub(1).map_or(self.start, |last| self.records[last].end)
    }

    pub(crate) fn written(&self) -> Lsn {
        self.end_of(self.records.len())
    }

    pub(crate) fn flushed(&self) -> Lsn {
        self.end_of(self.flushed)
    }

    pub(crate) fn replayed(&self) -> Lsn {
        self.end_of(self.replayed)
    }

    pub(crate) fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The timeline of the last record on disk.
    pub(crate) fn flushed_timeline(&self) -> TimelineId {
        self.flushed.checked_sub(1).map_or(TimelineId(1), |last| self.records[last].timeline)
    }

    /// The start of the segment that the flushed position lies in.
    pub(crate) fn segment_start(&self) -> Lsn {
        Lsn(self.flushed().0 / SEGMENT_BYTES * SEGMENT_BYTES)
    }

    pub(crate) fn has_unflushed(&self) -> bool {
        self.flushed < self.records.len()
    }

    pub(crate) fn has_backlog(&self) -> bool {
        self.replayed < self.flushed
    }

    /// The first record that is not replayed yet, if it is on disk.
    pub(crate) fn next_to_replay(&self) -> Option<&Record> {
        self.records[..self.flushed].get(self.replayed)
    }

    pub(crate) fn last_replayed(&self) -> Option<&Record> {
        self.replayed.checked_sub(1).map(|last| &self.records[last])
    }

    /// Writes a record as a primary.
    pub(crate) fn append(&mut self, payload: Payload, bytes: u64, now: Tick) -> Lsn {
        let end = Lsn(self.written().0 + bytes);
        self.records.push(Record { end, timeline: self.timeline, payload, written: now });
        self.replayed = self.records.len();
        end
    }

    /// Takes from `upstream` what is missing here, up to `limit`. Tells whether anything was new.
    pub(crate) fn receive(&mut self, upstream: &Self, limit: Lsn) -> bool {
        let own = self.written();
        let from = upstream.records.partition_point(|record| record.end <= own);
        let to = upstream.records.partition_point(|record| record.end <= limit);
        let fresh = from < to;
        if fresh {
            self.records.extend_from_slice(&upstream.records[from..to]);
        }
        fresh
    }

    /// All that is written now is on disk.
    pub(crate) fn flush_to(&mut self, position: Lsn) {
        let count = self.records.partition_point(|record| record.end <= position);
        self.flushed = self.flushed.max(count);
    }

    /// Replays all that was received at `position` or before.
    pub(crate) fn replay_to(&mut self, position: Lsn) {
        let count = self.records[..self.flushed].partition_point(|record| record.end <= position);
        self.replayed = self.replayed.max(count);
    }

    /// The process died: what was not on disk is gone. Redo starts again from `redo_records` before the end.
    pub(crate) fn crash(&mut self, redo_records: usize) {
        self.records.truncate(self.flushed);
        self.replayed = self.flushed.saturating_sub(redo_records);
    }

    /// Crash recovery of a primary is over.
    pub(crate) fn finish_recovery(&mut self) {
        self.replayed = self.records.len();
    }

    /// Begins a new timeline here: one more than the highest that was ever seen. Returns it, and where it forks.
    pub(crate) fn begin_timeline(&mut self) -> (TimelineId, Lsn) {
        self.records.truncate(self.flushed);
        self.replayed = self.flushed;
        let fork = self.flushed();
        self.history.push(Fork { timeline: self.timeline, end: fork });
        self.timeline = self.highest.next();
        self.highest = self.timeline;
        (self.timeline, fork)
    }

    /// Checks what PostgreSQL checks when a standby with this log asks `upstream` for more.
    pub(crate) fn can_follow(&self, upstream: &Self) -> Result<(), CannotFollow> {
        let (own, position) = (self.flushed_timeline().max(self.timeline_of_recovery()), self.written());
        if upstream.timeline < own {
            return Err(CannotFollow::UpstreamBehind { upstream: upstream.timeline, own });
        }
        if upstream.timeline != own {
            let fork = upstream.history.iter().find(|fork| fork.timeline == own);
            let fork = fork.ok_or(CannotFollow::ForeignTimeline { own })?.end;
            if position > fork {
                return Err(CannotFollow::PastFork { upstream: upstream.timeline, own, fork, position });
            }
        }
        if position > upstream.flushed() {
            return Err(CannotFollow::AheadOfUpstream { own: position, upstream: upstream.flushed() });
        }
        Ok(())
    }

    /// The timeline that recovery is on: the followed one, unless its fork is still ahead.
    fn timeline_of_recovery(&self) -> TimelineId {
        if self.history.iter().any(|fork| fork.end > self.written()) {
            self.flushed_timeline()
        } else {
            self.timeline
        }
    }

    /// Takes over the history of an upstream that it may follow.
    pub(crate) fn follow(&mut self, upstream: &Self) {
        self.timeline = upstream.timeline;
        self.history.clone_from(&upstream.history);
        self.highest = self.highest.max(upstream.highest);
    }

    /// What a copy of this node's data directory has: all that is on disk, not replayed beyond the last checkpoint.
    pub(crate) fn copied(&self, redo_records: usize) -> Self {
        let mut copy = self.clone();
        copy.crash(redo_records);
        copy
    }

    /// Whether this log is a beginning of the other. Records are unique, so the last one tells.
    pub(crate) fn is_prefix_of(&self, other: &Self) -> bool {
        match self.records.last() {
            None => true,
            Some(last) => other.records.get(self.records.len() - 1) == Some(last),
        }
    }

    /// Whether the last write of another log up to a position, if there is one, is on disk here. What comes before it is then, too.
    pub(crate) fn has_write_of(&self, other: &Self, position: Lsn) -> bool {
        let until = other.records.partition_point(|record| record.end <= position);
        let is_write = |record: &Record| matches!(record.payload, Payload::Write(_));
        match other.records[..until].iter().rposition(is_write) {
            None => true,
            Some(last) => self.records[..self.flushed].get(last) == Some(&other.records[last]),
        }
    }

    /// Whether what is replayed here is a beginning of the other log.
    pub(crate) fn replayed_of(&self, other: &Self) -> bool {
        self.last_replayed().is_none_or(|last| other.records.get(self.replayed - 1) == Some(last))
    }

    /// When the first record was written that is on the other's disk and not replayed here.
    pub(crate) fn lacks_since(&self, other: &Self) -> Option<Tick> {
        other.records[..other.flushed].get(self.replayed).map(|record| record.written)
    }

    /// The writes on disk.
    pub(crate) fn writes(&self) -> impl Iterator<Item = u64> {
        self.records[..self.flushed].iter().filter_map(|record| match record.payload {
            Payload::Write(id) => Some(id),
            Payload::Other(_) | Payload::Marker(..) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(wal: &mut Wal, ids: std::ops::Range<u64>) {
        for id in ids {
            wal.append(Payload::Write(id), 100, Tick::ZERO);
        }
        wal.flush_to(wal.written());
    }

    fn copy(standby: &mut Wal, upstream: &Wal, limit: Lsn) {
        standby.receive(upstream, limit);
        standby.flush_to(standby.written());
        standby.replay_to(standby.written());
    }

    #[test]
    fn a_standby_ahead_of_the_fork_cannot_follow() {
        let mut old = Wal::new(Lsn(0));
        let (mut behind, mut ahead) = (old.clone(), old.clone());
        write(&mut old, 0..10);
        copy(&mut ahead, &old, Lsn(1000));
        copy(&mut behind, &old, Lsn(500));
        assert_eq!(behind.begin_timeline(), (TimelineId(2), Lsn(500)));
        let past = CannotFollow::PastFork {
            upstream: TimelineId(2),
            own: TimelineId(1),
            fork: Lsn(500),
            position: Lsn(1000),
        };
        assert_eq!(ahead.can_follow(&behind), Err(past.clone()));
        assert_eq!(old.can_follow(&behind), Err(past));
    }

    #[test]
    fn a_standby_behind_the_fork_follows_the_new_timeline() {
        let mut old = Wal::new(Lsn(0));
        let (mut new, mut other) = (old.clone(), old.clone());
        write(&mut old, 0..10);
        copy(&mut new, &old, Lsn(800));
        copy(&mut other, &old, Lsn(300));
        new.begin_timeline();
        write(&mut new, 20..22);
        assert_eq!(other.can_follow(&new), Ok(()));
        other.follow(&new);
        copy(&mut other, &new, new.flushed());
        assert!(other.is_prefix_of(&new));
        assert_eq!(other.flushed_timeline(), TimelineId(2));
        assert_eq!(other.writes().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7, 20, 21]);
        let behind = CannotFollow::UpstreamBehind { upstream: TimelineId(1), own: TimelineId(2) };
        assert_eq!(other.can_follow(&old), Err(behind));
    }

    #[test]
    fn a_standby_that_received_nothing_of_a_new_timeline_still_follows_the_old_primary() {
        let mut old = Wal::new(Lsn(0));
        let (mut new, mut other) = (old.clone(), old.clone());
        write(&mut old, 0..3);
        copy(&mut new, &old, Lsn(300));
        copy(&mut other, &old, Lsn(200));
        new.begin_timeline();
        other.follow(&new);
        assert_eq!(other.timeline(), TimelineId(2));
        assert_eq!(other.can_follow(&old), Ok(()), "it is still before the fork");
        copy(&mut other, &new, Lsn(300));
        assert!(other.can_follow(&old).is_err(), "at the fork it is on the new timeline");
    }

    #[test]
    fn two_promotions_to_one_timeline_are_told_apart_by_content() {
        let base = Wal::new(Lsn(0));
        let (mut one, mut two) = (base.clone(), base);
        one.begin_timeline();
        two.begin_timeline();
        write(&mut one, 0..2);
        write(&mut two, 5..6);
        assert_eq!(two.can_follow(&one), Ok(()), "PostgreSQL sees nothing wrong");
        assert!(!two.is_prefix_of(&one));
    }

    #[test]
    fn a_crash_loses_what_was_not_on_disk() {
        let mut wal = Wal::new(Lsn(0));
        write(&mut wal, 0..5);
        wal.append(Payload::Write(5), 100, Tick::ZERO);
        wal.crash(2);
        assert_eq!((wal.written(), wal.replayed()), (Lsn(500), Lsn(300)));
        wal.finish_recovery();
        assert_eq!(wal.replayed(), Lsn(500));
    }
}
