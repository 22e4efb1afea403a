//! Throw-away clusters on real PostgreSQL processes.

mod running;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use metako_proxy::playground::{Builder, Cluster, Node, StopMode, until};

const LIMIT: Duration = Duration::from_mins(1);

#[tokio::test]
async fn two_replicas_stream_and_a_killed_one_comes_back() {
    let cluster = Cluster::start(Builder::new().replicas(2)).await.unwrap();
    let primary = cluster.node("node-1").clone();
    cluster.wait_streaming(&primary, &["node-2", "node-3"], LIMIT).unwrap();
    let slots = "SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots WHERE active";
    assert_eq!(primary.sql(slots).unwrap().as_deref(), Some("node_2,node_3"));

    let replica = cluster.node("node-3").clone();
    replica.kill_9().unwrap();
    assert!(!replica.is_running());
    cluster.wait_streaming(&primary, &["node-2"], LIMIT).unwrap();
    replica.start().unwrap();
    cluster.wait_streaming(&primary, &["node-2", "node-3"], LIMIT).unwrap();

    primary.stop(StopMode::Fast).unwrap();
    assert!(primary.sql("SELECT 1").is_err());
    assert!(primary.stop(StopMode::Fast).is_err(), "a stopped node cannot be stopped");
    primary.start().unwrap();
    cluster.wait_streaming(&primary, &["node-2", "node-3"], LIMIT).unwrap();
    // Nothing about replication is fixed on a command line, where a failover by SQL could not change it.
    let origin = "SELECT sourcefile FROM pg_settings WHERE name = 'primary_conninfo'";
    let origin = replica.sql(origin).unwrap().unwrap();
    assert!(origin.ends_with("postgresql.auto.conf"), "{origin}");
}

#[test]
fn with_any_1_a_commit_waits_while_both_replicas_are_frozen() {
    let cluster = Builder::new().replicas(2).synchronous(1).start_blocking().unwrap();
    let primary = cluster.node("node-1");
    primary.sql("CREATE TABLE t (a int)").unwrap();
    cluster.node("node-2").freeze().unwrap();
    primary.sql("INSERT INTO t VALUES (1)").unwrap();
    cluster.node("node-3").freeze().unwrap();
    let writer = primary.clone();
    std::thread::scope(|scope| {
        let write = scope.spawn(move || writer.sql("INSERT INTO t VALUES (2)"));
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        until("a commit that waits for a replica", LIMIT, || match primary.sql(waiting) {
            Ok(Some(count)) if count == "1" => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .unwrap();
        cluster.node("node-3").thaw().unwrap();
        write.join().unwrap().unwrap();
    });
    assert_eq!(primary.sql("SELECT count(*) FROM t").unwrap().as_deref(), Some("2"));
}

#[test]
fn a_backend_may_outlive_its_killed_postmaster_and_all_can_be_killed() {
    let cluster = Builder::new().replicas(0).start_blocking().unwrap();
    let node = cluster.node("node-1").clone();
    let busy = running::busy_backend(&node);
    node.kill_9().unwrap();
    until("the end of all but the busy backend", LIMIT, || match node.processes() {
        1 => Ok(()),
        left => Err(format!("{left}")),
    })
    .unwrap();
    node.kill_9_all().unwrap();
    assert_eq!(node.processes(), 0);
    assert!(busy.join().unwrap().is_err());
    node.start().unwrap();
}

#[test]
fn nothing_is_left_after_a_panic() {
    let mut seen: Option<(PathBuf, Vec<Node>)> = None;
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let cluster = Builder::new().replicas(1).start_blocking().unwrap();
        cluster.node("node-2").freeze().unwrap();
        seen = Some((cluster.folder().to_owned(), cluster.nodes().to_vec()));
        panic!("on purpose");
    }));
    assert!(outcome.is_err());
    let (folder, nodes) = seen.unwrap();
    assert!(!folder.exists());
    assert_eq!(nodes.iter().map(Node::processes).sum::<usize>(), 0);
}

/// The half of [`nothing_is_left_when_the_owner_is_killed`] that is killed: does nothing unless it is asked to.
#[test]
fn owner_that_is_killed() {
    let Some(note) = std::env::var_os("METAKO_TEST_OWNER_NOTE") else { return };
    let cluster = Builder::new().replicas(1).start_blocking().unwrap();
    cluster.node("node-2").freeze().unwrap();
    let note = PathBuf::from(note);
    let draft = note.with_extension("draft");
    std::fs::write(&draft, cluster.folder().as_os_str().as_encoded_bytes()).unwrap();
    std::fs::rename(&draft, &note).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn nothing_is_left_when_the_owner_is_killed() {
    let notes = tempfile::tempdir().unwrap();
    let note = notes.path().join("folder");
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_that_is_killed"])
        .env("METAKO_TEST_OWNER_NOTE", &note)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let folder = until("the other process's cluster", LIMIT, || {
        std::fs::read_to_string(&note).map_err(|error| error.to_string())
    });
    owner.kill().unwrap();
    owner.wait().unwrap();
    let folder = PathBuf::from(folder.unwrap());
    let tag = folder.file_name().unwrap().to_str().unwrap().to_owned();
    until("the end of what it started", LIMIT, || match (processes_that_show(&tag), folder.exists()) {
        (0, false) => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .unwrap();
}

fn processes_that_show(tag: &str) -> usize {
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let cmdlines = entries.filter_map(|entry| std::fs::read(Path::new(&entry.path()).join("cmdline")).ok());
    cmdlines.filter(|shown| String::from_utf8_lossy(shown).contains(tag)).count()
}

#[test]
fn a_setting_that_postgresql_refuses_is_reported_with_what_it_said() {
    let error = Builder::new().replicas(0).setting("no_such_setting", "1").start_blocking().unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("postgres --single failed") && text.contains("no_such_setting"), "{text}");

    let cluster = Builder::new().replicas(0).start_blocking().unwrap();
    let node = cluster.node("node-1");
    node.sql("ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'").unwrap();
    node.stop(StopMode::Fast).unwrap();
    let text = node.start().unwrap_err().to_string();
    assert!(text.contains("node-1 ended while it was starting"), "{text}");
    assert!(text.contains("no_such_library"), "{text}");
}

#[test]
fn a_cluster_that_cannot_be_is_refused() {
    for wrong in [
        Builder::new().replicas(10),
        Builder::new().replicas(1).synchronous(2),
        Builder::new().synchronous(0),
    ] {
        let error = wrong.start_blocking().unwrap_err().to_string();
        assert!(error.starts_with("the cluster: "), "{error}");
    }
}
