//! The configuration: one YAML file, checked whole before anything starts.
//!
//! The text is parsed once into a tree whose scalars keep their text and place; keys, types and spelling are checked
//! there against the schema, strategies' options included, and every problem is collected; only then are the sections
//! deserialised. [`Config`] can hold nothing that the checks would refuse.

mod address;
mod assemble;
mod changes;
mod cross;
mod places;
mod problem;
mod raw;
mod schema;
mod secrets;
mod tree;
mod types;
mod units;

pub use changes::{Change, changes};
pub use places::Places;
pub use problem::{Problem, Problems};
pub(crate) use problem::{did_you_mean, nearest};
pub use secrets::SecretSource;
pub use types::{
    Acks, Admin, AdminAccess, Auth, ChannelBinding, ClusterSettings, Config, FailoverMode, FailoverSettings,
    Hook, Hooks, Limits, Log, LogFormat, NoVoter, Node, NodeTls, PoolMode, PoolSettings, Priority,
    ReplicationAddress, RoleHint, RootCert, Routing, Secret, Security, Split, SslMode, SslNegotiation,
    Strategies, Synchronous, TlsFiles, UnknownOutcome, User,
};
pub use units::{ByteSize, HumanDuration, UnitError};

use places::Checks;
use problem::Findings;

/// A configuration that passed its checks.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The file, as it was named by the caller.
    pub file: String,
    /// The configuration.
    pub config: Config,
    /// What is allowed but doubtful, in the order of the file.
    pub warnings: Vec<Problem>,
    /// Where the keys stand, for checks that come later (files that it names).
    pub places: Places,
}

impl Loaded {
    /// The problems that later checks found, to be reported like those of [`load`].
    pub fn problems(&self, list: Vec<Problem>) -> Problems {
        Problems::new(&self.file, list)
    }
}

/// Reads and checks the text of a configuration. `file_name` is only shown.
///
/// Strategies are looked up among those linked in, and each is built once, so that impossible options are found here.
/// Apart from `secrets` nothing outside is touched: whether TLS files exist is the caller's check.
///
/// # Errors
/// Everything that is wrong, in the order of the file. Text that is no YAML gives one problem.
pub fn load(file_name: &str, text: &str, secrets: &dyn SecretSource) -> Result<Loaded, Problems> {
    let mut findings = Findings::default();
    let tree = match tree::parse(text, &mut findings.problems) {
        Ok(tree) => tree,
        Err(problem) => {
            findings.problems.push(problem);
            return Err(Problems::new(file_name, findings.problems));
        }
    };
    let places = Places::of(&tree);
    let checked = schema::check(raw::schema().as_value(), &tree, "", &mut findings);
    let file: raw::File = match checked.map(serde_json::from_value).transpose() {
        Ok(Some(file)) => file,
        Ok(None) => return Err(Problems::new(file_name, findings.problems)),
        // A gap between schema and structs: better a coarse answer than none.
        Err(error) => {
            findings.problem(tree.place, "", format!("cannot be read: {error}"));
            return Err(Problems::new(file_name, findings.problems));
        }
    };
    let mut checks = Checks { places: &places, findings: &mut findings };
    let secrets = assemble::Secrets::resolve(&file, secrets, &mut checks);
    let strategies = assemble::strategies(&file, &mut checks);
    cross::check(&file, &secrets, &mut checks);
    match strategies {
        Some(strategies) if findings.problems.is_empty() => {
            let Problems { list: warnings, .. } = Problems::new(file_name, findings.warnings);
            let config = assemble::assemble(file, secrets, strategies);
            Ok(Loaded { file: file_name.to_owned(), config, warnings, places })
        }
        _ => Err(Problems::new(file_name, findings.problems)),
    }
}

/// Text of single keys (paths such as `admin.socket`), whatever else is wrong with the file, in the order asked for;
/// `None` where a key is not there, is empty or `none`, or is no scalar. A command on a running proxy finds its socket so, also while the
/// file is being edited.
///
/// # Errors
/// Text that is no YAML at all.
pub fn peek<const N: usize>(
    file_name: &str,
    text: &str,
    keys: [&str; N],
) -> Result<[Option<String>; N], Problems> {
    // Faults that leave a tree are the business of `load`.
    let tree =
        tree::parse(text, &mut Vec::new()).map_err(|problem| Problems::new(file_name, vec![problem]))?;
    Ok(keys.map(|key| {
        let found = key.split('.').try_fold(&tree, |inside, part| {
            inside.entries().iter().find(|entry| entry.key == part).map(|entry| &entry.value)
        })?;
        match &found.value {
            tree::Value::Scalar { text, .. }
                if !text.is_empty() && !found.is_null() && !schema::is_none(found) =>
            {
                Some(text.clone())
            }
            _ => None,
        }
    }))
}

/// Reads another kind of file (a scenario of the simulator) with the same parser, and with errors of the same quality as
/// those of the configuration: its keys, types and spelling are checked against the JSON schema of `T`. The places are for
/// checks that a schema cannot express.
///
/// # Errors
/// Everything that is wrong, in the order of the file. Text that is no YAML gives one problem.
pub fn read<T>(file_name: &str, text: &str) -> Result<(T, Places), Problems>
where
    T: schemars::JsonSchema + serde::de::DeserializeOwned,
{
    let mut findings = Findings::default();
    let tree = match tree::parse(text, &mut findings.problems) {
        Ok(tree) => tree,
        Err(problem) => {
            findings.problems.push(problem);
            return Err(Problems::new(file_name, findings.problems));
        }
    };
    let schema = schemars::SchemaGenerator::default().into_root_schema_for::<T>();
    let checked = schema::check(schema.as_value(), &tree, "", &mut findings);
    match checked.map(serde_json::from_value).transpose() {
        Ok(Some(value)) if findings.problems.is_empty() => Ok((value, Places::of(&tree))),
        Ok(_) => Err(Problems::new(file_name, findings.problems)),
        Err(error) => {
            if findings.problems.is_empty() {
                findings.problem(tree.place, "", format!("cannot be read: {error}"));
            }
            Err(Problems::new(file_name, findings.problems))
        }
    }
}

/// The JSON schema of the file, without the options of strategies: those are in
/// [`StrategyInfo::schema`](crate::plugin::StrategyInfo::schema).
pub fn file_schema() -> schemars::Schema {
    raw::schema()
}

#[cfg(test)]
mod tests;
