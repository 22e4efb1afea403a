//! Who may connect from where, and how they prove who they are: rules in the format of PostgreSQL's pg_hba.conf.
//!
//! [`load`] reads a file with all that it includes and gives its rules or everything that is wrong with it;
//! [`Hba::rule`] finds the first rule that fits a connection. Where that depends on what only others know, it asks for
//! those [`Facts`]. [`load_maps`] does the same for pg_ident.conf. What PostgreSQL has and metako cannot do is a problem of the
//! file, never a rule that silently means something else. Lines for connections that metako never has (`local`,
//! `hostgssenc`) are checked for their form only.

mod address;
mod ident;
mod lexer;
mod name;
mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use address::Addresses;
pub use address::Network;
pub use ident::{Maps, load_maps};
use name::{Databases, Users};

/// Reads files for [`load`] and [`load_maps`]. The core reads nothing itself.
pub trait HbaFiles {
    /// The content of a file. May block.
    fn file(&self, path: &Path) -> io::Result<String>;

    /// The paths of all files in a folder, in any order. May block.
    fn folder(&self, path: &Path) -> io::Result<Vec<PathBuf>>;

    /// The addresses of this machine, each with the mask of its network.
    fn interfaces(&self) -> io::Result<Vec<Network>>;
}

/// What rules may depend on besides the connection itself. It is found out when a rule asks for it, for it takes others
/// to answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The roles that the user is a member of, directly or not, its own among them; none if there is no such user.
    pub roles: Option<Arc<BTreeSet<String>>>,
    /// The name of the client's address, if that name has that address.
    pub host: Option<Option<String>>,
}

/// What has to be found out before it is known whether a rule fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// [`Facts::roles`].
    Roles,
    /// [`Facts::host`].
    Host,
}

impl Facts {
    fn has_role(&self, role: &str) -> Result<bool, Unknown> {
        Ok(self.roles.as_ref().ok_or(Unknown::Roles)?.contains(role))
    }
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
    /// The map that says which users the name in a certificate may be; `None`: the one of that name.
    pub map: Option<String>,
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
    ///
    /// # Errors
    /// That takes a fact which is not known yet.
    pub fn rule(&self, connection: &Connection<'_>, facts: &Facts) -> Result<Option<&Rule>, Unknown> {
        for rule in &self.rules {
            if rule.fits(connection, facts)? {
                return Ok(Some(rule));
            }
        }
        Ok(None)
    }

    /// The rules in the order in which they are tried.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

impl Rule {
    fn fits(&self, connection: &Connection<'_>, facts: &Facts) -> Result<bool, Unknown> {
        let encryption = match self.encryption {
            Encryption::Any => true,
            Encryption::Tls => connection.tls,
            Encryption::NoTls => !connection.tls,
        };
        if !encryption {
            return Ok(false);
        }
        let parts = [
            self.addresses.hold(connection.address, facts),
            self.databases.fit(connection, facts),
            self.users.fit(connection.user, facts),
        ];
        // Nobody is asked about a rule that does not fit whatever the answer.
        if parts.contains(&Ok(false)) {
            return Ok(false);
        }
        parts.into_iter().try_fold(true, |fits, part| Ok(fits && part?))
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
    let mut rules = Vec::new();
    let problems = parse::Reader::read(files, path, &mut rules);
    if problems.is_empty() { Ok(Hba { rules }) } else { Err(problems) }
}
