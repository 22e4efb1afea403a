//! A PostgreSQL server of one test's own, with the `pg_hba.conf` and settings that the test wants.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};

const BIN: &str = "/usr/lib/postgresql/15/bin";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running server; it is stopped and removed on drop.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    owner: Option<User>,
    process: Child,
    pub(crate) port: u16,
}

impl Server {
    /// Initialises and starts a server whose superuser is `postgres`. `settings` are lines of `postgresql.conf`; files
    /// are put into the data directory, readable by the server alone.
    pub(crate) fn start(hba: &str, settings: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("metako-test-").tempdir().unwrap();
        // PostgreSQL refuses to run as root.
        let owner =
            geteuid().is_root().then(|| User::from_name("postgres").unwrap().expect("no user postgres"));
        give(dir.path(), owner.as_ref(), 0o700);
        let data = dir.path().join("data");
        let initdb = command(owner.as_ref(), "initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .arg("--pgdata")
            .arg(&data)
            .output()
            .unwrap();
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        let base = "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n\
                    log_destination = stderr\nlogging_collector = off\nlc_messages = 'C'\n";
        let conf = format!("{base}{settings}\n");
        for (name, text) in [("pg_hba.conf", hba), ("postgresql.conf", conf.as_str())].iter().chain(files) {
            std::fs::write(data.join(name), text).unwrap();
            give(&data.join(name), owner.as_ref(), 0o600);
        }
        // A port that was free may be taken by another test before the server has it.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(process) = launch(owner.as_ref(), &data, port) {
                return Self { dir, owner, process, port };
            }
        }
        panic!("the server in {} does not start", dir.path().display());
    }

    /// Asks the server to stop when its sessions have ended.
    pub(crate) fn stop_when_idle(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Stops the server at once, and waits until it is gone.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGQUIT);
        self.process.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|status| status.is_none()) {
            self.stop();
        }
        // Named so that they live as long as the process.
        let _ = (&self.dir, &self.owner);
    }
}

fn command(owner: Option<&User>, program: &str) -> Command {
    let mut command = Command::new(PathBuf::from(BIN).join(program));
    command.current_dir("/");
    if let Some(owner) = owner {
        command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
    }
    command
}

fn give(path: &Path, owner: Option<&User>, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    if let Some(owner) = owner {
        chown(path, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
    }
}

/// Starts the server; `None` if it ended before it was ready.
fn launch(owner: Option<&User>, data: &Path, port: u16) -> Option<Child> {
    let mut process = command(owner, "postgres")
        .arg("-D")
        .arg(data)
        .args(["-p", &port.to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(process.stderr.take().unwrap());
    let (ready, wait) = mpsc::channel();
    // Reads on to the end, or the server would block on a full pipe.
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            if line.contains("database system is ready to accept connections") {
                let _ = ready.send(());
            }
        }
    });
    if wait.recv_timeout(START_TIMEOUT).is_ok() {
        return Some(process);
    }
    let _ = process.kill();
    process.wait().unwrap();
    None
}
