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

/// Finds the secret of the section at `path`. `None` if there is none or if it is at fault, which is reported.
pub(super) fn resolve(
    text: &SecretText,
    path: &str,
    required: bool,
    source: &dyn SecretSource,
    checks: &mut Checks<'_>,
) -> Option<Secret> {
    let [word, env, file] = ["password", "password_env", "password_file"].map(|key| key_path(path, key));
    let given: Vec<&str> =
        [&word, &env, &file].into_iter().map(String::as_str).filter(|key| checks.places.holds(key)).collect();
    match given.as_slice() {
        [] if required => {
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
        return fit(found?, &env, checks);
    }
    if let Some(name) = &text.password_file {
        return match source.file(Path::new(name)) {
            Ok(content) => {
                let line = content.strip_suffix('\n').unwrap_or(&content);
                fit(line.strip_suffix('\r').unwrap_or(line).to_owned(), &file, checks)
            }
            Err(error) => {
                checks.problem(&[&file], format!("{name} cannot be read: {error}"));
                None
            }
        };
    }
    fit(text.password.clone()?, &word, checks)
}

fn fit(secret: String, key: &str, checks: &mut Checks<'_>) -> Option<Secret> {
    let problem = if secret.is_empty() {
        "the password is empty"
    } else if secret.len() > PASSWORD_MAX {
        "the password is longer than 4096 bytes"
    } else if secret.contains(['\0', '\n']) {
        "the password holds a line break or a zero byte; expected a single line"
    } else if secret.starts_with("SCRAM-SHA-256$") {
        "SCRAM secrets are not available in this version; expected the password in clear, because metako logs in to \
         the servers with it"
    } else {
        return Some(Secret::new(secret));
    };
    checks.problem(&[key], problem);
    None
}
