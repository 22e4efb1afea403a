//! The system's name service, backwards.

use std::io;
use std::net::IpAddr;
use std::sync::LazyLock;

use crate::turns::{Line, Turns};

/// So many threads may wait for the name service at a time. It cannot be cancelled, so those who no longer wait for it
/// count as well.
const THREADS_MAX: usize = 16;

static THREADS: LazyLock<Turns> = LazyLock::new(|| Turns::new(THREADS_MAX));

/// The name of an address, if that name has that address.
pub(super) async fn host_of(address: IpAddr) -> io::Result<Option<String>> {
    let turn = THREADS.take(Line::of(address)).await;
    let turn = turn.map_err(|_| io::Error::other("too many wait for names already"))?;
    let asked = move || {
        let _turn = turn;
        let name = dns_lookup::lookup_addr(&address)?;
        let has = dns_lookup::lookup_host(&name)?.any(|one| one.to_canonical() == address);
        Ok(has.then_some(name))
    };
    tokio::task::spawn_blocking(asked).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_of_this_machine_has_the_name_that_the_hosts_file_gives_it() {
        let name = host_of(IpAddr::V4([127, 0, 0, 1].into())).await.unwrap();
        assert_eq!(name.as_deref(), Some("localhost"));
    }
}
