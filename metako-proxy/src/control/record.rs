//! Writes decisions down: to the log, to `history.jsonl`, and to the memory that `status` reads.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metako_core::cluster::{Decision, DecisionKind};
use metako_core::record::timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::writer::{Sink, Writer, last_seq, open_for_append, queue};

/// Size from which the history goes on in a new file; one old file is kept beside it.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Decisions kept in memory.
const RECENT_MAX: usize = 200;
/// Decisions that may wait for the disk.
const WAITING_MAX: usize = 1024;

const FILE: &str = "history.jsonl";
const OLD_FILE: &str = "history.1.jsonl";

/// A decision as the history holds it: one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Version of this format: 1.
    pub v: u32,
    /// Counts entries, over restarts too.
    pub seq: u64,
    /// When, RFC 3339 in UTC, by the proxy's wall clock.
    pub at: String,
    /// The decision.
    #[serde(flatten)]
    pub decision: Decision,
}

/// The history of decisions.
#[derive(Debug)]
pub struct History {
    state: Mutex<State>,
    /// Decisions that are not in the file: what the queue refused, and what the disk did.
    unwritten: Arc<AtomicU64>,
}

#[derive(Debug)]
struct State {
    next: u64,
    recent: VecDeque<Entry>,
    /// To the writer; none when there is none, or no longer.
    lines: Option<mpsc::Sender<String>>,
}

impl History {
    /// A history that goes on where the file in `directory` ends. Its writer is to be run as a task. Blocks for a moment.
    pub fn open(directory: &Path) -> io::Result<(Arc<Self>, Writer<HistoryFile>)> {
        let (file, last) = HistoryFile::open(directory, FILE_BYTES_MAX)?;
        let unwritten = Arc::clone(&file.unwritten);
        let (sender, writer) = queue(file, WAITING_MAX);
        let state = State { next: last + 1, recent: VecDeque::new(), lines: Some(sender) };
        Ok((Arc::new(Self { state: Mutex::new(state), unwritten }), writer))
    }

    /// A history in memory only.
    pub fn in_memory() -> Arc<Self> {
        let state = State { next: 1, recent: VecDeque::new(), lines: None };
        Arc::new(Self { state: Mutex::new(state), unwritten: Arc::default() })
    }

    /// Writes a decision down. `wall_clock` is the time since 1970. Does not wait for the disk: when that is far behind,
    /// the line is dropped from the file and the log says so.
    pub fn record(&self, wall_clock: Duration, decision: Decision) {
        log(&decision);
        let mut state = self.state.lock();
        let entry = Entry { v: 1, seq: state.next, at: timestamp(wall_clock), decision };
        state.next += 1;
        if let Some(lines) = &state.lines {
            let line = serde_json::to_string(&entry).expect("an entry has only text keys");
            let refused = lines.try_send(line).is_err();
            if refused {
                let before = self.unwritten.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    unwritten = before + 1,
                    "the history file is behind: a decision is in the log only"
                );
            }
        }
        if state.recent.len() == RECENT_MAX {
            state.recent.pop_front();
        }
        state.recent.push_back(entry);
    }

    /// Ends the file: the writer writes what it has been given, and ends. Later decisions are in memory and in the log
    /// only.
    pub fn close(&self) {
        self.state.lock().lines = None;
    }

    /// The number of the last decision.
    pub fn last(&self) -> u64 {
        self.state.lock().next - 1
    }

    /// Decisions of this process that are not in the file, because it was behind or could not be written.
    pub fn unwritten(&self) -> u64 {
        self.unwritten.load(Ordering::Relaxed)
    }

    /// The decisions after the one with this number, oldest first, as far as they are in memory.
    pub fn after(&self, after: u64) -> Vec<Entry> {
        self.state.lock().recent.iter().filter(|entry| entry.seq > after).cloned().collect()
    }

    /// The last decisions since the start, oldest first.
    pub fn recent(&self, count: usize) -> Vec<Entry> {
        let state = self.state.lock();
        state.recent.iter().skip(state.recent.len().saturating_sub(count)).cloned().collect()
    }
}

fn log(decision: &Decision) {
    let Decision { kind, node, epoch, reason } = decision;
    let node = node.as_ref().map(tracing::field::display);
    if is_warning(*kind) {
        tracing::warn!(target: "metako::decision", kind = kind.name(), node, epoch = epoch.0, "{reason}");
    } else {
        tracing::info!(target: "metako::decision", kind = kind.name(), node, epoch = epoch.0, "{reason}");
    }
}

/// Whether somebody should look.
fn is_warning(kind: DecisionKind) -> bool {
    use DecisionKind as Kind;
    match kind {
        Kind::Suspected
        | Kind::Restarted
        | Kind::FailoverBegun
        | Kind::Vetoed
        | Kind::Refused
        | Kind::Retried
        | Kind::Aborted
        | Kind::ManualNeeded => true,
        Kind::NodeHealth
        | Kind::NodeRole
        | Kind::ReadPool
        | Kind::Adopted
        | Kind::Cleared
        | Kind::Frozen
        | Kind::Chosen
        | Kind::Promoting
        | Kind::Promoted
        | Kind::Opened
        | Kind::Repointed
        | Kind::Reconfigured
        | Kind::SyncChanged
        | Kind::SwitchoverBegun
        | Kind::Rejoined
        | Kind::Paused
        | Kind::Resumed => false,
    }
}

impl Sink for HistoryFile {
    type Item = String;

    fn take(&mut self, lines: Vec<String>) {
        let mut first = None;
        for line in &lines {
            if let Err(error) = self.append(line) {
                self.unwritten.fetch_add(1, Ordering::Relaxed);
                first.get_or_insert(error);
            }
        }
        if let Some(error) = first {
            tracing::warn!(file = %self.path.display(), %error, "the history could not be written: decisions are in the log only");
        }
    }
}

/// The file of a [`History`].
#[derive(Debug)]
pub struct HistoryFile {
    path: PathBuf,
    old: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
    /// A line may stand there cut off.
    cut: bool,
    unwritten: Arc<AtomicU64>,
}

impl HistoryFile {
    /// Opens the file and finds the number of its last entry. A line that a crash cut off is ended, so that the next one
    /// stands by itself.
    fn open(directory: &Path, bytes_max: u64) -> io::Result<(Self, u64)> {
        let (path, old) = (directory.join(FILE), directory.join(OLD_FILE));
        let mut file = open_for_append(&path)?;
        let mut last = last_seq(&file)?;
        if last == 0
            && let Ok(file) = File::open(&old)
        {
            last = last_seq(&file)?;
        }
        let mut bytes = file.metadata()?.len();
        if bytes > 0 && !ends_a_line(&file)? {
            file.write_all(b"\n")?;
            bytes += 1;
        }
        Ok((Self { path, old, file, bytes, bytes_max, cut: false, unwritten: Arc::default() }, last))
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 >= self.bytes_max {
            fs::rename(&self.path, &self.old)?;
            self.file = open_for_append(&self.path)?;
            self.bytes = 0;
        }
        let line = format!("{}{line}\n", if self.cut { "\n" } else { "" });
        self.cut = true;
        self.file.write_all(line.as_bytes())?;
        self.cut = false;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// The last entries in a state directory, oldest first. Lines that are no entries are left out. Blocks.
///
/// # Errors
///
/// There is no history, or it cannot be read.
pub fn read_history(directory: &Path, count: usize) -> io::Result<Vec<Entry>> {
    let mut entries = entries_in(&directory.join(FILE))?;
    if entries.len() < count {
        match entries_in(&directory.join(OLD_FILE)) {
            Ok(older) => entries.splice(..0, older).for_each(drop),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(entries.split_off(entries.len().saturating_sub(count)))
}

fn entries_in(path: &Path) -> io::Result<Vec<Entry>> {
    let text = fs::read(path)?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

fn ends_a_line(mut file: &File) -> io::Result<bool> {
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use metako_core::{Epoch, NodeName};

    use super::*;

    fn decision(reason: &str) -> Decision {
        Decision {
            kind: DecisionKind::FailoverBegun,
            node: Some(NodeName::from("a")),
            epoch: Epoch(2),
            reason: reason.to_owned(),
        }
    }

    fn lines(directory: &Path) -> Vec<String> {
        fs::read_to_string(directory.join(FILE)).unwrap().lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn entries_are_lines_of_json_numbered_over_restarts() {
        let directory = tempfile::tempdir().unwrap();
        for reason in ["first", "second"] {
            let (history, writer) = History::open(directory.path()).unwrap();
            history.record(Duration::from_millis(1_700_000_000_123), decision(reason));
            assert_eq!(history.recent(10).len(), 1);
            history.close();
            history.record(Duration::ZERO, decision("after the end of the file"));
            writer.run().await;
            assert_eq!(history.recent(10).len(), 2);
        }
        assert_eq!(
            lines(directory.path()),
            [
                r#"{"v":1,"seq":1,"at":"2023-11-14T22:13:20.123Z","kind":"failover_begun","node":"a","epoch":2,"reason":"first"}"#,
                r#"{"v":1,"seq":2,"at":"2023-11-14T22:13:20.123Z","kind":"failover_begun","node":"a","epoch":2,"reason":"second"}"#,
            ]
        );
    }

    #[tokio::test]
    async fn a_line_that_a_crash_cut_off_does_not_spoil_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let (history, writer) = History::open(directory.path()).unwrap();
        history.record(Duration::ZERO, decision("whole"));
        drop(history);
        writer.run().await;
        open_for_append(&directory.path().join(FILE)).unwrap().write_all(b"{\"v\":1,\"se").unwrap();
        let (history, writer) = History::open(directory.path()).unwrap();
        history.record(Duration::ZERO, decision("after"));
        drop(history);
        writer.run().await;
        let lines = lines(directory.path());
        assert_eq!(lines.len(), 3);
        assert_eq!(serde_json::from_str::<Entry>(&lines[2]).unwrap().seq, 2);
    }

    #[test]
    fn the_file_is_bounded_and_numbers_go_on_after_it_was_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, last) = HistoryFile::open(directory.path(), 1000).unwrap();
        assert_eq!(last, 0);
        for seq in 1..=100 {
            let entry = Entry { v: 1, seq, at: timestamp(Duration::ZERO), decision: decision("why") };
            file.append(&serde_json::to_string(&entry).unwrap()).unwrap();
        }
        for name in [FILE, OLD_FILE] {
            let bytes = fs::metadata(directory.path().join(name)).unwrap().len();
            assert!((1..=1000).contains(&bytes), "{name} has {bytes} bytes");
        }
        let (_, last) = HistoryFile::open(directory.path(), 1000).unwrap();
        assert_eq!(last, 100);
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, _) = HistoryFile::open(directory.path(), 1000).unwrap();
        let unwritten = Arc::clone(&file.unwritten);
        let good = std::mem::replace(&mut file.file, File::options().write(true).open("/dev/full").unwrap());
        file.take(vec!["first".to_owned(), "second".to_owned()]);
        assert_eq!(unwritten.load(Ordering::Relaxed), 2);
        file.file = good;
        file.take(vec!["third".to_owned()]);
        assert_eq!(unwritten.load(Ordering::Relaxed), 2);
        assert_eq!(lines(directory.path()), ["", "third"]);
    }

    #[test]
    fn memory_keeps_the_last_decisions_only() {
        let history = History::in_memory();
        for _ in 0..RECENT_MAX + 10 {
            history.record(Duration::ZERO, decision("why"));
        }
        let recent = history.recent(usize::MAX);
        assert_eq!(recent.len(), RECENT_MAX);
        assert_eq!(recent[0].seq, 11);
        assert_eq!(history.recent(2).len(), 2);
    }
}
