//! Writing the segments.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use metako_core::cluster::Action;
use metako_core::record::{Cause, Scribe, Snapshot, Step};

use super::folder::{Class, Listed, list, mark_again, remove_superfluous};
use super::{Item, Shared};
use crate::control::writer::{Sink, last_seq, open_for_append};

/// The files of the record.
pub struct Segments {
    directory: PathBuf,
    bytes_max: u64,
    scribe: Scribe,
    /// Makes a file: another in tests, that fails.
    make: fn(&Path) -> io::Result<File>,
    open: Option<Segment>,
    /// What happened in a segment whose file is gone: the next one takes that over.
    carried: Class,
    /// Steps that could not be written, or that were left out before, since the last state that was written.
    lost: u64,
    /// Something could not be written, and nothing has been since.
    failing: bool,
    /// Something could not be removed, and the log says so.
    unremovable: bool,
    shared: Arc<Shared>,
}

struct Segment {
    first: u64,
    path: PathBuf,
    file: File,
    bytes: u64,
    class: Class,
}

impl Segments {
    pub(super) fn open(directory: &Path, bytes_max: u64, shared: Arc<Shared>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let segments = list(directory)?;
        if let Some(newest) = segments.last()
            && let Err(error) = mark_again(directory, newest)
        {
            tracing::warn!(
                file = %newest.path.display(),
                %error,
                "it is not known whether something happened in this segment of the incident record: it is kept as it is named"
            );
        }
        let next = match segments.last() {
            Some(newest) => number_after(&list(directory)?, newest.first, bytes_max)?,
            None => 1,
        };
        Ok(Self {
            directory: directory.to_owned(),
            bytes_max,
            scribe: Scribe::new(concat!("metako ", env!("CARGO_PKG_VERSION")), next),
            make: open_for_append,
            open: None,
            carried: Class::Quiet,
            lost: 0,
            failing: false,
            unremovable: false,
            shared,
        })
    }

    #[cfg(test)]
    pub(super) fn make_files_with(&mut self, make: fn(&Path) -> io::Result<File>) {
        self.make = make;
    }

    fn write(&mut self, item: Item) -> io::Result<()> {
        match item {
            Item::Begin(snapshot) => self.begin(snapshot),
            Item::Step(step) => self.step(&step),
        }
    }

    fn begin(&mut self, mut snapshot: Snapshot) -> io::Result<()> {
        self.lost += snapshot.lost;
        snapshot.lost = self.lost;
        if self.lost > 0 && snapshot.cause == Cause::GoesOn {
            snapshot.cause = Cause::Gap;
        }
        let mut text = String::new();
        let first = self.scribe.next();
        self.scribe.begin(&snapshot, &mut text);
        match &mut self.open {
            // Asked for while another was on its way.
            Some(open) if open.bytes < self.bytes_max && snapshot.cause != Cause::Start => {
                open.append(&text)?;
            }
            _ => self.begin_segment(first, &text)?,
        }
        if self.failing {
            tracing::info!(lost = self.lost, "the incident record can be written again");
        }
        (self.lost, self.failing) = (0, false);
        Ok(())
    }

    /// Begins a segment with a line, and removes those that are too many now.
    fn begin_segment(&mut self, first: u64, line: &str) -> io::Result<()> {
        self.open = None;
        let class = self.carried;
        let path = class.path(&self.directory, first);
        let file = (self.make)(&path)?;
        let mut segment = Segment { first, path, file, bytes: 0, class };
        if let Err(error) = segment.append(line) {
            // It holds no whole line, and must not stand for one that does.
            if let Err(error) = fs::remove_file(&segment.path) {
                self.not_removed(&error);
            }
            return Err(error);
        }
        self.shared.wanted.store(false, Ordering::Relaxed);
        self.carried = Class::Quiet;
        match remove_superfluous(&self.directory, &segment.path) {
            Ok(()) => self.unremovable = false,
            Err(error) => self.not_removed(&error),
        }
        self.open = Some(segment);
        Ok(())
    }

    fn not_removed(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.unremovable, true) {
            tracing::warn!(
                directory = %self.directory.display(),
                %error,
                "an old segment of the incident record stays: remove it, or let metako do so"
            );
        }
    }

    fn step(&mut self, step: &Step) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            // What follows a part that is missing cannot be replayed.
            self.lose();
            return Ok(());
        };
        let classes = step.actions.iter().filter_map(|action| match action {
            Action::Record { decision } => Some(Class::of(decision.kind)),
            _ => None,
        });
        let class = classes.max().unwrap_or(Class::Quiet);
        if class > open.class {
            // Before the line: after a crash between the two too much is kept, not too little.
            if let Err(error) = open.mark(&self.directory, class) {
                if error.kind() == io::ErrorKind::NotFound {
                    self.carried = class;
                    return Err(error);
                }
                tracing::warn!(
                    file = %open.path.display(),
                    %error,
                    "a segment of the incident record cannot be marked as one in which something happened"
                );
            }
        }
        let mut text = String::new();
        self.scribe.step(step, &mut text);
        open.append(&text)?;
        if open.bytes >= self.bytes_max {
            self.shared.wanted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn lose(&mut self) {
        self.lost += 1;
        self.shared.lost.fetch_add(1, Ordering::Relaxed);
    }
}

impl Segment {
    fn append(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    fn mark(&mut self, directory: &Path, class: Class) -> io::Result<()> {
        let path = class.path(directory, self.first);
        fs::rename(&self.path, &path)?;
        (self.path, self.class) = (path, class);
        Ok(())
    }
}

impl Sink for Segments {
    type Item = Item;

    fn take(&mut self, items: Vec<Item>) {
        for item in items {
            let is_step = matches!(item, Item::Step(_));
            if let Err(error) = self.write(item) {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(
                        directory = %self.directory.display(),
                        %error,
                        "the incident record cannot be written: events are left out of it until it can"
                    );
                }
                // A line that was begun may stand there cut off: what comes next goes into a new file.
                self.open = None;
                if is_step {
                    self.lose();
                }
                self.shared.wanted.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// The number of the next line, where the newest segments begin with the line `first`.
fn number_after(segments: &[Listed], first: u64, bytes_max: u64) -> io::Result<u64> {
    let mut last = Some(first);
    for segment in segments.iter().filter(|segment| segment.first == first) {
        let read = File::open(&segment.path).and_then(|file| last_seq(&file));
        // Its first line may be cut, and then its name is all that is known. It has fewer lines than bytes.
        let found = match read {
            Ok(seq) => Some(seq.max(first)),
            Err(error) => {
                tracing::warn!(
                    file = %segment.path.display(),
                    %error,
                    "a segment of the incident record cannot be read: the numbers of its lines are left out"
                );
                first.checked_add(2 * bytes_max)
            }
        };
        last = last.zip(found).map(|(last, found)| last.max(found));
    }
    last.and_then(|last| last.checked_add(1)).filter(|next| *next < u64::MAX / 2).ok_or_else(|| {
        io::Error::other(format!("the newest segment has the number {first}, which is too large: remove it"))
    })
}
