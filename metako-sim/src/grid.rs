//! Small sets of faults, one after the other instead of by chance: each fault of a menu at each time of a grid, alone and
//! in pairs.
//!
//! What breaks a failover is mostly one fault at the wrong moment, or a second one while the first is dealt with. There
//! are few enough of those to try them all.

use std::time::Duration;

use metako_core::config::HumanDuration;

use crate::scenario::{
    ClusterSpec, End, Expect, Fault, FaultSpec, Finally, LinkTimings, Load, Run, Scenario, Span, Target,
};

/// When the first fault begins: the cluster is up by then, and a primary is known.
const FIRST: Duration = Duration::from_secs(2);
/// How long after the first fault a second one begins, in milliseconds: while it is looked at, while the old primary is
/// fenced, standbys are frozen, one is promoted and followed, and after all that.
const PAUSES: [u64; 9] = [0, 100, 300, 600, 1_000, 1_800, 3_000, 5_000, 9_000];
/// How long a fault lasts: a short one is over before anything is decided about it, a long one is acted on.
const SHORT: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_secs(6);
/// Longer, for a disk: before that nothing is decided about it.
const LONG_STALL: Duration = Duration::from_secs(14);
/// Time to get well after the last fault. With hooks, a rejoin that failed is tried again after a pause that grows.
const SETTLE: Duration = Duration::from_secs(20);
const SETTLE_WITH_HOOKS: Duration = Duration::from_secs(60);
/// Within so long of the last fault writes go on.
const GOES_ON: Duration = Duration::from_secs(15);
const GOES_ON_WITH_HOOKS: Duration = Duration::from_secs(50);

/// What there is to try on a cluster.
#[derive(Debug, Clone)]
pub struct Grid {
    /// Each kind of fault, and how long it lasts.
    menu: Vec<(Fault, Duration)>,
    rejoins: bool,
}

impl Grid {
    /// The grid for a cluster of one primary and two standbys or more. `standby` names one of the standbys, which are alike;
    /// `rejoins` says whether `hooks.rejoin` is configured.
    pub fn new(standby: &str, rejoins: bool) -> Self {
        let (primary, standby) = (|| Target::Primary, || Target::Named(standby.to_owned()));
        let cut = |from: End, to: End, one_way| Fault::Cut { from, to, one_way };
        let (to_primary, to_standby) = (|| End::Node(primary()), || End::Node(standby()));
        let kinds = [
            Fault::Kill(primary()),
            Fault::Kill(standby()),
            Fault::Freeze(primary()),
            Fault::Freeze(standby()),
            Fault::Stall(standby()),
            cut(End::Proxy, to_primary(), false),
            cut(End::Proxy, to_primary(), true),
            cut(to_primary(), End::Proxy, true),
            cut(End::Proxy, to_standby(), false),
            cut(End::Proxy, End::AllNodes, false),
            cut(to_primary(), to_standby(), false),
            cut(to_primary(), to_standby(), true),
            cut(to_standby(), to_primary(), true),
            cut(to_primary(), End::AllNodes, false),
            Fault::KillProxy,
        ];
        let lengths = |fault: Fault| [(fault.clone(), SHORT), (fault, LONG)];
        let mut menu: Vec<_> = kinds.into_iter().flat_map(lengths).collect();
        menu.extend([(Fault::Stall(primary()), SHORT), (Fault::Stall(primary()), LONG_STALL)]);
        Self { menu, rejoins }
    }

    /// Every fault alone, at each time of the grid.
    pub fn singles(&self) -> impl Iterator<Item = Scenario> {
        self.menu.iter().flat_map(move |fault| {
            PAUSES.iter().map(move |pause| {
                // Not in step with the health checks: each time meets another moment between two of them.
                let at = FIRST + Duration::from_millis(pause / 9 + pause % 1_000);
                self.scenario(vec![spec(fault, at)])
            })
        })
    }

    /// How many pairs there are.
    pub fn pairs(&self) -> usize {
        self.menu.len() * self.menu.len() * PAUSES.len()
    }

    /// A pair by its number, below [`Grid::pairs`].
    pub fn pair(&self, number: usize) -> Option<Scenario> {
        let (rest, pause) = (number / PAUSES.len(), PAUSES.get(number % PAUSES.len())?);
        let first = self.menu.get(rest / self.menu.len())?;
        let second = self.menu.get(rest % self.menu.len())?;
        let later = FIRST + Duration::from_millis(*pause);
        Some(self.scenario(vec![spec(first, FIRST), spec(second, later)]))
    }

    fn scenario(&self, faults: Vec<FaultSpec>) -> Scenario {
        let over = |fault: &FaultSpec| fault.at.0 + fault.lasting.map_or(Duration::ZERO, |lasting| lasting.0);
        let healed = faults.iter().map(over).max().unwrap_or_default();
        let (settle, goes_on) =
            if self.rejoins { (SETTLE_WITH_HOOKS, GOES_ON_WITH_HOOKS) } else { (SETTLE, GOES_ON) };
        Scenario {
            scenario: "grid".to_owned(),
            about: String::new(),
            seed: 0,
            // Slow enough that standbys are apart when the primary dies.
            cluster: ClusterSpec {
                links: LinkTimings { nodes: Span::millis(1, 8), ..LinkTimings::default() },
                ..ClusterSpec::default()
            },
            workload: vec![Load { writers: 2, readers: 1, think: Span::millis(100, 300) }],
            run: Run { length: HumanDuration(healed + settle) },
            faults,
            expect: Expect {
                writes_go_on_within: Some(HumanDuration(goes_on)),
                finally: Finally { in_place: true, ..Finally::default() },
                ..Expect::default()
            },
        }
    }
}

fn spec((fault, lasting): &(Fault, Duration), at: Duration) -> FaultSpec {
    FaultSpec { at: HumanDuration(at), lasting: Some(HumanDuration(*lasting)), fault: fault.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_has_a_number_and_no_two_are_equal() {
        let grid = Grid::new("b", false);
        let faults: Vec<_> = (0..grid.pairs()).filter_map(|number| grid.pair(number)).collect();
        assert_eq!(faults.len(), grid.pairs());
        assert_eq!(grid.pair(grid.pairs()), None);
        let distinct: std::collections::BTreeSet<String> =
            faults.iter().map(|scenario| format!("{:?}", scenario.faults)).collect();
        assert_eq!(distinct.len(), faults.len());
        assert_eq!(grid.singles().count(), grid.menu.len() * PAUSES.len());
    }

    #[test]
    fn each_scenario_has_time_to_get_well() {
        for rejoins in [false, true] {
            let grid = Grid::new("b", rejoins);
            for scenario in grid.singles().chain((0..grid.pairs()).filter_map(|number| grid.pair(number))) {
                let within = scenario.expect.writes_go_on_within.map(|within| within.0);
                for fault in &scenario.faults {
                    let over = fault.at.0 + fault.lasting.map(|lasting| lasting.0).unwrap_or_default();
                    assert!(within.is_some_and(|within| over + within < scenario.run.length.0));
                }
            }
        }
    }
}
