//! Where a client comes from.

use std::net::IpAddr;

use super::{Facts, Unknown};

/// The addresses of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Addresses {
    All,
    Networks(Vec<Network>),
    Host(HostName),
}

/// An address and the bits of it that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The address.
    pub address: IpAddr,
    /// Of the same family.
    pub mask: IpAddr,
}

/// The name of a host, or with a dot before it that of all hosts below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostName(String);

/// What an address field says by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// All of it.
    Whole(Addresses),
    /// An address, whose mask is in the next field.
    Masked(IpAddr),
}

impl Network {
    /// One address and no other.
    pub fn host(address: IpAddr) -> Self {
        let mask = match address {
            IpAddr::V4(_) => IpAddr::V4(u32::MAX.into()),
            IpAddr::V6(_) => IpAddr::V6(u128::MAX.into()),
        };
        Self { address, mask }
    }

    fn holds(self, client: IpAddr) -> bool {
        match (self.address, self.mask, client) {
            (IpAddr::V4(address), IpAddr::V4(mask), IpAddr::V4(client)) => {
                (address.to_bits() ^ client.to_bits()) & mask.to_bits() == 0
            }
            (IpAddr::V6(address), IpAddr::V6(mask), IpAddr::V6(client)) => {
                (address.to_bits() ^ client.to_bits()) & mask.to_bits() == 0
            }
            _ => false,
        }
    }
}

impl HostName {
    /// What cannot be the name of a host is a slip of the pen: PostgreSQL would look for it in vain.
    fn parse(text: &str) -> Option<Self> {
        let letters =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_') || !byte.is_ascii();
        let last = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
        (text.bytes().all(letters) && !is_number).then(|| Self(text.to_owned()))
    }

    fn is_of(&self, host: &str) -> bool {
        let end = if self.0.starts_with('.') {
            host.len().checked_sub(self.0.len()).and_then(|at| host.as_bytes().get(at..))
        } else {
            Some(host.as_bytes())
        };
        end.is_some_and(|end| end.eq_ignore_ascii_case(self.0.as_bytes()))
    }
}

impl Addresses {
    pub(super) fn hold(&self, client: IpAddr, facts: &Facts) -> Result<bool, Unknown> {
        // An IPv4 client of a socket for both families is an IPv4 client.
        let client = client.to_canonical();
        match self {
            Self::All => Ok(true),
            Self::Networks(networks) => Ok(networks.iter().any(|network| network.holds(client))),
            Self::Host(name) => {
                let host = facts.host.as_ref().ok_or(Unknown::Host)?;
                Ok(host.as_deref().is_some_and(|host| name.is_of(host)))
            }
        }
    }

    /// An address and its mask from two fields.
    pub(super) fn masked(address: IpAddr, mask: &str) -> Result<Self, String> {
        let mask: IpAddr = mask.parse().map_err(|_| {
            format!("found `{mask}`; expected the network mask of {address}, such as 255.255.255.0")
        })?;
        if mask.is_ipv4() == address.is_ipv4() {
            Ok(Self::Networks(vec![Network { address, mask }]))
        } else {
            Err(format!("the mask {mask} is not of the same family as the address {address}"))
        }
    }

    fn prefixed(address: IpAddr, bits: &str) -> Option<Self> {
        let bits: u32 = bits.bytes().all(|byte| byte.is_ascii_digit()).then(|| bits.parse().ok())??;
        let mask = match address {
            IpAddr::V4(_) => IpAddr::V4(u32::MAX.checked_shl(32_u32.checked_sub(bits)?).unwrap_or(0).into()),
            IpAddr::V6(_) => {
                IpAddr::V6(u128::MAX.checked_shl(128_u32.checked_sub(bits)?).unwrap_or(0).into())
            }
        };
        Some(Self::Networks(vec![Network { address, mask }]))
    }
}

/// Reads an address field that is no special word.
pub(super) fn parse(text: &str) -> Result<Parsed, String> {
    if let Some((address, bits)) = text.split_once('/') {
        let Ok(address) = address.parse() else {
            return Err(format!("`{address}` is no IP address; only an IP address has a mask"));
        };
        let network = Addresses::prefixed(address, bits).map(Parsed::Whole);
        return network.ok_or_else(|| format!("`{bits}` is no length of a network mask for {address}"));
    }
    let host = || HostName::parse(text).map(|name| Parsed::Whole(Addresses::Host(name)));
    text.parse().ok().map(Parsed::Masked).or_else(host).ok_or_else(|| {
        format!(
            "`{text}` is neither an IP address nor the name of a host; expected such as 10.0.0.0/8, .example.com, or `all`"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(text: &str) -> Addresses {
        match parse(text) {
            Ok(Parsed::Whole(addresses)) => addresses,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    impl Addresses {
        fn has(&self, client: IpAddr) -> bool {
            self.hold(client, &Facts::default()).unwrap()
        }
    }

    #[test]
    fn networks_hold_their_addresses() {
        assert!(whole("10.1.0.0/16").has(ip("10.1.255.3")));
        assert!(whole("10.1.0.0/16").has(ip("::ffff:10.1.255.3")));
        assert!(!whole("10.1.0.0/16").has(ip("10.2.0.1")));
        assert!(whole("10.1.2.3/32").has(ip("10.1.2.3")));
        assert!(!whole("10.1.2.3/32").has(ip("10.1.2.2")));
        // Bits beyond the mask do not count, as with PostgreSQL.
        assert!(whole("10.1.2.3/8").has(ip("10.9.9.9")));
        assert!(whole("0.0.0.0/0").has(ip("1.2.3.4")));
        assert!(!whole("0.0.0.0/0").has(ip("::1")));
        assert!(whole("::/0").has(ip("fe80::1")));
        assert!(!whole("::/0").has(ip("1.2.3.4")));
        assert!(whole("fe80::/10").has(ip("febf::1")));
        assert!(!whole("fe80::/10").has(ip("fec0::1")));
        assert!(Addresses::All.has(ip("::1")));
        let masked = Addresses::masked(ip("10.0.1.0"), "255.0.255.0").unwrap();
        assert!(masked.has(ip("10.77.1.200")));
        assert!(!masked.has(ip("10.77.2.200")));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for wrong in [
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "::/129",
            "db/8",
            "10.0.0.300",
            "10.0.1",
            "a b",
            "",
            ".",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse("10.0.0.1"), Ok(Parsed::Masked(ip("10.0.0.1"))));
        assert!(Addresses::masked(ip("10.0.0.0"), "ffff::").is_err());
        assert!(Addresses::masked(ip("10.0.0.0"), "scram-sha-256").is_err());
    }

    #[test]
    fn names_of_hosts_are_asked_for_and_compared_as_postgresql_does() {
        let client = ip("192.0.2.1");
        let host = |pattern: &str, host: Option<&str>| {
            let facts = Facts { host: Some(host.map(str::to_owned)), ..Facts::default() };
            whole(pattern).hold(client, &facts)
        };
        assert_eq!(whole("db.example.org").hold(client, &Facts::default()), Err(Unknown::Host));
        assert_eq!(host("db.example.org", Some("DB.example.ORG")), Ok(true));
        assert_eq!(host("db.example.org", Some("a.db.example.org")), Ok(false));
        assert_eq!(host(".example.org", Some("a.db.Example.org")), Ok(true));
        assert_eq!(host(".example.org", Some("example.org")), Ok(false));
        assert_eq!(host(".example.org", Some(".example.org")), Ok(true));
        assert_eq!(host(".example.org", Some("org")), Ok(false));
        assert_eq!(host(".example.org", None), Ok(false));
    }

    proptest! {
        #[test]
        fn a_longer_mask_holds_less(network: u32, client: u32, bits in 0_u32..32) {
            let at = |bits| whole(&format!("{}/{bits}", std::net::Ipv4Addr::from(network)));
            let client = IpAddr::V4(client.into());
            prop_assert!(at(bits).has(client) || !at(bits + 1).has(client));
        }
    }
}
