//! Where journal, history, incident record and admin socket live.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The state directory: `configured` by `state_dir`, else `$STATE_DIRECTORY` (systemd), else `$XDG_STATE_HOME/metako`,
/// else `./metako-state`.
pub fn locate(configured: Option<&Path>, variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    if let Some(path) = configured {
        return path.to_owned();
    }
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(paths) = set("STATE_DIRECTORY") {
        // systemd gives a list when a unit has several; the first is ours.
        return PathBuf::from(paths.split(':').next().unwrap_or(&paths));
    }
    match set("XDG_STATE_HOME") {
        Some(home) => Path::new(&home).join("metako"),
        None => PathBuf::from("metako-state"),
    }
}

/// The admin socket: `configured` by `admin.socket`, else `admin.sock` in the state directory.
pub fn admin_socket(configured: Option<&Path>, state_dir: &Path) -> PathBuf {
    configured.map_or_else(|| state_dir.join("admin.sock"), Path::to_owned)
}

/// Makes the directory if it is missing (mode 0700) and proves that it can be written.
pub fn prepare(path: &Path) -> Result<(), StateDirError> {
    let wrong = |source| StateDirError { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(wrong)?;
    tempfile::tempfile_in(path).map_err(wrong)?;
    Ok(())
}

/// A state directory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the state directory {} cannot be written: {source}; metako keeps its journal there and does not start without it: \
     create it for this user, or set `state_dir`",
    path.display()
)]
pub struct StateDirError {
    path: PathBuf,
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_comes_before_systemd_and_systemd_before_the_home_of_states() {
        let all = |name: &str| Some(format!("/{name}:/other"));
        let home = |name: &str| (name == "XDG_STATE_HOME").then(|| "/home/state".to_owned());
        let empty = |_: &str| Some(String::new());
        assert_eq!(locate(Some(Path::new("/mine")), all), Path::new("/mine"));
        assert_eq!(locate(None, all), Path::new("/STATE_DIRECTORY"));
        assert_eq!(locate(None, home), Path::new("/home/state/metako"));
        assert_eq!(locate(None, empty), Path::new("metako-state"));
    }

    #[test]
    fn a_directory_is_made_once_and_a_file_in_its_place_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        prepare(&path).unwrap();
        prepare(&path).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let error = prepare(&file).unwrap_err().to_string();
        assert!(error.contains("state_dir") && error.contains(file.to_str().unwrap()), "{error}");
    }
}
