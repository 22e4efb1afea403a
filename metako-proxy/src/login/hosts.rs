//! Names of hosts, for rules that ask for them.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use crate::env::Env;

/// How long a client waits for the name of its host.
const NAME_MAX: Duration = Duration::from_secs(5);

/// Finds out the names of hosts.
#[async_trait]
pub trait HostNames: fmt::Debug + Send + Sync {
    /// The name of an address, if that name has that address; `None` also where that is not found out in time.
    async fn host_of(&self, address: IpAddr) -> Option<String>;
}

/// By the name service of a world.
pub struct EnvHostNames<E>(pub E);

impl<E> fmt::Debug for EnvHostNames<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnvHostNames")
    }
}

#[async_trait]
impl<E: Env> HostNames for EnvHostNames<E> {
    async fn host_of(&self, address: IpAddr) -> Option<String> {
        match tokio::time::timeout(NAME_MAX, self.0.host_of(address)).await {
            Ok(Ok(name)) => name,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "the name of a client's host could not be found out");
                None
            }
            Err(_) => {
                tracing::warn!(%address, "the name of a client's host was not found out within {NAME_MAX:?}");
                None
            }
        }
    }
}
