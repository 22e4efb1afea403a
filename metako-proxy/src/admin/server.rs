//! The side of the running proxy.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metako_core::cluster::OperatorCommand;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::env::{Env, LocalListener};
use crate::metrics::Format;

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
    /// The metrics in this form.
    fn metrics(&self, format: Format) -> String;
    /// Reads the configuration again and puts it into force, or changes nothing.
    async fn reload(&self) -> Reply;
    /// Begins what an operator orders, or says what it would do.
    async fn operate(&self, order: Order) -> Reply;
    /// The decisions after the one with this number, as far as they are remembered.
    fn decisions(&self, after: u64) -> Value;
}

/// The body of `POST /operate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What is to be done.
    pub command: OperatorCommand,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// The answer to a command: facts, or a reason why not.
pub type Reply = Result<Value, String>;

/// Serves the socket until the future is dropped. `owner` is the user id that may use it besides root.
pub async fn serve<E: Env>(env: E, mut listener: E::LocalListener, owner: u32, admin: Arc<dyn Admin>) {
    loop {
        match listener.accept().await {
            Ok((stream, uid)) if uid == owner || uid == 0 => {
                let admin = Arc::clone(&admin);
                env.spawn(exchange(env.clone(), stream, admin));
            }
            Ok((_, uid)) => tracing::warn!(uid, "admin socket: a process of another user was turned away"),
            Err(error) => {
                tracing::warn!(%error, "admin socket: cannot accept");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn exchange<E: Env>(env: E, stream: E::LocalStream, admin: Arc<dyn Admin>) {
    let service = service_fn(move |request| {
        let (env, admin) = (env.clone(), Arc::clone(&admin));
        async move { Ok::<_, Infallible>(answer(&env, request, admin).await) }
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

async fn answer<E: Env>(env: &E, request: Request<Incoming>, admin: Arc<dyn Admin>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, BODY_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return refused(StatusCode::BAD_REQUEST, &format!("the request could not be read: {error}"));
        }
    };
    let reply = match (&head.method, head.uri.path()) {
        (&Method::GET, "/status") => Ok(admin.status()),
        (&Method::GET, "/metrics") => {
            let accept = head.headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
            let format = Format::accepted(accept);
            return respond_with(StatusCode::OK, format.content_type(), admin.metrics(format));
        }
        (&Method::POST, "/reload") => to_its_end(env, async move { admin.reload().await }).await,
        (&Method::POST, "/operate") => match serde_json::from_slice(&body) {
            Ok(order) => to_its_end(env, async move { admin.operate(order).await }).await,
            Err(error) => {
                return refused(StatusCode::BAD_REQUEST, &format!("the body is no order: {error}"));
            }
        },
        (&Method::GET, "/decisions") => match head.uri.query().and_then(|query| query.strip_prefix("after="))
        {
            Some(after) => match after.parse() {
                Ok(after) => Ok(admin.decisions(after)),
                Err(_) => return refused(StatusCode::BAD_REQUEST, "`after` is no number"),
            },
            None => Ok(admin.decisions(0)),
        },
        (method, path) => return refused(StatusCode::NOT_FOUND, &format!("there is no {method} {path}")),
    };
    match reply {
        Ok(facts) => respond(StatusCode::OK, &facts),
        Err(why) => refused(StatusCode::CONFLICT, &why),
    }
}

/// Runs a command to its end, also when whoever sent it hangs up: a reload that is dropped between the data plane and the
/// control plane would leave each with another configuration.
async fn to_its_end<E: Env>(env: &E, command: impl Future<Output = Reply> + Send + 'static) -> Reply {
    let (sender, reply) = oneshot::channel();
    env.spawn(async move {
        // Whoever asked may have hung up.
        let _ = sender.send(command.await);
    });
    reply.await.unwrap_or_else(|_| Err("metako panicked over it; its log says more".to_owned()))
}

fn refused(status: StatusCode, why: &str) -> Response<Full<Bytes>> {
    respond(status, &json!({ "schema": 1, "error": why }))
}

fn respond(status: StatusCode, facts: &Value) -> Response<Full<Bytes>> {
    respond_with(status, "application/json", facts.to_string())
}

fn respond_with(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::AsyncWriteExt;
    use tokio::sync::Notify;

    use super::*;
    use crate::env::TokioEnv;

    #[derive(Default)]
    struct Slow {
        begun: Notify,
        go_on: Notify,
        done: Notify,
        panics: AtomicBool,
    }

    #[async_trait]
    impl Admin for Slow {
        fn status(&self) -> Value {
            Value::Null
        }

        fn metrics(&self, _format: Format) -> String {
            String::new()
        }

        async fn reload(&self) -> Reply {
            assert!(!self.panics.load(Ordering::Relaxed), "as it was told to");
            self.begun.notify_one();
            self.go_on.notified().await;
            self.done.notify_one();
            Ok(json!({ "schema": 1 }))
        }

        async fn operate(&self, _order: Order) -> Reply {
            Err("not here".to_owned())
        }

        fn decisions(&self, _after: u64) -> Value {
            Value::Null
        }
    }

    /// What all of this may take, far more than it should.
    const LIMIT: Duration = Duration::from_secs(30);

    async fn served(admin: &Arc<Slow>) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = TokioEnv::new().bind_local(&path).await.unwrap();
        let owner = nix::unistd::geteuid().as_raw();
        tokio::spawn(serve(TokioEnv::new(), listener, owner, Arc::clone(admin) as Arc<dyn Admin>));
        (folder, path)
    }

    #[tokio::test]
    async fn a_command_whose_sender_hangs_up_is_done_all_the_same() {
        let admin = Arc::new(Slow::default());
        let (_folder, path) = served(&admin).await;
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"POST /reload HTTP/1.1\r\nHost: metako\r\n\r\n").await.unwrap();
        tokio::time::timeout(LIMIT, admin.begun.notified()).await.expect("the command begins");
        drop(stream);
        // Another exchange, so that the end of the first connection has been seen.
        let env = TokioEnv::new();
        crate::admin::call(&env, &path, Method::GET, "status", None).await.unwrap();
        admin.go_on.notify_one();
        tokio::time::timeout(LIMIT, admin.done.notified()).await.expect("it goes on to its end");
    }

    #[tokio::test]
    async fn a_command_that_panics_is_answered() {
        let admin = Arc::new(Slow { panics: AtomicBool::new(true), ..Slow::default() });
        let (_folder, path) = served(&admin).await;
        let answer = crate::admin::call(&TokioEnv::new(), &path, Method::POST, "reload", None).await.unwrap();
        let crate::admin::Answer::Refused(why) = answer else { panic!("{answer:?}") };
        assert!(why.contains("panicked"), "{why}");
    }
}
