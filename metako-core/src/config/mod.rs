//! The configuration: one YAML file, checked whole before anything starts.
//!
//! The text is parsed once into a tree whose scalars keep their text and place; keys, types and spelling are checked
//! there against the schema, strategies' options included, and every problem is collected; only then are the sections
//! deserialised. [`Config`] can hold nothing that the checks would refuse.

mod types;

pub use types::{
    Acks, Admin, AdminAccess, ClusterSettings, Config, FailoverMode, FailoverSettings, Limits, Log,
    LogFormat, NoVoter, Node, PoolMode, PoolSettings, Priority, ReplicationAddress, RoleHint, Routing,
    Secret, Security, Split, SslMode, Strategies, Synchronous, TlsFiles, UnknownOutcome, User,
};
