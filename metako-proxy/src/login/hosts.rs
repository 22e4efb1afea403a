//! Names of hosts, for rules that ask for them.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use super::lookup::LookupError;
use crate::env::Env;

/// How long a client waits for the name of its host.
const NAME_MAX: Duration = Duration::from_secs(5);

/// Finds out the names of hosts.
#[async_trait]
pub trait HostNames: fmt::Debug + Send + Sync {
    /// The name of an address, if it has one, and that name has that address.
    async fn host_of(&self, address: IpAddr) -> Result<Option<String>, LookupError>;
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
    async fn host_of(&self, address: IpAddr) -> Result<Option<String>, LookupError> {
        match tokio::time::timeout(NAME_MAX, self.0.host_of(address)).await {
            Ok(Ok(name)) => Ok(name),
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "a client's address has no name");
                Ok(None)
            }
            // Others may keep the name service busy: that decides nothing about this client.
            Err(_) => Err(LookupError(format!("no name of {address} was found out within {NAME_MAX:?}"))),
        }
    }
}
