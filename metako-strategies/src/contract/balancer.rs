use std::time::Duration;

use metako_core::Tick;
use metako_core::plugin::{Candidate, LoadBalancer, LoadBalancerSpec, Outcome, PickCx};

use super::{Numbers, broken, built};

/// Checks a load balancer:
///
/// - it picks nothing from nothing, and something from anything, always within range;
/// - it depends on its arguments and its own history only: two that are built alike and used alike pick alike;
/// - what it learns from [`LoadBalancer::observe`] breaks none of this.
pub fn load_balancer(spec: &dyn LoadBalancerSpec) -> Result<(), String> {
    let one = built(spec.build())?;
    let other = built(spec.build())?;
    let mut numbers = Numbers(1);
    for round in 0..500 {
        let names: Vec<_> = (0..numbers.below(6)).map(|index| format!("node-{index}")).collect();
        let candidates: Vec<_> = names.iter().map(|name| candidate(name, &mut numbers)).collect();
        let cx = PickCx {
            now: Tick::from_millis(round * 10),
            random: numbers.next(),
            session: u64::from(numbers.below(20)),
            zone: [None, Some("a"), Some("b")][numbers.below(3) as usize],
        };
        let picked = one.pick(&candidates, &cx);
        match picked {
            Some(index) if index >= candidates.len() => {
                return broken(format!("it picked number {index} of {}", candidates.len()));
            }
            None if !candidates.is_empty() => {
                return broken(format!("it picked none of {candidates:?}"));
            }
            _ => {}
        }
        if other.pick(&candidates, &cx) != picked {
            return broken(format!("two built alike picked differently from {candidates:?} at {cx:?}"));
        }
        if let Some(node) = picked.and_then(|index| candidates.get(index)) {
            observe(&*one, &*other, node.name, &mut numbers);
        }
    }
    Ok(())
}

fn candidate<'a>(name: &'a str, numbers: &mut Numbers) -> Candidate<'a> {
    let span = |numbers: &mut Numbers| {
        (numbers.below(3) > 0).then(|| Duration::from_millis(u64::from(numbers.below(5000))))
    };
    Candidate {
        name,
        in_flight: [numbers.below(5), 0, u32::MAX][numbers.below(3) as usize],
        latency: span(numbers),
        lag: span(numbers),
        weight: [numbers.below(9) + 1, 1, u32::MAX][numbers.below(3) as usize],
        zone: [None, Some("a"), Some("b")][numbers.below(3) as usize],
    }
}

/// Tells both the same.
fn observe(one: &dyn LoadBalancer, other: &dyn LoadBalancer, node: &str, numbers: &mut Numbers) {
    let took = Duration::from_micros(u64::from(numbers.below(1_000_000)));
    let outcome = Outcome { node, took, ok: numbers.below(4) > 0 };
    one.observe(&outcome);
    other.observe(&outcome);
}
