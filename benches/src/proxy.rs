//! The proxies that are compared, as processes.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use metako_proxy::playground::{Cluster, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{BenchError, Result, read, tail, write};
use crate::rig::{Access, Rig};

/// Server connections of a pool, in both.
const POOL_SIZE: u32 = 20;

/// Clients besides the idle ones.
const OTHER_CLIENTS: u32 = 100;

/// How long a proxy may take until a client can log in.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ports that are tried: between our look and the proxy's start another program may take one.
const ATTEMPTS: u32 = 5;

/// The version of a PgBouncer, major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u32, u32);

impl Version {
    /// From here on `max_prepared_statements` exists.
    const PREPARED: Self = Self(1, 21);
    /// What metako wants to be compared with.
    const WANTED: Self = Self(1, 24);

    /// From the first line of `pgbouncer --version`.
    fn parse(text: &str) -> Option<Self> {
        let (major, rest) = text.strip_prefix("PgBouncer ")?.split_once('.')?;
        let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// A proxy that can be started.
#[derive(Debug)]
pub(crate) enum Program {
    PgBouncer { binary: PathBuf, version: Version },
    Metako { binary: PathBuf },
}

impl Program {
    /// A PgBouncer, after asking its version.
    pub(crate) fn pgbouncer(binary: &Path) -> Result<Self> {
        let binary = find(binary)?;
        let said = said_version(&binary)?;
        let version = Version::parse(&said)
            .ok_or(BenchError::Output { what: "the version of PgBouncer", text: said })?;
        Ok(Self::PgBouncer { binary, version })
    }

    /// A metako, after asking its version.
    pub(crate) fn metako(binary: &Path) -> Result<Self> {
        let binary = find(binary)?;
        said_version(&binary)?;
        Ok(Self::Metako { binary })
    }

    /// What the program calls itself.
    pub(crate) fn version(&self) -> Result<String> {
        let (Self::PgBouncer { binary, .. } | Self::Metako { binary }) = self;
        said_version(binary)
    }

    /// Whether it keeps prepared statements in transaction mode.
    pub(crate) fn keeps_prepared(&self) -> bool {
        !matches!(self, Self::PgBouncer { version, .. } if *version < Version::PREPARED)
    }

    /// Whether it is older than what metako's goals speak of.
    pub(crate) fn is_old(&self) -> bool {
        matches!(self, Self::PgBouncer { version, .. } if *version < Version::WANTED)
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::PgBouncer { .. } => "PgBouncer",
            Self::Metako { .. } => "metako",
        }
    }

    /// Writes its configuration and gives the command that runs it.
    fn command(&self, rig: &Rig, folder: &Path, port: u16, clients: u32, split: &str) -> Result<Command> {
        let (binary, config, flag) = match self {
            Self::PgBouncer { binary, version } => {
                let users = folder.join("users.txt");
                write(&users, &format!("\"{}\" \"{}\"\n", Cluster::APP_USER, rig.secret()?))?;
                rig.give(&users)?;
                let config = folder.join("pgbouncer.ini");
                write(&config, &pgbouncer_ini(*version, rig.primary().port(), port, clients, &users))?;
                (binary, config, None)
            }
            Self::Metako { binary } => {
                let config = folder.join("metako.yaml");
                let yaml = rig.cluster().metako_yaml(&format!("127.0.0.1:{port}"));
                write(&config, &metako_yaml(&yaml, folder, clients, split))?;
                (binary, config, Some("--config"))
            }
        };
        rig.give(&config)?;
        let (user, group) = rig.account()?;
        // Another user may not be able to reach where it lies.
        let copy = folder.join("program");
        std::fs::copy(binary, &copy).map_err(BenchError::io(format!("copying {}", binary.display())))?;
        rig.give(&copy)?;
        // It dies with us, and PgBouncer refuses root.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if nix::unistd::Uid::effective().is_root() {
            command.args(["--reuid", &user.to_string(), "--regid", &group.to_string(), "--clear-groups"]);
        }
        command.arg(copy).args(flag).arg(config).current_dir("/").stdin(Stdio::null());
        Ok(command)
    }
}

/// The whole path of a program that is named by a path, or by a name in `PATH`.
fn find(binary: &Path) -> Result<PathBuf> {
    let mut found = binary.to_owned();
    if binary.components().count() == 1 {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let programs = std::env::split_paths(&folders).map(|folder| folder.join(binary));
        found = programs.into_iter().find(|program| program.is_file()).unwrap_or(found);
    }
    found.canonicalize().map_err(BenchError::io(format!("looking for {}", binary.display())))
}

fn said_version(binary: &Path) -> Result<String> {
    let output = Command::new(binary).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(BenchError::io(format!("running {}", binary.display())))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

fn pgbouncer_ini(version: Version, server: u16, port: u16, clients: u32, users: &Path) -> String {
    let database = Cluster::DATABASE;
    let most = clients + OTHER_CLIENTS;
    let mut ini = format!(
        "[databases]\n{database} = host=127.0.0.1 port={server} dbname={database}\n[pgbouncer]\n\
         listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nso_reuseport = 0\n\
         auth_type = scram-sha-256\nauth_file = {users}\npool_mode = transaction\n\
         default_pool_size = {POOL_SIZE}\nmax_client_conn = {most}\nserver_tls_sslmode = disable\n\
         client_tls_sslmode = disable\nlog_connections = 0\nlog_disconnections = 0\nlog_stats = 0\n\
         ignore_startup_parameters = extra_float_digits\n",
        users = users.display(),
    );
    if version >= Version::PREPARED {
        let _ = writeln!(ini, "max_prepared_statements = 200");
    }
    ini
}

/// `yaml` names listener, nodes and users.
fn metako_yaml(yaml: &str, folder: &Path, clients: u32, split: &str) -> String {
    let lines = yaml.lines().filter(|line| !line.starts_with("state_dir:"));
    let mut own: String = lines.flat_map(|line| [line, "\n"]).collect();
    let _ = write!(
        own,
        "state_dir: {}\nload_balancer: {{ split: {split} }}\npool: {{ size: {POOL_SIZE} }}\n\
         limits: {{ clients: {} }}\nlog: {{ level: warn, report_interval: none }}\n",
        folder.join("state").display(),
        clients + OTHER_CLIENTS,
    );
    own
}

/// A proxy that runs. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Proxy {
    child: Child,
    port: u16,
}

impl Proxy {
    /// Starts it and returns when a client has got an answer through it. `split` is how metako routes reads.
    pub(crate) fn start(rig: &Rig, program: &Program, clients: u32, split: &str) -> Result<Self> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Self::attempt(rig, program, free_port()?, clients, split) {
                Ok(proxy) => return Ok(proxy),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("it was tried"))
    }

    fn attempt(rig: &Rig, program: &Program, port: u16, clients: u32, split: &str) -> Result<Self> {
        let folder = rig.folder().join(format!("{}-{port}", program.name()));
        std::fs::create_dir(&folder).map_err(BenchError::io("making a folder"))?;
        rig.give(&folder)?;
        let log = folder.join("log");
        let file = std::fs::File::create(&log).map_err(BenchError::io("making a log"))?;
        let errors = file.try_clone().map_err(BenchError::io("making a log"))?;
        let mut command = program.command(rig, &folder, port, clients, split)?;
        let child = command.stdout(file).stderr(errors).spawn();
        let mut proxy = Self { child: child.map_err(BenchError::io("starting setpriv (util-linux)"))?, port };
        // Nobody else knows the password, so an answer is ours.
        let up = until("a client's log-in", PATIENCE, || match proxy.child.try_wait() {
            Ok(None) => rig.query(port, "SELECT 1").map(|_| None).map_err(|error| error.to_string()),
            Ok(Some(status)) => Ok(Some(status.to_string())),
            Err(error) => Ok(Some(error.to_string())),
        });
        let why = match up {
            Ok(None) => return Ok(proxy),
            Ok(Some(ended)) => ended,
            Err(error) => error.to_string(),
        };
        Err(BenchError::Start { program: program.name(), why: format!("{why}\n{}", tail(&read(&log)?)) })
    }

    /// Asks it to end, and waits for that: then it has written what it writes at its end.
    pub(crate) fn end(mut self) -> Result<()> {
        let id = i32::try_from(self.child.id()).map_err(|error| BenchError::Unfit(error.to_string()))?;
        let asked = kill(Pid::from_raw(id), Signal::SIGTERM);
        asked.map_err(|errno| BenchError::io("asking a proxy to end")(errno.into()))?;
        let ended = until("the end of a proxy", PATIENCE, || match self.child.try_wait() {
            Ok(None) => Err("it still runs".to_owned()),
            Ok(Some(status)) => Ok(Ok(status)),
            Err(error) => Ok(Err(error)),
        })?;
        let status = ended.map_err(BenchError::io("waiting for a proxy"))?;
        if status.success() {
            return Ok(());
        }
        Err(BenchError::Program { program: "metako", status: status.to_string(), output: String::new() })
    }

    /// Where clients connect.
    pub(crate) fn access(&self) -> Access {
        Access { port: self.port, pid: Some(self.child.id()) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("process {} could not be killed: {error}", self.child.id());
        }
    }
}

fn free_port() -> Result<u16> {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    Ok(taken.map_err(BenchError::io("looking for a free port"))?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        let version = |text: &str| Version::parse(text).unwrap();
        assert_eq!(version("PgBouncer 1.24.1"), Version(1, 24));
        assert!(version("PgBouncer 1.18.0") < Version::PREPARED);
        assert!(version("PgBouncer 1.21.0") >= Version::PREPARED);
        assert!(version("PgBouncer 1.9.0") < version("PgBouncer 1.21rc1"));
        assert_eq!(Version::parse("metako 0.1.0"), None);
    }

    #[test]
    fn an_old_pgbouncer_is_not_told_what_it_does_not_know() {
        let ini = |minor| pgbouncer_ini(Version(1, minor), 1, 2, 100, Path::new("/users"));
        assert!(ini(24).contains("max_prepared_statements = 200"));
        assert!(!ini(18).contains("max_prepared_statements"));
        assert!(ini(24).contains("max_client_conn = 200\n"));
    }

    #[test]
    fn metako_gets_one_state_folder_and_the_limits_of_the_benchmark() {
        let yaml = metako_yaml("listen: x\nstate_dir: /a\nnodes:\n", Path::new("/b"), 10_000, "off");
        assert_eq!(yaml.matches("state_dir").count(), 1);
        assert!(yaml.contains("state_dir: /b/state\n") && yaml.contains("clients: 10100"), "{yaml}");
    }
}
