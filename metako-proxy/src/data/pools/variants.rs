//! The sets of start-up parameters that clients begin with.

use std::collections::BTreeMap;
use std::sync::Arc;

use metako_core::pool::Variant;

/// So many different sets of start-up parameters are known at a time.
pub(super) const VARIANTS_MAX: usize = 4096;

/// Names and values of start-up parameters, in the client's order.
pub(in crate::data) type Parameters = Arc<Vec<(String, String)>>;

/// The sets of start-up parameters that are in use.
#[derive(Debug, Default)]
pub(super) struct Variants {
    known: BTreeMap<Parameters, Variant>,
    /// Numbers are never given twice: a server connection may outlive the last client of its set.
    last: u64,
}

impl Variants {
    /// A number that no set has.
    pub(super) fn alone(&mut self) -> Variant {
        self.last += 1;
        Variant(self.last)
    }

    /// The number of a set; `None` if too many are in use. Those that no client has any more make room.
    pub(super) fn number(&mut self, parameters: &Parameters) -> Option<(Parameters, Variant)> {
        if let Some((known, variant)) = self.known.get_key_value(parameters) {
            return Some((Arc::clone(known), *variant));
        }
        if self.known.len() >= VARIANTS_MAX {
            self.known.retain(|known, _| Arc::strong_count(known) > 1);
            if self.known.len() >= VARIANTS_MAX {
                return None;
            }
        }
        self.last += 1;
        self.known.insert(Arc::clone(parameters), Variant(self.last));
        Some((Arc::clone(parameters), Variant(self.last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(n: usize) -> Parameters {
        Arc::new(vec![("options".to_owned(), format!("-c my.number={n}"))])
    }

    #[test]
    fn sets_of_start_up_parameters_that_nobody_has_make_room_and_their_numbers_are_not_given_again() {
        let mut variants = Variants::default();
        let held = variants.number(&set(0)).expect("there is room");
        for n in 1..3 * VARIANTS_MAX {
            let (_, variant) = variants.number(&set(n)).expect("nobody holds the others");
            assert_eq!(variant, Variant(n as u64 + 1));
        }
        assert_eq!(variants.number(&set(0)).expect("it is held").1, held.1);
        let all: Vec<_> =
            (0..VARIANTS_MAX).map(|n| variants.number(&set(n)).expect("there is room")).collect();
        assert!(variants.number(&set(VARIANTS_MAX)).is_none());
        drop(all);
    }
}
