//! Who may connect from where, and how they prove who they are: rules in the format of PostgreSQL's pg_hba.conf.
//!
//! [`load`] reads a file with all that it includes and gives its rules or everything that is wrong with it;
//! [`Hba::rule`] finds the first rule that fits a connection. What PostgreSQL has and metako cannot do is a problem of the
//! file, never a rule that silently means something else. Lines for connections that metako never has (`local`,
//! `hostgssenc`) are checked for their form only.

mod address;
mod lexer;
mod name;
mod parse;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use address::Addresses;
use name::{Databases, Users};

/// Reads files for [`load`]. The core reads nothing itself.
pub trait HbaFiles {
    /// The content of a file. May block.
    fn file(&self, path: &Path) -> io::Result<String>;

    /// The paths of all files in a folder, in any order. May block.
    fn folder(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
}

/// Rules in the order in which they are tried.
#[derive(Debug, Clone, Default)]
pub struct Hba {
    rules: Vec<Rule>,
}

/// One line that can fit a connection.
#[derive(Debug, Clone)]
pub struct Rule {
    file: Arc<str>,
    line: usize,
    encryption: Encryption,
    databases: Databases,
    users: Users,
    addresses: Addresses,
    /// How the client proves who it is.
    pub method: Method,
    /// What its certificate has to show besides; with [`Method::Cert`] always [`ClientCertificate::Name`].
    pub certificate: ClientCertificate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Any,
    Tls,
    NoTls,
}

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    Trust,
    /// It is refused.
    Reject,
    /// By the password, sent as it is.
    Password,
    /// By MD5 of the password, or by SCRAM-SHA-256 where the secret is one of SCRAM.
    Md5,
    /// By SCRAM-SHA-256, with channel binding over TLS if the client can.
    ScramSha256,
    /// By a certificate for the name of the user.
    Cert,
}

/// What a rule demands of the client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// Nothing.
    NotAsked,
    /// That a known authority signed it (`clientcert=verify-ca`).
    Signed,
    /// That a known authority signed it for the name of the user (`clientcert=verify-full`).
    Name,
}

/// A client that wants to log in.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Where it comes from.
    pub address: IpAddr,
    /// Whether it is encrypted.
    pub tls: bool,
    /// The user that it says to be.
    pub user: &'a str,
    /// The database that it wants.
    pub database: &'a str,
    /// Whether it wants physical replication, which belongs to no database.
    pub physical_replication: bool,
}

impl Hba {
    /// The first rule that fits. `None` refuses the client.
    pub fn rule(&self, connection: &Connection<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.fits(connection))
    }

    /// The rules in the order in which they are tried.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

impl Rule {
    fn fits(&self, connection: &Connection<'_>) -> bool {
        let encryption = match self.encryption {
            Encryption::Any => true,
            Encryption::Tls => connection.tls,
            Encryption::NoTls => !connection.tls,
        };
        encryption
            && self.addresses.hold(connection.address)
            && self.databases.fit(connection)
            && self.users.fit(connection.user)
    }

    /// Where it stands, as `file:line`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    /// A problem with it that shows later.
    pub fn problem(&self, message: impl Into<String>) -> HbaProblem {
        HbaProblem { file: self.file.to_string(), line: self.line, column: 1, message: message.into() }
    }

    /// Whether it needs authorities that sign the certificates of clients.
    pub fn needs_certificate(&self) -> bool {
        self.certificate != ClientCertificate::NotAsked
    }

    /// Whether it is for encrypted connections only.
    pub fn needs_tls(&self) -> bool {
        self.encryption == Encryption::Tls
    }
}

/// One thing that is wrong with a file of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HbaProblem {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, and what was expected.
    pub message: String,
}

impl fmt::Display for HbaProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, message } = self;
        write!(f, "{file}:{line}:{column}: {message}")
    }
}

/// Reads the rules of a file and of all that it includes.
///
/// # Errors
/// Everything that is wrong, in the order of reading; at least one problem.
pub fn load(path: &Path, files: &dyn HbaFiles) -> Result<Hba, Vec<HbaProblem>> {
    let mut reader = parse::Reader::new(files);
    reader.start(path);
    if reader.problems.is_empty() { Ok(Hba { rules: reader.rules }) } else { Err(reader.problems) }
}
