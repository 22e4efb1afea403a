//! What is registered is what the handbook promises, and can be used as the YAML uses it.

use metako_core::plugin::{
    FailoverPolicySpec, HealthProbeSpec, Kind, LoadBalancerSpec, QueryClassifierSpec, StrategyInfo,
    strategies, verify,
};
use metako_strategies as _;
use serde_json::{Value, json};

#[test]
fn every_kind_is_filled_and_no_name_is_taken_twice() {
    assert_eq!(verify(), Ok(()));
}

#[test]
fn the_stock_is_complete() {
    let names: Vec<_> = strategies().into_iter().map(|info| (info.kind.name(), info.name)).collect();
    let expected = [
        ("failover_policy", "most_advanced"),
        ("health_probe", "sql"),
        ("load_balancer", "least_connected"),
        ("load_balancer", "random"),
        ("load_balancer", "round_robin"),
        ("load_balancer", "weighted"),
        ("query_classifier", "keyword"),
    ];
    assert_eq!(names, expected);
}

/// Reads options as the configuration does, builds the strategy, and gives the options back as they were understood.
fn read_and_build(info: &StrategyInfo, options: Value) -> Result<Value, String> {
    macro_rules! through {
        ($spec:ident) => {{
            let spec: Box<dyn $spec> = serde_json::from_value(options).map_err(|e| e.to_string())?;
            spec.build().map_err(|e| e.to_string())?;
            serde_json::to_value(spec).map_err(|e| e.to_string())
        }};
    }
    match info.kind {
        Kind::FailoverPolicy => through!(FailoverPolicySpec),
        Kind::HealthProbe => through!(HealthProbeSpec),
        Kind::LoadBalancer => through!(LoadBalancerSpec),
        Kind::QueryClassifier => through!(QueryClassifierSpec),
    }
}

fn with_type(info: &StrategyInfo, mut options: Value) -> Value {
    options["type"] = json!(info.name);
    options
}

#[test]
fn every_strategy_is_read_from_its_name_alone_and_from_its_printed_defaults() {
    for info in strategies() {
        let defaults = with_type(info, info.defaults());
        for given in [json!({ "type": info.name }), defaults.clone()] {
            assert_eq!(read_and_build(info, given), Ok(defaults.clone()), "{}", info.name);
        }
    }
}

#[test]
fn every_strategy_refuses_an_option_it_does_not_have() {
    for info in strategies() {
        let wrong = with_type(info, json!({ "no_such_option": 1 }));
        let problem = read_and_build(info, wrong).expect_err(info.name);
        assert!(problem.contains("no_such_option"), "{}: {problem}", info.name);
    }
}

#[test]
fn every_strategy_and_every_option_is_documented() {
    for info in strategies() {
        assert!(info.about().len() > 20, "{} does not say what it does", info.name);
        assert_eq!(info.crate_name, "metako-strategies");
        let schema = info.schema();
        let documented: Vec<_> =
            schema.get("properties").and_then(Value::as_object).into_iter().flatten().collect();
        let defaults = info.defaults();
        assert_eq!(documented.len(), defaults.as_object().map_or(0, serde_json::Map::len), "{}", info.name);
        for (option, schema) in documented {
            assert!(schema.get("description").is_some(), "{}: option {option} has no docs", info.name);
        }
    }
}
