//! How many failures are survived: what is said of it, against what happens when nodes are killed.

use std::sync::Arc;

use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::fake::{Line, eager, node, settings, synchronous};
use super::lab::{Lab, Treat};
use crate::cluster::{Event, OperatorCommand, Survival};
use crate::config::{ClusterSettings, FailoverMode, NoVoter, Priority};
use crate::plugin::{
    Assessment, BuildError, Electable, Evidence, FailoverPolicy, FailoverPolicySpec, Policy,
};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The state of a standby before the primary fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Well,
    Dead,
    /// It streams, and does not answer this proxy.
    Unseen,
    /// It answers, and receives nothing.
    Cut,
    /// It streams from the standby before it, if that one streams.
    Cascaded,
}

#[derive(Debug, Clone)]
struct Recipe {
    nodes: usize,
    synchronous: Option<(u32, NoVoter)>,
    conditions: [Condition; 4],
    never: [bool; 4],
    /// For how long it stays like this before the primary fails.
    millis: u64,
    paused: bool,
    mode: FailoverMode,
    budget: u32,
    limit: Option<u64>,
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let condition = prop_oneof![
        6 => Just(Condition::Well),
        1 => Just(Condition::Dead),
        1 => Just(Condition::Unseen),
        1 => Just(Condition::Cut),
        1 => Just(Condition::Cascaded),
    ];
    let on_no_voter = prop_oneof![Just(NoVoter::Block), Just(NoVoter::Degrade)];
    (
        2..=NAMES.len(),
        prop::option::weighted(0.7, (1..=3_u32, on_no_voter)),
        [condition.clone(), condition.clone(), condition.clone(), condition],
        prop::array::uniform4(prop::bool::weighted(0.2)),
        prop_oneof![Just(5000_u64), Just(40_000)],
        prop::bool::weighted(0.05),
        prop_oneof![19 => Just(FailoverMode::Automatic), 1 => Just(FailoverMode::Manual)],
        prop_oneof![1 => Just(0_u32), 19 => Just(2)],
        prop::option::of(0..250_u64),
    )
        .prop_map(|(nodes, synchronous, conditions, never, millis, paused, mode, budget, limit)| {
            Recipe { nodes, synchronous, conditions, never, millis, paused, mode, budget, limit }
        })
}

fn configuration(recipe: &Recipe) -> ClusterSettings {
    let mut settings = match recipe.synchronous {
        Some((acks, on_no_voter)) => synchronous(acks, on_no_voter),
        None => settings(),
    };
    settings.nodes = NAMES[..recipe.nodes].iter().zip(5001..).map(|(name, port)| node(name, port)).collect();
    for (node, never) in settings.nodes[1..].iter_mut().zip(recipe.never) {
        if never {
            node.priority = Priority::Never;
        }
    }
    settings.failover.mode = recipe.mode;
    settings.failover.budget.0 = recipe.budget;
    settings.failover.max_lag_on_failover = recipe.limit;
    settings
}

/// A cluster in the state of the recipe.
fn prepared(recipe: &Recipe) -> Lab {
    let mut lab = Lab::steady(configuration(recipe));
    if recipe.paused {
        lab.order(OperatorCommand::Pause);
    }
    lab.commit(100);
    let mut upstream = 5001;
    for (standby, condition) in NAMES[1..recipe.nodes].iter().zip(recipe.conditions) {
        let well = !matches!(condition, Condition::Dead | Condition::Cut);
        let before = std::mem::replace(&mut upstream, if well { lab.fake(standby).port } else { 5001 });
        match condition {
            Condition::Well => {}
            Condition::Dead => {
                lab.fake(standby).line = Line::Refused;
                lab.fake(standby).reachable_by_others = false;
            }
            Condition::Unseen => lab.fake(standby).line = Line::Silent,
            Condition::Cut => lab.fake(standby).reachable_by_others = false,
            Condition::Cascaded => {
                let conninfo = format!("host=localhost port={before} user=repl");
                lab.fake(standby).settings.insert("primary_conninfo".to_owned(), conninfo);
            }
        }
    }
    lab.commit(100);
    lab.pass(recipe.millis);
    lab.commit(100);
    lab.pass(2000);
    lab
}

/// Whether writes go on at another node by themselves when the primary and these standbys die at once.
fn goes_on_without(recipe: &Recipe, killed: &[&str]) -> bool {
    let mut lab = prepared(recipe);
    for standby in killed {
        lab.fake(standby).line = Line::Refused;
        lab.fake(standby).reachable_by_others = false;
    }
    lab.kill("a");
    lab.pass(15_000);
    lab.primary().is_some_and(|primary| primary != "a")
}

/// All sets of so many of `names`.
fn sets<'a>(names: &[&'a str], size: usize) -> Vec<Vec<&'a str>> {
    if size == 0 {
        return vec![Vec::new()];
    }
    let Some((first, rest)) = names.split_first() else { return Vec::new() };
    let mut with: Vec<_> = sets(rest, size - 1);
    for set in &mut with {
        set.insert(0, first);
    }
    with.extend(sets(rest, size));
    with
}

fn said(lab: &Lab) -> (usize, bool, Option<usize>) {
    let survival = &lab.view.survival;
    (survival.failures, survival.loses_nothing, survival.standbys_until_commits_wait)
}

#[test]
fn three_nodes_survive_two_failures_without_and_one_with_synchronous_standbys() {
    let lab = Lab::steady(settings());
    assert_eq!(said(&lab), (2, false, None), "{:?}", lab.view.survival);
    let lab = Lab::steady(synchronous(1, NoVoter::Block));
    assert_eq!(said(&lab), (1, true, Some(1)));
    assert_eq!(
        lab.view.survival.reason,
        "should a and one standby fail at once, writes might not go on by themselves: too few synchronous standbys would be \
         left: 2 must answer (ANY 1 of 2), or an acknowledged commit could be missed"
    );
    let lab = Lab::steady(synchronous(1, NoVoter::Degrade));
    assert_eq!(said(&lab), (1, true, None), "commits go on without");
}

#[test]
fn a_standby_that_goes_counts_at_once_and_again_when_the_others_are_enough() {
    let mut lab = Lab::steady(synchronous(1, NoVoter::Degrade));
    lab.fake("b").line = Line::Refused;
    lab.fake("b").reachable_by_others = false;
    lab.pass(2000);
    assert_eq!(said(&lab), (0, true, None), "b may have what nobody else has");
    lab.pass(30_000);
    assert_eq!(said(&lab), (1, true, None), "nobody waits for b any more");
    let mut lab = Lab::steady(synchronous(1, NoVoter::Block));
    lab.fake("b").line = Line::Refused;
    lab.fake("b").reachable_by_others = false;
    lab.pass(30_000);
    assert_eq!(said(&lab), (0, true, Some(0)), "commits on c would have nobody to wait for");
    assert!(lab.view.survival.reason.contains("its first commit would wait"), "{:?}", lab.view.survival);
}

#[test]
fn nothing_is_survived_while_nobody_or_a_person_decides() {
    let lab = Lab::new(settings());
    assert_eq!(said(&lab), (0, false, None));
    let mut lab = Lab::steady(settings());
    lab.order(OperatorCommand::Pause);
    assert!(lab.view.survival.reason.contains("metako is paused"), "{:?}", lab.view.survival);
    lab.order(OperatorCommand::Resume);
    lab.pass(3000);
    assert_eq!(said(&lab).0, 2);
    let mut manual = settings();
    manual.failover.mode = FailoverMode::Manual;
    let mut lab = Lab::steady(manual);
    assert!(lab.view.survival.reason.contains("failover.mode is manual"), "{:?}", lab.view.survival);
    lab.kill("a");
    lab.pass(5000);
    assert_eq!((lab.phase(), said(&lab).0), ("manual_needed", 0));
    assert_eq!(lab.view.survival.reason, "a person has to decide first");
}

#[test]
fn nothing_is_survived_while_the_journal_cannot_be_written() {
    let reload = |lab: &mut Lab| {
        let settings = Arc::new(synchronous(1, NoVoter::Block));
        lab.event(Event::Reconfigured { settings, policy: eager() });
    };
    let mut lab = Lab::steady(settings());
    lab.treat.insert("persist", Treat::Keep);
    reload(&mut lab);
    lab.pass(2000);
    assert_eq!(lab.kept.len(), 1, "a rule is on its way to disk");
    assert!(!lab.view.survival.reason.contains("journal"), "{:?}", lab.view.survival);

    let mut lab = Lab::steady(settings());
    lab.treat.insert("persist", Treat::Fail);
    reload(&mut lab);
    lab.pass(2000);
    assert_eq!(said(&lab).0, 0, "{:?}", lab.view.survival);
    assert!(lab.view.survival.reason.contains("the journal cannot be written"), "{:?}", lab.view.survival);
    lab.treat.clear();
    lab.pass(10_000);
    assert_eq!(said(&lab), (1, true, Some(1)), "{:?}", lab.view.survival);

    let mut lab = Lab::steady(settings());
    lab.treat.insert("persist", Treat::Fail);
    reload(&mut lab);
    lab.pass(2000);
    lab.kill("a");
    lab.pass(20_000);
    assert!(lab.did("promote").is_empty(), "and so it is: {:?}", lab.phase());
}

#[test]
fn a_stream_from_an_address_that_nobody_has_stands_in_the_way() {
    let mut other = settings();
    let mut lab = Lab::steady(other.clone());
    assert_eq!(said(&lab).0, 2);
    // b streams from c, by an address of c that the configuration does not have.
    other.nodes[2].host = "elsewhere".to_owned();
    other.nodes[2].replication.host = "elsewhere".to_owned();
    lab.fake("b").settings.insert("primary_conninfo".to_owned(), "host=localhost port=5003".to_owned());
    lab.settings = Arc::new(other);
    let (settings, policy) = (Arc::clone(&lab.settings), eager());
    lab.event(Event::Reconfigured { settings, policy });
    lab.pass(5000);
    assert_eq!(said(&lab).0, 0);
    assert!(lab.view.survival.reason.contains("b streams from an address that no node has"));
    lab.kill("a");
    lab.pass(15_000);
    assert_eq!((lab.phase(), lab.primary()), ("suspect", Some("a")), "and it does");
}

/// Wants two standbys that bear the failure out.
#[derive(Debug, Serialize, Deserialize)]
struct Careful {}

#[typetag::serde(name = "careful")]
impl FailoverPolicySpec for Careful {
    fn build(&self) -> Result<Box<dyn FailoverPolicy>, BuildError> {
        Ok(Box::new(Self {}))
    }
}

impl FailoverPolicy for Careful {
    fn assess(&self, evidence: &Evidence) -> Assessment {
        match evidence.witnesses.lost {
            0 | 1 => Assessment::Wait { reason: "one witness is none".to_owned(), ask_again_in: None },
            _ => Assessment::FailOver { reason: "two have lost it".to_owned() },
        }
    }

    fn rank(&self, _: &mut [Electable]) {}
}

#[test]
fn a_policy_that_wants_more_is_asked() {
    let mut lab = Lab::steady(settings());
    let (settings, policy) = (Arc::clone(&lab.settings), Policy::build(Arc::new(Careful {})).unwrap());
    lab.event(Event::Reconfigured { settings, policy });
    assert_eq!(said(&lab).0, 1);
    assert!(lab.view.survival.reason.ends_with("failover.policy would wait: one witness is none"));
    lab.fake("c").line = Line::Refused;
    lab.kill("a");
    lab.pass(15_000);
    assert_eq!(lab.phase(), "suspect");
}

#[test]
fn probes_that_find_nothing_new_change_no_view() {
    for settings in [settings(), synchronous(1, NoVoter::Block)] {
        let mut lab = Lab::steady(settings);
        let version = lab.view.version;
        lab.pass(60_000);
        assert_eq!(lab.view.version, version);
    }
}

/// Every set of fewer standbys may die with the primary, and some set of as many may not.
fn check(recipe: &Recipe) -> Survival {
    let survival = prepared(recipe).view.survival.clone();
    let Survival { failures, reason, .. } = &survival;
    let alive: Vec<&str> = NAMES[1..recipe.nodes]
        .iter()
        .zip(recipe.conditions)
        .filter(|(_, condition)| *condition != Condition::Dead)
        .map(|(name, _)| *name)
        .collect();
    if *failures > 0 {
        for set in sets(&alive, failures - 1) {
            assert!(
                goes_on_without(recipe, &set),
                "{failures} failures are said to be survived ({reason}), and not that of a and {set:?}"
            );
        }
    }
    let too_much = sets(&alive, *failures);
    assert!(
        too_much.iter().any(|set| !goes_on_without(recipe, set)),
        "only {failures} failures are said to be survived ({reason}), but a and any of {too_much:?} are"
    );
    survival
}

/// An asynchronous cluster with standbys in these conditions.
fn plain(conditions: &[Condition]) -> Recipe {
    let mut recipe = Recipe {
        nodes: conditions.len() + 1,
        synchronous: None,
        conditions: [Condition::Well; 4],
        never: [false; 4],
        millis: 5000,
        paused: false,
        mode: FailoverMode::Automatic,
        budget: 2,
        limit: None,
    };
    recipe.conditions[..conditions.len()].copy_from_slice(conditions);
    recipe
}

#[test]
fn one_that_is_never_promoted_and_has_the_last_wal_stands_in_the_way() {
    let mut recipe = plain(&[Condition::Cut, Condition::Well]);
    recipe.never[1] = true;
    let survival = check(&recipe);
    assert_eq!(survival.failures, 0);
    assert!(survival.reason.contains("only c, which is never to be promoted"), "{survival:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_said_to_be_survived_is_survived_and_no_more(recipe in recipe()) {
        check(&recipe);
    }
}
