//! What stands still while routes are measured: PostgreSQL with its tables, and the clients' programs.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use metako_proxy::playground::{Builder, Cluster, Node, Programs};
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use crate::error::{BenchError, Result};
use crate::transactions;

/// Rows of the large table, and of one large result.
const BULK_ROWS: u32 = 100_000;
const RESULT_ROWS: u32 = 10_000;

/// Payload of a row, in bytes.
const ROW_BYTES: u32 = 1_024;

/// Payload of the large table, in MB (10^6 bytes).
pub(crate) const BULK_MEGABYTES: f64 = (BULK_ROWS * ROW_BYTES) as f64 / 1e6;

/// Payload of one large result, in MB.
pub(crate) const RESULT_MEGABYTES: f64 = (RESULT_ROWS * ROW_BYTES) as f64 / 1e6;

/// The most threads that pgbench is given; it wants one for each of the machine's CPUs, or it is the narrow place.
const JOBS_MAX: usize = 4;

/// How long a query of ours may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Threads for pgbench.
pub(crate) fn jobs() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(processors.min(JOBS_MAX)).unwrap_or(1)
}

/// Where a client of a route connects to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub(crate) port: u16,
    /// The proxy's process; none on the direct route.
    pub(crate) pid: Option<u32>,
}

/// One PostgreSQL, filled.
#[derive(Debug)]
pub(crate) struct Rig {
    cluster: Cluster,
    pgbench: PathBuf,
    psql: PathBuf,
    folder: PathBuf,
}

impl Rig {
    /// Starts and fills it. Blocks for some seconds.
    pub(crate) fn start(scale: u32) -> Result<Self> {
        let programs = Programs::find(None)?;
        let client =
            |name: &str| Some(programs.path(name)).filter(|path| path.is_file()).unwrap_or(name.into());
        // What would be written down later would be measured by whoever comes next.
        let cluster = Builder::new()
            .replicas(0)
            .setting("shared_buffers", "512MB")
            .setting("fsync", "off")
            .setting("autovacuum", "off")
            .setting("checkpoint_timeout", "1h")
            .setting("max_wal_size", "8GB")
            .start_blocking()?;
        let folder = cluster.folder().join("bench");
        std::fs::create_dir(&folder).map_err(BenchError::io("making a folder"))?;
        let rig = Self { pgbench: client("pgbench"), psql: client("psql"), folder, cluster };
        rig.give(&rig.folder)?;
        rig.fill(scale)?;
        Ok(rig)
    }

    fn fill(&self, scale: u32) -> Result<()> {
        transactions::initialize(self, self.primary().port(), scale)?;
        let port = self.primary().port();
        for table in ["bulk", "sink"] {
            self.query(port, &format!("CREATE UNLOGGED TABLE {table} (filler text)"))?;
        }
        let repeats = ROW_BYTES / 32;
        self.query(
            port,
            &format!(
                "INSERT INTO bulk SELECT repeat(md5(row::text), {repeats}) FROM generate_series(1, {BULK_ROWS}) row"
            ),
        )?;
        self.query(port, "VACUUM (FREEZE, ANALYZE)")?;
        crate::error::write(
            &self.result_script(),
            &format!("SELECT filler FROM bulk LIMIT {RESULT_ROWS};\n"),
        )?;
        let copied = self
            .psql(port)
            .args(["--no-psqlrc", "--quiet", "--command"])
            .arg(format!("\\copy bulk TO '{}'", self.bulk_file().display()))
            .output()
            .map_err(BenchError::io("starting psql"))?;
        if copied.status.success() {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&copied.stderr).into_owned();
        Err(BenchError::Program { program: "psql", status: copied.status.to_string(), output })
    }

    /// PostgreSQL itself.
    pub(crate) fn primary(&self) -> &Node {
        &self.cluster.nodes()[0]
    }

    /// The cluster that it belongs to.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A folder for configurations and logs, which the proxies can read.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A folder without files.
    pub(crate) fn empty_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(BenchError::io("clearing a folder"))?;
        }
        std::fs::create_dir(&path).map_err(BenchError::io("making a folder"))?;
        Ok(path)
    }

    /// Gives a file to the user that PostgreSQL runs as, which is ours or, where we are root, another one.
    pub(crate) fn give(&self, path: &Path) -> Result<()> {
        let (user, group) = self.account()?;
        chown(path, Some(user), Some(group))
            .map_err(BenchError::io(format!("giving {} away", path.display())))
    }

    /// That user and its group.
    pub(crate) fn account(&self) -> Result<(u32, u32)> {
        let folder = std::fs::metadata(self.cluster.folder());
        let folder = folder.map_err(BenchError::io("looking at the cluster's folder"))?;
        Ok((folder.uid(), folder.gid()))
    }

    /// The large table as COPY writes it.
    pub(crate) fn bulk_file(&self) -> PathBuf {
        self.folder.join("bulk.copy")
    }

    /// pgbench's script for one large result.
    pub(crate) fn result_script(&self) -> PathBuf {
        self.folder.join("result.sql")
    }

    /// What psql complains about.
    pub(crate) fn psql_log(&self) -> PathBuf {
        self.folder.join("psql.log")
    }

    /// pgbench, told whom to log in as and where. Options come behind.
    pub(crate) fn pgbench(&self, port: u16) -> Command {
        self.client(&self.pgbench, port)
    }

    /// psql likewise.
    pub(crate) fn psql(&self, port: u16) -> Command {
        self.client(&self.psql, port)
    }

    fn client(&self, program: &Path, port: u16) -> Command {
        let mut command = Command::new(program);
        // Variables like PGSSLMODE would change what is measured.
        command.env_clear().env("LC_ALL", "C").env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("PGHOST", "127.0.0.1").env("PGPORT", port.to_string());
        command.env("PGUSER", Cluster::APP_USER).env("PGPASSWORD", self.cluster.app_password());
        command.env("PGDATABASE", Cluster::DATABASE);
        command
    }

    /// What PostgreSQL keeps of the user's password. A proxy that is given this and not the password itself has not to
    /// derive it at every log-in.
    pub(crate) fn secret(&self) -> Result<String> {
        let user = Cluster::APP_USER;
        let secret =
            self.primary().sql(&format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'"))?;
        secret.ok_or_else(|| BenchError::Unfit(format!("the user {user} has no password")))
    }

    /// A log-in of the same user; the port is still to be named.
    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").user(Cluster::APP_USER).password(self.cluster.app_password());
        config.dbname(Cluster::DATABASE).connect_timeout(PATIENCE);
        config
    }

    /// Asks one query on a connection of its own; the first value of the answer, as text. Blocks.
    pub(crate) fn query(&self, port: u16, sql: &str) -> Result<Option<String>> {
        let failed = || BenchError::sql(format!("port {port}: {sql}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(BenchError::io("starting a runtime"))?;
        let mut config = self.config();
        config.port(port);
        runtime.block_on(async {
            let (client, connection) = config.connect(NoTls).await.map_err(failed())?;
            let connection = tokio::spawn(connection);
            let answer = tokio::time::timeout(PATIENCE, client.simple_query(sql)).await;
            let answer = answer
                .map_err(|_| {
                    BenchError::Unfit(format!("port {port}: no answer within {PATIENCE:?} to: {sql}"))
                })?
                .map_err(failed())?;
            drop(client);
            connection.await.expect("the connection's task does not panic").map_err(failed())?;
            Ok(answer.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            }))
        })
    }
}
