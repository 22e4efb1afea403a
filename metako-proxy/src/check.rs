//! Reading a configuration from its file, with all that it names: secrets from the environment and from files, and TLS
//! files, which are opened and compared.

use std::io::{self, Read as _};
use std::path::Path;

use metako_core::config::{self, Loaded, Problem, Problems, SecretSource};
use metako_core::hba::HbaProblem;
use nix::unistd::{AccessFlags, access};
use tracing_subscriber::EnvFilter;

use crate::backend::ServerTlsTable;
use crate::login::rules;
use crate::tls_files::{TlsFileError, load_authorities, load_tls};

/// The most that is read of a configuration or a password file, in bytes: a little more than the checks accept.
const FILE_MAX: u64 = (1 << 20) + 1;

/// The process environment and the file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemSecrets;

impl SecretSource for SystemSecrets {
    fn env(&self, name: &str) -> Option<String> {
        // A name that no variable can have makes `var_os` panic.
        let possible = !name.is_empty() && !name.contains(['=', '\0']);
        possible.then(|| std::env::var(name).ok()).flatten()
    }

    fn file(&self, path: &Path) -> io::Result<String> {
        read(path)
    }
}

/// Reads and checks a configuration file and everything that it names. Blocks on the file system; files are named
/// relative to the working directory.
///
/// # Errors
/// All problems; a file that cannot be read is one of them.
pub fn load_file(path: &Path) -> Result<Loaded, Problems> {
    load_text(&path.display().to_string(), &read_text(path)?, &SystemSecrets)
}

/// The text of a configuration file. Blocks on the file system.
pub(crate) fn read_text(path: &Path) -> Result<String, Problems> {
    read(path).map_err(|error| {
        let message = format!("the configuration cannot be read: {error}");
        Problems::new(
            path.display().to_string(),
            vec![Problem { line: 1, column: 1, key: String::new(), message }],
        )
    })
}

/// As [`load_file`], of text that was read already. `name` is only shown.
pub fn load_text(name: &str, text: &str, secrets: &dyn SecretSource) -> Result<Loaded, Problems> {
    let mut loaded = config::load(name, text, secrets)?;
    let problems = named_files(&mut loaded);
    if problems.is_empty() { Ok(loaded) } else { Err(loaded.problems(problems)) }
}

/// What is wrong with the files that a configuration names, and with its log filter.
fn named_files(loaded: &mut Loaded) -> Vec<Problem> {
    let mut problems = tls_files(loaded);
    if let Err(errors) = ServerTlsTable::load(&loaded.config.cluster.nodes) {
        let named = |(index, error): &(usize, TlsFileError)| {
            loaded.places.problem(&format!("nodes[{index}].{}", error.file().node_key()), error.to_string())
        };
        problems.extend(errors.iter().map(named));
    }
    problems.extend(hba_file(loaded));
    problems.extend(hook_programs(loaded));
    if let Err(error) = EnvFilter::try_new(&loaded.config.log.level) {
        let message = format!(
            "is no level and no filter ({error}); expected such as `info` or `info,metako_proxy=debug`"
        );
        problems.push(loaded.places.problem("log.level", message));
    }
    problems
}

fn tls_files(loaded: &Loaded) -> Vec<Problem> {
    let security = &loaded.config.security;
    let named = |error: TlsFileError| loaded.places.problem(error.file().config_key(), error.to_string());
    let own = security.tls.as_ref().and_then(|files| load_tls(files).err()).unwrap_or_default();
    let of_clients = security.client_ca.as_deref().and_then(|path| load_authorities(path).err());
    own.into_iter().chain(of_clients).map(named).collect()
}

/// Programs that are named by a path; others are looked for in `PATH` when they are run.
fn hook_programs(loaded: &Loaded) -> Vec<Problem> {
    let hooks = &loaded.config.cluster.hooks;
    let commands = [("stop", &hooks.stop), ("rejoin", &hooks.rejoin)].into_iter();
    let programs = commands.filter_map(|(name, hook)| Some((name, hook.as_ref()?.command.first()?)));
    let named = programs.filter(|(_, program)| program.contains('/')).filter_map(|(name, program)| {
        let problem = not_executable(Path::new(program))?;
        Some(loaded.places.problem(&format!("hooks.{name}.command[0]"), format!("{program} {problem}")))
    });
    named.collect()
}

fn not_executable(program: &Path) -> Option<String> {
    match std::fs::metadata(program) {
        Err(error) => Some(format!("cannot be run: {error}")),
        Ok(found) if !found.is_file() => Some("is no file; expected a program".to_owned()),
        Ok(_) => access(program, AccessFlags::X_OK)
            .is_err()
            .then(|| "is not executable by the user that metako runs as now (chmod +x)".to_owned()),
    }
}

/// Each problem of the rules is one of the key that names their file.
fn hba_file(loaded: &mut Loaded) -> Vec<Problem> {
    let key = "auth.hba_file";
    match rules::load(&loaded.config) {
        Err(problems) => {
            let ident = loaded.config.auth.ident_file.as_ref().map(|path| path.display().to_string());
            let of = |file: &String| if ident.as_ref() == Some(file) { "auth.ident_file" } else { key };
            let named = |problem: &HbaProblem| loaded.places.problem(of(&problem.file), problem.to_string());
            problems.iter().map(named).collect()
        }
        Ok(rules) => {
            let without_tls = loaded.config.security.tls.is_none();
            let idle = rules
                .iter()
                .flat_map(|rules| rules.hba.rules())
                .filter(|rule| rule.needs_tls() && without_tls);
            let warnings = idle.map(|rule| {
                let message = "can fit no client, because TLS is not offered (security.tls_enabled)";
                loaded.places.problem(key, rule.problem(message).to_string())
            });
            let warnings: Vec<Problem> = warnings.collect();
            loaded.warnings.extend(warnings);
            Vec::new()
        }
    }
}

/// Reads text, but no more than [`FILE_MAX`].
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_MAX).read_to_string(&mut text)?;
    Ok(text)
}
