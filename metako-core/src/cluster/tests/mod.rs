//! The controller, driven by hand.

use crate::config::{Node, Priority, ReplicationAddress, Secret, SslMode};

/// A node on localhost.
pub(super) fn node(name: &str, port: u16) -> Node {
    Node {
        name: name.into(),
        host: "localhost".to_owned(),
        port,
        role: None,
        username: "postgres".to_owned(),
        password: Secret::new("password"),
        database: "postgres".to_owned(),
        weight: 1,
        zone: None,
        priority: Priority::Rank(100),
        sslmode: SslMode::Prefer,
        application_name: name.to_owned(),
        replication: ReplicationAddress {
            host: "localhost".to_owned(),
            port,
            user: None,
            password: None,
            passfile: None,
        },
    }
}
