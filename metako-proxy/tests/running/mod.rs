//! A metako process as a person would start it, for tests.

#![allow(dead_code, reason = "each test binary uses its own part of this module")]

pub(crate) mod day;
pub(crate) mod ledger;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metako_proxy::playground::{Builder, Cluster, Node, PlaygroundError, Programs};
use serde_json::Value;

/// How long a test waits for a condition before it fails with what it saw last.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again until `check` answers `Ok`; fails with the last `Err` after [`PATIENCE`].
pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match check() {
            Ok(value) => return value,
            Err(seen) => assert!(begun.elapsed() < PATIENCE, "never happened: {what}; seen last: {seen}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A running `metako` process with its configuration in a folder of its own. Dies with the test.
pub(crate) struct Metako {
    child: Child,
    folder: tempfile::TempDir,
    /// The port that clients connect to.
    pub(crate) port: u16,
}

impl Metako {
    /// Starts metako with a configuration in which `{listen}` and `{state_dir}` are filled in, and waits until its
    /// admin socket answers.
    pub(crate) fn start(configuration: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("mtk").tempdir().expect("a temporary folder");
        let port = free_port();
        let text = fill(configuration, port, folder.path());
        std::fs::write(folder.path().join("metako.yaml"), text).expect("the configuration is written");
        let child = spawn(folder.path());
        let mut metako = Self { child, folder, port };
        metako.wait_until_up();
        metako
    }

    /// Kills it if it still runs, and starts it again with what it has on disk.
    pub(crate) fn start_again(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        self.child.wait().expect("metako can be waited for");
        self.child = spawn(self.folder.path());
        self.wait_until_up();
    }

    fn wait_until_up(&mut self) {
        eventually("the admin socket answers", || {
            if let Some(status) = self.child.try_wait().expect("metako can be waited for") {
                panic!("metako ended with {status}:\n{}", self.log());
            }
            self.status().map(drop)
        });
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("metako.yaml")
    }

    /// Writes another configuration in the place of the present one; does not reload.
    pub(crate) fn rewrite(&self, configuration: &str) {
        let text = fill(configuration, self.port, self.folder.path());
        std::fs::write(self.config(), text).expect("the configuration is written");
    }

    /// Runs `metako COMMAND.. --config FILE`.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_metako"))
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .output()
            .expect("metako runs")
    }

    /// `metako status --json`
    pub(crate) fn status(&self) -> Result<Value, String> {
        let output = self.command(&["status", "--json"]);
        if !output.status.success() {
            return Err(text(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {}", text(&output.stdout)))
    }

    /// Waits until writes are open and `replicas` nodes serve reads; answers with the status.
    pub(crate) fn wait_until_open(&self, replicas: usize) -> Value {
        eventually("writes are open and the replicas serve reads", || {
            let status = self.status()?;
            let fit = status["nodes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|node| node["serves_reads"] == true)
                .count();
            if status["primary"].is_string() && fit >= replicas {
                Ok(status)
            } else {
                Err(format!("{status}\n{}", self.log()))
            }
        })
    }

    /// Waits until another node than this one is primary, and answers with its name.
    pub(crate) fn another_primary(&self, than: &str) -> String {
        eventually("another node is primary", || {
            let status = self.status()?;
            match status["primary"].as_str() {
                Some(name) if name != than => Ok(name.to_owned()),
                _ => Err(status.to_string()),
            }
        })
    }

    /// Waits until a failover may rely on what commits wait for.
    pub(crate) fn wait_until_synchronous(&self) {
        eventually("the synchronous standbys are in force", || {
            let log = self.log();
            if log.contains("a commit is acknowledged when") { Ok(()) } else { Err(log) }
        });
    }

    /// Everything that it logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until its log has that.
    pub(crate) fn wait_logged(&self, what: &str) {
        eventually(what, || if self.log().contains(what) { Ok(()) } else { Err(self.log()) });
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).expect("metako can be signalled");
    }

    /// Its state directory.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Waits for its end after a SIGTERM; answers whether it ended with success.
    pub(crate) fn stop(mut self) -> bool {
        self.end()
    }

    /// As [`Self::stop`], and keeps its folder.
    pub(crate) fn end(&mut self) -> bool {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        eventually("metako ends", || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status.success()),
            Ok(None) => Err(self.log()),
            Err(error) => Err(error.to_string()),
        })
    }
}

impl Drop for Metako {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- metako's log ---\n{}", self.log());
        }
    }
}

fn spawn(folder: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log"));
    Command::new(env!("CARGO_BIN_EXE_metako"))
        .arg("--config")
        .arg(folder.join("metako.yaml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.expect("a log file"))
        .spawn()
        .expect("metako starts")
}

/// A statement at work on the node that loops without ever looking whether the postmaster lives.
pub(crate) fn busy_backend(node: &Node) -> JoinHandle<Result<Option<String>, PlaygroundError>> {
    let busy = std::thread::spawn({
        let node = node.clone();
        move || node.sql("DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$")
    });
    let active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'";
    eventually("the backend is busy", || match node.sql(active) {
        Ok(Some(count)) if count == "1" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    busy
}

/// A port that nothing listens on at the moment of asking.
pub(crate) fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("its address").port()
}

fn fill(configuration: &str, port: u16, folder: &Path) -> String {
    configuration
        .replace("{listen}", &format!("127.0.0.1:{port}"))
        .replace("{state_dir}", &folder.join("state").display().to_string())
}

/// Bytes as text, for messages.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A cluster of a primary `node-1` and so many replicas.
pub(crate) fn cluster(replicas: usize, synchronous: Option<u32>) -> Cluster {
    let builder = Builder::new().replicas(replicas);
    let builder = match synchronous {
        Some(acks) => builder.synchronous(acks),
        None => builder,
    };
    builder.start_blocking().expect("the cluster starts")
}

/// A configuration for the cluster, with more of its top-level keys in `extra`.
pub(crate) fn configuration(cluster: &Cluster, extra: &str) -> String {
    let yaml = cluster.metako_yaml("{listen}");
    let own: String =
        yaml.lines().filter(|line| !line.starts_with("state_dir:")).flat_map(|line| [line, "\n"]).collect();
    format!("{own}state_dir: {{state_dir}}\n{extra}\n")
}

/// The section `hooks` with the script that ships.
pub(crate) fn hooks(cluster: &Cluster) -> String {
    cluster.hooks_yaml(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/hooks/local.sh"))
}

/// What lets a role be the one by which `pg_rewind` asks the primary; see docs/hooks.md.
pub(crate) fn rewinding(role: &str) -> String {
    format!(
        "GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
         pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO {role};
         DO $$ BEGIN IF current_setting('server_version_num')::int >= 150000 THEN GRANT pg_checkpoint TO {role}; END IF;
         END $$"
    )
}

/// Whether PostgreSQL's programs here include those that the hooks call. Says so where not.
pub(crate) fn can_rejoin() -> bool {
    let folder = Programs::find(None).expect("PostgreSQL's programs").folder().to_owned();
    let missing: Vec<_> = ["pg_ctl", "pg_controldata", "pg_rewind", "pg_basebackup"]
        .into_iter()
        .filter(|name| !folder.join(name).is_file())
        .collect();
    if !missing.is_empty() {
        skipped(&format!("the hooks need {}, which {} lacks", missing.join(", "), folder.display()));
    }
    missing.is_empty()
}

/// Says, whether the test's output is shown or not, that it cannot be run here.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Where nobody listens, nobody is told.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

/// How tokio-postgres connects to `port`.
pub(crate) fn dsn(cluster: &Cluster, port: u16) -> String {
    format!(
        "host=127.0.0.1 port={port} user={} password={} dbname={}",
        Cluster::SUPERUSER,
        cluster.superuser_password(),
        Cluster::DATABASE
    )
}

/// Runs a program of PostgreSQL's client side against `port`; answers its standard output, or fails with what it said.
pub(crate) fn client(cluster: &Cluster, program: &str, port: u16, arguments: &[&str]) -> String {
    let output = client_output(cluster, program, port, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// As [`client`], whatever the exit status.
pub(crate) fn client_output(cluster: &Cluster, program: &str, port: u16, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", port.to_string())
        .env("PGUSER", Cluster::SUPERUSER)
        .env("PGPASSWORD", cluster.superuser_password())
        .env("PGDATABASE", Cluster::DATABASE)
        .env("PGCONNECT_TIMEOUT", "20")
        .env("PSQLRC", "/dev/null")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}
