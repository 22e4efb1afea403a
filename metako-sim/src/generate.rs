//! Random scenarios: a seed becomes a list of faults. A pure function, whose result could be written as a file.

use std::time::Duration;

use metako_core::config::HumanDuration;

use crate::chance::{Chance, Purpose};
use crate::scenario::{
    ClusterSpec, End, Expect, Fault, FaultSpec, LinkTimings, Load, Run, Scenario, Span, Target, Timings,
};

/// Which faults may be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Menu {
    /// How many faults at most; at least one.
    pub faults_max: u64,
    /// Whether the proxy itself may be killed.
    pub proxy: bool,
}

/// All faults end by then.
const HEALED: Duration = Duration::from_secs(20);
/// Then the cluster has this long to get well.
const SETTLE: Duration = Duration::from_secs(25);

/// A scenario for a cluster with these nodes: up to `faults_max` faults that all end, and time to get well.
pub fn scenario(seed: u64, nodes: &[&str], menu: Menu) -> Scenario {
    let mut dice = Dice { chance: Chance::new(seed), drawn: 0 };
    let count = dice.between(1, menu.faults_max.max(1));
    let long = dice.between(0, 1) == 1;
    let faults = (0..count).map(|_| fault(&mut dice, nodes, menu, long)).collect();
    let think = [Span::millis(10, 40), Span::millis(50, 200), Span::millis(150, 500)][dice.index(3)];
    Scenario {
        scenario: format!("random-{seed}"),
        about: String::new(),
        seed,
        cluster: cluster(&mut dice, nodes),
        workload: vec![Load { writers: 3, readers: 1, think }],
        run: Run { length: HumanDuration(HEALED + SETTLE) },
        faults,
        expect: Expect::default(),
    }
}

struct Dice {
    chance: Chance,
    drawn: u64,
}

impl Dice {
    /// Each draw has an entity of its own: one draw more or less does not shift the others of its fault.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        self.drawn += 1;
        self.chance.between(Purpose::Scenario, self.drawn, low, high)
    }

    fn index(&mut self, length: u64) -> usize {
        usize::try_from(self.between(0, length.saturating_sub(1))).unwrap_or(0)
    }

    fn node(&mut self, nodes: &[&str]) -> Target {
        let drawn = self.index(nodes.len() as u64 + 2);
        nodes.get(drawn).map_or(Target::Primary, |name| Target::Named((*name).to_owned()))
    }
}

/// Nodes of different speed: on a slow network or disk, standbys are apart when the primary dies.
fn cluster(dice: &mut Dice, nodes: &[&str]) -> ClusterSpec {
    let node_links = [Span::micros(150, 900), Span::millis(1, 8), Span::millis(2, 60)];
    let links = LinkTimings { nodes: node_links[dice.index(3)], ..LinkTimings::default() };
    let timings = nodes.iter().map(|name| {
        let own = Timings {
            fsync: [None, None, Some(Span::millis(2, 40))][dice.index(3)],
            replay_delay: [None, None, Some(Span::millis(20, 400))][dice.index(3)],
            promote: [None, None, Some(Span::millis(1_000, 9_000))][dice.index(3)],
            start: [None, Some(Span::millis(100, 300))][dice.index(2)],
            ..Timings::default()
        };
        ((*name).to_owned(), own)
    });
    ClusterSpec { links, nodes: timings.collect(), ..ClusterSpec::default() }
}

fn fault(dice: &mut Dice, nodes: &[&str], menu: Menu, long: bool) -> FaultSpec {
    let at = Duration::from_millis(dice.between(2_000, 12_000));
    let longest = u64::try_from(HEALED.saturating_sub(at).as_millis()).unwrap_or(0);
    let lasting = if long { dice.between(500, longest) } else { dice.between(20, 3_000) };
    let fault = match dice.between(0, if menu.proxy { 5 } else { 4 }) {
        0 | 1 => Fault::Kill(dice.node(nodes)),
        2 => Fault::Freeze(dice.node(nodes)),
        3 => cut(dice, End::Proxy, nodes),
        4 => {
            let from = End::Node(dice.node(nodes));
            cut(dice, from, nodes)
        }
        _ => Fault::KillProxy,
    };
    FaultSpec { at: HumanDuration(at), lasting: Some(HumanDuration(Duration::from_millis(lasting))), fault }
}

fn cut(dice: &mut Dice, from: End, nodes: &[&str]) -> Fault {
    let to = if dice.between(0, 3) == 0 { End::AllNodes } else { End::Node(dice.node(nodes)) };
    let one_way = dice.between(0, 2) == 0;
    let reverse = one_way && dice.between(0, 1) == 1;
    let (from, to) = if reverse { (to, from) } else { (from, to) };
    Fault::Cut { from, to, one_way }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_scenario_and_all_faults_end() {
        let menu = Menu { faults_max: 3, proxy: true };
        for seed in 0..200 {
            let drawn = scenario(seed, &["a", "b", "c"], menu);
            assert_eq!(drawn, scenario(seed, &["a", "b", "c"], menu));
            for fault in &drawn.faults {
                let end = fault.at.0 + fault.lasting.expect("all faults end").0;
                assert!(end <= HEALED, "{fault:?}");
            }
        }
    }
}
