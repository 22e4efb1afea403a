//! The files of rules and maps, read from the file system.

use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use metako_core::config::Config;
use metako_core::hba::{self, Hba, HbaFiles, HbaProblem, Maps, Network};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

/// The most that is read of one file, in bytes, and the most files of a folder.
const FILE_MAX: u64 = 1 << 20;
const FOLDER_MAX: usize = 10_000;

/// Who may connect from where and how, and which users the names in certificates may be.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) hba: Hba,
    pub(crate) maps: Maps,
}

/// The file system, and the interfaces of this machine.
#[derive(Debug, Clone, Copy, Default)]
struct SystemFiles;

impl HbaFiles for SystemFiles {
    fn file(&self, path: &Path) -> io::Result<String> {
        let mut text = String::new();
        let read = std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
        if read as u64 > FILE_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("it is longer than {FILE_MAX} bytes"),
            ));
        }
        Ok(text)
    }

    fn folder(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(path)?.take(FOLDER_MAX).map(|entry| Ok(entry?.path())).collect()
    }

    fn interfaces(&self) -> io::Result<Vec<Network>> {
        let network = |address: Option<SockaddrStorage>, mask: Option<SockaddrStorage>| {
            let address = ip(&address?)?;
            // A mask that is missing, or that everybody fits, tells no neighbours: as in PostgreSQL, only the address is left.
            let mask = mask.as_ref().and_then(ip).filter(|mask| mask.is_ipv4() == address.is_ipv4());
            let mask = mask.filter(|mask| !mask.is_unspecified());
            Some(mask.map_or(Network::host(address), |mask| Network { address, mask }))
        };
        let all = getifaddrs()?.filter_map(|interface| network(interface.address, interface.netmask));
        Ok(all.collect())
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

/// Reads the rules of `auth.hba_file`, if there is one, and the maps of `auth.ident_file`. Blocks on the file system.
///
/// # Errors
/// Everything that is wrong with the files, also for this configuration.
pub(crate) fn load(config: &Config) -> Result<Option<Rules>, Vec<HbaProblem>> {
    let Some(path) = &config.auth.hba_file else { return Ok(None) };
    let maps = config.auth.ident_file.as_ref().map(|path| hba::load_maps(path, &SystemFiles)).transpose();
    let (hba, maps) = match (hba::load(path, &SystemFiles), maps) {
        (Ok(hba), Ok(maps)) => (hba, maps.unwrap_or_default()),
        (hba, maps) => return Err(hba.err().into_iter().chain(maps.err()).flatten().collect()),
    };
    let mut unfit = Vec::new();
    for rule in hba.rules() {
        if config.security.client_ca.is_none() && rule.needs_certificate() {
            let message = "asks for a certificate of the client, but there is no security.client_ca_file to check it against";
            unfit.push(rule.problem(message));
        }
        if let Some(map) = rule.map.as_ref().filter(|map| !maps.has(map)) {
            unfit.push(rule.problem(match &config.auth.ident_file {
                Some(file) => format!("names the map `{map}`, of which {} has no line", file.display()),
                None => format!("names the map `{map}`, but there is no auth.ident_file"),
            }));
        }
    }
    if unfit.is_empty() { Ok(Some(Rules { hba, maps })) } else { Err(unfit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_this_machine_are_found() {
        let all = SystemFiles.interfaces().unwrap();
        let loopback = all.iter().find(|network| network.address == IpAddr::V4([127, 0, 0, 1].into()));
        assert_eq!(loopback.map(|network| network.mask), Some(IpAddr::V4([255, 0, 0, 0].into())), "{all:?}");
    }
}
