//! The file of rules, read from the file system.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use metako_core::config::Config;
use metako_core::hba::{self, Hba, HbaFiles, HbaProblem};

/// The most that is read of one file, in bytes, and the most files of a folder.
const FILE_MAX: u64 = 1 << 20;
const FOLDER_MAX: usize = 10_000;

/// The file system.
#[derive(Debug, Clone, Copy, Default)]
struct SystemFiles;

impl HbaFiles for SystemFiles {
    fn file(&self, path: &Path) -> io::Result<String> {
        let mut text = String::new();
        let read = std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
        if read as u64 > FILE_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it is longer than {FILE_MAX} bytes"),
            ));
        }
        Ok(text)
    }

    fn folder(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(path)?.take(FOLDER_MAX).map(|entry| Ok(entry?.path())).collect()
    }
}

/// Reads the rules of `auth.hba_file`, if there is one. Blocks on the file system.
///
/// # Errors
/// Everything that is wrong with the file, also for this configuration.
pub(crate) fn load(config: &Config) -> Result<Option<Hba>, Vec<HbaProblem>> {
    let Some(path) = &config.auth.hba_file else { return Ok(None) };
    let hba = hba::load(path, &SystemFiles)?;
    if config.security.client_ca.is_some() {
        return Ok(Some(hba));
    }
    let unfit = hba.rules().iter().filter(|rule| rule.needs_certificate());
    let message =
        "asks for a certificate of the client, but there is no security.client_ca_file to check it against";
    let unfit: Vec<_> = unfit.map(|rule| rule.problem(message)).collect();
    if unfit.is_empty() { Ok(Some(hba)) } else { Err(unfit) }
}
