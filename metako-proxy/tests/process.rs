//! What the process does where no server answers: signals, reload, logs, the admin socket, exit status.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test where they stand")]

mod running;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use running::{Metako, eventually, free_port, text};

const NODE: &str =
    "nodes: [{ name: one, host: 127.0.0.1, port: 1, role: primary, username: u, password: p, database: d }]";

fn configuration(extra: &str) -> String {
    format!("listen: {{listen}}\nstate_dir: {{state_dir}}\n{NODE}\n{extra}\n")
}

#[test]
fn a_reload_changes_the_level_and_the_interval_of_the_report() {
    let metako = Metako::start(&configuration("log: { level: error, report_interval: 1h }"));
    metako.rewrite(&configuration("log: { level: info, report_interval: 1s }"));
    let reloaded = metako.command(&["reload"]);
    assert!(reloaded.status.success(), "{}", text(&reloaded.stderr));
    metako.wait_logged("configuration reloaded");
    metako.wait_logged("cluster main: unavailable");
    assert!(!metako.log().contains('\x1b'), "a file is no terminal:\n{}", metako.log());
}

#[test]
fn all_keys_that_need_a_restart_are_named() {
    let metako = Metako::start(&configuration(""));
    metako.rewrite(&configuration("cluster: other\nlog: { format: json }"));
    let refused = metako.command(&["reload"]);
    let why = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("cluster stays main") && why.contains("log.format stays human"), "{why}");
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let metako = Metako::start(&configuration(""));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_metako"))
        .args(["status", "--config"])
        .arg(metako.config())
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!((status.status.code(), text(&status.stderr).as_str()), (Some(0), ""));
}

#[test]
fn the_admin_socket_is_for_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let metako = Metako::start(&configuration(&format!("admin: {{ socket: {} }}", socket.display())));
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "{mode:o}");
    assert!(metako.stop());
    assert!(!socket.exists(), "nothing is left of it");
}

/// A metako on a configuration file as it is. Dies with the test.
struct Process(Child);

impl Process {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metako"));
        command.arg("--config").arg(config);
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    fn ended(&mut self) -> Option<i32> {
        let status = eventually("metako ends", || self.0.try_wait().unwrap().ok_or("it runs".to_owned()));
        status.code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn filled(extra: &str, port: u16, folder: &Path) -> String {
    let state = folder.join("state").display().to_string();
    configuration(extra).replace("{listen}", &format!("127.0.0.1:{port}")).replace("{state_dir}", &state)
}

#[test]
fn a_file_in_the_place_of_the_admin_socket_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (config, file) = (folder.path().join("metako.yaml"), folder.path().join("precious"));
    std::fs::write(&file, "precious").unwrap();
    let admin = format!("admin: {{ socket: {} }}", file.display());
    std::fs::write(&config, filled(&admin, free_port(), folder.path())).unwrap();
    assert_eq!(Process::start(&config).ended(), Some(1));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

/// The configuration is a pipe here, so that each reading of it takes until somebody writes.
#[test]
fn signals_are_heard_during_start_and_during_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("metako.yaml");
    nix::unistd::mkfifo(&config, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let mut process = Process::start(&config);
    let port = free_port();
    {
        // Opens when metako has opened the other end.
        let mut writer = std::fs::OpenOptions::new().write(true).open(&config).unwrap();
        process.signal(Signal::SIGHUP);
        writer.write_all(filled("", port, folder.path()).as_bytes()).unwrap();
    }
    eventually("metako listens", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string())
    });
    // The reload that was asked for meanwhile waits for its text.
    let writer = std::fs::OpenOptions::new().write(true).open(&config).unwrap();
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ended(), Some(0));
    drop(writer);
}

#[test]
fn a_second_signal_ends_the_wait_for_clients() {
    let metako = Metako::start(&configuration("limits: { login_timeout: 10m }"));
    let slow = std::net::TcpStream::connect(("127.0.0.1", metako.port)).unwrap();
    metako.signal(Signal::SIGTERM);
    metako.wait_logged("asked to stop");
    metako.signal(Signal::SIGTERM);
    metako.wait_logged("asked a second time");
    assert!(metako.stop());
    drop(slow);
}

/// metako under `ulimit`: what its log says, and the limit on open files that it runs with.
fn under_limits(ulimit: &str, clients: usize) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let (config, log) = (folder.path().join("metako.yaml"), folder.path().join("log"));
    let text = format!(
        "listen: 127.0.0.1:{}\nstate_dir: {}\n{NODE}\nlimits: {{ clients: {clients} }}\n",
        free_port(),
        folder.path().join("state").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new("sh")
        .args(["-c", &format!("{ulimit}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_metako"), "--config"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let said = eventually("metako listens", || {
        let said = std::fs::read_to_string(&log).unwrap();
        if said.contains("metako listens") { Ok(said) } else { Err(said) }
    });
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    (said, files.split_whitespace().skip(3).take(2).collect::<Vec<_>>().join(" "))
}

#[test]
fn the_limit_on_open_files_is_raised_and_a_shortage_is_told() {
    let (said, limit) = under_limits("ulimit -Sn 100; ulimit -Hn 800", 400);
    assert_eq!(limit, "800 800");
    assert!(!said.contains("limits.clients"), "{said}");

    let (said, limit) = under_limits("ulimit -Sn 100; ulimit -Hn 800", 5000);
    assert_eq!(limit, "800 800");
    assert!(said.contains("limits.clients is 5000") && said.contains("may open 800 files"), "{said}");
}
