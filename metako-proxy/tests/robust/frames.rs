//! Lengths that lie, frames cut short, garbage: PostgreSQL and metako are sent the same, and say the same.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::bench::{Bench, LIMIT, text};
use crate::raw::{EXECUTE, Raw, SYNC, bind, parse, query};
use crate::watch::{clients, servers};

/// What is sent after the log-in.
fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let of = |tag: u8, length: u32, body: &[u8]| [&[tag][..], &length.to_be_bytes(), body].concat();
    vec![
        ("a length of zero", of(b'Q', 0, b"")),
        ("a length of three", of(b'Q', 3, b"")),
        ("a negative length", of(b'Q', 0xffff_ffff, b"select 1\0")),
        ("a length beyond all bounds", of(b'Q', 0x7fff_ffff, b"select 1\0")),
        ("a Sync with a body", of(b'S', 8, b"more")),
        ("a Sync too long by far", of(b'S', 0x0fff_ffff, b"")),
        ("an unknown message", of(b'z', 4, b"")),
        ("a null tag", of(0, 4, b"")),
        ("a message of servers", of(b'T', 6, b"\0\0")),
        ("a password after the log-in", of(b'p', 9, b"pass\0")),
        ("a Query without its end", of(b'Q', 12, b"select 1")),
        ("a Query with two ends", of(b'Q', 14, b"select 1\0\0")),
        ("an empty Query body", of(b'Q', 4, b"")),
        ("a Parse without types", of(b'P', 14, b"\0select 1\0")),
        ("a Parse that promises types", of(b'P', 16, b"\0select 1\0\0\x05")),
        ("a Parse with more types than said", of(b'P', 20, b"\0select 1\0\0\0\0\0\0\x17")),
        ("a Bind without its end", of(b'B', 8, b"\0\0\0\0")),
        (
            "a Bind that promises values",
            [&parse("", "select 1")[..], &of(b'B', 10, b"\0\0\0\0\0\x09"), SYNC].concat(),
        ),
        (
            "a Bind with a value of length -2",
            [&parse("", "select $1::text")[..], &of(b'B', 16, b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0"), SYNC]
                .concat(),
        ),
        (
            "a Bind with a value longer than itself",
            [&parse("", "select $1::text")[..], &of(b'B', 16, b"\0\0\0\0\0\x01\0\0\x7f\xff\0\0"), SYNC]
                .concat(),
        ),
        ("a Describe of nothing known", [&of(b'D', 6, b"X\0")[..], SYNC].concat()),
        ("a Close of nothing known", [&of(b'C', 6, b"X\0")[..], SYNC].concat()),
        ("an Execute cut short", [&of(b'E', 6, b"\0\0")[..], SYNC].concat()),
        ("an Execute of an unknown portal", [&of(b'E', 10, b"x\0\0\0\0\0")[..], SYNC].concat()),
        ("a Bind of an unknown statement", [&bind("unknown")[..], EXECUTE, SYNC].concat()),
        ("CopyData out of place", [&of(b'd', 6, b"1\n")[..], &of(b'c', 4, b""), SYNC].concat()),
        ("CopyFail out of place", [&of(b'f', 6, b"x\0")[..], SYNC].concat()),
        ("a Query within COPY", [query("copy pg_temp.c from stdin"), query("select 1")].concat()),
        ("a call of no function", of(b'F', 14, b"\0\0\0\0\0\0\0\0\0\0")),
        ("a call cut short", of(b'F', 6, b"\0\0")),
        ("bytes that are no message", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
    ]
}

/// Those that metako does not answer as PostgreSQL does yet. The list can only shrink.
const NOT_YET: &[&str] = &["a Sync with a body"];

const FENCE: &str = "the fence";

/// What comes back until the answer to a Query that is sent last, or the end of the connection.
async fn outcome(mut raw: Raw, bytes: &[u8]) -> String {
    // Sync ends what an error leaves to be skipped.
    let sent = [bytes, SYNC, &query(&format!("select '{FENCE}'"))].concat();
    // The other side may be gone before it has read all.
    let _ = timeout(LIMIT, raw.stream.write_all(&sent)).await.expect("it reads, or closes");
    let mut all = Vec::new();
    let read = async {
        // A reset is an end as well.
        while raw.stream.read_buf(&mut all).await.is_ok_and(|count| count > 0) {
            let fence = all.windows(FENCE.len()).position(|window| window == FENCE.as_bytes());
            if fence.is_some_and(|at| all[at..].windows(5).any(|window| window == b"Z\0\0\0\x05")) {
                return;
            }
        }
    };
    timeout(LIMIT, read).await.expect("an answer, or an end");
    let mut said = Vec::new();
    let mut rest = &all[..];
    while let Some((tag, length)) =
        rest.split_first().and_then(|(tag, rest)| Some((*tag, rest.first_chunk::<4>()?)))
    {
        let length = u32::from_be_bytes(*length) as usize;
        let Some(body) = rest.get(5..=length) else { break };
        match tag {
            b'E' => {
                let field = |name: u8| {
                    let found = body.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(&[name]));
                    String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
                };
                said.push(format!("E {} {} {}", field(b'V'), field(b'C'), field(b'M')));
            }
            // What a server reports when it likes.
            b'S' | b'N' => {}
            tag => said.push(char::from(tag).to_string()),
        }
        rest = &rest[length + 1..];
    }
    said.join(", ")
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_log_in_metako_says_what_postgresql_says() {
    let bench = Bench::start(0, "pool: { size: 3 }\nload_balancer: { split: off }").await;
    let past = bench.cluster.node("node-1").port();
    let mut different = Vec::new();
    for (what, bytes) in frames() {
        let wanted = outcome(Raw::log_in(past, bench.cluster.superuser_password()).await, &bytes).await;
        let got = outcome(Raw::connect(&bench).await, &bytes).await;
        // PostgreSQL writes to its log only why it closes a connection that has lost its frames; metako says so.
        let same = got == wanted || wanted.is_empty() && got.starts_with("E FATAL 08P01 invalid length");
        match (same, NOT_YET.contains(&what)) {
            (true, false) | (false, true) => {}
            (true, true) => different.push(format!("{what}: is as it should be: take it from the list")),
            (false, false) => different.push(format!("{what}: PostgreSQL says [{wanted}], metako [{got}]")),
        }
    }
    clients(&bench, "all are gone", 0).await;
    servers(&bench, "all are back", 0).await;
    assert_eq!(text(&bench.client().await, "select 6").await, "6");
    assert!(different.is_empty(), "{}", different.join("\n"));
    bench.data.shutdown(Duration::from_secs(5)).await;
}

/// Numbers that look random and are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        // Knuth's multiplier and increment for 64 bits.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_the_place_of_a_log_in_ends_and_hurts_nobody() {
    let bench = Bench::start(0, "limits: { login_timeout: 3s }").await;
    let other = bench.client().await;
    let mut numbers = Numbers(42);
    let mut open = Vec::new();
    for turn in 0..200 {
        let length = usize::try_from(numbers.next() % 300).unwrap();
        let mut bytes: Vec<u8> = (0..length).map(|_| numbers.next().to_le_bytes()[0]).collect();
        if turn % 2 == 0 && bytes.len() > 8 {
            // As far as the length goes, a start-up message of version 3.
            let length = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&length.to_be_bytes());
            bytes[4..8].copy_from_slice(&[0, 3, 0, 0]);
        }
        let mut stream = TcpStream::connect(("127.0.0.1", bench.port)).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        open.push(stream);
        assert_eq!(text(&other, "select 7").await, "7");
    }
    for mut stream in open {
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = timeout(LIMIT, stream.read_to_end(&mut rest)).await.expect("an end");
    }
    clients(&bench, "all but one are gone", 1).await;
    bench.data.shutdown(Duration::from_secs(5)).await;
}
