//! A primary that answers, whose standbys stream, and where no commit ends, on real clusters: a server process is stopped
//! while it writes WAL and so holds the lock that every other write of WAL needs, as all do when the disk stands still.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod running;

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

/// The WAL of a primary, which stands still until this is dropped.
struct Stall {
    session: Child,
    process: Pid,
}

impl Stall {
    fn begin(day: &Day, node: &str) -> Self {
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
        let waits = format!("select wait_event from pg_stat_activity where pid = {}", stall.process);
        for _ in 0..TRIES_MAX {
            kill(stall.process, Signal::SIGSTOP).unwrap();
            stall.wait_stopped();
            if ["WALWrite", "WALSync"].contains(&day.direct(node, &waits).as_str()) {
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
    let day = Day::begin(Some(1));
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
    let day = Day::begin(None);
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
