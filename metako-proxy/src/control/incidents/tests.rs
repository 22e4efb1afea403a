use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use metako_core::NodeName;
use metako_core::cluster::{Decision, DecisionKind};
use metako_core::config::{SecretSource, load};
use metako_core::record::{Line, What};

use super::folder::{Bound, Class, Listed, list, superfluous};
use super::*;
use crate::control::ControlConfig;
use crate::control::writer::{Sink as _, open_for_append};

struct NoSecrets;

impl SecretSource for NoSecrets {
    fn env(&self, _: &str) -> Option<String> {
        None
    }

    fn file(&self, path: &Path) -> io::Result<String> {
        panic!("{} is read", path.display())
    }
}

fn controller() -> Controller {
    let yaml =
        "nodes:\n  - { name: a, host: localhost, port: 5001, username: u, password: lion, database: d }\n";
    let config = load("metako.yaml", yaml, &NoSecrets).unwrap().config;
    let ControlConfig { settings, policy, .. } = ControlConfig::build(&config).unwrap();
    Controller::new(settings, policy, None, Tick::ZERO)
}

fn open(directory: &Path, bytes_max: u64) -> Segments {
    Segments::open(directory, bytes_max, Arc::default()).unwrap()
}

fn begin(cause: Cause) -> Item {
    let controller = Box::new(controller());
    Item::Begin(Snapshot { at: Duration::ZERO, now: Tick::ZERO, cause, lost: 0, controller })
}

fn step(kind: Option<DecisionKind>) -> Item {
    let decision = |kind| Decision {
        kind,
        node: Some(NodeName::from("a")),
        epoch: metako_core::Epoch(1),
        reason: "because".to_owned(),
    };
    let actions = kind.map(|kind| Action::Record { decision: decision(kind) }).into_iter().collect();
    Item::Step(Step { at: Duration::ZERO, now: Tick::ZERO, event: Event::Timer, actions })
}

fn names(directory: &Path) -> Vec<String> {
    let listed = list(directory).unwrap();
    listed.iter().map(|segment| segment.path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn lines(directory: &Path) -> Vec<Vec<Line>> {
    let read = |segment: Listed| {
        let text = fs::read(segment.path).unwrap();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.filter_map(|line| Line::parse(line).ok()).collect()
    };
    list(directory).unwrap().into_iter().map(read).collect()
}

fn wanted(shared: &Shared) -> bool {
    shared.wanted.load(Ordering::Relaxed)
}

/// Hands over steps until the segment is full.
fn fill(segments: &mut Segments, shared: &Shared, kind: Option<DecisionKind>) {
    segments.take(vec![begin(Cause::GoesOn), step(kind)]);
    assert!(!wanted(shared), "a segment was begun");
    while !wanted(shared) {
        segments.take(vec![step(None)]);
    }
}

/// A segment of so many bytes.
fn segment(first: u64, class: Class, bytes: u64) -> Listed {
    Listed { first, class, path: class.path(Path::new("record"), first), bytes: Some(bytes) }
}

/// The numbers of the segments that stay; the last one is the present one.
fn kept(segments: &[Listed], quiet: u64, incidents: u64) -> Vec<u64> {
    let bound = |bytes| Bound { bytes, count: 64 };
    let quiet = bound(quiet + SEGMENT_BYTES_MAX);
    let removed = superfluous(segments, &segments[segments.len() - 1].path, quiet, bound(incidents));
    segments.iter().filter(|segment| !removed.contains(segment)).map(|segment| segment.first).collect()
}

#[test]
fn segments_are_bounded_in_size_and_number() {
    let state = tempfile::tempdir().unwrap();
    let directory = state.path().join(DIRECTORY);
    let shared = Arc::new(Shared::default());
    let mut segments = Segments::open(&directory, 20_000, Arc::clone(&shared)).unwrap();
    for number in 0..60 {
        let kind = (number % 20 == 0).then_some(DecisionKind::Promoted);
        fill(&mut segments, &shared, kind);
    }
    let all = lines(&directory);
    let listed = list(&directory).unwrap();
    let quiet = listed.iter().filter(|segment| segment.class == Class::Quiet).count();
    assert_eq!(
        (all.len(), quiet),
        (21, 18),
        "fifteen, the present one, and two in front of an incident: {listed:?}"
    );
    for (lines, segment) in all.iter().zip(listed) {
        let metadata = fs::metadata(&segment.path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{segment:?}");
        assert!((20_000..21_000).contains(&metadata.len()), "{segment:?}");
        assert!(matches!(&lines[0].what, What::Begin(begin) if begin.lost == 0), "{segment:?}");
        assert!(lines.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1), "{segment:?}");
        let decided = lines.iter().any(|line| matches!(line.what, What::Why(_)));
        assert_eq!(decided, segment.class == Class::Incident, "{segment:?}");
    }
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn an_incident_stays_longer_than_suspicions_and_with_the_segment_before_it() {
    use Class::{Incident, Quiet, Suspicion};
    let mut segments = vec![segment(1, Quiet, 10), segment(2, Quiet, 10), segment(3, Incident, 10)];
    segments.extend((4..50).map(|first| segment(first, Suspicion, 10)));
    segments.extend((50..60).map(|first| segment(first, Quiet, 10)));
    // 50 is the first that is not before a suspicion; 59 is the present one.
    assert_eq!(kept(&segments, 20, 50), [2, 3, 47, 48, 49, 57, 58, 59]);
    segments.last_mut().unwrap().class = Incident;
    assert_eq!(kept(&segments, 20, 50), [2, 3, 48, 49, 56, 57, 58, 59], "58 is where it began");
    let empty = vec![segment(1, Quiet, 10), segment(2, Quiet, 0), segment(3, Quiet, 0), segment(4, Quiet, 5)];
    assert_eq!(kept(&empty, 10, 0), [1, 4], "what is empty stands for nothing");
    let mut directory = segment(2, Quiet, 0);
    directory.bytes = None;
    assert_eq!(kept(&[segment(1, Quiet, 10), directory, segment(3, Quiet, 5)], 10, 0), [1, 2, 3]);
}

#[test]
fn a_snapshot_that_was_asked_for_twice_begins_one_segment() {
    let state = tempfile::tempdir().unwrap();
    let shared = Arc::new(Shared::default());
    let mut segments = Segments::open(state.path(), 20_000, Arc::clone(&shared)).unwrap();
    fill(&mut segments, &shared, None);
    // A backlog: the recorder hears of the full segment again before its first snapshot is written.
    segments.take(vec![step(None), begin(Cause::GoesOn), step(None), begin(Cause::GoesOn), step(None)]);
    assert!(!wanted(&shared));
    assert_eq!(names(state.path()).len(), 2);
    let last = lines(state.path()).pop().unwrap();
    assert_eq!(last.iter().filter(|line| matches!(line.what, What::Begin(_))).count(), 2);
}

/// A file on a disk that is full.
fn full(path: &Path) -> io::Result<File> {
    open_for_append(path)?;
    File::options().append(true).open("/dev/full")
}

#[test]
fn a_full_disk_leaves_no_empty_segments_and_pushes_none_out() {
    let state = tempfile::tempdir().unwrap();
    let shared = Arc::new(Shared::default());
    let mut segments = Segments::open(state.path(), 20_000, Arc::clone(&shared)).unwrap();
    for kind in [Some(DecisionKind::Promoted), None, None] {
        fill(&mut segments, &shared, kind);
    }
    let before = names(state.path());
    segments.make_files_with(full);
    for _ in 0..100 {
        segments.take(vec![begin(Cause::GoesOn), step(None)]);
        assert!(wanted(&shared), "a snapshot is asked for again");
    }
    assert_eq!(names(state.path()), before);
    assert_eq!(shared.lost.load(Ordering::Relaxed), 100);
    segments.make_files_with(open_for_append);
    let Item::Begin(mut snapshot) = begin(Cause::Gap) else { unreachable!() };
    snapshot.lost = 7;
    segments.make_files_with(full);
    segments.take(vec![Item::Begin(snapshot)]);
    segments.make_files_with(open_for_append);
    segments.take(vec![begin(Cause::GoesOn)]);
    let last = lines(state.path()).pop().unwrap();
    let What::Begin(begun) = &last[0].what else { panic!("{last:?}") };
    assert_eq!((begun.lost, begun.cause), (107, Cause::Gap), "those that the recorder left out as well");
}

#[test]
fn what_cannot_be_read_or_removed_does_not_stop_the_record() {
    let state = tempfile::tempdir().unwrap();
    let directory = state.path().join(DIRECTORY);
    fs::create_dir_all(directory.join("000000000007.jsonl")).unwrap();
    let mut segments = open(&directory, 1000);
    segments.take(vec![begin(Cause::Start)]);
    assert_eq!(
        lines_of(&directory, "000000002008.jsonl")[0].seq,
        2008,
        "no number twice: it cannot have held more lines"
    );
    fs::write(directory.join("99999999999999999999.jsonl"), "").unwrap();
    drop(open(&directory, 1000));
    fs::write(directory.join(format!("{}.jsonl", u64::MAX)), "").unwrap();
    assert!(Recorder::open(state.path()).is_err(), "there is no number after it");
    let other = tempfile::tempdir().unwrap();
    fs::write(other.path().join(DIRECTORY), "").unwrap();
    assert!(Recorder::open(other.path()).is_err(), "the caller goes on without");
}

fn lines_of(directory: &Path, name: &str) -> Vec<Line> {
    let text = fs::read(directory.join(name)).unwrap();
    text.split(|byte| *byte == b'\n').filter_map(|line| Line::parse(line).ok()).collect()
}

#[test]
fn a_segment_is_marked_before_the_line_that_makes_it_an_incident() {
    let state = tempfile::tempdir().unwrap();
    let directory = state.path();
    let mut segments = open(directory, 1 << 20);
    segments.take(vec![begin(Cause::Start), step(Some(DecisionKind::Suspected))]);
    assert_eq!(names(directory), ["000000000001-suspicion.jsonl"]);
    segments.take(vec![step(Some(DecisionKind::ManualNeeded)), step(Some(DecisionKind::Suspected))]);
    assert_eq!(names(directory), ["000000000001-incident.jsonl"]);

    segments.take(vec![begin(Cause::Start)]);
    fs::remove_file(&list(directory).unwrap()[1].path).unwrap();
    segments.take(vec![step(Some(DecisionKind::Promoting)), begin(Cause::GoesOn), step(None)]);
    let last = names(directory).pop().unwrap();
    assert!(
        last.ends_with("-incident.jsonl"),
        "the mark went over from the file that somebody removed: {last}"
    );
    assert_eq!(lines_of(directory, &last).len(), 2);
}

#[test]
fn a_mark_that_is_missing_is_made_at_the_start() {
    let state = tempfile::tempdir().unwrap();
    let directory = state.path();
    open(directory, 1 << 20).take(vec![begin(Cause::Start), step(Some(DecisionKind::Promoted))]);
    let quiet = directory.join("000000000001.jsonl");
    fs::rename(directory.join("000000000001-incident.jsonl"), &quiet).unwrap();
    open_for_append(&quiet).unwrap().write_all(b"{\"v\":1,\"se").unwrap();
    open(directory, 1 << 20).take(vec![begin(Cause::Start)]);
    assert_eq!(names(directory), ["000000000001-incident.jsonl", "000000000004.jsonl"]);
}

#[test]
fn a_restart_begins_a_segment_and_numbers_go_on_after_a_line_that_a_crash_cut_off() {
    let state = tempfile::tempdir().unwrap();
    let directory = state.path().join(DIRECTORY);
    for run in 0..3 {
        let mut segments = open(&directory, 1 << 20);
        segments.take(vec![begin(Cause::Start), step(None), step(Some(DecisionKind::Aborted))]);
        let path: PathBuf = list(&directory).unwrap().pop().unwrap().path;
        let cut: &[u8] = [b"{\"v\":1,\"se".as_slice(), b"", b"\0\0\0"][run];
        open_for_append(&path).unwrap().write_all(cut).unwrap();
    }
    let seqs: Vec<u64> = lines(&directory).iter().flatten().map(|line| line.seq).collect();
    assert_eq!(seqs, (1..=12).collect::<Vec<_>>());
    // A crash right after the file was made.
    let cut = directory.join("000000000013.jsonl");
    open_for_append(&cut).unwrap().write_all(b"{\"v\"").unwrap();
    open(&directory, 1 << 20).take(vec![begin(Cause::Start)]);
    assert_eq!(names(&directory).last().unwrap(), "000000000014.jsonl");
    assert_eq!(lines(&directory).last().unwrap()[0].seq, 14);
}

#[test]
fn what_a_disk_that_fails_did_not_take_is_counted() {
    let state = tempfile::tempdir().unwrap();
    let directory = state.path().join(DIRECTORY);
    let shared = Arc::new(Shared::default());
    let mut segments = Segments::open(&directory, 1 << 20, Arc::clone(&shared)).unwrap();
    fs::remove_dir(&directory).unwrap();
    segments.take(vec![begin(Cause::Start), step(None), step(None)]);
    assert!(wanted(&shared), "a snapshot is asked for");
    fs::create_dir(&directory).unwrap();
    segments.take(vec![step(None), begin(Cause::GoesOn), step(None)]);
    let lines = lines(&directory).concat();
    let What::Begin(begin) = &lines[0].what else { panic!("{lines:?}") };
    assert_eq!((begin.lost, begin.cause), (3, Cause::Gap));
    assert_eq!(lines.len(), 2);
}

#[test]
fn a_full_queue_never_makes_the_controller_wait_and_is_told_in_the_record() {
    let state = tempfile::tempdir().unwrap();
    let shared = Arc::new(Shared::default());
    let mut segments = Segments::open(state.path(), 1 << 20, Arc::clone(&shared)).unwrap();
    let (items, mut waiting) = mpsc::channel(4);
    let mut recorder = Recorder::over(items, Arc::clone(&shared));
    let mut controller = controller();
    let mut handle = |at: u64, recorder: &mut Recorder| {
        let mut actions = Vec::new();
        recorder.handle(
            &mut controller,
            Duration::from_secs(at),
            Tick::from_millis(at * 1_000),
            Event::Timer,
            &mut actions,
        );
        actions.len()
    };
    // A snapshot and three steps fit.
    let asked: usize = (1..=10).map(|at| handle(at, &mut recorder)).sum();
    assert!(asked > 0, "the controller asks its node");
    let mut drain = |segments: &mut Segments| {
        while let Ok(item) = waiting.try_recv() {
            segments.take(vec![item]);
        }
    };
    drain(&mut segments);
    handle(11, &mut recorder);
    drain(&mut segments);
    shared.wanted.store(true, Ordering::Relaxed);
    handle(12, &mut recorder);
    drain(&mut segments);
    drop(waiting);
    handle(13, &mut recorder);
    let begins: Vec<(Cause, u64)> = lines(state.path())
        .concat()
        .iter()
        .filter_map(|line| match &line.what {
            What::Begin(begin) => Some((begin.cause, begin.lost)),
            _ => None,
        })
        .collect();
    assert_eq!(begins, [(Cause::Start, 0), (Cause::Gap, 7), (Cause::GoesOn, 0)]);
    assert_eq!(shared.lost.load(Ordering::Relaxed), 8, "the last one as well: nobody takes it any more");
    assert_eq!(list(state.path()).unwrap().len(), 1, "none of these needs a segment of its own");
    let text = fs::read_to_string(list(state.path()).unwrap().remove(0).path).unwrap();
    assert!(!text.contains("lion"), "{text}");
}
