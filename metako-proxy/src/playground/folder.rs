//! The folder of a cluster, and the watchdog that clears up when its owner cannot.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::PlaygroundError;
use super::account::Account;

/// Reads its standard input until a line comes (the owner has cleared up) or the end (the owner is dead), and in the
/// latter case kills what the cluster left behind. The same marks as in [`super::process::Mark`] tell what is ours.
const WATCHDOG: &str = r#"
if read -r released; then exit 0; fi
tag=${METAKO_ROOT##*/}
clean() {
    for path in $(grep -lsaF "$tag" /proc/[0-9]*/cmdline); do
        shown=$(tr '\000' ' ' 2>/dev/null <"$path") || continue
        pid=${path#/proc/}; pid=${pid%/cmdline}
        case $shown in
            "postgres: $tag-"*|*/postgres" -D $METAKO_ROOT/"*|*/postgres" --single "*" -D $METAKO_ROOT/"*|*/initdb" -D $METAKO_ROOT/"*)
                kill -9 "$pid" 2>/dev/null; found=1;;
        esac
    done
}
for round in 1 2 3 4 5 6 7 8 9 10; do
    found=; clean
    [ -z "$found" ] && break
    sleep 0.1
done
for file in "$METAKO_ROOT"/*/postmaster.pid; do
    segment=$(sed -n '7s/^ *[0-9]* *//p' "$file" 2>/dev/null)
    [ -n "$segment" ] && ipcrm -m "$segment" 2>/dev/null
done
[ -n "$METAKO_KEEP" ] || rm -rf -- "$METAKO_ROOT"
"#;

/// The folder that holds data folders, sockets and logs of one cluster. Removed on `Drop`, unless `METAKO_KEEP` is set.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    keep: bool,
    watchdog: Child,
}

impl Folder {
    /// Makes it, for `account` alone, and starts its watchdog.
    pub(super) fn new(account: Account) -> Result<Self, PlaygroundError> {
        let keep = std::env::var_os("METAKO_KEEP").is_some_and(|value| !value.is_empty() && value != "0");
        let failed = || PlaygroundError::io("making a temporary folder");
        let parent = parent().canonicalize().map_err(failed())?;
        let path = tempfile::Builder::new().prefix("metako-").tempdir_in(parent).map_err(failed())?.keep();
        let watchdog = start_watchdog(&path, keep).inspect_err(|_| drop(std::fs::remove_dir(&path)))?;
        let folder = Self { path, keep, watchdog };
        std::fs::set_permissions(&folder.path, std::fs::Permissions::from_mode(0o700)).map_err(failed())?;
        account.own(&folder.path)?;
        Ok(folder)
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its own name: unique on this machine, and part of what its processes show.
    pub(super) fn tag(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("kept {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
        // A watchdog that is gone has nothing to be told.
        let _ = self.watchdog.stdin.take().map(|mut stdin| stdin.write_all(b"released\n"));
        if let Err(error) = self.watchdog.wait() {
            eprintln!("the watchdog of {} could not be awaited: {error}", self.path.display());
        }
    }
}

/// `METAKO_PLAYGROUND_DIR`, or else the temporary folder. The path of a Unix socket holds 107 bytes: a long `TMPDIR` is
/// not for us.
fn parent() -> PathBuf {
    if let Some(folder) = std::env::var_os("METAKO_PLAYGROUND_DIR") {
        return folder.into();
    }
    let folder = std::env::temp_dir();
    if folder.as_os_str().len() <= 60 { folder } else { PathBuf::from("/tmp") }
}

fn start_watchdog(root: &Path, keep: bool) -> Result<Child, PlaygroundError> {
    Command::new("sh")
        .args(["-c", WATCHDOG, "metako-watchdog"])
        .env("METAKO_ROOT", root)
        .env("METAKO_KEEP", if keep { "1" } else { "" })
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()
        .map_err(PlaygroundError::io("starting the playground's watchdog (sh)"))
}
