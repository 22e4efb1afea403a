use std::os::unix::fs::PermissionsExt as _;

use metako_core::NodeName;
use metako_core::cluster::Decision;
use metako_core::config::{SecretSource, load};
use metako_core::record::{Line, What};

use super::*;
use crate::control::ControlConfig;

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
    listed.iter().map(|(_, _, path)| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn lines(directory: &Path) -> Vec<Vec<Line>> {
    let read = |(_, _, path): (u64, bool, PathBuf)| {
        let text = fs::read(path).unwrap();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.filter_map(|line| Line::parse(line).ok()).collect()
    };
    list(directory).unwrap().into_iter().map(read).collect()
}

/// Hands over steps until the segment is full, then asks for the next, as the recorder does.
fn fill(segments: &mut Segments, kind: Option<DecisionKind>) {
    segments.take(vec![begin(Cause::GoesOn), step(kind)]);
    segments.wanted.store(false, Ordering::Relaxed);
    while !segments.wanted.load(Ordering::Relaxed) {
        segments.take(vec![step(None)]);
    }
}

#[test]
fn segments_are_bounded_in_size_and_number_and_those_with_an_incident_stay_longer() {
    let state = tempfile::tempdir().unwrap();
    let directory = state.path().join(DIRECTORY);
    let mut segments = open(&directory, 20_000);
    for number in 0..30 {
        let kind = (number % 3 == 0).then_some(DecisionKind::Suspected);
        fill(&mut segments, kind);
        let (incidents, quiet): (Vec<_>, Vec<_>) =
            names(&directory).into_iter().partition(|name| name.ends_with(INCIDENT_ENDING));
        assert!(incidents.len() <= INCIDENTS_MAX + 1 && quiet.len() <= QUIET_MAX, "{incidents:?} {quiet:?}");
    }
    let all = lines(&directory);
    assert_eq!(all.len(), INCIDENTS_MAX + QUIET_MAX);
    for (lines, (_, incident, path)) in all.iter().zip(list(&directory).unwrap()) {
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{path:?}");
        assert!((20_000..21_000).contains(&metadata.len()), "{path:?} has {} bytes", metadata.len());
        assert!(matches!(&lines[0].what, What::Begin(begin) if begin.lost == 0), "{path:?}");
        assert!(lines.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1), "{path:?}");
        assert_eq!(lines.iter().any(|line| matches!(line.what, What::Why(_))), incident, "{path:?}");
    }
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_restart_begins_a_segment_and_numbers_go_on_after_a_line_that_a_crash_cut_off() {
    let state = tempfile::tempdir().unwrap();
    let directory = state.path().join(DIRECTORY);
    for run in 0..3 {
        let mut segments = open(&directory, 1 << 20);
        segments.take(vec![begin(Cause::Start), step(None), step(Some(DecisionKind::Aborted))]);
        let (_, _, path) = list(&directory).unwrap().pop().unwrap();
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
    let mut segments = open(&directory, 1 << 20);
    fs::remove_dir(&directory).unwrap();
    segments.take(vec![begin(Cause::Start), step(None), step(None)]);
    assert!(segments.wanted.load(Ordering::Relaxed), "a snapshot is asked for");
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
    let wanted = Arc::new(AtomicBool::new(false));
    let mut segments = Segments::open(state.path(), 1 << 20, Arc::clone(&wanted)).unwrap();
    let (items, mut waiting) = mpsc::channel(4);
    let mut recorder = Recorder::over(items, wanted);
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
    segments.wanted.store(true, Ordering::Relaxed);
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
    assert_eq!(list(state.path()).unwrap().len(), 2, "a gap needs no segment of its own");
    let text = fs::read_to_string(list(state.path()).unwrap().remove(0).2).unwrap();
    assert!(!text.contains("lion"), "{text}");
}
