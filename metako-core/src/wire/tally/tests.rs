use proptest::prelude::*;

use super::*;

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

fn frames(tags: &[u8]) -> Vec<u8> {
    tags.iter().flat_map(|tag| frame(*tag, b"")).collect()
}

fn ready(status: u8) -> Vec<u8> {
    frame(b'Z', &[status])
}

/// One thing that a client asks for: what it sends, and what the server answers.
#[derive(Debug, Clone, Copy)]
enum Unit {
    Query,
    Batch,
    CopyByQuery,
    /// With so many Syncs before its rows.
    CopyByBatch(usize),
}

/// One message: who sends it, and which tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Client(u8),
    Server(u8),
}

impl Unit {
    /// In the order in which a client sends that waits for what it needs.
    fn steps(self) -> Vec<Step> {
        use Step::{Client, Server};
        let client = |tags: &[u8]| tags.iter().map(|tag| Client(*tag)).collect::<Vec<_>>();
        let server = |tags: &[u8]| tags.iter().map(|tag| Server(*tag)).collect::<Vec<_>>();
        match self {
            Self::Query => [client(b"Q"), server(b"TDDCZ")].concat(),
            Self::Batch => [client(b"PBDES"), server(b"12TDCZ")].concat(),
            Self::CopyByQuery => [client(b"Q"), server(b"G"), client(b"ddc"), server(b"CZ")].concat(),
            Self::CopyByBatch(syncs) => {
                let start = [b"PBE", &vec![b'S'; syncs][..]].concat();
                [client(&start), server(b"12G"), client(b"ddcS"), server(b"CZ")].concat()
            }
        }
    }
}

fn unit() -> impl Strategy<Value = Unit> {
    prop_oneof![
        Just(Unit::Query),
        Just(Unit::Batch),
        Just(Unit::CopyByQuery),
        (0usize..3).prop_map(Unit::CopyByBatch)
    ]
}

fn act(tally: &mut Tally, step: Step) {
    match step {
        Step::Client(tag) => tally.sent(&frame(tag, b"")).unwrap(),
        Step::Server(b'Z') => tally.received(&ready(b'I')),
        Step::Server(tag) => tally.received(&frame(tag, b"")),
    }
}

proptest! {
    #[test]
    fn a_client_that_waits_for_its_answers_is_idle_between_its_units_and_nowhere_else(
        units in prop::collection::vec(unit(), 0..12),
    ) {
        let mut tally = Tally::new(1 << 30);
        for unit in units {
            let steps = unit.steps();
            for (at, step) in steps.iter().enumerate() {
                prop_assert_eq!(tally.is_idle(), at == 0, "{:?}, step {}", unit, at);
                act(&mut tally, *step);
            }
            prop_assert!(tally.is_idle(), "after {:?}", unit);
        }
    }

    #[test]
    fn nothing_that_was_sent_ahead_is_taken_for_idle_before_it_is_answered(
        units in prop::collection::vec(unit(), 1..8),
        turns in prop::collection::vec(any::<bool>(), 0..200),
    ) {
        // Each side in its order; a turn takes from either, but no answer comes before all that the client sends for it.
        let mut tally = Tally::new(1 << 30);
        let mut asked: std::collections::VecDeque<_> = units.iter().copied().collect();
        let mut answered: std::collections::VecDeque<Vec<Step>> = std::collections::VecDeque::new();
        let is_client = |step: &Step| matches!(step, Step::Client(_));
        let mut turns = turns.into_iter();
        while !(asked.is_empty() && answered.is_empty()) {
            let ahead = turns.next().unwrap_or(true) || answered.is_empty();
            if let Some(unit) = asked.pop_front_if(|_| ahead) {
                let (client, server): (Vec<_>, Vec<_>) = unit.steps().into_iter().partition(is_client);
                for step in client {
                    act(&mut tally, step);
                }
                answered.push_back(server);
            } else if let Some(server) = answered.pop_front() {
                for step in server {
                    prop_assert!(!tally.is_idle());
                    act(&mut tally, step);
                }
            }
        }
        let copies_ahead = units.iter().filter(|unit| matches!(unit, Unit::CopyByBatch(_))).count();
        prop_assert!(tally.is_idle() || copies_ahead > 0);
    }

    #[test]
    fn where_the_streams_are_cut_changes_nothing(
        client in prop::collection::vec((prop::sample::select(b"QPBDCEHSdcfF".to_vec()), 0usize..80), 0..12),
        server in prop::collection::vec((prop::sample::select(b"12TDCEZGWNA".to_vec()), 0usize..200), 0..12),
        cuts in prop::collection::vec(1usize..90, 1..40),
    ) {
        let whole = |messages: &[(u8, usize)]| -> Vec<u8> {
            messages.iter().flat_map(|(tag, length)| frame(*tag, &vec![b'T'; *length])).collect()
        };
        let (client, server) = (whole(&client), whole(&server));
        let mut at_once = Tally::new(1 << 30);
        at_once.sent(&client).unwrap();
        at_once.received(&server);
        let mut cut = Tally::new(1 << 30);
        for (stream, from_client) in [(&client, true), (&server, false)] {
            let mut rest = &stream[..];
            for length in cuts.iter().cycle() {
                let (piece, after) = rest.split_at(rest.len().min(*length));
                if from_client { cut.sent(piece).unwrap() } else { cut.received(piece) }
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
        }
        prop_assert_eq!(cut.is_idle(), at_once.is_idle());
        prop_assert_eq!(cut.between_messages(), at_once.between_messages());
        prop_assert_eq!(cut.take_passed(), at_once.take_passed());
        prop_assert_eq!(format!("{:?}", cut.flow), format!("{:?}", at_once.flow));
    }

    #[test]
    fn garbage_never_panics_and_never_counts_as_idle_once_it_is_known_for_garbage(
        client in prop::collection::vec(any::<u8>(), 0..300),
        server in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut tally = Tally::new(1 << 30);
        let _ = tally.sent(&client);
        tally.received(&server);
        if tally.flow.unknown {
            prop_assert!(!tally.is_idle());
        }
        prop_assert!(!tally.from_server.failed || !tally.between_messages());
    }
}

#[test]
fn a_transaction_and_a_cut_message_are_not_idle() {
    let mut tally = Tally::new(1 << 30);
    assert!(tally.is_idle() && !tally.is_busy());
    tally.sent(&frames(b"Q")).unwrap();
    assert!(tally.is_busy());
    tally.received(&ready(b'T'));
    assert!(!tally.is_idle() && !tally.is_busy());
    tally.sent(&frames(b"Q")).unwrap();
    tally.received(&ready(b'I'));
    assert!(tally.is_idle());
    tally.received(b"A\0\0\0\x09ab");
    assert!(!tally.is_idle() && !tally.between_messages());
    tally.received(b"cde");
    assert!(tally.is_idle() && tally.between_messages());
    assert_eq!(tally.take_passed(), Passed { statements: 2, failed: 0, read_only: 0 });
}

#[test]
fn a_copy_that_fails_leaves_the_connection_idle() {
    // By a query: error and ReadyForQuery come before the client has seen them, its last rows are for nobody.
    let mut tally = Tally::new(1 << 30);
    tally.sent(&frames(b"Q")).unwrap();
    tally.received(&frames(b"G"));
    tally.received(&[frame(b'E', b"SERROR\0C22P04\0\0"), ready(b'I')].concat());
    tally.sent(&frames(b"ddc")).unwrap();
    assert!(tally.is_idle());
    // By a batch: only a Sync that follows is answered.
    tally.sent(&frames(b"PBES")).unwrap();
    tally.received(&frames(b"12G"));
    tally.received(&frame(b'E', b"SERROR\0C22P04\0\0"));
    tally.sent(&frames(b"ddfS")).unwrap();
    assert!(!tally.is_idle());
    tally.received(&ready(b'I'));
    assert!(tally.is_idle());
}

#[test]
fn errors_are_told_apart_and_the_end_is_noticed() {
    let mut tally = Tally::new(1 << 30);
    tally.received(&frame(b'E', b"SERROR\0VERROR\0C25006\0Mno\0\0"));
    tally.received(&frame(b'E', b"SERROR\0VERROR\0C57014\0Mno\0\0"));
    assert!(!tally.server_ended());
    let long = [b"S\xd0\xa4\xd0\x90\xd0\xa2\0VFATAL\0C57P01\0M".as_slice(), &[b'x'; 500], b"\0\0"].concat();
    tally.received(&frame(b'E', &long));
    assert!(tally.server_ended() && tally.server_shut_down());
    assert_eq!(tally.take_passed(), Passed { statements: 0, failed: 2, read_only: 1 });
    assert!(!tally.client_left());
    tally.sent(&frames(b"X")).unwrap();
    assert!(tally.client_left());
}

#[test]
fn replication_streams_until_it_ends() {
    let mut tally = Tally::new(1 << 30);
    tally.sent(&frames(b"Q")).unwrap();
    tally.received(&frames(b"Wdd"));
    assert!(tally.is_streaming() && !tally.is_idle());
    tally.sent(&frames(b"dc")).unwrap();
    tally.received(&[frames(b"cC"), ready(b'I')].concat());
    assert!(!tally.is_streaming() && tally.is_idle());
}

#[test]
fn only_what_is_above_the_limit_and_below_postgresqls_own_is_refused_here() {
    let head = |length: u32| [&b"Q"[..], &length.to_be_bytes()].concat();
    let mut tally = Tally::new(1000);
    assert!(matches!(tally.sent(&head(1005)), Err(FrameError::Length { length: 1005, longest: 1000, .. })));
    assert!(tally.between_messages(), "the client can be told why");
    for length in [0, 3, 0x4000_0004, u32::MAX] {
        let mut tally = Tally::new(1000);
        // The server refuses it in its own words.
        tally.sent(&head(length)).unwrap();
        assert!(!tally.is_idle() && tally.is_busy() && tally.client_broke_off());
    }
    let mut tally = Tally::new(1000);
    tally.sent(&head(1004)).unwrap();
    assert!(!tally.flow.unknown && !tally.client_broke_off());
    assert!(tally.client_is_cut());
    tally.sent(&[b'x'; 1000]).unwrap();
    assert!(!tally.client_is_cut());
}
