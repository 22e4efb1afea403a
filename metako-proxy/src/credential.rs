//! What metako logs in to servers with.

use std::fmt;

use metako_core::config::Secret;

/// How metako proves to a server that it may act for a user. Where it comes from: the configuration, or the client's own
/// log-in, which it passes on.
#[derive(Clone, PartialEq, Eq)]
pub enum ServerCredential {
    /// Nothing: the server has to trust metako, or to know it by its certificate.
    None,
    /// The password in clear, good for every method.
    Password(Secret),
    /// MD5 of password and user name as 32 hexadecimal digits: good where the server asks for `md5`.
    Md5(Secret),
    /// The keys that a client's SCRAM-SHA-256 exchange revealed: good where the server keeps the same SCRAM secret
    /// (RFC 5802, section 3).
    ScramKeys {
        /// `ClientKey`
        client_key: [u8; 32],
        /// `ServerKey`
        server_key: [u8; 32],
    },
}

impl fmt::Debug for ServerCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Password(_) => "Password(secret)",
            Self::Md5(_) => "Md5(secret)",
            Self::ScramKeys { .. } => "ScramKeys(secret)",
        })
    }
}
