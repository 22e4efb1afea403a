//! Addresses: `host:port`, and when two of them are the same.

use std::fmt;
use std::net::IpAddr;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Reads `host:port`; an IPv6 address stands in brackets. The error says what is expected.
pub(super) fn parse(text: &str) -> Result<Address, String> {
    let expected = "expected HOST:PORT, such as 127.0.0.1:6432 or [::1]:6432";
    let wrong = |likely: Option<String>| match likely {
        Some(likely) => format!("found `{text}`; {expected}; did you mean `{likely}`?"),
        None => format!("found `{text}`; {expected}"),
    };
    let ipv6 = |host: &str| host.parse::<std::net::Ipv6Addr>().is_ok();
    let Some((host, port)) = text.rsplit_once(':') else {
        let port_alone = text.parse::<u16>().is_ok_and(|port| port > 0);
        return Err(wrong(if port_alone {
            Some(format!("127.0.0.1:{text}"))
        } else {
            is_host(text).then(|| format!("{text}:6432"))
        }));
    };
    if ipv6(text) {
        return Err(wrong(Some(format!("[{text}]:6432"))));
    }
    let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| {
        format!("found port `{port}` in `{text}`; expected a number from 1 to 65535 after the last `:`")
    })?;
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match inner {
        Some(inner) if ipv6(inner) => Ok(Address { host: inner.to_owned(), port }),
        None if is_host(host) => Ok(Address { host: host.to_owned(), port }),
        None if host == "*" || host.is_empty() => Err(wrong(Some(format!("0.0.0.0:{port}")))),
        None if ipv6(host) => Err(wrong(Some(format!("[{host}]:{port}")))),
        _ => Err(wrong(None)),
    }
}

/// Whether text can be a host name or an IP address.
pub(super) fn is_host(text: &str) -> bool {
    let digits_and_points = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if digits_and_points || text.contains(':') {
        return text.parse::<IpAddr>().is_ok();
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

/// A host as it is compared: small letters, the loopback under one name.
pub(super) fn canonical(host: &str) -> String {
    let lower = host.trim_end_matches('.').to_ascii_lowercase();
    match lower.parse::<IpAddr>() {
        Ok(address) if address.is_loopback() => "localhost".to_owned(),
        Ok(address) => address.to_string(),
        Err(_) => lower,
    }
}

/// Whether who listens on `listen` takes the address of `host`:`port`, as far as names tell.
pub(super) fn takes(listen: &Address, host: &str, port: u16) -> bool {
    let (ours, theirs) = (canonical(&listen.host), canonical(host));
    let everywhere = listen.host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
    listen.port == port && (ours == theirs || (everywhere && theirs == "localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_parse_and_print() {
        for text in ["127.0.0.1:6432", "[::1]:6432", "localhost:1", "db-1.example.org:65535"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn wrong_addresses_say_what_was_meant() {
        for (text, meant) in [
            ("6432", "`127.0.0.1:6432`"),
            ("localhost", "`localhost:6432`"),
            ("*:6432", "`0.0.0.0:6432`"),
            (":6432", "`0.0.0.0:6432`"),
            ("::1", "`[::1]:6432`"),
            ("127.0.0.1:0", "from 1 to 65535"),
            ("127.0.0.1:x", "from 1 to 65535"),
            ("127.0.0.256:6432", "expected HOST:PORT"),
            ("a b:6432", "expected HOST:PORT"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(meant), "{text}: {message}");
        }
    }

    #[test]
    fn the_loopback_is_one_host() {
        let listen = |text: &str| parse(text).unwrap();
        assert!(takes(&listen("127.0.0.1:5432"), "localhost", 5432));
        assert!(takes(&listen("0.0.0.0:5432"), "LOCALHOST", 5432));
        assert!(takes(&listen("[::]:5432"), "127.0.0.1", 5432));
        assert!(!takes(&listen("0.0.0.0:5432"), "db1", 5432));
        assert!(!takes(&listen("127.0.0.1:6432"), "localhost", 5432));
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,40}") {
            let _ = (parse(&text), is_host(&text), canonical(&text));
        }
    }
}
