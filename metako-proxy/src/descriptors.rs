//! How many connections the system lets this process have.

use metako_core::config::Config;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors for everything but clients and pooled servers: listening sockets, files, control connections, connections
/// that log in or deliver cancels.
const OTHERS: u64 = 256;

/// Raises the limit on open descriptors as far as this process may, and says if `limits.clients` cannot be reached with
/// it. Nothing but the log tells if it fails: metako works with what there is.
pub(crate) fn raise_limit(config: &Config) {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, "the limit on open files is not known");
            return;
        }
    };
    let mut limit = soft;
    if soft < hard {
        match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => limit = hard,
            Err(error) => tracing::warn!(%error, soft, hard, "the limit on open files cannot be raised"),
        }
    }
    if let Some(warning) = shortage(config, limit) {
        tracing::warn!("{warning}");
    }
}

/// What to tell about a limit that is too low for the configuration.
fn shortage(config: &Config, limit: u64) -> Option<String> {
    let clients = config.limits.clients as u64;
    let servers = u64::from(config.pool.size) * config.cluster.nodes.len() as u64;
    let needed = clients.saturating_add(servers).saturating_add(OTHERS);
    (needed > limit).then(|| {
        let reached = limit.saturating_sub(servers + OTHERS);
        format!(
            "limits.clients is {clients}, but this process may open {limit} files and sockets, which is enough for \
             about {reached} clients: raise the limit (LimitNOFILE= in a systemd unit, or `ulimit -Hn`) to {needed} or \
             more, or lower limits.clients"
        )
    })
}
