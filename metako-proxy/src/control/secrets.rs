//! What log-ins ask of a node: secrets of users (`auth.query`), and the roles that they are members of.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use metako_core::NodeName;
use metako_core::cluster::{ClusterView, Health, ObservedRole};
use metako_core::config::{ClusterSettings, Config, Secret};
use parking_lot::Mutex;

use super::connection::{Connection, Row};
use crate::backend::ServerTlsTable;
use crate::env::Env;
use crate::login::{EnvHostNames, LookupError, RoleLookup, SecretLookup, Sources};
use crate::shared::ViewCell;

/// The roles that a user is a member of. Superusers are members of none but their own and those that were granted to them:
/// that is what rules of log-in mean, and not what `pg_has_role` says.
const ROLES: &str = "WITH RECURSIVE granted (oid) AS (
    SELECT oid FROM pg_catalog.pg_roles WHERE rolname = $1
    UNION
    SELECT member.roleid FROM pg_catalog.pg_auth_members AS member JOIN granted ON member.member = granted.oid)
SELECT role.rolname FROM granted JOIN pg_catalog.pg_roles AS role USING (oid)";

/// What log-ins by a configuration can ask for. Nothing is opened yet.
pub(crate) fn sources<E: Env>(
    env: &E,
    view: &Arc<ViewCell>,
    tls: &ServerTlsTable,
    config: &Config,
) -> Sources {
    let nodes = Arc::new(Nodes {
        env: env.clone(),
        view: Arc::clone(view),
        tls: tls.clone(),
        cluster: Arc::clone(&config.cluster),
        kept: Mutex::new(None),
    });
    let secrets = config.auth.query.clone().map(|query| {
        let secrets = NodeSecrets { nodes: Arc::clone(&nodes), query };
        Arc::new(secrets) as Arc<dyn SecretLookup>
    });
    Sources {
        secrets,
        roles: Some(Arc::new(NodeRoles(nodes))),
        hosts: Some(Arc::new(EnvHostNames(env.clone()))),
    }
}

/// Runs questions as the node's own user: on the primary, or while there is none on a replica that is up. Keeps one
/// connection between questions.
struct Nodes<E: Env> {
    env: E,
    view: Arc<ViewCell>,
    tls: ServerTlsTable,
    cluster: Arc<ClusterSettings>,
    kept: Mutex<Option<(NodeName, Connection)>>,
}

struct NodeSecrets<E: Env> {
    nodes: Arc<Nodes<E>>,
    query: String,
}

struct NodeRoles<E: Env>(Arc<Nodes<E>>);

impl<E: Env> Nodes<E> {
    async fn ask(&self, node: &NodeName, query: &str, user: &str) -> Result<Vec<Row>, String> {
        let kept = self.kept.lock().take().filter(|(of, connection)| of == node && !connection.is_closed());
        if let Some((_, connection)) = kept
            && let Ok(rows) = connection.rows_for(query, user).await
        {
            self.keep(node, connection);
            return Ok(rows);
        }
        // A connection that was kept may have broken meanwhile: only a new one tells.
        let config =
            self.cluster.node(node.as_str()).ok_or_else(|| "is not in the configuration".to_owned())?;
        let connection =
            Connection::open(&self.env, config, &self.tls).await.map_err(|error| error.to_string())?;
        let rows = connection.rows_for(query, user).await.map_err(|error| error.to_string())?;
        self.keep(node, connection);
        Ok(rows)
    }

    /// Asks the nodes until `read` understands an answer.
    async fn ask_any<T>(
        &self,
        query: &str,
        user: &str,
        read: impl Fn(Vec<Row>) -> Result<T, String> + Send + Sync,
    ) -> Result<T, LookupError> {
        let mut changes = self.view.subscribe();
        loop {
            let mut failures = Vec::new();
            for node in nodes(&self.view.load()) {
                match self.ask(&node, query, user).await.and_then(&read) {
                    Ok(answer) => return Ok(answer),
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
        self.nodes.ask_any(&self.query, user, |rows| answer(rows, user)).await
    }
}

#[async_trait]
impl<E: Env> RoleLookup for NodeRoles<E> {
    async fn roles_of(&self, user: &str) -> Result<BTreeSet<String>, LookupError> {
        let names = |rows: Vec<Row>| Ok(rows.into_iter().flatten().flatten().collect());
        self.0.ask_any(ROLES, user, names).await
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
