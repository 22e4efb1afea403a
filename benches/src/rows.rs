//! What is measured: the rows of the table, and what one measurement gives.

use serde::Serialize;

/// The way of a client to PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Route {
    Direct,
    PgBouncer,
    Metako,
}

impl Route {
    pub(crate) const ALL: [Self; 3] = [Self::Direct, Self::PgBouncer, Self::Metako];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::PgBouncer => "PgBouncer",
            Self::Metako => "metako",
        }
    }
}

/// pgbench's `--protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Simple,
    Extended,
    Prepared,
}

impl Protocol {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        }
    }
}

/// What the clients of a row do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// `pgbench -S`: one row by its key; with `rate` so many a second instead of as many as go.
    Select { protocol: Protocol, clients: u32, rate: Option<u32> },
    /// `pgbench -S -C`: connect, one query, close.
    Connect { clients: u32 },
    /// One client that reads the same large result again and again.
    LargeResults,
    /// One client that reads the large table by COPY.
    CopyOut,
    /// One client that writes the large table by COPY.
    CopyIn,
    /// Clients that have done one query and stay.
    Idle,
}

/// One line of the table for each route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// Its name on the command line and in JSON.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What is counted: the rate is in these a second, times are per one of these.
    pub(crate) unit: &'static str,
    pub(crate) work: Work,
}

const fn select(protocol: Protocol, clients: u32) -> Work {
    Work::Select { protocol, clients, rate: None }
}

const fn row(name: &'static str, title: &'static str, unit: &'static str, work: Work) -> Row {
    Row { name, title, unit, work }
}

/// Every row, in the order of the table.
pub(crate) const ROWS: [Row; 12] = [
    row("simple-16", "simple, 16 clients", "transaction", select(Protocol::Simple, 16)),
    row("extended-16", "extended, 16 clients", "transaction", select(Protocol::Extended, 16)),
    row("prepared-16", "prepared, 16 clients", "transaction", select(Protocol::Prepared, 16)),
    row("simple-1", "simple, 1 client", "transaction", select(Protocol::Simple, 1)),
    row("extended-1", "extended, 1 client", "transaction", select(Protocol::Extended, 1)),
    row("prepared-1", "prepared, 1 client", "transaction", select(Protocol::Prepared, 1)),
    row(
        "rate",
        "prepared, 16 clients, 4,000 a second",
        "transaction",
        Work::Select { protocol: Protocol::Prepared, clients: 16, rate: Some(4_000) },
    ),
    row("connect", "connect, simple query, close; 16 clients", "connection", Work::Connect { clients: 16 }),
    row("large", "results of 10 MB, 1 client", "MB", Work::LargeResults),
    row("copy-out", "COPY of 102 MB to the client", "MB", Work::CopyOut),
    row("copy-in", "COPY of 102 MB from the client", "MB", Work::CopyIn),
    row("idle", "idle clients; the rate is that of their log-ins", "log-in", Work::Idle),
];

impl Row {
    /// Whether the row means something on that route.
    pub(crate) fn fits(&self, route: Route) -> bool {
        // PostgreSQL itself is not asked to hold thousands of backends.
        !(self.work == Work::Idle && route == Route::Direct)
    }

    /// Whether the row needs prepared statements that outlive a transaction.
    pub(crate) fn needs_prepared(&self) -> bool {
        matches!(self.work, Work::Select { protocol: Protocol::Prepared, .. })
    }
}

/// One measurement of a row on a route.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Units a second.
    pub(crate) rate: f64,
    /// CPU time of the proxy's process, microseconds a unit; none on the direct route.
    pub(crate) proxy_cpu: Option<f64>,
    /// Busy time of all CPUs of the machine, microseconds a unit. Whatever else runs here is in it.
    pub(crate) machine_cpu: f64,
    /// Context switches of the proxy's process, a unit.
    pub(crate) switches: Option<f64>,
    /// Latency in microseconds.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    /// Memory that the proxy's process took for each client, in kB.
    pub(crate) memory: Option<f64>,
    /// The share of the machine's time that its host gave to others.
    pub(crate) stolen_share: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rows_are_unique() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..index].iter().all(|other| other.name != row.name), "{}", row.name);
        }
    }
}
