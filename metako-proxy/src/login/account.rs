//! What a log-in is checked against.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::num::NonZeroU32;
use std::sync::Arc;

use aws_lc_rs::constant_time;
use md5::{Digest, Md5};
use metako_core::config::Secret;

use super::scram::{ITERATIONS, Key, SALT_LEN, Verifier};
use crate::credential::ServerCredential;

/// MD5 as PostgreSQL writes it: 32 hexadecimal digits.
type Md5Hex = String;

/// What is kept of a user's password.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) enum Stored {
    /// The password itself, and a verifier made of it.
    Clear { password: Secret, verifier: Verifier },
    /// PostgreSQL's SCRAM secret.
    Scram(Verifier),
    /// PostgreSQL's MD5 secret: MD5 of password and user name.
    Md5(Md5Hex),
    /// Nothing: there is no such user, or it has no password.
    #[default]
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
    /// Reads a secret, told apart as PostgreSQL does; nobody logs in with a SCRAM secret that cannot be read. Computing takes a millisecond for a password in clear.
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
            // To take it for a password would make a password of a secret.
            None if text.starts_with("SCRAM-SHA-256$") => Self::Nothing,
            None => Self::Clear { password: secret.clone(), verifier: Verifier::of_password(text, salt) },
        }
    }
}

impl Stored {
    /// Whether a log-in may end with that credential, as far as it is told without hashing passwords.
    pub(super) fn may_give(&self, credential: &ServerCredential) -> bool {
        match (self, credential) {
            (Self::Clear { password, .. }, ServerCredential::Password(given)) => password == given,
            (Self::Scram(verifier), ServerCredential::ScramKeys { client_key, server_key }) => {
                verifier.is_of_keys(client_key, server_key)
            }
            (Self::Md5(hex), ServerCredential::Md5(given)) => hex == given.reveal(),
            (Self::Scram(_) | Self::Md5(_), ServerCredential::Password(_) | ServerCredential::None) => true,
            _ => false,
        }
    }
}

/// What a log-in shows of the way in which a user's secret is kept. Strangers are shown what most users are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Manner {
    /// The method `md5` means MD5.
    pub(super) md5: bool,
    iterations: NonZeroU32,
}

impl Manner {
    /// What PostgreSQL does if it is not told otherwise.
    pub(super) const POSTGRESQL: Self = Self { md5: false, iterations: ITERATIONS };

    /// That of most of these; `None` if there are none.
    pub(super) fn of_most<'a>(all: impl IntoIterator<Item = &'a Stored>) -> Option<Self> {
        let mut counts: BTreeMap<Self, usize> = BTreeMap::new();
        for manner in all.into_iter().filter_map(Self::of) {
            *counts.entry(manner).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(manner, _)| manner)
    }

    fn of(stored: &Stored) -> Option<Self> {
        match stored {
            Stored::Clear { .. } | Stored::Md5(_) => Some(Self { md5: true, iterations: ITERATIONS }),
            Stored::Scram(verifier) => Some(Self { md5: false, iterations: verifier.iterations() }),
            Stored::Nothing => None,
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
    pub(super) stored: Arc<Stored>,
    /// Stands in where there is nothing to check against.
    mock: Verifier,
    strangers: Manner,
}

impl<'a> Account<'a> {
    /// `salt` belongs to the name: it is shown if there is no such user, and `strangers` is what it looks like then.
    pub(super) fn new(
        user: &'a str,
        stored: impl Into<Arc<Stored>>,
        salt: [u8; SALT_LEN],
        strangers: Manner,
    ) -> Self {
        Self { user, stored: stored.into(), mock: Verifier::mock(salt, strangers.iterations), strangers }
    }

    /// Whether the method `md5` means MD5 for this user: where a SCRAM secret is kept it means SCRAM.
    pub(super) fn speaks_md5(&self) -> bool {
        Manner::of(&self.stored).unwrap_or(self.strangers).md5
    }

    /// Whether [`Self::has_password`] would take too long and lets nobody in.
    pub(super) fn is_too_costly(&self) -> bool {
        self.verifier().is_too_costly()
    }

    /// What SCRAM is checked against. Nobody passes where only MD5 is known, as with PostgreSQL.
    pub(super) fn verifier(&self) -> &Verifier {
        match &*self.stored {
            Stored::Clear { verifier, .. } | Stored::Scram(verifier) => verifier,
            Stored::Md5(_) | Stored::Nothing => &self.mock,
        }
    }

    /// Whether that is the password.
    pub(super) fn has_password(&self, given: &str) -> bool {
        let by_scram = self.verifier().is_of(given);
        let known = match &*self.stored {
            Stored::Md5(hex) => hex.as_str(),
            _ => "",
        };
        let hashed = md5_of(&[given.as_bytes(), self.user.as_bytes()]);
        by_scram | equal(hashed.as_bytes(), known.as_bytes())
    }

    /// Whether `answer` is what the password and this salt give by MD5.
    pub(super) fn answers_md5(&self, salt: [u8; 4], answer: &[u8]) -> bool {
        let known = match &*self.stored {
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
        match &*self.stored {
            // The keys belong to metako's own salt: a server knows others.
            Stored::Clear { password, .. } => ServerCredential::Password(password.clone()),
            Stored::Scram(verifier) => {
                ServerCredential::ScramKeys { client_key, server_key: verifier.server_key() }
            }
            Stored::Md5(_) | Stored::Nothing => ServerCredential::None,
        }
    }

    /// What metako logs in to servers with for a user whose password was not shown to it.
    pub(super) fn credential(&self) -> ServerCredential {
        match &*self.stored {
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
        Account::new("app", Stored::read(&Secret::new(secret), SALT), SALT, Manner::POSTGRESQL)
    }

    fn secrets() -> [String; 3] {
        ["tiger".to_owned(), password::scram_sha_256(b"tiger"), password::md5(b"tiger", "app")]
    }

    #[test]
    fn secrets_are_told_apart_as_postgresql_does() {
        let [clear, scram, md5] = secrets();
        assert!(matches!(*account(&clear).stored, Stored::Clear { .. }));
        assert!(matches!(*account(&scram).stored, Stored::Scram(_)));
        assert!(matches!(*account(&md5).stored, Stored::Md5(_)));
        assert_eq!(*account("").stored, Stored::Nothing);
        assert!(matches!(*account(&md5[..34]).stored, Stored::Clear { .. }));
        assert!(matches!(*account(&md5.replace('m', "M")).stored, Stored::Clear { .. }));
        // What begins like a SCRAM secret is no password, or the secret would be one.
        let unreadable = scram.replacen('$', "$0x", 1);
        assert_eq!(*account(&unreadable).stored, Stored::Nothing);
        assert_eq!(*account("SCRAM-SHA-256$").stored, Stored::Nothing);
        assert!(!format!("{:?}", account(&md5)).contains(&md5[3..]));
    }

    #[test]
    fn what_a_log_in_gave_is_no_longer_given_when_the_secret_is_another() {
        let [clear, scram, md5] = secrets();
        let exchanged = |secret: &str| {
            let other = secret.replace("tiger", "lion");
            let other = if other == secret { password::md5(b"lion", "app") } else { other };
            account(&other).stored
        };
        for secret in [&clear, &md5] {
            let account = account(secret);
            assert!(account.stored.may_give(&account.credential()));
            assert!(!exchanged(secret).may_give(&account.credential()), "{secret}");
        }
        let of_lion = account(&password::scram_sha_256(b"lion")).stored;
        let keys = |client_key| account(&scram).credential_after_scram(client_key);
        assert!(!of_lion.may_give(&keys([5; 32])) && !account(&scram).stored.may_give(&keys([5; 32])));
        let given = ServerCredential::Password(Secret::new("tiger"));
        assert!(account(&scram).stored.may_give(&given) && account(&md5).stored.may_give(&given));
        for credential in [given, ServerCredential::None, keys([5; 32])] {
            assert!(!Stored::Nothing.may_give(&credential), "{credential:?}");
        }
    }

    #[test]
    fn strangers_are_shown_what_most_are() {
        let [clear, scram, md5] = secrets().map(|secret| account(&secret).stored);
        let slow = account(&secrets()[1].replacen("4096", "10000", 1)).stored;
        let strangers = |known: &[&Stored]| {
            let most = Manner::of_most(known.iter().copied()).expect("some are known");
            let stranger = Account::new("nobody", Stored::Nothing, SALT, most);
            (stranger.speaks_md5(), stranger.verifier().iterations().get())
        };
        assert_eq!(strangers(&[&clear, &slow, &slow]), (false, 10_000));
        assert_eq!(strangers(&[&scram, &scram, &slow]), (false, 4096));
        assert_eq!(strangers(&[&clear, &md5, &scram, &Stored::Nothing]), (true, 4096));
        assert_eq!(Manner::of_most([&Stored::Nothing]), None);
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

    /// Whoever may set the own password sets the number, too; nobody shall keep a thread busy for minutes.
    #[test]
    fn a_secret_that_takes_minutes_to_check_is_not_checked() {
        let secret = password::scram_sha_256(b"tiger").replacen("4096", "2000000000", 1);
        let account = account(&secret);
        assert!(account.is_too_costly());
        assert!(!account.has_password("tiger"));
        assert!(!self::account("tiger").is_too_costly());
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
