//! Commands on the running proxy that `--config` names.

use std::path::Path;

use hyper::Method;
use serde_json::{Value, json};

use super::Exit;
use crate::admin::{Answer, call};
use crate::check::load_file;
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

/// `metako adopt`
pub(super) async fn adopt(config: &Path, node: &str, as_json: bool) -> Exit {
    let body = json!({ "node": node });
    ask(config, Method::POST, "adopt", Some(&body), |facts| {
        if as_json {
            return Ok(facts.to_string());
        }
        Ok(format!("{node} is being adopted as the primary; `metako status` shows when writes are open"))
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
    let loaded = match load_file(config) {
        Ok(loaded) => loaded,
        Err(problems) => {
            eprintln!("{problems}");
            return Exit::Usage;
        }
    };
    let variable = |name: &str| std::env::var(name).ok();
    let state_dir = state_dir::locate(&loaded.config, variable);
    let socket = state_dir::admin_socket(&loaded.config, &state_dir);
    match call(&TokioEnv::new(), &socket, method, command, body).await {
        Ok(Answer::Done(facts)) => match show(&facts) {
            Ok(text) => {
                println!("{text}");
                Exit::Done
            }
            Err(problem) => {
                eprintln!("metako: the running metako answered what this one does not understand: {problem}");
                Exit::Failed
            }
        },
        Ok(Answer::Refused(why)) => {
            eprintln!("metako: {why}");
            Exit::Failed
        }
        Err(error) => {
            eprintln!("metako: {error}");
            Exit::Unreachable
        }
    }
}
