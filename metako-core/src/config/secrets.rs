//! Where passwords come from.

use std::io;
use std::path::Path;

use super::places::Checks;
use super::raw::SecretText;
use super::tree::key_path;
use super::types::Secret;

/// Reads secrets from outside the file. The core reads nothing itself; who loads a configuration hands this in.
pub trait SecretSource {
    /// The value of an environment variable, if it is set.
    fn env(&self, name: &str) -> Option<String>;

    /// The content of a file. May block.
    fn file(&self, path: &Path) -> io::Result<String>;
}

/// The most that is read from a password file, in bytes.
const PASSWORD_MAX: usize = 4096;

/// What a secret is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// metako logs in with it: it has to be there, and in clear.
    LogIn,
    /// Other servers log in with it, if it is there.
    Replication,
    /// A client's log-in is checked against it: it has to be there.
    Check,
}

/// Finds the secret of the section at `path`. `None` if there is none or if it is at fault, which is reported.
pub(super) fn resolve(
    text: &SecretText,
    path: &str,
    purpose: Use,
    source: &dyn SecretSource,
    checks: &mut Checks<'_>,
) -> Option<Secret> {
    let [word, env, file] = ["password", "password_env", "password_file"].map(|key| key_path(path, key));
    let given: Vec<&str> =
        [&word, &env, &file].into_iter().map(String::as_str).filter(|key| checks.places.holds(key)).collect();
    match given.as_slice() {
        [] if purpose != Use::Replication => {
            let message = "is missing; expected exactly one of password, password_env and password_file";
            checks.problem(&[&word], message);
            return None;
        }
        [first, second, ..] => {
            let message = format!(
                "is given beside `{}`; expected exactly one of password, password_env and password_file",
                first.rsplit('.').next().unwrap_or(first)
            );
            checks.problem(&[second], message);
            return None;
        }
        _ => {}
    }
    if let Some(name) = &text.password_env {
        let found = source.env(name);
        if found.is_none() {
            checks.problem(
                &[&env],
                format!("the environment variable `{name}` is not set; expected the password in it"),
            );
        }
        return fit(found?, &env, purpose, checks);
    }
    if let Some(name) = &text.password_file {
        return match source.file(Path::new(name)) {
            Ok(content) => {
                let line = content.strip_suffix('\n').unwrap_or(&content);
                fit(line.strip_suffix('\r').unwrap_or(line).to_owned(), &file, purpose, checks)
            }
            Err(error) => {
                checks.problem(&[&file], format!("{name} cannot be read: {error}"));
                None
            }
        };
    }
    fit(text.password.clone()?, &word, purpose, checks)
}

fn fit(secret: String, key: &str, purpose: Use, checks: &mut Checks<'_>) -> Option<Secret> {
    let problem = if secret.is_empty() {
        "the password is empty"
    } else if secret.len() > PASSWORD_MAX {
        "the password is longer than 4096 bytes"
    } else if secret.contains(['\0', '\n']) {
        "the password holds a line break or a zero byte; expected a single line"
    } else if !secret.starts_with("SCRAM-SHA-256$") {
        return Some(Secret::new(secret));
    } else if purpose != Use::Check {
        "is a SCRAM secret: nobody can log in with that; expected the password in clear"
    } else if !is_scram_secret(&secret) {
        "begins like a SCRAM secret and is none; expected SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY as \
         PostgreSQL keeps it, or the password in clear"
    } else {
        return Some(Secret::new(secret));
    };
    checks.problem(&[key], problem);
    None
}

/// Whether the text is what PostgreSQL keeps of a password: iterations, salt and two keys of 32 bytes, in base64.
fn is_scram_secret(text: &str) -> bool {
    let parts = || {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        Some((iterations, salt, [stored_key, server_key]))
    };
    let Some((iterations, salt, keys)) = parts() else { return false };
    let counts = iterations.parse::<u32>().is_ok_and(|iterations| iterations > 0);
    counts
        && is_base64(salt)
        && keys.iter().all(|key| is_base64(key) && key.len() == 44 && key.ends_with('='))
}

fn is_base64(text: &str) -> bool {
    let digits = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    text.len().is_multiple_of(4)
        && !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scram_secrets_are_told_from_what_looks_like_them() {
        // The password `pencil` of RFC 7677, as PostgreSQL would keep it.
        let real = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                    wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert!(is_scram_secret(real));
        for wrong in [
            real.replace("4096", "0"),
            real.replace("4096", ""),
            real.replace("gQ==", "gQ="),
            real.replace("4qY=", "4qYA"),
            real.replace("wfPL", ""),
            real.replacen(':', ";", 1),
            real.replace("W22Z", "W2 Z"),
            "SCRAM-SHA-256$".to_owned(),
        ] {
            assert!(!is_scram_secret(&wrong), "{wrong}");
        }
    }
}
