//! Random scenarios: a seed becomes a list of faults. A pure function, whose result could be written as a file.

use std::time::Duration;

use metako_core::config::HumanDuration;

use crate::chance::{Chance, Purpose};
use crate::scenario::{
    Ask, ClusterSpec, End, Expect, Fault, FaultSpec, LinkTimings, Load, Run, Scenario, Span, Target, Timings,
};

/// Which faults may be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Menu {
    /// How many faults at most; at least one, unless a person asks for something.
    pub faults_max: u64,
    /// Whether the proxy itself may be killed.
    pub proxy: bool,
    /// Whether a person asks for something: a switchover, a failover, a pause and its end.
    pub operator: bool,
    /// Whether somebody else promotes a node, soon after the first fault.
    pub manager: bool,
}

/// All faults end by then.
const HEALED: Duration = Duration::from_secs(20);
/// Then the cluster has this long to get well.
const SETTLE: Duration = Duration::from_secs(25);
/// Or this long, where nodes are rejoined: a rejoin that failed is tried again after a pause that grows.
const SETTLE_WITH_HOOKS: Duration = Duration::from_secs(100);

/// A scenario for a cluster with these nodes: up to `faults_max` faults that all end, and time to get well. With an operator
/// one or two questions come among the faults, often close to one.
pub fn scenario(seed: u64, nodes: &[&str], menu: Menu) -> Scenario {
    let mut dice = Dice { purpose: Purpose::Scenario, chance: Chance::new(seed), drawn: 0 };
    let most = if menu.operator { menu.faults_max } else { menu.faults_max.max(1) };
    let count = dice.between(most.min(1), most);
    let long = dice.between(0, 1) == 1;
    let mut faults: Vec<FaultSpec> = (0..count).map(|_| fault(&mut dice, nodes, menu, long)).collect();
    let think = [Span::millis(10, 40), Span::millis(50, 200), Span::millis(150, 500)][dice.index(3)];
    let cluster = cluster(&mut dice, nodes);
    if menu.operator {
        faults.extend(questions(seed, nodes, &faults));
    }
    if menu.manager {
        faults.extend(promotion(seed, nodes, &faults));
    }
    let settle = if menu.operator { SETTLE_WITH_HOOKS } else { SETTLE };
    Scenario {
        scenario: format!("random-{seed}"),
        about: String::new(),
        seed,
        cluster,
        workload: vec![Load { writers: 3, readers: 1, think }],
        run: Run { length: HumanDuration(HEALED + settle) },
        faults,
        expect: Expect::default(),
    }
}

/// The same scenario, and the disk of a node stands still for a while as well: the primary's, often, and long enough to be
/// replaced, often. Shifts no other fault.
pub fn with_stall(scenario: Scenario, nodes: &[&str]) -> Scenario {
    with_one_more(scenario, nodes, Purpose::Stall, Fault::Stall)
}

/// The same scenario, and a node recovers for a while as well: the primary, often. Shifts no other fault.
pub fn with_recovery(scenario: Scenario, nodes: &[&str]) -> Scenario {
    with_one_more(scenario, nodes, Purpose::Recover, Fault::Recover)
}

fn with_one_more(
    mut scenario: Scenario,
    nodes: &[&str],
    purpose: Purpose,
    fault: fn(Target) -> Fault,
) -> Scenario {
    let mut dice = Dice { purpose, chance: Chance::new(scenario.seed), drawn: 0 };
    let at = Duration::from_millis(dice.between(2_000, 6_000));
    let longest = u64::try_from(HEALED.saturating_sub(at).as_millis()).unwrap_or(0);
    let lasting =
        if dice.between(0, 2) == 0 { dice.between(200, 9_000) } else { dice.between(9_000, longest) };
    let target = if dice.between(0, 1) == 0 { Target::Primary } else { dice.node(nodes) };
    scenario.faults.push(FaultSpec {
        at: HumanDuration(at),
        lasting: Some(HumanDuration(Duration::from_millis(lasting))),
        fault: fault(target),
    });
    scenario
}

struct Dice {
    purpose: Purpose,
    chance: Chance,
    drawn: u64,
}

impl Dice {
    /// Each draw has an entity of its own: one draw more or less does not shift the others of its fault.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        self.drawn += 1;
        self.chance.between(self.purpose, self.drawn, low, high)
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

/// What a person asks for: their draws are not those of the faults.
fn questions(seed: u64, nodes: &[&str], faults: &[FaultSpec]) -> Vec<FaultSpec> {
    let mut dice = Dice { purpose: Purpose::Ask, chance: Chance::new(seed), drawn: 0 };
    let mut asked = Vec::new();
    for _ in 0..dice.between(1, 2) {
        let at = match faults.first() {
            // What is asked for just before a fault meets it half done.
            Some(fault) if dice.between(0, 2) > 0 => {
                let before = Duration::from_millis(dice.between(0, 1_500));
                fault.at.0.saturating_sub(before) + Duration::from_millis(dice.between(0, 300))
            }
            _ => Duration::from_millis(dice.between(2_000, 14_000)),
        };
        let to = (dice.between(0, 1) == 1).then(|| dice.node(nodes));
        let paused = Duration::from_millis(dice.between(200, 5_000));
        let mut ask = |at, what, to| {
            asked.push(FaultSpec { at: HumanDuration(at), lasting: None, fault: Fault::Ask { what, to } });
        };
        match dice.between(0, 9) {
            0 => ask(at, Ask::Failover, to),
            1 | 2 => {
                ask(at, Ask::Pause, None);
                ask(at + paused, Ask::Resume, None);
            }
            _ => ask(at, Ask::Switchover, to),
        }
    }
    asked
}

/// Whom somebody else promotes, and when: their draws are not those of the faults.
fn promotion(seed: u64, nodes: &[&str], faults: &[FaultSpec]) -> Option<FaultSpec> {
    let mut dice = Dice { purpose: Purpose::Manager, chance: Chance::new(seed), drawn: 0 };
    let first = faults.first()?;
    let at = first.at.0 + Duration::from_millis(dice.between(0, 5_000));
    let target = Target::Named((*nodes.get(dice.index(nodes.len() as u64))?).to_owned());
    Some(FaultSpec { at: HumanDuration(at), lasting: None, fault: Fault::Promote(target) })
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
        let menu = Menu { faults_max: 3, proxy: true, operator: true, manager: false };
        for seed in 0..200 {
            let drawn = scenario(seed, &["a", "b", "c"], menu);
            assert_eq!(drawn, scenario(seed, &["a", "b", "c"], menu));
            for fault in &drawn.faults {
                let asked = matches!(fault.fault, Fault::Ask { .. });
                assert_eq!(fault.lasting.is_none(), asked, "all faults end");
                let end = fault.at.0 + fault.lasting.map_or(Duration::ZERO, |lasting| lasting.0);
                assert!(end <= HEALED, "{fault:?}");
            }
        }
    }

    #[test]
    fn an_operator_shifts_no_fault() {
        for seed in 0..200 {
            let draw = |operator| {
                let menu = Menu { faults_max: 1, proxy: true, operator, manager: false };
                scenario(seed, &["a", "b", "c"], menu)
            };
            let (without, with) = (draw(false), draw(true));
            assert_eq!(without.cluster, with.cluster);
            let fault = with.faults.iter().find(|fault| fault.lasting.is_some());
            assert_eq!(fault, without.faults.first());
            assert!(with.faults.iter().any(|fault| fault.lasting.is_none()));
        }
    }
}
