//! Hooks: the commands of the configuration that do on a node's host what SQL cannot.
//!
//! Arguments are the hook's name, the node and its upstream; all else is in the environment. What a command says is
//! logged and, shortened, told to the controller. The conninfo that it is handed is in neither.

use metako_core::cluster::{ActionFailure, ActionOutcome, HookCall, HookKind};
use metako_core::config::{ClusterSettings, Hook, HumanDuration, Secret};

use crate::env::{Env, HookEnding, HookOutput, HookProgram};

/// The exit status that asks to try again later: EX_TEMPFAIL of sysexits.h.
const TRY_AGAIN: i32 = 75;
/// How much of the output is told to the controller, and from there to people.
const TOLD_LINES_MAX: usize = 5;
const TOLD_CHARACTERS_MAX: usize = 600;

/// A call that can be carried out.
#[derive(Debug)]
pub(super) struct Run {
    program: HookProgram,
    call: HookCall,
}

impl Run {
    /// What the configuration has for that call.
    pub(super) fn new(settings: &ClusterSettings, call: HookCall) -> Result<Self, ActionFailure> {
        let hook = match call.kind {
            HookKind::Stop => &settings.hooks.stop,
            HookKind::Rejoin => &settings.hooks.rejoin,
        };
        let name = call.kind.name();
        let hook = hook.as_ref().ok_or_else(|| {
            ActionFailure::Failed(format!("there is no {name} hook in the configuration (hooks.{name})"))
        })?;
        let program = program(settings, hook, &call).map_err(ActionFailure::Failed)?;
        Ok(Self { program, call })
    }

    /// Runs it.
    pub(super) async fn run<E: Env>(self, env: E) -> Result<ActionOutcome, ActionFailure> {
        let Self { program, call } = self;
        let (hook, node, limit) = (call.kind.name(), &call.node, program.limit);
        tracing::info!(hook, %node, command = %program.command[0], "a hook is run");
        let output = env.run_hook(program).await.map_err(|error| {
            tracing::warn!(hook, %node, %error, "a hook cannot be started");
            ActionFailure::Failed(format!("the {hook} hook of {node} cannot be started: {error}"))
        })?;
        let HookOutput { ending, output } = output;
        let output = readable(&output, call.conninfo.as_ref());
        if ending == HookEnding::Exited(0) {
            tracing::info!(hook, %node, %output, "a hook ended well");
            return Ok(ActionOutcome::Done);
        }
        let said = last_lines(&output);
        let said = if said.is_empty() { "without a word".to_owned() } else { format!("and said: {said}") };
        let how = match ending {
            HookEnding::Exited(code) => format!("ended with status {code}"),
            HookEnding::Killed(signal) => format!("was ended by signal {signal}"),
            HookEnding::TimedOut => format!("was ended after {}", HumanDuration(limit)),
            HookEnding::Lost => "was lost sight of".to_owned(),
        };
        tracing::warn!(hook, %node, %output, "a hook {how}");
        Err(match ending {
            HookEnding::Exited(TRY_AGAIN) => {
                ActionFailure::Failed(format!("the {hook} hook of {node} asks to try again later, {said}"))
            }
            _ => ActionFailure::Unknown(format!("the {hook} hook of {node} {how}, {said}")),
        })
    }
}

fn program(settings: &ClusterSettings, hook: &Hook, call: &HookCall) -> Result<HookProgram, String> {
    let find = |name: &metako_core::NodeName| {
        settings.node(name.as_str()).ok_or_else(|| format!("{name} is no longer in the configuration"))
    };
    let node = find(&call.node)?;
    let upstream = call.upstream.as_ref().map(find).transpose()?;
    let upstream_name = upstream.map_or("", |node| node.name.as_str());
    let mut command = hook.command.clone();
    command.extend([call.kind.name(), node.name.as_str(), upstream_name].map(str::to_owned));
    // All of them are always there, so that none of metako's own environment is taken for one.
    let plain = [
        ("METAKO_NODE", node.name.to_string()),
        ("METAKO_HOST", node.host.clone()),
        ("METAKO_PORT", node.port.to_string()),
        ("METAKO_PGDATA", node.pgdata.clone().unwrap_or_default()),
        ("METAKO_UPSTREAM_HOST", upstream.map(|node| node.replication.host.clone()).unwrap_or_default()),
        ("METAKO_UPSTREAM_PORT", upstream.map(|node| node.replication.port.to_string()).unwrap_or_default()),
        ("METAKO_SLOT", call.slot.clone().unwrap_or_default()),
        ("METAKO_EPOCH", call.epoch.to_string()),
        ("METAKO_TIMELINE", call.timeline.to_string()),
    ];
    let conninfo = call.conninfo.clone().unwrap_or_else(|| Secret::new(""));
    let environment = plain
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Secret::new(value)))
        .chain([("METAKO_PRIMARY_CONNINFO".to_owned(), conninfo)])
        .collect();
    Ok(HookProgram { command, environment, withheld: settings.hooks.withheld.clone(), limit: hook.timeout })
}

/// What a hook said, fit to be shown: no control characters, and no secret that it was handed (`sh -x` shows all).
fn readable(output: &str, conninfo: Option<&Secret>) -> String {
    let mut text = output.trim_end().to_owned();
    for secret in conninfo.map(secrets_of).unwrap_or_default() {
        text = text.replace(&secret, "(secret)");
    }
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

/// A conninfo, the password in it as it is written there, and as it is.
fn secrets_of(conninfo: &Secret) -> Vec<String> {
    let whole = conninfo.reveal();
    let mut found = vec![whole.to_owned()];
    if let Some((_, rest)) = whole.split_once("password=") {
        let written = match rest.strip_prefix('\'') {
            Some(quoted) => quoted_text(quoted),
            None => rest.split_ascii_whitespace().next().unwrap_or_default(),
        };
        let mut plain = String::new();
        let mut characters = written.chars();
        while let Some(character) = characters.next() {
            plain.extend(if character == '\\' { characters.next() } else { Some(character) });
        }
        found.extend([written.to_owned(), plain]);
    }
    found.retain(|secret| !secret.is_empty());
    found
}

/// The text up to the quote that ends it.
fn quoted_text(text: &str) -> &str {
    let mut escaped = false;
    let end = text.find(|character| {
        let ends = character == '\'' && !escaped;
        escaped = character == '\\' && !escaped;
        ends
    });
    &text[..end.unwrap_or(text.len())]
}

/// The last lines that are not empty, in one line.
fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let told = lines[lines.len().saturating_sub(TOLD_LINES_MAX)..].join(" / ");
    let more = told.chars().count().saturating_sub(TOLD_CHARACTERS_MAX);
    if more == 0 { told } else { format!("...{}", told.chars().skip(more).collect::<String>()) }
}

#[cfg(test)]
mod tests;
