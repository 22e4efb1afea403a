//! `metako strategies`

use std::io::{self, Write};

use metako_core::plugin::{self, Kind, StrategyInfo};
use serde::Serialize;
use serde_json::Value;

use super::{Exit, written};

/// How wide the docs of a strategy are set, in characters.
const WIDTH: usize = 100;

/// Lists the strategies that are linked in: kind, name, options with defaults and docs, crate. With `json` as one
/// object.
pub(super) fn strategies(json: bool) -> Exit {
    let out = &mut io::stdout().lock();
    let all: Vec<Described> = plugin::strategies().into_iter().map(Described::of).collect();
    written(if json { write_json(&all, out) } else { write_text(&all, out) }, Exit::Done)
}

/// A strategy as it is shown.
#[derive(Debug, Serialize)]
struct Described {
    kind: Kind,
    name: &'static str,
    #[serde(rename = "crate")]
    crate_name: &'static str,
    about: String,
    options: Vec<OptionDescribed>,
}

#[derive(Debug, Serialize)]
struct OptionDescribed {
    name: String,
    default: Value,
    about: String,
    /// The JSON schema of the option.
    accepts: Value,
}

impl Described {
    fn of(info: &StrategyInfo) -> Self {
        let (schema, defaults) = (info.schema(), info.defaults());
        let properties = schema.get("properties").and_then(Value::as_object);
        let options = properties.into_iter().flatten().map(|(name, property)| OptionDescribed {
            name: name.clone(),
            default: defaults.get(name).cloned().unwrap_or(Value::Null),
            about: one_line(property["description"].as_str().unwrap_or_default()),
            accepts: property.clone(),
        });
        Self {
            kind: info.kind,
            name: info.name,
            crate_name: info.crate_name,
            about: one_line(&info.about()),
            options: options.collect(),
        }
    }
}

/// A doc comment without the line breaks of its source.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn write_json(all: &[Described], out: &mut dyn Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Listing<'a> {
        schema: u32,
        strategies: &'a [Described],
    }
    serde_json::to_writer_pretty(&mut *out, &Listing { schema: 1, strategies: all })?;
    writeln!(out)
}

fn write_text(all: &[Described], out: &mut dyn Write) -> io::Result<()> {
    for (index, kind) in Kind::ALL.into_iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        writeln!(out, "{kind}  (`{}:`)", key(kind))?;
        for strategy in all.iter().filter(|strategy| strategy.kind == kind) {
            writeln!(out, "\n  {}  ({})", strategy.name, strategy.crate_name)?;
            write_wrapped(out, &strategy.about, 4)?;
            for option in &strategy.options {
                writeln!(out, "      {}: {}", option.name, default(&option.default))?;
                write_wrapped(out, &option.about, 10)?;
            }
        }
    }
    Ok(())
}

/// Where the configuration names a strategy of that kind.
const fn key(kind: Kind) -> &'static str {
    match kind {
        Kind::FailoverPolicy => "failover.policy",
        Kind::HealthProbe => "health_check.probe",
        Kind::LoadBalancer => "load_balancer.algorithm",
        Kind::QueryClassifier => "classifier",
    }
}

/// A default as the YAML would have it.
fn default(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn write_wrapped(out: &mut dyn Write, text: &str, indent: usize) -> io::Result<()> {
    let mut line = String::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !line.is_empty() && indent + line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(out, "{:indent$}{line}", "")?;
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if line.is_empty() { Ok(()) } else { writeln!(out, "{:indent$}{line}", "") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Described> {
        plugin::strategies().into_iter().map(Described::of).collect()
    }

    #[test]
    fn the_stock_strategies_are_listed_with_options_and_docs() {
        let mut text = Vec::new();
        write_text(&all(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for part in [
            "load_balancer  (`load_balancer.algorithm:`)",
            "\n  round_robin  (metako-strategies)\n",
            "      write: true\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }

    #[test]
    fn json_tells_the_same() {
        let mut text = Vec::new();
        write_json(&all(), &mut text).unwrap();
        let value: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["schema"], 1);
        let strategies = value["strategies"].as_array().unwrap();
        let sql = strategies.iter().find(|strategy| strategy["name"] == "sql").unwrap();
        assert_eq!((&sql["kind"], &sql["crate"]), (&"health_probe".into(), &"metako-strategies".into()));
        assert_eq!(
            (&sql["options"][0]["name"], &sql["options"][0]["default"]),
            (&"write".into(), &true.into())
        );
        assert!(
            strategies.iter().all(|strategy| !strategy["about"].as_str().unwrap().is_empty()),
            "{value:#}"
        );
    }

    #[test]
    fn long_docs_are_wrapped() {
        let mut text = Vec::new();
        write_wrapped(&mut text, &"word ".repeat(50), 4).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.lines().count() > 2
                && text.lines().all(|line| line.starts_with("    word") && line.len() <= WIDTH)
        );
    }
}
