//! The processes of a node, found by what they show of themselves.
//!
//! `/proc/PID/cmdline` is the one thing that every user may read of every process, in containers too. A postmaster shows
//! its `-D` folder there, its children show `cluster_name`, and both are unique to the node. So the children are found
//! even after their postmaster is gone.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How the processes of one node are told from all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    title: Vec<u8>,
    data_dir: Vec<u8>,
}

impl Mark {
    /// The mark of the node with this `cluster_name` and data folder.
    pub(super) fn new(cluster_name: &str, data_dir: &Path) -> Self {
        Self {
            title: format!("postgres: {cluster_name}: ").into_bytes(),
            data_dir: data_dir.as_os_str().as_encoded_bytes().to_vec(),
        }
    }

    /// The node's processes. Zombies show nothing and do not count.
    pub(super) fn processes(&self) -> Vec<Pid> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        // A process that ends while we look has no cmdline any more: it is not there.
        let ours =
            |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|shown| self.fits(&shown));
        pids.filter(ours).map(Pid::from_raw).collect()
    }

    fn fits(&self, cmdline: &[u8]) -> bool {
        let mut words = cmdline.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default();
        program.starts_with(&self.title)
            || program.ends_with(b"/postgres")
                && words.next() == Some(b"-D")
                && words.next() == Some(self.data_dir.as_slice())
    }
}

/// Whether the process is stopped by a signal (or gone: then there is nothing to stop).
pub(super) fn is_stopped(pid: Pid) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't' | 'Z' | 'X'))
}

/// Sends a signal. A process that is already gone is no error.
pub(super) fn signal(pid: Pid, signal: Signal) -> std::io::Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_own_processes_fit() {
        let mark = Mark::new("metako-x1-node-1", Path::new("/tmp/metako-x1/node-1"));
        assert!(mark.fits(b"postgres: metako-x1-node-1: walwriter \0\0"));
        assert!(mark.fits(b"/usr/lib/postgresql/15/bin/postgres\0-D\0/tmp/metako-x1/node-1\0"));
        for other in [
            &b"postgres: metako-x1-node-11: walwriter"[..],
            b"/usr/lib/postgresql/15/bin/postgres\0-D\0/tmp/metako-x1/node-2\0",
            b"tail\0-f\0/tmp/metako-x1/node-1\0",
            b"vi\0postgres: metako-x1-node-1: walwriter\0",
            b"",
        ] {
            assert!(!mark.fits(other), "{}", String::from_utf8_lossy(other));
        }
    }
}
