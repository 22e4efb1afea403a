use std::path::Path;
use std::time::Instant;

use metako_core::config::Secret;

use super::*;

/// A call of `sh` with that script, in which `$1` is the folder.
fn shell(script: &str, folder: &Path, limit: Duration) -> HookProgram {
    let folder = folder.display().to_string();
    HookProgram {
        command: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned(), "sh".to_owned(), folder],
        environment: vec![("METAKO_WORD".to_owned(), Secret::new("a word"))],
        withheld: vec!["CARGO_MANIFEST_DIR".to_owned(), "METAKO_WORD".to_owned()],
        limit,
    }
}

const LIMIT: Duration = Duration::from_mins(1);

/// The process whose id a script wrote into a file.
async fn pid_in(path: &Path) -> Pid {
    let found = async {
        loop {
            if let Ok(text) = std::fs::read_to_string(path)
                && text.ends_with('\n')
            {
                return Pid::from_raw(text.trim().parse().unwrap());
            }
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout(LIMIT, found).await.expect("the script writes its process id")
}

/// Waits until a process is gone, or is a zombie that its new parent has not reaped.
async fn gone(pid: Pid) {
    let end = async {
        loop {
            match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) if !stat.contains(") Z") => sleep(LOOK_AGAIN).await,
                _ => return,
            }
        }
    };
    timeout(LIMIT, end).await.expect("the process ends");
}

#[tokio::test]
async fn output_environment_and_status_come_back() {
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "there is something to withhold");
    let folder = tempfile::tempdir().unwrap();
    let script =
        "echo \"$METAKO_WORD\"; echo \"${NOTIFY_SOCKET-none}${CARGO_MANIFEST_DIR-}\" >&2; cat; exit 3";
    let output = run(shell(script, folder.path(), LIMIT)).await.unwrap();
    assert_eq!((output.ending, output.output.as_str()), (HookEnding::Exited(3), "a word\nnone\n"));
    let output = run(shell("kill -9 $$", folder.path(), LIMIT)).await.unwrap();
    assert_eq!(output.ending, HookEnding::Killed(9));
    let mut missing = shell("", folder.path(), LIMIT);
    missing.command[0] = "/no/such/program".to_owned();
    assert_eq!(run(missing).await.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn the_end_of_long_output_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let script = "i=0; while [ $i -lt 9999 ]; do i=$((i+1)); echo line $i; done";
    let output = run(shell(script, folder.path(), LIMIT)).await.unwrap().output;
    assert!(output.len() <= OUTPUT_MAX, "{}", output.len());
    assert!(output.starts_with("line ") && output.ends_with("line 9998\nline 9999\n"), "{output}");
}

#[tokio::test]
async fn after_its_time_a_program_is_ended_with_all_that_it_started() {
    let folder = tempfile::tempdir().unwrap();
    // The grandchild does not care about being told.
    let script =
        "echo begun; sh -c 'trap \"\" TERM; echo $$ >\"$1/pid\"; while :; do sleep 1; done' sh \"$1\" & wait";
    let begun = Instant::now();
    let output = run(shell(script, folder.path(), Duration::from_secs(2))).await.unwrap();
    assert_eq!((output.ending, output.output.as_str()), (HookEnding::TimedOut, "begun\n"));
    assert!(begun.elapsed() >= Duration::from_secs(2));
    gone(pid_in(&folder.path().join("pid")).await).await;
}

#[tokio::test]
async fn a_program_that_prints_without_a_pause_is_ended_after_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let output = run(shell("exec yes", folder.path(), Duration::from_millis(300))).await.unwrap();
    assert_eq!(output.ending, HookEnding::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // Nobody waits for it any more.
    let call = tokio::spawn(run(shell("echo $$ >\"$1/pid\"; exec yes", folder.path(), LIMIT)));
    let pid = pid_in(&folder.path().join("pid")).await;
    call.abort();
    gone(pid).await;
}

#[tokio::test]
async fn what_does_not_end_when_told_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let script = "trap 'echo told' TERM; echo $$ >\"$1/pid\"; while :; do sleep 1; done";
    let output = run(shell(script, folder.path(), Duration::from_secs(2))).await.unwrap();
    assert_eq!(output.ending, HookEnding::TimedOut);
    // Reaped, not only dead.
    let pid = pid_in(&folder.path().join("pid")).await;
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn a_call_that_is_dropped_ends_its_program() {
    let folder = tempfile::tempdir().unwrap();
    let script = "sleep 600 & echo $! >\"$1/child\"; echo $$ >\"$1/pid\"; wait";
    let call = tokio::spawn(run(shell(script, folder.path(), LIMIT)));
    let (pid, child) = (pid_in(&folder.path().join("pid")).await, pid_in(&folder.path().join("child")).await);
    call.abort();
    gone(child).await;
    let reaped = async {
        while Path::new(&format!("/proc/{pid}")).exists() {
            sleep(LOOK_AGAIN).await;
        }
    };
    timeout(LIMIT, reaped).await.expect("the program is reaped");
}

#[test]
fn a_runtime_that_ends_ends_its_programs() {
    let folder = tempfile::tempdir().unwrap();
    let script = "trap '' TERM; sleep 600 & echo $! >\"$1/child\"; wait";
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let child = first.block_on(async {
        tokio::spawn(run(shell(script, folder.path(), LIMIT)));
        pid_in(&folder.path().join("child")).await
    });
    drop(first);
    runtime().block_on(gone(child));
}

#[tokio::test]
async fn a_daemon_neither_delays_the_end_nor_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    // It keeps the output open.
    let script = "setsid sh -c 'echo $$ >\"$1/pid\"; exec sleep 600' sh \"$1\" & while [ ! -s \"$1/pid\" ]; do sleep 0.02; done; echo done";
    let begun = Instant::now();
    let output = run(shell(script, folder.path(), LIMIT)).await.unwrap();
    assert_eq!((output.ending, output.output.as_str()), (HookEnding::Exited(0), "done\n"));
    assert!(begun.elapsed() < Duration::from_secs(30));
    let daemon = pid_in(&folder.path().join("pid")).await;
    nix::sys::signal::kill(daemon, None).expect("the daemon lives");
    nix::sys::signal::kill(daemon, Signal::SIGKILL).unwrap();
}
