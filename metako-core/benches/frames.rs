//! The frame scan: what every byte that passes costs, before anything is done with it.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use metako_core::wire::{Direction, Framer, Piece};

/// What metako's `limits.message_size` allows by default.
const LIMIT: u64 = 1 << 30;

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("bodies here are short");
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

/// One execution of a prepared statement with a parameter, as pgbench sends it.
fn execution() -> Vec<u8> {
    let bind = b"\0P_0\0\0\0\0\x01\0\0\0\x05123450\0\0";
    [frame(b'B', bind), frame(b'D', b"P\0"), frame(b'E', b"\0\0\0\0\0"), frame(b'S', b"")].concat()
}

/// What PostgreSQL answers to it: one row of one column.
fn answer() -> Vec<u8> {
    let description = b"\0\x01abalance\0\0\0\x40\0\0\x03\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0";
    let frames = [
        frame(b'2', b""),
        frame(b'T', description),
        frame(b'D', b"\0\x01\0\0\0\x010"),
        frame(b'C', b"SELECT 1\0"),
        frame(b'Z', b"I"),
    ];
    frames.concat()
}

/// A result of so many rows of that size.
fn result(rows: usize, bytes: usize) -> Vec<u8> {
    let mut stream = frame(b'D', &vec![b'x'; bytes]).repeat(rows);
    stream.extend(frame(b'C', b"SELECT 1000\0"));
    stream.extend(frame(b'Z', b"I"));
    stream
}

/// Cuts a stream into pieces, offered in chunks as they would come from a socket; counts the frames.
fn scan(direction: Direction, stream: &[u8], chunk: usize) -> usize {
    let mut framer = Framer::new(direction, LIMIT);
    let (mut frames, mut begin, mut end) = (0, 0, 0);
    while begin < stream.len() {
        end = stream.len().min(end + chunk);
        while let Some(piece) = framer.next(&stream[begin..end]).expect("the stream is sound") {
            begin += match piece {
                Piece::Start { taken, .. } => {
                    frames += 1;
                    taken
                }
                Piece::Rest { taken, .. } => taken,
            };
        }
    }
    frames
}

fn frames(criterion: &mut Criterion) {
    /// Of one read from a socket.
    const READ: usize = 16 << 10;
    let query = frame(b'Q', b"SELECT abalance FROM pgbench_accounts WHERE aid = 123450;\0");
    let cases = [
        ("query", Direction::Client, query),
        ("prepared execution", Direction::Client, execution()),
        ("answer of one row", Direction::Server, answer()),
        ("1,000 rows of 30 bytes", Direction::Server, result(1_000, 30)),
        ("1,000 rows of 1 kB", Direction::Server, result(1_000, 1_000)),
        ("1 row of 1 MB", Direction::Server, result(1, 1_000_000)),
    ];
    for (name, direction, stream) in cases {
        let mut group = criterion.benchmark_group(name);
        let count = scan(direction, &stream, READ);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function("scan", |bencher| bencher.iter(|| scan(direction, black_box(&stream), READ)));
        group.finish();
    }
}

criterion_group!(benches, frames);
criterion_main!(benches);
