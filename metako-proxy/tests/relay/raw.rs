//! A client that sends what bytes it likes.

use bytes::BytesMut;
use metako_proxy::playground::Cluster;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::bench::{Bench, LIMIT};

pub(crate) const SYNC: &[u8] = b"S\0\0\0\x04";
pub(crate) const FLUSH: &[u8] = b"H\0\0\0\x04";
pub(crate) const TERMINATE: &[u8] = b"X\0\0\0\x04";
pub(crate) const EXECUTE: &[u8] = b"E\0\0\0\x09\0\0\0\0\0";

pub(crate) fn query(sql: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    frontend::query(sql, &mut out).unwrap();
    out.to_vec()
}

pub(crate) fn parse(name: &str, sql: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    frontend::parse(name, sql, [], &mut out).unwrap();
    out.to_vec()
}

pub(crate) fn bind(name: &str) -> Vec<u8> {
    let length = 12 + u32::try_from(name.len()).unwrap();
    [&b"B"[..], &length.to_be_bytes(), b"\0", name.as_bytes(), &[0; 7]].concat()
}

pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    kept: Vec<u8>,
}

impl Raw {
    pub(crate) async fn connect(bench: &Bench) -> Self {
        Self::log_in(bench.port, bench.cluster.superuser_password()).await
    }

    /// As the superuser, at any port.
    pub(crate) async fn log_in(port: u16, password: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut raw = Self { stream, kept: Vec::new() };
        let mut out = BytesMut::new();
        let parameters = [("user", Cluster::SUPERUSER), ("database", Cluster::DATABASE)];
        frontend::startup_message(parameters, &mut out).unwrap();
        raw.send(&out).await;
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        loop {
            let (tag, body) = raw.next().await.expect("log-in goes on");
            let mut out = BytesMut::new();
            match (tag, body.get(..4)) {
                (b'R', Some([0, 0, 0, 10])) => {
                    frontend::sasl_initial_response("SCRAM-SHA-256", scram.message(), &mut out).unwrap();
                }
                (b'R', Some([0, 0, 0, 11])) => {
                    scram.update(&body[4..]).unwrap();
                    frontend::sasl_response(scram.message(), &mut out).unwrap();
                }
                (b'R', Some([0, 0, 0, 12])) => scram.finish(&body[4..]).unwrap(),
                (b'Z', _) => return raw,
                (b'E', _) => panic!("{}", String::from_utf8_lossy(&body)),
                _ => {}
            }
            raw.send(&out).await;
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        timeout(LIMIT, self.stream.write_all(bytes)).await.expect("metako reads").unwrap();
    }

    /// The next message; nothing at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        timeout(LIMIT, async {
            loop {
                if let Some((tag, rest)) = self.kept.split_first()
                    && let Some(length) = rest.first_chunk::<4>()
                    && let Some(body) = rest.get(4..u32::from_be_bytes(*length) as usize)
                {
                    let message = (*tag, body.to_vec());
                    self.kept.drain(..5 + message.1.len());
                    return Some(message);
                }
                if self.stream.read_buf(&mut self.kept).await.unwrap() == 0 {
                    return None;
                }
            }
        })
        .await
        .expect("a message comes")
    }

    /// The tags of the messages up to the next one of that tag, an error with its SQLSTATE.
    pub(crate) async fn until(&mut self, last: u8) -> String {
        let mut seen = String::new();
        loop {
            let (tag, body) = self.next().await.expect("the connection goes on");
            seen.push(char::from(tag));
            if tag == b'E' {
                let code = body.split(|&byte| byte == 0).find_map(|field| field.strip_prefix(b"C"));
                seen.push_str(&String::from_utf8_lossy(code.unwrap_or_default()));
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
