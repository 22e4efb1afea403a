//! As whom PostgreSQL runs: it refuses root.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Uid, User};

use super::PlaygroundError;

/// The user that the servers run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    /// Another user than ours, because ours is root.
    other: Option<(Uid, Gid)>,
}

impl Account {
    /// Ours, or where that is root `postgres`, else `nobody`.
    pub(super) fn choose() -> Result<Self, PlaygroundError> {
        if !Uid::effective().is_root() {
            return Ok(Self { other: None });
        }
        for name in ["postgres", "nobody"] {
            let user = User::from_name(name).map_err(|errno| PlaygroundError::Io {
                what: format!("looking up the user `{name}`"),
                source: errno.into(),
            })?;
            if let Some(user) = user {
                return Ok(Self { other: Some((user.uid, user.gid)) });
            }
        }
        Err(PlaygroundError::NoAccount)
    }

    /// A command that will run as this user, in a process group of its own (a terminal's Ctrl-C is not for it) and
    /// without our environment (`PGPORT` and its kind change what PostgreSQL does).
    pub(super) fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear();
        for name in ["PATH", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("LC_ALL", "C").env("TZ", "UTC").process_group(0).current_dir("/");
        if let Some((uid, gid)) = self.other {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command
    }

    /// Gives a file or folder to this user.
    pub(super) fn own(self, path: &Path) -> Result<(), PlaygroundError> {
        let Some((uid, gid)) = self.other else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(uid.as_raw()), Some(gid.as_raw()))
            .map_err(PlaygroundError::io(format!("giving {} to uid {uid}", path.display())))
    }
}
