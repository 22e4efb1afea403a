//! The commonest answers: whole, to all that was asked, and with nothing in them but rows and success. One look at their
//! headers tells that they change nothing else, so they are passed on as they are.

use std::sync::Arc;

use super::answer::forgets_statements;
use super::replies::Owed;
use super::{Attachment, Open, Server, Session, State};
use crate::wire::write::TransactionStatus;

/// Bytes of a header.
const HEADER: usize = 5;

/// The header of a ReadyForQuery, with which such an answer ends.
const READY: &[u8] = b"Z\0\0\0\x05";

impl Session {
    /// Takes `input` for an answer of this kind, which then is to be passed on as it is. If it is not one, nothing has
    /// changed: [`Self::answer`] takes each frame by itself, and would find the same.
    pub(super) fn answer_plainly(&mut self, server: &mut Server, input: &[u8]) -> bool {
        if !self.expects_plain(server) {
            return false;
        }
        let Some(status) = ready_after(server, input) else { return false };
        server.status = status;
        server.swallow_rest = false;
        server.replies.answered();
        self.open = Open::default();
        self.becoming.statement = 0;
        true
    }

    /// Whether rows and success would change nothing but what is owed.
    fn expects_plain(&self, server: &Server) -> bool {
        matches!(self.state, State::Attached(Attachment::Open))
            && !self.refused
            && !server.framer.inside_frame()
            && self.finds.is_none()
            && self.fresh.is_empty()
            && self.becoming.is_settled()
            && server.stand_in.is_none()
            && server.touched.is_empty()
            && Arc::ptr_eq(&server.applied, &self.settings)
            && server.replies.are_in_step()
    }
}

/// The status of the server after such an answer, if `input` is one.
fn ready_after(server: &Server, input: &[u8]) -> Option<TransactionStatus> {
    let (&status, before) = input.split_last()?;
    // Whoever reads a long result does not look at all of it in vain.
    let rows = before.strip_suffix(READY)?;
    let status = match status {
        b'I' => TransactionStatus::Idle,
        b'T' => TransactionStatus::InBlock,
        _ => return None,
    };
    let mut owed = server.replies.iter();
    let mut awaited = owed.next()?;
    let mut rest = rows;
    while !rest.is_empty() {
        let (tag, body) = server.framer.whole_frame(rest)?;
        rest = &rest[HEADER + body.len()..];
        match (tag, awaited) {
            (b'T' | b'D', Owed::Query { carried: None } | Owed::Execute { carried: None })
            | (b't', Owed::Describe { .. }) => {}
            (b'C', Owed::Query { carried: None }) if !forgets_statements(body) => {}
            (b'C', Owed::Execute { carried: None }) if !forgets_statements(body) => awaited = owed.next()?,
            (b'2', Owed::Bind { .. }) | (b'T' | b'n', Owed::Describe { .. }) => awaited = owed.next()?,
            _ => return None,
        }
    }
    let ends = matches!(awaited, Owed::Query { carried: None } | Owed::Sync) && owed.next().is_none();
    ends.then_some(status)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Effect;
    use super::super::tests::{
        BARE, Bench, EXECUTE, ONE, ROW, SYNC, TWO, bind, complete, error, parse, query, ready,
    };
    use super::*;

    const DESCRIBE: &[u8] = b"D\0\0\0\x06P\0";
    const COLUMNS: &[u8] = b"T\0\0\0\x06\0\0";
    /// Two columns, `xZ` and `India`: in the middle stands what a ReadyForQuery is made of.
    const MISLEADING: &[u8] = b"D\0\0\0\x15\0\x02\0\0\0\x02xZ\0\0\0\x05India";
    const PLAIN: &[&str] = &["select 1", "insert x", "select 1; select 2", "begin", "commit"];
    const OTHER: &[&str] =
        &["set a.b = 1", "discard all", "deallocate all", "call f", "listen x", "savepoint s"];

    /// What a client sends, and how a server answers that when all goes well.
    #[derive(Debug, Clone)]
    enum Unit {
        Query(&'static str),
        Batch { describes: bool, executes: usize },
    }

    impl Unit {
        fn sent(&self) -> Vec<u8> {
            match self {
                Self::Query(sql) => query(sql),
                Self::Batch { describes, executes } => {
                    let described = if *describes { DESCRIBE } else { &[] };
                    [&bind("s"), described, &EXECUTE.repeat(*executes), SYNC].concat()
                }
            }
        }

        fn answered(&self) -> Vec<Vec<u8>> {
            match self {
                Self::Query(sql) => {
                    let tag = sql.to_uppercase();
                    let rows = [ROW, MISLEADING].concat();
                    vec![COLUMNS.to_vec(), rows, complete(&tag), ready(TransactionStatus::Idle)]
                }
                Self::Batch { describes, executes } => {
                    let described = if *describes { COLUMNS } else { &[] };
                    let executed = [ROW, MISLEADING, &complete("SELECT 1")].concat();
                    let executed = std::iter::repeat_n(executed, *executes);
                    let rest = executed.chain([ready(TransactionStatus::Idle)]);
                    [TWO.to_vec(), described.to_vec()].into_iter().chain(rest).collect()
                }
            }
        }
    }

    fn unit() -> impl Strategy<Value = Unit> {
        prop_oneof![
            4 => prop::sample::select(PLAIN).prop_map(Unit::Query),
            1 => prop::sample::select(OTHER).prop_map(Unit::Query),
            4 => (any::<bool>(), 0..3usize).prop_map(|(describes, executes)| Unit::Batch { describes, executes }),
        ]
    }

    fn odd() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            Just(ready(TransactionStatus::InBlock)),
            Just(ready(TransactionStatus::Failed)),
            Just(b"N\0\0\0\x05\0".to_vec()),
            Just(b"S\0\0\0\x08a\0b\0".to_vec()),
            Just(b"S\0\0\0\x1bDateStyle\0ISO, MDY\0\0\0\0\0".to_vec()),
            Just(error("22012", "boom")),
            Just(complete("DISCARD ALL")),
            Just(complete("DEALLOCATE ALL")),
            Just(b"I\0\0\0\x04".to_vec()),
            Just(b"s\0\0\0\x04".to_vec()),
            Just(b"1\0\0\0\x04".to_vec()),
            Just(b"G\0\0\0\x07\0\0\0".to_vec()),
            Just(b"A\0\0\0\x0a\0\0\0\0a\0".to_vec()),
            Just(Vec::new()),
        ]
    }

    /// A session that has prepared `s` and is idle on its server.
    fn prepared() -> Bench {
        let mut bench = Bench::new();
        bench.attach(false);
        bench.forward(&[parse("s", "select 1"), SYNC.to_vec()].concat());
        // What was parsed is described as well.
        bench.answer(&[ONE, BARE, &ready(TransactionStatus::Idle)].concat());
        bench.to_client.clear();
        bench.to_server.clear();
        bench
    }

    /// Feeds an answer in parts that end at `cuts`; gives what it came to.
    fn in_parts(bench: &mut Bench, answer: &[u8], cuts: &[usize]) -> Effect {
        let (mut begin, mut effect) = (0, Effect::Continue);
        for end in cuts.iter().copied().chain([answer.len()]) {
            let Bench { session, server, to_client, to_server, .. } = bench;
            let answered = session.answer(server, &answer[begin..end], to_client, to_server).unwrap();
            begin += answered.consumed;
            effect = answered.effect;
            if effect != Effect::Continue {
                break;
            }
        }
        effect
    }

    proptest! {
        #[test]
        fn an_answer_that_comes_whole_does_what_it_does_in_parts(
            units in prop::collection::vec(
                (unit(), prop::option::weighted(0.3, (any::<prop::sample::Index>(), odd()))),
                1..6,
            ),
            together in any::<bool>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        ) {
            let (mut whole, mut cut_up) = (prepared(), prepared());
            let sent: Vec<_> = units.iter().map(|(unit, _)| unit.sent()).collect();
            let answered = |(unit, change): &(Unit, Option<(prop::sample::Index, Vec<u8>)>)| {
                let mut frames = unit.answered();
                if let Some((at, odd)) = change {
                    let at = at.index(frames.len());
                    frames[at].clone_from(odd);
                }
                frames.concat()
            };
            let answers: Vec<_> = units.iter().map(answered).collect();
            let rounds = if together {
                vec![(sent.concat(), answers.concat())]
            } else {
                sent.into_iter().zip(answers).collect()
            };
            for (sent, answer) in rounds {
                prop_assert_eq!(whole.forward(&sent), cut_up.forward(&sent));
                let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(answer.len().max(1))).collect();
                cuts.sort_unstable();
                let effect = whole.answer(&answer);
                prop_assert_eq!(effect, in_parts(&mut cut_up, &answer, &cuts));
                prop_assert_eq!(&whole.to_client, &cut_up.to_client);
                prop_assert_eq!(&whole.to_server, &cut_up.to_server);
                prop_assert_eq!(format!("{:?}", whole.session), format!("{:?}", cut_up.session));
                prop_assert_eq!(format!("{:?}", whole.server), format!("{:?}", cut_up.server));
                if effect != Effect::Continue {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_stands_in_a_row_ends_no_answer() {
        let answer = Unit::Query("select 1").answered().concat();
        let at = answer.windows(READY.len()).position(|bytes| bytes == READY).unwrap();
        for cuts in [vec![at, at + 6], vec![at, at + 6, at + 8], vec![at + 6]] {
            let mut bench = prepared();
            bench.forward(&query("select 1"));
            for (part, cut) in cuts.iter().enumerate() {
                let begin = if part == 0 { 0 } else { cuts[part - 1] };
                assert_eq!(in_parts(&mut bench, &answer[begin..*cut], &[]), Effect::Continue);
                assert!(!bench.session.releasable(&bench.server), "{cuts:?}");
            }
            assert_eq!(in_parts(&mut bench, &answer[cuts[cuts.len() - 1]..], &[]), Effect::Continue);
            assert!(bench.session.releasable(&bench.server), "{cuts:?}");
            assert_eq!(bench.to_client, answer);
        }
    }

    #[test]
    fn what_pgbench_asks_is_answered_plainly() {
        for unit in [
            Unit::Query("select 1"),
            Unit::Query("select 1; select 2"),
            Unit::Batch { describes: false, executes: 1 },
            Unit::Batch { describes: true, executes: 2 },
        ] {
            let mut bench = prepared();
            bench.forward(&unit.sent());
            assert!(bench.session.answer_plainly(&mut bench.server, &unit.answered().concat()), "{unit:?}");
            assert!(bench.session.releasable(&bench.server));
        }
    }
}
