//! The users that the configuration names, and the databases that they may use.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use metako_core::config::{Config, Secret};

use super::account::{Account, Manner, Stored};
use super::scram::{SALT_LEN, salt_of};

/// The users that the configuration names: each distinct user of a node, for that node's database only, and those of
/// `users:` for theirs.
#[derive(Clone)]
pub struct Users {
    by_name: BTreeMap<String, User>,
    manner: Manner,
    salt_secret: Vec<u8>,
}

#[derive(Clone)]
struct User {
    stored: Arc<Stored>,
    /// Names, in which `*` stands for any text; `None`: any.
    databases: Option<Vec<String>>,
}

/// Whether a user who has proved to be one may use a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Granted,
    /// The database is there, but not for this user.
    Denied,
    /// The configuration knows of no such database.
    NoSuchDatabase,
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("names", &self.by_name.keys()).finish_non_exhaustive()
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
            all.add(&node.username, &node.password, Some(std::slice::from_ref(&node.database)));
        }
        for user in &config.users {
            let only = Some(user.databases.as_slice()).filter(|databases| !databases.is_empty());
            all.add(&user.name, &user.password, only);
        }
        all.manner = all.most();
        all
    }

    pub(super) fn empty(salt_secret: &[u8; 32]) -> Self {
        Self { by_name: BTreeMap::new(), manner: Manner::POSTGRESQL, salt_secret: salt_secret.to_vec() }
    }

    fn most(&self) -> Manner {
        Manner::of_most(self.by_name.values().map(|user| &*user.stored)).unwrap_or(Manner::POSTGRESQL)
    }

    pub(super) fn add(&mut self, name: &str, password: &Secret, only: Option<&[String]>) {
        let salt = self.salt(name);
        let user = self.by_name.entry(name.to_owned()).or_insert_with(|| User {
            stored: Arc::new(Stored::read(password, salt)),
            databases: Some(Vec::new()),
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

    /// The salt that belongs to a name.
    pub(super) fn salt(&self, name: &str) -> [u8; SALT_LEN] {
        salt_of(&self.salt_secret, name)
    }

    /// What is kept of a user's password; `None` if the configuration does not name it.
    pub(super) fn stored(&self, name: &str) -> Option<Arc<Stored>> {
        self.by_name.get(name).map(|user| Arc::clone(&user.stored))
    }

    /// A user by what is known of it, or one whom nobody passes as and who looks like `strangers`.
    pub(super) fn account<'a>(&self, name: &'a str, stored: Arc<Stored>, strangers: Manner) -> Account<'a> {
        Account::new(name, stored, self.salt(name), strangers)
    }

    /// What strangers are to look like where the configuration has all users.
    pub(super) fn manner(&self) -> Manner {
        self.manner
    }

    /// Whether a user may use a database. To be asked only after the user is known to be who it says. A user whom the
    /// configuration does not name may use what the server lets it.
    pub(super) fn access(&self, name: &str, database: &str) -> Access {
        let Some(User { databases: Some(databases), .. }) = self.by_name.get(name) else {
            return Access::Granted;
        };
        if fits_one(databases, database) {
            return Access::Granted;
        }
        let of_others = self.by_name.values().filter_map(|user| user.databases.as_ref());
        if of_others.flatten().any(|known| known == database) {
            Access::Denied
        } else {
            Access::NoSuchDatabase
        }
    }

    /// Whether a user may have physical replication, which shows all databases: one that is bound to databases needs the
    /// word `replication` among them, as in pg_hba.conf.
    pub(super) fn may_replicate(&self, name: &str) -> bool {
        let databases = self.by_name.get(name).and_then(|user| user.databases.as_ref());
        databases.is_none_or(|databases| databases.iter().any(|database| database == "replication"))
    }
}

fn fits_one(patterns: &[String], database: &str) -> bool {
    patterns.iter().any(|pattern| fits(pattern, database))
}

/// Whether a name is that of a pattern in which `*` stands for any text.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        // The earliest place leaves the most for the parts that follow.
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn users() -> Users {
        let mut users = Users::empty(&[1; 32]);
        let secret = Secret::new("secret");
        users.add("app", &secret, Some(&["shop".to_owned()]));
        users.add("app", &secret, Some(&["stock".to_owned()]));
        users.add("report", &secret, Some(&["stock".to_owned(), "app_*".to_owned()]));
        users.add("copy", &secret, Some(&["replication".to_owned()]));
        users.add("admin", &secret, None);
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
        assert_eq!(users.stored("app"), Users::new(&config, &[1; 32]).stored("app"));
        assert_ne!(users.stored("app"), Users::new(&config, &[2; 32]).stored("app"));
        assert_eq!(users.stored("nobody"), None);
    }

    #[test]
    fn no_secret_is_shown() {
        let mut users = Users::empty(&[213; 32]);
        users.add("app", &Secret::new("tiger"), None);
        let shown = format!("{users:?}");
        assert!(!shown.contains("213") && !shown.contains("tiger"), "{shown}");
    }

    #[test]
    fn databases_of_a_name_add_up() {
        let users = users();
        assert_eq!(users.access("app", "shop"), Access::Granted);
        assert_eq!(users.access("app", "stock"), Access::Granted);
        assert_eq!(users.access("report", "shop"), Access::Denied);
        assert_eq!(users.access("report", "app_seven"), Access::Granted);
        assert_eq!(users.access("report", "my_app_seven"), Access::NoSuchDatabase);
        assert_eq!(users.access("report", "nowhere"), Access::NoSuchDatabase);
        assert_eq!(users.access("admin", "nowhere"), Access::Granted);
        assert_eq!(users.access("not of this file", "nowhere"), Access::Granted);
    }

    #[test]
    fn replication_of_everything_needs_a_word_of_its_own() {
        let users = users();
        let may: Vec<bool> =
            ["app", "copy", "admin", "not of this file"].map(|name| users.may_replicate(name)).into();
        assert_eq!(may, [false, true, true, true]);
    }

    #[test]
    fn a_stranger_is_shown_the_same_salt_each_time() {
        let users = users();
        let shown = |name| {
            users.account(name, users.stored(name).unwrap_or_default(), users.manner()).verifier().clone()
        };
        assert_eq!(shown("nobody"), shown("nobody"));
        assert_ne!(shown("nobody"), shown("somebody"));
        assert_ne!(shown("app"), shown("report"));
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, yes, no) in [
            ("app", "app", "apps"),
            ("app_*", "app_", "app"),
            ("*_app", "my_app", "app"),
            ("a*b*c", "a-b-b-c", "acb"),
            ("a*a", "aa", "a"),
            ("*", "", "\u{0}never"),
        ] {
            assert!(fits(pattern, yes), "{pattern} {yes}");
            assert!(pattern == "*" || !fits(pattern, no), "{pattern} {no}");
        }
    }

    proptest! {
        #[test]
        fn stars_agree_with_trying_every_length(pattern in "[ab*]{0,6}", name in "[ab]{0,8}") {
            // The slow and sure way: each star takes each length.
            fn slow(pattern: &str, name: &str) -> bool {
                match pattern.strip_prefix('*') {
                    Some(rest) => (0..=name.len()).any(|taken| slow(rest, &name[taken..])),
                    None => match pattern.chars().next() {
                        None => name.is_empty(),
                        Some(first) => name.starts_with(first) && slow(&pattern[1..], &name[1..]),
                    },
                }
            }
            prop_assert_eq!(fits(&pattern, &name), slow(&pattern, &name));
        }
    }
}
