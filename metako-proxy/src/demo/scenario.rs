//! The scenarios: traffic, something done to the primary, the recovery, and what clients saw of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio_postgres::{Config, NoTls};

use super::outcome::Outcome;
use super::screen::Screen;
use super::traffic::{Seen, TABLE, Traffic};
use super::{DemoError, DemoOptions, Metako, SHOW_EVERY, Scenario};
use crate::playground::{Cluster, Node, PlaygroundError};

/// Traffic before the kill.
const BEFORE: Duration = Duration::from_secs(3);
/// Traffic after the recovery.
const AFTER: Duration = Duration::from_secs(3);
/// How long the first answers to all clients, a replica's replay, and the recovery may take.
const LIMIT: Duration = Duration::from_mins(1);
/// How long a node may take to answer the demo's own questions.
const ASK_LIMIT: Duration = Duration::from_secs(20);

/// Runs traffic, does to the primary what the scenario says, waits for the recovery, and counts.
pub(super) async fn run<M: Metako>(
    options: &DemoOptions,
    scenario: Scenario,
    cluster: &Cluster,
    metako: &M,
    screen: &mut Screen,
) -> Result<Outcome, DemoError> {
    let config = client_config(options, cluster);
    make_table(&config, cluster).await?;
    let traffic = Traffic::start(&config);
    screen.line("\n8 clients write, 4 read, 4 hold an idle session")?;
    if !within(LIMIT, async || traffic.is_flowing()).await {
        screen.line("not every client was answered: going on all the same")?;
    }
    let mut news = News::new(metako);
    watch(BEFORE, metako, screen, &mut news, async || false).await?;

    screen.line(&format!(
        "\n{} after {} acknowledged rows",
        scenario.what(cluster.nodes()[0].name()),
        traffic.acknowledged()
    ))?;
    let hurt = Instant::now();
    news.count_from_now();
    hurt_primary(scenario, cluster, metako).await?;
    let recovered =
        watch(LIMIT, metako, screen, &mut news, async || is_recovered(scenario, cluster, metako).await)
            .await?;
    if recovered {
        if scenario == Scenario::FreezePrimary {
            screen.line(&format!(
                "\n{} goes on (SIGCONT), and takes itself for the primary",
                cluster.nodes()[0].name()
            ))?;
            cluster.nodes()[0].thaw()?;
        }
        screen.line(&format!("\nrecovered; traffic goes on for {AFTER:?}"))?;
        watch(AFTER, metako, screen, &mut news, async || false).await?;
    } else {
        screen.line(&format!("\nnot recovered within {LIMIT:?}"))?;
    }
    let end = Instant::now();
    let seen = traffic.finish().await;
    count(options, scenario, cluster, &seen, hurt, end).await
}

async fn hurt_primary<M: Metako>(scenario: Scenario, cluster: &Cluster, metako: &M) -> Result<(), DemoError> {
    let primary = &cluster.nodes()[0];
    match scenario {
        Scenario::KillPrimary => Ok(primary.kill_9()?),
        Scenario::FreezePrimary => Ok(primary.freeze()?),
        Scenario::Switchover => metako.switchover().await.map_err(DemoError::Switchover),
    }
}

fn client_config(options: &DemoOptions, cluster: &Cluster) -> Config {
    let mut config = Config::new();
    config.host(options.listen.ip().to_string()).port(options.listen.port());
    config.user(Cluster::APP_USER).password(cluster.app_password()).dbname(Cluster::DATABASE);
    config.application_name("metako-demo");
    config
}

/// Makes the table through metako, and waits until every replica has it: the readers' first statements go there.
async fn make_table(config: &Config, cluster: &Cluster) -> Result<(), DemoError> {
    let failed = |source| DemoError::Sql { what: "making the demo's table through metako", source };
    let (client, connection) = config.connect(NoTls).await.map_err(failed)?;
    let connection = tokio::spawn(connection);
    let sql = format!("CREATE TABLE {TABLE} (id bigint PRIMARY KEY, writer bigint NOT NULL)");
    client.simple_query(&sql).await.map_err(failed)?;
    drop(client);
    // How the connection ends is of no interest: the table is made.
    let _ = connection.await;
    for node in cluster.nodes() {
        let there = format!("SELECT to_regclass('{TABLE}') IS NOT NULL");
        let seen = within(LIMIT, async || ask(node, &there).await.is_ok_and(|answer| answer == ["t"])).await;
        if !seen {
            return Err(PlaygroundError::TimedOut {
                what: format!("{}: replay of the new table", node.name()),
                after: LIMIT,
                last: "no such table".to_owned(),
            }
            .into());
        }
    }
    Ok(())
}

/// A new primary takes writes by metako's word, and every node that should stream from it does by its own.
async fn is_recovered<M: Metako>(scenario: Scenario, cluster: &Cluster, metako: &M) -> bool {
    let Some(primary) = metako.status().primary else { return false };
    let Some(node) = cluster.nodes()[1..].iter().find(|node| node.name() == primary.as_str()) else {
        return false;
    };
    streaming(node).await.is_ok_and(|count| count == scenario.replicas(cluster))
}

/// Shows what happens for so long, or until `done`; the answer is whether it was done.
async fn watch<M: Metako>(
    limit: Duration,
    metako: &M,
    screen: &mut Screen,
    news: &mut News,
    mut done: impl AsyncFnMut() -> bool,
) -> Result<bool, DemoError> {
    let deadline = Instant::now() + limit;
    let mut clock = tokio::time::interval(SHOW_EVERY);
    while Instant::now() < deadline {
        clock.tick().await;
        let status = metako.status();
        for line in news.take(&status.decisions) {
            screen.line(&line)?;
        }
        screen.nodes(&status)?;
        if done().await {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The decisions that were not shown yet.
struct News {
    last: u64,
    origin: Option<jiff::Timestamp>,
}

impl News {
    /// Leaves out what was decided so far.
    fn new<M: Metako>(metako: &M) -> Self {
        Self { last: metako.status().decisions.last().map_or(0, |entry| entry.seq), origin: None }
    }

    /// Shows times from now on.
    fn count_from_now(&mut self) {
        self.origin = Some(jiff::Timestamp::now());
    }

    fn take(&mut self, decisions: &[crate::control::Entry]) -> Vec<String> {
        let new: Vec<_> = decisions.iter().filter(|entry| entry.seq > self.last).collect();
        self.last = new.last().map_or(self.last, |entry| entry.seq);
        new.iter().map(|entry| self.line(entry)).collect()
    }

    fn line(&self, entry: &crate::control::Entry) -> String {
        let since = self.origin.zip(entry.at.parse::<jiff::Timestamp>().ok());
        let since = since.map(|(origin, at)| at.duration_since(origin).as_millis());
        let since = since.map_or_else(String::new, |ms| format!("{ms:+6} ms"));
        let node = entry.decision.node.as_ref().map_or("", |node| node.as_str());
        format!("{since:9}  {:?} {node}: {}", entry.decision.kind, entry.decision.reason)
    }
}

/// Compares what clients were told with what the nodes have.
async fn count(
    options: &DemoOptions,
    scenario: Scenario,
    cluster: &Cluster,
    seen: &Seen,
    hurt: Instant,
    end: Instant,
) -> Result<Outcome, DemoError> {
    let before = cluster.nodes()[0].name();
    let primary = final_primary(scenario, cluster).await;
    let table = match primary {
        Some(node) => Some(rows(node).await?),
        None => None,
    };
    let nodes_streaming = match primary {
        Some(node) => streaming(node).await?,
        None => 0,
    };
    let mut errors = seen.writes.errors.kinds.clone();
    for ledger in [&seen.reads, &seen.idle_errors] {
        for (text, count) in &ledger.errors.kinds {
            *errors.entry(text.clone()).or_default() += count;
        }
    }
    let millis = |gap: Duration| u64::try_from(gap.as_millis()).unwrap_or(u64::MAX);
    Ok(Outcome {
        schema: 1,
        scenario: scenario.name(),
        synchronous: options.synchronous,
        promoted: primary.map(Node::name).filter(|name| *name != before).map(str::to_owned),
        write_gap_ms: seen.writes.gap(hurt, end).map(millis),
        read_gap_ms: seen.reads.gap(hurt, end).map(millis),
        client_errors: seen.writes.errors.count + seen.reads.errors.count + seen.idle_errors.errors.count,
        sessions_kept: seen.sessions_kept,
        sessions_total: seen.sessions_total,
        acknowledged_rows: seen.writes.acknowledged.len(),
        acknowledged_rows_lost: table.as_ref().map(|table| seen.writes.lost(table)),
        nodes_streaming,
        nodes_surviving: scenario.replicas(cluster),
        unknown_outcomes: seen.writes.unknown.len(),
        refused_rows_there: table.as_ref().map(|table| seen.writes.refused_but_there(table)),
        idle_sessions_kept: seen.idle_kept,
        idle_sessions_total: seen.idle_total,
        errors,
    })
}

/// The one node that says that it is no standby. Two of them are no primary to be asked; but one that was frozen
/// does not know better.
async fn final_primary(scenario: Scenario, cluster: &Cluster) -> Option<&Node> {
    let mut found = None;
    let thawed = usize::from(scenario == Scenario::FreezePrimary);
    for node in &cluster.nodes()[thawed..] {
        let answer = ask(node, "SELECT pg_is_in_recovery()").await;
        if answer.is_ok_and(|answer| answer == ["f"]) && found.replace(node).is_some() {
            return None;
        }
    }
    found
}

async fn rows(primary: &Node) -> Result<BTreeSet<i64>, DemoError> {
    let ids = ask(primary, &format!("SELECT id FROM {TABLE}")).await?;
    Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
}

async fn streaming(primary: &Node) -> Result<usize, DemoError> {
    let sql = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'";
    Ok(ask(primary, sql).await?.len())
}

/// The first column of all rows, from the node itself, past metako. A node that does not answer is an error too.
async fn ask(node: &Node, sql: &str) -> Result<Vec<String>, DemoError> {
    let failed = |source| DemoError::Sql { what: "asking a node past metako", source };
    let answer = tokio::time::timeout(ASK_LIMIT, async {
        let client = node.connect_to(Cluster::DATABASE).await?;
        client.simple_query(sql).await.map_err(failed)
    });
    let messages = answer.await.unwrap_or_else(|_| {
        Err(DemoError::from(PlaygroundError::TimedOut {
            what: format!("{}: the answer to {sql}", node.name()),
            after: ASK_LIMIT,
            last: "silence".to_owned(),
        }))
    })?;
    Ok(messages
        .iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect())
}

/// Whether `condition` came true in time.
async fn within(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    tokio::time::timeout(limit, async {
        while !condition().await {
            tokio::time::sleep(SHOW_EVERY).await;
        }
    })
    .await
    .is_ok()
}
