//! Which segments are in the folder, and which of them stay.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use metako_core::cluster::{Decision, DecisionKind};
use metako_core::record::{Line, What};

use super::SEGMENT_BYTES_MAX;

/// Bytes of segments in which something happened that are kept, and their number. The segment that reaches the bound is
/// the last.
const INCIDENTS: Bound = Bound { bytes: 64 << 20, count: 64 };
/// The same of the others, the present one among them as if it were full.
const QUIET: Bound = Bound { bytes: 16 << 20, count: 16 };

/// What happened in a segment, the more reason to keep it the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Nothing.
    Quiet,
    /// The primary was suspected, or started anew, and no more.
    Suspicion,
    /// The primary changed, or was to, or a person was called.
    Incident,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    pub(super) bytes: u64,
    pub(super) count: usize,
}

/// A segment in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// The number of its first line.
    pub(super) first: u64,
    pub(super) class: Class,
    pub(super) path: PathBuf,
    /// None of what is no file, and only has such a name.
    pub(super) bytes: Option<u64>,
}

impl Class {
    /// What a decision makes of its segment.
    pub(super) fn of(kind: DecisionKind) -> Self {
        use DecisionKind as Kind;
        match kind {
            Kind::Adopted
            | Kind::FailoverBegun
            | Kind::SwitchoverBegun
            | Kind::Frozen
            | Kind::Chosen
            | Kind::Promoting
            | Kind::Promoted
            | Kind::Aborted
            | Kind::ManualNeeded => Self::Incident,
            Kind::Suspected | Kind::Restarted | Kind::Vetoed => Self::Suspicion,
            Kind::NodeHealth
            | Kind::NodeRole
            | Kind::ReadPool
            | Kind::Cleared
            | Kind::Opened
            | Kind::Repointed
            | Kind::Refused
            | Kind::Retried
            | Kind::Reconfigured
            | Kind::SyncChanged
            | Kind::Rejoined
            | Kind::Paused
            | Kind::Resumed => Self::Quiet,
        }
    }

    fn ending(self) -> &'static str {
        match self {
            Self::Quiet => ".jsonl",
            Self::Suspicion => "-suspicion.jsonl",
            Self::Incident => "-incident.jsonl",
        }
    }

    /// The path of the segment with this first line.
    pub(super) fn path(self, directory: &Path, first: u64) -> PathBuf {
        directory.join(format!("{first:012}{}", self.ending()))
    }
}

/// The segments in a folder, oldest first.
pub(super) fn list(directory: &Path) -> io::Result<Vec<Listed>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let found = [Class::Incident, Class::Suspicion, Class::Quiet]
            .into_iter()
            .find_map(|class| Some((name.strip_suffix(class.ending())?.parse().ok()?, class)));
        let Some((first, class)) = found else { continue };
        let bytes = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata.is_file().then_some(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        segments.push(Listed { first, class, path, bytes });
    }
    segments.sort_by_key(|segment| (segment.first, segment.class));
    Ok(segments)
}

/// Those of the segments, given oldest first, that are too many; `present` is the one that is written. The segment before
/// one in which something happened is part of it, since that is where it began.
pub(super) fn superfluous<'a>(
    segments: &'a [Listed],
    present: &Path,
    quiet: Bound,
    incidents: Bound,
) -> Vec<&'a Listed> {
    let files: Vec<(&Listed, u64)> = segments
        .iter()
        .filter(|segment| segment.path != present)
        .filter_map(|segment| Some((segment, segment.bytes?)))
        .collect();
    let whole: Vec<(&Listed, u64)> = files.iter().copied().filter(|(_, bytes)| *bytes > 0).collect();
    let present_class = segments.iter().find(|segment| segment.path == present).map(|segment| segment.class);
    let worth = |index: usize| {
        let next = whole.get(index + 1).map(|(next, _)| next.class).or(present_class);
        whole[index].0.class.max(next.unwrap_or(Class::Quiet))
    };
    let mut kept = BTreeSet::new();
    let mut keep = |class: Class, used: &mut Bound, bound: Bound| {
        for (index, (segment, bytes)) in whole.iter().enumerate().rev() {
            if worth(index) == class && used.bytes < bound.bytes && used.count < bound.count {
                used.bytes += bytes;
                used.count += 1;
                kept.insert(segment.first);
            }
        }
    };
    let mut used = Bound { bytes: 0, count: 0 };
    keep(Class::Incident, &mut used, incidents);
    keep(Class::Suspicion, &mut used, incidents);
    keep(Class::Quiet, &mut Bound { bytes: SEGMENT_BYTES_MAX, count: 1 }, quiet);
    files.into_iter().map(|(segment, _)| segment).filter(|segment| !kept.contains(&segment.first)).collect()
}

/// Removes the segments that are too many. What cannot be removed is left, and the first reason given back.
pub(super) fn remove_superfluous(directory: &Path, present: &Path) -> io::Result<()> {
    let segments = list(directory)?;
    let mut result = Ok(());
    for segment in superfluous(&segments, present, QUIET, INCIDENTS) {
        match fs::remove_file(&segment.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let problem = format!("{} cannot be removed: {error}", segment.path.display());
                result = result.and(Err(io::Error::new(error.kind(), problem)));
            }
            _ => {}
        }
    }
    result
}

/// Marks a segment by what happened in it, if it was not: a crash may have come between. Reads no more than a segment holds.
pub(super) fn mark_again(directory: &Path, segment: &Listed) -> io::Result<()> {
    if segment.bytes.is_none() {
        return Ok(());
    }
    let mut bytes = Vec::new();
    File::open(&segment.path)?.take(2 * SEGMENT_BYTES_MAX).read_to_end(&mut bytes)?;
    let class = bytes
        .split(|byte| *byte == b'\n')
        .filter_map(|line| match Line::parse(line).ok()?.what {
            What::Why(decision) => serde_json::from_value::<Decision>(decision).ok(),
            What::Begin(_) | What::In(_) | What::Out(_) => None,
        })
        .map(|decision| Class::of(decision.kind))
        .max();
    match class {
        Some(class) if class > segment.class => {
            fs::rename(&segment.path, class.path(directory, segment.first))
        }
        _ => Ok(()),
    }
}
