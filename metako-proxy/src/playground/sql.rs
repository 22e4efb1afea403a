//! Questions to a node, past any proxy.

use std::future::Future;
use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// How long a log-in may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Logs in. The connection's own task ends with the client.
pub(super) async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.clone().connect_timeout(CONNECT_TIMEOUT).connect(NoTls).await?;
    tokio::spawn(async move {
        // Whoever waits for an answer gets the same error from the client.
        let _ = connection.await;
    });
    Ok(client)
}

/// The first column of the first row, as text.
pub(super) async fn first_value(client: &Client, sql: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// Runs a future to its end on a thread and runtime of its own, so that it works inside and outside of tokio. Blocks.
pub(super) fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> std::io::Result<T> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(future))
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
