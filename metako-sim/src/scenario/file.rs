//! The scenario file: read by the parser of metako's configuration, checked, and turned into a [`Scenario`].

use std::collections::BTreeMap;

use metako_core::config::{HumanDuration, Places, Problem, Problems, read};
use schemars::JsonSchema;
use serde::Deserialize;

use super::fault::{Ask, Fault, FaultSpec};
use super::span::Span;
use super::types::{ClusterSpec, Expect, LinkTimings, Load, Run, Scenario, Timings};

/// A scenario file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawScenario {
    /// Its name.
    scenario: String,
    /// What happens and what it shows.
    #[serde(default)]
    about: String,
    /// Seed of all draws.
    #[serde(default)]
    seed: u64,
    /// The PostgreSQL cluster.
    #[serde(default)]
    cluster: RawCluster,
    /// Groups of clients.
    #[serde(default)]
    workload: Vec<RawLoad>,
    /// How long.
    #[serde(default)]
    run: Run,
    /// What goes wrong.
    #[serde(default)]
    faults: Vec<RawFault>,
    /// What must hold.
    #[serde(default)]
    expect: Expect,
}

/// The cluster at the start.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct RawCluster {
    /// The primary.
    primary: Option<String>,
    /// The setting on the primary.
    synchronous_standby_names: Option<String>,
    /// Timings of all nodes.
    defaults: RawTimings,
    /// Timings of single nodes.
    nodes: BTreeMap<String, RawTimings>,
    /// Delays of messages, one way.
    links: RawLinks,
}

/// How fast a node is.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct RawTimings {
    /// Flush of WAL to disk.
    fsync: Option<String>,
    /// Replay on a standby.
    replay_delay: Option<String>,
    /// Promotion.
    promote: Option<String>,
    /// Start and crash recovery.
    start: Option<String>,
    /// The setting.
    wal_retrieve_retry_interval: Option<HumanDuration>,
    /// The setting.
    wal_receiver_timeout: Option<HumanDuration>,
}

/// How long messages take.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct RawLinks {
    /// Between metako and a node.
    metako: Option<String>,
    /// Between two nodes.
    nodes: Option<String>,
}

/// A group of clients.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawLoad {
    /// Clients that write.
    #[serde(default)]
    writers: u32,
    /// Clients that read.
    #[serde(default)]
    readers: u32,
    /// Pause between requests.
    think: Option<String>,
}

/// A fault: a time and one verb.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RawFault {
    /// When it begins.
    at: HumanDuration,
    /// How long it lasts.
    #[serde(rename = "for")]
    lasting: Option<HumanDuration>,
    /// Kill a node, or metako.
    kill: Option<String>,
    /// Start a node.
    start: Option<String>,
    /// Freeze a node.
    freeze: Option<String>,
    /// Let the disk of a node stand still.
    stall: Option<String>,
    /// Crash a server process of a node, which recovers from that until the fault ends.
    recover: Option<String>,
    /// Promote a standby behind metako's back.
    promote: Option<String>,
    /// Cut the way between two ends.
    cut: Option<Vec<String>>,
    /// Whether only the way from the first to the second is cut.
    one_way: Option<bool>,
    /// Ask metako for something, as a person does.
    ask: Option<Ask>,
    /// Which node is to be primary.
    to: Option<String>,
}

impl Scenario {
    /// Reads a scenario file. `file_name` is only shown.
    ///
    /// # Errors
    /// Everything that is wrong, with its place.
    pub fn load(file_name: &str, text: &str) -> Result<Self, Problems> {
        let (raw, places) = read::<RawScenario>(file_name, text)?;
        let mut checks = Checks { places, problems: Vec::new() };
        let scenario = checks.scenario(raw);
        if checks.problems.is_empty() { Ok(scenario) } else { Err(Problems::new(file_name, checks.problems)) }
    }
}

struct Checks {
    places: Places,
    problems: Vec<Problem>,
}

impl Checks {
    fn problem(&mut self, key: &str, message: impl Into<String>) {
        self.problems.push(self.places.problem(key, message));
    }

    fn scenario(&mut self, raw: RawScenario) -> Scenario {
        let faults = raw.faults.into_iter().enumerate();
        let faults =
            faults.filter_map(|(index, fault)| self.fault(&format!("faults[{index}]"), &fault)).collect();
        let loads = raw.workload.into_iter().enumerate();
        let workload = loads.map(|(index, load)| self.load(&format!("workload[{index}]"), &load)).collect();
        Scenario {
            scenario: raw.scenario,
            about: raw.about,
            seed: raw.seed,
            cluster: self.cluster(raw.cluster),
            workload,
            run: raw.run,
            faults,
            expect: raw.expect,
        }
    }

    fn span(&mut self, key: &str, text: Option<&String>) -> Option<Span> {
        match text?.parse() {
            Ok(span) => Some(span),
            Err(problem) => {
                self.problem(key, problem.to_string());
                None
            }
        }
    }

    fn cluster(&mut self, raw: RawCluster) -> ClusterSpec {
        let fallback = LinkTimings::default();
        let nodes = raw.nodes.iter();
        ClusterSpec {
            defaults: self.timings("cluster.defaults", &raw.defaults),
            nodes: nodes
                .map(|(name, own)| (name.clone(), self.timings(&format!("cluster.nodes.{name}"), own)))
                .collect(),
            links: LinkTimings {
                metako: self
                    .span("cluster.links.metako", raw.links.metako.as_ref())
                    .unwrap_or(fallback.metako),
                nodes: self.span("cluster.links.nodes", raw.links.nodes.as_ref()).unwrap_or(fallback.nodes),
            },
            primary: raw.primary,
            synchronous_standby_names: raw.synchronous_standby_names,
        }
    }

    fn timings(&mut self, key: &str, raw: &RawTimings) -> Timings {
        Timings {
            fsync: self.span(&format!("{key}.fsync"), raw.fsync.as_ref()),
            replay_delay: self.span(&format!("{key}.replay_delay"), raw.replay_delay.as_ref()),
            promote: self.span(&format!("{key}.promote"), raw.promote.as_ref()),
            start: self.span(&format!("{key}.start"), raw.start.as_ref()),
            wal_retrieve_retry_interval: raw.wal_retrieve_retry_interval,
            wal_receiver_timeout: raw.wal_receiver_timeout,
        }
    }

    fn load(&mut self, key: &str, raw: &RawLoad) -> Load {
        let think = self.span(&format!("{key}.think"), raw.think.as_ref()).unwrap_or(Load::default().think);
        Load { writers: raw.writers, readers: raw.readers, think }
    }

    fn fault(&mut self, key: &str, raw: &RawFault) -> Option<FaultSpec> {
        let one_way = raw.one_way.unwrap_or(false);
        if raw.one_way.is_some() && raw.cut.is_none() {
            self.problem(&format!("{key}.one_way"), "belongs to `cut`, which is not there");
        }
        if raw.ask.is_some() && raw.lasting.is_some() {
            self.problem(&format!("{key}.for"), "a question does not last; leave this out");
        }
        if raw.to.is_some() && !matches!(raw.ask, Some(Ask::Switchover | Ask::Failover)) {
            self.problem(
                &format!("{key}.to"),
                "belongs to `ask: switchover` or `ask: failover`, which is not there",
            );
        }
        if (raw.start.is_some() || raw.promote.is_some()) && raw.lasting.is_some() {
            self.problem(&format!("{key}.for"), "a start or a promotion does not last; leave this out");
        }
        let mut faults = Vec::new();
        faults.extend(raw.kill.as_deref().map(|name| match name {
            "metako" => Fault::KillProxy,
            name => Fault::Kill(name.into()),
        }));
        faults.extend(raw.start.as_deref().map(|name| Fault::Start(name.into())));
        faults.extend(raw.freeze.as_deref().map(|name| Fault::Freeze(name.into())));
        faults.extend(raw.stall.as_deref().map(|name| Fault::Stall(name.into())));
        faults.extend(raw.recover.as_deref().map(|name| Fault::Recover(name.into())));
        faults.extend(raw.promote.as_deref().map(|name| Fault::Promote(name.into())));
        faults.extend(raw.ask.map(|what| Fault::Ask { what, to: raw.to.as_deref().map(Into::into) }));
        match raw.cut.as_deref() {
            Some([from, to]) => {
                faults.push(Fault::Cut { from: from.as_str().into(), to: to.as_str().into(), one_way });
            }
            Some(ends) => {
                let message = format!("found {} ends; expected two, such as [metako, primary]", ends.len());
                self.problem(&format!("{key}.cut"), message);
                return None;
            }
            None => {}
        }
        match <[Fault; 1]>::try_from(faults) {
            Ok([fault]) => Some(FaultSpec { at: raw.at, lasting: raw.lasting, fault }),
            Err(faults) => {
                let message = format!(
                    "expected one of `kill`, `start`, `freeze`, `stall`, `recover`, `promote`, `cut`, `ask`; found {}",
                    faults.len()
                );
                self.problem(key, message);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{End, Target};

    fn problems(text: &str) -> String {
        Scenario::load("s.yaml", text).expect_err("has problems").to_string()
    }

    #[test]
    fn a_scenario_is_read() {
        let text = "
scenario: x
cluster:
  defaults: { fsync: 1ms..3ms }
  nodes: { pg3: { replay_delay: 200ms } }
workload: [{ writers: 3, think: 10ms }]
run: { for: 20s }
faults:
  - { at: 5s, kill: primary, for: 3s }
  - { at: 6s, cut: [metako, pg3], one_way: true }
  - { at: 7s, ask: switchover, to: pg2 }
  - { at: 8s, ask: pause }
expect: { failovers: 1, acknowledged_lost: { max: 2 }, finally: { primary: [pg2] } }
";
        let scenario = Scenario::load("s.yaml", text).expect("valid");
        assert_eq!(scenario.cluster.defaults.fsync, Some(Span::millis(1, 3)));
        assert_eq!(scenario.cluster.nodes["pg3"].replay_delay, Some(Span::millis(200, 200)));
        assert_eq!(scenario.faults[0].fault, Fault::Kill(Target::Primary));
        let to = End::Node(Target::Named("pg3".to_owned()));
        assert_eq!(scenario.faults[1].fault, Fault::Cut { from: End::Proxy, to, one_way: true });
        let to = Some(Target::Named("pg2".to_owned()));
        assert_eq!(scenario.faults[2].fault, Fault::Ask { what: Ask::Switchover, to });
        assert_eq!(scenario.faults[3].fault, Fault::Ask { what: Ask::Pause, to: None });
        assert!(scenario.expect.acknowledged_lost.is_some_and(|bounds| bounds.admit(2) && !bounds.admit(3)));
    }

    #[test]
    fn all_problems_are_told_with_their_places() {
        let text = "scenario: x
cluster: { defaults: { fsync: 3ms..1ms } }
faults:
  - { at: 5s }
  - { at: 5s, kill: a, freeze: b }
  - { at: 5s, kill: a, one_way: true }
  - { at: 5s, cut: [a] }
  - { at: 5s, start: a, for: 1s }
  - { at: 5s, ask: pause, for: 1s }
  - { at: 5s, ask: resume, to: a }
  - { at: 5s, kill: a, to: b }
";
        assert_eq!(
            problems(text),
            "s.yaml:2:31: cluster.defaults.fsync: expected a duration or two of them, the shorter first, such as 200ms or 1ms..3ms
s.yaml:4:5: faults[0]: expected one of `kill`, `start`, `freeze`, `stall`, `recover`, `promote`, `cut`, `ask`; found 0
s.yaml:5:5: faults[1]: expected one of `kill`, `start`, `freeze`, `stall`, `recover`, `promote`, `cut`, `ask`; found 2
s.yaml:6:33: faults[2].one_way: belongs to `cut`, which is not there
s.yaml:7:20: faults[3].cut: found 1 ends; expected two, such as [metako, primary]
s.yaml:8:30: faults[4].for: a start or a promotion does not last; leave this out
s.yaml:9:32: faults[5].for: a question does not last; leave this out
s.yaml:10:32: faults[6].to: belongs to `ask: switchover` or `ask: failover`, which is not there
s.yaml:11:28: faults[7].to: belongs to `ask: switchover` or `ask: failover`, which is not there"
        );
    }

    #[test]
    fn unknown_keys_get_a_suggestion() {
        let asked = problems("scenario: x\nfaults: [{ at: 1s, ask: switch }]\n");
        assert!(asked.contains("s.yaml:2:25: faults[0].ask:") && asked.contains("switchover"), "{asked}");
        let text = "scenario: x\nfault: []\nworkload: [{ writer: 3 }]\nrun: { for: 20 }\n";
        let problems = problems(text);
        for part in
            ["s.yaml:2:1:", "did you mean `faults`?", "did you mean `writers`?", "s.yaml:4:13: run.for:"]
        {
            assert!(problems.contains(part), "{part}: {problems}");
        }
    }
}
