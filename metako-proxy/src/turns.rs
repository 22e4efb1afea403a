//! Turns to ask a server or a service, dealt out so that nobody's questions can starve those of others.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// So many wait in one line at most.
const LINE_MAX: usize = 4096;

/// Turns are given to the lines one after the other, in each to who came first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Line {
    /// That of a name which the server has known before.
    Known(String),
    /// That of all other names from one network: whoever makes up names waits with himself.
    From(IpAddr),
}

impl Line {
    /// The line of names that nobody knows yet, for clients from there.
    pub(crate) fn of(address: IpAddr) -> Self {
        Self::From(match address.to_canonical() {
            // One host may have all addresses of such a network.
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// So many at a time.
#[derive(Debug)]
pub(crate) struct Turns(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    lines: BTreeMap<Line, VecDeque<oneshot::Sender<Turn>>>,
    /// The lines in which somebody waits, the next one first.
    order: VecDeque<Line>,
}

/// A turn. Dropping it gives it to the next.
#[derive(Debug)]
pub(crate) struct Turn(Option<Arc<Mutex<State>>>);

/// Too many wait in that line already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LineFull;

impl Turns {
    pub(crate) fn new(count: usize) -> Self {
        let state = State { free: count, lines: BTreeMap::new(), order: VecDeque::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Waits for a turn. Cancelling leaves the line.
    pub(crate) async fn take(&self, line: Line) -> Result<Turn, LineFull> {
        let given = {
            let mut state = self.0.lock();
            if state.free > 0 {
                state.free -= 1;
                return Ok(Turn(Some(Arc::clone(&self.0))));
            }
            let State { lines, order, .. } = &mut *state;
            let waiting = lines.entry(line.clone()).or_insert_with(|| {
                order.push_back(line);
                VecDeque::new()
            });
            if waiting.len() >= LINE_MAX {
                waiting.retain(|sender| !sender.is_closed());
            }
            if waiting.len() >= LINE_MAX {
                return Err(LineFull);
            }
            let (sender, given) = oneshot::channel();
            waiting.push_back(sender);
            given
        };
        // Nobody drops the sender but with the turns themselves.
        given.await.map_err(|_| LineFull)
    }
}

impl State {
    /// Who is next.
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        loop {
            let line = self.order.pop_front()?;
            let Some(waiting) = self.lines.get_mut(&line) else { continue };
            let next = waiting.pop_front();
            if waiting.is_empty() {
                self.lines.remove(&line);
            } else {
                self.order.push_back(line);
            }
            if next.is_some() {
                return next;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(mut state) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = state.lock();
                let next = state.next();
                if next.is_none() {
                    state.free += 1;
                }
                next
            };
            let Some(next) = next else { return };
            // Who has left gives it back; it must not be dropped as if it had been used.
            match next.send(Turn(Some(state))).err().and_then(|mut turn| turn.0.take()) {
                Some(same) => state = same,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn from(last: u8) -> Line {
        Line::of(IpAddr::V4([192, 0, 2, last].into()))
    }

    fn is_free(turns: &Turns, count: usize) -> bool {
        let state = turns.0.lock();
        state.free == count && state.lines.is_empty() && state.order.is_empty()
    }

    #[tokio::test]
    async fn a_flood_from_one_address_makes_others_wait_for_no_more_than_a_round() {
        const FLOOD: usize = 500;
        let (turns, served) = (Arc::new(Turns::new(1)), Arc::new(Mutex::new(Vec::new())));
        let held = turns.take(from(1)).await.unwrap();
        let enter = |line, who| {
            let (turns, served) = (Arc::clone(&turns), Arc::clone(&served));
            tokio::spawn(async move {
                let _turn = turns.take(line).await.unwrap();
                served.lock().push(who);
                tokio::task::yield_now().await;
            })
        };
        let mut tasks: Vec<_> = (0..FLOOD).map(|_| enter(from(1), "flood")).collect();
        tasks.push(enter(from(2), "stranger"));
        tasks.push(enter(Line::Known("ann".to_owned()), "ann"));
        let in_line = || turns.0.lock().lines.values().map(VecDeque::len).sum::<usize>();
        while in_line() < FLOOD + 2 {
            tokio::task::yield_now().await;
        }
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        let served = served.lock();
        assert_eq!(served[..3], ["flood", "stranger", "ann"]);
        assert_eq!(served.len(), FLOOD + 2);
        assert!(is_free(&turns, 1));
    }

    #[tokio::test]
    async fn who_has_left_is_passed_over_and_a_line_has_an_end() {
        let turns = Turns::new(2);
        let held = (turns.take(from(1)).await.unwrap(), turns.take(from(1)).await.unwrap());
        let mut waiting: Vec<_> = (0..LINE_MAX).map(|_| Box::pin(turns.take(from(1)))).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()));
        assert_eq!(turns.take(from(1)).await.err(), Some(LineFull));
        let mut other = Box::pin(turns.take(from(2)));
        assert!(other.as_mut().now_or_never().is_none());
        waiting.truncate(1);
        let mut late = Box::pin(turns.take(from(1)));
        assert!(late.as_mut().now_or_never().is_none(), "those who left made room");
        drop(held.0);
        let first = waiting.remove(0).now_or_never().expect("its turn").unwrap();
        drop(held.1);
        drop(other.now_or_never().expect("its turn").unwrap());
        // One that is given its turn and does not live to take it.
        drop(late);
        drop(first);
        assert!(is_free(&turns, 2));
    }

    #[test]
    fn networks_of_one_host_share_a_line() {
        let line = |text: &str| Line::of(text.parse().unwrap());
        assert_eq!(line("2001:db8:1:2::1"), line("2001:db8:1:2:ffff::"));
        assert_ne!(line("2001:db8:1:2::1"), line("2001:db8:1:3::1"));
        assert_eq!(line("::ffff:192.0.2.1"), from(1));
        assert_ne!(from(1), from(2));
    }
}
