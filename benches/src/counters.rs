//! What Linux counts: CPU time, context switches and memory of a process, and the busy time of the machine.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{BenchError, Result, read};
use crate::figures::number;

/// Ticks a second of /proc/stat: `USER_HZ`, which is 100 for every program on Linux.
const TICKS_A_SECOND: u64 = 100;

/// CPU time and context switches of every thread of a process since the thread began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process(BTreeMap<u32, Thread>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Thread {
    cpu_nanoseconds: u64,
    switches: u64,
}

/// What a process used between two moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) cpu_nanoseconds: u64,
    /// Voluntary and other ones.
    pub(crate) switches: u64,
}

impl Process {
    /// Reads them now.
    pub(crate) fn read(pid: u32) -> Result<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}/task"));
        let entries = std::fs::read_dir(&folder)
            .map_err(BenchError::io(format!("reading {}: the process is gone", folder.display())))?;
        let mut threads = BTreeMap::new();
        for entry in entries {
            let entry = entry.map_err(BenchError::io(format!("reading {}", folder.display())))?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            match Thread::read(&entry.path()) {
                Ok(thread) => drop(threads.insert(id, thread)),
                // A thread may end while we look.
                Err(BenchError::Io { source, .. }) if is_gone(&source) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(threads))
    }

    /// What was used since `before`. What threads used that ended meanwhile is not in it.
    pub(crate) fn since(&self, before: &Self) -> Used {
        let used = self.0.iter().map(|(id, now)| {
            let then = before.0.get(id).copied().unwrap_or_default();
            Used {
                cpu_nanoseconds: now.cpu_nanoseconds.saturating_sub(then.cpu_nanoseconds),
                switches: now.switches.saturating_sub(then.switches),
            }
        });
        used.fold(Used { cpu_nanoseconds: 0, switches: 0 }, |sum, thread| Used {
            cpu_nanoseconds: sum.cpu_nanoseconds + thread.cpu_nanoseconds,
            switches: sum.switches + thread.switches,
        })
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ESRCH)
}

impl Thread {
    fn read(folder: &Path) -> Result<Self> {
        Self::parse(&read(&folder.join("schedstat"))?, &read(&folder.join("status"))?)
    }

    fn parse(schedstat: &str, status: &str) -> Result<Self> {
        let cpu_nanoseconds = schedstat.split(' ').next().and_then(|field| field.parse().ok());
        let cpu_nanoseconds = cpu_nanoseconds.ok_or_else(|| BenchError::Output {
            what: "schedstat of a thread",
            text: schedstat.to_owned(),
        })?;
        let switches =
            field(status, "voluntary_ctxt_switches")? + field(status, "nonvoluntary_ctxt_switches")?;
        Ok(Self { cpu_nanoseconds, switches })
    }
}

/// The number of a line `name: number ...` of a file of /proc.
fn field(text: &str, name: &str) -> Result<u64> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = lines.filter(|(key, _)| *key == name).find_map(|(_, value)| value.split_whitespace().next());
    let value = value.and_then(|value| value.parse().ok());
    value.ok_or_else(|| BenchError::Output { what: "a file of /proc", text: format!("no {name} in {text}") })
}

/// Memory of a process, in kB: its own, and its share of what it shares with others (PSS).
pub(crate) fn memory(pid: u32) -> Result<u64> {
    field(&read(Path::new(&format!("/proc/{pid}/smaps_rollup")))?, "Pss")
}

/// How many files a process may have open.
pub(crate) fn open_files_limit(pid: u32) -> Result<u64> {
    parse_open_files_limit(&read(Path::new(&format!("/proc/{pid}/limits")))?)
}

fn parse_open_files_limit(limits: &str) -> Result<u64> {
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    match soft {
        Some("unlimited") => Ok(u64::MAX),
        soft => soft
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| BenchError::Output { what: "limits of a process", text: limits.to_owned() }),
    }
}

/// Time of all CPUs since the machine started, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    busy: u64,
    stolen: u64,
    all: u64,
}

/// What the machine did between two moments.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct MachineUsed {
    /// Of all CPUs together, in microseconds.
    pub(crate) busy_microseconds: f64,
    /// The share of the time that the CPUs were busy, from 0 to 1.
    pub(crate) busy_share: f64,
    /// The share that the host gave to others while something here wanted to run.
    pub(crate) stolen_share: f64,
}

impl Machine {
    /// Reads it now.
    pub(crate) fn read() -> Result<Self> {
        Self::parse(&read(Path::new("/proc/stat"))?)
    }

    /// Waiting for a disk is idle time; guests' time is in `user` already.
    fn parse(stat: &str) -> Result<Self> {
        let unfit =
            || BenchError::Output { what: "/proc/stat", text: stat.lines().next().unwrap_or("").to_owned() };
        let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).ok_or_else(unfit)?;
        let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else {
            return Err(unfit());
        };
        let busy = user + nice + system + irq + softirq;
        Ok(Self { busy, stolen: steal, all: busy + idle + iowait + steal })
    }

    /// What it did since `before`.
    pub(crate) fn since(self, before: Self) -> MachineUsed {
        let busy = self.busy.saturating_sub(before.busy);
        let all = number(self.all.saturating_sub(before.all).max(1));
        MachineUsed {
            busy_microseconds: number(busy) * number(1_000_000 / TICKS_A_SECOND),
            busy_share: number(busy) / all,
            stolen_share: number(self.stolen.saturating_sub(before.stolen)) / all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Name:\tmetako\nVoluntary:\t9\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t7\n";

    #[test]
    fn a_thread_is_read_from_its_two_files() {
        let thread = Thread::parse("2858507 731 12\n", STATUS).unwrap();
        assert_eq!(thread, Thread { cpu_nanoseconds: 2_858_507, switches: 157 });
        assert!(Thread::parse("", STATUS).is_err());
        assert!(Thread::parse("1 2 3", "Name:\tmetako\n").is_err());
    }

    #[test]
    fn threads_that_came_count_whole_and_those_that_went_not() {
        let thread = |cpu_nanoseconds, switches| Thread { cpu_nanoseconds, switches };
        let before = Process([(1, thread(100, 10)), (2, thread(50, 5))].into());
        let after = Process([(1, thread(130, 11)), (3, thread(7, 1))].into());
        assert_eq!(after.since(&before), Used { cpu_nanoseconds: 37, switches: 2 });
    }

    #[test]
    fn the_counters_of_this_process_grow() {
        let before = Process::read(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while Process::read(std::process::id()).unwrap().since(&before).cpu_nanoseconds == 0 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(memory(std::process::id()).unwrap() > 0);
        assert!(open_files_limit(std::process::id()).unwrap() > 0);
    }

    #[test]
    fn the_machine_is_read_from_the_first_line_of_stat() {
        let before = Machine::parse("cpu  100 10 50 800 40 5 5 20 7 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n").unwrap();
        assert_eq!(before, Machine { busy: 170, stolen: 20, all: 1030 });
        let after = Machine::parse("cpu  150 10 70 810 40 5 5 30 7 0\n").unwrap();
        let used = after.since(before);
        assert!((used.busy_microseconds - 700_000.0).abs() < 1e-6, "{used:?}");
        assert!((used.busy_share - 70.0 / 90.0).abs() < 1e-9, "{used:?}");
        assert!((used.stolen_share - 10.0 / 90.0).abs() < 1e-9, "{used:?}");
        assert!(Machine::parse("cpu0 1 2 3\n").is_err());
    }

    #[test]
    fn the_limit_of_open_files_is_the_soft_one() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(parse_open_files_limit(limits).unwrap(), 1024);
        let unlimited = "Max open files            unlimited            unlimited            files\n";
        assert_eq!(parse_open_files_limit(unlimited).unwrap(), u64::MAX);
        assert!(parse_open_files_limit("Max processes 5 5\n").is_err());
    }
}
