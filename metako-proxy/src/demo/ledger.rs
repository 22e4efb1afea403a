//! What clients were told, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Kinds of errors that are kept by their text; further ones are only counted.
const KINDS_MAX: usize = 20;

/// One client's own record.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    /// Rows that the server said it has.
    pub(super) acknowledged: BTreeSet<i64>,
    /// Rows that may be there or not.
    pub(super) unknown: BTreeSet<i64>,
    /// Rows whose insert was refused.
    pub(super) refused: BTreeSet<i64>,
    /// When answers came, in order.
    pub(super) answered: Vec<Instant>,
    /// Errors.
    pub(super) errors: Errors,
}

/// Errors that clients saw.
#[derive(Debug, Clone, Default)]
pub(super) struct Errors {
    pub(super) count: u64,
    pub(super) kinds: BTreeMap<String, u64>,
}

impl Errors {
    pub(super) fn add(&mut self, text: String) {
        self.count += 1;
        if self.kinds.len() < KINDS_MAX || self.kinds.contains_key(&text) {
            *self.kinds.entry(text).or_default() += 1;
        }
    }
}

impl Ledger {
    /// The records of several clients as one.
    pub(super) fn sum(ledgers: impl IntoIterator<Item = Self>) -> Self {
        let mut sum = Self::default();
        for ledger in ledgers {
            sum.acknowledged.extend(ledger.acknowledged);
            sum.unknown.extend(ledger.unknown);
            sum.refused.extend(ledger.refused);
            sum.answered.extend(ledger.answered);
            sum.errors.count += ledger.errors.count;
            for (text, count) in ledger.errors.kinds {
                *sum.errors.kinds.entry(text).or_default() += count;
            }
        }
        sum.answered.sort_unstable();
        sum
    }

    /// How many acknowledged rows are not in the table.
    pub(super) fn lost(&self, table: &BTreeSet<i64>) -> usize {
        self.acknowledged.difference(table).count()
    }

    /// How many rows are in the table though their client was told that they are not.
    pub(super) fn refused_but_there(&self, table: &BTreeSet<i64>) -> usize {
        self.refused.intersection(table).count()
    }

    /// The longest time without an answer to anybody, from the last answer before `hurt` on. `None`: it did not end,
    /// that is, the silence up to `end` is the longest, or nothing was answered at all.
    pub(super) fn gap(&self, hurt: Instant, end: Instant) -> Option<Duration> {
        let first = self.answered.partition_point(|at| *at < hurt).checked_sub(1)?;
        let after = self.answered.get(first..)?;
        let closed = after.windows(2).map(|pair| pair[1] - pair[0]).max()?;
        let open = end.saturating_duration_since(*after.last()?);
        (open <= closed).then_some(closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered_at(origin: Instant, millis: &[u64]) -> Ledger {
        let answered = millis.iter().map(|at| origin + Duration::from_millis(*at)).collect();
        Ledger { answered, ..Ledger::default() }
    }

    fn gap(answers: &[u64], hurt: u64, end: u64) -> Option<u64> {
        let origin = Instant::now();
        let at = |millis| origin + Duration::from_millis(millis);
        let gap = answered_at(origin, answers).gap(at(hurt), at(end));
        gap.map(|gap| u64::try_from(gap.as_millis()).unwrap())
    }

    #[test]
    fn the_gap_is_the_longest_silence_since_the_last_answer_before_the_kill() {
        assert_eq!(gap(&[0, 10, 20, 500, 510, 520], 25, 530), Some(480));
        // An answer that was on its way when the primary died does not hide the gap.
        assert_eq!(gap(&[0, 10, 20, 26, 500, 510], 25, 530), Some(474));
        // A longer pause before the kill is none of its.
        assert_eq!(gap(&[0, 900, 910, 1000, 1010], 905, 1020), Some(90));
    }

    #[test]
    fn a_gap_that_did_not_close_is_none() {
        assert_eq!(gap(&[0, 10, 20], 25, 1000), None);
        assert_eq!(gap(&[0, 10, 20, 26], 25, 1000), None);
        assert_eq!(gap(&[], 25, 1000), None);
        assert_eq!(gap(&[30, 40], 25, 50), None, "nothing was answered before");
    }

    #[test]
    fn rows_are_counted_by_what_their_client_was_told() {
        let mut ledger = Ledger::default();
        ledger.acknowledged.extend([1, 2, 3]);
        ledger.refused.extend([4, 5]);
        ledger.unknown.extend([6, 7]);
        let table = BTreeSet::from([1, 3, 5, 6]);
        assert_eq!(ledger.lost(&table), 1);
        assert_eq!(ledger.refused_but_there(&table), 1);
    }
}
