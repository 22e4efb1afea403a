//! Programs that are run beside metako, each in a process group of its own.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::{HookEnding, HookOutput, HookProgram};

/// The last bytes of what a program says are kept, so many.
const OUTPUT_MAX: usize = 8 << 10;
/// How long a group that was told to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// Pause between two looks whether it has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long the rest of the output is read after the end: what a program left running may hold the pipe open for good.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// What a supervisor of metako puts into its environment for metako alone.
const NOT_INHERITED: [&str; 5] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"];

/// Runs a program to its end. It is supervised by a task of its own, which outlives the returned future for as long as
/// it takes to end the program.
pub(super) async fn run(program: HookProgram) -> io::Result<HookOutput> {
    let HookProgram { command, environment, withheld, limit } = program;
    let (name, arguments) = command
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(name);
    for name in NOT_INHERITED.into_iter().chain(withheld.iter().map(String::as_str)) {
        command.env_remove(name);
    }
    command
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value.reveal())))
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .kill_on_drop(true);
    let output = Receiver::from_owned_fd(OwnedFd::from(reader))?;
    let group = Group::of(command.spawn()?)?;
    // It holds the other end of the pipe.
    drop(command);
    let (answer, wait) = oneshot::channel();
    tokio::spawn(supervise(group, output, limit, answer));
    wait.await.map_err(|_| io::Error::other("the runtime ended"))
}

async fn supervise(
    mut group: Group,
    mut pipe: Receiver,
    limit: Duration,
    mut answer: oneshot::Sender<HookOutput>,
) {
    let mut tail = Tail::default();
    let ending = tokio::select! {
        biased;
        status = group.child.wait() => match status {
            Ok(status) => {
                group.ended = true;
                ending(status)
            }
            Err(error) => {
                tracing::warn!(%error, "a program that was started cannot be awaited");
                HookEnding::Lost
            }
        },
        () = sleep(limit) => HookEnding::TimedOut,
        () = answer.closed() => HookEnding::Lost,
        // Last, because a program that prints without a pause uses up what tokio lets this task do at a time: nothing
        // behind it would ever be looked at.
        never = tail.read(&mut pipe) => match never {},
    };
    if !group.ended {
        group.end().await;
    }
    let _ = timeout(LAST_WORDS, tail.read(&mut pipe)).await;
    // Whoever asked may have stopped waiting.
    let _ = answer.send(HookOutput { ending, output: tail.text() });
}

fn ending(status: ExitStatus) -> HookEnding {
    use std::os::unix::process::ExitStatusExt as _;

    match (status.code(), status.signal()) {
        (Some(code), _) => HookEnding::Exited(code),
        (None, Some(signal)) => HookEnding::Killed(signal),
        (None, None) => HookEnding::Lost,
    }
}

/// A program and what it started in its process group. Dropping it kills them all.
struct Group {
    child: Child,
    /// Its process id, and the number of the group.
    leader: Pid,
    /// Whether the program ended and was reaped: the number may be another's by now.
    ended: bool,
}

impl Group {
    fn of(child: Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let leader = id.map(Pid::from_raw).ok_or_else(|| io::Error::other("it has no process id"))?;
        Ok(Self { child, leader, ended: false })
    }

    /// Tells all of them to end, kills those that do not, and reaps the program. Until it is reaped, its number cannot
    /// become that of a stranger's group.
    async fn end(&mut self) {
        self.signal(Signal::SIGTERM);
        // An error means that the grace is over.
        let _ = timeout(GRACE, async {
            while !self.has_ended() {
                sleep(LOOK_AGAIN).await;
            }
        })
        .await;
        self.signal(Signal::SIGKILL);
        if let Err(error) = self.child.wait().await {
            tracing::warn!(%error, "a program that was killed cannot be reaped");
        }
        self.ended = true;
    }

    fn has_ended(&self) -> bool {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        !matches!(waitid(Id::Pid(self.leader), look), Ok(WaitStatus::StillAlive))
    }

    fn signal(&self, signal: Signal) {
        match killpg(self.leader, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::warn!(%error, "a program that was started cannot be ended"),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The runtime ends: there is nobody left to wait for the grace.
        if !self.ended {
            self.signal(Signal::SIGKILL);
        }
    }
}

/// The end of what a program says.
#[derive(Default)]
struct Tail {
    bytes: VecDeque<u8>,
    cut: bool,
}

impl Tail {
    /// Reads for ever: after the end of the pipe as well, where nothing comes any more.
    async fn read(&mut self, pipe: &mut Receiver) -> Infallible {
        let mut chunk = [0; 1024];
        while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
            self.push(&chunk[..count]);
        }
        std::future::pending().await
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let more = self.bytes.len().saturating_sub(OUTPUT_MAX);
        self.cut |= more > 0;
        self.bytes.drain(..more);
    }

    /// As text, from the first whole line on where it was cut.
    fn text(self) -> String {
        let bytes: Vec<u8> = self.bytes.into();
        let text = String::from_utf8_lossy(&bytes);
        match text.split_once('\n') {
            Some((_, whole)) if self.cut => whole.to_owned(),
            _ => text.into_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
