//! Commands by which a person changes what the running proxy does with its cluster.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use metako_core::NodeName;
use metako_core::cluster::{DecisionKind, OperatorCommand, Plan};
use serde::Deserialize;
use serde_json::{Value, json};

use super::remote::{exchange, not_understood};
use super::{Exit, written};
use crate::admin::Order;
use crate::control::Entry;

/// How often the running proxy is asked what has come of it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a command may go without a decision while the cluster is at rest: a checkpoint has five minutes.
const SILENCE_MAX: Duration = Duration::from_mins(6);

/// How a command is carried out.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct How {
    /// Say what would happen, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Print facts as JSON; asks nothing.
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Accepted {
    plan: Plan,
    after: u64,
}

#[derive(Deserialize)]
struct Decisions {
    decisions: Vec<Entry>,
}

/// Whether more has to be awaited.
enum Outcome {
    Open,
    Done,
    Failed,
}

/// Has the running proxy do it, and tells what came of it.
pub(super) async fn run(config: &Path, command: OperatorCommand, how: How) -> Exit {
    match carry_out(config, command, how).await {
        Ok(exit) | Err(exit) => exit,
    }
}

async fn carry_out(config: &Path, command: OperatorCommand, how: How) -> Result<Exit, Exit> {
    let asks = needs_consent(&command) && !how.yes && !how.json && !how.dry_run;
    if how.dry_run || asks {
        let (facts, accepted) = order(config, &command, true).await?;
        if how.json {
            return Ok(written(writeln!(io::stdout(), "{facts}"), Exit::Done));
        }
        written(io::stdout().write_all(describe(&accepted.plan).as_bytes()), Exit::Done);
        if how.dry_run {
            return Ok(Exit::Done);
        }
        if !consents()? {
            eprintln!("metako: nothing was done");
            return Ok(Exit::Failed);
        }
    }
    let (facts, accepted) = order(config, &command, false).await?;
    let decisions = follow(config, &command, accepted.after, !how.json).await?;
    let outcome = decisions.last().map(|entry| outcome(&command, entry.decision.kind));
    let done = matches!(outcome, Some(Outcome::Done));
    if how.json {
        let plan = facts.get("plan").cloned().unwrap_or(Value::Null);
        let facts = json!({ "schema": 1, "plan": plan, "done": done, "decisions": decisions });
        written(writeln!(io::stdout(), "{facts}"), Exit::Done);
    }
    if done {
        return Ok(Exit::Done);
    }
    let why = decisions.last().map_or("nothing was decided about it", |entry| &entry.decision.reason);
    eprintln!("metako: not done: {why}");
    Ok(Exit::Failed)
}

async fn order(config: &Path, command: &OperatorCommand, dry_run: bool) -> Result<(Value, Accepted), Exit> {
    let body = json!(Order { command: command.clone(), dry_run });
    let facts = exchange(config, Method::POST, "operate", Some(&body)).await?;
    let accepted = serde_json::from_value(facts.clone()).map_err(|error| not_understood(&error))?;
    Ok((facts, accepted))
}

/// The decisions since, up to the one that tells how it ended.
async fn follow(
    config: &Path,
    command: &OperatorCommand,
    after: u64,
    show: bool,
) -> Result<Vec<Entry>, Exit> {
    let mut all: Vec<Entry> = Vec::new();
    let mut heard = tokio::time::Instant::now();
    loop {
        let last = all.last().map_or(after, |entry| entry.seq);
        let facts = exchange(config, Method::GET, &format!("decisions?after={last}"), None).await?;
        let Decisions { decisions } =
            serde_json::from_value(facts).map_err(|error| not_understood(&error))?;
        for entry in decisions {
            if show {
                written(writeln!(io::stdout(), "{}  {}", entry.at, entry.decision.reason), Exit::Done);
            }
            heard = tokio::time::Instant::now();
            let outcome = outcome(command, entry.decision.kind);
            all.push(entry);
            if !matches!(outcome, Outcome::Open) {
                return Ok(all);
            }
        }
        let rests = || async {
            let facts = exchange(config, Method::GET, "status", None).await?;
            Ok(matches!(facts["phase"].as_str(), Some("steady" | "paused" | "manual_needed")))
        };
        // A step may take as long as the configuration says; but where nothing is under way, nothing will come.
        if heard.elapsed() > SILENCE_MAX && rests().await? {
            eprintln!(
                "metako: nothing was heard of it for {}s; `metako status` shows more",
                SILENCE_MAX.as_secs()
            );
            return Err(Exit::Failed);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn outcome(command: &OperatorCommand, kind: DecisionKind) -> Outcome {
    use DecisionKind::{Aborted, ManualNeeded, Opened, Paused, Resumed, Vetoed};
    let done = match command {
        OperatorCommand::Pause => Paused,
        OperatorCommand::Resume => Resumed,
        OperatorCommand::Switchover { .. } | OperatorCommand::Failover { .. } | OperatorCommand::Adopt(_) => {
            Opened
        }
    };
    match (command, kind) {
        (_, kind) if kind == done => Outcome::Done,
        (_, Aborted | ManualNeeded) => Outcome::Failed,
        // The policy's wishes are refused under the same name, while a failover goes on.
        (OperatorCommand::Pause | OperatorCommand::Resume | OperatorCommand::Adopt(_), Vetoed) => {
            Outcome::Failed
        }
        _ => Outcome::Open,
    }
}

/// Whether a command changes who is primary.
fn needs_consent(command: &OperatorCommand) -> bool {
    matches!(command, OperatorCommand::Switchover { .. } | OperatorCommand::Failover { .. })
}

fn describe(plan: &Plan) -> String {
    let name = |node: &Option<NodeName>| node.as_ref().map_or("none", NodeName::as_str).to_owned();
    let who = plan
        .candidate
        .is_some()
        .then(|| format!("primary now: {}, then: {}\n", name(&plan.primary), name(&plan.candidate)));
    let steps = plan.steps.iter().enumerate().map(|(number, step)| format!("{:>2}. {step}\n", number + 1));
    who.into_iter().chain(steps).collect()
}

fn consents() -> Result<bool, Exit> {
    if !io::stdin().is_terminal() {
        eprintln!("metako: nobody is there to ask: give `--yes` to go on, or `--dry-run` to look");
        return Err(Exit::Usage);
    }
    let failed = |error: io::Error| {
        eprintln!("metako: cannot ask: {error}");
        Exit::Failed
    };
    print!("Go on? [y/N] ");
    io::stdout().flush().map_err(failed)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
