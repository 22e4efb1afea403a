//! Commands on the running proxy that `--config` names.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hyper::Method;
use metako_core::config::{Problems, peek};
use serde_json::Value;

use super::{Exit, written};
use crate::admin::{Answer, ClientError, call};
use crate::check::read_text;
use crate::control::Status;
use crate::env::TokioEnv;
use crate::state_dir;

/// `metako status`
pub(super) async fn status(config: &Path, as_json: bool) -> Exit {
    ask(config, Method::GET, "status", None, |facts| {
        if as_json {
            return Ok(facts.to_string());
        }
        let status: Status = serde_json::from_value(facts.clone()).map_err(|error| error.to_string())?;
        Ok(crate::control::render(&status))
    })
    .await
}

/// `metako reload`
pub(super) async fn reload(config: &Path, as_json: bool) -> Exit {
    ask(config, Method::POST, "reload", None, |facts| {
        if as_json {
            return Ok(facts.to_string());
        }
        let changes = facts.get("changes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let lines: Vec<&str> = changes.iter().filter_map(Value::as_str).collect();
        Ok(if lines.is_empty() { "reloaded: nothing changed".to_owned() } else { lines.join("\n") })
    })
    .await
}

async fn ask(
    config: &Path,
    method: Method,
    command: &str,
    body: Option<&Value>,
    show: impl Fn(&Value) -> Result<String, String>,
) -> Exit {
    let facts = match exchange(config, method, command, body).await {
        Ok(facts) => facts,
        Err(exit) => return exit,
    };
    match show(&facts) {
        Ok(text) => written(writeln!(io::stdout(), "{text}"), Exit::Done),
        Err(problem) => not_understood(&problem),
    }
}

/// The running proxy is of another version, most likely.
pub(super) fn not_understood(problem: &dyn std::fmt::Display) -> Exit {
    eprintln!("metako: the running metako answered what this one does not understand: {problem}");
    Exit::Failed
}

/// Sends a command to the running proxy. An error has been told to the user.
pub(super) async fn exchange(
    config: &Path,
    method: Method,
    command: &str,
    body: Option<&Value>,
) -> Result<Value, Exit> {
    let socket = admin_socket(config).map_err(|problem| {
        eprintln!("{problem}");
        Exit::Usage
    })?;
    match call(&TokioEnv::new(), &socket, method, command, body).await {
        Ok(Answer::Done(facts)) => Ok(facts),
        Ok(Answer::Refused(why)) => {
            eprintln!("metako: {why}");
            Err(Exit::Failed)
        }
        Err(error) => {
            eprintln!("metako: {error}");
            Err(match error {
                ClientError::Unreachable { .. } => Exit::Unreachable,
                ClientError::TimedOut { .. } | ClientError::Garbled { .. } => Exit::Failed,
            })
        }
    }
}

/// Where the proxy with this configuration listens; the rest of the file may be wrong.
fn admin_socket(config: &Path) -> Result<PathBuf, Problems> {
    let (state_dir, socket) = places(config)?;
    Ok(state_dir::admin_socket(socket.as_deref().map(Path::new), &state_dir))
}

/// Where it keeps its state.
pub(super) fn state_dir(config: &Path) -> Result<PathBuf, Problems> {
    Ok(places(config)?.0)
}

fn places(config: &Path) -> Result<(PathBuf, Option<String>), Problems> {
    let text = read_text(config)?;
    let [state_dir, socket] = peek(&config.display().to_string(), &text, ["state_dir", "admin.socket"])?;
    let state_dir = state_dir::locate(state_dir.as_deref().map(Path::new), |name| std::env::var(name).ok());
    Ok((state_dir, socket))
}
