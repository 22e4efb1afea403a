//! Many clients that do nothing: what each costs the proxy in memory.

use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, NoTls};

use crate::counters::{memory, open_files_limit};
use crate::error::{BenchError, Result};
use crate::figures::number;
use crate::rig::Access;
use crate::rows::Sample;
use crate::window::{Moment, Window};

/// Log-ins at the same time.
const AT_ONCE: u32 = 32;

/// Files that a process has open besides its clients: servers, logs, its own.
const OTHER_FILES: u64 = 200;

/// How long a log-in with its query may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long memory may go on changing after the last log-in.
const SETTLING: Duration = Duration::from_secs(10);

/// Lets this process, and those that it starts from now on, have one file open per idle client.
pub(crate) fn raise_limit(clients: u32) -> Result<()> {
    let wanted = u64::from(clients) + OTHER_FILES;
    let failed = |what: &str| BenchError::io(format!("{what} the limit of open files"));
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| failed("reading")(errno.into()))?;
    if soft >= wanted {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).map_err(|errno| {
        let what = format!(
            "{clients} idle clients (--idle-clients) need {wanted} open files and the hard limit is {hard} \
             (ulimit -Hn): raising"
        );
        failed(&what)(errno.into())
    })
}

/// Opens `clients` connections to a proxy that nobody has used yet, and asks one query on each.
pub(crate) fn measure(access: Access, config: &Config, clients: u32) -> Result<Sample> {
    let pid =
        access.pid.ok_or_else(|| BenchError::Unfit("idle clients are measured on proxies only".into()))?;
    let allowed = open_files_limit(pid)?;
    if allowed < u64::from(clients) + OTHER_FILES {
        return Err(BenchError::Unfit(format!(
            "process {pid} may have {allowed} files open, too few for {clients} clients: raise the limit (ulimit -n)"
        )));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(BenchError::io("starting the clients' runtime"))?;
    let mut config = config.clone();
    config.port(access.port);
    // The first client makes the proxy open what it keeps anyway.
    let first = runtime.block_on(open(config.clone()))?;
    let empty = settled_memory(pid)?;
    let begin = Moment::now(access.pid)?;
    let held = runtime.block_on(open_many(&config, clients))?;
    let window = Window { begin, end: Moment::now(access.pid)? };
    let full = settled_memory(pid)?;
    let lost = held.iter().chain([&first]).filter(|client| client.is_closed()).count();
    drop((held, first));
    close(runtime);
    if lost > 0 {
        return Err(BenchError::Unfit(format!("{lost} of {clients} idle clients were closed by the proxy")));
    }
    let mut sample = window.sample(f64::from(clients), Vec::new());
    sample.memory = Some((number(full) - number(empty)) / f64::from(clients));
    Ok(sample)
}

/// The connections' tasks end with the runtime, and their sockets with them.
fn close(runtime: Runtime) {
    runtime.shutdown_timeout(PATIENCE);
}

/// If it is dropped, the connection is closed.
async fn open(config: Config) -> Result<Client> {
    let opening = async {
        let (client, connection) =
            config.connect(NoTls).await.map_err(BenchError::sql("logging in a client"))?;
        tokio::spawn(connection);
        client.simple_query("SELECT 1").await.map_err(BenchError::sql("the first query of a client"))?;
        Ok(client)
    };
    tokio::time::timeout(PATIENCE, opening)
        .await
        .unwrap_or_else(|_| Err(BenchError::Unfit(format!("a log-in took longer than {PATIENCE:?}"))))
}

/// If it is dropped, all connections are closed.
async fn open_many(config: &Config, clients: u32) -> Result<Vec<Client>> {
    let mut openers = JoinSet::new();
    for opener in 0..AT_ONCE {
        let config = config.clone();
        let share = (opener..clients).step_by(AT_ONCE as usize);
        openers.spawn(async move {
            let mut held = Vec::new();
            for _ in share {
                held.push(open(config.clone()).await?);
            }
            Ok::<_, BenchError>(held)
        });
    }
    let mut held = Vec::new();
    while let Some(opened) = openers.join_next().await {
        held.extend(opened.expect("a client's task does not panic")?);
    }
    Ok(held)
}

/// Memory of the process when it no longer changes, in kB.
fn settled_memory(pid: u32) -> Result<u64> {
    let began = Instant::now();
    let mut last = memory(pid)?;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = memory(pid)?;
        if now == last || began.elapsed() > SETTLING {
            return Ok(now);
        }
        last = now;
    }
}
