//! A client that keeps every message as it came.

use bytes::BytesMut;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::bench::LIMIT;

/// A message: its type and its body.
pub(crate) type Message = (u8, Vec<u8>);

pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    kept: Vec<u8>,
    /// What came between AuthenticationOk and ReadyForQuery, inclusive.
    pub(crate) greeting: Vec<Message>,
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    frontend::query(sql, &mut out).unwrap();
    out.to_vec()
}

impl Wire {
    /// Logs in with start-up parameters of any kind; `Err` is what ended that.
    pub(crate) async fn start(
        port: u16,
        parameters: &[(&str, &str)],
        password: &str,
    ) -> Result<Self, Message> {
        let mut wire = Self::begin(port, parameters, password).await?;
        loop {
            let message = wire.next().await.expect("log-in goes on");
            match message.0 {
                b'E' => return Err(message),
                b'Z' => {
                    wire.greeting.push(message);
                    return Ok(wire);
                }
                _ => wire.greeting.push(message),
            }
        }
    }

    /// Logs in up to AuthenticationOk.
    pub(crate) async fn begin(
        port: u16,
        parameters: &[(&str, &str)],
        password: &str,
    ) -> Result<Self, Message> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut wire = Self { stream, kept: Vec::new(), greeting: Vec::new() };
        let mut out = BytesMut::new();
        frontend::startup_message(parameters.iter().copied(), &mut out).unwrap();
        wire.send(&out).await;
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        loop {
            let (tag, body) = wire.next().await.expect("log-in goes on");
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
                (b'R', Some([0, 0, 0, 0])) => return Ok(wire),
                (b'E', _) => return Err((tag, body)),
                other => panic!("{other:?}"),
            }
            wire.send(&out).await;
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        timeout(LIMIT, self.stream.write_all(bytes)).await.expect("metako reads").unwrap();
    }

    /// Says nothing more; still listens.
    pub(crate) async fn shut(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// The next message; nothing at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Message> {
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
                match self.stream.read_buf(&mut self.kept).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        })
        .await
        .expect("a message comes")
    }

    /// All messages up to the next of that type, or to the end.
    pub(crate) async fn until(&mut self, last: u8) -> Vec<Message> {
        let mut seen = Vec::new();
        while let Some(message) = self.next().await {
            let is_last = message.0 == last;
            seen.push(message);
            if is_last {
                break;
            }
        }
        seen
    }

    /// The first column of the only row.
    pub(crate) async fn value(&mut self, sql: &str) -> String {
        self.send(&query(sql)).await;
        let messages = self.until(b'Z').await;
        let row =
            messages.iter().find(|(tag, _)| *tag == b'D').unwrap_or_else(|| panic!("{sql}: {messages:?}"));
        String::from_utf8(row.1[6..].to_vec()).unwrap()
    }

    /// Process id and secret of BackendKeyData.
    pub(crate) fn key(&self) -> (i32, Vec<u8>) {
        let (_, body) = self.greeting.iter().find(|(tag, _)| *tag == b'K').expect("BackendKeyData");
        (i32::from_be_bytes(body[..4].try_into().unwrap()), body[4..].to_vec())
    }
}

/// Sends a CancelRequest and waits until it was dealt with.
pub(crate) async fn cancel(port: u16, process_id: i32, secret: &[u8]) {
    let length = u32::try_from(12 + secret.len()).unwrap();
    let code = 80_877_102_u32.to_be_bytes();
    let request = [&length.to_be_bytes()[..], &code, &process_id.to_be_bytes(), secret].concat();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("the request ends").unwrap();
    assert_eq!(answer, b"");
}

/// A field of an error or notice.
pub(crate) fn field(body: &[u8], kind: u8) -> String {
    let found = body.split(|&byte| byte == 0).find_map(|field| field.strip_prefix(&[kind]));
    String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
}
