//! The hooks that are shipped, on real clusters: a former primary is stopped, rejoins, is rewound, or is copied anew.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test where they stand")]

mod running;

use std::path::{Path, PathBuf};
use std::time::Duration;

use metako_core::config::Secret;
use metako_proxy::env::{Env as _, HookEnding, HookOutput, HookProgram, TokioEnv};
use metako_proxy::playground::{Builder, Cluster, Node, until};

const LIMIT: Duration = Duration::from_mins(2);
/// Who follows the primary: no superuser, with the grants of docs/hooks.md, and a password that is hard to quote.
const REJOINER: &str = r#"CREATE ROLE rejoiner REPLICATION LOGIN PASSWORD 'it''s \ "lion"'"#;

/// A primary, its replicas, and calls of hooks for them.
struct Bench {
    cluster: Cluster,
    old: Node,
    new: Node,
}

impl Bench {
    async fn start(builder: Builder) -> Self {
        let cluster = Cluster::start(builder).await.unwrap();
        let (old, new) = (cluster.node("node-1").clone(), cluster.nodes()[1 % cluster.nodes().len()].clone());
        old.sql(REJOINER).unwrap();
        old.sql(&running::rewinding("rejoiner")).unwrap();
        old.sql("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").unwrap();
        Self { cluster, old, new }
    }

    /// Makes the first replica primary, with a slot for each that may follow it.
    fn promote(&self) {
        assert_rows(&self.new, "1");
        assert_eq!(self.new.sql("SELECT pg_promote()").unwrap().as_deref(), Some("t"));
        for slot in ["node_1", "node_3"] {
            self.new.sql(&format!("SELECT pg_create_physical_replication_slot('{slot}', true)")).unwrap();
        }
        self.new.sql("INSERT INTO t VALUES (2)").unwrap();
        // Configuration of its own that a rewound node must not get.
        self.new.sql("ALTER SYSTEM SET work_mem = '5MB'").unwrap();
    }

    async fn local(&self, hook: &str, node: &Node, timeline: u32) -> HookOutput {
        self.run(vec![script("local.sh")], hook, node, timeline, &[]).await
    }

    /// Runs a hook for `node`, to follow the new primary.
    async fn run(
        &self,
        mut command: Vec<String>,
        hook: &str,
        node: &Node,
        timeline: u32,
        more: &[(&str, String)],
    ) -> HookOutput {
        let upstream = if node.name() == self.new.name() { &self.old } else { &self.new };
        command.extend([hook, node.name(), upstream.name()].map(str::to_owned));
        let conninfo = format!(
            r#"host='127.0.0.1' port='{}' user='rejoiner' password='it\'s \\ "lion"' application_name='{}' sslmode='disable'"#,
            upstream.port(),
            node.name()
        );
        let environment = [
            ("METAKO_NODE", node.name().to_owned()),
            ("METAKO_HOST", "127.0.0.1".to_owned()),
            ("METAKO_PORT", node.port().to_string()),
            ("METAKO_PGDATA", node.data_dir().display().to_string()),
            ("METAKO_UPSTREAM_HOST", "127.0.0.1".to_owned()),
            ("METAKO_UPSTREAM_PORT", upstream.port().to_string()),
            ("METAKO_SLOT", node.slot_name()),
            ("METAKO_EPOCH", "7".to_owned()),
            ("METAKO_TIMELINE", timeline.to_string()),
            ("METAKO_PRIMARY_CONNINFO", conninfo),
        ];
        let environment = environment.iter().chain(more);
        let environment =
            environment.map(|(name, value)| ((*name).to_owned(), Secret::new(value.clone()))).collect();
        TokioEnv::new()
            .run_hook(HookProgram { command, environment, withheld: Vec::new(), limit: LIMIT })
            .await
            .unwrap()
    }

    /// The node streams, has what the new primary has, and its own settings.
    fn assert_rejoined(&self, node: &Node) {
        self.cluster.wait_streaming(&self.new, &[node.name()], LIMIT).unwrap();
        self.new.sql("INSERT INTO t VALUES (3)").unwrap();
        assert_rows(node, "1,2,3");
        let answers = [
            ("SELECT pg_is_in_recovery()", "t"),
            ("SELECT received_tli FROM pg_stat_wal_receiver", "2"),
            ("SHOW work_mem", "4MB"),
            ("SHOW primary_slot_name", &node.slot_name()),
            ("SELECT count(*) FROM pg_file_settings WHERE name = 'primary_conninfo'", "1"),
        ];
        for (question, answer) in answers {
            assert_eq!(node.sql(question).unwrap().as_deref(), Some(answer), "{question}");
        }
        assert!(!beside(node, "metako-saved").exists() && !beside(node, "metako-new").exists());
        let lock_file = std::fs::read_to_string(node.data_dir().join("postmaster.pid")).unwrap();
        let environment =
            std::fs::read(format!("/proc/{}/environ", lock_file.lines().next().unwrap())).unwrap();
        assert!(
            !String::from_utf8_lossy(&environment).contains("METAKO_"),
            "what a hook is told is not for the server"
        );
    }
}

fn script(name: &str) -> String {
    format!("{}/../configs/hooks/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The data folder's name with something after it.
fn beside(node: &Node, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}.{suffix}", node.data_dir().display()))
}

fn assert_rows(node: &Node, expected: &str) {
    let rows = "SELECT string_agg(a::text, ',' ORDER BY a) FROM t";
    until("the rows", LIMIT, || match node.sql(rows) {
        Ok(Some(rows)) if rows == expected => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
}

fn assert_done(output: &HookOutput) {
    assert_eq!(output.ending, HookEnding::Exited(0), "{}", output.output);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_was_stopped_rejoins_and_dies_with_its_cluster() {
    let bench = Bench::start(Builder::new().replicas(1)).await;
    // A standby is no upstream, and then nothing is stopped.
    let early = bench.local("rejoin", &bench.old, 1).await;
    assert_eq!(early.ending, HookEnding::Exited(75), "{}", early.output);
    assert!(bench.old.is_running());

    assert_done(&bench.local("stop", &bench.old, 1).await);
    assert!(!bench.old.is_running());
    assert_done(&bench.local("stop", &bench.old, 1).await);
    bench.promote();
    let output = bench.local("rejoin", &bench.old, 2).await;
    assert_done(&output);
    bench.assert_rejoined(&bench.old);
    assert!(!beside(&bench.old, "before-7").exists());
    // Again, though there is nothing to do.
    assert_done(&bench.local("rejoin", &bench.old, 2).await);
    bench.cluster.wait_streaming(&bench.new, &["node-1"], LIMIT).unwrap();
    // And after a crash.
    bench.old.kill_9_all().unwrap();
    let output = bench.local("rejoin", &bench.old, 2).await;
    assert_done(&output);
    assert!(!output.output.contains("recovered first"), "{}", output.output);
    bench.cluster.wait_streaming(&bench.new, &["node-1"], LIMIT).unwrap();

    assert!(bench.old.is_running() && bench.old.processes() > 0);
    let Bench { cluster, old, .. } = bench;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _cluster = cluster;
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(old.processes(), 0);
    assert!(!old.data_dir().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_wrote_on_and_was_killed_is_rewound() {
    let bench = Bench::start(Builder::new().replicas(1)).await;
    bench.promote();
    assert_what_is_wrong_is_refused(&bench).await;
    bench.old.sql("INSERT INTO t SELECT generate_series(100, 10000)").unwrap();
    bench.old.kill_9().unwrap();
    let output = bench.local("rejoin", &bench.old, 2).await;
    assert_done(&output);
    assert!(output.output.contains("recovered first"), "{}", output.output);
    assert!(output.output.contains("rewinding from last common checkpoint"), "{}", output.output);
    bench.assert_rejoined(&bench.old);
    assert!(!beside(&bench.old, "before-7").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_what_outlived_a_killed_postmaster() {
    let bench = Bench::start(Builder::new().replicas(0)).await;
    let node = bench.old.clone();
    let busy = running::busy_backend(&node);
    node.kill_9().unwrap();
    assert!(node.processes() > 0);
    assert_done(&bench.local("stop", &node, 1).await);
    assert_eq!(node.processes(), 0);
    assert!(busy.join().unwrap().is_err());
}

/// Has the third node receive more than the one that is promoted, and rejoin.
async fn diverged_standby(killed: bool) {
    let bench = Bench::start(Builder::new().replicas(2)).await;
    let third = bench.cluster.node("node-3");
    assert_rows(&bench.new, "1");
    bench.new.sql("ALTER SYSTEM SET primary_conninfo = ''").unwrap();
    bench.new.sql("SELECT pg_reload_conf()").unwrap();
    bench.cluster.wait_streaming(&bench.old, &["node-3"], LIMIT).unwrap();
    bench.old.sql("INSERT INTO t VALUES (100)").unwrap();
    assert_rows(third, "1,100");
    bench.old.kill_9_all().unwrap();
    bench.promote();
    if killed {
        third.kill_9().unwrap();
    }
    let output = bench.local("rejoin", third, 2).await;
    assert_done(&output);
    assert!(output.output.contains("rewinding from last common checkpoint"), "{}", output.output);
    bench.assert_rejoined(third);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_received_too_much_is_rewound() {
    diverged_standby(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_received_too_much_and_was_killed_is_rewound() {
    diverged_standby(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_rewinding_cannot_be_done_the_primary_is_copied() {
    let builder = Builder::new().replicas(1).setting("wal_log_hints", "off");
    let bench = Bench::start(builder.setting("log_replication_commands", "on")).await;
    bench.promote();
    bench.old.sql("INSERT INTO t VALUES (100)").unwrap();
    let older = beside(&bench.old, "before-3");
    std::fs::create_dir(&older).unwrap();
    make_owned(&older, bench.old.data_dir());

    let tablespace = bench.old.data_dir().join("pg_tblspc/99999");
    std::os::unix::fs::symlink("/nowhere", &tablespace).unwrap();
    let refused = bench.local("rejoin", &bench.old, 2).await;
    assert_eq!(refused.ending, HookEnding::Exited(1), "{}", refused.output);
    assert!(refused.output.contains("has tablespaces"), "{}", refused.output);
    assert!(older.exists() && !bench.old.is_running());
    std::fs::remove_file(&tablespace).unwrap();

    // Nobody else has what the former one holds: it outlives a start that fails, and all that comes later.
    std::fs::write(bench.old.data_dir().join("original"), "").unwrap();
    let original = beside(&bench.old, "before-7").join("original");
    let cannot_start = [("PG_START", "env >\"$METAKO_PGDATA.env\"; exit 9".to_owned())];
    let output = bench.run(vec![script("local.sh")], "rejoin", &bench.old, 2, &cannot_start).await;
    assert_eq!(output.ending, HookEnding::Exited(1), "{}", output.output);
    assert!(output.output.contains("PG_START failed"), "{}", output.output);
    let environment = std::fs::read_to_string(beside(&bench.old, "env")).unwrap();
    assert!(environment.contains("METAKO_NODE=node-1") && !environment.contains("METAKO_PRIMARY_CONNINFO"));
    let outdated = beside(&bench.old, "metako-outdated-3");
    assert!(original.exists() && outdated.exists());
    let log = bench.new.log_tail(usize::MAX);
    let commands = log.lines().filter(|line| line.contains("received replication command"));
    let streams: Vec<&str> = commands.filter(|line| line.contains("START_REPLICATION")).collect();
    assert!(
        !streams.is_empty() && streams.iter().all(|line| line.contains("metako_base_backup")),
        "{streams:?}"
    );

    let output = bench.local("rejoin", &bench.old, 2).await;
    assert_done(&output);
    assert!(!output.output.contains("is copied"), "{}", output.output);
    bench.assert_rejoined(&bench.old);
    assert!(original.exists() && !older.exists() && !outdated.exists(), "one former data folder is kept");

    // A second one of the same epoch, as of a node that somebody had write on.
    assert_done(&bench.local("stop", &bench.old, 2).await);
    std::fs::remove_file(bench.old.data_dir().join("standby.signal")).unwrap();
    bench.old.start().unwrap();
    bench.old.wait_ready(LIMIT).unwrap();
    assert_done(&bench.local("rejoin", &bench.old, 2).await);
    bench.cluster.wait_streaming(&bench.new, &["node-1"], LIMIT).unwrap();
    assert!(original.exists() && beside(&bench.old, "before-7.2").exists());
}

/// While both are primaries, what is wrong is found before anything is stopped.
async fn assert_what_is_wrong_is_refused(bench: &Bench) {
    // Of the one that it is to follow.
    let timeline = |node: &Node| if node.name() == bench.new.name() { 1 } else { 2 };
    let refused = async |hook, node, more: &[(&str, String)], why| {
        let output = bench.run(vec![script("local.sh")], hook, node, timeline(node), more).await;
        assert_eq!(output.ending, HookEnding::Exited(1), "{why}: {}", output.output);
        assert!(output.output.contains(why), "{why}: {}", output.output);
        assert!(bench.old.is_running() && bench.new.is_running(), "{why}");
    };
    // The data directory is that of the primary, whatever the port is.
    let (old, new) = (&bench.old, &bench.new);
    let data = ("METAKO_PGDATA", new.data_dir().display().to_string());
    let of_primary = [data.clone(), ("METAKO_PORT", new.port().to_string())];
    refused("stop", old, std::slice::from_ref(&data), "is `pgdata` right?").await;
    refused("rejoin", old, &[data], "is `pgdata` right?").await;
    refused("rejoin", old, &of_primary, "is the primary itself").await;
    new.sql("REVOKE EXECUTE ON FUNCTION pg_read_binary_file(text) FROM rejoiner").unwrap();
    refused("rejoin", old, &of_primary, "may be the primary itself").await;
    new.sql("GRANT EXECUTE ON FUNCTION pg_read_binary_file(text) TO rejoiner").unwrap();
    // The primary of a newer timeline is to follow that of an older one.
    refused("rejoin", new, &[], "newer than 1, the primary's").await;
    refused("rejoin", old, &[("PG_KEEP", "conf.d/own.conf".to_owned())], "holds a slash").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_the_data_directory_is_as_good_and_files_that_were_set_aside_are_kept() {
    let bench = Bench::start(Builder::new().replicas(1)).await;
    bench.promote();
    let (old, folder) = (&bench.old, tempfile::tempdir().unwrap());
    let make_readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), make_readable).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(old.data_dir(), &link).unwrap();
    let by_link = [("METAKO_PGDATA", format!("{}/", link.display()))];
    let rejoin = || bench.run(vec![script("local.sh")], "rejoin", old, 2, &by_link);
    let saved = beside(old, "metako-saved");
    std::fs::create_dir(&saved).unwrap();
    std::fs::write(saved.join("postgresql.conf"), "# the only one").unwrap();
    make_owned(&saved, old.data_dir());

    let output = rejoin().await;
    assert_done(&output);
    assert!(output.output.contains("that had been set aside are kept"), "{}", output.output);
    bench.assert_rejoined(old);
    let kept = std::fs::read_to_string(beside(old, "metako-saved-7").join("postgresql.conf")).unwrap();
    assert_eq!(kept, "# the only one");

    // As if the hook had been cut off between the two moves of a swap.
    assert_done(&bench.local("stop", old, 2).await);
    std::fs::rename(old.data_dir(), beside(old, "metako-new")).unwrap();
    assert_done(&rejoin().await);
    bench.cluster.wait_streaming(&bench.new, &["node-1"], LIMIT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_sends_the_same_script_with_all_that_it_needs() {
    let bench = Bench::start(Builder::new().replicas(1)).await;
    let folder = tempfile::tempdir().unwrap();
    // Logs in as the owner of the data, as the real one would.
    let ssh = "#!/bin/sh\n\
        while [ \"$1\" != -- ]; do shift; done; shift\n\
        [ \"$1\" = postgres@127.0.0.1 ] || exit 255\n\
        shift\n\
        if [ -n \"$CUT\" ] && [ \"$1\" = sh ]; then head -c \"-$CUT\" | env -i PATH=\"$PATH\" sh -c \"$*\"; exit; fi\n\
        [ \"$(id -u)\" -ne 0 ] || exec setpriv --reuid \"$OWNER\" --clear-groups env -i PATH=\"$PATH\" sh -c \"$*\"\n\
        exec env -i PATH=\"$PATH\" sh -c \"$*\"\n";
    std::fs::write(folder.path().join("ssh"), ssh).unwrap();
    std::fs::set_permissions(folder.path().join("ssh"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(bench.old.data_dir()).unwrap());
    let more = [("PATH", path), ("OWNER", owner.to_string()), ("PG_KEEP", "it's nothing".to_owned())];
    let call = |hook, timeline| bench.run(vec![script("ssh.sh")], hook, &bench.old, timeline, &more);

    // So many bytes of the script do not arrive, as if the connection had broken.
    for missing in [2, 9, 9000] {
        let cut = [more.as_slice(), &[("CUT", missing.to_string())]].concat();
        let output = bench.run(vec![script("ssh.sh")], "stop", &bench.old, 1, &cut).await;
        assert_eq!(output.ending, HookEnding::Exited(2), "{missing}: {}", output.output);
        assert!(bench.old.is_running());
    }
    assert_done(&call("stop", 1).await);
    assert!(!bench.old.is_running());
    bench.promote();
    assert_done(&call("rejoin", 2).await);
    bench.assert_rejoined(&bench.old);
    let elsewhere = [more.as_slice(), &[("METAKO_SSH_HOST", "nowhere".to_owned())]].concat();
    let output = bench.run(vec![script("ssh.sh")], "stop", &bench.old, 2, &elsewhere).await;
    assert_eq!(output.ending, HookEnding::Exited(75), "{}", output.output);
}

/// Gives a folder to the owner of another.
fn make_owned(folder: &Path, like: &Path) {
    use std::os::unix::fs::MetadataExt as _;

    let like = std::fs::metadata(like).unwrap();
    std::os::unix::fs::chown(folder, Some(like.uid()), Some(like.gid())).unwrap();
}
