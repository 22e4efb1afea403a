//! Tests of the whole way from text to configuration, with small strategies of their own. The mistakes that people make
//! have golden files beside the proxy, where the shipped strategies are linked in.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;
use crate::plugin::{
    Assessment, BuildError, Candidate, Class, Classification, Electable, Evidence, FailoverPolicy,
    FailoverPolicySpec, HealthProbe, HealthProbeSpec, LoadBalancer, LoadBalancerSpec, NodeAccess, NodeReport,
    PickCx, ProbeFailure, QueryClassifier, QueryClassifierSpec, Span,
};

/// Takes the first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct First {
    /// How long it sticks to a node.
    stick: Option<HumanDuration>,
    /// A share.
    share: f64,
    /// Nodes to shun.
    shun: Vec<String>,
    /// How.
    manner: Manner,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Manner {
    /// Gently.
    #[default]
    Gentle,
    /// Roughly.
    Rough,
}

impl LoadBalancer for First {
    fn pick(&self, candidates: &[Candidate<'_>], _: &PickCx<'_>) -> Option<usize> {
        (!candidates.is_empty()).then_some(0)
    }
}

#[typetag::serde(name = "round_robin")]
impl LoadBalancerSpec for First {
    fn build(&self) -> Result<Box<dyn LoadBalancer>, BuildError> {
        if self.share > 1.0 {
            return Err(BuildError {
                option: "share",
                problem: "is above 1; expected a share from 0 to 1".to_owned(),
            });
        }
        Ok(Box::new(self.clone()))
    }
}

/// Asks nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Silent {}

#[async_trait::async_trait]
impl HealthProbe for Silent {
    async fn probe(&self, _: &mut dyn NodeAccess) -> Result<NodeReport, ProbeFailure> {
        Err(ProbeFailure::Unsupported("a test".to_owned()))
    }
}

#[typetag::serde(name = "sql")]
impl HealthProbeSpec for Silent {
    fn build(&self) -> Result<Box<dyn HealthProbe>, BuildError> {
        Ok(Box::new(self.clone()))
    }
}

impl FailoverPolicy for Silent {
    fn assess(&self, _: &Evidence) -> Assessment {
        Assessment::Wait { reason: "a test".to_owned(), ask_again_in: None }
    }

    fn rank(&self, _: &mut [Electable]) {}
}

/// Never moves.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Still {}

#[typetag::serde(name = "most_advanced")]
impl FailoverPolicySpec for Still {
    fn build(&self) -> Result<Box<dyn FailoverPolicy>, BuildError> {
        Ok(Box::new(Silent {}))
    }
}

/// Knows nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Ignorant {}

impl QueryClassifier for Ignorant {
    fn classify(&self, _: &[u8]) -> Classification {
        Classification::new(Class::Unknown, "a test", Span::default())
    }
}

#[typetag::serde(name = "keyword")]
impl QueryClassifierSpec for Ignorant {
    fn build(&self) -> Result<Box<dyn QueryClassifier>, BuildError> {
        Ok(Box::new(self.clone()))
    }
}

crate::register_strategy!(LoadBalancer, "round_robin", First);
crate::register_strategy!(HealthProbe, "sql", Silent);
crate::register_strategy!(FailoverPolicy, "most_advanced", Still);
crate::register_strategy!(QueryClassifier, "keyword", Ignorant);

#[derive(Default)]
struct Outside {
    env: BTreeMap<&'static str, &'static str>,
    files: BTreeMap<&'static str, &'static str>,
}

impl SecretSource for Outside {
    fn env(&self, name: &str) -> Option<String> {
        self.env.get(name).map(|text| (*text).to_owned())
    }

    fn file(&self, path: &Path) -> io::Result<String> {
        let text = path.to_str().and_then(|path| self.files.get(path));
        text.map(|text| (*text).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

const PREDECESSOR: &str = r#"nodes:
  - { name: master-1, host: localhost, port: 5432, role: master, username: postgres, password: password, database: myapp }
  - { name: slave-1,  host: localhost, port: 5433, role: slave,  username: postgres, password: password, database: myapp }
health_check: { interval: "30s", timeout: "5s", failure_threshold: 3 }
load_balancer: { algorithm: round_robin, read_timeout: "10s", write_timeout: "10s" }
security: { tls_enabled: true, cert_file: /path/to/cert.pem, key_file: /path/to/key.pem }
"#;

fn loaded(text: &str) -> Loaded {
    load("t.yaml", text, &Outside::default()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Problems without the name of the file.
fn problems(text: &str) -> Vec<String> {
    let problems = load("t.yaml", text, &Outside::default()).expect_err("expected problems");
    problems.list.iter().map(ToString::to_string).collect()
}

fn warnings(text: &str) -> Vec<String> {
    loaded(text).warnings.iter().map(ToString::to_string).collect()
}

/// Two nodes, then what else is given.
fn with(rest: &str) -> String {
    let nodes = "nodes:\n  - { name: a, host: a, username: u, password: p, database: d }\n  \
                 - { name: b, host: b, username: u, password: p, database: d }\n";
    format!("{nodes}{rest}")
}

#[test]
fn the_predecessors_file_loads() {
    let Loaded { config, warnings, .. } = loaded(PREDECESSOR);
    assert!(warnings.is_empty(), "{warnings:?}");
    let cluster = &config.cluster;
    assert_eq!(cluster.nodes[0].role, Some(RoleHint::Primary));
    assert_eq!(cluster.nodes[1].role, Some(RoleHint::Replica));
    assert_eq!(cluster.nodes[1].name.as_str(), "slave-1");
    assert_eq!(cluster.nodes[1].replication.port, 5433);
    assert_eq!(cluster.nodes[1].application_name, "slave-1");
    assert_eq!((cluster.interval, cluster.timeout), (Duration::from_secs(30), Duration::from_secs(5)));
    assert_eq!(config.routing.read_timeout, Some(Duration::from_secs(10)));
    assert_eq!(config.security.tls.as_ref().unwrap().cert, Path::new("/path/to/cert.pem"));
    assert_eq!(config.listen, ["127.0.0.1:6432"]);
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = loaded(&with("")).config;
    let failover = &config.cluster.failover;
    assert_eq!(failover.silent_after, Duration::from_millis(2500));
    assert_eq!(failover.stalled_after, Duration::from_secs(10));
    assert_eq!(failover.start_timeout, Some(Duration::from_secs(300)));
    assert_eq!(failover.max_lag_on_failover, Some(16 << 20));
    assert_eq!((failover.hold_clients, failover.hold_bytes), (10_000, 64 << 20));
    assert_eq!(failover.budget, (2, Duration::from_secs(600)));
    assert_eq!(failover.synchronous, None);
    assert_eq!(config.cluster.max_lag, Some(Duration::from_secs(10)));
    assert_eq!((config.routing.read_timeout, config.routing.write_timeout), (None, None));
    assert_eq!((config.pool.size, config.pool.mode), (20, PoolMode::Transaction));
    assert_eq!(config.limits.message_size, 1 << 30);
    assert_eq!(config.cluster.nodes[0].priority, Priority::Rank(100));
}

#[test]
fn each_kind_of_problem_is_found_and_all_at_once() {
    let text = with(
        "health_chek: {}\npool: { size: many, mode: transction }\nload_balancer:\n  algorithm: { share: x, type: round_robin, \
         colour: red }\n",
    );
    assert_eq!(
        problems(&text),
        [
            "4:1: health_chek: unknown key; did you mean `health_check`?",
            "5:15: pool.size: found `many`; expected a whole number from 1 to 100000",
            "5:27: pool.mode: found `transction`; expected transaction, session or statement; did you mean `transaction`?",
            "7:23: load_balancer.algorithm.share: found `x`; expected a number",
            "7:45: load_balancer.algorithm.colour: unknown key; expected one of stick, share, shun or manner",
        ]
    );
}

#[test]
fn options_of_strategies_are_typed_by_their_schema() {
    let text = with(
        "load_balancer:\n  algorithm: { stick: 2.5s, manner: rough, share: 1, shun: [1, yes], type: round_robin }\n",
    );
    let spec = serde_json::to_value(&*loaded(&text).config.strategies.balancer).unwrap();
    let expected = serde_json::json!({
        "type": "round_robin", "stick": "2.5s", "share": 1.0, "shun": ["1", "yes"], "manner": "rough",
    });
    assert_eq!(spec, expected);
}

#[test]
fn what_a_strategy_finds_impossible_is_named_at_its_option() {
    let text = with("load_balancer: { algorithm: { type: round_robin, share: 2 } }\n");
    assert_eq!(
        problems(&text),
        ["4:57: load_balancer.algorithm.share: is above 1; expected a share from 0 to 1"]
    );
}

#[test]
fn secrets_come_from_three_places_and_are_never_shown() {
    let nodes = "nodes:\n  - { name: a, host: a, username: u, password_env: PW, database: d }\n  \
                 - { name: b, host: b, username: v, password_file: /pw, database: d }\n";
    let outside = Outside { env: [("PW", "tiger")].into(), files: [("/pw", "lion\n")].into() };
    let config = load("t.yaml", nodes, &outside).unwrap().config;
    assert_eq!(config.cluster.nodes[0].password.reveal(), "tiger");
    assert_eq!(config.cluster.nodes[1].password.reveal(), "lion");
    assert!(!format!("{config:?}").contains("tiger"));
    assert_eq!(config.cluster.hooks.withheld, ["PW"]);
    assert_eq!(
        problems(nodes),
        [
            "2:52: nodes[0].password_env: the environment variable `PW` is not set; expected the password in it",
            "3:53: nodes[1].password_file: /pw cannot be read: entity not found",
        ]
    );
    let text = with("users: [{ name: x, password: { tiger: 1 } }]\n");
    assert_eq!(problems(&text), ["4:30: users[0].password: found a section of keys; expected text"]);
}

#[test]
fn a_problem_draws_no_others_after_it() {
    // Neither is the missing name a clash of names, nor the bad interval shorter than the timeout.
    let text = with("health_check: { interval: 5x, timeout: 5s }\n").replace("name: a, ", "");
    assert_eq!(
        problems(&text),
        [
            "2:5: nodes[0].name: is missing",
            "4:27: health_check.interval: found `5x`; expected a number with a unit ms, s, m, h or d, such as 250ms, \
             2.5s or 10m",
        ]
    );
}

#[test]
fn synchronous_has_short_forms() {
    let three = format!("{}  - {{ name: c, host: c, username: u, password: p, database: d }}\n", with(""));
    let rule = |nodes: &str, value: &str| {
        loaded(&format!("{nodes}failover: {{ synchronous: {value} }}\n"))
            .config
            .cluster
            .failover
            .synchronous
            .clone()
    };
    let expected =
        |acks, on_no_voter, commit_guard| Some(Synchronous { acks: Acks(acks), on_no_voter, commit_guard });
    assert_eq!(rule(&three, "none"), None);
    assert_eq!(rule(&three, "any 2"), expected(2, NoVoter::Block, false));
    assert_eq!(rule(&three, "strict"), expected(1, NoVoter::Block, true));
    assert_eq!(rule(&three, "{ acks: 2, commit_guard: false }"), expected(2, NoVoter::Block, false));
    assert_eq!(rule(&with(""), "any 1"), expected(1, NoVoter::Degrade, false));
    assert_eq!(rule(&with(""), "strict"), expected(1, NoVoter::Block, true));
    assert_eq!(rule(&with(""), "{ on_no_voter: block }"), expected(1, NoVoter::Block, true));
}

#[test]
fn the_commit_guard_reports_by_what_is_said_of_unknown_outcomes() {
    let guard = |failover: &str| {
        loaded(&with(&format!("failover: {{ {failover} }}\n"))).config.cluster.failover.commit_guard()
    };
    assert_eq!(guard("synchronous: any 1"), None);
    assert_eq!(guard("unknown_outcome: close"), None);
    assert_eq!(guard("synchronous: strict"), Some(UnknownOutcome::TransactionResolutionUnknown));
    assert_eq!(guard("synchronous: {}, unknown_outcome: close"), Some(UnknownOutcome::Close));
}

#[test]
fn hazards_are_warnings() {
    let one = "nodes: [{ name: a, host: a, username: u, password: p, database: d }]\n";
    assert_eq!(warnings(one), ["1:8: nodes: there is one node: nothing to fail over to"]);
    let text = with("failover: { synchronous: { on_no_voter: block } }\n");
    let [warning] = warnings(&text).try_into().unwrap();
    assert!(warning.starts_with("4:26: failover.synchronous: two nodes that block"), "{warning}");
}

#[test]
fn every_pool_mode_can_be_had() {
    for (word, mode) in [
        ("transaction", PoolMode::Transaction),
        ("session", PoolMode::Session),
        ("statement", PoolMode::Statement),
    ] {
        assert_eq!(loaded(&with(&format!("pool: {{ mode: {word} }}\n"))).config.pool.mode, mode);
    }
}

#[test]
fn reserved_keys_take_only_their_default() {
    loaded(&with("coordination: local\nlimits: { clients_per_user: none }\n"));
    let text = with("coordination: etcd\nlimits: { clients_per_user: 5 }\n");
    assert_eq!(
        problems(&text),
        [
            "4:15: coordination: is not available in this version; leave it out, or write `local`",
            "5:29: limits.clients_per_user: is not available in this version; leave it out, or write `none`",
        ]
    );
}

#[test]
fn hooks_are_commands_with_time_limits() {
    let none = loaded(&with("hooks: { stop: none }\n")).config.cluster;
    assert_eq!((&none.hooks, none.failover.drain_timeout), (&Hooks::default(), Duration::from_secs(10)));
    let text =
        with("hooks: { stop: { command: [/bin/stop, now] }, rejoin: { command: [rejoin], timeout: 5m } }\n")
            .replace("host: a", "host: a, pgdata: /data");
    let cluster = loaded(&text).config.cluster;
    let hook = |command: &[&str], seconds| {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        Some(Hook { command, timeout: Duration::from_secs(seconds) })
    };
    let expected =
        Hooks { stop: hook(&["/bin/stop", "now"], 60), rejoin: hook(&["rejoin"], 300), withheld: Vec::new() };
    assert_eq!(cluster.hooks, expected);
    assert_eq!((cluster.nodes[0].pgdata.as_deref(), &cluster.nodes[1].pgdata), (Some("/data"), &None));
    let shown: Vec<String> =
        changes(&loaded(&with("")).config, &loaded(&text).config).iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "node a: pgdata changes",
            "hooks.stop changes from none to { command: [/bin/stop, now], timeout: 1m }",
            "hooks.rejoin changes from none to { command: [rejoin], timeout: 5m }",
        ]
    );
    let longest = &loaded(&with("hooks: { rejoin: { command: [x] } }\n")).config.cluster.hooks.rejoin;
    assert_eq!(longest, &hook(&["x"], 3600));
}

#[test]
fn later_checks_find_the_place_of_a_key() {
    let loaded = loaded(PREDECESSOR);
    let problem = loaded.places.problem("security.cert_file", "is missing");
    assert_eq!((problem.line, problem.column), (6, 43));
    let problem = loaded.places.problem("security.client_ca_file", "is missing");
    assert_eq!((problem.line, problem.column), (6, 11));
    let shown = loaded.problems(vec![problem]).to_string();
    assert_eq!(shown, "t.yaml:6:11: security.client_ca_file: is missing");
}

#[test]
fn changes_name_what_a_reload_does() {
    let old = loaded(&with("")).config;
    assert_eq!(changes(&old, &loaded(&with("")).config), []);
    let text = with("listen: 0.0.0.0:6432\npool: { size: 5 }\nload_balancer: { algorithm: { type: round_robin, share: 1 } }\n")
        .replace("name: b", "name: c")
        .replace("host: a", "host: z, weight: 2")
        .replace("password: p", "password: q");
    let shown: Vec<String> = changes(&old, &loaded(&text).config).iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "node b is removed and drained",
            "node a: host changes",
            "node a: password changes",
            "node a: weight changes",
            "node a: replication changes",
            "node c is added",
            "load_balancer.algorithm becomes {\"type\":\"round_robin\",\"stick\":null,\"share\":1.0,\"shun\":[],\"manner\":\"gentle\"}",
            "pool.size changes from 20 to 5",
            "listen stays 127.0.0.1:6432: 0.0.0.0:6432 needs a restart",
        ]
    );
}

#[test]
fn what_a_user_does_not_say_of_its_pool_follows_pool() {
    let users =
        "users: [{ name: x, password: p }, { name: y, password: p, pool: { size: 3, mode: session } }]\n";
    let old = loaded(&with(users)).config;
    let new = loaded(&with(&format!("pool: {{ min: 2, idle_timeout: 1m }}\n{users}"))).config;
    let (x, y) = (new.pool_of("x"), new.pool_of("y"));
    assert_eq!((x, new.pool_of("nobody")), (&new.pool, &new.pool));
    assert_eq!((y.size, y.mode, y.min), (3, PoolMode::Session, 2));
    assert_eq!(y.idle_timeout, Duration::from_secs(60));
    let shown: Vec<String> = changes(&old, &new).iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["user y changes", "pool.min changes from 0 to 2", "pool.idle_timeout changes from 10m to 1m"]
    );
}

#[test]
fn changes_of_tls_to_a_node_are_named() {
    let old = loaded(&with("")).config;
    let text = with("")
        .replace("host: a", "host: a, sslmode: verify-full, sslrootcert: system, channel_binding: require");
    let shown: Vec<String> = changes(&old, &loaded(&text).config).iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        ["node a: sslmode changes", "node a: sslrootcert changes", "node a: channel_binding changes"]
    );
}

/// Values that stand for what people write, right and wrong.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        "[a-z]{1,8}",
        "-?[0-9]{1,7}",
        "[0-9]{1,3}(ms|s|m|h|MiB|x)",
        Just("none".to_owned()),
        Just("true".to_owned()),
        Just(String::new()),
        Just("'quoted'".to_owned()),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::vec((key(), inner), 0..3).prop_map(|entries| {
                let entries: Vec<String> =
                    entries.into_iter().map(|(key, value)| format!("{key}: {value}")).collect();
                format!("{{ {} }}", entries.join(", "))
            }),
        ]
    })
}

/// Keys that the file knows, and some that it does not.
fn key() -> impl Strategy<Value = String> {
    let schema = raw::schema();
    let mut known: Vec<String> = vec!["type".to_owned(), "mode".to_owned(), "nonsense".to_owned()];
    let sections = [schema.as_value()].into_iter().chain(
        schema
            .get("$defs")
            .into_iter()
            .flat_map(|defs| defs.as_object().into_iter().flat_map(|defs| defs.values())),
    );
    for section in sections {
        known.extend(section["properties"].as_object().into_iter().flat_map(|keys| keys.keys().cloned()));
    }
    prop::sample::select(known)
}

proptest! {
    #[test]
    fn any_text_is_answered(text in "\\PC*") {
        let _ = load("t.yaml", &text, &Outside::default());
    }

    #[test]
    fn any_values_under_known_keys_are_answered(entries in prop::collection::vec((key(), value()), 0..6)) {
        let lines: Vec<String> = entries.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        let text = lines.concat();
        if let Err(problems) = load("t.yaml", &text, &Outside::default()) {
            prop_assert!(!problems.list.is_empty());
            for problem in &problems.list {
                prop_assert!(!problem.message.starts_with("cannot be read: "), "schema and structs differ: {problem}\n{text}");
            }
        }
    }
}

#[test]
fn single_keys_can_be_read_from_a_file_that_does_not_pass() {
    let text = "state_dir: /var/lib/x\nadmin: { socket: ~ }\nnodez: [1]\n";
    let found = peek("x.yaml", text, ["state_dir", "admin.socket", "nodez", "none"]).unwrap();
    assert_eq!(found, [Some("/var/lib/x".to_owned()), None, None, None]);
    assert!(peek("x.yaml", "a: [", ["a"]).is_err());
    // `load` takes all of these for not given.
    for nothing in ["none", "''", "~", "null", ""] {
        let text = format!("state_dir: {nothing}\nadmin: {{ socket: 'none' }}\n");
        let found = peek("x.yaml", &text, ["state_dir", "admin.socket"]).unwrap();
        assert_eq!(found, [None, Some("none".to_owned())], "{nothing}");
    }
}
