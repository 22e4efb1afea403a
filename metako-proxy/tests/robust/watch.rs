//! What is true of a server, asked past metako.

use std::sync::atomic::Ordering;
use std::time::Duration;

use metako_proxy::playground::Cluster;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

use crate::bench::{Bench, LIMIT, text};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(2);

/// How many statements run and transactions are open on the server, but for our own.
pub(crate) const AT_WORK: &str = "select count(*) from pg_stat_activity where pid <> pg_backend_pid() \
    and state <> 'idle' and backend_type = 'client backend'";

/// All of a server connection's state that a client can change and another must not see.
pub(crate) const STATE: &str = "select concat_ws('|', current_setting('search_path'), current_setting('work_mem'), \
    current_setting('timezone'), current_setting('application_name'), current_user, pg_my_temp_schema()::text, \
    (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()), \
    (select count(*) from pg_listening_channels()), (select count(*) from pg_cursors), \
    (select count(*) from pg_prepared_statements where name not like 'metako%'))";

/// A connection to the primary, past metako.
pub(crate) async fn watcher(bench: &Bench) -> Client {
    let config = bench.cluster.node("node-1").client_config().dbname(Cluster::DATABASE).clone();
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Asks until the answer is the wanted one.
pub(crate) async fn eventually(client: &Client, what: &str, sql: &str, wanted: &str) {
    let mut last = String::new();
    let asked = timeout(LIMIT, async {
        loop {
            last = text(client, sql).await;
            if last == wanted {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    let ended = asked.await;
    assert!(ended.is_ok(), "{what}: {sql} never gave {wanted}, last {last}");
}

/// Waits until so many server connections are in use.
pub(crate) async fn servers(bench: &Bench, what: &str, wanted: u64) {
    let primary = bench.traffic.node(&"node-1".into());
    let waited = timeout(LIMIT, async {
        while primary.in_use.load(Ordering::Relaxed) != wanted {
            tokio::time::sleep(PAUSE).await;
        }
    });
    let ended = waited.await;
    assert!(
        ended.is_ok(),
        "{what}: {} servers are in use, not {wanted}",
        primary.in_use.load(Ordering::Relaxed)
    );
}

/// Waits until metako counts so many clients.
pub(crate) async fn clients(bench: &Bench, what: &str, wanted: u64) {
    let count = || bench.traffic.clients.load(Ordering::Relaxed);
    let waited = timeout(LIMIT, async {
        while count() != wanted {
            tokio::time::sleep(PAUSE).await;
        }
    });
    let ended = waited.await;
    assert!(ended.is_ok(), "{what}: metako counts {} clients, not {wanted}", count());
}
