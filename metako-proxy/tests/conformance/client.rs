//! A client that sends what bytes it likes, and writes down what it sent and got.

use std::cell::RefCell;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::scram::Scram;
use crate::{send, show};

/// What passed in a case, line by line, over all of its clients.
pub(crate) type Script = Rc<RefCell<Vec<String>>>;

/// The case cannot go on: the last line of the script says why. Not a panic of the test's own.
pub(crate) struct Halt;

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A connection, logged in or not.
pub(crate) struct Client {
    name: &'static str,
    stream: Stream,
    kept: Vec<u8>,
    script: Script,
    recorded: bool,
    /// Whether this is PostgreSQL itself, whose answers have to be what the case says.
    oracle: bool,
    over: bool,
    /// Process and secret of BackendKeyData.
    pub(crate) key: (u32, Vec<u8>),
}

impl Client {
    pub(crate) fn connect(
        name: &'static str,
        port: u16,
        limit: Duration,
        oracle: bool,
        script: Option<&Script>,
    ) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is open");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(limit)).expect("a TCP socket");
        stream.set_write_timeout(Some(limit)).expect("a TCP socket");
        Self {
            name,
            stream: Stream::Plain(stream),
            kept: Vec::new(),
            script: script.map(Rc::clone).unwrap_or_default(),
            recorded: script.is_some(),
            oracle,
            over: false,
            key: (0, Vec::new()),
        }
    }

    fn record(&self, direction: &str, line: &str) {
        if self.recorded {
            self.script.borrow_mut().push(format!("{} {direction} {line}", self.name));
        }
    }

    fn halt(&self, why: &str) -> ! {
        self.record("!", why);
        assert!(self.recorded, "{}: {why}", self.name);
        std::panic::resume_unwind(Box::new(Halt))
    }

    /// Does something of which nothing is written down.
    pub(crate) fn quietly<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> T {
        let recorded = std::mem::replace(&mut self.recorded, false);
        let outcome = act(self);
        self.recorded = recorded;
        outcome
    }

    /// Sends bytes. Where nobody takes them any more, the answer tells.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.record(">", &show::sent(bytes));
        self.put(bytes);
    }

    fn put(&mut self, bytes: &[u8]) {
        let sent = match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes),
            Stream::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        };
        if let Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) = sent.map_err(|error| error.kind()) {
            self.halt("what was sent is not read");
        }
    }

    /// Sends more than the other side may take before its answers are read: writes in a thread of its own.
    pub(crate) fn send_much(&mut self, bytes: Vec<u8>) -> std::thread::JoinHandle<std::io::Result<()>> {
        self.record(">", &show::sent(&bytes));
        let Stream::Plain(stream) = &self.stream else { panic!("only without TLS") };
        let mut stream = stream.try_clone().expect("a second handle");
        std::thread::spawn(move || stream.write_all(&bytes))
    }

    fn read(&mut self) -> usize {
        let mut chunk = [0; 16 << 10];
        let read = match &mut self.stream {
            Stream::Plain(stream) => stream.read(&mut chunk),
            Stream::Tls(stream) => stream.read(&mut chunk),
        };
        match read {
            Ok(length) => {
                self.kept.extend_from_slice(&chunk[..length]);
                length
            }
            Err(error) => match error.kind() {
                // Input that PostgreSQL had not read when it closed makes a reset of the end.
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => 0,
                ErrorKind::WouldBlock | ErrorKind::TimedOut => self.halt("nothing came in time"),
                _ => self.halt(&format!("{error}")),
            },
        }
    }

    /// The next byte, as the answers to SSLRequest and GSSENCRequest are; nothing at the end.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        while self.kept.is_empty() {
            if self.read() == 0 {
                self.ended();
                return None;
            }
        }
        let byte = self.kept.remove(0);
        self.record("<", &format!("byte {}", show::bytes(&[byte])));
        Some(byte)
    }

    fn ended(&mut self) {
        self.over = true;
        self.record("<", "end of the connection");
    }

    /// The next message; nothing at the end.
    pub(crate) fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let message = self.take();
        match &message {
            Some((tag, body)) => self.record("<", &show::answer(*tag, body)),
            None => self.ended(),
        }
        message
    }

    fn take(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((tag, rest)) = self.kept.split_first()
                && let Some(length) = rest.first_chunk::<4>()
                && let Some(body) = rest.get(4..u32::from_be_bytes(*length) as usize)
            {
                let message = (*tag, body.to_vec());
                self.kept.drain(..5 + message.1.len());
                return Some(message);
            }
            if self.read() == 0 {
                if !self.kept.is_empty() {
                    let rest = std::mem::take(&mut self.kept);
                    self.record("<", &format!("half a message: {}", show::bytes(&rest)));
                }
                return None;
            }
        }
    }

    fn must(&mut self) -> (u8, Vec<u8>) {
        match self.next() {
            Some(message) => message,
            None => self.halt("the case expects more"),
        }
    }

    /// Reads messages until the last one of `shape`: tags, errors and notices with their SQLSTATE. PostgreSQL's answer
    /// must have that shape. Where it ends in `Z` all is read up to that ReadyForQuery, counted, whatever comes before.
    pub(crate) fn says(&mut self, shape: &str) {
        let letters = shape.matches('Z').count();
        let (mut seen, mut readies) = (String::new(), 0);
        while if letters > 0 { readies < letters } else { seen.len() < shape.len() } {
            let (tag, body) = self.must();
            push_tag(&mut seen, tag, &body);
            readies += usize::from(tag == b'Z');
        }
        self.check(shape, &seen);
    }

    /// Reads until the end of the connection; what PostgreSQL says before must have that shape.
    pub(crate) fn says_at_last(&mut self, shape: &str) {
        let mut seen = String::new();
        while let Some((tag, body)) = self.next() {
            push_tag(&mut seen, tag, &body);
        }
        self.check(shape, &seen);
    }

    fn check(&self, shape: &str, seen: &str) {
        // Before PostgreSQL 14 a ParameterStatus comes at once and not before ReadyForQuery, and once for each change.
        // Whether metako passes them on in the same way is seen when the scripts are compared.
        let without_reports = |text: &str| text.replace('S', "");
        if self.oracle && without_reports(shape) != without_reports(seen) {
            // Not a panic of its own: the whole script is reported.
            std::panic::resume_unwind(Box::new(format!("PostgreSQL says {seen}, not {shape}")));
        }
    }

    /// Reads until ReadyForQuery; answers with what passed, as [`Self::says`] takes it.
    pub(crate) fn ready(&mut self) -> String {
        let mut seen = String::new();
        loop {
            let (tag, body) = self.must();
            push_tag(&mut seen, tag, &body);
            if tag == b'Z' {
                return seen;
            }
        }
    }

    /// A simple query, and its answer.
    pub(crate) fn query(&mut self, sql: &str) -> String {
        self.send(&send::query(sql));
        self.ready()
    }

    /// Asks for rows three times, so that in a pool every server would have been asked.
    pub(crate) fn asks_of_all(&mut self, sql: &str) {
        for _ in 0..3 {
            self.asks(sql, "TDCZ");
        }
    }

    /// A simple query whose answer must have that shape.
    pub(crate) fn asks(&mut self, sql: &str, shape: &str) {
        self.send(&send::query(sql));
        self.says(shape);
    }

    /// The first value of the first row, if there is one; nothing of it is written down.
    pub(crate) fn value(&mut self, sql: &str) -> Option<String> {
        self.quietly(|client| {
            client.put(&send::query(sql));
            let mut value = None;
            loop {
                let Some((tag, body)) = client.take() else { return value };
                match tag {
                    b'D' if value.is_none() => {
                        value = body.get(6..).map(|text| String::from_utf8_lossy(text).into_owned());
                    }
                    b'E' => panic!("{sql}: {}", show::answer(tag, &body)),
                    b'Z' => return value,
                    _ => {}
                }
            }
        })
    }

    /// Asks until the answer is `wanted`; halts when `limit` asks in a row gave something else.
    pub(crate) fn wait_until(&mut self, sql: &str, wanted: &str) {
        let begun = std::time::Instant::now();
        loop {
            let seen = self.value(sql).unwrap_or_default();
            if seen == wanted {
                return;
            }
            assert!(begun.elapsed() < crate::running::PATIENCE, "{sql}: {seen}, never {wanted}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Start-up with SCRAM or whatever else the other side asks for, up to ReadyForQuery or an error. Parameters are
    /// written down in the order of their names: the protocol promises none.
    pub(crate) fn log_in(&mut self, version: u32, parameters: &[(&str, &str)], password: &str) -> bool {
        self.send(&send::startup(version, parameters));
        self.prove(password, None)
    }

    /// What follows the start-up message; `binding` is the hash of the server's certificate, where the proof is to be
    /// bound to the channel.
    pub(crate) fn prove(&mut self, password: &str, binding: Option<Vec<u8>>) -> bool {
        let mut scram = Scram::new(password, binding);
        let mut reports = Vec::new();
        loop {
            let Some((tag, body)) = self.take() else {
                self.ended();
                return false;
            };
            if tag == b'S' {
                reports.push(show::answer(tag, &body));
                continue;
            }
            reports.sort_unstable();
            for report in reports.drain(..) {
                self.record("<", &report);
            }
            self.record("<", &show::answer(tag, &body));
            match (tag, body.get(..4)) {
                (b'R', Some([0, 0, 0, 3])) => {
                    self.put(&send::password(&[password.as_bytes(), b"\0"].concat()));
                }
                (b'R', Some([0, 0, 0, 10])) => self.put(&send::password(&scram.first())),
                (b'R', Some([0, 0, 0, 11])) => match scram.last(&body[4..]) {
                    Some(proof) => self.put(&send::password(&proof)),
                    None => self.halt("the server's first SCRAM message makes no sense"),
                },
                (b'R', Some([0, 0, 0, 12])) if !scram.is_proven(&body[4..]) => {
                    self.halt("the server does not know the password");
                }
                (b'K', Some(process)) => {
                    let process = process.try_into().expect("four bytes");
                    self.key = (u32::from_be_bytes(process), body[4..].to_vec());
                }
                (b'Z', _) => return true,
                (b'E', _) => return false,
                _ => {}
            }
        }
    }

    /// The TLS handshake; answers whether it succeeded.
    pub(crate) fn start_tls(self, config: Arc<ClientConfig>) -> Option<Self> {
        let mut client = self;
        if !client.kept.is_empty() {
            client.record("<", "no TLS: more than one byte");
            client.over = true;
            return None;
        }
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(config, name).expect("a client configuration");
        let Stream::Plain(mut stream) = (match &client.stream {
            Stream::Plain(stream) => Stream::Plain(stream.try_clone().expect("a second handle")),
            Stream::Tls(_) => panic!("TLS within TLS"),
        }) else {
            unreachable!("it was made above")
        };
        let mut connection = connection;
        while connection.is_handshaking() {
            if let Err(error) = connection.complete_io(&mut stream) {
                client.record("<", &format!("no TLS: {}", error.kind()));
                client.over = true;
                return None;
            }
        }
        let protocol = connection.alpn_protocol().map(show::bytes);
        client.record("<", &format!("TLS, ALPN {protocol:?}"));
        client.stream = Stream::Tls(Box::new(StreamOwned::new(connection, stream)));
        Some(client)
    }

    /// The same, with nothing written down of the handshake.
    pub(crate) fn quietly_start_tls(mut self, config: Arc<ClientConfig>) -> Option<Self> {
        let recorded = std::mem::replace(&mut self.recorded, false);
        let mut client = self.start_tls(config)?;
        client.recorded = recorded;
        Some(client)
    }

    /// No more will be sent; the answers still come.
    pub(crate) fn stop_sending(&mut self) {
        self.record(">", "end of the connection");
        self.shutdown(Shutdown::Write);
    }

    fn shutdown(&self, how: Shutdown) {
        let stream = match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        };
        // It may have ended by itself.
        let _ = stream.shutdown(how);
    }

    /// Is gone without a word.
    pub(crate) fn vanish(mut self) {
        self.record(">", "gone");
        self.shutdown(Shutdown::Both);
        self.over = true;
    }

    /// Says goodbye, and reads what there still is: nothing, if all was read before.
    pub(crate) fn leave(mut self) {
        if !self.over {
            self.put(send::TERMINATE);
            while self.next().is_some() {}
        }
    }

    /// Is gone, whatever there still is to be read.
    pub(crate) fn leave_now(&mut self) {
        self.put(send::TERMINATE);
        self.shutdown(Shutdown::Both);
        self.over = true;
    }

    /// Whether the connection has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.over
    }
}

fn push_tag(seen: &mut String, tag: u8, body: &[u8]) {
    seen.push(char::from(tag));
    if matches!(tag, b'E' | b'N') {
        seen.push_str(&show::sqlstate(body));
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.over && !std::thread::panicking() {
            self.record("!", "was not ended by the case");
        }
    }
}
