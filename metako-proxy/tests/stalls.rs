//! A primary that answers, whose standbys stream, and where no commit ends, on real clusters: a server process is stopped
//! while it writes WAL and so holds the lock that every other write of WAL needs, as all do when the disk stands still.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod running;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use metako_proxy::playground::Cluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use running::day::Day;
use running::eventually;

/// Far more than it takes to meet a process that writes WAL nearly all the time.
const TRIES_MAX: u32 = 5000;
/// It writes more WAL at once than there are buffers for.
const WRITING: &str = "do $$ begin loop
    perform pg_logical_emit_message(true, 'stall', repeat('x', 1000000)); commit;
end loop; end $$";
/// How far into a file of WAL the primary has flushed.
const IN_FILE: &str = "(pg_current_wal_flush_lsn() - '0/0') % 16777216";

/// A primary and two replicas, which are soon sent what nobody was woken for.
fn cluster(synchronous: Option<u32>) -> Cluster {
    let cluster = running::cluster(2, synchronous);
    for node in &cluster.nodes()[1..] {
        node.sql("ALTER SYSTEM SET wal_receiver_status_interval = '1s'").unwrap();
        node.sql("SELECT pg_reload_conf()").unwrap();
    }
    cluster
}

/// The WAL of a primary, which stands still until this is dropped.
struct Stall {
    session: Child,
    process: Pid,
}

impl Stall {
    /// While it writes WAL, in a record that has begun in the same file.
    fn begin(day: &Day, node: &str) -> Self {
        Self::begin_where(
            day,
            node,
            &format!("wait_event in ('WALWrite', 'WALSync') and {IN_FILE} > 2000000"),
        )
    }

    /// While it begins a new file of WAL, with a record that has begun in the one before.
    fn begin_between_files(day: &Day, node: &str) -> Self {
        Self::begin_where(
            day,
            node,
            &format!("wait_event in ('WALInitWrite', 'WALInitSync') and {IN_FILE} = 0"),
        )
    }

    fn begin_where(day: &Day, node: &str, condition: &str) -> Self {
        let session = Command::new("psql")
            .args(["-XAtc", WRITING])
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", day.node(node).port().to_string())
            .env("PGUSER", Cluster::SUPERUSER)
            .env("PGDATABASE", Cluster::DATABASE)
            .env("PGPASSWORD", day.cluster.superuser_password())
            .env("PGAPPNAME", "staller")
            .env("PGOPTIONS", "-c synchronous_commit=local")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let found =
            "select pid from pg_stat_activity where application_name = 'staller' and state = 'active'";
        let pid = eventually("the session writes", || {
            let pid = day.direct(node, found);
            pid.parse().map_err(|_| format!("no process: {pid:?}"))
        });
        let stall = Self { session, process: Pid::from_raw(pid) };
        let holds = format!(
            "select count(*) from pg_stat_activity where pid = {} and wait_event_type = 'IO' and {condition}",
            stall.process
        );
        for _ in 0..TRIES_MAX {
            kill(stall.process, Signal::SIGSTOP).unwrap();
            stall.wait_stopped();
            if day.direct(node, &holds) == "1" {
                Self::wait_received(day, node);
                return stall;
            }
            kill(stall.process, Signal::SIGCONT).unwrap();
        }
        panic!("the session was never met while it wrote WAL");
    }

    fn wait_stopped(&self) {
        let stat = format!("/proc/{}/stat", self.process);
        eventually("the process is stopped", || {
            let line = std::fs::read_to_string(&stat).map_err(|error| error.to_string())?;
            let state = line.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
            if state.starts_with('T') { Ok(()) } else { Err(line) }
        });
    }

    /// All that was flushed is received.
    fn wait_received(day: &Day, node: &str) {
        let have =
            "select count(*) filter (where flush_lsn = pg_current_wal_flush_lsn()) from pg_stat_replication";
        eventually("its standbys have all that it flushed", || {
            let have = day.direct(node, have);
            if have == "2" { Ok(()) } else { Err(have) }
        });
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        // Whatever is not there any more is stopped already.
        let _ = self.session.kill();
        let _ = kill(self.process, Signal::SIGCONT);
        let _ = self.session.wait();
    }
}

#[test]
fn a_primary_whose_commits_do_not_end_is_replaced_although_its_standbys_stream() {
    let day = Day::with(cluster(Some(1)), Some(1), "");
    let stall = Stall::begin(&day, "node-1");
    let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
    assert_eq!(day.direct("node-1", streams), "2", "it answers, and all stream from it");
    let primary = day.another_primary("node-1");
    day.clients.wait_for_more(100);
    drop(stall);
    day.role("node-1", "stale_primary");
    let rows = day.direct("node-1", "select count(*) from ledger");
    day.clients.wait_for_more(100);
    assert_eq!(day.direct("node-1", "select count(*) from ledger"), rows, "the old primary takes no write");
    assert_eq!(day.metako.status().unwrap()["primary"], primary.as_str());
    day.end(&primary);
}

#[test]
fn a_primary_whose_commits_end_again_in_time_stays() {
    let day = Day::with(cluster(None), None, "");
    let stall = Stall::begin(&day, "node-1");
    day.status("it is under suspicion", |status| {
        status["phase"] == "suspect" && status.to_string().contains("failover.stalled_after")
    });
    drop(stall);
    day.clients.wait_for_more(100);
    day.status("it is trusted again", |status| status["phase"] == "steady");
    day.assert_no_failover();
    day.end("node-1");
}

/// What the standbys have of the record that the stall cuts off ends with a file of WAL. PostgreSQL cannot follow from there:
/// it would ask for the next file only, and end.
#[test]
fn a_standby_with_a_part_of_a_record_in_the_next_file_is_rejoined() {
    if !running::can_rejoin() {
        return;
    }
    let cluster = cluster(Some(1));
    cluster.node("node-1").sql(&running::rewinding(Cluster::REPLICATION_USER)).unwrap();
    let hooks = running::hooks(&cluster);
    let day = Day::with(cluster, Some(1), &hooks);
    let stall = Stall::begin_between_files(&day, "node-1");
    let primary = day.another_primary("node-1");
    let follower = if primary == "node-2" { "node-3" } else { "node-2" };
    day.role(follower, "replica");
    running::day::wait_streaming(&day.cluster, &primary, &[follower]);
    let copied = format!("{}.before-2", day.node(follower).data_dir().display());
    assert!(!Path::new(&copied).exists(), "it was not copied");
    day.clients.wait_for_more(100);
    drop(stall);
    running::day::wait_streaming(&day.cluster, &primary, &["node-1", follower]);
    day.end(&primary);
}
