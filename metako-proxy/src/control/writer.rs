//! Files that are written beside everything else. What is to be written waits in a bounded queue, and a task of its own
//! takes it from there to the disk: nobody who has something to tell waits for that.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Deserialize;
use tokio::sync::mpsc;

/// Items that are taken from the queue at once.
const BATCH_MAX: usize = 1024;

/// Where items end.
pub trait Sink: Send + 'static {
    /// What it takes.
    type Item: Send + 'static;

    /// Writes items, oldest first. May block. What cannot be written is the sink's to report.
    fn take(&mut self, items: Vec<Self::Item>);
}

/// Carries items from a queue to their sink.
#[derive(Debug)]
pub struct Writer<S: Sink> {
    sink: S,
    items: mpsc::Receiver<S::Item>,
}

/// A queue for so many items, and the writer at its end, which is to be run as a task.
pub(super) fn queue<S: Sink>(sink: S, waiting_max: usize) -> (mpsc::Sender<S::Item>, Writer<S>) {
    let (sender, items) = mpsc::channel(waiting_max);
    (sender, Writer { sink, items })
}

impl<S: Sink> Writer<S> {
    /// Writes until nobody can tell anything more.
    pub async fn run(self) {
        let Self { mut sink, mut items } = self;
        let mut batch = Vec::new();
        while items.recv_many(&mut batch, BATCH_MAX).await > 0 {
            let batch = std::mem::take(&mut batch);
            let work = tokio::task::spawn_blocking(move || {
                sink.take(batch);
                sink
            });
            let Ok(back) = work.await else { return };
            sink = back;
        }
    }
}

/// Opens a file to append to it, readable by its owner alone, and makes it if it is missing.
pub(super) fn open_for_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// The `seq` of the last whole line of JSON that has one; 0 if there is none. Reads from the end, as far as it must.
pub(super) fn last_seq(mut file: &File) -> io::Result<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    let length = file.metadata()?.len();
    let mut size = 1 << 20;
    loop {
        file.seek(SeekFrom::Start(length.saturating_sub(size)))?;
        let mut tail = Vec::new();
        file.take(size).read_to_end(&mut tail)?;
        let mut lines = tail.split(|byte| *byte == b'\n').rev();
        match lines.find_map(|line| serde_json::from_slice::<Numbered>(line).ok()) {
            Some(line) => return Ok(line.seq),
            None if size >= length => return Ok(0),
            None => size *= 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_last_number_is_found_however_long_the_lines_after_it_are() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = open_for_append(&directory.path().join("lines")).unwrap();
        assert_eq!(last_seq(&file).unwrap(), 0);
        file.write_all(b"{\"seq\":3}\n{\"seq\":4}\n").unwrap();
        assert_eq!(last_seq(&file).unwrap(), 4);
        file.write_all(&vec![b'x'; 3 << 20]).unwrap();
        assert_eq!(last_seq(&file).unwrap(), 4, "a line of 3 MiB was cut off");
    }
}
