//! What runs out, on real clusters: disks, connection slots, the processor.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends by a panic")]

mod running;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use metako_proxy::playground::{Builder, Cluster, Node, StopMode};
use running::day::{Day, for_long, wait_streaming};
use running::eventually;

/// A disk that is soon full: a RAM disk in the place of a folder of a node. It goes with the test.
struct SmallDisk {
    place: tempfile::TempDir,
}

impl SmallDisk {
    /// Puts a folder of the data directory on a disk of so many MiB; the node is started again. None where this cannot be,
    /// which is said.
    fn under(cluster: &Cluster, node: &Node, folder: &str, mib: u32) -> Option<Self> {
        let disk = Self { place: tempfile::tempdir().unwrap() };
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0700"), "tmpfs"])
            .arg(disk.place.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => {}
            refused => {
                running::skipped(&format!("a small disk cannot be mounted here: {refused:?}"));
                return None;
            }
        }
        node.stop(StopMode::Fast).unwrap();
        let (folder, there) = (node.data_dir().join(folder), disk.place.path().join("data"));
        let copied = Command::new("cp").arg("-a").arg(&folder).arg(&there).status().unwrap();
        assert!(copied.success(), "{copied}");
        let owner = std::fs::metadata(&folder).unwrap();
        std::os::unix::fs::chown(disk.place.path(), Some(owner.uid()), Some(owner.gid())).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(&there, &folder).unwrap();
        node.start().unwrap();
        let names: Vec<_> = cluster.nodes()[1..].iter().map(Node::name).collect();
        wait_streaming(cluster, node.name(), &names);
        Some(disk)
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        let error = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> std::path::PathBuf {
        self.place.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Servers may still have files open there.
        unmount(self.place.path());
    }
}

fn unmount(place: &Path) {
    match Command::new("umount").arg("-l").arg(place).status() {
        Ok(status) if status.success() => {}
        other => eprintln!("{} stays mounted: {other:?}", place.display()),
    }
}

/// Tells threads to end when it is dropped, also where a test fails.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn cluster(synchronous: u32) -> Cluster {
    running::cluster(2, Some(synchronous))
}

#[test]
fn a_primary_whose_disk_for_wal_is_full_is_replaced() {
    // Else its fate is open: it may try to recover for ever, which is waited for, or give up.
    let builder = Builder::new().replicas(2).synchronous(1).setting("restart_after_crash", "off");
    let cluster = builder.start_blocking().unwrap();
    let Some(disk) = SmallDisk::under(&cluster, cluster.node("node-1"), "pg_wal", 160) else { return };
    let day = Day::with(cluster, Some(1), "");
    disk.fill();
    eventually("PostgreSQL gives up", || {
        // Each one begins a new file; at last there is no room for one.
        let switched =
            day.node("node-1").sql("SELECT pg_switch_wal() FROM pg_logical_emit_message(true, '', '')");
        if day.node("node-1").is_running() { Err(format!("{switched:?}")) } else { Ok(()) }
    });
    let log = day.node("node-1").log_tail(1000);
    assert!(log.contains("PANIC") && log.contains("No space left on device"), "{log}");
    let primary = day.another_primary("node-1");
    day.clients.all_go_on();
    // Somebody makes room and starts it again: it is none of this cluster any more.
    disk.free();
    day.node("node-1").start().unwrap();
    day.role("node-1", "stale_primary");
    let rows = day.direct("node-1", "select count(*) from ledger");
    day.clients.all_go_on();
    assert_eq!(day.direct("node-1", "select count(*) from ledger"), rows);
    assert_eq!(day.failovers_begun(), 1);
    day.end(&primary);
}

#[test]
fn a_primary_whose_disk_for_data_is_full_says_so_and_stays() {
    let cluster = cluster(1);
    let Some(disk) = SmallDisk::under(&cluster, cluster.node("node-1"), "base", 100) else { return };
    let day = Day::with(cluster, Some(1), "");
    disk.fill();
    day.clients.wait_for_error("53100");
    for_long(|| day.clients.all_read_on());
    day.assert_no_failover();
    disk.free();
    day.clients.all_go_on();
    day.assert_no_failover();
    day.end("node-1");
}

/// Takes every connection slot of a node as it becomes free, until it is told to let go.
fn take_all_slots(node: &Node, release: &AtomicBool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut held = Vec::new();
        while !release.load(Ordering::Relaxed) {
            match node.connect().await {
                Ok(client) => held.push(client),
                // Somebody else has it: there is none to be had now.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
            }
        }
    });
}

#[test]
fn a_primary_without_a_free_connection_slot_is_alive() {
    let builder = Builder::new().replicas(2).setting("max_connections", "25").synchronous(1);
    let day = Day::with(builder.start_blocking().unwrap(), Some(1), "");
    let (node, release) = (day.node("node-1"), AtomicBool::new(false));
    // Opened before, while that is possible.
    let watch = day.clients.runtime().block_on(node.connect()).unwrap();
    let end_others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                      WHERE backend_type = 'client backend' AND datname = 'app'";
    std::thread::scope(|scope| {
        scope.spawn(|| take_all_slots(node, &release));
        let _at_last = Raised(&release);
        day.status("metako finds no slot either", |status| {
            day.clients.runtime().block_on(watch.simple_query(end_others)).unwrap();
            let reason = status["reason"].as_str().unwrap_or_default();
            reason.contains("no connection slot left: it is alive")
        });
        for_long(|| {
            day.clients.runtime().block_on(watch.simple_query(end_others)).unwrap();
            day.clients.all_read_on();
        });
        day.assert_no_failover();
    });
    day.clients.all_go_on();
    day.assert_no_failover();
    day.end("node-1");
}

#[test]
fn a_primary_that_lets_metako_in_no_more_is_alive() {
    let day = Day::begin(Some(1));
    let node = day.node("node-1");
    let watch = day.clients.runtime().block_on(node.connect_to("app")).unwrap();
    // Neither metako nor who comes now can log in; who is in stays in, but for metako's own connections.
    let locked = "ALTER ROLE postgres NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                  WHERE usename = 'postgres' AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
    day.clients.runtime().block_on(watch.batch_execute(locked)).unwrap();
    day.status("metako cannot log in, and says what that means", |status| {
        let reason = status["reason"].as_str().unwrap_or_default();
        reason.contains("does not let metako log in")
    });
    for_long(|| day.assert_no_failover());
    day.clients.runtime().block_on(watch.batch_execute("ALTER ROLE postgres LOGIN")).unwrap();
    day.clients.all_go_on();
    day.assert_no_failover();
    day.end("node-1");
}

#[test]
fn heavy_load_is_no_failure() {
    let cluster = cluster(1);
    let metako = running::Metako::start(&running::configuration(&cluster, ""));
    metako.wait_until_open(2);
    metako.wait_until_synchronous();
    let clients = running::ledger::Clients::start(&cluster, metako.port, 40, 10);
    let day = Day { clients, metako, cluster };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _at_last = Raised(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        for_long(|| day.clients.all_go_on());
        day.assert_no_failover();
    });
    // A log-in that takes too long is given up; who is in stays in.
    let mut errors = day.clients.errors();
    errors.retain(|error| !error.starts_with("connecting: "));
    assert_eq!(errors, [""; 0]);
    day.assert_no_failover();
    day.end("node-1");
}
