//! Where a client comes from.

use std::net::IpAddr;

/// The addresses of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Addresses {
    All,
    Network { address: IpAddr, mask: IpAddr },
}

/// What an address field says by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// All of it.
    Whole(Addresses),
    /// An address, whose mask is in the next field.
    Masked(IpAddr),
}

impl Addresses {
    pub(super) fn hold(self, client: IpAddr) -> bool {
        // An IPv4 client of a socket for both families is an IPv4 client.
        match (self, client.to_canonical()) {
            (Self::All, _) => true,
            (Self::Network { address: IpAddr::V4(address), mask: IpAddr::V4(mask) }, IpAddr::V4(client)) => {
                (address.to_bits() ^ client.to_bits()) & mask.to_bits() == 0
            }
            (Self::Network { address: IpAddr::V6(address), mask: IpAddr::V6(mask) }, IpAddr::V6(client)) => {
                (address.to_bits() ^ client.to_bits()) & mask.to_bits() == 0
            }
            _ => false,
        }
    }

    /// An address and its mask from two fields.
    pub(super) fn masked(address: IpAddr, mask: &str) -> Result<Self, String> {
        let mask: IpAddr = mask.parse().map_err(|_| {
            format!("found `{mask}`; expected the network mask of {address}, such as 255.255.255.0")
        })?;
        if mask.is_ipv4() == address.is_ipv4() {
            Ok(Self::Network { address, mask })
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
        Some(Self::Network { address, mask })
    }
}

/// Reads an address field that is no special word.
pub(super) fn parse(text: &str) -> Result<Parsed, String> {
    match text.split_once('/') {
        Some((address, bits)) => match address.parse() {
            Ok(address) => Addresses::prefixed(address, bits)
                .map(Parsed::Whole)
                .ok_or_else(|| format!("`{bits}` is no length of a network mask for {address}")),
            Err(_) => Err(format!("`{address}` is no IP address; only an IP address has a mask")),
        },
        None => text.parse().map(Parsed::Masked).map_err(|_| {
            format!(
                "host names are not supported (`{text}`): a rule would change with the name service; expected an IP \
                 address with its mask, such as 10.0.0.0/8, or `all`"
            )
        }),
    }
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

    #[test]
    fn networks_hold_their_addresses() {
        assert!(whole("10.1.0.0/16").hold(ip("10.1.255.3")));
        assert!(whole("10.1.0.0/16").hold(ip("::ffff:10.1.255.3")));
        assert!(!whole("10.1.0.0/16").hold(ip("10.2.0.1")));
        assert!(whole("10.1.2.3/32").hold(ip("10.1.2.3")));
        assert!(!whole("10.1.2.3/32").hold(ip("10.1.2.2")));
        // Bits beyond the mask do not count, as with PostgreSQL.
        assert!(whole("10.1.2.3/8").hold(ip("10.9.9.9")));
        assert!(whole("0.0.0.0/0").hold(ip("1.2.3.4")));
        assert!(!whole("0.0.0.0/0").hold(ip("::1")));
        assert!(whole("::/0").hold(ip("fe80::1")));
        assert!(!whole("::/0").hold(ip("1.2.3.4")));
        assert!(whole("fe80::/10").hold(ip("febf::1")));
        assert!(!whole("fe80::/10").hold(ip("fec0::1")));
        assert!(Addresses::All.hold(ip("::1")));
        let masked = Addresses::masked(ip("10.0.1.0"), "255.0.255.0").unwrap();
        assert!(masked.hold(ip("10.77.1.200")));
        assert!(!masked.hold(ip("10.77.2.200")));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for wrong in
            ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/+8", "::/129", "db/8", "db1.example", ""]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse("10.0.0.1"), Ok(Parsed::Masked(ip("10.0.0.1"))));
        assert!(Addresses::masked(ip("10.0.0.0"), "ffff::").is_err());
        assert!(Addresses::masked(ip("10.0.0.0"), "scram-sha-256").is_err());
    }

    proptest! {
        #[test]
        fn a_longer_mask_holds_less(network: u32, client: u32, bits in 0_u32..32) {
            let at = |bits| whole(&format!("{}/{bits}", std::net::Ipv4Addr::from(network)));
            let client = IpAddr::V4(client.into());
            prop_assert!(at(bits).hold(client) || !at(bits + 1).hold(client));
        }
    }
}
