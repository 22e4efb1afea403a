//! The side of the running proxy.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};

use crate::env::{Env, LocalListener};

/// A request's body may have so many bytes.
const BODY_MAX: usize = 64 * 1024;
/// A request must be there, and its answer taken, in this time.
const EXCHANGE_MAX: Duration = Duration::from_secs(60);
/// So long the accept loop rests after an error that would come back at once (out of file descriptors).
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What the socket offers; implemented by the application.
#[async_trait]
pub trait Admin: Send + Sync {
    /// The state of proxy and cluster, as `metako status --json` prints it.
    fn status(&self) -> Value;
    /// Reads the configuration again and puts it into force, or changes nothing.
    async fn reload(&self) -> Reply;
    /// Takes a node for the primary on the operator's word.
    async fn adopt(&self, node: &str) -> Reply;
}

/// The answer to a command: facts, or a reason why not.
pub type Reply = Result<Value, String>;

/// Serves the socket until the future is dropped. `owner` is the user id that may use it besides root.
pub async fn serve<E: Env>(env: E, mut listener: E::LocalListener, owner: u32, admin: Arc<dyn Admin>) {
    loop {
        match listener.accept().await {
            Ok((stream, uid)) if uid == owner || uid == 0 => {
                let admin = Arc::clone(&admin);
                env.spawn(async move { exchange(stream, admin).await });
            }
            Ok((_, uid)) => tracing::warn!(uid, "admin socket: a process of another user was turned away"),
            Err(error) => {
                tracing::warn!(%error, "admin socket: cannot accept");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn exchange<S>(stream: S, admin: Arc<dyn Admin>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(answer(request, admin.as_ref()).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(EXCHANGE_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(EXCHANGE_MAX, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin socket: exchange failed"),
        Err(_) => tracing::debug!("admin socket: exchange took too long"),
    }
}

async fn answer(request: Request<Incoming>, admin: &dyn Admin) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, BODY_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return refused(StatusCode::BAD_REQUEST, &format!("the request could not be read: {error}"));
        }
    };
    let reply = match (&head.method, head.uri.path()) {
        (&Method::GET, "/status") => Ok(admin.status()),
        (&Method::POST, "/reload") => admin.reload().await,
        (&Method::POST, "/adopt") => match node_of(&body) {
            Ok(node) => admin.adopt(&node).await,
            Err(why) => return refused(StatusCode::BAD_REQUEST, &why),
        },
        (method, path) => return refused(StatusCode::NOT_FOUND, &format!("there is no {method} {path}")),
    };
    match reply {
        Ok(facts) => respond(StatusCode::OK, &facts),
        Err(why) => refused(StatusCode::CONFLICT, &why),
    }
}

fn node_of(body: &[u8]) -> Result<String, String> {
    let body: Value =
        serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
    body.get("node")
        .and_then(Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| "the body names no `node`".to_owned())
}

fn refused(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    respond(status, &json!({ "schema": 1, "error": why }))
}

fn respond(status: StatusCode, facts: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(facts.to_string())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}
