//! The journal on disk: what the controller must not forget when its process dies.
//!
//! The file holds two lines of JSON: a head with format, length and checksum, and the journal. It is replaced as a whole
//! (temporary file, sync, rename, sync of the directory), so a crash leaves the old journal or the new one. What is neither
//! is recognised by the checksum, set aside for a person to look at, and then counts as lost: a lost journal is a first
//! start, where writes open only when all nodes answer and agree.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use metako_core::cluster::Journal;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

/// The version of the journal that this program reads and writes.
pub const JOURNAL_VERSION: u32 = 1;

const FORMAT: &str = "metako-journal";
const FILE: &str = "journal.json";
const NEW_FILE: &str = "journal.json.new";
const GARBLED_FILE: &str = "journal.json.garbled";
const LOCK_FILE: &str = "lock";

/// Where the journal is kept.
#[cfg_attr(test, mockall::automock)]
#[async_trait]
pub trait JournalStore: Send + Sync {
    /// Reads the journal.
    async fn load(&self) -> Result<Found, JournalError>;

    /// Replaces the journal. When this returns, it has survived a loss of power. One call at a time; a dropped future may
    /// still finish.
    async fn save(&self, journal: &Journal) -> Result<(), JournalError>;
}

/// What was found where the journal is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// There is none: a first start.
    Nothing,
    /// The journal.
    Journal(Box<Journal>),
    /// Something that is no whole journal: counts as lost. It was set aside.
    Garbled {
        /// Where it is now.
        kept_as: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Why the journal cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has the state directory.
    #[error(
        "{0} is in use by another metako: two proxies on one state directory would both decide who is primary; stop the \
         other one, or give this one a `state_dir` of its own"
    )]
    InUse(PathBuf),
    /// The file was written by a later version.
    #[error(
        "{path} has journal version {version}, and this metako knows up to {JOURNAL_VERSION}: run the later version, or \
         move the file away, which makes this a first start"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The operating system refused.
    #[error("{path}: cannot {doing}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
}

/// The journal in a directory, which it locks for itself as long as it lives.
#[derive(Debug)]
pub struct FileJournal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    _lock: Flock<File>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
    bytes: usize,
    sha256: String,
}

impl FileJournal {
    /// Makes the directory if there is none, readable by its owner only, and takes its lock. Blocks for a moment.
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        let directory = directory.to_owned();
        let io = |path: &Path, doing| {
            let path = path.to_owned();
            move |source| JournalError::Io { path, doing, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(io(&directory, "make the state directory"))?;
        let lock_path = directory.join(LOCK_FILE);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io(&lock_path, "open the lock file"))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => JournalError::InUse(directory.clone()),
            errno => io(&lock_path, "lock it")(errno.into()),
        })?;
        Ok(Self { inner: Arc::new(Inner { directory, _lock: lock }) })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }
}

#[async_trait]
impl JournalStore for FileJournal {
    async fn load(&self) -> Result<Found, JournalError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.load()).await
    }

    async fn save(&self, journal: &Journal) -> Result<(), JournalError> {
        let inner = Arc::clone(&self.inner);
        let text = encode(journal);
        blocking(move || inner.replace(&text)).await
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
    }
}

impl Inner {
    fn load(&self) -> Result<Found, JournalError> {
        let path = self.directory.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(source) => return Err(JournalError::Io { path, doing: "read the journal", source }),
        };
        match decode(&bytes) {
            Ok(journal) => Ok(Found::Journal(Box::new(journal))),
            Err(Unreadable::TooNew(version)) => Err(JournalError::TooNew { path, version }),
            Err(Unreadable::Garbled(problem)) => {
                let kept_as = self.directory.join(GARBLED_FILE);
                fs::rename(&path, &kept_as).map_err(|source| JournalError::Io {
                    path,
                    doing: "set the garbled journal aside",
                    source,
                })?;
                Ok(Found::Garbled { kept_as, problem })
            }
        }
    }

    fn replace(&self, text: &str) -> Result<(), JournalError> {
        let new = self.directory.join(NEW_FILE);
        let io = |doing| {
            let path = new.clone();
            move |source| JournalError::Io { path, doing, source }
        };
        // Holds former connection strings, passwords included: for the owner only.
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(io("open the new journal"))?;
        file.write_all(text.as_bytes()).map_err(io("write the new journal"))?;
        file.sync_all().map_err(io("sync the new journal"))?;
        fs::rename(&new, self.directory.join(FILE)).map_err(io("put the new journal in place"))?;
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(|source| {
            JournalError::Io { path: self.directory.clone(), doing: "sync the state directory", source }
        })
    }
}

#[derive(Debug)]
enum Unreadable {
    TooNew(u32),
    Garbled(String),
}

fn encode(journal: &Journal) -> String {
    let body = serde_json::to_string(journal).expect("a journal has only text keys");
    let head = Head {
        format: FORMAT.to_owned(),
        version: JOURNAL_VERSION,
        bytes: body.len(),
        sha256: checksum(body.as_bytes()),
    };
    let head = serde_json::to_string(&head).expect("a head has only text keys");
    format!("{head}\n{body}\n")
}

fn decode(bytes: &[u8]) -> Result<Journal, Unreadable> {
    let garbled = |problem: &dyn std::fmt::Display| Unreadable::Garbled(problem.to_string());
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or_else(|| garbled(&"its first line does not end"))?;
    let head: Head = serde_json::from_slice(&bytes[..end])
        .map_err(|error| garbled(&format!("its first line: {error}")))?;
    if head.format != FORMAT {
        return Err(garbled(&format!("its format is `{}`", head.format)));
    }
    if head.version > JOURNAL_VERSION {
        return Err(Unreadable::TooNew(head.version));
    }
    let rest = &bytes[end + 1..];
    let body = match rest.split_last() {
        Some((b'\n', body)) if body.len() == head.bytes => body,
        _ => return Err(garbled(&format!("it has {} bytes where {} should be", rest.len(), head.bytes + 1))),
    };
    if checksum(body) != head.sha256 {
        return Err(garbled(&"its checksum does not fit"));
    }
    serde_json::from_slice(body).map_err(|error| garbled(&error))
}

fn checksum(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in digest(&SHA256, bytes).as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt as _;

    use metako_core::cluster::{Attempt, JournalPhase, Observed, SyncRule};
    use metako_core::plugin::ServerRun;
    use metako_core::{Epoch, Lsn, NodeName, SystemId, TimelineId};
    use proptest::prelude::*;

    use super::*;

    fn journal(epoch: u64) -> Journal {
        Journal {
            version: 1,
            cluster: "main".to_owned(),
            system_id: SystemId(u64::MAX),
            epoch: Epoch(epoch),
            primary: NodeName::from("a"),
            timeline: TimelineId(1),
            fork: None,
            last_record: Some(Lsn(0x300_0000)),
            phase: JournalPhase::Promoting {
                candidate: NodeName::from("b"),
                timeline: TimelineId(2),
                fork: Lsn(0x300_0060),
            },
            sync: SyncRule::Quorum { acks: 1, voters: vec![NodeName::from("b")] },
            attempts: vec![Attempt { node: NodeName::from("b"), timeline: TimelineId(2) }],
            tainted: vec![NodeName::from("c")],
            displaced: vec![NodeName::from("a")],
            paused: true,
            sync_names: BTreeMap::from([(NodeName::from("a"), vec!["ANY 1 (\"b\")".to_owned()])]),
            observed: Observed { started_at: Some(-7), rivals: vec![NodeName::from("c")], away: true },
            floor: Some(Lsn(0x300_0060)),
            reached: Some((TimelineId(1), Lsn(0x300_0060))),
            run: Some(ServerRun { started_at: 1_700_000_000_000_000, checkpointer: Some(4711) }),
            saved: BTreeMap::from([(
                NodeName::from("b"),
                BTreeMap::from([
                    ("primary_conninfo".to_owned(), Some("host=a password='ä\"'".to_owned())),
                    ("restore_command".to_owned(), None),
                ]),
            )]),
        }
    }

    #[tokio::test]
    async fn a_journal_survives_a_restart_and_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("state");
        let store = FileJournal::open(&directory).unwrap();
        assert_eq!(store.load().await.unwrap(), Found::Nothing);
        for epoch in 1..4 {
            store.save(&journal(epoch)).await.unwrap();
        }
        drop(store);
        let store = FileJournal::open(&directory).unwrap();
        assert_eq!(store.load().await.unwrap(), Found::Journal(Box::new(journal(3))));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join(FILE))), (0o700, 0o600));
    }

    #[tokio::test]
    async fn a_second_proxy_is_refused_while_the_first_lives() {
        let directory = tempfile::tempdir().unwrap();
        let first = FileJournal::open(directory.path()).unwrap();
        let refused = FileJournal::open(directory.path()).unwrap_err();
        assert!(matches!(refused, JournalError::InUse(_)), "{refused}");
        drop(first);
        FileJournal::open(directory.path()).unwrap();
    }

    #[tokio::test]
    async fn a_crash_before_the_rename_leaves_the_old_journal() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileJournal::open(directory.path()).unwrap();
        store.save(&journal(1)).await.unwrap();
        let half = encode(&journal(2));
        fs::write(directory.path().join(NEW_FILE), &half[..half.len() / 2]).unwrap();
        assert_eq!(store.load().await.unwrap(), Found::Journal(Box::new(journal(1))));
        store.save(&journal(3)).await.unwrap();
        assert_eq!(store.load().await.unwrap(), Found::Journal(Box::new(journal(3))));
    }

    #[tokio::test]
    async fn a_garbled_journal_is_set_aside_and_counts_as_lost() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileJournal::open(directory.path()).unwrap();
        let text = encode(&journal(1)).replace("\"a\"", "\"x\"");
        fs::write(directory.path().join(FILE), &text).unwrap();
        let Found::Garbled { kept_as, problem } = store.load().await.unwrap() else { panic!() };
        assert_eq!(problem, "its checksum does not fit");
        assert_eq!(fs::read_to_string(kept_as).unwrap(), text);
        assert_eq!(store.load().await.unwrap(), Found::Nothing);
    }

    #[tokio::test]
    async fn a_later_version_is_neither_read_nor_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileJournal::open(directory.path()).unwrap();
        let text = encode(&journal(1)).replacen("\"version\":1", "\"version\":2", 1);
        fs::write(directory.path().join(FILE), text).unwrap();
        let error = store.load().await.unwrap_err();
        assert!(matches!(error, JournalError::TooNew { version: 2, .. }), "{error}");
        assert!(directory.path().join(FILE).exists());
    }

    proptest! {
        #[test]
        fn no_torn_or_changed_journal_is_taken_for_whole(cut in 0_usize..400, at in 0_usize..400, bit in 0_u8..8) {
            let whole = encode(&journal(7)).into_bytes();
            prop_assert_eq!(decode(&whole).unwrap(), journal(7));
            let torn = &whole[..cut.min(whole.len() - 1)];
            prop_assert!(decode(torn).is_err());
            let body_starts = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
            let mut changed = whole.clone();
            let at = body_starts + at % (whole.len() - body_starts);
            changed[at] ^= 1 << bit;
            prop_assert!(decode(&changed).is_err());
        }
    }
}
