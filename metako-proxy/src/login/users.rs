//! Who may log in to metako, and to which databases.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use metako_core::config::{Config, Secret};

use super::scram::{Verifier, salt_of};
use crate::credential::ServerCredential;

/// The users that clients may log in as: each distinct user of a node, for that node's database only, and those of
/// `users:` for theirs. Passwords are kept as SCRAM verifiers.
#[derive(Clone)]
pub struct Users {
    by_name: BTreeMap<String, User>,
    databases: BTreeSet<String>,
    salt_secret: Vec<u8>,
}

#[derive(Clone)]
struct User {
    verifier: Verifier,
    credential: ServerCredential,
    /// `None`: any.
    databases: Option<BTreeSet<String>>,
}

/// Whether a user who has proved to be one may use a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Granted,
    /// The database is there, but not for this user.
    Denied,
    /// metako serves no such database.
    NoSuchDatabase,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("databases", &self.databases).finish_non_exhaustive()
    }
}

impl Users {
    /// Reads the users of a configuration. Takes a millisecond of computing for each password in clear.
    ///
    /// `salt_secret` is random and drawn once for the life of the process: from it come the salts of users and, alike,
    /// the salts shown for users who do not exist, so that neither a reload nor asking twice tells the two apart.
    ///
    /// Where several passwords are given for one name, which [`Config`] excludes, the first one counts.
    pub fn new(config: &Config, salt_secret: &[u8; 32]) -> Self {
        let mut all = Self::empty(salt_secret);
        for node in &config.cluster.nodes {
            let only = Some(std::slice::from_ref(&node.database));
            all.add(&node.username, node.password.reveal(), only);
        }
        for user in &config.users {
            let only = Some(user.databases.as_slice()).filter(|databases| !databases.is_empty());
            all.add(&user.name, user.password.reveal(), only);
        }
        all
    }

    pub(super) fn empty(salt_secret: &[u8; 32]) -> Self {
        Self { by_name: BTreeMap::new(), databases: BTreeSet::new(), salt_secret: salt_secret.to_vec() }
    }

    pub(super) fn add(&mut self, name: &str, password: &str, only: Option<&[String]>) {
        self.databases.extend(only.unwrap_or_default().iter().cloned());
        let salt_secret = &self.salt_secret;
        let user = self.by_name.entry(name.to_owned()).or_insert_with(|| User {
            verifier: Verifier::new(password, salt_of(salt_secret, name)),
            credential: ServerCredential::Password(Secret::new(password)),
            databases: Some(BTreeSet::new()),
        });
        match only {
            Some(only) => {
                if let Some(databases) = &mut user.databases {
                    databases.extend(only.iter().cloned());
                }
            }
            None => user.databases = None,
        }
    }

    /// What to check a log-in against; for a name that is not there, what nobody passes.
    pub(super) fn verifier(&self, name: &str) -> Verifier {
        // Computed in both cases, so that both take the same time.
        let mock = Verifier::mock(salt_of(&self.salt_secret, name));
        self.by_name.get(name).map_or(mock, |user| user.verifier.clone())
    }

    /// What metako logs in to servers with for a user who has proved to be one.
    pub(super) fn credential(&self, name: &str) -> ServerCredential {
        self.by_name.get(name).map_or(ServerCredential::None, |user| user.credential.clone())
    }

    /// Whether a user may use a database. To be asked only after the user is known to be who it says.
    pub(super) fn access(&self, name: &str, database: &str) -> Access {
        let granted = self
            .by_name
            .get(name)
            .is_some_and(|user| user.databases.as_ref().is_none_or(|databases| databases.contains(database)));
        if granted {
            Access::Granted
        } else if self.databases.contains(database) {
            Access::Denied
        } else {
            Access::NoSuchDatabase
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        let mut users = Users::empty(&[1; 32]);
        users.add("app", "secret", Some(&["shop".to_owned()]));
        users.add("app", "secret", Some(&["stock".to_owned()]));
        users.add("report", "secret", Some(&["stock".to_owned()]));
        users.add("admin", "secret", None);
        users
    }

    struct NoSecrets;

    impl metako_core::config::SecretSource for NoSecrets {
        fn env(&self, _name: &str) -> Option<String> {
            None
        }

        fn file(&self, _path: &std::path::Path) -> std::io::Result<String> {
            Err(std::io::ErrorKind::NotFound.into())
        }
    }

    #[test]
    fn nodes_and_users_of_a_configuration_may_log_in() {
        use metako_strategies as _;
        let text = "nodes:\n\
            - { name: a, host: h, role: primary, username: app, password: secret, database: shop }\n\
            - { name: b, host: i, role: replica, username: app, password: secret, database: shop }\n\
            users:\n\
            - { name: report, password: word, databases: [stock] }\n\
            - { name: dba, password: word }\n";
        let config = metako_core::config::load("metako.yaml", text, &NoSecrets).unwrap().config;
        let users = Users::new(&config, &[1; 32]);
        assert_eq!(users.access("app", "shop"), Access::Granted);
        assert_eq!(users.access("app", "stock"), Access::Denied);
        assert_eq!(users.access("report", "stock"), Access::Granted);
        assert_eq!(users.access("report", "other"), Access::NoSuchDatabase);
        assert_eq!(users.access("dba", "other"), Access::Granted);
        // The salt is the same in the next life of the table, as a reload makes it, and another for another secret.
        assert_eq!(users.verifier("app"), Users::new(&config, &[1; 32]).verifier("app"));
        assert_ne!(users.verifier("app"), Users::new(&config, &[2; 32]).verifier("app"));
    }

    #[test]
    fn the_salt_secret_is_not_shown() {
        let shown = format!("{:?}", Users::empty(&[213; 32]));
        assert!(!shown.contains("213"), "{shown}");
    }

    #[test]
    fn databases_of_a_name_add_up() {
        let users = users();
        assert_eq!(users.access("app", "shop"), Access::Granted);
        assert_eq!(users.access("app", "stock"), Access::Granted);
        assert_eq!(users.access("report", "shop"), Access::Denied);
        assert_eq!(users.access("report", "nowhere"), Access::NoSuchDatabase);
        assert_eq!(users.access("admin", "nowhere"), Access::Granted);
        assert_eq!(users.access("nobody", "shop"), Access::Denied);
    }

    #[test]
    fn a_stranger_is_shown_the_same_salt_each_time() {
        let users = users();
        assert_eq!(users.verifier("nobody"), users.verifier("nobody"));
        assert_ne!(users.verifier("nobody"), users.verifier("somebody"));
        assert_ne!(users.verifier("app"), users.verifier("report"));
    }
}
