//! The side of a command such as `metako status`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::env::Env;

/// An answer may have so many bytes.
const ANSWER_MAX: usize = 16 * 1024 * 1024;
/// So long a command waits for the running proxy.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the running proxy said.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Done, with facts.
    Done(Value),
    /// Refused or failed, with the reason.
    Refused(String),
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No proxy listens on the socket.
    #[error("no running metako answers on {}: {source}; is it running with this configuration, and as the same user?", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What connecting said.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("metako did not answer on {} within {}s", path.display(), PATIENCE.as_secs())]
    TimedOut {
        /// The socket.
        path: PathBuf,
    },
    /// The answer could not be understood.
    #[error("metako's answer on {} could not be understood: {problem}", path.display())]
    Garbled {
        /// The socket.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

/// Sends one command to the proxy that listens on `socket` and waits, up to a minute, for its answer.
pub async fn call<E: Env>(
    env: &E,
    socket: &Path,
    method: Method,
    command: &str,
    body: Option<&Value>,
) -> Result<Answer, ClientError> {
    let path = socket.to_owned();
    match tokio::time::timeout(PATIENCE, exchange(env, socket, method, command, body)).await {
        Ok(answer) => answer,
        Err(_) => Err(ClientError::TimedOut { path }),
    }
}

async fn exchange<E: Env>(
    env: &E,
    socket: &Path,
    method: Method,
    command: &str,
    body: Option<&Value>,
) -> Result<Answer, ClientError> {
    let path = socket.to_owned();
    let garbled = |problem: String| ClientError::Garbled { path: path.clone(), problem };
    let stream = env
        .connect_local(socket)
        .await
        .map_err(|source| ClientError::Unreachable { path: path.clone(), source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| garbled(error.to_string()))?;
    env.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "admin socket: connection ended");
        }
    });
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(format!("/{command}"))
        .header(hyper::header::HOST, "metako")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| garbled(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| garbled(error.to_string()))?;
    let good = response.status().is_success();
    let bytes = Limited::new(response.into_body(), ANSWER_MAX)
        .collect()
        .await
        .map_err(|error| garbled(error.to_string()))?
        .to_bytes();
    let facts: Value = serde_json::from_slice(&bytes).map_err(|error| garbled(error.to_string()))?;
    if good {
        return Ok(Answer::Done(facts));
    }
    match facts.get("error").and_then(Value::as_str) {
        Some(why) => Ok(Answer::Refused(why.to_owned())),
        None => Err(garbled(format!("a refusal without a reason: {facts}"))),
    }
}
