//! Where PostgreSQL's server programs are.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::PlaygroundError;

/// A folder with `initdb` and `postgres`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Looks in `METAKO_PG_BIN`, or else in Debian's folders (of `major`, or the newest), in `pg_config --bindir`, and
    /// in `PATH`. Blocks for as long as `pg_config` takes.
    pub fn find(major: Option<u32>) -> Result<Self, PlaygroundError> {
        if let Some(folder) = std::env::var_os("METAKO_PG_BIN") {
            let folder = PathBuf::from(folder);
            return Self::in_folder(&folder).ok_or(PlaygroundError::NoPrograms {
                searched: format!("METAKO_PG_BIN={}", folder.display()),
            });
        }
        let debian = Path::new("/usr/lib/postgresql");
        let mut folders = debian_folders(debian, major);
        if major.is_none() {
            folders.extend(pg_config_folder());
            folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        }
        folders.iter().find_map(|folder| Self::in_folder(folder)).ok_or_else(|| PlaygroundError::NoPrograms {
            searched: match major {
                Some(major) => format!("/usr/lib/postgresql/{major}/bin"),
                None => "/usr/lib/postgresql/*/bin, pg_config --bindir, PATH".to_owned(),
            },
        })
    }

    /// The path of one of them.
    pub fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }

    /// Where they are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn in_folder(folder: &Path) -> Option<Self> {
        let complete = ["initdb", "postgres"].iter().all(|name| folder.join(name).is_file());
        complete.then(|| Self { folder: folder.to_owned() })
    }
}

/// `ROOT/MAJOR/bin` of the wanted or of all majors, the newest first.
fn debian_folders(root: &Path, wanted: Option<u32>) -> Vec<PathBuf> {
    let majors = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut majors: Vec<u32> = majors.filter_map(|entry| major_of(&entry.file_name())).collect();
    majors.retain(|major| wanted.is_none_or(|wanted| wanted == *major));
    majors.sort_unstable_by(|a, b| b.cmp(a));
    majors.into_iter().map(|major| root.join(major.to_string()).join("bin")).collect()
}

fn major_of(name: &OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

fn pg_config_folder() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_major_comes_first_by_number() {
        let root = tempfile::tempdir().unwrap();
        for name in ["9", "15", "17", "common", "16.1"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let bin = |major: &str| root.path().join(major).join("bin");
        assert_eq!(debian_folders(root.path(), None), [bin("17"), bin("15"), bin("9")]);
        assert_eq!(debian_folders(root.path(), Some(15)), [bin("15")]);
        assert_eq!(debian_folders(&root.path().join("absent"), None), Vec::<PathBuf>::new());
    }
}
