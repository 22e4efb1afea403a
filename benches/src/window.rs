//! The span in which is measured: the counters at both ends, and what becomes of them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::counters::{Machine, Process};
use crate::error::Result;
use crate::figures::{number, percentile};
use crate::rows::Sample;

/// All counters at one moment.
#[derive(Debug)]
pub(crate) struct Moment {
    at: Instant,
    /// By the clock that pgbench's log speaks of, microseconds since 1970.
    wall: u64,
    machine: Machine,
    process: Option<Process>,
}

impl Moment {
    /// Now. `pid` is the proxy's process, where there is a proxy.
    pub(crate) fn now(pid: Option<u32>) -> Result<Self> {
        Ok(Self {
            process: pid.map(Process::read).transpose()?,
            machine: Machine::read()?,
            at: Instant::now(),
            wall: microseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
        })
    }
}

fn microseconds(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Between two moments.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) begin: Moment,
    pub(crate) end: Moment,
}

impl Window {
    /// Whether something that ended at that time of the clock (microseconds since 1970) ended inside.
    pub(crate) fn holds(&self, wall: u64) -> bool {
        (self.begin.wall..self.end.wall).contains(&wall)
    }

    /// The measurement, where `units` were done inside. `latencies` are in microseconds, in any order.
    pub(crate) fn sample(&self, units: f64, mut latencies: Vec<u64>) -> Sample {
        latencies.sort_unstable();
        let machine = self.end.machine.since(self.begin.machine);
        let used = self.begin.process.as_ref().zip(self.end.process.as_ref());
        let used = used.map(|(begin, end)| end.since(begin));
        Sample {
            rate: units / self.end.at.duration_since(self.begin.at).as_secs_f64(),
            proxy_cpu: used.map(|used| number(used.cpu_nanoseconds) / 1_000.0 / units),
            machine_cpu: machine.busy_microseconds / units,
            switches: used.map(|used| number(used.switches) / units),
            p50: percentile(&latencies, 50).map(number),
            p99: percentile(&latencies, 99).map(number),
            memory: None,
            stolen_share: machine.stolen_share,
        }
    }
}
