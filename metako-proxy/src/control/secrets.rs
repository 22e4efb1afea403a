//! `auth.query`: secrets of users, asked of a node.

use std::sync::Arc;

use async_trait::async_trait;
use metako_core::NodeName;
use metako_core::cluster::{ClusterView, Health, ObservedRole};
use metako_core::config::{ClusterSettings, Config, Secret};
use parking_lot::Mutex;

use super::connection::{Connection, Row};
use crate::backend::ServerTlsTable;
use crate::env::Env;
use crate::login::{LookupError, SecretLookup};
use crate::shared::ViewCell;

/// Runs `auth.query` as the node's own user: on the primary, or while there is none on a replica that is up. Keeps one
/// connection between questions.
pub struct NodeSecrets<E: Env> {
    env: E,
    view: Arc<ViewCell>,
    tls: ServerTlsTable,
    cluster: Arc<ClusterSettings>,
    query: String,
    kept: Mutex<Option<(NodeName, Connection)>>,
}

impl<E: Env> NodeSecrets<E> {
    /// The look-up of a configuration, if it has one. Nothing is opened yet.
    pub fn of_config(
        env: &E,
        view: &Arc<ViewCell>,
        tls: &ServerTlsTable,
        config: &Config,
    ) -> Option<Arc<dyn SecretLookup>> {
        let query = config.auth.query.clone()?;
        let (env, view, cluster) = (env.clone(), Arc::clone(view), Arc::clone(&config.cluster));
        Some(Arc::new(Self { env, view, tls: tls.clone(), cluster, query, kept: Mutex::new(None) }))
    }

    async fn ask(&self, node: &NodeName, user: &str) -> Result<Option<Secret>, String> {
        let kept = self.kept.lock().take().filter(|(of, connection)| of == node && !connection.is_closed());
        if let Some((_, connection)) = kept
            && let Ok(rows) = connection.rows_for(&self.query, user).await
        {
            self.keep(node, connection);
            return answer(rows, user);
        }
        // A connection that was kept may have broken meanwhile: only a new one tells.
        let config =
            self.cluster.node(node.as_str()).ok_or_else(|| "is not in the configuration".to_owned())?;
        let connection =
            Connection::open(&self.env, config, &self.tls).await.map_err(|error| error.to_string())?;
        let rows = connection.rows_for(&self.query, user).await.map_err(|error| error.to_string())?;
        self.keep(node, connection);
        answer(rows, user)
    }

    fn keep(&self, node: &NodeName, connection: Connection) {
        *self.kept.lock() = Some((node.clone(), connection));
    }
}

/// The primary, else the replicas that are up.
fn nodes(view: &ClusterView) -> Vec<NodeName> {
    if let Some(primary) = view.primary() {
        return vec![primary.clone()];
    }
    let up = view.nodes.iter().filter(|node| {
        node.health == Health::Up && matches!(node.role, ObservedRole::Primary | ObservedRole::Replica)
    });
    up.map(|node| node.name.clone()).collect()
}

/// Reads name and secret.
fn answer(mut rows: Vec<Row>, user: &str) -> Result<Option<Secret>, String> {
    let Some(row) = rows.pop() else { return Ok(None) };
    if !rows.is_empty() {
        return Err("gives more than one row".to_owned());
    }
    match <[Option<String>; 2]>::try_from(row) {
        Ok([Some(name), secret]) if name == user => Ok(secret.map(Secret::new)),
        Ok(_) => Err("gives another name than it was asked for".to_owned()),
        Err(row) => Err(format!("gives {} columns; expected name and secret", row.len())),
    }
}

#[async_trait]
impl<E: Env> SecretLookup for NodeSecrets<E> {
    async fn look_up(&self, user: &str) -> Result<Option<Secret>, LookupError> {
        let mut changes = self.view.subscribe();
        loop {
            let mut failures = Vec::new();
            for node in nodes(&self.view.load()) {
                match self.ask(&node, user).await {
                    Ok(secret) => return Ok(secret),
                    Err(problem) => failures.push(format!("{node}: {problem}")),
                }
            }
            if !failures.is_empty() {
                return Err(LookupError(failures.join("; ")));
            }
            // No node is known to be up yet: whoever asks waits no longer than it wants to.
            if changes.changed().await.is_err() {
                return Err(LookupError("metako ends".to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[Option<&str>]) -> Row {
        columns.iter().map(|column| column.map(str::to_owned)).collect()
    }

    #[test]
    fn an_answer_is_one_name_and_its_secret() {
        assert_eq!(answer(Vec::new(), "a"), Ok(None));
        assert_eq!(answer(vec![row(&[Some("a"), Some("s")])], "a"), Ok(Some(Secret::new("s"))));
        assert_eq!(answer(vec![row(&[Some("a"), None])], "a"), Ok(None));
        for wrong in [
            vec![row(&[Some("b"), Some("s")])],
            vec![row(&[None, Some("s")])],
            vec![row(&[Some("s")])],
            vec![row(&[Some("a"), Some("s"), None])],
            vec![row(&[Some("a"), Some("s")]), row(&[Some("a"), Some("t")])],
        ] {
            assert!(answer(wrong.clone(), "a").is_err(), "{wrong:?}");
        }
    }
}
