//! Keyed randomness: every draw is a function of the seed, what it is for, whom it concerns and how many came before
//! of that kind. There is no shared stream, so that taking a fault out of a scenario does not shift the other draws.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::scenario::Span;

/// What a draw is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Purpose {
    /// Delay of a message on a link.
    Latency = 1,
    /// Duration of a flush to disk.
    Flush,
    /// From a flush until the walsenders run.
    Ship,
    /// Duration of replaying what was received.
    Replay,
    /// Duration of a promotion.
    Promote,
    /// Duration of crash recovery or start.
    Start,
    /// From a reload of the configuration until it is in force.
    Reload,
    /// From a changed conninfo until the walreceiver is gone.
    StopReceiver,
    /// How long an answer takes to compute.
    Answer,
    /// Duration of writing and syncing the journal.
    Journal,
    /// Pause of a client between requests.
    Think,
    /// Size of a WAL record.
    Record,
    /// Bits for a load balancer.
    Balance,
    /// Whether a call that is given up is carried out later all the same.
    Linger,
    /// Choices of a random scenario.
    Scenario,
    /// Duration of a checkpoint.
    Checkpoint,
    /// From the request to stop until all sessions have ended.
    Stop,
    /// How long a hook takes to begin, and to copy.
    Hook,
    /// What a person asks for in a random scenario.
    Ask,
    /// Whom somebody else promotes in a random scenario.
    Manager,
    /// Whose disk stands still in a random scenario.
    Stall,
    /// Who recovers without an end in a random scenario.
    Recover,
}

/// One draw, without state: equal arguments give equal bits.
pub fn draw(seed: u64, purpose: Purpose, entity: u64, counter: u64) -> u64 {
    let mut bits = mix(seed ^ 0x9E37_79B9_7F4A_7C15);
    for part in [purpose as u64, entity, counter] {
        bits = mix(bits.rotate_left(23) ^ part.wrapping_mul(0xD6E8_FEB8_6659_FD93).wrapping_add(part >> 7));
    }
    bits
}

/// The finalizer of splitmix64: a bijection in which each input bit touches every output bit.
const fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// Draws that count themselves, per purpose and entity.
#[derive(Debug, Clone)]
pub struct Chance {
    seed: u64,
    counters: BTreeMap<(Purpose, u64), u64>,
}

impl Chance {
    /// All draws of one run come from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, counters: BTreeMap::new() }
    }

    /// The next 64 bits for this purpose and entity.
    pub fn bits(&mut self, purpose: Purpose, entity: u64) -> u64 {
        let counter = self.counters.entry((purpose, entity)).or_insert(0);
        *counter += 1;
        draw(self.seed, purpose, entity, *counter)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, purpose: Purpose, entity: u64, low: u64, high: u64) -> u64 {
        let width = u128::from(high.saturating_sub(low)) + 1;
        let offset = (u128::from(self.bits(purpose, entity)) * width) >> 64;
        low + u64::try_from(offset).unwrap_or(0)
    }

    /// A duration within the span.
    pub fn duration(&mut self, purpose: Purpose, entity: u64, span: Span) -> Duration {
        Duration::from_micros(self.between(purpose, entity, span.low_micros, span.high_micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_draw_depends_on_each_part_of_its_key() {
        let base = draw(1, Purpose::Latency, 2, 3);
        assert_eq!(base, draw(1, Purpose::Latency, 2, 3));
        for other in [
            draw(2, Purpose::Latency, 2, 3),
            draw(1, Purpose::Flush, 2, 3),
            draw(1, Purpose::Latency, 3, 3),
            draw(1, Purpose::Latency, 2, 4),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn draws_of_one_entity_do_not_shift_those_of_another() {
        let mut alone = Chance::new(7);
        let mut beside = Chance::new(7);
        for _ in 0..10 {
            beside.bits(Purpose::Latency, 1);
            assert_eq!(alone.bits(Purpose::Latency, 2), beside.bits(Purpose::Latency, 2));
        }
    }

    proptest! {
        #[test]
        fn numbers_stay_within_their_bounds(seed: u64, low: u64, high: u64) {
            let (low, high) = (low.min(high), low.max(high));
            let drawn = Chance::new(seed).between(Purpose::Think, 0, low, high);
            prop_assert!((low..=high).contains(&drawn));
        }
    }
}
