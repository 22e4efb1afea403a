//! What a log-in is checked against.

use std::fmt::{self, Write as _};

use aws_lc_rs::constant_time;
use md5::{Digest, Md5};
use metako_core::config::Secret;

use super::scram::{Key, SALT_LEN, Verifier};
use crate::credential::ServerCredential;

/// MD5 as PostgreSQL writes it: 32 hexadecimal digits.
type Md5Hex = String;

/// What is kept of a user's password.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Stored {
    /// The password itself, and a verifier made of it.
    Clear { password: Secret, verifier: Verifier },
    /// PostgreSQL's SCRAM secret.
    Scram(Verifier),
    /// PostgreSQL's MD5 secret: MD5 of password and user name.
    Md5(Md5Hex),
    /// Nothing: there is no such user, or it has no password.
    Nothing,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clear { .. } => "Clear(secret)",
            Self::Scram(_) => "Scram(secret)",
            Self::Md5(_) => "Md5(secret)",
            Self::Nothing => "Nothing",
        })
    }
}

impl Stored {
    /// Reads a secret, told apart as PostgreSQL does. Computing takes a millisecond for a password in clear.
    pub(super) fn read(secret: &Secret, salt: [u8; SALT_LEN]) -> Self {
        let text = secret.reveal();
        if text.is_empty() {
            return Self::Nothing;
        }
        if let Some(hex) = text.strip_prefix("md5").filter(|hex| is_md5_hex(hex)) {
            return Self::Md5(hex.to_owned());
        }
        match Verifier::from_secret(text) {
            Some(verifier) => Self::Scram(verifier),
            None => Self::Clear { password: secret.clone(), verifier: Verifier::of_password(text, salt) },
        }
    }
}

fn is_md5_hex(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// A user who wants to log in, known or not. Each check computes the same for both, so that time tells nothing.
#[derive(Debug, Clone)]
pub(super) struct Account<'a> {
    pub(super) user: &'a str,
    pub(super) stored: Stored,
    /// Stands in where there is nothing to check against.
    mock: Verifier,
}

impl<'a> Account<'a> {
    /// `salt` belongs to the name: it is shown if there is no such user.
    pub(super) fn new(user: &'a str, stored: Stored, salt: [u8; SALT_LEN]) -> Self {
        Self { user, stored, mock: Verifier::mock(salt) }
    }

    /// What SCRAM is checked against. Nobody passes where only MD5 is known, as with PostgreSQL.
    pub(super) fn verifier(&self) -> &Verifier {
        match &self.stored {
            Stored::Clear { verifier, .. } | Stored::Scram(verifier) => verifier,
            Stored::Md5(_) | Stored::Nothing => &self.mock,
        }
    }

    /// Whether that is the password.
    pub(super) fn has_password(&self, given: &str) -> bool {
        let by_scram = self.verifier().is_of(given);
        let known = match &self.stored {
            Stored::Md5(hex) => hex.as_str(),
            _ => "",
        };
        let hashed = md5_of(&[given.as_bytes(), self.user.as_bytes()]);
        by_scram | equal(hashed.as_bytes(), known.as_bytes())
    }

    /// Whether `answer` is what the password and this salt give by MD5.
    pub(super) fn answers_md5(&self, salt: [u8; 4], answer: &[u8]) -> bool {
        let known = match &self.stored {
            Stored::Clear { password, .. } => {
                Some(md5_of(&[password.reveal().as_bytes(), self.user.as_bytes()]))
            }
            Stored::Md5(hex) => Some(hex.clone()),
            Stored::Scram(_) | Stored::Nothing => None,
        };
        let (hex, known) = known.map_or((String::new(), false), |hex| (hex, true));
        let expected = format!("md5{}", md5_of(&[hex.as_bytes(), &salt]));
        equal(expected.as_bytes(), answer) & known
    }

    /// What metako logs in to servers with for a user who proved the password by SCRAM.
    pub(super) fn credential_after_scram(&self, client_key: Key) -> ServerCredential {
        match &self.stored {
            // The keys belong to metako's own salt: a server knows others.
            Stored::Clear { password, .. } => ServerCredential::Password(password.clone()),
            stored => {
                let Stored::Scram(verifier) = stored else { return ServerCredential::None };
                ServerCredential::ScramKeys { client_key, server_key: verifier.server_key() }
            }
        }
    }

    /// What metako logs in to servers with for a user whose password was not shown to it.
    pub(super) fn credential(&self) -> ServerCredential {
        match &self.stored {
            Stored::Clear { password, .. } => ServerCredential::Password(password.clone()),
            Stored::Md5(hex) => ServerCredential::Md5(Secret::new(hex.clone())),
            Stored::Scram(_) | Stored::Nothing => ServerCredential::None,
        }
    }
}

fn md5_of(parts: &[&[u8]]) -> Md5Hex {
    let mut digest = Md5::new();
    for part in parts {
        digest.update(part);
    }
    digest.finalize().iter().fold(String::with_capacity(32), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn equal(one: &[u8], other: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(one, other).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres_protocol::{authentication, password};

    const SALT: [u8; SALT_LEN] = [3; SALT_LEN];

    fn account(secret: &str) -> Account<'static> {
        Account::new("app", Stored::read(&Secret::new(secret), SALT), SALT)
    }

    fn secrets() -> [String; 3] {
        ["tiger".to_owned(), password::scram_sha_256(b"tiger"), password::md5(b"tiger", "app")]
    }

    #[test]
    fn secrets_are_told_apart_as_postgresql_does() {
        let [clear, scram, md5] = secrets();
        assert!(matches!(account(&clear).stored, Stored::Clear { .. }));
        assert!(matches!(account(&scram).stored, Stored::Scram(_)));
        assert!(matches!(account(&md5).stored, Stored::Md5(_)));
        assert_eq!(account("").stored, Stored::Nothing);
        assert!(matches!(account(&md5[..34]).stored, Stored::Clear { .. }));
        assert!(matches!(account(&md5.replace('m', "M")).stored, Stored::Clear { .. }));
        assert!(matches!(account("SCRAM-SHA-256$").stored, Stored::Clear { .. }));
        assert!(!format!("{:?}", account(&md5)).contains(&md5[3..]));
    }

    #[test]
    fn a_password_in_clear_fits_each_of_them() {
        for secret in secrets() {
            assert!(account(&secret).has_password("tiger"), "{secret}");
            assert!(!account(&secret).has_password("lion"), "{secret}");
            assert!(!account(&secret).has_password(""), "{secret}");
            // The secret itself lets nobody in.
            assert!(secret == "tiger" || !account(&secret).has_password(&secret), "{secret}");
        }
        assert!(!account("").has_password(""));
    }

    #[test]
    fn md5_needs_the_password_or_its_md5() {
        let salt = [9, 8, 7, 6];
        let answer = authentication::md5_hash(b"app", b"tiger", salt);
        let [clear, scram, md5] = secrets();
        assert!(account(&clear).answers_md5(salt, answer.as_bytes()));
        assert!(account(&md5).answers_md5(salt, answer.as_bytes()));
        assert!(!account(&scram).answers_md5(salt, answer.as_bytes()));
        assert!(!account(&md5).answers_md5([0; 4], answer.as_bytes()));
        assert!(!account(&md5).answers_md5(salt, b""));
        // What is computed where nothing is known fits nothing.
        let of_nothing = format!("md5{}", md5_of(&[b"", &salt]));
        assert!(!account("").answers_md5(salt, of_nothing.as_bytes()));
    }

    #[test]
    fn servers_are_given_the_best_that_is_known() {
        let [clear, scram, md5] = secrets();
        assert_eq!(account(&clear).credential(), ServerCredential::Password(Secret::new("tiger")));
        assert_eq!(account(&md5).credential(), ServerCredential::Md5(Secret::new(&md5[3..])));
        assert_eq!(account(&scram).credential(), ServerCredential::None);
        assert_eq!(account("").credential(), ServerCredential::None);
        let keys = account(&scram).credential_after_scram([5; 32]);
        let ServerCredential::ScramKeys { client_key, server_key } = keys else { panic!("{keys:?}") };
        assert_eq!((client_key, server_key), ([5; 32], account(&scram).verifier().server_key()));
        let with_password = account(&clear).credential_after_scram([5; 32]);
        assert_eq!(with_password, ServerCredential::Password(Secret::new("tiger")));
    }
}
