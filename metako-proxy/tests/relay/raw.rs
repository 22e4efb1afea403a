//! A client that sends what bytes it likes.

use std::ops::{Deref, DerefMut};

use bytes::BytesMut;
use metako_proxy::playground::Cluster;
use postgres_protocol::message::frontend;
use tokio::net::TcpStream;

pub(crate) use self::wire::query;
use self::wire::{Wire, field};
use crate::bench::Bench;

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "../wire/mod.rs"]
mod wire;

pub(crate) const SYNC: &[u8] = b"S\0\0\0\x04";
pub(crate) const FLUSH: &[u8] = b"H\0\0\0\x04";
pub(crate) const TERMINATE: &[u8] = b"X\0\0\0\x04";
pub(crate) const EXECUTE: &[u8] = b"E\0\0\0\x09\0\0\0\0\0";

pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    frontend::parse(name, sql, [], &mut out).unwrap();
    out.to_vec()
}

pub(crate) fn bind(name: &str) -> Vec<u8> {
    let length = 12 + u32::try_from(name.len()).unwrap();
    [&b"B"[..], &length.to_be_bytes(), b"\0", name.as_bytes(), &[0; 7]].concat()
}

pub(crate) struct Raw(Wire);

impl Deref for Raw {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.0
    }
}

impl DerefMut for Raw {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.0
    }
}

impl Raw {
    pub(crate) async fn connect(bench: &Bench) -> Self {
        Self::log_in(bench.port, bench.cluster.superuser_password()).await
    }

    /// As the superuser, at any port.
    pub(crate) async fn log_in(port: u16, password: &str) -> Self {
        let parameters = [("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)];
        let wire = Wire::start(port, &parameters, password).await;
        Self(wire.unwrap_or_else(|(_, body)| panic!("{}", String::from_utf8_lossy(&body))))
    }

    pub(crate) fn into_stream(self) -> TcpStream {
        self.0.stream
    }

    /// The tags of the messages up to the next one of that tag, an error with its SQLSTATE.
    pub(crate) async fn until(&mut self, last: u8) -> String {
        let mut seen = String::new();
        loop {
            let (tag, body) = self.next().await.expect("the connection goes on");
            seen.push(char::from(tag));
            if tag == b'E' {
                seen.push_str(&field(&body, b'C'));
            }
            if tag == last {
                return seen;
            }
        }
    }

    pub(crate) async fn ready(&mut self) -> String {
        self.until(b'Z').await
    }
}
